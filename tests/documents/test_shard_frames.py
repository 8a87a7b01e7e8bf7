"""Frames of shards: what is drawn depends on the generator alone, and only from the samples that are named."""

from pathlib import Path

import numpy as np
import pytest
from tiny_shards import noise, pictures, sample

from rhea.documents.shard_frames import ShardFrames
from rhea.documents.shards import Shards, write_shard
from rhea.errors import InputError


def films(folder: Path) -> Shards:
    write_shard(folder / "films.tar", [sample(f"f{n}", noise(n, 6, 16, 16)) for n in range(2)])
    return Shards([folder / "films.tar"])


def test_a_clip_is_neighbouring_frames(tmp_path: Path) -> None:
    frames, rng = ShardFrames(films(tmp_path)), np.random.default_rng(0)
    possible = {noise(n, 6, 16, 16)[first : first + 4].tobytes() for n in range(2) for first in range(3)}
    assert {frames.clip(rng, 4).tobytes() for _ in range(100)} == possible


def test_a_film_gives_any_of_its_frames_as_a_picture(tmp_path: Path) -> None:
    frames, rng = ShardFrames(films(tmp_path)), np.random.default_rng(0)
    drawn = {frames.picture(rng).tobytes() for _ in range(200)}
    assert drawn == {frame.tobytes() for n in range(2) for frame in noise(n, 6, 16, 16)}


def test_a_film_that_is_too_short_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sample 'f[01]' of .* has 6 frames; 8 are wanted"):
        ShardFrames(films(tmp_path)).clip(np.random.default_rng(0), 8)


def test_only_the_named_samples_are_drawn_resized(tmp_path: Path) -> None:
    frames = ShardFrames(Shards([pictures(tmp_path, shards=1) / "p-0.tar"]), numbers=(3,))
    rng = np.random.default_rng(0)
    assert all(np.array_equal(frames.picture(rng), noise(3, 16, 24)) for _ in range(8))
    assert frames.picture(rng, side=8).shape == (8, 8, 3)
