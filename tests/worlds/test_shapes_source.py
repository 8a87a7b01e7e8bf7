"""The training documents: pure functions of seed and index, all tasks, nothing held out."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from rhea.config import from_dict, to_dict
from rhea.documents.document import Document, Image, Text, Video
from rhea.errors import InputError
from rhea.worlds.shapes.grader import read_picture
from rhea.worlds.shapes.language import read_caption
from rhea.worlds.shapes.scene import HELD_OUT_KINDS
from rhea.worlds.shapes.source import ShapesSource, ShapesSourceConfig, ShapesTasks


def content(document: Document) -> list[object]:
    found: list[object] = [document.task]
    for segment in document.segments:
        if isinstance(segment, Text):
            found.append((segment.text, segment.target, segment.ends_turn))
        else:
            pixels = segment.pixels if isinstance(segment, Image) else segment.frames
            assert pixels is not None
            found.append((pixels.tobytes(), segment.target))
    return found


def texts(document: Document) -> list[str]:
    return [segment.text for segment in document.segments if isinstance(segment, Text)]


def only(**weights: float) -> ShapesTasks:
    return ShapesTasks(**(dict.fromkeys(to_dict(ShapesTasks()), 0.0) | weights))


def test_a_document_is_a_function_of_seed_and_index() -> None:
    first, again = ShapesSource(), ShapesSource()
    forwards = [content(first.document(i)) for i in range(30)]
    backwards = [content(again.document(i)) for i in reversed(range(30))]
    assert forwards == backwards[::-1]
    assert content(ShapesSource(ShapesSourceConfig(seed=1)).document(0)) != forwards[0]
    assert len({str(document) for document in forwards}) == 30


def test_every_task_appears_in_its_form() -> None:
    source = ShapesSource()
    documents = [source.document(i) for i in range(400)]
    tasks = Counter(document.task for document in documents)
    assert set(tasks) == {
        *("text_to_image", "captioning", "question_answering"),
        *("editing", "text_to_video", "video_prediction"),
    }
    for document in documents:
        visuals = [segment for segment in document.segments if not isinstance(segment, Text)]
        texts = [segment for segment in document.segments if isinstance(segment, Text)]
        if document.task == "question_answering":
            answers = [text for text in texts if text.target]
            assert source.config.min_turns <= len(answers) <= source.config.max_turns
            assert [text.ends_turn for text in answers] == [True] * (len(answers) - 1) + [False]
        if document.task == "captioning":
            assert isinstance(visuals[0], Image)
            assert visuals[0].pixels is not None
            shown = Counter(thing.kind for thing in read_picture(visuals[0].pixels))
            assert read_caption(texts[0].text) == shown
        for visual in visuals:
            if isinstance(visual, Video):
                assert visual.frames is not None
                assert visual.frames.shape == (16, 64, 64, 3)
                assert visual.prompt_latents == (1 if document.task == "video_prediction" else 0)


def test_nothing_held_out_in_words_or_pictures() -> None:
    source = ShapesSource()
    for index in range(250):
        for segment in source.document(index).segments:
            if isinstance(segment, Text):
                assert not set(read_caption(segment.text)) & set(HELD_OUT_KINDS)
            else:
                pixels = segment.pixels if isinstance(segment, Image) else (segment.frames[0])  # type: ignore[index]
                assert pixels is not None
                assert not {thing.kind for thing in read_picture(pixels)} & set(HELD_OUT_KINDS)


def test_weights_and_languages() -> None:
    source = ShapesSource(ShapesSourceConfig(tasks=only(editing=1.0), english=0.0))
    instructions = []
    for index in range(60):
        document = source.document(index)
        assert document.task == "editing"
        instructions += [segment.text for segment in document.segments if isinstance(segment, Text)]
    assert 0 < instructions.count("") < 20  # left empty now and then, for guidance
    assert not any(instruction.isascii() for instruction in instructions if instruction)
    films = ShapesSource(ShapesSourceConfig(tasks=only(text_to_video=1.0), num_frames=8, fps=4.0)).document(0)
    (video,) = (segment for segment in films.segments if isinstance(segment, Video))
    assert (video.num_frames, video.fps) == (8, 4.0)


def test_questions_are_of_the_types_asked_for() -> None:
    for task in ("question_answering", "film_question_answering"):
        config = ShapesSourceConfig(tasks=only(**{task: 1.0}), english=1.0, questions=("existence", "relation"))
        texts = [segment.text for segment in ShapesSource(config).document(0).segments if isinstance(segment, Text)]
        answers = {text.strip() for text in texts if "ASSISTANT" not in text and "USER" not in text}
        assert answers <= {"yes", "no"}
        assert answers


def test_edits_and_numbers_of_objects_are_those_asked_for() -> None:
    source = ShapesSource(
        ShapesSourceConfig(tasks=only(editing=1.0), english=1.0, unconditional=0.0, edits=("remove",))
    )
    for index in range(20):
        (instruction,) = [each.text for each in source.document(index).segments if isinstance(each, Text)]
        assert re.match("remove|delete|take", instruction.lower()), instruction
    source = ShapesSource(ShapesSourceConfig(tasks=only(editing=1.0), edits=("remove", "add"), edited_objects=(1, 4)))
    for index in range(20):
        before, after = [each.pixels for each in source.document(index).segments if isinstance(each, Image)]
        assert before is not None
        assert after is not None
        assert (len(read_picture(before)), len(read_picture(after))) in ((1, 2), (4, 3))  # the others are impossible
    source = ShapesSource(ShapesSourceConfig(tasks=only(captioning=1.0), min_objects=3, max_objects=3))
    for index in range(20):
        (picture,) = [each for each in source.document(index).segments if isinstance(each, Image)]
        assert picture.pixels is not None
        assert len(read_picture(picture.pixels)) == 3


def test_hard_words_can_be_asked_for_more_often() -> None:
    config = ShapesSourceConfig(
        tasks=only(editing=1.0), english=1.0, unconditional=0.0, edits=("remove",), edited_objects=(3,)
    )
    by_shape = re.compile(r"the (circle|square|triangle|star|cross|ring)\b")
    named = [
        sum(bool(by_shape.search(texts(source.document(index))[0])) for index in range(60))
        for source in (ShapesSource(config), ShapesSource(replace(config, colourless_edits=1.0)))
    ]
    assert named[1] > 1.5 * named[0] > 0
    config = ShapesSourceConfig(
        tasks=only(text_to_image=1.0), english=1.0, unconditional=0.0, min_objects=3, captions=("ordered", "related")
    )
    told = [texts(ShapesSource(config).document(index))[0] for index in range(60)]
    assert sum("from left to right" in text.lower() or ", with " in text for text in told) > 50


def test_related_objects_are_told_by_their_places_when_a_prompt_is_revised() -> None:
    source = ShapesSource(ShapesSourceConfig(tasks=only(prompt_revision=1.0), english=1.0))
    halves = {"above": ("top", "bottom"), "below": ("bottom", "top")}
    halves |= {"to the left of": ("left", "right"), "to the right of": ("right", "left")}
    relation = re.compile(rf"the ([a-z ]+) ({'|'.join(halves)}) the ([a-z ]+)")
    revised = 0
    for index in range(150):
        prompt, answer = texts(source.document(index))
        prompt = prompt.removesuffix(". ASSISTANT:").rpartition("Revise the prompt: ")[2].lower()
        if answer == " OK":
            assert not any(f" {words} a" in prompt or f" {words} the" in prompt for words in halves), prompt
            continue
        revised += 1
        assert read_caption(answer) == read_caption(prompt.partition(", with ")[0]), (prompt, answer)
        if told := relation.search(prompt):
            for name, half in zip((told[1], told[3]), halves[told[2]], strict=True):
                assert re.search(rf"{name} (at|on) the [a-z ]*{half}", answer), (prompt, answer)
    assert 0.6 < revised / 150 < 0.8
    single = ShapesSource(ShapesSourceConfig(tasks=only(prompt_revision=1.0), max_objects=1))
    assert {texts(single.document(index))[1] for index in range(20)} == {" OK"}


def test_config_survives_json() -> None:
    config = ShapesSourceConfig(seed=5, tasks=only(captioning=2.0))
    assert from_dict(ShapesSourceConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    "config",
    [
        ShapesSourceConfig(tasks=only()),
        ShapesSourceConfig(tasks=only(editing=-1.0)),
        ShapesSourceConfig(seed=-1),
        ShapesSourceConfig(min_turns=5, max_turns=4),
        ShapesSourceConfig(min_objects=3, max_objects=2),
        ShapesSourceConfig(edits=("remove", "paint")),
        ShapesSourceConfig(edits=()),
        ShapesSourceConfig(colourless_edits=1.5),
        ShapesSourceConfig(captions=("placed", "rhymed")),  # type: ignore[arg-type]
        ShapesSourceConfig(edits=("remove", "add"), edited_objects=(1,)),
    ],
)
def test_senseless_configs_are_input_errors(config: ShapesSourceConfig) -> None:
    with pytest.raises(InputError):
        ShapesSource(config)


def test_index_is_part_of_the_seed() -> None:
    pixels = [
        segment.pixels
        for index in range(2)
        for segment in ShapesSource(ShapesSourceConfig(tasks=only(text_to_image=1.0))).document(index).segments
        if isinstance(segment, Image)
    ]
    assert not np.array_equal(pixels[0], pixels[1])  # type: ignore[arg-type]
