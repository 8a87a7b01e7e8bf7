"""A flat batch over slots gives every row what it computes alone, whatever else is in the batch."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import tiny_checkpoint

from rhea.errors import InputError
from rhea.models.slot_cache import CacheStorage, SlotCache
from rhea.models.transformer import Transformer

MODEL = tiny_checkpoint().transformer
assert MODEL is not None
# In double precision no sum in another order moves a value over an edge between two codes.
WIDE = copy.deepcopy(MODEL).double()
TOKENS = torch.randint(0, 200, (4, 24), generator=torch.Generator().manual_seed(0))


def forward(cache: SlotCache, feeds: list[tuple[int, int]], model: Transformer = MODEL) -> list[torch.Tensor]:
    """Feed each slot its next tokens; return the states of each."""
    flat = torch.cat([TOKENS[slot, cache.lengths[slot] : cache.lengths[slot] + count] for slot, count in feeds])
    cache.feed(feeds)
    return list(model.hidden(flat[None], cache=cache)[0].split([count for _, count in feeds]))


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


FEWER_BITS = pytest.mark.parametrize("storage", ["int8", "fp8"])


def test_fewer_bits_take_the_memory_they_say() -> None:
    sizes = {}
    for storage in ("model", "int8", "fp8"):
        cache = SlotCache(MODEL.config, 2, 24, torch.bfloat16, storage=storage)
        sizes[storage] = sum(each.nbytes for each in (*cache.layers, *cache.scales))
    channels = MODEL.config.head_dim
    assert sizes["fp8"] * 2 == sizes["model"]
    assert sizes["int8"] * 2 * channels == sizes["model"] * (channels + 4)
    with pytest.raises(InputError, match="model, int8, fp8"):
        SlotCache(MODEL.config, 2, 24, storage="int4")  # type: ignore[arg-type]


@torch.no_grad()
@FEWER_BITS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_read_is_near_what_was_stored(storage: CacheStorage, dtype: torch.dtype) -> None:
    """An attention to one key only gives its value back."""
    config, generator = MODEL.config, torch.Generator().manual_seed(1)
    heads, channels = config.num_kv_heads, config.head_dim
    cache = SlotCache(config, 2, 4, dtype, storage=storage)
    values = torch.randn(1, 2, heads, channels, generator=generator).to(dtype)
    values[0, 0, 0] = 0
    cache.feed([(0, 1), (1, 1)])
    cache.begin(2)
    queries = torch.zeros(1, 2, config.num_heads, channels, dtype=dtype)
    read = cache.attend(0, queries, values, values, None)[0, :, :: config.num_heads // heads]  # type: ignore[arg-type]
    assert read.dtype == dtype
    error, size = (read.float() - values[0].float()).abs(), values[0].float().abs()
    bound = size.amax(-1, keepdim=True) / 254 if storage == "int8" else size / 16 + 2**-10
    assert (error <= 1.001 * bound + size * (2**-8 if dtype == torch.bfloat16 else 0)).all()
    assert (error > 0).any()
    assert (read[0, 0] == 0).all()


@torch.no_grad()
@FEWER_BITS
@settings(max_examples=15, deadline=None)
@given(schedule=st.lists(st.dictionaries(st.integers(0, 3), st.integers(1, 7), min_size=1), min_size=1, max_size=6))
def test_with_fewer_bits_no_schedule_changes_the_states(storage: CacheStorage, schedule: list[dict[int, int]]) -> None:
    whole = SlotCache(WIDE.config, 4, 24, torch.float64, storage=storage)
    expected = forward(whole, [(slot, 24) for slot in range(4)], WIDE)
    cache = SlotCache(WIDE.config, 4, 24, torch.float64, storage=storage)
    for step in schedule:
        feeds = [(slot, n) for slot, n in sorted(step.items()) if cache.lengths[slot] + n <= 24]
        starts = {slot: cache.lengths[slot] for slot, _ in feeds}
        for (slot, count), states in zip(feeds, forward(cache, feeds, WIDE) if feeds else [], strict=True):
            torch.testing.assert_close(states, expected[slot][starts[slot] : starts[slot] + count])


@torch.no_grad()
@FEWER_BITS
def test_with_fewer_bits_forgetting_sharing_and_wiping_leave_no_trace(storage: CacheStorage) -> None:
    expected = forward(SlotCache(WIDE.config, 4, 24, torch.float64, storage=storage), [(1, 11)], WIDE)[0]
    cache = SlotCache(WIDE.config, 4, 24, torch.float64, storage=storage)
    forward(cache, [(1, 5), (2, 3)], WIDE)
    cache.feed([(1, 4)])
    WIDE.hidden(TOKENS[3:4, :4], cache=cache)  # drafts that turn out wrong
    cache.truncate(1, 5)
    cache.copy_prefix(1, 3, 4)
    cache.feed([(1, 6), (3, 6)])
    states = WIDE.hidden(torch.cat([TOKENS[1, 5:11], TOKENS[1, 4:10]])[None], cache=cache)[0]
    torch.testing.assert_close(states, torch.cat([expected[5:11], expected[4:10]]))
    for layer in (*cache.layers, *cache.scales):
        layer[2].fill_(float("nan") if layer.is_floating_point() else 127)
    cache.wipe(2)
    cache.truncate(3, 4)
    cache.feed([(2, 4), (3, 4)])  # neighbours of unequal lengths, read as one run
    states = WIDE.hidden(torch.cat([TOKENS[1, :4], TOKENS[1, 4:8]])[None], cache=cache)[0]
    torch.testing.assert_close(states, expected[:8])
