"""The rich model graded on emoji and driving, as `rhea evaluate default` does, with machine and commit recorded.

Usage: python benchmarks/rich_model.py --emoji FOLDER --driving FOLDER [--limit 200] [--shard 0/2]

The emoji are those it was trained on (docs/data.md); the films are others: rhea record driving --seed 1000 --films 200.
Stopped, it goes on when it is run again; several processes share the work, each with a shard of its own.
"""

import argparse

from graded import save_graded

import rhea
from rhea.evaluation.default import DefaultTask
from rhea.evaluation.driving import DrivingBenchmark, DrivingTask
from rhea.evaluation.emoji import EmojiBenchmark, EmojiTask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--emoji", required=True, help="folder of shards")
    parser.add_argument("--driving", required=True, help="folder of films that it was not trained on")
    parser.add_argument("--limit", type=int, default=200, help="cells of each kind, and films, at most")
    parser.add_argument("--checkpoint", default="rich", help="a name or a folder")
    parser.add_argument("--shard", default=None, help="I/N: only the I-th of N parts, from 0")
    arguments = parser.parse_args()
    model = rhea.load(arguments.checkpoint)
    emoji = EmojiBenchmark(shards=arguments.emoji, cells=arguments.limit, groups=("drawn", "named"))
    driving = DrivingBenchmark(shards=arguments.driving, films=arguments.limit)
    task = DefaultTask([EmojiTask(model, emoji), DrivingTask(model, driving)])
    save_graded(__file__, task, model, arguments.shard)


if __name__ == "__main__":
    main()
