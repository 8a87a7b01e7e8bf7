"""Grade a model on fresh scenes of the shapes world: pictures and films from text, answers, predicted films, edits.

Scenes and sampling noise come from seeds of their own that no training source uses. Sampling settings are the
checkpoint's defaults. A ceiling is the same measure on the true picture or film after the vision tokenizer's round
trip: what a perfect transformer would get; for answers, how often the exact grader can still read the whole scene.
Kinds that training never showed are asked for by themselves.

All scenes are made at the start, in one order, from a random stream for each kind of case; a shard grades its own.
"""

from collections.abc import Callable, Sequence
from itertools import groupby

from rhea.config import to_dict
from rhea.errors import InputError
from rhea.evaluation.page import Film, Picture
from rhea.evaluation.report import Figure, Report
from rhea.evaluation.runner import run_task
from rhea.evaluation.shapes.answers import Answers
from rhea.evaluation.shapes.bench import Bench, Section, ShapesBenchmark
from rhea.evaluation.shapes.edits import Edits
from rhea.evaluation.shapes.films import Films, TextToFilm
from rhea.evaluation.shapes.pictures import TextToImage
from rhea.evaluation.task import Record
from rhea.generation.model import Rhea
from rhea.generation.request import Progress


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
        known: dict[str, Callable[[Bench], Section]] = {
            "text to image": TextToImage,
            "answers": Answers,
            "films": Films,
            "text to film": TextToFilm,
            "edits": Edits,
        }
        unknown = [task for task in config.tasks if task not in known]
        if unknown:
            raise InputError(f"no task is called {unknown[0]!r}; there are {', '.join(known)}")
        bench = Bench(model, config, progress)
        self.batch = config.batch
        self.settings = to_dict(config) | {"generation": to_dict(model.defaults)}
        sections = [known[task](bench) for task in config.tasks]
        if config.best_of > 1 and "text to image" in config.tasks:
            sections.append(TextToImage(bench, config.best_of))
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
