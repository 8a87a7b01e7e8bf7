"""Grade a model on fresh scenes of the shapes world: pictures from text, answers, predicted films, edits.

Scenes and sampling noise come from seeds of their own that no training source uses. Sampling settings are the
checkpoint's defaults. A ceiling is the same measure on the true picture or film after the vision tokenizer's round
trip: what a perfect transformer would get; for answers, how often the exact grader can still read the whole scene.
Kinds that training never showed are asked for by themselves.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rhea.config import to_dict
from rhea.documents import formats
from rhea.documents.document import Image, ImageSize, Video, VideoSize
from rhea.errors import InputError
from rhea.evaluation.report import Figure, Report, checkpoint_hash, share
from rhea.generation.completion import Completer, Completion, Prompt
from rhea.generation.defaults import GenerationDefaults
from rhea.generation.model import Rhea
from rhea.generation.request import Progress
from rhea.generation.sampling import SamplingConfig
from rhea.tokenizers.vision import VisionCodec
from rhea.worlds.shapes.edits import OPERATIONS, Edit, sample_edit
from rhea.worlds.shapes.films import constant_velocity, copy_last, render_film, sample_film
from rhea.worlds.shapes.grader import read_picture, same_scene, score_film
from rhea.worlds.shapes.language import Caption, Language, caption
from rhea.worlds.shapes.questions import DESCRIBE, QUESTION_TYPES, balanced_question, chance_level
from rhea.worlds.shapes.render import render
from rhea.worlds.shapes.scene import CANVAS, HeldOut, Scene, sample_scene

_EVALUATION = 20260923
"""First word of every seed here; training sources have small ones."""
_PLACE_TOLERANCE = 2.0
"""Pixels by which a round trip may move an object and still leave every question answerable."""


@dataclass(frozen=True, kw_only=True)
class ShapesBenchmark:
    scenes: int = 200
    """Per figure of pictures, films and edits; a question type gets as many as well."""
    seed: int = 0
    english: float = 0.7
    """Share of the texts in English, as in training; the others are in Chinese."""
    batch: int = 64
    """Requests that run together."""
    tasks: tuple[str, ...] = ("text to image", "answers", "films", "edits")


class _Bench:
    """What every section needs: the model's parts, the settings, and batched completion."""

    def __init__(self, model: Rhea, config: ShapesBenchmark, progress: Callable[[Progress], None] | None) -> None:
        if model.codec is None:
            raise InputError("this checkpoint has no vision tokenizer: there is nothing to draw or see with")
        self.codec: VisionCodec = model.codec
        self.completer: Completer = model.completer
        self.defaults: GenerationDefaults = model.defaults
        self.config, self.progress = config, progress

    def rng(self, section: int) -> np.random.Generator:
        return np.random.default_rng([_EVALUATION, self.config.seed, section])

    def language(self, rng: np.random.Generator) -> Language:
        return "en" if rng.random() < self.config.english else "zh"

    def complete(self, prompts: list[Prompt]) -> list[Completion]:
        return self.completer.complete(prompts, max_requests=self.config.batch, progress=self.progress)

    def seed(self, section: int, index: int) -> int:
        return int(np.random.SeedSequence([_EVALUATION, self.config.seed, section, index]).generate_state(1)[0])

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
        return self.codec.decode_pictures([_codes(completion) for completion in completions])

    @property
    def picture_size(self) -> ImageSize:
        side = CANVAS // self.codec.spatial_factor
        return ImageSize(height=side, width=side)


def evaluate_shapes(model: Rhea, config: ShapesBenchmark, progress: Callable[[Progress], None] | None = None) -> Report:
    """Grade a model; ``progress`` is told of every step of each batch."""
    if config.scenes < 2:
        raise InputError(f"scenes is {config.scenes}; it must be at least 2")
    known: dict[str, Callable[[_Bench], list[Figure]]] = {
        "text to image": _text_to_image,
        "answers": _answers,
        "films": _films,
        "edits": _edits,
    }
    unknown = [task for task in config.tasks if task not in known]
    if unknown:
        raise InputError(f"no task is called {unknown[0]!r}; there are {', '.join(known)}")
    bench, start = _Bench(model, config, progress), time.perf_counter()
    figures = [figure for task in config.tasks for figure in known[task](bench)]
    return Report(
        benchmark="shapes",
        settings=to_dict(config) | {"generation": to_dict(model.defaults)},
        checkpoint_hash=checkpoint_hash(model.checkpoint),
        trained_on=model.trained_on,
        figures=tuple(figures),
        seconds=time.perf_counter() - start,
    )


