import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rhea.models.attend import attend, attend_cached
from rhea.models.visibility import Visibility, document_starts, document_visibility

runs = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def random_heads(rows: int, length: int, heads: int, seed: int) -> Tensor:
    return torch.randn(rows, length, heads, 8, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def reference(queries: Tensor, keys: Tensor, values: Tensor, mask_BTS: Tensor) -> Tensor:
    """The textbook, in float64."""
    group = queries.shape[2] // keys.shape[2]
    keys, values = (x.double().repeat_interleave(group, 2) for x in (keys, values))
    scores = torch.einsum("bthk,bshk->bhts", queries.double(), keys) / queries.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask_BTS[:, None], float("-inf"))
    return torch.einsum("bhts,bshk->bthk", scores.softmax(-1), values).float()


def document_ids(rows: list[list[int]]) -> Tensor:
    length = max(sum(row) for row in rows)
    ids = torch.full((len(rows), length), -1)
    for b, row in enumerate(rows):
        filled = torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row))
        ids[b, : len(filled)] = filled
    return ids


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(runs, min_size=1, max_size=3), seed=st.integers(0, 1000))
def test_one_call_per_document_equals_a_dense_mask(rows: list[list[int]], seed: int) -> None:
    ids = document_ids(rows)
    B, T = ids.shape
    index = torch.arange(T)
    mask = (ids[:, :, None] == ids[:, None, :]) & (index[:, None] >= index)
    inputs = [random_heads(B, T, heads, seed + heads + i) for i, heads in enumerate((4, 2, 2))]
    visibility = document_visibility(ids)
    assert visibility.documents is not None
    assert sum(visibility.documents) == B * T
    output, expected = attend(*inputs, visibility), reference(*inputs, mask)
    torch.testing.assert_close(output, expected, atol=2e-6, rtol=1e-5)
    dense = attend(*inputs, Visibility(causal=False, mask_B1TS=mask[:, None]))
    torch.testing.assert_close(dense, expected, atol=2e-6, rtol=1e-5)
    slopes = torch.randn(output.shape)
    ours = torch.autograd.grad((output * slopes).sum(), inputs)
    theirs = torch.autograd.grad((expected * slopes).sum(), inputs)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_document_starts_restart_at_every_change_of_id() -> None:
    ids = torch.tensor([[4, 4, 4, 9, 9, -1], [0, 1, 1, 1, 1, 1]])
    assert document_starts(ids).tolist() == [[0, 0, 0, 3, 3, 5], [0, 1, 1, 1, 1, 1]]
    assert document_visibility(ids).documents == (3, 2, 1, 1, 5)


@pytest.mark.parametrize("new_tokens", [1, 3])
def test_grouped_attention_to_a_cache_equals_the_textbook(new_tokens: int) -> None:
    queries = random_heads(2, new_tokens, 6, 1)
    keys, values = random_heads(2, 10, 2, 2), random_heads(2, 10, 2, 3)
    mask = torch.arange(10) <= torch.tensor([[4], [6]])[:, :, None] + torch.arange(new_tokens)[:, None]
    cached = keys.transpose(1, 2), values.transpose(1, 2)
    output = attend_cached(queries, *cached, Visibility(causal=False, mask_B1TS=mask[:, None]))
    torch.testing.assert_close(output, reference(queries, keys, values, mask), atol=2e-6, rtol=1e-5)
    if new_tokens == 1:
        unmasked = attend_cached(queries, *cached, Visibility(causal=False))
        everything = torch.ones(2, 1, 10, dtype=torch.bool)
        torch.testing.assert_close(unmasked, reference(queries, keys, values, everything), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 5, 128, 131, 300])
def test_blocked_attention_in_bfloat16_is_as_near_the_truth_as_torch(length: int) -> None:
    exact = [random_heads(2, length, heads, heads + i) for i, heads in enumerate((4, 2, 2))]
    low = [x.detach().bfloat16().requires_grad_() for x in exact]
    slopes = torch.randn(2, length, 4, 8, generator=torch.Generator().manual_seed(9))
    causal = torch.ones(length, length, dtype=torch.bool).tril().expand(2, -1, -1)
    expected = reference(*exact, causal)
    output = attend(*low, Visibility(causal=True))
    assert output.grad_fn is not None
    assert "Blocked" in output.grad_fn.name()
    # bfloat16 has 8 bits: each of the chained roundings (inputs, scores, probabilities) errs by up to 1/256.
    assert relative_error(output, expected) < 0.01
    ours = torch.autograd.grad((output * slopes).sum(), low)
    theirs = torch.autograd.grad((expected * slopes).sum(), exact)
    for our, their in zip(ours[: 3 if length > 1 else 0], theirs, strict=False):
        assert relative_error(our, their) < 0.015
    with torch.no_grad():
        assert relative_error(attend(*low, Visibility(causal=True)), expected) < 0.01


def relative_error(value: Tensor, exact: Tensor) -> float:
    return ((value.float() - exact).norm() / exact.norm()).item()
