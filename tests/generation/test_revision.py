"""Prompts that the model puts in words of its own before it draws."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tiny_model import tiny_checkpoint

from rhea.documents import formats
from rhea.errors import InputError
from rhea.generation.loading import load_model
from rhea.generation.model import Rhea
from rhea.worlds.shapes.language import read_caption


@pytest.fixture(scope="module")
def model() -> Rhea:
    return Rhea(tiny_checkpoint(max_seq_len=1024))


def test_what_is_drawn_is_what_the_model_would_draw_from_its_own_words(model: Rhea) -> None:
    made = model.generate(["红", "蓝。"], samples=2, seed=5, revise=True)
    told = set()
    for number, picture in enumerate(made):
        asked = model.prompts.draw(["红", "蓝。"][number // 2], seed=5, sample_index=number % 2, revise=True)
        words = model.completer.complete([asked.revision()])[0].text
        assert picture.prompt == asked.text
        assert picture.revised_prompt == words
        alone = model.completer.complete([replace(asked, document=formats.text_to_image(words), revise=False)])[0]
        assert picture.token_ids == alone.token_ids
        told.add(words)
    assert len(told) == 4, "each sample has words of its own"


def test_a_prompt_that_is_fine_stays_as_it_is(model: Rhea) -> None:
    prompt = model.prompts.draw("red", seed=5, revise=True)
    for answer in ("OK", "OK then", ""):
        kept = prompt.revised(answer)
        assert (kept.text, kept.revise, kept.seed) == ("red", False, 5)
    assert prompt.revised("two").text == "two"


def test_words_in_another_script_are_a_slip(model: Rhea) -> None:
    for text, answer in (("red", "红色圆形"), ("红色圆形", "red")):
        assert model.prompts.draw(text, revise=True).revised(answer).text == text


def test_the_default_model_places_what_is_related_and_keeps_what_is_fine() -> None:
    model = load_model()
    related = [
        "a small blue circle, a large red square and a large green star, with the large green star above the large red "
        "square",
        "a small yellow ring, a large black cross and a small red circle, with the small red circle to the left of the "
        "small yellow ring",
        "a small red circle below a large blue square",
    ]
    fine = ["a large red circle", "a small red circle and a large blue square", "左上方有一个红色大圆形"]
    drawn: list[Any] = model.generate([*related, *fine], seed=1)
    assert [picture.revised_prompt for picture in drawn[3:]] == [None] * 3
    for prompt, picture in zip(related, drawn[:3], strict=True):
        assert read_caption(picture.revised_prompt) == read_caption(prompt.partition(", with ")[0])
    words = [picture.revised_prompt.lower() for picture in drawn[:3]]
    assert re.match("a large green star at the top", words[0])
    assert re.match(r"a small red circle (at|on) the [a-z ]*left", words[1])
    assert re.match("a large blue square at the top", words[2])


def test_a_checkpoint_says_whether_it_revises_and_only_pictures_from_text_are(model: Rhea) -> None:
    assert not model.prompts.draw("red").revise
    revising = Rhea(tiny_checkpoint(revise=True))
    assert revising.prompts.draw("red").revise
    assert not revising.prompts.draw("red", revise=False).revise
    assert not revising.prompts.draw("red", video=True).revise
    assert revising.generate("red", revise=False)[0].revised_prompt is None  # type: ignore[union-attr]
    with pytest.raises(InputError, match="revise is for pictures"):
        revising.generate("red", video=True, revise=True)
    with pytest.raises(InputError, match="revise is for pictures from text"):
        replace(revising.prompts.edit([np.zeros((32, 24, 3), np.uint8)], "red"), revise=True)
    with pytest.raises(InputError, match="takes two requests"):
        revising.completer.requests([revising.prompts.draw("red")])


def test_the_best_of_several_is_judged_by_the_words_that_it_was_drawn_from(model: Rhea) -> None:
    best = model.generate("红", seed=5, best_of=3, revise=True)[0]
    words = best.revised_prompt  # type: ignore[union-attr]
    assert words is not None
    again = model.generate(words, seed=5, best_of=3)[0]
    assert (best.token_ids, best.sample_index) == (again.token_ids, again.sample_index)