def _text_to_image(bench: _Bench) -> list[Figure]:
    """Exact scenes: every object that the caption names, in the relations that it states, and nothing else."""
    cases: list[tuple[str, int, HeldOut]] = [
        ("1 object", 1, "exclude"),
        ("2 objects", 2, "exclude"),
        ("3 objects", 3, "exclude"),
        ("1 unseen kind", 1, "only"),
        ("2 unseen kinds", 2, "only"),
    ]
    figures = []
    for section, (name, count, held_out) in enumerate(cases):
        rng = bench.rng(section)
        scenes = [sample_scene(rng, num_objects=count, held_out=held_out) for _ in range(bench.config.scenes)]
        captions = [caption(rng, scene, bench.language(rng)) for scene in scenes]
        scale = bench.defaults.guidance_scale
        prompts = [
            Prompt(
                document=formats.text_to_image(each.text + bench.defaults.prompt_suffix),
                next=bench.picture_size,
                negative=formats.text_to_image(bench.defaults.negative_prompt) if scale != 1 else None,
                sampling=bench.sampling(scale),
                seed=bench.seed(section, index),
            )
            for index, each in enumerate(captions)
        ]
        drawn = bench.decoded(bench.complete(prompts))
        truth = bench.round_trip([render(scene) for scene in scenes])
        figures.append(
            share(
                "text to image",
                name,
                _satisfied(captions, drawn),
                _satisfied(captions, truth),
                chance=_blind_guess(captions, scenes),
            )
        )
    return figures


def _satisfied(captions: Sequence[Caption], pictures: Sequence[np.ndarray]) -> list[bool]:
    return [each.satisfied_by(read_picture(pixels)) for each, pixels in zip(captions, pictures, strict=True)]


def _blind_guess(captions: Sequence[Caption], scenes: Sequence[Scene]) -> float:
    """Return how often another scene of the same kind fits a caption: drawing without reading it."""
    hits = [
        each.satisfied_by(scene.objects) for i, each in enumerate(captions) for j, scene in enumerate(scenes) if i != j
    ]
    return float(np.mean(hits))


def _answers(bench: _Bench) -> list[Figure]:
    figures = []
    for section, question_type in enumerate((*QUESTION_TYPES, DESCRIBE), start=10):
        rng = bench.rng(section)
        asked = [balanced_question(rng, question_type, bench.language(rng)) for _ in range(bench.config.scenes)]
        pictures = [render(scene) for scene, _ in asked]
        grids = bench.codec.encode_pictures(pictures)
        prompts = [
            Prompt(
                document=formats.question_answering(Image(codes=codes), question.text),
                sampling=bench.sampling(1.0, bench.defaults.answer_temperature),
                seed=bench.seed(section, index),
                max_new_tokens=bench.defaults.max_answer_tokens,
            )
            for index, (codes, (_, question)) in enumerate(zip(grids, asked, strict=True))
        ]
        answers = [completion.text for completion in bench.complete(prompts)]
        right = [question.is_right(answer) for answer, (_, question) in zip(answers, asked, strict=True)]
        readable = [
            same_scene(read_picture(pixels), scene, tolerance=_PLACE_TOLERANCE)
            for pixels, (scene, _) in zip(bench.codec.decode_pictures(grids), asked, strict=True)
        ]
        name = question_type.replace("_", " ")
        figures.append(share("answers", name, right, readable, chance=chance_level(question_type)))
    return [*figures, _mean_of(figures, "all types")]


