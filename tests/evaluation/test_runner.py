"""The runner: shards in any order, interrupted or not, give one report; the records of another run are refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import tiny_checkpoint

from rhea.checkpoints.load import load_checkpoint
from rhea.checkpoints.save import save_checkpoint
from rhea.errors import InputError
from rhea.evaluation.report import Figure, checkpoint_hash
from rhea.evaluation.runner import Shard, read_shard, run_task
from rhea.evaluation.shapes.bench import ShapesBenchmark
from rhea.evaluation.shapes.task import ShapesTask
from rhea.evaluation.task import Record
from rhea.generation.model import Rhea


class Squares:
    """Grades the numbers from 0 on, and can break off."""

    name, batch = "squares", 2

    def __init__(self, count: int = 7, factor: int = 1, breaks_at: int | None = None) -> None:
        self.count, self.breaks_at, self.settings = count, breaks_at, {"factor": factor}
        self.graded: list[int] = []

    def __len__(self) -> int:
        return self.count

    def grade(self, indices: Sequence[int]) -> list[Record]:
        if self.breaks_at in indices:
            raise KeyboardInterrupt
        self.graded += indices
        return [{"square": self.settings["factor"] * index**2} for index in indices]

    def figures(self, records: Sequence[Record]) -> list[Figure]:
        listed = sum(place * each["square"] for place, each in enumerate(records, 1))  # the order matters
        return [Figure(group="numbers", name="squares", value=listed, count=len(records), ceiling=1.0, unit="")]


@pytest.fixture(scope="module")
def model() -> Rhea:
    return Rhea(tiny_checkpoint(height=64, width=64, max_seq_len=512))


def figures(path: Path) -> Any:
    return json.loads(path.read_text())["figures"]


def test_shards_in_any_order_give_one_report(model: Rhea, tmp_path: Path) -> None:
    alone = run_task(Squares(), model)
    assert alone is not None
    for order in ((0, 1, 2), (2, 0, 1)):
        output = tmp_path / f"{order[0]}.json"
        reports = [run_task(Squares(), model, output=output, shard=Shard(index=index, count=3)) for index in order]
        assert reports[:2] == [None, None]
        assert reports[2] is not None
        assert reports[2].figures == alone.figures
        assert figures(output) == json.loads(json.dumps(alone.to_json()))["figures"]
    written = json.loads(output.read_text())
    assert written["settings"] == {"factor": 1}
    assert written["checkpoint_hash"] == alone.checkpoint_hash
    assert written["machine"]["torch"]


def test_an_interrupted_run_goes_on_where_it_was(model: Rhea, tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    broken = Squares(breaks_at=4)
    with pytest.raises(KeyboardInterrupt):
        run_task(broken, model, output=output)
    assert broken.graded == [0, 1, 2, 3]
    assert not output.exists()
    records = tmp_path / "report.records" / "0-of-1.jsonl"
    with records.open("a") as file:
        file.write('{"index": 4, "seco')  # what a power cut leaves
    assert run_task(Squares(), model, output=output, shard=Shard(index=1, count=2)) is None  # 5, with two processes now
    again = Squares()
    report = run_task(again, model, output=output)
    alone = run_task(Squares(), model)
    assert report is not None
    assert alone is not None
    assert again.graded == [4, 6]
    assert report.figures == alone.figures
    finished = Squares()
    assert run_task(finished, model, output=output) is not None
    assert finished.graded == []


def test_records_of_another_run_are_refused(model: Rhea, tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    run_task(Squares(), model, output=output)
    for task, other, said in (
        (Squares(factor=2), model, "settings"),
        (Squares(count=8), model, "items"),
        (Squares(), Rhea(tiny_checkpoint(guidance_scale=9.0)), "checkpoint"),
    ):
        with pytest.raises(InputError, match=rf"another run \(other {said}\): delete .*report.records"):
            run_task(task, other, output=output)
    records = tmp_path / "report.records" / "0-of-1.jsonl"
    records.write_text("nonsense\n" + records.read_text())
    with pytest.raises(InputError, match="damaged"):
        run_task(Squares(), model, output=output)
    with pytest.raises(InputError, match="--output"):
        run_task(Squares(), model, shard=Shard(index=0, count=2))


def test_the_shapes_are_the_same_in_shards(model: Rhea, tmp_path: Path) -> None:
    config = ShapesBenchmark(scenes=2, batch=3, tasks=("text to image", "edits"))
    alone = run_task(ShapesTask(model, config), model)
    for index in range(2):
        whole = run_task(
            ShapesTask(model, config), model, output=tmp_path / "r.json", shard=Shard(index=index, count=2)
        )
    assert alone is not None
    assert whole is not None
    assert whole.figures == alone.figures


def test_what_a_shard_may_be() -> None:
    assert read_shard("1/4") == Shard(index=1, count=4)
    assert read_shard(None, {}) == Shard()
    assert read_shard(None, {"RANK": "2", "WORLD_SIZE": "3"}) == Shard(index=2, count=3)
    for wrong in ("4/4", "1", "-1/2", "a/b"):
        with pytest.raises(InputError, match="shard"):
            read_shard(wrong)


def test_a_model_whose_weights_were_released_has_the_same_hash(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "tiny", tiny_checkpoint())
    checkpoint = load_checkpoint(tmp_path / "tiny")
    whole = checkpoint_hash(checkpoint)
    assert checkpoint.transformer is not None
    for linear in checkpoint.transformer.modules():
        if isinstance(linear, torch.nn.Linear):
            linear.weight = torch.nn.Parameter(torch.empty_like(linear.weight, device="meta"), requires_grad=False)
    assert checkpoint_hash(checkpoint) == whole == checkpoint_hash(tiny_checkpoint())
