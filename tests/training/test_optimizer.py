from typing import Literal

import pytest
import torch
from torch import nn

from rhea.errors import InputError
from rhea.training.muon import orthogonal
from rhea.training.optimizer import Optimizer, OptimizerConfig, require_finite
from rhea.training.task import NonFiniteError


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))


def backward_sum(model: nn.Module, x: torch.Tensor, weights: torch.Tensor) -> None:
    (model(x).square().sum(1) * weights).sum().backward()


def step(optimizer: Optimizer, weight: float, rate: float = 1e-2) -> torch.Tensor:
    norm = optimizer.gradient_norm(weight)
    optimizer.update(rate, weight, norm)
    return norm


def test_any_split_into_microbatches_makes_the_same_update():
    x, weights = torch.randn(12, 6, generator=torch.Generator().manual_seed(1)), torch.linspace(0.1, 2.0, 12)
    results = []
    for cuts in ([12], [6, 6], [1, 4, 7]):
        model = small_model().double()
        optimizer = Optimizer(OptimizerConfig(), model.named_parameters())
        for part, part_weights in zip(x.double().split(cuts), weights.double().split(cuts), strict=True):
            backward_sum(model, part, part_weights)
        norm = step(optimizer, float(weights.double().sum()))
        results.append((norm, torch.cat([parameter.detach().flatten() for parameter in model.parameters()])))
    for norm, values in results[1:]:
        torch.testing.assert_close(norm, results[0][0], rtol=1e-12, atol=0)
        torch.testing.assert_close(values, results[0][1], rtol=0, atol=1e-12)


def test_one_update_is_adamw_on_the_mean_loss():
    ours, theirs = small_model(), small_model()
    x, weights = torch.randn(5, 6), torch.tensor([1.0, 0.5, 0.5, 1.0, 0.0])
    config = OptimizerConfig(betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3, clip_norm=0.05)
    optimizer = Optimizer(config, ours.named_parameters())
    matrices = [parameter for parameter in theirs.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in theirs.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.9), eps=1e-6, foreach=False)
    for _ in range(3):
        backward_sum(ours, x, weights)
        step(optimizer, float(weights.sum()))
        reference.zero_grad()
        ((theirs(x).square().sum(1) * weights).sum() / weights.sum()).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.05)
        reference.step()
    for our, their in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-6)  # the same sums in another order


@pytest.mark.parametrize("fast", [True, False])
def test_muon_updates_the_hidden_matrices_and_nothing_else(fast: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rhea.training.optimizer.fast_bfloat16", lambda device: fast)
    if not fast:  # then torch's, too, must not round to bfloat16
        monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor)

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed_tokens, self.hidden, self.lm_head = nn.Embedding(5, 4), nn.Linear(4, 6), nn.Linear(6, 5)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.lm_head(self.hidden(self.embed_tokens(ids)))

    torch.manual_seed(0)
    ours, ids = Small(), torch.arange(5)
    theirs = Small()
    theirs.load_state_dict(ours.state_dict())
    config = OptimizerConfig(hidden="muon", weight_decay=0.3, clip_norm=0.0)
    optimizer = Optimizer(config, ours.named_parameters())
    rest = [parameter for name, parameter in theirs.named_parameters() if name != "hidden.weight"]
    references: list[torch.optim.Optimizer] = [
        torch.optim.Muon([theirs.hidden.weight], lr=1e-2, weight_decay=0.3, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([p for p in rest if p.ndim == 2], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.3),
        torch.optim.AdamW([p for p in rest if p.ndim < 2], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    for _ in range(3):
        for model in (ours, theirs):
            model.zero_grad()
            model(ids).square().sum().backward()
        step(optimizer, 1.0)
        for reference in references:
            reference.step()
    for our, their in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 8, 20), (3, 20, 8), (1, 6, 6)])
def test_orthogonalised_matrices_keep_their_singular_vectors(shape: tuple[int, int, int]):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    values = u.mT @ orthogonal(matrices, (3.4445, -4.7750, 2.0315), 5, 1e-7) @ v.mT
    singular = values.diagonal(dim1=1, dim2=2)
    assert (values - torch.diag_embed(singular)).abs().max() < 1e-4
    assert singular.min() > 0.3  # "near one" is from 0.3 to 1.3 after five steps for values that began small
    assert singular.max() < 1.3


def test_only_matrices_decay():
    model = small_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = Optimizer(OptimizerConfig(weight_decay=0.5), model.named_parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    step(optimizer, 1.0, rate=0.1)
    for name, parameter in model.named_parameters():
        factor = 0.95 if parameter.ndim >= 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_clipping_can_be_turned_off():
    model = nn.Linear(1, 1, bias=False)
    optimizer = Optimizer(OptimizerConfig(clip_norm=0.0), model.named_parameters())
    model.weight.grad = torch.full((1, 1), 1000.0)
    norm = optimizer.gradient_norm(2.0)
    assert norm.item() == 500.0
    optimizer.update(0.0, 2.0, norm)
    moments = optimizer.state_tensors("")["exp_avg.weight"]
    torch.testing.assert_close(moments, torch.full((1, 1), 50.0))  # (1 - 0.9) x 500, not clipped to 1


@pytest.mark.parametrize("hidden", ["adamw", "muon"])
def test_state_goes_through_names_and_continues_bitwise(hidden: Literal["adamw", "muon"]):
    x, config = torch.randn(4, 6), OptimizerConfig(hidden=hidden)
    ours, theirs = small_model(), small_model()
    optimizer = Optimizer(config, ours.named_parameters())
    for _ in range(2):
        backward_sum(ours, x, torch.ones(4))
        step(optimizer, 4.0)
    theirs.load_state_dict(ours.state_dict())
    restored = Optimizer(config, theirs.named_parameters())
    saved = {name: tensor.clone() for name, tensor in optimizer.state_tensors("o.").items()}
    restored.load_state_tensors(saved, "o.")
    for model, one in ((ours, optimizer), (theirs, restored)):
        backward_sum(model, x, torch.ones(4))
        step(one, 4.0)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_state_of_another_model_is_refused():
    optimizer = Optimizer(OptimizerConfig(), small_model().named_parameters())
    backward_sum_model = small_model()
    other = Optimizer(OptimizerConfig(), backward_sum_model.named_parameters())
    backward_sum(backward_sum_model, torch.randn(4, 6), torch.ones(4))
    step(other, 4.0)
    saved = other.state_tensors("o.")
    saved["o.exp_avg.0.weight"] = torch.zeros(3, 3)
    with pytest.raises(InputError, match=r"0\.weight"):
        optimizer.load_state_tensors(saved, "o.")


def test_forgotten_rows_have_no_moments_left():
    model = nn.Embedding(5, 3)
    optimizer = Optimizer(OptimizerConfig(), model.named_parameters())
    model.weight.grad = torch.ones(5, 3)
    step(optimizer, 1.0)
    optimizer.forget_rows("weight", torch.tensor([1, 4]))
    moments = optimizer.state_tensors("")
    for key in ("exp_avg.weight", "exp_avg_sq.weight"):
        assert (moments[key][[1, 4]] == 0).all()
        assert (moments[key][[0, 2, 3]] != 0).all()


def test_what_is_not_finite_is_told_apart():
    one, nan = torch.tensor(1.0), torch.tensor(float("nan"))
    require_finite(one, one)
    with pytest.raises(NonFiniteError, match="loss is not finite"):
        require_finite(nan, nan)
    with pytest.raises(NonFiniteError, match="gradient"):
        require_finite(one, one, torch.tensor(float("inf")))
