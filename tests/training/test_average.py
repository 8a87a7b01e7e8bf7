import pytest
import torch
from torch import nn

from rhea.errors import InputError
from rhea.training.average import WeightAverage, averaged, warmed_decay


def test_average_follows_its_definition():
    model = nn.Linear(2, 2)
    average = WeightAverage(0.9, model)
    expected = model.weight.detach().clone()
    for updates in range(20):
        with torch.no_grad():
            model.weight.add_(1.0)
        average.update()
        decay = min(0.9, (1 + updates) / (10 + updates))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.tensors["weight"], expected)


def test_memory_is_short_at_first():
    assert warmed_decay(0.999, 0) == pytest.approx(0.1)
    assert warmed_decay(0.999, 100_000) == 0.999


def test_averaged_weights_are_in_place_only_inside():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    average = WeightAverage(0.5, model)
    with torch.no_grad():
        model[0].weight.zero_()
    live, mean = model[0].weight.detach().clone(), average.tensors["0.weight"].clone()
    with averaged(model, average) as inside:
        assert torch.equal(inside[0].weight, mean)
        assert not inside.training
    assert torch.equal(model[0].weight, live)
    assert torch.equal(average.tensors["0.weight"], mean)
    assert model.training


def test_without_an_average_the_model_itself_is_used():
    model = nn.Linear(2, 2)
    with averaged(model, None) as inside:
        assert inside is model
        assert not model.training


def test_weights_come_back_after_an_error():
    model = nn.Linear(2, 2)
    average = WeightAverage(0.5, model)
    with torch.no_grad():
        model.weight.zero_()
    with pytest.raises(RuntimeError), averaged(model, average):
        raise RuntimeError
    assert (model.weight == 0).all()


def test_state_round_trip_and_misfit():
    model = nn.Linear(2, 2)
    average, other = WeightAverage(0.5, model), WeightAverage(0.5, nn.Linear(2, 2))
    average.update()
    other.load_state_tensors(average.state_tensors("a."), "a.", average.updates)
    assert torch.equal(other.tensors["weight"], average.tensors["weight"])
    assert other.updates == 1
    with pytest.raises(InputError, match="weight"):
        WeightAverage(0.5, nn.Linear(3, 2)).load_state_tensors(average.state_tensors("a."), "a.", 1)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, float("nan")])
def test_decay_outside_zero_and_one_is_refused(decay):
    with pytest.raises(InputError):
        WeightAverage(decay, nn.Linear(2, 2))
