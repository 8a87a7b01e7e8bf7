"""Draw the strip at the top of the README with the default model: nothing is picked by hand, seed 0 throughout.

Usage: python docs/images/strip.py
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import rhea

PROMPT = "a small red circle and a large blue square"
QUESTION = "What colour is the circle?"
EDIT = "make the square green"
FILM = "a small red circle moving to the right"
ZOOM, GAP, LINE = 2, 12, 34


def panel(draw: ImageDraw.ImageDraw, sheet: Image.Image, left: int, lines: list[str], pixels: list[np.ndarray]) -> int:
    """Draw pictures side by side with two lines of text above; return the next free column."""
    for number, line in enumerate(lines):
        draw.text((left, 4 + 14 * number), line, fill=(20, 20, 20))
    for picture in pixels:
        shown = Image.fromarray(picture).resize(
            (picture.shape[1] * ZOOM, picture.shape[0] * ZOOM), Image.Resampling.NEAREST
        )
        sheet.paste(shown, (left, LINE))
        left += shown.width + 2
    return left + GAP


def main() -> None:
    model = rhea.load()
    picture = model.generate(PROMPT)[0]
    answer = model.ask(picture, QUESTION)
    edited = model.edit(picture, EDIT)
    film = model.generate(FILM, video=True)[0]
    frames = list(film.frames[::4])
    width = 2 * (64 * ZOOM + GAP + 120) + (64 * ZOOM + 2) * len(frames) + GAP
    sheet = Image.new("RGB", (width, LINE + 64 * ZOOM + 4), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    left = panel(draw, sheet, 4, [PROMPT, f"{QUESTION} - {answer}"], [picture.pixels]) + 120
    left = panel(draw, sheet, left, [EDIT], [edited.pixels]) + 80
    panel(draw, sheet, left, [FILM], frames)
    sheet.save(Path(__file__).with_suffix(".png"))


if __name__ == "__main__":
    main()
