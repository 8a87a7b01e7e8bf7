"""The requests of several benchmarks, and single forwards timed where in a picture they are wanted.

What comes before need not be drawn: a prompt may end inside a grid, so rows of random codes are given and the next
forwards are timed. A forward's time grows linearly with its position (attention reads one key more), so the mean over a
picture is that of its middle. Times are taken every ``BLOCK`` forwards, after the device is done, and the median block
counts.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rhea.documents import formats
from rhea.documents.constraint import Constraint, Legal
from rhea.documents.document import ImageSize
from rhea.documents.grammar import Grammar
from rhea.generation.engine import Engine, EngineConfig
from rhea.generation.plain import continue_prompts
from rhea.generation.request import Request
from rhea.generation.sampling import SamplingConfig
from rhea.models.transformer import Transformer

BLOCK = 5
_WARM = 2
"""Blocks that are not counted."""


class AnyText(Constraint):
    """Any token of the text vocabulary, without end: every side computes as many rows and makes as many tokens."""

    def legal(self) -> Legal:
        return Legal(None, (self.grammar.vocabulary.text,))

    def advance(self, token_id: int) -> None:
        pass


def guided_picture(
    grammar: Grammar,
    text: str,
    size: ImageSize,
    sampling: SamplingConfig,
    *,
    negative: str = "",
    given_rows: int = 0,
    max_new_tokens: int | None = None,
) -> Request:
    """Return the request for a guided picture, or for what follows its first rows."""
    vocabulary, random = grammar.vocabulary, np.random.default_rng(0)
    given = np.full((given_rows, size.width + 1), vocabulary.eol)
    given[:, :-1] = random.integers(vocabulary.vision.start, vocabulary.vision.stop, (given_rows, size.width))
    prompt, second = (
        [*grammar.render_prompt(formats.text_to_image(each), size).tolist(), *given.ravel().tolist()]
        for each in (text, negative)
    )
    constraint = Constraint(grammar, "visual").start(prompt)
    return Request(
        prompt=prompt,
        negative_prompt=second,
        constraint=constraint,
        max_new_tokens=max_new_tokens or constraint.remaining_grid_tokens + 2,
        sampling=sampling,
    )


def middle_rows(size: ImageSize, forwards: int) -> int:
    """Return how many rows to give so that so many forwards, of one code each, lie around the middle."""
    counted = (forwards // BLOCK + _WARM) * BLOCK
    return max(size.height // 2 - counted // size.width // 2, 0)


class _Stopwatch:
    """Called after every forward."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.calls, self.stamps = device, 0, list[float]()

    def __call__(self, *_: Any) -> None:
        self.calls += 1
        if self.calls % BLOCK == 0:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.stamps.append(time.perf_counter())

    def seconds(self) -> float:
        """Return the median seconds of a forward."""
        return float(np.median(np.diff(self.stamps[_WARM - 1 :]))) / BLOCK


def engine_forward(model: Transformer, config: EngineConfig, requests: Sequence[Request], forwards: int) -> float:
    """Return the seconds of one forward of the engine that runs all these requests; one that is done begins again."""
    engine = Engine(model, config)
    tickets = [engine.submit(request) for request in requests]
    while not all(ticket.tokens for ticket in tickets):
        engine.step()
    watch = _Stopwatch(engine.device)
    for _ in range((forwards // BLOCK + _WARM) * BLOCK):
        engine.step()
        watch()
        assert not any(ticket.error for ticket in tickets)
        tickets = [
            engine.submit(request) if ticket.done else ticket for ticket, request in zip(tickets, requests, strict=True)
        ]
    return watch.seconds()


def plain_forward(model: Transformer, request: Request, device: torch.device) -> float:
    """Return the seconds of one forward of the plain loop; the request says for how many."""
    watch = _Stopwatch(device)
    continue_prompts(model, [request], progress=watch)
    return watch.seconds()
