"""Pictures and clips for the rich model's vision tokenizer: shapes, emoji and driving in every microbatch.

Windows first, since a whole emoji is a few edges and much paper; whole pictures, now of one size, now of the other, in
the last part, so that the norms of the network settle on what it will meet.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from rhea.documents.mixture import draw_task, task_shares
from rhea.documents.shard_frames import ShardFrames
from rhea.documents.shards import Shards, find_shards
from rhea.errors import InputError
from rhea.worlds.emoji.source import EmojiSource, EmojiSourceConfig
from rhea.worlds.shapes.films import render_film, sample_film
from rhea.worlds.shapes.render import render
from rhea.worlds.shapes.scene import sample_scene

SIDES = (64, 128)
"""The sides of pictures in pixels; films have the first."""


@dataclass(frozen=True, kw_only=True)
class FrameShares:
    """How often each source is drawn, in proportion."""

    shapes: float = 0.0
    emoji: float = 0.0
    driving: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RichFramesConfig:
    emoji: str = ""
    """Folder of the emoji shards; only the training split is shown."""
    driving: str = ""
    """Folder of the films that `rhea record driving` wrote."""
    seed: int = 0
    crop: int = 64
    """Side of the windows in pixels, at most 64; a multiple of 8."""
    num_pictures: int = 12
    """Windows in a microbatch; whole pictures are as many fewer as they are larger, at least two."""
    num_clips: int = 2
    clip_frames: int = 4
    whole_from: int = 1000
    """The microbatch from which on everything is shown whole."""
    pictures: FrameShares = field(default_factory=lambda: FrameShares(shapes=0.15, emoji=0.65, driving=0.2))
    """Where those of 64 pixels come from, and the windows out of them."""
    large_pictures: FrameShares = field(default_factory=lambda: FrameShares(shapes=0.15, emoji=0.85))
    """The same of 128 pixels; films are not enlarged for it."""
    clips: FrameShares = field(default_factory=lambda: FrameShares(shapes=0.35, driving=0.65))


class FrameSource(Protocol):
    def picture(self, rng: np.random.Generator, side: int) -> np.ndarray:
        """Draw a picture, uint8 [side, side, 3]."""

    def clip(self, rng: np.random.Generator, num_frames: int) -> np.ndarray:
        """Draw neighbouring frames, uint8 [T, H, W, 3]."""


class RichFrames:
    """Microbatches {"pictures", "clips"}, each a pure function of the configuration and its number."""

    def __init__(self, config: RichFramesConfig) -> None:
        """Index the shards; InputError if there are none, and for windows that do not fit."""
        require_shards(emoji=config.emoji, driving=config.driving)
        if config.crop % 8 or not 0 < config.crop <= SIDES[0]:
            raise InputError(f"crop is {config.crop}; it must be a multiple of 8 up to {SIDES[0]}")
        self.config = config
        emoji = EmojiSource(EmojiSourceConfig(shards=config.emoji))
        self._sources: tuple[FrameSource, ...] = (
            ShapesStills(),
            ShardFrames(emoji.shards, emoji.numbers),
            ShardFrames(Shards(find_shards(config.driving))),
        )
        self._pictures = dict(zip(SIDES, map(task_shares, (config.pictures, config.large_pictures)), strict=True))
        self._clips = task_shares(config.clips)
        self._next = 0

    def next_batch(self) -> dict[str, Any]:
        """Return "pictures" uint8 [B, H, W, 3], "clips" uint8 [B, T, H, W, 3] and their "description"."""
        config, number = self.config, self._next
        self._next += 1
        rng = np.random.default_rng([config.seed, number])
        pictures, clips = [], []
        if number < config.whole_from:
            for _ in range(config.num_pictures):
                pictures.append(_window(rng, self._picture(rng, SIDES[rng.integers(len(SIDES))]), config.crop))
            for _ in range(config.num_clips):
                clips.append(_window(rng, self._clip(rng), config.crop))
        else:
            side = SIDES[number % len(SIDES)]
            pictures = [self._picture(rng, side) for _ in range(_fewer(config.num_pictures, config.crop, side))]
            clips = [self._clip(rng) for _ in range(_fewer(config.num_clips, config.crop, SIDES[0]))]
        description = f"rich frames, seed {config.seed}, microbatch {number}"
        return {"pictures": np.stack(pictures), "clips": np.stack(clips), "description": description}

    def state_dict(self) -> dict[str, int]:
        """Return the number of the next microbatch."""
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from the microbatch that ``state_dict`` named."""
        self._next = state["next"]

    def _picture(self, rng: np.random.Generator, side: int) -> np.ndarray:
        return self._sources[draw_task(rng, self._pictures[side])].picture(rng, side)

    def _clip(self, rng: np.random.Generator) -> np.ndarray:
        return self._sources[draw_task(rng, self._clips)].clip(rng, self.config.clip_frames)


class ShapesStills:
    """Scenes of the shapes world and the first moments of its films."""

    def picture(self, rng: np.random.Generator, side: int) -> np.ndarray:
        """Draw a scene, uint8 [side, side, 3]."""
        return render(sample_scene(rng, canvas=side))

    def clip(self, rng: np.random.Generator, num_frames: int) -> np.ndarray:
        """Draw a film, uint8 [T, 64, 64, 3]."""
        return render_film(sample_film(rng, num_frames=num_frames, canvas=SIDES[0]))


def require_shards(*, emoji: str | bool, driving: str | bool) -> None:
    """Raise InputError that says where shards come from, unless both folders are named (True: not needed)."""
    if not emoji:
        raise InputError(
            "no emoji shards are named: give --data.emoji FOLDER, WebDataset shards of pictures with the names and "
            "keywords that docs/data.md tells of"
        )
    if not driving:
        raise InputError(
            "no driving films are named: record some with `rhea record driving --output driving` and give "
            "--data.driving driving"
        )


def _fewer(count: int, crop: int, side: int) -> int:
    """Return how many pictures of this side have as many pixels as ``count`` windows."""
    return max(2, round(count * (crop / side) ** 2))


def _window(rng: np.random.Generator, pixels: np.ndarray, side: int) -> np.ndarray:
    """Cut [..., side, side, 3] out of [..., H, W, 3], anywhere."""
    top, left = (int(rng.integers(extent - side + 1)) for extent in pixels.shape[-3:-1])
    return pixels[..., top : top + side, left : left + side, :]
