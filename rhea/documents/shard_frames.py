"""Single pictures and short clips out of shards, for training a vision tokenizer: no captions, no tasks, any order.

Everything drawn comes from the random generator that is handed in, so whoever owns it decides what is repeatable.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image

from rhea.documents.shards import Shards
from rhea.errors import InputError

FILMS_KEPT = 512
"""Decoded films that stay in memory: 32 frames of 64 x 64 are 0.4 MB, and decoding them for four frames is a waste."""


class ShardFrames:
    """Draws from shards of pictures, of films, or of both."""

    def __init__(self, shards: Shards, numbers: Sequence[int] | None = None) -> None:
        """``numbers``: the samples to draw from; all by default."""
        self.shards = shards
        self.numbers = range(len(shards)) if numbers is None else numbers
        self._visual = lru_cache(FILMS_KEPT)(self._decode)

    def picture(self, rng: np.random.Generator, side: int | None = None) -> np.ndarray:
        """Draw a picture, or any frame of a film, uint8 [H, W, 3]; with ``side``, resized to that square (bicubic)."""
        frames = self._visual(self._draw(rng))
        pixels = frames[rng.integers(len(frames))]
        if side is None or pixels.shape[:2] == (side, side):
            return pixels
        return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))

    def clip(self, rng: np.random.Generator, num_frames: int) -> np.ndarray:
        """Draw so many neighbouring frames of a film, uint8 [T, H, W, 3]; InputError for a film that has fewer."""
        number = self._draw(rng)
        frames = self._visual(number)
        if len(frames) < num_frames:
            raise InputError(f"{self.shards.name(number)} has {len(frames)} frames; {num_frames} are wanted")
        first = rng.integers(len(frames) - num_frames + 1)
        return frames[first : first + num_frames]

    def _draw(self, rng: np.random.Generator) -> int:
        return self.numbers[int(rng.integers(len(self.numbers)))]

    def _decode(self, number: int) -> np.ndarray:
        """Return a sample's frames, uint8 [T, H, W, 3]; those of a picture are one."""
        visual = self.shards.visual(number)
        return visual[None] if isinstance(visual, np.ndarray) else visual.frames
