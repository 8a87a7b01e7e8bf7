"""The expensive steps of inference, done in horizontal strips.

A large picture's activations are the memory of this model: 268 MB each for 512 x 512 pixels at the released size. The
plain chain norm, silu, convolution holds four of them; in strips that fit the processor's cache it holds the input and
the output, or one where the output may overwrite the input. The numbers are those of the whole, not an approximation:
the norm's statistics are taken over the whole picture first, and a strip sees its neighbours' edge rows.

Legend of shapes: N frames, C channels, H W height and width, h w those of the latents.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from rhea.models.vision.norm import GroupNorm, SpatialNorm, folded, scale_rows

STRIP_VALUES = 2**21
"""Values of a strip of the input: 8 MB in float32."""
PASS_VALUES = 2**24
"""Values of one full-resolution activation of all frames that are computed together: 64 MB in float32."""
GPU_FACTOR = 16
"""A GPU takes larger portions."""


def in_passes(function: Callable[..., torch.Tensor], values: int, *inputs: torch.Tensor) -> torch.Tensor:
    """Apply a function of frames, ``values`` of activation each, to as many frames at a time as memory should hold."""
    frames = max(1, _scaled(PASS_VALUES, inputs[0]) // values)
    if torch.is_grad_enabled() or frames >= len(inputs[0]):
        return function(*inputs)
    return torch.cat([function(*some) for some in zip(*(x.split(frames) for x in inputs), strict=True)])


def norm_silu_conv(
    norm: GroupNorm | SpatialNorm,
    conv: nn.Conv2d,
    x_NCHW: torch.Tensor,
    latents_NChw: torch.Tensor | None,
    overwrite: bool = False,
) -> torch.Tensor:
    """Return ``conv(silu(norm(x)))`` for a 3x3 convolution that keeps the size; no gradient.

    With ``overwrite`` the result may take the place of x, if it has as many channels.
    """
    frames, channels, height, width = x_NCHW.shape
    maps = folded(x_NCHW, *norm.maps(latents_NChw), norm.num_groups)
    rows = _rows(x_NCHW)
    if rows >= height:
        return conv(F.silu(scale_rows(x_NCHW, *maps, out=torch.empty_like(x_NCHW)), inplace=True))
    overwrite = overwrite and conv.out_channels == conv.in_channels
    out_NCHW = x_NCHW if overwrite else _empty(x_NCHW, (frames, conv.out_channels, height, width))
    buffer = _empty(x_NCHW, (frames, channels, rows + 2, width))  # a strip and the edge rows of its neighbours
    buffer[:, :, :1] = 0
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        strip = buffer[:, :, : bottom - top + 2]
        active = strip[:, :, 1 : min(bottom + 1, height) - top + 1]
        F.silu(scale_rows(x_NCHW, *maps, out=active, top=top), inplace=True)
        if bottom == height:
            strip[:, :, -1:] = 0
        out_NCHW[:, :, top:bottom] = F.conv2d(strip, conv.weight, conv.bias, padding=(0, 1))
        strip[:, :, :1] = strip[:, :, -2:-1]
    return out_NCHW


def add_conv(out_NCHW: torch.Tensor, conv: nn.Conv2d, x_NCHW: torch.Tensor) -> torch.Tensor:
    """Add a 1x1 convolution of x to ``out``, in place; no gradient."""
    for strip, x_strip in zip(out_NCHW.split(_rows(x_NCHW), dim=2), x_NCHW.split(_rows(x_NCHW), dim=2), strict=True):
        strip.add_(conv(x_strip))
    return out_NCHW


def padded_conv(conv: nn.Conv2d, x_NCHW: torch.Tensor) -> torch.Tensor:
    """Apply a 3x3 convolution of stride 2 to x with a row of zeros below and a column of zeros on the right."""
    frames, _, height, width = x_NCHW.shape
    rows = max(2, _rows(x_NCHW) // 2 * 2)
    if torch.is_grad_enabled() or rows >= height:
        return conv(F.pad(x_NCHW, (0, 1, 0, 1)))
    out_NCHW = _empty(x_NCHW, (frames, conv.out_channels, height // 2, width // 2))
    for top in range(0, height, rows):
        strip = F.pad(x_NCHW[:, :, top : top + rows + 1], (0, 1, 0, 1 if top + rows >= height else 0))
        out_NCHW[:, :, top // 2 : (top + rows) // 2] = conv(strip)
    return out_NCHW


def _rows(x_NCHW: torch.Tensor) -> int:
    frames, channels, _, width = x_NCHW.shape
    return max(1, _scaled(STRIP_VALUES, x_NCHW) // (frames * channels * width))


def _scaled(limit: int, x_NCHW: torch.Tensor) -> int:
    return limit if x_NCHW.device.type == "cpu" else limit * GPU_FACTOR


def _empty(x_NCHW: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.empty(shape, dtype=x_NCHW.dtype, device=x_NCHW.device, memory_format=torch.channels_last)
