"""The default model graded on the shapes world, as `rhea evaluate shapes` does, with machine and commit recorded.

Usage: python benchmarks/shapes.py [--scenes 200] [--shard 0/2]

Stopped, it goes on when it is run again; several processes share the work, each with a shard of its own. What is graded
is kept in benchmarks/shapes.report.records meanwhile.
"""

import argparse
import shutil

from record import HERE, save

import rhea
from rhea.evaluation.runner import read_shard, run_task
from rhea.evaluation.shapes.bench import ShapesBenchmark
from rhea.evaluation.shapes.task import ShapesTask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=200, help="scenes per figure")
    parser.add_argument("--checkpoint", default=None, help="a folder; the default model if not given")
    parser.add_argument("--shard", default=None, help="I/N: only the I-th of N parts, from 0")
    arguments = parser.parse_args()
    model, kept = rhea.load(arguments.checkpoint), HERE / "shapes.report.json"
    task = ShapesTask(model, ShapesBenchmark(scenes=arguments.scenes, best_of=4))
    report = run_task(task, model, output=kept, shard=read_shard(arguments.shard))
    if report is None:
        print("the other shards are still at work")
        return
    save(__file__, {name: value for name, value in report.to_json().items() if name != "machine"})
    shutil.rmtree(kept.with_suffix(".records"), ignore_errors=True)  # the last two may both have found all done
    kept.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
