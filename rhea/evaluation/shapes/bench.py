"""What every section of the shapes benchmark needs: settings, cases, batched completion, shares of exact results."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from rhea.documents.document import ImageSize
from rhea.errors import InputError
from rhea.evaluation.page import Film, Picture
from rhea.evaluation.report import Figure, share
from rhea.evaluation.task import EVALUATION, Record, codes_of
from rhea.generation.completion import Completer, Completion, Prompt
from rhea.generation.defaults import GenerationDefaults
from rhea.generation.model import Rhea
from rhea.generation.request import Progress
from rhea.generation.sampling import SamplingConfig
from rhea.tokenizers.vision import VisionCodec
from rhea.worlds.shapes.language import Language
from rhea.worlds.shapes.scene import CANVAS


@dataclass(frozen=True, kw_only=True)
class ShapesBenchmark:
    scenes: int = 200
    """Per figure of pictures, films and edits; a question type gets as many as well."""
    seed: int = 0
    english: float = 0.7
    """Share of the texts in English, as in training; the others are in Chinese."""
    batch: int = 64
    """Requests that run together."""
    tasks: tuple[str, ...] = ("text to image", "answers", "films", "text to film", "edits")
    best_of: int = 1
    """If more than 1, pictures are drawn so many times as well, and the one graded that the model itself finds best."""


class Bench:
    """What every section needs: the model's parts, the settings, and batched completion."""

    def __init__(self, model: Rhea, config: ShapesBenchmark, progress: Callable[[Progress], None] | None) -> None:
        if model.codec is None:
            raise InputError("this checkpoint has no vision tokenizer: there is nothing to draw or see with")
        self.codec: VisionCodec = model.codec
        self.completer: Completer = model.completer
        self.defaults: GenerationDefaults = model.defaults
        self.config, self.progress = config, progress

    def rng(self, section: int) -> np.random.Generator:
        return np.random.default_rng([EVALUATION, self.config.seed, section])

    def language(self, rng: np.random.Generator) -> Language:
        return "en" if rng.random() < self.config.english else "zh"

    def complete(self, prompts: list[Prompt]) -> list[Completion]:
        return self.completer.complete(prompts, max_requests=self.config.batch, progress=self.progress)

    def seed(self, section: int, index: int) -> int:
        return int(np.random.SeedSequence([EVALUATION, self.config.seed, section, index]).generate_state(1)[0])

    def sampling(self, guidance_scale: float, temperature: float | None = None) -> SamplingConfig:
        return SamplingConfig(
            temperature=self.defaults.temperature if temperature is None else temperature,
            top_k=self.defaults.top_k,
            top_p=self.defaults.top_p,
            guidance_scale=guidance_scale,
        )

    def round_trip(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        return self.codec.decode_pictures(self.codec.encode_pictures(pictures))

    def decoded(self, completions: Sequence[Completion]) -> list[np.ndarray]:
        return self.codec.decode_pictures([codes_of(completion) for completion in completions])

    @property
    def picture_size(self) -> ImageSize:
        side = CANVAS // self.codec.spatial_factor
        return ImageSize(height=side, width=side)


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A scene and what is asked of it."""

    group: str
    name: str
    """With the group, the figure that it counts for."""
    seed: int
    about: Any
    """What the section that made it grades it by."""


class Section(Protocol):
    """Cases of one group."""

    group: str

    def cases(self) -> list[Case]: ...
    def grade(self, cases: Sequence[Case]) -> list[Record]: ...
    def figures(self, records: dict[str, list[Record]]) -> list[Figure]:
        """Sum up the records of each name."""

    def show(self, case: Case, record: Record) -> tuple[str, list[Picture | Film]]:
        """Return the command that does the same as a case, and its pictures."""


def exact_share(group: str, name: str, records: Sequence[Record], **unskilled: float) -> Figure:
    return share(group, name, [each["right"] for each in records], [each["ceiling"] for each in records], **unskilled)


def mean_of(figures: Sequence[Figure], name: str) -> Figure:
    """Return the plain mean of figures that were measured on equally many scenes."""
    guess = next(iter(figures[0].unskilled))
    return replace(
        figures[0],
        name=name,
        value=float(np.mean([figure.value for figure in figures])),
        ceiling=float(np.mean([figure.ceiling or 0.0 for figure in figures])),
        count=sum(figure.count for figure in figures),
        unskilled={guess: float(np.mean([figure.unskilled[guess] for figure in figures]))},
    )


def verdict(record: Record) -> str:
    return "exactly as asked" if record["right"] else "not as asked"
