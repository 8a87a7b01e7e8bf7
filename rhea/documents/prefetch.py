"""The next batches made in a process beside the training step; resuming stays exact.

Every batch carries the loader's state after it, so the state that is saved is that of the last batch handed out,
whatever has been made ahead. A process and not a thread: the step calls thousands of small kernels, and each would wait
for the interpreter while the loader holds it (a third of a small model's speed).
"""

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, IterableDataset


class Loader(Protocol):
    """What can be made ahead."""

    def next_batch(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Prefetcher:
    """A loader that keeps up to ``depth`` batches of another one ready; leave its ``with`` block to end the process."""

    def __init__(self, loader: Loader, depth: int = 4) -> None:
        self.loader, self.depth = loader, depth
        self._state = loader.state_dict()
        self._ready: Iterator[tuple[Any, dict[str, Any]]] | None = None

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def _end(self) -> None:
        self._ready = None
        atexit.unregister(self._end)

    def next_batch(self) -> Any:
        """Return the next batch; an error of the loader is raised here."""
        if self._ready is None:
            batches = DataLoader(
                _Stream(self.loader),
                batch_size=None,
                num_workers=1,
                prefetch_factor=self.depth,
                collate_fn=_unchanged,
                generator=torch.Generator(),  # else it draws from the training's, once more after every resume
                worker_init_fn=_live_as_long_as_the_trainer,
            )
            self._ready = iter(batches)
            atexit.register(self._end)  # else Python waits at its end for a process that outlives its signal
        batch, self._state = next(self._ready)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last batch that ``next_batch`` returned."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; only before the first batch is asked for."""
        assert self._ready is None, "the process has already run ahead"
        self.loader.load_state_dict(state)
        self._state = state


class _Stream(IterableDataset[tuple[Any, dict[str, Any]]]):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        while True:
            batch = self.loader.next_batch()
            yield batch, self.loader.state_dict()


def _unchanged(item: Any) -> Any:
    return item


def _live_as_long_as_the_trainer(_: int) -> None:
    """Leave SIGTERM, which schedulers send to every process, to the trainer: it saves and then ends this one.

    If it dies without, this process ends too; else it would wait for ever, with batches that nobody takes.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    trainer = multiprocessing.parent_process()

    def watch() -> None:
        if trainer is not None:
            trainer.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
