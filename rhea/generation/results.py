"""What comes out of generation, and what may go in: pictures and films, each with the story of how it was made."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from rhea import media
from rhea.errors import InputError
from rhea.tokenizers.vision import PixelPolicy


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """A generated, edited or reconstructed picture."""

    pixels: np.ndarray
    """uint8 [H, W, 3]."""
    codes: np.ndarray
    """int64 [h, w]: the visual tokens as indices into the codebook."""
    token_ids: list[int] = field(default_factory=list)
    """What the transformer wrote, structure included; empty for a reconstruction."""
    prompt: str = ""
    seed: int | None = None
    sample_index: int = 0
    revised_prompt: str | None = None
    """The words that the model drew from, if it put the prompt in others."""

    @property
    def image(self) -> PillowImage.Image:
        """The picture for Pillow."""
        return PillowImage.fromarray(self.pixels)

    def save(self, path: str | Path) -> None:
        """Write PNG, JPEG or WebP, by the extension."""
        media.write_picture(path, self.pixels)

    def _repr_png_(self) -> bytes | None:
        """Show the picture in a notebook."""
        return self.image._repr_png_()


@dataclass(frozen=True, kw_only=True, eq=False)
class Film:
    """A generated, extended or reconstructed film."""

    frames: np.ndarray
    """uint8 [T, H, W, 3]."""
    fps: float
    codes: np.ndarray
    """int64 [t, h, w]."""
    token_ids: list[int] = field(default_factory=list)
    prompt: str = ""
    seed: int | None = None
    sample_index: int = 0

    def save(self, path: str | Path) -> None:
        """Write MP4 or GIF, by the extension."""
        media.write_film(path, self.frames, self.fps)


def contact_sheet(pictures: Sequence[np.ndarray], *, gap: int = 4) -> np.ndarray:
    """Lay pictures of one size out in a nearly square grid on white, uint8 [H, W, 3]."""
    height, width = pictures[0].shape[:2]
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for index, pixels in enumerate(pictures):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = pixels
    return sheet


Visual = str | Path | np.ndarray | PillowImage.Image | Picture | Film | media.Film
"""What stands for a picture or a film: a file, an array (3 dims a picture, 4 a film), Pillow's image, or a result."""


def read_visual(source: Visual, fps: float, policy: PixelPolicy) -> np.ndarray | media.Film:
    """Return pixels uint8 [H, W, 3] or a film; ``fps`` is for arrays of frames, which do not know theirs.

    Raises InputError, with the file's name if there is one, for what cannot be read or is of a size that ``policy``
    does not take.
    """
    visual = _opened(source, fps)
    height, width = (visual.frames if isinstance(visual, media.Film) else visual).shape[-3:-1]
    try:
        policy.target_size(height, width)
    except InputError as error:
        raise InputError(f"{source}: {error}" if isinstance(source, str | Path) else str(error)) from None
    return visual


def _opened(source: Visual, fps: float) -> np.ndarray | media.Film:
    if isinstance(source, str | Path):
        return media.read_film(source) if media.is_film(source) else media.read_picture(source)
    if isinstance(source, Picture):
        return source.pixels
    if isinstance(source, Film):
        return media.Film(frames=source.frames, fps=source.fps)
    if isinstance(source, media.Film):
        return source
    if isinstance(source, PillowImage.Image):
        return np.asarray(source.convert("RGB"))
    if isinstance(source, np.ndarray) and source.dtype == np.uint8 and source.ndim in (3, 4) and source.shape[-1] == 3:
        if 0 in source.shape:
            raise InputError(f"an array of shape {source.shape} holds no pixels")
        return source if source.ndim == 3 else media.Film(frames=source, fps=fps)
    raise InputError(f"not a picture or film: {_described(source)}; a path, uint8 [H, W, 3] or [T, H, W, 3] is needed")


def read_picture(source: Visual, policy: PixelPolicy) -> np.ndarray:
    """Return pixels uint8 [H, W, 3]; a film is refused."""
    visual = read_visual(source, 1.0, policy)
    if isinstance(visual, media.Film):
        raise InputError(f"a picture is needed here, {_described(source)} is a film")
    return visual


def read_film(source: Visual, fps: float, policy: PixelPolicy) -> media.Film:
    """Return a film; a picture is refused."""
    visual = read_visual(source, fps, policy)
    if not isinstance(visual, media.Film):
        raise InputError(f"a film is needed here, {_described(source)} is a picture")
    return visual


def _described(source: Any) -> str:
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, np.ndarray):
        return f"an array {source.dtype} {source.shape}"
    return type(source).__name__
