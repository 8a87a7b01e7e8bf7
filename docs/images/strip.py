"""Draw the strip at the top of the README with the default model: nothing is picked by hand, seed 0 throughout.

Usage: python docs/images/strip.py
"""

import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import rhea

PROMPT = "a small red circle and a large blue square"
QUESTION = "What colour is the circle?"
EDIT = "make the square green"
FILM = "a small red circle bouncing around"
SIDE, GAP, LINE = 160, 14, 18
FONT = ImageFont.load_default(size=14)


class Strip:
    """A row of captioned pictures that grows to the right."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (8 * (SIDE + GAP), 5 * LINE + SIDE + 8), (255, 255, 255))
        self.draw = ImageDraw.Draw(self.image)
        self.left = GAP

    def text(self, text: str, row: int, columns: int = 1) -> None:
        """Write lines of text from a row of the text grid on; rows from 2 on lie below the pictures."""
        for number, line in enumerate(textwrap.wrap(text, 22 * columns), row):
            self.draw.text(
                (self.left, 4 + LINE * number + (SIDE if number >= 2 else 0)), line, fill=(20, 20, 20), font=FONT
            )

    def picture(self, pixels: np.ndarray) -> None:
        """Put a picture at the right end."""
        self.image.paste(
            Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC), (self.left, 2 * LINE + 4)
        )
        self.left += SIDE + 3

    def arrow(self) -> None:
        """Lead from the last picture to the next."""
        middle, start, end = 2 * LINE + 4 + SIDE // 2, self.left + 6, self.left + 38
        self.draw.line((start, middle, end, middle), fill=(90, 90, 90), width=3)
        self.draw.polygon([(end + 8, middle), (end - 4, middle - 8), (end - 4, middle + 8)], fill=(90, 90, 90))
        self.left = end + 16

    def save(self, path: Path) -> None:
        """Write what has been drawn so far."""
        self.image.crop((0, 0, self.left + GAP, self.image.height)).save(path)


def main() -> None:
    model, strip = rhea.load(), Strip()
    picture = model.generate(PROMPT)[0]
    strip.text(PROMPT, 0)
    strip.text(QUESTION, 2)
    strip.text(f"Answer: {model.ask(picture, QUESTION)}", 4)
    strip.picture(picture.pixels)
    strip.arrow()
    strip.text(EDIT, 1)
    strip.picture(model.edit(picture, EDIT).pixels)
    strip.left += 3 * GAP
    strip.text(FILM, 1, columns=4)
    for frame in model.generate(FILM, video=True)[0].frames[::4]:
        strip.picture(frame)
    strip.save(Path(__file__).with_suffix(".png"))


if __name__ == "__main__":
    main()
