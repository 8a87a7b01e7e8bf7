"""Causal attention for training in bfloat16 on a CPU: plain matrix products over blocks of queries.

Torch's fused CPU kernel reaches a third of the speed of its matrix products, and its backward less. Here each block of
queries meets only the keys before its end, the query heads of a group share one product, and the backward computes the
probabilities again, so only queries, keys and values are kept. Scores are rounded to bfloat16 as in any eager model.

Shapes: B rows, T tokens, H heads, G key-value heads, R = H / G, K channels of one head, C = queries of one block.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = 128


def blocked_causal_attention(queries_BTHK: Tensor, keys_BTGK: Tensor, values_BTGK: Tensor) -> Tensor:
    """Return causal softmax(q k / sqrt(K)) v, [B, T, H, K]."""
    return _BlockedAttention.apply(queries_BTHK, keys_BTGK, values_BTGK)


def _by_group(x_THK: Tensor, num_groups: int) -> Tensor:
    """Return [G, R, T, K]."""
    return x_THK.unflatten(1, (num_groups, -1)).permute(1, 2, 0, 3)


def _probabilities(queries_GRTK: Tensor, keys_GTK: Tensor) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Yield for every block of queries: start, stop, the queries [G, R*C, K], their probabilities [G, R*C, stop]."""
    num_groups, repeats, length, head_dim = queries_GRTK.shape
    future = torch.ones(min(_BLOCK, length), min(_BLOCK, length), dtype=torch.bool).triu(1)
    for start in range(0, length, _BLOCK):
        stop = min(start + _BLOCK, length)
        size = stop - start
        queries = queries_GRTK[:, :, start:stop].reshape(num_groups, -1, head_dim)
        scores = queries.new_empty(num_groups, repeats * size, stop)
        torch.baddbmm(scores, queries, keys_GTK[:, :stop].mT, beta=0, alpha=head_dim**-0.5, out=scores)
        scores.view(num_groups, repeats, size, stop)[..., start:].masked_fill_(future[:size, :size], float("-inf"))
        yield start, stop, queries, torch.softmax(scores, -1, out=scores)


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(queries, keys, values)
        output = torch.empty_like(queries)
        num_groups = keys.shape[2]
        for q, k, v, out in zip(queries, keys.transpose(1, 2), values.transpose(1, 2), output, strict=True):
            for start, stop, _, probabilities in _probabilities(_by_group(q, num_groups), k):
                mixed = torch.bmm(probabilities, v[:, :stop])
                _by_group(out, num_groups)[:, :, start:stop] = mixed.unflatten(1, (-1, stop - start))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = ctx.saved_tensors
        num_groups, scale = keys.shape[2], keys.shape[3] ** -0.5
        grad_queries = torch.empty_like(queries)
        grad_keys, grad_values = (torch.zeros_like(x.transpose(1, 2), dtype=torch.float32) for x in (keys, values))
        for b in range(len(queries)):
            k, v = keys[b].transpose(0, 1), values[b].transpose(0, 1)
            into, above = _by_group(grad_queries[b], num_groups), _by_group(slope[b], num_groups)
            for start, stop, q, p in _probabilities(_by_group(queries[b], num_groups), k):
                d_out = above[:, :, start:stop].reshape(q.shape)
                grad_values[b, :, :stop] += torch.bmm(p.mT, d_out)
                d_scores = torch._softmax_backward_data(torch.bmm(d_out, v[:, :stop].mT), p, -1, p.dtype)
                d_queries = torch.bmm(d_scores, k[:, :stop]).mul_(scale)
                into[:, :, start:stop] = d_queries.unflatten(1, (-1, stop - start))
                grad_keys[b, :, :stop] += torch.bmm(d_scores.mT, q)
        grad_keys.mul_(scale)
        return grad_queries, grad_keys.transpose(1, 2).to(keys.dtype), grad_values.transpose(1, 2).to(values.dtype)
