import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rhea.models.remake import remade


def double(x: Tensor) -> Tensor:
    return (x * 2).detach()


class Doubled(torch.autograd.Function):
    """Doubles, and keeps nothing."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: object, slope: Tensor) -> Tensor:
        return slope * 2


def test_gradients_are_the_same_and_the_tensor_is_made_once_for_all_users() -> None:
    x, first, second = (torch.randn(4, 4, requires_grad=True) for _ in range(3))
    calls = []

    def make() -> Tensor:
        calls.append(1)
        return double(x)

    def loss(remake: bool) -> Tensor:
        y = Doubled.apply(x)
        if not remake:
            return (y @ first + (y @ second).tanh()).sum()
        with remade(y, make):
            products = y @ first, y @ second
        return (products[0] + products[1].tanh()).sum()

    expected = torch.autograd.grad(loss(False), (x, first, second))
    value = loss(True)
    assert not calls
    torch.testing.assert_close(torch.autograd.grad(value, (x, first, second)), expected, rtol=0, atol=0)
    assert len(calls) == 1


def test_the_tensor_is_really_dropped() -> None:
    x, weight = (torch.randn(4, 4, requires_grad=True) for _ in range(2))
    y = Doubled.apply(x)
    with remade(y, lambda: torch.zeros(4, 4)):  # a wrong recipe shows that nothing else is used
        (y @ weight).sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()


def test_checkpointing_keeps_the_say() -> None:
    x, weight = (torch.randn(4, 4, requires_grad=True) for _ in range(2))

    def branch(x: Tensor) -> Tensor:
        y = Doubled.apply(x)
        with remade(y, lambda: torch.zeros(4, 4)):
            return y @ weight

    checkpoint(branch, x, use_reentrant=False).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, double(x).T @ torch.ones(4, 4))
