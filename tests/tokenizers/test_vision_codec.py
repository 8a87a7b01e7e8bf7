"""Pixels to codes and back at the level of numpy: sizes, ranges, clips, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from rhea.config import from_dict, to_dict
from rhea.errors import InputError
from rhea.models.vision.config import VisionTokenizerConfig
from rhea.models.vision.tokenizer import VisionTokenizer
from rhea.tokenizers.vision import PixelPolicy, VisionCodec

EMU3 = PixelPolicy()
SMALL = PixelPolicy(min_pixels=1024, max_pixels=4096)


@pytest.fixture(scope="module")
def codec() -> VisionCodec:
    torch.manual_seed(0)
    config = VisionTokenizerConfig(base_channels=8, num_res_blocks=1, norm_groups=4, codebook_size=64)
    model = VisionTokenizer(config)
    torch.nn.init.normal_(model.quantize.embedding.weight, std=0.5)
    return VisionCodec(model, SMALL)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((1080, 1920), (768, 1360)),
        ((100, 300), (296, 888)),
        ((333, 777), (336, 784)),
        ((480, 640), (480, 640)),
        ((516, 520), (512, 520)),  # 64.5 rounds to the even 64
        ((516, 524), (512, 528)),  # 65.5 rounds to the even 66
    ],
)
def test_target_sizes_are_the_released_processors(size: tuple[int, int], target: tuple[int, int]) -> None:
    assert EMU3.target_size(*size) == target
    assert EMU3.target_size(*size[::-1]) == target[::-1]


def test_target_size_refuses_small_sides_and_long_pictures() -> None:
    assert EMU3.target_size(8, 40)
    with pytest.raises(InputError, match="7 x 20"):
        EMU3.target_size(7, 20)
    with pytest.raises(InputError, match="at least 8"):
        EMU3.target_size(1, 1)
    with pytest.raises(InputError, match="aspect ratio is over 5"):
        EMU3.target_size(41, 8)


def test_square_policy_crops_the_middle() -> None:
    policy = PixelPolicy(min_pixels=4096, max_pixels=4096, shape="square")
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, 16:80] = 255
    assert policy.resize(pixels).shape == (64, 64, 3)
    assert policy.resize(pixels).min() == 255
    assert policy.resize(noise(100, 200, 3)).shape == (64, 64, 3)


def test_films_have_an_area_of_their_own() -> None:
    policy = replace(SMALL, max_film_pixels=2048)
    frames = noise(3, 100, 200, 3)
    assert policy.resize(frames[0]).shape == (40, 88, 3)
    assert policy.resize_film(frames).shape == (3, 32, 64, 3)
    np.testing.assert_array_equal(SMALL.resize_film(frames)[1], SMALL.resize(frames[1]))
    with pytest.raises(InputError, match="max_film_pixels 63"):
        PixelPolicy(max_film_pixels=63)


def test_resize_is_pillows_bicubic_on_bytes() -> None:
    pixels = noise(50, 70, 3)
    height, width = SMALL.target_size(50, 70)
    expected = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(SMALL.resize(pixels), expected)


def test_range_is_minus_one_to_one_and_back_by_truncation() -> None:
    values = SMALL.to_tensor(np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3))
    assert values.shape == (3, 16, 16)
    assert values.min() == -1
    assert values.max() == 1
    # 0.999 of a level above 100 is still 100 when truncated, and 101 when rounded to the nearest.
    almost = torch.full((3, 1, 1), 100.999 / 255 * 2 - 1)
    assert SMALL.to_uint8(almost).tolist() == [[[100, 100, 100]]]
    assert PixelPolicy(rounding="nearest").to_uint8(almost).tolist() == [[[101, 101, 101]]]
    assert SMALL.to_uint8(torch.tensor([-3.0, 3.0, 1.0]).view(3, 1, 1)).tolist() == [[[0, 255, 255]]]


def test_policy_survives_json_and_refuses_nonsense() -> None:
    assert from_dict(PixelPolicy, to_dict(SMALL)) == SMALL
    with pytest.raises(InputError, match="min_pixels"):
        PixelPolicy(min_pixels=5000, max_pixels=4096)


def test_pictures_of_mixed_sizes_are_coded_as_if_alone(codec: VisionCodec) -> None:
    pictures = [noise(32, 64, 3), noise(40, 40, 3), noise(32, 64, 3)[::-1].copy()]
    grids = codec.encode_pictures(pictures)
    assert [grid.shape for grid in grids] == [(4, 8), (5, 5), (4, 8)]
    for picture, grid in zip(pictures, grids, strict=True):
        np.testing.assert_array_equal(codec.encode_picture(picture), grid)
    decoded = codec.decode_pictures(grids)
    assert [pixels.shape for pixels in decoded] == [picture.shape for picture in pictures]
    for grid, pixels in zip(grids, decoded, strict=True):
        assert np.abs(codec.decode_picture(grid).astype(int) - pixels).max() <= 1


@pytest.mark.parametrize("num_frames", [1, 3, 4, 5, 8])
def test_no_frame_of_a_film_is_dropped(codec: VisionCodec, num_frames: int) -> None:
    film = noise(num_frames, 32, 40, 3)
    codes = codec.encode_film(film)
    assert codes.shape == (-(-num_frames // 4), 4, 5)
    assert codec.decode_film(codes, num_frames).shape == film.shape
    assert codec.decode_film(codes).shape[0] == 4 * len(codes)
    padded = np.concatenate([film, np.repeat(film[-1:], -num_frames % 4, axis=0)])
    np.testing.assert_array_equal(codec.encode_film(padded), codes)


def test_clips_of_a_film_are_independent(codec: VisionCodec) -> None:
    film = noise(8, 32, 32, 3)
    codes = codec.encode_film(film)
    np.testing.assert_array_equal(codec.encode_film(film[4:])[0], codes[1])


def test_a_film_of_one_repeated_frame_has_the_codes_of_the_picture(codec: VisionCodec) -> None:
    picture = noise(32, 32, 3)
    np.testing.assert_array_equal(codec.encode_film(np.stack([picture] * 4))[0], codec.encode_picture(picture))


def test_large_pictures_in_tiles_on_request(codec: VisionCodec) -> None:
    tiled = VisionCodec(codec.model, PixelPolicy(min_pixels=64, max_pixels=2**20), tile=12)
    picture = noise(8 * 12, 8 * 20, 3)
    codes = tiled.encode_picture(picture)
    assert codes.shape == (12, 20)
    assert tiled.decode_picture(codes).shape == picture.shape
    small = codes[:, :12]
    np.testing.assert_array_equal(tiled.decode_picture(small), codec.decode_picture(small))


def test_bad_pixels_and_codes_are_refused(codec: VisionCodec) -> None:
    with pytest.raises(InputError, match="uint8"):
        codec.encode_picture(np.zeros((32, 32, 3), np.float32))
    with pytest.raises(InputError, match="not empty"):
        codec.encode_film(np.zeros((0, 32, 32, 3), np.uint8))
    with pytest.raises(InputError, match="0 to 63"):
        codec.decode_picture(np.full((4, 4), 64))
    with pytest.raises(InputError, match="2-D integers"):
        codec.decode_picture(np.zeros((4, 4), np.float32))
    with pytest.raises(InputError, match="9 frames do not fit"):
        codec.decode_film(np.zeros((2, 4, 4), np.int64), 9)
    with pytest.raises(InputError, match="no multiple of 8"):
        VisionCodec(codec.model, PixelPolicy(factor=4))
