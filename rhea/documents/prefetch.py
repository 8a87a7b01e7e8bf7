"""The next batches made in processes beside the training step; resuming stays exact.

Every batch carries its loader's state after it, so the state that is saved is that of the last batches handed out,
whatever has been made ahead. Several processes share the documents and take turns. Processes and not threads: the step
calls thousands of small kernels, and each would wait for the interpreter while the loader holds it (a third of a small
model's speed).
"""

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from rhea.errors import InputError


class Loader(Protocol):
    """What can be made ahead."""

    def next_batch(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Prefetcher:
    """A loader that keeps up to ``depth`` batches of each of several others ready, each in a process of its own.

    They take turns. Leave its ``with`` block to end the processes.
    """

    def __init__(self, *loaders: Loader, depth: int = 4) -> None:
        self._loaders, self.depth = loaders, depth
        self._states, self._turn = [loader.state_dict() for loader in loaders], 0
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
                _Stream(self._loaders[self._turn :] + self._loaders[: self._turn]),
                batch_size=None,
                num_workers=len(self._loaders),
                prefetch_factor=self.depth,
                collate_fn=_unchanged,
                generator=torch.Generator(),  # else it draws from the training's, once more after every resume
                worker_init_fn=live_as_long_as_the_trainer,
            )
            self._ready = iter(batches)
            atexit.register(self._end)  # else Python waits at its end for a process that outlives its signal
        batch, self._states[self._turn] = next(self._ready)
        self._turn = (self._turn + 1) % len(self._loaders)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last batch that ``next_batch`` returned."""
        return self._states[0] if len(self._loaders) == 1 else {"workers": list(self._states), "turn": self._turn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state of as many workers, else InputError; only before the first batch is asked for."""
        assert self._ready is None, "the processes have already run ahead"
        states = state.get("workers", [state])
        if len(states) != len(self._loaders):
            raise InputError(
                f"these batches come from {len(states)} workers: it cannot go on with {len(self._loaders)}"
            )
        for loader, own in zip(self._loaders, states, strict=True):
            loader.load_state_dict(own)
        self._states, self._turn = list(states), state.get("turn", 0)


class _Stream(IterableDataset[tuple[Any, dict[str, Any]]]):
    """Each process's batches, with the states after them."""

    def __init__(self, loaders: Sequence[Loader]) -> None:
        self.loaders = loaders

    def __iter__(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        worker = get_worker_info()
        assert worker is not None
        loader = self.loaders[worker.id]
        while True:
            batch = loader.next_batch()
            yield batch, loader.state_dict()


def _unchanged(item: Any) -> Any:
    return item


def live_as_long_as_the_trainer(_: int = 0) -> None:
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
