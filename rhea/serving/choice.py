"""Which model an engine's process loads: plain values, so that the server can hand them on without torch."""

import os
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """What ``load_model`` and ``EngineConfig`` are given."""

    checkpoint: str | None = None
    vision_tokenizer: str | None = None
    device: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    tile: int | None = None
    weights: Literal["int8", "fp8"] | None = None
    cache: Literal["model", "int8", "fp8"] = "model"
    parallel: Literal["gumbel", "coupling"] = "gumbel"
    window: int | None = None
    slots: int = 16
    """Cache rows; a guided picture takes two."""
    max_len: int | None = None
    """Tokens per row; None for the model's whole context."""

    @property
    def name(self) -> str:
        """What clients call the model: the folder's name or the hub id."""
        if self.checkpoint is None:
            return "rhea-default"
        return (
            os.path.basename(os.path.abspath(self.checkpoint)) if os.path.exists(self.checkpoint) else self.checkpoint
        )
