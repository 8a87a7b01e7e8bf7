"""A flat batch over slots gives every row what it computes alone, whatever else is in the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import tiny_checkpoint

from rhea.errors import InputError
from rhea.models.slot_cache import SlotCache

MODEL = tiny_checkpoint().transformer
assert MODEL is not None
TOKENS = torch.randint(0, 200, (4, 24), generator=torch.Generator().manual_seed(0))


def forward(cache: SlotCache, feeds: list[tuple[int, int]]) -> list[torch.Tensor]:
    """Feed each slot its next tokens; return the states of each."""
    flat = torch.cat([TOKENS[slot, cache.lengths[slot] : cache.lengths[slot] + count] for slot, count in feeds])
    cache.feed(feeds)
    return list(MODEL.hidden(flat[None], cache=cache)[0].split([count for _, count in feeds]))


@torch.no_grad()
@settings(max_examples=25, deadline=None)
@given(st.lists(st.dictionaries(st.integers(0, 3), st.integers(1, 7), min_size=1), min_size=1, max_size=6))
def test_any_schedule_gives_the_states_of_whole_rows(schedule: list[dict[int, int]]) -> None:
    expected = MODEL.hidden(TOKENS)
    cache = SlotCache(MODEL.config, slots=4, max_len=24)
    for step in schedule:
        feeds = [(slot, n) for slot, n in sorted(step.items()) if cache.lengths[slot] + n <= 24]
        if not feeds:
            continue
        starts = {slot: cache.lengths[slot] for slot, _ in feeds}
        for (slot, count), states in zip(feeds, forward(cache, feeds), strict=True):
            torch.testing.assert_close(states, expected[slot, starts[slot] : starts[slot] + count])


@torch.no_grad()
def test_forgotten_tokens_leave_no_trace_and_prefixes_can_be_shared() -> None:
    expected = MODEL.hidden(TOKENS[1:2])[0]
    cache = SlotCache(MODEL.config, slots=4, max_len=24)
    cache.feed([(1, 5), (2, 3)])
    MODEL.hidden(torch.cat([TOKENS[1, :5], TOKENS[2, :3]])[None], cache=cache)
    cache.feed([(1, 4)])
    MODEL.hidden(TOKENS[3:4, :4], cache=cache)  # drafts that turn out wrong
    cache.truncate(1, 5)
    cache.copy_prefix(1, 3, 4)
    assert cache.lengths == [0, 5, 3, 4]
    cache.feed([(1, 6), (3, 6)])
    states = MODEL.hidden(torch.cat([TOKENS[1, 5:11], TOKENS[1, 4:10]])[None], cache=cache)[0]
    torch.testing.assert_close(states, torch.cat([expected[5:11], expected[4:10]]))


def test_what_does_not_fit_is_refused() -> None:
    cache = SlotCache(MODEL.config, slots=2, max_len=24)
    with pytest.raises(InputError, match="do not fit"):
        cache.feed([(0, 25)])
