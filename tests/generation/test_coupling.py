"""Maximal coupling against the exact law; the easy mistake (drawing again from p itself) must not pass."""

from collections.abc import Callable
from functools import cache
from itertools import product

import pytest
import torch
from test_plain import MODEL, visual
from tiny_model import tiny_checkpoint
from torch import Tensor

from rhea.documents import formats
from rhea.documents.constraint import Constraint
from rhea.documents.document import ImageSize
from rhea.documents.grammar import Grammar
from rhea.generation import coupling
from rhea.generation.coupling import Guess, couple
from rhea.generation.drawing import Drawing, draw_windows
from rhea.generation.engine import Engine, EngineConfig
from rhea.generation.plain import continue_prompts
from rhea.generation.request import Request
from rhea.generation.sampling import SamplingConfig, final_probabilities, noise_key
from rhea.generation.sequence import Sequence
from rhea.tokenizers.vocabulary import Vocabulary, compact_vocabulary

CODES, SIZE, SAMPLES = 3, ImageSize(height=2, width=2), 6_000


def deviations(counts: Tensor, law: Tensor) -> float:
    """Return by how many standard deviations chi-squared exceeds what draws from ``law`` would give."""
    expected = law * counts.sum()
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    degrees = len(law) - 1
    return float((chi_squared - degrees) / (2 * degrees) ** 0.5)


@pytest.fixture(params=["right", "easy mistake"])
def judge(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return an assertion on deviations; with the easy mistake in place they must be large."""
    if request.param == "right":
        return lambda z: None if z < 4 else pytest.fail(f"{z} standard deviations off")
    monkeypatch.setattr(coupling, "excess", lambda p, q: p)
    return lambda z: None if z > 12 else pytest.fail(f"a biased rule passed, {z} standard deviations off")


def test_one_draw(judge: Callable[[float], None]) -> None:
    p, q = torch.tensor([0.5, 0.2, 0.3, 0.0]), torch.tensor([0.1, 0.2, 0.4, 0.3])
    generator = torch.Generator().manual_seed(0)
    guessed = torch.multinomial(q, SAMPLES, replacement=True, generator=generator)
    guesses = [Guess(10 + token, q) for token in guessed.tolist()]
    keys = torch.tensor([noise_key(1, 0, n) for n in range(SAMPLES)])
    drawn = couple(p.expand(SAMPLES, -1), torch.arange(10, 14), guesses, keys) - 10
    kept = (drawn == guessed).float().mean()
    judge(deviations(torch.bincount(drawn, minlength=4)[:3].float(), p[:3]))
    assert kept >= float(torch.minimum(p, q).sum()) - 0.02, "kept less often than can be"


def test_guesses_without_chance_and_none_at_all() -> None:
    p = torch.tensor([0.7, 0.1, 0.2])
    keys = torch.tensor([noise_key(2, 0, n) for n in range(SAMPLES)])
    for guess in (None, Guess(1)):
        drawn = couple(p.expand(SAMPLES, -1), torch.arange(3), [guess] * SAMPLES, keys)
        assert deviations(torch.bincount(drawn, minlength=3).float(), p) < 4


@cache
def table() -> dict[tuple[int, ...], Tensor]:
    """Return logits of the next code for every beginning, each its own."""
    generator = torch.Generator().manual_seed(5)
    beginnings = [codes for length in range(4) for codes in product(range(CODES), repeat=length)]
    return {codes: 1.5 * torch.randn(CODES, generator=generator) for codes in beginnings}


class TableHead:
    """Stands for a transformer whose states are the logits themselves."""

    def logits(self, x: Tensor, start: int, stop: int) -> Tensor:
        return x


def exact_law() -> Tensor:
    law = []
    for codes in product(range(CODES), repeat=4):
        steps = [torch.softmax(table()[codes[:i]], -1)[codes[i]] for i in range(4)]
        law.append(torch.stack(steps).prod())
    return torch.stack(law)


def picture_requests() -> tuple[list[Request], int]:
    text_tokenizer = tiny_checkpoint().text_tokenizer
    assert text_tokenizer is not None
    vocabulary = Vocabulary(compact_vocabulary(text_size=text_tokenizer.vocab_size, vision_size=CODES))
    grammar = Grammar(vocabulary, text_tokenizer)
    prompt = grammar.render_prompt(formats.text_to_image("two"), SIZE)
    constraint = Constraint(grammar, "visual").start(prompt)
    request = {"prompt": prompt.tolist(), "constraint": constraint, "max_new_tokens": 99, "seed": 3}
    return [Request(**request, sample_index=n) for n in range(SAMPLES)], vocabulary.vision.start  # type: ignore[arg-type]


def test_whole_pictures_have_the_exact_law(judge: Callable[[float], None]) -> None:
    requests, first = picture_requests()
    sequences, steps = [Sequence(request) for request in requests], 0
    while running := [sequence for sequence in sequences if not sequence.finished]:
        steps += 1
        drawings, states = list[Drawing](), list[Tensor]()
        for sequence in running:
            ahead = sequence.window(4)
            drawings.append(Drawing(sequence, ahead, [len(states)]))
            known = len(sequence.tokens) + 1
            fed = [*sequence.tokens, *ahead.guesses]
            for length in range(known - 1, len(fed) + 1):
                states.append(table()[tuple(token - first for token in fed[:length] if token >= first)[:3]])
        drawn, _ = draw_windows(TableHead(), drawings, torch.stack(states), coupled=True)  # type: ignore[arg-type]
        for drawing, draws in zip(drawings, drawn, strict=True):
            drawing.sequence.commit(drawing.window, draws)
    assert steps <= 4
    found = [[token - first for token in sequence.tokens if token >= first] for sequence in sequences]
    outcomes = torch.tensor(found) @ torch.tensor([27, 9, 3, 1])
    judge(deviations(torch.bincount(outcomes, minlength=81).float(), exact_law()))


def test_the_engine_couples() -> None:
    picture = visual("two red", ImageSize(height=6, width=6), negative="two", top_k=6)
    coupled = EngineConfig(window=8, parallel="coupling")
    runs = [Engine(MODEL, coupled).run([picture]) for _ in range(2)]
    assert runs[0] == runs[1], "not a pure function of seed and window"
    assert runs[0] != continue_prompts(MODEL, [picture]), "this was not coupled"
    assert Engine(MODEL, coupled).run([visual("two", SIZE, temperature=0.0)]) == continue_prompts(
        MODEL, [visual("two", SIZE, temperature=0.0)]
    )


def test_final_probabilities_are_what_draws_follow() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    cut = final_probabilities(logits, SamplingConfig(temperature=0.5, top_k=2))
    assert torch.allclose(cut, torch.tensor([[1.0, torch.e**-2, 0, 0]]) / (1 + torch.e**-2))
