"""Toy films of driving: a bar whose place is the distance from the centre line and whose motion is the yaw rate."""

from pathlib import Path

import numpy as np
from tiny_shards import sample

from rhea.config import to_dict
from rhea.documents.shards import write_shard
from rhea.worlds.driving.recording import Recording

FRAMES = 24


def toy_film(number: int) -> tuple[np.ndarray, Recording]:
    """Return frames uint8 [24, 16, 16, 3] and their truth."""
    rng = np.random.default_rng(number)
    place = 8 + 5 * np.sin(rng.uniform(0, 6) + rng.uniform(0.2, 0.5) * np.arange(FRAMES))
    pixels = np.clip(1.5 - np.abs(np.arange(16) - place[:, None]), 0, 1)
    frames = np.broadcast_to((255 * pixels).astype(np.uint8)[:, None, :, None], (FRAMES, 16, 16, 3)).copy()
    still = tuple(0.0 for _ in range(FRAMES))
    return frames, Recording(
        track_seed=0,
        clockwise=False,
        start=0,
        warm_up=0,
        fps=10.0,
        controls=tuple((0.0, 0.0, 0.0) for _ in range(FRAMES)),
        speed=still,
        yaw_rate=tuple(np.gradient(place).tolist()),
        offset=tuple((place - 8).tolist()),
    )


def toy_driving(folder: Path, films: int = 40) -> Path:
    """Write films 0, 1, 2, ..."""
    made = [toy_film(number) for number in range(films)]
    write_shard(
        folder / "d.tar", [sample(f"{n:03d}", frames, **to_dict(told)) for n, (frames, told) in enumerate(made)]
    )
    return folder
