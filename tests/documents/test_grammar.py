"""The grammar: render and parse are inverses, weights and cuts are where they belong, broken ids never crash."""

from typing import Any

import numpy as np
import pytest
from document_cases import VISION_SIZE, comparable, documents, image, small_grammar, small_tokenizer, video
from hypothesis import given
from hypothesis import strategies as st

from rhea.documents import formats
from rhea.documents.document import Document, Image, ImageSize, Text, Video, VideoSize
from rhea.documents.grammar import FINE_TUNING, PRETRAINING, RELEASED_SFT, Grammar, LossWeights
from rhea.errors import InputError
from rhea.tokenizers.text import ByteLevelTokenizer
from rhea.tokenizers.vocabulary import Vocabulary, compact_vocabulary

GRAMMAR = small_grammar()
VOCABULARY = GRAMMAR.vocabulary


def text_ids(text: str) -> list[int]:
    return GRAMMAR.text_tokenizer.encode(text)


def visual(*codes: int) -> list[int]:
    return [VOCABULARY.vision_id(code) for code in codes]


def test_order_of_end_marks() -> None:
    eol, eof = VOCABULARY.eol, VOCABULARY.eof
    picture = Image(codes=np.array([[1, 2], [3, 4], [5, 6]]))
    ids = GRAMMAR.render(Document((picture,))).token_ids.tolist()
    rows = [*visual(1, 2), eol, *visual(3, 4), eol, *visual(5, 6), eol, eof]
    opening = [VOCABULARY.bos, VOCABULARY.image_start, *text_ids("3*2"), VOCABULARY.image_token]
    assert ids == [*opening, *rows, VOCABULARY.image_end, VOCABULARY.eos]

    film = Video(codes=np.array([[[1]], [[2]]]), fps=8)
    ids = GRAMMAR.render(Document((film,), bos=False, eos=False)).token_ids.tolist()
    assert ids[-7:] == [*visual(1), eol, eof, *visual(2), eol, eof, VOCABULARY.image_end]


@given(documents())
def test_parse_reverses_render(document: Document) -> None:
    rendered = GRAMMAR.render(document)
    assert comparable(GRAMMAR.parse(rendered.token_ids)) == comparable(document)
    assert comparable(GRAMMAR.parse(rendered.token_ids.tolist(), "whole_rows")) == comparable(document)
    assert len(rendered.loss_weights) == len(rendered.token_ids)


@given(documents(), st.integers(0, 3))
def test_trailing_padding_is_ignored(document: Document, pads: int) -> None:
    ids = [*GRAMMAR.render(document).token_ids.tolist(), *[VOCABULARY.pad] * pads]
    assert comparable(GRAMMAR.parse(ids)) == comparable(document)


ANY_IDS = st.lists(
    st.one_of(
        st.integers(0, VOCABULARY.size - 1),
        st.sampled_from([*VOCABULARY.special, *visual(1, 2), *text_ids("12*, fps s.")]),
    ),
    max_size=60,
)


def parsed(ids: list[int]) -> Document | None:
    try:
        return GRAMMAR.parse(ids)
    except InputError:
        return None


def check_forgiving(ids: list[int]) -> None:
    """With whole_rows nothing raises and the result is well formed; where the strict parse passes, both agree."""
    forgiven = GRAMMAR.parse(ids, "whole_rows")
    again = GRAMMAR.parse(GRAMMAR.render(forgiven).token_ids)
    assert comparable(again)[2:] == comparable(forgiven)[2:]
    strict = parsed(ids)
    if strict is not None:
        assert comparable(strict) == comparable(forgiven)


@given(ANY_IDS)
def test_any_list_of_ids_parses_or_is_refused(ids: list[int]) -> None:
    check_forgiving(ids)


