"""A scripted driver: it steers towards a point of the centre line ahead and brakes for the curves that it sees coming.

It would drive too well to learn from: so it swerves now and then, its hand shakes, and each film has a pace of its own.
Angles are counter-clockwise, lengths in the simulator's units (the road is 13.3 wide), times in seconds.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LOOK_AHEAD = 7.0
LOOK_AHEAD_SECONDS = 0.35
GRIP = 280.0
"""Acceleration across the road with which curves are taken, in units per second squared."""
BRAKING = 36.0
"""Deceleration that the driver counts on."""
TOP_SPEED = 60.0
SLOWEST = 15.0


class Controls(NamedTuple):
    """What the car is told: steering from -1 (left) to 1 (right), gas and brake from 0 to 1."""

    steer: float
    gas: float
    brake: float


class CarState(NamedTuple):
    x: float
    y: float
    heading: float
    """0 along the y axis."""
    speed: float
    yaw_rate: float


class Track:
    """A closed centre line."""

    def __init__(self, points: np.ndarray) -> None:
        """``points`` float [N, 2], evenly spaced, in the direction of driving."""
        self.points = points
        ahead = np.roll(points, -1, axis=0) - points
        self.spacing = float(np.median(np.hypot(*ahead.T)))
        turn = np.diff(np.arctan2(ahead[:, 1], ahead[:, 0]), prepend=math.atan2(ahead[-1, 1], ahead[-1, 0]))
        bend = np.abs((turn + np.pi) % (2 * np.pi) - np.pi) / self.spacing
        smooth = np.convolve(np.concatenate([bend[-2:], bend, bend[:2]]), np.full(5, 0.2), mode="valid")
        self.curvature = np.maximum(smooth, 1e-4)
        """Per unit of length, [N], averaged over five points."""

    def nearest(self, x: float, y: float) -> int:
        """Return the number of the point that is closest."""
        return int(np.argmin(((self.points - (x, y)) ** 2).sum(axis=1)))

    def offset(self, x: float, y: float) -> float:
        """Return how far left of the centre line a place is, negative to its right."""
        near = self.nearest(x, y)
        along = self.points[(near + 1) % len(self.points)] - self.points[near - 1]
        across = np.array((x, y)) - self.points[near]
        return float((along[0] * across[1] - along[1] * across[0]) / np.hypot(*along))


@dataclass(frozen=True, kw_only=True)
class DriverConfig:
    """How the driver errs."""

    slowest_pace: float = 0.3
    """Films have a pace between this and 1 times what the road allows."""
    tremble: float = 0.06
    """Standard deviation of what is added to the steering, changing within about a second."""
    swerves_per_second: float = 0.25
    swerve_seconds: float = 0.5
    swerve: float = 0.5
    """How far the wheel is turned to either side in a swerve."""


class Driver:
    """Call ``act`` once per ``seconds``; what is random comes from ``rng``."""

    def __init__(self, track: Track, rng: np.random.Generator, seconds: float, config: DriverConfig) -> None:
        self.track, self.rng, self.seconds, self.config = track, rng, seconds, config
        self.pace = float(rng.uniform(config.slowest_pace, 1))
        self._tremble = self._swerve = self._left = 0.0

    def act(self, state: CarState) -> Controls:
        """Return the controls to hold until the next call, rounded to thousandths."""
        track, near = self.track, self.track.nearest(state.x, state.y)
        reach = LOOK_AHEAD + LOOK_AHEAD_SECONDS * state.speed
        aim = track.points[(near + round(reach / track.spacing)) % len(track.points)]
        bearing = math.atan2(aim[1] - state.y, aim[0] - state.x) - math.pi / 2 - state.heading
        bearing = (bearing + math.pi) % (2 * math.pi) - math.pi
        wanted = self._allowed_speed(near, state.speed) * (1 - 0.4 * min(1.0, abs(bearing)))
        steer = -1.2 * bearing + 0.05 * state.yaw_rate + self._disturbance()
        gas = 0.1 * (wanted - state.speed) * (0.6 if abs(steer) > 0.4 else 1.0)
        brake = 0.04 * (state.speed - wanted)
        return Controls(_clipped(steer, -1, 1), _clipped(gas, 0, 0.8), _clipped(brake, 0, 0.6))

    def _allowed_speed(self, near: int, speed: float) -> float:
        """Return the speed from which every curve in sight can still be braked for."""
        seen = np.arange(4 + int(speed**2 / (2 * BRAKING) / self.track.spacing))
        corner = GRIP / self.track.curvature[(near + seen) % len(self.track.points)]
        allowed = float(np.sqrt(corner * self.pace**2 + 2 * BRAKING * seen * self.track.spacing).min())
        return min(max(allowed, SLOWEST), TOP_SPEED * self.pace)

    def _disturbance(self) -> float:
        config, rng = self.config, self.rng
        keep = math.exp(-2 * self.seconds)
        self._tremble = keep * self._tremble + math.sqrt(1 - keep**2) * config.tremble * float(rng.normal())
        self._left -= self.seconds
        if self._left <= 0:
            self._swerve = 0.0
            if rng.random() < config.swerves_per_second * self.seconds:
                self._left, self._swerve = config.swerve_seconds, float(rng.uniform(-config.swerve, config.swerve))
        return self._tremble + self._swerve


def _clipped(value: float, low: float, high: float) -> float:
    return round(min(max(value, low), high), 3)
