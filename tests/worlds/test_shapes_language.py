"""Captions say what is true and read back as what they say."""

from collections import Counter

import numpy as np
import pytest

from rhea.worlds.shapes.films import sample_film
from rhea.worlds.shapes.language import (
    RELATION_MARGIN,
    Language,
    Relation,
    Selector,
    caption,
    describe,
    direction_of,
    film_caption,
    possible_styles,
    read_caption,
)
from rhea.worlds.shapes.scene import HELD_OUT_KINDS, Kind, Scene, ShapeObject, sample_scene

LANGUAGES: tuple[Language, ...] = ("en", "zh")


def pair(x: float = 40.0) -> Scene:
    red, blue = Kind("red", "circle", "small"), Kind("blue", "star", "large")
    return Scene(objects=(ShapeObject(kind=red, x=16, y=20), ShapeObject(kind=blue, x=x, y=45)))


def test_captions_hold_for_their_own_scene_and_not_for_others() -> None:
    rng = np.random.default_rng(0)
    styles: Counter[str] = Counter()
    for number in range(1500):
        scene = sample_scene(rng)
        language = LANGUAGES[number % 2]
        for style in possible_styles(scene):
            said = caption(rng, scene, language, style)
            styles[style] += 1
            assert said.satisfied_by(scene.objects)
            assert not said.satisfied_by(scene.objects[1:])
            named = read_caption(said.text)
            assert not set(named) & set(HELD_OUT_KINDS)
            if style == "sizeless":
                assert not named
            elif style == "plain" or style == "ordered" or len(scene.objects) == 2:
                assert named == Counter(scene.kinds)
            mirrored = [ShapeObject(kind=t.kind, x=63 - t.x, y=63 - t.y) for t in scene.objects]
            assert said.satisfied_by(mirrored) == (not said.relations and not said.places)
            assert all(relation.holds(scene.objects, RELATION_MARGIN) for relation in said.relations)
    assert set(styles) == {"plain", "sizeless", "ordered", "related", "placed"}
    assert min(styles.values()) > 300


def test_of_several_styles_one_that_the_scene_allows_is_drawn() -> None:
    rng = np.random.default_rng(0)
    said = [caption(rng, pair(), "en", ("ordered", "ordered", "ordered", "placed")) for _ in range(200)]
    assert 120 < sum(bool(each.relations) for each in said) < 180
    assert all(bool(each.relations) != bool(each.places) for each in said)
    alone = Scene(objects=pair().objects[:1])
    assert caption(rng, alone, "en", ("ordered",)).satisfied_by(alone.objects)


def test_captions_without_places_name_things_in_reading_order() -> None:
    low, right, left = (Kind(colour, "circle", "small") for colour in ("red", "blue", "green"))
    places = {low: (10, 50), right: (50, 21), left: (16, 22)}
    scene = Scene(objects=tuple(ShapeObject(kind=kind, x=x, y=y) for kind, (x, y) in places.items()))
    for style in ("plain", "sizeless"):
        said = [claim.colour for claim in caption(np.random.default_rng(0), scene, "en", style).objects]  # type: ignore[arg-type]
        assert said == ["green", "blue", "red"]


def test_a_relation_in_order_names_things_as_they_are_drawn_or_swaps_its_two() -> None:
    rng, swapped, told = np.random.default_rng(0), 0, 0
    for _ in range(300):
        scene = sample_scene(rng, num_objects=3)
        if "related" not in possible_styles(scene):
            continue
        said = caption(rng, scene, "en", "related_in_order")
        assert said.satisfied_by(scene.objects)
        assert "related_in_order" not in possible_styles(scene)
        drawn = [Selector(*each) for each in caption(rng, scene, "en", "plain").objects]
        moved = [one for one, other in zip(said.objects, drawn, strict=True) if one != other]
        assert not moved or set(moved) == {said.relations[0].first, said.relations[0].second}
        assert not moved or said.relations[0].word in ("above", "below")
        told, swapped = told + 1, swapped + bool(moved)
    assert 0.15 < swapped / told < 0.4


def test_an_order_too_close_to_call_is_not_stated() -> None:
    assert "ordered" in possible_styles(pair())
    assert "ordered" not in possible_styles(pair(x=18.0))


def test_wording() -> None:
    rng = np.random.default_rng(0)
    english = {caption(rng, pair(), "en", "ordered").text for _ in range(50)}
    chinese = {caption(rng, pair(), "zh", "related").text for _ in range(50)}
    assert "From left to right: a small red circle and a large blue star." in english
    assert "一个红色小圆形在一个蓝色大星形的左边。" in chinese
    assert describe(pair(), "en") == "a small red circle and a large blue star"
    assert describe(pair(), "zh") == "一个红色小圆形和一个蓝色大星形"
    assert Selector(colour="orange").indefinite("en") == "an orange object"
    assert Selector(colour="orange").indefinite("zh") == "一个橙色物体"


def test_relation_needs_both_objects() -> None:
    relation = Relation(Selector("red"), "left", Selector("blue"))
    assert relation.holds(pair().objects)
    assert not relation.holds(pair().objects, margin=30)
    assert not relation.holds(pair().objects[:1])


def test_selectors_are_matched_one_to_one() -> None:
    said = caption(np.random.default_rng(0), pair(), "en", "sizeless")
    red, blue = pair().objects
    assert said.satisfied_by([blue, red])
    assert not said.satisfied_by([red, red])


@pytest.mark.parametrize("language", LANGUAGES)
def test_film_captions(language: Language) -> None:
    rng = np.random.default_rng(1)
    directed = 0
    for _ in range(100):
        film = sample_film(rng, num_frames=1)
        said = film_caption(rng, film, language)
        assert read_caption(said.text) == Counter(film.kinds)
        directed += bool(said.motions)
        for motion in said.motions:
            assert direction_of(film.velocities[0, film.kinds.index(Kind(*motion.who))]) == motion.direction
    assert 25 < directed < 75


def test_directions() -> None:
    assert direction_of(np.array([1.0, 0.1])) == "right"
    assert direction_of(np.array([-1.0, 0.1])) == "left"
    assert direction_of(np.array([-1.0, -0.1])) == "left"
    assert direction_of(np.array([0.1, -1.0])) == "up"
    assert direction_of(np.array([1.0, 1.0])) == "down right"
