"""The id space: Emu3's exact ids, and ranges that tile the space for any sizes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rhea.config import from_dict, to_dict
from rhea.errors import InputError
from rhea.tokenizers.vocabulary import EMU3_VOCABULARY, Vocabulary, VocabularyConfig, compact_vocabulary


def test_emu3_ids_are_the_released_ones() -> None:
    vocabulary = Vocabulary(EMU3_VOCABULARY)
    assert vocabulary.size == 184622
    assert (vocabulary.pad, vocabulary.bos, vocabulary.eos) == (151643, 151849, 151850)
    assert (vocabulary.eol, vocabulary.eof) == (151846, 151847)
    assert (vocabulary.image_token, vocabulary.image_start, vocabulary.image_end) == (151851, 151852, 151853)
    assert (vocabulary.vision.start, vocabulary.vision[-1]) == (151854, 184621)


@pytest.mark.parametrize(
    ("token_id", "name"),
    [
        (151643, "<|endoftext|>"),
        (151644, "<|im_start|>"),
        (151645, "<|im_end|>"),
        (151646, "<|extra_0|>"),
        (151846, "<|extra_200|>"),
        (151850, "<|extra_204|>"),
        (151851, "<|image token|>"),
        (151852, "<|image start|>"),
        (151853, "<|image end|>"),
        (151854, "<|visual token 000000|>"),
        (184621, "<|visual token 032767|>"),
    ],
)
def test_emu3_token_strings(token_id: int, name: str) -> None:
    assert Vocabulary(EMU3_VOCABULARY).token_string(token_id) == name


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_ranges_tile_the_space_and_roles_differ(text_size: int, vision_size: int) -> None:
    vocabulary = Vocabulary(compact_vocabulary(text_size, vision_size))
    tiles = [*vocabulary.text, *vocabulary.special, *vocabulary.vision]
    assert tiles == list(range(vocabulary.size))
    roles = [vocabulary.pad, vocabulary.bos, vocabulary.eos, vocabulary.eol, vocabulary.eof]
    roles += [vocabulary.image_token, vocabulary.image_start, vocabulary.image_end]
    assert sorted(roles) == list(vocabulary.special)


def test_every_id_has_a_different_string() -> None:
    for config in (EMU3_VOCABULARY, compact_vocabulary(3, 5)):
        vocabulary = Vocabulary(config)
        ids = [*vocabulary.special, *vocabulary.vision]
        assert len({vocabulary.token_string(token_id) for token_id in ids}) == len(ids)


@pytest.mark.parametrize("wrap", [int, np.array, torch.tensor])
def test_codes_and_ids_convert_both_ways_for_any_library(wrap: type) -> None:
    vocabulary = Vocabulary(compact_vocabulary(10, 20))
    code = wrap(7)
    token_id = vocabulary.vision_id(code)
    assert int(token_id) == 10 + 8 + 7
    assert int(vocabulary.code(token_id)) == 7
    assert bool(vocabulary.is_vision(token_id))
    assert not bool(vocabulary.is_text(token_id))
    assert bool(vocabulary.is_text(wrap(9)))
    assert not bool(vocabulary.is_vision(wrap(17)))


def test_config_survives_json() -> None:
    assert from_dict(VocabularyConfig, to_dict(EMU3_VOCABULARY)) == EMU3_VOCABULARY


@pytest.mark.parametrize("change", [{"eos": 0}, {"eos": 8}, {"eos": -1}, {"text_size": 0}, {"vision_size": 0}])
def test_impossible_layouts_are_refused(change: dict[str, int]) -> None:
    config = to_dict(compact_vocabulary(10, 20)) | change
    with pytest.raises(InputError):
        Vocabulary(VocabularyConfig(**config))


def test_an_id_outside_has_no_string() -> None:
    with pytest.raises(InputError, match="38"):
        Vocabulary(compact_vocabulary(10, 20)).token_string(38)
