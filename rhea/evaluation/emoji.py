"""Grade a model on emoji: drawn from a name in a style, and named from a picture, in two languages.

What is drawn is compared with the true pictures of all concepts (``rhea.evaluation.likeness``). Cells of three kinds
are asked for apart: those that training shows, those held out, and those that no picture shows; the last are judged by
the concept's other styles, and their ceiling is that of other concepts' true pictures in the asked style.
A ceiling is the same measure on the true picture after the vision tokenizer's round trip; for names it is how often
that round trip is still nearest to the right concept.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

import numpy as np

from rhea.config import to_dict
from rhea.documents import formats
from rhea.documents.document import Image
from rhea.errors import InputError
from rhea.evaluation.likeness import Judge, Likeness
from rhea.evaluation.page import Film, Picture
from rhea.evaluation.report import Figure, files_hash, share
from rhea.evaluation.task import EVALUATION, Record, best_of_option, best_of_title, codes_of
from rhea.generation.completion import Completion, Prompt
from rhea.generation.model import Rhea
from rhea.generation.request import Progress
from rhea.generation.sampling import SamplingConfig
from rhea.worlds.emoji.emoji import Cell, Emoji, Language
from rhea.worlds.emoji.language import Question, keywords, keywords_question, name, name_question
from rhea.worlds.emoji.source import EmojiSource, EmojiSourceConfig

Group = Literal["drawn", "chosen", "named"]
"""Drawn once; drawn several times and the best chosen by the model itself; named."""
Kind = Literal["trained", "held out", "absent"]
KINDS: tuple[Kind, ...] = ("trained", "held out", "absent")
LANGUAGES: dict[Language, str] = {"en": "English", "zh": "Chinese"}
TOP = (1, 5)
ABSENT_JUDGES: tuple[Judge, ...] = ("other styles", "linear classifier")


@dataclass(frozen=True, kw_only=True)
class EmojiBenchmark:
    shards: str
    """A folder of .tar files, or one of them: those that the model was trained on, so that kinds of cells are told."""
    cells: int = 200
    """Of each kind, each in both languages; fewer where there are not so many."""
    seed: int = 0
    side: int | None = None
    """Of the pictures in pixels; by default that of the checkpoint's pictures."""
    batch: int = 32
    """Requests that run together."""
    kinds: tuple[Kind, ...] = KINDS
    groups: tuple[Group, ...] = ("drawn", "chosen", "named")
    best_of: int = 1
    """If more than 1, pictures are drawn so many times as well, and the one graded that the model itself finds best."""


@dataclass(frozen=True)
class _Case:
    group: Group
    kind: Kind
    cell: Cell
    language: Language
    seed: int
    number: int
    """The true picture among the source's; for an absent cell another concept's in its style, for the ceiling."""


