"""What can be seen of a picture or film while its tokens are still being written.

A picture is shown by its finished rows of codes, which are decoded as if the picture ended with them: the decoder knows
lower edges, and rows that are not written cost nothing. Its norms and attention see all that is decoded, so finished
rows still change a little from preview to preview: with the default model the last row shown is on average 1.7 of 255
levels from what it becomes, those above it 0.5. (Filling up with the commonest code so far: 1.7 and 0.4; with the last
row: 2.2 and 0.7.) The last preview is exact. A film is shown by its finished latent frames: they are decoded
independently, so each is decoded once and stays as it is.

Where a token belongs is known by the request's own constraint, which is followed token by token.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rhea import media
from rhea.documents.document import ImageSize, VideoSize
from rhea.errors import InputError
from rhea.generation.request import Request
from rhea.tokenizers.vision import VisionCodec

BLANK = 128
"""The grey level of what is not written yet."""
_PREVIEWS = 8
"""Of a picture, unless told otherwise: together they decode as much as 3.5 whole pictures, besides the last one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Preview:
    """A picture or film as far as it is written."""

    pixels: np.ndarray
    """uint8 [H, W, 3], a picture whose rows to come are grey; or [T, H, W, 3], the finished frames of a film."""
    rows_done: int
    """Rows of codes that are shown, counted through all latent frames of a film."""
    rows: int
    """Rows of codes that there will be."""
    fps: float | None = None
    """Frames per second of a film."""

    @property
    def final(self) -> bool:
        """Whether this is the whole picture or film."""
        return self.rows_done == self.rows

    def save(self, path: str | Path) -> None:
        """Write a picture (PNG, JPEG, WebP) or film (MP4, GIF); the file is replaced when the new one is complete."""
        if self.fps is None:
            media.write_picture(path, self.pixels)
        else:
            media.write_film(path, self.pixels, self.fps)


class Follower:
    """Follows the new tokens of one request for a picture or film. Knows nothing of who writes them."""

    def __init__(
        self, request: Request, size: ImageSize | VideoSize, codec: VisionCodec, every_rows: int | None = None
    ) -> None:
        """Follow a request whose prompt opens the grid of ``size``, perhaps with latent frames that are given.

        A preview is due after ``every_rows`` further rows of a picture (by default an eighth of them), or a further
        latent frame of a film. InputError if that is no positive number, or the prompt announces no picture or film.
        """
        if every_rows is not None and every_rows < 1:
            raise InputError(f"every_rows is {every_rows}; it must be at least 1")
        self.codec, self.size = codec, size
        self.taken = 0
        """How many new tokens have been followed."""
        image_token = request.constraint.grammar.vocabulary.image_token
        opened = max((place for place, token in enumerate(request.prompt) if token == image_token), default=-1)
        self._at = request.constraint.copy().start(request.prompt[: opened + 1])
        self._codes = np.zeros(request.constraint.grammar.grid(size), dtype=np.int64)
        self._frames = self._blank(0)
        latents, height, _ = self._codes.shape
        self.rows = latents * height
        self._every = height if isinstance(size, VideoSize) else every_rows or max(height // _PREVIEWS, 1)
        self._take(request.prompt[opened + 1 :])
        self._shown = self.rows_done

    @property
    def rows_done(self) -> int:
        """How many rows can be shown: of a film, those of finished latent frames."""
        if (position := self._at.position) is None:
            return self.rows
        latent, row, _ = position
        height = self._codes.shape[1]
        done = latent * height + row
        return done // height * height if isinstance(self.size, VideoSize) else done

    def follow(self, tokens: Iterable[int]) -> Preview | None:
        """Take the next tokens; return a preview if one is due."""
        return self.show() if self.feed(tokens) else None

    def feed(self, tokens: Iterable[int]) -> bool:
        """Take the next tokens, which decodes nothing; tell whether a preview is due. It may be left out."""
        self.taken += self._take(tokens)
        done = self.rows_done
        return done > self._shown and (done - self._shown >= self._every or done == self.rows)

    def skip(self) -> None:
        """Let nothing be due until more is finished."""
        self._shown = self.rows_done

    def show(self) -> Preview:
        """Return what is finished, whether due or not."""
        done, height = self.rows_done, self._codes.shape[1]
        if isinstance(self.size, ImageSize):
            pixels, fps = self._picture(self._codes[0, :done]), None
        else:
            known = len(self._frames) // self.codec.clip_frames
            if new := done // height - known:
                self._frames = np.concatenate([self._frames, self.codec.decode_film(self._codes[known:][:new])])
            pixels, fps = self._frames[: self.size.num_frames], self.size.fps
        self._shown = done
        return Preview(pixels=pixels, rows_done=done, rows=self.rows, fps=fps)

    def _take(self, tokens: Iterable[int]) -> int:
        vocabulary, taken = self._at.grammar.vocabulary, 0
        for token in tokens:
            if (position := self._at.position) is not None and token in vocabulary.vision:
                self._codes[position] = vocabulary.code(token)
            self._at.advance(token)
            taken += 1
        return taken

    def _picture(self, codes: np.ndarray) -> np.ndarray:
        pixels = self._blank(1)[0]
        if len(codes):
            decoded = self.codec.decode_picture(codes)
            pixels[: len(decoded)] = decoded
        return pixels

    def _blank(self, frames: int) -> np.ndarray:
        factor = self.codec.spatial_factor
        return np.full((frames, self.size.height * factor, self.size.width * factor, 3), BLANK, dtype=np.uint8)
