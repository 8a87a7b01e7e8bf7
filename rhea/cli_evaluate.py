"""``rhea evaluate WHAT``: one function for each thing that a checkpoint can be graded on.

Nothing heavy is imported before a command runs.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from rhea.cli_messages import item_progress, say
from rhea.cli_options import MODEL, ModelOptions
from rhea.errors import InputError

if TYPE_CHECKING:
    from rhea.evaluation.task import Task
    from rhea.generation.model import Rhea

Shard = Annotated[str | None, arg(metavar="I/N")]


def shapes(
    scenes: int = 200,
    output: Path | None = None,
    seed: int = 0,
    tasks: tuple[str, ...] = (),
    shard: Shard = None,
    model: ModelOptions = MODEL,
) -> None:
    """Grade a checkpoint on fresh scenes of the shapes world; every figure beside its ceiling and its chance level.

    $ rhea evaluate shapes --scenes 200 --output report.json

    Args:
        scenes: Scenes per figure; more are slower and surer.
        output: Also write the report there, as JSON; what is graded is kept beside it, to go on after an interruption.
        seed: Of the scenes and of the sampling; no training seed, whichever you take.
        tasks: Only these, of: "text to image" answers films edits.
        shard: Grade only the I-th of N parts (from 0), for several processes with one --output; torchrun needs none.
    """
    from rhea.evaluation.shapes import ShapesBenchmark, ShapesTask

    _check_report(output)
    config = ShapesBenchmark(scenes=scenes, seed=seed)
    loaded = _load(model)
    _run(ShapesTask(loaded, replace(config, tasks=tasks or config.tasks)), loaded, output, shard)


EVALUATIONS: dict[str, Callable[..., None]] = {function.__name__: function for function in (shapes,)}


def _check_report(output: Path | None) -> None:
    if output is not None and output.suffix != ".json":
        raise InputError(f"the report is written as JSON; {output} must end in .json")


def _load(model: ModelOptions) -> "Rhea":
    """Load the model, under torchrun on the GPU that belongs to this process."""
    import os

    import torch

    if model.device is None and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        model = replace(model, device=f"cuda:{os.environ['LOCAL_RANK']}")
    return model.load()


def _run(task: "Task", model: "Rhea", output: Path | None, shard: str | None) -> bool:
    """Grade, show and write; return whether the report is whole."""
    from rhea.evaluation.report import table
    from rhea.evaluation.runner import read_shard, run_task
    from rhea.logging import console

    with item_progress("evaluating") as told:
        report = run_task(task, model, output=output, shard=read_shard(shard), told=told)
    if report is None:
        say(f"this part is done; {output} is written by whichever part ends last")
        return False
    console().print(table(report))
    if output is not None:
        say(f"wrote {output}")
    return True
