"""Packs rendered documents into rows of one length, never cutting an image.

A row's documents are told apart by ``document_ids`` (attention must not cross them) and their positions restart at 0.
The label of a token is the next token of the same document, so the first token of a document is never predicted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from rhea.documents.grammar import Rendered
from rhea.errors import InputError

IGNORED_LABEL = -100


@dataclass(frozen=True, eq=False, kw_only=True)
class Packed:
    """Arrays [rows, tokens]."""

    token_ids: np.ndarray
    """int64, padded with the vocabulary's pad."""
    labels: np.ndarray
    """int64, -100 where there is nothing to predict."""
    loss_weights: np.ndarray
    """float32 weight of predicting the label, 0 where there is none."""
    document_ids: np.ndarray
    """int64, 0, 1, ... in each row, -1 for padding."""
    positions: np.ndarray
    """int64, counted from the start of each document, 0 for padding."""
    origins: tuple[tuple[str, ...], ...]
    """For each row the names of its documents, for messages ("shapes:1234")."""

    def __getitem__(self, rows: slice) -> "Packed":
        """Return some of the rows."""
        return Packed(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def __add__(self, other: "Packed") -> "Packed":
        """Return the rows of both, which must be of one length."""
        arrays = [field.name for field in fields(self) if field.name != "origins"]
        joined = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in arrays}
        return Packed(**joined, origins=self.origins + other.origins)


def first_fit(lengths: Sequence[int], capacity: int) -> list[int]:
    """Choose for one row: the first (oldest) document, then each following one that still fits. Returns positions."""
    chosen, room = [], capacity
    for position, length in enumerate(lengths):
        if length <= room:
            chosen.append(position)
            room -= length
            if not room:
                break
    assert not lengths or (chosen and chosen[0] == 0), "the caller admits no document longer than a row"
    return chosen


def cut(rendered: Rendered, may_cut: np.ndarray, length: int) -> list[Rendered]:
    """Cut a long document at admissible places into pieces of at most ``length`` tokens.

    ``may_cut`` is the grammar's. The first token of each further piece is not predicted, like any document's first.
    Raises InputError if one image alone is longer than a row.
    """
    pieces, start, total = [], 0, len(rendered.token_ids)
    while total - start > length:
        places = np.flatnonzero(may_cut[start + 1 : start + length + 1])
        if not len(places):
            raise InputError(f"an image or video is longer than a row of {length} tokens")
        stop = start + 1 + int(places[-1])
        pieces.append(_piece(rendered, start, stop))
        start = stop
    return [*pieces, _piece(rendered, start, total)]


def _piece(rendered: Rendered, start: int, stop: int) -> Rendered:
    weights = rendered.loss_weights[start:stop].copy()
    weights[:1] = 0.0
    return Rendered(rendered.token_ids[start:stop], weights)


def stack_rows(
    rows: Sequence[Sequence[Rendered]], seq_len: int, pad: int, origins: Sequence[Sequence[str]] | None = None
) -> Packed:
    """Lay out rows whose documents have been chosen; each row's documents together fit in ``seq_len``."""
    shape = (len(rows), seq_len)
    packed = Packed(
        token_ids=np.full(shape, pad, dtype=np.int64),
        labels=np.full(shape, IGNORED_LABEL, dtype=np.int64),
        loss_weights=np.zeros(shape, dtype=np.float32),
        document_ids=np.full(shape, -1, dtype=np.int64),
        positions=np.zeros(shape, dtype=np.int64),
        origins=tuple(map(tuple, origins)) if origins is not None else tuple(() for _ in rows),
    )
    for row, documents in enumerate(rows):
        if documents:
            _lay_out(packed, row, documents)
    return packed


def _lay_out(packed: Packed, row: int, documents: Sequence[Rendered]) -> None:
    lengths = np.array([len(document.token_ids) for document in documents])
    stops = np.cumsum(lengths)
    total = int(stops[-1])
    assert total <= packed.token_ids.shape[1], "the documents of a row must fit in it"
    ids = np.concatenate([document.token_ids for document in documents])
    weights = np.concatenate([document.loss_weights for document in documents])
    packed.token_ids[row, :total] = ids
    packed.labels[row, : total - 1] = ids[1:]
    packed.loss_weights[row, : total - 1] = weights[1:]
    packed.labels[row, stops - 1] = IGNORED_LABEL
    packed.loss_weights[row, stops - 1] = 0.0
    packed.document_ids[row, :total] = np.repeat(np.arange(len(documents)), lengths)
    packed.positions[row, :total] = np.arange(total) - np.repeat(stops - lengths, lengths)


def pack(documents: Sequence[Rendered], seq_len: int, pad: int) -> Packed:
    """Pack a given list of documents into as many rows as it takes; raise InputError for one longer than a row."""
    longest = max((len(document.token_ids) for document in documents), default=0)
    if longest > seq_len:
        raise InputError(f"a document of {longest} tokens does not fit in a row of {seq_len}")
    left, rows = list(enumerate(documents)), []
    while left:
        chosen = first_fit([len(document.token_ids) for _, document in left], seq_len)
        rows.append([left[position] for position in chosen])
        taken = set(chosen)
        left = [entry for position, entry in enumerate(left) if position not in taken]
    origins = [[str(number) for number, _ in row] for row in rows]
    return stack_rows([[document for _, document in row] for row in rows], seq_len, pad, origins)
