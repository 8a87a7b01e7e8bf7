"""What every benchmark shares: the machine, the commit, timing two sides in turn, and the JSON beside the script."""

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from rhea.io import write_json

HERE = Path(__file__).parent


def machine() -> dict[str, Any]:
    """Return processor, threads, memory, accelerator and the versions that matter."""
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    pages = Path("/proc/meminfo").read_text().splitlines()[0].split()[1] if info else "0"
    return {
        "processor": names[0] if names else platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(int(pages) / 2**20, 1),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("torch", "transformers", "numpy", "safetensors")},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit() -> str:
    """Return the short commit hash, with a plus when the working tree differs from it."""
    run = ["git", "describe", "--always", "--dirty=+", "--abbrev=10"]
    return subprocess.run(run, cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()


def interleaved(sides: dict[str, Callable[[], Any]], repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Time each side in turn, ``repeats`` times after ``warmup`` uncounted turns; return seconds per side."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warmup + repeats):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median(values: list[float]) -> float:
    return statistics.median(values)


def peak_memory_gb() -> float:
    """Return this process's peak resident memory since ``forget_peak``, in GiB: a process of its own for each side."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20


def forget_peak() -> None:
    """Let the peak begin at what is resident now, so that building a model does not count (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def save(script: str, results: dict[str, Any]) -> None:
    """Write ``results`` with machine and commit to the JSON file beside ``script``, and print it."""
    record = {"commit": commit(), "machine": machine(), **results}
    write_json(Path(script).with_suffix(".json"), record)
    print(json.dumps(record, indent=2))
