"""Which emoji a picture looks like most: fixed features, and nearest neighbours among the true pictures.

The features were chosen by measurement (docs/evaluation.md): colours averaged over 8 x 8 cells, beside histograms of
edge directions in the same cells, forgive a small shift or another scale and still tell 1,545 concepts apart. A cell
without a picture is judged by the concept's other styles, in two ways that never see the asked style: the nearest of
those pictures, and a linear classifier fitted on them.

Legend of shapes: N pictures, D features, S styles, K concepts.
"""

import hashlib
import math
from collections.abc import Iterable
from functools import lru_cache
from itertools import permutations
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from rhea.worlds.emoji.emoji import Cell

Judge = Literal["asked style", "other styles", "linear classifier"]
"""Nearest in the asked style, nearest in the others, or the linear classifier fitted on the others."""

_SIDE = 64
"""Pictures are averaged to this size first."""
_CELLS = 8
_DIRECTIONS = 8
_RIDGE = 0.1
"""Penalty of the classifier, in mean squares of the features."""


def features(pixels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a picture uint8 [H, W, 3] is compared by: mean colours [192], and roots of mean edges [512]."""
    values = torch.tensor(pixels).movedim(-1, 0)[None].float() / 255
    x_1CHW = F.interpolate(values, size=(_SIDE, _SIDE), mode="area")
    return F.adaptive_avg_pool2d(x_1CHW, _CELLS).flatten(), _edges(x_1CHW).flatten()


def _edges(x_1CHW: torch.Tensor) -> torch.Tensor:
    """Return how strong edges of each direction are in each cell, by the channel that changes most."""
    half = F.avg_pool2d(x_1CHW, 2)
    across = F.pad(half[..., 2:] - half[..., :-2], (1, 1))
    down = F.pad(half[..., 2:, :] - half[..., :-2, :], (0, 0, 1, 1))
    most = (across**2 + down**2).argmax(dim=1, keepdim=True)
    across, down = across.gather(1, most), down.gather(1, most)
    place = torch.atan2(down, across) / (2 * math.pi) * _DIRECTIONS % _DIRECTIONS
    below, strength = place.floor(), torch.hypot(across, down)
    histogram = torch.zeros(1, _DIRECTIONS, *half.shape[2:])
    for direction, share in ((below, 1 - place + below), (below + 1, place - below)):
        histogram.scatter_add_(1, direction.long() % _DIRECTIONS, strength * share)
    return F.adaptive_avg_pool2d(histogram, _CELLS).add(1e-4).sqrt()


class Likeness:
    """Ranks concepts by likeness to a picture; concepts that a judge knows by the same picture are both right."""

    def __init__(self, pictures: Iterable[tuple[Cell, np.ndarray]]) -> None:
        """``pictures``: the true ones, uint8 [H, W, 3]."""
        found, equal = {}, dict[tuple[str, bytes], list[str]]()
        for cell, pixels in pictures:
            found[cell] = features(pixels)
            equal.setdefault((cell.style, hashlib.sha256(pixels.tobytes()).digest()), []).append(cell.concept)
        self.concepts = sorted({cell.concept for cell in found})
        self.styles = sorted({cell.style for cell in found})
        self._number = {concept: number for number, concept in enumerate(self.concepts)}
        self._same_SKK = torch.eye(len(self.concepts), dtype=torch.bool).repeat(len(self.styles), 1, 1)
        for (style, _), concepts in equal.items():
            for one, other in permutations([self._number[concept] for concept in concepts], 2):
                self._same_SKK[self.styles.index(style), one, other] = True
        parts = [torch.stack(part) for part in zip(*found.values(), strict=True)]
        self._scales = [1 / part.var(dim=0, correction=0).sum().sqrt().clamp(min=1e-6) for part in parts]
        """Both halves of the features have the same spread over the true pictures."""
        self._known_SK = torch.zeros(len(self.styles), len(self.concepts), dtype=torch.bool)
        self._true_SKD = torch.zeros(*self._known_SK.shape, sum(part.shape[1] for part in parts))
        for cell, both in found.items():
            place = self.styles.index(cell.style), self._number[cell.concept]
            self._known_SK[place], self._true_SKD[place] = True, self._scaled(*both)
        self._weights = lru_cache(None)(self._fit)

    def distances(self, pixels: np.ndarray, style: str, judge: Judge) -> torch.Tensor:
        """Return how far a picture is from each concept [K], infinite where the judge knows no picture of it."""
        x_D, judging_S = self._scaled(*features(pixels)), self._judging(style, judge)
        known_SK = self._known_SK[judging_S]
        if judge == "linear classifier":
            mean_D, weights_DK = self._weights(style)
            found_K = -((x_D - mean_D) @ weights_DK)
        else:
            each_SK = (self._true_SKD[judging_S] - x_D).square().sum(dim=-1)
            found_K = each_SK.masked_fill(~known_SK, torch.inf).amin(dim=0)
        return found_K.masked_fill(~known_SK.any(dim=0), torch.inf)

    def rank(self, distances_K: torch.Tensor, cell: Cell, judge: Judge) -> int:
        """Return how many concepts are nearer than the nearest right one; 0 is the best."""
        right_K = self._same_SKK[self._judging(cell.style, judge), self._number[cell.concept]].any(dim=0)
        return int((distances_K[~right_K] < distances_K[right_K].min()).sum())

    def nearest(self, distances_K: torch.Tensor) -> str:
        """Return the concept that is nearest."""
        return self.concepts[int(distances_K.argmin())]

    def twins(self, cell: Cell) -> list[str]:
        """Return the concepts that have the picture of this cell, its own among them."""
        same_K = self._same_SKK[self.styles.index(cell.style), self._number[cell.concept]]
        return [self.concepts[number] for number in same_K.nonzero()[:, 0].tolist()]

    def _judging(self, style: str, judge: Judge) -> torch.Tensor:
        """Return bool [S]: the styles that a judge goes by."""
        asked_S = torch.tensor([each == style for each in self.styles])
        return asked_S if judge == "asked style" else ~asked_S

    def _fit(self, style: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean [D] and weights [D, K] of a ridge regression to which concept it is, by the other styles."""
        known_SK = self._known_SK & self._judging(style, "linear classifier")[:, None]
        x_ND, which_N = self._true_SKD[known_SK].double(), known_SK.nonzero()[:, 1]
        mean_D = x_ND.mean(dim=0)
        x_ND = x_ND - mean_D
        wanted_NK = F.one_hot(which_N, len(self.concepts)).double()
        penalty = _RIDGE * len(x_ND) * x_ND.square().mean() * torch.eye(x_ND.shape[1])
        weights_DK = torch.linalg.solve(x_ND.T @ x_ND + penalty, x_ND.T @ (wanted_NK - wanted_NK.mean(dim=0)))
        return mean_D.float(), weights_DK.float()

    def _scaled(self, *parts: torch.Tensor) -> torch.Tensor:
        return torch.cat([part * scale for part, scale in zip(parts, self._scales, strict=True)])
