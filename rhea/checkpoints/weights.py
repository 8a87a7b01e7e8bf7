"""safetensors files as one lazy table of tensors: headers first, then data block by block into memory of our own.

Files are memory-mapped, and mapped pages count as memory in use until the mapping is closed. So tensors are copied
(cast on the way) in blocks of 32 MB and the file is mapped anew every 128 MB: loading never holds more than the model
itself and one such window. Copying also gives aligned memory that a later change of the file cannot reach.
On request (``mapped``) the weights are only looked through in these windows, and then left in a mapping.
Nothing here unpickles: a folder with only .bin or .pth files is refused.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from rhea.checkpoints.layouts import PARTS, RHEA, Layout, Part
from rhea.errors import InputError
from rhea.io import read_json

BLOCK_BYTES = 32 << 20
WINDOW_BYTES = 128 << 20

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor of ours lies; its data is not loaded."""

    file: Path
    name: str
    """The name in the file."""
    dtype: torch.dtype
    stored_shape: tuple[int, ...]
    shape: tuple[int, ...]
    """The shape that our model wants: a stored matrix may be a 1 x 1 convolution."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """All tensors of a folder by part and our name, what did not fit the layout, and what could not be read."""

    parts: dict[Part, dict[str, StoredTensor]]
    damaged: tuple[str, ...] = ()
    """What is wrong with the files, a sentence each."""
    incomplete: frozenset[Part] = frozenset()
    """Parts that a damaged file belongs to: what else they lack cannot be told."""
    unknown: tuple[str, ...] = ()
    """Stored names that belong to no part."""
    twice: tuple[str, ...] = ()
    """Stored names that mean a tensor already there."""


def weight_files(folder: Path, stem: str) -> list[Path]:
    """Return the safetensors files of ``stem``: its index's shards, or the one file; empty if there are none."""
    index = folder / f"{stem}.safetensors.index.json"
    if not index.exists():
        return [file for file in [folder / f"{stem}.safetensors"] if file.is_file()]
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise InputError(f"{index} is no index of shards: it has no weight_map of names")
    names = sorted(set(weight_map.values()))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise InputError(f"{index} points outside its folder: {listed(outside)}")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder}: {len(missing)} of {len(names)} shards are missing: {listed(missing)}")
    return [folder / name for name in names]


def read_headers(folder: Path, layout: Layout) -> Weights:
    """List the tensors of a folder without loading them; raise InputError if it has no safetensors weights."""
    parts: dict[Part, dict[str, StoredTensor]] = {part: {} for part in layout.parts}
    incomplete: set[Part] = set()
    damaged, unknown, twice = [], [], []
    for stem, prefix in [(part, f"{part}.") for part in PARTS] if layout is RHEA else [("model", "")]:
        entries, problems = _entries(folder, stem)
        if problems:
            damaged += problems
            incomplete |= {part for part in layout.parts if f"{part}.".startswith(prefix)}
        for file, name, dtype, stored_shape in entries:
            found = layout.ours(prefix + name)
            if found is None:
                unknown.append(name)
                continue
            part, ours, renaming = found
            shape = stored_shape
            if renaming.matrices and renaming.stored_shape(ours, (1, 1, 1, 1)) == (1, 1) and len(shape) == 2:
                shape = (*shape, 1, 1)
            stored = StoredTensor(file=file, name=name, dtype=dtype, stored_shape=stored_shape, shape=shape)
            if ours in parts[part]:
                twice.append(name)
            parts[part][ours] = stored
    present = {part: tensors for part, tensors in parts.items() if tensors}
    if not (present or unknown or damaged):
        raise _no_weights(folder)
    return Weights(
        parts=present,
        damaged=tuple(damaged),
        incomplete=frozenset(incomplete),
        unknown=tuple(unknown),
        twice=tuple(twice),
    )


def _no_weights(folder: Path) -> InputError:
    pickled = sorted(file.name for suffix in ("*.bin", "*.pth", "*.pt") for file in folder.glob(suffix))
    if not pickled:
        return InputError(f"{folder} has a config.json but no safetensors weights")
    return InputError(
        f"{folder} has its weights only as pickled files ({listed(pickled)}), which can run code when opened; "
        "convert them to safetensors first"
    )


def _entries(folder: Path, stem: str) -> tuple[list[tuple[Path, str, torch.dtype, tuple[int, ...]]], list[str]]:
    """Return what the headers of ``stem``'s files say, and what is wrong with those that cannot be read."""
    entries, problems = [], Problems()
    with problems.noted():
        for file in weight_files(folder, stem):
            with problems.noted():
                entries += [(file, *entry) for entry in _header(file)]
    return entries, problems.told


def _header(file: Path) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    entries = []
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (a safe_open object is no mapping)
                piece = tensors.get_slice(name)
                if piece.get_dtype() not in _DTYPES:
                    raise InputError(f"{file}: {name} is of type {piece.get_dtype()}; known are {sorted(_DTYPES)}")
                entries.append((name, _DTYPES[piece.get_dtype()], tuple(piece.get_shape())))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is cut off, damaged or no safetensors file: {error}") from None
    return entries


