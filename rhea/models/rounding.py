"""Numbers in eight bits: what quantized weights and the cache share. All rounding is to nearest."""

import torch
from torch import Tensor

LARGEST = 127
"""Of the int8 codes; -128 is never used, so that a negated row has negated codes."""
_FP8_MAX = torch.finfo(torch.float8_e4m3fn).max


def to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 codes of x and the float32 scale [..., 1] of each row (the last dim): codes x scale is nearly x.

    The error is at most half a scale, which is the row's largest magnitude / 127. A row of zeros is exact; a row that
    holds what is no number gets a scale that is none.
    """
    wide = x.float()
    scale = wide.abs().amax(-1, keepdim=True) / LARGEST
    codes = (wide / scale.clamp_min(torch.finfo(torch.float32).tiny)).round_()
    return codes.to(torch.int8), scale


def to_fp8(x: Tensor) -> Tensor:
    """Return x as float8 (e4m3), relative error at most 1/16 from 2**-6 to 448; what is larger becomes 448."""
    return x.clamp(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn)
