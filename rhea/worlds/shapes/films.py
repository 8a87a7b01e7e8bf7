"""Films: objects that move at constant velocity and bounce elastically off the walls and off each other.

The motion is computed from event to event (which pair or wall is met next, and exactly when) instead of in small steps,
so energy is conserved, nothing ever overlaps and the truth of every frame is exact. An object collides as its bounding
circle, with a mass that goes with the circle's area, and keeps FILM_GAP pixels free so that a grader can part two
objects at the very moment they meet.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from math import cos, hypot, inf, pi, sin, sqrt

import numpy as np

from rhea.worlds.shapes.render import render
from rhea.worlds.shapes.scene import (
    CANVAS,
    HeldOut,
    Kind,
    Scene,
    ShapeObject,
    bounding_radius,
    centre_bounds,
    sample_scene,
)

FILM_GAP = 2.0
"""Least room between two bounding circles in a film, in pixels."""
SPEED_RANGE = (0.5, 2.5)
"""Speeds at the first frame, in pixels per frame; a collision may make a small object faster."""
MAX_MOVING = 3
"""Objects in a film unless asked otherwise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Film:
    """The truth of a film: the kinds, and where each object is and how it moves at every frame."""

    kinds: tuple[Kind, ...]
    centres: np.ndarray
    """float64 [frames, objects, 2], x then y, in pixels."""
    velocities: np.ndarray
    """float64 [frames, objects, 2], in pixels per frame."""
    canvas: int = CANVAS

    @property
    def num_frames(self) -> int:
        """How many frames the film has."""
        return len(self.centres)

    def scene(self, frame: int) -> Scene:
        """Return what one frame shows."""
        places = zip(self.kinds, self.centres[frame].tolist(), strict=True)
        return Scene(objects=tuple(ShapeObject(kind=k, x=x, y=y) for k, (x, y) in places), canvas=self.canvas)


@dataclass(slots=True)
class _Body:
    """A moving circle between its walls."""

    x: float
    y: float
    vx: float
    vy: float
    radius: float
    low: float
    high: float


def sample_film(
    rng: np.random.Generator,
    *,
    num_frames: int = 16,
    num_objects: int | None = None,
    max_objects: int = MAX_MOVING,
    held_out: HeldOut = "exclude",
    canvas: int = CANVAS,
) -> Film:
    """Draw a scene with continuous centres, give each object a random direction and speed, and let it run."""
    scene = sample_scene(
        rng, num_objects=num_objects, max_objects=max_objects, held_out=held_out, canvas=canvas, continuous=True
    )
    scale = canvas / CANVAS
    velocities = []
    for speed, turn in rng.random((len(scene.objects), 2)).tolist():
        length = scale * (SPEED_RANGE[0] + speed * (SPEED_RANGE[1] - SPEED_RANGE[0]))
        velocities.append((length * cos(2 * pi * turn), length * sin(2 * pi * turn)))
    return simulate(scene, np.array(velocities), num_frames=num_frames)


def simulate(scene: Scene, velocities: np.ndarray, *, num_frames: int) -> Film:
    """Run a scene from its first frame on; ``velocities`` is [objects, 2] in pixels per frame."""
    bodies = []
    for thing, (vx, vy) in zip(scene.objects, velocities.tolist(), strict=True):
        low, high = centre_bounds(thing.kind, scene.canvas)
        radius = bounding_radius(thing.kind, scene.canvas)
        bodies.append(_Body(x=thing.x, y=thing.y, vx=vx, vy=vy, radius=radius, low=low, high=high))
    states = []
    for frame in range(num_frames):
        if frame:
            _advance(bodies, 1.0)
        states.append([(body.x, body.y, body.vx, body.vy) for body in bodies])
    table = np.array(states, dtype=np.float64)
    return Film(kinds=scene.kinds, centres=table[..., :2], velocities=table[..., 2:], canvas=scene.canvas)


def _advance(bodies: list[_Body], duration: float) -> None:
    """Move all bodies by ``duration`` frames, from one collision to the next."""
    while True:
        when, first, second = min(_events(bodies), default=(inf, 0, 0))
        step = min(max(when, 0.0), duration)
        for body in bodies:
            body.x += body.vx * step
            body.y += body.vy * step
        if when >= duration:
            return
        duration -= step
        if second == _WALL_X:
            bodies[first].vx = -bodies[first].vx
        elif second == _WALL_Y:
            bodies[first].vy = -bodies[first].vy
        else:
            _collide(bodies[first], bodies[second])


_WALL_X, _WALL_Y = -1, -2


def _events(bodies: list[_Body]) -> Iterator[tuple[float, int, int]]:
    """Yield (time, body, other body or wall) for every meeting that lies ahead."""
    for i, body in enumerate(bodies):
        if body.vx:
            yield ((body.high if body.vx > 0 else body.low) - body.x) / body.vx, i, _WALL_X
        if body.vy:
            yield ((body.high if body.vy > 0 else body.low) - body.y) / body.vy, i, _WALL_Y
    for (i, a), (j, b) in combinations(enumerate(bodies), 2):
        dx, dy, dvx, dvy = b.x - a.x, b.y - a.y, b.vx - a.vx, b.vy - a.vy
        approach = dx * dvx + dy * dvy
        if approach >= 0:
            continue
        speed2 = dvx * dvx + dvy * dvy
        beyond = dx * dx + dy * dy - (a.radius + b.radius + FILM_GAP) ** 2
        root = approach * approach - speed2 * beyond
        if root > 0:
            yield (-approach - sqrt(root)) / speed2, i, j


def _collide(a: _Body, b: _Body) -> None:
    """Exchange momentum along the line of centres, elastically."""
    distance = hypot(b.x - a.x, b.y - a.y)
    nx, ny = (b.x - a.x) / distance, (b.y - a.y) / distance
    mass_a, mass_b = a.radius**2, b.radius**2
    impulse = 2 * ((b.vx - a.vx) * nx + (b.vy - a.vy) * ny) / (mass_a + mass_b)
    a.vx += impulse * mass_b * nx
    a.vy += impulse * mass_b * ny
    b.vx -= impulse * mass_a * nx
    b.vy -= impulse * mass_a * ny


def render_film(film: Film) -> np.ndarray:
    """Draw every frame: uint8 [frames, canvas, canvas, 3]."""
    return np.stack([render(film.scene(frame)) for frame in range(film.num_frames)])


def sample_clips(
    rng: np.random.Generator,
    count: int,
    *,
    num_frames: int = 4,
    max_objects: int = MAX_MOVING,
    held_out: HeldOut = "exclude",
    canvas: int = CANVAS,
) -> np.ndarray:
    """Draw ``count`` short films, for the vision tokenizer's training: uint8 [count, frames, canvas, canvas, 3]."""
    films = (
        sample_film(rng, num_frames=num_frames, max_objects=max_objects, held_out=held_out, canvas=canvas)
        for _ in range(count)
    )
    return np.stack([render_film(film) for film in films])


def copy_last(centres: np.ndarray, num_future: int) -> np.ndarray:
    """Predict that everything stops: [frames, objects, 2] known to [num_future, objects, 2]; a trivial baseline."""
    return np.repeat(centres[-1:], num_future, axis=0)


def constant_velocity(centres: np.ndarray, num_future: int) -> np.ndarray:
    """Predict that the last step goes on, through walls and all: the other trivial baseline; needs two known frames."""
    steps = np.arange(1, num_future + 1)[:, None, None]
    return centres[-1] + steps * (centres[-1] - centres[-2])