def check_against(
    folder: Path, weights: Weights, part: Part, wanted: dict[str, tuple[int, ...]]
) -> dict[str, StoredTensor]:
    """Return the tensors of ``part`` if they are exactly those ``wanted``, else raise one InputError that names all."""
    stored = weights.parts.get(part, {})
    problems = {
        "missing": [name for name in wanted if name not in stored and part not in weights.incomplete],
        "unexpected": [tensor.name for name, tensor in stored.items() if name not in wanted],
        "of another shape": [
            f"{stored[name].name} {list(stored[name].stored_shape)} instead of {list(shape)}"
            for name, shape in wanted.items()
            if name in stored and stored[name].shape != shape
        ],
    }
    if any(problems.values()):
        told = "; ".join(f"{len(names)} {problem}: {listed(names)}" for problem, names in problems.items() if names)
        raise InputError(f"{folder} does not hold the {part} that its config.json describes: {told}")
    return stored


def read_tensors(
    stored: dict[str, StoredTensor],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    check_finite: bool = True,
    mapped: bool = False,
) -> dict[str, torch.Tensor]:
    """Load tensors into memory of their own, floating-point ones as ``dtype`` (None: as stored), on ``device``.

    With ``mapped``, those that need no cast nor leave the CPU are read when they are first used, and what is written
    into them stays in memory. Raises one InputError that names every tensor with NaN or infinity in it (after the
    cast), if ``check_finite``.
    """
    loaded: dict[str, torch.Tensor] = {}
    broken: list[str] = []
    by_file: dict[Path, list[str]] = {}
    for name, tensor in stored.items():
        by_file.setdefault(tensor.file, []).append(name)
    for file, names in by_file.items():
        window, kept = _Window(file), _Window(file)
        for name in names:
            tensor = stored[name]
            wanted = dtype if dtype is not None and tensor.dtype.is_floating_point else tensor.dtype
            check = check_finite and wanted.is_floating_point
            if mapped and wanted == tensor.dtype and torch.device(device).type == "cpu":
                target = kept.tensor(tensor.name, 0)
                finite = not check or window.is_finite(tensor.name, target)
            else:
                target = torch.empty(tensor.stored_shape, dtype=wanted, device=device)
                finite = window.copy_into(tensor.name, target, check)
            if not finite:
                broken.append(tensor.name)
            loaded[name] = target.view(tensor.shape)
    if broken:
        folder = next(iter(stored.values())).file.parent
        cast = "" if dtype is None else f" as {dtype}"
        raise InputError(f"{folder}: {len(broken)} tensors hold NaN or infinity{cast}: {listed(broken)}")
    return loaded


class _Window:
    """A mapped file, mapped anew whenever WINDOW_BYTES of it have been read."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.left = 0
        self.handle: Any = None

    def copy_into(self, name: str, target: torch.Tensor, check_finite: bool) -> bool:
        """Copy the named tensor block by block; tell whether every block was finite."""
        finite, rows = True, _rows(target)
        for block in _blocks(rows):
            rows[block].copy_(_rows(self.tensor(name, rows[block].numel()))[block])
            finite = finite and (not check_finite or _is_finite(rows[block]))
        return finite

    def is_finite(self, name: str, like: torch.Tensor) -> bool:
        """Tell whether every block of the named tensor is finite; ``like`` has its shape and is not read."""
        rows = _rows(like)
        return all(_is_finite(_rows(self.tensor(name, rows[block].numel()))[block]) for block in _blocks(rows))

    def tensor(self, name: str, num_values: int) -> torch.Tensor:
        """Return the named tensor as a view of the mapping, of which ``num_values`` will be read."""
        try:
            if self.left <= 0:
                self.handle = None
                self.handle = safe_open(self.file, framework="pt")
                self.left = WINDOW_BYTES
            tensor = self.handle.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self.file} cannot be read: {error}") from None
        self.left -= num_values * tensor.element_size()
        return tensor


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(1) if tensor.ndim == 0 else tensor


def _blocks(rows: torch.Tensor) -> Iterator[slice]:
    """Yield the rows of one block after the other."""
    step = max(1, BLOCK_BYTES // max(1, rows[:1].numel() * rows.element_size()))
    return (slice(start, start + step) for start in range(0, len(rows), step))


def _is_finite(block: torch.Tensor) -> bool:
    if block.element_size() == 1:  # 8-bit floats have no minimum and maximum of their own
        block = block.to(torch.float32)
    # Both ends are NaN if anything is, and no array of flags as large as the block is made.
    return not block.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(block))).all())


def listed(names: Iterable[str], limit: int = 4, separator: str = ", ") -> str:
    """Return the first few names and how many more there are."""
    names = list(names)
    return separator.join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


class Problems:
    """What is wrong with several files or parts, gathered to be raised as one InputError."""

    def __init__(self) -> None:
        self.told: list[str] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note an InputError that ends the block, and go on behind it."""
        try:
            yield
        except InputError as error:
            self.told.append(str(error))

    def raise_all(self) -> None:
        """Raise one InputError that tells them all (of more than eight, how many more), if there is any."""
        if self.told:
            raise InputError(listed(self.told, limit=8, separator="; "))
