"""Greedy pictures and answers: the tokens of transformers' own generate on the same weights, in float32.

Theirs runs guidance as a second forward over the whole vocabulary and the grid as a prefix function; ours batches both
branches, computes only the visual rows and folds the forced tokens. The prefix function states the released rule.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from tiny_model import tiny_checkpoint

from rhea.checkpoints.save import save_checkpoint
from rhea.documents import formats
from rhea.documents.constraint import Constraint
from rhea.documents.document import ImageSize
from rhea.documents.grammar import Grammar
from rhea.generation.plain import continue_prompts
from rhea.generation.request import Request
from rhea.generation.sampling import SamplingConfig
from rhea.models.transformer import Transformer
from rhea.tokenizers.vocabulary import Vocabulary

Models = tuple[Transformer, Grammar, "transformers.Emu3ForCausalLM"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    checkpoint = replace(tiny_checkpoint(), vision_tokenizer=None)
    folder: Path = tmp_path_factory.mktemp("export") / "hf"
    save_checkpoint(folder, checkpoint, layout="hf")
    theirs = transformers.Emu3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert checkpoint.transformer is not None
    assert checkpoint.vocabulary is not None
    assert checkpoint.text_tokenizer is not None
    return checkpoint.transformer, Grammar(checkpoint.vocabulary, checkpoint.text_tokenizer), theirs


def released_rule(vocabulary: Vocabulary, size: ImageSize) -> Callable[[int, torch.Tensor], list[int]]:
    """Return the prefix function: the offset from the image token decides (right for one image, widths over 2)."""
    visual = list(vocabulary.vision)

    def allowed(_: int, ids: torch.Tensor) -> list[int]:
        offset = len(ids) - int((ids == vocabulary.image_token).nonzero()[0])
        end = (size.width + 1) * size.height
        if offset % (size.width + 1) == 0:
            return [vocabulary.eol]
        ends = {end + 1: vocabulary.eof, end + 2: vocabulary.image_end, end + 3: vocabulary.eos}
        return [ends[offset]] if offset in ends else visual

    return allowed


@pytest.mark.parametrize("size", [ImageSize(height=3, width=4), ImageSize(height=6, width=5)], ids=str)
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_greedy_picture(models: Models, size: ImageSize, guidance_scale: float) -> None:
    ours, grammar, theirs = models
    prompt = torch.from_numpy(grammar.render_prompt(formats.text_to_image("a small red circle"), size))[None]
    negative = torch.from_numpy(grammar.render_prompt(formats.text_to_image("blue"), size))[None]
    length = size.height * (size.width + 1) + 3
    expected = theirs.generate(
        prompt,
        guidance_scale=guidance_scale if guidance_scale != 1 else None,
        negative_prompt_ids=negative if guidance_scale != 1 else None,
        prefix_allowed_tokens_fn=released_rule(grammar.vocabulary, size),
        do_sample=False,
        max_new_tokens=length,
    )[0, prompt.shape[1] :].tolist()
    request = Request(
        prompt=prompt[0].tolist(),
        negative_prompt=negative[0].tolist(),
        constraint=Constraint(grammar, "visual").start(prompt[0].numpy()),
        max_new_tokens=length,
        sampling=SamplingConfig(temperature=0.0, guidance_scale=guidance_scale),
    )
    assert len(expected) == length
    assert continue_prompts(ours, [request]) == [expected]
    assert len(set(expected)) > 8  # a picture of one code would show nothing


def test_greedy_answers(models: Models) -> None:
    ours, grammar, theirs = models
    allowed = [*grammar.vocabulary.text, grammar.vocabulary.eos]
    for question in ("How many", "is it small or red?"):
        prompt = torch.from_numpy(grammar.render_prompt(formats.question_answering(None, question)))[None]
        expected = theirs.generate(
            prompt, prefix_allowed_tokens_fn=lambda *_: allowed, do_sample=False, max_new_tokens=16
        )[0, prompt.shape[1] :].tolist()
        request = Request(
            prompt=prompt[0].tolist(),
            constraint=Constraint(grammar, "text").start(prompt[0].numpy()),
            max_new_tokens=16,
            sampling=SamplingConfig(temperature=0.0),
        )
        assert continue_prompts(ours, [request]) == [expected]
