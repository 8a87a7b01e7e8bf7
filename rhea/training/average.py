"""An exponential moving average of a model's weights, for sampling and export.

Buffers (running statistics, counters) are averages already or have none: they are not averaged.
"""

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from rhea.errors import InputError
from rhea.training.task import prefixed

Model = TypeVar("Model", bound=nn.Module)


def warmed_decay(decay: float, updates: int) -> float:
    """Return the averaging decay after ``updates`` updates: a short memory first, so that the start is forgotten."""
    return min(decay, (1 + updates) / (10 + updates))


class WeightAverage:
    """The average, in the weights' own precision."""

    def __init__(self, decay: float, model: nn.Module) -> None:
        if not 0 < decay < 1:
            raise InputError(f"ema_decay must be between 0 and 1, got {decay}")
        self.decay, self.updates = decay, 0
        self._live = dict(model.named_parameters())
        self.tensors = {name: parameter.detach().clone() for name, parameter in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the live weights."""
        live = [parameter.detach() for parameter in self._live.values()]
        torch._foreach_lerp_(list(self.tensors.values()), live, 1.0 - warmed_decay(self.decay, self.updates))
        self.updates += 1

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange average and live weights; a second call undoes the first."""
        for name, parameter in self._live.items():
            average = self.tensors[name].clone()
            self.tensors[name].copy_(parameter)
            parameter.copy_(average)

    def state_tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return the average as ``{prefix}{parameter name}``."""
        return prefixed(prefix, self.tensors)

    @torch.no_grad()
    def load_state_tensors(self, tensors: dict[str, Tensor], prefix: str, updates: int) -> None:
        """Take back what ``state_tensors`` returned, after that many updates."""
        for name, average in self.tensors.items():
            saved = tensors.get(f"{prefix}{name}")
            if saved is None or saved.shape != average.shape:
                raise InputError(f"the saved weight average does not fit parameter {name}")
            average.copy_(saved)
        self.updates = updates


@contextlib.contextmanager
def averaged(model: Model, average: WeightAverage | None) -> Iterator[Model]:
    """Yield the model in evaluation mode with the averaged weights in place (its own if there is no average)."""
    training = model.training
    model.eval()
    if average is not None:
        average.swap()
    try:
        yield model
    finally:
        if average is not None:
            average.swap()
        model.train(training)
