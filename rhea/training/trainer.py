"""The one training loop: microbatches, an update, numbers, pictures, a checkpoint; from wherever the run stopped.

Everything that decides the next step is in a checkpoint (task, loader, random states, unfinished means), so a run that
was killed continues bitwise as if it had not been. A first SIGTERM or SIGINT finishes the step, writes a checkpoint and
returns; a second one ends the process at once, which atomic checkpoints make harmless.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rhea.config import flat, to_dict
from rhea.errors import InputError
from rhea.logging import console
from rhea.training.metrics import MetricsLog
from rhea.training.schedule import ScheduleConfig, check_schedule, learning_rate
from rhea.training.state import Saved, last_good, load_newest, save_checkpoint
from rhea.training.task import Evaluator, Loader, Mean, NonFiniteError, Task, TrainingError


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    total_steps: int
    schedule: ScheduleConfig
    microbatches_per_step: int = 1
    """Gradient accumulation: equal to one batch of all of them."""
    checkpoint_every: int = 1000
    keep_last: int = 2
    """How many checkpoints stay on disk."""
    log_every: int = 10
    sample_every: int = 0
    """Steps between sample pictures; 0 writes none."""
    seed: int = 0
    """Of dropout and of anything else random in the task; the order of the data is the loader's."""
    tensorboard: bool = True

    def __post_init__(self) -> None:
        for name in ("total_steps", "microbatches_per_step", "checkpoint_every", "keep_last", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.sample_every < 0:
            raise InputError(f"sample_every must be 0 or more, got {self.sample_every}")
        check_schedule(self.schedule, self.total_steps)


class Trainer:
    """Runs a task over a loader's microbatches in a run folder."""

    def __init__(
        self,
        config: TrainerConfig,
        task: Task,
        loader: Loader,
        folder: str | Path,
        evaluators: Sequence[Evaluator] = (),
    ) -> None:
        self.config, self.task, self.loader = config, task, loader
        self.folder = Path(folder)
        self.evaluators = tuple(evaluators)
        self.step = 0
        """Updates done so far."""
        self._saved_step: int | None = None
        self._stop_signal: str | None = None
        self._log = MetricsLog(
            self.folder, total_steps=config.total_steps, unit=task.unit, tensorboard=config.tensorboard
        )

    def train(self) -> bool:
        """Train to ``total_steps``, first resuming from the newest whole checkpoint in the folder.

        Return False if a signal stopped the run early. Raise TrainingError on a non-finite loss or gradient.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._resume()
        self._log.open(self.step)
        try:
            with self._signals():
                while self.step < self.config.total_steps and self._stop_signal is None:
                    started = time.monotonic()
                    self._update()
                    self._log.advance(self.step, time.monotonic() - started)
                    self._after_update()
                if self._saved_step != self.step:
                    self._checkpoint()
        finally:
            self._log.close()
        if self.step < self.config.total_steps:
            console().print(
                f"{self._stop_signal}: stopped after step {self.step} of {self.config.total_steps}; "
                f"{last_good(self.folder)}; run the same command again to go on",
                soft_wrap=True,
            )
        return self.step >= self.config.total_steps

    def _update(self) -> None:
        rate = learning_rate(self.config.schedule, self.step, self.config.total_steps)
        microbatches = [self.loader.next_batch() for _ in range(self.config.microbatches_per_step)]
        try:
            for microbatch in microbatches:
                self._log.add(self.task.train_microbatch(microbatch), self.task.count(microbatch))
            self._log.add(self.task.optimizer_step(rate))
        except NonFiniteError as error:
            documents = "; ".join(self.task.describe(microbatch) for microbatch in microbatches)
            raise TrainingError(
                f"step {self.step + 1}: {error}; documents of the batch: {documents}; {last_good(self.folder)}"
            ) from error
        self._log.add({"learning_rate": Mean(rate)})
        self.step += 1

    def _after_update(self) -> None:
        last = self.step == self.config.total_steps
        if last or self.step % self.config.log_every == 0:
            self._log.write(self.step)
        with _own_randomness():
            if self.config.sample_every and (last or self.step % self.config.sample_every == 0):
                (self.folder / "samples").mkdir(exist_ok=True)
                self.task.sample(self.folder / "samples", self.step)
            for evaluator in self.evaluators:
                if last or self.step % evaluator.every == 0:
                    self._log.record(self.step, evaluator.evaluate(self.task, self.step, self.folder))
        if self.step % self.config.checkpoint_every == 0:
            self._checkpoint()

    def _checkpoint(self) -> None:
        state = self.task.state()
        self._log.flush()
        values = {
            "config": to_dict(self.config),
            "task": state.values,
            "loader": self.loader.state_dict(),
            "metrics": self._log.state_dict(),
        }
        tensors = {f"task.{name}": tensor for name, tensor in state.tensors.items()} | _random_states()
        save_checkpoint(self.folder, self.step, tensors, values, self.config.keep_last)
        self._saved_step = self.step

    def _resume(self) -> None:
        saved = load_newest(self.folder)
        if saved is None:
            torch.manual_seed(self.config.seed)
            return
        self._load(saved)
        console().print(f"resuming from {saved.path}", soft_wrap=True)
        now, before = flat(to_dict(self.config)), flat(saved.values["config"])
        for name in sorted(now.keys() | before.keys()):
            if now.get(name) != before.get(name):
                console().print(f"note: {name} was {before.get(name)} and is {now.get(name)} now", soft_wrap=True)

    def _load(self, saved: Saved) -> None:
        self.task.load_state(saved.task_state())
        self.loader.load_state_dict(saved.values["loader"])
        self._log.load_state_dict(saved.values["metrics"])
        self.step = self._saved_step = saved.step
        _restore_random_states(saved.tensors)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn the first SIGTERM or SIGINT into a request to stop, the second into an immediate end."""

        def on_signal(number: int, frame: Any) -> None:
            if self._stop_signal is not None:
                os._exit(128 + number)
            self._stop_signal = signal.Signals(number).name

        if threading.current_thread() is not threading.main_thread():  # Python sets handlers only there
            yield
            return
        before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _random_states() -> dict[str, Tensor]:
    states = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["random.cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_random_states(tensors: dict[str, Tensor]) -> None:
    torch.set_rng_state(tensors["random.cpu"])
    if torch.cuda.is_available() and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])


@contextlib.contextmanager
def _own_randomness() -> Iterator[None]:
    """Keep what samples and evaluators draw from changing the training run."""
    with torch.random.fork_rng():
        yield
