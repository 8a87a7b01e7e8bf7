"""Scenes to pictures, antialiased and fast: every (shape, size) is sampled once into a coverage sprite, then stamped.

Sprites exist at quarter-pixel offsets, so a centre is drawn at most an eighth of a pixel off in x and in y; whole-pixel
centres (all still pictures) are exact. Sixteen sub-pixel variants per shape instead of infinitely many also keep films
easy for a small vision tokenizer.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import ceil, floor

import numpy as np

from rhea.worlds.shapes.scene import (
    BACKGROUND,
    CANVAS,
    COLOURS,
    MAX_OBJECTS,
    SHAPES,
    SIZES,
    HeldOut,
    Scene,
    ShapeObject,
    sample_scene,
)

PHASES = 4
"""Sub-pixel positions of a sprite along each axis."""
SUPERSAMPLING = 8
"""Samples along each axis of a pixel from which its coverage is counted."""


def render(scene: Scene) -> np.ndarray:
    """Draw the scene: uint8 [canvas, canvas, 3]."""
    picture = np.full((scene.canvas, scene.canvas, 3), BACKGROUND, dtype=np.float32)
    for thing in scene.objects:
        _stamp(picture, thing, scene.canvas)
    return (picture + 0.5).astype(np.uint8)


def _stamp(picture: np.ndarray, thing: ShapeObject, canvas: int) -> None:
    """Blend one object into a float picture in place; what falls outside the canvas is cut."""
    x, y = floor(thing.x * PHASES + 0.5), floor(thing.y * PHASES + 0.5)
    coverage = sprite(thing.kind.shape, thing.kind.size, canvas, x % PHASES, y % PHASES)
    side = coverage.shape[0]
    left, top = x // PHASES - side // 2, y // PHASES - side // 2
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, canvas), min(top + side, canvas)
    if x0 >= x1 or y0 >= y1:
        return
    region = picture[y0:y1, x0:x1]
    region += coverage[y0 - top : y1 - top, x0 - left : x1 - left, None] * (_rgb(thing.kind.colour) - region)


@lru_cache
def _rgb(colour: str) -> np.ndarray:
    return np.array(COLOURS[colour], dtype=np.float32)


@lru_cache(maxsize=4096)
def sprite(shape: str, size: str, canvas: int = CANVAS, phase_x: int = 0, phase_y: int = 0) -> np.ndarray:
    """Return the covered fraction of each pixel around a centre: float32 [side, side], side odd, read only.

    The centre lies ``phase / PHASES`` pixels right of and below the middle of the middle pixel.
    """
    radius = SIZES[size] * canvas / CANVAS
    half = ceil(SHAPES[shape] * radius) + 1
    steps = (np.arange((2 * half + 1) * SUPERSAMPLING) + 0.5) / SUPERSAMPLING - 0.5 - half
    x = (steps - phase_x / PHASES)[None, :] / radius
    y = (steps - phase_y / PHASES)[:, None] / radius
    side = 2 * half + 1
    inside = _inside(shape, x, y).reshape(side, SUPERSAMPLING, side, SUPERSAMPLING)
    coverage = inside.mean(axis=(1, 3), dtype=np.float32)
    coverage.setflags(write=False)
    return coverage


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Tell which points belong to the shape of size 1 around the origin; x is a row, y a column."""
    if shape == "circle":
        return x * x + y * y <= 0.95**2
    if shape == "ring":
        square = x * x + y * y
        return (square <= 0.97**2) & (square >= 0.5**2)
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= 0.82
    if shape == "cross":
        return (np.minimum(abs(x), abs(y)) <= 0.34) & (np.maximum(abs(x), abs(y)) <= 1.0)
    if shape == "triangle":
        return _star(x, y, points=3, outer=1.2, inner=0.6)
    assert shape == "star", shape
    return _star(x, y, points=5, outer=1.2, inner=0.5)


def _star(x: np.ndarray, y: np.ndarray, *, points: int, outer: float, inner: float) -> np.ndarray:
    """Fold the plane into half a point of the star, where one straight edge runs from the tip to the notch."""
    sector = 2 * np.pi / points
    angle = abs((np.arctan2(x, -y) + sector / 2) % sector - sector / 2)
    distance = np.hypot(x, y)
    along, across = distance * np.cos(angle), distance * np.sin(angle)
    notch_along, notch_across = inner * np.cos(sector / 2), inner * np.sin(sector / 2)
    return (along - outer) * notch_across - across * (notch_along - outer) <= 0


def sample_frames(
    rng: np.random.Generator,
    count: int,
    *,
    max_objects: int = MAX_OBJECTS,
    held_out: HeldOut = "exclude",
    canvas: int = CANVAS,
) -> np.ndarray:
    """Draw ``count`` random still pictures, for the vision tokenizer's training: uint8 [count, canvas, canvas, 3]."""
    scenes = (sample_scene(rng, max_objects=max_objects, held_out=held_out, canvas=canvas) for _ in range(count))
    return np.stack([render(scene) for scene in scenes])


def contact_sheet(pictures: Sequence[np.ndarray], *, columns: int = 8, border: int = 2, zoom: int = 2) -> np.ndarray:
    """Lay equally large pictures side by side, for people who would rather look: uint8 [H, W, 3]."""
    height, width = pictures[0].shape[:2]
    columns = min(columns, len(pictures))
    rows = ceil(len(pictures) / columns)
    down, right = height + border, width + border
    sheet = np.full((rows * down + border, columns * right + border, 3), 255, dtype=np.uint8)
    for i, picture in enumerate(pictures):
        top, left = border + i // columns * down, border + i % columns * right
        sheet[top : top + height, left : left + width] = picture
    return sheet.repeat(zoom, axis=0).repeat(zoom, axis=1)
