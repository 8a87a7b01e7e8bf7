"""Pictures from text, graded exactly."""

from collections.abc import Sequence

import numpy as np

from rhea.documents import formats
from rhea.evaluation.page import Film, Picture
from rhea.evaluation.report import Figure
from rhea.evaluation.shapes.bench import Bench, Case, exact_share, verdict
from rhea.evaluation.task import Record, best_of_option, best_of_title, codes_of
from rhea.generation.completion import Prompt
from rhea.worlds.shapes.grader import read_picture
from rhea.worlds.shapes.language import Caption, caption
from rhea.worlds.shapes.render import render
from rhea.worlds.shapes.scene import CANVAS, HeldOut, Scene, sample_scene


class TextToImage:
    """Exact scenes: every object that the caption names, in the relations that it states, and nothing else."""

    def __init__(self, bench: Bench, best_of: int = 1) -> None:
        self.bench, self.best_of = bench, best_of
        self.group = "text to image" + best_of_title(best_of)

    def cases(self) -> list[Case]:
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
                cases.append(Case(group=self.group, name=name, seed=bench.seed(section, index), about=about))
        return cases

    def grade(self, cases: Sequence[Case]) -> list[Record]:
        bench, scale = self.bench, self.bench.defaults.guidance_scale
        prompts = [
            Prompt(
                document=formats.text_to_image(case.about[0].text + bench.defaults.prompt_suffix),
                next=bench.picture_size,
                negative=formats.text_to_image(bench.defaults.negative_prompt) if scale != 1 else None,
                sampling=bench.sampling(scale),
                seed=case.seed,
                best_of=self.best_of,
                revise=bench.defaults.revise,
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

    def show(self, case: Case, record: Record) -> tuple[str, list[Picture | Film]]:
        """Return what was drawn."""
        text = case.about[0].text
        pixels = self.bench.codec.decode_picture(np.array(record["codes"]))
        picture = Picture(pixels=pixels, caption=text, verdict=verdict(record), note=case.name)
        command = f'rhea generate "{text}" --size {CANVAS}x{CANVAS} --seed {case.seed}'
        return command + best_of_option(self.best_of), [picture]

    def figures(self, records: dict[str, list[Record]]) -> list[Figure]:
        """Chance is how often another scene of the same kind fits a caption: drawing without reading it."""
        pairs = self.bench.config.scenes * (self.bench.config.scenes - 1)
        return [
            exact_share(self.group, name, each, chance=sum(record["fits others"] for record in each) / pairs)
            for name, each in records.items()
        ]


def _fitting_others(index: int, told: Caption, scenes: Sequence[Scene]) -> int:
    """Return how many of the other scenes fit the caption of the scene at ``index``."""
    return sum(told.satisfied_by(scene.objects) for other, scene in enumerate(scenes) if other != index)
