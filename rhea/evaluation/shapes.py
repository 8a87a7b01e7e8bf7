"""Grade a model on fresh scenes of the shapes world: pictures and films from text, answers, predicted films, edits.

Scenes and sampling noise come from seeds of their own that no training source uses. Sampling settings are the
checkpoint's defaults. A ceiling is the same measure on the true picture or film after the vision tokenizer's round
trip: what a perfect transformer would get; for answers, how often the exact grader can still read the whole scene.
Kinds that training never showed are asked for by themselves.

All scenes are made at the start, in one order, from a random stream for each kind of case; a shard grades its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Protocol

import numpy as np

from rhea.config import to_dict
from rhea.documents import formats
from rhea.documents.document import Image, ImageSize, Video, VideoSize
from rhea.errors import InputError
from rhea.evaluation.page import Film, Picture
from rhea.evaluation.report import Figure, Report, share
from rhea.evaluation.runner import run_task
from rhea.evaluation.task import EVALUATION, Record, best_of_option, best_of_title, codes_of
from rhea.generation.completion import Completer, Completion, Prompt
from rhea.generation.defaults import GenerationDefaults
from rhea.generation.model import Rhea
from rhea.generation.request import Progress
from rhea.generation.sampling import SamplingConfig
from rhea.tokenizers.vision import VisionCodec
from rhea.worlds.shapes.edits import OPERATIONS, Edit, sample_edit
from rhea.worlds.shapes.films import Film as ShapesFilm
from rhea.worlds.shapes.films import constant_velocity, copy_last, render_film, sample_film
from rhea.worlds.shapes.grader import read_picture, same_kinds, same_scene, score_film
from rhea.worlds.shapes.language import Caption, Language, caption, film_caption
from rhea.worlds.shapes.questions import DESCRIBE, QUESTION_TYPES, balanced_question, chance_level
from rhea.worlds.shapes.render import render
from rhea.worlds.shapes.scene import CANVAS, HeldOut, Scene, sample_scene

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
    tasks: tuple[str, ...] = ("text to image", "answers", "films", "text to film", "edits")
    best_of: int = 1
    """If more than 1, pictures are drawn so many times as well, and the one graded that the model itself finds best."""


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
class _Case:
    """A scene and what is asked of it."""

    group: str
    name: str
    """With the group, the figure that it counts for."""
    seed: int
    about: Any
    """What the section that made it grades it by."""


class _Section(Protocol):
    """Cases of one group."""

    group: str

    def cases(self) -> list[_Case]: ...
    def grade(self, cases: Sequence[_Case]) -> list[Record]: ...
    def figures(self, records: dict[str, list[Record]]) -> list[Figure]:
        """Sum up the records of each name."""

    def show(self, case: _Case, record: Record) -> tuple[str, list[Picture | Film]]:
        """Return the command that does the same as a case, and its pictures."""


class ShapesTask:
    """The benchmark as a task; see the module."""

    name = "shapes"

    def __init__(
        self, model: Rhea, config: ShapesBenchmark, progress: Callable[[Progress], None] | None = None
    ) -> None:
        """``progress`` is told of every step of each batch."""
        if config.best_of < 1:
            raise InputError(f"best_of is {config.best_of}; it must be at least 1")
        if config.scenes < 2:
            raise InputError(f"scenes is {config.scenes}; it must be at least 2")
        known: dict[str, Callable[[_Bench], _Section]] = {
            "text to image": _TextToImage,
            "answers": _Answers,
            "films": _Films,
            "text to film": _TextToFilm,
            "edits": _Edits,
        }
        unknown = [task for task in config.tasks if task not in known]
        if unknown:
            raise InputError(f"no task is called {unknown[0]!r}; there are {', '.join(known)}")
        bench = _Bench(model, config, progress)
        self.batch = config.batch
        self.settings = to_dict(config) | {"generation": to_dict(model.defaults)}
        sections = [known[task](bench) for task in config.tasks]
        if config.best_of > 1 and "text to image" in config.tasks:
            sections.append(_TextToImage(bench, config.best_of))
        self._sections = {section.group: section for section in sections}
        self._cases = [case for section in sections for case in section.cases()]

    def __len__(self) -> int:
        return len(self._cases)

    def grade(self, indices: Sequence[int]) -> list[Record]:
        """Grade these cases, those of one group together."""
        groups = groupby((self._cases[index] for index in indices), key=lambda case: case.group)
        return [record for group, cases in groups for record in self._sections[group].grade(list(cases))]

    def figures(self, records: Sequence[Record]) -> list[Figure]:
        """Return the figures of every section."""
        found: dict[str, dict[str, list[Record]]] = {group: {} for group in self._sections}
        for case, record in zip(self._cases, records, strict=True):
            found[case.group].setdefault(case.name, []).append(record)
        return [figure for group, section in self._sections.items() for figure in section.figures(found[group])]

    def standing(self, index: int, record: Record) -> tuple[str, float]:
        """Return the group that a case is shown in, and how well it was done."""
        return f"shapes, {self._cases[index].group}", float(-record["error"] if "error" in record else record["right"])

    def show(self, index: int, record: Record) -> tuple[str, list[Picture | Film]]:
        """Return the command that does the same as a case, and its pictures."""
        case = self._cases[index]
        return self._sections[case.group].show(case, record)


def evaluate_shapes(model: Rhea, config: ShapesBenchmark, progress: Callable[[Progress], None] | None = None) -> Report:
    """Grade a model in one go; ``progress`` is told of every step of each batch."""
    report = run_task(ShapesTask(model, config, progress), model)
    assert report is not None, "there is one shard"
    return report


def _share(group: str, name: str, records: Sequence[Record], **unskilled: float) -> Figure:
    return share(group, name, [each["right"] for each in records], [each["ceiling"] for each in records], **unskilled)


class _TextToImage:
    """Exact scenes: every object that the caption names, in the relations that it states, and nothing else."""

    def __init__(self, bench: _Bench, best_of: int = 1) -> None:
        self.bench, self.best_of = bench, best_of
        self.group = "text to image" + best_of_title(best_of)

    def cases(self) -> list[_Case]:
        kinds: list[tuple[str, int, HeldOut]] = [
            ("1 object", 1, "exclude"),
            ("2 objects", 2, "exclude"),
            ("3 objects", 3, "exclude"),
            ("1 unseen kind", 1, "only"),
            ("2 unseen kinds", 2, "only"),
        ]
        bench, cases = self.bench, []
        for section, (name, count, held_out) in enumerate(kinds):
            rng = bench.rng(section)
            scenes = [sample_scene(rng, num_objects=count, held_out=held_out) for _ in range(bench.config.scenes)]
            captions = [caption(rng, scene, bench.language(rng)) for scene in scenes]
            for index, (told, scene) in enumerate(zip(captions, scenes, strict=True)):
                about = (told, scene, _fitting_others(index, told, scenes))
                cases.append(_Case(group=self.group, name=name, seed=bench.seed(section, index), about=about))
        return cases

    def grade(self, cases: Sequence[_Case]) -> list[Record]:
        bench, scale = self.bench, self.bench.defaults.guidance_scale
        prompts = [
            Prompt(
                document=formats.text_to_image(case.about[0].text + bench.defaults.prompt_suffix),
                next=bench.picture_size,
                negative=formats.text_to_image(bench.defaults.negative_prompt) if scale != 1 else None,
                sampling=bench.sampling(scale),
                seed=case.seed,
                best_of=self.best_of,
            )
            for case in cases
        ]
        written = bench.complete(prompts)
        drawn, truth = bench.decoded(written), bench.round_trip([render(case.about[1]) for case in cases])
        return [
            {
                "right": told.satisfied_by(read_picture(pixels)),
                "ceiling": told.satisfied_by(read_picture(true)),
                "fits others": fits,
                "codes": codes_of(codes).tolist(),
            }
            for (told, _, fits), pixels, true, codes in zip(
                (case.about for case in cases), drawn, truth, written, strict=True
            )
        ]

    def show(self, case: _Case, record: Record) -> tuple[str, list[Picture | Film]]:
        """Return what was drawn."""
        text = case.about[0].text
        pixels = self.bench.codec.decode_picture(np.array(record["codes"]))
        picture = Picture(pixels=pixels, caption=text, verdict=_verdict(record), note=case.name)
        command = f'rhea generate "{text}" --size {CANVAS}x{CANVAS} --seed {case.seed}'
        return command + best_of_option(self.best_of), [picture]

    def figures(self, records: dict[str, list[Record]]) -> list[Figure]:
        """Chance is how often another scene of the same kind fits a caption: drawing without reading it."""
        pairs = self.bench.config.scenes * (self.bench.config.scenes - 1)
        return [
            _share(self.group, name, each, chance=sum(record["fits others"] for record in each) / pairs)
            for name, each in records.items()
        ]


def _fitting_others(index: int, told: Caption, scenes: Sequence[Scene]) -> int:
    """Return how many of the other scenes fit the caption of the scene at ``index``."""
    return sum(told.satisfied_by(scene.objects) for other, scene in enumerate(scenes) if other != index)


class _Answers:
    """Questions about pictures, as often with one answer as with another."""

    group = "answers"

    def __init__(self, bench: _Bench) -> None:
        self.bench = bench

    def cases(self) -> list[_Case]:
        bench, cases = self.bench, []
        for section, question_type in enumerate((*QUESTION_TYPES, DESCRIBE), start=10):
            rng = bench.rng(section)
            for index in range(bench.config.scenes):
                asked = balanced_question(rng, question_type, bench.language(rng))
                seed = bench.seed(section, index)
                cases.append(_Case(group=self.group, name=question_type, seed=seed, about=asked))
        return cases

    def grade(self, cases: Sequence[_Case]) -> list[Record]:
        bench, asked = self.bench, [case.about for case in cases]
        grids = bench.codec.encode_pictures([render(scene) for scene, _ in asked])
        prompts = [
            Prompt(
                document=formats.question_answering(Image(codes=codes), case.about[1].text),
                sampling=bench.sampling(1.0, bench.defaults.answer_temperature),
                seed=case.seed,
                max_new_tokens=bench.defaults.max_answer_tokens,
            )
            for codes, case in zip(grids, cases, strict=True)
        ]
        answers = [completion.text for completion in bench.complete(prompts)]
        seen = bench.codec.decode_pictures(grids)
        return [
            {
                "right": question.is_right(answer),
                "ceiling": same_scene(read_picture(pixels), scene, tolerance=_PLACE_TOLERANCE),
                "answer": answer,
            }
            for (scene, question), answer, pixels in zip(asked, answers, seen, strict=True)
        ]

    def figures(self, records: dict[str, list[Record]]) -> list[Figure]:
        figures = [
            _share(self.group, name.replace("_", " "), each, chance=chance_level(name))
            for name, each in records.items()
        ]
        return [*figures, _mean_of(figures, "all types")]

    def show(self, case: _Case, record: Record) -> tuple[str, list[Picture | Film]]:
        """Return what was asked about, and the answer."""
        scene, question = case.about
        verdict = _verdict(record) if record["right"] else f"is: {question.answer}"
        return f'rhea ask PICTURE "{question.text}"', [
            Picture(pixels=render(scene), caption=question.text, answer=record["answer"], verdict=verdict)
        ]


class _Films:
    """The rest of films, predicted from their first frames.

    The guesses of centres are given the true ones; of objects, the last given frame after its round trip.
    """

    group = "films"

    def __init__(self, bench: _Bench) -> None:
        self.bench = bench

    def cases(self) -> list[_Case]:
        bench, section = self.bench, 30
        rng = bench.rng(section)
        films = [sample_film(rng, num_frames=bench.defaults.num_frames) for _ in range(bench.config.scenes)]
        return [
            _Case(group=self.group, name="films", seed=bench.seed(section, index), about=film)
            for index, film in enumerate(films)
        ]

    def grade(self, cases: Sequence[_Case]) -> list[Record]:
        bench, defaults = self.bench, self.bench.defaults
        grids = [bench.codec.encode_film(render_film(case.about)) for case in cases]
        latents = defaults.given_frames // bench.codec.clip_frames
        prompts = [
            self._prompt(Video(codes=codes[:latents], fps=defaults.fps), latents, case.seed)
            for codes, case in zip(grids, cases, strict=True)
        ]
        predicted = [codes_of(completion) for completion in bench.complete(prompts)]
        return [
            self._record(case.about, codes, truth) for case, codes, truth in zip(cases, predicted, grids, strict=True)
        ]

    def _prompt(self, given: Video, latents: int, seed: int) -> Prompt:
        defaults, scale = self.bench.defaults, self.bench.defaults.extend_guidance_scale
        assert given.codes is not None
        height, width = given.codes.shape[1:]
        return Prompt(
            document=formats.video_prediction(given, latents),
            next=VideoSize(height=height, width=width, num_frames=defaults.num_frames, fps=defaults.fps),
            negative=formats.video_prediction(given, latents, defaults.negative_prompt) if scale != 1 else None,
            sampling=self.bench.sampling(scale, defaults.extend_temperature),
            seed=seed,
        )

    def _record(self, film: Any, predicted: np.ndarray, truth: np.ndarray) -> Record:
        given, length = self.bench.defaults.given_frames, self.bench.defaults.num_frames
        frames, true = (self.bench.codec.decode_film(codes, length) for codes in (predicted, truth))
        score, ceiling = (score_film(each, film.kinds, film.centres, start=given) for each in (frames, true))
        guesses = {"copy last": copy_last, "constant velocity": constant_velocity}
        return {
            "right": bool(score.kinds_exact),
            "ceiling": bool(ceiling.kinds_exact),
            "last exact": same_kinds(read_picture(true[given - 1]), film.scene(given - 1)),
            "codes": predicted.tolist(),
            "error": float(score.centre_error),
            "least error": float(ceiling.centre_error),
            "unskilled": {
                name: _centre_error(guess(film.centres[:given], length - given), film.centres[given:])
                for name, guess in guesses.items()
            },
        }

    def figures(self, records: dict[str, list[Record]]) -> list[Figure]:
        films = records["films"]
        error = Figure(
            group=self.group,
            name="centre error",
            value=float(np.mean([each["error"] for each in films])),
            count=len(films),
            ceiling=float(np.mean([each["least error"] for each in films])),
            unskilled={
                name: float(np.mean([each["unskilled"][name] for each in films])) for name in films[0]["unskilled"]
            },
            unit="px",
        )
        copied = float(np.mean([each["last exact"] for each in films]))
        return [error, _share(self.group, "objects kept", films, **{"copy last": copied})]

    def show(self, case: _Case, record: Record) -> tuple[str, list[Picture | Film]]:
        """Return what was predicted, and the truth."""
        defaults, codes = self.bench.defaults, np.array(record["codes"])
        predicted = self.bench.codec.decode_film(codes, defaults.num_frames)
        told = {f"predicted, {record['error']:.1f} px": predicted, "what really happens": render_film(case.about)}
        return f"rhea extend FILM --seed {case.seed}", [
            Film(frames=frames, fps=defaults.fps, caption=caption, given=defaults.given_frames)
            for caption, frames in told.items()
        ]


def _centre_error(predicted: np.ndarray, true: np.ndarray) -> float:
    return float(np.linalg.norm(predicted - true, axis=-1).mean())


class _TextToFilm:
    """Films of objects that set off as the text says; of films of the right objects that move anywhere few do."""

    group = "text to film"

    def __init__(self, bench: _Bench) -> None:
        self.bench = bench

    def cases(self) -> list[_Case]:
        bench, cases = self.bench, []
        for section, (name, count) in enumerate((("1 object", 1), ("2 objects", 2)), start=50):
            rng = bench.rng(section)
            for index in range(bench.config.scenes):
                about = self._told_film(rng, count)
                cases.append(_Case(group=self.group, name=name, seed=bench.seed(section, index), about=about))
        return cases

    def _told_film(self, rng: np.random.Generator, count: int) -> tuple[Caption, ShapesFilm]:
        """Draw a film whose caption names directions, and whose objects keep to them as long as they are graded."""
        while True:
            film = sample_film(rng, num_frames=self.bench.defaults.num_frames, num_objects=count)
            told = film_caption(rng, film, self.bench.language(rng))
            before, after = film.scene(0).objects, film.scene(self.bench.codec.clip_frames - 1).objects
            if told.motions and all(motion.holds(before, after, least=1.5) for motion in told.motions):
                return told, film

    def grade(self, cases: Sequence[_Case]) -> list[Record]:
        bench, defaults = self.bench, self.bench.defaults
        scale, grid, length = defaults.film_guidance_scale, bench.picture_size, defaults.num_frames
        sampling = SamplingConfig(
            temperature=defaults.film_temperature,
            top_k=defaults.top_k,
            top_p=defaults.film_top_p,
            guidance_scale=scale,
        )
        prompts = [
            Prompt(
                document=formats.text_to_video(case.about[0].text),
                next=VideoSize(height=grid.height, width=grid.width, num_frames=length, fps=defaults.fps),
                negative=formats.text_to_video(defaults.negative_prompt) if scale != 1 else None,
                sampling=sampling,
                seed=case.seed,
            )
            for case in cases
        ]
        written = [codes_of(completion) for completion in bench.complete(prompts)]
        records = []
        for case, codes in zip(cases, written, strict=True):
            told, film = case.about
            truth = bench.codec.encode_film(render_film(film))
            drawn, true = (self._follows(told, bench.codec.decode_film(each, length)) for each in (codes, truth))
            records.append({"objects": drawn[0], "right": all(drawn), "ceiling": all(true), "codes": codes.tolist()})
        return records

    def _follows(self, told: Caption, frames: np.ndarray) -> tuple[bool, bool]:
        """Tell whether a film begins with what the caption names, and whether that sets off as it says."""
        before, after = read_picture(frames[0]), read_picture(frames[self.bench.codec.clip_frames - 1])
        return told.satisfied_by(before), all(motion.holds(before, after) for motion in told.motions)

    def figures(self, records: dict[str, list[Record]]) -> list[Figure]:
        """A quarter of all directions is within 45 degrees of what is said."""
        found = []
        for count, (name, each) in enumerate(records.items(), start=1):
            shown = float(np.mean([record["objects"] for record in each]))
            found.append(_share(self.group, name, each, **{"its objects, any way": shown * 0.25**count}))
        return found

    def show(self, case: _Case, record: Record) -> tuple[str, list[Picture | Film]]:
        """Return the film and what it is to show."""
        told, truth = case.about
        frames = self.bench.codec.decode_film(np.array(record["codes"]), self.bench.defaults.num_frames)
        command = f'rhea generate "{told.text}" --video --size {CANVAS}x{CANVAS} --seed {case.seed}'
        shown = {told.text: frames, "one that fits": render_film(truth)}
        return command, [Film(frames=each, fps=self.bench.defaults.fps, caption=text) for text, each in shown.items()]


class _Edits:
    """Pictures changed by an instruction; leaving them as they are is the guess without skill."""

    group = "edits"

    def __init__(self, bench: _Bench) -> None:
        self.bench = bench

    def cases(self) -> list[_Case]:
        bench, cases = self.bench, []
        for section, operation in enumerate(OPERATIONS, start=40):
            rng = bench.rng(section)
            for index in range(bench.config.scenes):
                edit = sample_edit(rng, bench.language(rng), operation=operation)
                cases.append(_Case(group=self.group, name=operation, seed=bench.seed(section, index), about=edit))
        return cases

    def grade(self, cases: Sequence[_Case]) -> list[Record]:
        bench, scale = self.bench, self.bench.defaults.edit_guidance_scale
        edits: list[Edit] = [case.about for case in cases]
        sources = [Image(codes=codes) for codes in bench.codec.encode_pictures([render(e.source) for e in edits])]
        prompts = [
            Prompt(
                document=formats.editing([source], case.about.instruction),
                next=bench.picture_size,
                negative=formats.editing([source], bench.defaults.negative_prompt) if scale != 1 else None,
                sampling=bench.sampling(scale, bench.defaults.edit_temperature),
                seed=case.seed,
            )
            for case, source in zip(cases, sources, strict=True)
        ]
        written = bench.complete(prompts)
        drawn, truth = bench.decoded(written), bench.round_trip([render(each.target) for each in edits])
        return [
            {
                "right": edit.is_right(read_picture(pixels)),
                "ceiling": edit.is_right(read_picture(true)),
                "unchanged": edit.is_right(edit.source.objects),
                "codes": codes_of(codes).tolist(),
            }
            for edit, pixels, true, codes in zip(edits, drawn, truth, written, strict=True)
        ]

    def figures(self, records: dict[str, list[Record]]) -> list[Figure]:
        figures = [
            _share(self.group, name, each, unchanged=float(np.mean([record["unchanged"] for record in each])))
            for name, each in records.items()
        ]
        return [*figures, _mean_of(figures, "all edits")]

    def show(self, case: _Case, record: Record) -> tuple[str, list[Picture | Film]]:
        """Return the picture before and after."""
        edit, after = case.about, self.bench.codec.decode_picture(np.array(record["codes"]))
        return f'rhea edit PICTURE "{edit.instruction}" --seed {case.seed}', [
            Picture(pixels=render(edit.source), caption="before"),
            Picture(pixels=after, caption=edit.instruction, verdict=_verdict(record)),
        ]


def _mean_of(figures: Sequence[Figure], name: str) -> Figure:
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


def _verdict(record: Record) -> str:
    return "exactly as asked" if record["right"] else "not as asked"
