"""Best of n: likelihoods against the plain law, and the choice that they make."""

import numpy as np
import pytest
import torch
from tiny_model import tiny_checkpoint

from rhea.documents import formats
from rhea.documents.document import Image
from rhea.documents.grammar import FINE_TUNING
from rhea.errors import InputError
from rhea.generation import choosing
from rhea.generation.choosing import agreements, log_likelihoods
from rhea.generation.loading import load_model
from rhea.generation.model import Rhea


@pytest.fixture(scope="module")
def model() -> Rhea:
    return Rhea(tiny_checkpoint())


@pytest.mark.parametrize("at_once", [(8192, 1024), (30, 3)], ids=str)
def test_likelihoods_are_those_of_each_token_among_its_kind(
    model: Rhea, monkeypatch: pytest.MonkeyPatch, at_once: tuple[int, int]
) -> None:
    monkeypatch.setattr(choosing, "_TOKENS_AT_ONCE", at_once[0])
    monkeypatch.setattr(choosing, "_ROWS_OF_LOGITS", at_once[1])
    completer, random = model.completer, np.random.default_rng(0)
    codes = [random.integers(0, 32, shape) for shape in ((3, 2), (2, 5))]
    documents = [
        formats.text_to_image("a red star", Image(codes=codes[0])),
        formats.captioning(Image(codes=codes[1]), "a blue ring and a star"),
    ]
    first_code = completer.grammar.vocabulary.vision.start
    expected = []
    for document in documents:
        rendered = completer.grammar.render(document, FINE_TUNING)
        ids = torch.from_numpy(rendered.token_ids)
        with torch.inference_mode():
            logits = completer.transformer(ids[None])[0, :-1]
        of_other_kind = (ids[1:, None] >= first_code) != (torch.arange(logits.shape[1]) >= first_code)
        laws = logits.masked_fill(of_other_kind, -torch.inf).log_softmax(-1)
        targets = torch.from_numpy(rendered.loss_weights[1:] > 0)
        expected.append(float(laws.gather(1, ids[1:, None])[targets].sum()))
    together = log_likelihoods(completer.transformer, completer.grammar, documents)
    assert together == pytest.approx(expected, rel=1e-4)
    assert log_likelihoods(completer.transformer, completer.grammar, documents[1:]) == pytest.approx(together[1:])


def test_of_all_candidates_the_one_that_agrees_best_is_kept(model: Rhea) -> None:
    candidates = model.generate("a red star", samples=6, seed=3)
    completer = model.completer
    found = agreements(
        completer.transformer, completer.grammar, ["a red star"] * 6, [candidate.codes for candidate in candidates]
    )
    best = model.generate("a red star", samples=2, seed=3, best_of=3)
    chosen = [int(np.argmax(found[:3])), 3 + int(np.argmax(found[3:]))]
    assert [each.token_ids for each in best] == [candidates[index].token_ids for index in chosen]
    assert [each.sample_index for each in best] == [0, 1]


def test_some_of_the_prompts_may_want_the_best(model: Rhea) -> None:
    write = model.prompts.draw
    prompts = [write("a ring", seed=1), write("a star", seed=2, best_of=3), write("a ring", seed=1, guidance_scale=1.0)]
    question = model.prompts.answer(None, [("what?", None)])
    found = model.completer.complete([*prompts, question], max_requests=2)
    best = model.generate("a star", seed=2, best_of=3, zipar=3)[0]  # as wide as the picture, so nothing is lost
    assert found[1].token_ids == best.token_ids
    for place in (0, 2):
        assert found[place].token_ids == model.completer.complete([prompts[place]])[0].token_ids
    assert found[3].text == model.completer.complete([question])[0].text


def test_a_trained_model_tells_which_picture_goes_with_which_text() -> None:
    texts = ["a small red circle", "a large blue star", "一个绿色的大正方形"]
    model = load_model()
    drawn = model.generate(texts, seed=1)
    completer = model.completer
    table = [
        agreements(completer.transformer, completer.grammar, [text] * 3, [picture.codes for picture in drawn])
        for text in texts
    ]
    assert np.argmax(table, axis=1).tolist() == [0, 1, 2]


def test_what_cannot_be_chosen_is_refused(model: Rhea) -> None:
    with pytest.raises(InputError, match="best_of is 0"):
        model.generate("a star", best_of=0)
    with pytest.raises(InputError, match="pictures from text"):
        model.generate("a star", video=True, best_of=2)
    with pytest.raises(InputError, match="one request draws one picture"):
        model.completer.requests([model.prompts.draw("a star", best_of=2)])
    with pytest.raises(InputError, match="no previews"):
        model.generate("a star", best_of=2, preview=lambda number, seen: None)
