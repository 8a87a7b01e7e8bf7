"""Emoji graded: who draws and names rightly reaches every ceiling, one picture for all gets chance, twins are right."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from lossless_model import LosslessCodec, model_that
from toy_emoji import ABSENT, CONCEPTS, SIDE, STYLES, TWINS, draw, toy_emoji, words

from rhea.documents.document import Image, Text
from rhea.errors import InputError
from rhea.evaluation.emoji import EmojiBenchmark, EmojiTask
from rhea.evaluation.likeness import Judge, Likeness, features
from rhea.evaluation.report import Report
from rhea.evaluation.runner import run_task
from rhea.generation.completion import Completion, Prompt
from rhea.generation.model import Rhea
from rhea.worlds.emoji.emoji import Cell


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_emoji(tmp_path_factory.mktemp("emoji"))


def task(model: Rhea, folder: Path, **more: Any) -> EmojiTask:
    return EmojiTask(model, EmojiBenchmark(**({"shards": str(folder), "side": SIDE, "cells": 99} | more)))


def graded(model: Rhea, folder: Path, **more: Any) -> Report:
    report = run_task(task(model, folder, **more), model)
    assert report is not None
    return report


def texts(prompt: Prompt) -> str:
    return "".join(each.text for each in prompt.document.segments if isinstance(each, Text))


def asked(prompt: Prompt) -> tuple[Cell, str]:
    """Return which cell is to be drawn, and in which language."""
    text = texts(prompt)
    cell = next(Cell(c, s) for c in CONCEPTS for s in STYLES if c in text and s in text)
    return cell, "en" if "icon" in text else "zh"


def seen(codec: LosslessCodec, prompt: Prompt) -> list[str]:
    """Return the concepts that have the picture of a question."""
    image = next(each for each in prompt.document.segments if isinstance(each, Image))
    assert image.codes is not None
    pixels = codec.decode_picture(image.codes)
    return [c for c in CONCEPTS if any(np.array_equal(pixels, draw(Cell(c, style))) for style in STYLES)]


def answer(concept: str, prompt: Prompt) -> Completion:
    english = "?" in texts(prompt)
    name, keywords = words(concept, "en" if english else "zh")
    wants_name = any(each in texts(prompt) for each in ("called", "叫"))
    listed = (", " if english else "、").join(keywords[::-1])
    return Completion(token_ids=[], text=f" {name.upper()}." if wants_name else listed)


def drawer(picture: Callable[[Cell], np.ndarray], twin: int = 0) -> Rhea:
    """Return a model that draws by a function of the cell and names what it sees, of twins the one of that number."""

    def complete(codec: LosslessCodec, prompt: Prompt) -> Completion:
        if prompt.next is None:
            return answer(seen(codec, prompt)[::-1][twin if len(seen(codec, prompt)) > 1 else 0], prompt)
        return Completion(token_ids=[], codes=codec.encode_pictures([picture(asked(prompt)[0])])[0])

    return model_that(complete)


def test_the_best_of_several_is_graded_beside_the_first(folder: Path) -> None:
    candidates: list[int] = []

    def complete(codec: LosslessCodec, prompt: Prompt) -> Completion:
        candidates.append(prompt.best_of)
        return Completion(token_ids=[], codes=codec.encode_pictures([draw(asked(prompt)[0])])[0])

    report = graded(model_that(complete), folder, best_of=3, groups=("drawn", "chosen"), kinds=("trained", "absent"))
    groups = [
        "emoji drawn, trained",
        "emoji drawn, best of 3, trained",
        "emoji drawn, best of 3, absent, by other styles",
    ]
    for group in groups:
        assert report.figure(group, "top-5, English").value == 1
    assert candidates.count(1) == candidates.count(3) == len(candidates) / 2


@pytest.mark.parametrize("twin", [0, 1])
def test_who_draws_and_names_rightly_reaches_every_ceiling(folder: Path, twin: int) -> None:
    """Whichever of two equal pictures' names is told."""
    report = graded(drawer(draw, twin), folder)
    kinds = {figure.group: figure.count for figure in report.figures}
    assert kinds == {
        "emoji drawn, trained": 33,
        "emoji drawn, held out": 2,
        "emoji drawn, absent, by other styles": 1,
        "emoji drawn, absent, by linear classifier": 1,
        "emoji named, trained": 33,
        "emoji named, held out": 2,
    }
    for figure in report.figures:
        if "exact" in figure.name or "top" in figure.name:
            assert figure.value == figure.ceiling == 1, figure
    chances = [figure.unskilled["chance"] for figure in report.figures if "top-5" in figure.name]
    assert set(chances) == {5 / len(CONCEPTS)}
    recalls = [each for each in report.figures if "keywords" in each.name]
    assert len(recalls) == 4
    for figure in recalls:
        assert figure.ceiling == 1
        assert figure.unskilled["chance"] == pytest.approx(1 / 3), "one of three is shared by all"
        assert figure.value >= 31 / 33, "a twin's keywords are its own"


