"""What a scene is: one to four flat shapes of different kinds on a light canvas, and how scenes are drawn at random.

A kind is (colour, shape, size). Ten kinds are held out of training for good, each colour, shape and size stays, so that
combination can be graded. Still pictures put every centre on a whole pixel: a shape then has one set of edge pixels
instead of one per sub-pixel offset, which keeps the pictures easy for a small vision tokenizer. Films need true motion
and use continuous centres. Within a scene the kinds differ, so every object has a name of its own.

Coordinates are in pixels, x to the right, y down; the centre of the top left pixel is (0, 0). A shape's position is its
centroid, which is also the centre of its bounding circle.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor, hypot
from typing import Literal, NamedTuple

import numpy as np

from rhea.errors import InputError

CANVAS = 64
BACKGROUND = (245, 245, 245)
MAX_OBJECTS = 4

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (40, 90, 220),
    "yellow": (240, 205, 40),
    "purple": (150, 60, 190),
    "orange": (245, 130, 30),
    "cyan": (50, 200, 215),
    "black": (30, 30, 30),
}
SHAPES: dict[str, float] = {"circle": 0.95, "square": 1.16, "triangle": 1.2, "star": 1.2, "cross": 1.06, "ring": 0.97}
"""Each shape with the radius of its bounding circle, in units of the radius of its size."""
SIZES: dict[str, float] = {"small": 7.0, "large": 11.0}
"""Each size with its radius in pixels on a canvas of 64."""

WALL_MARGIN = 1.0
"""Least room between a shape and the edge of the canvas, in pixels."""
STILL_GAP = 3.0
"""Least room between two bounding circles in a still picture, in pixels: more than a codec's blur can bridge."""

HeldOut = Literal["exclude", "include", "only"]


class Kind(NamedTuple):
    """What an object looks like."""

    colour: str
    shape: str
    size: str


@dataclass(frozen=True, kw_only=True)
class ShapeObject:
    """One object: its kind and where its centre is."""

    kind: Kind
    x: float
    y: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Objects on a square canvas; their order has no meaning."""

    objects: tuple[ShapeObject, ...]
    canvas: int = CANVAS

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of the objects, in the order of the objects."""
        return tuple(thing.kind for thing in self.objects)


ALL_KINDS: tuple[Kind, ...] = tuple(Kind(c, s, z) for c in COLOURS for s in SHAPES for z in SIZES)
HELD_OUT_KINDS: tuple[Kind, ...] = (
    Kind("red", "star", "small"),
    Kind("red", "square", "large"),
    Kind("green", "circle", "large"),
    Kind("blue", "triangle", "small"),
    Kind("blue", "cross", "small"),
    Kind("yellow", "cross", "large"),
    Kind("purple", "square", "small"),
    Kind("orange", "ring", "large"),
    Kind("cyan", "star", "large"),
    Kind("black", "circle", "small"),
)


@lru_cache
def allowed_kinds(held_out: HeldOut) -> tuple[Kind, ...]:
    """List the kinds that a policy allows: those of training, all of them, or only the ten unseen ones."""
    if held_out == "exclude":
        return tuple(kind for kind in ALL_KINDS if kind not in HELD_OUT_KINDS)
    if held_out == "include":
        return ALL_KINDS
    if held_out == "only":
        return HELD_OUT_KINDS
    raise InputError(f"held_out is {held_out!r}; allowed are 'exclude', 'include' and 'only'")


def bounding_radius(kind: Kind, canvas: int = CANVAS) -> float:
    """Return the radius in pixels of the circle around the centre that holds the whole shape."""
    return SHAPES[kind.shape] * SIZES[kind.size] * canvas / CANVAS


def centre_bounds(kind: Kind, canvas: int = CANVAS) -> tuple[float, float]:
    """Return the least and the greatest coordinate that the centre may have, the same for x and y."""
    least = bounding_radius(kind, canvas) + WALL_MARGIN - 0.5
    return least, canvas - 1 - least


def sample_kinds(rng: np.random.Generator, count: int, kinds: Sequence[Kind]) -> tuple[Kind, ...]:
    """Draw ``count`` different kinds, uniformly."""
    if count > len(kinds):
        raise InputError(f"{count} objects need as many different kinds, only {len(kinds)} are allowed")
    return tuple(kinds[i] for i in rng.permutation(len(kinds))[:count])


def place(rng: np.random.Generator, kinds: Sequence[Kind], *, canvas: int = CANVAS, continuous: bool = False) -> Scene:
    """Put one object of each kind at random, none nearer to another than STILL_GAP pixels.

    Sizes never depend on what fits: the kinds are given, and positions are drawn again, the widest first, until all
    fit. Centres are whole pixels unless ``continuous``.
    """
    widest_first = sorted(kinds, key=bounding_radius, reverse=True)
    while True:
        placed: dict[Kind, ShapeObject] = {}
        for kind in widest_first:
            found = _free_centre(rng, kind, list(placed.values()), canvas, continuous)
            if found is None:
                break
            placed[kind] = ShapeObject(kind=kind, x=found[0], y=found[1])
        if len(placed) == len(kinds):
            return Scene(objects=tuple(placed[kind] for kind in kinds), canvas=canvas)


def _free_centre(
    rng: np.random.Generator, kind: Kind, placed: list[ShapeObject], canvas: int, continuous: bool
) -> tuple[float, float] | None:
    """Draw a centre that keeps clear of the placed objects; None after 16 tries."""
    low, high = centre_bounds(kind, canvas)
    if not continuous:
        low, high = float(ceil(low)), float(floor(high))
    radius = bounding_radius(kind, canvas) + STILL_GAP
    blocked = [(thing.x, thing.y, radius + bounding_radius(thing.kind, canvas)) for thing in placed]
    for u, v in rng.random((16 if blocked else 1, 2)).tolist():
        if continuous:
            x, y = low + u * (high - low), low + v * (high - low)
        else:
            x, y = floor(low + u * (high - low + 1)), floor(low + v * (high - low + 1))
        if all(hypot(x - bx, y - by) >= room for bx, by, room in blocked):
            return float(x), float(y)
    return None


def sample_scene(
    rng: np.random.Generator,
    *,
    num_objects: int | None = None,
    min_objects: int = 1,
    max_objects: int = MAX_OBJECTS,
    held_out: HeldOut = "exclude",
    kinds: Sequence[Kind] | None = None,
    canvas: int = CANVAS,
    continuous: bool = False,
) -> Scene:
    """Draw a scene of ``num_objects`` objects of different kinds, by default from ``min_objects`` to ``max_objects``.

    ``kinds`` narrows what may appear further than ``held_out`` does. More than four objects: InputError.
    """
    limit = max_objects if num_objects is None else num_objects
    if not 1 <= limit <= MAX_OBJECTS:
        raise InputError(f"a scene has 1 to {MAX_OBJECTS} objects, not {limit}")
    count = int(rng.integers(min_objects, max_objects + 1)) if num_objects is None else num_objects
    allowed = allowed_kinds(held_out)
    if kinds is not None:
        allowed = tuple(kind for kind in kinds if kind in allowed)
    return place(rng, sample_kinds(rng, count, allowed), canvas=canvas, continuous=continuous)
