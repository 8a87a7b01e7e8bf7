"""Questions about pictures, and their exact answers."""

from collections.abc import Sequence

from rhea.documents import formats
from rhea.documents.document import Image
from rhea.evaluation.page import Film, Picture
from rhea.evaluation.report import Figure
from rhea.evaluation.shapes.bench import Bench, Case, exact_share, mean_of, verdict
from rhea.evaluation.task import Record
from rhea.generation.completion import Prompt
from rhea.worlds.shapes.grader import read_picture, same_scene
from rhea.worlds.shapes.questions import DESCRIBE, QUESTION_TYPES, balanced_question, chance_level
from rhea.worlds.shapes.render import render

_PLACE_TOLERANCE = 2.0
"""Pixels by which a round trip may move an object and still leave every question answerable."""


class Answers:
    """Questions about pictures, as often with one answer as with another."""

    group = "answers"

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def cases(self) -> list[Case]:
        bench, cases = self.bench, []
        for section, question_type in enumerate((*QUESTION_TYPES, DESCRIBE), start=10):
            rng = bench.rng(section)
            for index in range(bench.config.scenes):
                asked = balanced_question(rng, question_type, bench.language(rng))
                seed = bench.seed(section, index)
                cases.append(Case(group=self.group, name=question_type, seed=seed, about=asked))
        return cases

    def grade(self, cases: Sequence[Case]) -> list[Record]:
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
            exact_share(self.group, name.replace("_", " "), each, chance=chance_level(name))
            for name, each in records.items()
        ]
        return [*figures, mean_of(figures, "all types")]

    def show(self, case: Case, record: Record) -> tuple[str, list[Picture | Film]]:
        """Return what was asked about, and the answer."""
        scene, question = case.about
        said = verdict(record) if record["right"] else f"is: {question.answer}"
        return f'rhea ask PICTURE "{question.text}"', [
            Picture(pixels=render(scene), caption=question.text, answer=record["answer"], verdict=said)
        ]
