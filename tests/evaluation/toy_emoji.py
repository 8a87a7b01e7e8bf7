"""Toy emoji shards: concepts are coloured blocks at places of their own, styles are grounds and brightnesses."""

from pathlib import Path

import numpy as np
from tiny_shards import sample

from rhea.documents.shards import write_shard
from rhea.worlds.emoji.emoji import Cell

SIDE = 32
STYLES = ("3d", "flat", "noto")
CONCEPTS = tuple(f"c{n}" for n in range(28, 40))
"""Two of them have a style held out."""
ABSENT = Cell("c30", "3d")
TWINS = ("c31", "c32")
"""Drawn alike in the flat style, and in no other one."""


def draw(cell: Cell) -> np.ndarray:
    """Draw any cell, absent ones too, uint8 [SIDE, SIDE, 3]."""
    concept = TWINS[0] if cell == Cell(TWINS[1], "flat") else cell.concept
    number, style = CONCEPTS.index(concept), STYLES.index(cell.style)
    pixels = np.full((SIDE, SIDE, 3), 250 - 5 * style, np.uint8)
    top, left = divmod(number, 4)
    colour = [(200, 30, 30), (30, 160, 60), (40, 60, 210), (230, 190, 20)][number % 3]
    pixels[3 + 9 * top :, 1 + 8 * left :][:7, :6] = np.array(colour) - 10 * style - 2 * number % 25
    return pixels


def words(concept: str, language: str) -> tuple[str, list[str]]:
    """Return name and keywords."""
    name = f"thing {concept}" if language == "en" else f"东西{concept}"
    return name, [*(f"{concept}{each}" for each in ("xy" if language == "en" else "甲乙")), "shared"]


def toy_emoji(folder: Path) -> Path:
    """Write all cells but the absent one."""
    samples = []
    for cell in (Cell(concept, style) for concept in CONCEPTS for style in STYLES):
        if cell != ABSENT:
            (name_en, keywords_en), (name_zh, keywords_zh) = words(cell.concept, "en"), words(cell.concept, "zh")
            told = {"name_en": name_en, "keywords_en": keywords_en, "name_zh": name_zh, "keywords_zh": keywords_zh}
            told |= {"concept": cell.concept, "style": cell.style, "emoji": "?", "source": "here"}
            told |= {"style_en": f"a {cell.style} icon", "style_zh": f"{cell.style}图标"}
            samples.append(sample(f"{cell.concept}_{cell.style}", draw(cell), **told))
    write_shard(folder / "e-0.tar", samples)
    return folder
