"""One self-contained HTML page: pictures and films inside it as data, no script, no network, dark mode included."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from PIL import Image

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --muted: #888; --good: #2a8a4a; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { margin: 0; } h2 { margin: 2.5rem 0 .25rem; } p.about { color: var(--muted); margin: .25rem 0 0; }
code { font: .85rem/1.4 ui-monospace, monospace; color: var(--muted); overflow-wrap: anywhere; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; margin-top: 1rem; }
figure { margin: 0; width: 10rem; } figure.film { width: 100%; }
img { image-rendering: pixelated; width: 10rem; border: 1px solid var(--line); border-radius: 6px; display: block; }
.strip { display: flex; gap: 3px; overflow-x: auto; padding-bottom: .25rem; }
.strip img { width: 4rem; border-radius: 3px; } .strip img.given { opacity: .55; }
figcaption { font-size: .9rem; margin-top: .35rem; } .answer { font-weight: 600; } .note { color: var(--muted); }
table { border-collapse: collapse; } td, th { text-align: left; padding: .15rem 1rem .15rem 0; font-size: .9rem; }
.verdict { color: var(--muted); font-size: .85rem; } .verdict.good { color: var(--good); }
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """A picture on the page, with what belongs to it."""

    pixels: np.ndarray
    """uint8 [H, W, 3]."""
    caption: str
    answer: str = ""
    verdict: str = ""
    note: str = ""

    def html(self) -> str:
        """Return its element."""
        good = " good" if self.verdict.startswith("exactly") else ""
        lines = [
            escape(self.caption),
            f'<span class="answer">{escape(self.answer)}</span>' if self.answer else "",
            f'<span class="verdict{good}">{escape(self.verdict)}</span>' if self.verdict else "",
            f'<span class="note">{escape(self.note)}</span>' if self.note else "",
        ]
        text = "<br>".join(line for line in lines if line)
        shown = f'<img src="{_png(self.pixels)}" alt="{escape(self.caption)}">'
        return f"<figure>{shown}<figcaption>{text}</figcaption></figure>"


@dataclass(frozen=True, kw_only=True, eq=False)
class Film:
    """A film on the page: moving, and its frames side by side."""

    frames: np.ndarray
    """uint8 [T, H, W, 3]."""
    fps: float
    caption: str
    given: int = 0
    """Frames at the start that were given; they are shown paler."""

    def html(self) -> str:
        """Return its element."""
        strip = "".join(
            f'<img src="{_png(frame)}" alt="frame {index}"{" class=given" if index < self.given else ""}>'
            for index, frame in enumerate(self.frames)
        )
        moving = f'<img src="{_gif(self.frames, self.fps)}" alt="{escape(self.caption)}">'
        given = f", the first {self.given} frames given" if self.given else ""
        text = f"{escape(self.caption)}{given}"
        return f'<figure class="film">{moving}<figcaption>{text}</figcaption><div class="strip">{strip}</div></figure>'


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Rows of text below a row of titles."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]

    def html(self) -> str:
        """Return its element."""
        head = "".join(f"<th>{escape(title)}</th>" for title in self.titles)
        rows = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in self.rows)
        return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


@dataclass(kw_only=True)
class Page:
    """A page that grows section by section."""

    title: str
    trained_on: str
    about: str = "Everything below was written token by token by one transformer; nothing was picked by hand."
    _sections: list[str] = field(default_factory=list)

    def add(self, title: str, command: str, shown: Sequence[Picture | Film | Grid]) -> None:
        """Add a section: what it is, the command that does the same, and its results."""
        row = "".join(each.html() for each in shown)
        self._sections.append(f'<h2>{escape(title)}</h2>\n<code>{escape(command)}</code>\n<div class="row">{row}</div>')

    def html(self) -> str:
        """Return the whole page."""
        trained = f" It was trained on {escape(self.trained_on)}." if self.trained_on else ""
        return (
            f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(self.title)}</title>\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style></head>\n'
            f'<body>\n<h1>{escape(self.title)}</h1>\n<p class="about">{escape(self.about)}{trained}</p>\n'
            + "\n".join(self._sections)
            + "\n</body>\n</html>\n"
        )


def _png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return _data("image/png", buffer)


def _gif(frames: np.ndarray, fps: float) -> str:
    buffer = io.BytesIO()
    first, *rest = [Image.fromarray(frame) for frame in frames]
    duration = max(20, round(1000 / fps))
    first.save(buffer, format="GIF", save_all=True, append_images=rest, duration=duration, loop=0)
    return _data("image/gif", buffer)


def _data(kind: str, buffer: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
