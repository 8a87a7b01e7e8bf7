import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import torch

from rhea.errors import InputError
from rhea.training.schedule import ScheduleConfig
from rhea.training.state import checkpoint_folders, last_good, load_newest
from rhea.training.task import TrainingError
from rhea.training.trainer import Trainer, TrainerConfig


def next_token(folder: Path, **changes: Any) -> Trainer:
    return tiny_runs.trainer("next_token", folder, **changes)


def weights(run: Trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in run.task.model.parameters()])


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_logs_saves_and_learns(tmp_path):
    run = next_token(tmp_path, total_steps=30, log_every=10, checkpoint_every=12)
    assert run.train()
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [10, 20, 30]
    assert found[-1]["loss"] < found[0]["loss"] - 0.2
    assert {"loss", "loss_text", "loss_vision", "loss_structure", "gradient_norm", "tokens_per_second"} <= set(found[0])
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["step-00000024", "step-00000030"]


def test_the_same_seed_gives_the_same_run_and_another_one_does_not(tmp_path):
    runs = [next_token(tmp_path / str(i), total_steps=2, seed=seed) for i, seed in enumerate((1, 1, 2))]
    for run in runs:
        run.train()
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    assert not torch.equal(weights(runs[0]), weights(runs[2]))


def test_a_finished_run_stays_finished_and_can_be_prolonged(tmp_path):
    next_token(tmp_path, total_steps=4).train()
    again = next_token(tmp_path, total_steps=4)
    assert again.train()
    assert [line["step"] for line in lines(tmp_path)] == [3, 4]
    longer = next_token(tmp_path, total_steps=6)
    assert longer.train()
    assert [line["step"] for line in lines(tmp_path)] == [3, 4, 6]
    assert load_newest(tmp_path).step == 6


def test_accumulation_equals_one_large_batch(tmp_path):
    """Three microbatches of one row each, of different weight, against one microbatch of the three rows."""
    rows = tiny_runs.pack(tiny_runs.documents(0), 40, tiny_runs.VOCABULARY.pad)
    count = len(rows.token_ids)
    assert count >= 3

    class Rows(tiny_runs.Counting):
        def make(self, number: int) -> Any:
            part = slice(number % count, number % count + 1)
            fields = {field.name: getattr(rows, field.name)[part] for field in dataclasses.fields(rows)}
            return dataclasses.replace(rows, **fields)

    class Whole(tiny_runs.Counting):
        def make(self, number: int) -> Any:
            return rows

    results = []
    for name, loader, microbatches in (("rows", Rows(), count), ("whole", Whole(), 1)):
        task = tiny_runs.next_token_task(dropout=0.0, ema_decay=None)
        task.model.double()
        config = dataclasses.replace(tiny_runs.TRAINER, total_steps=3, microbatches_per_step=microbatches, log_every=1)
        run = Trainer(config, task, loader, tmp_path / name)
        run.train()
        results.append((weights(run), [line["loss"] for line in lines(tmp_path / name)]))
    # float64: what is left is the order of sums, and float32 rotary angles and norms
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-7)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-6)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run_and_touches_nothing(tmp_path, what):
    run = next_token(tmp_path)
    train_microbatch = run.task.train_microbatch
    before = {}

    def poisoned(microbatch: Any) -> Any:
        metrics = train_microbatch(microbatch)
        if run.step == 5:
            before["weights"] = weights(run)
            before["moments"] = {name: x.clone() for name, x in run.task.optimizer.state_tensors("").items()}
            if what == "loss":
                run.task._loss += float("nan")
            else:
                run.task.model.norm.weight.grad[3] = float("inf")
        return metrics

    run.task.train_microbatch = poisoned
    with pytest.raises(TrainingError) as error:
        run.train()
    assert isinstance(error.value, InputError)  # one line for people, no traceback
    message = str(error.value)
    assert "step 6" in message
    assert what in message
    assert "toy:10" in message
    assert "toy:11" in message
    assert str(tmp_path / "step-00000004") in message
    assert torch.equal(weights(run), before["weights"])
    for name, tensor in run.task.optimizer.state_tensors("").items():
        assert torch.equal(tensor, before["moments"][name])
    assert all(parameter.grad is None for parameter in run.task.model.parameters())
    assert load_newest(tmp_path).step == 4  # and nothing was saved after it