@given(documents(), st.data())
def test_damaged_documents_parse_or_are_refused(document: Document, data: st.DataObject) -> None:
    ids = GRAMMAR.render(document).token_ids.tolist()
    for _ in range(data.draw(st.integers(1, 3))):
        if ids:
            place = data.draw(st.integers(0, len(ids) - 1))
            change = data.draw(st.sampled_from(["cut", "delete", "repeat", "replace"]))
            replacement = data.draw(st.integers(0, VOCABULARY.size - 1))
            ids = {
                "cut": ids[:place],
                "delete": ids[:place] + ids[place + 1 :],
                "repeat": ids[: place + 1] + ids[place:],
                "replace": [*ids[:place], replacement, *ids[place + 1 :]],
            }[change]
    check_forgiving(ids)


@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_a_truncated_image_keeps_its_whole_rows(height: int, width: int, data: st.DataObject) -> None:
    picture = image(height, width)
    assert picture.codes is not None
    ids = GRAMMAR.render(Document((picture,), bos=False, eos=False)).token_ids.tolist()
    opening = ids.index(VOCABULARY.image_token) + 1
    kept = data.draw(st.integers(0, height * (width + 1) + 1))
    with pytest.raises(InputError, match=f"{height}\\*{width} image|instead of image-end"):
        GRAMMAR.parse(ids[: opening + kept])
    segments = GRAMMAR.parse(ids[: opening + kept], "whole_rows").segments
    rows = min(kept // (width + 1), height)
    assert [segment.codes.tolist() for segment in segments] == ([picture.codes[:rows].tolist()] if rows else [])  # type: ignore[union-attr]


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.data())
def test_a_truncated_video_keeps_its_whole_frames(latents: int, height: int, width: int, data: st.DataObject) -> None:
    film = video(latents, height, width, num_frames=4 * latents - 1)
    assert film.codes is not None
    ids = GRAMMAR.render(Document((film,), bos=False, eos=False)).token_ids.tolist()
    opening = ids.index(VOCABULARY.image_token) + 1
    per_frame = height * (width + 1) + 1
    kept = data.draw(st.integers(0, latents * per_frame))
    frames = (kept + 1) // per_frame  # a frame is whole without its EOF
    segments = GRAMMAR.parse(ids[: opening + kept], "whole_rows").segments
    assert len(segments) == (frames > 0)
    if segments:
        assert isinstance(segments[0], Video)
        assert segments[0].codes is not None
        assert segments[0].codes.tolist() == film.codes[:frames].tolist()
        assert segments[0].num_frames == min(4 * frames, 4 * latents - 1)


def test_a_ragged_row_is_named_and_left_out() -> None:
    ids = GRAMMAR.render(Document((image(3, 3),))).token_ids.tolist()
    second_row = ids.index(VOCABULARY.image_token) + 1 + 4
    del ids[second_row]
    with pytest.raises(InputError, match=r"3\*3 image at token 1: .*2 visual tokens in row 2 instead of 3"):
        GRAMMAR.parse(ids)
    found = GRAMMAR.parse(ids, "whole_rows").segments[0]
    assert isinstance(found, Image)
    assert found.codes is not None
    assert image(3, 3).codes is not None
    assert found.codes.tolist() == image(3, 3).codes[[0, 2]].tolist()  # type: ignore[index]


