"""A report: figures, each beside what could be reached at best and what comes without any skill, and whose they are.

The checkpoint is named by a hash of its weights as float32 values and of its config, so the same model has the same
hash in every layout, however it is cut into files.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from rhea.checkpoints.load import Checkpoint, load_checkpoint
from rhea.config import to_dict


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number."""

    group: str
    name: str
    value: float
    count: int
    """How many scenes it was measured on."""
    ceiling: float | None = None
    """The same measure on the truth after the vision tokenizer's round trip."""
    unskilled: dict[str, float] = field(default_factory=dict)
    """What comes without skill, by the name of the guess."""
    unit: str = "%"
    """"%" (a share, more is better), "px" (an error, less is better), or another one; nothing for a bare number."""


@dataclass(frozen=True, kw_only=True)
class Report:
    benchmark: str
    settings: dict[str, Any]
    checkpoint_hash: str
    trained_on: str
    figures: tuple[Figure, ...]
    seconds: float
    """Of grading, summed over all processes."""
    machine: dict[str, Any] = field(default_factory=dict)
    """Where it was graded (the last part, if there were several)."""
    records: tuple[dict[str, Any], ...] = ()
    """What was found in each item; not part of the file."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a file."""
        return {name: value for name, value in to_dict(self).items() if name != "records"}

    def figure(self, group: str, name: str) -> Figure:
        """Return one figure by its group and name."""
        return next(each for each in self.figures if (each.group, each.name) == (group, name))


def share(group: str, name: str, right: list[bool], ceiling: list[bool], **unskilled: float) -> Figure:
    """Return the figure of a share of right cases, with that of the ceiling."""
    return Figure(
        group=group,
        name=name,
        value=float(np.mean(right)),
        count=len(right),
        ceiling=float(np.mean(ceiling)),
        unskilled=unskilled,
    )


TITLES = ("", "", "measured", "ceiling", "without skill", "items")


def rows(report: Report) -> list[tuple[str, ...]]:
    """Write every figure as one row below ``TITLES``."""
    found: list[tuple[str, ...]] = []
    for each in report.figures:
        guesses = ", ".join(f"{name} {_written(value, each.unit)}" for name, value in each.unskilled.items())
        measured, ceiling = _written(each.value, each.unit), _written(each.ceiling, each.unit)
        found.append((each.group, each.name, measured, ceiling, guesses, str(each.count)))
    return found


def table(report: Report) -> Table:
    """Lay a report out for the terminal."""
    shown = Table(*TITLES, title=f"{report.benchmark} (weights {report.checkpoint_hash[:12]})")
    last = ""
    for group, *cells in rows(report):
        if group != last and last:
            shown.add_section()
        shown.add_row("" if group == last else group, *cells)
        last = group
    return shown


def _written(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "%":
        return f"{100 * value:.1f} %"
    return f"{value:.2f} {unit}" if unit else f"{value:.4g}"


def checkpoint_hash(checkpoint: Checkpoint) -> str:
    """Return the SHA-256 of the weights (names, shapes, float32 values) and the config."""
    digest = hashlib.sha256(json.dumps(to_dict(checkpoint.config), sort_keys=True).encode())
    for part in ("transformer", "vision_tokenizer"):
        for name, tensor in sorted(_state(checkpoint, part).items()):
            digest.update(f"{part}.{name}{tuple(tensor.shape)}".encode())
            values = tensor.detach().to("cpu", torch.float32).contiguous()
            digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def files_hash(files: Iterable[Path], folder: Path | None = None) -> str:
    """Return the SHA-256 of what files are called (below ``folder``, if one is given) and how large they are."""
    names = ((each.relative_to(folder).as_posix() if folder else each.name, each) for each in files)
    listed = "\n".join(f"{name} {each.stat().st_size}" for name, each in names)
    return hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest()


def _state(checkpoint: Checkpoint, part: str) -> dict[str, torch.Tensor]:
    """Return a part's tensors; those of a transformer whose weights were packed and released are read again."""
    model = getattr(checkpoint, part)
    state = {} if model is None else model.state_dict()
    if not any(tensor.is_meta for tensor in state.values()):
        return state
    assert checkpoint.source is not None, "only a loaded model is released"
    dtype = next(model.parameters()).dtype
    again = load_checkpoint(checkpoint.source, dtype=dtype, parts=("transformer",), check_finite=False).transformer
    assert again is not None
    return again.state_dict()
