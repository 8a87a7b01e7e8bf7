"""Task formats: Emu3's templates byte for byte, with Qwen's ids where its ranks file is at hand."""

import os
from pathlib import Path

import numpy as np
import pytest
from document_cases import image, small_grammar, video

from rhea.documents import formats
from rhea.documents.document import Document, Image, ImageSize, Text, VideoSize
from rhea.documents.grammar import Grammar
from rhea.tokenizers.text import load_text_tokenizer
from rhea.tokenizers.vocabulary import EMU3_VOCABULARY, Vocabulary

BOS, EOS, EOL, EOF = 151849, 151850, 151846, 151847
IMG, BOI, EOI, VISUAL = 151851, 151852, 151853, 151854
SYSTEM = [2610, 525, 264, 10950, 17847, 13, 13872, 25, 220]  # "You are a helpful assistant. USER: "


@pytest.fixture(scope="module")
def emu3() -> Grammar:
    default = Path(__file__).parents[2] / ".." / "shared" / "data" / "qwen.tiktoken"
    path = Path(os.environ.get("RHEA_QWEN_TIKTOKEN", default))
    if not path.is_file():
        pytest.skip("Qwen's ranks file is not here: set RHEA_QWEN_TIKTOKEN to a qwen.tiktoken or emu3.tiktoken")
    return Grammar(Vocabulary(EMU3_VOCABULARY), load_text_tokenizer(path))


def spelled(document: Document, grammar: Grammar | None = None, prompt: bool = False) -> str:
    """Return a document as a string: text as it is, other ids by name, codes as #."""
    grammar = grammar or small_grammar()
    vocabulary = grammar.vocabulary
    ids = grammar.render_prompt(document) if prompt else grammar.render(document).token_ids
    names = {vocabulary.bos: "[B]", vocabulary.eos: "[E]", vocabulary.eol: "/", vocabulary.eof: "%"}
    names |= {vocabulary.image_start: "<", vocabulary.image_token: ":", vocabulary.image_end: ">"}
    pieces, text = [], []
    for token_id in [*ids.tolist(), -1]:
        if token_id in vocabulary.text:
            text.append(token_id)
            continue
        pieces.append(grammar.text_tokenizer.decode(text))
        text = []
        pieces.append("#" if token_id in vocabulary.vision else names.get(token_id, ""))
    return "".join(pieces)


def test_emu3_image_generation_prompt(emu3: Grammar) -> None:
    prompt = emu3.render_prompt(
        formats.text_to_image(" masterpiece, film grained, best quality."), ImageSize(height=68, width=120)
    )
    text = [58731, 11, 4531, 1081, 2627, 11, 1850, 4271, 13]
    assert prompt.tolist() == [BOS, *text, BOI, 21, 23, 9, 16, 17, 15, IMG]


def test_emu3_chat_prompt(emu3: Grammar) -> None:
    picture = Image(codes=np.array([[0, 1, 2], [3, 4, 32767]]))
    prompt = emu3.render_prompt(formats.question_answering(picture, "What is it")).tolist()
    picture_ids = [BOI, 17, 9, 18, IMG, VISUAL, VISUAL + 1, VISUAL + 2, EOL, VISUAL + 3, VISUAL + 4, 184621, EOL]
    closing = emu3.text_tokenizer.encode("What is it. ASSISTANT:")
    assert prompt == [BOS, *SYSTEM, *picture_ids, EOF, EOI, *closing]


def test_emu3_image_has_the_released_number_of_tokens(emu3: Grammar) -> None:
    ids = emu3.render(Document((image(90, 90),), bos=False, eos=False)).token_ids
    assert len(ids) == 90 * 91 + 4 + len("90*90")
    assert ids[:7].tolist() == [BOI, 24, 15, 9, 24, 15, IMG]


