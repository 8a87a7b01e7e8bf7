"""Transformers' generate at its fastest public settings, over static batches, on the same weights as ours.

Prompts of a batch are padded on the left. Pictures of one size are guided by its own second forward and held to their
grid by a processor that copies a range of the logits: quicker than ``prefix_allowed_tokens_fn``, which takes a list of
allowed tokens per row. By default pictures use its dynamic cache and texts its static one (``generation.json``: the
faster). The marks behind the last code of a picture are known, so it is not asked for them.
"""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from rhea.checkpoints.layouts import OFFICIAL_TRANSFORMER
from rhea.documents.document import ImageSize
from rhea.generation.request import Request
from rhea.models.transformer import Transformer
from rhea.tokenizers.vocabulary import Vocabulary


class GridProcessor(LogitsProcessor):
    """Allows codes in the columns of a grid that begins behind ``start`` tokens, and EOL after each row."""

    def __init__(self, vocabulary: Vocabulary, start: int, width: int) -> None:
        self.vocabulary, self.start, self.width = vocabulary, start, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        column = (input_ids.shape[1] - self.start) % (self.width + 1)
        legal = self.vocabulary.vision
        if column == self.width:
            legal = range(self.vocabulary.eol, self.vocabulary.eol + 1)
        allowed = torch.full_like(scores, float("-inf"))
        allowed[:, legal.start : legal.stop] = scores[:, legal.start : legal.stop]
        return allowed


def with_qk_norm(model: Transformer) -> Any:
    """Return transformers' Qwen3 with the same float32 weights: the same layers, QK-norm too, which its Emu3 lacks."""
    config = model.config
    theirs = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=config.vocab_size,
            hidden_size=config.dim,
            intermediate_size=config.ffn_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_seq_len,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=False,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    names = OFFICIAL_TRANSFORMER.transformer[0]
    theirs.load_state_dict({names.theirs(name): weight for name, weight in model.state_dict().items()})
    theirs.eval()
    ids = torch.arange(32)[None]
    with torch.inference_mode():
        torch.testing.assert_close(theirs(ids).logits, model(ids), rtol=1e-4, atol=1e-3)
    return theirs


def draw_pictures(
    theirs: Any,
    vocabulary: Vocabulary,
    requests: Sequence[Request],
    size: ImageSize,
    new_tokens: int | None = None,
    cache: str = "dynamic",
) -> Tensor:
    """Draw guided pictures of one size, all codes unless ``new_tokens`` says fewer; return ids [B, prompt + new]."""
    prompts, mask = _padded([request.prompt for request in requests], vocabulary.pad)
    negatives, negative_mask = _padded([request.negative_prompt or () for request in requests], vocabulary.pad)
    return theirs.generate(
        prompts,
        attention_mask=mask,
        negative_prompt_ids=negatives,
        negative_prompt_attention_mask=negative_mask,
        guidance_scale=requests[0].sampling.guidance_scale,
        logits_processor=LogitsProcessorList([GridProcessor(vocabulary, prompts.shape[1], size.width)]),
        do_sample=True,
        top_k=requests[0].sampling.top_k or 0,
        max_new_tokens=new_tokens or size.height * (size.width + 1) - 1,
        cache_implementation=cache,
    )


def write_texts(theirs: Any, vocabulary: Vocabulary, requests: Sequence[Request], cache: str = "static") -> Tensor:
    """Write texts until the longest is done; return ids [B, prompt + new]."""
    prompts, mask = _padded([request.prompt for request in requests], vocabulary.pad)
    return theirs.generate(
        prompts,
        attention_mask=mask,
        do_sample=True,
        top_k=requests[0].sampling.top_k,
        max_new_tokens=max(request.max_new_tokens for request in requests),
        cache_implementation=cache,
    )


def _padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Return ids padded on the left and their attention mask, [B, T] each."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask
