import dataclasses

import pytest
import torch
from torch import Tensor

from rhea.errors import InputError
from rhea.models.attention import Attention
from rhea.models.config import TransformerConfig
from rhea.models.kv_cache import KVCache
from rhea.models.layers import rotary
from rhea.models.packed import padded_rows
from rhea.models.transformer import DecoderLayer, Transformer
from rhea.models.visibility import Visibility

SMALL = TransformerConfig(
    vocab_size=97,
    dim=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_dim=48,
    max_seq_len=64,
    init_std=0.2,
)
EMU3_8B = TransformerConfig(
    vocab_size=184622,
    dim=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    ffn_dim=14336,
    max_seq_len=9216,
)
# float32 sums in another order: a few units in the last place of values near 1.
CLOSE = {"atol": 2e-6, "rtol": 1e-5}


def small_model(**changes: object) -> Transformer:
    model = Transformer(dataclasses.replace(SMALL, **changes))
    model.init_weights(seed=3)
    return model


def some_tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, SMALL.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_emu3_has_its_published_size() -> None:
    with torch.device("meta"):
        model = Transformer(EMU3_8B)
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_492_011_520
    assert len(model.state_dict()) == 291


def test_the_future_is_not_seen() -> None:
    model, token_ids = small_model(), some_tokens(1, 12)
    changed = token_ids.clone()
    changed[0, 8:] = (changed[0, 8:] + 1) % 97
    before, after = model(token_ids), model(changed)
    torch.testing.assert_close(before[:, :8], after[:, :8], rtol=0, atol=0)
    assert (before[:, 8:] - after[:, 8:]).abs().amin(-1).max() > 1e-4


@pytest.mark.parametrize("lengths", [(5, 1, 10), (16,), (1, 1, 14), (7, 9)])
def test_packed_documents_equal_one_by_one(lengths: tuple[int, ...]) -> None:
    model, token_ids = small_model(), some_tokens(2, 16)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).expand(2, -1).clone()
    ids[1] += 7
    slopes = torch.randn(2, 16, 97, generator=torch.Generator().manual_seed(1))
    packed = model(token_ids, document_ids_BT=ids)
    (packed * slopes).sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    alone = torch.cat([model(piece) for piece in token_ids.split(lengths, 1)], 1)
    (alone * slopes).sum().backward()
    torch.testing.assert_close(packed, alone, **CLOSE)
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5 * scale, rtol=1e-5, msg=name)


def test_given_positions_are_used_and_only_their_differences_matter() -> None:
    model, token_ids = small_model(), some_tokens(1, 10)
    shifted = model(token_ids, positions_BT=torch.arange(100, 110)[None])
    torch.testing.assert_close(model(token_ids), shifted, atol=2e-5, rtol=1e-4)
    assert (model(token_ids) - model(token_ids, positions_BT=2 * torch.arange(10)[None])).abs().max() > 1e-3


def test_logits_of_a_range_are_a_slice_of_all() -> None:
    model, token_ids = small_model(), some_tokens(2, 6)
    states = model.hidden(token_ids)
    assert states.shape == (2, 6, 32)
    full = model(token_ids)
    torch.testing.assert_close(model.logits(states), full, rtol=0, atol=0)
    torch.testing.assert_close(model.logits(states, 40, 60), full[..., 40:60], **CLOSE)
    torch.testing.assert_close(model.logits(states[:, -1], 90), full[:, -1, 90:], **CLOSE)
    assert model.bfloat16().logits(states.bfloat16()).dtype == torch.float32


def test_stages_without_some_parts_compose_to_the_whole() -> None:
    whole, token_ids = small_model(), some_tokens(2, 9)
    first, second = small_model(), small_model()
    first.norm = first.lm_head = None
    del first.layers[1:]
    second.embed_tokens = None
    del second.layers[:1]
    states = first(token_ids)
    assert states.shape == (2, 9, 32)
    torch.testing.assert_close(second(states), whole(token_ids), rtol=0, atol=0)


def zero_or_scaled(dropped: Tensor, kept: Tensor, dropout: float) -> None:
    """Every value is 0 or the undropped one over 1 - p, in about the right proportion."""
    torch.testing.assert_close(dropped[dropped != 0], kept[dropped != 0] / (1 - dropout), atol=1e-4, rtol=1e-4)
    assert (dropped == 0).float().mean().item() == pytest.approx(dropout, abs=0.1)


