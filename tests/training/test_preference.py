"""The preference task computes DPO's loss and gradient, and learns to prefer."""

from copy import deepcopy

import numpy as np
import pytest
import tiny_runs
import torch
import torch.nn.functional as F
from tiny_runs import VOCABULARY

from rhea.documents.packing import Packed
from rhea.documents.pairs import Pair, PairLoader
from rhea.errors import InputError
from rhea.models.transformer import Transformer
from rhea.training.next_token import NextTokenTaskConfig
from rhea.training.preference import PreferenceTask, PreferenceTaskConfig

BETA, NEXT_TOKEN = 0.3, 0.5


def pairs(number: int = 5) -> list[Pair]:
    made = []
    for each in range(number):
        random, first = np.random.default_rng([11, each]), VOCABULARY.vision.start
        prompt = (VOCABULARY.bos, *random.integers(0, VOCABULARY.text.stop, size=2).tolist(), VOCABULARY.image_token)
        written = [(first + random.integers(32, size=4 + each)).tolist() for _ in range(2)]
        made.append(Pair(prompt, *((*ids, VOCABULARY.eos) for ids in written)))
    return made


def together(given: list[Pair]) -> Packed:
    """Return each pair once, all in one row."""
    length = sum(len(pair.prompt_ids) * 2 + len(pair.chosen_ids) + len(pair.rejected_ids) for pair in given)
    return PairLoader(given, rows=1, seq_len=length, pad=VOCABULARY.pad).next_batch()


def models() -> tuple[Transformer, Transformer]:
    """Return a model and another one to refer to."""
    model, reference = tiny_runs.transformer(dropout=0.0), tiny_runs.transformer(dropout=0.0)
    with torch.no_grad():
        for weight in reference.parameters():
            weight.mul_(1.1)
    return model, reference


def preference_task(model: Transformer, reference: Transformer, **base: object) -> PreferenceTask:
    config = PreferenceTaskConfig(base=NextTokenTaskConfig(**base), beta=BETA, next_token=NEXT_TOKEN)  # type: ignore[arg-type]
    return PreferenceTask(config, model, reference, VOCABULARY)


def log_likelihood(model: Transformer, pair: Pair, written: tuple[int, ...], kind: bool) -> torch.Tensor:
    """Compute it by itself, from all logits."""
    ids = torch.tensor([[*pair.prompt_ids, *written]])
    logits = model(ids)[0]
    if kind:
        codes = torch.arange(logits.shape[1]) >= VOCABULARY.vision.start
        next_is_code = torch.cat([ids[0, 1:], ids[0, :1]]) >= VOCABULARY.vision.start
        logits = logits.masked_fill(codes != next_is_code[:, None], -torch.inf)
    each = -F.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
    return each[len(pair.prompt_ids) - 1 :].sum()


@pytest.mark.parametrize("loss_over", ["vocabulary", "kind"])
def test_loss_and_gradients_are_those_of_the_formula(loss_over: str) -> None:
    given, (model, reference) = pairs(), models()
    plain, total = deepcopy(model), torch.zeros(())
    margins = []
    for pair in given:
        chosen, rejected = (
            log_likelihood(plain, pair, ids, loss_over == "kind") for ids in (pair.chosen_ids, pair.rejected_ids)
        )
        with torch.no_grad():
            before = [
                log_likelihood(reference, pair, ids, loss_over == "kind")
                for ids in (pair.chosen_ids, pair.rejected_ids)
            ]
        margins.append(BETA * ((chosen - before[0]) - (rejected - before[1])))
        total = total - F.logsigmoid(margins[-1]) - NEXT_TOKEN * chosen / len(pair.chosen_ids)
    total.backward()
    task = preference_task(model, reference, loss_over=loss_over)
    metrics = task.train_microbatch(together(given))
    assert float(metrics["loss"].weight) == len(given)
    assert float(metrics["loss"].total) == pytest.approx(total.item(), rel=1e-4)
    assert float(metrics["rewards/margins"].total) == pytest.approx(sum(m.item() for m in margins), rel=1e-3)
    assert float(metrics["rewards/accuracies"].total) == sum(m.item() > 0 for m in margins)
    for name, parameter in plain.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(task.model.get_parameter(name).grad, parameter.grad, rtol=1e-3, atol=1e-5)


def test_packed_pairs_are_pairs_one_by_one() -> None:
    packed, alone = preference_task(*models()), preference_task(*models())
    total = float(packed.train_microbatch(together(pairs()))["loss"].total)
    each = [float(alone.train_microbatch(together([pair]))["loss"].total) for pair in pairs()]
    assert total == pytest.approx(sum(each), rel=1e-4)
    for name, parameter in packed.model.named_parameters():
        torch.testing.assert_close(parameter.grad, alone.model.get_parameter(name).grad, rtol=1e-3, atol=1e-5)


def test_without_a_difference_to_the_reference_the_loss_is_log_2() -> None:
    model, _ = models()
    task = PreferenceTask(PreferenceTaskConfig(next_token=0.0), model, deepcopy(model), VOCABULARY)
    metrics = task.train_microbatch(together(pairs()))
    assert float(metrics["loss"].total) / float(metrics["loss"].weight) == pytest.approx(np.log(2), rel=1e-5)
    assert float(metrics["rewards/accuracies"].total) == 0


def test_it_learns_to_prefer_and_the_reference_stays() -> None:
    model, reference = models()
    reference.load_state_dict(model.state_dict())
    before = deepcopy(reference.state_dict())
    task, loader = preference_task(model, reference), PairLoader(pairs(), rows=1, seq_len=200, pad=VOCABULARY.pad)
    for _ in range(30):
        metrics = task.train_microbatch(loader.next_batch())
        task.optimizer_step(1e-3)
    assert float(metrics["rewards/accuracies"].total) == float(metrics["rewards/accuracies"].weight)
    assert float(metrics["rewards/chosen"].total) > 0 > float(metrics["rewards/rejected"].total)
    assert all(torch.equal(reference.state_dict()[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"next_token": -1.0}])
def test_settings_that_prefer_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"beta must be above 0"):
        PreferenceTask(PreferenceTaskConfig(**wrong), *models(), VOCABULARY)
