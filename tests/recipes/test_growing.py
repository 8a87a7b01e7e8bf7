"""What the tokens of one pair of tokenizers are called in another."""

import numpy as np
import pytest
import torch

from rhea.checkpoints.load import load_checkpoint
from rhea.documents import formats
from rhea.documents.document import Image
from rhea.errors import InputError
from rhea.generation.loading import DEFAULT_MODEL
from rhea.recipes.growing import code_rows, counted_codes, text_rows
from rhea.tokenizers.text import ByteLevelTokenizer, train_text_tokenizer
from rhea.tokenizers.vision import VisionCodec

OLD = train_text_tokenizer(["a red circle and a red ring"] * 50, 270)
NEW = train_text_tokenizer(["a red circle, a blue butterfly", "一个红色的圆"] * 50, 330)


def test_a_new_token_is_the_mean_of_the_old_ones_that_spell_it() -> None:
    rows = text_rows(OLD, NEW)
    assert rows.shape == (NEW.vocab_size, OLD.vocab_size)
    torch.testing.assert_close(rows.sum(1), torch.ones(NEW.vocab_size))
    for text in ("red", " circle", " butterfly"):
        (token_id,), spelled = NEW.encode(text), OLD.encode(text)
        wanted = np.bincount(spelled, minlength=OLD.vocab_size) / len(spelled)
        np.testing.assert_allclose(rows[token_id].numpy(), wanted, rtol=1e-6)
    letters = [rows[token_id].argmax() for token_id in NEW.encode("z")]
    assert letters == OLD.encode("z")


def test_pieces_that_are_no_characters_of_their_own_are_spelled_too() -> None:
    pieces = NEW.pieces()
    cut = [number for number, piece in enumerate(pieces) if len(piece) == 2 and "�" in NEW.decode([number])]
    assert cut, "part of a Chinese character must be among the tokens for this test to mean something"
    for number in cut:
        assert "".join(OLD.pieces()[each] for each in OLD.spell(pieces[number])) == pieces[number]


def test_other_kinds_of_tokenizers_are_refused() -> None:
    class Foreign:
        vocab_size = 3

    with pytest.raises(InputError, match=r"tokenizer\.json"):
        text_rows(Foreign(), NEW)  # type: ignore[arg-type]
    assert isinstance(OLD, ByteLevelTokenizer)


def test_the_same_tokenizer_calls_every_code_by_its_own_name() -> None:
    checkpoint = load_checkpoint(DEFAULT_MODEL, vision_dtype=torch.float32)
    assert checkpoint.vision_tokenizer is not None
    assert checkpoint.vocabulary is not None
    assert checkpoint.policy is not None
    codec = VisionCodec(checkpoint.vision_tokenizer, checkpoint.policy)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    documents = [formats.text_to_image("", Image(pixels=each)) for each in pixels]
    counts = counted_codes(codec, codec, documents, checkpoint.vocabulary, checkpoint.vocabulary)
    assert counts.sum() == 3 * 64
    assert torch.equal(counts, counts.diag().diag())
    rows = code_rows(counts, checkpoint.vision_tokenizer.quantize.embedding.weight)
    seen = counts.sum(1) > 0
    assert torch.equal(rows[seen], torch.eye(len(counts))[seen])


def test_codes_are_shared_out_as_counted_and_the_unseen_take_after_the_nearest() -> None:
    counts = torch.tensor([[3.0, 1.0], [0.0, 0.0], [0.0, 2.0]])
    rows = code_rows(counts, torch.tensor([[0.0], [0.9], [1.0]]))
    assert rows.tolist() == [[0.75, 0.25], [0.0, 1.0], [0.0, 1.0]]
    with pytest.raises(InputError, match="no document held a picture"):
        code_rows(torch.zeros(3, 2), torch.zeros(3, 1))
