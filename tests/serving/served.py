"""A real server on a real socket in a thread, and a backend without a model whose every move a test decides."""

import asyncio
import base64
import contextlib
import io
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import openai
from fastapi import FastAPI
from PIL import Image

from rhea.serving.app import create_app
from rhea.serving.backend import Clip, Done, Event, ModelInfo, Partial, Task
from rhea.serving.errors import ApiError
from rhea.serving.limits import ServerSettings
from rhea.serving.serve import Listening, bound, running

PATIENCE = 180.0
"""Seconds that a test waits for what must come; never a measure of speed."""


@dataclass
class Served:
    url: str
    app: FastAPI
    backend: Any
    stop: Callable[[], Any]
    """Tells the server to stop; what is under way may finish."""

    @property
    def api(self) -> str:
        return self.url + "/v1"

    def client(self, key: str = "none", **settings: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.api, api_key=key, max_retries=0, timeout=PATIENCE, **settings)


@contextlib.contextmanager
def serving(backend: Any, settings: ServerSettings | None = None, guard: Any = None) -> Iterator[Served]:
    """Serve a backend, which is entered first if it can be, until the block ends."""
    started, found = threading.Event(), list[Served]()

    async def serve() -> None:
        stop = asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:
            if hasattr(backend, "__aenter__"):
                await stack.enter_async_context(backend)
            app, options = create_app(backend, settings, guard or TrustingGuard()), Listening(port=0, drain=5)
            port = stack.enter_context(bound(options))
            server = await stack.enter_async_context(running(app, options, port))
            loop = asyncio.get_running_loop()
            url = f"http://127.0.0.1:{server.port}"
            found.append(Served(url, app, backend, lambda: loop.call_soon_threadsafe(stop.set)))
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(PATIENCE), "the server did not start"
    try:
        yield found[0]
    finally:
        with contextlib.suppress(RuntimeError):  # it has stopped already
            found[0].stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()


class TrustingGuard:
    """Decodes pictures with Pillow and films as stacks of equal pictures."""

    async def picture(self, data: bytes, *, param: str | None = None) -> np.ndarray:
        try:
            return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        except Exception:
            raise ApiError(400, "the picture cannot be read", code="bad_media", param=param) from None

    async def film(self, data: bytes, *, param: str | None = None) -> Clip:
        return Clip(frames=np.stack([await self.picture(data, param=param)] * 8), fps=8.0)

    async def load(self, url: str, *, param: str | None = None) -> bytes:
        return base64.b64decode(url.partition(",")[2])


INFO = ModelInfo(name="fake", trained_on="nothing", height=16, width=16, num_frames=4, fps=8.0, max_tokens=100)
PICTURE = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)


class FakeBackend:
    """Plays a script: an async generator of events for every task."""

    def __init__(self, script: Callable[[Task], AsyncGenerator[Event, None]] | None = None) -> None:
        self.script = script or drawn
        self.ready, self.info = True, INFO
        self.tasks: list[Task] = []
        self.left = 0
        """Tasks that ended before they were done."""

    async def run(self, task: Task, *, partials: int | None = None) -> AsyncGenerator[Event, None]:
        self.tasks.append(task)
        done = False
        try:
            async with contextlib.aclosing(self.script(task)) as events:
                async for event in events:
                    done = isinstance(event, Done)
                    yield event
        finally:
            self.left += not done

    async def counters(self) -> dict[str, float]:
        return {"forwards": 4, "tokens_written": 10}


async def drawn(task: Task) -> AsyncGenerator[Event, None]:
    yield Partial(pixels=PICTURE, rows_done=1, rows=2)
    yield Done(pixels=PICTURE, prompt_tokens=2, new_tokens=3)


async def endless(task: Task) -> AsyncGenerator[Event, None]:
    yield Partial(pixels=PICTURE, rows_done=1, rows=2)
    await asyncio.sleep(3600)


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until a condition holds; return its value."""
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {PATIENCE:g} seconds: {what}"
        time.sleep(0.01)
    return value


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def url(pixels: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def pixels_of(b64: str | None) -> np.ndarray:
    assert b64 is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64.partition(",")[2] or b64))).convert("RGB"))
