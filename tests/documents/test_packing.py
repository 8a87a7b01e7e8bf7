"""Packing: every document whole and once, nothing predicted across documents, no image cut."""

from typing import Any

import numpy as np
import pytest
from document_cases import documents, image, small_grammar
from hypothesis import given
from hypothesis import strategies as st

from rhea.documents import formats
from rhea.documents.document import Document, Text
from rhea.documents.grammar import FINE_TUNING, Rendered
from rhea.documents.packing import IGNORED_LABEL, Packed, cut, first_fit, pack
from rhea.errors import InputError

GRAMMAR = small_grammar()
PAD = GRAMMAR.vocabulary.pad


def unpacked(packed: Packed) -> list[dict[str, Any]]:
    """Return each document of packed rows, after checking that the rows are laid out as promised."""
    found = []
    for row in range(len(packed.token_ids)):
        document_ids = packed.document_ids[row]
        for number in range(document_ids.max() + 1):
            places = np.flatnonzero(document_ids == number)
            assert (np.diff(places) == 1).all()
            assert packed.positions[row, places].tolist() == list(range(len(places)))
            columns = {name: getattr(packed, name)[row, places].tolist() for name in ("token_ids", "labels")}
            found.append(columns | {"weights": packed.loss_weights[row, places].tolist(), "row": row})
        padding = document_ids == -1
        assert (packed.token_ids[row, padding] == PAD).all()
        assert (packed.labels[row, padding] == IGNORED_LABEL).all()
        assert not packed.loss_weights[row, padding].any()
        assert not packed.positions[row, padding].any()
        assert not padding[: np.count_nonzero(~padding)].any()
    return found


@given(st.lists(documents(), max_size=6))
def test_packed_documents_equal_one_by_one(several: list[Document]) -> None:
    rendered = [entry for entry in (GRAMMAR.render(document) for document in several) if len(entry.token_ids)]
    packed = pack(rendered, 600, PAD)
    found = dict(zip(sum(packed.origins, ()), unpacked(packed), strict=True))
    assert sorted(found, key=int) == [str(number) for number in range(len(rendered))]
    for number, one in enumerate(rendered):
        entry = found[str(number)]
        assert entry["token_ids"] == one.token_ids.tolist()
        assert entry["labels"] == [*one.token_ids[1:].tolist(), IGNORED_LABEL]
        assert entry["weights"] == [*one.loss_weights[1:].tolist(), 0.0]


def test_an_answer_is_learned_from_the_last_prompt_token_on() -> None:
    rendered = GRAMMAR.render(formats.captioning(image(1, 1), "ab"), FINE_TUNING)
    packed = pack([rendered, rendered], 64, PAD)
    for entry in unpacked(packed):
        learned = [label for label, weight in zip(entry["labels"], entry["weights"], strict=True) if weight]
        assert learned == [*GRAMMAR.text_tokenizer.encode("ab"), GRAMMAR.vocabulary.eos]


def test_a_document_longer_than_a_row_is_refused() -> None:
    with pytest.raises(InputError, match="does not fit in a row of 8"):
        pack([GRAMMAR.render(formats.text_to_image("a", image(3, 3)))], 8, PAD)


def test_rows_are_taken_apart_and_put_together() -> None:
    packed = pack([GRAMMAR.render(Document((Text(text),))) for text in ("one", "two", "three")], 8, PAD)
    assert len(packed.token_ids) == 3
    first, rest = packed[:1], packed[1:]
    assert [part.origins for part in (first, rest)] == [packed.origins[:1], packed.origins[1:]]
    assert unpacked(rest) == [entry | {"row": entry["row"] - 1} for entry in unpacked(packed)[1:]]
    again = first + rest
    assert unpacked(again) == unpacked(packed)
    assert again.origins == packed.origins


def test_nothing_to_pack_gives_no_rows() -> None:
    assert pack([], 8, PAD).token_ids.shape == (0, 8)


@given(st.lists(st.integers(1, 20), max_size=30), st.integers(20, 60))
def test_first_fit_takes_the_oldest_and_leaves_nothing_that_fits(lengths: list[int], capacity: int) -> None:
    chosen = first_fit(lengths, capacity)
    assert chosen == sorted(set(chosen))
    assert chosen[:1] == ([0] if lengths else [])
    room = capacity - sum(lengths[position] for position in chosen)
    assert room >= 0
    assert all(lengths[position] > room for position in range(len(lengths)) if position not in chosen)


@given(st.lists(st.sampled_from(["text", "image"]), min_size=1, max_size=8), st.integers(22, 50))
def test_cuts_keep_images_whole_and_lose_nothing(kinds: list[str], length: int) -> None:
    parts = [Text("one two three four five six") if kind == "text" else image(3, 3) for kind in kinds]
    rendered = GRAMMAR.render(Document(tuple(parts)))
    pieces = cut(rendered, GRAMMAR.may_cut(rendered.token_ids), length)
    assert np.concatenate([piece.token_ids for piece in pieces]).tolist() == rendered.token_ids.tolist()
    for piece in pieces:
        assert 1 <= len(piece.token_ids) <= length
        assert piece.loss_weights[0] == 0
        starts = np.count_nonzero(piece.token_ids == GRAMMAR.vocabulary.image_start)
        assert starts == np.count_nonzero(piece.token_ids == GRAMMAR.vocabulary.image_end)
    inner = np.concatenate([piece.loss_weights[1:] for piece in pieces])
    assert set(inner.tolist()) <= {0.5, 1.0}


def test_an_image_longer_than_a_row_cannot_be_cut() -> None:
    rendered = GRAMMAR.render(Document((Text("go"), image(4, 4))))
    with pytest.raises(InputError, match="longer than a row of 12"):
        cut(rendered, GRAMMAR.may_cut(rendered.token_ids), 12)


def test_a_short_document_is_one_piece() -> None:
    rendered = GRAMMAR.render(Document((Text("go"),)))
    pieces = cut(rendered, GRAMMAR.may_cut(rendered.token_ids), 12)
    assert len(pieces) == 1
    assert isinstance(pieces[0], Rendered)
    assert pieces[0].loss_weights.tolist() == rendered.loss_weights.tolist()
