"""The engine for a server: it steps in a thread of its own, and asyncio code reads tokens as they come.

Only that thread touches the engine. What others want of it (submit, cancel) are calls in its inbox, done between two
steps, so a cancelled request is gone before the next forward.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from rhea.generation.engine import Engine, Ticket
from rhea.generation.request import Request


@dataclass(eq=False)
class _Listener:
    """Who waits for the tokens of a ticket."""

    loop: asyncio.AbstractEventLoop
    inbox: "asyncio.Queue[list[int] | Exception | None]"
    watch: Callable[[list[int]], bool] = lambda _: True
    watched: int = 0
    told: int = 0

    def tell(self, item: list[int] | Exception | None) -> None:
        with contextlib.suppress(RuntimeError):  # nobody listens any more: the loop is closed
            self.loop.call_soon_threadsafe(self.inbox.put_nowait, item)


class BackgroundEngine:
    """Runs an engine until its ``with`` block is left; what is unfinished then ends with a RuntimeError."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._listeners: dict[Ticket, _Listener] = {}
        self._open = True
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def __enter__(self) -> "BackgroundEngine":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._calls.put(self._close)
        self._thread.join()

    async def stream(
        self, request: Request, watch: Callable[[list[int]], bool] = lambda _: True
    ) -> AsyncGenerator[list[int], None]:
        """Yield new tokens as they are written; leaving the loop early, or being cancelled, cancels the request.

        ``watch`` is called with them in the engine's thread, which makes no step meanwhile, and tells whether they are
        worth waking the event loop; if not, they come with later ones. Raises what ``Engine.submit`` and ``watch``
        raise, and the request's own error.
        """
        listener = _Listener(asyncio.get_running_loop(), asyncio.Queue(), watch)
        self._calls.put(lambda: self._submit(request, listener))
        try:
            while (item := await listener.inbox.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self._calls.put(lambda: self._cancel(listener))

    async def pulse(self) -> None:
        """Return once the thread has come to it, which is between two steps."""
        listener = _Listener(asyncio.get_running_loop(), asyncio.Queue())
        self._calls.put(lambda: listener.tell(None))
        await listener.inbox.get()

    def _submit(self, request: Request, listener: _Listener) -> None:
        try:
            self._listeners[self.engine.submit(request)] = listener
        except Exception as error:  # whatever is wrong with it is its sender's
            listener.tell(error)

    def _cancel(self, listener: _Listener) -> None:
        for ticket in [ticket for ticket, other in self._listeners.items() if other is listener]:
            self.engine.cancel(ticket)
            del self._listeners[ticket]

    def _close(self) -> None:
        self._open = False

    def _work(self) -> None:
        while self._open:
            while not self._calls.empty() or (self.engine.idle and self._open):
                self._calls.get()()
                self._tell()
            if self._open and not self.engine.idle:
                self._step()
                self._tell()
        self.engine.abort(RuntimeError("the engine was stopped"))
        self._tell()

    def _step(self) -> None:
        try:
            self.engine.step()
        except Exception as error:  # out of memory, say: those that ran fail, those that come may succeed
            self.engine.abort(error)

    def _tell(self) -> None:
        for ticket, listener in list(self._listeners.items()):
            new = ticket.tokens[listener.watched :]
            listener.watched += len(new)
            try:
                worth = bool(new) and listener.watch(new)
            except Exception as error:
                self._cancel(listener)
                listener.tell(error)
                continue
            rest = ticket.tokens[listener.told : listener.watched]
            if worth or (rest and ticket.done and ticket.error is None):
                listener.tell(rest)
                listener.told = listener.watched
            if ticket.done:
                listener.tell(ticket.error)
                del self._listeners[ticket]
