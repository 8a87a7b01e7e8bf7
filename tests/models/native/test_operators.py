"""The operators compiled from C give torch's numbers, and the same bits in every batch, piece and number of threads."""

import copy
import itertools
from collections.abc import Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rhea.models.config import TransformerConfig
from rhea.models.kv_cache import KVCache
from rhea.models.layers import RMSNorm, rotary
from rhea.models.native import operators
from rhea.models.native.binding import library
from rhea.models.native.operators import FusedLayers, Panels
from rhea.models.native.trust import _agrees, available
from rhea.models.slot_cache import SlotCache
from rhea.models.transformer import Transformer

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C compiler (or RHEA_NATIVE=0 forbids it)")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
# float32: sums in another order. bfloat16: the sums are float32 too; outputs are rounded, by one place of eight bits
# each, and through two layers and a head a few of them meet.
CLOSE = {torch.float32: {"atol": 2e-6, "rtol": 1e-5}, torch.bfloat16: {"atol": 2e-2, "rtol": 2**-7}}
NEAR_LOGITS = {torch.float32: 1e-5, torch.bfloat16: 0.03}
"""How far logits may be from those of torch's operators in float32, as a part of the largest."""
LENGTH = 150
PIECES = (70, 1, 3, 1, 60, 1, 9, 5)
"""Prompts longer than a block of keys, single tokens and windows."""


