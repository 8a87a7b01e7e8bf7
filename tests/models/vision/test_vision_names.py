"""The released tensors, written down as a rule: 495 names and shapes, 270,740,287 parameters."""

from collections.abc import Iterator

import torch

from rhea.models.vision.config import VisionTokenizerConfig
from rhea.models.vision.tokenizer import VisionTokenizer

Shapes = Iterator[tuple[str, tuple[int, ...]]]
LATENT = 4


def conv(name: str, after: int, before: int, *kernel: int) -> Shapes:
    yield f"{name}.weight", (after, before, *kernel)
    yield f"{name}.bias", (after,)


def norm(name: str, width: int, spatial: bool) -> Shapes:
    inner = f"{name}.norm_layer" if spatial else name
    yield f"{inner}.weight", (width,)
    yield f"{inner}.bias", (width,)
    if spatial:
        yield from conv(f"{name}.conv_y", width, LATENT, 1, 1)
        yield from conv(f"{name}.conv_b", width, LATENT, 1, 1)


def residual(name: str, after: int, before: int, spatial: bool) -> Shapes:
    yield from norm(f"{name}.norm1", before, spatial)
    yield from conv(f"{name}.conv1", after, before, 3, 3)
    yield from norm(f"{name}.norm2", after, spatial)
    yield from conv(f"{name}.conv2", after, after, 3, 3)
    if after != before:
        yield from conv(f"{name}.nin_shortcut", after, before, 1, 1)


def attention(name: str, width: int, spatial: bool) -> Shapes:
    yield from norm(f"{name}.norm", width, spatial)
    for part in ("q", "k", "v", "proj_out"):
        yield from conv(f"{name}.{part}", width, width, 1, 1)


def middle(name: str, width: int, spatial: bool) -> Shapes:
    yield from residual(f"{name}.block_1", width, width, spatial)
    yield from attention(f"{name}.attn_1", width, spatial)
    yield from residual(f"{name}.block_2", width, width, spatial)


def temporal(name: str, front: int) -> Shapes:
    for i in range(2):
        yield from conv(f"{name}.time_conv.{i}.conv.conv", LATENT, LATENT, front, 3, 3)
        for j in (1, 2):
            block = f"{name}.time_res_stack.{i}"
            for part in ("weight", "bias", "running_mean", "running_var"):
                yield f"{block}.norm{j}.{part}", (LATENT,)
            yield f"{block}.norm{j}.num_batches_tracked", ()
            yield from conv(f"{block}.conv{j}.conv", LATENT, LATENT, 3, 3, 3)


def level(name: str, after: int, before: int, blocks: int, spatial: bool) -> Shapes:
    for i in range(blocks):
        yield from residual(f"{name}.block.{i}", after, after if i else before, spatial)
        if after == 1024:
            yield from attention(f"{name}.attn.{i}", after, spatial)


def released() -> Shapes:
    widths = (256, 512, 512, 1024)
    yield from conv("encoder.conv_in", 256, 3, 3, 3)
    for i, (after, before) in enumerate(zip(widths, (256, *widths), strict=False)):
        yield from level(f"encoder.down.{i}", after, before, 2, spatial=False)
        if i < 3:
            yield from conv(f"encoder.down.{i}.downsample.conv", after, after, 3, 3)
    yield from middle("encoder.mid", 1024, spatial=False)
    yield from norm("encoder.norm_out", 1024, spatial=False)
    yield from conv("encoder.conv_out", LATENT, 1024, 3, 3)
    yield from temporal("encoder", front=4)
    yield from temporal("decoder", front=3)
    yield from conv("decoder.conv_in", 1024, LATENT, 3, 3)
    yield from middle("decoder.mid", 1024, spatial=True)
    for i, (after, before) in enumerate(zip(widths, (*widths[1:], 1024), strict=True)):
        yield from level(f"decoder.up.{i}", after, before, 3, spatial=True)
        if i:
            yield from conv(f"decoder.up.{i}.upsample.conv", after, after, 3, 3)
    yield from norm("decoder.norm_out", 256, spatial=True)
    yield from conv("decoder.conv_out", 3, 256, 3, 3)
    yield "quantize.embedding.weight", (32768, LATENT)
    yield from conv("quant_conv.conv", LATENT, LATENT, 3, 1, 1)
    yield from conv("post_quant_conv.conv", LATENT, LATENT, 3, 1, 1)


def test_released_names_shapes_and_count() -> None:
    with torch.device("meta"):
        model = VisionTokenizer(VisionTokenizerConfig())
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert ours == dict(released())
    assert len(ours) == 495
    assert sum(p.numel() for p in model.parameters()) == 270_740_287
    assert sum(b.numel() for b in model.buffers()) == 72
