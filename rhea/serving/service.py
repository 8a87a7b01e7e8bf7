"""What all endpoints do alike: run tasks under a deadline, count, stop when the client leaves, answer or stream."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, Protocol, TypeVar

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rhea.logging import logger
from rhea.serving.backend import Backend, Clip, Done, Event, ModelInfo, Partial, Task, TextDelta
from rhea.serving.errors import ApiError, api_error
from rhea.serving.limits import ServerSettings
from rhea.serving.metrics import Metrics

T = TypeVar("T")

_CLIENT_GONE = 499
"""Nobody reads it; logs and metrics show it."""


class Guard(Protocol):
    """Turns untrusted media into pixels; raises ApiError for what it does not take."""

    async def picture(self, data: bytes, *, param: str | None = None) -> np.ndarray: ...

    async def film(self, data: bytes, *, param: str | None = None) -> Clip: ...

    async def load(self, url: str, *, param: str | None = None) -> bytes: ...


class Service:
    """A backend with its guard, limits and metrics."""

    def __init__(self, backend: Backend, settings: ServerSettings, guard: Guard) -> None:
        self.backend, self.settings, self.guard = backend, settings, guard
        self.metrics = Metrics()
        self.created = int(time.time())

    async def picture(self, data: bytes, *, param: str | None = None) -> np.ndarray:
        """Decode a picture; ApiError as well if the model cannot look at one of its shape."""
        pixels = await self.guard.picture(data, param=param)
        check_shape(self.backend.info, "picture", pixels, param)
        return pixels

    async def film(self, data: bytes, *, param: str | None = None) -> Clip:
        """Decode a film; ApiError as well if the model cannot look at one of its shape."""
        clip = await self.guard.film(data, param=param)
        check_shape(self.backend.info, "film", clip.frames, param)
        return clip

    async def run(self, task: Task, *, partials: int | None = 0) -> AsyncGenerator[Event, None]:
        """Yield a task's events; TimeoutError if they take longer than the deadline."""
        start, end = time.monotonic(), time.monotonic() + self.settings.deadline_seconds
        first = True
        async with contextlib.aclosing(self.backend.run(task, partials=partials)) as events:
            while True:
                async with asyncio.timeout(end - time.monotonic()):
                    event = await anext(events, None)
                if event is None:
                    return
                self._count(event, time.monotonic() - start, first)
                first = False
                yield event

    async def done(self, task: Task) -> Done:
        """Return a task's result."""
        async with contextlib.aclosing(self.run(task)) as events:
            async for event in events:
                if isinstance(event, Done):
                    return event
        raise AssertionError("a task ends with Done")

    async def unless_gone(self, request: Request, work: Coroutine[Any, Any, Response]) -> Response:
        """Return what ``work`` does; cancel it when the client leaves."""
        worker, watch = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request.receive))
        try:
            await asyncio.wait([worker, watch], return_when=asyncio.FIRST_COMPLETED)
            if worker.done():
                return worker.result()
            self.metrics.cancellations.inc()
            return Response(status_code=_CLIENT_GONE)
        finally:
            for each in (worker, watch):
                each.cancel()
            await asyncio.gather(worker, watch, return_exceptions=True)

    def check_model(self, model: str | None) -> None:
        """Refuse a name that is not the model's."""
        name = self.backend.info.name
        if model and model != name:
            raise ApiError(404, f"there is no such model here; this is {name}", code="model_not_found", param="model")

    def refused(self, error: BaseException) -> ApiError:
        """Count an error and return what the client is told of it."""
        told = api_error(error)
        if told.status >= 500:
            logger.error("%s: %s", told.code, error, exc_info=error if told.status == 500 else None)
        self.metrics.refusals.labels(told.code).inc()
        return told

    def _count(self, event: Event, seconds: float, first: bool) -> None:
        if first and isinstance(event, Partial):
            self.metrics.first_partial.observe(seconds)
        elif first and isinstance(event, TextDelta):
            self.metrics.first_text.observe(seconds)
        elif isinstance(event, Done) and event.pixels is not None:
            self.metrics.image(event.pixels.shape, seconds)


def check_shape(info: ModelInfo, what: str, pixels: np.ndarray, param: str | None) -> None:
    """Refuse what the model would refuse later, when nothing can be left out any more; pixels are [..., H, W, 3]."""
    height, width = pixels.shape[-3:-1]
    short, long = sorted((height, width))
    if short < info.min_side:
        wrong = f"sides of at least {info.min_side} are needed"
    elif long > info.max_aspect_ratio * short:
        wrong = f"the longer side may be at most {info.max_aspect_ratio:g} times the shorter one"
    else:
        return
    raise ApiError(400, f"the {what} is {width} x {height} pixels; {wrong}", code="media_size", param=param)


class EventStream(Response):
    """Server-sent events, each ``data: JSON``; a client that leaves is noticed at once and ends their source.

    The first event is waited for before the answer begins, so that a refusal still has its own status: make one with
    ``await EventStream.begin(...)``. A later error is sent as an event of its own.
    """

    media_type = "text/event-stream"

    def __init__(
        self, service: Service, first: dict[str, Any], rest: AsyncGenerator[dict[str, Any], None], last: str
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._service, self._first, self._events, self._last = service, first, rest, last

    @classmethod
    async def begin(
        cls, service: Service, events: AsyncGenerator[dict[str, Any], None], *, last: str = ""
    ) -> "EventStream":
        """Return the answer once the first event is there. An event's "type" is also its name; ``last`` ends all."""
        try:
            return cls(service, await anext(events), events, last)
        except BaseException:
            await events.aclose()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        worker, watch = asyncio.ensure_future(self._write(send)), asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait([worker, watch], return_when=asyncio.FIRST_COMPLETED)
            if not worker.done():
                self._service.metrics.cancellations.inc()
        finally:
            for each in (worker, watch):
                each.cancel()
            await asyncio.gather(worker, watch, return_exceptions=True)
            await self._events.aclose()

    async def _write(self, send: Send) -> None:
        try:
            await _send_event(send, self._first)
            async for event in self._events:
                await _send_event(send, event)
        except Exception as error:
            await _send_event(send, {"type": "error", **self._service.refused(error).body})
        else:
            if self._last:
                await send(_chunk(f"data: {self._last}\n\n"))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_event(send: Send, event: dict[str, Any]) -> None:
    name = f"event: {event['type']}\n" if "type" in event else ""
    await send(_chunk(f"{name}data: {json.dumps(event)}\n\n"))


def _chunk(text: str) -> dict[str, Any]:
    return {"type": "http.response.body", "body": text.encode(), "more_body": True}


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
