"""Pictures in overlapping tiles."""

import pytest
import torch

from rhea.errors import InputError
from rhea.models.vision.config import VisionTokenizerConfig
from rhea.models.vision.tiles import decode_in_tiles, encode_in_tiles
from rhea.models.vision.tokenizer import VisionTokenizer


@pytest.fixture(scope="module")
def model() -> VisionTokenizer:
    torch.manual_seed(0)
    config = VisionTokenizerConfig(base_channels=16, num_res_blocks=1, norm_groups=8, codebook_size=64)
    tokenizer = VisionTokenizer(config).eval()
    torch.nn.init.normal_(tokenizer.quantize.embedding.weight)
    return tokenizer


def test_one_tile_is_the_whole(model: VisionTokenizer) -> None:
    pixels = torch.rand(3, 48, 32) * 2 - 1
    codes = encode_in_tiles(model, pixels, tile=6, overlap=2)
    assert torch.equal(codes, model.encode(pixels[None])[0])
    torch.testing.assert_close(decode_in_tiles(model, codes, 6, 2), model.decode(codes[None])[0], rtol=0, atol=1e-6)


def test_tiles_come_near_the_whole_and_are_small(model: VisionTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.randint(0, 64, (22, 13), generator=torch.Generator().manual_seed(0))
    whole, sizes, decode = model.decode(codes[None])[0], [], model.decode
    monkeypatch.setattr(model, "decode", lambda tile: sizes.append(tile.shape[1:]) or decode(tile))
    tiled = decode_in_tiles(model, codes, tile=10, overlap=4)
    assert tiled.shape == whole.shape
    assert len(sizes) == 6
    assert max(max(size) for size in sizes) == 10
    agreement = torch.corrcoef(torch.stack([tiled.flatten(), whole.flatten()]))[0, 1]
    assert 0.9 < agreement < 1, "near, but the norms of a tile are not those of the whole"


def test_every_code_of_a_tiled_picture_is_set(model: VisionTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    # A model whose code is the brightness of its own pixels knows nothing of tiles: tiling must not change it.
    monkeypatch.setattr(model, "encode", lambda x: (x[:, 0, ::8, ::8] * 1000).long())
    pixels = torch.rand(3, 8 * 19, 8 * 30)
    assert torch.equal(encode_in_tiles(model, pixels, tile=7, overlap=2), (pixels[0, ::8, ::8] * 1000).long())


def test_overlap_must_be_smaller_than_the_tile(model: VisionTokenizer) -> None:
    with pytest.raises(InputError, match="overlap by 8"):
        decode_in_tiles(model, torch.zeros(4, 4, dtype=torch.int64), tile=8, overlap=8)
