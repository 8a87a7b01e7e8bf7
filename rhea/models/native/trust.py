"""Whether the compiled operators may be used: they are there, and compute what torch computes.

A compiler may build something wrong for a processor that nobody tried. So each process compares one small layer and one
product of each dtype with torch's before the first real one, in a few milliseconds; if they differ, torch's serve.
"""

import logging
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from rhea.models.native.binding import library
from rhea.models.native.operators import FusedLayers, LayerParts, Panels

_ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Largest difference of numbers around one; what is computed wrong is off by far more."""
_HEADS, _GROUPS, _CHANNELS, _TOKENS, _EPS = 4, 2, 24, 70, 1e-5
"""Tokens enough for a second block of keys; channels that are no whole panels."""


def available(dtype: torch.dtype) -> bool:
    """Tell whether there are operators for this dtype here."""
    return dtype in _ALLOWED and library() is not None and _agrees(dtype)


@cache
@torch.no_grad()
def _agrees(dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)

    def weight(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) * shape[-1] ** -0.5).to(dtype)

    x, head = weight(_TOKENS, 33) * 33**0.5, weight(50, 33)
    pairs = [(Panels([head]).product(x[:rows]), F.linear(x[:rows], head)) for rows in (1, 7, _TOKENS)]
    pairs.append(_layer(dtype, weight))
    worst = max(float((found.float() - wanted.float()).abs().nan_to_num(torch.inf).max()) for found, wanted in pairs)
    if worst <= _ALLOWED[dtype]:
        return True
    logging.getLogger(__name__).warning(
        "the operators compiled here differ from torch's by %.2g in %s: torch's serve (RHEA_NATIVE=0 says so at once)",
        worst,
        dtype,
    )
    return False


def _layer(dtype: torch.dtype, weight: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    """Return the states after a layer of ours and of torch's operators."""
    dim, ffn, width = 40, 56, _HEADS * _CHANNELS
    x = weight(1, _TOKENS, dim) * dim**0.5
    inward, outward = weight(width + 2 * _GROUPS * _CHANNELS, dim), weight(dim, width)
    gate, up, down = weight(ffn, dim), weight(ffn, dim), weight(dim, ffn)
    scales = [1 + weight(size) for size in (dim, dim, _CHANNELS, _CHANNELS)]
    angles = torch.arange(_TOKENS)[:, None] * torch.logspace(0, -2, _CHANNELS // 2)
    cosines = torch.cat([angles.cos(), angles.cos()], 1).to(dtype)
    sines = torch.cat([-angles.sin(), angles.sin()], 1).to(dtype)
    parts = LayerParts(
        [Panels([inward]), Panels([outward]), Panels([gate, up], gated=True), Panels([down])],
        [(scale, _EPS) for scale in scales],
    )
    block = torch.zeros(1, 2, _GROUPS, _TOKENS, _CHANNELS, dtype=dtype)
    positions = torch.arange(_TOKENS)
    found = FusedLayers(_HEADS, _GROUPS, _CHANNELS)(
        x, [parts], (cosines, sines), [block], torch.zeros_like(positions), positions
    )

    def norm(states: Tensor, scale: Tensor) -> Tensor:
        return F.rms_norm(states, scale.shape, None, _EPS) * scale

    def turned(states: Tensor) -> Tensor:
        return states * cosines + states.roll(_CHANNELS // 2, -1) * sines

    projected = F.linear(norm(x, scales[0]), inward).unflatten(-1, (-1, _CHANNELS)).transpose(1, 2)
    queries, keys, values = projected.split((_HEADS, _GROUPS, _GROUPS), 1)
    queries, keys = turned(norm(queries, scales[2])), turned(norm(keys, scales[3]))
    mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
    x = x + F.linear(mixed.transpose(1, 2).flatten(2), outward)
    normal = norm(x, scales[1])
    return found, x + F.linear(F.silu(F.linear(normal, gate)) * F.linear(normal, up), down)
