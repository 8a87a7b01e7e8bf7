"""Edits: a scene, an instruction in words, and the scene that follows from it with everything else left as it was."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rhea.errors import InputError
from rhea.worlds.shapes.grader import distance, same_scene
from rhea.worlds.shapes.language import CHINESE, Language, Selector, finish, pick
from rhea.worlds.shapes.scene import (
    CANVAS,
    COLOURS,
    MAX_OBJECTS,
    SHAPES,
    SIZES,
    STILL_GAP,
    HeldOut,
    Kind,
    Scene,
    ShapeObject,
    allowed_kinds,
    bounding_radius,
    centre_bounds,
    sample_scene,
)

Additions = Literal["anywhere", "roomiest"]
"""Where an added object lies: anywhere that is free, or in the middle of the widest free place."""
OPERATIONS = ("recolour", "reshape", "resize", "remove", "add")
_ATTRIBUTES: dict[str, tuple[str, Sequence[str]]] = {
    "recolour": ("colour", tuple(COLOURS)),
    "reshape": ("shape", tuple(SHAPES)),
    "resize": ("size", tuple(SIZES)),
}
_PHRASINGS: dict[tuple[str, Language], tuple[str, ...]] = {
    ("recolour", "en"): ("make {0} {1}", "change the colour of {0} to {1}", "paint {0} {1}"),
    ("recolour", "zh"): ("把{0}变成{1}", "将{0}的颜色改为{1}"),
    ("reshape", "en"): ("turn {0} into a {1}", "change {0} to a {1}"),
    ("reshape", "zh"): ("把{0}变成{1}", "将{0}的形状改为{1}"),
    ("resize", "en"): ("make {0} {1}", "change the size of {0} to {1}"),
    ("resize", "zh"): ("把{0}变{1}", "将{0}的大小改为{1}"),
    ("remove", "en"): ("remove {0}", "delete {0}", "take {0} away"),
    ("remove", "zh"): ("去掉{0}", "把{0}删除"),
    ("add", "en"): ("add {0}", "put {0} into the picture"),
    ("add", "zh"): ("加上{0}", "在图中添加{0}"),
}


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What was, what is asked for, and what must come out."""

    operation: str
    source: Scene
    instruction: str
    target: Scene
    colour_tells: bool = True
    """Whether the colour alone tells which object is meant: the instruction names it and no other object has it."""

    def is_right(self, objects: Sequence[ShapeObject], *, tolerance: float = 2.0) -> bool:
        """Grade the objects of an edited picture: the right kinds, each where it was, to ``tolerance`` pixels.

        An added object may be anywhere, because the instruction does not say where.
        """
        if self.operation != "add":
            return same_scene(objects, self.target, tolerance=tolerance)
        added = self.target.objects[-1].kind
        rest = [thing for thing in objects if thing.kind != added]
        return len(rest) == len(objects) - 1 and same_scene(rest, self.source, tolerance=tolerance)


def sample_edit(
    rng: np.random.Generator,
    language: Language,
    *,
    operation: str | None = None,
    num_objects: int | Sequence[int] | None = None,
    colour_tells: bool | None = None,
    additions: Additions = "anywhere",
    held_out: HeldOut = "exclude",
    canvas: int = CANVAS,
) -> Edit:
    """Draw a scene and an edit of it; every operation is equally frequent unless one is given.

    ``num_objects``: of the scene. One of several is drawn uniformly from those that the operation is possible with.
    ``colour_tells``: whether the edit's should be so, where it is not an addition; None: as it comes. ``additions``:
    where an added object lies.
    """
    if operation is not None and operation not in OPERATIONS:
        raise InputError(f"edit {operation!r}; known are {list(OPERATIONS)}")
    operation = operation or pick(rng, OPERATIONS)
    if num_objects is not None:
        possible = possible_numbers(operation, [num_objects] if isinstance(num_objects, int) else num_objects)
        num_objects = possible[0] if len(possible) == 1 else int(rng.choice(possible))
    while True:
        scene = sample_scene(rng, num_objects=num_objects, held_out=held_out, canvas=canvas)
        edit = edit_scene(rng, scene, operation, language, additions=additions, held_out=held_out)
        if edit is not None and (operation == "add" or colour_tells in (None, edit.colour_tells)):
            return edit


_IMPOSSIBLE = {"remove": (1,), "add": (MAX_OBJECTS,)}
"""An empty picture and a fifth object do not exist in this world."""


