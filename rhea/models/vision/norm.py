"""Group normalisation with a scale and a shift per place, in as few passes over the picture as it takes.

Both norms of the vision tokenizer are ``xhat * scale + shift``: in the encoder scale and shift are per channel, in the
decoder (MoVQ) they are maps at the size of the latents, nearest-upsampled. A 1x1 convolution commutes with that
upsampling, so the maps stay small here, and so do their gradients. On CPU torch's own norm of channels-last pictures is
inexact (it squares before it subtracts the mean) and its bfloat16 gradient slow: statistics and gradient are ours.

Legend of shapes: N frames, C channels, G groups, H W height and width, h w those of the maps (1 x 1, or divisors of
H W); N of the maps may be 1.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

EPS = 1e-6
PLACES_AT_A_TIME = 4096
"""Places whose variance is summed in one go: float32 sums over more lose digits."""


class GroupNorm(nn.GroupNorm):
    """GroupNorm with a weight and a bias per channel."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(groups, channels, eps=EPS)

    def maps(self, latents_NChw: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scale and shift, [1, C, 1, 1]; there are no latents to look at."""
        return self.weight.view(1, -1, 1, 1), self.bias.view(1, -1, 1, 1)

    def forward(self, x_NCHW: torch.Tensor, latents_NChw: torch.Tensor | None = None) -> torch.Tensor:
        return modulated(x_NCHW, *self.maps(latents_NChw), self.num_groups)


class SpatialNorm(nn.Module):
    """GroupNorm whose scale and shift at every place come from the quantized latents beneath it."""

    def __init__(self, channels: int, latent_channels: int, groups: int) -> None:
        super().__init__()
        self.norm_layer = nn.GroupNorm(groups, channels, eps=EPS)
        self.conv_y = nn.Conv2d(latent_channels, channels, 1)
        self.conv_b = nn.Conv2d(latent_channels, channels, 1)

    @property
    def num_groups(self) -> int:
        """Groups of channels that are normalised together."""
        return self.norm_layer.num_groups

    def maps(self, latents_NChw: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scale and shift of every place of the latents, [N, C, h, w]."""
        assert latents_NChw is not None
        weight, bias = (x.view(1, -1, 1, 1) for x in (self.norm_layer.weight, self.norm_layer.bias))
        scale_NChw = self.conv_y(latents_NChw)
        return weight * scale_NChw, torch.addcmul(self.conv_b(latents_NChw), bias, scale_NChw)

    def forward(self, x_NCHW: torch.Tensor, latents_NChw: torch.Tensor | None) -> torch.Tensor:
        return modulated(x_NCHW, *self.maps(latents_NChw), self.num_groups)


def modulated(x_NCHW: torch.Tensor, scale_NChw: torch.Tensor, shift_NChw: torch.Tensor, groups: int) -> torch.Tensor:
    """Return ``groupnorm(x) * scale + shift``, the maps nearest-upsampled. Differentiable once."""
    if torch.is_grad_enabled():
        return _Modulated.apply(x_NCHW, scale_NChw, shift_NChw, groups)
    return scale_rows(x_NCHW, *folded(x_NCHW, scale_NChw, shift_NChw, groups), out=torch.empty_like(x_NCHW))


def folded(
    x_NCHW: torch.Tensor, scale_NChw: torch.Tensor, shift_NChw: torch.Tensor, groups: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the maps that turn x itself, instead of its normalised form, into ``groupnorm(x) * scale + shift``."""
    scale_NChw, shift_NChw = _folded(scale_NChw, shift_NChw, *_moments(x_NCHW, groups))
    return scale_NChw.to(x_NCHW.dtype), shift_NChw.to(x_NCHW.dtype)


def scale_rows(
    x_NCHW: torch.Tensor, scale_NChw: torch.Tensor, shift_NChw: torch.Tensor, out: torch.Tensor, top: int = 0
) -> torch.Tensor:
    """Write rows of ``x * scale + shift``, the maps nearest-upsampled, from ``top`` on, as many as ``out`` has."""
    height, width = scale_NChw.shape[2:]
    bottom = top + out.shape[2]
    if height > 1:
        row = torch.arange(top, bottom, device=x_NCHW.device) // (x_NCHW.shape[2] // height)
        scale_NChw, shift_NChw = scale_NChw[:, :, row], shift_NChw[:, :, row]
    # The places of a row that share a value of the map become a dimension of their own.
    tiles, out_tiles = (x.unflatten(3, (width, -1)) for x in (x_NCHW[:, :, top:bottom], out))
    torch.mul(tiles, scale_NChw.unsqueeze(4), out=out_tiles).add_(shift_NChw.unsqueeze(4))
    return out


class _Modulated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_NCHW: torch.Tensor, scale_NChw: torch.Tensor, shift_NChw: torch.Tensor, groups: int
    ) -> torch.Tensor:
        mean_NC11, rstd_NC11 = _moments(x_NCHW, groups)
        ctx.save_for_backward(x_NCHW, scale_NChw, mean_NC11, rstd_NC11)
        ctx.groups, ctx.shift_dtype = groups, shift_NChw.dtype
        scale_NChw, shift_NChw = _folded(scale_NChw, shift_NChw, mean_NC11, rstd_NC11)
        return torch.addcmul(_upsampled(shift_NChw, x_NCHW), x_NCHW, _upsampled(scale_NChw, x_NCHW))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad_NCHW,), dtype = gradients, gradients[0].dtype
        x_NCHW, scale_NChw, mean_NC11, rstd_NC11 = ctx.saved_tensors
        xhat_NCHW = (x_NCHW - mean_NC11.to(dtype)).mul_(rstd_NC11.to(dtype))
        grad_shift = _pooled(grad_NCHW, scale_NChw)
        grad_scale = _pooled(grad_NCHW * xhat_NCHW, scale_NChw)
        grad_x = None
        if ctx.needs_input_grad[0]:
            # A norm's gradient has two means over its group; the small maps are enough to compute them.
            places = x_NCHW.shape[2] * x_NCHW.shape[3]
            mean_grad, mean_product = (
                _group_mean((scale_NChw * part).sum((2, 3)) / places, ctx.groups)[..., None, None] * rstd_NC11
                for part in (grad_shift, grad_scale)
            )
            grad_x = grad_NCHW * _upsampled(scale_NChw * rstd_NC11, x_NCHW)
            grad_x.addcmul_(xhat_NCHW, -mean_product.to(dtype)).sub_(mean_grad.to(dtype))
        if len(scale_NChw) == 1:
            grad_scale, grad_shift = grad_scale.sum(0, keepdim=True), grad_shift.sum(0, keepdim=True)
        return grad_x, grad_scale.to(scale_NChw.dtype), grad_shift.to(ctx.shift_dtype), None


def _folded(
    scale_NChw: torch.Tensor, shift_NChw: torch.Tensor, mean_NC11: torch.Tensor, rstd_NC11: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scale and shift of x itself instead of xhat."""
    scale_NChw = scale_NChw * rstd_NC11
    return scale_NChw, shift_NChw - mean_NC11 * scale_NChw


def _moments(x_NCHW: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and reciprocal deviation of every group, per channel [N, C, 1, 1], at least float32."""
    if x_NCHW.device.type == "cpu" and x_NCHW.is_contiguous(memory_format=torch.channels_last):
        mean_NC, variance_NC = _channel_moments(x_NCHW)
        mean_NG = _group_mean(mean_NC, groups)
        variance_NG = _group_mean(variance_NC + (mean_NC - mean_NG).square(), groups)
    else:
        groups_NG = x_NCHW.flatten(2).unflatten(1, (groups, -1)).flatten(2)
        groups_NG = groups_NG if x_NCHW.dtype == torch.float64 else groups_NG.float()
        moments = torch.var_mean(groups_NG, dim=2, correction=0)
        variance_NG, mean_NG = (x.repeat_interleave(x_NCHW.shape[1] // groups, dim=1) for x in moments)
    return mean_NG[..., None, None], (variance_NG + EPS).rsqrt()[..., None, None]


def _channel_moments(x_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance of every channel of channels-last pictures on CPU, [N, C].

    The statistics of batch norm are the one fast and stable kernel for this layout; it is called per picture, so that
    no picture's numbers depend on its neighbours, and per band of rows, and the bands are put together (Chan et al.).
    """
    frames, channels, height, width = x_NCHW.shape
    wide = torch.float64 if x_NCHW.dtype == torch.float64 else torch.float32
    rows = max(1, PLACES_AT_A_TIME // width)
    scratch = torch.zeros(channels, dtype=wide)  # given so that the results are float32 for bfloat16 pictures too
    bands = [
        [torch.batch_norm_update_stats(band, scratch, scratch, 0.0) for band in x_NCHW[n : n + 1].split(rows, dim=2)]
        for n in range(frames)
    ]
    means_BNC, variances_BNC = (torch.stack([torch.stack([b[i] for b in n]) for n in bands], dim=1) for i in (0, 1))
    share_B11 = torch.tensor([min(rows, height - top) / height for top in range(0, height, rows)], dtype=wide)
    share_B11 = share_B11[:, None, None]
    if x_NCHW.dtype == torch.bfloat16:
        mean_NC = (share_B11 * means_BNC).sum(0)
    else:  # sums of sums keep the digits that one long float32 sum loses
        mean_NC = F.avg_pool2d(x_NCHW, (math.gcd(height, 8), math.gcd(width, 8))).mean((2, 3))
    return mean_NC, (share_B11 * (variances_BNC + (means_BNC - mean_NC).square())).sum(0)


def _group_mean(x_NC: torch.Tensor, groups: int) -> torch.Tensor:
    """Return the mean over the channels of each group, for each of its channels: [N, C]."""
    means_NG1 = x_NC.unflatten(1, (groups, -1)).mean(2, keepdim=True)
    return means_NG1.expand(-1, -1, x_NC.shape[1] // groups).flatten(1)


def _upsampled(map_NChw: torch.Tensor, x_NCHW: torch.Tensor) -> torch.Tensor:
    map_NChw = map_NChw.to(x_NCHW.dtype)
    if map_NChw.shape[2:] == x_NCHW.shape[2:] or map_NChw.shape[2:] == (1, 1):
        return map_NChw
    return F.interpolate(map_NChw, size=x_NCHW.shape[2:], mode="nearest")


def _pooled(x_NCHW: torch.Tensor, map_NChw: torch.Tensor) -> torch.Tensor:
    """Return the sums of x over the places under each value of the map, at least float32."""
    (height, width), target = x_NCHW.shape[2:], map_NChw.shape[2:]
    if target != (height, width):
        kernel = (height // target[0], width // target[1])
        x_NCHW = F.avg_pool2d(x_NCHW, kernel, divisor_override=1) if target != (1, 1) else _summed(x_NCHW)
    return x_NCHW if x_NCHW.dtype == torch.float64 else x_NCHW.float()


def _summed(x_NCHW: torch.Tensor) -> torch.Tensor:
    return x_NCHW.sum(3, keepdim=True).sum(2, keepdim=True, dtype=torch.promote_types(x_NCHW.dtype, torch.float32))
