"""The exact grader: a picture or a film back into objects with kind, centre and, in films, a track.

An antialiased or blurred edge is a mixture of one colour with the background, so the *direction* of a pixel away from
the background names its colour even at the edge, and its length is the covered fraction. Each connected blob of
coverage is compared with the very sprites that the renderer stamps, at the sub-pixel position of the blob's centroid;
the least squared difference decides shape and size. A blob that looks like none of them is reported as "unknown",
so that debris in a generated picture costs the point instead of being overlooked.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import floor, hypot

import cv2
import numpy as np

from rhea.errors import InputError
from rhea.worlds.shapes.render import PHASES, sprite
from rhea.worlds.shapes.scene import BACKGROUND, CANVAS, COLOURS, SHAPES, SIZES, Kind, Scene, ShapeObject

UNKNOWN = "unknown"
"""Shape and size of a blob that no sprite explains."""
WORST_FIT = 0.4
"""Greatest squared difference from a sprite, relative to the sprite's own squares, that still counts as that shape."""
DEBRIS_AREA = 12
"""Blobs of fewer pixels (on a canvas of 64) are noise and not looked at."""
OBJECT_AREA = 40
"""Least pixels of one colour that may be an object of their own in a blob of several colours."""
LEAST_PURITY = 0.6
"""Least share of an object's pixels that must be of its own colour: half a red and half an orange disc is neither."""
CUTS = (0.5, 0.7, 0.85)
"""Coverages at which blobs are cut out; the higher ones are tried to part objects that blur has joined."""


def read_picture(picture: np.ndarray) -> tuple[ShapeObject, ...]:
    """Read the objects of a square picture, uint8 [canvas, canvas, 3], from left to right.

    A centre is the centroid of the object's coverage, exact to about 0.05 px on clean pictures.
    """
    if picture.ndim != 3 or picture.shape[0] != picture.shape[1] or picture.shape[2] != 3:
        raise InputError(f"the shapes grader reads square RGB pictures, not an array of shape {picture.shape}")
    view = _look(picture)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        (view.covered > CUTS[0]).astype(np.uint8), connectivity=8
    )
    large = [i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] >= DEBRIS_AREA * view.scale]
    objects = [thing for label in large for thing in _read_blob(view, labels == label)]
    return tuple(sorted(objects, key=lambda thing: (thing.x, thing.y)))


@dataclass(frozen=True, kw_only=True, eq=False)
class _View:
    """A picture as coverage by colours."""

    coverage: np.ndarray
    """How much of each pixel each colour would cover if it were the only one: float32 [H, W, colours]."""
    colour: np.ndarray
    """Each pixel's own colour: int [H, W]."""
    covered: np.ndarray
    """The coverage by that colour, from 0 to 1: float32 [H, W]."""

    @property
    def scale(self) -> float:
        """Return the area of this canvas in units of the usual one's."""
        return self.colour.size / CANVAS**2


@lru_cache
def _palette() -> tuple[np.ndarray, np.ndarray]:
    """Return each colour's direction away from the background, [colours, 3], and its length, [colours]."""
    away = np.array(list(COLOURS.values()), dtype=np.float32) - np.array(BACKGROUND, dtype=np.float32)
    length = np.linalg.norm(away, axis=1)
    return away / length[:, None], length


def _look(picture: np.ndarray) -> _View:
    directions, lengths = _palette()
    away = picture.reshape(-1, 3).astype(np.float32) - np.array(BACKGROUND, dtype=np.float32)
    along = away @ directions.T
    colour = along.argmax(axis=1)
    covered = along[np.arange(len(along)), colour] / lengths[colour]
    shape = picture.shape[:2]
    return _View(
        coverage=(along / lengths).reshape(*shape, -1),
        colour=colour.reshape(shape),
        covered=np.clip(covered, 0, 1).reshape(shape),
    )