def possible_numbers(operation: str, numbers: Sequence[int]) -> list[int]:
    """Return those numbers of objects that an edit can begin with; InputError if there are none."""
    possible = [number for number in numbers if number not in _IMPOSSIBLE.get(operation, ())]
    if not possible:
        raise InputError(
            f"edit {operation!r} is impossible for scenes of {' or '.join(map(str, numbers)) or 'no'} objects"
        )
    return possible


def edit_scene(
    rng: np.random.Generator,
    scene: Scene,
    operation: str,
    language: Language,
    *,
    additions: Additions = "anywhere",
    held_out: HeldOut = "exclude",
) -> Edit | None:
    """Draw an edit of the given scene; None where the operation is impossible or would crowd the scene."""
    count = len(scene.objects)
    if count in _IMPOSSIBLE.get(operation, ()):
        return None
    allowed = [kind for kind in allowed_kinds(held_out) if kind not in scene.kinds]
    if operation == "add":
        return _add(rng, scene, allowed, language, additions)
    index = int(rng.integers(count))
    thing = scene.objects[index]
    others = scene.objects[:index] + scene.objects[index + 1 :]
    if operation == "remove":
        return _edit(
            rng, operation, scene, replace(scene, objects=others), language, _name(rng, thing.kind, scene.kinds)
        )
    attribute, values = _ATTRIBUTES[operation]
    value = pick(rng, [value for value in values if value != getattr(thing.kind, attribute)])
    changed = replace(thing, kind=thing.kind._replace(**{attribute: value}))
    if changed.kind not in allowed or not _fits(changed, others, scene.canvas):
        return None
    target = replace(scene, objects=(*scene.objects[:index], changed, *scene.objects[index + 1 :]))
    return _edit(rng, operation, scene, target, language, _name(rng, thing.kind, scene.kinds), value)


def _add(
    rng: np.random.Generator, scene: Scene, allowed: Sequence[Kind], language: Language, additions: Additions
) -> Edit | None:
    kind = allowed[int(rng.integers(len(allowed)))]
    low, high = centre_bounds(kind, scene.canvas)
    drawn = rng.integers(int(np.ceil(low)), int(high) + 1, size=(16, 2)).tolist()
    for x, y in drawn if additions == "anywhere" else [_roomiest(scene)]:
        thing = ShapeObject(kind=kind, x=float(x), y=float(y))
        if _fits(thing, scene.objects, scene.canvas):
            target = replace(scene, objects=(*scene.objects, thing))
            return _edit(rng, "add", scene, target, language, Selector(*kind))
    return None


def _roomiest(scene: Scene) -> tuple[int, int]:
    """Return the centre of the largest circle that touches neither an object nor a border, on a grid of 4 pixels."""

    def room(place: tuple[int, int]) -> float:
        x, y = place
        borders = min(x, y, scene.canvas - x, scene.canvas - y)
        others = (float(np.hypot(x - o.x, y - o.y)) - bounding_radius(o.kind, scene.canvas) for o in scene.objects)
        return min(borders, *others)

    steps = range(4, scene.canvas, 4)
    return max(((x, y) for y in steps for x in steps), key=room)


def _edit(
    rng: np.random.Generator,
    operation: str,
    source: Scene,
    target: Scene,
    language: Language,
    who: Selector,
    value: str = "",
) -> Edit:
    name = who.indefinite(language) if operation == "add" else who.definite(language)
    value = CHINESE[value] if value and language == "zh" else value
    text = finish(rng, pick(rng, _PHRASINGS[operation, language]).format(name, value), language)
    tells = who.colour is not None and [kind.colour for kind in source.kinds].count(who.colour) == 1
    return Edit(operation=operation, source=source, instruction=text, target=target, colour_tells=tells)


def _fits(thing: ShapeObject, others: Sequence[ShapeObject], canvas: int) -> bool:
    low, high = centre_bounds(thing.kind, canvas)
    radius = bounding_radius(thing.kind, canvas) + STILL_GAP
    inside = low <= min(thing.x, thing.y) and max(thing.x, thing.y) <= high
    return inside and all(distance(thing, other) >= radius + bounding_radius(other.kind, canvas) for other in others)


def _name(rng: np.random.Generator, kind: Kind, kinds: Sequence[Kind]) -> Selector:
    """Draw a name that fits this object alone: its shape, its colour and shape, or all; the last always does."""
    options = [Selector(shape=kind.shape), Selector(colour=kind.colour, shape=kind.shape), Selector(*kind)]
    options = [name for name in options if name.count(kinds) == 1]
    return options[int(rng.integers(len(options)))]
