"""Weighted cross entropy over a large vocabulary without ever holding all logits.

The last projection and the loss are one operation: logits of ``chunk`` tokens exist at a time, and because the loss is
the end of the network its gradients are made right there, in the forward pass (as Liger does, arXiv 2410.10989);
the backward pass only scales them. Sums are float32; under autocast, products run in the autocast dtype.

Shapes: N tokens, D channels, V vocabulary rows, C = tokens of one chunk.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_IN_CACHE = 2**21
"""Numbers worked on at a time on a CPU, so that all passes over them stay in its cache: 8 MiB in float32."""


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
        kind, wide = hidden_ND.device.type, torch.promote_types(hidden_ND.dtype, torch.float32)
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_ND.dtype
        weight = weight_VD.to(dtype)
        hidden_grad = torch.zeros_like(hidden_ND) if ctx.needs_input_grad[0] else None
        weight_grad: Tensor | None = None
        nll_N = hidden_ND.new_zeros(len(labels_N), dtype=wide)
        total = nll_N.new_zeros(())
        used = weights_N.nonzero().flatten()
        buffer = weight.new_empty(min(chunk, len(used)), len(weight))
        scratch = buffer.new_empty(min(_rows_in_cache(buffer), len(buffer)), len(weight), dtype=wide)
        for rows in used.split(chunk):
            hidden, weights = hidden_ND[rows].to(dtype), weights_N[rows].to(wide)
            scores = torch.mm(hidden, weight.t(), out=buffer[: len(rows)])
            nll, log_sum = _scores_to_slopes(scores, labels_N[rows], weights, z_loss, scratch)
            nll_N[rows] = nll
            total += (weights * (nll + z_loss * log_sum.square())).sum()
            if hidden_grad is not None:
                hidden_grad[rows] = (scores @ weight).to(hidden_grad.dtype)
            if ctx.needs_input_grad[1]:
                product = scores.t() @ hidden
                weight_grad = product.to(wide) if weight_grad is None else _add(weight_grad, product)
        if ctx.needs_input_grad[1] and weight_grad is None:
            weight_grad = torch.zeros_like(weight_VD)
        ctx.hidden_grad, ctx.weight_grad, ctx.weight_dtype = hidden_grad, weight_grad, weight_VD.dtype
        ctx.alive = True
        ctx.mark_non_differentiable(nll_N)
        return total, nll_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        scale, hidden_grad, weight_grad = slopes[0], ctx.hidden_grad, ctx.weight_grad
        assert ctx.alive, "the gradients of this loss were already given away"
        ctx.hidden_grad, ctx.weight_grad, ctx.alive = None, None, False  # so that autograd can keep them without a copy
        if hidden_grad is not None:
            hidden_grad = hidden_grad.mul_(scale.to(hidden_grad.dtype))
        if weight_grad is not None:
            weight_grad = weight_grad.mul_(scale).to(ctx.weight_dtype)
        return hidden_grad, weight_grad, None, None, None, None


def _rows_in_cache(matrix: Tensor) -> int:
    """Return how many rows to work on at a time."""
    return max(1, _IN_CACHE // matrix.shape[1]) if matrix.device.type == "cpu" else max(1, len(matrix))


def _add(total: Tensor, product: Tensor) -> Tensor:
    """Add in place; by parts, because torch makes a whole copy of a product of another dtype."""
    rows = _rows_in_cache(total)
    for part, addend in zip(total.split(rows), product.split(rows), strict=True):
        part += addend
    return total


def _scores_to_slopes(
    scores_CV: Tensor, labels_C: Tensor, weights_C: Tensor, z_loss: float, scratch: Tensor
) -> tuple[Tensor, Tensor]:
    """Overwrite the scores by the loss's slopes; return nll and logsumexp, [C] each."""
    nlls, log_sums = [], []
    parts = (x.split(len(scratch)) for x in (scores_CV, labels_C[:, None], weights_C))
    for scores, labels, weights in zip(*parts, strict=True):
        exact = scores if scores.dtype == scratch.dtype else scratch[: len(scores)].copy_(scores)
        label_scores, top = exact.gather(1, labels)[:, 0], exact.amax(-1)
        slopes = torch.softmax(exact, -1, out=exact)
        log_sum = top - slopes.amax(-1).log()  # the largest probability is exp(top - logsumexp), never tiny
        slopes *= (weights * (1 + 2 * z_loss * log_sum))[:, None]
        slopes.scatter_add_(1, labels, -weights[:, None])
        if slopes is not scores:
            scores.copy_(slopes)
        nlls.append(log_sum - label_scores)
        log_sums.append(log_sum)
    return torch.cat(nlls), torch.cat(log_sums)
