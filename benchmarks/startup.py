"""Seconds until `import rhea`, `rhea --help` and `rhea demo` are done, as whole processes, beside an empty interpreter.

The demo takes longer than the others by far and runs by itself, after them, fewer times.
Usage: python benchmarks/startup.py [--repeats 11] [--demos 3]
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from record import interleaved, median, save

COMMANDS = {
    "python": ["-c", "pass"],
    "import rhea": ["-c", "import rhea"],
    "rhea --help": ["-m", "rhea.cli", "--help"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--demos", type=int, default=3, help="repeats of the demo")
    options = parser.parse_args()

    def run(arguments: list[str]) -> None:
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)

    def demo() -> None:
        with tempfile.TemporaryDirectory() as folder:
            run(["-m", "rhea.cli", "demo", "--output", str(Path(folder) / "demo")])

    seconds = interleaved({name: lambda given=given: run(given) for name, given in COMMANDS.items()}, options.repeats)
    seconds |= interleaved({"rhea demo": demo}, options.demos)
    medians = {name: median(values) for name, values in seconds.items()}
    save(__file__, {"repeats": options.repeats, "demos": options.demos, "seconds": medians})


if __name__ == "__main__":
    main()
