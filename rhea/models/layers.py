"""The small parts of a decoder layer: RMSNorm, rotary positions and the SwiGLU feed-forward.

The decision that is not obvious: cosines and sines are always computed in float32 from integer positions, once per
forward, and only then cast to the model's dtype. Nothing rotary is stored, so no cast of the model can spoil it
(RMSNorm: arXiv 1910.07467; RoPE: 2104.09864; SwiGLU: 2002.05202).

Shapes: B rows, T tokens, H heads, D channels, K = channels of one head.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rhea.models.packed import PackedLinear, Product, can_pack, release
from rhea.models.remake import remade


class RMSNorm(nn.Module):
    """Divide by the root mean square, computed in float32 and cast back, then scale by a learned weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised x; under autocast in its dtype, so that no later product casts it again."""
        if torch.is_grad_enabled():
            return _ScaledNorm.apply(x, self.weight, self.eps, compute_dtype(x))
        return _scaled_norm(x, self.weight, self.eps, compute_dtype(x))

    def feed(self, branch: Callable[..., Tensor], x: Tensor, *others: Any) -> Tensor:
        """Return branch(norm(x), ...) without keeping the norm for the backward pass."""
        normal = self.forward(x)
        with remade(normal, lambda: _scaled_norm(x, self.weight, self.eps, normal.dtype)):
            return branch(normal, *others)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which a product with x is computed here: autocast's, or its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _scaled_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    # Without a weight torch's operator is exactly "in float32, cast back"; with one it would scale before the cast.
    return (F.rms_norm(x, weight.shape, None, eps) * weight).to(dtype)


class _ScaledNorm(torch.autograd.Function):
    """The norm with a backward that keeps nothing but its input, which the residual stream keeps anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return _scaled_norm(x, weight, eps, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        wide = torch.promote_types(x.dtype, torch.float32)
        inverse = (x.to(wide).square().mean(-1, keepdim=True) + ctx.eps).rsqrt()
        normal, slope = x.to(wide) * inverse, slope.to(wide)
        weight_slope = (slope * normal).flatten(0, -2).sum(0)
        slope = slope * weight
        slope -= normal.mul_((slope * normal).mean(-1, keepdim=True))
        return slope.mul_(inverse).to(x.dtype), weight_slope.to(weight.dtype), None, None


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


class _GatedSilu(torch.autograd.Function):
    """silu(gate) * up with a backward that keeps only gate and up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(slope * up, gate), F.silu(gate).mul_(slope)


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)), no biases."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, ffn_dim, bias=False)
        self.up_proj = nn.Linear(dim, ffn_dim, bias=False)
        self.down_proj = nn.Linear(ffn_dim, dim, bias=False)
        self.packed: tuple[Product, Product] | None = None

    def pack(self, *, alone: bool = False) -> None:
        """Fuse gate and up, and prepack all, for inference; ``alone``: without the originals."""
        inward, outward = (self.gate_proj, self.up_proj), (self.down_proj,)
        if can_pack(self.gate_proj):
            self.packed = PackedLinear(inward, gated=True), PackedLinear(outward)
            if alone:
                release(inward + outward, self.packed)

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is not None and not torch.is_grad_enabled():
            inward, outward = self.packed
            if isinstance(inward, PackedLinear) and (panels := inward.panels(x)) is not None:
                return outward(panels.product(x))
            gate, up = inward(x).chunk(2, -1)
            return outward(F.silu(gate) * up)
        gate, up = self.gate_proj(x), self.up_proj(x)
        gated = _GatedSilu.apply(gate, up)
        with remade(gated, lambda: F.silu(gate).mul_(up)):
            return self.down_proj(gated)