def test_emu3_size_texts_are_the_ids_of_the_whole_text(emu3: Grammar) -> None:
    for text, size in [
        ("90*90, 23.976 fps, 5.506 s", VideoSize(height=90, width=90, num_frames=132, fps=23.976)),
        ("8*8, 24 fps, 5 s", VideoSize(height=8, width=8, num_frames=120, fps=24)),
    ]:
        prompt = emu3.render_prompt(Document((), bos=False), size).tolist()
        assert prompt == [BOI, *emu3.text_tokenizer.encode(text), IMG]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (formats.text_to_image("a cat", image(2, 3)), "[B]a cat<2*3:###/###/%>[E]"),
        (formats.text_to_image("a cat"), "[B]a cat[E]"),
        (formats.text_to_image("", image(1, 1)), "[B]<1*1:#/%>[E]"),
        (formats.text_to_video("go", video(2, 1, 2)), "[B]go<1*2, 8 fps, 1 s:##/%##/%>[E]"),
        (formats.captioning(image(1, 2), "a cat"), "[B]<1*2:##/%>a cat[E]"),
        (
            formats.question_answering(image(1, 1), "Is it red?", "yes"),
            "[B]You are a helpful assistant. USER: <1*1:#/%>Is it red?. ASSISTANT: yes[E]",
        ),
        (
            formats.question_answering(video(1, 1, 1), [("q1", "a1"), ("q2", "a2")]),
            "[B]You are a helpful assistant. USER: <1*1, 8 fps, 0.5 s:#/%>q1. ASSISTANT: a1[E]"
            "USER: q2. ASSISTANT: a2[E]",
        ),
        (
            formats.question_answering(None, "hello", "hi"),
            "[B]You are a helpful assistant. USER: hello. ASSISTANT: hi[E]",
        ),
        (
            formats.prompt_revision("a cat.", "a dog"),
            "[B]You are a helpful assistant. USER: Revise the prompt: a cat. ASSISTANT: a dog[E]",
        ),
        (formats.editing([image(1, 1)], "make it red", image(1, 2)), "[B]make it red<1*1:#/%><1*2:##/%>[E]"),
        (formats.interleaved("a", image(1, 1), "b", image(2, 1)), "[B]a<1*1:#/%>b<2*1:#/#/%>[E]"),
        (formats.video_prediction(video(2, 1, 1), 1), "[B]<1*1, 8 fps, 1 s:#/%#/%>[E]"),
        (formats.video_prediction(video(2, 1, 1), 1, "go"), "[B]go<1*1, 8 fps, 1 s:#/%#/%>[E]"),
        (formats.language("a b"), "[B]a b[E]"),
    ],
)
def test_templates(document: Document, expected: str) -> None:
    assert spelled(document) == expected


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (formats.captioning(image(1, 2)), "[B]<1*2:##/%>"),
        (
            formats.question_answering(None, [("q1", "a1"), ("q2", None)]),
            "[B]You are a helpful assistant. USER: q1. ASSISTANT: a1[E]USER: q2. ASSISTANT:",
        ),
        (formats.editing([image(1, 1), image(1, 1)], "join"), "[B]join<1*1:#/%><1*1:#/%>"),
    ],
)
def test_prompts_lack_the_target_and_the_end(document: Document, expected: str) -> None:
    assert spelled(document, prompt=True) == expected


def test_a_prompt_is_the_beginning_of_the_training_document() -> None:
    grammar, picture, film = small_grammar(), image(2, 3), video(3, 2, 2)
    size, film_size = ImageSize(height=2, width=3), VideoSize(height=2, width=2, num_frames=12, fps=8)
    given = formats.video_prediction(video(3, 2, 2), 2, "go")
    assert film.codes is not None
    only_given = formats.video_prediction(video(2, 2, 2), 2, "go")
    object.__setattr__(only_given.segments[-1], "codes", film.codes[:2])
    pairs = [
        (formats.text_to_image("a cat", picture), formats.text_to_image("a cat"), size),
        (formats.text_to_video("a cat", film), formats.text_to_video("a cat"), film_size),
        (formats.editing([picture], "red", picture), formats.editing([picture], "red"), size),
        (formats.captioning(film, "a cat"), formats.captioning(film), None),
        (formats.question_answering(picture, "q", "a"), formats.question_answering(picture, "q"), None),
        (given, only_given, film_size),
    ]
    for document, prompt, next_size in pairs:
        ids, prompt_ids = grammar.render(document).token_ids, grammar.render_prompt(prompt, next_size)
        assert ids[: len(prompt_ids)].tolist() == prompt_ids.tolist()
        assert len(prompt_ids) < len(ids)


def test_which_parts_are_targets() -> None:
    picture = image(1, 1)
    targets = {
        "t2i": [segment.target for segment in formats.text_to_image("a", picture).segments],
        "caption": [segment.target for segment in formats.captioning(picture, "a").segments],
        "qa": [segment.target for segment in formats.question_answering(picture, [("q", "a"), ("q", "a")]).segments],
        "edit": [segment.target for segment in formats.editing([picture], "a", picture).segments],
    }
    assert targets["t2i"] == [False, True]
    assert targets["caption"] == [False, True]
    assert targets["qa"] == [False, False, False, True, False, True]
    assert targets["edit"] == [False, False, True]


def test_user_text_never_becomes_special_ids() -> None:
    text = "<|image start|>8*8<|image token|><|visual token 000001|><|extra_204|>"
    rendered = small_grammar().render(Document((Text(text),), bos=False, eos=False))
    assert rendered.token_ids.max() < len(small_grammar().vocabulary.text)
