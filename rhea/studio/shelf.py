"""What was made or uploaded in one visit, and which piece of it the tabs work on."""

from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from rhea.serving.backend import Clip, Done, Draw, Edit, Extend
from rhea.serving.errors import ApiError
from rhea.serving.untrusted import MediaGuard, media_format
from rhea.studio import show
from rhea.studio.show import data_url, thumbnail
from rhea.studio.store import Sample
from rhea.studio.texts import say

_MOST_PIECES = 24

PICK = """
element.addEventListener('click', event => {
  const button = event.target.closest('[data-pick]');
  if (button) trigger('select', {pick: Number(button.dataset.pick)});
});
"""
"""Tells Python which piece was taken; buttons take the keyboard by themselves."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """A picture [H, W, 3] or film [T, H, W, 3], uint8, with the story of how it was made."""

    pixels: np.ndarray
    title: str
    fps: float | None = None
    task: Draw | Edit | Extend | None = None
    """None for what was uploaded."""
    done: Done | None = None

    @property
    def is_film(self) -> bool:
        return self.pixels.ndim == 4

    @property
    def visual(self) -> np.ndarray | Clip:
        """What the model is asked about."""
        return Clip(frames=self.pixels, fps=self.fps or 1.0) if self.is_film else self.pixels

    @property
    def text(self) -> str:
        """What it was made from; of what was uploaded nothing is known."""
        match self.task:
            case Draw():
                return self.task.prompt
            case Edit():
                return self.task.instruction
            case Extend():
                return self.task.caption
        return ""

    def sample(self, model: str) -> Sample:
        """Return what a ``Store`` keeps of it; ``model`` is the name of the one that made it."""
        settings: dict[str, Any] = {"uploaded": self.title}
        if self.task is not None:
            given = {name: getattr(self.task, name, None) for name in ("size", "num_frames", "fps")}
            settings = {"model": model, **given, **asdict(self.task.sampling)}
        return Sample(
            prompt=self.text,
            media=show.mp4(self.pixels, self.fps or 1.0) if self.is_film else show.png(self.pixels),
            suffix=".mp4" if self.is_film else ".png",
            token_ids=() if self.done is None else self.done.token_ids,
            settings={name: value for name, value in settings.items() if value is not None},
        )


@dataclass
class Shelf:
    """The pieces of one visit, the oldest of many forgotten. It lives in the session and is changed in place."""

    pieces: dict[int, Piece] = field(default_factory=dict)
    chosen: int | None = None
    chats: dict[int | None, list[tuple[str, str]]] = field(default_factory=dict)
    """Questions with their answers about each piece; those of None are about nothing."""
    _made: int = 0

    @property
    def piece(self) -> Piece | None:
        """The piece that the tabs work on."""
        return None if self.chosen is None else self.pieces.get(self.chosen)

    def put(self, piece: Piece) -> None:
        """Add a piece and choose it."""
        self._made += 1
        self.pieces[self._made] = piece
        self.chosen = self._made
        for number in list(self.pieces)[:-_MOST_PIECES]:
            del self.pieces[number]
            self.chats.pop(number, None)

    def choose(self, number: int) -> None:
        """Choose a piece; one that is gone leaves the choice as it is."""
        if number in self.pieces:
            self.chosen = number

    def shown(self, language: str) -> str:
        """Return the chosen piece, large, with its title."""
        if self.piece is None:
            return f'<p class="rhea-note">{escape(say(language, "nothing_taken"))}</p>'
        title = say(language, "working_on", title=self.piece.title)
        figure = show.figure(show.element(self.piece.pixels, self.piece.title, fps=self.piece.fps), title)
        return f'<div class="rhea-piece">{show.row([figure])}</div>'

    def html(self, language: str) -> str:
        """Return the shelf as buttons, newest first."""
        if not self.pieces:
            return f'<p class="rhea-note">{escape(say(language, "shelf_empty"))}</p>'
        buttons = "".join(self._button(number, language) for number in reversed(self.pieces))
        label = escape(say(language, "shelf"))
        return f'<div class="rhea-shelf" role="group" data-columns="1" aria-label="{label}">{buttons}</div>'

    def _button(self, number: int, language: str) -> str:
        piece = self.pieces[number]
        label = escape(say(language, "take", title=piece.title))
        chosen = number == self.chosen
        shown = piece.pixels[0] if piece.is_film else piece.pixels
        badge = f'<span class="badge" aria-hidden="true">▶ {len(piece.pixels)}</span>' if piece.is_film else ""
        return (
            f'<button type="button" data-pick="{number}" aria-pressed="{"true" if chosen else "false"}"'
            f'{show.tab_stop(chosen)} aria-label="{label}" title="{label}">'
            f'<img class="rhea-pixels" src="{data_url(thumbnail(shown), quick=True)}" alt="">{badge}</button>'
        )


async def read_upload(guard: MediaGuard, path: str, name: str) -> Piece:
    """Decode an uploaded file where it can do no harm; ApiError says what is wrong with it. A moving GIF is a film."""
    size = Path(path).stat().st_size
    data = b"" if size > guard.limits.max_bytes else Path(path).read_bytes()
    if size > guard.limits.max_bytes:
        raise ApiError(413, f"it has {size} bytes; {guard.limits.max_bytes} are allowed", code="media_too_large")
    if media_format(data) in ("GIF", "MP4", "WEBM"):
        film = await guard.film(data)
        if len(film.frames) > 1:
            return Piece(pixels=film.frames, fps=film.fps, title=name)
        return Piece(pixels=film.frames[0], title=name)
    if media_format(data) is None and data:
        raise ApiError(400, "it must be PNG, JPEG, WebP, GIF, MP4 or WebM", code="unsupported_format")
    return Piece(pixels=await guard.picture(data), title=name)
