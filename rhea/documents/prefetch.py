"""The next batches made in a thread beside the training step; resuming stays exact.

Every batch carries the loader's state after it, so the state that is saved is that of the last batch handed out,
whatever has been made ahead. Encoding and rendering spend their time in native code, which lets the step run meanwhile.
"""

import contextlib
import queue
import threading
from typing import Any, Protocol

import torch


class Loader(Protocol):
    """What can be made ahead."""

    def next_batch(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Prefetcher:
    """A loader that keeps up to ``depth`` batches of another one ready; leave its ``with`` block to end the thread."""

    def __init__(self, loader: Loader, depth: int = 4) -> None:
        self.loader, self.depth = loader, depth
        self._state = loader.state_dict()
        self._ready: queue.Queue[tuple[Any, dict[str, Any]] | BaseException] = queue.Queue(depth)
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        with contextlib.suppress(queue.Empty):
            while True:  # make room, so that the thread is not stuck handing over
                self._ready.get_nowait()
        if self._thread is not None:
            self._thread.join()

    def next_batch(self) -> Any:
        """Return the next batch; an error of the loader is raised here."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        made = self._ready.get()
        if isinstance(made, BaseException):
            raise made
        batch, self._state = made
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last batch that ``next_batch`` returned."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; only before the first batch is asked for."""
        assert self._thread is None, "the thread has already run ahead"
        self.loader.load_state_dict(state)
        self._state = state

    def _work(self) -> None:
        torch.set_num_threads(1)  # of this thread only: the step needs the others
        try:
            while not self._closed.is_set():
                batch = self.loader.next_batch()
                self._ready.put((batch, self.loader.state_dict()))
        except BaseException as error:
            self._ready.put(error)