def _films(bench: _Bench) -> list[Figure]:
    """Predict the rest of films from their first frames; the baselines are given the true centres."""
    defaults, section = bench.defaults, 30
    given, rng = defaults.given_frames, bench.rng(section)
    films = [sample_film(rng, num_frames=defaults.num_frames) for _ in range(bench.config.scenes)]
    grids = [bench.codec.encode_film(render_film(film)) for film in films]
    size = VideoSize(
        height=grids[0].shape[1], width=grids[0].shape[2], num_frames=defaults.num_frames, fps=defaults.fps
    )
    latents, scale = given // bench.codec.clip_frames, defaults.extend_guidance_scale
    prompts = [
        Prompt(
            document=formats.video_prediction(video, latents),
            next=size,
            negative=formats.video_prediction(video, latents, defaults.negative_prompt) if scale != 1 else None,
            sampling=bench.sampling(scale, defaults.extend_temperature),
            seed=bench.seed(section, index),
        )
        for index, video in enumerate(Video(codes=codes[:latents], fps=defaults.fps) for codes in grids)
    ]
    predicted = [_codes(completion) for completion in bench.complete(prompts)]
    scores, ceilings = (
        [
            score_film(bench.codec.decode_film(codes, defaults.num_frames), film.kinds, film.centres, start=given)
            for codes, film in zip(each, films, strict=True)
        ]
        for each in (predicted, grids)
    )
    future = defaults.num_frames - given
    baselines = {
        "copy last": [_centre_error(copy_last(film.centres[:given], future), film.centres[given:]) for film in films],
        "constant velocity": [
            _centre_error(constant_velocity(film.centres[:given], future), film.centres[given:]) for film in films
        ],
    }
    error = Figure(
        group="films",
        name="centre error",
        value=float(np.mean([score.centre_error for score in scores])),
        count=len(films),
        ceiling=float(np.mean([score.centre_error for score in ceilings])),
        unskilled={name: float(np.mean(errors)) for name, errors in baselines.items()},
        unit="px",
    )
    exact = share("films", "objects kept", [s.kinds_exact for s in scores], [s.kinds_exact for s in ceilings])
    return [error, exact]


def _centre_error(predicted: np.ndarray, true: np.ndarray) -> float:
    return float(np.linalg.norm(predicted - true, axis=-1).mean())


def _edits(bench: _Bench) -> list[Figure]:
    figures = []
    for section, operation in enumerate(OPERATIONS, start=40):
        rng = bench.rng(section)
        edits = [sample_edit(rng, bench.language(rng), operation=operation) for _ in range(bench.config.scenes)]
        sources = [Image(codes=codes) for codes in bench.codec.encode_pictures([render(e.source) for e in edits])]
        scale = bench.defaults.edit_guidance_scale
        prompts = [
            Prompt(
                document=formats.editing([source], each.instruction),
                next=bench.picture_size,
                negative=formats.editing([source], bench.defaults.negative_prompt) if scale != 1 else None,
                sampling=bench.sampling(scale, bench.defaults.edit_temperature),
                seed=bench.seed(section, index),
            )
            for index, (each, source) in enumerate(zip(edits, sources, strict=True))
        ]
        drawn = bench.decoded(bench.complete(prompts))
        truth = bench.round_trip([render(each.target) for each in edits])
        unchanged = float(np.mean([each.is_right(each.source.objects) for each in edits]))
        figures.append(share("edits", operation, _right(edits, drawn), _right(edits, truth), unchanged=unchanged))
    return [*figures, _mean_of(figures, "all edits")]


def _right(edits: Sequence[Edit], pictures: Sequence[np.ndarray]) -> list[bool]:
    return [each.is_right(read_picture(pixels)) for each, pixels in zip(edits, pictures, strict=True)]


def _mean_of(figures: Sequence[Figure], name: str) -> Figure:
    """Return the plain mean of figures that were measured on equally many scenes."""
    guess = next(iter(figures[0].unskilled))
    return replace(
        figures[0],
        name=name,
        value=float(np.mean([figure.value for figure in figures])),
        ceiling=float(np.mean([figure.ceiling for figure in figures])),
        count=sum(figure.count for figure in figures),
        unskilled={guess: float(np.mean([figure.unskilled[guess] for figure in figures]))},
    )


def _codes(completion: Completion) -> Any:
    assert completion.codes is not None
    return completion.codes
