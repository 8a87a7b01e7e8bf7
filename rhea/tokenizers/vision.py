"""Pixels of any size to grids of codes and back: the resizing policy, the range of values, and the clips of a film.

The policy is part of a checkpoint, because the same picture resized differently has different codes. The defaults are
those of the released Emu3 processor (bicubic on 8-bit values, sides rounded to multiples of 8, truncation on the way
back).

Legend of shapes: H W pixels, h w codes, T frames, t clips.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image

from rhea.errors import InputError
from rhea.models.vision.tiles import OVERLAP, decode_in_tiles, encode_in_tiles
from rhea.models.vision.tokenizer import VisionTokenizer

ACTIVATIONS_AT_A_TIME = 2**26
"""Values of one full-resolution activation that may exist at once: many small pictures, or one large one."""


@dataclass(frozen=True, kw_only=True)
class PixelPolicy:
    """What is done to a picture before it is encoded, and to the pixels that come back."""

    min_pixels: int = 262144
    """Smaller pictures are enlarged to about this area."""
    max_pixels: int = 1048576
    """Larger pictures are reduced to at most this area."""
    max_film_pixels: int | None = None
    """The same for the frames of films, which have many; None as for pictures."""
    factor: int = 8
    """Sides become multiples of this; also the smallest side that is accepted."""
    max_aspect_ratio: float = 5.0
    shape: Literal["keep", "square"] = "keep"
    """``keep`` the aspect ratio, or crop the middle ``square`` and make it sqrt(max_pixels) wide."""
    rounding: Literal["truncate", "nearest"] = "truncate"
    """How decoded values become 8-bit."""

    def __post_init__(self) -> None:
        if self.factor < 1 or not self.factor**2 <= self.min_pixels <= self.max_pixels:
            raise InputError(
                f"pixel policy: factor {self.factor}, min_pixels {self.min_pixels}, max_pixels {self.max_pixels}; "
                "allowed is factor >= 1 and factor^2 <= min_pixels <= max_pixels"
            )
        if self.max_film_pixels is not None and self.max_film_pixels < self.factor**2:
            raise InputError(f"pixel policy: max_film_pixels {self.max_film_pixels} is under factor^2")

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) that a picture is resized to, both multiples of ``factor``.

        Raise InputError for a side under ``factor`` or an aspect ratio over ``max_aspect_ratio``. Rounding is Python's,
        to even, as released.
        """
        factor, long, short = self.factor, max(height, width), min(height, width)
        if short < factor:
            raise InputError(f"picture of {height} x {width} pixels: sides must be at least {factor}")
        if long > self.max_aspect_ratio * short:
            raise InputError(f"picture of {height} x {width} pixels: aspect ratio is over {self.max_aspect_ratio:g}")
        if self.shape == "square":
            side = math.isqrt(self.max_pixels) // factor * factor
            return side, side
        rounded = [max(factor, round(side / factor) * factor) for side in (height, width)]
        area = rounded[0] * rounded[1]
        if area > self.max_pixels:
            scale = math.sqrt(height * width / self.max_pixels)
            rounded = [max(factor, math.floor(side / scale / factor) * factor) for side in (height, width)]
        elif area < self.min_pixels:
            scale = math.sqrt(self.min_pixels / (height * width))
            rounded = [math.ceil(side * scale / factor) * factor for side in (height, width)]
        return rounded[0], rounded[1]

    def resize(self, pixels: np.ndarray) -> np.ndarray:
        """Return an 8-bit picture [H, W, 3] at its target size (bicubic); unchanged if it has it already."""
        height, width = pixels.shape[:2]
        target = self.target_size(height, width)
        if self.shape == "square":
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            pixels = pixels[top : top + side, left : left + side]
        if pixels.shape[:2] == target:
            return pixels
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        return np.asarray(picture.resize((target[1], target[0]), Image.Resampling.BICUBIC))

    def resize_film(self, frames: np.ndarray) -> np.ndarray:
        """Return 8-bit frames [T, H, W, 3] at their target size (bicubic)."""
        area, policy = self.max_film_pixels, self
        if area is not None:
            policy = replace(self, min_pixels=min(self.min_pixels, area), max_pixels=min(self.max_pixels, area))
        return np.stack([policy.resize(frame) for frame in frames])

    def to_tensor(self, pixels: np.ndarray) -> torch.Tensor:
        """Return 8-bit pixels [..., H, W, 3] as float32 in [-1, 1], [..., 3, H, W]."""
        values = torch.tensor(pixels, dtype=torch.float32).movedim(-1, -3)
        return (values / 255 - 0.5) / 0.5

    def to_uint8(self, values: torch.Tensor) -> np.ndarray:
        """Return decoded values [..., 3, H, W] as 8-bit pixels [..., H, W, 3], clipped."""
        scaled = (values.float() + 1) / 2 * 255
        if self.rounding == "nearest":
            scaled = scaled + 0.5
        return np.ascontiguousarray(scaled.clamp(0, 255).to(torch.uint8).movedim(-3, -1).cpu().numpy())


