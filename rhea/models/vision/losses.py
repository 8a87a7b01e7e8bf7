"""What a reconstruction should keep: values, edges, texture; and the hinge game with a discriminator.

Emu3 names L2, LPIPS, GAN and commitment. LPIPS needs downloaded weights, so it is not assumed here:
``reconstruction`` adds a loss on image gradients, which keeps edges sharp, and ``PerceptualNetwork`` compares
features of a small network whose weights the caller may give (a seeded random one otherwise; never report that as
LPIPS).

Legend of shapes: N frames, C channels, H W height and width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """Weights of the parts of the reconstruction loss."""

    l1: float = 1.0
    l2: float = 1.0
    gradient: float = 0.5
    """L1 between differences of neighbouring pixels."""
    chroma: float = 0.0
    """L1 and L2 of what remains of the error without its mean over the channels: brightness is learned first by far,
    and a codebook that has settled on it leaves no room for colour."""


def reconstruction(
    output_NCHW: torch.Tensor, target_NCHW: torch.Tensor, config: ReconstructionConfig
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the weighted loss and its parts, means over all pixels of frames [..., C, H, W] in [-1, 1]."""
    error = (output_NCHW - target_NCHW).float()
    parts = {
        "l1": error.abs().mean(),
        "l2": error.square().mean(),
        "gradient": error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean(),
    }
    total = config.l1 * parts["l1"] + config.l2 * parts["l2"] + config.gradient * parts["gradient"]
    if config.chroma:
        coloured = error - error.mean(dim=-3, keepdim=True)
        parts["chroma"] = coloured.abs().mean() + coloured.square().mean()
        total = total + config.chroma * parts["chroma"]
    return total, parts


def psnr(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the peak signal-to-noise ratio in dB over everything given, for values in [-1, 1]."""
    error = (output.clamp(-1, 1) - target).float().square().mean()
    return 10 * torch.log10(4 / error.clamp(min=1e-12))


def discriminator_hinge(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Return the hinge loss of a discriminator's scores of real and generated pictures."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def generator_hinge(fake: torch.Tensor) -> torch.Tensor:
    """Return the generator's side of the hinge loss."""
    return -fake.float().mean()


def adaptive_weight(
    reconstruction_loss: torch.Tensor, adversarial_loss: torch.Tensor, last_weight: torch.Tensor, limit: float = 1e4
) -> torch.Tensor:
    """Return the weight at which both losses pull equally on the decoder's last layer (VQGAN, arXiv:2012.09841)."""
    (ours,) = torch.autograd.grad(reconstruction_loss, last_weight, retain_graph=True)
    (theirs,) = torch.autograd.grad(adversarial_loss, last_weight, retain_graph=True)
    return (ours.norm() / (theirs.norm() + 1e-4)).clamp(0, limit).detach()


class PerceptualNetwork(nn.Module):
    """A fixed convolutional pyramid; the loss is the distance of its channel-normalised features at every level.

    Random weights from ``seed`` already penalise lost texture; load trained ones with ``load_state_dict``.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64), seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.convs = nn.ModuleList()
        for before, after in zip((3, *widths), widths, strict=False):
            conv = nn.Conv2d(before, after, 3, padding=1)
            with torch.no_grad():
                conv.weight.normal_(0, (2 / (9 * before)) ** 0.5, generator=generator)
                nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            self.convs.append(conv)
        self.requires_grad_(False)

    def forward(self, output_NCHW: torch.Tensor, target_NCHW: torch.Tensor) -> torch.Tensor:
        """Return the mean squared distance of features of two batches of frames [N, 3, H, W] in [-1, 1]."""
        x, total = torch.cat((output_NCHW, target_NCHW)), output_NCHW.new_zeros(())
        for conv in self.convs:
            x = F.relu(conv(x))
            ours, theirs = F.normalize(x.float(), dim=1).chunk(2)
            total = total + (ours - theirs).square().sum(1).mean()
            x = F.avg_pool2d(x, 2)
        return total / len(self.convs)
