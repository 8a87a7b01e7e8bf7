"""One side of ``serving.py`` that has no server: pictures as told on standard input, and how long each took.

A line of JSON in, ``{"prompt", "seed", "partial_images"}``, gives a line out: seconds to the first partial picture and
to the whole one, both as PNG in base64 as a client of the server gets them, and the whole picture.
engine: one thread steps the engine and, between two steps, decodes each preview; no asyncio, no socket.
backend: what runs in the server's engine process (``LocalBackend``), which decodes most previews beside the engine.
Usage: python benchmarks/alone.py engine|backend [window]
"""

import asyncio
import base64
import contextlib
import io
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from rhea.generation.engine import Engine, EngineConfig
from rhea.generation.loading import load_model
from rhea.generation.model import Rhea
from rhea.serving.backend import Done, Draw, Partial, Sampling
from rhea.serving.local import LocalBackend
from rhea.serving.pictures import encoded
from rhea.serving.worker import leave_a_core

SLOTS = 16
"""Of the cache, as ``rhea serve`` has them."""


class Watch:
    """Chooses the partial pictures that a client would get, and notes when the first and the last picture are files."""

    def __init__(self, wanted: int) -> None:
        self._wanted, self._sent, self._start = wanted, 0, time.perf_counter()
        self.first = self.whole = 0.0
        self.file = ""

    def due(self, rows_done: int, rows: int) -> bool:
        even = self._sent < self._wanted and rows_done * (self._wanted + 1) >= rows * (self._sent + 1)
        return even or rows_done == rows

    def take(self, file: str) -> None:
        self.file, self.whole = file, time.perf_counter() - self._start
        self._sent += 1
        self.first = self.first or self.whole

    @property
    def told(self) -> dict[str, Any]:
        return {"first": self.first, "whole": self.whole, "file": self.file}


def with_engine(model: Rhea) -> Callable[[str, int, int], dict[str, Any]]:
    """Return what draws a picture in one thread."""
    completer = model.completer
    engine = Engine(completer.transformer, completer.engine)

    def draw(text: str, seed: int, wanted: int) -> dict[str, Any]:
        watch, prompt = Watch(wanted), model.prompts.draw(text, seed=seed)
        (request,) = completer.requests([prompt])
        follower = completer.follower(prompt, request)

        def written(_: int, token_ids: list[int]) -> None:
            if follower.feed(token_ids[follower.taken :]) and watch.due(follower.rows_done, follower.rows):
                watch.take(_png(follower.show().pixels))

        engine.run([request], watch=written)
        return watch.told

    return draw


def _png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


async def _drawn(backend: LocalBackend, text: str, seed: int, wanted: int) -> dict[str, Any]:
    watch = Watch(wanted)
    task = Draw(prompt=text, sampling=Sampling(seed=seed))
    async with contextlib.aclosing(backend.run(task, partials=wanted)) as events:
        async for event in events:
            assert isinstance(event, Partial | Done)
            assert event.pixels is not None
            watch.take(await encoded(event.pixels))
    return watch.told


async def _with_backend(model: Rhea) -> None:
    async with LocalBackend(model) as backend:
        _tell({"ready": True})
        while line := await asyncio.to_thread(sys.stdin.readline):
            _tell(await _drawn(backend, *json.loads(line).values()))


def _tell(told: dict[str, Any]) -> None:
    print(json.dumps(told), flush=True)


def main() -> None:
    leave_a_core()  # as the server's engine does
    window = int(sys.argv[2]) if len(sys.argv) > 2 else None
    model = load_model(engine=EngineConfig(slots=SLOTS, window=window))
    if sys.argv[1] == "backend":
        asyncio.run(_with_backend(model))
        return
    draw = with_engine(model)
    _tell({"ready": True})
    for line in sys.stdin:
        _tell(draw(*json.loads(line).values()))


if __name__ == "__main__":
    main()
