"""Who may attend to whom: whole rows, packed documents, or what a mask says; made once per forward for all layers.

Shapes: B rows, T query tokens, S key tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Visibility:
    """Who may attend to whom in one forward; made once, used by every layer."""

    causal: bool
    """Each token sees itself and those before it (its document only, if ``documents`` is given)."""
    documents: tuple[int, ...] | None = None
    """Lengths of the packed documents in row-major order, for one kernel call per document."""
    mask_B1TS: Tensor | None = None
    """True where a query may see a key; replaces the two above."""


def document_starts(document_ids_BT: Tensor) -> Tensor:
    """Return for every token the index in its row of its document's first token, [B, T]."""
    index_T = torch.arange(document_ids_BT.shape[1], device=document_ids_BT.device)
    is_start = torch.ones_like(document_ids_BT, dtype=torch.bool)
    is_start[:, 1:] = document_ids_BT[:, 1:] != document_ids_BT[:, :-1]
    return torch.where(is_start, index_T, 0).cummax(1).values


def document_visibility(document_ids_BT: Tensor) -> Visibility:
    """Restrict causal attention to runs of equal document ids."""
    starts_BT = document_starts(document_ids_BT)
    index_T = torch.arange(document_ids_BT.shape[1], device=document_ids_BT.device)
    if document_ids_BT.device.type != "cpu":
        same_BTS = starts_BT[:, :, None] == starts_BT[:, None, :]
        return Visibility(causal=False, mask_B1TS=(same_BTS & (index_T[:, None] >= index_T))[:, None])
    firsts = (starts_BT == index_T).flatten().nonzero().flatten().tolist()
    ends = [*firsts[1:], document_ids_BT.numel()]
    return Visibility(causal=True, documents=tuple(end - first for first, end in zip(firsts, ends, strict=True)))