def opened(text: str) -> list[int]:
    return [VOCABULARY.image_start, *text_ids(text), VOCABULARY.image_token]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([VOCABULARY.eol], "outside any image"),
        (visual(3), "outside any image"),
        ([*text_ids("a"), VOCABULARY.bos], "outside any image"),
        ([VOCABULARY.pad, *text_ids("a")], "outside any image"),
        ([VOCABULARY.image_start], "the end where its size text"),
        ([VOCABULARY.image_start, VOCABULARY.eol], "where its size text"),
        ([*opened("8x8"), VOCABULARY.image_end], "size text '8x8'"),
        (
            [*opened("2*1"), *visual(1), VOCABULARY.eol, VOCABULARY.eof, VOCABULARY.image_end],
            "1 whole rows instead of 2",
        ),
        ([*opened("1*1"), *visual(1), VOCABULARY.eol, VOCABULARY.image_end], "no end-of-frame"),
        ([*opened("1*1"), *visual(1), VOCABULARY.eof, VOCABULARY.image_end], "no end-of-line"),
        ([*opened("1*1"), VOCABULARY.image_end], "no rows"),
        ([*opened("1*1"), *visual(1), VOCABULARY.eol, VOCABULARY.eof], "instead of image-end"),
        ([*opened("1*1"), *[*visual(1), VOCABULARY.eol, VOCABULARY.eof] * 2, VOCABULARY.image_end], "2 whole latent"),
        ([-1], "token ids must be 0 to"),
        ([VOCABULARY.size], "token ids must be 0 to"),
    ],
)
def test_errors_name_what_is_wrong(ids: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GRAMMAR.parse(ids)


@pytest.mark.parametrize("ids", [[0.5], ["a"], [[1, 2]], np.zeros((2, 2), dtype=np.int64)])
def test_what_is_no_list_of_ids_is_refused(ids: Any) -> None:
    for on_error in ("raise", "whole_rows"):
        with pytest.raises(InputError, match="list of integers"):
            GRAMMAR.parse(ids, on_error)  # type: ignore[arg-type]


def weights_of(document: Document, loss: LossWeights) -> dict[str, set[float]]:
    """Return the weights found on each kind of token after the first."""
    rendered = GRAMMAR.render(document, loss)
    found: dict[str, set[float]] = {}
    for token_id, weight in zip(rendered.token_ids[1:].tolist(), rendered.loss_weights[1:].tolist(), strict=True):
        kind = "text" if token_id in VOCABULARY.text else "vision" if token_id in VOCABULARY.vision else "structure"
        found.setdefault("eos" if token_id == VOCABULARY.eos else kind, set()).add(weight)
    return found


def test_pretraining_weights() -> None:
    rendered = GRAMMAR.render(formats.text_to_image("a cat", image(2, 2)))
    assert rendered.loss_weights[0] == 0.0
    assert weights_of(formats.text_to_image("a cat", image(2, 2)), PRETRAINING) == {
        "text": {1.0},
        "vision": {0.5},
        "structure": {1.0},
        "eos": {1.0},
    }


def test_fine_tuning_learns_targets_only() -> None:
    document = formats.question_answering(image(1, 2), [("q", "a"), ("r", "b")])
    rendered = GRAMMAR.render(document, FINE_TUNING)
    learned = rendered.token_ids[rendered.loss_weights > 0].tolist()
    assert learned == [*text_ids(" a"), VOCABULARY.eos, *text_ids(" b"), VOCABULARY.eos]


def test_released_fine_tuning_learns_visual_tokens_only_and_forgets_eos() -> None:
    document = formats.text_to_image("a cat", image(2, 2))
    rendered = GRAMMAR.render(document, RELEASED_SFT)
    assert rendered.token_ids[-1] == VOCABULARY.image_end
    assert ((rendered.loss_weights == 1) == VOCABULARY.is_vision(rendered.token_ids)).all()
    assert (rendered.loss_weights[~VOCABULARY.is_vision(rendered.token_ids)] == 0).all()


def test_video_prediction_learns_the_frames_that_are_not_given() -> None:
    rendered = GRAMMAR.render(formats.video_prediction(video(3, 2, 2), 1), FINE_TUNING)
    learned = np.flatnonzero(rendered.loss_weights)
    per_frame = 2 * 3 + 1
    grid_start = rendered.token_ids.tolist().index(VOCABULARY.image_token) + 1
    assert learned[0] == grid_start + per_frame
    assert learned.tolist() == list(range(learned[0], len(rendered.token_ids)))


@given(documents())
def test_first_token_is_never_learned(document: Document) -> None:
    assert not GRAMMAR.render(document).loss_weights[:1].any()


@given(documents())
def test_cuts_are_everywhere_but_inside_images(document: Document) -> None:
    ids = GRAMMAR.render(document).token_ids.tolist()
    may_cut = GRAMMAR.may_cut(ids)
    inside = False
    for token_id, allowed in zip(ids, may_cut.tolist(), strict=True):
        assert allowed is not inside
        inside = (inside or token_id == VOCABULARY.image_start) and token_id != VOCABULARY.image_end


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        (Image(pixels=np.zeros((8, 8, 3), dtype=np.uint8)), "encode the document first"),
        (Image(codes=np.array([[VISION_SIZE]])), "codes must be 0 to 49"),
        (Image(codes=np.array([[-1]])), "codes must be 0 to 49"),
        (video(2, 1, 1, num_frames=3), "3 frames needs 1 latent frames, got 2"),
        (video(2, 1, 1, num_frames=9), "9 frames needs 3 latent frames, got 2"),
        (video(2, 1, 1, prompt_latents=3), "prompt_latents is 3"),
    ],
)
def test_segments_that_do_not_fit_are_refused(segment: Image | Video, message: str) -> None:
    with pytest.raises(InputError, match=message):
        GRAMMAR.render(Document((segment,)))


