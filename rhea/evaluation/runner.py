"""Grade a task's items in one process or many, go on where an interrupted run was, and write one report.

Processes never talk to each other: each takes every n-th item and appends records to a file of its own, beside the
report (``report.records/0-of-4.jsonl``). Whoever finds that all items have records writes the report. A run may go on
with another number of processes, because whatever any file holds is done.
"""

import json
import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rhea.errors import InputError
from rhea.evaluation.report import Report, checkpoint_hash
from rhea.evaluation.task import Record, Task
from rhea.generation.model import Rhea
from rhea.io import write_json


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The items of one process among several."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise InputError(f"shard {self.index}/{self.count}: shards of {self.count} are 0 to {self.count - 1}")


def read_shard(text: str | None, environment: Mapping[str, str] = os.environ) -> Shard:
    """Return the shard "i/n" (i from 0); of None that of this process under torchrun, or the whole."""
    if text is None:
        return Shard(index=int(environment.get("RANK", 0)), count=int(environment.get("WORLD_SIZE", 1)))
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None:
        raise InputError(f"shard {text!r}: write it as 0/4, the first of four")
    return Shard(index=int(found[1]), count=int(found[2]))


@dataclass(frozen=True, kw_only=True)
class Graded:
    """A record, and the seconds that it took."""

    index: int
    seconds: float
    record: Record


def run_task(
    task: Task,
    model: Rhea,
    *,
    output: Path | None = None,
    shard: Shard | None = None,
    told: Callable[[int, int], None] | None = None,
) -> Report | None:
    """Grade what is not graded yet of a shard (by default everything); return the report if that was all.

    With ``output`` records are kept beside that file and the report is written to it; None is returned while other
    shards are still at work. ``told(done, total)`` is called after each batch. Raises InputError for several shards
    without ``output``, and for records of another checkpoint or other settings.
    """
    shard = shard or Shard()
    if output is None and shard.count > 1:
        raise InputError("several shards meet in a file: name it with --output")
    total, identity = len(task), _identity(task, model)
    kept = _RecordFolder(output.with_suffix(".records"), identity) if output is not None else None
    done = kept.read() if kept is not None else {}
    missing = [index for index in range(shard.index, total, shard.count) if index not in done]
    for start in range(0, len(missing), task.batch):
        graded = _grade(task, missing[start : start + task.batch])
        if kept is not None:
            kept.append(shard, graded)
        done |= {each.index: each for each in graded}
        if told is not None:
            told(len(done), total)
    if kept is not None:
        done = kept.read()
    if len(done) < total:
        return None
    report = _report(task, model, identity, [done[index] for index in range(total)])
    if output is not None:
        write_json(output, report.to_json())
    return report


def _grade(task: Task, indices: list[int]) -> list[Graded]:
    start = time.perf_counter()
    records = task.grade(indices)
    seconds = (time.perf_counter() - start) / len(indices)
    return [Graded(index=index, seconds=seconds, record=record) for index, record in zip(indices, records, strict=True)]


def _identity(task: Task, model: Rhea) -> dict[str, Any]:
    """Return what two runs must share for their records to be mixed."""
    told = {
        "task": task.name,
        "items": len(task),
        "settings": task.settings,
        "checkpoint": checkpoint_hash(model.checkpoint),
    }
    return json.loads(json.dumps(told))


def _report(task: Task, model: Rhea, identity: dict[str, Any], graded: list[Graded]) -> Report:
    return Report(
        benchmark=task.name,
        settings=identity["settings"],
        checkpoint_hash=identity["checkpoint"],
        trained_on=model.trained_on,
        figures=tuple(task.figures([each.record for each in graded])),
        records=tuple(each.record for each in graded),
        seconds=sum(each.seconds for each in graded),
        machine=machine(),
    )


def machine() -> dict[str, Any]:
    """Return what the figures' seconds depend on, for a report."""
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


class _RecordFolder:
    """Files of records, one for each shard that ever ran: a line that says whose they are, then a line per item."""

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self._folder, self._identity = folder, identity

    def read(self) -> dict[int, Graded]:
        """Return all records that are there; the line that was being written when a process died does not count."""
        found: dict[int, Graded] = {}
        for path in sorted(self._folder.glob("*-of-*.jsonl")):
            whole = path.read_bytes().rpartition(b"\n")[0]
            if not whole:
                continue
            try:
                identity, *lines = [json.loads(line) for line in whole.splitlines()]
                graded = [Graded(**line) for line in lines]
            except (ValueError, TypeError):
                raise InputError(f"{path} is damaged: delete it, and its items are graded again") from None
            self._check(path, identity)
            found |= {each.index: each for each in graded}
        return found

    def append(self, shard: Shard, graded: list[Graded]) -> None:
        """Write records to the shard's file, after its last whole line."""
        path = self._folder / f"{shard.index}-of-{shard.count}.jsonl"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with path.open("a+b") as file:
                file.seek(0)
                whole = file.read().rfind(b"\n") + 1
                file.truncate(whole)
                lines = [vars(each) for each in graded] if whole else [self._identity, *(vars(each) for each in graded)]
                file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from None

    def _check(self, path: Path, identity: Any) -> None:
        if identity != self._identity:
            theirs = identity if isinstance(identity, dict) else {}
            different = [name for name, value in self._identity.items() if theirs.get(name) != value]
            raise InputError(
                f"{path} holds records of another run (other {', '.join(different)}): "
                f"delete {self._folder} to start anew, or name another --output"
            )
