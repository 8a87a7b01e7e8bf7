"""Questions: an independent reader of the wording finds the same answers, and guessing is worth exactly the chance."""

import re
from collections import Counter

import numpy as np
import pytest

from rhea.errors import InputError
from rhea.worlds.shapes.language import Language
from rhea.worlds.shapes.questions import (
    ANSWERS,
    DESCRIBE,
    LAYOUT,
    QUESTION_TYPES,
    Question,
    ask,
    balanced_question,
    chance_level,
)
from rhea.worlds.shapes.scene import HELD_OUT_KINDS, Kind, Scene, ShapeObject, sample_scene

TO_ENGLISH = {
    **{"红色": "red", "绿色": "green", "蓝色": "blue", "黄色": "yellow", "紫色": "purple", "橙色": "orange"},
    **{"青色": "cyan", "黑色": "black", "圆形": "circle", "正方形": "square", "三角形": "triangle", "星形": "star"},
    **{"十字形": "cross", "圆环": "ring", "小": "small", "大": "large", "物体": "object"},
}
ENGLISH = re.compile(
    r"\b(?:(?:(?:small|large|red|green|blue|yellow|purple|orange|cyan|black) )*"
    r"(?:circle|square|triangle|star|cross|ring|object)s?|red|green|blue|yellow|purple|orange|cyan|black)\b"
)
CHINESE = re.compile(
    "(?:(?:红色|绿色|蓝色|黄色|紫色|橙色|青色|黑色)?[大小]?(?:圆形|正方形|三角形|星形|十字形|圆环|物体))|(?:[红绿蓝黄紫橙青黑]色)"
)
PLACED = "a large blue star on the left, a large green ring and a small red circle at the top right"
PLACED_CHINESE = "左侧有一个蓝色大星形，有一个绿色大圆环，右上方有一个红色小圆形"
GIVEN = {
    "上半部分": "top",
    "下半部分": "bottom",
    **{"零个": "zero", "一个": "one", "两个": "two", "三个": "three", "四个": "four", "左边": "left", "右边": "right"},
    **{"左上方": "at the top left", "右上方": "at the top right", "上方": "at the top", "左侧": "on the left"},
    **{
        "左下方": "at the bottom left",
        "右下方": "at the bottom right",
        "下方": "at the bottom",
        "右侧": "on the right",
    },
    **{"上面": "above", "下面": "below", "是": "yes", "不是": "no", "有": "yes", "没有": "no"},
}


def phrases(question: Question) -> list[set[str]]:
    """The attributes that each noun phrase names, in English."""
    text = question.text
    if question.language == "zh":
        words = [re.findall("|".join(TO_ENGLISH), phrase) for phrase in CHINESE.findall(text)]
        return [{TO_ENGLISH[word] for word in phrase} - {"object"} for phrase in words]
    return [{re.sub("s$", "", w) if w != "cross" else w for w in p.split()} - {"object"} for p in found(text)]


def found(text: str) -> list[str]:
    return [phrase.removesuffix("es") if phrase.endswith("crosses") else phrase for phrase in ENGLISH.findall(text)]


def such(objects: tuple[ShapeObject, ...], attributes: set[str]) -> list[ShapeObject]:
    return [thing for thing in objects if attributes <= set(thing.kind)]


def third(place: float, canvas: int) -> int:
    """Below, within or above four pixels from the middle."""
    return 1 + (place > canvas / 2 + 4) - (place < canvas / 2 - 4)


