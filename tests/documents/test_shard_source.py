"""A folder of shards as a source: pure in (seed, index), every sample once per pass, every task in its form."""

from pathlib import Path

import numpy as np
import pytest
from tiny_shards import noise, pictures, sample

from rhea.config import from_dict, to_dict
from rhea.documents.document import Document, Image, Text, Video
from rhea.documents.shard_source import ShardSource, ShardSourceConfig, ShardTasks
from rhea.documents.shards import write_shard
from rhea.errors import InputError


def source(
    folder: Path, generation: float = 1.0, captioning: float = 0.0, prediction: float = 0.0, **more
) -> ShardSource:  # type: ignore[no-untyped-def]
    tasks = ShardTasks(generation=generation, captioning=captioning, prediction=prediction)
    return ShardSource(ShardSourceConfig(shards=str(folder), tasks=tasks, **more))


def shown(document: Document) -> tuple[str, np.ndarray]:
    """Return the text and the pixels of a document of one each."""
    (text,) = (segment.text for segment in document.segments if isinstance(segment, Text))
    (visual,) = (segment for segment in document.segments if not isinstance(segment, Text))
    pixels = visual.pixels if isinstance(visual, Image) else visual.frames
    assert pixels is not None
    return text, pixels


def films(folder: Path, length: int = 8) -> Path:
    samples = [sample(f"f{n}", noise(n, length, 16, 16), caption=["one", "two"]) for n in range(3)]
    write_shard(folder / "f.tar", samples)
    return folder


def test_documents_are_functions_of_seed_and_index(tmp_path: Path) -> None:
    folder = pictures(tmp_path)
    once, again, other = (source(folder, 1, 1, unconditional=0.5, seed=seed) for seed in (0, 0, 1))

    def made(which: ShardSource, index: int) -> tuple[str, str, bytes]:
        document = which.document(index)
        text, pixels = shown(document)
        return document.task, text, pixels.tobytes()

    forwards = [made(once, index) for index in range(20)]
    assert [made(again, index) for index in reversed(range(20))] == forwards[::-1]
    assert [made(other, index) for index in range(20)] != forwards
    assert {task for task, _, _ in forwards} == {"text_to_image", "captioning"}
    assert {text for task, text, _ in forwards if task == "captioning"} <= {f"picture {n}" for n in range(5)}
    assert "" in {text for task, text, _ in forwards if task == "text_to_image"}


def test_a_pass_shows_every_picture_with_its_caption(tmp_path: Path) -> None:
    once = source(pictures(tmp_path), unconditional=0.0)
    documents = [shown(once.document(index)) for index in range(5)]
    assert sorted(text for text, _ in documents) == [f"picture {n}" for n in range(5)]
    for text, pixels in documents:
        np.testing.assert_array_equal(pixels, noise(int(text[-1]), 16, 24))


def test_films_are_shown_in_windows(tmp_path: Path) -> None:
    config = {"num_frames": 4, "unconditional": 0.0, "given_latents": 2, "captioned_prediction": 1.0}
    films_of = source(films(tmp_path), 0.5, 0.2, 0.5, **config)
    documents = [films_of.document(index) for index in range(40)]
    assert {document.task for document in documents} == {"text_to_video", "captioning", "video_prediction"}
    starts = set()
    for document in documents:
        text, frames = shown(document)
        (video,) = (segment for segment in document.segments if isinstance(segment, Video))
        assert text in ("one", "two")
        assert (video.fps, video.num_frames) == (10.0, 4)
        assert video.prompt_latents == (2 if document.task == "video_prediction" else 0)
        found = [
            (n, first) for n in range(3) for first in range(5) if (noise(n, 8, 16, 16)[first:][:4] == frames).all()
        ]
        assert len(found) == 1
        starts.add(found[0][1])
    assert starts == set(range(5))
    assert shown(source(tmp_path).document(0))[1].shape == (8, 16, 16, 3)


def test_a_captioner_sees_the_record_and_the_frames(tmp_path: Path) -> None:
    config = ShardSourceConfig(shards=str(films(tmp_path)), num_frames=4, unconditional=0.0, tasks=ShardTasks())
    told = ShardSource(config, lambda rng, record, frames: f"{record['caption'][0]} {frames.start} {len(frames)}")
    text, frames = shown(told.document(0))
    start = int(text.split()[1])
    assert text == f"one {start} 4"
    assert any((noise(n, 8, 16, 16)[start:][:4] == frames).all() for n in range(3))


def test_what_does_not_fit_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'f[012]' of .* has 8 frames; 9 are wanted"):
        source(films(tmp_path / "films"), num_frames=9).document(0)
    with pytest.raises(InputError, match="is a picture; prediction needs films"):
        source(pictures(tmp_path / "pictures"), 0, 0, 1).document(0)
    with pytest.raises(InputError, match=r"sample 'k\d' of .*: its \.json has no text, .* under 'title'"):
        source(tmp_path / "pictures", caption="title").document(0)
    for record in ({"caption": 3}, {"caption": []}, {"caption": ["a", 3]}):
        write_shard(tmp_path / "bad.tar", [sample("x", noise(0, 8, 8), **record)])
        with pytest.raises(InputError, match="no text"):
            source(tmp_path / "bad.tar").document(0)
    with pytest.raises(InputError, match="seed"):
        source(tmp_path / "pictures", seed=-1)
    for weights in ((0, 0, 0), (1, -1, 0), (float("nan"), 0, 0)):
        with pytest.raises(InputError, match="task weights"):
            source(tmp_path / "pictures", *weights)


def test_config_survives_json() -> None:
    config = ShardSourceConfig(shards="here", tasks=ShardTasks(prediction=2.0), num_frames=8)
    assert from_dict(ShardSourceConfig, to_dict(config)) == config