def test_dropout_on_the_embedding() -> None:
    model, token_ids = small_model(dropout=0.3), some_tokens(8, 16)
    model.norm = model.lm_head = None
    del model.layers[:]
    torch.manual_seed(0)
    zero_or_scaled(model.train()(token_ids), model.eval()(token_ids), 0.3)


@pytest.mark.parametrize("branch", ["attention", "mlp"])
def test_dropout_on_both_residual_branches(branch: str) -> None:
    layer = small_model(dropout=0.3).layers[0]
    assert isinstance(layer, DecoderLayer)
    layer.attention.dropout = 0.0
    silent = layer.mlp.down_proj if branch == "attention" else layer.attention.o_proj
    torch.nn.init.zeros_(silent.weight)
    x = torch.randn(8, 16, 32)
    context = rotary(torch.arange(16).expand(8, 16), 8, 1e6, x.dtype), Visibility(causal=True)
    torch.manual_seed(0)
    difference = layer.train()(x, *context) - x
    difference[difference.abs() < 1e-6] = 0
    zero_or_scaled(difference, layer.eval()(x, *context) - x, 0.3)


def test_dropout_on_the_attention_probabilities() -> None:
    attention = Attention(dataclasses.replace(SMALL, dropout=0.3))
    torch.nn.init.eye_(attention.o_proj.weight)
    x = torch.randn(64, 1, 32)  # one token: one probability of 1 per head, dropped as a whole
    context = rotary(torch.zeros(64, 1), 8, 1e6, x.dtype), Visibility(causal=True)
    torch.manual_seed(0)
    dropped, kept = attention.train()(x, *context), attention.eval()(x, *context)
    zero_or_scaled(dropped, kept, 0.3)
    whole_heads = (dropped.unflatten(-1, (4, 8)) == 0).float().mean(-1)
    assert ((whole_heads == 0) | (whole_heads == 1)).all()


def test_no_dropout_in_evaluation() -> None:
    token_ids = some_tokens(2, 9)
    torch.testing.assert_close(small_model(dropout=0.5).eval()(token_ids), small_model()(token_ids), rtol=0, atol=0)


def test_qk_norm_makes_the_scale_of_queries_and_keys_irrelevant() -> None:
    token_ids = some_tokens(2, 9)
    for qk_norm in (True, False):
        model = small_model(qk_norm=qk_norm, norm_eps=1e-12)
        before = model(token_ids)
        for layer in model.layers:
            layer.attention.q_proj.weight.data *= 3
            layer.attention.k_proj.weight.data *= 5
        change = (model(token_ids) - before).abs().max()
        assert (change < 1e-4) == qk_norm
    names = small_model(qk_norm=True).state_dict()
    assert names["layers.0.attention.q_norm.weight"].shape == names["layers.0.attention.k_norm.weight"].shape == (8,)


def test_init_is_normal_seeded_and_zeroes_the_pad_row() -> None:
    model = Transformer(dataclasses.replace(SMALL, dim=64, init_std=0.02, pad_id=5))
    model.init_weights(seed=1)
    weights = model.state_dict()
    assert not weights["embed_tokens.weight"][5].any()
    assert weights["embed_tokens.weight"][:5].any(1).all()
    for name, weight in weights.items():
        if weight.ndim == 1:
            assert (weight == 1).all()
        else:
            assert weight.std().item() == pytest.approx(0.02, rel=0.1), name
            assert abs(weight.mean().item()) < 0.002, name
    same, other = (Transformer(model.config) for _ in range(2))
    same.init_weights(seed=1)
    other.init_weights(seed=2)
    assert all(torch.equal(weights[name], value) for name, value in same.state_dict().items())
    assert model.embed_tokens is not None
    model(torch.tensor([[5, 6]])).sum().backward()
    assert model.embed_tokens.weight.grad is not None
    assert model.embed_tokens.weight.grad.any(1).nonzero().flatten().tolist() == [6]
    assert not torch.equal(weights["lm_head.weight"], other.state_dict()["lm_head.weight"])


