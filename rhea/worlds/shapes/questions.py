"""Questions about a picture with one short right answer each, and the chance level of every type.

The answer is drawn first, uniformly from those that some question about the scene can have, then the question; so
"yes" is no better a guess than "no". Within one scene not every answer is possible (a picture of one circle has no two
stars), which is why ``balanced_question`` also draws the scene to fit the answer: graded on those, the best answer
without looking is right exactly ``chance_level`` of the time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from rhea.errors import InputError
from rhea.worlds.shapes.language import (
    CHINESE,
    OPPOSITES,
    PLACES,
    RELATION_MARGIN,
    RELATIONS,
    Language,
    Selector,
    describe,
    halves,
    layout,
    offset,
    pick,
    read_caption,
)
from rhea.worlds.shapes.scene import (
    ALL_KINDS,
    CANVAS,
    COLOURS,
    MAX_OBJECTS,
    SHAPES,
    SIZES,
    HeldOut,
    Kind,
    Scene,
    ShapeObject,
    allowed_kinds,
    sample_scene,
)

NUMBERS = ("zero", "one", "two", "three", "four")
ANSWERS: dict[str, tuple[str, ...]] = {
    "count_all": NUMBERS[1:],
    "count_colour": NUMBERS[:4],
    "count_shape": NUMBERS[:4],
    "colour": tuple(COLOURS),
    "shape": tuple(SHAPES),
    "size": tuple(SIZES),
    "side": ("left", "right"),
    "height": ("top", "bottom"),
    "place": tuple(english for english, _ in PLACES.values()),
    "horizontal": ("left", "right"),
    "vertical": ("above", "below"),
    "relation": ("yes", "no"),
    "existence": ("yes", "no"),
}
"""Every type of question with its possible answers, which are equally frequent in ``balanced_question``."""
QUESTION_TYPES = tuple(ANSWERS)
DESCRIBE = "describe"
"""The type that asks for all objects; its answers are too many to list."""
LAYOUT = "layout"
"""The type that asks for all objects and where each is. An exercise, not graded apart: one answer teaches as much about
rows and columns as several questions for one object's half."""

