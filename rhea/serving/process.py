"""The engine in a child process, which may die and is born again, while the server stays up and says so.

Both ends hold one socket and nothing else: the child's death ends the stream, which fails all tasks at once, and the
server's death ends the child. Tasks are numbered messages on that socket (``wire.py``). A child that lives but hangs is
killed: it is asked for a beat again and again, which its engine gives between two steps.
"""

import asyncio
import contextlib
import itertools
import socket
import sys
import time
from collections.abc import AsyncGenerator
from typing import Any

from rhea.config import to_dict
from rhea.errors import BusyError, InputError
from rhea.logging import logger
from rhea.serving.backend import BackendDiedError, Event, ModelInfo, Task
from rhea.serving.choice import ModelChoice
from rhea.serving.limits import Bounds
from rhea.serving.wire import BrokenStreamError, pack, receive

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 30.0
"""Seconds before a dead child is started again, doubled each time."""
_HEALTHY = 60.0
"""Seconds after which a child's death counts as the first again."""
_PARTS = 12
"""In which a beat is waited for: time in which this process stands still too (Ctrl-Z, a paused container) costs one."""
_WORKER = ("-m", "rhea.serving.worker")
_DIED = "the engine broke down while it worked on this: try again"
_STARTING = "the engine broke down and is being started again: try again in a few seconds"


class ProcessBackend:
    """A ``Backend`` while its ``async with`` block runs."""

    def __init__(self, model: ModelChoice, *, bounds: Bounds | None = None, hang_seconds: float = 120.0) -> None:
        """``hang_seconds``: how long the engine may be at one step, or at the pixels of one picture or film, before the
        child counts as hung. Loading the model is not counted."""
        self._choice, self._bounds = to_dict(model), to_dict(bounds or Bounds())
        self._child: asyncio.subprocess.Process | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._info: ModelInfo | None = None
        self._ready = False
        self._numbers = itertools.count()
        self._inboxes: dict[int, asyncio.Queue[dict[str, Any]]] = {}
        self._keeper: asyncio.Task[None] | None = None
        self.hang_seconds = hang_seconds
        self.restarts = self.hangs = 0

    async def __aenter__(self) -> "ProcessBackend":
        """Start the child and wait until its model is loaded; InputError if it can't be."""
        try:
            await self._start()
        except BaseException:
            await self._end()
            raise
        self._keeper = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        await self._end()

    @property
    def ready(self) -> bool:
        return self._ready

    @property
    def info(self) -> ModelInfo:
        assert self._info is not None, "the backend was not entered"
        return self._info

    @property
    def child_id(self) -> int | None:
        """The child's process id."""
        return self._child.pid if self._child is not None else None

    async def run(self, task: Task, *, partials: int | None = None) -> AsyncGenerator[Event, None]:
        async with contextlib.aclosing(self._call({"kind": "run", "task": task, "partials": partials})) as replies:
            async for reply in replies:
                if reply["kind"] == "end":
                    return
                yield reply["event"]

    async def counters(self) -> dict[str, float]:
        """Return what the child counts, and how often it hung and was started again."""
        found: dict[str, float] = {}
        with contextlib.suppress(BackendDiedError, TimeoutError):
            async with asyncio.timeout(5):
                found = (await self._ask("counters"))["counters"]
        return {**found, "restarts": self.restarts, "hangs": self.hangs}

    async def _ask(self, kind: str) -> dict[str, Any]:
        async with contextlib.aclosing(self._call({"kind": kind})) as replies:
            return await anext(replies)

    async def _call(self, message: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Send a message and yield the replies to it; who leaves before their end cancels."""
        if not self._ready:
            raise BackendDiedError(_STARTING)
        number, inbox = next(self._numbers), asyncio.Queue[dict[str, Any]]()
        self._inboxes[number] = inbox
        self._send(message | {"number": number})
        ended = False
        try:
            while not ended:
                reply = await inbox.get()
                ended = reply["kind"] != "event"
                if reply["kind"] == "error":
                    raise {"input": InputError, "busy": BusyError}.get(reply["error"], BackendDiedError)(
                        reply["message"]
                    )
                yield reply
        finally:
            del self._inboxes[number]
            if not ended and self._ready:
                self._send({"kind": "cancel", "number": number})

    def _send(self, message: dict[str, Any]) -> None:
        assert self._writer is not None
        self._writer.write(pack(message))

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable,
                *_WORKER,
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is the server's, which first lets it finish
            )
        self._reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        self._send({"model": self._choice, "bounds": self._bounds})
        try:
            message = await receive(self._reader)
        except (asyncio.IncompleteReadError, ConnectionError):
            raise BackendDiedError("the engine's process ended while it loaded the model") from None
        if message["kind"] == "refused":
            raise InputError(message["message"])
        self._info, self._ready = message["info"], True

    async def _keep(self) -> None:
        """Hand out what the child says; when it is gone or hangs, start another one."""
        pause = _FIRST_PAUSE
        while True:
            born = time.monotonic()
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._hand_out())
                    both.create_task(self._watch())
            except* _HungError:
                self.hangs += 1
                logger.error("the engine has not moved for %g seconds; starting another", self.hang_seconds)
            except* (asyncio.IncompleteReadError, ConnectionError, BrokenStreamError) as errors:
                logger.error("the engine's process died (%s); starting another", type(errors.exceptions[0]).__name__)
            await self._end()
            pause = _FIRST_PAUSE if time.monotonic() - born > _HEALTHY else min(2 * pause, _LONGEST_PAUSE)
            while not self._ready:
                await asyncio.sleep(pause)
                self.restarts += 1
                try:
                    await self._start()
                except (BackendDiedError, InputError, OSError) as error:
                    logger.error("the engine did not start: %s", error)
                    await self._end()
                    pause = min(2 * pause, _LONGEST_PAUSE)

    async def _hand_out(self) -> None:
        assert self._reader is not None
        while True:
            message = await receive(self._reader)
            if (inbox := self._inboxes.get(message["number"])) is not None:
                inbox.put_nowait(message)

    async def _watch(self) -> None:
        """Raise _HungError when the child leaves a beat unanswered for ``hang_seconds``."""
        while True:
            beat = asyncio.create_task(self._ask("beat"))
            try:
                for _ in range(_PARTS):
                    await asyncio.sleep(self.hang_seconds / _PARTS)
                    if beat.done():
                        break
                else:
                    raise _HungError
            finally:
                beat.cancel()

    async def _end(self) -> None:
        """Fail all tasks and make sure that the child is gone."""
        self._ready = False
        for inbox in self._inboxes.values():
            inbox.put_nowait({"kind": "error", "error": "died", "message": _DIED})
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                self._child.kill()
            await self._child.wait()
            self._child = None


class _HungError(RuntimeError):
    """The child lives, but does not move."""
