"""Messages between the server and the engine's process come out as they went in, and nothing but messages does."""

import asyncio
import json

import numpy as np
import pytest

from rhea.serving.backend import Answer, Clip, Done, Draw, Edit, Extend, Partial, Sampling, TextDelta
from rhea.serving.wire import BrokenStreamError, pack, receive

RANDOM = np.random.default_rng(0)
PICTURE = RANDOM.integers(0, 256, (4, 6, 3), dtype=np.uint8)
CLIP = Clip(frames=RANDOM.integers(0, 256, (2, 4, 6, 3), dtype=np.uint8), fps=7.5)


def through(*frames: bytes) -> list:
    async def read() -> list:
        reader = asyncio.StreamReader()
        reader.feed_data(b"".join(frames))
        reader.feed_eof()
        return [await receive(reader) for _ in frames]

    return asyncio.run(read())


def test_every_task_and_event_survives() -> None:
    items = [
        Draw(prompt="a 红 \ud800\x00 circle", num_frames=3, fps=8.0, sampling=Sampling(seed=2**62, temperature=0.5)),
        Edit(images=(PICTURE, PICTURE[::-1]), instruction="blue"),
        Extend(film=CLIP, caption="one"),
        Answer(turns=(("two", "three"), ("four", None)), visual=PICTURE),
        Answer(turns=(("two", None),), visual=CLIP),
        TextDelta(text="five"),
        Partial(pixels=PICTURE, rows_done=1, rows=2),
        Done(pixels=CLIP.frames, fps=7.5, codes=np.arange(6).reshape(1, 2, 3), token_ids=(1, 2)),
    ]
    told = through(*(pack({"number": number, "item": item}) for number, item in enumerate(items)))
    for number, (item, message) in enumerate(zip(items, told, strict=True)):
        assert message["number"] == number
        assert type(message["item"]) is type(item)
        assert repr(message["item"]) == repr(item)
    assert (told[1]["item"].images[1] == PICTURE[::-1]).all()
    assert (told[7]["item"].pixels == CLIP.frames).all()
    assert told[7]["item"].pixels.flags.writeable


def frame(header: object) -> bytes:
    content = json.dumps(header).encode()
    return len(content).to_bytes(4, "big") + content


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xff\xff\xff",
        frame({"is": "Popen", "args": "true"}),
        frame({"a": {"array": "object", "shape": [1]}}) + bytes(8),
        frame({"a": {"array": "uint8", "shape": [2**40]}}),
        frame({"a": {"array": "uint8", "shape": [-1]}}),
        frame([1]),
        b"\x00\x00\x00\x01{",
    ],
)
def test_nonsense_is_no_message(content: bytes) -> None:
    with pytest.raises(BrokenStreamError):
        through(content)


def test_the_end_of_the_stream_is_told() -> None:
    with pytest.raises(asyncio.IncompleteReadError):
        through(pack({"item": PICTURE})[:-1])
