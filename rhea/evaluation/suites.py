"""The prompts of public suites, and the files that their official scorers expect, read from their own repositories.

- GenEval (djghosh13/geneval, README.md and evaluation/evaluate_images.py): for line N of ``evaluation_metadata.jsonl``
  a folder ``00000`` with that line as ``metadata.jsonl`` and four pictures ``samples/0000.png``.
- T2I-CompBench (Karine-Huang/T2I-CompBench, GORS_finetune/inference_eval.py): of each line of ``*_val.txt``, up to a
  tab, ten pictures ``samples/PROMPT_000000.png``, numbered through. Scorers read the prompt from the name, up to the
  first "_", and the number after the last.
- DPG-Bench (TencentQQGYLab/ELLA, dpg_bench/compute_dpg_bench.py): for each ``prompts/NAME.txt`` one ``NAME.png``, four
  squares side by side and below each other, without a gap.
- VBench (Vchitect/VBench, prompts/README.md and vbench/__init__.py): for each prompt five films ``PROMPT-0.mp4``. The
  prompts are ``prompt_en`` in ``VBench_full_info.json``, or lines of ``prompts_per_dimension/*.txt``.

Where a name is a prompt, scorers look for exactly that name; the suites' own prompts fit. Of any other, "/" becomes a
space (and "_" for T2I-CompBench), and what is over the 255 bytes of a file's name is cut off, with a warning
(VBench's authors confirm in issue 79 that theirs fit).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rhea.errors import InputError
from rhea.io import read_json
from rhea.logging import logger

_LONGEST_NAME = 255
"""Bytes, on common file systems."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A file to be drawn: one sample of a prompt, or several on a sheet."""

    path: str
    """Inside the output folder."""
    prompt: str
    samples: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a prompt file asks for."""

    wanted: tuple[Wanted, ...]
    texts: tuple[tuple[str, str], ...] = ()
    """Files beside the drawn ones: path and content."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A public suite."""

    read: Callable[[Path, int], Order]
    """From the prompt file, or folder of them, and the number of samples."""
    samples: int
    """How many its scorers expect of each prompt."""
    films: bool = False
    sheets: bool = False
    """Whether all samples of a prompt are one file, in squares."""


def _geneval(file: Path, samples: int) -> Order:
    wanted, texts = [], []
    for number, line in enumerate(_lines(file)):
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f'{file}, line {number + 1}: not an object with a "prompt" (evaluation_metadata.jsonl)'
            ) from None
        texts.append((f"{number:05}/metadata.jsonl", line))
        wanted += [
            Wanted(path=f"{number:05}/samples/{sample:04}.png", prompt=prompt, samples=(sample,))
            for sample in range(samples)
        ]
    return Order(wanted=tuple(wanted), texts=tuple(texts))


def _t2i_compbench(file: Path, samples: int) -> Order:
    wanted = []
    for number, line in enumerate(_lines(file)):
        prompt = line.split("\t")[0].strip()
        endings = [f"_{number * samples + sample:06}.png" for sample in range(samples)]
        names = _names(prompt, endings, plain=prompt.replace("_", " "))
        wanted += [
            Wanted(path=f"samples/{name}", prompt=prompt, samples=(sample,)) for sample, name in enumerate(names)
        ]
    return Order(wanted=tuple(wanted))


def _dpg_bench(folder: Path, samples: int) -> Order:
    files = sorted(folder.glob("*.txt")) if folder.is_dir() else [folder]
    if not files:
        raise InputError(f"{folder} holds no prompts (*.txt)")
    return Order(
        wanted=tuple(
            Wanted(path=f"{file.stem}.png", prompt=" ".join(_lines(file)), samples=tuple(range(samples)))
            for file in files
        )
    )


def _vbench(file: Path, samples: int) -> Order:
    if file.suffix == ".json":
        try:
            prompts = [each["prompt_en"] for each in read_json(file)]
        except (KeyError, TypeError):
            raise InputError(f'{file} is no list of objects with "prompt_en" (VBench_full_info.json)') from None
    else:
        prompts = [line.strip() for line in _lines(file)]
    return Order(
        wanted=tuple(
            Wanted(path=name, prompt=prompt, samples=(sample,))
            for prompt in dict.fromkeys(prompts)
            for sample, name in enumerate(_names(prompt, [f"-{sample}.mp4" for sample in range(samples)]))
        )
    )


SUITES = {
    "geneval": Suite(read=_geneval, samples=4),
    "t2i-compbench": Suite(read=_t2i_compbench, samples=10),
    "dpg-bench": Suite(read=_dpg_bench, samples=4, sheets=True),
    "vbench": Suite(read=_vbench, samples=5, films=True),
}


def read_order(suite: str, file: Path, samples: int | None = None) -> Order:
    """Read a suite's prompts; raise InputError for what is no prompt file of it, or for names that meet."""
    if suite not in SUITES:
        raise InputError(f"no suite is called {suite!r}; there are {', '.join(SUITES)}")
    known = SUITES[suite]
    count = known.samples if samples is None else samples
    if count < 1 or (known.sheets and count > 4):
        raise InputError(f"samples is {count}; it must be at least 1" + (" and at most 4" if known.sheets else ""))
    order = known.read(file, count)
    seen: dict[str, str] = {}
    for each in order.wanted:
        if not isinstance(each.prompt, str) or not each.prompt.strip():
            raise InputError(f"{file}: a prompt is empty (for {each.path})")
        if seen.setdefault(each.path, each.prompt) != each.prompt:
            raise InputError(f"{file}: two prompts would be called {each.path!r}: {seen[each.path]!r}, {each.prompt!r}")
    return order


def _lines(file: Path) -> list[str]:
    """Return the lines that are not empty."""
    try:
        found = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read prompts from {file}: {error}") from None
    if not found:
        raise InputError(f"{file} holds no prompts")
    return found


def _names(prompt: str, endings: Sequence[str], *, plain: str = "") -> list[str]:
    """Return file names that begin with the prompt (or what is ``plain`` of it) as far as file systems allow."""
    if not isinstance(prompt, str):
        raise InputError(f"a prompt is {prompt!r}; it must be text")
    room = _LONGEST_NAME - max(len(ending.encode()) for ending in endings)
    begin = (plain or prompt).replace("/", " ").replace("\0", " ").encode()[:room].decode(errors="ignore")
    if begin != prompt:
        logger.warning("no file can be called %r: scorers will read %r", prompt, begin)
    return [begin + ending for ending in endings]
