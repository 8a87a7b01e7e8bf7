"""Pairs of documents that begin alike, one preferred to the other: their file, and endless batches of them.

A line of the file is a JSON object with ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``: the tokens that a model
was given, and two continuations that it wrote. Tokens are kept, not pictures: encoding a decoded picture gives other
codes. In a packed row the chosen document of each pair is followed by the rejected one.
"""

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rhea.documents.grammar import Rendered
from rhea.documents.packing import Packed, stack_rows
from rhea.documents.shards import Passes
from rhea.errors import InputError
from rhea.io import atomic_file

_FIELDS = ("prompt_ids", "chosen_ids", "rejected_ids")


@dataclass(frozen=True)
class Pair:
    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]

    def rendered(self) -> tuple[Rendered, Rendered]:
        """Return both documents; what follows the prompt has weight 1."""
        return _rendered(self.prompt_ids, self.chosen_ids), _rendered(self.prompt_ids, self.rejected_ids)


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    """Write the file, whole or not at all."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for pair in pairs:
            file.write(json.dumps({name: getattr(pair, name) for name in _FIELDS}, separators=(",", ":")) + "\n")


def read_pairs(path: str | Path, vocab_size: int) -> list[Pair]:
    """Read such a file; InputError with the line of what is no pair of this vocabulary."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file of one JSON object a line") from error
    return [_read(line, f"{path}, line {number}", vocab_size) for number, line in enumerate(lines, start=1)]


def _read(line: str, where: str, vocab_size: int) -> Pair:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON") from error
    return pair(record, where, vocab_size)


def pair(record: Any, where: str, vocab_size: int) -> Pair:
    """Return the pair that a JSON object tells; InputError, beginning with ``where``, if it tells none."""
    if not isinstance(record, dict) or not all(_are_ids(record.get(name), vocab_size) for name in _FIELDS):
        raise InputError(f"{where}: needs {', '.join(_FIELDS)}, each a list of ids from 0 to {vocab_size - 1}")
    if record["chosen_ids"] == record["rejected_ids"]:
        raise InputError(f"{where}: chosen_ids and rejected_ids are the same, which prefers nothing")
    return Pair(*(tuple(record[name]) for name in _FIELDS))


def _are_ids(value: Any, vocab_size: int) -> bool:
    return isinstance(value, list) and bool(value) and all(type(x) is int and 0 <= x < vocab_size for x in value)


def _rendered(prompt_ids: Sequence[int], written_ids: Sequence[int]) -> Rendered:
    weights = np.concatenate([np.zeros(len(prompt_ids)), np.ones(len(written_ids))]).astype(np.float32)
    return Rendered(np.array([*prompt_ids, *written_ids], dtype=np.int64), weights)


class PairLoader:
    """Call ``next_batch()`` for ever: pairs in another order each pass, as many in a row as fit."""

    def __init__(self, pairs: Sequence[Pair], *, rows: int, seq_len: int, pad: int, seed: int = 0) -> None:
        """InputError for no pairs, or one longer than a row of ``seq_len`` tokens."""
        if not pairs:
            raise InputError("there are no pairs to learn from")
        self._pairs = [pair.rendered() for pair in pairs]
        self._lengths = [sum(len(each.token_ids) for each in pair) for pair in self._pairs]
        if max(self._lengths) > seq_len:
            raise InputError(f"a pair has {max(self._lengths)} tokens, a row only {seq_len}: make rows longer")
        self._rows, self._seq_len, self._pad = rows, seq_len, pad
        self._passes, self._next = Passes(len(pairs), seed), 0
        self._settings = zlib.crc32(repr(([*pairs], seq_len, seed)).encode())

    def next_batch(self) -> Packed:
        """Return the next ``rows`` rows."""
        rows = [self._next_row() for _ in range(self._rows)]
        documents = [[document for number in row for document in self._pairs[number]] for row in rows]
        names = [[f"pair {number}, {which}" for number in row for which in ("chosen", "rejected")] for row in rows]
        return stack_rows(documents, self._seq_len, self._pad, names)

    def _next_row(self) -> list[int]:
        row, room = list[int](), self._seq_len
        while (length := self._lengths[number := self._passes[self._next]]) <= room:
            row.append(number)
            room -= length
            self._next += 1
        return row

    def state_dict(self) -> dict[str, Any]:
        """Return the number of pairs that were given out, and a checksum of everything else."""
        return {"next": self._next, "settings": self._settings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position; InputError if it is one among other pairs."""
        if state.get("settings") != self._settings:
            raise InputError("this loader state belongs to other pairs, seed or row length")
        self._next = state["next"]
