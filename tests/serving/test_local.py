"""Tasks in this process: every kind gives what ``Rhea`` gives, bounds refuse, and text comes in whole characters."""

import asyncio
import contextlib
import itertools
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import TEXTS, tiny_checkpoint

from rhea import media
from rhea.errors import BusyError, InputError
from rhea.generation.completion import Completer
from rhea.generation.engine import EngineConfig
from rhea.generation.model import Rhea
from rhea.generation.preview import Follower, Preview
from rhea.generation.results import Film
from rhea.serving.backend import Answer, BackendDiedError, Clip, Done, Draw, Event, Extend, Partial, Sampling
from rhea.serving.limits import Bounds
from rhea.serving.local import LocalBackend, TextStream
from rhea.serving.previews import Decoder
from rhea.serving.rows import Rows
from rhea.tokenizers.text import train_text_tokenizer

FRAMES = np.random.default_rng(1).integers(0, 256, (10, 32, 24, 3), dtype=np.uint8)
TOKENIZER = train_text_tokenizer(TEXTS, vocab_size=280)


@pytest.fixture(scope="module")
def model() -> Rhea:
    return Rhea(tiny_checkpoint(given_frames=4), engine=EngineConfig(slots=4, window=1))


def events_of(model: Rhea, task: object, partials: int | None = 0, bounds: Bounds | None = None) -> list[Event]:
    async def collect() -> list[Event]:
        async with LocalBackend(model, bounds=bounds) as backend:
            return [event async for event in backend.run(task, partials=partials)]  # type: ignore[arg-type]

    return asyncio.run(collect())


def test_films(model: Rhea) -> None:
    sampling = Sampling(seed=3, guidance_scale=2.0)
    *partial, done = events_of(model, Draw(prompt="two", num_frames=8, fps=5.0, sampling=sampling), None)
    expected = model.generate("two", video=True, num_frames=8, fps=5.0, seed=3, guidance_scale=2.0)[0]
    assert isinstance(done, Done)
    assert isinstance(expected, Film)
    assert done.pixels is not None
    assert (done.pixels == expected.frames).all()
    assert (done.fps, list(done.token_ids)) == (5.0, expected.token_ids)
    assert [each.pixels.shape for each in partial if isinstance(each, Partial)] == [(4, 32, 24, 3)]


def test_continued_films(model: Rhea) -> None:
    task = Extend(film=Clip(frames=FRAMES, fps=6.0), num_frames=9, caption="red", sampling=Sampling(seed=2))
    *partial, done = events_of(model, task, None)
    shown: list[int] = []
    film = media.Film(frames=FRAMES, fps=6.0)
    expected = model.extend(film, 9, caption="red", seed=2, preview=lambda _, seen: shown.append(len(seen.pixels)))
    assert isinstance(done, Done)
    assert done.pixels is not None
    assert (done.pixels == expected.frames).all()
    assert [len(each.pixels) for each in partial if isinstance(each, Partial)] == shown[:-1]
    assert len(shown) == 3


class Threads(Decoder):
    """Notes which threads decode; ``seconds`` is what each decoding is said to have taken."""

    def __init__(self, completer: Completer, seconds: float) -> None:
        super().__init__(completer)
        self.used, self._seconds, self._said = list[str](), seconds, seconds

    def __call__(self, follower: Follower) -> Preview:
        self.used.append(threading.current_thread().name)
        seen = super().__call__(follower)
        self._seconds = self._said
        return seen


BRIEF, LONG = 0.001, 1.0


@pytest.mark.parametrize(
    ("others", "seconds", "film", "first"),
    [
        (0, BRIEF, {}, "engine"),
        (1, BRIEF, {}, "pixels_0"),
        (0, LONG, {}, "pixels_0"),
        (0, BRIEF, {"num_frames": 8, "fps": 5.0}, "pixels_0"),
    ],
)
def test_only_a_lone_pictures_brief_first_preview_is_decoded_before_the_engine_goes_on(
    model: Rhea, others: int, seconds: float, film: dict[str, Any], first: str
) -> None:
    decoder = Threads(model.completer, seconds)

    async def drawn() -> list[Event]:
        async with LocalBackend(model) as backend:
            backend._requests, backend._decoder = others, decoder
            return [event async for event in backend.run(Draw(prompt="red", **film), partials=1)]

    partial, done = asyncio.run(drawn())
    assert isinstance(partial, Partial)
    assert isinstance(done, Done)
    assert decoder.used == [first, "pixels_0"]
    assert len(partial.pixels) == (4 if film else 32)


