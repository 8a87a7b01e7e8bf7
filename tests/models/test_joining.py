"""Joining: one wider model says what its parts said, together, and all of it can learn."""

from dataclasses import replace

import pytest
import torch
from small_transformer import SMALL
from torch import Tensor

from rhea.errors import InputError
from rhea.models.config import TransformerConfig
from rhea.models.growth import grow
from rhea.models.joining import join, joined_config
from rhea.models.transformer import Transformer

OTHER = replace(SMALL, dim=32, num_layers=5, num_heads=2, num_kv_heads=1, ffn_dim=64)


def model(config: TransformerConfig, seed: int) -> Transformer:
    made = Transformer(config)
    made.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.7, 1.3, generator=generator)
    return made


def documents() -> tuple[Tensor, Tensor]:
    ids = torch.randint(SMALL.vocab_size, (4, 30), generator=torch.Generator().manual_seed(5))
    return ids, torch.arange(30).expand(4, 30) // 12


def joined(*parts: Transformer) -> Transformer:
    large = model(joined_config([part.config for part in parts]), 9)
    join(parts, large, *documents())
    return large


def test_a_model_beside_itself_says_everything_twice() -> None:
    """Both streams have the same size everywhere, so what the norms share changes nothing; layers are placed apart."""
    small, deep = model(SMALL, 0), model(replace(SMALL, num_layers=5), 1)
    grow(small, deep)
    ids, document_ids = documents()
    for parts in ((small, small), (small, deep)):
        logits = joined(*parts)(ids, document_ids_BT=document_ids)
        torch.testing.assert_close(logits, 2 * small(ids, document_ids_BT=document_ids), rtol=1e-3, atol=1e-3)


def test_different_models_say_nearly_what_they_said_whatever_the_size_of_their_streams() -> None:
    first, second = model(SMALL, 0), model(OTHER, 1)
    ids, document_ids = documents()
    both = first(ids, document_ids_BT=document_ids) + second(ids, document_ids_BT=document_ids)
    large = joined(first, second)
    assert (large.config.dim, large.config.num_layers, large.config.num_kv_heads) == (56, 5, 3)
    said = large(ids, document_ids_BT=document_ids)
    assert torch.corrcoef(torch.stack([both.flatten(), said.flatten()]))[0, 1] > 0.75
    with torch.no_grad():  # the same function on a stream ten times as large, beside which epsilons are smaller
        for name, weight in second.named_parameters():
            if name.split(".")[-2] in ("embed_tokens", "o_proj", "down_proj"):
                weight *= 10
    torch.testing.assert_close(joined(first, second)(ids, document_ids_BT=document_ids), said, rtol=1e-2, atol=1e-2)


def test_everything_in_it_gets_a_gradient() -> None:
    large = joined(model(SMALL, 0), model(OTHER, 1))
    ids, document_ids = documents()
    optimizer = torch.optim.AdamW(large.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(2):  # what a part lacks of layers writes zeros at first
        optimizer.zero_grad()
        large(ids, document_ids_BT=document_ids).logsumexp(-1).mean().backward()
        optimizer.step()
    for name, parameter in large.named_parameters():
        assert parameter.grad is not None
        touched = parameter.grad[ids.unique()] if name == "embed_tokens.weight" else parameter.grad
        assert (touched != 0).float().mean() > 0.99, name


@pytest.mark.parametrize("change", [{"head_dim": 16}, {"vocab_size": 41}, {"num_heads": 4}, {"qk_norm": False}])
def test_what_cannot_stand_side_by_side_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(InputError, match="models that are joined"):
        joined_config([SMALL, replace(OTHER, **change)])
