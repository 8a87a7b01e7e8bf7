"""Codes that describe their own place: a loss on what a latent knows of far away.

A transformer predicts codes well when equal content has equal codes. An encoder with global norms and attention, left
to itself, lets every code depend on the whole picture: one background gets dozens of codes, and an object gets new ones
wherever it lies. Here a window of one picture is pasted into another (CutMix, arXiv:1905.04899), moved by whole cells;
away from the seam the latents of the mixture should be those of the two originals.

Legend of shapes: N pictures or clips, F frames of a clip, C channels, D channels of a latent, H W pixels, h w cells.
"""

from typing import NamedTuple

import torch
from torch import Tensor

SEAM = 1
"""How many cells on either side of the window's edge may know of the other side."""
LEAST = 1 + 2 * SEAM
"""Least side of a window in cells: one cell inside the seam."""


class Window(NamedTuple):
    """Where a window is cut and pasted, in cells."""

    height: int
    width: int
    source: tuple[int, int]
    """Row and column of its upper left corner in the picture it comes from: the next one of the batch."""
    target: tuple[int, int]
    """Row and column where it is pasted."""


def random_window(rows: int, columns: int, generator: torch.Generator) -> Window:
    """Draw size and corners uniformly, on pictures of ``rows`` x ``columns`` cells, at least LEAST each."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    height, width = draw(LEAST, rows), draw(LEAST, columns)
    source, target = ((draw(0, rows - height), draw(0, columns - width)) for _ in range(2))
    return Window(height, width, source, target)


def paste(x: Tensor, window: Window, cell: int = 1) -> Tensor:
    """Return x [N, ..., H, W] with a window of the next (of the first, in the last) in each; cells of ``cell``."""
    pasted = x.clone()
    _region(pasted, window.target, window, cell).copy_(_region(x.roll(-1, 0), window.source, window, cell))
    return pasted


def locality_loss(mixed_NDhw: Tensor, latents_NDhw: Tensor, window: Window) -> Tensor:
    """Return the mean squared distance from latents of ``paste(pixels)`` to pasted latents, away from the seam."""
    squares_hw = (mixed_NDhw - paste(latents_NDhw, window)).square().mean((0, 1))
    known_hw = torch.ones_like(squares_hw)
    (top, left), (height, width, *_) = window.target, window
    known_hw[max(top - SEAM, 0) : top + height + SEAM, max(left - SEAM, 0) : left + width + SEAM] = 0
    known_hw[top + SEAM : top + height - SEAM, left + SEAM : left + width - SEAM] = 1
    return (squares_hw * known_hw).sum() / known_hw.sum()


def _region(x: Tensor, corner: tuple[int, int], window: Window, cell: int) -> Tensor:
    rows, columns = (
        slice(start * cell, (start + extent) * cell) for start, extent in zip(corner, window[:2], strict=True)
    )
    return x[..., rows, columns]
