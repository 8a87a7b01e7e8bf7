"""What a checkpoint is, told from its config and the headers of its files: no tensor is loaded."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from rhea.checkpoints.configs import CheckpointConfig
from rhea.checkpoints.layouts import PARTS, Part
from rhea.checkpoints.load import OpenedFolder, empty_model, open_folder
from rhea.checkpoints.weights import StoredTensor
from rhea.tokenizers.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class PartDescription:
    """One part of the model, as stored."""

    num_tensors: int
    num_parameters: int
    """Without buffers."""
    dtypes: tuple[str, ...]
    """Of the floating-point tensors, the most frequent first."""
    num_bytes: int
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Description:
    """Everything that ``rhea inspect`` prints."""

    folder: Path
    layout: str
    """The name of the layout, as in ``layouts``."""
    title: str
    parts: dict[Part, PartDescription]
    config: CheckpointConfig
    text_tokenizer: str | None
    """Name of its file."""

    def lines(self) -> list[str]:
        """Return the description as lines for people."""
        rows = [("checkpoint", str(self.folder)), ("layout", f"{self.layout} ({self.title})")]
        for part, told in self.parts.items():
            rows.append((part.replace("_", " "), _part_line(told)))
            rows += [("", line) for line in _config_lines(self.config, part)]
        if self.config.vocabulary is not None:
            rows += [("vocabulary", line) for line in _vocabulary_lines(Vocabulary(self.config.vocabulary))]
        rows.append(("text tokenizer", self.text_tokenizer or "none in the folder"))
        if self.config.pixels is not None:
            pixels = self.config.pixels
            rows.append(("pictures", f"{pixels.min_pixels:,} to {pixels.max_pixels:,} pixels, shape: {pixels.shape}"))
        if self.config.generation:
            rows.append(("generation", ", ".join(f"{key} {value}" for key, value in self.config.generation.items())))
        if self.config.trained_on:
            rows.append(("trained on", self.config.trained_on))
        return [f"{name:<18}{line}" for name, line in rows]


def describe_checkpoint(path_or_id: str | Path) -> Description:
    """Tell what a folder or hub id holds; raise the InputError of loading it, except for NaN, which only data shows."""
    opened = open_folder(path_or_id)
    files = [*sorted(opened.folder.glob("*.tiktoken")), *opened.folder.glob("tokenizer.json")]
    return Description(
        folder=opened.folder,
        layout=opened.layout.name,
        title=opened.layout.title,
        parts={part: _part(opened, part) for part in PARTS if part in opened.tensors},
        config=opened.config,
        text_tokenizer=files[0].name if files else None,
    )


def _part(opened: OpenedFolder, part: Part) -> PartDescription:
    tensors = opened.tensors[part]
    floats = Counter(str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.dtype.is_floating_point)
    parameters = dict(empty_model(opened.config, part).named_parameters())
    return PartDescription(
        num_tensors=len(tensors),
        num_parameters=sum(math.prod(tensor.shape) for name, tensor in tensors.items() if name in parameters),
        dtypes=tuple(name for name, _ in floats.most_common()),
        num_bytes=sum(_num_bytes(tensor) for tensor in tensors.values()),
        files=tuple(sorted({tensor.file.name for tensor in tensors.values()})),
    )


def _num_bytes(tensor: StoredTensor) -> int:
    return torch.Size(tensor.shape).numel() * tensor.dtype.itemsize


def _part_line(told: PartDescription) -> str:
    size = f"{told.num_bytes / 1e9:.2f} GB" if told.num_bytes >= 1e9 else f"{told.num_bytes / 1e6:.1f} MB"
    files = told.files[0] if len(told.files) == 1 else f"{len(told.files)} files"
    return f"{told.num_parameters:,} parameters, {'/'.join(told.dtypes)}, {size} in {files}"


def _config_lines(config: CheckpointConfig, part: Part) -> list[str]:
    transformer, vision = config.transformer, config.vision_tokenizer
    if part == "transformer" and transformer is not None:
        return [
            f"{transformer.num_layers} layers, dim {transformer.dim}, ffn {transformer.ffn_dim}, heads "
            f"{transformer.num_heads} ({transformer.num_kv_heads} key-value) of {transformer.head_dim}"
            + (", QK-norm" if transformer.qk_norm else ""),
            f"context {transformer.max_seq_len:,} tokens, RoPE base {transformer.rope_theta:g}",
        ]
    assert vision is not None
    multipliers = ", ".join(map(str, vision.channel_multipliers))
    return [
        f"{vision.codebook_size:,} codes of {vision.embed_dim} numbers, one per {vision.spatial_factor} x "
        f"{vision.spatial_factor} pixels and {vision.temporal_downsample} frames",
        f"channels {vision.base_channels} x ({multipliers}), {vision.num_res_blocks} residual blocks a level",
    ]


def _vocabulary_lines(vocabulary: Vocabulary) -> list[str]:
    roles = ("pad", "bos", "eos", "eol", "eof", "image_token", "image_start", "image_end")
    return [
        f"{vocabulary.size:,} ids: {len(vocabulary.text):,} text, {len(vocabulary.special):,} special, "
        f"{len(vocabulary.vision):,} visual from {vocabulary.vision.start}",
        ", ".join(f"{role} {getattr(vocabulary, role)}" for role in roles),
    ]