def _read_blob(view: _View, mask: np.ndarray) -> list[ShapeObject]:
    """Read one blob as one object or, where no sprite fits it, as several objects that touch."""
    whole = _fit(view, mask)
    if whole.kind.shape != UNKNOWN:
        return [whole]
    for parts in _divisions(view, mask):
        objects = [_fit(view, part) for part in parts]
        if all(thing.kind.shape != UNKNOWN for thing in objects):
            return objects
    return [whole]


def _divisions(view: _View, mask: np.ndarray) -> Iterator[list[np.ndarray]]:
    """Propose ways to part a blob: by colours, then at the places where the coverage is thin."""
    pixels = np.bincount(view.colour[mask])
    colours = np.flatnonzero(pixels >= OBJECT_AREA * view.scale)
    if len(colours) > 1:
        yield [mask & (view.colour == index) for index in colours]
    for level in CUTS[1:]:
        count, labels = cv2.connectedComponents((mask & (view.covered > level)).astype(np.uint8), connectivity=4)
        seeds = [labels == i for i in range(1, count) if (labels == i).sum() >= DEBRIS_AREA * view.scale]
        if len(seeds) > 1:
            away = np.stack([cv2.distanceTransform((~seed).astype(np.uint8), cv2.DIST_L2, 5) for seed in seeds])
            nearest = away.argmin(axis=0)
            yield [mask & (nearest == i) for i in range(len(seeds))]


def _fit(view: _View, mask: np.ndarray) -> ShapeObject:
    """Name the colour of the masked pixels and find the sprite that explains them and their surroundings best."""
    index = _colour_of(view, mask)
    near = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), dtype=np.uint8))
    weights = np.where(near, np.clip(view.coverage[..., index], 0, 1), 0)
    total, steps = weights.sum() + 1e-9, np.arange(len(weights))
    x, y = float(weights.sum(axis=0) @ steps / total), float(weights.sum(axis=1) @ steps / total)
    phased_x, phased_y = floor(x * PHASES + 0.5), floor(y * PHASES + 0.5)
    kinds, sprites, squares = _templates(len(weights), phased_x % PHASES, phased_y % PHASES)
    half = sprites.shape[1] // 2
    left, top = phased_x // PHASES, phased_y // PHASES
    window = np.pad(weights, half)[top : top + 2 * half + 1, left : left + 2 * half + 1]
    outside = float((weights**2).sum() - (window**2).sum())
    errors = (((sprites - window) ** 2).sum(axis=(1, 2)) + outside) / squares
    best = int(errors.argmin())
    pure = (view.colour[mask] == index).mean() >= LEAST_PURITY
    shape, size = kinds[best] if pure and errors[best] <= WORST_FIT else (UNKNOWN, UNKNOWN)
    return ShapeObject(kind=Kind(list(COLOURS)[index], shape, size), x=x, y=y)


def _colour_of(view: _View, mask: np.ndarray) -> int:
    """Return the colour nearest to the masked pixels' mean, which survives a codec that shifts colour over edges."""
    _, lengths = _palette()
    return int((view.coverage[mask].sum(axis=0) * lengths).argmax())


