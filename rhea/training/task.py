"""What the trainer knows of a task: microbatches in, updates out, a state that can be saved.

The loop never sees a model, a loss or an optimizer. A metric leaves a task as a ``Mean``: a total and a weight, which
add up over microbatches and steps and are divided only when a line is logged, so nothing waits for the device before.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from rhea.errors import InputError


class TrainingError(InputError):
    """Training cannot go on; the message says where it stopped and what the last good checkpoint is."""


class NonFiniteError(Exception):
    """A loss or gradient is not finite; raised by ``Task.optimizer_step`` before any weight is touched."""


class Mean(NamedTuple):
    """A mean in the making."""

    total: Tensor | float
    weight: Tensor | float = 1.0

    def __add__(self, other: "Mean") -> "Mean":  # type: ignore[override]
        return Mean(self.total + other.total, self.weight + other.weight)


@dataclass(kw_only=True)
class TaskState:
    """Everything a task must remember: flat tensors for safetensors, plain values for JSON."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names start with ``prefix``, without it."""
        return {name.removeprefix(prefix): x for name, x in self.tensors.items() if name.startswith(prefix)}

    def load_module(self, module: nn.Module, prefix: str) -> None:
        """Copy the tensors under ``prefix`` into a module; raise InputError if they are another module's."""
        try:
            module.load_state_dict(self.group(prefix))
        except RuntimeError as error:
            detail = " ".join(str(error).split())  # torch writes a line per tensor
            raise InputError(f"the checkpoint is of another {type(module).__name__}: {detail}") from error


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with ``prefix`` before every name."""
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


class Task(Protocol):
    """One training objective. The gradients of all microbatches since the last ``optimizer_step`` make one update."""

    unit: str
    """What ``count`` counts, in the plural: "tokens", "frames"."""

    def train_microbatch(self, microbatch: Any) -> dict[str, Mean]:
        """Run forward and backward, adding to the gradients; return metrics without waiting for the device."""

    def optimizer_step(self, learning_rate: float) -> dict[str, Mean]:
        """Clip, update and clear the gradients; NonFiniteError, with the weights untouched, if they are not finite."""

    def count(self, microbatch: Any) -> int:
        """Return how many units the microbatch holds."""

    def describe(self, microbatch: Any) -> str:
        """Name the documents of a microbatch for an error message."""

    def state(self) -> TaskState:
        """Return weights, optimizer state and counters. The tensors may alias the live ones."""

    def load_state(self, state: TaskState) -> None:
        """Continue from ``state``; raise InputError if it is the state of another model."""

    def sample(self, folder: Path, step: int) -> None:
        """Write sample pictures for people to look at; may do nothing."""


class Loader(Protocol):
    """An endless source of microbatches whose position is a few plain values."""

    def next_batch(self) -> Any:
        """Return the next microbatch."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position as values that JSON can hold."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""


class Evaluator(Protocol):
    """A measurement made every ``every`` steps; its random numbers are its own."""

    every: int

    def evaluate(self, task: Any, step: int, folder: Path) -> dict[str, float]:
        """Return named figures for the log."""
