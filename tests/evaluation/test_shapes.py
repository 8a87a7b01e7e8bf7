"""The benchmark graded: an oracle reaches every ceiling, one that copies or guesses gets what no skill gets."""

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from lossless_model import LosslessCodec, model_that
from tiny_model import tiny_checkpoint

from rhea.documents.document import ImageSize, Text, Video
from rhea.errors import InputError
from rhea.evaluation.report import checkpoint_hash, table
from rhea.evaluation.shapes import answers, edits, films, pictures
from rhea.evaluation.shapes.bench import ShapesBenchmark
from rhea.evaluation.shapes.task import ShapesTask, evaluate_shapes
from rhea.generation.completion import Completion, Prompt
from rhea.generation.model import Rhea
from rhea.logging import console
from rhea.worlds.shapes.films import render_film
from rhea.worlds.shapes.render import render


def copy(codec: LosslessCodec, prompt: Prompt) -> Completion:
    """Answer "two" or "two objects", stop films, leave pictures that are to be edited unchanged, draw nothing else."""
    if prompt.next is None:
        return Completion(token_ids=[], text="Two.")
    for segment in prompt.document.segments:
        if isinstance(segment, Video):
            assert segment.codes is not None
            last = codec.kept[int(segment.codes[-1, 0, 0])][-1:]
            still = codec.encode_film(np.repeat(last, 12, axis=0))
            return Completion(token_ids=[], codes=np.concatenate([segment.codes, still]))
        if not isinstance(segment, Text):
            return Completion(token_ids=[], codes=segment.codes)
    empty = np.full((16, 64, 64, 3), 245, np.uint8)
    still = isinstance(prompt.next, ImageSize)
    return Completion(token_ids=[], codes=codec.encode_pictures(empty[:1])[0] if still else codec.encode_film(empty))


def test_copying_gets_what_no_skill_gets() -> None:
    report = evaluate_shapes(model_that(copy), ShapesBenchmark(scenes=40))
    for figure in report.figures:
        assert figure.ceiling == pytest.approx(1.0 if figure.unit == "%" else 0.05, abs=0.05), figure
        if figure.group in ("text to image", "edits"):
            assert figure.value == 0
        assert figure.unskilled, figure
    counted = report.figure("answers", "count all")
    assert counted.unskilled == {"chance": 0.25}
    assert counted.value == pytest.approx(0.25, abs=0.2)
    assert report.figure("answers", "relation").value == 0
    film = report.figure("films", "centre error")
    assert film.value == pytest.approx(film.unskilled["copy last"], abs=0.1)
    assert film.unskilled["constant velocity"] < film.unskilled["copy last"]
    kept = report.figure("films", "objects kept")
    assert kept.value == kept.unskilled["copy last"] == 1
    assert report.figure("text to film", "1 object").value == 0
    assert 0 < report.figure("text to image", "1 object").unskilled["chance"] < 0.1


@pytest.mark.parametrize("whole", [slice(0, 3), slice(3, 4), slice(4, 16)], ids=str)
def test_copying_objects_takes_the_last_given_frame_after_its_round_trip(
    monkeypatch: pytest.MonkeyPatch, whole: slice
) -> None:
    decode_film = LosslessCodec.decode_film

    def losing(codec: LosslessCodec, codes: np.ndarray, num_frames: int | None = None) -> np.ndarray:
        frames = decode_film(codec, codes, num_frames)
        left = np.full_like(frames, 245)
        left[whole] = frames[whole]
        return left

    monkeypatch.setattr(LosslessCodec, "decode_film", losing)
    report = evaluate_shapes(model_that(copy), ShapesBenchmark(scenes=2, tasks=("films",)))
    kept = report.figure("films", "objects kept")
    assert kept.value == kept.ceiling == (whole.start == 4)
    assert kept.unskilled == {"copy last": whole.start == 3}


def test_an_oracle_reaches_every_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    truths: list[Any] = []

    def remembering(section: ModuleType, name: str, truth: Callable[[Any], Any]) -> None:
        original = getattr(section, name)

        def wrapped(*arguments: Any, **settings: Any) -> Any:
            result = original(*arguments, **settings)
            truths.append(truth(result))
            return result

        monkeypatch.setattr(section, name, wrapped)

    remembering(pictures, "sample_scene", render)
    remembering(answers, "balanced_question", lambda pair: pair[1].answer)
    remembering(films, "sample_film", render_film)
    remembering(edits, "sample_edit", lambda edit: render(edit.target))

    def know(codec: LosslessCodec, prompt: Prompt) -> Completion:
        truth = truths.pop(0)
        if isinstance(truth, str):
            return Completion(token_ids=[], text=truth)
        codes = codec.encode_film(truth) if truth.ndim == 4 else codec.encode_pictures([truth])[0]
        return Completion(token_ids=[], codes=codes)

    tasks = ("text to image", "answers", "films", "edits")  # films from text have an oracle of their own below
    report = evaluate_shapes(model_that(know), ShapesBenchmark(scenes=6, tasks=tasks))
    for figure in report.figures:
        assert figure.value == figure.ceiling, figure
        assert figure.value == 1 if figure.unit == "%" else figure.value < 0.1, figure


