"""Models to folders, in our layout or transformers', and folders from one layout to the other.

A folder appears whole or not at all. Files are written shard by shard, so that converting the largest model holds one
shard in memory, never the model.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from rhea.checkpoints.configs import CheckpointConfig
from rhea.checkpoints.export import hf_files, hf_layout
from rhea.checkpoints.layouts import PARTS, RHEA, Layout, Part
from rhea.checkpoints.load import Checkpoint, OpenedFolder, folder_text_tokenizer, open_folder
from rhea.checkpoints.weights import StoredTensor, read_tensors
from rhea.config import to_dict
from rhea.errors import InputError
from rhea.io import atomic_folder, write_json
from rhea.models.quantized import QuantizedLinear
from rhea.tokenizers.text import TextTokenizer

SHARD_BYTES = 5_000_000_000
"""As in the released checkpoints."""

SavedLayout = Literal["rhea", "hf"]
_CARRIED = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE")


@dataclass(frozen=True, kw_only=True)
class OutgoingTensor:
    """A tensor to be written; ``read`` brings its data into memory when its shard's turn comes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]

    @property
    def num_bytes(self) -> int:
        """Return the size of the data."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


Outgoing = dict[Part, dict[str, OutgoingTensor]]


def save_checkpoint(
    folder: str | Path,
    checkpoint: Checkpoint,
    *,
    layout: SavedLayout = "rhea",
    card: str | None = None,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a checkpoint's models (as they are, any dtype and device), config, text tokenizer and model card.

    ``card`` is the text of README.md, by default a short one. An existing folder that is not empty is only replaced
    with ``overwrite``, and only if it is a checkpoint itself. Quantized or packed weights raise an InputError.
    """
    models = {part: getattr(checkpoint, part) for part in PARTS if getattr(checkpoint, part) is not None}
    for part, model in models.items():
        assert model.config == getattr(checkpoint.config, part), part
        if any(isinstance(module, QuantizedLinear) for module in model.modules()):
            raise InputError("quantized weights are not saved: save the model as it was, and quantize it on loading")
        if any(parameter.is_meta for parameter in model.parameters()):
            raise InputError("a model packed for generation can't be saved: load it by load_checkpoint")
    config = replace(checkpoint.config, **{part: None for part in PARTS if part not in models})  # type: ignore[arg-type]
    outgoing: Outgoing = {
        part: {name: _from_memory(tensor) for name, tensor in model.state_dict().items()}
        for part, model in models.items()
    }
    _check_target(Path(folder), overwrite)
    with atomic_folder(folder) as temporary:
        _write(temporary, config, outgoing, checkpoint.text_tokenizer, layout, shard_bytes)
        (temporary / "README.md").write_text(card if card is not None else model_card(config), encoding="utf-8")


