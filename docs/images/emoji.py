"""Draw emoji with the rich model for the README: nothing is picked by hand, cells by chance, seed 0 throughout.

Usage: python docs/images/emoji.py FOLDER      the shards of docs/data.md, which tell which cells there are
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from strip import GAP, Strip

import rhea
from rhea.worlds.emoji.source import EmojiSource, EmojiSourceConfig

COLUMNS = 7


def main() -> None:
    source, rng = EmojiSource(EmojiSourceConfig(shards=sys.argv[1])), np.random.default_rng(0)
    trained = [source.emojis[number].cell for number in source.numbers]
    rows = {"trained": trained, "shown in other styles only": source.absent}
    model, strips = rhea.load("rich"), []
    for told, cells in rows.items():
        strip = Strip()
        strip.text(told, 0, columns=4)
        for place in rng.permutation(len(cells))[:COLUMNS]:
            prompt = source.prompt(cells[place], "en")
            strip.text(prompt, 2)
            strip.picture(model.generate(prompt)[0].pixels)
            strip.left += GAP
        strips.append(strip)
    sheet = Image.new("RGB", (strips[0].left, sum(strip.image.height for strip in strips)), (255, 255, 255))
    for number, strip in enumerate(strips):
        sheet.paste(strip.image, (0, number * strip.image.height))
    sheet.save(Path(__file__).with_suffix(".png"))


if __name__ == "__main__":
    main()
