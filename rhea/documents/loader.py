"""Endless batches of packed rows from a mixture, resumable exactly from a few integers.

Documents are made, encoded and rendered in groups of fixed extent, so a codec works on several at a time and, after
resuming, on exactly the same ones. Those not yet packed wait in a small buffer, out of which first-fit fills the rows;
the oldest always opens the next row, so none waits for long. The state holds their numbers only: they are made again
on resume.
"""

import zlib
from dataclasses import astuple, dataclass
from typing import Any, Literal

import numpy as np

from rhea.documents.document import Codec, encode_documents
from rhea.documents.grammar import PRETRAINING, Grammar, LossWeights, Rendered
from rhea.documents.mixture import Draw, Mixture
from rhea.documents.packing import Packed, cut, first_fit, stack_rows
from rhea.documents.remember import RememberingCodec
from rhea.errors import InputError

_DROPOUT, _BEGINNINGS = 6, 7
"""Last words of the seeds of what is not seen and of what is left off, so that they are no other draw's."""


@dataclass(frozen=True, kw_only=True)
class PackedLoaderConfig:
    rows: int
    seq_len: int
    loss: LossWeights = PRETRAINING
    too_long: Literal["raise", "drop", "cut"] = "raise"
    """What to do with a document longer than a row: "drop" counts it, "cut" cuts it wherever that cuts no image."""
    group: int = 32
    """How many documents are made and encoded together."""
    code_dropout: float = 0.0
    """In this share of the documents the model does not see a random part of the codes that it learns to predict: it
    must tell them from the text and not only from the codes before them (word dropout, arXiv:1511.06349, section 3.1).
    Without, a model that knows its pictures by heart still draws any of them, whatever the text says."""
    beginnings: float = 0.0
    """Of this share of the documents only the first rows, at most half, of the picture that is to be drawn are kept.
    There the text decides which picture it becomes; the rest follows from what was begun, and costs more tokens."""
    remembered_pictures: int = 0
    """How many pictures' codes are kept, for data that comes again with the next pass. The memory is empty after a
    resume, which is then exact only if the codec gives a picture the same codes in any company."""


@dataclass(frozen=True)
class _Waiting:
    number: int
    """Which document of the run."""
    piece: int
    """Which piece of it, if it was cut."""
    name: str
    rendered: Rendered


