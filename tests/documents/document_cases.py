"""A small grammar, random documents, and a form of documents that can be compared, for the tests of this folder."""

import functools
from typing import Any

import numpy as np
from hypothesis import strategies as st

from rhea.documents.document import Document, Image, Segment, Text, Video
from rhea.documents.grammar import Grammar
from rhea.tokenizers.text import ByteLevelTokenizer, train_text_tokenizer
from rhea.tokenizers.vocabulary import Vocabulary, compact_vocabulary

VISION_SIZE = 50


@functools.cache
def small_tokenizer() -> ByteLevelTokenizer:
    return train_text_tokenizer(["a small red circle is left of the big blue square, 24 fps, 5 s 8*8"] * 3, 300)


@functools.cache
def small_grammar() -> Grammar:
    tokenizer = small_tokenizer()
    return Grammar(Vocabulary(compact_vocabulary(tokenizer.vocab_size, VISION_SIZE)), tokenizer)


def image(height: int, width: int, seed: int = 0) -> Image:
    return Image(codes=np.random.default_rng(seed).integers(0, VISION_SIZE, (height, width)))


def video(latents: int, height: int, width: int, fps: float = 8.0, num_frames: int | None = None, **more: Any) -> Video:
    codes = np.random.default_rng(latents).integers(0, VISION_SIZE, (latents, height, width))
    return Video(codes=codes, fps=fps, num_frames=num_frames, **more)


@st.composite
def texts(draw: st.DrawFn) -> Text:
    text = draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
    return Text(text, target=draw(st.booleans()), ends_turn=draw(st.booleans()))


@st.composite
def images(draw: st.DrawFn) -> Image:
    height, width = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    picture = image(height, width, draw(st.integers(0, 99)))
    return Image(codes=picture.codes, target=draw(st.booleans()))


@st.composite
def videos(draw: st.DrawFn) -> Video:
    latents, height, width = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return video(
        latents,
        height,
        width,
        fps=draw(st.integers(1, 120_000)) / 1000,
        num_frames=draw(st.integers(4 * latents - 3, 4 * latents)),
        target=draw(st.booleans()),
        prompt_latents=draw(st.integers(0, latents)),
    )


@st.composite
def documents(draw: st.DrawFn) -> Document:
    segments = draw(st.lists(st.one_of(texts(), images(), videos()), max_size=5))
    return Document(tuple(segments), bos=draw(st.booleans()), eos=draw(st.booleans()))


def comparable(document: Document) -> tuple[Any, ...]:
    """Return what ids can carry: neighbouring texts joined, empty ones gone, no targets."""
    parts: list[Any] = []
    for segment in document.segments:
        if isinstance(segment, Text) and parts and parts[-1][0] == "text" and not parts[-1][2]:
            parts[-1] = ("text", parts[-1][1] + segment.text, segment.ends_turn)
        elif not (isinstance(segment, Text) and not segment.text and not segment.ends_turn):
            parts.append(_comparable(segment))
    parts = [part for part in parts if part != ("text", "", False)]
    if parts and parts[-1][0] == "text" and parts[-1][2] and not document.eos:
        # the ids cannot tell the end of a last turn from the end of the document
        last = ("text", parts[-1][1], False)
        return (document.bos, True, *parts[:-1], *([last] if last[1] else []))
    return (document.bos, document.eos, *parts)


def _comparable(segment: Segment) -> tuple[Any, ...]:
    if isinstance(segment, Text):
        return ("text", segment.text, segment.ends_turn)
    assert segment.codes is not None
    if isinstance(segment, Image):
        return ("image", segment.codes.tolist())
    latents = len(segment.codes)
    num_frames = 4 * latents if segment.num_frames is None else segment.num_frames
    return ("video", segment.codes.tolist(), round(segment.fps, 3), num_frames)
