"""Anyone's captioned pictures and films as training documents: a folder of WebDataset shards is a source.

A pass shows every sample once, every pass in another order. What is drawn for a document (task, caption, which part
of a film) is a pure function of (seed, index). A world whose captions are not simply written in the .json hands in a
function of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rhea.documents import formats
from rhea.documents.document import Document, Image, Video
from rhea.documents.mixture import draw_task, task_shares
from rhea.documents.shards import Passes, Shards, find_shards
from rhea.errors import InputError

Captioner = Callable[[np.random.Generator, dict[str, Any], range], str]
"""Describes a sample by its .json and the frames of it that are shown (of a picture the only one)."""


@dataclass(frozen=True, kw_only=True)
class ShardTasks:
    """How often each task is drawn, in proportion; 0 leaves it out."""

    generation: float = 0.9
    """Caption, then picture or film."""
    captioning: float = 0.1
    prediction: float = 0.0
    """A film's first latent frames, then the others; for shards of films only."""


@dataclass(frozen=True, kw_only=True)
class ShardSourceConfig:
    """Which shards are read, and what is made of them."""

    shards: str
    """A folder of .tar files, or one of them."""
    seed: int = 0
    tasks: ShardTasks = field(default_factory=ShardTasks)
    caption: str = "caption"
    """Where the .json holds the caption: a text, or a list of which one is drawn each time."""
    unconditional: float = 0.1
    """Share of the captions before what is drawn that are left empty, for classifier-free guidance."""
    captioned_prediction: float = 0.25
    """Share of the video predictions that begin with the caption."""
    num_frames: int | None = None
    """Of a film, so many frames in a row; all if None."""
    given_latents: int = 1
    """Latent frames (of four frames each) from which video prediction starts."""


class ShardSource:
    """An endless source of documents (the Source protocol of ``rhea.documents.mixture``)."""

    def __init__(self, config: ShardSourceConfig, captioner: Captioner | None = None) -> None:
        """Index the shards; ``captioner`` replaces reading the caption from the .json."""
        if config.seed < 0:
            raise InputError(f"a seed must not be negative, got {config.seed}")
        self.config = config
        self.shards = Shards(find_shards(config.shards))
        self._shares = task_shares(config.tasks)
        self._passes = Passes(len(self.shards), config.seed)
        self._captioner = captioner or self._written_caption

    def document(self, index: int) -> Document:
        """Make document ``index``, with pixels; the same index always gives the same document."""
        rng = np.random.default_rng([self.config.seed, index, 1])
        number = self._passes[index]
        task = ("generation", "captioning", "prediction")[draw_task(rng, self._shares)]
        visual, shown = self._visual(rng, number)
        try:
            caption = self._captioner(rng, self.shards.record(number), shown)
        except InputError as error:
            raise InputError(f"{self.shards.name(number)}: {error}") from None
        if task == "captioning":
            return formats.captioning(visual, caption)
        given = self.config.captioned_prediction if task == "prediction" else 1 - self.config.unconditional
        caption = caption if rng.random() < given else ""
        if isinstance(visual, Video):
            if task == "prediction":
                return formats.video_prediction(visual, self.config.given_latents, caption)
            return formats.text_to_video(caption, visual)
        if task == "prediction":
            raise InputError(f"{self.shards.name(number)} is a picture; prediction needs films")
        return formats.text_to_image(caption, visual)

    def _visual(self, rng: np.random.Generator, number: int) -> tuple[Image | Video, range]:
        """Decode a picture, or a window of a film, and tell which frames it shows."""
        seen = self.shards.visual(number)
        if isinstance(seen, np.ndarray):
            return Image(pixels=seen), range(1)
        wanted = self.config.num_frames or len(seen.frames)
        if wanted > len(seen.frames):
            raise InputError(f"{self.shards.name(number)} has {len(seen.frames)} frames; {wanted} are wanted")
        first = int(rng.integers(len(seen.frames) - wanted + 1))
        shown = range(first, first + wanted)
        return Video(frames=seen.frames[first : shown.stop], fps=seen.fps), shown

    def _written_caption(self, rng: np.random.Generator, record: dict[str, Any], shown: range) -> str:
        written = record.get(self.config.caption)
        options = [written] if isinstance(written, str) else written
        if not isinstance(options, list) or not options or not all(isinstance(each, str) for each in options):
            raise InputError(f"its .json has no text, and no list of texts, under {self.config.caption!r}")
        return options[int(rng.integers(len(options)))]
