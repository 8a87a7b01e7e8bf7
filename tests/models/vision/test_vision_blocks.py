"""Norms, upsampling and strips: each fast form against its plain definition."""

import pytest
import torch
import torch.nn.functional as F

import rhea.models.vision.strips as strips
from rhea.models.vision.blocks import AttentionBlock, CausalConv3d, Downsample, ResBlock, TemporalResBlock, Upsample
from rhea.models.vision.norm import GroupNorm, SpatialNorm, modulated

MAPS = [(2, 8, 2, 3), (1, 8, 1, 1), (2, 8, 1, 3), (2, 8, 16, 24)]


def noise(*shape: int, dtype: torch.dtype = torch.float32, layout: torch.memory_format = torch.channels_last):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, dtype=dtype, generator=generator).contiguous(memory_format=layout)


def plain(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, groups: int) -> torch.Tensor:
    scale, shift = (F.interpolate(m, size=x.shape[2:], mode="nearest") for m in (scale, shift))
    return F.group_norm(x, groups, eps=1e-6) * scale + shift


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("maps", MAPS)
def test_modulated_norm_and_its_gradients(maps: tuple[int, ...], layout: torch.memory_format) -> None:
    x = (noise(2, 8, 16, 24, dtype=torch.float64, layout=layout) + 2).requires_grad_()
    scale, shift = (noise(*maps, dtype=torch.float64).add(i).requires_grad_() for i in (0, 1))
    weight = noise(2, 8, 16, 24, dtype=torch.float64).flip(0)
    ours, expected = modulated(x, scale, shift, 4), plain(x, scale, shift, 4)
    torch.testing.assert_close(ours, expected)
    inputs = (x, scale, shift)
    for mine, theirs in zip(
        torch.autograd.grad(ours, inputs, weight), torch.autograd.grad(expected, inputs, weight), strict=True
    ):
        torch.testing.assert_close(mine, theirs)
    with torch.no_grad():
        torch.testing.assert_close(modulated(x, scale, shift, 4), expected)


def test_norm_of_large_channels_last_pictures_keeps_its_digits() -> None:
    # Torch's kernel for this layout is off by more than 1e-4 here: it subtracts large sums of squares.
    x = noise(1, 32, 160, 200) + 3
    norm = GroupNorm(32, 8)
    exact = F.group_norm(x.double(), 8, eps=1e-6)
    with torch.no_grad():
        assert (norm(x) - exact).abs().max() < 1e-5


def test_norm_in_bfloat16_autocast_has_the_gradient_of_float32() -> None:
    x, latents = noise(2, 16, 32, 32).requires_grad_(), noise(2, 4, 4, 4)
    norm = SpatialNorm(16, 4, 4)
    weight = noise(2, 16, 32, 32).flip(0)
    (expected,) = torch.autograd.grad(norm(x, latents), x, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = norm(x.to(torch.bfloat16), latents)
    assert out.dtype == torch.bfloat16
    (ours,) = torch.autograd.grad(out, x, weight.to(torch.bfloat16))
    assert (ours - expected).norm() < 0.02 * expected.norm()


def test_upsample_is_nearest_then_convolution_and_so_is_its_gradient() -> None:
    block, x = Upsample(8), noise(2, 8, 5, 7)
    expected = block.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-6)
    (ours,) = torch.autograd.grad(block(x).square().sum(), block.conv.weight)
    (theirs,) = torch.autograd.grad(expected.square().sum(), block.conv.weight)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
@pytest.mark.parametrize("after", [8, 16])
def test_strips_are_the_whole(rows: int, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    block, x, latents = ResBlock(8, after, 4, 4, 0.0), noise(1, 8, 16, 12), noise(1, 4, 4, 3)
    with torch.no_grad():
        whole, half = block(x, latents), Downsample(8)
        expected = half.conv(F.pad(x, (0, 1, 0, 1)))
        before = x.clone()
        monkeypatch.setattr(strips, "STRIP_VALUES", rows * 8 * 12)
        torch.testing.assert_close(block(x, latents), whole, rtol=0, atol=1e-6)
        torch.testing.assert_close(half(x), expected, rtol=0, atol=1e-6)
        assert torch.equal(x, before), "a block may not change its input"
    torch.testing.assert_close(block(x, latents), whole, rtol=0, atol=1e-5)


def test_attention_is_over_all_places_of_one_frame() -> None:
    block, x = AttentionBlock(8, None, 4), noise(2, 8, 3, 5)
    flat = block.norm(x).flatten(2)
    q, k, v = (c.weight[:, :, 0, 0] @ flat + c.bias[:, None] for c in (block.q, block.k, block.v))
    mixed = v @ torch.softmax(q.mT @ k / 8**0.5, dim=-1).mT
    expected = x + (block.proj_out.weight[:, :, 0, 0] @ mixed + block.proj_out.bias[:, None]).view_as(x)
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-6)


def test_causal_convolution_does_not_look_ahead() -> None:
    conv, x = CausalConv3d(4, 4), torch.randn(1, 4, 5, 4, 4)
    later = x.clone()
    later[:, :, 3:] += 1
    assert torch.equal(conv(x)[:, :, :3], conv(later)[:, :, :3])
    assert conv(x).shape == x.shape


def test_frozen_batch_norm_stays_on_its_running_statistics() -> None:
    block, x = TemporalResBlock(4, 0.0), torch.randn(2, 4, 2, 4, 4) + 3
    evaluated = block.eval()(x)
    block.freeze_norm = True
    assert torch.equal(block.train()(x), evaluated)
    assert torch.equal(block.norm1.running_mean, torch.zeros(4))
    block.freeze_norm = False
    block.train()(x)
    assert block.norm1.running_mean.abs().min() > 0.1
