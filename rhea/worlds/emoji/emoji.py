"""What the shards tell about a picture, and which (concept, style) cells are absent or held out.

A style is missing for some concepts on purpose: a model that understands both words should draw these cells all the
same. For validation further cells are held out, at most one of a concept, chosen by a hash of the concept's name: so
the list is the same however the shards are sorted, and every concept is still learned in its other styles.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Language = Literal["en", "zh"]

HELD_OUT_SHARE = 16
"""Of so many concepts, one (by expectation) has one of its styles held out."""


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """The .json of one picture."""

    emoji: str
    concept: str
    """Its code points, "1f98b"."""
    style: str
    name_en: str
    name_zh: str
    keywords_en: tuple[str, ...]
    keywords_zh: tuple[str, ...]
    style_en: str
    """As a noun phrase, "a flat icon"."""
    style_zh: str
    source: str
    """The repository it was drawn in."""

    def __post_init__(self) -> None:
        if not all((self.concept, self.style, self.name_en, self.name_zh, self.keywords_en, self.keywords_zh)):
            raise ValueError("a concept, a style, names and keywords must not be empty")

    @property
    def cell(self) -> "Cell":
        """Return the concept and the style together."""
        return Cell(self.concept, self.style)


class Cell(NamedTuple):
    """One concept in one style."""

    concept: str
    style: str


def absent_cells(emojis: Sequence[Emoji]) -> list[Cell]:
    """List what no picture shows though its concept and its style each occur, sorted."""
    present, styles = {emoji.cell for emoji in emojis}, {emoji.style for emoji in emojis}
    every = (Cell(concept, style) for concept in {emoji.concept for emoji in emojis} for style in styles)
    return sorted(cell for cell in every if cell not in present)


def held_out_cells(cells: Iterable[Cell]) -> list[Cell]:
    """Choose cells for validation, sorted: one of about every 16th concept that has at least two styles."""
    styles: dict[str, list[str]] = defaultdict(list)
    for concept, style in sorted(set(cells)):
        styles[concept].append(style)
    chosen = []
    for concept, names in styles.items():
        which, chance = divmod(int(hashlib.sha256(concept.encode()).hexdigest(), 16), HELD_OUT_SHARE)
        if chance == 0 and len(names) > 1:
            chosen.append(Cell(concept, names[which % len(names)]))
    return chosen
