"""Films of the scripted driver as WebDataset shards: film ``number`` is a pure function of (seed, number).

A film is an animated WebP without loss: a kilobyte a frame, exact to the pixel (H.264 is a third of that and 31 dB),
and every browser plays it. Its .json holds the truth at each frame and the controls that were held until the next one,
so that frames and controls together can train a world model or a driver later.
"""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from rhea.config import to_dict
from rhea.documents.shards import record_shards
from rhea.errors import InputError
from rhea.worlds.driving.driver import Driver, DriverConfig
from rhea.worlds.driving.simulator import STEPS_PER_SECOND, ZOOM_SECONDS, Simulator

WARM_UP = (ZOOM_SECONDS, ZOOM_SECONDS + 2.0)
"""Shortest and longest time that the car drives before its film begins."""
ROAD_HALF_WIDTH = 40 / 6.0
"""Of CarRacing's tracks."""


@dataclass(frozen=True, kw_only=True)
class RecordingConfig:
    """Which films are recorded."""

    films: int = 2000
    seed: int = 0
    num_frames: int = 32
    side: int = 64
    steps_per_frame: int = 4
    """Of fifty in a second: four make 12.5 frames per second."""
    films_per_shard: int = 200
    driver: DriverConfig = field(default_factory=DriverConfig)

    def __post_init__(self) -> None:
        counts = (self.films, self.num_frames, self.side, self.steps_per_frame, self.films_per_shard)
        if min(counts) < 1 or self.seed < 0:
            raise InputError(f"films, frames and sides must be 1 or more and a seed not negative, got {self}")


@dataclass(frozen=True, kw_only=True)
class Recording:
    """The .json of one film; sequences have an entry per frame."""

    track_seed: int
    """What CarRacing-v3 makes the track from."""
    clockwise: bool
    """Against the direction in which CarRacing starts."""
    start: int
    """The tile, counted in the direction of driving, on which it was placed, at rest, ``warm_up`` controls before."""
    warm_up: int
    fps: float
    controls: tuple[tuple[float, float, float], ...]
    """Steering (-1 is left), gas and brake, held from this frame to the next."""
    speed: tuple[float, ...]
    """Units per second."""
    yaw_rate: tuple[float, ...]
    """Radians per second, positive to the left."""
    offset: tuple[float, ...]
    """Units from the centre line, positive to its left; beyond ROAD_HALF_WIDTH the car's middle is off the road."""

    def __post_init__(self) -> None:
        if len({len(self.controls), len(self.speed), len(self.yaw_rate), len(self.offset)}) != 1 or not self.speed:
            raise ValueError("controls, speed, yaw_rate and offset need one entry per frame each")


def record_film(config: RecordingConfig, number: int) -> tuple[np.ndarray, Recording]:
    """Drive and return frames uint8 [T, side, side, 3] with their truth."""
    rng = np.random.default_rng([config.seed, number])
    track_seed, seconds = int(rng.integers(2**31)), config.steps_per_frame / STEPS_PER_SECOND
    clockwise = bool(rng.random() < 0.5)
    simulator = Simulator(track_seed, config.side, clockwise)
    track = simulator.track
    start, warm_up = int(rng.integers(len(track.points))), int(np.ceil(rng.uniform(*WARM_UP) / seconds))
    simulator.place(start)
    driver = Driver(track, rng, seconds, config.driver)
    for _ in range(warm_up):
        simulator.step(driver.act(simulator.state), config.steps_per_frame)
    states, controls, frames = [], [], []
    for _ in range(config.num_frames):
        states.append(simulator.state)
        controls.append(driver.act(states[-1]))
        frames.append(simulator.frame())
        simulator.step(controls[-1], config.steps_per_frame)
    simulator.close()
    return np.stack(frames), Recording(
        track_seed=track_seed,
        clockwise=clockwise,
        start=start,
        warm_up=warm_up,
        fps=1 / seconds,
        controls=tuple((held.steer, held.gas, held.brake) for held in controls),
        speed=tuple(round(state.speed, 4) for state in states),
        yaw_rate=tuple(round(state.yaw_rate, 4) for state in states),
        offset=tuple(round(track.offset(state.x, state.y), 4) for state in states),
    )


def record_driving(
    config: RecordingConfig, folder: str | Path, progress: Callable[[int], None] | None = None
) -> list[Path]:
    """Record into a folder of shards and return their paths; shards that are there already are kept.

    ``progress`` is told how many films there are after each. Raises InputError for a folder with films of other
    settings, and where Gymnasium is not installed.
    """
    return record_shards(
        folder,
        "driving",
        to_dict(config),
        config.films,
        config.films_per_shard,
        lambda numbers: _samples(config, numbers, progress),
        progress,
    )


def _samples(
    config: RecordingConfig, numbers: range, progress: Callable[[int], None] | None
) -> Iterator[tuple[str, dict[str, bytes]]]:
    for number in numbers:
        frames, truth = record_film(config, number)
        yield f"{number:07d}", {".webp": _webp(frames, truth.fps), ".json": json.dumps(to_dict(truth)).encode()}
        if progress is not None:
            progress(number + 1)


def _webp(frames: np.ndarray, fps: float) -> bytes:
    """Write an animation without loss; a step of the simulator is a whole number of milliseconds."""
    pictures, buffer = [Image.fromarray(frame) for frame in frames], io.BytesIO()
    more = {"save_all": True, "append_images": pictures[1:], "duration": round(1000 / fps)}
    pictures[0].save(buffer, "WEBP", lossless=True, method=4, **more)
    return buffer.getvalue()
