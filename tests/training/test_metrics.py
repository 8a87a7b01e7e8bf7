import io
import json
from pathlib import Path

import torch
from rich.console import Console

from rhea.training.metrics import MetricsLog
from rhea.training.task import Mean


def opened(folder: Path, step: int = 0, state: dict | None = None, tensorboard: bool = False) -> MetricsLog:
    log = MetricsLog(folder, total_steps=100, unit="tokens", tensorboard=tensorboard)
    if state is not None:
        log.load_state_dict(state)
    log.open(step)
    return log


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_means_are_weighted_over_everything_since_the_last_line(tmp_path):
    log = opened(tmp_path)
    log.add({"loss": Mean(torch.tensor(6.0), 2.0), "only_once": Mean(5.0)}, count=10)
    log.add({"loss": Mean(torch.tensor(1.0), 8.0)}, count=10)
    log.advance(1, seconds=4.0)
    log.write(1)
    log.add({"loss": Mean(3.0, 1.0)}, count=5)
    log.advance(2, seconds=1.0)
    log.write(2)
    log.close()
    first, second = lines(tmp_path)
    assert first == {"step": 1, "loss": 0.7, "only_once": 5.0, "tokens": 20, "tokens_per_second": 5.0}
    assert second == {"step": 2, "loss": 3.0, "tokens": 25, "tokens_per_second": 5.0}


def test_a_mean_of_nothing_is_left_out_and_what_is_not_finite_is_null(tmp_path):
    log = opened(tmp_path)
    log.add({"empty": Mean(0.0, 0.0), "bad": Mean(float("nan"))})
    log.write(1)
    log.close()
    assert "empty" not in lines(tmp_path)[0]
    assert lines(tmp_path)[0]["bad"] is None


def test_resuming_cuts_off_later_and_half_written_lines(tmp_path):
    log = opened(tmp_path)
    for step in (10, 20, 30):
        log.record(step, {"loss": 1.0})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3')
    log = opened(tmp_path, step=20)
    log.record(30, {"loss": 2.0})
    log.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(10, 1.0), (20, 1.0), (30, 2.0)]


def test_unfinished_means_survive_in_the_state_exactly(tmp_path):
    values = torch.rand(7, generator=torch.Generator().manual_seed(0))
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole, cut = opened(tmp_path / "whole"), opened(tmp_path / "cut")
    for value in values:
        whole.add({"loss": Mean(value, 0.3)}, count=3)
    for value in values[:4]:
        cut.add({"loss": Mean(value, 0.3)}, count=3)
    cut.close()
    state = json.loads(json.dumps(cut.state_dict()))
    rest = opened(tmp_path / "cut", step=4, state=state)
    for value in values[4:]:
        rest.add({"loss": Mean(value, 0.3)}, count=3)
    for log in (whole, rest):
        log.advance(7, seconds=1.0)
        log.write(7)
        log.close()
    ours, theirs = lines(tmp_path / "cut")[0], lines(tmp_path / "whole")[0]
    assert (ours["loss"], ours["tokens"]) == (theirs["loss"], theirs["tokens"])


def test_a_terminal_gets_a_progress_bar(tmp_path, monkeypatch):
    screen = Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr("rhea.training.metrics.console", lambda: screen)
    log = opened(tmp_path, step=40)
    log.add({"loss": Mean(0.25)}, count=30)
    log.advance(41, seconds=2.0)
    log.write(41)
    log.close()
    shown = screen.file.getvalue()
    assert "41/100" in shown
    assert "loss 0.25" in shown
    assert "15 tokens/s" in shown


def test_tensorboard_gets_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = opened(tmp_path, tensorboard=True)
    log.record(3, {"loss": 0.25})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 0.25)]
