"""Seconds until `import rhea` and `rhea --help` are done, as whole processes, beside an empty interpreter.

Usage: python benchmarks/startup.py [--repeats 11]
"""

import argparse
import subprocess
import sys

from record import interleaved, median, save

COMMANDS = {
    "python": ["-c", "pass"],
    "import rhea": ["-c", "import rhea"],
    "rhea --help": ["-m", "rhea.cli", "--help"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=11)
    repeats = parser.parse_args().repeats

    def run(arguments: list[str]) -> None:
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)

    seconds = interleaved({name: lambda given=given: run(given) for name, given in COMMANDS.items()}, repeats)
    save(__file__, {"repeats": repeats, "seconds": {name: median(values) for name, values in seconds.items()}})


if __name__ == "__main__":
    main()
