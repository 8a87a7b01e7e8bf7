"""Pictures too large for memory, in overlapping tiles: bounded memory, and an approximation.

``VisionTokenizer.encode`` and ``decode`` already work in strips, exactly, and hold two or three full-size
activations. Tiles hold what one tile needs, however large the picture. They are not exact: norms and attention see
one tile instead of the whole, so flat regions may differ slightly in tone from tile to tile. Overlaps are blended
when decoding; when encoding, a code is taken from the tile in whose middle it lies deepest.

Legend of shapes: H W pixels, h w codes.
"""

import math
from collections.abc import Iterator

import torch

from rhea.errors import InputError
from rhea.models.vision.tokenizer import VisionTokenizer

OVERLAP = 8
"""Codes along a side that neighbouring tiles share unless told otherwise."""


@torch.no_grad()
def encode_in_tiles(
    model: VisionTokenizer, pixels_3HW: torch.Tensor, tile: int, overlap: int = OVERLAP
) -> torch.Tensor:
    """Return codes [h, w] of one picture in [-1, 1]; ``tile`` and ``overlap`` are sides in codes."""
    factor = model.config.spatial_factor
    height, width = (side // factor for side in pixels_3HW.shape[1:])
    codes_hw = torch.zeros(height, width, dtype=torch.int64, device=pixels_3HW.device)
    best_hw = torch.zeros(height, width, device=pixels_3HW.device)
    for rows, columns, depth in _tiles(height, width, tile, overlap, 1):
        pixels = pixels_3HW[:, rows.start * factor : rows.stop * factor, columns.start * factor : columns.stop * factor]
        deeper = depth.to(best_hw) > best_hw[rows, columns]
        codes_hw[rows, columns] = torch.where(deeper, model.encode(pixels[None])[0], codes_hw[rows, columns])
        best_hw[rows, columns] = torch.where(deeper, depth.to(best_hw), best_hw[rows, columns])
    return codes_hw


@torch.no_grad()
def decode_in_tiles(model: VisionTokenizer, codes_hw: torch.Tensor, tile: int, overlap: int = OVERLAP) -> torch.Tensor:
    """Return float32 pixels [3, H, W] of one picture, not clamped; ``tile`` and ``overlap`` are sides in codes."""
    factor, (height, width) = model.config.spatial_factor, codes_hw.shape
    sum_3HW = torch.zeros(model.config.out_channels, height * factor, width * factor, device=codes_hw.device)
    weight_HW = sum_3HW.new_zeros(sum_3HW.shape[1:])
    for rows, columns, depth in _tiles(height, width, tile, overlap, factor):
        pixels = model.decode(codes_hw[None, rows, columns])[0].float()
        area = tuple(slice(side.start * factor, side.stop * factor) for side in (rows, columns))
        weight = depth.to(sum_3HW).clamp(max=overlap * factor)
        sum_3HW[:, *area] += weight * pixels
        weight_HW[area] += weight
    return sum_3HW / weight_HW


def _tiles(
    height: int, width: int, tile: int, overlap: int, factor: int
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Yield rows and columns of every tile in codes, and how deep each of its places lies inside it."""
    if not 0 < overlap < tile:
        raise InputError(f"tiles of {tile} codes that overlap by {overlap}: allowed is 0 < overlap < tile")
    for rows in _spans(height, tile, overlap):
        for columns in _spans(width, tile, overlap):
            depths = (_depth(rows, height, factor), _depth(columns, width, factor))
            yield rows, columns, torch.minimum(depths[0][:, None], depths[1])


def _spans(length: int, tile: int, overlap: int) -> list[slice]:
    if length <= tile:
        return [slice(0, length)]
    count = math.ceil((length - overlap) / (tile - overlap))
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)]
    return [slice(start, start + tile) for start in starts]


def _depth(span: slice, length: int, factor: int) -> torch.Tensor:
    """Return the distance of each place to the nearest edge of the span that is not an edge of the picture."""
    place = torch.arange((span.stop - span.start) * factor) + 0.5
    before = place if span.start > 0 else torch.full_like(place, math.inf)
    after = place.flip(0) if span.stop < length else torch.full_like(place, math.inf)
    return torch.minimum(before, after).clamp(max=1e6)
