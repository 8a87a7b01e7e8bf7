"""Muon for CPUs without bfloat16 instructions: torch's, but in float32, and all matrices of a shape at once.

Torch iterates in bfloat16. On such CPUs that takes twenty times as long, more than the rest of a small model's step.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor


class Float32Muon(torch.optim.Muon):
    """Takes torch's settings and keeps torch's state; the update differs from torch's by bfloat16's rounding.

    Learning rates are scaled to AdamW's root mean square, whatever ``adjust_lr_fn`` says.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; a closure is not called."""
        assert closure is None
        for group in self.param_groups:
            momentum, decay = group["momentum"], 1 - group["lr"] * group["weight_decay"]
            alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
                ahead = parameter.grad.lerp(buffer, momentum) if group["nesterov"] else buffer
                alike[parameter.shape].append((parameter, ahead))
            for (rows, columns), members in alike.items():
                updates = orthogonal(
                    torch.stack([ahead for _, ahead in members]),
                    group["ns_coefficients"],
                    group["ns_steps"],
                    group["eps"],
                )
                rate = group["lr"] * 0.2 * max(rows, columns) ** 0.5
                for (parameter, _), update in zip(members, updates, strict=True):
                    parameter.mul_(decay).add_(update, alpha=-rate)


def orthogonal(matrices_NRC: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Return matrices of the same singular vectors, singular values near 1: the Newton-Schulz iteration of Muon."""
    a, b, c = coefficients
    tall = matrices_NRC.shape[1] > matrices_NRC.shape[2]
    x_NRC = matrices_NRC.mT if tall else matrices_NRC
    x_NRC = x_NRC / x_NRC.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram_NRR = x_NRC @ x_NRC.mT
        x_NRC = torch.baddbmm(x_NRC, torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c), x_NRC, beta=a)
    return x_NRC.mT if tall else x_NRC
