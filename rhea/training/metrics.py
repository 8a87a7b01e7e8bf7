"""Where the numbers of a run go: ``metrics.jsonl`` for machines, TensorBoard for curves, the terminal for people.

On resume the lines after the checkpoint's step are cut off, and the means that were still being summed are part of the
checkpoint, so the file of an interrupted run reads as if it had never been interrupted (but for the timings).
"""

import json
import math
import os
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rhea.io import atomic_file
from rhea.logging import console
from rhea.training.task import Mean


class MetricsLog:
    """Sums metrics over steps and writes their means."""

    def __init__(self, folder: Path, *, total_steps: int, unit: str, tensorboard: bool) -> None:
        self.unit = unit
        self._path = folder / "metrics.jsonl"
        self._total_steps = total_steps
        self._means: dict[str, Mean] = {}
        self._seen = 0
        self._pending_count, self._pending_seconds = 0, 0.0
        self._progress: Progress | None = None
        self._writer: Any = None
        self._tensorboard = folder / "tensorboard" if tensorboard else None

    def open(self, step: int) -> None:
        """Start after ``step``, dropping anything logged later by a run that was cut off."""
        _truncate(self._path, step)
        self._file = self._path.open("a", encoding="utf-8")
        if self._tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter  # costs a second to import

            self._writer = SummaryWriter(str(self._tensorboard), purge_step=step + 1)
        if console().is_terminal:
            columns = (MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[line]}"), TimeRemainingColumn())
            self._progress = Progress(*columns, console=console())
            self._progress.add_task("", total=self._total_steps, completed=step, line="")
            self._progress.start()

    def close(self) -> None:
        """Flush and close everything; harmless twice."""
        if self._progress is not None:
            self._progress.stop()
        if self._writer is not None:
            self._writer.close()
        self._file.close()

    def add(self, metrics: dict[str, Mean], count: int = 0) -> None:
        """Add metrics of a microbatch or a step, and the number of units that it used."""
        for name, mean in metrics.items():
            self._means[name] = self._means[name] + mean if name in self._means else mean
        self._seen += count
        self._pending_count += count

    def advance(self, step: int, seconds: float) -> None:
        """Count the time of a step (pictures and checkpoints are not part of the speed) and move the progress bar."""
        self._pending_seconds += seconds
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=step)

    def write(self, step: int) -> dict[str, float]:
        """Log and clear the means summed since the last call, and return them."""
        line = {name: value for name, value in self._values().items() if value is not None}
        line[self.unit] = self._seen
        line[f"{self.unit}_per_second"] = self._pending_count / max(self._pending_seconds, 1e-9)
        self._means = {}
        self.record(step, line)
        text = _summary(line, self.unit)
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=step, line=text)
        else:
            console().print(f"step {step}/{self._total_steps}  {text}", highlight=False, soft_wrap=True)
        self._pending_count, self._pending_seconds = 0, 0.0
        return line

    def record(self, step: int, line: dict[str, float]) -> None:
        """Append named figures of ``step`` to the file and to TensorBoard."""
        plain = {name: value if math.isfinite(value) else None for name, value in line.items()}
        self._file.write(json.dumps({"step": step, **plain}) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in line.items():
                self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Bring what was logged to the disk."""
        os.fsync(self._file.fileno())

    def state_dict(self) -> dict[str, Any]:
        """Return the counter and the unfinished means as plain values."""
        means = {name: [float(mean.total), float(mean.weight)] for name, mean in self._means.items()}
        return {"seen": self._seen, "means": means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self._seen = state["seen"]
        self._means = {name: Mean(total, weight) for name, (total, weight) in state["means"].items()}

    def _values(self) -> dict[str, float | None]:
        pairs = {name: (float(mean.total), float(mean.weight)) for name, mean in self._means.items()}
        return {name: total / weight if weight else None for name, (total, weight) in pairs.items()}


def _truncate(path: Path, step: int) -> None:
    """Keep the whole lines of steps up to ``step``."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            continue  # the line that was being written when the process was killed
    with atomic_file(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


def _summary(line: dict[str, float], unit: str) -> str:
    speed = f"{unit}_per_second"
    shown = [f"{name} {value:.4g}" for name, value in line.items() if name not in (unit, speed)]
    return "  ".join([*shown, f"{line[speed]:,.0f} {unit}/s"])
