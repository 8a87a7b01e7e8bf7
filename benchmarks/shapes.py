"""The default model graded on the shapes world, as `rhea evaluate shapes` does, with machine and commit recorded.

Usage: python benchmarks/shapes.py [--scenes 200]
"""

import argparse

from record import save

import rhea
from rhea.evaluation.shapes.bench import ShapesBenchmark
from rhea.evaluation.shapes.task import evaluate_shapes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=200, help="scenes per figure")
    parser.add_argument("--checkpoint", default=None, help="a folder; the default model if not given")
    arguments = parser.parse_args()
    report = evaluate_shapes(rhea.load(arguments.checkpoint), ShapesBenchmark(scenes=arguments.scenes, best_of=4))
    save(__file__, {name: value for name, value in report.to_json().items() if name != "machine"})


if __name__ == "__main__":
    main()
