"""Edits change what they say and nothing else."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from rhea.errors import InputError
from rhea.worlds.shapes.edits import OPERATIONS, Additions, Edit, edit_scene, sample_edit
from rhea.worlds.shapes.grader import distance, read_picture
from rhea.worlds.shapes.language import Language
from rhea.worlds.shapes.render import render
from rhea.worlds.shapes.scene import HELD_OUT_KINDS, ShapeObject, bounding_radius, sample_scene

CHANGED = {"recolour": "colour", "reshape": "shape", "resize": "size"}


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_edits_change_only_what_they_say(operation: str, language: Language) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        edit = sample_edit(rng, language, operation=operation)
        before, after = set(edit.source.objects), set(edit.target.objects)
        gone, new = before - after, after - before
        assert not {thing.kind for thing in after} & set(HELD_OUT_KINDS)
        assert len({thing.kind for thing in after}) == len(edit.target.objects)
        assert (len(gone), len(new)) == {"remove": (1, 0), "add": (0, 1)}.get(operation, (1, 1))
        if operation in CHANGED:
            (old,), (changed,) = gone, new
            assert (old.x, old.y) == (changed.x, changed.y)
            differing = [name for name in old.kind._fields if getattr(old.kind, name) != getattr(changed.kind, name)]
            assert differing == [CHANGED[operation]]
            if language == "en":
                assert getattr(changed.kind, CHANGED[operation]) in edit.instruction
        if language == "en" and gone:
            assert next(iter(gone)).kind.shape in edit.instruction


def test_the_right_picture_passes_and_others_fail() -> None:
    rng = np.random.default_rng(1)
    for number in range(100):
        edit = sample_edit(rng, "en", operation=OPERATIONS[number % 5])
        objects = read_picture(render(edit.target))
        assert edit.is_right(objects)
        assert not edit.is_right(read_picture(render(edit.source)))
        if edit.operation == "add":
            added = edit.target.objects[-1]
            rest = [thing for thing in objects if thing.kind != added.kind]
            assert edit.is_right([*rest, replace(added, x=0.0, y=0.0)])
        elif edit.operation != "remove":
            moved = [ShapeObject(kind=thing.kind, x=thing.x + 5, y=thing.y) for thing in objects]
            assert not edit.is_right(moved)


def test_colour_tells_where_it_is_named_and_of_one_object_alone() -> None:
    rng = np.random.default_rng(2)
    for colour_tells in (True, False):
        for number in range(100):
            operation = OPERATIONS[number % 4]  # an addition is of nothing that is there
            edit = sample_edit(rng, "en", operation=operation, num_objects=3, colour_tells=colour_tells)
            (meant,) = set(edit.source.objects) - set(edit.target.objects)
            alone = [thing.kind.colour for thing in edit.source.objects].count(meant.kind.colour) == 1
            named = f"{meant.kind.colour} {meant.kind.shape}" in edit.instruction
            assert (alone and named) is colour_tells is edit.colour_tells
    assert sample_edit(rng, "en", operation="add", colour_tells=False).operation == "add"


def test_additions_in_the_roomiest_place_are_a_function_of_scene_and_kind() -> None:
    def nearest(edit: Edit) -> float:
        *others, added = edit.target.objects
        borders = min(added.x, added.y, 64 - added.x, 64 - added.y)
        return min(borders, *(distance(added, other) - bounding_radius(other.kind, 64) for other in others))

    roomier = 0
    for seed in range(30):
        scene = sample_scene(np.random.default_rng(seed), num_objects=3)
        usual, roomy = (
            edit_scene(np.random.default_rng(seed), scene, "add", "en", additions=additions)
            for additions in get_args(Additions)
        )
        if usual is not None and roomy is not None:
            assert nearest(roomy) > nearest(usual) - 3  # as far as a grid of 4 pixels may be from the best place
            roomier += nearest(roomy) > nearest(usual) + 1
        again = [edit_scene(np.random.default_rng(n), scene, "add", "en", additions="roomiest") for n in range(20)]
        assert len({(edit.target.objects[-1].x, edit.target.objects[-1].y) for edit in again if edit is not None}) <= 1
    assert roomier > 10


def test_impossible_edits_are_input_errors() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="impossible"):
        sample_edit(rng, "en", operation="remove", num_objects=1)
    with pytest.raises(InputError, match="impossible"):
        sample_edit(rng, "en", operation="add", num_objects=4)
    with pytest.raises(InputError, match="known are"):
        sample_edit(rng, "en", operation="rotate")
