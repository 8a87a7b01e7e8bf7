"""Reads token ids back into a document; the reverse of ``Grammar.render``, and forgiving on request.

Generated ids may be cut off at any point or break the form anywhere, so nothing here assumes that the grammar was kept.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from rhea.documents import meta
from rhea.documents.document import Document, Image, ImageSize, Segment, Text, Video, VideoSize
from rhea.errors import InputError
from rhea.tokenizers.text import TextTokenizer
from rhea.tokenizers.vocabulary import Vocabulary


class Parser:
    """One pass over the ids: runs of text ids become Text, what image-start opens becomes Image or Video."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        text_tokenizer: TextTokenizer,
        temporal_factor: int,
        on_error: Literal["raise", "whole_rows"],
    ) -> None:
        if on_error not in ("raise", "whole_rows"):
            raise InputError(f"on_error must be 'raise' or 'whole_rows', got {on_error!r}")
        self.vocabulary = vocabulary
        self.text_tokenizer = text_tokenizer
        self.temporal_factor = temporal_factor
        self.strict = on_error == "raise"

    def parse(self, token_ids: Sequence[int] | np.ndarray) -> Document:
        ids = self._checked(token_ids)
        self._segments: list[Segment] = []
        self._text: list[int] = []
        bos = bool(len(ids)) and ids[0] == self.vocabulary.bos
        position, ended_at = int(bos), -1
        while position < len(ids):
            token_id = ids[position]
            if token_id in self.vocabulary.text:
                self._text.append(token_id)
            elif token_id == self.vocabulary.eos:
                self._segments.append(Text(self._take_text(), ends_turn=True))
                ended_at = position
            elif token_id == self.vocabulary.image_start:
                self._flush_text()
                position = self._visual(ids, position)
                continue
            else:
                self._complain(f"{self._name(token_id)} at token {position} is outside any image")
            position += 1
        self._flush_text()
        eos = bool(len(ids)) and ended_at == len(ids) - 1
        if eos:  # the last EOS closes the document, not a turn
            last = self._segments.pop()
            assert isinstance(last, Text)
            if last.text:
                self._segments.append(replace(last, ends_turn=False))
        return Document(tuple(self._segments), bos=bos, eos=eos)

    def _checked(self, token_ids: Sequence[int] | np.ndarray) -> list[int]:
        array = np.asarray(token_ids if len(token_ids) else np.zeros(0, dtype=np.int64))
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise InputError(f"token ids must be a list of integers, got {array.dtype} of shape {array.shape}")
        if len(array) and not (array.min() >= 0 and array.max() < self.vocabulary.size):
            raise InputError(f"token ids must be 0 to {self.vocabulary.size - 1}, got {array.min()} to {array.max()}")
        used = np.flatnonzero(array != self.vocabulary.pad)
        return array[: used[-1] + 1].tolist() if len(used) else []

    def _complain(self, message: str) -> None:
        if self.strict:
            raise InputError(message)

    def _name(self, token_id: int) -> str:
        return self.vocabulary.token_string(token_id)

    def _take_text(self) -> str:
        text = self.text_tokenizer.decode(self._text) if self._text else ""
        self._text = []
        return text

    def _flush_text(self) -> None:
        if self._text:
            self._segments.append(Text(self._take_text()))

    def _visual(self, ids: list[int], start: int) -> int:
        """Read the block that image-start opens at ``start``; return the position after it."""
        vocabulary = self.vocabulary
        middle = start + 1
        while middle < len(ids) and ids[middle] in vocabulary.text:
            middle += 1
        if middle == len(ids) or ids[middle] != vocabulary.image_token:
            found = self._name(ids[middle]) if middle < len(ids) else "the end"
            self._complain(f"the image at token {start} has {found} where its size text should be closed")
            return middle
        end = middle + 1
        while end < len(ids) and (
            ids[end] in vocabulary.vision or ids[end] == vocabulary.eol or ids[end] == vocabulary.eof
        ):
            end += 1
        size = self._size(ids[start + 1 : middle], start)
        if size is not None:
            self._grid(ids[middle + 1 : end], size, start)
        if end < len(ids) and ids[end] == vocabulary.image_end:
            return end + 1
        found = self._name(ids[end]) if end < len(ids) else "the end"
        self._complain(f"the image at token {start} has {found} at token {end} instead of image-end")
        return end

    def _size(self, meta_ids: list[int], start: int) -> ImageSize | VideoSize | None:
        text = self.text_tokenizer.decode(meta_ids) if meta_ids else ""
        try:
            return meta.parse_meta(text)
        except InputError as error:
            self._complain(f"the image at token {start}: {error}")
            return None

    def _grid(self, ids: list[int], size: ImageSize | VideoSize, start: int) -> None:
        video = isinstance(size, VideoSize)
        frames, fault = self._frames(np.array(ids, dtype=np.int64), size, video)
        expected = -(-size.num_frames // self.temporal_factor) if isinstance(size, VideoSize) else 1
        if not fault and len(frames) != expected:
            fault = f"it has {len(frames)} whole latent frames instead of {expected}"
        if fault:
            self._complain(f"the {size.height}*{size.width} {'video' if video else 'image'} at token {start}: {fault}")
        frames = frames[:expected]
        if not frames:
            return
        if isinstance(size, VideoSize):
            num_frames = min(size.num_frames, len(frames) * self.temporal_factor)
            self._segments.append(Video(codes=np.stack(frames), fps=size.fps, num_frames=num_frames))
        else:
            self._segments.append(Image(codes=frames[0]))

    def _frames(self, ids: np.ndarray, size: ImageSize | VideoSize, video: bool) -> tuple[list[np.ndarray], str]:
        """Return the whole latent frames (of an image: its whole rows as one) and what is wrong, if anything."""
        frames: list[np.ndarray] = []
        fault = ""
        ends = np.flatnonzero(ids == self.vocabulary.eof)
        pieces = np.split(ids, ends + 1)
        if not len(pieces[-1]):
            pieces.pop()
        for number, piece in enumerate(pieces):
            closed = piece[-1] == self.vocabulary.eof
            rows, row_fault = self._rows(piece[:-1] if closed else piece, size.width)
            if not row_fault and len(rows) != size.height:
                row_fault = f"{len(rows)} whole rows instead of {size.height}"
            if not row_fault and not closed:
                row_fault = "no end-of-frame"
            fault = fault or (f"latent frame {number + 1} has {row_fault}" if row_fault else "")
            if rows and (len(rows) >= size.height or not video):
                frames.append(np.stack(rows[: size.height]))
        return frames, fault or ("" if pieces else "it has no rows")

    def _rows(self, ids: np.ndarray, width: int) -> tuple[list[np.ndarray], str]:
        """Return the codes of all rows of the right width, and what is wrong with the others."""
        rows: list[np.ndarray] = []
        fault = ""
        for number, row in enumerate(np.split(ids, np.flatnonzero(ids == self.vocabulary.eol) + 1)):
            closed = len(row) > 0 and row[-1] == self.vocabulary.eol
            tokens = row[:-1] if closed else row
            if closed and len(tokens) == width:
                rows.append(self.vocabulary.code(tokens))
            elif len(row):
                what = "" if closed else " and no end-of-line"
                fault = fault or f"{len(tokens)} visual tokens{what} in row {number + 1} instead of {width}"
        return rows, fault
