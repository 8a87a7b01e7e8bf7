"""Recorded driving as training documents: films from captions, captions of films, and what comes next.

Captions are made from the truth of the very frames that are shown, so a generated film can be graded against them.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from rhea.config import from_dict
from rhea.documents.shard_source import ShardSource, ShardSourceConfig, ShardTasks
from rhea.worlds.driving.recording import ROAD_HALF_WIDTH, Recording

Language = Literal["en", "zh"]

TASKS = ShardTasks(generation=0.3, captioning=0.1, prediction=0.6)
"""A mix for films of driving: most of what there is to learn is what comes next."""
TURNING = 0.2
"""Mean yaw rate in radians per second from which a film shows a turn."""
SLOW, FAST = 25.0, 42.0
"""Mean speeds in units per second below and above which it is said."""

TURNS = {"left": ("turning left", "左转"), "right": ("turning right", "右转"), "": ("driving straight on", "直行")}
PACES = {"slow": ("slowly", "慢速"), "fast": ("fast", "快速"), "": ("", "")}
PHRASINGS: dict[Language, tuple[str, ...]] = {
    "en": ("a red car {motion}", "a red car {motion}, seen from above", "a car on a race track, {motion}"),
    "zh": ("一辆红色汽车{motion}", "俯视：一辆红色汽车{motion}", "赛道上的汽车{motion}"),
}


class Motion(NamedTuple):
    """What a caption claims."""

    turn: Literal["left", "right", ""]
    pace: Literal["slow", "fast", ""]
    leaves_road: bool


def driving_source(config: ShardSourceConfig, *, english: float = 0.5) -> ShardSource:
    """Open the shards that ``record_driving`` wrote; ``english`` is the share of captions in English."""
    return ShardSource(config, partial(_caption, english))


def motion(recording: Recording, shown: range) -> Motion:
    """Tell what the car does during the frames that are shown."""
    yaw, speed, offset = (
        np.array(values)[shown.start : shown.stop] for values in (recording.yaw_rate, recording.speed, recording.offset)
    )
    return Motion(
        "left" if yaw.mean() > TURNING else "right" if yaw.mean() < -TURNING else "",
        "slow" if speed.mean() < SLOW else "fast" if speed.mean() > FAST else "",
        bool((np.abs(offset) > ROAD_HALF_WIDTH).any()),
    )


def describe(told: Motion, language: Language, phrasing: int = 0) -> str:
    """Say it in one of the PHRASINGS."""
    turn, pace = (words[language == "zh"] for words in (TURNS[told.turn], PACES[told.pace]))
    if language == "zh":
        said = pace + turn + ("，驶出路面" if told.leaves_road else "")
    else:
        said = " ".join(filter(None, (turn, pace))) + (", off the road" if told.leaves_road else "")
    return PHRASINGS[language][phrasing].format(motion=said)


def _caption(english: float, rng: np.random.Generator, record: dict[str, Any], shown: range) -> str:
    language: Language = "en" if rng.random() < english else "zh"
    told = motion(from_dict(Recording, record, "its .json"), shown)
    return describe(told, language, int(rng.integers(len(PHRASINGS[language]))))