class VisionCodec:
    """A vision tokenizer with its pixel policy: numpy in, numpy out."""

    def __init__(self, model: VisionTokenizer, policy: PixelPolicy, tile: int | None = None) -> None:
        """With ``tile``, pictures of more codes along a side are coded in tiles of that side, approximately."""
        if policy.factor % model.config.spatial_factor:
            raise InputError(f"pixel policy's factor {policy.factor} is no multiple of {model.config.spatial_factor}")
        if tile is not None and tile <= OVERLAP:
            raise InputError(f"tiles of {tile} codes a side: they overlap by {OVERLAP}, so more than that are needed")
        self.model, self.policy, self.tile = model.eval(), policy, tile

    @property
    def spatial_factor(self) -> int:
        """Pixels per code along one side."""
        return self.model.config.spatial_factor

    @property
    def clip_frames(self) -> int:
        """Frames per latent frame."""
        return self.model.config.temporal_downsample

    def encode_picture(self, pixels: np.ndarray) -> np.ndarray:
        """Return codes int64 [h, w] of an 8-bit picture [H, W, 3] of any allowed size."""
        return self.encode_pictures([pixels])[0]

    def encode_pictures(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return codes of each picture; those of equal size after resizing are encoded together."""
        resized = [self.policy.resize(_checked(pixels, 3)) for pixels in pictures]
        return self._in_batches(resized, 1 / 3, lambda batch: self._encode(self.policy.to_tensor(batch)))

    def encode_film(self, frames: np.ndarray) -> np.ndarray:
        """Return codes int64 [t, h, w] of 8-bit frames [T, H, W, 3]; the last frame is repeated to fill a clip."""
        frames = _checked(frames, 4)
        resized = self.policy.resize_film(frames)
        missing = -len(resized) % self.clip_frames
        padded = np.concatenate([resized, np.repeat(resized[-1:], missing, axis=0)])
        clips = list(padded.reshape(-1, self.clip_frames, *padded.shape[1:]))
        codes = self._in_batches(clips, 1 / 3, lambda batch: self._encode(self.policy.to_tensor(batch))[:, 0])
        return np.stack(codes)

    def decode_picture(self, codes: np.ndarray) -> np.ndarray:
        """Return the 8-bit picture [H, W, 3] of codes [h, w]."""
        return self.decode_pictures([codes])[0]

    def decode_pictures(self, grids: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the picture of each grid of codes; grids of equal size are decoded together."""
        checked = [self._checked_codes(codes, 2) for codes in grids]
        return self._in_batches(checked, self.spatial_factor**2, self._decode)

    def decode_film(self, codes: np.ndarray, num_frames: int | None = None) -> np.ndarray:
        """Return 8-bit frames [num_frames, H, W, 3] of codes [t, h, w]; by default every frame of every clip."""
        grids = list(self._checked_codes(codes, 3))
        pixels = self.spatial_factor**2 * self.clip_frames
        frames = np.concatenate(self._in_batches(grids, pixels, lambda batch: self._decode(batch[:, None])))
        if num_frames is None:
            return frames
        if not len(frames) - self.clip_frames < num_frames <= len(frames):
            raise InputError(f"{num_frames} frames do not fit {len(grids)} latent frames of {self.clip_frames} frames")
        return frames[:num_frames]

    def _encode(self, pixels: torch.Tensor) -> np.ndarray:
        weight = self.model.encoder.conv_in.weight
        pixels = pixels.to(weight.device, weight.dtype)
        if pixels.ndim == 4 and self.tile is not None and max(pixels.shape[2:]) > self.tile * self.spatial_factor:
            codes = torch.stack([encode_in_tiles(self.model, picture, self.tile) for picture in pixels])
        else:
            codes = self.model.encode(pixels)
        return codes.cpu().numpy()

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        grids = torch.from_numpy(codes).to(self.model.encoder.conv_in.weight.device)
        if grids.ndim == 3 and self.tile is not None and max(grids.shape[1:]) > self.tile:
            return self.policy.to_uint8(torch.stack([decode_in_tiles(self.model, grid, self.tile) for grid in grids]))
        return self.policy.to_uint8(self.model.decode(grids))

    def _in_batches(
        self, items: Sequence[np.ndarray], pixels_per_value: float, function: Callable[[np.ndarray], np.ndarray]
    ) -> list[np.ndarray]:
        """Apply a batched function to items of mixed shapes, as many of one shape at a time as memory should hold."""
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, item in enumerate(items):
            groups[item.shape].append(index)
        results: dict[int, np.ndarray] = {}
        for shape, indices in groups.items():
            activations = self.model.config.base_channels * pixels_per_value * math.prod(shape)
            count = max(1, int(ACTIVATIONS_AT_A_TIME / activations))
            for start in range(0, len(indices), count):
                chosen = indices[start : start + count]
                results.update(zip(chosen, function(np.stack([items[i] for i in chosen])), strict=True))
        return [results[index] for index in range(len(items))]

    def _checked_codes(self, codes: np.ndarray, ndim: int) -> np.ndarray:
        codes, size = np.asarray(codes), self.model.config.codebook_size
        if codes.ndim != ndim or not codes.size or not np.issubdtype(codes.dtype, np.integer):
            raise InputError(f"codes of shape {codes.shape} and type {codes.dtype}: expected {ndim}-D integers")
        if codes.min() < 0 or codes.max() >= size:
            raise InputError(f"codes from {codes.min()} to {codes.max()}: allowed is 0 to {size - 1}")
        return codes.astype(np.int64)


def _checked(pixels: np.ndarray, ndim: int) -> np.ndarray:
    pixels = np.asarray(pixels)
    if pixels.ndim != ndim or pixels.shape[-1] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        expected = "[H, W, 3]" if ndim == 3 else "[T, H, W, 3]"
        raise InputError(
            f"pixels of shape {pixels.shape} and type {pixels.dtype}: expected uint8 {expected}, not empty"
        )
    return pixels
