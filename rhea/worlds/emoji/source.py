"""Emoji as training documents: document ``index`` is a pure function of (seed, index).

A pass shows every picture of the split once. Pictures of cells that are held out appear in the validation split only,
in which nothing else does.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image as Pillow

from rhea.config import from_dict
from rhea.documents import formats
from rhea.documents.document import Document, Image
from rhea.documents.mixture import draw_task, task_shares
from rhea.documents.shards import Passes, Shards, find_shards
from rhea.errors import InputError
from rhea.worlds.emoji.emoji import Cell, Emoji, Language, absent_cells, held_out_cells
from rhea.worlds.emoji.language import caption, name, name_question, plain_caption, questions, style


@dataclass(frozen=True, kw_only=True)
class EmojiTasks:
    """How often each task is drawn, in proportion; 0 leaves it out."""

    text_to_image: float = 0.7
    captioning: float = 0.1
    """Picture, then style and exact name."""
    question_answering: float = 0.15
    """Name, keywords and style, each asked for."""
    language: float = 0.05
    """A caption alone, as plain text."""
    prompt_revision: float = 0.0
    """A caption that need not be revised: what names an emoji can be drawn as it is."""
    naming: float = 0.0
    """The name asked for, and nothing else: what grading asks, in the fewest tokens."""


@dataclass(frozen=True, kw_only=True)
class EmojiWording:
    """In what words pictures are told. Grading asks by name and style."""

    english: float = 0.5
    """Share of the captions before a picture that are in English; the others are in Chinese."""
    english_read: float = 0.5
    """The same of what follows a picture: captions and answers."""
    keyworded: float = 0.3
    """Share of the captions whose subject is told by keywords instead of the name."""
    styleless: float = 0.1
    """Share of the captions that leave the style open."""
    unconditional: float = 0.1
    """Share of the captions before a picture that are left empty, for classifier-free guidance."""


@dataclass(frozen=True, kw_only=True)
class EmojiSourceConfig:
    """What the documents of an EmojiSource are like."""

    shards: str
    """A folder of .tar files, or one of them."""
    seed: int = 0
    split: Literal["training", "validation"] = "training"
    tasks: EmojiTasks = field(default_factory=EmojiTasks)
    wording: EmojiWording = field(default_factory=EmojiWording)
    side: int = 64
    """Pictures are made so many pixels wide and high."""


class EmojiSource:
    """An endless source of documents (the Source protocol of ``rhea.documents.mixture``)."""

    def __init__(self, config: EmojiSourceConfig) -> None:
        """Index the shards and read what they tell; raise InputError for a record that is not an emoji's."""
        if config.seed < 0 or config.side < 1:
            raise InputError(f"a seed must not be negative and a side must be positive: {config}")
        self.config = config
        self.shards = Shards(find_shards(config.shards))
        self.emojis = tuple(
            from_dict(Emoji, self.shards.record(number), self.shards.name(number)) for number in range(len(self.shards))
        )
        self._named = {emoji.concept: emoji for emoji in self.emojis}
        self._styled = {emoji.style: emoji for emoji in self.emojis}
        self.absent = absent_cells(self.emojis)
        self.held_out = held_out_cells(emoji.cell for emoji in self.emojis)
        out = set(self.held_out)
        self.numbers = tuple(
            number for number, emoji in enumerate(self.emojis) if (emoji.cell in out) is (config.split == "validation")
        )
        """Which samples of the shards belong to the split."""
        if not self.numbers:
            raise InputError(f"no pictures of {config.shards} belong to the {config.split} split")
        self._shares = task_shares(config.tasks)
        self._passes = Passes(len(self.numbers), config.seed)
        self._pixels: dict[int, np.ndarray] = {}

    def document(self, index: int) -> Document:
        """Make document ``index``, with pixels; the same index always gives the same document."""
        rng = np.random.default_rng([self.config.seed, index, 1])
        number = self.numbers[self._passes[index]]
        emoji = self.emojis[number]
        task, wording = draw_task(rng, self._shares), self.config.wording
        english = wording.english_read if task in (1, 2, 5) else wording.english
        language: Language = "en" if rng.random() < english else "zh"
        if task == 0:
            text = "" if rng.random() < wording.unconditional else self._caption(rng, emoji, language)
            return formats.text_to_image(text, self.image(number))
        if task == 1:
            return formats.captioning(self.image(number), self.prompt(emoji.cell, language))
        if task == 2:
            turns = [(question.text, question.answer) for question in questions(rng, emoji, language)]
            return formats.question_answering(self.image(number), turns)
        if task == 3:
            return formats.language(self._caption(rng, emoji, language))
        if task == 5:
            asked = name_question(emoji, language)
            return formats.question_answering(self.image(number), asked.text, asked.answer)
        return formats.prompt_revision(self._caption(rng, emoji, language), formats.KEPT)

    def _caption(self, rng: np.random.Generator, emoji: Emoji, language: Language) -> str:
        wording = self.config.wording
        return caption(rng, emoji, language, keyworded=wording.keyworded, styleless=wording.styleless)

    def prompt(self, cell: Cell, language: Language) -> str:
        """Say the name and the style of a cell, absent ones too: what a model is asked to draw when it is graded."""
        return plain_caption(
            name(self._named[cell.concept], language), style(self._styled[cell.style], language), language
        )

    def image(self, number: int) -> Image:
        """Return sample ``number`` of the shards, ``side`` x ``side`` pixels (bicubic, as pixel policies resize).

        Pictures stay decoded, 12 kB each of 64 pixels, 49 kB of 128: each comes again with every pass.
        """
        if number not in self._pixels:
            pixels, side = self.shards.picture(number), self.config.side
            if pixels.shape[:2] != (side, side):
                pixels = np.asarray(Pillow.fromarray(pixels).resize((side, side), Pillow.Resampling.BICUBIC))
            self._pixels[number] = pixels
        return Image(pixels=self._pixels[number])
