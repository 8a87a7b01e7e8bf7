"""Sampling against definitions written out longhand, and its independence of batch and of computed columns."""

import math

import pytest
import torch
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from rhea.errors import InputError
from rhea.generation.sampling import (
    SamplingConfig,
    draw,
    guided_logits,
    gumbel_noise,
    noise_key,
    top_candidates,
    uniform_noise,
)
from rhea.models.native.binding import library


def splitmix64(state: int, count: int) -> list[int]:
    """The published algorithm with Python integers."""
    mask, outputs = (1 << 64) - 1, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        outputs.append(z ^ (z >> 31))
    return outputs


def test_noise_is_splitmix64() -> None:
    assert splitmix64(0, 1) == [0xE220A8397B1DCDAF]  # the published first output of seed 0
    for key in (0, 1, -1, noise_key(7, 0, 3)):
        reference = [
            -math.log(-math.log1p(-((bits >> 32) + 0.5) * 2.0**-32)) for bits in splitmix64(key & ((1 << 64) - 1), 64)
        ]
        noise = gumbel_noise(torch.tensor([key]), torch.arange(64))[0]
        torch.testing.assert_close(noise, torch.tensor(reference), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(library() is None, reason="needs a C compiler")
def test_the_compiled_noise_has_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = torch.tensor([noise_key(seed, 1, 2) for seed in range(5)])
    for token_ids in (torch.arange(-1, 5000), torch.arange(15).view(3, 5).T * 1000, torch.arange(0)):
        compiled = uniform_noise(keys, token_ids)
        with monkeypatch.context() as without:
            without.setenv("RHEA_NATIVE", "0")
            assert torch.equal(uniform_noise(keys, token_ids), compiled)


def test_noise_is_gumbel_distributed_across_tokens_and_positions() -> None:
    keys = torch.tensor([noise_key(5, 2, position) for position in range(200)])
    noise = gumbel_noise(keys, torch.arange(4096)).double()
    uniform = torch.exp(-torch.exp(-noise))
    tolerance = 5 / math.sqrt(12 * uniform.numel())  # five standard errors of a mean
    assert abs(uniform.mean().item() - 0.5) < tolerance
    for per_line in (uniform.mean(0), uniform.mean(1)):
        spread = per_line.std().item() * math.sqrt(12 * uniform.numel() / per_line.numel())
        assert 0.85 < spread < 1.15
    neighbours = ((uniform[1:] - 0.5) * (uniform[:-1] - 0.5)).mean().item() * 12
    assert abs(neighbours) < 5 / math.sqrt(uniform.numel())


def test_keys_differ_in_every_part() -> None:
    keys = {noise_key(seed, sample, position) for seed in range(10) for sample in range(10) for position in range(50)}
    assert len(keys) == 5000
    assert all(-(2**63) <= key < 2**63 for key in keys)


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0, 0.5]])
    keys = torch.tensor([noise_key(3, 0, position) for position in range(20000)])
    drawn = draw(logits.expand(len(keys), -1), torch.arange(5), keys, SamplingConfig(temperature=0.8))
    observed = torch.bincount(drawn, minlength=5).double()
    expected = (logits[0] / 0.8).softmax(-1).double() * len(keys)
    chi_square = ((observed - expected) ** 2 / expected).sum().item()
    assert chi_square < 23.5  # 4 degrees of freedom, p = 1e-4


def test_a_draw_does_not_depend_on_batch_or_on_illegal_columns() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 300, generator=generator)
    token_ids = torch.arange(1000, 1300)
    keys = torch.tensor([noise_key(1, row, 9) for row in range(6)])
    for sampling in (SamplingConfig(), SamplingConfig(top_k=40), SamplingConfig(top_k=100, top_p=0.8)):
        together = draw(logits, token_ids, keys, sampling)
        alone = torch.cat([draw(logits[row : row + 1], token_ids, keys[row : row + 1], sampling) for row in range(6)])
        assert together.tolist() == alone.tolist()
    wider = torch.cat([torch.full((6, 50), float("-inf")), logits], dim=1)
    together = draw(logits, token_ids, keys, SamplingConfig())
    assert draw(wider, torch.arange(950, 1300), keys, SamplingConfig()).tolist() == together.tolist()


def test_guidance_on_raw_rows_equals_guidance_on_log_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    conditional, unconditional = torch.randn(2, 4, 500, generator=generator, dtype=torch.float64)
    c, u = conditional.log_softmax(-1), unconditional.log_softmax(-1)
    official = (u + 3.0 * (c - u))[:, 100:200]
    ours = guided_logits(conditional[:, 100:200], unconditional[:, 100:200], 3.0)
    torch.testing.assert_close(ours.softmax(-1), official.softmax(-1), rtol=1e-12, atol=0)
    torch.testing.assert_close(guided_logits(conditional, unconditional, 1.0), conditional)


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (7, 1.0), (0, 0.6), (20, 0.9), (1, 1.0), (0, 1e-6), (1000, 0.5)]
)
def test_candidates_are_those_of_transformers(top_k: int, top_p: float) -> None:
    logits = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)) * 2
    values, columns = top_candidates(logits, top_k=top_k, top_p=top_p)
    ours = values if columns is None else torch.full_like(logits, float("-inf")).scatter(1, columns, values)
    theirs = logits.clone()
    if top_k:
        theirs = TopKLogitsWarper(top_k)(None, theirs)
    if top_p < 1:
        theirs = TopPLogitsWarper(top_p)(None, theirs)
    torch.testing.assert_close(ours, theirs)


def test_greedy_takes_the_first_of_the_best() -> None:
    logits = torch.tensor([[0.0, 5.0, 5.0], [9.0, 1.0, 2.0]])
    keys = torch.zeros(2, dtype=torch.int64)
    assert draw(logits, torch.tensor([10, 11, 12]), keys, SamplingConfig(temperature=0.0)).tolist() == [11, 10]


@pytest.mark.parametrize(
    "bad", [{"temperature": -1.0}, {"top_k": -2}, {"top_p": 0.0}, {"top_p": 1.5}, {"guidance_scale": -1.0}]
)
def test_bad_sampling_values_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        SamplingConfig(**bad)  # type: ignore[arg-type]
