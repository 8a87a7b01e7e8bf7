import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rhea.errors import InputError
from rhea.models.config import TransformerConfig
from rhea.models.kv_cache import KVCache
from rhea.models.transformer import Transformer

CONFIG = TransformerConfig(
    vocab_size=61,
    dim=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_dim=48,
    max_seq_len=64,
    init_std=0.2,
)
# float32 sums in another order.
CLOSE = {"atol": 5e-6, "rtol": 1e-5}


@pytest.fixture(scope="module")
def model() -> Transformer:
    model = Transformer(CONFIG)
    model.init_weights(seed=5)
    return model.eval().requires_grad_(False)


def some_tokens(rows: int, length: int) -> Tensor:
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(length))


@settings(max_examples=20, deadline=None)
@given(cuts=st.sets(st.integers(1, 13), max_size=6))
def test_any_chunking_equals_no_cache(model: Transformer, cuts: set[int]) -> None:
    token_ids, cache = some_tokens(2, 14), KVCache(CONFIG, 2, 14)
    edges = [0, *sorted(cuts), 14]
    chunks = [model(token_ids[:, a:b], cache=cache) for a, b in itertools.pairwise(edges)]
    assert cache.lengths == [14, 14]
    torch.testing.assert_close(torch.cat(chunks, 1), model(token_ids), **CLOSE)


def test_rows_of_different_lengths_see_what_they_see_alone(model: Transformer) -> None:
    lengths, steps = [3, 7, 1], [(2, 1, 1), (1, 1, 1), (1, 3, 2)]
    rows = [some_tokens(1, length + 10)[0] for length in lengths]
    cache, seen = KVCache(CONFIG, 3, 20), [0, 0, 0]
    for counts in [tuple(lengths), *steps]:
        chunk = torch.zeros(3, max(counts), dtype=torch.long)
        for b, count in enumerate(counts):
            chunk[b, :count] = rows[b][seen[b] : seen[b] + count]
        logits = model(chunk, cache=cache)
        cache.set_lengths([old + count for old, count in zip(seen, counts, strict=True)])
        for b, count in enumerate(counts):
            alone = model(rows[b][None, : seen[b] + count])[0, seen[b] :]
            torch.testing.assert_close(logits[b, :count], alone, **CLOSE)
            seen[b] += count


def test_a_rewound_row_forgets(model: Transformer) -> None:
    token_ids, cache = some_tokens(2, 12), KVCache(CONFIG, 2, 14)
    model(some_tokens(2, 9), cache=cache)
    cache.set_lengths([0, 0])
    assert cache.is_empty
    model(token_ids[:, :5], cache=cache)
    model(some_tokens(2, 4), cache=cache)
    cache.set_lengths([5, 5])
    torch.testing.assert_close(model(token_ids[:, 5:], cache=cache), model(token_ids)[:, 5:], **CLOSE)


def test_rows_can_be_copied_and_dropped(model: Transformer) -> None:
    token_ids, cache = some_tokens(3, 8), KVCache(CONFIG, 3, 10)
    model(token_ids[:, :6], cache=cache)
    cache.copy_row(2, 0)
    cache.keep_rows([0, 1, 1])
    cache.set_lengths([6, 4, 6])
    expected_rows = torch.cat((token_ids[2, :6], token_ids[2, 6:])), token_ids[1]
    logits = model(torch.stack((token_ids[2, 6:7], token_ids[1, 4:5], token_ids[1, 6:7])), cache=cache)
    torch.testing.assert_close(logits[0], model(expected_rows[0][None])[0, 6:7], **CLOSE)
    torch.testing.assert_close(logits[1:, 0], model(expected_rows[1][None])[0, [4, 6]], **CLOSE)
    assert cache.lengths == [7, 5, 7]


def test_what_lies_behind_a_row_is_never_seen(model: Transformer) -> None:
    cache = KVCache(CONFIG, 2, 10)
    token_ids = some_tokens(2, 6)
    model(token_ids, cache=cache)
    cache.set_lengths([2, 6])
    for layer in cache.layers:
        layer[0, :, :, 2:] = 1e4
    logits = model(token_ids[:, 2:3], cache=cache)
    torch.testing.assert_close(logits[0, 0], model(token_ids[:1, :3])[0, 2], **CLOSE)


def test_overflow_and_growing_lengths_are_refused(model: Transformer) -> None:
    cache = KVCache(CONFIG, 1, 4)
    with pytest.raises(InputError, match="cache of 4"):
        model(some_tokens(1, 5), cache=cache)
    assert cache.lengths == [0]
    model(some_tokens(1, 4), cache=cache)
    with pytest.raises(InputError, match=r"\[5\]"):
        cache.set_lengths([5])
    with pytest.raises(InputError, match="need 1"):
        cache.set_lengths([1, 2])
