"""Every recipe builds, with the parameter counts it promises; the debug recipe runs end to end and can be loaded."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rhea.checkpoints.load import load_checkpoint
from rhea.checkpoints.save import save_checkpoint
from rhea.config import from_dict, to_dict
from rhea.errors import InputError
from rhea.models.transformer import Transformer
from rhea.models.vision.tokenizer import VisionTokenizer
from rhea.recipes.debug import DebugRecipe, debug
from rhea.recipes.default_model import DefaultModelRecipe, default_model
from rhea.recipes.default_tokenizer import default_tokenizer, local_tokenizer
from rhea.recipes.emu3 import emu3_transformer, emu3_vision_tokenizer
from rhea.recipes.several import mean_checkpoint
from rhea.tokenizers.vocabulary import Vocabulary, compact_vocabulary
from rhea.training.schedule import ScheduleConfig


def num_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_released_sizes() -> None:
    with torch.device("meta"):
        assert num_parameters(Transformer(emu3_transformer())) == 8_492_011_520
        assert num_parameters(VisionTokenizer(emu3_vision_tokenizer())) == 270_740_287


@pytest.mark.parametrize(
    ("recipe", "vision_parameters", "parameters"), [(default_model, 2_995_467, 3_840_960), (debug, 79_063, 42_464)]
)
def test_sizes(recipe: Callable[[], DefaultModelRecipe], vision_parameters: int, parameters: int) -> None:
    made = recipe()
    vocabulary = Vocabulary(compact_vocabulary(made.text_vocab_size, made.tokenizer.model.codebook_size))
    with torch.device("meta"):
        assert num_parameters(VisionTokenizer(made.tokenizer.model)) == vision_parameters
        assert num_parameters(Transformer(replace(made.model, vocab_size=vocabulary.size))) == parameters


@pytest.mark.parametrize("recipe", [debug, default_tokenizer, local_tokenizer, default_model])
def test_config_round_trip(recipe) -> None:
    made = recipe()
    assert from_dict(type(made), json.loads(json.dumps(to_dict(made)))) == made


@pytest.fixture(scope="module")
def debug_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "debug"
    assert debug().run(folder)
    return folder


def test_debug_recipe_makes_a_checkpoint_that_answers(debug_run: Path) -> None:
    import rhea

    model = rhea.load(debug_run / "checkpoint")
    (picture,) = model.generate("a red circle", seed=1)
    assert picture.pixels.shape == (64, 64, 3)
    assert isinstance(model.ask(np.zeros((64, 64, 3), np.uint8), "What is it?", max_new_tokens=4), str)


def test_pictures_are_drawn_while_it_trains(debug_run: Path) -> None:
    assert [path.name for path in (debug_run / "samples").iterdir()] == ["step-00000008.png"]


def test_debug_recipe_is_repeatable_and_golden(debug_run: Path) -> None:
    lines = [json.loads(line) for line in (debug_run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines]
    assert len(losses) == 8
    assert losses[-1] < losses[0]
    golden = json.loads((Path(__file__).parents[1] / "golden" / "debug_loss.json").read_text())
    # Processors and torch versions sum in another order; 1e-3 of the loss is far below any change of the algorithm.
    np.testing.assert_allclose(losses, golden, rtol=1e-3)


def test_default_model_needs_its_tokenizer(tmp_path: Path) -> None:
    recipe = replace(default_model(), tokenizer_run=str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="rhea train default-tokenizer"):
        recipe.run(tmp_path / "run")


def test_debug_recipe_goes_on_where_it_was(debug_run: Path) -> None:
    recipe = debug()
    assert isinstance(recipe, DebugRecipe)
    assert recipe.run(debug_run)  # nothing is left to do, and nothing is lost
    assert (debug_run / "checkpoint" / "config.json").is_file()


def test_training_goes_on_from_a_checkpoint(debug_run: Path, tmp_path: Path) -> None:
    checkpoint = str(debug_run / "checkpoint")
    recipe = replace(debug(), tokenizer_run=checkpoint, start_from=(checkpoint,))
    recipe = replace(recipe, trainer=replace(recipe.trainer, total_steps=2, log_every=1))
    assert recipe.run_transformer(tmp_path / "run")
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    from_nothing = json.loads((debug_run / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] < from_nothing["loss"]
    wider = replace(
        recipe, model=replace(recipe.model, dim=recipe.model.dim + 16, num_layers=recipe.model.num_layers + 1)
    )
    assert wider.run_transformer(tmp_path / "wider")  # a larger recipe grows it
    grown = json.loads((tmp_path / "wider" / "metrics.jsonl").read_text().splitlines()[0])
    assert grown["loss"] == pytest.approx(first["loss"], rel=1e-2)
    smaller = replace(recipe, model=replace(recipe.model, ffn_dim=recipe.model.ffn_dim - 16))
    with pytest.raises(InputError, match=r"ffn_dim .* cannot shrink"):
        smaller.run_transformer(tmp_path / "smaller")


def test_runs_beside_one_another_go_on_from_their_mean(debug_run: Path, tmp_path: Path) -> None:
    paths = [str(debug_run / "checkpoint"), str(tmp_path / "other")]
    other = load_checkpoint(paths[0])
    assert other.transformer is not None
    with torch.no_grad():
        other.transformer.norm.weight += 1  # in bfloat16 exact enough to be told from the mean
    save_checkpoint(paths[1], other)
    first, mean = load_checkpoint(paths[0]), mean_checkpoint(paths)
    expected = first.transformer.norm.weight.float() + 0.5
    torch.testing.assert_close(mean.transformer.norm.weight, expected, rtol=0, atol=0.01)
    torch.testing.assert_close(mean.transformer.lm_head.weight, first.transformer.lm_head.weight.float())
    file = tmp_path / "other" / "tokenizer.json"
    words = json.loads(file.read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(words))
    with pytest.raises(InputError, match="same sizes and text tokenizer"):
        mean_checkpoint(paths)


def test_a_larger_model_grows_from_a_checkpoint_of_other_tokenizers(debug_run: Path, tmp_path: Path) -> None:
    recipe = replace(
        debug(),
        tokenizer_run=str(debug_run / "checkpoint"),
        grow_from=str(debug_run / "checkpoint"),
        growth_documents=20,
        text_vocab_size=320,
        model=replace(debug().model, dim=48, num_layers=3, num_heads=4, num_kv_heads=2, ffn_dim=96),
    )
    recipe = replace(
        recipe, trainer=replace(recipe.trainer, total_steps=1, schedule=ScheduleConfig(learning_rate=1e-3))
    )
    losses = {}
    for name, started in {"grown": recipe, "from nothing": replace(recipe, grow_from="")}.items():
        assert started.run_transformer(tmp_path / name)
        losses[name] = json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    lines = (debug_run / "metrics.jsonl").read_text().splitlines()
    first, last = (json.loads(lines[place])["loss"] for place in (0, -1))
    assert losses["from nothing"] == pytest.approx(first, abs=0.1)
    assert losses["grown"] < (first + last) / 2
