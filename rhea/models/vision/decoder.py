"""The decoder: quantized latents to frames, first each clip in time, then each frame in space.

Every norm of the spatial part is conditioned on the quantized latents of its own frame (MoVQ). The temporal part has
four channels and costs nothing; the spatial part is run only for the frames that the caller keeps.

Legend of shapes: N frames or clips, C channels, T frames of a clip, H W pixels, h w latents.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from rhea.models.vision.blocks import (
    AttentionBlock,
    ResBlock,
    TemporalResBlock,
    TemporalUpsample,
    Upsample,
)
from rhea.models.vision.config import VisionTokenizerConfig
from rhea.models.vision.encoder import Middle
from rhea.models.vision.norm import SpatialNorm
from rhea.models.vision.strips import in_passes, norm_silu_conv


class UpLevel(nn.Module):
    """The residual blocks of one resolution, with attention where the config asks for it, then twice the size."""

    def __init__(self, config: VisionTokenizerConfig, level: int) -> None:
        super().__init__()
        last, width, count = config.num_levels - 1, config.channels(level), config.num_res_blocks + 1
        widths = [config.channels(min(level + 1, last))] + [width] * count
        self.block = nn.ModuleList(
            ResBlock(before, after, config.embed_dim, config.norm_groups, config.dropout)
            for before, after in pairwise(widths)
        )
        num_attentions = count if level in config.attention_levels else 0
        self.attn = nn.ModuleList(
            AttentionBlock(width, config.embed_dim, config.norm_groups) for _ in range(num_attentions)
        )
        self.upsample = Upsample(width) if level else None

    def forward(self, x_NCHW: torch.Tensor, latents_NChw: torch.Tensor) -> torch.Tensor:
        for i, block in enumerate(self.block):
            x_NCHW = block(x_NCHW, latents_NChw)
            if self.attn:
                x_NCHW = self.attn[i](x_NCHW, latents_NChw)
        return x_NCHW if self.upsample is None else self.upsample(x_NCHW)


class Decoder(nn.Module):
    """Latents to pixels; ``temporal`` sees clips, ``spatial`` sees the frames that are wanted."""

    def __init__(self, config: VisionTokenizerConfig) -> None:
        super().__init__()
        latent = config.latent_channels
        self.time_res_stack = nn.Sequential(
            *(TemporalResBlock(latent, config.dropout) for _ in range(config.temporal_res_blocks))
        )
        self.time_conv = nn.ModuleList(TemporalUpsample(latent, latent) for _ in range(config.temporal_levels))
        self.conv_in = nn.Conv2d(latent, config.channels(-1), 3, padding=1)
        self.mid = Middle(config, config.embed_dim)
        self.up = nn.ModuleList(UpLevel(config, level) for level in range(config.num_levels))
        self.norm_out = SpatialNorm(config.base_channels, config.embed_dim, config.norm_groups)
        self.conv_out = nn.Conv2d(config.base_channels, config.out_channels, 3, padding=1)

    def temporal(self, z_NCThw: torch.Tensor, quantized_NCThw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Stretch the decoder's input and its condition in time, through the same layers (as one batch)."""
        both = self.time_res_stack(torch.cat((z_NCThw, quantized_NCThw)))
        for conv in self.time_conv:
            both = F.silu(conv(both))
        z_NCThw, condition_NCThw = both.chunk(2)
        return z_NCThw, condition_NCThw

    def spatial(self, z_NChw: torch.Tensor, condition_NChw: torch.Tensor) -> torch.Tensor:
        """Decode single frames [N, C, h, w] to pixels [N, 3, H, W]; without gradients, few at a time."""
        values = self.conv_out.in_channels * z_NChw[0, 0].numel() * 4 ** (len(self.up) - 1)
        return in_passes(self._spatial, values, z_NChw, condition_NChw)

    def _spatial(self, z_NChw: torch.Tensor, condition_NChw: torch.Tensor) -> torch.Tensor:
        condition_NChw = condition_NChw.contiguous(memory_format=torch.channels_last)
        # The layout is set behind conv_in: for tiny inputs torch's convolution does not keep it.
        x_NCHW = self.conv_in(z_NChw).contiguous(memory_format=torch.channels_last)
        x_NCHW = self.mid(x_NCHW, condition_NChw)
        for level in reversed(self.up):
            x_NCHW = level(x_NCHW, condition_NChw)
        if not torch.is_grad_enabled():
            return norm_silu_conv(self.norm_out, self.conv_out, x_NCHW, condition_NChw)
        return self.conv_out(F.silu(self.norm_out(x_NCHW, condition_NChw)))
