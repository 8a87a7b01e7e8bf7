"""What the benchmarks of quality share: grading a task in one process or several, and the JSON beside the script."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import save

from rhea.evaluation.runner import read_shard, run_task
from rhea.evaluation.task import Task
from rhea.generation.model import Rhea


def save_graded(
    script: str,
    task: Task,
    model: Rhea,
    shard: str | None,
    finish: Callable[[dict[str, Any]], dict[str, Any]] = lambda found: found,
) -> None:
    """Grade a shard ("0/2", None: everything) of a task; the process that finds all graded saves the report.

    Stopped, it goes on when it is run again: what is graded is kept beside the script meanwhile.
    """
    kept = Path(script).with_suffix(".report.json")
    report = run_task(task, model, output=kept, shard=read_shard(shard))
    if report is None:
        print("the other shards are still at work")
        return
    save(script, finish({name: value for name, value in report.to_json().items() if name != "machine"}))
    shutil.rmtree(kept.with_suffix(".records"), ignore_errors=True)  # the last two may both have found all done
    kept.unlink(missing_ok=True)
