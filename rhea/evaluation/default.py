"""Everything that the default model learned, graded by one command: shapes, emoji and driving, as one task.

Parts whose shards are not at hand are left out, and the report says so. The page shows, of every group, the best, a
typical and the worst sample by the group's own measure: whoever reads the figures should also look.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from rhea.errors import InputError
from rhea.evaluation.driving import DrivingBenchmark, DrivingTask
from rhea.evaluation.emoji import EmojiBenchmark, EmojiTask
from rhea.evaluation.page import Film, Grid, Page, Picture
from rhea.evaluation.report import TITLES, Figure, Report, rows
from rhea.evaluation.shapes.bench import ShapesBenchmark
from rhea.evaluation.shapes.task import ShapesTask
from rhea.evaluation.task import Record, Task
from rhea.generation.model import Rhea
from rhea.generation.request import Progress

BATCH = 32
"""Items that are graded together."""
MISSING = {
    "emoji": "left out: give --emoji FOLDER, shards of pictures with names and keywords (docs/data.md, Emoji)",
    "driving": "left out: rhea record driving --output films --seed 1000 --films 200, then give --driving films",
}
_SHOWN = 4
"""Samples of each sort on the page."""


class Part(Task, Protocol):
    """A task whose items can be looked at."""

    def standing(self, index: int, record: Record) -> tuple[str, float]:
        """Return the group that an item is shown in, and how well it was done."""

    def show(self, index: int, record: Record) -> tuple[str, list[Picture | Film]]:
        """Return the command that does the same as an item, and its pictures."""


class DefaultTask:
    """Several parts, one after the other."""

    name, batch = "default", BATCH

    def __init__(self, parts: Sequence[Part], left_out: dict[str, str] | None = None) -> None:
        """``left_out``: why a part is missing, by its name."""
        self.parts, self.left_out = tuple(parts), left_out or {}
        self._places = [(part, index) for part in self.parts for index in range(len(part))]
        self.settings: dict[str, Any] = {part.name: part.settings for part in self.parts} | {"left out": self.left_out}

    def __len__(self) -> int:
        return len(self._places)

    def grade(self, indices: Sequence[int]) -> list[Record]:
        """Grade these items, those of one part together."""
        found: dict[int, Record] = {}
        for part in self.parts:
            mine = [index for index in indices if self._places[index][0] is part]
            if mine:
                found |= zip(mine, part.grade([self._places[index][1] for index in mine]), strict=True)
        return [found[index] for index in indices]

    def figures(self, records: Sequence[Record]) -> list[Figure]:
        """Return the figures of every part."""
        told = iter(records)
        return [figure for part in self.parts for figure in part.figures([next(told) for _ in range(len(part))])]

    def page(self, report: Report) -> Page:
        """Show all figures, and samples of every group."""
        page = Page(
            title="The default model, graded",
            trained_on=report.trained_on,
            about=f"Weights {report.checkpoint_hash[:12]}. Best, typical and worst are by the group's own measure.",
        )
        page.add("Figures", "rhea evaluate default", [Grid(titles=TITLES, rows=rows(report))])
        if self.left_out:
            page.add("Left out", "", [Grid(titles=("", ""), rows=list(self.left_out.items()))])
        groups: dict[str, list[tuple[float, int]]] = {}
        for number, record in enumerate(report.records):
            part, index = self._places[number]
            group, score = part.standing(index, record)
            groups.setdefault(group, []).append((-score, number))
        for group, scored in groups.items():
            for sort, chosen in _chosen([number for _, number in sorted(scored)]).items():
                self._add(page, f"{group}: {sort}", chosen, report.records)
        return page

    def _add(self, page: Page, title: str, chosen: Sequence[int], records: Sequence[Record]) -> None:
        places = [(*self._places[number], records[number]) for number in chosen]
        samples = [part.show(index, record) for part, index, record in places]
        page.add(title, samples[0][0], [each for _, shown in samples for each in shown])


def _chosen(ordered: list[int]) -> dict[str, list[int]]:
    """Return the first, the middle and the last of what is ordered from best to worst; no item twice."""
    count = min(_SHOWN, -(-len(ordered) // 3))
    middle = (len(ordered) - count) // 2
    sorts = {"best": ordered[:count], "typical": ordered[middle : middle + count], "worst": ordered[::-1][:count]}
    seen: set[int] = set()
    kept = {}
    for sort, numbers in sorts.items():
        fresh = [number for number in numbers if number not in seen]
        seen |= set(fresh)
        if fresh:
            kept[sort] = fresh
    return kept


def default_task(
    model: Rhea,
    *,
    emoji: Path | None = None,
    driving: Path | None = None,
    limit: int = 200,
    seed: int = 0,
    side: int | None = None,
    best_of: int = 4,
    progress: Callable[[Progress], None] | None = None,
) -> DefaultTask:
    """Return the suite for a model: ``limit`` scenes, cells of each kind and films at most; see the module.

    ``emoji``, ``driving``: folders of shards; what is None is left out. ``side``: of the emoji, in pixels.
    ``best_of``: pictures from text are also graded as the best of so many.
    """
    if limit < 2:
        raise InputError(f"limit is {limit}; it must be at least 2")
    shapes = ShapesBenchmark(scenes=limit, seed=seed, batch=BATCH, best_of=best_of)
    parts: list[Part] = [ShapesTask(model, shapes, progress)]
    left_out = dict(MISSING)
    if emoji is not None:
        config = EmojiBenchmark(shards=str(emoji), cells=limit, seed=seed, side=side, batch=BATCH, best_of=best_of)
        parts.append(EmojiTask(model, config, progress))
        del left_out["emoji"]
    if driving is not None:
        films = DrivingBenchmark(shards=str(driving), films=limit, seed=seed)
        parts.append(DrivingTask(model, films, progress))
        del left_out["driving"]
    return DefaultTask(parts, left_out)
