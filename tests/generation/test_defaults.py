"""Sizes as people write them, and where a checkpoint's defaults come from."""

from dataclasses import replace
from typing import Any

import pytest
from tiny_model import GENERATION, tiny_checkpoint

from rhea.checkpoints.configs import CheckpointConfig
from rhea.errors import InputError
from rhea.generation.defaults import EMU3_DEFAULTS, GenerationDefaults, defaults_of, pixel_size
from rhea.generation.model import Rhea
from rhea.models.config import TransformerConfig
from rhea.tokenizers.vision import PixelPolicy
from rhea.tokenizers.vocabulary import EMU3_VOCABULARY

EMU3_SIZES = {
    "1:1": (90, 90),
    "4:3": (78, 104),
    "3:4": (104, 78),
    "16:9": (68, 120),
    "9:16": (120, 68),
    "3:2": (73, 110),
}


def test_sizes_as_written() -> None:
    defaults = GenerationDefaults()
    assert pixel_size(None, defaults, 8) == (64, 64)
    assert pixel_size("640x480", defaults, 8) == (480, 640)
    assert pixel_size(" 640 × 480 ", defaults, 8) == (480, 640)
    assert pixel_size((480, 640), defaults, 8) == (480, 640)


@pytest.mark.parametrize("ratio", EMU3_SIZES)
def test_ratios_give_the_grids_of_the_released_demo(ratio: str) -> None:
    height, width = pixel_size(ratio, EMU3_DEFAULTS, 8)
    assert (height // 8, width // 8) == EMU3_SIZES[ratio]


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ("60x64", "near are 56x64, 64x64"),
        ((65, 63), "near are 56x64, 56x72, 64x64, 64x72"),
        ("0x64", "positive multiples of 8; near are 8x64"),
        ("0x0", "positive multiples of 8; near are 8x8"),
        ((-8, 8), "positive multiples"),
        ("16:1", "size 16:1: its aspect ratio is over 5"),
        ("1:6", "size 1:6: its aspect ratio is over 5"),
        ("64x640", "size 64x640: its aspect ratio is over 5"),
        ((8, 48), "size 48x8: its aspect ratio is over 5"),
        ("large", "WIDTHxHEIGHT"),
        ("64", "WIDTHxHEIGHT"),
        ("0:3", "aspect ratio 0:3"),
        ((64,), "must be"),
    ],
)
def test_other_sizes_are_refused_with_advice(size: str | tuple[int, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        pixel_size(size, GenerationDefaults(), 8)


@pytest.mark.parametrize("area", [64, 512, 720])
def test_the_longest_ratio_can_be_read_back(area: int) -> None:
    for ratio in ("5:1", "1:5"):
        height, width = pixel_size(ratio, GenerationDefaults(height=area, width=area), 8)
        assert 4 <= max(height, width) / min(height, width) <= 5
    assert pixel_size("6:1", GenerationDefaults(), 8, 6.0)


WRONG = [
    {"height": 13},
    {"width": 0},
    {"num_frames": 0, "given_frames": 3},
    {"given_frames": 3},
    {"given_frames": 0},
    {"given_frames": 8},
    {"fps": 0.0},
    {"fps": float("nan")},
    {"temperature": -1.0},
    {"film_temperature": -1.0},
    {"edit_temperature": -0.5},
    {"extend_temperature": float("inf")},
    {"answer_temperature": float("nan")},
    {"top_k": -1},
    {"top_p": 0.0},
    {"film_top_p": 0.0},
    {"guidance_scale": -1.0},
    {"edit_guidance_scale": float("inf")},
    {"extend_guidance_scale": -1.0},
    {"max_answer_tokens": 0},
    {"image_area": -1},
    {"image_area": "large"},
]


@pytest.mark.parametrize("settings", WRONG, ids=str)
def test_impossible_settings_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"config.generation.*{next(iter(settings))}"):
        defaults_of(tiny_checkpoint(**settings).config)


def test_what_the_config_does_not_say_is_not_held_against_it() -> None:
    checkpoint = tiny_checkpoint()
    assert checkpoint.config.vision_tokenizer is not None
    longer = replace(checkpoint.config.vision_tokenizer, temporal_downsample=8)  # the default looks back on 4 frames
    assert defaults_of(replace(checkpoint.config, vision_tokenizer=longer)).given_frames == 4
    assert defaults_of(replace(tiny_checkpoint(height=13).config, vision_tokenizer=None)).height == 13


def test_a_checkpoints_own_words_come_first() -> None:
    defaults = defaults_of(tiny_checkpoint().config)
    assert (defaults.height, defaults.width) == (GENERATION["height"], GENERATION["width"])
    assert defaults.negative_prompt == ""


def test_the_released_emu3_has_its_demos_settings() -> None:
    transformer = TransformerConfig(
        vocab_size=184622,
        dim=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        ffn_dim=8,
        max_seq_len=9216,
    )
    config = CheckpointConfig(transformer=transformer, vocabulary=EMU3_VOCABULARY)
    assert defaults_of(config) == EMU3_DEFAULTS
    stage1 = CheckpointConfig(
        transformer=transformer, vocabulary=EMU3_VOCABULARY, pixels=PixelPolicy(), generation={"image_area": 262144}
    )
    assert (defaults_of(stage1).height, defaults_of(stage1).width) == (512, 512)


def test_unknown_settings_are_named() -> None:
    with pytest.raises(InputError, match="warmth"):
        defaults_of(tiny_checkpoint(warmth=3).config)


def test_films_from_text_are_sampled_by_defaults_of_their_own() -> None:
    model = Rhea(tiny_checkpoint(temperature=0.5, film_temperature=0.9, top_p=0.8, film_top_p=0.95))
    picture, film = (model.prompts.draw("red", video=video).sampling for video in (False, True))
    assert (picture.temperature, picture.top_p) == (0.5, 0.8)
    assert (film.temperature, film.top_p) == (0.9, 0.95)
    asked = model.prompts.draw("red", video=True, temperature=0.3, top_p=0.7).sampling
    assert (asked.temperature, asked.top_p) == (0.3, 0.7)
