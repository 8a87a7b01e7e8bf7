"""Building blocks of the Emu3 vision tokenizer (a MoVQGAN with temporal layers, Zheng et al. 2022, arXiv:2209.09002).

The attribute names are those of the released weights, so the state dict of a model built from these blocks is the
released one. Spatial blocks see single frames; temporal blocks see short clips of latents.

Legend of shapes: N frames, C channels, H W height and width here, h w height and width of the latents, T frames of a
clip, S = H * W places.
"""

import torch
import torch.nn.functional as F
from torch import nn

from rhea.models.vision.norm import GroupNorm, SpatialNorm
from rhea.models.vision.strips import add_conv, norm_silu_conv, padded_conv


def make_norm(channels: int, latent_channels: int | None, groups: int) -> GroupNorm | SpatialNorm:
    """Return the encoder's norm (no latents) or the decoder's (conditioned on latents)."""
    if latent_channels is None:
        return GroupNorm(channels, groups)
    return SpatialNorm(channels, latent_channels, groups)


class ResBlock(nn.Module):
    """Two 3x3 convolutions with pre-norm around a skip, which is a 1x1 convolution where the width changes."""

    def __init__(self, channels_in: int, channels_out: int, latent_channels: int | None, groups: int, dropout: float):
        super().__init__()
        self.norm1 = make_norm(channels_in, latent_channels, groups)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = make_norm(channels_out, latent_channels, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, x_NCHW: torch.Tensor, latents_NChw: torch.Tensor | None = None) -> torch.Tensor:
        if not torch.is_grad_enabled():
            h_NCHW = norm_silu_conv(self.norm1, self.conv1, x_NCHW, latents_NChw)
            h_NCHW = norm_silu_conv(self.norm2, self.conv2, h_NCHW, latents_NChw, overwrite=True)
            return h_NCHW.add_(x_NCHW) if self.nin_shortcut is None else add_conv(h_NCHW, self.nin_shortcut, x_NCHW)
        h_NCHW = self.conv1(F.silu(self.norm1(x_NCHW, latents_NChw)))
        h_NCHW = self.conv2(self.dropout(F.silu(self.norm2(h_NCHW, latents_NChw))))
        return h_NCHW + (x_NCHW if self.nin_shortcut is None else self.nin_shortcut(x_NCHW))


class AttentionBlock(nn.Module):
    """Single-head attention over all places of one frame, with a residual."""

    def __init__(self, channels: int, latent_channels: int | None, groups: int) -> None:
        super().__init__()
        self.norm = make_norm(channels, latent_channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_NCHW: torch.Tensor, latents_NChw: torch.Tensor | None = None) -> torch.Tensor:
        height = x_NCHW.shape[2]
        normed_NSC = self.norm(x_NCHW, latents_NChw).flatten(2).transpose(1, 2)
        q, k, v = (_pointwise(conv, normed_NSC).unsqueeze(1) for conv in (self.q, self.k, self.v))
        mixed_NSC = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        out_NCS = _pointwise(self.proj_out, mixed_NSC).transpose(1, 2)
        return x_NCHW + out_NCS.unflatten(2, (height, -1))


def _pointwise(conv: nn.Conv2d, x_NSC: torch.Tensor) -> torch.Tensor:
    return F.linear(x_NSC, conv.weight.flatten(1), conv.bias)


class Downsample(nn.Module):
    """Halve height and width: zeros on the right and below, then a strided 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return padded_conv(self.conv, x_NCHW)


FOLD = ((0, 0, 1), (0, 1, 1), (1, 1, 0), (1, 0, 0))
"""Which of the three taps each of the four rows (and columns) of the transposed kernel adds up."""


class Upsample(nn.Module):
    """Double height and width: nearest, then a 3x3 convolution, done as one transposed convolution.

    Each output pixel sees only 2 x 2 different inputs, so adding up the weights that meet the same input gives the same
    numbers for 4/9 of the multiplications, without the enlarged input ever existing.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return F.conv_transpose2d(x_NCHW, self.folded_weight(), self.conv.bias, stride=2, padding=1)

    def folded_weight(self) -> torch.Tensor:
        """Return the 4x4 kernel of the transposed convolution, [in, out, 4, 4] in channels-last layout."""
        weight_OI9 = self.conv.weight.flatten(2)
        with torch.autocast(weight_OI9.device.type, enabled=False):
            fold = torch.kron(weight_OI9.new_tensor(FOLD), weight_OI9.new_tensor(FOLD))
            weight_I16O = torch.matmul(fold, weight_OI9.permute(1, 2, 0))
        return weight_I16O.unflatten(1, (4, 4)).permute(0, 3, 1, 2)


class CausalConv3d(nn.Module):
    """3D convolution that pads two zero frames in front and none behind, whatever its kernel."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: tuple[int, int, int] = (3, 3, 3),
        stride: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels_in, channels_out, kernel, stride=stride)
        _, height, width = (k - s for k, s in zip(kernel, stride, strict=True))
        self.padding = (width // 2 + width % 2, width // 2, height // 2 + height % 2, height // 2, 2, 0)

    def forward(self, x_NCThw: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x_NCThw, self.padding))


class TemporalDownsample(nn.Module):
    """Halve the number of frames."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels_in, channels_out, kernel=(4, 3, 3), stride=(2, 1, 1))

    def forward(self, x_NCThw: torch.Tensor) -> torch.Tensor:
        return self.conv(x_NCThw)


class TemporalUpsample(nn.Module):
    """Double the number of frames: repeat each, then a causal convolution."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels_in, channels_out)

    def forward(self, x_NCThw: torch.Tensor) -> torch.Tensor:
        return self.conv(x_NCThw.repeat_interleave(2, dim=2))


class TemporalResBlock(nn.Module):
    """Two causal 3D convolutions with BatchNorm, around an identity.

    In training mode the norms use the statistics of the batch and move their running ones; ``freeze_norm`` keeps them
    on the running ones for good, which makes a small model's training independent of how its batches are mixed.
    """

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm3d(channels)
        self.conv1 = CausalConv3d(channels, channels)
        self.norm2 = nn.BatchNorm3d(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = CausalConv3d(channels, channels)
        self.freeze_norm = False

    def train(self, mode: bool = True) -> "TemporalResBlock":
        super().train(mode)
        self.norm1.train(mode and not self.freeze_norm)
        self.norm2.train(mode and not self.freeze_norm)
        return self

    def forward(self, x_NCThw: torch.Tensor) -> torch.Tensor:
        h_NCThw = self.conv1(F.silu(self.norm1(x_NCThw)))
        h_NCThw = self.conv2(self.dropout(F.silu(self.norm2(h_NCThw))))
        return x_NCThw + h_NCThw
