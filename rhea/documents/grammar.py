"""The one grammar: how a document is written as token ids, how much each weighs in the loss, and how ids are read back.

    [BOS] segment* [EOS]
    text   its ids, each segment tokenized by itself, so that training and generation cut words in the same places
    image  image-start, size text, image-token, (row of codes, EOL) per row, EOF, image-end
    video  the same with an EOF after every latent frame

This is byte for byte the form of Emu3's released processor (arXiv 2409.18869). ``parsing.py`` reads it,
``constraint.py`` follows it one token at a time; both take the order of end marks from here.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rhea.documents import meta
from rhea.documents.document import Document, Image, ImageSize, Text, Video, VideoSize
from rhea.documents.parsing import Parser
from rhea.errors import InputError
from rhea.tokenizers.text import TextTokenizer
from rhea.tokenizers.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """The weight of predicting each kind of token."""

    text: float = 1.0
    vision: float = 0.5
    structure: float = 1.0
    """Image-start, size text, image-token, EOL, EOF, image-end."""
    eos: float = 1.0
    prompt: float = 1.0
    """Multiplies all of the above in segments that are not targets."""
    write_eos: bool = True
    """Whether the document's closing EOS is written at all."""


PRETRAINING = LossWeights()
FINE_TUNING = LossWeights(prompt=0.0)
RELEASED_SFT = LossWeights(text=0.0, vision=1.0, structure=0.0, eos=0.0, write_eos=False)
"""Emu3's released fine-tuning code: only visual tokens are learned, and its EOS is forgotten."""


@dataclass(frozen=True, eq=False)
class Rendered:
    token_ids: np.ndarray
    """int64 [tokens]."""
    loss_weights: np.ndarray
    """float32 [tokens]; entry i weighs the prediction *of* token i, so BOS has 0."""


