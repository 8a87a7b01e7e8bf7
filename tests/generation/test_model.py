"""The five methods on a tiny random model: shapes, reproducibility, and every refusal."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from tiny_model import TRAINED_ON, save_tiny_checkpoint, tiny_checkpoint

import rhea
from rhea import media
from rhea.checkpoints.configs import CheckpointConfig
from rhea.documents import formats
from rhea.documents.document import Image
from rhea.errors import InputError
from rhea.generation import completion, loading
from rhea.generation.completion import Prompt
from rhea.generation.engine import EngineConfig
from rhea.generation.loading import load_model
from rhea.generation.model import Rhea
from rhea.generation.request import Request
from rhea.generation.sampling import SamplingConfig
from rhea.models.transformer import Transformer
from rhea.models.vision.tokenizer import VisionTokenizer
from rhea.tokenizers.vision import PixelPolicy
from rhea.tokenizers.vocabulary import EMU3_VOCABULARY
from rhea.worlds.shapes.language import read_caption
from rhea.worlds.shapes.render import render
from rhea.worlds.shapes.scene import Kind, Scene, ShapeObject

PIXELS = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
FRAMES = np.random.default_rng(1).integers(0, 256, (10, 32, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model() -> Rhea:
    return Rhea(tiny_checkpoint())


def test_pictures(model: Rhea, tmp_path: Path) -> None:
    pictures = model.generate("a small red circle", samples=3, seed=4)
    assert [picture.sample_index for picture in pictures] == [0, 1, 2]
    for picture in pictures:
        assert isinstance(picture, rhea.Picture)
        assert picture.pixels.shape == (32, 24, 3)
        assert picture.codes.shape == (4, 3)
        assert len(picture.token_ids) == 4 * 4 + 3
        assert (picture.prompt, picture.seed) == ("a small red circle", 4)
    assert len({picture.codes.tobytes() for picture in pictures}) == 3
    pictures[0].save(tmp_path / "picture.png")
    assert (np.asarray(PillowImage.open(tmp_path / "picture.png")) == pictures[0].pixels).all()
    assert pictures[0].image.size == (24, 32)


def test_a_seed_means_the_same_alone_and_in_a_batch(model: Rhea) -> None:
    together = model.generate(["red", "a small blue circle"], samples=2, seed=1, size="32x16")
    alone = model.generate("a small blue circle", samples=2, seed=1, size=(16, 32))
    assert [picture.token_ids for picture in together[2:]] == [picture.token_ids for picture in alone]
    assert [picture.prompt for picture in together] == ["red", "red", "a small blue circle", "a small blue circle"]
    other = model.generate("a small blue circle", seed=2, size=(16, 32))
    assert other[0].token_ids != alone[0].token_ids


def test_settings_matter(model: Rhea) -> None:
    base = model.generate("red", seed=1)[0].token_ids
    changes: list[dict[str, Any]] = [
        {"guidance_scale": 1.0},
        {"guidance_scale": 6.0},
        {"negative_prompt": "blue circle"},
        {"temperature": 0.0},
        {"top_k": 1},
    ]
    different = [model.generate("red", seed=1, **change)[0].token_ids for change in changes]
    assert all(tokens != base for tokens in different)
    assert different[3] == different[4]


def test_films(model: Rhea, tmp_path: Path) -> None:
    film = model.generate("two", video=True, size="16x16", num_frames=6, fps=5)[0]
    assert isinstance(film, rhea.Film)
    assert film.frames.shape == (6, 16, 16, 3)
    assert film.codes.shape == (2, 2, 2)
    assert film.fps == 5
    film.save(tmp_path / "film.mp4")
    assert len(media.read_film(tmp_path / "film.mp4").frames) == 6
    assert model.generate("two", video=True)[0].codes.shape == (2, 4, 3)


def test_answers_to_anything_that_holds_pixels(model: Rhea, tmp_path: Path) -> None:
    media.write_picture(tmp_path / "picture.png", PIXELS)
    question = "How many objects are there?"
    answers = {
        model.ask(source, question)
        for source in (PIXELS, PillowImage.fromarray(PIXELS), tmp_path / "picture.png", str(tmp_path / "picture.png"))
    }
    assert len(answers) == 1
    assert isinstance(model.ask(FRAMES, question), str)
    assert isinstance(model.ask(None, question), str)
    assert model.ask(PIXELS, "What.") == model.ask(PIXELS, "What")


def test_a_film_is_extended_window_by_window(model: Rhea) -> None:
    film = media.Film(frames=FRAMES, fps=5.0)
    longer = model.extend(film, 9, seed=3)
    assert longer.frames.shape == (19, 32, 24, 3)
    assert (longer.frames[:10] == FRAMES).all()
    assert longer.fps == 5.0
    assert len(longer.token_ids) == 3 * (4 * 4 + 1 + 2)  # windows of 8 frames, of which 4 are given
    assert len(model.extend(longer).frames) == 23
    again = model.extend(film, 4, seed=3)
    assert (again.frames == longer.frames[:14]).all()
    assert model.extend(film, 4, seed=3, caption="red", guidance_scale=2.0).frames.shape == (14, 32, 24, 3)


def test_edits(model: Rhea) -> None:
    picture = model.edit(PIXELS, "make it blue", seed=2)
    assert picture.codes.shape == (2, 4)  # the policy's target for 32 x 48 pixels
    assert picture.prompt == "make it blue"
    both = model.edit([PIXELS, model.generate("red")[0]], "make it blue", size="16x16", guidance_scale=2.0)
    assert both.pixels.shape == (16, 16, 3)


def test_reconstruction(model: Rhea) -> None:
    picture = model.reconstruct(PIXELS)
    assert isinstance(picture, rhea.Picture)
    assert picture.codes.shape == (2, 4)
    assert picture.token_ids == []
    film = model.reconstruct(FRAMES)
    assert isinstance(film, rhea.Film)
    assert film.frames.shape == FRAMES.shape
    assert film.fps == 8.0


def test_refusals(model: Rhea) -> None:
    refused: list[tuple[str, Any]] = [
        ("prompt is empty", lambda: model.generate("  ")),
        ("prompt is empty", lambda: model.generate([])),
        ("samples", lambda: model.generate("red", samples=0)),
        ("multiples of 8", lambda: model.generate("red", size="30x30")),
        ("context", lambda: model.generate("red", size="512x512")),
        ("context", lambda: model.generate("red " * 200)),
        ("context", lambda: model.ask(PIXELS, "red " * 300)),
        ("num_frames", lambda: model.generate("red", video=True, num_frames=0)),
        ("fps", lambda: model.generate("red", video=True, fps=0.0)),
        ("temperature", lambda: model.generate("red", temperature=-1.0)),
        ("num_frames and fps", lambda: model.generate("red", num_frames=4)),
        ("num_frames and fps", lambda: model.generate("red", fps=4)),
        ("aspect ratio is over 5", lambda: model.generate("red", size="16:1")),
        ("aspect ratio is over 5", lambda: model.generate("red", size="8x48", video=True)),
        ("positive", lambda: model.generate("red", size="0x0")),
        ("question is empty", lambda: model.ask(PIXELS, " ")),
        ("question is empty", lambda: model.ask(PIXELS, " . ")),
        ("max_new_tokens", lambda: model.ask(PIXELS, "red", max_new_tokens=0)),
        ("instruction is empty", lambda: model.edit(PIXELS, "")),
        ("no picture", lambda: model.edit([], "make it blue")),
        ("is a film", lambda: model.edit(FRAMES, "make it blue")),
        ("is a picture", lambda: model.extend(PIXELS, 4)),
        ("too short", lambda: model.extend(FRAMES[:3], 4)),
        ("num_frames", lambda: model.extend(FRAMES, 0)),
        ("sides must be at least 8", lambda: model.reconstruct(PIXELS[:1, :1])),
        ("aspect ratio", lambda: model.reconstruct(np.zeros((8, 48, 3), np.uint8))),
        ("not a picture or film", lambda: model.reconstruct(PIXELS.astype(np.float32))),
        ("no pixels", lambda: model.reconstruct(PIXELS[:0])),
        ("no such file", lambda: model.ask("nowhere.png", "red")),
    ]
    for said, call in refused:
        with pytest.raises(InputError, match=said):
            call()


def test_arguments_of_a_wrong_type_are_one_line(model: Rhea) -> None:
    anything: Any = model
    refused: list[tuple[str, Callable[[], Any]]] = [
        ("prompt is None; it must be text or a list of texts", lambda: anything.generate(None)),
        (r"prompt is \['a', None\]", lambda: anything.generate(["a", None])),
        ("size is 64; it must be text or a list of whole numbers", lambda: anything.generate("red", size=64)),
        (r"size is \('a', 'b'\)", lambda: anything.generate("red", size=("a", "b"))),
        ("samples is 1.5; it must be a whole number", lambda: anything.generate("red", samples=1.5)),
        ("samples is None", lambda: anything.generate("red", samples=None)),
        ("seed is 1.5", lambda: anything.generate("red", seed=1.5)),
        ("top_k is 2.5", lambda: anything.generate("red", top_k=2.5)),
        ("temperature is 'hot'; it must be a number", lambda: anything.generate("red", temperature="hot")),
        ("negative_prompt is 3", lambda: anything.generate("red", negative_prompt=3)),
        ("video is 'yes'; it must be True or False", lambda: anything.generate("red", video="yes")),
        ("num_frames is 2.5", lambda: anything.generate("red", video=True, num_frames=2.5)),
        ("question is None", lambda: anything.ask(PIXELS, None)),
        ("max_new_tokens is '9'", lambda: anything.ask(PIXELS, "red", max_new_tokens="9")),
        ("num_frames is '4'", lambda: anything.extend(FRAMES, "4")),
        ("caption is None", lambda: anything.extend(FRAMES, 4, caption=None)),
        ("instruction is 5", lambda: anything.edit(PIXELS, 5)),
        ("not a picture or film: NoneType", lambda: anything.edit(None, "make it blue")),
    ]
    for said, call in refused:
        with pytest.raises(InputError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
    whole = model.generate("red", size=(np.int64(16), 16), samples=np.int64(1), seed=np.int64(5))  # type: ignore[arg-type]
    assert whole[0].token_ids == model.generate("red", size=[16, 16], seed=5)[0].token_ids


def test_a_size_that_is_refused_names_its_file(model: Rhea, tmp_path: Path) -> None:
    media.write_picture(tmp_path / "dot.png", PIXELS[:1, :1])
    media.write_film(tmp_path / "wide.mp4", np.zeros((4, 8, 48, 3), np.uint8), 8)
    calls: list[tuple[str, Callable[[Path], Any]]] = [
        ("dot.png: picture of 1 x 1", model.reconstruct),
        ("dot.png: picture of 1 x 1", lambda path: model.ask(path, "red")),
        ("dot.png: picture of 1 x 1", lambda path: model.edit([PIXELS, path], "make it blue")),
        ("wide.mp4: picture of 8 x 48 pixels: aspect ratio is over 5", model.extend),
    ]
    for said, call in calls:
        with pytest.raises(InputError, match=said):
            call(tmp_path / said.partition(":")[0])


@pytest.mark.parametrize(("size", "said"), [("24x32", 0), ("16:9", 0), ("64x48", 1)])
def test_a_picture_larger_than_those_learned_is_told(size: str, said: int, caplog: pytest.LogCaptureFixture) -> None:
    small = tiny_checkpoint()
    policy = PixelPolicy(min_pixels=64, max_pixels=28 * 28)
    model = Rhea(replace(small, config=replace(small.config, pixels=policy)))
    with caplog.at_level("WARNING", logger="rhea"):
        model.generate(["a star", "a ring"], size=size)
    assert [record.getMessage() for record in caplog.records] == [
        "this model learned pictures of up to 28x28 pixels; one of 64x48 may come out empty"
    ] * said


def test_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("meta", "vulkan", "cpu:1", "cuda:", "cuda:x", "", torch.device("meta")):
        with pytest.raises(InputError, match="is not one of cpu, cuda, cuda:N and mps"):
            rhea.load(tmp_path, device=device)
    for device in ("cuda", "cuda:1", torch.device("cuda")):
        with pytest.raises(InputError, match="not available"):
            rhea.load(tmp_path, device=device)
    assert rhea.load(save_tiny_checkpoint(tmp_path / "tiny"), device=torch.device("cpu")).trained_on


def test_parts_that_are_missing_are_named_when_needed() -> None:
    whole = tiny_checkpoint()
    alone = replace(whole, vision_tokenizer=None, config=replace(whole.config, vision_tokenizer=None, pixels=None))
    talker = Rhea(alone)
    assert isinstance(talker.ask(None, "How many"), str)
    for call in (lambda: talker.generate("red"), lambda: talker.ask(PIXELS, "red"), lambda: talker.reconstruct(PIXELS)):
        with pytest.raises(InputError, match="no vision tokenizer"):
            call()
    tokenizer = Rhea(replace(whole, transformer=None))
    assert tokenizer.reconstruct(PIXELS).codes.shape == (2, 4)
    with pytest.raises(InputError, match="no transformer"):
        tokenizer.generate("red")
    with pytest.raises(InputError, match="no text tokenizer"):
        Rhea(replace(whole, text_tokenizer=None)).generate("red")


def test_loading(tmp_path: Path, model: Rhea, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny_checkpoint(tmp_path / "tiny")
    loaded = rhea.load(folder)
    assert loaded.trained_on == TRAINED_ON
    assert loaded.generate("red", seed=5)[0].token_ids == model.generate("red", seed=5)[0].token_ids
    with_other = rhea.load(folder, vision_tokenizer=folder, dtype="bfloat16", device="cpu")
    assert with_other.checkpoint.transformer is not None
    assert next(with_other.checkpoint.transformer.parameters()).dtype == torch.bfloat16
    with_other.generate("red")
    with pytest.raises(InputError, match="device"):
        rhea.load(folder, device="toaster")
    with pytest.raises(InputError, match="dtype"):
        rhea.load(folder, dtype="int3")
    with pytest.raises(InputError, match="no checkpoint"):
        rhea.load(tmp_path)
    monkeypatch.setattr(loading, "DEFAULT_MODEL", tmp_path / "nothing")
    with pytest.raises(InputError, match="default model is not in this installation"):
        rhea.load()


def test_a_released_emu3_is_prompted_as_in_its_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    small = tiny_checkpoint()
    assert small.config.transformer is not None
    assert small.config.vision_tokenizer is not None
    transformer = replace(small.config.transformer, vocab_size=184622, dim=8, num_layers=1, max_seq_len=9216)
    vision = replace(small.config.vision_tokenizer, codebook_size=32768)
    config = CheckpointConfig(
        transformer=transformer, vision_tokenizer=vision, vocabulary=EMU3_VOCABULARY, pixels=PixelPolicy()
    )
    model = Rhea(
        replace(small, config=config, transformer=Transformer(transformer), vision_tokenizer=VisionTokenizer(vision))
    )
    asked: list[Request] = []

    def listen(_: Any, requests: list[Request], *__: Any) -> list[list[int]]:
        asked.extend(requests)
        raise InputError("heard enough")

    monkeypatch.setattr(completion.Engine, "run", listen)
    for call in (
        lambda: model.generate("a portrait."),
        lambda: model.generate("a portrait.", size="16:9"),
        lambda: model.ask(None, "What is it?"),
    ):
        with pytest.raises(InputError, match="heard enough"):
            call()
    encode, vocabulary = model.completer.grammar.text_tokenizer.encode, model.completer.grammar.vocabulary
    text = encode("a portrait. masterpiece, film grained, best quality.")
    opening = [vocabulary.image_start, *encode("90*90"), vocabulary.image_token]
    assert asked[0].prompt == [vocabulary.bos, *text, *opening]
    unwanted = asked[0].negative_prompt
    assert unwanted is not None
    assert unwanted[0] == vocabulary.bos
    assert unwanted[-len(opening) :] == opening
    assert model.completer.grammar.text_tokenizer.decode(unwanted[1 : -len(opening)]).startswith("lowres, bad anatomy")
    assert asked[0].max_new_tokens == 90 * 91 + 3
    assert asked[0].sampling == SamplingConfig(top_k=2048, guidance_scale=3.0)
    assert asked[1].prompt == [vocabulary.bos, *text, vocabulary.image_start, *encode("68*120"), vocabulary.image_token]
    chat = "You are a helpful assistant. USER: What is it?. ASSISTANT:"
    assert model.completer.grammar.text_tokenizer.decode(asked[2].prompt[1:]) == chat
    assert asked[2].sampling.temperature == 0


def test_tiles_on_request() -> None:
    small = tiny_checkpoint()
    large = replace(small, config=replace(small.config, pixels=PixelPolicy(min_pixels=64, max_pixels=96 * 96)))
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    whole, tiled = (Rhea(large, tile=tile).reconstruct(pixels) for tile in (None, 9))
    assert whole.codes.shape == tiled.codes.shape == (12, 12)
    assert not np.array_equal(whole.pixels, tiled.pixels), "norms see one tile instead of the whole"


def test_engine_settings_reach_every_request() -> None:
    engine = EngineConfig(window=4, parallel="coupling", cache="int8")
    model = load_model(engine=engine)
    (picture,) = model.generate("a small red circle")
    again, plain = (load_model(engine=chosen).generate("a small red circle") for chosen in (engine, None))
    assert np.array_equal(picture.pixels, again[0].pixels)  # type: ignore[union-attr]
    assert not np.array_equal(picture.token_ids, plain[0].token_ids)
    counts = model.completer.statistics
    assert (counts.grids, counts.most_slots) == (1, 2)
    assert counts.vision_seconds > 0
    assert counts.forwards < 64


def test_rows_side_by_side_on_request() -> None:
    model = load_model()
    plain, exact, lossy = (model.generate("a large green star", zipar=each, revise=False)[0] for each in (None, 8, 2))
    assert exact.token_ids == plain.token_ids
    assert lossy.token_ids != plain.token_ids
    assert model.completer.statistics.tokens_written == sum(len(made.token_ids) for made in (plain, exact, lossy))
    with pytest.raises(InputError, match="no previews"):
        model.generate("a star", zipar=2, preview=lambda number, seen: None)
    with pytest.raises(InputError, match="at least 1"):
        model.generate("a star", zipar=0)


@pytest.mark.parametrize("name", ["default", "rich"])
def test_films_of_any_size_fit_the_models_of_the_package(name: str) -> None:
    frames = np.full((8, 240, 320, 3), 200, np.uint8)
    frames[:, 80:160, 80:160] = (200, 30, 30)
    longer = load_model(name).extend(media.Film(frames=frames, fps=5.0))
    assert longer.frames.shape == (16, 64, 64, 3)


def test_a_large_picture_is_named_as_the_small_one_is() -> None:
    model = load_model("rich")
    (drawn,) = model.generate("a flat icon of butterfly")
    large = drawn.pixels.repeat(4, axis=0).repeat(4, axis=1)  # type: ignore[union-attr]
    assert model.ask(large, "What is this called?") == model.ask(drawn, "What is this called?") == "butterfly"


def test_the_default_model_captions_a_picture() -> None:
    kinds = [Kind("red", "circle", "small"), Kind("blue", "square", "large")]
    scene = Scene(objects=tuple(ShapeObject(kind=kind, x=16.0 + 30 * i, y=30.0) for i, kind in enumerate(kinds)))
    document = formats.captioning(Image(pixels=render(scene)))
    sampling = SamplingConfig(temperature=0.0)
    (caption,) = rhea.load().completer.complete([Prompt(document=document, sampling=sampling)])
    assert read_caption(caption.text) == Counter(kinds), caption.text
