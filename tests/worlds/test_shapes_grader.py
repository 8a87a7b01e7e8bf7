"""The grader: exact on clean pictures, steady under blur and noise, and not fooled by debris."""

from collections import Counter

import cv2
import numpy as np
import pytest

from rhea.errors import InputError
from rhea.worlds.shapes.films import constant_velocity, render_film, sample_film
from rhea.worlds.shapes.grader import (
    UNKNOWN,
    distance,
    read_film,
    read_picture,
    same_kinds,
    same_scene,
    score_film,
)
from rhea.worlds.shapes.render import render
from rhea.worlds.shapes.scene import COLOURS, Kind, Scene, ShapeObject, sample_scene


def scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, num_objects=1 + i % 4, held_out="include") for i in range(count)]


def test_exact_on_two_thousand_clean_scenes() -> None:
    for scene in scenes(2000):
        assert same_scene(read_picture(render(scene)), scene, tolerance=0.1)


def test_exact_on_other_canvases() -> None:
    rng = np.random.default_rng(0)
    for canvas in (48, 128):
        for _ in range(20):
            scene = sample_scene(rng, canvas=canvas)
            assert same_scene(read_picture(render(scene)), scene, tolerance=0.2)


@pytest.mark.parametrize("damage", ["blur", "noise", "halved"])
def test_steady_under_damage(damage: str) -> None:
    rng = np.random.default_rng(1)
    for scene in scenes(150, seed=1):
        picture = render(scene)
        if damage == "blur":
            picture = cv2.GaussianBlur(picture, (0, 0), 1.2)
        elif damage == "noise":
            picture = np.clip(picture + rng.normal(0, 15, picture.shape), 0, 255).astype(np.uint8)
        else:
            picture = cv2.resize(cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA), (64, 64))
        assert same_scene(read_picture(picture), scene, tolerance=0.5)


def test_debris_and_malformed_objects_cost_the_point() -> None:
    scene = Scene(objects=(ShapeObject(kind=Kind("red", "circle", "large"), x=20, y=20),))
    debris = render(scene)
    debris[44:48, 40:60] = COLOURS["blue"]
    assert [thing.kind.shape for thing in read_picture(debris)] == ["circle", UNKNOWN]
    assert not same_kinds(read_picture(debris), scene)
    halves = render(scene)
    orange = render(Scene(objects=(ShapeObject(kind=Kind("orange", "circle", "large"), x=20, y=20),)))
    halves[:, :20] = orange[:, :20]
    assert not same_kinds(read_picture(halves), scene)
    assert read_picture(np.full((64, 64, 3), 245, np.uint8)) == ()


def test_objects_that_touch_are_parted() -> None:
    for other, apart in (("blue", 13), ("red", 14)):
        things = (
            ShapeObject(kind=Kind("red", "circle", "small"), x=20, y=30),
            ShapeObject(kind=Kind(other, "circle", "small"), x=20 + apart, y=30),
        )
        picture = cv2.GaussianBlur(render(Scene(objects=things)), (0, 0), 0.8)
        assert cv2.connectedComponents((picture.min(axis=2) < 160).astype(np.uint8))[0] == 2
        assert same_scene(read_picture(picture), Scene(objects=things), tolerance=1)


def test_comparisons_notice_every_difference() -> None:
    scene = scenes(3)[2]
    objects = list(scene.objects)
    moved = [ShapeObject(kind=objects[0].kind, x=objects[0].x + 3, y=objects[0].y), *objects[1:]]
    assert same_scene(objects[::-1], scene, tolerance=0.1)
    assert same_kinds(moved, scene)
    assert not same_scene(moved, scene, tolerance=2.5)
    assert same_scene(moved, scene, tolerance=3.5)
    assert not same_kinds(objects[1:], scene)
    assert not same_scene([*objects, objects[0]], scene, tolerance=1)
    assert distance(objects[0], moved[0]) == 3


def test_films_give_one_track_per_object() -> None:
    rng = np.random.default_rng(2)
    for i in range(20):
        film = sample_film(rng, num_objects=1 + i % 4)
        tracks = read_film(render_film(film))
        assert Counter(track.kind for track in tracks) == Counter(film.kinds)
        for track in tracks:
            assert track.seen.all()
            truth = film.centres[:, film.kinds.index(track.kind)]
            assert np.linalg.norm(track.centres - truth, axis=-1).max() < 0.35


def test_film_score_of_truth_and_of_a_frozen_film() -> None:
    film = sample_film(np.random.default_rng(4), num_objects=2)
    frames = render_film(film)
    perfect = score_film(frames, film.kinds, film.centres, start=4)
    assert perfect.kinds_exact
    assert perfect.found == 1
    assert perfect.centre_error < 0.2
    frozen = frames.copy()
    frozen[4:] = frames[3]
    expected = np.linalg.norm(film.centres[4:] - film.centres[3], axis=-1).mean()
    assert score_film(frozen, film.kinds, film.centres, start=4).centre_error == pytest.approx(expected, abs=0.2)
    empty = np.full_like(frames, 245)
    lost = score_film(empty, film.kinds, film.centres, start=4)
    assert (lost.found, lost.kinds_exact) == (0, False)
    assert lost.centre_error == pytest.approx(expected, abs=1e-9)
    assert constant_velocity(film.centres[:4], 12).shape == film.centres[4:].shape


def test_other_arrays_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(64, 32, 3\)"):
        read_picture(np.zeros((64, 32, 3), np.uint8))
