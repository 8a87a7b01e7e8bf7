"""Pictures and films while they are written: what is shown, when, and that it is in its place."""

import asyncio
import functools
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_model import save_tiny_checkpoint, tiny_checkpoint

from rhea import cli, media
from rhea.documents import formats
from rhea.documents.document import ImageSize, Video, VideoSize
from rhea.errors import InputError
from rhea.generation import completion
from rhea.generation.background import BackgroundEngine
from rhea.generation.completion import Prompt
from rhea.generation.engine import Engine, EngineConfig
from rhea.generation.loading import load_model
from rhea.generation.model import Rhea
from rhea.generation.preview import BLANK, Follower, Preview
from rhea.generation.results import Film, Picture
from rhea.generation.sampling import SamplingConfig

Seen = list[tuple[int, Preview]]


@pytest.fixture(scope="module", autouse=True)
def _two_tokens_at_a_time() -> Iterator[None]:
    """Let no step finish more than a row, whatever window the machine finds best."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(completion, "EngineConfig", functools.partial(EngineConfig, window=2))
        yield


@pytest.fixture(scope="module")
def tiny() -> Rhea:
    return Rhea(tiny_checkpoint())


@pytest.fixture(scope="module")
def default() -> Rhea:
    return load_model(device="cpu")


@pytest.fixture(scope="module")
def drawn(default: Rhea) -> tuple[Picture, Seen]:
    seen: Seen = []
    picture = default.generate("a large red circle", seed=2, preview=lambda i, each: seen.append((i, each)))[0]
    assert isinstance(picture, Picture)
    return picture, seen


def sized(model: Rhea, size: ImageSize | VideoSize, text: str = "a small red circle", seed: int = 0) -> Prompt:
    form = formats.text_to_video if isinstance(size, VideoSize) else formats.text_to_image
    return Prompt(document=form(text), next=size, sampling=SamplingConfig(), seed=seed)


def codes_of(model: Rhea, grid: tuple[int, ...], seed: int = 0) -> np.ndarray:
    assert model.codec is not None
    return np.random.default_rng(seed).integers(0, model.codec.model.config.codebook_size, grid)


def tokens_of(model: Rhea, codes: np.ndarray) -> list[int]:
    """Write a grid by hand, with its end marks."""
    vocabulary, tokens = model.completer.grammar.vocabulary, list[int]()
    for latent in codes.reshape(-1, *codes.shape[-2:]):
        for row in latent:
            tokens += [*vocabulary.vision_id(row).tolist(), vocabulary.eol]
        tokens.append(vocabulary.eof)
    return [*tokens, vocabulary.image_end, vocabulary.eos]


def follower(model: Rhea, prompt: Prompt, every_rows: int | None = None) -> Follower:
    return model.completer.follower(prompt, model.completer.requests([prompt])[0], every_rows)


def test_a_picture_grows_row_by_row(default: Rhea, drawn: tuple[Picture, Seen]) -> None:
    assert default.codec is not None
    picture, seen = drawn
    assert [each.rows_done for _, each in seen] == [1, 2, 3, 4, 5, 6, 7, 8]
    for number, each in seen:
        assert (number, each.rows, each.final, each.fps) == (0, 8, each.rows_done == 8, None)
        done = each.rows_done * 8
        # Exact is what the finished codes alone decode to, so every code was in its place ...
        assert (each.pixels[:done] == default.codec.decode_picture(picture.codes[: each.rows_done])).all()
        assert (each.pixels[done:] == BLANK).all()
        # ... and close is the final picture: norms and attention see all of it, so nothing is settled before the end.
        change = np.abs(each.pixels[:done].astype(int) - picture.pixels[:done])
        assert change[:-8].size == 0 or change[:-8].mean() < 3
        assert change[-8:].mean() < 13
    assert (seen[-1][1].pixels == picture.pixels).all()
    assert np.abs(picture.pixels - np.float32(BLANK)).mean() > 30, "a grey picture would be close to anything"


def test_previews_change_no_picture_and_the_last_is_not_decoded_again(
    tiny: Rhea, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny.codec is not None
    decoded: list[int] = []
    decode = tiny.codec.decode_pictures
    monkeypatch.setattr(
        tiny.codec, "decode_pictures", lambda grids: decoded.extend(len(grid) for grid in grids) or decode(grids)
    )
    plain, watched = (tiny.generate("red", seed=2, preview=each)[0] for each in (None, lambda *_: None))
    assert decoded == [4, 1, 2, 3, 4]
    assert isinstance(plain, Picture)
    assert isinstance(watched, Picture)
    assert plain.token_ids == watched.token_ids
    assert (plain.pixels == watched.pixels).all()


def test_the_engine_tells_whose_tokens_grew(tiny: Rhea) -> None:
    requests = tiny.completer.requests([sized(tiny, ImageSize(height=n, width=2)) for n in (1, 3)])
    told: list[list[list[int]]] = [[], []]
    engine = Engine(tiny.completer.transformer, EngineConfig(window=1, slots=1))  # one after the other
    written = engine.run(requests, watch=lambda number, tokens: told[number].append(list(tokens)))
    assert [each[-1] for each in told] == written
    for each in told:
        assert all(len(a) < len(b) for a, b in itertools.pairwise(each))
    assert [len(each) for each in told] == [2, 6]


@pytest.mark.parametrize(
    ("height", "every_rows", "expected"),
    [
        (5, None, [1, 2, 3, 4, 5]),
        (5, 2, [2, 4, 5]),
        (4, 2, [2, 4]),
        (3, 9, [3]),
        (16, None, [2, 4, 6, 8, 10, 12, 14, 16]),
    ],
)
@pytest.mark.parametrize("at_a_time", [1, 2, 100])
def test_a_preview_is_due_every_so_many_rows(
    tiny: Rhea, height: int, every_rows: int | None, expected: list[int], at_a_time: int
) -> None:
    codes = codes_of(tiny, (height, 3))
    tokens = tokens_of(tiny, codes)
    grows = follower(tiny, sized(tiny, ImageSize(height=height, width=3)), every_rows)
    parts = [tokens[start : start + at_a_time] for start in range(0, len(tokens), at_a_time)]
    shown = [each for part in parts if (each := grows.follow(part)) is not None]
    assert [each.rows_done for each in shown] == (expected if at_a_time < 100 else [height])
    assert [each.final for each in shown] == [False] * (len(shown) - 1) + [True]
    assert tiny.codec is not None
    assert (shown[-1].pixels == tiny.codec.decode_picture(codes)).all()
    assert grows.taken == len(tokens)


def test_a_preview_may_be_left_out_and_decodes_only_when_shown(tiny: Rhea, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiny.codec is not None
    tokens = tokens_of(tiny, codes_of(tiny, (4, 3)))
    grows = follower(tiny, sized(tiny, ImageSize(height=4, width=3)))
    decoded: list[int] = []
    decode = tiny.codec.decode_picture
    monkeypatch.setattr(tiny.codec, "decode_picture", lambda codes: decoded.append(len(codes)) or decode(codes))
    assert (grows.show().pixels == BLANK).all()
    assert [grows.feed([token]) for token in tokens[:8]] == [False] * 3 + [True] * 5  # the end of a row is forced
    assert grows.show().rows_done == 2
    assert not grows.feed(tokens[8:11])
    assert grows.feed(tokens[11:])
    assert grows.show().final
    assert decoded == [2, 4]
    assert not grows.feed([]), "there is but one last preview"


def test_a_film_grows_by_whole_latent_frames_each_decoded_once(tiny: Rhea, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiny.codec is not None
    codes = codes_of(tiny, (3, 2, 2))
    whole = tiny.codec.decode_film(codes, 10)
    decoded: list[int] = []
    decode = tiny.codec.decode_film
    monkeypatch.setattr(tiny.codec, "decode_film", lambda given: decoded.append(len(given)) or decode(given))
    grows = follower(tiny, sized(tiny, VideoSize(height=2, width=2, num_frames=10, fps=5)), every_rows=1)
    shown = [each for token in tokens_of(tiny, codes) if (each := grows.follow([token])) is not None]
    assert [(len(each.pixels), each.rows_done, each.rows) for each in shown] == [(4, 2, 6), (8, 4, 6), (10, 6, 6)]
    for each in shown:
        assert (each.pixels == whole[: len(each.pixels)]).all()
        assert each.fps == 5
    assert decoded == [1, 1, 1]
    begun = follower(tiny, sized(tiny, VideoSize(height=2, width=2, num_frames=10, fps=5)))
    half = begun.follow(tokens_of(tiny, codes)[:11])  # a latent frame, a row and a code
    assert half is not None
    assert (len(half.pixels), half.rows_done) == (4, 2)


def test_frames_that_the_prompt_gives_are_shown_with_the_first_new_ones(tiny: Rhea) -> None:
    assert tiny.codec is not None
    codes = codes_of(tiny, (4, 2, 2))
    prompt = replace(
        sized(tiny, VideoSize(height=2, width=2, num_frames=16, fps=5)),
        document=formats.video_prediction(Video(codes=codes[:2], fps=5), 2, "two"),
    )
    grows = follower(tiny, prompt)
    new = tokens_of(tiny, codes[2:])
    assert grows.follow([]) is None
    assert len(grows.show().pixels) == 8
    shown = [each for token in new if (each := grows.follow([token])) is not None]
    assert [(len(each.pixels), each.rows_done) for each in shown] == [(12, 6), (16, 8)]
    assert (shown[-1].pixels == tiny.codec.decode_film(codes)).all()
    assert grows.taken == len(new)


def test_an_edit_is_not_mistaken_for_its_source(tiny: Rhea) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    seen: Seen = []
    edited = tiny.edit(pixels, "make it blue", every_rows=1, preview=lambda i, each: seen.append((i, each)))
    assert [each.rows_done for _, each in seen] == [1, 2]
    assert (seen[-1][1].pixels == edited.pixels).all()


def test_several_at_once_are_told_apart(tiny: Rhea) -> None:
    seen: Seen = []
    made = tiny.generate(["red", "two"], samples=2, size="16x24", preview=lambda i, each: seen.append((i, each)))
    assert len({tuple(each.token_ids) for each in made}) == 4
    assert tiny.codec is not None
    for number, picture in enumerate(made):
        own = [each for i, each in seen if i == number]
        assert [(each.rows_done, each.final) for each in own] == [(1, False), (2, False), (3, True)]
        assert (own[-1].pixels == picture.pixels).all()  # type: ignore[union-attr]
        for each in own:
            top = tiny.codec.decode_picture(picture.codes[: each.rows_done])
            assert (each.pixels[: len(top)] == top).all()
    assert {i for i, _ in seen} == {0, 1, 2, 3}


def test_films_of_the_default_model_come_frame_by_frame(default: Rhea) -> None:
    seen: Seen = []
    film = default.generate("a red star", video=True, size="32x32", preview=lambda i, each: seen.append((i, each)))[0]
    assert isinstance(film, Film)
    assert [len(each.pixels) for _, each in seen] == [4, 8, 12, 16]
    for _, each in seen:
        assert (each.pixels == film.frames[: len(each.pixels)]).all()


def test_a_film_is_extended_before_the_eyes(tiny: Rhea) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (10, 32, 24, 3), dtype=np.uint8)
    seen: Seen = []
    film = media.Film(frames=frames, fps=5.0)
    longer = tiny.extend(film, 9, seed=3, preview=lambda i, each: seen.append((i, each)))
    assert [(i, len(each.pixels), each.rows_done, each.rows) for i, each in seen] == [
        (0, 14, 4, 12),
        (0, 18, 8, 12),
        (0, 19, 12, 12),
    ]
    for _, each in seen:
        assert (each.pixels == longer.frames[: len(each.pixels)]).all()
    assert (longer.frames == tiny.extend(film, 9, seed=3).frames).all()
    seen.clear()
    wide = Rhea(tiny_checkpoint(num_frames=16))  # its window is longer than what is wanted
    longer = wide.extend(film, 3, preview=lambda i, each: seen.append((i, each)))
    assert [each.final for _, each in seen] == [True]
    assert (seen[0][1].pixels == longer.frames).all()


def test_refusals(tiny: Rhea) -> None:
    completer = tiny.completer
    with pytest.raises(InputError, match="every_rows is 0"):
        tiny.generate("red", preview=lambda *_: None, every_rows=0)
    text = Prompt(document=formats.question_answering(None, "How many"))
    with pytest.raises(InputError, match="asks for text"):
        follower(tiny, text)
    assert completer.complete([text], preview=lambda *_: pytest.fail("a text is not seen"))[0].text is not None
    picture = sized(tiny, ImageSize(height=2, width=2))
    request = completer.requests([picture])[0]
    assert picture.next is not None
    assert tiny.codec is not None
    with pytest.raises(InputError, match="announces no image"):
        Follower(replace(request, prompt=request.prompt[:3]), picture.next, tiny.codec)


class Gate:
    """Lets an engine step only as often as it is told to."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps, self.allowed, step = 0, threading.Semaphore(0), engine.step

        def gated() -> None:
            assert self.allowed.acquire(timeout=30), "no step was allowed"
            self.steps += 1
            step()

        monkeypatch.setattr(engine, "step", gated)

    def allow(self, steps: int) -> None:
        self.allowed.release(steps)