class Grammar:
    """Writes and reads documents in the ids of one vocabulary and one text tokenizer."""

    def __init__(self, vocabulary: Vocabulary, text_tokenizer: TextTokenizer, *, temporal_factor: int = 4) -> None:
        """``temporal_factor`` is the number of pixel frames in one latent frame of a video."""
        if text_tokenizer.vocab_size > len(vocabulary.text):
            raise InputError(
                f"the text tokenizer has {text_tokenizer.vocab_size} tokens, the vocabulary only {len(vocabulary.text)}"
            )
        self.vocabulary = vocabulary
        self.text_tokenizer = text_tokenizer
        self.temporal_factor = temporal_factor
        self.meta_piece_ids = {piece: tuple(text_tokenizer.encode(piece)) for piece in meta.PIECES}
        self._check_meta_pieces()
        self._opening_ids = functools.lru_cache(maxsize=1024)(self._make_opening_ids)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it is made of, not its cache: loaders travel to other processes."""
        make = functools.partial(type(self), temporal_factor=self.temporal_factor)
        return make, (self.vocabulary, self.text_tokenizer)

    def image_meta(self, height: int, width: int) -> str:
        """Return the size text of an image grid."""
        return meta.format_meta(ImageSize(height=height, width=width))

    def video_meta(self, num_frames: int, height: int, width: int, fps: float) -> str:
        """Return the size text of a video: pixel frames, grid height and width, frames per second."""
        return meta.format_meta(VideoSize(height=height, width=width, num_frames=num_frames, fps=fps))

    def parse_meta(self, text: str) -> ImageSize | VideoSize:
        """Read a size text; raise InputError if it is none."""
        return meta.parse_meta(text)

    def grid(self, size: ImageSize | VideoSize) -> tuple[int, int, int]:
        """Return (latent frames, height, width) of a size."""
        frames = -(-size.num_frames // self.temporal_factor) if isinstance(size, VideoSize) else 1
        return frames, size.height, size.width

    def render(self, document: Document, loss: LossWeights = PRETRAINING) -> Rendered:
        """Write a document whose images and videos have codes; raise InputError for codes that do not fit."""
        writer = _Writer()
        if document.bos:
            writer.add((self.vocabulary.bos,), 0.0)
        for segment in document.segments:
            scale = 1.0 if segment.target else loss.prompt
            if isinstance(segment, Text):
                self._write_text(writer, segment, loss, scale)
            else:
                self._write_visual(writer, segment, loss, scale)
        if document.eos and loss.write_eos:
            writer.add((self.vocabulary.eos,), loss.eos)
        return writer.finish()

    def render_prompt(self, document: Document, next: ImageSize | VideoSize | None = None) -> np.ndarray:
        """Write a document without its EOS, ready to be continued with text or with the codes of ``next``.

        If ``next`` is a video and the document ends with a video that has ``prompt_latents``, those latent frames open
        the new video. Returns int64 ids.
        """
        segments = document.segments
        given: np.ndarray | None = None
        if isinstance(next, VideoSize) and segments and isinstance(segments[-1], Video) and segments[-1].prompt_latents:
            given = self._given_latents(segments[-1], next)
            segments = segments[:-1]
        prompt = Document(segments, bos=document.bos, eos=False)
        pieces = [self.render(prompt).token_ids]
        if next is not None:
            pieces.append(np.array(self._opening_ids(next), dtype=np.int64))
        if given is not None:
            pieces.append(self._grid_ids(given).reshape(-1))
        return np.concatenate(pieces)

    def parse(
        self, token_ids: Sequence[int] | np.ndarray, on_error: Literal["raise", "whole_rows"] = "raise"
    ) -> Document:
        """Read ids back into a document with codes; trailing pads are ignored.

        What does not follow the grammar raises InputError that says what and where. With ``whole_rows``, an image
        keeps its whole rows and a video its whole latent frames, and stray special ids are skipped. Neighbouring text
        segments come back as one, and which parts were targets is not written in ids.
        """
        return Parser(self.vocabulary, self.text_tokenizer, self.temporal_factor, on_error).parse(token_ids)

    def may_cut(self, token_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return bool [tokens]: whether packing may begin a new row at this token, so never inside an image."""
        ids = np.asarray(token_ids)
        order = np.arange(1, len(ids) + 1)
        opened = np.maximum.accumulate(np.where(ids == self.vocabulary.image_start, order, 0))
        closed = np.maximum.accumulate(np.where(ids == self.vocabulary.image_end, order, 0))
        cut = np.ones(len(ids), dtype=bool)
        cut[1:] = (opened <= closed)[:-1]
        return cut

    def size_of(self, segment: Image | Video) -> ImageSize | VideoSize:
        """Return the size that a segment with codes announces; raise InputError if its length and codes disagree."""
        if segment.codes is None:
            raise InputError("an image or video has pixels but no codes yet: encode the document first")
        if isinstance(segment, Image):
            height, width = segment.codes.shape
            return ImageSize(height=height, width=width)
        latents, height, width = segment.codes.shape
        num_frames = latents * self.temporal_factor if segment.num_frames is None else segment.num_frames
        size = VideoSize(height=height, width=width, num_frames=num_frames, fps=segment.fps)
        if self.grid(size)[0] != latents:
            raise InputError(f"a video of {num_frames} frames needs {self.grid(size)[0]} latent frames, got {latents}")
        return size

    def _check_meta_pieces(self) -> None:
        ids = self.meta_piece_ids
        if any(len(ids[digit]) != 1 for digit in meta.DIGITS):
            raise InputError("the text tokenizer must write every digit as a token of its own")
        together = [token_id for piece in meta.PIECES for token_id in ids[piece]]
        first = {piece_ids[0] for piece_ids in ids.values()}
        if len(first) < len(ids) or self.text_tokenizer.decode(together) != "".join(meta.PIECES):
            raise InputError(
                "the text tokenizer cannot write size texts: it does not give back digits and signs exactly"
            )

    def _write_text(self, writer: "_Writer", segment: Text, loss: LossWeights, scale: float) -> None:
        writer.add(self.text_tokenizer.encode(segment.text), loss.text * scale)
        if segment.ends_turn:
            writer.add((self.vocabulary.eos,), loss.eos * scale)

    def _write_visual(self, writer: "_Writer", segment: Image | Video, loss: LossWeights, scale: float) -> None:
        size = self.size_of(segment)
        codes = np.asarray(segment.codes).reshape(self.grid(size))
        given = segment.prompt_latents if isinstance(segment, Video) else 0
        if given > len(codes):
            raise InputError(f"prompt_latents is {given}, but the video has {len(codes)} latent frames")
        opening_scale = min(scale, loss.prompt) if given else scale
        writer.add(self._opening_ids(size), loss.structure * opening_scale)
        for part, part_scale in ((codes[:given], opening_scale), (codes[given:], scale)):
            if len(part):
                ids = self._grid_ids(part)
                writer.add_array(ids.reshape(-1), self._grid_weights(part.shape, loss, part_scale))
        writer.add((self.vocabulary.image_end,), loss.structure * scale)

    def _make_opening_ids(self, size: ImageSize | VideoSize) -> tuple[int, ...]:
        pieces = meta.split_pieces(meta.format_meta(size))
        meta_ids = [token_id for piece in pieces for token_id in self.meta_piece_ids[piece]]
        return self.vocabulary.image_start, *meta_ids, self.vocabulary.image_token

    def _grid_ids(self, codes: np.ndarray) -> np.ndarray:
        """Return int64 [frames, height * (width + 1) + 1]: rows closed by EOL, frames by EOF."""
        frames, height, width = codes.shape
        if codes.min() < 0 or codes.max() >= len(self.vocabulary.vision):
            raise InputError(
                f"codes must be 0 to {len(self.vocabulary.vision) - 1}, got {codes.min()} to {codes.max()}"
            )
        ids = np.empty((frames, height * (width + 1) + 1), dtype=np.int64)
        rows = ids[:, :-1].reshape(frames, height, width + 1)
        rows[:, :, :width] = self.vocabulary.vision_id(codes.astype(np.int64))
        rows[:, :, width] = self.vocabulary.eol
        ids[:, :-1] = rows.reshape(frames, -1)
        ids[:, -1] = self.vocabulary.eof
        return ids

    def _grid_weights(self, grid: tuple[int, ...], loss: LossWeights, scale: float) -> np.ndarray:
        frames, height, width = grid
        row = [loss.vision * scale] * width + [loss.structure * scale]
        frame = np.array(row * height + [loss.structure * scale], dtype=np.float32)
        return np.tile(frame, frames)

    def _given_latents(self, video: Video, size: VideoSize) -> np.ndarray:
        if video.codes is None:
            raise InputError("the given frames have pixels but no codes yet: encode the document first")
        grid, given = self.grid(size), video.prompt_latents
        if video.codes.shape[1:] != grid[1:] or not given <= min(len(video.codes), grid[0]):
            raise InputError(
                f"a video of {grid} (latent frames, height, width) cannot begin with {given} latent frames "
                f"of given codes {video.codes.shape}"
            )
        return video.codes[:given]


class _Writer:
    """Collects pieces of ids with their weights."""

    def __init__(self) -> None:
        self._ids: list[np.ndarray] = []
        self._weights: list[np.ndarray] = []

    def add(self, token_ids: Sequence[int], weight: float) -> None:
        self._ids.append(np.array(token_ids, dtype=np.int64))
        self._weights.append(np.full(len(token_ids), weight, dtype=np.float32))

    def add_array(self, token_ids: np.ndarray, weights: np.ndarray) -> None:
        self._ids.append(token_ids)
        self._weights.append(weights)

    def finish(self) -> Rendered:
        if not self._ids:
            return Rendered(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))
        weights = np.concatenate(self._weights)
        weights[:1] = 0.0  # nothing comes before the first token that could predict it
        return Rendered(np.concatenate(self._ids), weights)
