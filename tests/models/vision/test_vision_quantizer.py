"""The quantizer and what keeps its codebook alive in training."""

import pytest
import torch

import rhea.models.vision.quantizer as quantizer_module
from rhea.models.vision.codebook_training import CodebookTrainer, CodebookTrainingConfig, perplexity
from rhea.models.vision.config import VisionTokenizerConfig
from rhea.models.vision.quantizer import Quantizer, nearest


def quantizer(size: int = 16) -> Quantizer:
    torch.manual_seed(0)
    return Quantizer(VisionTokenizerConfig(codebook_size=size))


def latents(frames: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(frames, 4, 5, 3, generator=torch.Generator().manual_seed(seed))


def test_nearest_is_the_smallest_distance_also_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    places, entries = latents().movedim(1, -1).reshape(-1, 4), torch.randn(50, 4)
    expected = torch.cdist(places.double(), entries.double()).argmin(1)
    assert torch.equal(nearest(places, entries), expected)
    monkeypatch.setattr(quantizer_module, "DISTANCES_AT_A_TIME", 150)
    assert torch.equal(nearest(places, entries), expected)
    assert nearest(torch.zeros(1, 4), torch.ones(3, 4)).tolist() == [0], "the first of equals"


def test_gradients_go_straight_through_and_both_losses_pull() -> None:
    layer, x = quantizer(), latents().requires_grad_()
    out, codes, losses = layer(x)
    torch.testing.assert_close(out, layer.lookup(codes))
    (gradient,) = torch.autograd.grad(out, x, torch.ones_like(out), retain_graph=True)
    assert torch.equal(gradient, torch.ones_like(x))
    assert torch.autograd.grad(losses["commitment"], x, retain_graph=True)[0].abs().sum() > 0
    (gradient,) = torch.autograd.grad(losses["codebook"], layer.embedding.weight)
    assert (gradient.abs().sum(1) > 0).tolist() == [i in codes for i in range(16)]


def test_codes_do_not_depend_on_autocast() -> None:
    layer = quantizer()
    codes = layer.codes(latents())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.codes(latents()), codes)


def test_entries_come_from_the_first_latents() -> None:
    layer = quantizer()
    trainer = CodebookTrainer(layer, CodebookTrainingConfig(noise=0.0))
    trainer.prepare(latents())
    places = latents().movedim(1, -1).reshape(-1, 4)
    assert (layer.embedding.weight[:, None] == places).all(2).any(1).all()
    assert layer.embedding.weight.unique(dim=0).shape[0] == 16
    before = layer.embedding.weight.clone()
    trainer.prepare(latents(seed=1))
    assert torch.equal(layer.embedding.weight, before), "only once"


def test_more_entries_than_latents_are_copies_with_noise() -> None:
    layer = quantizer(100)
    CodebookTrainer(layer, CodebookTrainingConfig()).prepare(latents())
    assert layer.embedding.weight.unique(dim=0).shape[0] == 100


def step(layer: Quantizer, trainer: CodebookTrainer, number: int) -> list[int]:
    x = latents(seed=number)
    trainer.observe(x, layer(x).codes)
    return trainer.after_step(number).revived.tolist()


def test_an_entry_that_nothing_chooses_is_replaced_and_then_chosen() -> None:
    layer = quantizer()
    trainer = CodebookTrainer(layer, CodebookTrainingConfig(revive_after=3, revive_until=6))
    trainer.prepare(latents())
    layer.embedding.weight.data[5] = 100.0
    assert [step(layer, trainer, i) for i in range(2)] == [[], []]
    assert 5 in step(layer, trainer, 2)
    assert layer.embedding.weight[5].abs().max() < 10
    layer.embedding.weight.data[5] = 100.0
    assert all(5 not in step(layer, trainer, i) for i in range(7, 12)), "not after revive_until"


def test_the_less_used_of_two_near_entries_is_replaced_by_what_is_badly_served() -> None:
    layer = Quantizer(VisionTokenizerConfig(codebook_size=4, embed_dim=2, latent_channels=2))
    entries = torch.tensor([[0.0, 0.0], [0.1, 0.0], [9.0, 0.0], [0.0, 9.0]])
    layer.embedding.weight.data.copy_(entries)
    trainer = CodebookTrainer(layer, CodebookTrainingConfig(merge_below=0.5), initialized=True)
    places_PD = torch.tensor([[0.0, 0.0]] * 3 + [[0.1, 0.0], [9.0, 0.0], [0.0, 9.0], [5.0, 5.0]])
    trainer.observe(places_PD.T[None, :, None], layer(places_PD.T[None, :, None]).codes)
    assert trainer.after_step(0).revived.tolist() == [1]
    assert layer.embedding.weight[1].tolist() == [5.0, 5.0], "the one latent far from every entry"
    assert torch.equal(layer.embedding.weight[[0, 2, 3]], entries[[0, 2, 3]])


def test_resumed_training_draws_the_same_entries() -> None:
    layer = quantizer()
    trainer = CodebookTrainer(layer, CodebookTrainingConfig(revive_after=2))
    trainer.prepare(latents())
    layer.embedding.weight.data[3:9] = 100.0
    step(layer, trainer, 0)
    other = quantizer()
    other.load_state_dict(layer.state_dict())
    resumed = CodebookTrainer(other, CodebookTrainingConfig(revive_after=2))
    resumed.load_state_dict(trainer.state_dict())
    for number in range(1, 5):
        assert step(layer, trainer, number) == step(other, resumed, number)
    assert torch.equal(layer.embedding.weight, other.embedding.weight)
    assert torch.equal(trainer.usage_K, resumed.usage_K)


def test_use_is_counted_over_microbatches() -> None:
    layer = quantizer()
    trainer = CodebookTrainer(layer, CodebookTrainingConfig(revive_after=5, usage_decay=0.0), initialized=True)
    for codes in (torch.tensor([[[0, 1]]]), torch.tensor([[[2, 3]]])):
        trainer.observe(torch.zeros(1, 4, 1, 2), codes)
    report = trainer.after_step(0)
    assert report.perplexity == pytest.approx(4.0)
    assert report.used == 1.0, "nothing is idle for five steps yet"
    for number in range(1, 5):
        trainer.observe(torch.zeros(1, 4, 1, 1), torch.tensor([[[0]]]))
        report = trainer.after_step(number)
    assert report.used == pytest.approx(4 / 16)


def test_perplexity_of_even_and_of_one_sided_use() -> None:
    assert perplexity(torch.ones(8)) == pytest.approx(8)
    assert perplexity(torch.tensor([5.0, 0, 0])) == pytest.approx(1)
