"""Reconstruction and adversarial losses."""

import pytest
import torch

from rhea.models.vision.discriminator import Discriminator, DiscriminatorConfig
from rhea.models.vision.losses import (
    PerceptualNetwork,
    ReconstructionConfig,
    adaptive_weight,
    discriminator_hinge,
    generator_hinge,
    psnr,
    reconstruction,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_reconstruction_parts() -> None:
    target = noise(2, 3, 8, 8)
    config = ReconstructionConfig(l1=1.0, l2=2.0, gradient=4.0)
    total, parts = reconstruction(target + 0.5, target, config)
    assert parts["l1"].item() == pytest.approx(0.5, abs=1e-6)
    assert parts["l2"].item() == pytest.approx(0.25, abs=1e-6)
    assert parts["gradient"].item() == pytest.approx(0.0, abs=1e-6), "a constant error has no edges"
    assert total.item() == pytest.approx(1.0, abs=1e-5)
    stripe = torch.zeros(1, 3, 8, 8)
    stripe[..., 4] = 1
    assert reconstruction(stripe, torch.zeros_like(stripe), config)[1]["gradient"].item() == pytest.approx(2 / 7)


def test_psnr_clamps_and_is_in_decibels() -> None:
    assert psnr(torch.zeros(4), torch.full((4,), 0.2)).item() == pytest.approx(20, abs=1e-3)
    assert psnr(torch.full((4,), 5.0), torch.ones(4)).item() > 100


def test_hinge_losses_stop_at_their_margins() -> None:
    assert discriminator_hinge(torch.tensor([2.0]), torch.tensor([-2.0])).item() == 0
    assert discriminator_hinge(torch.tensor([0.0]), torch.tensor([0.0])).item() == 1
    assert generator_hinge(torch.tensor([3.0])).item() == -3


def test_adaptive_weight_balances_the_pull_on_the_last_layer() -> None:
    last = torch.nn.Parameter(torch.ones(3))
    weight = adaptive_weight((3 * last).sum(), (6 * last).sum(), last)
    assert weight.item() == pytest.approx(0.5, rel=1e-3)


def test_perceptual_network_is_seeded_fixed_and_sees_texture() -> None:
    network, x = PerceptualNetwork(), noise(2, 3, 16, 16)
    assert network(x, x).item() == 0
    assert network(x, x.flip(-1)).item() > 0.01
    assert network(x, x.flip(-1)).item() == PerceptualNetwork()(x, x.flip(-1)).item()
    assert not any(p.requires_grad for p in network.parameters())
    x.requires_grad_()
    assert torch.autograd.grad(network(x, noise(2, 3, 16, 16, seed=1)), x)[0].abs().sum() > 0


@pytest.mark.parametrize("temporal", [False, True])
def test_discriminator_scores_patches_and_learns_to_tell(temporal: bool) -> None:
    torch.manual_seed(0)
    model = Discriminator(DiscriminatorConfig(base_channels=8, temporal=temporal))
    shape = (4, 3, 4, 32, 32) if temporal else (4, 3, 32, 32)
    smooth, rough = torch.zeros(shape), noise(*shape)
    assert model(smooth).shape[-2:] == (6, 6)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(12):
        loss = discriminator_hinge(model(smooth), model(rough))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
