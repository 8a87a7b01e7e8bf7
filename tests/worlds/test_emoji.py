"""Emoji: what is said is true of the picture, the splits keep apart, and absent cells are those without a picture."""

import hashlib
import itertools
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from tiny_shards import noise, sample

from rhea.config import from_dict, to_dict
from rhea.documents import formats
from rhea.documents.document import Document, Image, Text
from rhea.documents.shards import write_shard
from rhea.errors import InputError
from rhea.worlds.emoji.emoji import Cell, Emoji, Language, absent_cells, held_out_cells
from rhea.worlds.emoji.language import COMMA, PHRASINGS, caption, questions
from rhea.worlds.emoji.source import EmojiSource, EmojiSourceConfig, EmojiTasks, EmojiWording

REAL = Path(__file__).parents[3] / "shared" / "data" / "emoji"
STYLES = {"flat": ("a flat icon", "扁平图标"), "3d": ("a 3D icon", "立体图标"), "noto": ("a Noto icon", "Noto 图标")}
CONCEPTS = [f"c{n}" for n in range(28, 44)]
"""Three of them have a style held out."""
MISSING = Cell("c30", "3d")


def record(concept: str, style: str, **more: Any) -> dict[str, Any]:
    english, chinese = STYLES[style]
    named = {"name_en": f"thing {concept}", "name_zh": f"东西{concept}", "style_en": english, "style_zh": chinese}
    words = {"keywords_en": [f"{concept}{n}" for n in "xyz"], "keywords_zh": [f"{concept}{n}" for n in "甲乙丙"]}
    return {"emoji": "?", "concept": concept, "style": style, "source": "here", **named, **words, **more}


def emoji(concept: str = "c1", style: str = "flat", **more: Any) -> Emoji:
    return from_dict(Emoji, record(concept, style, **more))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("emoji")
    cells = [Cell(*cell) for cell in itertools.product(CONCEPTS, STYLES)]
    samples = [
        sample(f"{cell.concept}_{cell.style}", noise(n, 16, 16), **record(*cell))
        for n, cell in enumerate(cells)
        if cell != MISSING
    ]
    write_shard(where / "e-0.tar", samples[:20])
    write_shard(where / "e-1.tar", samples[20:])
    return where


def source(folder: Path, **more: Any) -> EmojiSource:
    return EmojiSource(EmojiSourceConfig(**({"shards": str(folder), "side": 8} | more)))


def texts(document: Document) -> list[str]:
    return [segment.text for segment in document.segments if isinstance(segment, Text)]


def pixels(document: Document) -> bytes | None:
    found = [segment.pixels for segment in document.segments if isinstance(segment, Image)]
    return found[0].tobytes() if found and found[0] is not None else None


@pytest.mark.parametrize("language", get_args(Language))
def test_every_phrasing_names_its_subject_and_its_style(language: Language) -> None:
    rng, about = np.random.default_rng(0), emoji()
    subject = {"en": "thing c1", "zh": "东西c1"}[language]
    phrase = STYLES["flat"][language == "zh"]
    words = about.keywords_en if language == "en" else about.keywords_zh
    seen, keyworded = set(), set()
    for _ in range(400):
        said = caption(rng, about, language, keyworded=0.3, styleless=0.1)
        if subject in said:
            seen.add(said)
            continue
        told = [word for word in words if word in said]
        assert len(told) >= 2
        keyworded.add(tuple(sorted(told, key=said.index)))
    named = {phrasing.format(style=phrase, subject=subject) for phrasing in PHRASINGS[language]}
    assert seen == {subject, *named}
    assert len(keyworded) == 6 + 6  # two of three, or three, in any order
    first = [said.index(phrase) < said.index(subject) for said in named]
    assert any(first)
    assert not all(first)


def test_one_keyword_is_enough() -> None:
    one = emoji(keywords_en=["k"])
    said = {caption(np.random.default_rng(n), one, "en", keyworded=0.5, styleless=0.1) for n in range(60)}
    assert "a flat icon: k" in said


