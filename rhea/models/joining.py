"""Several transformers side by side in one wider one, which begins with the skills of all of them.

Each has channels, heads and hidden units of its own, and at first reads and writes no others; their logits add up. No
router chooses between them: what is zero at first is trained like everything else, so the part that does not know what
a document is about learns to keep quiet (in a few steps), and all may use what the others see. It is the widening of
Net2Net (arXiv 1511.05641, section 2.2) with another model in the place of what is new.

What a norm divides by is shared: the root mean square over the channels of all parts, and one scale for the queries
(keys) of all heads. So the large model computes nearly, not exactly, what its parts did. Scales are set so that on
documents each part is divided, on average, by what divided it alone.

Shapes: B rows, T tokens (of all rows in a row, where there is no B), P parts, N places of a norm (two a layer, one at
the end).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rhea.errors import InputError
from rhea.models.config import TransformerConfig
from rhea.models.growth import placed
from rhea.models.transformer import DecoderLayer, Transformer

_ADDED = ("dim", "num_heads", "num_kv_heads", "ffn_dim")
_ALIKE = ("vocab_size", "head_dim", "rope_theta", "norm_eps", "qk_norm")
_READERS = {"q_proj": "queries", "k_proj": "keys", "v_proj": "keys", "gate_proj": "hidden", "up_proj": "hidden"}
"""Matrices that read the residual stream, and the units that they feed."""
_WRITERS = {"o_proj": "queries", "down_proj": "hidden"}
"""Those that write it, and the units that they read."""


class _Part(NamedTuple):
    """A smaller model and where it lies in the large one."""

    weights: dict[str, Tensor]
    layers: dict[int, int]
    """Which of its layers each of the large one's takes."""
    channels: slice
    queries: slice
    keys: slice
    hidden: slice


