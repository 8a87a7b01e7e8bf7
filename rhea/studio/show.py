"""Pixels as HTML: pictures, films that play and messages, all inside the page as data, and told to screen readers."""

import base64
import io
import tempfile
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from rhea import media

STYLE = """
.gradio-container { max-width: 70rem !important; margin: 0 auto !important; }
.gradio-container :is(button, input, textarea, a, video, [tabindex]):focus-visible {
  outline: 3px solid var(--color-accent) !important; outline-offset: 1px; }
.rhea-row { display: flex; flex-wrap: wrap; gap: 1rem; margin: .5rem 0; align-items: flex-start; }
.rhea-row figure { margin: 0; width: min(16rem, 100%); }
.rhea-pixels { width: 100%; image-rendering: pixelated; border-radius: 6px; display: block;
  border: 1px solid var(--border-color-primary); }
.rhea-row figcaption { font-size: .9rem; margin-top: .3rem; overflow-wrap: anywhere; }
.rhea-note { opacity: .75; font-size: .85rem; }
.rhea-error { border-left: 4px solid #c0392b; padding: .5rem .75rem; }
.rhea-shelf { display: flex; gap: .5rem; overflow-x: auto; padding: .35rem; }
.rhea-shelf button { flex: none; width: 4.6rem; min-height: 4.6rem; padding: 3px; border-radius: 8px; cursor: pointer;
  border: 2px solid transparent; background: none; position: relative; }
.rhea-shelf button[aria-pressed=true] { border-color: var(--color-accent); background: var(--color-accent-soft); }
.rhea-shelf .badge { position: absolute; right: 6px; bottom: 6px; font-size: .8rem; background: #000a; color: #fff;
  border-radius: 4px; padding: 0 .25rem; }
.rhea-strip { display: flex; gap: 3px; flex-wrap: wrap; }
.rhea-piece .rhea-row figure { width: 9rem; }
.rhea-words { display: flex; flex-wrap: wrap; gap: .4rem; margin: .5rem 0; }
.rhea-words button { margin: 0 !important; border: 1px solid var(--border-color-primary); border-radius: 6px;
  padding: .35rem .6rem; cursor: pointer; min-height: 2.2rem; }
.rhea-words .written { text-decoration: underline 2px var(--color-accent); text-underline-offset: .25rem; }
.rhea-words button[aria-pressed=true] { border: 2px solid var(--color-accent); font-weight: 600; }
.rhea-grid button:focus-visible { z-index: 1; }
.rhea-look { display: flex; flex-direction: column; }
.rhea-over { position: relative; width: min(32rem, 100%); }
.rhea-grid { position: absolute; inset: 0; display: grid; }
.rhea-grid button { margin: 0 !important; padding: 0 !important; border-radius: 0 !important; border: 1px solid #8884;
  font: inherit; min-width: 0; min-height: 0; overflow: hidden; cursor: pointer; }
.rhea-grid button[aria-pressed=true] { border: 3px solid #000; box-shadow: inset 0 0 0 2px #fff; }
.rhea-grid span { font-size: .7rem; color: #000; background: #fffb; border-radius: 3px; padding: 0 2px; }
.rhea-bars { display: flex; align-items: flex-end; gap: 2px; height: 5rem; max-width: 32rem; }
.rhea-bars i { flex: 1; background: rgb(255 96 0 / .8); min-width: 2px; }
.rhea-strip .model .rhea-pixels { border: 3px solid #d35400; }
.rhea-strip .given .rhea-pixels { border: 3px dashed #8888; }
.rhea-strip figure { margin: 0; width: 4rem; flex: none; text-align: center; font-size: .75rem; }
"""


KEYS = """
() => document.addEventListener('keydown', event => {
  const group = event.target.closest('[data-columns], [role=tablist]');
  const buttons = group ? [...group.querySelectorAll('button')] : [];
  const at = buttons.indexOf(event.target.closest('button')), columns = Number(group?.dataset.columns || 1);
  const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -at,
    End: buttons.length - 1 - at}[event.key];
  if (at < 0 || step === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  buttons[at + step]?.focus();
})
"""
"""Arrow keys walk over a group's buttons, of which the Tab key stops at one only: it is soon past a full shelf."""