def test_partial_pictures_over_asyncio(tiny: Rhea, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [sized(tiny, ImageSize(height=4, width=3), text, seed=7) for text in ("red", "two")]
    requests = tiny.completer.requests(prompts)
    engine = Engine(tiny.completer.transformer, EngineConfig(window=1, slots=2))
    gate, half_way = Gate(engine, monkeypatch), set[int]()

    async def client(background: BackgroundEngine, number: int) -> tuple[list[Preview], list[int]]:
        grows, shown, tokens = tiny.completer.follower(prompts[number], requests[number]), list[Preview](), list[int]()
        async for new in background.stream(requests[number]):
            tokens += new
            if grows.feed(new):
                shown.append(await asyncio.to_thread(grows.show))
                half_way.update({number} if shown[-1].rows_done == 2 else ())
                if len(half_way) == 2:
                    assert not engine.idle, "half of both pictures is seen before the rest is written"
                    half_way.clear()
                    gate.allow(100)
        return shown, tokens

    async def clients(background: BackgroundEngine) -> list[tuple[list[Preview], list[int]]]:
        running = asyncio.gather(client(background, 0), client(background, 1))
        await asyncio.sleep(0)  # both have asked
        gate.allow(8)  # enough for two rows of three codes, one code a step, also for who comes a step later
        return await running

    with BackgroundEngine(engine) as background:
        results = asyncio.run(clients(background))
    expected = tiny.completer.complete(prompts)
    assert tiny.codec is not None
    for (shown, tokens), alone in zip(results, expected, strict=True):
        assert [each.rows_done for each in shown] == [1, 2, 3, 4]
        assert tokens == alone.token_ids
        assert alone.codes is not None
        assert (shown[-1].pixels == tiny.codec.decode_picture(alone.codes)).all()


def test_who_has_seen_enough_is_cancelled_within_one_step(tiny: Rhea, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = sized(tiny, ImageSize(height=8, width=3))
    request = tiny.completer.requests([prompt])[0]
    engine = Engine(tiny.completer.transformer, EngineConfig(window=1, slots=2))
    gate = Gate(engine, monkeypatch)

    async def client(background: BackgroundEngine) -> int:
        grows, stream = tiny.completer.follower(prompt, request), background.stream(request)
        gate.allow(1)
        async for new in stream:
            if grows.feed(new):
                assert grows.show().rows_done == 1
                break
            gate.allow(1)
        before = gate.steps
        await stream.aclose()  # type: ignore[attr-defined]
        gate.allow(100)
        deadline = time.monotonic() + 30
        while not engine.idle:
            assert time.monotonic() < deadline, "still busy"
            await asyncio.sleep(0.005)
        return gate.steps - before

    with BackgroundEngine(engine) as background:
        assert asyncio.run(client(background)) <= 1
    assert engine.statistics.tokens_written < 3 * 4


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Callable[..., int], list[np.ndarray]]:
    """Run the command in an empty folder; list what the output file held each time that it was rewritten."""
    checkpoint = save_tiny_checkpoint(tmp_path / "tiny", height=32, width=16)
    monkeypatch.chdir(tmp_path)
    files: list[np.ndarray] = []
    save = Preview.save

    def listen(preview: Preview, path: Path) -> None:
        save(preview, path)
        files.append(media.read_film(path).frames if preview.fps else media.read_picture(path))

    monkeypatch.setattr(Preview, "save", listen)
    return lambda *arguments: cli.main(["generate", *arguments, "--checkpoint", str(checkpoint)]), files


def test_the_command_rewrites_its_output(watched: tuple[Callable[..., int], list[np.ndarray]]) -> None:
    run, files = watched
    assert run("red", "--preview", "--output", "a.png") == 0
    assert [int((pixels == BLANK).all(axis=(1, 2)).sum()) for pixels in files] == [24, 16, 8]
    whole = media.read_picture("a.png")
    assert run("red", "--output", "b.png") == 0
    assert (whole == media.read_picture("b.png")).all()
    files.clear()
    assert run("red", "--preview", "--output", "a.gif", "--size", "16x16", "--num-frames", "9") == 0
    assert [len(frames) for frames in files] == [4, 8]
    assert len(media.read_film("a.gif").frames) == 9


def test_the_command_previews_one_at_a_time(
    watched: tuple[Callable[..., int], list[np.ndarray]], capsys: pytest.CaptureFixture[str]
) -> None:
    run, files = watched
    Path("prompts.txt").write_text("red\ntwo\n")
    for more in (["red", "--samples", "2"], ["red", "--sheet"], ["--batch", "prompts.txt"]):
        assert run(*more, "--preview") == 2
        assert "--preview shows one picture or film growing" in capsys.readouterr().err
    assert not files
    assert not Path("picture.png").exists()
