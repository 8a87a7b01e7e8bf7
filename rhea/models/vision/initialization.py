"""Initial weights with which a small vision tokenizer learns quickly from scratch.

The released model began from a trained two-dimensional MoVQGAN; ours begins from nothing. With the default
initialisation a signal has to pass six narrow temporal convolutions, four SiLUs and some twenty random residual
branches: after hundreds of updates such a model draws grey spots. Here the whole network starts as a blur that already
carries colour: residual branches are nearly silent (as in Fixup, arXiv:1901.09321), resampling averages and repeats,
channels are passed on by number, and biases hold the SiLUs on the trunk in their nearly linear range.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rhea.models.vision.blocks import (
    AttentionBlock,
    CausalConv3d,
    Downsample,
    ResBlock,
    SpatialNorm,
    TemporalResBlock,
    Upsample,
)
from rhea.models.vision.tokenizer import VisionTokenizer

LINEAR_POINT = 2.0
"""Where SiLU is nearly linear with slope 1."""
LIFTED = LINEAR_POINT / (1 + math.exp(-LINEAR_POINT))
"""What SiLU makes of it: the offset that the next layer takes off again."""
RANDOM = 0.3
"""How much of the default random weights stays in the layers of the trunk."""
BRANCH = 0.2
"""How loud a residual branch starts."""


@torch.no_grad()
def initialize(model: VisionTokenizer) -> None:
    """Change the freshly constructed weights in place; draws no random numbers."""
    encoder, decoder, latent = model.encoder, model.decoder, model.config.latent_channels
    for module in model.modules():
        _quieten(module)
    _pass(encoder.conv_in.weight)
    _pass(encoder.conv_out.weight)
    # Only the trunk's channels are lifted: an offset on all would make every update of the next layer a huge step.
    encoder.norm_out.bias[:latent] = LINEAR_POINT
    _cancel_offset(encoder.conv_out, latent)
    _pass_time(encoder.time_conv, taps=(2, 3))
    _identity(model.quant_conv, taps=(2,), bias=-LIFTED)
    _identity(model.post_quant_conv, taps=(2,), bias=0.0)
    _pass_time(decoder.time_conv, taps=(2,))
    _pass(decoder.conv_in.weight)
    _cancel_offset(decoder.conv_in, latent)
    colours = model.config.out_channels
    _pass(decoder.norm_out.conv_b.weight)
    _cancel_offset(decoder.norm_out.conv_b, latent)
    _bias(decoder.norm_out.conv_b)[:colours] += LINEAR_POINT
    _pass(decoder.conv_out.weight, gain=0.5)
    _cancel_offset(decoder.conv_out, colours)


def _quieten(module: nn.Module) -> None:
    """Make a block pass its input on."""
    if isinstance(module, ResBlock):
        module.conv2.weight.mul_(BRANCH)
        if module.nin_shortcut is not None:
            _pass(module.nin_shortcut.weight)
    elif isinstance(module, AttentionBlock):
        module.proj_out.weight.mul_(BRANCH)
    elif isinstance(module, TemporalResBlock):
        nn.init.zeros_(module.conv2.conv.weight)
        _set_bias(module.conv2.conv, 0.0)
    elif isinstance(module, Downsample):
        _pass(module.conv.weight, rows=(0, 1))
    elif isinstance(module, Upsample):
        _pass(module.conv.weight)
    elif isinstance(module, SpatialNorm):
        for conv in (module.conv_y, module.conv_b):
            conv.weight.mul_(RANDOM)
            _cancel_offset(conv, conv.in_channels)
        _bias(module.conv_y).add_(1.0)


def _pass(weight: Tensor, rows: Sequence[int] = (), gain: float = 1.0) -> None:
    """Add to a kernel [out, in, H, W] the identity on channels of equal number, spread over ``rows`` x ``rows``."""
    places = list(rows) or [weight.shape[2] // 2]
    weight.mul_(RANDOM)
    for channel in range(min(weight.shape[:2])):
        for row in places:
            weight[channel, channel, row, places] += gain / len(places) ** 2


def _pass_time(convolutions: nn.ModuleList, taps: Sequence[int]) -> None:
    for number, wrapper in enumerate(convolutions):
        assert isinstance(wrapper.conv, CausalConv3d)
        _identity(wrapper.conv, taps, LINEAR_POINT - (LIFTED if number else 0.0))


def _identity(wrapper: CausalConv3d, taps: Sequence[int], bias: float) -> None:
    """Make the convolution the mean of these temporal taps, plus a tenth of its random weights."""
    weight = wrapper.conv.weight.mul_(0.1)
    middle = weight[:, :, :, weight.shape[3] // 2, weight.shape[4] // 2]
    for channel in range(len(weight)):
        middle[channel, channel, list(taps)] += 1 / len(taps)
    _set_bias(wrapper.conv, bias)


def _cancel_offset(convolution: nn.Conv2d, channels: int) -> None:
    """Take off what lifted input channels, the first so many, add to every output."""
    _bias(convolution).copy_(-LIFTED * convolution.weight[:, :channels].sum((1, 2, 3)))


def _set_bias(convolution: nn.Conv2d | nn.Conv3d, value: float) -> None:
    _bias(convolution).fill_(value)


def _bias(convolution: nn.Conv2d | nn.Conv3d) -> Tensor:
    assert convolution.bias is not None
    return convolution.bias
