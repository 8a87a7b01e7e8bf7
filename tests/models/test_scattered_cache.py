"""Tokens fed in any order see what is written before their positions, and nothing else."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_forward import OneForward
from tiny_model import tiny_checkpoint
from torch import Tensor

from rhea.errors import InputError
from rhea.models.scattered_cache import ScatteredCache

MODEL = tiny_checkpoint().transformer
assert MODEL is not None
LENGTH = 12
TOKENS = torch.randint(0, 200, (2, LENGTH), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@settings(max_examples=15, deadline=None)
@given(orders=st.tuples(*[st.permutations(range(LENGTH))] * 2), cuts=st.sets(st.integers(1, LENGTH - 1), max_size=5))
def test_any_order_gives_the_states_of_one_masked_forward(orders: tuple[list[int], ...], cuts: set[int]) -> None:
    cache, edges = ScatteredCache(MODEL.config, rows=2, max_len=LENGTH), [0, *sorted(cuts), LENGTH]
    states, forward_of = torch.empty(2, LENGTH, MODEL.config.dim), torch.empty(2, LENGTH)
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        places = torch.tensor([order[start:stop] for order in orders])
        cache.feed(places.tolist())
        states.scatter_(
            1, places[..., None].expand(-1, -1, MODEL.config.dim), MODEL.hidden(TOKENS.gather(1, places), cache=cache)
        )
        forward_of.scatter_(1, places, float(number))
    for row in range(2):
        earlier = forward_of[row][None, :] <= forward_of[row][:, None]
        expected = MODEL.hidden(TOKENS[row : row + 1], cache=OneForward(list(range(LENGTH)), earlier.tril()))
        torch.testing.assert_close(states[row], expected[0])
    assert cache.written_BL.all()


@torch.no_grad()
def test_gaps_and_what_lies_ahead_are_never_seen() -> None:
    def last_state(garbage: float, ahead: int) -> Tensor:
        cache = ScatteredCache(MODEL.config, rows=1, max_len=LENGTH)
        for layer in cache.layers:
            layer.fill_(garbage)
        cache.feed([[0, 1, 9]])
        MODEL.hidden(torch.tensor([[5, 6, ahead]]), cache=cache)
        cache.feed([[4]])
        return MODEL.hidden(torch.tensor([[7]]), cache=cache)

    torch.testing.assert_close(last_state(garbage=0.0, ahead=8), last_state(garbage=1e4, ahead=9))


@torch.no_grad()
def test_a_position_fed_again_is_replaced() -> None:
    cache = ScatteredCache(MODEL.config, rows=1, max_len=LENGTH)
    cache.feed([[0, 1, 3]])
    MODEL.hidden(TOKENS[:1, [0, 1, 3]], cache=cache)
    cache.feed([[2, 3]])
    MODEL.hidden(TOKENS[:1, 2:4], cache=cache)
    cache.feed([[4]])
    state = MODEL.hidden(TOKENS[:1, 4:5], cache=cache)
    torch.testing.assert_close(state, MODEL.hidden(TOKENS[:1, :5])[:, 4:])


def test_what_does_not_fit_is_refused() -> None:
    cache = ScatteredCache(MODEL.config, rows=2, max_len=4)
    with pytest.raises(InputError, match="position 4 does not fit"):
        cache.feed([[0], [4]])
