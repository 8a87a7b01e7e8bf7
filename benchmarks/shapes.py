"""The default model graded on the shapes world, as `rhea evaluate shapes` does, with machine and commit recorded.

Usage: python benchmarks/shapes.py [--scenes 200] [--shard 0/2] [--tasks "text to image" edits]

With --tasks, figures of other tasks stay as they were, and beside them which weights and settings they are of.
Stopped, it goes on when it is run again; several processes share the work, each with a shard of its own. What is graded
is kept in benchmarks/shapes.report.records meanwhile.
"""

import argparse
import json
from typing import Any

from graded import save_graded
from record import HERE

import rhea
from rhea.evaluation.shapes.bench import ShapesBenchmark
from rhea.evaluation.shapes.task import ShapesTask


def joined(report: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Return a report of some tasks with the figures of another that it has none of."""
    fresh = {(each["group"], each["name"]): each for each in report["figures"]}
    figures = [fresh.pop((each["group"], each["name"]), each) for each in before["figures"]]
    groups = {each["group"] for each in report["figures"]}
    kept = {
        "groups": sorted({each["group"] for each in figures} - groups),
        **{name: before[name] for name in ("commit", "checkpoint_hash", "settings")},
    }
    return report | {"figures": [*figures, *fresh.values()], "kept": kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=200, help="scenes per figure")
    parser.add_argument("--checkpoint", default=None, help="a folder; the default model if not given")
    parser.add_argument("--shard", default=None, help="I/N: only the I-th of N parts, from 0")
    parser.add_argument("--tasks", nargs="+", default=ShapesBenchmark().tasks, help="only these")
    arguments = parser.parse_args()
    model = rhea.load(arguments.checkpoint)
    task = ShapesTask(model, ShapesBenchmark(scenes=arguments.scenes, best_of=4, tasks=tuple(arguments.tasks)))

    def finish(found: dict[str, Any]) -> dict[str, Any]:
        if not set(arguments.tasks) < set(ShapesBenchmark().tasks):
            return found
        return joined(found, json.loads((HERE / "shapes.json").read_text(encoding="utf-8")))

    save_graded(__file__, task, model, arguments.shard, finish)


if __name__ == "__main__":
    main()