@pytest.mark.parametrize("language", get_args(Language))
def test_answers_are_exact(language: Language) -> None:
    asked = questions(np.random.default_rng(0), emoji(), language)
    words = {"en": ["c1x", "c1y", "c1z"], "zh": ["c1甲", "c1乙", "c1丙"]}[language]
    name = {"en": "thing c1", "zh": "东西c1"}[language]
    expected = {name, COMMA[language].join(words), STYLES["flat"][language == "zh"]}
    assert {question.answer for question in asked} == expected
    orders = {tuple(each.text for each in questions(np.random.default_rng(n), emoji(), language)) for n in range(40)}
    assert len(orders) == 6


def test_absent_cells_are_those_without_a_picture(folder: Path) -> None:
    assert source(folder).absent == [MISSING]
    assert source(folder).prompt(MISSING, "en") == "a 3D icon of thing c30"
    assert source(folder).prompt(MISSING, "zh") == "立体图标：东西c30"
    assert absent_cells([emoji("a", "3d"), emoji("a", "flat"), emoji("b", "flat")]) == [Cell("b", "3d")]


def test_held_out_cells_leave_every_concept_in_another_style() -> None:
    cells = [Cell(f"x{n}", style) for n, style in itertools.product(range(800), STYLES)]
    chosen = held_out_cells(cells)
    assert chosen == held_out_cells(reversed(cells)) == sorted(chosen)
    assert 30 < len(chosen) < 70
    assert len({cell.concept for cell in chosen}) == len(chosen)
    assert min(Counter(cell.style for cell in chosen).values()) > 5
    assert held_out_cells(cell for cell in cells if cell.style == "3d") == []
    share = [n for n in range(800) if int(hashlib.sha256(f"x{n}".encode()).hexdigest(), 16) % 16 == 0]
    assert sorted(f"x{n}" for n in share) == [cell.concept for cell in chosen]  # the list is for all time


def test_splits_share_no_picture(folder: Path) -> None:
    training, validation = source(folder), source(folder, split="validation")
    assert set(training.numbers) | set(validation.numbers) == set(range(47))
    assert not set(training.numbers) & set(validation.numbers)
    assert len(validation.held_out) == 3
    assert {validation.emojis[number].cell for number in validation.numbers} == set(validation.held_out)
    drawn = EmojiTasks(text_to_image=1, captioning=0, question_answering=0, language=0)
    seen = {
        split: {pixels(source(folder, split=split, tasks=drawn).document(index)) for index in range(len(which.numbers))}
        for split, which in (("training", training), ("validation", validation))
    }
    assert len(seen["training"]) == len(training.numbers)  # each once per pass
    assert len(seen["validation"]) == len(validation.numbers)
    assert not seen["training"] & seen["validation"]


def test_documents_are_functions_of_seed_and_index(folder: Path) -> None:
    first, again = source(folder), source(folder)
    forwards = [(texts(document), pixels(document)) for document in map(first.document, range(40))]
    backwards = [(texts(document), pixels(document)) for document in map(again.document, reversed(range(40)))]
    assert forwards == backwards[::-1]
    assert forwards != [
        (texts(document), pixels(document)) for document in map(source(folder, seed=1).document, range(40))
    ]


def test_every_task_appears_in_its_form_and_tells_the_truth(folder: Path) -> None:
    emojis = source(
        folder,
        wording=EmojiWording(english=1.0, english_read=1.0),
        tasks=EmojiTasks(text_to_image=1, captioning=1, question_answering=1, language=1),
    )
    shown = {emojis.image(number).pixels.tobytes(): emojis.emojis[number] for number in emojis.numbers}  # type: ignore[union-attr]
    tasks = Counter()
    for document in map(emojis.document, range(100)):
        tasks[document.task] += 1
        said, about = texts(document), shown.get(pixels(document) or b"")
        if document.task == "language":
            assert about is None
            continue
        assert about is not None
        if document.task == "captioning":
            assert said == [f"{about.style_en} of {about.name_en}"]
        elif document.task == "question_answering":
            assert {f" {about.name_en}", f" {about.style_en}", f" {', '.join(about.keywords_en)}"} <= set(said)
        else:
            assert not said[0] or about.name_en in said[0] or sum(word in said[0] for word in about.keywords_en) >= 2
    assert set(tasks) == {"text_to_image", "captioning", "question_answering", "language"}
    assert min(tasks.values()) > 10


