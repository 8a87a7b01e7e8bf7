"""A document is a tuple of text, image and video segments: every task is one, with a prompt part and a target part.

Visual segments hold pixels or codes: ``Document.encoded(codec)`` turns the first into the second, and only codes can be
written as tokens. Arrays make equality ambiguous, so segments compare by identity.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from rhea.errors import InputError

MIN_FPS, MAX_FPS = 0.001, 960.0
"""Above about 1,000 frames per second, a duration in thousandths would no longer tell the number of frames."""


@dataclass(frozen=True, eq=False)
class Text:
    text: str
    target: bool = True
    """False marks a prompt part, whose loss weight can be turned down or off."""
    ends_turn: bool = False
    """Write end-of-sequence right after it: the end of an answer that is followed by another question."""


@dataclass(frozen=True, eq=False)
class Image:
    pixels: np.ndarray | None = None
    """uint8 [height, width, 3]."""
    codes: np.ndarray | None = None
    """Integers [grid height, grid width]."""
    target: bool = True

    def __post_init__(self) -> None:
        _check_arrays("image", self.pixels, "pixels", 3, self.codes, 2)


@dataclass(frozen=True, eq=False)
class Video:
    frames: np.ndarray | None = None
    """uint8 [frames, height, width, 3]."""
    codes: np.ndarray | None = None
    """Integers [latent frames, grid height, grid width]."""
    fps: float = 24.0
    num_frames: int | None = None
    """Length in pixel frames; taken from ``frames``, or without them as whole latent frames."""
    target: bool = True
    prompt_latents: int = 0
    """How many latent frames at the start are given (video prediction) and count as prompt."""

    def __post_init__(self) -> None:
        _check_arrays("video", self.frames, "frames", 4, self.codes, 3)
        if not MIN_FPS <= self.fps <= MAX_FPS:
            raise InputError(f"a video's frame rate must be between {MIN_FPS} and {MAX_FPS}, got {self.fps}")
        if self.frames is not None and self.num_frames is None:
            object.__setattr__(self, "num_frames", len(self.frames))
        if self.num_frames is not None and self.num_frames < 1:
            raise InputError(f"a video needs at least one frame, got num_frames={self.num_frames}")
        if self.prompt_latents < 0:
            raise InputError(f"prompt_latents must not be negative, got {self.prompt_latents}")


Segment = Text | Image | Video


def _check_arrays(
    kind: str, pixels: np.ndarray | None, name: str, pixel_dims: int, codes: np.ndarray | None, code_dims: int
) -> None:
    if pixels is None and codes is None:
        raise InputError(f"an {kind} needs {name} or codes" if kind == "image" else f"a {kind} needs {name} or codes")
    if pixels is not None and (
        pixels.dtype != np.uint8 or pixels.ndim != pixel_dims or pixels.shape[-1] != 3 or 0 in pixels.shape
    ):
        raise InputError(f"{name} must be uint8 of {pixel_dims} dims ending in 3, got {pixels.dtype} {pixels.shape}")
    if codes is not None and (
        not np.issubdtype(codes.dtype, np.integer) or codes.ndim != code_dims or 0 in codes.shape
    ):
        raise InputError(f"{kind} codes must be integers of {code_dims} dims, got {codes.dtype} {codes.shape}")


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """The grid of an image that is to be generated, in tokens."""

    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class VideoSize:
    """The grid of a video that is to be generated: sides in tokens, length in pixel frames."""

    height: int
    width: int
    num_frames: int
    fps: float = 24.0


class Codec(Protocol):
    """What turns pixels into codes; ``rhea.tokenizers.vision.VisionCodec`` is one."""

    def encode_pictures(self, pictures: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Encode uint8 [height, width, 3] pictures into code grids [h, w], in order."""
        ...

    def encode_film(self, frames: np.ndarray) -> np.ndarray:
        """Encode uint8 [frames, height, width, 3] into codes [latent frames, h, w]."""
        ...


@dataclass(frozen=True, eq=False)
class Document:
    segments: tuple[Segment, ...]
    task: str = ""
    """A name for statistics ("text_to_image"); it is never written as tokens."""
    bos: bool = True
    eos: bool = True

    def encoded(self, codec: Codec) -> "Document":
        """Return the same document with codes in place of pixels."""
        return encode_documents([self], codec)[0]


def encode_documents(documents: Sequence[Document], codec: Codec) -> list[Document]:
    """Encode the pixels of several documents together, all their images in one call; segments with codes stay."""
    pictures = [
        segment.pixels
        for document in documents
        for segment in document.segments
        if isinstance(segment, Image) and segment.codes is None and segment.pixels is not None
    ]
    codes = iter(codec.encode_pictures(pictures) if pictures else ())

    def encoded(segment: Segment) -> Segment:
        if isinstance(segment, Image):
            return replace(segment, pixels=None, codes=next(codes) if segment.codes is None else segment.codes)
        if isinstance(segment, Video):
            film = codec.encode_film(segment.frames) if segment.codes is None else segment.codes  # type: ignore[arg-type]
            return replace(segment, frames=None, codes=film)
        return segment

    return [replace(document, segments=tuple(map(encoded, document.segments))) for document in documents]