_CHINESE_ANSWERS = {
    **CHINESE,
    **dict(zip(NUMBERS, ("零个", "一个", "两个", "三个", "四个"), strict=True)),
    **{"top": "上半部分", "bottom": "下半部分"},
    **dict(PLACES.values()),
}
_CHINESE_YES_NO = {
    "relation": {"yes": "是", "no": "不是"},
    "existence": {"yes": "有", "no": "没有"},
}
_PHRASINGS: dict[tuple[str, Language], tuple[str, ...]] = {
    ("count_all", "en"): ("How many objects are there?", "How many shapes are in the picture?", "Count the objects"),
    ("count_all", "zh"): ("图中有几个物体？", "一共有多少个物体？", "数一数有几个物体"),
    ("count_colour", "en"): ("How many {0} objects are there?", "How many of the objects are {0}?"),
    ("count_colour", "zh"): ("有几个{0}的物体？", "图中有多少个{0}的物体？"),
    ("count_shape", "en"): ("How many {0}s are there?", "How many {0}s are in the picture?"),
    ("count_shape", "zh"): ("有几个{0}？", "图中有多少个{0}？"),
    ("colour", "en"): ("What colour is {0}?", "What color is {0}?", "Which colour does {0} have?"),
    ("colour", "zh"): ("{0}是什么颜色的？", "{0}的颜色是什么？"),
    ("shape", "en"): ("What shape is {0}?", "Which shape does {0} have?"),
    ("shape", "zh"): ("{0}是什么形状的？", "{0}的形状是什么？"),
    ("size", "en"): ("Is {0} small or large?", "What size is {0}?"),
    ("size", "zh"): ("{0}是大的还是小的？", "{0}的大小是什么？"),
    ("side", "en"): ("Is {0} on the left or on the right of the picture?", "On which side is {0}?"),
    ("side", "zh"): ("{0}在图的左边还是右边？",),
    ("height", "en"): ("Is {0} at the top or at the bottom of the picture?", "Is {0} in the top or the bottom half?"),
    ("height", "zh"): ("{0}在图的上半部分还是下半部分？",),
    ("place", "en"): ("Where is {0}?", "Where in the picture is {0}?"),
    ("place", "zh"): ("{0}在哪里？", "{0}在图的什么地方？"),
    ("horizontal", "en"): ("Is {0} to the left or to the right of {1}?", "Is {0} left or right of {1}?"),
    ("horizontal", "zh"): ("{0}在{1}的左边还是右边？",),
    ("vertical", "en"): ("Is {0} above or below {1}?",),
    ("vertical", "zh"): ("{0}在{1}的上面还是下面？",),
    ("relation", "en"): ("Is {0} {2} {1}?",),
    ("relation", "zh"): ("{0}在{1}的{2}吗？",),
    ("existence", "en"): ("Is there {0}?", "Is there {0} in the picture?", "Do you see {0}?"),
    ("existence", "zh"): ("图中有{0}吗？", "有没有{0}？", "你看到{0}了吗？"),
    (DESCRIBE, "en"): ("Describe the picture", "What is in the picture?", "What do you see?"),
    (DESCRIBE, "zh"): ("描述这张图片", "图中有什么？", "你看到了什么？"),
    (LAYOUT, "en"): ("Say what is where", "What is where in the picture?"),
    (LAYOUT, "zh"): ("什么东西在哪里？", "说说图中什么在哪里"),
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about a picture and its right answer."""

    question_type: str
    text: str
    answer: str
    language: Language

    def is_right(self, given: str) -> bool:
        """Grade an answer: case, spaces and a full stop do not matter; a description is right if its objects are."""
        if self.question_type == DESCRIBE:
            return read_caption(given) == read_caption(self.answer)
        return given.strip().rstrip(".。 ").lower() == self.answer


@dataclass(frozen=True, kw_only=True)
class _Fact:
    """Something that can be asked: the answer in English and what goes into the phrasing."""

    answer: str
    who: tuple[Selector, ...] = ()
    word: str = ""


def chance_level(question_type: str) -> float:
    """Return how often the best answer without looking is right, on questions from ``balanced_question``."""
    if question_type == DESCRIBE:
        return 1 / (MAX_OBJECTS * len(ALL_KINDS))
    if question_type not in ANSWERS:
        raise InputError(f"question type {question_type!r}; known are {[*QUESTION_TYPES, DESCRIBE]}")
    return 1 / len(ANSWERS[question_type])


def ask(
    rng: np.random.Generator,
    scene: Scene,
    question_type: str,
    language: Language,
    *,
    answer: str | None = None,
    held_out: HeldOut = "exclude",
) -> Question | None:
    """Draw a question of a type about the scene, with the given answer (in English) if it must be that one.

    None where the scene has no such question. A kind that ``held_out`` forbids is never named, not even as absent.
    """
    if question_type in (DESCRIBE, LAYOUT):
        text = pick(rng, _PHRASINGS[question_type, language])
        whole = (describe if question_type == DESCRIBE else layout)(scene, language)
        return Question(question_type=question_type, text=text, answer=whole, language=language)
    facts: dict[str, list[_Fact]] = {}
    for fact in _facts(rng, scene, question_type, allowed_kinds(held_out)):
        facts.setdefault(fact.answer, []).append(fact)
    if answer is None and facts:
        answer = pick(rng, sorted(facts))
    if answer not in facts:
        return None
    fact = facts[answer][int(rng.integers(len(facts[answer])))]
    return _worded(rng, question_type, fact, language)


def _worded(rng: np.random.Generator, question_type: str, fact: _Fact, language: Language) -> Question:
    answer, word = fact.answer, fact.word
    if language == "zh":
        answer = _CHINESE_YES_NO.get(question_type, _CHINESE_ANSWERS)[answer]
        word = CHINESE.get(word, word)
    elif question_type == "relation":
        word = RELATIONS[word]
    names = [word] if question_type.startswith("count") else [who.definite(language) for who in fact.who]
    if question_type == "existence" and language == "en":
        names = [fact.who[0].indefinite("en")]
    if question_type == "relation":
        names.append(word)
    text = pick(rng, _PHRASINGS[question_type, language]).format(*names)
    return Question(question_type=question_type, text=text, answer=answer, language=language)


def _facts(rng: np.random.Generator, scene: Scene, question_type: str, allowed: Sequence[Kind]) -> Iterator[_Fact]:
    """Yield what can be asked of the type; of names for one object, one at random each."""
    kinds = scene.kinds
    if question_type == "count_all":
        yield _Fact(answer=NUMBERS[len(kinds)])
    elif question_type == "count_colour":
        yield from (_Fact(answer=NUMBERS[n], word=c) for c in COLOURS if (n := Selector(colour=c).count(kinds)) < 4)
    elif question_type == "count_shape":
        yield from (_Fact(answer=NUMBERS[n], word=s) for s in SHAPES if (n := Selector(shape=s).count(kinds)) < 4)
    elif question_type in ("colour", "shape", "size"):
        for kind in kinds:
            names = [name for name in _names(kind, kinds) if getattr(name, question_type) is None]
            if names:
                yield _Fact(answer=getattr(kind, question_type), who=(names[int(rng.integers(len(names)))],))
    elif question_type in ("side", "height", "place"):
        yield from _halves(rng, scene, question_type)
    elif question_type == "existence":
        yield from _existence(rng, kinds, allowed)
    else:
        yield from _relations(rng, scene.objects, question_type)


def _names(kind: Kind, kinds: Sequence[Kind]) -> list[Selector]:
    """List the ways to name an object, by some or all attributes, that fit no other object of the scene."""
    options = [Selector(*attributes) for attributes in product(*((None, value) for value in kind))]
    return [name for name in options if name.count(kinds) == 1 and (name.colour or name.shape or len(kinds) == 1)]


def _halves(rng: np.random.Generator, scene: Scene, question_type: str) -> Iterator[_Fact]:
    """Yield in which half of the picture, or in which halves, each object is that is far enough from the middle."""
    for thing in scene.objects:
        names = [name for name in _names(thing.kind, scene.kinds) if name.shape]
        words = halves(thing, scene.canvas)
        possible = set(words)
        if question_type == "place":  # asked only where a small step would not change the answer
            sure = halves(thing, scene.canvas, RELATION_MARGIN + 2) == halves(thing, scene.canvas, RELATION_MARGIN - 2)
            possible = {PLACES[words][0]} if words and sure else set()
        for word in possible & set(ANSWERS[question_type]):
            yield _Fact(answer=word, who=(names[int(rng.integers(len(names)))],))


def _relations(rng: np.random.Generator, things: Sequence[ShapeObject], question_type: str) -> Iterator[_Fact]:
    words = {"horizontal": ("left", "right"), "vertical": ("above", "below")}.get(question_type, tuple(RELATIONS))
    kinds = [thing.kind for thing in things]
    for a, b in ((a, b) for a in things for b in things if a is not b):
        names = [[name for name in _names(thing.kind, kinds) if name.shape] for thing in (a, b)]
        who = tuple(options[int(rng.integers(len(options)))] for options in names)
        for word in words:
            if offset(a, b, word) > RELATION_MARGIN:
                if question_type == "relation":
                    yield _Fact(answer="yes", who=who, word=word)
                    yield _Fact(answer="no", who=who, word=OPPOSITES[word])
                else:
                    yield _Fact(answer=word, who=who)


def _existence(rng: np.random.Generator, kinds: Sequence[Kind], allowed: Sequence[Kind]) -> Iterator[_Fact]:
    """Yield one "yes" and one "no" of the same form; half of the absent things share an attribute with one present."""
    form = ((True, True, False), (True, True, False), (True, True, True), (True, False, False), (False, True, False))
    keep = form[int(rng.integers(len(form)))]

    def cut(kind: Kind) -> Selector:
        return Selector(*(value if kept else None for value, kept in zip(kind, keep, strict=True)))

    yield _Fact(answer="yes", who=(cut(kinds[int(rng.integers(len(kinds)))]),))
    absent = [kind for kind in allowed if not cut(kind).count(kinds)]
    if rng.random() < 0.5:
        present = kinds[int(rng.integers(len(kinds)))]
        absent = [kind for kind in absent if kind.colour == present.colour or kind.shape == present.shape] or absent
    yield _Fact(answer="no", who=(cut(absent[int(rng.integers(len(absent)))]),))


def sample_crowded_scene(
    rng: np.random.Generator, *, num_objects: int | None = None, held_out: HeldOut = "exclude", canvas: int = CANVAS
) -> Scene:
    """Draw a scene in which objects often share a colour or a shape, so that there is something to count."""
    kinds = allowed_kinds(held_out)
    attribute = pick(rng, ("colour", "shape", "size"))
    if attribute != "size":
        values = sorted({getattr(kind, attribute) for kind in kinds})
        few = {values[i] for i in rng.permutation(len(values))[:2]}
        narrowed = [kind for kind in kinds if getattr(kind, attribute) in few]
        kinds = tuple(narrowed) if len(narrowed) >= MAX_OBJECTS else kinds
    return sample_scene(rng, num_objects=num_objects, held_out=held_out, kinds=kinds, canvas=canvas)


def balanced_question(
    rng: np.random.Generator,
    question_type: str,
    language: Language,
    *,
    held_out: HeldOut = "exclude",
    canvas: int = CANVAS,
) -> tuple[Scene, Question]:
    """Draw an answer uniformly, then a scene and a question that have it."""
    answer = None if question_type == DESCRIBE else pick(rng, ANSWERS[question_type])
    while True:
        scene = sample_crowded_scene(rng, held_out=held_out, canvas=canvas)
        question = ask(rng, scene, question_type, language, answer=answer, held_out=held_out)
        if question is not None:
            return scene, question
