"""Weighted cross entropy over a large vocabulary without ever holding all logits.

The last projection and the loss are one operation: logits of ``chunk`` tokens exist at a time, and because the loss is
the end of the network its gradients are made right there, in the forward pass (as Liger does, arXiv 2410.10989);
the backward pass only scales them. Sums are float32; under autocast, products run in the autocast dtype.

Shapes: N tokens, D channels, V vocabulary rows, C = tokens of one chunk.
"""

from typing import Any

import torch
from torch import Tensor


def weighted_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    weights_N: Tensor,
    *,
    chunk: int = 1024,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return sum_n w_n (nll_n + z_loss * logsumexp_n^2), differentiable, and nll_N, detached, both float32.

    Rows of weight 0 cost nothing: they are left out (their label may be anything) and their nll is 0.
    """
    return _WeightedCrossEntropy.apply(hidden_ND, weight_VD, labels_N, weights_N, chunk, z_loss)


class _WeightedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, weights_N: Tensor, chunk: int, z_loss: float
    ) -> tuple[Tensor, Tensor]:
        device, sums = hidden_ND.device, torch.promote_types(hidden_ND.dtype, torch.float32)
        dtype = hidden_ND.dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        weight = weight_VD.to(dtype)
        weight_grad = torch.zeros_like(weight_VD, dtype=sums) if ctx.needs_input_grad[1] else None
        hidden_grad = torch.zeros_like(hidden_ND) if ctx.needs_input_grad[0] else None
        nll_N = torch.zeros(len(labels_N), dtype=sums, device=device)
        total = torch.zeros((), dtype=sums, device=device)
        used = weights_N.nonzero().flatten()
        for rows in used.split(chunk):
            hidden, weights = hidden_ND[rows].to(dtype), weights_N[rows].to(sums)
            labels = labels_N[rows][:, None]
            scores = (hidden @ weight.t()).to(sums)
            log_sum = scores.logsumexp(-1)
            nll = log_sum - scores.gather(1, labels)[:, 0]
            nll_N[rows] = nll
            total += (weights * (nll + z_loss * log_sum.square())).sum()
            scores -= log_sum[:, None]
            scores.exp_().mul_((weights * (1 + 2 * z_loss * log_sum))[:, None])
            slopes = scores.scatter_add_(1, labels, -weights[:, None]).to(dtype)
            if hidden_grad is not None:
                hidden_grad[rows] = (slopes @ weight).to(hidden_grad.dtype)
            if weight_grad is not None:
                weight_grad += slopes.t() @ hidden
        ctx.hidden_grad, ctx.weight_grad, ctx.weight_dtype = hidden_grad, weight_grad, weight_VD.dtype
        ctx.alive = True
        ctx.mark_non_differentiable(nll_N)
        return total, nll_N

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        scale, hidden_grad, weight_grad = slopes[0], ctx.hidden_grad, ctx.weight_grad
        assert ctx.alive, "the gradients of this loss were already given away"
        ctx.hidden_grad, ctx.weight_grad, ctx.alive = (
            None,
            None,
            False,
        )  # given away, so that autograd can keep them without a copy
        if hidden_grad is not None:
            hidden_grad = hidden_grad.mul_(scale.to(hidden_grad.dtype))
        if weight_grad is not None:
            weight_grad = weight_grad.mul_(scale).to(ctx.weight_dtype)
        return hidden_grad, weight_grad, None, None, None, None
