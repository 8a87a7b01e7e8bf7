"""Gymnasium's CarRacing-v3 with a square picture of the road, drawn only when it is looked at.

Its own picture is 1000 x 700 pixels of road above a bar of instruments, squeezed to a square; drawing takes a hundred
times as long as a step of the physics. Here the middle 700 x 700 are made small with their proportions kept, the bar
is left out, and steps between frames draw nothing. The first second, in which the camera zooms in, is skipped.
"""

import math
import os
from typing import Any

import numpy as np

from rhea.errors import InputError
from rhea.worlds.driving.driver import CarState, Controls, Track

STEPS_PER_SECOND = 50
ZOOM_SECONDS = 1.0
"""How long the camera zooms in."""
_ROAD = (150, 0, 700, 700)
"""Left, top, width and height, in the simulator's window, of what is shown."""


class Simulator:
    """A car on the track that ``seed`` decides."""

    def __init__(self, seed: int, side: int, clockwise: bool = False) -> None:
        """``side`` of the pictures in pixels. Raises InputError where Gymnasium is not installed.

        CarRacing drives counter-clockwise, so that most curves are to the left; ``clockwise`` drives back.
        """
        self._environment = _environment(side)
        self._environment.reset(seed=seed)
        self._points = [
            (heading + math.pi * clockwise, x, y)
            for _, heading, x, y in self._environment.track[:: -1 if clockwise else 1]
        ]
        self.track = Track(np.array(self._points)[:, 1:])

    def place(self, number: int) -> None:
        """Put the car on point ``number`` of the track, at rest, in the direction of driving."""
        from gymnasium.envs.box2d.car_dynamics import Car

        self._environment.car.destroy()
        self._environment.car = Car(self._environment.world, *self._points[number])

    @property
    def state(self) -> CarState:
        hull = self._environment.car.hull
        x, y = hull.position
        return CarState(x, y, hull.angle, math.hypot(*hull.linearVelocity), hull.angularVelocity)

    def step(self, controls: Controls, steps: int) -> None:
        """Hold the controls for so many steps of the physics."""
        for _ in range(steps):
            self._environment.step(np.array(controls, dtype=np.float64))

    def frame(self) -> np.ndarray:
        """Draw what is seen from above now, uint8 [side, side, 3]; the car drives upwards."""
        return self._environment.frame()

    def close(self) -> None:
        self._environment.close()


def _environment(side: int) -> Any:
    """Build the environment; Gymnasium is imported here, because only recording needs it."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        import pygame
        from gymnasium.envs.box2d.car_racing import CarRacing
    except ImportError as error:
        raise InputError(f"{error.name or 'gymnasium'} is missing: pip install 'gymnasium[box2d]'") from None

    class Road(CarRacing):
        drawing = False

        def _render(self, mode: str) -> Any:
            return super()._render(mode) if self.drawing else None

        def _create_image_array(self, screen: Any, size: tuple[int, int]) -> np.ndarray:
            small = pygame.transform.smoothscale(screen.subsurface(_ROAD), (side, side))
            return np.ascontiguousarray(pygame.surfarray.array3d(small).swapaxes(0, 1))

        def frame(self) -> np.ndarray:
            self.drawing = True
            try:
                return self._render("state_pixels")
            finally:
                self.drawing = False

    return Road()