def test_without_a_checkpoint_the_message_says_so(tmp_path):
    run = next_token(tmp_path)
    with torch.no_grad():
        run.task.model.norm.weight[0] = float("nan")
    with pytest.raises(TrainingError, match=r"step 1: .*no checkpoint was written before"):
        run.train()


class Noisy:
    """An evaluator that uses up random numbers."""

    every = 2

    def __init__(self) -> None:
        self.steps: list[int] = []

    def evaluate(self, task: Any, step: int, folder: Path) -> dict[str, float]:
        self.steps.append(step)
        torch.rand(10)
        with task.export() as model:
            assert not model.training
        return {"noise": 1.5}


def test_evaluators_and_samples_are_called_recorded_and_change_nothing(tmp_path):
    plain, watched = next_token(tmp_path / "plain"), next_token(tmp_path / "watched", sample_every=3)
    evaluator = Noisy()
    watched.evaluators = (evaluator,)
    sampled = []
    watched.task._sampler = lambda model, folder, step: sampled.append((step, folder.is_dir(), torch.rand(1)))
    plain.train()
    watched.train()
    assert evaluator.steps == [2, 4, 6, 8]
    assert [(step, there) for step, there, _ in sampled] == [(3, True), (6, True), (8, True)]
    assert [line["step"] for line in lines(tmp_path / "watched") if line.get("noise") == 1.5] == [2, 4, 6, 8]
    assert torch.equal(weights(plain), weights(watched))


def test_signal_handlers_are_put_back(tmp_path):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    next_token(tmp_path, total_steps=2).train()
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_signal_stops_after_the_step_and_the_run_goes_on_later(tmp_path):
    run = next_token(tmp_path)
    tiny_runs.signal_at(run, 2, signal.SIGTERM, times=1)
    assert not run.train()
    assert (run.step, load_newest(tmp_path).step) == (3, 3)
    assert next_token(tmp_path).train()


def test_another_model_cannot_continue_the_run(tmp_path):
    next_token(tmp_path, total_steps=2).train()
    task = tiny_runs.vision_tokenizer_task()
    with pytest.raises(InputError, match="another VisionTokenizer"):
        Trainer(tiny_runs.TRAINER, task, tiny_runs.PixelLoader(), tmp_path).train()


def test_a_full_disk_stops_with_one_line(tmp_path, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("rhea.training.state.save_file", full)
    with pytest.raises(TrainingError, match="No space left"):
        next_token(tmp_path).train()


@pytest.mark.parametrize(
    "changes",
    [
        {"total_steps": 0},
        {"microbatches_per_step": 0},
        {"checkpoint_every": 0},
        {"keep_last": 0},
        {"log_every": 0},
        {"sample_every": -1},
        {"schedule": ScheduleConfig(learning_rate=1.0, warmup_steps=100)},
    ],
)
def test_impossible_configs_are_refused_before_anything_runs(tmp_path, changes):
    with pytest.raises(InputError):
        next_token(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_config_goes_through_json(tmp_path):
    from rhea.config import from_dict, to_dict

    assert from_dict(TrainerConfig, json.loads(json.dumps(to_dict(tiny_runs.TRAINER)))) == tiny_runs.TRAINER


def test_a_wrong_setting_is_found_before_any_work():
    with pytest.raises(InputError, match="total_steps must be at least 1, got 0"):
        TrainerConfig(total_steps=0, schedule=ScheduleConfig(learning_rate=1e-3))


def test_changed_settings_are_told_on_resume(tmp_path, capsys):
    next_token(tmp_path).train()
    run = next_token(tmp_path)
    run.config = dataclasses.replace(run.config, log_every=run.config.log_every + 1)
    run.train()
    told = capsys.readouterr()
    before = run.config.log_every - 1
    assert f"note: log_every was {before} and is {before + 1} now" in told.out + told.err


def test_a_damaged_checkpoint_is_not_called_good(tmp_path):
    next_token(tmp_path).train()
    newest = checkpoint_folders(tmp_path)[-1]
    (newest / "state.safetensors").write_bytes(b"damaged")
    assert str(newest) not in last_good(tmp_path)