def test_given_frames_must_fit_the_announced_video() -> None:
    prompt = formats.video_prediction(video(2, 2, 2), 2)
    with pytest.raises(InputError, match="cannot begin with 2 latent frames"):
        GRAMMAR.render_prompt(prompt, VideoSize(height=3, width=2, num_frames=16, fps=8))
    with pytest.raises(InputError, match="cannot begin with 2 latent frames"):
        GRAMMAR.render_prompt(prompt, VideoSize(height=2, width=2, num_frames=4, fps=8))


def test_another_temporal_factor() -> None:
    grammar = Grammar(VOCABULARY, GRAMMAR.text_tokenizer, temporal_factor=1)
    film = Document((video(3, 1, 1, fps=2),))
    assert grammar.grid(VideoSize(height=1, width=1, num_frames=3)) == (3, 1, 1)
    found = grammar.parse(grammar.render(film).token_ids).segments[0]
    assert isinstance(found, Video)
    assert found.num_frames == 3


def test_a_tokenizer_larger_than_the_vocabulary_is_refused() -> None:
    too_small = small_tokenizer().vocab_size - 1
    with pytest.raises(InputError, match=f"{too_small + 1} tokens, the vocabulary only {too_small}"):
        Grammar(Vocabulary(compact_vocabulary(too_small, 9)), small_tokenizer())


def test_a_tokenizer_that_joins_digits_is_refused() -> None:
    specification = {
        "model": {"type": "BPE", "vocab": {"a": 0, "<u>": 1}, "merges": [], "unk_token": "<u>"},
    }
    with pytest.raises(InputError, match="digit"):
        Grammar(Vocabulary(compact_vocabulary(9, 9)), ByteLevelTokenizer(specification | {"version": "1.0"}))


def test_meta_methods_agree() -> None:
    assert GRAMMAR.image_meta(3, 4) == "3*4"
    text = GRAMMAR.video_meta(16, 8, 9, 8)
    assert text == "8*9, 8 fps, 2 s"
    assert GRAMMAR.parse_meta(text) == VideoSize(height=8, width=9, num_frames=16, fps=8)
    assert GRAMMAR.grid(ImageSize(height=3, width=4)) == (1, 3, 4)


def test_turns_survive() -> None:
    document = Document((Text("a", ends_turn=True), Text("b", ends_turn=True), Text("c")))
    texts = GRAMMAR.parse(GRAMMAR.render(document).token_ids).segments
    assert [(text.text, text.ends_turn) for text in texts] == [("a", True), ("b", True), ("c", False)]  # type: ignore[union-attr]
