"""A larger transformer that begins with the skills of a smaller one instead of with random weights.

What is added is invisible at first: new channels of the residual stream carry zeros, because nothing writes them yet,
and new heads, hidden units and layers are read with weights of zero. So the larger model computes the same function
(Net2Net, arXiv 1511.05641, section 2.2), while what reads the new channels and what feeds the new units is random, so
that gradients reach all of it from the first step on.

Shapes: V vocabulary rows, D channels of the residual stream.
"""

from dataclasses import fields

import torch
from torch import Tensor

from rhea.errors import InputError
from rhea.models.config import TransformerConfig
from rhea.models.transformer import Transformer

_GROWN = ("vocab_size", "dim", "num_layers", "num_heads", "num_kv_heads", "ffn_dim")
"""Sizes that may differ. Of the others, heads and rotary positions decide what a weight means."""
_LOOSE = ("max_seq_len", "dropout", "init_std", "pad_id")


def require_growth(small: TransformerConfig, large: TransformerConfig) -> None:
    """Raise InputError unless a model of the first sizes can grow to one of the second."""
    for field in fields(TransformerConfig):
        name = field.name
        before, after = getattr(small, name), getattr(large, name)
        if name == "vocab_size" or name in _LOOSE:
            continue
        if (after < before) if name in _GROWN else (after != before):
            kind = "cannot shrink" if name in _GROWN else "must stay as it is"
            raise InputError(f"{name} is {before} in the smaller model and {after} in the larger one; it {kind}")
    if small.num_heads // small.num_kv_heads != large.num_heads // large.num_kv_heads:
        raise InputError(
            f"{small.num_heads} heads on {small.num_kv_heads} key-value heads cannot become {large.num_heads} on "
            f"{large.num_kv_heads}: as many heads must share one"
        )


@torch.no_grad()
def grow(small: Transformer, large: Transformer, rows_VV: Tensor | None = None) -> None:
    """Write the small model into the large one, whose weights must be initialised.

    ``rows_VV``: [rows of the large vocabulary, rows of the small one]; each row of embedding and head becomes this
    mixture of the small model's rows. Where every row is a single one, logits are those of the small model. None if
    both have the same vocabulary.
    """
    require_growth(small.config, large.config)
    sizes = small.config.vocab_size, large.config.vocab_size
    if rows_VV is None and sizes[0] != sizes[1]:
        raise InputError(f"the smaller model has a vocabulary of {sizes[0]} tokens and the larger one of {sizes[1]}")
    grown, weights = large.state_dict(), {name: weight.float() for name, weight in small.state_dict().items()}
    layers = placed(small.config.num_layers, large.config.num_layers)
    for name, weight in grown.items():
        part = name.split(".")[-2]
        if part in ("embed_tokens", "lm_head"):
            weight[:, : small.config.dim] = weights[name] if rows_VV is None else rows_VV @ weights[name]
            if part == "embed_tokens":
                weight[:, small.config.dim :] = 0
            continue
        source = name
        if name.startswith("layers."):
            _, number, rest = name.split(".", 2)
            if int(number) not in layers:
                if part in ("o_proj", "down_proj"):
                    weight.zero_()
                continue
            source = f"layers.{layers[int(number)]}.{rest}"
        _widen(part, weights[source], weight, small.config.dim / large.config.dim)


def placed(small: int, large: int) -> dict[int, int]:
    """Return which layer of the small model each of the large one takes; new layers lie evenly between the old ones."""
    return {round((number + 0.5) * large / small - 0.5): number for number in range(small)}


def _widen(part: str, old: Tensor, new: Tensor, share: float) -> None:
    """Write a weight into the first rows and columns of a larger one, in place."""
    if old.ndim == 1:
        # A norm divides by the root of the mean over all channels, of which only ``share`` are not zero.
        scale = share**0.5 if part in ("attention_norm", "mlp_norm", "norm") else 1.0
        new[: len(old)] = old * scale
        return
    rows, columns = old.shape
    if part in ("o_proj", "down_proj"):
        new.zero_()
    new[:rows, :columns] = old
