"""Transformers' generate at its fastest public settings, over static batches, on the weights of ``generation.build``.

Prompts of a batch are padded on the left. Pictures of one size are guided by its own second forward and held to their
grid by a processor that copies a range of the logits: quicker than ``prefix_allowed_tokens_fn``, which takes a list of
allowed tokens per row. By default pictures use its dynamic cache and texts its static one (``generation.json``: the
faster). The marks behind the last code of a picture are known, so it is not asked for them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from rhea.documents.document import ImageSize
from rhea.generation.request import Request
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
        top_k=requests[0].sampling.top_k,
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
