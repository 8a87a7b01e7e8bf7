"""The aligned model: what it is shown is graded rightly, and a run can be interrupted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import rhea
from rhea.checkpoints.load import load_checkpoint
from rhea.config import from_dict, to_dict
from rhea.documents.pairs import read_pairs
from rhea.errors import InputError
from rhea.generation.loading import DEFAULT_MODEL
from rhea.recipes.aligned_model import AlignedModelRecipe, aligned_model
from rhea.recipes.preferences import ShapesPreferencesConfig, _ask, draw_preferences
from rhea.training.schedule import ScheduleConfig
from rhea.worlds.shapes.grader import read_picture

SHAPES = ShapesPreferencesConfig(prompts=20, samples=4, objects=(3,))


def small() -> AlignedModelRecipe:
    recipe = aligned_model()
    trainer = replace(recipe.trainer, total_steps=2, schedule=ScheduleConfig(learning_rate=1e-2), log_every=1)
    return replace(recipe, shapes=SHAPES, rows=1, trainer=trainer, device="cpu")


def test_config_round_trip() -> None:
    made = aligned_model()
    assert from_dict(AlignedModelRecipe, json.loads(json.dumps(to_dict(made)))) == made


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aligned")
    assert small().run(folder)
    return folder


def test_the_chosen_tries_are_right_and_the_rejected_wrong(run: Path) -> None:
    model = rhea.load(device="cpu")
    grammar, codec = model.completer.grammar, model.codec
    assert codec is not None
    judges = {}
    for number in range(SHAPES.prompts):
        asked = _ask(model, SHAPES, number)
        judges[tuple(grammar.render_prompt(asked.prompt.document, asked.prompt.next).tolist())] = asked.is_right
    assert len(judges) == SHAPES.prompts
    pairs = read_pairs(run / "preferences.jsonl", grammar.vocabulary.size)
    assert pairs
    for pair in pairs:
        for written, right in ((pair.chosen_ids, True), (pair.rejected_ids, False)):
            drawn = grammar.parse([*pair.prompt_ids, *written]).segments[-1]
            assert judges[pair.prompt_ids](read_picture(codec.decode_picture(drawn.codes))) is right  # type: ignore[union-attr]


def head(folder: Path) -> torch.Tensor:
    transformer = load_checkpoint(folder, dtype=torch.float32).transformer
    assert transformer is not None
    assert transformer.lm_head is not None
    return transformer.lm_head.weight


def test_the_checkpoint_lies_half_way_between_before_and_after(run: Path, tmp_path: Path) -> None:
    assert replace(small(), pairs=str(run / "preferences.jsonl"), blend=1.0).run(tmp_path)
    before, half, after = map(head, (DEFAULT_MODEL, run / "checkpoint", tmp_path / "checkpoint"))
    assert (after - before).abs().mean() > 3e-3
    torch.testing.assert_close(half, (before + after) / 2, rtol=1e-2, atol=1e-4)  # bfloat16
    aligned = rhea.load(run / "checkpoint", device="cpu")
    assert aligned.defaults == rhea.load(device="cpu").defaults
    assert aligned.generate("a small red circle")[0].pixels.shape == (64, 64, 3)


def test_pairs_that_were_drawn_before_an_interruption_are_kept(run: Path, tmp_path: Path) -> None:
    model, path = rhea.load(device="cpu"), tmp_path / "preferences.jsonl"
    whole = (run / "preferences.jsonl").read_text()
    draw_preferences(model, replace(SHAPES, prompts=16), path)
    with pytest.raises(InputError, match=r"of another run \(other prompts\): delete it and .*preferences.json"):
        draw_preferences(model, SHAPES, path)
    path.with_suffix(".json").unlink()
    parts = path.with_suffix(".parts")
    parts.mkdir()
    path.rename(parts / "000000.jsonl")  # as if stopped after the first group
    draw_preferences(model, SHAPES, path)
    assert path.read_text() == whole
    assert not parts.exists()
    path.write_text("kept")
    draw_preferences(model, SHAPES, path)
    assert path.read_text() == "kept"


def test_of_several_checkpoints_the_mean_is_aligned(run: Path, tmp_path: Path) -> None:
    starts = (str(DEFAULT_MODEL), str(run / "checkpoint"))
    assert replace(small(), start_from=starts, pairs=str(run / "preferences.jsonl")).run(tmp_path)
    mean = (head(DEFAULT_MODEL) + head(run / "checkpoint")) / 2
    torch.testing.assert_close(head(tmp_path / "start"), mean, rtol=1e-2, atol=1e-4)  # bfloat16
    with pytest.raises(InputError, match="no checkpoint"):
        replace(small(), start_from=()).run(tmp_path)


def test_what_gives_no_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two samples or more"):
        replace(small(), shapes=replace(SHAPES, samples=1)).run(tmp_path / "run")
    with pytest.raises(InputError, match="blend is 0"):
        replace(small(), blend=0.0).run(tmp_path / "run")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="no pairs to learn from"):
        replace(small(), pairs=str(tmp_path / "empty.jsonl")).run(tmp_path / "run")
