"""What a server and a page ask of a model, and what they hear while it works: the only thing that both know of it.

No torch here: arrays in, arrays and text out. ``local.py`` answers in this process, ``process.py`` in a child that may
die and be born again; tests answer with a fake.
"""

import math
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn; None stands for the checkpoint's own default."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    seed: int = 0
    sample_index: int = 0


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A film as pixels: frames [T, H, W, 3] uint8."""

    frames: np.ndarray
    fps: float


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A picture from a text; a film if ``num_frames`` is given."""

    prompt: str
    size: str | None = None
    """ "WIDTHxHEIGHT" in pixels, or a ratio."""
    num_frames: int | None = None
    fps: float | None = None
    best_of: int = 1
    """Draw so many pictures, keep the one that the model itself finds nearest to the text. Without partials."""
    revise: bool | None = None
    """Whether the model puts the text of a picture first in words that it draws more surely; None: as it prefers."""
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A picture from pictures [H, W, 3] and an instruction."""

    images: tuple[np.ndarray, ...]
    instruction: str
    size: str | None = None
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, kw_only=True)
class Extend:
    """A film continued by ``num_frames`` frames."""

    film: Clip
    num_frames: int | None = None
    caption: str = ""
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The next turn of a chat about a picture, a film or nothing."""

    turns: tuple[tuple[str, str | None], ...]
    """Questions with their answers; the last answer is None."""
    visual: np.ndarray | Clip | None = None
    max_new_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)


Task = Draw | Edit | Extend | Answer


@dataclass(frozen=True, kw_only=True)
class TextDelta:
    """More of an answer."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Partial:
    """What can be seen of a picture [H, W, 3] or film [T, H, W, 3] so far."""

    pixels: np.ndarray
    rows_done: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class Done:
    """The result and what it took."""

    text: str = ""
    pixels: np.ndarray | None = None
    fps: float | None = None
    codes: np.ndarray | None = None
    token_ids: tuple[int, ...] = ()
    prompt_tokens: int = 0
    new_tokens: int = 0
    finish_reason: str = "stop"
    """ "length" if an answer was cut off."""
    sample_index: int | None = None
    """Of the best of several pictures: which sample it is, to have it again by itself."""
    revised_prompt: str | None = None
    """The words that a picture was drawn from instead of those that were asked for."""


Event = TextDelta | Partial | Done


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a client may want to know."""

    name: str
    trained_on: str
    height: int
    width: int
    num_frames: int
    fps: float
    max_tokens: int
    """Context length."""
    min_side: int = 1
    """In pixels, of pictures and films that it can look at."""
    max_aspect_ratio: float = math.inf


class Backend(Protocol):
    """A model at work."""

    @property
    def ready(self) -> bool:
        """Whether requests are taken now."""
        ...

    @property
    def info(self) -> ModelInfo: ...

    def run(self, task: Task, *, partials: int | None = None) -> AsyncGenerator[Event, None]:
        """Work on a task; the last event is ``Done``.

        ``partials``: the most Partials to show of a picture, at even distances; None for as many as there usually are.

        Leaving the loop cancels within one step. Raises InputError for what the user can mend, BusyError where too much
        waits already, and BackendDiedError where the engine broke down.
        """
        ...

    async def counters(self) -> dict[str, float]:
        """Return the engine's ``Statistics`` and the number of waiting and running requests, by name."""
        ...


class BackendDiedError(RuntimeError):
    """The engine broke down while it worked on this; another attempt may succeed."""
