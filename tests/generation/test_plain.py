"""The plain loop against the slowest one that can be written: no cache, no batch, the whole vocabulary every time."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import tiny_checkpoint

from rhea.documents import formats
from rhea.documents.constraint import Constraint
from rhea.documents.document import ImageSize, VideoSize
from rhea.documents.grammar import Grammar
from rhea.errors import InputError
from rhea.generation.plain import continue_prompts
from rhea.generation.request import Progress, Request
from rhea.generation.sampling import SamplingConfig, gumbel_noise, noise_key
from rhea.models.transformer import Transformer


def tiny_parts() -> tuple[Transformer, Grammar]:
    checkpoint = tiny_checkpoint()
    assert checkpoint.transformer is not None
    assert checkpoint.vocabulary is not None
    assert checkpoint.text_tokenizer is not None
    return checkpoint.transformer, Grammar(checkpoint.vocabulary, checkpoint.text_tokenizer)


MODEL, GRAMMAR = tiny_parts()


def visual(text: str, size: ImageSize | VideoSize, negative: str | None = "", **sampling: float) -> Request:
    prompt = GRAMMAR.render_prompt(formats.text_to_image(text), size)
    constraint = Constraint(GRAMMAR, "visual").start(prompt)
    return Request(
        prompt=prompt.tolist(),
        constraint=constraint,
        max_new_tokens=constraint.remaining_grid_tokens + 2,
        negative_prompt=None
        if negative is None
        else GRAMMAR.render_prompt(formats.text_to_image(negative), size).tolist(),
        sampling=SamplingConfig(**{"guidance_scale": 2.5, **sampling}),  # type: ignore[arg-type]
        seed=11,
    )


def answer(question: str, limit: int = 12, **sampling: float) -> Request:
    prompt = GRAMMAR.render_prompt(formats.question_answering(None, question))
    return Request(
        prompt=prompt.tolist(),
        constraint=Constraint(GRAMMAR, "text").start(prompt),
        max_new_tokens=limit,
        sampling=SamplingConfig(**sampling),  # type: ignore[arg-type]
        seed=5,
    )


MIXED = {
    "picture": visual("a small red circle", ImageSize(height=3, width=4)),
    "longer prompt, cut": visual("How many objects are there? two", ImageSize(height=4, width=2), top_k=5, top_p=0.7),
    "width one": visual("two", ImageSize(height=5, width=1), negative="make it blue, a small circle", top_k=3),
    "film": visual("make it blue", VideoSize(height=2, width=2, num_frames=9, fps=8)),
    "greedy": visual("two red", ImageSize(height=2, width=6), temperature=0.0),
    "no guidance": visual("two red", ImageSize(height=2, width=5), negative=None),
    "answer": answer("How many"),
    "greedy answer": answer("How many red", limit=5, temperature=0.0),
    "cool answer": answer("circle?", limit=20, temperature=0.5, top_k=20),
}


@torch.no_grad()
def naive(request: Request) -> list[int]:
    """Continue a request by definition; guidance on log-softmax over the whole vocabulary, as Emu3 writes it."""
    constraint, tokens = request.constraint.copy(), list[int]()
    while not constraint.done and len(tokens) < request.max_new_tokens:
        logits = MODEL(torch.tensor([[*request.prompt, *tokens]]))[0, -1].log_softmax(-1)
        if request.negative_prompt is not None:
            uncond = MODEL(torch.tensor([[*request.negative_prompt, *tokens]]))[0, -1].log_softmax(-1)
            logits = uncond + request.sampling.guidance_scale * (logits - uncond)
        allowed = torch.zeros_like(logits, dtype=torch.bool)
        for ids in constraint.legal().ranges:
            allowed[ids.start : ids.stop] = True
        logits = logits.masked_fill(~allowed, float("-inf"))
        key = noise_key(request.seed, request.sample_index, len(request.prompt) + len(tokens))
        tokens.append(choose(logits, request.sampling, key))
        constraint.advance(tokens[-1])
    return tokens


def choose(logits: torch.Tensor, sampling: SamplingConfig, key: int) -> int:
    if sampling.temperature == 0:
        return int(logits.argmax())
    logits = logits / sampling.temperature
    order = logits.argsort(descending=True)
    kept = order[: sampling.top_k] if sampling.top_k else order
    mass_before = logits[kept].softmax(-1).cumsum(-1) - logits[kept].softmax(-1)
    kept = kept[(mass_before < sampling.top_p) | (torch.arange(len(kept)) == 0)]
    noise = gumbel_noise(torch.tensor([key]), torch.arange(len(logits)))[0]
    return int(kept[(logits[kept] + noise[kept]).argmax()])


@pytest.fixture(scope="module")
def reference() -> dict[str, list[int]]:
    return {name: naive(request) for name, request in MIXED.items()}


@pytest.mark.parametrize("fold", [True, False])
def test_alone_equals_the_naive_loop(reference: dict[str, list[int]], fold: bool) -> None:
    for name, request in MIXED.items():
        assert continue_prompts(MODEL, [request], fold=fold) == [reference[name]], name


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("max_requests", [64, 4])
def test_any_batch_equals_alone(reference: dict[str, list[int]], fold: bool, max_requests: int) -> None:
    together = continue_prompts(MODEL, list(MIXED.values()), fold=fold, max_requests=max_requests)
    assert dict(zip(MIXED, together, strict=True)) == reference


def test_the_packed_model_gives_the_same_tokens(reference: dict[str, list[int]]) -> None:
    model, _ = tiny_parts()
    together = continue_prompts(model.pack(), list(MIXED.values()))
    assert dict(zip(MIXED, together, strict=True)) == reference


def test_grids_keep_the_grammar(reference: dict[str, list[int]]) -> None:
    for name in ("picture", "width one", "film"):
        document = GRAMMAR.parse([*MIXED[name].prompt, *reference[name]])
        assert document.eos
        assert len(reference[name]) == MIXED[name].max_new_tokens
    assert len(reference["film"]) == 3 * (2 * 3 + 1) + 2


def test_samples_and_seeds_differ() -> None:
    base = visual("a small red circle", ImageSize(height=4, width=4))
    fields: dict[str, Any] = {name: getattr(base, name) for name in ("prompt", "constraint", "max_new_tokens")}
    variants = [Request(**fields, seed=seed, sample_index=index) for seed in (0, 1) for index in (0, 1)]
    assert len({tuple(tokens) for tokens in continue_prompts(MODEL, variants)}) == 4


def test_folding_saves_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    hidden = MODEL.hidden

    def counted(token_ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
        calls.append(token_ids.shape[1])
        return hidden(token_ids, **arguments)

    monkeypatch.setattr(MODEL, "hidden", counted)
    continue_prompts(MODEL, [visual("two", ImageSize(height=6, width=3))])
    assert len(calls) == 6 * 3  # the prompt, then one for every code but the last
    assert max(calls[1:]) == 2
    calls.clear()
    continue_prompts(MODEL, [visual("two", ImageSize(height=6, width=3))], fold=False)
    assert len(calls) == 6 * 3 + 5  # and one more for every EOL but the last


def head_rows_asked_for(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int | None]]:
    """Return what will list the rows of the head, from and up to where, of every call."""
    asked: list[tuple[int, int | None]] = []
    logits = MODEL.logits

    def listed(x: torch.Tensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
        asked.append((start, stop))
        return logits(x, start, stop)

    monkeypatch.setattr(MODEL, "logits", listed)
    return asked


VISUAL_ROWS = (GRAMMAR.vocabulary.vision.start, GRAMMAR.vocabulary.vision.stop)


@pytest.mark.parametrize("fold", [True, False])
def test_inside_a_grid_only_the_visual_rows_of_the_head_are_computed(
    monkeypatch: pytest.MonkeyPatch, fold: bool
) -> None:
    asked = head_rows_asked_for(monkeypatch)
    continue_prompts(MODEL, [MIXED["picture"]], fold=fold)
    assert asked == [VISUAL_ROWS] * (3 * 4)  # once for every code: what the grammar forces is not drawn


def test_progress_counts_every_token() -> None:
    told: list[Progress] = []
    requests = [MIXED["picture"], MIXED["film"], MIXED["answer"]]
    tokens = continue_prompts(MODEL, requests, max_requests=2, progress=told.append)
    assert [each.tokens for each in told] == sorted(each.tokens for each in told)
    assert told[-1].tokens == sum(map(len, tokens))
    assert told[-1].max_tokens == sum(request.max_new_tokens for request in requests)
    assert told[-1].tokens_per_second > 0


def test_nothing_to_do() -> None:
    assert continue_prompts(MODEL, []) == []


def test_what_does_not_fit_the_context_is_refused() -> None:
    with pytest.raises(InputError, match="context of 256 tokens"):
        continue_prompts(MODEL, [visual("two", ImageSize(height=20, width=20))])


def test_weights_with_nan_are_noticed() -> None:
    model, _ = tiny_parts()
    with torch.no_grad():
        model.layers[1].mlp.down_proj.weight[3, 4] = np.nan  # type: ignore[union-attr,index]
    with pytest.raises(InputError, match="not finite"):
        continue_prompts(model, [MIXED["picture"]])
