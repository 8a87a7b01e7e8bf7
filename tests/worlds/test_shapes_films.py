"""Films: nothing overlaps, nothing leaves, energy stays, and the trivial baselines are what they say."""

from itertools import combinations

import numpy as np
import pytest

from rhea.worlds.shapes.films import (
    FILM_GAP,
    SPEED_RANGE,
    Film,
    constant_velocity,
    copy_last,
    render_film,
    sample_clips,
    sample_film,
    simulate,
)
from rhea.worlds.shapes.scene import Kind, Scene, ShapeObject, bounding_radius, centre_bounds

ROUNDING = 1e-6


def films(count: int, num_frames: int = 48) -> list[Film]:
    rng = np.random.default_rng(3)
    return [sample_film(rng, num_objects=1 + i % 4, num_frames=num_frames, held_out="include") for i in range(count)]


def test_objects_never_overlap_and_stay_inside() -> None:
    for film in films(200):
        for i, kind in enumerate(film.kinds):
            low, high = centre_bounds(kind)
            assert film.centres[:, i].min() >= low - ROUNDING
            assert film.centres[:, i].max() <= high + ROUNDING
        for i, j in combinations(range(len(film.kinds)), 2):
            apart = np.linalg.norm(film.centres[:, i] - film.centres[:, j], axis=-1)
            room = bounding_radius(film.kinds[i]) + bounding_radius(film.kinds[j]) + FILM_GAP
            assert apart.min() >= room - ROUNDING


def test_energy_is_conserved_through_all_collisions() -> None:
    bounced = 0
    for film in films(200):
        masses = np.array([bounding_radius(kind) ** 2 for kind in film.kinds])
        energy = ((film.velocities**2).sum(axis=-1) * masses).sum(axis=-1)
        np.testing.assert_allclose(energy, energy[0], rtol=1e-9)
        bounced += len(film.kinds) > 1 and not np.allclose(abs(film.velocities), abs(film.velocities[0]))
    assert bounced > 50


def test_speeds_at_the_first_frame() -> None:
    speeds = np.concatenate([np.linalg.norm(film.velocities[0], axis=-1) for film in films(100, num_frames=1)])
    assert SPEED_RANGE[0] <= speeds.min()
    assert speeds.max() <= SPEED_RANGE[1]
    assert speeds.max() - speeds.min() > 1.8


def test_head_on_collision_of_equals_swaps_velocities() -> None:
    things = tuple(ShapeObject(kind=Kind(c, "circle", "small"), x=x, y=32.0) for c, x in (("red", 20), ("blue", 44)))
    film = simulate(Scene(objects=things), np.array([[2.0, 0.0], [-1.0, 0.0]]), num_frames=8)
    np.testing.assert_allclose(film.velocities[-1], [[-1.0, 0.0], [2.0, 0.0]], atol=1e-12)
    meeting = (24 - 2 * bounding_radius(things[0].kind) - FILM_GAP) / 3
    assert film.centres[-1, 0, 0] == pytest.approx(20 + 2 * meeting - (7 - meeting))


def test_a_wall_reflects_the_one_component() -> None:
    thing = ShapeObject(kind=Kind("red", "circle", "small"), x=50.0, y=20.0)
    film = simulate(Scene(objects=(thing,)), np.array([[2.5, 1.0]]), num_frames=6)
    high = centre_bounds(thing.kind)[1]
    np.testing.assert_allclose(film.velocities[-1], [[-2.5, 1.0]])
    np.testing.assert_allclose(film.centres[-1], [[2 * high - 62.5, 25.0]])


def test_rendered_film_shows_its_scenes() -> None:
    film = films(3, num_frames=5)[2]
    frames = render_film(film)
    assert frames.shape == (5, 64, 64, 3)
    assert film.scene(4).kinds == film.kinds
    assert not np.array_equal(frames[0], frames[4])
    clips = sample_clips(np.random.default_rng(1), 3)
    assert clips.shape == (3, 4, 64, 64, 3)
    np.testing.assert_array_equal(clips, sample_clips(np.random.default_rng(1), 3))


def test_trivial_baselines() -> None:
    known = np.array([[[1.0, 2.0]], [[2.0, 4.0]]])
    np.testing.assert_array_equal(copy_last(known, 2), [[[2.0, 4.0]], [[2.0, 4.0]]])
    np.testing.assert_array_equal(constant_velocity(known, 2), [[[3.0, 6.0]], [[4.0, 8.0]]])
