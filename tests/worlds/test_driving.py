"""Driving: the script stays on a road, films are functions of their seeds, and captions say what the truth is."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_shards import noise, webp

from rhea.config import from_dict, to_dict
from rhea.documents.document import Text, Video
from rhea.documents.shard_source import ShardSourceConfig, ShardTasks
from rhea.documents.shards import Shards, write_shard
from rhea.errors import InputError
from rhea.worlds.driving.driver import CarState, Controls, Driver, DriverConfig, Track
from rhea.worlds.driving.recording import Recording, RecordingConfig, record_driving, record_film
from rhea.worlds.driving.source import PHRASINGS, TASKS, Motion, describe, driving_source, motion

CIRCLE = np.stack([fun(np.linspace(0, 2 * np.pi, 200, endpoint=False)) for fun in (np.cos, np.sin)], axis=1) * 100
"""Driven counter-clockwise, a curve to the left everywhere."""
NO_ERRORS = DriverConfig(slowest_pace=1.0, tremble=0.0, swerves_per_second=0.0)
TINY = RecordingConfig(films=3, num_frames=4, side=16, films_per_shard=2)


def truth(**more: Any) -> Recording:
    frames = len(more.get("speed", (30.0,) * 8))
    still: dict[str, Any] = {"controls": ((0.0, 0.1, 0.0),) * frames, "speed": (30.0,) * frames}
    still |= {"yaw_rate": (0.0,) * frames, "offset": (0.0,) * frames}
    return Recording(**({"track_seed": 1, "clockwise": False, "start": 0, "warm_up": 13, "fps": 12.5} | still | more))


def shard(folder: Path, *recordings: Recording) -> Path:
    samples = [
        (f"f{n}", {".webp": webp(noise(n, len(each.speed), 16, 16), 80), ".json": json.dumps(to_dict(each)).encode()})
        for n, each in enumerate(recordings)
    ]
    write_shard(folder / "d.tar", samples)
    return folder


def test_offsets_are_positive_to_the_left() -> None:
    track = Track(CIRCLE)
    assert track.offset(95.0, 0.0) == pytest.approx(5.0, abs=0.01)  # towards the middle: left
    assert track.offset(0.0, 103.0) == pytest.approx(-3.0, abs=0.01)
    assert track.curvature == pytest.approx(np.full(200, 0.01), rel=0.01)
    assert track.spacing == pytest.approx(2 * math.pi * 100 / 200, rel=1e-3)


def test_the_driver_steers_back_and_brakes() -> None:
    def act(x: float, heading: float, speed: float) -> Controls:
        driver = Driver(Track(CIRCLE), np.random.default_rng(0), 0.08, NO_ERRORS)
        return driver.act(CarState(x, 0.0, heading, speed, 0.0))

    assert act(100.0, 0.0, 30.0).steer < 0  # the road bends to the left
    assert act(108.0, 0.0, 30.0).steer < act(100.0, 0.0, 30.0).steer < act(85.0, 0.0, 30.0).steer
    assert act(100.0, math.pi / 2, 30.0).steer == 1.0  # it faces the inside
    assert act(100.0, -math.pi / 2 + 2 * math.pi, 30.0).steer == -1.0  # a full turn changes nothing
    assert act(100.0, 0.0, 20.0).gas > 0 == act(100.0, 0.0, 20.0).brake
    assert act(100.0, 0.0, 90.0).brake > 0 == act(100.0, 0.0, 90.0).gas


def test_the_driver_errs_by_its_seed_alone() -> None:
    def steering(seed: int, **more: float) -> list[float]:
        config = replace(NO_ERRORS, **more)
        driver = Driver(Track(CIRCLE), np.random.default_rng(seed), 0.08, config)
        return [driver.act(CarState(100.0, 0.0, 0.0, 30.0, 0.0)).steer for _ in range(300)]

    assert len(set(steering(0))) == 1
    assert steering(1, tremble=0.1) == steering(1, tremble=0.1) != steering(2, tremble=0.1)
    assert np.std(steering(1, tremble=0.1)) == pytest.approx(0.1, rel=0.5)
    swerving = np.array(steering(0, swerves_per_second=0.5)) - steering(0)[0]
    lengths = [len(run) for run in "".join("x" if abs(each) > 1e-6 else " " for each in swerving).split()]
    assert 3 < len(lengths) < 20
    assert set(lengths) == {7}  # half a second, in steps of 0.08


@pytest.mark.parametrize(
    ("recording", "expected", "english", "chinese"),
    [
        (truth(), Motion("", "", False), "a red car driving straight on", "一辆红色汽车直行"),
        (truth(yaw_rate=(0.5,) * 8), Motion("left", "", False), "a red car turning left", "一辆红色汽车左转"),
        (
            truth(yaw_rate=(-0.5,) * 8, speed=(55.0,) * 8),
            Motion("right", "fast", False),
            "a red car turning right fast",
            "一辆红色汽车快速右转",
        ),
        (
            truth(speed=(10.0,) * 8, offset=(0.0,) * 4 + (-7.0,) * 4),
            Motion("", "slow", True),
            "a red car driving straight on slowly, off the road",
            "一辆红色汽车慢速直行，驶出路面",
        ),
    ],
)
def test_captions_say_what_the_truth_is(recording: Recording, expected: Motion, english: str, chinese: str) -> None:
    told = motion(recording, range(8))
    assert told == expected
    assert (describe(told, "en"), describe(told, "zh")) == (english, chinese)


def test_captions_are_about_the_frames_that_are_shown() -> None:
    swinging = truth(yaw_rate=(1.0,) * 4 + (-1.0,) * 4, offset=(9.0, *(0.0,) * 7))
    assert motion(swinging, range(4)) == Motion("left", "", True)
    assert motion(swinging, range(4, 8)) == Motion("right", "", False)


def test_the_source_makes_films_captions_and_predictions(tmp_path: Path) -> None:
    folder = shard(tmp_path, truth(yaw_rate=(0.5,) * 8), truth(speed=(55.0,) * 8))
    config = ShardSourceConfig(shards=str(folder), num_frames=4, given_latents=1, tasks=TASKS)
    documents = [driving_source(config).document(index) for index in range(60)]
    assert {document.task for document in documents} == {"text_to_video", "captioning", "video_prediction"}
    told = (Motion("left", "", False), Motion("", "fast", False))
    true = {
        describe(each, language, n) for each in told for language, all_ in PHRASINGS.items() for n in range(len(all_))
    }
    said = {segment.text for document in documents for segment in document.segments if isinstance(segment, Text)}
    assert said - {""} <= true
    assert len(said) > len(true) / 2
    bare = 0
    for document in documents:
        (video,) = (segment for segment in document.segments if isinstance(segment, Video))
        assert (video.fps, video.num_frames) == (12.5, 4)
        bare += document.task == "video_prediction" and len(document.segments) == 1
    assert 10 < bare < 40
    alone = driving_source(replace(config, tasks=ShardTasks(generation=0, captioning=1)), english=0.0)
    assert all(not segment.text.isascii() for segment in alone.document(0).segments if isinstance(segment, Text))


def test_records_of_other_films_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "d.tar", [("x", {".webp": webp(noise(0, 8, 16, 16)), ".json": b'{"caption": "a cat"}'})])
    with pytest.raises(InputError, match=r"sample 'x' of .*unknown keys \['caption'\]"):
        driving_source(ShardSourceConfig(shards=str(tmp_path))).document(0)
    with pytest.raises(InputError, match="one entry per frame"):
        from_dict(Recording, to_dict(truth()) | {"offset": [0.0]})


def test_senseless_recordings_are_refused() -> None:
    for more in ({"films": 0}, {"seed": -1}, {"steps_per_frame": 0}):
        with pytest.raises(InputError):
            replace(TINY, **more)  # type: ignore[arg-type]


# --- with the simulator -----------------------------------------------------------------------------------------------


@pytest.fixture
def gymnasium() -> None:
    pytest.importorskip("Box2D", reason="the simulator is not installed: pip install 'gymnasium[box2d]'")
    pytest.importorskip("gymnasium")


@pytest.mark.usefixtures("gymnasium")
def test_a_film_is_a_function_of_seed_and_number() -> None:
    (frames, told), (again, told_again), (other, _) = (record_film(TINY, number) for number in (5, 5, 6))
    np.testing.assert_array_equal(frames, again)
    assert told == told_again
    assert not np.array_equal(frames, other)
    assert frames.shape == (4, 16, 16, 3)
    assert told.fps == 12.5


@pytest.mark.usefixtures("gymnasium")
def test_controls_lead_from_frame_to_frame() -> None:
    """Holding the recorded controls from the same start gives the same truth: nothing else moved the car."""
    from rhea.worlds.driving.simulator import Simulator

    _, told = record_film(TINY, 0)
    simulator = Simulator(told.track_seed, TINY.side, told.clockwise)
    simulator.place(told.start)
    rng = np.random.default_rng([TINY.seed, 0])
    rng.integers(2**31), rng.random(), rng.integers(len(simulator.track.points)), rng.uniform()
    driver = Driver(simulator.track, rng, TINY.steps_per_frame / 50, TINY.driver)
    for _ in range(told.warm_up):
        simulator.step(driver.act(simulator.state), TINY.steps_per_frame)
    for controls, speed, offset in zip(told.controls, told.speed, told.offset, strict=True):
        state = simulator.state
        assert state.speed == pytest.approx(speed, abs=1e-4)
        assert simulator.track.offset(state.x, state.y) == pytest.approx(offset, abs=1e-4)
        simulator.step(Controls(*controls), TINY.steps_per_frame)
    simulator.close()


@pytest.mark.usefixtures("gymnasium")
@pytest.mark.parametrize("clockwise", [False, True])
def test_the_car_starts_on_the_line_and_faces_the_next_point(clockwise: bool) -> None:
    from rhea.worlds.driving.simulator import Simulator

    simulator = Simulator(7, 16, clockwise)
    simulator.place(20)
    state, points = simulator.state, simulator.track.points
    np.testing.assert_allclose((state.x, state.y), points[20], atol=1e-3)
    ahead = points[21] - points[20]
    assert ahead @ (-math.sin(state.heading), math.cos(state.heading)) > 0.9 * np.hypot(*ahead)
    simulator.close()


@pytest.mark.usefixtures("gymnasium")
def test_pictures_show_the_car_on_the_road() -> None:
    from rhea.worlds.driving.simulator import Simulator

    simulator = Simulator(0, 64)
    simulator.place(40)
    simulator.step(Controls(0.0, 0.0, 0.0), 60)  # at rest, until the camera has zoomed in
    frame = simulator.frame().astype(int)
    simulator.close()
    assert np.ptp(frame[56:60, 36:40], axis=2).max() < 30  # grey road beside the car, which is in the middle below
    assert (frame[50:56, 30:34, 0] - frame[50:56, 30:34, 1]).max() > 60  # the car is red
    assert (frame[:, :4, 1] - frame[:, :4, 0]).max() > 60  # there is grass beside the road


@pytest.mark.usefixtures("gymnasium")
def test_recording_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    def stop(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record_driving(TINY, tmp_path / "a", stop)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["driving-00000.tar", "recording.json"]
    before = (tmp_path / "a" / "driving-00000.tar").stat()
    told: list[int] = []
    paths = record_driving(TINY, tmp_path / "a", told.append)
    assert told == [2, 3, 3]
    assert (tmp_path / "a" / "driving-00000.tar").stat() == before
    shards = Shards(paths)
    assert len(shards) == 3
    frames, expected = record_film(TINY, 2)
    np.testing.assert_array_equal(shards.film(2).frames, frames)
    assert shards.film(2).fps == expected.fps
    assert from_dict(Recording, shards.record(2)) == expected
    with pytest.raises(InputError, match="a recording of other settings"):
        record_driving(replace(TINY, seed=1), tmp_path / "a")


def test_recording_into_a_strange_folder_is_refused(tmp_path: Path) -> None:
    shard(tmp_path, truth())
    with pytest.raises(InputError, match="shards of another origin"):
        record_driving(TINY, tmp_path)
