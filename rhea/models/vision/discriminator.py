"""A patch discriminator: scores for overlapping patches, not for whole pictures (Isola et al., arXiv:1611.07004).

Spectral norm instead of batch norm: it has no statistics of its own to save or to mix between real and generated
pictures. With ``temporal`` it is three-dimensional and sees whole clips, so that it also judges motion.

Legend of shapes: N pictures or clips, C channels, T frames, H W height and width.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Size of a discriminator."""

    base_channels: int = 64
    num_levels: int = 2
    """Number of times that height and width are halved; the patch grows with it."""
    in_channels: int = 3
    temporal: bool = False
    """See clips [N, 3, T, H, W] instead of frames [N, 3, H, W]."""


class Discriminator(nn.Module):
    """Strided convolutions to one score per patch."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.base_channels * min(2**level, 8) for level in range(config.num_levels + 1)]
        layers = [self._conv(config.in_channels, widths[0], stride=2)]
        for level, (before, after) in enumerate(pairwise(widths), 1):
            layers.append(self._conv(before, after, stride=2 if level < config.num_levels else 1))
        self.layers = nn.ModuleList(layers)
        self.score = self._conv(widths[-1], 1, stride=1)

    def _conv(self, channels_in: int, channels_out: int, stride: int) -> nn.Module:
        if self.config.temporal:
            return spectral_norm(
                nn.Conv3d(channels_in, channels_out, (3, 4, 4), (1, stride, stride), padding=(1, 1, 1))
            )
        return spectral_norm(nn.Conv2d(channels_in, channels_out, 4, stride, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Score frames [N, 3, H, W], or clips [N, 3, T, H, W] when temporal; positive means real."""
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        return self.score(x)