def test_rotary_angles_survive_a_cast_of_the_model() -> None:
    position = torch.tensor([[100_003]])
    low, high = rotary(position, 8, 1e6, torch.bfloat16), rotary(position, 8, 1e6, torch.float32)
    assert torch.equal(low.cos, high.cos.bfloat16())
    assert torch.equal(low.signed_sin, high.signed_sin.bfloat16())
    assert high.cos[0, 0, 0, 0].item() == pytest.approx(torch.tensor(100_003.0).double().cos().item(), abs=1e-6)
    assert not list(small_model().buffers())


def test_bad_sizes_are_named() -> None:
    with pytest.raises(InputError, match="num_kv_heads 3"):
        dataclasses.replace(SMALL, num_kv_heads=3)
    with pytest.raises(InputError, match="head_dim 7"):
        dataclasses.replace(SMALL, head_dim=7)
    with torch.device("meta"), pytest.raises(InputError, match="meta"):
        Transformer(SMALL).init_weights(0)


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (3, 2), (3, 3), (4, 13)])
@torch.no_grad()
def test_packed_matrices_give_the_same_numbers(shape: tuple[int, int]) -> None:
    model, token_ids = small_model().eval(), some_tokens(*shape)
    states, expected = model.hidden(token_ids), model(token_ids)
    model.pack()
    torch.testing.assert_close(model(token_ids), expected, **CLOSE)
    torch.testing.assert_close(model.logits(states, 10, 33), expected[..., 10:33], **CLOSE)


def test_numbers_of_rows_are_rounded_up_by_at_most_a_quarter() -> None:
    padded = [padded_rows(count) for count in range(1, 4097)]
    assert padded[:9] == [4, 4, 4, 4, 5, 6, 7, 8, 10]
    assert all(count <= rows <= max(1.25 * count, 4) for count, rows in enumerate(padded, start=1))
    assert len({rows for rows in padded if rows <= 128}) == 1 + 4 * 5, "four numbers in each octave from four to 128"
    assert {rows % 32 for rows in padded if rows > 128} == {0}


def test_packed_matrices_follow_changed_weights_and_leave_gradients_alone() -> None:
    model, token_ids = small_model().eval().pack(), some_tokens(2, 5)
    with torch.no_grad():
        model(token_ids)
        for parameter in model.parameters():
            parameter.mul_(1.5)
        model.layers[1].mlp.down_proj.weight = torch.nn.Parameter(torch.randn(32, 48))
        packed = model(token_ids)
    trained = model(token_ids)
    torch.testing.assert_close(packed, trained.detach(), **CLOSE)
    trained.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    expected = model.double()(token_ids).detach()
    with torch.no_grad():  # no packed kernel for float64: the plain one takes over
        torch.testing.assert_close(model(token_ids), expected, **CLOSE)


@torch.inference_mode()
def test_packed_matrices_in_bfloat16_and_inference_mode() -> None:
    model, token_ids = small_model().bfloat16().eval(), some_tokens(2, 6)
    expected = model(token_ids)
    cache = KVCache(SMALL, 2, 8, torch.bfloat16)
    chunks = [model.pack()(piece, cache=cache) for piece in token_ids.split((4, 1, 1), 1)]
    torch.testing.assert_close(torch.cat(chunks, 1), expected, atol=0.05, rtol=0.05)


@torch.no_grad()
def test_packed_alone_it_gives_the_same_numbers_and_holds_its_weights_once() -> None:
    model, token_ids = small_model().eval(), some_tokens(3, 5)
    states, expected = model.hidden(token_ids), model(token_ids)
    model.pack((11, 40), alone=True)
    torch.testing.assert_close(model(token_ids), expected, **CLOSE)
    for start, stop in ((0, 11), (11, 40), (5, 45), (12, 13), (40, None)):
        torch.testing.assert_close(model.logits(states, start, stop), expected[..., start:stop], **CLOSE)
    held = {name for name, parameter in model.named_parameters() if not parameter.is_meta}
    assert all("norm" in name or name == "embed_tokens.weight" for name in held), held
    assert sum(parameter.numel() for parameter in model.parameters()) == sum(
        parameter.numel() for parameter in small_model().parameters()
    )


def test_packed_alone_it_can_not_be_trained() -> None:
    with pytest.raises(InputError, match="load_checkpoint"):
        small_model().pack(alone=True)(some_tokens(1, 3))