def test_a_caption_need_not_be_revised(folder: Path) -> None:
    tasks = EmojiTasks(text_to_image=0, captioning=0, question_answering=0, language=0, prompt_revision=1)
    plain = EmojiWording(english=1.0, keyworded=0.0, unconditional=1.0)
    for document in map(source(folder, tasks=tasks, wording=plain).document, range(10)):
        asked, answered = texts(document)
        assert "Revise the prompt: " in asked
        assert "thing c" in asked
        assert answered.strip() == formats.KEPT
        assert pixels(document) is None


def test_a_name_is_asked_for_alone(folder: Path) -> None:
    tasks = EmojiTasks(text_to_image=0, captioning=0, question_answering=0, language=0, naming=1)
    chinese = EmojiWording(english=1.0, english_read=0.0)
    for document in map(source(folder, tasks=tasks, wording=chinese).document, range(10)):
        assert document.task == "question_answering"
        opening, asked, answered = texts(document)
        assert (opening.endswith("USER: "), asked, answered[:4]) == (True, "这叫什么？. ASSISTANT:", " 东西c")
        assert pixels(document) is not None


def test_languages_sides_and_empty_captions(folder: Path) -> None:
    only = EmojiTasks(text_to_image=1, captioning=0, question_answering=0, language=0)
    chinese = source(folder, tasks=only, wording=EmojiWording(english=0.0, unconditional=0.5), side=16)
    captions = [texts(chinese.document(index))[0] for index in range(60)]
    assert 15 < captions.count("") < 45
    assert not any(said.isascii() for said in captions if said)
    plain = EmojiWording(english=1.0, english_read=0.0, keyworded=0.0, styleless=0.0, unconditional=0.0)
    drawn, read = (
        [texts(source(folder, tasks=tasks, wording=plain).document(index)) for index in range(30)]
        for tasks in (only, EmojiTasks(text_to_image=0, captioning=1, question_answering=1, language=0))
    )
    styles = [style for style, _ in STYLES.values()]
    assert all("thing c" in said and any(style in said for style in styles) for (said,) in drawn)
    assert all("东西c" in "".join(turns) and "thing" not in "".join(turns) for turns in read)
    image = chinese.image(0).pixels
    np.testing.assert_array_equal(image, noise(0, 16, 16))  # nothing is resized that has its size
    assert source(folder, side=8).image(0).pixels.shape == (8, 8, 3)  # type: ignore[union-attr]


def test_what_is_no_emoji_is_an_input_error(folder: Path, tmp_path: Path) -> None:
    for index, (more, said) in enumerate([({"name_en": 3}, "name_en: expected str"), ({"keywords_zh": []}, "empty")]):
        write_shard(tmp_path / f"{index}.tar", [sample("x", noise(0, 8, 8), **record("c", "flat", **more))])
        with pytest.raises(InputError, match=rf"sample 'x' of .*{said}"):
            source(tmp_path / f"{index}.tar")
    write_shard(tmp_path / "one.tar", [sample("x", noise(0, 8, 8), **record("c", "flat"))])
    with pytest.raises(InputError, match=r"no pictures of .* belong to the validation split"):
        source(tmp_path / "one.tar", split="validation")
    for config in ({"seed": -1}, {"side": 0}):
        with pytest.raises(InputError, match="must"):
            source(folder, **config)


def test_config_survives_json() -> None:
    config = EmojiSourceConfig(shards="here", split="validation", tasks=EmojiTasks(language=0.5))
    assert from_dict(EmojiSourceConfig, to_dict(config)) == config


@pytest.mark.skipif(not REAL.is_dir(), reason="the emoji shards are not beside the repository (../shared/data/emoji)")
def test_the_real_shards() -> None:
    emojis = EmojiSource(EmojiSourceConfig(shards=str(REAL)))
    assert len(emojis.emojis) == 6025
    assert len({each.concept for each in emojis.emojis}) == 1545
    assert len(emojis.absent) == 4 * 1545 - 6025
    assert not set(emojis.absent) & set(emojis.held_out)
    assert Counter(cell.style for cell in emojis.held_out).keys() == {"3d", "color", "flat", "noto"}
    for document in map(emojis.document, range(8)):
        assert all(s.pixels.shape == (64, 64, 3) for s in document.segments if isinstance(s, Image))  # type: ignore[union-attr]