@pytest.mark.parametrize(("order", "right"), [([0, 1, 2, 3], True), ([3, 2, 1, 0], False), ([0, 0, 0, 0], False)])
def test_films_of_the_right_objects_must_set_off_as_the_text_says(order: list[int], right: bool) -> None:
    truths: list[np.ndarray] = []

    def reordered(codec: LosslessCodec, prompt: Prompt) -> Completion:
        return Completion(token_ids=[], codes=codec.encode_film(truths.pop(0)[order * 4]))

    task = ShapesTask(model_that(reordered), ShapesBenchmark(scenes=12, tasks=("text to film",)))
    truths += [render_film(case.about[1]) for case in task._cases]
    records = task.grade(range(len(task)))
    assert np.mean([record["objects"] and record["ceiling"] for record in records]) > 0.9
    assert np.mean([record["right"] == right for record in records]) > 0.9


def test_scenes_are_fresh_for_each_seed_and_the_same_for_one() -> None:
    asked: list[list[str]] = []
    for seed in (0, 0, 1):
        asked.append([])

        def listen(codec: LosslessCodec, prompt: Prompt, texts: list[str] = asked[-1]) -> Completion:
            texts.extend(each.text for each in prompt.document.segments if isinstance(each, Text))
            texts.append(str(prompt.seed))
            return copy(codec, prompt)

        evaluate_shapes(model_that(listen), ShapesBenchmark(scenes=3, seed=seed, tasks=("text to image", "edits")))
    assert asked[0] == asked[1] != asked[2]


def test_the_best_of_several_is_graded_beside_the_first() -> None:
    candidates: list[int] = []

    def listen(codec: LosslessCodec, prompt: Prompt) -> Completion:
        candidates.append(prompt.best_of)
        return copy(codec, prompt)

    config = ShapesBenchmark(scenes=3, tasks=("text to image", "edits"), best_of=5)
    task = ShapesTask(model_that(listen), config)
    figures = task.figures(task.grade(range(len(task))))
    groups = [figure.group for figure in figures if figure.name == "3 objects"]
    assert groups == ["text to image", "text to image, best of 5"]
    assert [candidates.count(number) for number in (1, 5)] == [len(task) - 15, 15]
    command, _ = task.show(len(task) - 1, {"codes": [[0]], "right": True, "ceiling": True, "fits others": 0})
    assert command.endswith(" --best-of 5")


def test_a_real_model_gives_a_report_that_can_be_shown_and_written() -> None:
    model = Rhea(tiny_checkpoint(height=64, width=64, max_seq_len=512))
    told: list[Any] = []
    report = evaluate_shapes(model, ShapesBenchmark(scenes=2, tasks=("text to image", "edits")), progress=told.append)
    assert told
    assert report.checkpoint_hash == checkpoint_hash(model.checkpoint)
    written = json.loads(json.dumps(report.to_json()))
    assert written["settings"]["scenes"] == 2
    assert {"group", "name", "value", "ceiling", "unskilled", "count", "unit"} == set(written["figures"][0])
    with console().capture() as shown:
        console().print(table(report))
    assert "3 objects" in shown.get()


def test_the_hash_is_of_the_values() -> None:
    first, second = tiny_checkpoint(), tiny_checkpoint()
    assert checkpoint_hash(first) == checkpoint_hash(second)
    assert second.transformer is not None
    assert second.transformer.norm is not None
    second.transformer.norm.weight.data[0] += 1e-3
    assert checkpoint_hash(first) != checkpoint_hash(second)
    assert checkpoint_hash(first) != checkpoint_hash(tiny_checkpoint(guidance_scale=9.0))


@pytest.mark.parametrize(("wrong", "said"), [({"scenes": 1}, "scenes"), ({"tasks": ("songs",)}, "songs")])
def test_wrong_settings_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        evaluate_shapes(model_that(copy), ShapesBenchmark(**wrong))
