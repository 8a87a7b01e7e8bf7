"""The small parts of a decoder layer: RMSNorm, rotary positions and the SwiGLU feed-forward.

The decision that is not obvious: cosines and sines are always computed in float32 from integer positions, once per
forward, and only then cast to the model's dtype. Nothing rotary is stored, so no cast of the model can spoil it
(RMSNorm: arXiv 1910.07467; RoPE: 2104.09864; SwiGLU: 2002.05202).

Shapes: B rows, T tokens, H heads, D channels, K = channels of one head.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rhea.models.packed import PackedLinear, can_pack


class RMSNorm(nn.Module):
    """Divide by the root mean square, computed in float32 and cast back, then scale by a learned weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # Without a weight torch's operator is exactly "in float32, cast back"; with one it would scale before the cast.
        return F.rms_norm(x, self.weight.shape, None, self.eps) * self.weight


class Rotary(NamedTuple):
    """Cosines and signed sines of every position, shaped [B, T, 1, K] to broadcast over heads."""

    cos: Tensor
    signed_sin: Tensor


def rotary(positions_BT: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Rotary:
    """Return the rotation of each position; the sine of the first half of the channels is negated."""
    exponents = torch.arange(0, head_dim, 2, device=positions_BT.device, dtype=torch.float32) / head_dim
    angles = positions_BT[:, :, None, None].float() * (1.0 / theta**exponents)
    cos, sin = angles.cos(), angles.sin()
    return Rotary(torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype))


def rotate(x_BTHK: Tensor, rotation: Rotary) -> Tensor:
    """Rotate the channel pairs (i, i + K/2) of every head by its token's angles."""
    swapped = x_BTHK.roll(x_BTHK.shape[-1] // 2, -1)
    return x_BTHK * rotation.cos + swapped * rotation.signed_sin


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)), no biases."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, ffn_dim, bias=False)
        self.up_proj = nn.Linear(dim, ffn_dim, bias=False)
        self.down_proj = nn.Linear(ffn_dim, dim, bias=False)
        self.packed: tuple[PackedLinear, PackedLinear] | None = None

    def pack(self) -> None:
        """Fuse gate and up, and prepack all, for inference."""
        if can_pack(self.gate_proj):
            self.packed = PackedLinear((self.gate_proj, self.up_proj)), PackedLinear((self.down_proj,))

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is not None and not torch.is_grad_enabled():
            gate, up = self.packed[0](x).chunk(2, -1)
            return self.packed[1](F.silu(gate) * up)
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
