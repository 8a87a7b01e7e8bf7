"""Films: continued from their first frames, and made from text."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rhea.documents import formats
from rhea.documents.document import Video, VideoSize
from rhea.evaluation.page import Film, Picture
from rhea.evaluation.report import Figure
from rhea.evaluation.shapes.bench import Bench, Case, exact_share
from rhea.evaluation.task import Record, codes_of
from rhea.generation.completion import Prompt
from rhea.generation.sampling import SamplingConfig
from rhea.worlds.shapes.films import Film as ShapesFilm
from rhea.worlds.shapes.films import constant_velocity, copy_last, render_film, sample_film
from rhea.worlds.shapes.grader import read_picture, same_kinds, score_film
from rhea.worlds.shapes.language import Caption, film_caption
from rhea.worlds.shapes.scene import CANVAS


class Films:
    """The rest of films, predicted from their first frames.

    The guesses of centres are given the true ones; of objects, the last given frame after its round trip.
    """

    group = "films"

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def cases(self) -> list[Case]:
        bench, section = self.bench, 30
        rng = bench.rng(section)
        films = [sample_film(rng, num_frames=bench.defaults.num_frames) for _ in range(bench.config.scenes)]
        return [
            Case(group=self.group, name="films", seed=bench.seed(section, index), about=film)
            for index, film in enumerate(films)
        ]

    def grade(self, cases: Sequence[Case]) -> list[Record]:
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
        return [error, exact_share(self.group, "objects kept", films, **{"copy last": copied})]

    def show(self, case: Case, record: Record) -> tuple[str, list[Picture | Film]]:
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


class TextToFilm:
    """Films of objects that set off as the text says; of films of the right objects that move anywhere few do."""

    group = "text to film"

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def cases(self) -> list[Case]:
        bench, cases = self.bench, []
        for section, (name, count) in enumerate((("1 object", 1), ("2 objects", 2)), start=50):
            rng = bench.rng(section)
            for index in range(bench.config.scenes):
                about = self._told_film(rng, count)
                cases.append(Case(group=self.group, name=name, seed=bench.seed(section, index), about=about))
        return cases

    def _told_film(self, rng: np.random.Generator, count: int) -> tuple[Caption, ShapesFilm]:
        """Draw a film whose caption names directions, and whose objects keep to them as long as they are graded."""
        while True:
            film = sample_film(rng, num_frames=self.bench.defaults.num_frames, num_objects=count)
            told = film_caption(rng, film, self.bench.language(rng))
            before, after = film.scene(0).objects, film.scene(self.bench.codec.clip_frames - 1).objects
            if told.motions and all(motion.holds(before, after, least=1.5) for motion in told.motions):
                return told, film

    def grade(self, cases: Sequence[Case]) -> list[Record]:
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
            found.append(exact_share(self.group, name, each, **{"its objects, any way": shown * 0.25**count}))
        return found

    def show(self, case: Case, record: Record) -> tuple[str, list[Picture | Film]]:
        """Return the film and what it is to show."""
        told, truth = case.about
        frames = self.bench.codec.decode_film(np.array(record["codes"]), self.bench.defaults.num_frames)
        command = f'rhea generate "{told.text}" --video --size {CANVAS}x{CANVAS} --seed {case.seed}'
        shown = {told.text: frames, "one that fits": render_film(truth)}
        return command, [Film(frames=each, fps=self.bench.defaults.fps, caption=text) for text, each in shown.items()]
