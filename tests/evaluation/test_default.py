"""The default suite: parts stay apart, shards and interruptions change nothing, the page shows every group once."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from lossless_model import LosslessCodec, model_that
from tiny_model import save_tiny_checkpoint, tiny_checkpoint
from toy_driving import toy_driving
from toy_emoji import toy_emoji

from rhea.cli import main
from rhea.errors import InputError
from rhea.evaluation.default import DefaultTask, default_task
from rhea.evaluation.emoji import EmojiBenchmark, EmojiTask
from rhea.evaluation.page import Film, Picture
from rhea.evaluation.report import Figure
from rhea.evaluation.runner import run_task
from rhea.evaluation.task import Record
from rhea.generation.completion import Completion, Prompt
from rhea.generation.model import Rhea


class Digits:
    """A part of which item i is worth i, and can be looked at; it breaks off at one of them."""

    batch = 1

    def __init__(self, name: str, count: int, breaks_at: int | None = None) -> None:
        self.name, self.count, self.breaks_at, self.settings = name, count, breaks_at, {"count": count}
        self.graded: list[int] = []

    def __len__(self) -> int:
        return self.count

    def grade(self, indices: Sequence[int]) -> list[Record]:
        if self.breaks_at in indices:
            raise KeyboardInterrupt
        self.graded += indices
        return [{"worth": f"{self.name}{index}"} for index in indices]

    def figures(self, records: Sequence[Record]) -> list[Figure]:
        assert [each["worth"] for each in records] == [f"{self.name}{index}" for index in range(self.count)]
        return [Figure(group=self.name, name="digits", value=0.5, count=len(records), ceiling=0.75)]

    def standing(self, index: int, record: Record) -> tuple[str, float]:
        return self.name, index

    def show(self, index: int, record: Record) -> tuple[str, list[Picture | Film]]:
        assert record["worth"] == f"{self.name}{index}"
        return f"show {record['worth']}", [Picture(pixels=np.zeros((2, 2, 3), np.uint8), caption=record["worth"])]


@pytest.fixture(scope="module")
def model() -> Rhea:
    return Rhea(tiny_checkpoint(height=32, width=32, max_seq_len=512))


def test_parts_stay_apart_and_an_interrupted_run_goes_on(model: Rhea, tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    with pytest.raises(KeyboardInterrupt):
        run_task(DefaultTask([Digits("a", 40), Digits("b", 30, breaks_at=28)]), model, output=output)
    first, second = Digits("a", 40), Digits("b", 30)
    report = run_task(DefaultTask([first, second], {"c": "not at hand"}), model)
    assert report is not None
    assert report.settings == {"a": {"count": 40}, "b": {"count": 30}, "left out": {"c": "not at hand"}}
    again = [Digits("a", 40), Digits("b", 30)]
    resumed = run_task(DefaultTask(again), model, output=output)
    assert resumed is not None
    assert resumed.figures == report.figures
    assert again[0].graded == []
    assert again[1].graded == list(range(24, 30)), "the first two batches of 32 were kept"


def test_the_page_shows_best_typical_and_worst_of_every_group_once(model: Rhea) -> None:
    task = DefaultTask([Digits("a", 20), Digits("b", 2)], {"c": "not at hand"})
    report = run_task(task, model)
    assert report is not None
    page = task.page(report).html()
    titles = [each.split("</h2>")[0] for each in page.split("<h2>")[1:]]
    assert titles == ["Figures", "Left out", "a: best", "a: typical", "a: worst", "b: best", "b: worst"]
    shown = [each.split('"')[0] for each in page.split('alt="')[1:]]
    assert shown[:12] == [f"a{n}" for n in (19, 18, 17, 16, 11, 10, 9, 8, 0, 1, 2, 3)]
    assert shown[12:] == ["b1", "b0"]
    for said in ("show a19", "not at hand", "<td>50.0 %</td><td>75.0 %</td>", report.checkpoint_hash[:12]):
        assert said in page


def test_the_command_grades_a_real_model_in_shards(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "tiny", height=32, width=32, max_seq_len=512, guidance_scale=1.0)
    emoji, driving = toy_emoji(tmp_path / "emoji"), toy_driving(tmp_path / "driving", films=4)
    whole = ["evaluate", "default", "--checkpoint", str(checkpoint), "--limit", "2"]
    given = [*whole, "--emoji", str(emoji), "--driving", str(driving), "--output", str(tmp_path / "r.json")]
    assert main([*given, "--shard", "0/2"]) == 0
    assert not (tmp_path / "r.html").exists()
    assert main([*given, "--shard", "1/2"]) == 0
    written = json.loads((tmp_path / "r.json").read_text())
    groups = {figure["group"] for figure in written["figures"]}
    assert {"edits", "emoji drawn, trained", "emoji named, held out", "driving"} <= groups
    assert written["settings"]["left out"] == {}
    assert all(figure["unskilled"] or figure["ceiling"] is not None for figure in written["figures"])
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    for group in ("shapes, films", "emoji drawn, absent", "emoji named, trained", "driving"):
        assert f"<h2>{group}: best</h2>" in page
    assert 'src="http' not in page
    assert main([*given, "--shard", "0/1", "--seed", "1"]) == 2, "records of another seed"
    assert "another run" in capfd.readouterr().err


def test_what_is_left_out_is_said(model: Rhea) -> None:
    def nothing(codec: LosslessCodec, prompt: Prompt) -> Completion:
        raise AssertionError("nothing is graded yet")

    task = default_task(model_that(nothing), limit=2)
    assert set(task.left_out) == {"emoji", "driving"}
    assert "rhea record driving" in task.left_out["driving"]
    with pytest.raises(InputError, match="limit"):
        default_task(model, limit=1)


def test_samples_are_those_that_were_graded(model: Rhea, tmp_path: Path) -> None:
    """What the page shows is decoded from records, and its command names the seed that makes the same picture."""
    emoji = EmojiTask(model, EmojiBenchmark(shards=str(toy_emoji(tmp_path)), cells=1))
    record = emoji.grade([0])[0]
    command, shown = emoji.show(0, record)
    text, seed = command.split('"')[1], int(command.split("--seed ")[1])
    again = model.generate(text, size=(32, 32), seed=seed)[0]
    assert isinstance(shown[0], Picture)
    assert np.array_equal(again.codes, record["codes"])
    np.testing.assert_array_equal(shown[0].pixels, model.prompts.codec.decode_picture(again.codes))