def independent_answer(question: Question, scene: Scene) -> str:
    kind, objects = question.question_type, scene.objects
    named = phrases(question)
    if kind == "count_all":
        return ("zero", "one", "two", "three", "four")[len(objects)]
    if kind.startswith("count"):
        (attributes,) = [one for one in named if one]
        return ("zero", "one", "two", "three", "four")[len(such(objects, attributes))]
    if kind == "existence":
        return "yes" if such(objects, named[0]) else "no"
    targets = [such(objects, one) for one in named[:2]]
    assert all(len(target) == 1 for target in targets), (question, scene)
    if kind in ("colour", "shape", "size"):
        return str(getattr(targets[0][0].kind, kind))
    if kind in ("side", "height"):
        (thing,) = targets[0]
        place, words = (thing.x, ("left", "right")) if kind == "side" else (thing.y, ("top", "bottom"))
        return words[place > scene.canvas / 2]
    if kind == "place":
        (thing,) = targets[0]
        rows, columns = ("top", "", "bottom"), ("left", "", "right")
        row, column = rows[third(thing.y, scene.canvas)], columns[third(thing.x, scene.canvas)]
        return f"at the {row} {column}".strip() if row else f"on the {column}"
    (a,), (b,) = targets
    true = {"left" if a.x < b.x else "right", "above" if a.y < b.y else "below"}
    asked = {"left", "right"} if kind == "horizontal" else {"above", "below"}
    if kind == "relation":
        words = {"左边": "left", "右边": "right", "上面": "above", "下面": "below"}
        said = [english for chinese, english in words.items() if chinese in question.text or english in question.text]
        return "yes" if set(said) <= true else "no"
    return (true & asked).pop()


@pytest.mark.parametrize("question_type", QUESTION_TYPES)
def test_answers_are_right_and_guessing_is_chance(question_type: str) -> None:
    rng = np.random.default_rng(QUESTION_TYPES.index(question_type))
    answers: Counter[str] = Counter()
    count = 240
    for number in range(count):
        language: Language = "en" if number % 2 else "zh"
        scene, question = balanced_question(rng, question_type, language)
        answer = GIVEN.get(question.answer, TO_ENGLISH.get(question.answer, question.answer))
        assert answer == independent_answer(question, scene), (question, scene)
        answers[answer] += 1
    assert set(answers) == set(ANSWERS[question_type])
    chance = chance_level(question_type)
    assert chance == 1 / len(ANSWERS[question_type])
    assert max(answers.values()) / count < chance + 4 * (chance * (1 - chance) / count) ** 0.5


def test_held_out_kinds_are_never_named_in_training() -> None:
    rng = np.random.default_rng(0)
    for _ in range(1000):
        question = ask(rng, sample_scene(rng), "existence", "en")
        assert question is not None
        attributes = phrases(question)[0]
        assert not any(attributes == set(kind) for kind in HELD_OUT_KINDS)


def test_a_scene_without_the_answer_gives_none() -> None:
    rng = np.random.default_rng(0)
    scene = sample_scene(rng, num_objects=1)
    assert ask(rng, scene, "horizontal", "en") is None
    assert ask(rng, scene, "count_all", "en", answer="three") is None


def test_grading_of_answers() -> None:
    question = Question(question_type="colour", text="What colour is it?", answer="red", language="en")
    assert question.is_right(" Red.")
    assert not question.is_right("red blue")
    scene = sample_scene(np.random.default_rng(0), num_objects=2)
    described = ask(np.random.default_rng(0), scene, DESCRIBE, "zh")
    assert described is not None
    first, second = described.answer.split("和")
    assert described.is_right(f"{second}、{first}")
    assert not described.is_right(first)
    assert 0 < chance_level(DESCRIBE) < 0.01


@pytest.mark.parametrize(("language", "expected"), [("en", PLACED), ("zh", PLACED_CHINESE)])
def test_a_layout_names_every_object_with_its_place(language: Language, expected: str) -> None:
    things = [("red", "circle", "small", 40, 10), ("blue", "star", "large", 10, 33), ("green", "ring", "large", 31, 30)]
    objects = tuple(ShapeObject(kind=Kind(*kind), x=x, y=y) for *kind, x, y in things)
    question = ask(np.random.default_rng(0), Scene(objects=objects), LAYOUT, language)
    assert question is not None
    assert question.answer == expected


def test_unknown_type_is_an_input_error() -> None:
    with pytest.raises(InputError, match="weight"):
        chance_level("weight")