def test_one_picture_for_all_gets_chance(folder: Path) -> None:
    same = draw(Cell("c35", "noto"))
    report = graded(drawer(lambda cell: same), folder)
    shares = [each for each in report.figures if each.group == "emoji drawn, trained"]
    assert [each.name for each in shares] == ["top-1, English", "top-5, English", "top-1, Chinese", "top-5, Chinese"]
    for figure in shares:
        near = 0.02 if "top-1" in figure.name else 0.1  # twins share a rank, and some cells are not asked for
        assert figure.value == pytest.approx(figure.unskilled["chance"], abs=near)
        assert figure.ceiling == 1
    like = likeness()
    for judge in get_args(Judge):
        distances = like.distances(same, "noto", judge)
        ranks = [like.rank(distances, Cell(concept, "noto"), judge) for concept in CONCEPTS if concept not in TWINS]
        assert len(set(ranks)) == len(ranks), "a rank for each"


def likeness() -> Likeness:
    cells = [Cell(concept, style) for concept in CONCEPTS for style in STYLES if Cell(concept, style) != ABSENT]
    return Likeness((cell, draw(cell)) for cell in cells)


def test_twins_are_right_where_they_are_alike_only() -> None:
    like = likeness()
    assert set(like.twins(Cell(TWINS[0], "flat"))) == set(TWINS)
    assert like.twins(Cell(TWINS[0], "3d")) == [TWINS[0]]

    def rank(drawn: Cell, wanted: Cell, judge: Judge = "asked style") -> int:
        return like.rank(like.distances(draw(drawn), wanted.style, judge), wanted, judge)

    one, other = (Cell(concept, "flat") for concept in TWINS)
    assert rank(one, other) == rank(other, one) == 0
    assert rank(Cell(TWINS[0], "3d"), Cell(TWINS[1], "3d")) > 0
    assert rank(one, Cell(TWINS[1], "noto"), "other styles") == 0, "the flat pictures are among those that judge"
    assert rank(Cell(TWINS[0], "noto"), other, "other styles") > 0, "the flat ones are not"
    assert rank(Cell(TWINS[1], "noto"), Cell(TWINS[0], "3d"), "linear classifier") == 0


def test_judges_of_absent_cells_never_see_the_asked_style() -> None:
    like = likeness()
    judges: tuple[Judge, ...] = ("other styles", "linear classifier")
    for judge in judges:
        before = like.distances(draw(ABSENT), "3d", judge)
        assert like.rank(before, ABSENT, judge) == 0
        unlike = Likeness(
            (c, draw(c) if c.style != "3d" else 255 - draw(c))
            for c in (Cell(x, s) for x in CONCEPTS for s in STYLES)
            if c != ABSENT
        )
        assert like.nearest(before) == unlike.nearest(unlike.distances(draw(ABSENT), "3d", judge)) == ABSENT.concept
    alone = like.distances(draw(ABSENT), "3d", "asked style")
    assert alone[CONCEPTS.index(ABSENT.concept)] == np.inf, "no picture shows it"


def test_features_forgive_a_shift_and_another_size() -> None:
    def apart(first: np.ndarray, second: np.ndarray) -> float:
        return sum(float((one - other).norm()) for one, other in zip(features(first), features(second), strict=True))

    pixels = draw(Cell("c35", "flat"))
    large = np.kron(pixels, np.ones((4, 4, 1), np.uint8))
    shifted = np.roll(pixels, (1, 0), (0, 1))
    other = draw(Cell("c36", "flat"))
    assert apart(pixels, large[::2, ::2]) < 1e-3
    assert 0 < apart(pixels, shifted) < apart(pixels, other) / 2


def test_shards_and_order_change_nothing(folder: Path, tmp_path: Path) -> None:
    model = drawer(draw)
    emoji = task(model, folder, cells=3)
    in_order = emoji.grade(range(len(emoji)))
    one_by_one = [emoji.grade([index])[0] for index in reversed(range(len(emoji)))][::-1]

    def told(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{name: value for name, value in each.items() if name != "codes"} for each in records]

    assert told(in_order) == told(one_by_one)
    assert task(model, folder, cells=3).settings == emoji.settings
    assert task(model, folder, seed=1, cells=3).settings != emoji.settings


def test_wrong_settings_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="cells"):
        task(drawer(draw), folder, cells=0)