@lru_cache(maxsize=1024)
def _templates(canvas: int, phase_x: int, phase_y: int) -> tuple[list[tuple[str, str]], np.ndarray, np.ndarray]:
    """Stack every (shape, size) sprite at one sub-pixel offset, and the sum of its squares."""
    kinds = [(shape, size) for shape in SHAPES for size in SIZES]
    sprites = [sprite(shape, size, canvas, phase_x, phase_y) for shape, size in kinds]
    side = max(len(one) for one in sprites)
    stack = np.stack([np.pad(one, (side - len(one)) // 2) for one in sprites])
    return kinds, stack, (stack**2).sum(axis=(1, 2))


def same_kinds(objects: Iterable[ShapeObject], scene: Scene) -> bool:
    """Tell whether the objects are exactly those of the scene, wherever they are."""
    return Counter(thing.kind for thing in objects) == Counter(scene.kinds)


def same_scene(objects: Sequence[ShapeObject], scene: Scene, *, tolerance: float) -> bool:
    """Tell whether the objects are exactly those of the scene, each within ``tolerance`` pixels of its place."""
    if len(objects) != len(scene.objects):
        return False
    rest = list(objects)
    for wanted in scene.objects:
        fitting = [thing for thing in rest if thing.kind == wanted.kind and distance(thing, wanted) <= tolerance]
        if not fitting:
            return False
        rest.remove(min(fitting, key=lambda thing: distance(thing, wanted)))
    return True


def distance(a: ShapeObject, b: ShapeObject) -> float:
    """Return how far apart two centres are, in pixels."""
    return hypot(a.x - b.x, a.y - b.y)


@dataclass(frozen=True, kw_only=True, eq=False)
class Track:
    """One object through a film."""

    kind: Kind
    """What it looks like in most of the frames that show it."""
    centres: np.ndarray
    """float64 [frames, 2]; NaN where the object is not to be seen."""

    @property
    def seen(self) -> np.ndarray:
        """In which frames the object is to be seen: bool [frames]."""
        return ~np.isnan(self.centres[:, 0])


FARTHEST_STEP = 12.0
"""Pixels that an object may move in a frame, on a canvas of 64, and still be the same object."""
STRANGER = 6.0
"""Pixels by which each attribute that changes makes a continuation less likely."""


def read_film(frames: np.ndarray) -> tuple[Track, ...]:
    """Read every frame, uint8 [T, canvas, canvas, 3], and follow each object by place and look."""
    histories: list[dict[int, ShapeObject]] = []
    reach = FARTHEST_STEP * frames.shape[2] / CANVAS
    for t, frame in enumerate(frames):
        seen = read_picture(frame)
        last = [history[max(history)] for history in histories]
        pairs = sorted((_strangeness(a, b), i, j) for i, a in enumerate(last) for j, b in enumerate(seen))
        continued: set[int] = set()
        taken: set[int] = set()
        for strangeness, i, j in pairs:
            if strangeness <= reach and i not in continued and j not in taken:
                histories[i][t] = seen[j]
                continued.add(i)
                taken.add(j)
        histories.extend({t: thing} for j, thing in enumerate(seen) if j not in taken)
    return tuple(_track(history, len(frames)) for history in histories)


def _strangeness(before: ShapeObject, after: ShapeObject) -> float:
    return distance(before, after) + STRANGER * sum(a != b for a, b in zip(before.kind, after.kind, strict=True))


def _track(history: dict[int, ShapeObject], num_frames: int) -> Track:
    centres = np.full((num_frames, 2), np.nan)
    for t, thing in history.items():
        centres[t] = thing.x, thing.y
    return Track(kind=Counter(thing.kind for thing in history.values()).most_common(1)[0][0], centres=centres)


@dataclass(frozen=True, kw_only=True)
class FilmScore:
    """How well a predicted film follows the truth, over the frames that were to be predicted."""

    centre_error: float
    """Mean distance in pixels; an object that has vanished counts where it was last seen."""
    found: float
    """Share of (object, frame) pairs in which an object of the right kind is to be seen."""
    kinds_exact: bool
    """Every predicted frame shows exactly the right kinds."""


def score_film(frames: np.ndarray, kinds: Sequence[Kind], centres: np.ndarray, *, start: int) -> FilmScore:
    """Compare frames [T, canvas, canvas, 3] with true centres [T, objects, 2] of the kinds, from frame ``start`` on.

    Each frame is read for itself: an object is found where the frame shows its kind (nearest first, if several).
    """
    last = np.array(centres[start - 1] if start else centres[0])
    errors, found, exact = [], 0, True
    for t in range(start, len(centres)):
        seen = read_picture(frames[t])
        exact = exact and Counter(thing.kind for thing in seen) == Counter(kinds)
        for i, kind in enumerate(kinds):
            x, y = centres[t, i].tolist()
            places = [(thing.x, thing.y) for thing in seen if thing.kind == kind]
            if places:
                last[i] = min(places, key=lambda place: hypot(place[0] - x, place[1] - y))
                found += 1
            errors.append(hypot(last[i, 0] - x, last[i, 1] - y))
    return FilmScore(centre_error=float(np.mean(errors)), found=found / len(errors), kinds_exact=exact)