def test_a_request_that_fails_sends_no_more_previews(model: Rhea, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list[int]()

    async def drawn() -> None:
        async with LocalBackend(model) as backend:
            step, steps = backend.engine.step, itertools.count()

            def break_late() -> None:
                if next(steps) == 11:
                    raise MemoryError("no memory left")
                step()

            monkeypatch.setattr(backend.engine, "step", break_late)
            async for event in backend.run(Draw(prompt="red"), partials=1):
                assert isinstance(event, Partial)
                rows.append(event.rows_done)

    with pytest.raises(BackendDiedError):
        asyncio.run(drawn())
    assert rows == [2]


@pytest.mark.parametrize(
    ("partials", "rows"), [(0, []), (1, [2]), (2, [2, 3]), (3, [1, 2, 3]), (9, [1, 2, 3]), (None, [1, 2, 3])]
)
def test_only_pictures_that_are_shown_are_decoded(
    model: Rhea, partials: int | None, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = list[int]()
    decode = model.prompts.codec.decode_picture
    monkeypatch.setattr(
        model.prompts.codec, "decode_picture", lambda codes: (decoded.append(len(codes)), decode(codes))[1]
    )
    partial = events_of(model, Draw(prompt="red"), partials)
    assert [each.rows_done for each in partial if isinstance(each, Partial)] == rows
    assert [rows_done for rows_done in decoded if rows_done < 4] == rows


def test_the_best_of_several_is_known_by_its_own_number(model: Rhea) -> None:
    task = Draw(prompt="red", best_of=4, sampling=Sampling(seed=1, sample_index=2, guidance_scale=2.0))
    (done,) = events_of(model, task, 3)
    assert isinstance(done, Done)
    assert done.sample_index in range(8, 12)
    alone = replace(task, best_of=1, sampling=replace(task.sampling, sample_index=done.sample_index))
    (again,) = events_of(model, alone)
    assert isinstance(again, Done)
    assert again.token_ids == done.token_ids
    assert again.pixels is not None
    assert (again.pixels == done.pixels).all()
    assert (done.new_tokens, done.prompt_tokens) == (4 * again.new_tokens, 4 * again.prompt_tokens)


@pytest.mark.parametrize("best_of", [1, 3])
def test_a_revised_prompt_is_told_and_draws_the_same_by_itself(model: Rhea, best_of: int) -> None:
    task = Draw(prompt="红", best_of=best_of, revise=True, sampling=Sampling(seed=1))
    *partial, done = events_of(model, task, 1 if best_of == 1 else None)
    assert len(partial) == (best_of == 1)
    assert isinstance(done, Done)
    direct = model.generate("红", seed=1, best_of=best_of, revise=True)[0]
    assert done.revised_prompt == direct.revised_prompt is not None  # type: ignore[union-attr]
    assert list(done.token_ids) == direct.token_ids
    (again,) = events_of(model, replace(task, prompt=done.revised_prompt, revise=False))
    assert isinstance(again, Done)
    assert (again.token_ids, again.revised_prompt) == (done.token_ids, None)
    assert done.new_tokens > again.new_tokens
    assert done.prompt_tokens > again.prompt_tokens


def test_one_failed_candidate_fails_the_task_and_leaves_nothing(model: Rhea, monkeypatch: pytest.MonkeyPatch) -> None:
    async def drawn() -> None:
        async with LocalBackend(model) as backend:
            step, steps = backend.engine.step, itertools.count()

            def break_once() -> None:
                if next(steps) == 3:
                    raise MemoryError("no memory left")
                step()

            monkeypatch.setattr(backend.engine, "step", break_once)
            with pytest.raises(BackendDiedError):
                await anext(backend.run(Draw(prompt="red", best_of=6)))
            await backend.pulse()  # a candidate that came after the step that broke is cancelled before the next one
            counted = await backend.counters()
            assert [counted[name] for name in ("requests", "tokens", "running", "waiting")] == [0, 0, 0, 0]
            assert [event async for event in backend.run(Draw(prompt="red", best_of=2))]

    asyncio.run(drawn())


def test_bounds(model: Rhea) -> None:
    async def clients() -> None:
        async with LocalBackend(model, bounds=Bounds(max_requests=2, max_tokens=100)) as backend:
            small, large = Draw(prompt="red", size="16x16"), Draw(prompt="red", size="48x48")
            async with contextlib.aclosing(backend.run(small, partials=1)) as first:
                await anext(first)
                with pytest.raises(BusyError, match="tokens are under way"):
                    await anext(backend.run(large))
                async with contextlib.aclosing(backend.run(small, partials=1)) as second:
                    await anext(second)
                    with pytest.raises(BusyError, match="requests are under way"):
                        await anext(backend.run(small))
            counted = await backend.counters()
            assert (counted["requests"], counted["tokens"]) == (0, 0)
            assert [event async for event in backend.run(large)]  # alone it may be larger than the bound
            assert [event async for event in backend.run(Draw(prompt="red", best_of=6))]
            with pytest.raises(InputError):
                await anext(backend.run(Draw(prompt=" ")))
            assert (await backend.counters())["requests"] == 0

    asyncio.run(clients())


def test_a_text_does_not_wait_for_pictures() -> None:
    model = Rhea(tiny_checkpoint(max_seq_len=512), engine=EngineConfig(slots=8, window=1))

    async def clients() -> None:
        async with LocalBackend(model) as backend:

            async def draw(seed: int) -> None:
                sampling = Sampling(seed=seed, guidance_scale=2.0)
                async for _ in backend.run(Draw(prompt="red", size="64x64", sampling=sampling), partials=0):
                    pass

            drawings = [asyncio.create_task(draw(seed)) for seed in range(5)]
            while (load := await backend.counters())["running"] < 3 or load["running"] + load["waiting"] < 5:
                await asyncio.sleep(0.001)
            answered = [event async for event in backend.run(Answer(turns=(("two", None),), max_new_tokens=2))]
            assert isinstance(answered[-1], Done)
            load = await backend.counters()
            assert (load["grids"], load["running"], load["waiting"]) == (0, 3, 2), "all pictures are still drawn"
            for drawing in drawings[2:]:
                drawing.cancel()  # one that runs, and both that wait
            await asyncio.gather(*drawings[:2])
            load = await backend.counters()
            assert [load[name] for name in ("grids", "requests", "waiting", "rows")] == [2, 0, 0, 0]

    asyncio.run(clients())


def test_rows_are_handed_out_in_order() -> None:
    async def clients() -> None:
        rows, begun, ends = Rows(5), list[int](), [asyncio.Event() for _ in range(5)]

        async def hold(number: int, wanted: int) -> None:
            async with rows.taken(wanted):
                begun.append(number)
                await ends[number].wait()

        held = [asyncio.create_task(hold(number, wanted)) for number, wanted in enumerate((2, 2, 2, 1, 9))]

        async def after(*expected: int) -> None:
            for _ in range(20):
                await asyncio.sleep(0)
            assert (begun, rows.waiting) == ([*expected], 5 - len(expected) - gone)

        gone = 0
        await after(0, 1)  # the fourth would fit, but is not overtaken by nor overtakes the third
        held[2].cancel()
        gone = 1
        await after(0, 1, 3)
        for number in (0, 1):
            ends[number].set()
        await after(0, 1, 3)  # the last wants more than there are, so it waits for all
        ends[3].set()
        await after(0, 1, 3, 4)

    asyncio.run(clients())


def test_what_breaks_is_that_tasks_own(model: Rhea, monkeypatch: pytest.MonkeyPatch) -> None:
    async def clients() -> None:
        async with LocalBackend(model) as backend:
            forward = backend.engine._forward
            monkeypatch.setattr(backend.engine, "_forward", lambda *_: (_ for _ in ()).throw(MemoryError("0x7f")))
            with pytest.raises(BackendDiedError, match="broke down while"):
                await anext(backend.run(Draw(prompt="red")))
            monkeypatch.setattr(backend.engine, "_forward", forward)
            assert [event async for event in backend.run(Draw(prompt="red"))]

    asyncio.run(clients())


@given(st.text(max_size=20), st.randoms(use_true_random=False))
def test_text_comes_in_whole_characters(text: str, random: object) -> None:
    """Whatever pieces the tokens come in, and whether or not they spell valid text."""
    token_ids = TOKENIZER.encode(text)
    stream, pieces, left = TextStream(TOKENIZER), list[str](), list(token_ids)
    while left:
        size = random.randint(1, 3)  # type: ignore[attr-defined]
        pieces.append(stream.take(left[:size]))
        left = left[size:]
    whole = TOKENIZER.decode(token_ids).strip()
    assert all(piece in whole for piece in pieces)
    assert "".join(pieces) + stream.rest(whole) == whole


@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=20))
def test_any_tokens_can_be_streamed(token_ids: list[int]) -> None:
    stream = TextStream(TOKENIZER)
    told = "".join(stream.take([token_id]) for token_id in token_ids)
    whole = TOKENIZER.decode(token_ids).strip()
    assert told + stream.rest(whole) == whole


def test_half_a_character_is_held_back() -> None:
    stream, tokens = TextStream(TOKENIZER), TOKENIZER.encode("红a")
    assert len(tokens) > 2
    assert [stream.take([token]) for token in tokens[:3]] == ["", "", "红"]
