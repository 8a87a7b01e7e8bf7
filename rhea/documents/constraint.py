"""Which tokens may come next: a state machine over the grammar, advanced in constant time per token.

Each row of a batch owns one, so rows of different sizes simply differ in their states. Inside a grid the position alone
decides (the released Emu3 code takes the modulo of an offset from the first image in the sequence, which goes wrong for
widths 1 and 2 and for a second image). In a size text that the model writes by itself, only what can still become an
admissible size is legal.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rhea.documents import meta
from rhea.documents.document import ImageSize, VideoSize
from rhea.documents.grammar import Grammar
from rhea.errors import InputError

Mode = Literal["text", "free", "visual"]


@dataclass(frozen=True)
class Legal:
    """The legal next tokens: exactly one that is forced, or all ids in ``ranges``."""

    forced: int | None
    ranges: tuple[range, ...]

    def __contains__(self, token_id: int) -> bool:
        return any(token_id in ids for ids in self.ranges)


class Constraint:
    """Follows one sequence. After ``start(prompt)`` ask ``legal()``, choose, ``advance(token)``, until ``done``.

    Modes: "text" is an answer, text until EOS, but not EOS directly after an image: there a caption belongs, and models
    learn to end there from pictures whose text was left out for guidance. "free" is text and any number of images and
    videos until EOS; "visual" is the rest of the one image or video that the prompt announced, and then EOS. After EOS
    only padding is legal.
    """

    def __init__(
        self,
        grammar: Grammar,
        mode: Mode = "free",
        *,
        sizes: Iterable[ImageSize | VideoSize] | None = None,
        limits: meta.MetaLimits | None = None,
    ) -> None:
        """``sizes`` lists the sizes that free mode may announce; without it, all that ``limits`` admit."""
        if mode not in ("text", "free", "visual"):
            raise InputError(f"a constraint's mode is 'text', 'free' or 'visual', got {mode!r}")
        self.grammar = grammar
        self.mode = mode
        self._table = _Table(grammar, mode, None if sizes is None else tuple(sizes), limits or meta.MetaLimits())
        self._outside()

    def _outside(self) -> None:
        """Enter the state between images."""
        self._state: Literal["text", "caption", "meta", "grid", "end", "eos", "done"] = "text"
        self._meta = ""
        self._rest: tuple[int, ...] = ()
        self._grid = (0, 0, 0)
        self._frame = self._row = self._column = 0

    def copy(self) -> "Constraint":
        """Return an independent constraint in the same state."""
        return copy.copy(self)  # everything that changes is immutable

    @property
    def done(self) -> bool:
        """Whether EOS has been written."""
        return self._state == "done"

    @property
    def in_grid(self) -> bool:
        """Whether the next token belongs to a grid: a code, EOL or EOF."""
        return self._state == "grid"

    @property
    def size(self) -> tuple[int, int, int] | None:
        """The grid being written (latent frames, height, width), or None outside of one."""
        return self._grid if self._state == "grid" else None

    @property
    def position(self) -> tuple[int, int, int] | None:
        """Where in the grid the next token goes (latent frame, row, column), or None outside of one.

        Column = width is the EOL of that row; row = height is the frame's EOF.
        """
        return (self._frame, self._row, self._column) if self._state == "grid" else None

    @property
    def remaining_grid_tokens(self) -> int:
        """How many tokens of the present grid are still to come: codes, EOLs and EOFs."""
        if self._state != "grid":
            return 0
        frames, height, width = self._grid
        written = self._frame * (height * (width + 1) + 1) + self._row * (width + 1) + self._column
        return frames * (height * (width + 1) + 1) - written

    def start(self, prompt_ids: Sequence[int] | np.ndarray) -> "Constraint":
        """Enter the state after a prompt, wherever it ends; return self, or raise InputError if nothing can follow.

        Only an image that the prompt leaves open is looked into; complete ones and text are skipped.
        """
        ids = np.asarray(prompt_ids, dtype=np.int64)
        vocabulary = self.grammar.vocabulary
        self._outside()
        starts = np.flatnonzero(ids == vocabulary.image_start)
        closes = np.flatnonzero(ids == vocabulary.image_end)
        if len(starts) and not (len(closes) and closes[-1] > starts[-1]):
            self._enter_open_image(ids[starts[-1] + 1 :])
        elif self.mode == "visual":
            raise InputError("the prompt announces no image or video (it must end inside one, after its size)")
        if self.mode == "text" and self._state != "text":
            raise InputError("the prompt ends inside an image, so no text can follow")
        if self.mode == "text" and len(ids) and ids[-1] == vocabulary.image_end:
            self._state = "caption"
        return self

    def legal(self) -> Legal:
        """Return what may come next."""
        table = self._table
        if self._state == "grid":
            _, height, width = self._grid
            if self._row == height:
                return table.eof
            return table.eol if self._column == width else table.vision
        if self._state == "meta":
            return table.only(self._rest[0]) if self._rest else table.meta(self._meta)
        return table.outside_grid[self._state]

    def advance(self, token_id: int) -> None:
        """Take the next token; one that is not legal is an assertion error, because the caller chose it."""
        token_id = int(token_id)
        assert token_id in self.legal(), f"token {token_id} is not legal here ({self._state})"
        vocabulary = self.grammar.vocabulary
        if self._state == "grid":
            self._advance_grid()
        elif self._state == "meta":
            self._advance_meta(token_id)
        elif self._state == "end":
            self._outside()
            if self.mode == "visual":
                self._state = "eos"
        elif self._state == "caption":
            self._state = "text"
        elif token_id == vocabulary.eos:
            self._state = "done"
        elif token_id == vocabulary.image_start:
            self._state = "meta"

    def forced_run(self) -> tuple[int, ...]:
        """Return all tokens that are forced from here up to the next choice, or up to EOS; the state stays.

        After ``advance(last code of a row)`` this is (EOL,), at the end of an image (EOL, EOF, image-end, EOS): feed
        them to the model together with that code in one forward, and ``advance`` each.
        """
        legal = self.legal()
        if legal.forced is None or self.done:
            return ()
        ahead, run = self.copy(), []
        while legal.forced is not None and not ahead.done:
            run.append(legal.forced)
            ahead.advance(legal.forced)
            legal = ahead.legal()
        return tuple(run)

    def _advance_grid(self) -> None:
        frames, height, width = self._grid
        if self._row == height:
            self._frame, self._row = self._frame + 1, 0
            if self._frame == frames:
                self._state = "end"
        elif self._column == width:
            self._row, self._column = self._row + 1, 0
        else:
            self._column += 1

    def _advance_meta(self, token_id: int) -> None:
        if self._rest:
            self._rest = self._rest[1:]
        elif token_id == self.grammar.vocabulary.image_token:
            self._enter_grid(meta.parse_meta(self._meta))
        else:
            piece = self._table.piece_of(self._meta, token_id)
            self._meta, self._rest = self._meta + piece, self.grammar.meta_piece_ids[piece][1:]

    def _enter_grid(self, size: ImageSize | VideoSize) -> None:
        self._state, self._meta = "grid", ""
        self._grid = self.grammar.grid(size)

    def _enter_open_image(self, ids: np.ndarray) -> None:
        vocabulary = self.grammar.vocabulary
        self._state = "meta"
        middle = np.flatnonzero(ids == vocabulary.image_token)
        if not len(middle):
            for token_id in ids.tolist():
                if token_id not in self.legal():
                    raise InputError("the prompt ends in a size text that cannot become an admissible size")
                self.advance(token_id)
            return
        meta_ids = ids[: middle[0]].tolist()
        if not all(token_id in vocabulary.text for token_id in meta_ids):
            raise InputError("the size text of the image that the prompt leaves open is not text")
        self._enter_grid(meta.parse_meta(self.grammar.text_tokenizer.decode(meta_ids)))
        self._skip_given(ids[middle[0] + 1 :])

    def _skip_given(self, ids: np.ndarray) -> None:
        """Move past the part of the grid that the prompt already holds, after checking its form."""
        vocabulary = self.grammar.vocabulary
        frames, height, width = self._grid
        per_frame = height * (width + 1) + 1
        given_frames, rest = divmod(len(ids), per_frame)
        at = np.arange(len(ids)) % per_frame
        is_eof = at == per_frame - 1
        is_eol = ~is_eof & (at % (width + 1) == width)
        fits = np.where(
            is_eof, ids == vocabulary.eof, np.where(is_eol, ids == vocabulary.eol, vocabulary.is_vision(ids))
        )
        if not fits.all() or len(ids) > frames * per_frame:
            wrong = int(np.argmin(fits)) if not fits.all() else frames * per_frame
            raise InputError(
                f"the {frames} x {height} x {width} grid that the prompt leaves open breaks its form "
                f"after {wrong} tokens"
            )
        self._frame, (self._row, self._column) = given_frames, divmod(rest, width + 1)
        if given_frames == frames:
            self._state = "end"


class _Table:
    """The sets of legal tokens, built once and shared by all copies."""

    def __init__(
        self,
        grammar: Grammar,
        mode: Mode,
        sizes: tuple[ImageSize | VideoSize, ...] | None,
        limits: meta.MetaLimits,
    ) -> None:
        vocabulary = grammar.vocabulary
        self._image_token = vocabulary.image_token
        self._piece_ids = grammar.meta_piece_ids
        self._limits = limits
        self._temporal_factor = grammar.temporal_factor
        self._listed = None if sizes is None else meta.listed_continuations(sizes)
        self.vision = Legal(None, (vocabulary.vision,))
        self.eol, self.eof = self.only(vocabulary.eol), self.only(vocabulary.eof)
        text = range(grammar.text_tokenizer.vocab_size)
        between = [text, range(vocabulary.eos, vocabulary.eos + 1)]
        if mode == "free" and self._listed != {}:
            between.append(range(vocabulary.image_start, vocabulary.image_start + 1))
        self.outside_grid = {
            "text": Legal(None, tuple(between)),
            "caption": Legal(None, (text,)),
            "end": self.only(vocabulary.image_end),
            "eos": self.only(vocabulary.eos),
            "done": self.only(vocabulary.pad),
        }

    @staticmethod
    def only(token_id: int) -> Legal:
        return Legal(token_id, (range(token_id, token_id + 1),))

    def _pieces(self, text: str) -> dict[int, str]:
        """Return the pieces that may follow a size text, by their first token id."""
        if self._listed is None:
            pieces = meta.continuations(text, self._limits, self._temporal_factor)
        else:
            pieces = self._listed.get(text, [])
        return {self._piece_ids[piece][0] if piece else self._image_token: piece for piece in pieces}

    def meta(self, text: str) -> Legal:
        ids = sorted(self._pieces(text))
        return Legal(ids[0] if len(ids) == 1 else None, tuple(range(token_id, token_id + 1) for token_id in ids))

    def piece_of(self, text: str, token_id: int) -> str:
        return self._pieces(text)[token_id]
