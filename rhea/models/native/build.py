"""From ``kernels.c`` to a shared library: compiled on the machine that runs it, for its processor alone.

The decision that is not obvious: nothing is compiled beforehand, for what is fast depends on the processor, and no
compiler is required. The library is kept in the user's cache under a hash of all that it depends on and renamed into
place, so that several processes may build at once. Whatever goes wrong means that there is none: torch's operators
then do the work.
"""

import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.c")
# No contraction but the one that is written down: it could differ between tiles, and so between batches.
_FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-pthread")
_FOR_THIS_PROCESSOR = (("-march=native",), ("-mcpu=native",), ())
"""What asks for the processor's own instructions, as compilers know it."""
_SECONDS = 120


def build() -> Path | None:
    """Return the compiled library, from the cache or compiled now; None without a compiler that can."""
    compiler = _compiler()
    if compiler is None:
        return None
    try:
        folder = _cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        library = folder / f"kernels-{_hash(compiler)}.so"
        if not library.exists():
            with tempfile.TemporaryDirectory(dir=folder) as aside:
                made = Path(aside) / library.name
                _compile(compiler, made)
                made.replace(library)
    except (OSError, subprocess.SubprocessError) as error:
        logging.getLogger(__name__).info("no operators of our own, torch's serve: %s", error)
        return None
    return library


def _compiler() -> list[str] | None:
    words = shlex.split(os.environ.get("CC", "")) or ["cc"]
    found = shutil.which(words[0])
    return [found, *words[1:]] if found else None


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rhea" / "native"


def _compile(compiler: list[str], library: Path) -> None:
    for number, chosen in enumerate(_FOR_THIS_PROCESSOR, start=1):
        command = [*compiler, *_FLAGS, *chosen, "-o", str(library), str(SOURCE), "-lm"]
        try:
            subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=True, timeout=_SECONDS)
        except subprocess.CalledProcessError:
            if number == len(_FOR_THIS_PROCESSOR):
                raise
        else:
            return


def _hash(compiler: list[str]) -> str:
    """Name the source, the compiler and the processor."""
    program = Path(compiler[0]).resolve()
    stat = program.stat()  # asking it for its version would take longer than all else
    parts = [SOURCE.read_text(), repr((_FLAGS, _FOR_THIS_PROCESSOR)), *compiler]
    parts += [str(program), str(stat.st_size), str(stat.st_mtime_ns), platform.machine(), platform.processor()]
    described = Path("/proc/cpuinfo")
    if described.exists():
        kinds = ("model name", "cpu family", "model\t", "stepping", "flags", "Features", "CPU part", "CPU implementer")
        parts += sorted({line for line in described.read_text().splitlines() if line.startswith(kinds)})
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