def convert_checkpoint(
    source: str | Path,
    target: str | Path,
    layout: SavedLayout = "rhea",
    *,
    vision_tokenizer: str | Path | None = None,
    dtype: torch.dtype | None = None,
    vision_dtype: torch.dtype | None = None,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a checkpoint of any layout anew in ``layout``, shard by shard; values change only if a dtype is given.

    ``vision_tokenizer`` names a second folder or hub id whose vision tokenizer is put beside the transformer, as the
    released models come apart. The text tokenizer, model card and licence are copied along.
    """
    opened = open_folder(source)
    config, tensors = opened.config, dict(opened.tensors)
    if vision_tokenizer is not None:
        other = open_folder(vision_tokenizer)
        if "vision_tokenizer" not in other.tensors:
            raise InputError(f"{other.folder} holds no vision tokenizer")
        config = replace(config, vision_tokenizer=other.config.vision_tokenizer, pixels=other.config.pixels)
        tensors["vision_tokenizer"] = other.tensors["vision_tokenizer"]
    outgoing: Outgoing = {
        part: {
            name: _from_file(name, tensor, dtype if part == "transformer" else vision_dtype)
            for name, tensor in tensors[part].items()
        }
        for part in PARTS
        if part in tensors
    }
    _check_target(Path(target), overwrite)
    with atomic_folder(target) as temporary:
        _write(temporary, config, outgoing, folder_text_tokenizer(opened), layout, shard_bytes)
        _carry(opened, temporary)


def model_card(config: CheckpointConfig) -> str:
    """Return a short README.md for a checkpoint that brings none."""
    held = " and ".join(part.replace("_", " ") for part in PARTS if getattr(config, part) is not None)
    trained_on = f"\nTrained on: {config.trained_on}\n" if config.trained_on else ""
    return f"# Rhea checkpoint\n\nA {held}; config.json has every size.\n{trained_on}"


def _from_memory(tensor: torch.Tensor) -> OutgoingTensor:
    return OutgoingTensor(dtype=tensor.dtype, shape=tuple(tensor.shape), read=lambda: tensor.detach().cpu())


def _from_file(name: str, stored: StoredTensor, dtype: torch.dtype | None) -> OutgoingTensor:
    cast = dtype if dtype is not None and stored.dtype.is_floating_point else stored.dtype
    return OutgoingTensor(
        dtype=cast, shape=stored.shape, read=lambda: read_tensors({name: stored}, dtype=cast, device="cpu")[name]
    )


def _check_target(folder: Path, overwrite: bool) -> None:
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise InputError(f"{folder} exists and is not empty; name a new folder")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is no checkpoint and is not replaced by one; name a new folder")


def _write(
    folder: Path,
    config: CheckpointConfig,
    outgoing: Outgoing,
    text_tokenizer: TextTokenizer | None,
    layout: SavedLayout,
    shard_bytes: int,
) -> None:
    if layout == "rhea":
        write_json(folder / "config.json", to_dict(config))
        for part, tensors in outgoing.items():
            _write_shards(folder, part, tensors, shard_bytes)
    elif layout == "hf":
        dtypes = [tensor.dtype for tensors in outgoing.values() for tensor in tensors.values()]
        for name, content in hf_files(config, str(dtypes[0]).removeprefix("torch.")).items():
            write_json(folder / name, content)
        _write_shards(folder, "model", _renamed(outgoing, hf_layout(config)), shard_bytes)
    else:
        raise InputError(f"no layout is called {layout!r}; there are rhea and hf")
    if text_tokenizer is not None:
        text_tokenizer.save(folder)


def _renamed(outgoing: Outgoing, layout: Layout) -> dict[str, OutgoingTensor]:
    """Name and shape tensors as ``layout`` stores them."""
    assert layout is not RHEA
    stored: dict[str, OutgoingTensor] = {}
    for part, tensors in outgoing.items():
        renaming = layout.renamings(part)[0]
        for name, tensor in tensors.items():
            shape = renaming.stored_shape(name, tensor.shape)
            stored[renaming.theirs(name)] = replace(tensor, shape=shape)
    return stored


def _write_shards(folder: Path, stem: str, tensors: dict[str, OutgoingTensor], shard_bytes: int) -> None:
    """Write one file, or several of at most ``shard_bytes`` (a larger tensor alone in its file) and their index."""
    shards = _shards(tensors, shard_bytes)
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = f"{stem}.safetensors" if len(shards) == 1 else f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        weight_map.update(dict.fromkeys(names, file))
        data = {name: tensors[name].read().contiguous().view(tensors[name].shape) for name in names}
        save_file(data, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        total = sum(tensor.num_bytes for tensor in tensors.values())
        write_json(
            folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
        )


def _shards(tensors: dict[str, OutgoingTensor], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.num_bytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += tensor.num_bytes
    return shards


def _carry(opened: OpenedFolder, folder: Path) -> None:
    for name in _CARRIED:
        if (opened.folder / name).is_file():
            shutil.copyfile(opened.folder / name, folder / name)
    if not (folder / "README.md").exists():
        (folder / "README.md").write_text(model_card(opened.config), encoding="utf-8")
