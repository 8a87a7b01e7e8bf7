"""The vision tokenizer as a whole: shapes, the shortcut for pictures, passes, gradients, refusals."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import rhea.models.vision.strips as strips
from rhea.errors import InputError
from rhea.models.vision.config import VisionTokenizerConfig
from rhea.models.vision.tokenizer import VisionTokenizer


@pytest.fixture(scope="module")
def model() -> VisionTokenizer:
    torch.manual_seed(0)
    config = VisionTokenizerConfig(base_channels=16, num_res_blocks=1, norm_groups=8, codebook_size=128)
    tokenizer = VisionTokenizer(config).eval()
    latents = tokenizer.encode_latents(pixels(4, 3, 64, 64)).detach()
    tokenizer.quantize.embedding.weight.data = latents.movedim(1, -1).reshape(-1, 4)[::2].clone()
    return tokenizer


def pixels(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape))) * 2 - 1


def test_shapes(model: VisionTokenizer) -> None:
    assert model.encode(pixels(2, 3, 32, 48)).shape == (2, 4, 6)
    assert model.encode(pixels(2, 8, 3, 32, 48)).shape == (2, 2, 4, 6)
    codes = torch.arange(48).view(2, 4, 6)
    assert model.decode(codes).shape == (2, 3, 32, 48)
    assert model.decode(codes[None]).shape == (1, 8, 3, 32, 48)


@torch.no_grad()
def test_a_picture_is_a_clip_of_one_frame_four_times(model: VisionTokenizer) -> None:
    pictures = pixels(2, 3, 40, 24)
    clips = pictures[:, None].repeat(1, 4, 1, 1, 1)
    torch.testing.assert_close(model.encode_latents(pictures), model.encode_latents(clips), rtol=0, atol=1e-6)
    codes = model.encode(pictures)
    assert codes.unique().numel() > 3
    assert torch.equal(codes, model.encode(clips)[:, 0])
    frames = model.decode(codes[:, None])
    torch.testing.assert_close(model.decode(codes), frames[:, 0], rtol=0, atol=1e-6)
    assert (frames[:, 0] - frames[:, 3]).abs().max() > 1e-3, "the four frames of a decoded clip differ"


def test_a_picture_costs_one_frame_of_the_spatial_parts(model: VisionTokenizer) -> None:
    encoder, decoder = model.encoder.conv_in, model.decoder.conv_in

    def frames(operation: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> tuple[int, int]:
        """Count what the first layers of the encoder's and the decoder's spatial part are given."""
        seen = {encoder: 0, decoder: 0}

        def count(layer: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            seen[layer] += len(inputs[0])

        with encoder.register_forward_pre_hook(count), decoder.register_forward_pre_hook(count):
            operation(x)
        return seen[encoder], seen[decoder]

    codes = torch.arange(12).view(3, 2, 2)
    assert frames(model.encode, pixels(3, 3, 16, 16)) == (3, 0)
    assert frames(model.decode, codes) == (0, 3)
    assert frames(model.encode, pixels(3, 4, 3, 16, 16)) == (12, 0)
    assert frames(model.decode, codes[:, None]) == (0, 12)


@torch.no_grad()
def test_few_frames_at_a_time_and_strips_give_the_same(model: VisionTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    film = pixels(1, 8, 3, 32, 48)
    codes = model.encode(film)
    decoded = model.decode(codes)
    monkeypatch.setattr(strips, "PASS_VALUES", 1)
    monkeypatch.setattr(strips, "STRIP_VALUES", 16 * 48 * 5)
    assert torch.equal(model.encode(film), codes)
    torch.testing.assert_close(model.decode(codes), decoded, rtol=0, atol=1e-5)


def test_training_and_inference_are_one_function(model: VisionTokenizer) -> None:
    for x in (pixels(2, 3, 32, 32), pixels(1, 4, 3, 32, 32)):
        latents = model.encode_latents(x)
        quantized = model.quantize(latents)
        output = model.decode_latents(quantized.latents, image=x.ndim == 4)
        assert output.shape == x.shape
        codes = model.encode(x)
        assert torch.equal(codes.view_as(quantized.codes), quantized.codes)
        torch.testing.assert_close(model.decode(codes), output, rtol=0, atol=1e-5)


def test_every_parameter_learns(model: VisionTokenizer) -> None:
    model.zero_grad()
    quantized = model.quantize(model.encode_latents(pixels(1, 4, 3, 32, 32)))
    loss = model.decode_latents(quantized.latents, image=False).square().mean() + quantized.losses["codebook"]
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    model.zero_grad()
    assert without == []


def test_latents_can_be_wider_than_emu3s() -> None:
    config = VisionTokenizerConfig(
        base_channels=8, channel_multipliers=(1, 2), norm_groups=4, latent_channels=6, embed_dim=6, codebook_size=16
    )
    assert config.spatial_factor == 2
    model = VisionTokenizer(config).eval()
    codes = model.encode(pixels(1, 3, 8, 6))
    assert codes.shape == (1, 4, 3)
    assert model.decode(codes).shape == (1, 3, 8, 6)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 30, 32), "30 x 32: both sides must be multiples of 8"),
        ((1, 3, 0, 32), "multiples of 8"),
        ((1, 5, 3, 32, 32), "5 frames: expected a multiple of 4"),
        ((3, 32, 32), "expected"),
        ((1, 4, 32, 32), "expected"),
    ],
)
def test_bad_pixels(model: VisionTokenizer, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.encode(torch.zeros(shape))


def test_bad_codes_and_configs(model: VisionTokenizer) -> None:
    with pytest.raises(InputError, match=r"expected \[B, h, w\]"):
        model.decode(torch.zeros(4, 4, dtype=torch.int64))
    with pytest.raises(InputError, match="power of two"):
        VisionTokenizerConfig(temporal_downsample=3)
    with pytest.raises(InputError, match="multiple of norm_groups"):
        VisionTokenizerConfig(base_channels=40)
    with pytest.raises(InputError, match="must equal"):
        VisionTokenizerConfig(latent_channels=8)
