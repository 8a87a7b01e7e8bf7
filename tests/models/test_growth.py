"""Growth: a larger model computes what the smaller one did, and all that is new can learn."""

from dataclasses import replace

import pytest
import torch
from small_transformer import SMALL

from rhea.errors import InputError
from rhea.models.config import TransformerConfig
from rhea.models.growth import grow, placed, require_growth
from rhea.models.transformer import Transformer

LARGE = replace(SMALL, dim=40, num_layers=5, num_heads=6, num_kv_heads=3, ffn_dim=80)


def model(config: TransformerConfig, seed: int) -> Transformer:
    made = Transformer(config)
    made.init_weights(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    return made


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"dim": 40},
        {"num_layers": 5},
        {"num_heads": 8, "num_kv_heads": 4},
        {"ffn_dim": 80},
        {name: getattr(LARGE, name) for name in ("dim", "num_layers", "num_heads", "num_kv_heads", "ffn_dim")},
    ],
)
def test_a_grown_model_computes_the_same(sizes: dict[str, int]) -> None:
    small, large = model(SMALL, 0), model(replace(SMALL, **sizes), 1)
    grow(small, large, torch.eye(SMALL.vocab_size))
    token_ids = torch.randint(SMALL.vocab_size, (2, 20), generator=torch.Generator().manual_seed(2))
    # The norms' epsilon counts for a little more where their mean runs over more channels.
    torch.testing.assert_close(large(token_ids), small(token_ids), rtol=1e-3, atol=1e-3)
    same = model(replace(SMALL, **sizes), 1)
    grow(small, same)
    for name, weight in large.state_dict().items():
        assert torch.equal(same.state_dict()[name], weight), name


def test_rows_of_another_vocabulary_are_mixtures() -> None:
    small, large = model(SMALL, 0), model(replace(LARGE, vocab_size=50), 1)
    rows = torch.rand(50, SMALL.vocab_size, generator=torch.Generator().manual_seed(3))
    grow(small, large, rows)
    token_ids = torch.arange(20)[None]
    swapped = model(replace(SMALL, vocab_size=50), 4)
    state = small.state_dict()
    tables = {name: rows @ state[name] for name in ("embed_tokens.weight", "lm_head.weight")}
    swapped.load_state_dict(state | tables)
    torch.testing.assert_close(large(token_ids), swapped(token_ids), rtol=1e-3, atol=1e-3)


def test_everything_new_gets_a_gradient_within_two_steps() -> None:
    small, large = model(SMALL, 0), model(LARGE, 1)
    grow(small, large, torch.eye(SMALL.vocab_size))
    optimizer = torch.optim.AdamW(large.parameters(), lr=1e-2, weight_decay=0.0)
    forwards = torch.arange(SMALL.vocab_size).view(2, -1)
    token_ids = torch.cat([forwards, forwards.flip(1)])  # every token, and none at the end of a row only
    before = {name: parameter.detach().clone() for name, parameter in large.named_parameters()}
    for _ in range(2):
        loss = torch.nn.functional.cross_entropy(large(token_ids)[:, :-1].flatten(0, 1), token_ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, parameter in large.named_parameters():
        assert (parameter.detach() != before[name]).float().mean() > 0.9, name


def test_layers_keep_their_order() -> None:
    for small in range(1, 9):
        for large in range(small, 20):
            places = placed(small, large)
            assert list(places.values()) == list(range(small))
            assert sorted(places) == list(places)
            assert max(places) < large


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"dim": 16}, "dim is 24 .* cannot shrink"),
        ({"head_dim": 16}, "head_dim is 8 .* must stay"),
        ({"rope_theta": 1e4}, "rope_theta"),
        ({"qk_norm": False}, "qk_norm"),
        ({"num_heads": 8}, "4 heads on 2 key-value heads cannot become 8 on 2"),
    ],
)
def test_what_cannot_grow_is_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        require_growth(SMALL, replace(SMALL, **sizes))


def test_another_vocabulary_needs_rows() -> None:
    with pytest.raises(InputError, match="vocabulary of 40 tokens and the larger one of 50"):
        grow(model(SMALL, 0), model(replace(SMALL, vocab_size=50), 1))