def randoms(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@DTYPES
@pytest.mark.parametrize(("outputs", "inputs"), [(97, 33), (64, 48), (1, 1), (200, 130), (16, 2), (300, 257)])
def test_products_are_torchs_in_any_batch(dtype: torch.dtype, outputs: int, inputs: int) -> None:
    weight = randoms(outputs, inputs, dtype=dtype) / inputs**0.5
    panels, x = Panels([weight]), randoms(40, inputs, dtype=dtype, seed=1)
    whole = panels.product(x, wide=True)
    torch.testing.assert_close(whole, x.float() @ weight.float().T, **CLOSE[torch.float32])
    assert torch.equal(panels.product(x), whole.to(dtype))
    for count in range(1, 26):
        assert torch.equal(panels.product(x[3 : 3 + count], wide=True), whole[3 : 3 + count])
    for start, stop in itertools.product((0, outputs // 3, outputs // 2), (outputs // 2 + 1, outputs)):
        assert torch.equal(panels.product(x[None], start, stop, wide=True)[0], whole[:, start:stop])
    assert panels.product(x[:0]).shape == (0, outputs)


@DTYPES
@pytest.mark.parametrize(("outputs", "inputs"), [(48, 32), (100, 33), (7, 5)])
def test_a_gated_product_is_silu_times_the_other_half(dtype: torch.dtype, outputs: int, inputs: int) -> None:
    gate, up = (2 * randoms(outputs, inputs, dtype=dtype, seed=seed) / inputs**0.5 for seed in (0, 1))
    panels, x = Panels([gate, up], gated=True), 3 * randoms(19, inputs, dtype=dtype, seed=2)
    found = panels.product(x)
    torch.testing.assert_close(found, F.silu(F.linear(x, gate)) * F.linear(x, up), **CLOSE[dtype])
    assert torch.equal(panels.product(x[4:5]), found[4:5])
    huge = torch.zeros(2, inputs, dtype=dtype)
    huge[:, 0] = torch.tensor([-300, 300])
    torch.testing.assert_close(panels.product(huge), F.silu(F.linear(huge, gate)) * F.linear(huge, up), **CLOSE[dtype])


@DTYPES
def test_what_is_no_number_stays_none(dtype: torch.dtype) -> None:
    weight = randoms(40, 24, dtype=dtype)
    x = randoms(3, 24, dtype=dtype, seed=1)
    x[1, 5] = float("nan")
    x[2, 5] = float("inf")
    for panels in (Panels([weight]), Panels([weight[:20], weight[20:]], gated=True)):
        finite = panels.product(x).isfinite().all(-1).tolist()
        assert finite == [True, False, False]
    assert operators.norm(x, torch.ones(24, dtype=dtype), 1e-5)[1].isnan().all()


@DTYPES
@pytest.mark.parametrize("width", [2, 33, 768])
def test_norms_and_rotations_are_torchs(dtype: torch.dtype, width: int) -> None:
    norm = RMSNorm(width, 1e-5)
    norm.weight.data = randoms(width)
    norm, x = norm.to(dtype), randoms(5, 3, width, dtype=dtype, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(operators.norm(x, norm.weight, 1e-5), norm(x), **CLOSE[dtype])
    positions = torch.tensor([[0, 1, 7], [1000, 9215, 3]])
    for found, expected in zip(
        operators.rotary(positions, 48, 1e4, dtype), rotary(positions, 48, 1e4, dtype), strict=True
    ):
        torch.testing.assert_close(found, expected, **CLOSE[dtype])


def model(dtype: torch.dtype, heads: tuple[int, int, int] = (4, 2, 8), qk_norm: bool = False) -> Transformer:
    num_heads, num_kv_heads, head_dim = heads
    config = TransformerConfig(
        vocab_size=97,
        dim=96,
        num_layers=2,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        ffn_dim=100,
        max_seq_len=256,
        init_std=0.1,
        qk_norm=qk_norm,
    )
    transformer = Transformer(config)
    transformer.init_weights(seed=1)
    return transformer.to(dtype).eval()


TOKENS = torch.randint(0, 97, (2, LENGTH), generator=torch.Generator().manual_seed(0))


def in_pieces(packed: Transformer, pieces: Sequence[int], rows: Sequence[int] = (0, 1)) -> Tensor:
    """Feed rows of TOKENS to slots in pieces, side by side; return the logits [rows, T, V]."""
    dtype = packed.norm.weight.dtype  # type: ignore[union-attr]
    cache, found, at = SlotCache(packed.config, 3, LENGTH + 7, dtype), [], 0
    for count in pieces:
        cache.feed([(2 * slot, count) for slot, _ in enumerate(rows)])
        flat = torch.cat([TOKENS[row, at : at + count] for row in rows])
        found.append(packed.logits(packed.hidden(flat[None], cache=cache))[0].unflatten(0, (len(rows), count)))
        at += count
    return torch.cat(found, 1)


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("heads", [(4, 2, 8), (6, 2, 64), (3, 1, 36), (4, 4, 130), (2, 1, 2)], ids=str)
def test_layers_over_a_cache_are_torchs_and_no_schedule_changes_a_bit(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, heads: tuple[int, int, int], qk_norm: bool
) -> None:
    plain, calls = model(dtype, heads, qk_norm), list[int]()
    packed, operator = copy.deepcopy(plain).pack([50]), FusedLayers.__call__

    def counted(self: FusedLayers, x: Tensor, *rest: object) -> Tensor:
        calls.append(x.shape[1])
        return operator(self, x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(FusedLayers, "__call__", counted)
    found = in_pieces(packed, PIECES)
    assert calls == [2 * count for count in PIECES], "all layers are one operator"
    expected = plain.float()(TOKENS)
    assert (found - expected).abs().max() < NEAR_LOGITS[dtype] * expected.abs().max()
    for row in (0, 1):
        assert torch.equal(in_pieces(packed, (LENGTH,), rows=[row])[0], found[row])
    batch = KVCache(packed.config, 2, LENGTH, dtype)
    pieces = [packed(piece, cache=batch) for piece in TOKENS.split((LENGTH - 10, 1, 9), 1)]
    assert torch.equal(torch.cat(pieces, 1), found), "the plain loop's cache gives the same bits"


@torch.no_grad()
@DTYPES
def test_threads_change_no_bit(threads: None, dtype: torch.dtype) -> None:
    packed, panels = model(dtype, qk_norm=True).pack(), Panels([randoms(1000, 600, dtype=dtype)])
    x = randoms(7, 600, dtype=dtype)
    torch.set_num_threads(1)
    alone = in_pieces(packed, PIECES), panels.product(x), panels.product(x, 13, 999)
    for count in (2, 3):
        torch.set_num_threads(count)
        assert torch.equal(in_pieces(packed, PIECES), alone[0])
        assert torch.equal(panels.product(x), alone[1])
        assert torch.equal(panels.product(x, 13, 999), alone[2])


@torch.no_grad()
def test_changed_weights_and_norms_are_noticed() -> None:
    plain = model(torch.float32, qk_norm=True)
    packed = copy.deepcopy(plain).pack()
    in_pieces(packed, PIECES)
    for each in (plain, packed):
        for parameter in each.parameters():
            parameter.mul_(1.1)
        each.layers[1].attention_norm.weight = torch.nn.Parameter(torch.full((96,), 0.7))
    expected = plain(TOKENS)
    assert (in_pieces(packed, PIECES) - expected).abs().max() < NEAR_LOGITS[torch.float32] * expected.abs().max()
    assert in_pieces(packed.bfloat16(), (4,)).isfinite().all(), "a cast packs anew"


@torch.no_grad()
@DTYPES
def test_released_weights_are_held_once(dtype: torch.dtype) -> None:
    plain = model(dtype)
    expected, packed = in_pieces(copy.deepcopy(plain).pack(), PIECES), plain.pack(alone=True)
    assert torch.equal(in_pieces(packed, PIECES), expected)
    attention, mlp = packed.layers[0].attention, packed.layers[0].mlp
    held = [product.panels(torch.empty(0, dtype=dtype)) for product in (*attention.packed, *mlp.packed)]  # type: ignore
    matrices = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    matrices += (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    rounded_up = sum(-(-each.weight.shape[0] // 16) * 16 * each.weight.shape[1] for each in matrices)
    assert all(each.weight.is_meta for each in matrices)
    assert sum(panels.memory.numel() for panels in held) <= rounded_up  # type: ignore[union-attr]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_other_dtypes_stay_with_torch(dtype: torch.dtype) -> None:
    assert not available(dtype)
    plain = model(torch.float32).to(dtype)
    expected = plain(TOKENS)
    found = in_pieces(plain.pack(), PIECES)
    assert (found - expected).abs().max() < 0.01 * expected.abs().max()


@torch.no_grad()
def test_a_cache_of_fewer_bits_stays_with_torch() -> None:
    packed = model(torch.float32).pack()
    cache = SlotCache(packed.config, 1, LENGTH, storage="int8")
    cache.feed([(0, LENGTH)])
    states, expected = packed.hidden(TOKENS[:1], cache=cache), packed.hidden(TOKENS[:1])
    assert 0 < (states - expected).abs().max() < 0.1 * expected.abs().max()


@DTYPES
def test_operators_that_compute_something_else_are_not_used(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert available(dtype)
    product = Panels.product

    def wrong(panels: Panels, x: Tensor) -> Tensor:
        return product(panels, x) * 1.2

    _agrees.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Panels, "product", wrong)
            assert not available(dtype)
        assert "torch's serve" in caplog.text
    finally:
        _agrees.cache_clear()
    assert available(dtype)


def test_a_wrong_layer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def idle(layers: FusedLayers, x_BTD: Tensor, *others: object) -> Tensor:
        return x_BTD

    _agrees.cache_clear()
    monkeypatch.setattr(FusedLayers, "__call__", idle)
    assert not available(torch.float32)
    _agrees.cache_clear()
