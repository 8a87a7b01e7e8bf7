"""Emoji in words, English and Chinese: captions in several phrasings, and questions with exact answers.

A caption names its subject by the name or by some of the keywords, and the style before it, after it or not at all.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rhea.worlds.emoji.emoji import Emoji, Language

PHRASINGS: dict[Language, tuple[str, ...]] = {
    "en": ("{style} of {subject}", "{style}: {subject}", "{subject}, {style}", "{subject} as {style}"),
    "zh": ("{style}：{subject}", "一个{style}：{subject}", "{subject}，{style}", "{subject}的{style}"),
}
COMMA = {"en": ", ", "zh": "、"}


class Question(NamedTuple):
    text: str
    answer: str


def plain_caption(subject: str, style: str, language: Language) -> str:
    """Say an exact name and a style in the first phrasing."""
    return PHRASINGS[language][0].format(subject=subject, style=style)


def caption(rng: np.random.Generator, emoji: Emoji, language: Language, *, keyworded: float, styleless: float) -> str:
    """Describe a picture in any phrasing.

    ``keyworded``, ``styleless``: shares of the captions that tell keywords for the name, and that leave the style open.
    """
    by_keywords, no_style = rng.random() < keyworded, rng.random() < styleless
    subject = some_keywords(rng, emoji, language) if by_keywords else name(emoji, language)
    phrasing = PHRASINGS[language][int(rng.integers(len(PHRASINGS[language])))]
    return subject if no_style else phrasing.format(style=style(emoji, language), subject=subject)


def questions(rng: np.random.Generator, emoji: Emoji, language: Language) -> list[Question]:
    """Ask for the name, the keywords and the style, in any order; answers are exact."""
    asked = [name_question(emoji, language), keywords_question(emoji, language), style_question(emoji, language)]
    return [asked[place] for place in rng.permutation(len(asked))]


def name_question(emoji: Emoji, language: Language) -> Question:
    """Ask for the exact name."""
    return Question("What is this called?" if language == "en" else "这叫什么？", name(emoji, language))


def keywords_question(emoji: Emoji, language: Language) -> Question:
    """Ask for all keywords."""
    answer = COMMA[language].join(keywords(emoji, language))
    return Question("Which keywords fit?" if language == "en" else "有哪些关键词？", answer)


def style_question(emoji: Emoji, language: Language) -> Question:
    """Ask for the style."""
    return Question("In what style is it drawn?" if language == "en" else "这是什么风格？", style(emoji, language))


def name(emoji: Emoji, language: Language) -> str:
    """Return the exact name, "butterfly" or "蝴蝶"."""
    return emoji.name_en if language == "en" else emoji.name_zh


def style(emoji: Emoji, language: Language) -> str:
    """Return the style as a noun phrase, "a flat icon" or "扁平图标"."""
    return emoji.style_en if language == "en" else emoji.style_zh


def keywords(emoji: Emoji, language: Language) -> Sequence[str]:
    """Return the keywords in the order of the .json."""
    return emoji.keywords_en if language == "en" else emoji.keywords_zh


def some_keywords(rng: np.random.Generator, emoji: Emoji, language: Language) -> str:
    """Draw at least two of the keywords, if there are two, in any order."""
    words = keywords(emoji, language)
    count = int(rng.integers(min(2, len(words)), len(words) + 1))
    return COMMA[language].join(words[place] for place in rng.permutation(len(words))[:count])