class PackedLoader:
    """Call ``next_batch()`` for ever. With a codec, documents may hold pixels; without one they must hold codes."""

    def __init__(
        self, config: PackedLoaderConfig, mixture: Mixture, grammar: Grammar, codec: Codec | None = None
    ) -> None:
        if min(config.rows, config.group) < 1 or config.seq_len < 2:
            raise InputError(f"a loader needs rows and group of 1 or more and seq_len of 2 or more, got {config}")
        for name in ("code_dropout", "beginnings"):
            share = getattr(config, name)
            if not 0 <= share <= 1:
                raise InputError(f"{name} is a share of the documents, from 0 to 1, got {share}")
            if share and config.loss.prompt >= 1:
                raise InputError(f"{name} tells targets by their weight: it needs a loss.prompt below 1")
        if config.remembered_pictures < 0:
            raise InputError(f"remembered_pictures must be 0 or more, got {config.remembered_pictures}")
        if config.too_long not in ("raise", "drop", "cut"):
            raise InputError(f"too_long is 'raise', 'drop' or 'cut', got {config.too_long!r}")
        self.config = config
        self.mixture = mixture
        self.grammar = grammar
        self._codec, remembered = codec, config.remembered_pictures
        self.codec = RememberingCodec(codec, remembered) if codec is not None and remembered else codec
        self.dropped = 0
        """How many documents were left out because they are longer than a row."""
        self._waiting: list[_Waiting] = []
        self._waiting_tokens = 0
        self._next = 0
        self._counts = [0] * len(mixture.sources)
        self._counts_before: dict[int, list[int]] = {}  # first number of a group in the buffer -> counts before it
        self._part, self._parts = 0, 1

    def parts(self, number: int) -> list["PackedLoader"]:
        """Return so many loaders that together make each document once, from the first on."""
        if number < 1:
            raise InputError(f"a loader is divided into 1 or more parts, not {number}")
        parts = [PackedLoader(self.config, self.mixture, self.grammar, self._codec) for _ in range(number)]
        for place, part in enumerate(parts):
            part._part, part._parts = place, number
        return parts

    def next_batch(self) -> Packed:
        """Return the next ``rows`` rows of ``seq_len`` tokens."""
        rows = [self._next_row() for _ in range(self.config.rows)]
        packed = stack_rows(
            [[entry.rendered for entry in row] for row in rows],
            self.config.seq_len,
            self.grammar.vocabulary.pad,
            [[entry.name for entry in row] for row in rows],
        )
        if self.config.code_dropout:
            self._drop_codes(packed, [[entry.number for entry in row] for row in rows])
        return packed

    def state_dict(self) -> dict[str, Any]:
        """Return integers (and lists of them) that describe the place between two batches."""
        group = self.config.group
        oldest = min((entry.number for entry in self._waiting), default=self._next) // group * group
        return {
            "settings": self._settings(),
            "next": self._next,
            "dropped": self.dropped,
            "oldest": oldest,
            "counts": list(self._counts_before.get(oldest, self._counts)),
            "waiting": [entry.number for entry in self._waiting],
            "pieces": [entry.piece for entry in self._waiting],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly after the batch at which ``state`` was taken.

        The waiting documents are made again. Raises InputError if the mixture or the loader are set up differently.
        """
        if state.get("settings") != self._settings():
            raise InputError("this loader state belongs to other sources, weights, seed, group, row length or losses")
        wanted = set(zip(state["waiting"], state["pieces"], strict=True))
        self._waiting, self._waiting_tokens, self._counts_before = [], 0, {}
        self._next, self._counts = state["oldest"], list(state["counts"])
        numbers = {number for number, _ in wanted}
        while self._next < state["next"]:
            group = range(self._next, self._next + self.config.group)
            self._make_group(needed=not numbers.isdisjoint(group))
        self._waiting = [entry for entry in self._waiting if (entry.number, entry.piece) in wanted]
        self._waiting_tokens = sum(len(entry.rendered.token_ids) for entry in self._waiting)
        self._forget_old_counts()
        self.dropped = state["dropped"]
        if len(self._waiting) != len(wanted):
            raise InputError("a source gave another document than before for the same index; it cannot be resumed")

    def _settings(self) -> int:
        config = self.config
        described: tuple[Any, ...] = (self.mixture.settings, config.seq_len, config.group, config.too_long)
        described += (astuple(config.loss), *([config.code_dropout] if config.code_dropout else []))
        described += (("beginnings", config.beginnings),) if config.beginnings else ()
        return zlib.crc32(repr(described).encode())

    def _drop_codes(self, packed: Packed, numbers: list[list[int]]) -> None:
        """Put padding, which stands for an unseen code, in the place of codes that weigh as targets; labels stay."""
        weights_RT = np.zeros_like(packed.loss_weights)
        weights_RT[:, 1:] = packed.loss_weights[:, :-1]
        targets_RT = self._target_codes(packed.token_ids, weights_RT)
        for row, documents in enumerate(numbers):
            for place, number in enumerate(documents):
                rng = np.random.default_rng([self.mixture.seed, number, _DROPOUT])
                if rng.random() < self.config.code_dropout:
                    chosen = (packed.document_ids[row] == place) & targets_RT[row]
                    chosen &= rng.random(len(chosen)) < rng.random()
                    packed.token_ids[row, chosen] = self.grammar.vocabulary.pad

    def _target_codes(self, token_ids: np.ndarray, loss_weights: np.ndarray) -> np.ndarray:
        """Return which tokens are codes to be predicted; ``loss_weights`` weigh the tokens themselves."""
        return self.grammar.vocabulary.is_vision(token_ids) & (loss_weights >= max(self.config.loss.vision, 1e-9))

    def _beginning(self, rendered: Rendered, number: int) -> Rendered:
        """Return a document that ends with an early row of its first picture to be drawn, or all of it."""
        rng = np.random.default_rng([self.mixture.seed, number, _BEGINNINGS])
        drawn = self._target_codes(rendered.token_ids, rendered.loss_weights)
        if rng.random() >= self.config.beginnings or not drawn.any():
            return rendered
        ids, vocabulary, start = rendered.token_ids, self.grammar.vocabulary, int(drawn.argmax())
        frame = ids[start : start + int((ids[start:] == vocabulary.eof).argmax())]
        ends = start + 1 + (frame == vocabulary.eol).nonzero()[0]
        end = int(ends[rng.integers(max(1, len(ends) // 2))])
        return Rendered(ids[:end], rendered.loss_weights[:end])

    def _next_row(self) -> list[_Waiting]:
        self._fill()
        lengths = [len(entry.rendered.token_ids) for entry in self._waiting]
        chosen = first_fit(lengths, self.config.seq_len)
        row = [self._waiting[position] for position in chosen]
        taken = set(chosen)
        self._waiting = [entry for position, entry in enumerate(self._waiting) if position not in taken]
        self._waiting_tokens -= sum(lengths[position] for position in chosen)
        self._forget_old_counts()
        return row

    def _fill(self) -> None:
        """Make groups until the buffer holds two rows' worth of tokens and a group's worth of documents."""
        fruitless = 0
        while self._waiting_tokens < 2 * self.config.seq_len or len(self._waiting) < self.config.group:
            while self._next // self.config.group % self._parts != self._part:
                self._make_group(needed=False)
            before = len(self._waiting)
            self._make_group(needed=True)
            fruitless = fruitless + self.config.group if len(self._waiting) == before else 0
            if fruitless >= 1000:
                raise InputError(f"{fruitless} documents in a row are longer than {self.config.seq_len} tokens")

    def _make_group(self, needed: bool) -> None:
        first = self._next
        draws, after = self.mixture.draws(first, self._counts, self.config.group)
        self._counts_before[first] = self._counts
        self._next, self._counts = first + self.config.group, after
        if not needed:
            return
        documents = [self.mixture.document(draw) for draw in draws]
        if self.codec is not None:
            documents = encode_documents(documents, self.codec)
        for offset, (draw, document) in enumerate(zip(draws, documents, strict=True)):
            rendered = self.grammar.render(document, self.config.loss)
            if self.config.beginnings:
                rendered = self._beginning(rendered, first + offset)
            for piece, part in enumerate(self._admitted(rendered, draw)):
                self._waiting.append(_Waiting(first + offset, piece, self.mixture.name(draw), part))
                self._waiting_tokens += len(part.token_ids)

    def _admitted(self, rendered: Rendered, draw: Draw) -> list[Rendered]:
        """Return the document as one piece, as several, or as none."""
        length = len(rendered.token_ids)
        if length == 0:
            raise InputError(f"document {self.mixture.name(draw)} has no tokens")
        if length <= self.config.seq_len:
            return [rendered]
        if self.config.too_long == "raise":
            raise InputError(
                f"document {self.mixture.name(draw)} has {length} tokens, a row {self.config.seq_len}; "
                "make rows longer, or set too_long to 'drop' or 'cut'"
            )
        if self.config.too_long == "cut":
            try:
                return cut(rendered, self.grammar.may_cut(rendered.token_ids), self.config.seq_len)
            except InputError:
                pass  # one image alone is too long
        self.dropped += 1
        return []

    def _forget_old_counts(self) -> None:
        group = self.config.group
        alive = {entry.number // group * group for entry in self._waiting}
        self._counts_before = {first: counts for first, counts in self._counts_before.items() if first in alive}
