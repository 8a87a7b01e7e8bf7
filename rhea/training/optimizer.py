"""AdamW whose state is saved under parameter names; clipping and loss normalisation are one pass over the gradients.

Losses are backpropagated as sums. The division by the step's total weight is folded into the clipping factor, so that
accumulating k microbatches gives the gradient of one large batch whatever the weights of each. Only matrices decay.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rhea.errors import InputError
from rhea.training.task import NonFiniteError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    """Applied to parameters of two or more dimensions; norms and biases never decay."""
    clip_norm: float = 1.0
    """Largest global gradient norm; 0 turns clipping off."""


class Optimizer:
    """AdamW over named parameters."""

    def __init__(self, config: OptimizerConfig, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        self.config = config
        self.parameters = {name: parameter for name, parameter in named_parameters if parameter.requires_grad}
        assert self.parameters, "no parameters to train"
        matrices = [parameter for parameter in self.parameters.values() if parameter.ndim >= 2]
        others = [parameter for parameter in self.parameters.values() if parameter.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        # The fused kernel is also the fastest on CPU: 25 ms against 71 (loop) and 141 (foreach) for 52 M parameters.
        self.adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=0.0, betas=config.betas, eps=config.eps, fused=True
        )

    def gradient_norm(self, weight: Tensor | float) -> Tensor:
        """Return the global norm of the accumulated gradients divided by ``weight``, without waiting for the device."""
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        return torch.nn.utils.get_total_norm(gradients) / weight

    @torch.no_grad()
    def update(self, learning_rate: float, weight: float, norm: Tensor) -> None:
        """Update with the gradients divided by ``weight`` and clipped given their ``norm``, then clear them."""
        factor = torch.full_like(norm, 1.0 / weight)
        if self.config.clip_norm > 0:
            factor *= (self.config.clip_norm / (norm + 1e-12)).clamp(max=1.0)
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        torch._foreach_mul_(gradients, factor)
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate
        self.adamw.step()
        self.clear()

    def clear(self) -> None:
        """Drop the gradients."""
        self.adamw.zero_grad(set_to_none=True)

    def forget_rows(self, name: str, rows: Tensor) -> None:
        """Zero the moments of some rows of a parameter, whose values were replaced from outside."""
        for key, value in self.adamw.state[self.parameters[name]].items():
            if key != "step":
                value[rows] = 0

    def state_tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return the moments and step counts as ``{prefix}{moment}.{parameter name}``."""
        return {
            f"{prefix}{key}.{name}": value
            for name, parameter in self.parameters.items()
            for key, value in self.adamw.state[parameter].items()
        }

    def load_state_tensors(self, tensors: dict[str, Tensor], prefix: str) -> None:
        """Take back what ``state_tensors`` returned; raise InputError if it belongs to other parameters."""
        for name, parameter in self.parameters.items():
            keys = [f"{prefix}{key}.{name}" for key in ("step", "exp_avg", "exp_avg_sq")]
            present = [key for key in keys if key in tensors]
            self.adamw.state[parameter].clear()
            if not present:  # a parameter that has not had a gradient yet
                continue
            if len(present) != 3 or tensors[keys[1]].shape != parameter.shape:
                raise InputError(f"the saved optimizer state does not fit parameter {name}")
            for key in keys:
                kind = key.removeprefix(prefix).split(".", 1)[0]
                moment = torch.empty_like(parameter) if kind != "step" else torch.empty((), device=parameter.device)
                self.adamw.state[parameter][kind] = moment.detach().copy_(tensors[key])


def require_finite(losses: Tensor, *norms: Tensor) -> None:
    """Raise NonFiniteError if a loss or a gradient norm is not finite; the one wait for the device in a step."""
    finite = torch.stack([losses.isfinite().all(), *(norm.isfinite() for norm in norms)]).tolist()
    if not finite[0]:
        raise NonFiniteError("the loss is not finite")
    if not all(finite):
        raise NonFiniteError("the loss is finite but its gradient is not")