def tab_stop(stops: bool) -> str:
    """Return the attribute of a button in such a group: whether the Tab key stops at it."""
    return f' tabindex="{0 if stops else -1}"'


def png(pixels: np.ndarray, *, quick: bool = False) -> bytes:
    """Return a picture uint8 [H, W, 3] as a file; ``quick`` gives up size for time."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1 if quick else 6)
    return buffer.getvalue()


def mp4(frames: np.ndarray, fps: float) -> bytes:
    """Return a film uint8 [T, H, W, 3] as a file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "film.mp4"
        media.write_film(file, frames, fps)
        return file.read_bytes()


def data_url(pixels: np.ndarray, *, quick: bool = False) -> str:
    """Return a picture uint8 [H, W, 3] as the address of itself; ``quick`` gives up size for time."""
    return _data("image/png", png(pixels, quick=quick))


def element(pixels: np.ndarray, alt: str, *, fps: float | None = None, quick: bool = False) -> str:
    """Return the element of a picture [H, W, 3] or, with ``fps``, of a film [T, H, W, 3] that plays in a loop."""
    if pixels.ndim == 3:
        return of_file(png(pixels, quick=quick), ".png", alt)
    if fps is None or len(pixels) < 2:
        return element(pixels[-1], alt, quick=quick)
    return of_file(mp4(pixels, fps), ".mp4", alt)


def of_file(content: bytes, suffix: str, alt: str) -> str:
    """Return the element of a file, ".png" or ".mp4"; films play in a loop."""
    if suffix == ".png":
        return f'<img class="rhea-pixels" src="{_data("image/png", content)}" alt="{escape(alt)}">'
    source, attributes = _data("video/mp4", content), "controls autoplay loop muted playsinline"
    return f'<video class="rhea-pixels" src="{source}" aria-label="{escape(alt)}" {attributes}></video>'


def figure(shown: str, caption: str, note: str = "") -> str:
    """Return an element with its caption."""
    small = f'<div class="rhea-note">{escape(note)}</div>' if note else ""
    return f"<figure>{shown}<figcaption>{escape(caption)}{small}</figcaption></figure>"


def row(figures: list[str]) -> str:
    """Return figures side by side, wrapped where the page is narrow."""
    return f'<div class="rhea-row">{"".join(figures)}</div>' if figures else ""


def strip(frames: np.ndarray, given: int, names: tuple[str, str], alts: tuple[str, str]) -> str:
    """Return the frames [T, H, W, 3] of a film side by side, the first ``given`` ones marked as such, in words too.

    ``names``: what is written under given frames and the others; ``alts``: the same for screen readers, {number} open.
    """
    figures = []
    for index, frame in enumerate(frames):
        later = index >= given
        alt = alts[later].format(number=index + 1)
        shown = element(thumbnail(frame), alt, quick=True)
        kind = "model" if later else "given"
        figures.append(f'<figure class="{kind}">{shown}<figcaption>{escape(names[later])}</figcaption></figure>')
    return f'<div class="rhea-strip" role="group">{"".join(figures)}</div>'


def thumbnail(pixels: np.ndarray, side: int = 96) -> np.ndarray:
    """Return every n-th pixel: quick, and crisp for the small pictures of small models."""
    step = max(1, max(pixels.shape[:2]) // side)
    return np.ascontiguousarray(pixels[::step, ::step])


def status(text: str) -> str:
    """Return a message that screen readers tell when they have time."""
    return f'<div role="status" aria-live="polite">{escape(text)}</div>'


def error(text: str) -> str:
    """Return a message that screen readers tell at once."""
    return f'<div role="alert" class="rhea-error">{escape(text)}</div>'


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
