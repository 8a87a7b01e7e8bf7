"""Weighted mixtures of sources, where document number n of a run is a pure function of n and the seed.

The source of number n is chosen by a hash of (seed, n), never by a stateful random generator, so a run can be continued
from a few integers and any part of it can be made again.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any, Protocol

import numpy as np

from rhea.documents.document import Document
from rhea.errors import InputError


class Source(Protocol):
    def document(self, index: int) -> Document:
        """Return document ``index`` (0, 1, 2, ... without end); the same index always gives the same document."""
        ...


@dataclass(frozen=True, kw_only=True)
class WeightedSource:
    name: str
    source: Source
    weight: float = 1.0


@dataclass(frozen=True)
class Draw:
    source: int
    """Position in the mixture."""
    index: int
    """Which document of that source."""


class Mixture:
    """Draws from sources in proportion to their weights; each source is read in order, 0, 1, 2, ..."""

    def __init__(self, sources: Sequence[WeightedSource], seed: int = 0) -> None:
        weights = [entry.weight for entry in sources]
        if not weights or not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not sum(weights):
            raise InputError(f"a mixture needs sources with finite weights >= 0, at least one above 0, got {weights}")
        if seed < 0:
            raise InputError(f"a mixture's seed must not be negative, got {seed}")
        self.sources = tuple(sources)
        self.seed = seed
        self._shares = np.cumsum(weights) / sum(weights)

    @property
    def settings(self) -> int:
        """A checksum of the names, weights and seed: a run can only be continued with the same."""
        described = repr((self.seed, [(entry.name, float(entry.weight)) for entry in self.sources]))
        return zlib.crc32(described.encode())

    def draws(self, first: int, counts: Sequence[int], how_many: int) -> tuple[list[Draw], list[int]]:
        """Return draws number ``first`` and following, and the new counts.

        ``counts`` says how many documents each source has given before draw ``first``.
        """
        after = list(counts)
        uniform = _uniform(self.seed, np.arange(first, first + how_many, dtype=np.uint64))
        found = []
        for source in np.searchsorted(self._shares, uniform, side="right").tolist():
            found.append(Draw(source, after[source]))
            after[source] += 1
        return found, after

    def document(self, draw: Draw) -> Document:
        """Make the document of a draw."""
        return self.sources[draw.source].source.document(draw.index)

    def name(self, draw: Draw) -> str:
        """Return a name that finds the document again: source and index."""
        return f"{self.sources[draw.source].name}:{draw.index}"


class FiniteSource:
    """A list of documents without end: every pass over it is in a different order, each document once per pass."""

    def __init__(self, documents: Sequence[Document], seed: int = 0) -> None:
        if not documents:
            raise InputError("a source needs at least one document")
        self._documents = documents
        self._seed = seed
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, dtype=np.int64))

    def document(self, index: int) -> Document:
        epoch, position = divmod(index, len(self._documents))
        if self._order[0] != epoch:
            keys = _hash(self._seed, epoch, np.arange(len(self._documents), dtype=np.uint64))
            self._order = (epoch, np.argsort(keys, kind="stable"))
        return self._documents[int(self._order[1][position])]


def _uniform(seed: int, numbers: np.ndarray) -> np.ndarray:
    """Return float64 in [0, 1) for uint64 numbers, a pure function of both."""
    return (_hash(seed, 0, numbers) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _hash(seed: int, stream: int, numbers: np.ndarray) -> np.ndarray:
    """Return 64 well-mixed bits per number (the splitmix64 finalizer, twice)."""
    key = np.array([(seed * 0x9E3779B97F4A7C15 + stream * 0xD1342543DE82EF95) % 2**64], dtype=np.uint64)
    return _mix(_mix(key) ^ _mix(numbers + np.uint64(0x9E3779B97F4A7C15)))


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def task_shares(tasks: Any) -> np.ndarray:
    """Return the running shares of a dataclass of weights; raise InputError if they are negative or all 0."""
    weights = np.array(astuple(tasks), dtype=float)
    if not np.isfinite(weights).all() or weights.min() < 0 or weights.sum() <= 0:
        raise InputError(f"task weights must be 0 or more and not all 0, got {tasks}")
    return np.cumsum(weights) / weights.sum()


def draw_task(rng: np.random.Generator, running: np.ndarray) -> int:
    """Draw a position in proportion to its share."""
    return int(np.searchsorted(running, rng.random(), side="right"))
