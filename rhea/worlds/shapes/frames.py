"""Pictures and four-frame clips of the shapes world, for training a vision tokenizer.

Most of a picture is empty background. ``crop`` therefore cuts a window around one object, which holds the same edges,
corners and colours in a quarter of the pixels; whole pictures are shown again at the end of the training, so that the
norms of the network settle on what it will meet.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rhea.worlds.shapes.films import render_film, sample_film
from rhea.worlds.shapes.render import render
from rhea.worlds.shapes.scene import sample_scene


@dataclass(frozen=True, kw_only=True)
class ShapesFramesConfig:
    seed: int = 0
    num_pictures: int = 40
    """Pictures in a microbatch of crops; ``num_whole`` times fewer where they are shown whole."""
    num_clips: int = 10
    clip_frames: int = 4
    crop: int = 32
    """Side of the window in pixels; a multiple of 8."""
    whole_from: int = 1000
    """The microbatch from which on pictures and clips are shown whole."""
    whole_divisor: int = 4
    """How many times fewer whole pictures than crops a microbatch holds."""


class ShapesFrames:
    """Microbatches {"pictures", "clips"}, each a pure function of the seed and its number."""

    def __init__(self, config: ShapesFramesConfig) -> None:
        self.config = config
        self._next = 0

    def next_batch(self) -> dict[str, Any]:
        """Return "pictures" uint8 [B, H, W, 3], "clips" uint8 [B, T, H, W, 3] and their "description"."""
        config, number = self.config, self._next
        self._next += 1
        rng = np.random.default_rng([config.seed, number])
        whole = number >= config.whole_from
        divisor = config.whole_divisor if whole else 1
        pictures = [self._picture(rng, whole) for _ in range(config.num_pictures // divisor)]
        clips = [self._clip(rng, whole) for _ in range(config.num_clips // divisor)]
        description = f"shapes frames, seed {config.seed}, microbatch {number}"
        return {"pictures": np.stack(pictures), "clips": np.stack(clips), "description": description}

    def state_dict(self) -> dict[str, int]:
        """Return the number of the next microbatch."""
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from the microbatch that ``state_dict`` named."""
        self._next = state["next"]

    def _picture(self, rng: np.random.Generator, whole: bool) -> np.ndarray:
        scene = sample_scene(rng)
        picture = render(scene)
        thing = scene.objects[rng.integers(len(scene.objects))]
        return picture if whole else self._window(rng, picture, thing.x, thing.y)

    def _clip(self, rng: np.random.Generator, whole: bool) -> np.ndarray:
        film = sample_film(rng, num_frames=self.config.clip_frames)
        frames = render_film(film)
        x, y = film.centres[film.num_frames // 2, rng.integers(len(film.kinds))]
        return frames if whole else self._window(rng, frames, x, y)

    def _window(self, rng: np.random.Generator, pixels: np.ndarray, x: float, y: float) -> np.ndarray:
        """Cut [..., crop, crop, 3] out of [..., H, W, 3], the point anywhere in its middle half."""
        side, reach = self.config.crop, self.config.crop // 4
        left, top = (
            int(np.clip(centre - side / 2 + rng.integers(-reach, reach + 1), 0, extent - side))
            for centre, extent in ((x, pixels.shape[-2]), (y, pixels.shape[-3]))
        )
        return pixels[..., top : top + side, left : left + side, :]
