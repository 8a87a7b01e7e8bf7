"""The encoder: frames to latents, first each frame in space, then each clip in time.

A still picture is defined as a clip of one repeated frame. Its spatial part is the same for every frame, so it is
computed once and its latents are repeated, which gives the same numbers for a quarter of the work.

Legend of shapes: N frames or clips, C channels, T frames of a clip, H W pixels, h w latents.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from rhea.models.vision.blocks import AttentionBlock, Downsample, ResBlock, TemporalDownsample, TemporalResBlock
from rhea.models.vision.config import VisionTokenizerConfig
from rhea.models.vision.norm import GroupNorm
from rhea.models.vision.strips import in_passes, norm_silu_conv


class Middle(nn.Module):
    """Residual, attention, residual at the lowest resolution."""

    def __init__(self, config: VisionTokenizerConfig, latent_channels: int | None) -> None:
        super().__init__()
        channels = config.channels(-1)
        self.block_1 = ResBlock(channels, channels, latent_channels, config.norm_groups, config.dropout)
        self.attn_1 = AttentionBlock(channels, latent_channels, config.norm_groups)
        self.block_2 = ResBlock(channels, channels, latent_channels, config.norm_groups, config.dropout)

    def forward(self, x_NChw: torch.Tensor, latents_NChw: torch.Tensor | None = None) -> torch.Tensor:
        x_NChw = self.block_1(x_NChw, latents_NChw)
        x_NChw = self.attn_1(x_NChw, latents_NChw)
        return self.block_2(x_NChw, latents_NChw)


class DownLevel(nn.Module):
    """The residual blocks of one resolution, with attention where the config asks for it, then half the size."""

    def __init__(self, config: VisionTokenizerConfig, level: int) -> None:
        super().__init__()
        width = config.channels(level)
        widths = [config.channels(level - 1) if level else config.base_channels] + [width] * config.num_res_blocks
        self.block = nn.ModuleList(
            ResBlock(before, after, None, config.norm_groups, config.dropout) for before, after in pairwise(widths)
        )
        num_attentions = config.num_res_blocks if level in config.attention_levels else 0
        self.attn = nn.ModuleList(AttentionBlock(width, None, config.norm_groups) for _ in range(num_attentions))
        self.downsample = Downsample(width) if level < config.num_levels - 1 else None

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        for i, block in enumerate(self.block):
            x_NCHW = block(x_NCHW)
            if self.attn:
                x_NCHW = self.attn[i](x_NCHW)
        return x_NCHW if self.downsample is None else self.downsample(x_NCHW)


class Encoder(nn.Module):
    """Pixels to latents; ``spatial`` sees frames, ``temporal`` sees clips of what ``spatial`` returned."""

    def __init__(self, config: VisionTokenizerConfig) -> None:
        super().__init__()
        width, latent = config.channels(-1), config.latent_channels
        self.conv_in = nn.Conv2d(config.in_channels, config.base_channels, 3, padding=1)
        self.down = nn.ModuleList(DownLevel(config, level) for level in range(config.num_levels))
        self.mid = Middle(config, None)
        self.norm_out = GroupNorm(width, config.norm_groups)
        self.conv_out = nn.Conv2d(width, latent, 3, padding=1)
        self.time_conv = nn.ModuleList(TemporalDownsample(latent, latent) for _ in range(config.temporal_levels))
        self.time_res_stack = nn.Sequential(
            *(TemporalResBlock(latent, config.dropout) for _ in range(config.temporal_res_blocks))
        )

    def spatial(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        """Encode single frames [N, 3, H, W] to [N, latent_channels, h, w]; without gradients, few at a time."""
        return in_passes(self._spatial, self.conv_in.out_channels * pixels_NCHW[0, 0].numel(), pixels_NCHW)

    def _spatial(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        # Again behind conv_in: for tiny inputs torch's convolution does not keep the layout.
        x_NCHW = self.conv_in(pixels_NCHW.contiguous(memory_format=torch.channels_last))
        x_NCHW = x_NCHW.contiguous(memory_format=torch.channels_last)
        for level in self.down:
            x_NCHW = level(x_NCHW)
        x_NCHW = self.mid(x_NCHW)
        if not torch.is_grad_enabled():
            return norm_silu_conv(self.norm_out, self.conv_out, x_NCHW, None)
        return self.conv_out(F.silu(self.norm_out(x_NCHW)))

    def temporal(self, x_NCThw: torch.Tensor) -> torch.Tensor:
        """Encode clips of spatial latents [N, C, T, h, w] to [N, C, T / temporal_downsample, h, w]."""
        for conv in self.time_conv:
            x_NCThw = F.silu(conv(x_NCThw))
        return self.time_res_stack(x_NCThw)
