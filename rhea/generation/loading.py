"""From the name of a checkpoint to a ``Rhea`` that is ready to be asked: device, precision, quantization, packing."""

from pathlib import Path

import torch

from rhea.checkpoints.hub import INSTALLED
from rhea.checkpoints.load import load_checkpoint
from rhea.errors import InputError
from rhea.generation.engine import EngineConfig
from rhea.generation.model import Rhea
from rhea.models.device import choose_device
from rhea.models.quantized import WeightFormat, quantize
from rhea.tokenizers.vocabulary import Vocabulary

DEFAULT_MODEL = INSTALLED / "default"
_SMALL = 1_000_000_000
"""Models under this many parameters run in float32 on CPUs, whatever is stored."""


def load_model(
    path: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    vision_tokenizer: str | Path | None = None,
    tile: int | None = None,
    weights: WeightFormat | None = None,
    engine: EngineConfig | None = None,
) -> Rhea:
    """Load the default model, another of the package by its name, or a checkpoint folder or hub id in any layout.

    ``device``: "cpu", "cuda", "cuda:1" or "mps", by default the GPU if there is one. ``dtype`` of the transformer:
    "float32" or "bfloat16"; by default float32 for small models on a CPU and what is stored otherwise. The vision
    tokenizer always runs in float32. ``vision_tokenizer``: a second folder or id, for releases that keep it apart.
    ``tile``: pictures of more codes along a side are coded in tiles of that side, approximately, in less memory.
    ``weights``: "int8" or "fp8" (GPU, torchao) keeps the matrices of the decoder layers in eight bits.
    ``engine``: how tokens are drawn in parallel and what the cache is kept in.
    """
    where = choose_device(device)
    if path is None and not DEFAULT_MODEL.is_dir():
        raise InputError(f"the default model is not in this installation ({DEFAULT_MODEL}): name a checkpoint folder")
    checkpoint = load_checkpoint(
        DEFAULT_MODEL if path is None else path, dtype=_dtype(dtype), vision_dtype=torch.float32, device=where
    )
    if vision_tokenizer is not None:
        other = load_checkpoint(vision_tokenizer, vision_dtype=torch.float32, device=where, parts=("vision_tokenizer",))
        checkpoint = checkpoint.with_vision_tokenizer(other)
    transformer = checkpoint.transformer
    if transformer is None:
        if weights is not None:
            raise InputError(f"weights={weights!r}: this checkpoint has no transformer to quantize")
        return Rhea(checkpoint, tile, engine)
    if where.type == "cpu" and dtype is None and sum(p.numel() for p in transformer.parameters()) < _SMALL:
        transformer.float()
    if weights is not None:
        quantize(transformer, weights)
    assert checkpoint.config.vocabulary is not None, "a transformer has one"
    transformer.pack(Vocabulary(checkpoint.config.vocabulary).boundaries, alone=True)
    return Rhea(checkpoint, tile, engine)


def _dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name is None or isinstance(name, torch.dtype):
        return name
    if name not in known:
        raise InputError(f"dtype {name!r} is not one of {', '.join(known)}")
    return known[name]
