"""Driving graded: who knows the future reaches the ceiling, who repeats the last frame gets what that gets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lossless_model import LosslessCodec, model_that
from toy_driving import toy_driving, toy_film

from rhea.documents.document import Video
from rhea.errors import InputError
from rhea.evaluation.driving import READ, DrivingBenchmark, DrivingTask, Reader
from rhea.evaluation.report import Report
from rhea.evaluation.runner import run_task
from rhea.generation.completion import Completion, Prompt
from rhea.generation.model import Rhea


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_driving(tmp_path_factory.mktemp("driving"))


def graded(model: Rhea, folder: Path, **more: Any) -> Report:
    report = run_task(DrivingTask(model, DrivingBenchmark(shards=str(folder), **({"films": 5} | more))), model)
    assert report is not None
    return report


def given(prompt: Prompt) -> np.ndarray:
    video = prompt.document.segments[-1]
    assert isinstance(video, Video)
    assert video.codes is not None
    return video.codes


def know(codec: LosslessCodec, prompt: Prompt) -> Completion:
    """Look the film up by its last given frames, and tell the three clips that follow, or as many as there are."""
    last = codec.kept[int(given(prompt)[-1, 0, 0])]
    films = (toy_film(number)[0].reshape(-1, 4, 16, 16, 3) for number in range(5))
    film, place = next((f, n) for f in films for n, clip in enumerate(f) if np.array_equal(clip, last))
    after = film[place + 1 : place + 4]
    after = np.concatenate([after, after[-1:].repeat(3 - len(after), axis=0)])
    return Completion(token_ids=[], codes=np.concatenate([given(prompt), codec.encode_film(np.concatenate(after))]))


def repeat(codec: LosslessCodec, prompt: Prompt) -> Completion:
    last = codec.kept[int(given(prompt)[-1, 0, 0])][-1:]
    return Completion(token_ids=[], codes=np.concatenate([given(prompt), codec.encode_film(last.repeat(12, axis=0))]))


def test_who_knows_the_future_reaches_the_ceiling(folder: Path) -> None:
    report = graded(model_that(know), folder)
    assert [figure.count for figure in report.figures] == [5] * 8
    for figure in report.figures[:6]:
        assert figure.value == figure.ceiling, figure
        better = 1 if figure.unit == "dB" else -1
        assert better * figure.value > better * figure.unskilled["copy last"], figure
    for figure in report.figures[4:6]:
        assert figure.value < 0.5 * figure.unskilled["typical"], figure
        assert figure.value == report.figure("driving, the reader on true frames", figure.name).value

    def film(number: int) -> tuple[np.ndarray, np.ndarray]:
        frames, told = toy_film(number)
        return frames, np.stack([told.yaw_rate, told.offset], axis=1)

    reader = Reader([film(number) for number in range(5, 40)])
    by_hand = [np.abs(reader.read(frames[2:20]) - truth[4:20]).mean(axis=0) for frames, truth in map(film, range(5))]
    assert [each.value for each in report.figures[4:6]] == pytest.approx(np.mean(by_hand, axis=0).tolist(), rel=1e-3)


def test_who_repeats_the_last_frame_gets_what_that_gets(folder: Path) -> None:
    report = graded(model_that(repeat), folder)
    by_hand = {1: [], 16: []}
    for number in range(5):
        frames = toy_film(number)[0].astype(float)
        for ahead, found in by_hand.items():
            found.append(10 * np.log10(255**2 / np.square(frames[3] - frames[3 + ahead]).mean()))
    for ahead, found in by_hand.items():
        figure = report.figure("driving", f"PSNR of predicted frame {ahead}")
        assert figure.value == figure.unskilled["copy last"] == pytest.approx(np.mean(found))
    for name in READ:
        figure = report.figure("driving", name)
        assert figure.ceiling is not None
        assert figure.value > 1.5 * figure.ceiling


def test_the_reader_is_fitted_on_other_films(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[np.ndarray] = []
    original = Reader.__init__

    def listen(self: Reader, films: list[tuple[np.ndarray, np.ndarray]]) -> None:
        fitted.extend(frames for frames, _ in films)
        original(self, films)

    monkeypatch.setattr(Reader, "__init__", listen)
    task = DrivingTask(model_that(know), DrivingBenchmark(shards=str(folder), films=99))
    assert len(task) == len(fitted) == 20, "half of the films"
    predicted = {toy_film(number)[0].tobytes() for number in range(len(task))}
    assert not predicted & {frames.tobytes() for frames in fitted}


def test_too_few_or_too_short_films_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two films"):
        graded(model_that(know), toy_driving(tmp_path, films=1))
    model = model_that(know)
    model.defaults = type(model.defaults)(num_frames=16, given_frames=12)
    with pytest.raises(InputError, match="28 are needed"):
        graded(model, folder)
