"""The reinforced model: its tries are weighed as they were graded, and right ones become likelier."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import rhea
from rhea.checkpoints.load import load_checkpoint
from rhea.config import from_dict, to_dict
from rhea.documents.document import Image, ImageSize, Text
from rhea.documents.packing import Packed
from rhea.errors import InputError
from rhea.generation.loading import DEFAULT_MODEL
from rhea.generation.model import Rhea
from rhea.models.transformer import Transformer
from rhea.recipes.exercises import Exercise
from rhea.recipes.practice import PracticeConfig, PracticeLoader, advantages, ask, load_artist, right_places
from rhea.recipes.reinforced_model import ReinforcedModelRecipe, reinforced_model
from rhea.training.schedule import ScheduleConfig
from rhea.training.task import TrainingError
from rhea.worlds.shapes.grader import read_picture
from rhea.worlds.shapes.render import render
from rhea.worlds.shapes.scene import SHAPES, Scene

PRACTICE = PracticeConfig(prompts=12, samples=4, kept=2, objects=(3,), rows=2)


def small() -> ReinforcedModelRecipe:
    recipe = reinforced_model()
    trainer = replace(recipe.trainer, total_steps=2, schedule=ScheduleConfig(learning_rate=1e-3), log_every=1)
    return replace(recipe, practice=PRACTICE, trainer=trainer, device="cpu")


def test_config_round_trip() -> None:
    made = reinforced_model()
    assert from_dict(ReinforcedModelRecipe, json.loads(json.dumps(to_dict(made)))) == made


def weighed(right: list[int], places: list[list[int]], kept: int) -> dict[int, list[float]]:
    found = advantages(np.array(right, dtype=bool), np.array(places, dtype=bool), kept)
    return {index: weights.tolist() for index, weights in found}


def test_advantages_are_of_the_group_and_weigh_the_same_however_many_are_kept() -> None:
    right, whole = [1, 0, 1, 1], [[1], [0], [1], [1]]
    assert weighed(right, whole, 4) == {0: [0.25], 2: [0.25], 3: [0.25], 1: [-0.75]}
    assert weighed(right, whole, 2) == {0: [0.375], 2: [0.375], 1: [-0.75]}
    assert not weighed([1, 1], [[1], [1]], 2)
    assert not weighed([0, 0], [[0], [0]], 2)


def test_choices_are_weighed_where_tries_part_and_never_after_a_mistake() -> None:
    right, places = [1, 1, 0, 0], [[1, 1, 1], [1, 1, 1], [1, 0, 1], [1, 1, 0]]
    found = weighed(right, places, 4)
    assert found[0] == found[1] == pytest.approx([0, 0.25, 1 / 3])
    assert found[2] == pytest.approx([0, -0.75, 0])
    assert found[3] == pytest.approx([0, 0.25, -2 / 3])
    assert not weighed([0, 0], [[0, 1], [0, 0]], 2)  # both were wrong in the same place


def test_places_of_a_try_are_compared_with_the_outcome() -> None:
    outcome = np.full((4, 4, 3), 200, dtype=np.uint8)
    wrong, faint = outcome.copy(), outcome.copy()
    wrong[2:, :2] = 100
    faint[:2, 2:] -= 10
    places = right_places(
        [outcome, wrong, faint, faint], outcome, np.array([True, False, False, True]), ImageSize(height=2, width=2)
    )
    assert places.tolist() == [[True] * 4, [True, True, False, True], [True, False, True, True], [True] * 4]


class NoDocuments:
    """Stands for plain documents where there is no replay."""

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        assert not state


def practice(config: PracticeConfig) -> tuple[PracticeLoader, Transformer]:
    start = load_checkpoint(DEFAULT_MODEL, dtype=torch.float32)
    assert start.transformer is not None
    artist = load_artist(str(DEFAULT_MODEL))
    return PracticeLoader(config, start.transformer, artist, NoDocuments(), every=1), start.transformer  # type: ignore[arg-type]


def documents(packed: Packed) -> list[tuple[list[int], np.ndarray]]:
    """Return the tokens of each document and the weights of predicting them."""
    found = []
    for ids, weights, numbers in zip(packed.token_ids, packed.loss_weights, packed.document_ids, strict=True):
        for number in range(numbers.max() + 1):
            mine = numbers == number
            found.append((ids[mine].tolist(), np.concatenate([[0.0], weights[mine][:-1]])))
    return found


def test_a_round_weighs_right_tries_up_and_wrong_ones_down(monkeypatch: pytest.MonkeyPatch) -> None:
    loader, _ = practice(replace(PRACTICE, replay=0.0))
    asked: dict[tuple[int, ...], Exercise] = {}
    grammar, codec = loader._artist.completer.grammar, loader._artist.codec
    assert codec is not None

    def remembering(config: PracticeConfig, artist: rhea.Rhea, number: int) -> Exercise:
        exercise = ask(config, artist, number)
        ids = grammar.render_prompt(exercise.prompt.document, exercise.prompt.next)
        asked[tuple(ids.tolist())] = exercise
        return exercise

    monkeypatch.setattr("rhea.recipes.practice.ask", remembering)
    rounds = [loader.next_batch()]
    while loader._packed:
        rounds.append(loader.next_batch())
    assert all(len(packed.token_ids) <= PRACTICE.rows for packed in rounds)
    totals, signs, by_place = Counter[tuple[int, ...]](), Counter[int](), 0
    for ids, weights in (each for packed in rounds for each in documents(packed)):
        (prompt,) = [prompt for prompt in asked if tuple(ids[: len(prompt)]) == prompt]
        codes = np.array(ids) >= grammar.vocabulary.vision.start
        codes[: len(prompt)] = False
        drawn = grammar.parse(ids).segments[-1]
        assert isinstance(drawn, Image)
        assert drawn.codes is not None
        right = asked[prompt].is_right(read_picture(codec.decode_picture(drawn.codes)))
        if asked[prompt].exact:  # weighed by place, up to the first that is wrong
            assert not weights[~codes].any()
            negative = (weights < 0).nonzero()[0]
            assert len(negative) <= (not right)
            assert not len(negative) or not weights[negative[0] + 1 :].any()
            by_place += 1
            continue
        assert (weights != 0).tolist() == codes.tolist()
        (weight,) = set(weights[codes].tolist())
        assert right is (weight > 0)
        assert {exercise.prompt.sampling.guidance_scale for exercise in asked.values()} == {1.0}
        totals[prompt] += weight
        signs[weight > 0] += 1
    assert min(*signs.values(), by_place) >= 2
    np.testing.assert_allclose([*totals.values()], 0, atol=1e-6)
    shown = loader.evaluate(None, 0, Path())
    assert shown["reward/3 objects"] <= 1
    assert 0 < shown["reward"] < 1
    assert not loader.evaluate(None, 0, Path())


def test_what_was_drawn_with_guidance_is_learned_where_it_is_right_and_only_there() -> None:
    loader, _ = practice(replace(PRACTICE, replay=0.0, guidance=2.0, edits=0.0, rows=100))
    artist = loader._artist
    assert artist.codec is not None
    asked = [ask(loader.config, artist, number) for number in range(PRACTICE.prompts)]
    assert {exercise.prompt.sampling.guidance_scale for exercise in asked} == {2.0}
    exercises = {
        tuple(artist.completer.grammar.render_prompt(each.prompt.document, each.prompt.next).tolist()): each
        for each in asked
    }
    learned = documents(loader.next_batch())
    rewards = np.array(loader._rewards["3 objects"]).reshape(-1, PRACTICE.samples)
    assert len(learned) == np.minimum(rewards.sum(1), PRACTICE.kept).sum() > 0
    for ids, weights in learned:
        (exercise,) = [each for prompt, each in exercises.items() if tuple(ids[: len(prompt)]) == prompt]
        drawn = artist.completer.grammar.parse(ids).segments[-1]
        assert isinstance(drawn, Image)
        assert drawn.codes is not None
        assert exercise.is_right(read_picture(artist.codec.decode_picture(drawn.codes)))
        assert weights[weights != 0].tolist() == [1.0] * drawn.codes.size


def test_scenes_have_as_many_objects_as_asked_for() -> None:
    artist = load_artist(str(DEFAULT_MODEL))
    assert artist.codec is not None
    edits = replace(PRACTICE, edits=1.0, edited_objects=(1, 4))
    for number in range(12):
        assert ask(replace(PRACTICE, edits=0.0), artist, number).name == "3 objects"
        exercise = ask(edits, artist, number)
        (source,) = [each for each in exercise.prompt.document.segments if isinstance(each, Image)]
        assert source.codes is not None
        possible = {"remove": {4}, "add": {1}}.get(exercise.name, {1, 4})
        assert len(read_picture(artist.codec.decode_picture(source.codes))) in possible


def test_hard_words_are_asked_for_more_often() -> None:
    artist = load_artist(str(DEFAULT_MODEL))
    config = replace(PRACTICE, english=1.0, edited_objects=(3,), captions=("ordered", "related"))

    def found(config: PracticeConfig, pattern: str) -> int:
        asked = [ask(config, artist, number).prompt.document.segments[0] for number in range(60)]
        return sum(bool(re.search(pattern, each.text.lower())) for each in asked if isinstance(each, Text))

    assert found(replace(config, edits=0.0), "from left to right|, with ") > 50
    by_shape = rf"the ({'|'.join(SHAPES)})\b"
    as_it_comes = found(replace(config, edits=1.0), by_shape)
    assert found(replace(config, edits=1.0, colourless_edits=1.0), by_shape) > 1.5 * as_it_comes > 0


def seen_again(artist: Rhea, scene: Scene) -> np.ndarray:
    """Return a scene's picture after the vision tokenizer's round trip."""
    assert artist.codec is not None
    (codes,) = artist.codec.encode_pictures([render(scene)])
    return artist.codec.decode_picture(codes)


def test_the_outcome_of_an_edit_is_shown_where_no_try_was_right() -> None:
    loader, model = practice(replace(PRACTICE, replay=0.0, shown=2.0, samples=2, rows=100))
    with torch.no_grad():
        model.lm_head.weight.zero_()  # type: ignore[union-attr]
    artist = loader._artist
    assert artist.codec is not None
    asked = [ask(loader.config, artist, number) for number in range(PRACTICE.prompts)]
    lasting = [each for each in asked if each.exact and each.is_right(read_picture(seen_again(artist, each.outcome)))]
    prompts = [artist.completer.grammar.render_prompt(each.prompt.document, each.prompt.next) for each in lasting]
    shown = [(ids, weights) for ids, weights in documents(loader.next_batch()) if weights.max() == 2]
    assert 1 < len(shown) == len(lasting)  # of a caption many pictures are right
    for ids, weights in shown:
        segments = artist.completer.grammar.parse(ids).segments
        assert isinstance(segments[-1], Image)
        assert segments[-1].codes is not None
        assert weights[weights != 0].tolist() == [2.0] * segments[-1].codes.size
        (mine,) = [each for each, told in zip(lasting, prompts, strict=True) if ids[: len(told)] == told.tolist()]
        assert mine.is_right(read_picture(artist.codec.decode_picture(segments[-1].codes)))


def test_processes_draw_the_same() -> None:
    config = replace(PRACTICE, replay=0.0, prompts=6)
    alone, _ = practice(config)
    with practice(replace(config, workers=2))[0] as together:
        first, second = alone.next_batch(), together.next_batch()
    for name in ("token_ids", "loss_weights", "document_ids"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_each_round_is_drawn_with_the_weights_of_the_moment() -> None:
    loader, model = practice(replace(PRACTICE, replay=0.0, prompts=4))
    with torch.no_grad():
        model.lm_head.weight *= 1.01  # type: ignore[union-attr]
    loader.next_batch()
    drawn = loader._artist.completer.transformer.lm_head
    assert drawn is not None
    assert torch.equal(drawn.weight, model.lm_head.weight)  # type: ignore[union-attr]


def test_a_model_that_is_never_right_is_told_so() -> None:
    loader, model = practice(replace(PRACTICE, replay=0.0, prompts=1, samples=2, edits=0.0))
    with torch.no_grad():
        model.lm_head.weight.zero_()  # type: ignore[union-attr]
    with pytest.raises(TrainingError, match="8 rounds of prompts were always or never right"):
        loader.next_batch()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reinforced")
    assert small().run(folder)
    return folder


def test_a_run_writes_a_checkpoint_with_its_own_settings_of_generation(run: Path) -> None:
    reinforced = rhea.load(run / "checkpoint", device="cpu")
    assert (reinforced.defaults.guidance_scale, reinforced.defaults.edit_guidance_scale) == (1.5, 1.0)
    assert reinforced.defaults.film_guidance_scale == rhea.load(device="cpu").defaults.film_guidance_scale
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any(0 < line.get("reward", 0) < 1 for line in lines)
    assert (run / "checkpoint" / "README.md").read_text().startswith("# A reinforced model")


def test_a_stopped_run_goes_on(run: Path, tmp_path: Path) -> None:
    recipe = small()
    assert replace(recipe, trainer=replace(recipe.trainer, total_steps=1)).run(tmp_path)
    assert small().run(tmp_path)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 2


def test_what_cannot_be_practised_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint"):
        replace(small(), start_from=()).run(tmp_path)
    with pytest.raises(InputError, match="two samples or more"):
        PracticeConfig(samples=1)
    with pytest.raises(InputError, match="replay and shown must be 0 or more"):
        PracticeConfig(replay=-1.0)