class EmojiTask:
    """The benchmark as a task; see the module."""

    name = "emoji"

    def __init__(self, model: Rhea, config: EmojiBenchmark, progress: Callable[[Progress], None] | None = None) -> None:
        """Index the shards and compute the features of all pictures; ``progress`` is told of every step."""
        if config.best_of < 1:
            raise InputError(f"best_of is {config.best_of}; it must be at least 1")
        if config.cells < 1:
            raise InputError(f"cells is {config.cells}; it must be at least 1")
        side = config.side or model.defaults.height
        self.source = EmojiSource(EmojiSourceConfig(shards=config.shards, side=side))
        self.batch, self._model, self._config, self._progress = config.batch, model, config, progress
        self.settings = to_dict(config) | {
            "shards": files_hash(self.source.shards.paths),
            "side": side,
            "generation": to_dict(model.defaults),
        }
        self._codec, self._size = model.prompts.codec, (side, side)
        model.prompts.draw("any", size=self._size)  # a size that cannot be drawn is told before anything is
        self._emojis: dict[str, Emoji] = {emoji.concept: emoji for emoji in self.source.emojis}
        shards, emojis = self.source.shards, self.source.emojis
        self._likeness = Likeness((emoji.cell, shards.picture(number)) for number, emoji in enumerate(emojis))
        drawn = self._drawn_cases()
        named = [replace(case, group="named") for case in drawn if case.kind != "absent"]
        chosen = [replace(case, group="chosen") for case in drawn] if config.best_of > 1 else []
        asked = [*drawn, *chosen, *named]
        self._cases = [case for case in asked if case.kind in config.kinds and case.group in config.groups]
        self._words = {
            language: {each.concept: _parts(*keywords(each, language)) for each in emojis} for language in LANGUAGES
        }

    def __len__(self) -> int:
        return len(self._cases)

    def grade(self, indices: Sequence[int]) -> list[Record]:
        """Grade these cases, those of one group together."""
        groups = groupby((self._cases[index] for index in indices), key=lambda case: case.group)
        graders = {"drawn": self._grade_drawn, "chosen": self._grade_drawn, "named": self._grade_named}
        return [record for group, cases in groups for record in graders[group](list(cases))]

    def figures(self, records: Sequence[Record]) -> list[Figure]:
        """Return what was drawn and named rightly, by kind of cell and language."""
        found: dict[tuple[Group, Kind, Language], list[Record]] = {}
        for case, record in zip(self._cases, records, strict=True):
            found.setdefault((case.group, case.kind, case.language), []).append(record)
        groups: dict[str, list[Figure]] = {}
        for (group, kind, language), each in found.items():
            title, said = self._title(group, kind), LANGUAGES[language]
            if group == "named":
                groups.setdefault(title, []).extend(self._named_figures(title, said, each))
                continue
            for judge in each[0]["ranks"]:
                titled = f"{title}, by {judge}" if kind == "absent" else title
                groups.setdefault(titled, []).extend(self._drawn_figures(titled, said, each, judge))
        return [figure for figures in groups.values() for figure in figures]

    def standing(self, index: int, record: Record) -> tuple[str, float]:
        """Return the group that an item is shown in, and how well it was done."""
        case = self._cases[index]
        score = record["exact"] + record["recall"] if case.group == "named" else -record["ranks"][_judges(case)[0]]
        return self._title(case.group, case.kind), float(score)

    def show(self, index: int, record: Record) -> tuple[str, list[Picture | Film]]:
        """Return the command that does the same as an item, and its pictures, the true one last."""
        case, side = self._cases[index], self._size[0]
        same = [number for number, each in enumerate(self.source.emojis) if each.concept == case.cell.concept]
        true = self._picture(same[0] if case.kind == "absent" else case.number)
        if case.group == "named":
            asked = name_question(self._emojis[case.cell.concept], case.language)
            keys = f"keywords: {record['keywords']}"
            return f'rhea ask PICTURE "{asked.text}"', [
                Picture(
                    pixels=true, caption=asked.text, answer=record["name"], verdict=f"is: {asked.answer}", note=keys
                )
            ]
        text = self.source.prompt(case.cell, case.language)
        pixels = self._codec.decode_picture(np.array(record["codes"]))
        places = ", ".join(f"place {rank + 1} by the {judge}" for judge, rank in record["ranks"].items())
        shown: list[Picture | Film] = [Picture(pixels=pixels, caption=text, verdict=places)]
        shown.append(Picture(pixels=true, caption="the true one" if case.kind != "absent" else "in another style"))
        command = f'rhea generate "{text}" --size {side}x{side} --seed {case.seed}'
        return command + best_of_option(self._candidates(case)), shown

    def _candidates(self, case: _Case) -> int:
        return self._config.best_of if case.group == "chosen" else 1

    def _title(self, group: Group, kind: Kind) -> str:
        """Return what figures and samples of a group are called."""
        drawn = f"drawn{best_of_title(self._config.best_of)}" if group == "chosen" else group
        return f"emoji {drawn}, {kind}"

    def _drawn_cases(self) -> list[_Case]:
        """Choose cells of each kind and ask for each in both languages."""
        source, rng = self.source, np.random.default_rng([EVALUATION, self._config.seed, 50])
        pictures = {emoji.cell: number for number, emoji in enumerate(source.emojis)}
        cells = {"trained": [source.emojis[n].cell for n in source.numbers], "held out": source.held_out}
        cells["absent"] = source.absent
        cases = []
        for kind in KINDS:
            for place in rng.permutation(len(cells[kind]))[: self._config.cells]:
                cell = cells[kind][place]
                same = [number for each, number in pictures.items() if each.style == cell.style]
                for language in LANGUAGES:
                    number = pictures.get(cell, same[rng.integers(len(same))])
                    seed = int(rng.integers(2**31))
                    cases.append(_Case("drawn", kind, cell, language, seed, number))
        return cases

    def _true(self, cases: Sequence[_Case]) -> list[np.ndarray]:
        """Return the codes of the true pictures."""
        return self._codec.encode_pictures([self._picture(case.number) for case in cases])

    def _picture(self, number: int) -> np.ndarray:
        pixels = self.source.image(number).pixels
        assert pixels is not None, "shards hold pixels"
        return pixels

    def _complete(self, prompts: list[Prompt]) -> list[Completion]:
        return self._model.completer.complete(prompts, max_requests=self.batch, progress=self._progress)

    def _grade_drawn(self, cases: Sequence[_Case]) -> list[Record]:
        texts = [self.source.prompt(case.cell, case.language) for case in cases]
        prompts = [
            self._model.prompts.draw(text, size=self._size, seed=case.seed, best_of=self._candidates(case))
            for text, case in zip(texts, cases, strict=True)
        ]
        codes = [codes_of(completion) for completion in self._complete(prompts)]
        drawn, back = self._codec.decode_pictures(codes), self._codec.decode_pictures(self._true(cases))
        return [
            {
                "ranks": {judge: self._rank(pixels, case.cell, judge) for judge in _judges(case)},
                "ceilings": {judge: self._rank(true, self._shown(case), judge) for judge in _judges(case)},
                "codes": grid.tolist(),
            }
            for case, pixels, true, grid in zip(cases, drawn, back, codes, strict=True)
        ]

    def _shown(self, case: _Case) -> Cell:
        """Return the cell of the true picture that a case is measured against."""
        return self.source.emojis[case.number].cell

    def _rank(self, pixels: np.ndarray, cell: Cell, judge: Judge) -> int:
        return self._likeness.rank(self._likeness.distances(pixels, cell.style, judge), cell, judge)

    def _drawn_figures(self, group: str, language: str, records: Sequence[Record], judge: Judge) -> list[Figure]:
        """Chance is that of a picture of any concept."""
        return [
            share(
                group,
                f"top-{top}, {language}",
                [each["ranks"][judge] < top for each in records],
                [each["ceilings"][judge] < top for each in records],
                chance=min(1.0, top / len(self._likeness.concepts)),
            )
            for top in TOP
        ]

    def _grade_named(self, cases: Sequence[_Case]) -> list[Record]:
        codes, abouts = self._true(cases), [self._emojis[case.cell.concept] for case in cases]
        asked: list[tuple[Question, np.ndarray, _Case]] = [
            (question(about, case.language), grid, case)
            for question in (name_question, keywords_question)
            for about, grid, case in zip(abouts, codes, cases, strict=True)
        ]
        answers = [completion.text for completion in self._complete([self._ask(*each) for each in asked])]
        pictures = self._codec.decode_pictures(codes)
        return [
            self._named_record(case, named, listed, pixels)
            for case, named, listed, pixels in zip(
                cases, answers[: len(cases)], answers[len(cases) :], pictures, strict=True
            )
        ]

    def _ask(self, question: Question, codes: np.ndarray, case: _Case) -> Prompt:
        defaults = self._model.defaults
        return Prompt(
            document=formats.question_answering(Image(codes=codes), question.text),
            sampling=SamplingConfig(
                temperature=defaults.answer_temperature, top_k=defaults.top_k, top_p=defaults.top_p
            ),
            seed=case.seed,
            max_new_tokens=defaults.max_answer_tokens,
        )

    def _named_record(self, case: _Case, named: str, listed: str, back: np.ndarray) -> Record:
        concept, words = case.cell.concept, self._words[case.language]
        distances = self._likeness.distances(back, case.cell.style, "asked style")
        seen, wanted = self._likeness.nearest(distances), words[concept]
        readable = self._likeness.rank(distances, case.cell, "asked style") == 0
        right = {_plain(name(self._emojis[each], case.language)) for each in self._likeness.twins(case.cell)}
        others = [_recall(wanted, said) for other, said in words.items() if other != concept]
        return {
            "name": named.strip(),
            "keywords": listed.strip(),
            "exact": _plain(named) in right,
            "readable": readable,
            "recall": _recall(wanted, _parts(listed)),
            "readable recall": 1.0 if readable else _recall(wanted, words[seen]),
            "chance recall": sum(others) / max(1, len(others)),
        }

    def _named_figures(self, group: str, language: str, records: Sequence[Record]) -> list[Figure]:
        """Chance is the name of any concept, and the keywords of any other one."""
        exact, readable = [each["exact"] for each in records], [each["readable"] for each in records]
        return [
            share(group, f"exact name, {language}", exact, readable, chance=1 / len(self._likeness.concepts)),
            Figure(
                group=group,
                name=f"keywords recalled, {language}",
                value=float(np.mean([each["recall"] for each in records])),
                count=len(records),
                ceiling=float(np.mean([each["readable recall"] for each in records])),
                unskilled={"chance": float(np.mean([each["chance recall"] for each in records]))},
            ),
        ]


def _judges(case: _Case) -> tuple[Judge, ...]:
    return ABSENT_JUDGES if case.kind == "absent" else ("asked style",)


def _plain(text: str) -> str:
    """Return words without what does not count: case, outer blanks, a full stop."""
    return text.strip().rstrip(".。").casefold()


def _parts(*texts: str) -> set[str]:
    """Return what is enumerated; a keyword may itself be two, with a comma."""
    return {_plain(part) for text in texts for part in re.split("[,，、]", text)}


def _recall(wanted: set[str], said: set[str]) -> float:
    return len(wanted & said) / len(wanted)
