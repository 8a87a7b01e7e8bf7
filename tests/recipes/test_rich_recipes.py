"""The rich recipes: sizes, microbatches that come again, and a few updates from toy shards to a model that draws."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_shards import driving_shard, emoji_shard, sample

from rhea.checkpoints.hub import INSTALLED
from rhea.checkpoints.load import load_checkpoint
from rhea.config import from_dict, to_dict
from rhea.documents.shards import write_shard
from rhea.errors import InputError
from rhea.generation.loading import DEFAULT_MODEL
from rhea.models.growth import require_growth
from rhea.models.transformer import Transformer
from rhea.models.vision.tokenizer import VisionTokenizer
from rhea.recipes.debug import debug, debug_tokenizer
from rhea.recipes.default_tokenizer import trained_tokenizer
from rhea.recipes.rich_frames import FrameShares, RichFrames, RichFramesConfig
from rhea.recipes.rich_model import RichModelRecipe, RichShares, rich_mixture, rich_model
from rhea.recipes.rich_tokenizer import copy_all_but_codebook, rich_tokenizer
from rhea.recipes.several import spelling
from rhea.tokenizers.text import load_text_tokenizer
from rhea.tokenizers.vocabulary import Vocabulary, compact_vocabulary
from rhea.training.schedule import ScheduleConfig
from rhea.training.vision_tokenizer import CODEBOOK

RICH = INSTALLED / "rich"


def num_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_sizes() -> None:
    recipe = rich_model()
    vocabulary = Vocabulary(compact_vocabulary(recipe.text_vocab_size, recipe.tokenizer.model.codebook_size))
    with torch.device("meta"):
        assert num_parameters(VisionTokenizer(recipe.tokenizer.model)) == 3_020_043
        assert num_parameters(Transformer(replace(recipe.model, vocab_size=vocabulary.size))) == 10_691_584


@pytest.mark.parametrize("recipe", [rich_tokenizer, rich_model])
def test_config_round_trip(recipe) -> None:
    made = recipe()
    assert from_dict(type(made), json.loads(json.dumps(to_dict(made)))) == made


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("shards")
    return {"emoji": emoji_shard(folder), "driving": driving_shard(folder, frames=16)}


def test_windows_first_then_whole_pictures_of_each_size(shards: dict[str, str]) -> None:
    frames = RichFrames(RichFramesConfig(**shards, crop=32, num_pictures=8, num_clips=4, whole_from=1))
    shapes = [(batch["pictures"].shape, batch["clips"].shape) for batch in (frames.next_batch() for _ in range(3))]
    assert shapes == [
        ((8, 32, 32, 3), (4, 4, 32, 32, 3)),
        ((2, 128, 128, 3), (2, 4, 64, 64, 3)),
        ((2, 64, 64, 3), (2, 4, 64, 64, 3)),
    ]


def test_a_microbatch_comes_again_from_its_number(shards: dict[str, str]) -> None:
    config = RichFramesConfig(**shards, num_pictures=3, num_clips=1)
    first, again = RichFrames(config), RichFrames(config)
    first.next_batch()
    again.load_state_dict(first.state_dict())
    wanted, found = first.next_batch(), again.next_batch()
    assert np.array_equal(wanted["pictures"], found["pictures"])
    assert np.array_equal(wanted["clips"], found["clips"])
    assert not np.array_equal(first.next_batch()["pictures"], found["pictures"])


def test_held_out_emoji_are_never_shown(shards: dict[str, str], tmp_path: Path) -> None:
    told = dict.fromkeys(("emoji", "name_en", "name_zh", "style_en", "style_zh", "source"), "x")
    told |= {"keywords_en": ["x"], "keywords_zh": ["x"]}
    # Of these concepts c31's "3d" is held out: black, where everything else is white.
    paper = np.full((64, 64, 3), 255, np.uint8)
    samples = [
        sample(f"{concept}_{style}", paper * ((concept, style) != ("c31", "3d")), concept=concept, style=style, **told)
        for concept in ("c28", "c31")
        for style in ("3d", "flat")
    ]
    write_shard(tmp_path / "e.tar", samples)
    only = FrameShares(emoji=1.0)
    config = RichFramesConfig(
        emoji=str(tmp_path / "e.tar"), driving=shards["driving"], num_pictures=64, pictures=only, large_pictures=only
    )
    assert RichFrames(config).next_batch()["pictures"].min() == 255


@pytest.mark.parametrize("crop", [0, 36, 72])
def test_windows_that_do_not_fit_are_refused(crop: int, shards: dict[str, str]) -> None:
    with pytest.raises(InputError, match=f"crop is {crop}; it must be a multiple of 8 up to 64"):
        RichFrames(RichFramesConfig(**shards, crop=crop))


@pytest.mark.parametrize(("missing", "advice"), [("emoji", "--data.emoji FOLDER"), ("driving", "rhea record driving")])
def test_missing_shards_say_where_they_come_from(missing: str, advice: str, shards: dict[str, str]) -> None:
    named, recipe = shards | {missing: ""}, rich_model()
    recipe = replace(recipe, data=replace(recipe.data, **named))
    with pytest.raises(InputError, match=advice):
        RichFrames(RichFramesConfig(**named))
    with pytest.raises(InputError, match=advice):
        recipe.mixture()


def test_all_but_the_codebook_is_taken_over() -> None:
    model, wanted = VisionTokenizer(rich_tokenizer().model), load_checkpoint(DEFAULT_MODEL).vision_tokenizer
    codebook = model.state_dict()[CODEBOOK].clone()
    copy_all_but_codebook(DEFAULT_MODEL, model)
    assert wanted is not None
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, codebook if name == CODEBOOK else wanted.state_dict()[name].float())


def test_weights_of_other_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="no vision tokenizer of this recipe's sizes"):
        copy_all_but_codebook(DEFAULT_MODEL, VisionTokenizer(debug_tokenizer().model))


@pytest.fixture(scope="module")
def trained(shards: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[RichModelRecipe, Path]:
    """Train both recipes for two updates each, a small transformer on a small codebook; return recipe and folder."""
    folder = tmp_path_factory.mktemp("rich")
    recipe, small = rich_model(), debug()
    tokenizer = replace(
        recipe.tokenizer,
        model=replace(recipe.tokenizer.model, codebook_size=64),
        task=replace(recipe.tokenizer.task, precision="float32"),
        data=RichFramesConfig(**shards, crop=32, num_pictures=4, num_clips=1),
        trainer=replace(small.tokenizer.trainer, total_steps=2, checkpoint_every=1),
    )
    recipe = replace(
        recipe,
        tokenizer=tokenizer,
        tokenizer_run=str(folder / "tokenizer"),
        model=small.model,
        grow_from="",
        text_vocab_size=300,
        text_documents=20,
        data=replace(recipe.data, **shards),
        loader=replace(recipe.loader, rows=1, group=8),
        loader_workers=2,
        task=small.task,
        trainer=replace(small.trainer, total_steps=2, sample_every=0),
    )
    assert tokenizer.run(folder / "tokenizer")
    assert recipe.run(folder / "model")
    return recipe, folder


def test_the_tokenizer_is_trained_from_the_default_one(trained: tuple[RichModelRecipe, Path]) -> None:
    recipe, folder = trained
    before, after = VisionTokenizer(recipe.tokenizer.model), recipe.vision_tokenizer()
    copy_all_but_codebook(DEFAULT_MODEL, before)
    moved = [(after.state_dict()[name] - x).abs().max().item() for name, x in before.state_dict().items()]
    assert max(moved[1:]) > 0
    lines = (folder / "tokenizer" / "metrics.jsonl").read_text().splitlines()
    assert "locality" in json.loads(lines[-1])


def test_the_model_draws_pictures_of_both_sides(trained: tuple[RichModelRecipe, Path]) -> None:
    import rhea

    model = rhea.load(trained[1] / "model" / "checkpoint")
    for size in ("64x64", "128x128", "128x64"):
        (picture,) = model.generate("a flat icon of butterfly", size=size, seed=1)
        assert "x".join(map(str, picture.pixels.shape[1::-1])) == size


@pytest.mark.parametrize(("shares", "read"), [((0.7, 0.3), (160, 88)), ((0.05, 0.05), (160, 88)), ((97, 3), (64, 64))])
def test_a_picture_is_read_at_a_size_that_was_learned(shares: tuple[float, float], read: tuple[int, int]) -> None:
    recipe = rich_model()
    told = RichShares(small_emoji=shares[0], emoji=shares[1], shapes=0.0, driving=0.0)
    recipe = replace(recipe, data=replace(recipe.data, shares=told))
    policy = recipe.about().policy
    assert policy.resize(np.zeros((160, 90, 3), np.uint8)).shape[:2] == read
    assert policy.resize_film(np.zeros((4, 128, 128, 3), np.uint8)).shape[1:3] == (64, 64)


def test_all_sources_are_learned_from(trained: tuple[RichModelRecipe, Path]) -> None:
    recipe, _ = trained
    mixture = recipe.mixture()
    sides = {name: set() for name in ("shapes", "emoji", "small-emoji", "driving")}
    draws, _ = mixture.draws(0, [0] * 4, 60)
    for draw in draws:
        for segment in mixture.document(draw).segments:
            pixels = getattr(segment, "pixels", getattr(segment, "frames", None))
            if pixels is not None:
                sides[mixture.name(draw).split(":")[0]].add(pixels.shape[-2])
    assert sides == {"shapes": {64}, "emoji": {128}, "small-emoji": {64}, "driving": {64}}


def test_only_what_is_shown_needs_shards(shards: dict[str, str]) -> None:
    data = rich_model().data
    shapes = RichShares(shapes=1.0, emoji=0.0, small_emoji=0.0, driving=0.0)
    mixture = rich_mixture(replace(data, shares=shapes), seed=0)
    assert [entry.name for entry in mixture.sources] == ["shapes"]
    with pytest.raises(InputError, match="no emoji shards are named"):
        rich_mixture(replace(data, driving=shards["driving"]), seed=0)


def test_models_of_the_same_tokenizers_are_set_side_by_side(
    trained: tuple[RichModelRecipe, Path], tmp_path: Path
) -> None:
    recipe, folder = trained
    part = str(folder / "model" / "checkpoint")
    still = replace(recipe.trainer, schedule=ScheduleConfig(learning_rate=1e-9))
    recipe = replace(
        recipe, join_from=(part, part), grow_from=str(DEFAULT_MODEL), trainer=still
    )  # which is passed over
    with pytest.raises(InputError, match=f"--model.dim {2 * recipe.model.dim} --model.num-layers"):
        recipe.run(tmp_path / "narrow")
    names = "dim", "num_heads", "num_kv_heads", "ffn_dim"
    wide = replace(recipe.model, **{name: 2 * getattr(recipe.model, name) for name in names})
    assert replace(recipe, model=wide).run(tmp_path / "wide")
    before, after = (load_checkpoint(path, dtype=torch.float32) for path in (part, tmp_path / "wide" / "checkpoint"))
    assert before.transformer is not None
    assert after.transformer is not None
    assert spelling(after) == spelling(before)
    ids = torch.arange(40)[None]
    said, twice = after.transformer(ids), 2 * before.transformer(ids)
    torch.testing.assert_close(said, twice, rtol=0.05, atol=0.05)
    with pytest.raises(InputError, match="another vision tokenizer"):
        replace(recipe, join_from=(part, str(DEFAULT_MODEL))).run(tmp_path / "mixed")


def test_a_missing_tokenizer_is_told_by_its_recipe(trained: tuple[RichModelRecipe, Path], tmp_path: Path) -> None:
    recipe = replace(trained[0], tokenizer_run=str(tmp_path / "missing"))
    with pytest.raises(InputError, match="rhea train rich-tokenizer"):
        recipe.run(tmp_path / "run")


@pytest.mark.parametrize("folder", [DEFAULT_MODEL, RICH], ids=["default", "rich"])
def test_a_run_can_grow_from_what_there_is(folder: Path) -> None:
    smaller = load_checkpoint(folder, parts=()).config.transformer
    assert smaller is not None
    require_growth(smaller, rich_model().model)


def test_a_run_can_go_on_with_the_tokenizer_of_the_package() -> None:
    recipe = rich_model()
    tokenizer = trained_tokenizer(recipe.tokenizer, RICH, made_by="rich-tokenizer")
    assert tokenizer.config == recipe.tokenizer.model
    assert load_text_tokenizer(RICH).vocab_size == recipe.text_vocab_size
