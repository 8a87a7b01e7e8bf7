"""Ours against transformers' Emu3VQVAE on the same weights: equal codes, equal pictures; and where transformers errs.

Weights are random, and so are the norms' parameters and running statistics, which at their initial values would hide a
mistake. Pictures agree to 1e-5: float32 rounding through some thirty convolutions whose order of summation differs.
"""

import re

import pytest
import torch

from rhea.models.vision.config import VisionTokenizerConfig
from rhea.models.vision.tokenizer import VisionTokenizer

transformers = pytest.importorskip("transformers")

SIZES = [(32, 32), (64, 64), (48, 80), (8, 40)]
NEW_NAMES = [
    (r"\.(down|up)\.(\d)", r".\1_block.\1.\2"),
    (r"\.mid\.", ".middle_block."),
    (r"middle_block\.attn_1\.norm", "middle_block.attn_norm"),
    (r"attn\.(\d)\.norm", r"attn_norms.\1"),
    (r"attn(_1|\.\d)\.(q|k|v)\.", r"attn\1.\2_proj."),
    (r"attn(_1|\.\d)\.proj_out\.", r"attn\1.out_proj."),
]


def theirs_name(name: str) -> str:
    for pattern, replacement in NEW_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def their_tensors(ours: VisionTokenizer, expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {theirs_name(name): tensor for name, tensor in ours.state_dict().items()}
    assert set(renamed) == set(expected)
    return {name: tensor.reshape(expected[name].shape) for name, tensor in renamed.items()}


@torch.no_grad()
def randomize(model: VisionTokenizer) -> None:
    """Make every tensor matter, and let the codebook cover the latents so that many codes occur."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.3, 2.0, generator=generator)
        elif "norm" in name and name.endswith("weight") and tensor.ndim == 1:
            tensor.normal_(1.0, 0.3, generator=generator)
        elif tensor.ndim == 1:
            tensor.normal_(0.0, 0.2, generator=generator)
    latents = model.encode_latents(pixels(8, 3, 64, 64)).movedim(1, -1).reshape(-1, 4)
    conv = model.quant_conv.conv  # latents of unit variance: at their tiny initial one, float32 distances tie
    conv.weight.div_(latents.std(0).view(4, 1, 1, 1, 1))
    conv.bias.sub_(latents.mean(0)).div_(latents.std(0))
    model.quantize.embedding.weight.normal_(0.0, 1.0, generator=generator)


def models(depth: int) -> tuple[VisionTokenizer, "transformers.Emu3VQVAE"]:
    torch.manual_seed(0)
    config = VisionTokenizerConfig(base_channels=32, num_res_blocks=depth, temporal_res_blocks=depth, codebook_size=512)
    ours = VisionTokenizer(config).eval()
    randomize(ours)
    theirs = transformers.Emu3VQVAE(
        transformers.Emu3VQVAEConfig(
            base_channels=32, num_res_blocks=depth, codebook_size=512, hidden_size=128, num_attention_heads=1
        )
    ).eval()
    theirs.load_state_dict(their_tensors(ours, theirs.state_dict()))
    return ours, theirs


@pytest.fixture(scope="module")
def pair() -> tuple[VisionTokenizer, "transformers.Emu3VQVAE"]:
    return models(depth=1)


def pixels(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2)) * 2 - 1


def their_codes(theirs: "transformers.Emu3VQVAE", clips: torch.Tensor) -> torch.Tensor:
    sizes = torch.tensor([clips.shape[-2:]] * len(clips))
    return torch.stack(list(theirs.encode(clips, image_sizes=sizes).image_tokens))


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_pictures(pair: tuple, size: tuple[int, int]) -> None:
    ours, theirs = pair
    images = pixels(2, 3, *size)
    codes = ours.encode(images)
    assert codes.unique().numel() > 3
    assert torch.equal(codes, their_codes(theirs, images))
    torch.testing.assert_close(ours.decode(codes), theirs.decode(codes), rtol=0, atol=1e-5)


@torch.no_grad()
def test_released_depth() -> None:
    released = VisionTokenizerConfig()
    assert released.num_res_blocks == released.temporal_res_blocks == 2
    ours, theirs = models(depth=2)
    images = pixels(1, 3, 48, 32)
    codes = ours.encode(images)
    assert codes.unique().numel() > 3
    assert torch.equal(codes, their_codes(theirs, images))
    torch.testing.assert_close(ours.decode(codes), theirs.decode(codes), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_clips(pair: tuple, size: tuple[int, int]) -> None:
    ours, theirs = pair
    clips = pixels(2, 4, 3, *size)
    codes = ours.encode(clips)
    # Called with sizes so large that its crop of (time, height) instead of (height, width) takes nothing away.
    whole = theirs.encode(clips, image_sizes=torch.tensor([[8000, 8000]] * 2)).image_tokens
    assert torch.equal(codes, torch.stack(list(whole)))
    torch.testing.assert_close(ours.decode(codes), theirs.decode(codes), rtol=0, atol=1e-5)


@torch.no_grad()
def test_transformers_crops_films_on_the_wrong_axes_and_ours_does_not(pair: tuple) -> None:
    ours, theirs = pair
    clips = pixels(1, 4, 3, 16, 40)
    # Asked for the 16 x 24 pixels that are not padding, it crops (time, height) and leaves the width of 5 codes, not 3.
    (cropped,) = theirs.encode(clips, image_sizes=torch.tensor([[16, 24]])).image_tokens
    assert cropped.shape == (1, 2, 5)
    # And the height of a tall film is cut to the number of codes of its width.
    (cropped,) = theirs.encode(clips.mT, image_sizes=torch.tensor([[40, 16]])).image_tokens
    assert cropped.shape == (1, 2, 2)
    assert ours.encode(clips.mT).shape == (1, 1, 5, 2)
    assert ours.encode(clips).shape == (1, 1, 2, 5)


@torch.no_grad()
def test_long_films_are_independent_clips_and_not_one_pass(pair: tuple) -> None:
    ours, theirs = pair
    film = pixels(1, 8, 3, 32, 32)
    codes = ours.encode(film)
    clip_by_clip = theirs.encode(film.view(2, 4, 3, 32, 32), image_sizes=torch.tensor([[8000, 8000]] * 2)).image_tokens
    assert torch.equal(codes[0], torch.cat(list(clip_by_clip)))
    (one_pass,) = theirs.encode(film, image_sizes=torch.tensor([[8000, 8000]])).image_tokens
    assert torch.equal(one_pass[0], codes[0, 0])
    assert (one_pass[1] != codes[0, 1]).float().mean() > 0.1, "one pass lets the first clip change the second"
    by_hand = torch.cat([ours.decode(codes[:, i : i + 1]) for i in range(2)], dim=1)
    torch.testing.assert_close(ours.decode(codes), by_hand, rtol=0, atol=1e-5)


def test_released_size_has_the_same_tensors_as_transformers() -> None:
    with torch.device("meta"):
        ours = VisionTokenizer(VisionTokenizerConfig())
        theirs = transformers.Emu3VQVAE(transformers.Emu3VQVAEConfig())
    their_tensors(ours, theirs.state_dict())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) == 270_740_287
