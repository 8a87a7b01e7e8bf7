"""Our transformer and transformers' Emu3 give the same numbers from the same weights."""

import pytest
import torch
from torch import Tensor
from transformers import Emu3ForCausalLM, Emu3TextConfig

from rhea.models.config import TransformerConfig
from rhea.models.kv_cache import KVCache
from rhea.models.loss_head import weighted_cross_entropy
from rhea.models.transformer import Transformer

THEIR_NAMES = {
    "attention.": "self_attn.",
    "attention_norm.": "input_layernorm.",
    "mlp_norm.": "post_attention_layernorm.",
}
# The tolerance: float32 sums in another order.
TOLERANCE = 1e-5


def their_name(name: str) -> str:
    for ours, theirs in THEIR_NAMES.items():
        name = name.replace(ours, theirs)
    return name if name.startswith("lm_head") else f"model.{name}"


def both(head_dim: int = 16, num_kv_heads: int = 2) -> tuple[Transformer, Emu3ForCausalLM]:
    config = TransformerConfig(
        vocab_size=211,
        dim=4 * head_dim,
        num_layers=3,
        num_heads=4,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        ffn_dim=96,
        max_seq_len=128,
        init_std=0.15,
        pad_id=0,
    )
    ours = Transformer(config)
    ours.init_weights(seed=7)
    for name, parameter in ours.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    theirs = Emu3ForCausalLM(
        Emu3TextConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            intermediate_size=config.ffn_dim,
            max_position_embeddings=config.max_seq_len,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            attention_dropout=0.0,
            pad_token_id=config.pad_id,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    theirs.load_state_dict({their_name(name): weight for name, weight in ours.state_dict().items()}, strict=True)
    return ours, theirs


def some_tokens(length: int = 40) -> Tensor:
    return torch.randint(0, 211, (2, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("head_dim", "num_kv_heads"), [(16, 2), (8, 4), (32, 1)])
@torch.no_grad()
def test_same_logits(head_dim: int, num_kv_heads: int) -> None:
    ours, theirs = both(head_dim, num_kv_heads)
    expected = theirs(some_tokens()).logits
    assert expected.abs().max() > 1
    torch.testing.assert_close(ours(some_tokens()), expected, atol=TOLERANCE, rtol=TOLERANCE)
    torch.testing.assert_close(ours.pack()(some_tokens()), expected, atol=TOLERANCE, rtol=TOLERANCE)


@torch.no_grad()
def test_same_logits_with_a_cache() -> None:
    ours, theirs = both()
    cache = KVCache(ours.config, 2, 40)
    chunks = [ours.pack()(piece, cache=cache) for piece in some_tokens().split((17, 1, 1, 20, 1), 1)]
    torch.testing.assert_close(torch.cat(chunks, 1), theirs(some_tokens()).logits, atol=TOLERANCE, rtol=TOLERANCE)


def test_same_loss_and_gradients() -> None:
    ours, theirs = both()
    token_ids = some_tokens()
    ignored = token_ids % 5 == 0
    labels = token_ids.masked_fill(ignored, -100)
    expected = theirs(token_ids, labels=labels).loss
    expected.backward()
    counted = (~ignored[:, 1:]).flatten().float()
    hidden_ND = ours.hidden(token_ids)[:, :-1].flatten(0, 1)
    assert ours.lm_head is not None
    loss, _ = weighted_cross_entropy(
        hidden_ND, ours.lm_head.weight, labels[:, 1:].flatten(), counted / counted.sum(), chunk=32
    )
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=TOLERANCE)
    their_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert len(their_gradients) == len(list(ours.parameters()))
    for name, parameter in ours.named_parameters():
        gradient = their_gradients[their_name(name)]
        scale = gradient.abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(parameter.grad, gradient, atol=TOLERANCE * scale, rtol=TOLERANCE, msg=name)


def test_packed_documents_give_the_gradients_of_separate_ones() -> None:
    ours, theirs = both()
    token_ids, lengths = some_tokens(), (11, 25, 4)
    ids = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths)).expand(2, -1)
    slopes = torch.randn(2, 40, 211, generator=torch.Generator().manual_seed(2)) / 100
    (ours(token_ids, document_ids_BT=ids) * slopes).sum().backward()
    pieces = zip(token_ids.split(lengths, 1), slopes.split(lengths, 1), strict=True)
    sum((theirs(tokens).logits * slope).sum() for tokens, slope in pieces).backward()
    their_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        gradient = their_gradients[their_name(name)]
        scale = gradient.abs().max().item()
        torch.testing.assert_close(parameter.grad, gradient, atol=TOLERANCE * scale, rtol=TOLERANCE, msg=name)
