"""Training checkpoints: ``step-00001234`` folders of one safetensors file and one JSON file, whole or not there at all.

A folder appears by a rename after everything in it is on disk. Its JSON holds the SHA-256 of the tensors, so a file
damaged later is noticed too, and the one before it is used.
"""

import contextlib
import hashlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rhea.errors import InputError
from rhea.io import atomic_folder, read_json, write_json
from rhea.logging import logger
from rhea.training.task import TaskState, TrainingError

FORMAT = "rhea-training"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint read back."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    path: Path

    def task_state(self) -> TaskState:
        """Return what the task gave to be saved."""
        prefix = "task."
        tensors = {name.removeprefix(prefix): x for name, x in self.tensors.items() if name.startswith(prefix)}
        return TaskState(tensors=tensors, values=self.values["task"])


def checkpoint_folders(folder: Path) -> list[Path]:
    """Return the checkpoint folders of a run, oldest first."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name) and path.is_dir()]
    return sorted(found, key=_step)


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, Tensor], values: dict[str, Any], keep_last: int
) -> Path:
    """Write checkpoint ``step`` atomically, then delete all but the newest ``keep_last``; TrainingError if it fails."""
    path = folder / f"step-{step:08d}"
    try:
        with atomic_folder(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary / "state.safetensors")
            digest = _digest(temporary / "state.safetensors")
            header = {"format": FORMAT, "version": VERSION, "step": step, "sha256": digest}
            write_json(temporary / "state.json", {**header, "values": values})
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"checkpoint {path} could not be written: {error}; {last_good(folder)}") from error
    # A later one can only be a damaged one that was passed over: it must not push this one out.
    until_now = [old for old in checkpoint_folders(folder) if _step(old) <= step]
    for old in until_now[:-keep_last]:
        shutil.rmtree(old)
    return path


def load_newest(folder: Path) -> Saved | None:
    """Read the newest whole checkpoint, warning of any newer damaged one; None if there is none.

    Raise InputError if there are checkpoints and all are damaged: starting over then is the user's decision.
    """
    _remove_unfinished(folder)
    folders = checkpoint_folders(folder)
    for path in reversed(folders):
        try:
            return load_checkpoint(path)
        except InputError as error:
            logger.warning("%s; trying the checkpoint before it", error)
    if folders:
        raise InputError(f"no checkpoint in {folder} is whole; remove {folders[0].name}.. to start this run over")
    return None


def load_checkpoint(path: Path) -> Saved:
    """Read one checkpoint; raise InputError if it is incomplete or damaged."""
    header = read_json(path / "state.json")
    if not isinstance(header, dict) or header.get("format") != FORMAT or header.get("version") != VERSION:
        raise InputError(f"{path} is not a training checkpoint of format {FORMAT} version {VERSION}")
    file = path / "state.safetensors"
    if not file.is_file() or _digest(file) != header.get("sha256"):
        raise InputError(f"checkpoint {path} is damaged: {file.name} is missing or does not match its checksum")
    try:
        return Saved(step=header["step"], tensors=load_file(file), values=header["values"], path=path)
    except (SafetensorError, KeyError) as error:
        raise InputError(f"checkpoint {path} is damaged: {error}") from error


def last_good(folder: Path) -> str:
    """Say in words which checkpoint is the newest whole one."""
    for path in reversed(checkpoint_folders(folder)):
        with contextlib.suppress(InputError):
            load_checkpoint(path)
            return f"the last good checkpoint is {path}"
    return "no checkpoint was written before"


def _remove_unfinished(folder: Path) -> None:
    """Delete the temporary folders of a process that was killed while it wrote."""
    for path in folder.glob(".step-*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