def joined_config(parts: Sequence[TransformerConfig]) -> TransformerConfig:
    """Return the sizes of the transformer that holds those; InputError if they can't stand side by side."""
    first = parts[0]
    for name in _ALIKE:
        values = [getattr(part, name) for part in parts]
        if len(set(values)) > 1:
            raise InputError(f"models that are joined must have the same {name}, not {' and '.join(map(str, values))}")
    if len({part.num_heads // part.num_kv_heads for part in parts}) > 1:
        raise InputError("in models that are joined as many heads must share one key-value head")
    return replace(
        first,
        num_layers=max(part.num_layers for part in parts),
        **{name: sum(getattr(part, name) for part in parts) for name in _ADDED},
    )


@torch.no_grad()
def join(smaller: Sequence[Transformer], large: Transformer, ids_BT: Tensor, document_ids_BT: Tensor) -> None:
    """Write the smaller models into the large one, of ``joined_config``'s sizes, whose weights must be initialised.

    ``ids_BT``, ``document_ids_BT``: packed documents of all that they know; each model's scales are set on the tokens
    that it foretells best. Where one has fewer layers its units are random and write nothing yet.
    """
    losses_PT = torch.stack([_losses(model, ids_BT, document_ids_BT) for model in smaller])
    sizes_PNT = torch.stack([_sizes(model, ids_BT, document_ids_BT, large.config.num_layers) for model in smaller])
    theirs_PT = (-losses_PT).softmax(0)
    theirs_PT /= theirs_PT.sum(1, keepdim=True)
    ends_P = (sizes_PNT[:, -1].log() * theirs_PT).sum(1)
    scales_P = (ends_P.mean() - ends_P).exp()
    sizes_PNT *= scales_P[:, None, None]
    shares_P = torch.tensor([model.config.dim / large.config.dim for model in smaller])
    whole_NT = torch.einsum("p,pnt->nt", shares_P, sizes_PNT.square()).sqrt()
    parts, state = _parts(smaller, large.config), large.state_dict()
    for name, weight in state.items():
        if name.split(".")[-2] in _WRITERS:
            weight.zero_()
    ratios_PN = ((whole_NT / sizes_PNT).log() * theirs_PT[:, None]).sum(-1).exp()
    for part, scale, ratios_N in zip(parts, scales_P, ratios_PN, strict=True):
        _write(part, parts, state, scale, ratios_N)


def _parts(smaller: Sequence[Transformer], large: TransformerConfig) -> list[_Part]:
    """Lay them side by side."""
    ends, parts = [0, 0, 0, 0], []
    for model in smaller:
        config = model.config
        widths = config.dim, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim, config.ffn_dim
        slices = [slice(end, end + width) for end, width in zip(ends, widths, strict=True)]
        ends = [each.stop for each in slices]
        weights = {name: weight.float() for name, weight in model.state_dict().items()}
        parts.append(_Part(weights, placed(config.num_layers, large.num_layers), *slices))
    return parts


def _write(part: _Part, parts: Sequence[_Part], state: dict[str, Tensor], scale: Tensor, ratios_N: Tensor) -> None:
    """Write one part: its stream that many times as large, its norms corrected by those ratios."""
    places = iter(ratios_N)
    for name, weight in state.items():
        _, number, rest = name.split(".", 2) if name.startswith("layers.") else ("", "", name)
        mine = part.layers.get(int(number)) if number else None
        kind = name.split(".")[-2]
        source = name if not number else f"layers.{mine}.{rest}"
        old = part.weights.get(source)
        if kind in ("attention_norm", "mlp_norm", "norm"):
            weight[part.channels] = next(places) * (1.0 if old is None else old)
        elif kind in ("q_norm", "k_norm"):
            weight.copy_(_shared(parts, int(number), rest))
        elif old is None:
            continue
        elif kind == "embed_tokens":
            weight[:, part.channels] = old * scale
        elif kind == "lm_head":
            weight[:, part.channels] = old
        elif kind in _WRITERS:
            weight[part.channels, getattr(part, _WRITERS[kind])] = old * scale
        else:
            norm = f"attention.{kind[0]}_norm.weight"
            own = part.weights.get(f"layers.{mine}.{norm}") if kind in ("q_proj", "k_proj") else None
            if own is not None:
                ratio = own / _shared(parts, int(number), norm)
                old = old * ratio.repeat(len(old) // len(ratio))[:, None]
            rows = getattr(part, _READERS[kind])
            weight[rows] = 0
            weight[rows, part.channels] = old


def _shared(parts: Sequence[_Part], number: int, rest: str) -> Tensor:
    """Return the scale of the queries or keys of all parts in a layer."""
    found = [part.weights[f"layers.{part.layers[number]}.{rest}"] for part in parts if number in part.layers]
    return torch.stack(found).mean(0)


def _losses(model: Transformer, ids_BT: Tensor, document_ids_BT: Tensor) -> Tensor:
    """Return how badly each token's next one is foretold, [B * T]; nothing at the end of a row."""
    logits_BTV = model(ids_BT, document_ids_BT=document_ids_BT)[:, :-1]
    losses_BT = F.cross_entropy(logits_BTV.transpose(1, 2), ids_BT[:, 1:], reduction="none")
    return F.pad(losses_BT, (0, 1)).flatten()


def _sizes(model: Transformer, ids_BT: Tensor, document_ids_BT: Tensor, num_layers: int) -> Tensor:
    """Return the root mean square of the residual stream, [N, B * T], where a model of so many layers has a norm."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    hooks = []
    for layer in model.layers:
        assert isinstance(layer, DecoderLayer)
        hooks.append(layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0])))
        hooks.append(layer.attention.register_forward_hook(lambda _, __, output: inputs.append(inputs[-1] + output)))
        hooks.append(layer.register_forward_hook(lambda _, __, output: outputs.append(output)))
    model.hidden(ids_BT, document_ids_BT=document_ids_BT)
    for hook in hooks:
        hook.remove()
    layers, now, streams = placed(model.config.num_layers, num_layers), inputs[0], []
    for number in range(num_layers):
        mine = layers.get(number)
        streams += [now, now] if mine is None else inputs[2 * mine : 2 * mine + 2]
        now = now if mine is None else outputs[mine]
    return torch.stack([each.square().mean(-1).sqrt().flatten() for each in (*streams, now)])
