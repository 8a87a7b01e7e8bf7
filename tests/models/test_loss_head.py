import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rhea.models.loss_head import weighted_cross_entropy

N, D, V = 13, 8, 50


def case(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return states, matrix, labels and weights, some of them 0."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator, dtype=dtype).requires_grad_()
    labels = torch.randint(0, V, (N,), generator=generator)
    weights = torch.rand(N, generator=generator) + 0.1
    weights[[0, 4, 5, 12]] = 0.0
    return hidden, weight, labels, weights


def reference(hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    logits = (hidden @ weight.t()).double()
    nll = F.cross_entropy(logits, labels, reduction="none")
    return (weights.double() * (nll + z_loss * logits.logsumexp(-1).square())).sum(), nll


@pytest.mark.parametrize("chunk", [1, 4, 13, 1024])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_equals_plain_cross_entropy_for_any_chunk(chunk: int, z_loss: float) -> None:
    hidden, weight, labels, weights = case()
    loss, nll = weighted_cross_entropy(hidden, weight, labels, weights, chunk=chunk, z_loss=z_loss)
    expected, expected_nll = reference(hidden, weight, labels, weights, z_loss)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(nll, expected_nll.detach() * (weights > 0), rtol=1e-10, atol=1e-12)
    ours = torch.autograd.grad(3 * loss, (hidden, weight))
    theirs = torch.autograd.grad(3 * expected, (hidden, weight))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    hidden, weight, labels, weights = case()

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return weighted_cross_entropy(hidden, weight, labels, weights.double(), chunk=5, z_loss=0.01)[0]

    step, generator = 1e-6, torch.Generator().manual_seed(2)
    gradients = torch.autograd.grad(loss(hidden, weight), (hidden, weight))
    for index, (value, gradient) in enumerate(zip((hidden, weight), gradients, strict=True)):
        direction = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        moved = [
            (hidden + s * direction, weight) if index == 0 else (hidden, weight + s * direction) for s in (-step, step)
        ]
        slope = (loss(*moved[1]) - loss(*moved[0])) / (2 * step)
        assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-6)


def test_ignored_rows_may_hold_any_label_and_get_no_gradient() -> None:
    hidden, weight, labels, weights = case()
    loss, nll = weighted_cross_entropy(hidden, weight, labels.masked_fill(weights == 0, -100), weights, chunk=4)
    torch.testing.assert_close(loss, reference(*case(), 0.0)[0], rtol=1e-10, atol=0)
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert not gradient[weights == 0].any()
    assert not nll[weights == 0].any()


def test_all_rows_ignored() -> None:
    hidden, weight, labels, weights = case()
    loss, nll = weighted_cross_entropy(hidden, weight, labels, torch.zeros_like(weights))
    loss.backward()
    assert loss.item() == 0
    assert not nll.any()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_nll_is_detached_and_float32_for_low_precision() -> None:
    hidden, weight, labels, weights = case(torch.bfloat16)
    loss, nll = weighted_cross_entropy(hidden, weight, labels, weights)
    assert loss.dtype == nll.dtype == torch.float32
    assert not nll.requires_grad
    loss.backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, labels, weights = case(torch.float32)
    loss, nll = weighted_cross_entropy(hidden * 1000, weight * 1000, labels, weights)
    assert torch.isfinite(loss)
    assert torch.isfinite(nll).all()
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss, (hidden, weight)))


def test_autocast_multiplies_in_bfloat16_and_keeps_float32_gradients() -> None:
    hidden, weight, labels, weights = case(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = weighted_cross_entropy(hidden, weight, labels, weights, chunk=4)
    expected, _ = reference(hidden, weight, labels, weights, 0.0)
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)
    assert loss.item() != pytest.approx(expected.item(), rel=1e-7)
    ours, theirs = (torch.autograd.grad(value, (hidden, weight)) for value in (loss, expected))
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == torch.float32
        torch.testing.assert_close(our, their, atol=0.05 * their.abs().max().item(), rtol=0)


def test_without_gradients_none_are_made() -> None:
    hidden, weight, labels, weights = case()
    with torch.no_grad():
        loss, _ = weighted_cross_entropy(hidden, weight, labels, weights)
    assert not loss.requires_grad
    frozen, _ = weighted_cross_entropy(hidden, weight.detach(), labels, weights)
    frozen.backward()
    assert hidden.grad is not None
