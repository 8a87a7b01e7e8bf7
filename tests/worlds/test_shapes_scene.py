"""Scenes: reproducible, uncrowded, and free of the held-out kinds."""

from collections import Counter
from itertools import combinations
from math import hypot

import numpy as np
import pytest

from rhea.errors import InputError
from rhea.worlds.shapes.language import caption, read_caption
from rhea.worlds.shapes.scene import (
    ALL_KINDS,
    COLOURS,
    HELD_OUT_KINDS,
    SHAPES,
    SIZES,
    STILL_GAP,
    Scene,
    allowed_kinds,
    bounding_radius,
    centre_bounds,
    sample_scene,
)


def test_held_out_kinds_leave_every_attribute_in_training() -> None:
    assert len(set(HELD_OUT_KINDS)) == 10
    assert set(HELD_OUT_KINDS) < set(ALL_KINDS)
    training = allowed_kinds("exclude")
    assert set(training) | set(HELD_OUT_KINDS) == set(ALL_KINDS)
    for words, position in ((COLOURS, 0), (SHAPES, 1), (SIZES, 2)):
        assert {kind[position] for kind in training} == set(words)
    assert {kind.colour for kind in HELD_OUT_KINDS} == set(COLOURS)
    assert {kind.shape for kind in HELD_OUT_KINDS} == set(SHAPES)


def test_training_never_shows_or_names_a_held_out_kind() -> None:
    rng = np.random.default_rng(11)
    shown: Counter[object] = Counter()
    named: Counter[object] = Counter()
    for number in range(20_000):
        scene = sample_scene(rng)
        shown.update(scene.kinds)
        if number % 4 == 0:
            named.update(read_caption(caption(rng, scene, "en" if number % 8 else "zh").text))
    for seen in (shown, named):
        assert not set(seen) & set(HELD_OUT_KINDS)
        assert set(seen) == set(allowed_kinds("exclude"))


def test_only_held_out_kinds_on_request() -> None:
    rng = np.random.default_rng(1)
    for number in range(200):
        assert set(sample_scene(rng, num_objects=1 + number % 4, held_out="only").kinds) <= set(HELD_OUT_KINDS)


def test_objects_keep_their_distance_and_differ() -> None:
    rng = np.random.default_rng(2)
    for number in range(800):
        continuous = number % 2 == 1
        scene = sample_scene(rng, num_objects=1 + number // 2 % 4, held_out="include", continuous=continuous)
        assert len(set(scene.kinds)) == len(scene.objects)
        for thing in scene.objects:
            low, high = centre_bounds(thing.kind)
            assert low <= min(thing.x, thing.y)
            assert max(thing.x, thing.y) <= high
            assert continuous or (thing.x.is_integer() and thing.y.is_integer())
        for a, b in combinations(scene.objects, 2):
            assert hypot(a.x - b.x, a.y - b.y) >= bounding_radius(a.kind) + bounding_radius(b.kind) + STILL_GAP


def test_same_seed_same_scenes() -> None:
    def scenes(seed: int) -> list[Scene]:
        rng = np.random.default_rng(seed)
        return [sample_scene(rng) for _ in range(50)]

    assert scenes(3) == scenes(3)
    assert scenes(3) != scenes(4)


def test_crowded_corner_of_the_space_still_terminates() -> None:
    large = [kind for kind in ALL_KINDS if kind.size == "large" and kind.shape in ("star", "triangle")]
    scene = sample_scene(np.random.default_rng(5), num_objects=4, held_out="include", kinds=large)
    assert len(scene.objects) == 4


def test_impossible_scenes_are_input_errors() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="1 to 4"):
        sample_scene(rng, num_objects=5)
    with pytest.raises(InputError, match="different kinds"):
        sample_scene(rng, num_objects=2, kinds=ALL_KINDS[:1])
    with pytest.raises(InputError, match="held_out"):
        sample_scene(rng, held_out="never")  # type: ignore[arg-type]
