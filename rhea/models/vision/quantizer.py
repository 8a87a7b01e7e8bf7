"""The vector quantizer: the nearest of the codebook's entries, by squared distance.

No projection and no normalisation; the codebook is a plain embedding. Distances are computed in float32 whatever the
model's dtype, in the order |x|^2 + |e|^2 - 2xe of the released code, so that near ties fall the same way, and for a few
places at a time, so that the table of distances (16 GB for a 1024 x 1024 picture) never exists.

Legend of shapes: N latent frames, D channels of a latent, h w their height and width, P places, K entries.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from rhea.models.vision.config import VisionTokenizerConfig

DISTANCES_AT_A_TIME = 2**22
"""Entries of the distance table that exist at once: 16 MB, which stays in the processor's cache."""


class Quantized(NamedTuple):
    """What training needs of one quantization."""

    latents: torch.Tensor
    """[N, D, h, w] codebook entries in value, the identity of the input in gradient (straight-through)."""
    codes: torch.Tensor
    """[N, h, w] int64."""
    losses: dict[str, torch.Tensor]
    """``codebook`` pulls entries to latents, ``commitment`` pulls latents to entries; means, not yet weighted."""


class Quantizer(nn.Module):
    """A codebook of ``codebook_size`` entries of ``embed_dim`` numbers."""

    def __init__(self, config: VisionTokenizerConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.codebook_size, config.embed_dim)
        bound = 1.0 / config.codebook_size
        nn.init.uniform_(self.embedding.weight, -bound, bound)

    @torch.no_grad()
    def codes(self, latents_NDhw: torch.Tensor) -> torch.Tensor:
        """Return the index of the nearest entry at every place: [N, D, h, w] to int64 [N, h, w]."""
        frames, _, height, width = latents_NDhw.shape
        places_PD = latents_NDhw.permute(0, 2, 3, 1).flatten(0, 2).float()
        with torch.autocast(latents_NDhw.device.type, enabled=False):
            codes_P = nearest(places_PD, self.embedding.weight.float())
        return codes_P.view(frames, height, width)

    def lookup(self, codes_Nhw: torch.Tensor) -> torch.Tensor:
        """Return the entries of codes: [N, h, w] to [N, D, h, w]."""
        return F.embedding(codes_Nhw, self.embedding.weight).permute(0, 3, 1, 2)

    def forward(self, latents_NDhw: torch.Tensor) -> Quantized:
        """Quantize with a straight-through gradient; see Quantized."""
        latents_NDhw = latents_NDhw.float()
        codes_Nhw = self.codes(latents_NDhw)
        entries_NDhw = self.lookup(codes_Nhw).float()
        losses = {
            "codebook": F.mse_loss(entries_NDhw, latents_NDhw.detach()),
            "commitment": F.mse_loss(latents_NDhw, entries_NDhw.detach()),
        }
        return Quantized(latents_NDhw + (entries_NDhw - latents_NDhw).detach(), codes_Nhw, losses)


def nearest(places_PD: torch.Tensor, entries_KD: torch.Tensor) -> torch.Tensor:
    """Return for each place the index of the entry at the smallest squared distance, the first one among equals."""
    entries_DK = entries_KD.T.contiguous()
    squares_K = entries_KD.square().sum(1)
    rows = max(1, DISTANCES_AT_A_TIME // len(entries_KD))
    found = [
        (chunk.square().sum(1, keepdim=True) + squares_K).sub_(chunk @ entries_DK, alpha=2).argmin(1)
        for chunk in places_PD.split(rows)
    ]
    return torch.cat(found)
