"""Segments check what they hold, and encoding turns the pixels of several documents into codes in one call."""

from collections.abc import Sequence

import numpy as np
import pytest

from rhea.documents.document import Document, Image, Text, Video, encode_documents
from rhea.errors import InputError


class MeanCodec:
    """Codes are the mean brightness of 8 x 8 blocks; remembers how many pictures came per call."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def encode_pictures(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        self.calls.append(len(pictures))
        return [
            picture.reshape(picture.shape[0] // 8, 8, picture.shape[1] // 8, 8, 3).mean((1, 3, 4)).astype(np.int64)
            for picture in pictures
        ]

    def encode_film(self, frames: np.ndarray) -> np.ndarray:
        return np.stack(self.encode_pictures(list(frames[::4])))


def grey(value: int, *shape: int) -> np.ndarray:
    return np.full((*shape, 3), value, dtype=np.uint8)


def test_pixels_become_codes_and_pictures_of_all_documents_go_in_one_call() -> None:
    codec = MeanCodec()
    ready = Image(codes=np.zeros((2, 2), dtype=np.int64))
    documents = [
        Document((Image(grey(7, 16, 8)), Text("a"), ready)),
        Document((Text("b"),)),
        Document((Image(grey(9, 8, 8)),), task="language", eos=False),
    ]
    first, second, third = encode_documents(documents, codec)
    assert codec.calls == [2]
    assert first.segments[0].codes.tolist() == [[7], [7]]  # type: ignore[union-attr]
    assert first.segments[0].pixels is None  # type: ignore[union-attr]
    assert first.segments[2].codes is ready.codes  # type: ignore[union-attr]
    assert second.segments[0].text == "b"  # type: ignore[union-attr]
    assert third.segments[0].codes.tolist() == [[9]]  # type: ignore[union-attr]
    assert (third.task, third.eos) == ("language", False)


def test_films_keep_their_length_in_frames() -> None:
    film = Video(np.stack([grey(value, 8, 8) for value in range(6)]), fps=8, target=False, prompt_latents=1)
    encoded = Document((film,)).encoded(MeanCodec()).segments[0]
    assert isinstance(encoded, Video)
    assert encoded.codes is not None
    assert encoded.codes.ravel().tolist() == [0, 4]
    assert (encoded.num_frames, encoded.fps, encoded.target, encoded.prompt_latents) == (6, 8, False, 1)
    assert encoded.frames is None


def test_documents_without_pixels_need_no_codec_call() -> None:
    codec = MeanCodec()
    encode_documents([Document((Text("a"),))], codec)
    assert codec.calls == []


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pixels": np.zeros((8, 8, 3), dtype=np.float32)},
        {"pixels": np.zeros((8, 8), dtype=np.uint8)},
        {"pixels": np.zeros((8, 0, 3), dtype=np.uint8)},
        {"codes": np.zeros((1, 2, 2), dtype=np.int64)},
        {"codes": np.zeros((2, 2), dtype=np.float32)},
        {"codes": np.zeros((0, 2), dtype=np.int64)},
    ],
)
def test_bad_images_are_refused(fields: dict[str, np.ndarray]) -> None:
    with pytest.raises(InputError):
        Image(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"codes": None},
        {"codes": np.zeros((2, 2), dtype=np.int64)},
        {"frames": np.zeros((0, 8, 8, 3), dtype=np.uint8), "codes": None},
        {"fps": 0.0},
        {"fps": 961.0},
        {"fps": float("nan")},
        {"fps": float("inf")},
        {"num_frames": 0},
        {"prompt_latents": -1},
    ],
)
def test_bad_videos_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Video(**({"codes": np.zeros((1, 2, 2), dtype=np.int64)} | fields))  # type: ignore[arg-type]
