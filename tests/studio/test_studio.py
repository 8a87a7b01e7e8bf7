"""The studio without a browser: its texts, its shelf, what it says when things go wrong, and its door."""

import asyncio
import contextlib
import inspect
import re
import string
from collections.abc import AsyncGenerator, Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import safehttpx
from fastapi import FastAPI
from fastapi.testclient import TestClient
from gradio import processing_utils
from tiny_model import tiny_checkpoint

from rhea import media
from rhea.errors import BusyError, InputError
from rhea.generation.completion import Prompt
from rhea.generation.engine import Engine
from rhea.generation.model import Rhea
from rhea.generation.prompts import PromptWriter
from rhea.serving import untrusted
from rhea.serving.backend import Done, Draw, Edit, Event, Partial, Sampling, Task
from rhea.serving.errors import ApiError
from rhea.serving.serve import Listening, bound
from rhea.serving.untrusted import MediaGuard, MediaLimits
from rhea.studio import show
from rhea.studio.compare import LETTERS, Bench, agreement, keep_judgement, shuffled
from rhea.studio.correct import CAPTION, choices, keep_correction, original
from rhea.studio.desk import Desk
from rhea.studio.grid import render, summary
from rhea.studio.insight import Look, look_into, prompt_of, touch
from rhea.studio.page import create_studio, mount
from rhea.studio.refusals import _PATTERNS
from rhea.studio.run import serve_studio
from rhea.studio.shelf import Piece, Shelf, read_upload
from rhea.studio.store import Comparison, Sample, Store
from rhea.studio.texts import TEXTS, preferred, say
from rhea.studio.work import told, work

GREY = np.full((4, 6, 3), 128, np.uint8)


def test_every_text_is_in_both_languages_with_the_same_gaps() -> None:
    for key, (english, chinese) in TEXTS.items():
        gaps = [{name for _, name, _, _ in string.Formatter().parse(text) if name} for text in (english, chinese)]
        assert gaps[0] == gaps[1], key
        assert any(ord(character) > 0x2E80 for character in chinese), key
        assert not any(ord(character) > 0x2E80 for character in english), key


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-GB,zh;q=0.5", "en"),
        ("fr,zh-TW;q=0.8,en", "zh"),
        ("", "en"),
        ("de", "en"),
    ],
)
def test_the_browser_proposes_a_language(header: str, language: str) -> None:
    assert preferred(header) == language


def test_the_shelf_keeps_the_latest_and_forgets_the_rest() -> None:
    shelf = Shelf()
    for number in range(30):
        shelf.put(Piece(pixels=GREY, title=f"piece {number}"))
        shelf.chats[shelf.chosen] = [("?", "!")]
    assert len(shelf.pieces) == len(shelf.chats) == 24
    assert shelf.piece is not None
    assert shelf.piece.title == "piece 29"
    shelf.choose(1)
    assert shelf.piece.title == "piece 29", "what is forgotten cannot be taken"
    shelf.choose(7)
    assert shelf.piece.title == "piece 6"
    assert shelf.html("en").count('aria-pressed="true"') == 1


def test_what_users_write_is_never_markup() -> None:
    evil = '"><script>alert(1)</script>'
    shelf = Shelf()
    shelf.put(Piece(pixels=GREY, title=evil))
    for html in (shelf.html("en"), shelf.shown("en"), show.error(evil), show.status(evil), show.figure("", evil, evil)):
        assert "<script" not in html
        assert "&quot;&gt;&lt;script&gt;" in html


def test_uploads_are_pictures_or_films_by_what_they_are(tmp_path: Path) -> None:
    frames = np.zeros((3, 16, 16, 3), np.uint8)
    frames[1:, :, 8:] = 200
    media.write_film(tmp_path / "film.gif", frames, 8.0)
    media.write_film(tmp_path / "still.gif", frames[:1], 8.0)
    media.write_picture(tmp_path / "picture.png", frames[1])
    (tmp_path / "film.gif").rename(tmp_path / "film.png")  # a name says nothing

    async def read(name: str, guard: MediaGuard) -> Piece:
        return await read_upload(guard, str(tmp_path / name), name)

    async def check() -> None:
        guard = MediaGuard()
        try:
            film = await read("film.png", guard)
            assert (film.is_film, len(film.pixels), film.fps) == (True, 3, 8.0)
            assert (await read("still.gif", guard)).pixels.shape == (16, 16, 3)
            np.testing.assert_array_equal((await read("picture.png", guard)).pixels, frames[1])
            (tmp_path / "empty.png").write_bytes(b"")
            (tmp_path / "text.png").write_text("no picture")
            for name, code in (("empty.png", "empty_media"), ("text.png", "unsupported_format")):
                with pytest.raises(ApiError) as refused:
                    await read(name, guard)
                assert refused.value.code == code
                assert code in TEXTS
            with pytest.raises(ApiError) as refused:
                await read("picture.png", MediaGuard(MediaLimits(max_bytes=20)))
            assert refused.value.code == "media_too_large"
        finally:
            await guard.stop()

    asyncio.run(check())


class Scripted:
    """A backend that says what a test wrote down."""

    def __init__(self, *scripts: list[Event | Exception], hold: asyncio.Event | None = None) -> None:
        self.scripts, self.hold, self.left = list(scripts), hold, 0

    async def run(self, task: Task, *, partials: int | None = None) -> AsyncGenerator[Event, None]:
        script = self.scripts[task.sampling.sample_index]
        try:
            for event in script:
                await asyncio.sleep(0)
                if isinstance(event, Exception):
                    raise event
                yield event
            if self.hold is not None:
                await self.hold.wait()
        finally:
            self.left += 1


def tasks(count: int) -> list[Draw]:
    return [Draw(prompt="x", sampling=Sampling(sample_index=index)) for index in range(count)]


def part(done: int) -> Partial:
    return Partial(pixels=GREY, rows_done=done, rows=4)


def test_tasks_are_heard_together_and_a_slow_listener_skips() -> None:
    async def check() -> None:
        backend: Any = Scripted([part(1), part(2), Done(new_tokens=1)], [part(3), Done(new_tokens=2)])
        last: dict[int, Event] = {}
        heard = 0
        async for news in work(backend, tasks(2)):
            last |= news
            heard += len(news)
            await asyncio.sleep(0.01)
        assert [event.new_tokens for event in (last[0], last[1]) if isinstance(event, Done)] == [1, 2]
        assert heard < 5
        assert backend.left == 2

    asyncio.run(check())


def test_leaving_or_one_error_ends_all_tasks() -> None:
    async def check() -> None:
        backend: Any = Scripted([part(1)], [part(1)], hold=asyncio.Event())
        async with contextlib.aclosing(work(backend, tasks(2))) as news:
            async for _ in news:
                break
        assert backend.left == 2
        backend = Scripted([part(1)], [BusyError("17 requests wait")], hold=asyncio.Event())
        with pytest.raises(BusyError):
            async for _ in work(backend, tasks(2)):
                pass
        assert backend.left == 2

    asyncio.run(check())


def test_errors_are_told_in_the_users_language() -> None:
    assert told(InputError("size 3x3 is odd"), "en") == "That did not work: size 3x3 is odd"
    assert told(BusyError("17 wait"), "zh") == say("zh", "busy")


def provoked(tiny: Rhea, tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """Yield what makes the model refuse, once for every form of refusal that a visitor can meet."""
    write, completer, narrow = tiny.prompts, tiny.completer, np.zeros((80, 8, 3), np.uint8)

    def submit(prompt: Prompt) -> None:
        Engine(completer.transformer, completer.engine).submit(completer.requests([prompt])[0])

    yield lambda: write.draw(" ")
    for size in ("blue", "17x16", "0:3", "9:1"):
        yield lambda size=size: write.draw("red", size=size)
    yield lambda: submit(write.draw("red", size="999992x999992"))
    yield lambda: write.answer(None, [(" ", None)])
    yield lambda: submit(write.answer(None, [("two " * 999, None)]))
    yield lambda: write.edit([narrow], " ")
    yield lambda: write.edit([narrow[:, :4]], "make it blue")
    yield lambda: write.edit([narrow], "make it blue")
    yield lambda: write.extend(media.Film(frames=noise(2, 16, 16), fps=8.0))
    yield lambda: PromptWriter(tiny.defaults, None).draw("red")
    weight = completer.transformer.norm.weight
    broken = deepcopy(completer.transformer)
    broken.norm.weight.data = weight.data * float("nan")
    yield lambda: Engine(broken).run(completer.requests([write.draw("red")]))
    (tmp_path / "text.db").write_text("no data base " * 100)
    yield lambda: Store(tmp_path / "text.db")


def test_what_the_model_refuses_is_told_in_chinese(tiny: Rhea, tmp_path: Path) -> None:
    refusals = list[str]()
    for wrong in provoked(tiny, tmp_path):
        with pytest.raises(InputError) as refused:
            wrong()
        refusals.append(str(refused.value))
        chinese = told(refused.value, "zh")
        values = re.findall(r"\d+", refusals[-1]) if "tokens" in refusals[-1] else []
        assert all(value in chinese for value in values)
        assert re.findall("[A-Za-z]{2,}", chinese) in ([], ["blue"]), chinese
    for pattern, _ in _PATTERNS:
        assert sum(re.fullmatch(pattern, refusal, re.DOTALL) is not None for refusal in refusals) == 1, pattern


def test_every_refusal_of_an_upload_has_its_words() -> None:
    guard, codes = MediaGuard(), re.findall(r'_error\(\s*"(\w+)"|code="(\w+)"', inspect.getsource(untrusted))
    of_addresses = {"unsupported_url", "remote_media_disabled", "invalid_data_url", "media_type_mismatch"}
    reasons = ("sides", "pixels", "frames", "film_pixels", "seconds", "codec", "no_film", "late", "crashed")
    found = {one or other for one, other in codes} | {guard._refusal("film", {"refused": each})[0] for each in reasons}
    assert found - of_addresses <= set(TEXTS)
    assert len(found) > len(of_addresses) + 6


def test_annotators_see_samples_in_orders_of_their_own() -> None:
    samples = tuple(
        Sample(prompt="x", media=b"", suffix=".png", token_ids=(), settings={}, id=number) for number in range(4)
    )
    comparison = Comparison(id=3, prompt="x", samples=samples)
    orders = {tuple(sample.id for sample in shuffled(comparison, f"annotator {number}")) for number in range(40)}
    assert len(orders) > 10
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert shuffled(comparison, "Ada") == shuffled(comparison, " Ada ")
    assert len(LETTERS) == 4


def test_a_judgement_names_samples_by_their_letters(tmp_path: Path) -> None:
    store, bench = Store(tmp_path / "j.db"), Bench()
    with pytest.raises(InputError, match="draw samples"):
        keep_judgement(store, bench, "Ada", "A", (), "en")
    made = [Sample(prompt="x", media=b"", suffix=".png", token_ids=(), settings={}) for _ in range(3)]
    bench.comparison = store.add("x", made)
    bench.order = tuple(reversed(bench.comparison.samples))
    answers = (5, 4, "", None, None, "a ring", None, 2, None)
    with pytest.raises(InputError, match="say which is the better one"):
        keep_judgement(store, bench, "Ada", None, answers, "en")
    keep_judgement(store, bench, "Ada", "B", answers, "en")
    (found,) = store.judgements()
    first, second, third = (sample.id for sample in bench.comparison.samples)
    assert found["best"] == second
    rated = {each["sample"]: (each["text_match"], each["look"]) for each in found["ratings"]}
    assert rated == {third: (5, 4), second: (None, None), first: (None, 2)}
    assert [each["file"] for each in store.captions()] == [f"samples/{second}.png"]
    keep_judgement(store, bench, "Ada", "tie", answers, "en")
    assert [each["best"] for each in store.judgements()] == [None]
    assert agreement(store, "en") == "<p>1 comparisons, 1 judgements, 1 captions and 0 answers corrected.</p>"


def test_captions_and_answers_are_corrected_for_the_piece_that_is_taken(tmp_path: Path) -> None:
    store, shelf = Store(tmp_path / "j.db"), Shelf()

    def keep(which: int | None, text: str, name: str = "Ada") -> None:
        keep_correction(store, shelf, which, text, name, "rhea", "en")

    assert choices(shelf, "en") == []
    with pytest.raises(InputError, match="take a piece, or ask something"):
        keep(CAPTION, "a circle")
    shelf.chats[None] = [("Who are you?", "a circle")]
    keep(0, "Rhea")
    shelf.put(Piece(pixels=GREY, title="x", task=Draw(prompt="a red circle"), done=Done(token_ids=(7, 8))))
    shelf.chats[shelf.chosen] = [("How many?", "two"), ("What colour?", "red")]
    assert [number for _, number in choices(shelf, "en")] == [CAPTION, 0, 1]
    assert [original(shelf, which) for which in (CAPTION, 0, 1, 2, None)] == ["a red circle", "two", "red", "", ""]
    for wrong in (("", "Ada"), ("grey", " ")):
        with pytest.raises(InputError):
            keep(CAPTION, *wrong)
    assert list(store.samples()) == [], "what is refused leaves nothing behind"
    keep(CAPTION, "nothing at all")
    keep(1, "grey")
    keep(0, "none")
    (caption,), (nothing, colour, number) = store.captions(), store.answers()
    assert (caption["file"], caption["prompt"], caption["token_ids"]) == ("samples/1.png", "a red circle", [7, 8])
    assert (nothing["file"], nothing["answer"]) == (None, "Rhea")
    assert (colour["file"], colour["turns"], colour["original"]) == ("samples/1.png", [["How many?", "two"]], "red")
    assert (number["question"], number["turns"], number["original"]) == ("How many?", [], "two")
    shelf.put(Piece(pixels=np.stack([GREY] * 2), fps=8.0, title="film.mp4"))
    keep(CAPTION, "grey, and it stays grey")
    (sample,) = [each for each in store.samples() if each.suffix == ".mp4"]
    assert (sample.prompt, sample.settings) == ("", {"uploaded": "film.mp4"})


@pytest.fixture(scope="module")
def tiny() -> Rhea:
    return Rhea(tiny_checkpoint())


def test_a_piece_leads_back_to_the_prompt_it_was_drawn_from(tiny: Rhea) -> None:
    sampling = Sampling(guidance_scale=2.0, top_k=7, temperature=0.9, seed=5, sample_index=2, negative_prompt="two")
    drawn = Draw(prompt="a small red circle", size="24x32", sampling=sampling)
    first = tiny.prompts.draw("a small red circle", size="24x32", guidance_scale=2.0, top_k=7, temperature=0.9, seed=5)
    expected = replace(first, sample_index=2, negative=tiny.prompts.draw("two").document)
    found = prompt_of(tiny, Piece(pixels=GREY, title="x", task=drawn))
    for one, other in zip(tiny.completer.requests([found]), tiny.completer.requests([expected]), strict=True):
        assert (one.prompt, one.negative_prompt, one.sampling) == (other.prompt, other.negative_prompt, other.sampling)
        assert (one.seed, one.sample_index) == (5, 2)
    picture = np.zeros((32, 24, 3), np.uint8)
    edited = Edit(images=(picture,), instruction="make it blue", sampling=Sampling(seed=3))
    found = prompt_of(tiny, Piece(pixels=GREY, title="x", task=edited))
    (one,), (other,) = (
        tiny.completer.requests([p]) for p in (found, tiny.prompts.edit([picture], "make it blue", seed=3))
    )
    assert (one.prompt, one.seed) == (other.prompt, 3)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, (*shape, 3), dtype=np.uint8)


def test_an_upload_is_looked_into_under_any_text_or_none(tiny: Rhea) -> None:
    piece = Piece(pixels=noise(64, 48), title="noise.png")
    for words in ("", "a small red circle"):
        found = look_into(tiny, piece, "as_drawn", words)
        assert [word.text for word in found.seen.words] == words.split()
        assert found.pixels.shape == (1, 32, 24, 3), "as the codec takes it, so that the grid fits"
        assert found.commits is None
        look = Look(insight=found, view="entropy")
        assert render(look, "en").count("data-place") == 12
        assert "12 codes" in summary(look, "en")
        look.view = "forwards"
        assert say("en", "no_forwards").split(":")[0] in render(look, "en")


def test_an_answer_is_looked_into_word_by_word(tiny: Rhea) -> None:
    piece = Piece(pixels=noise(32, 24), title="noise.png")
    found = look_into(tiny, piece, "as_read", "How many objects are there?")
    assert found.answer == tiny.ask(piece.pixels, "How many objects are there?")
    look = Look(insight=found)
    touch(look, tiny, {"word": len(found.seen.words) - 1})
    assert (look.view, look.touched) == ("attention", "word")
    assert f"“{found.seen.words[-1].text}” looked most at the patch in row" in summary(look, "en")
    assert render(look, "en").count("class=written") == sum(word.written for word in found.seen.words) > 0
    touch(look, tiny, {"place": 4})
    assert "The patch in row 2, column 2 was looked at most by" in summary(look, "en")
    before = summary(look, "en")
    for nonsense in ({"word": 99}, {"place": -1}, {"latent": 1}, {}, {"place": 1, "word": 1}, {"x": 0}):
        touch(look, tiny, nonsense)
    assert summary(look, "en") == before
    caption = look_into(tiny, piece, "as_read", " ")
    assert all(word.written for word in caption.seen.words), "nothing was asked"


def test_a_film_is_looked_into_frame_by_frame(tiny: Rhea) -> None:
    task = Draw(prompt="a small red circle", num_frames=8, fps=8.0)
    prompt = tiny.prompts.draw(task.prompt, video=True, num_frames=8, fps=8.0)
    made = tiny.completer.complete([prompt])[0]
    film: Any = tiny.results([prompt], [made])[0]
    done = Done(pixels=film.frames, codes=film.codes, token_ids=tuple(made.token_ids))
    drawn = Piece(pixels=film.frames, fps=8.0, title="x", task=task, done=done)
    for piece in (drawn, replace(drawn, task=None, done=None)):
        found = look_into(tiny, piece, "as_drawn", "")
        assert (found.grid, (found.commits is None)) == ((2, 4, 3), piece.task is None)
        look = Look(insight=found)
        touch(look, tiny, {"latent": 1})
        html = render(look, "en")
        assert html.count("data-place") == 12
        assert 'data-place="12"' in html
        assert "frames 5 to 8, row 1, column 1" in html
    np.testing.assert_array_equal(look_into(tiny, drawn, "as_drawn", "").seen.codes, film.codes)
    np.testing.assert_array_equal(look_into(tiny, drawn, "as_drawn", "two").seen.codes, film.codes)
    read = look_into(tiny, drawn, "as_read", "How many?")
    np.testing.assert_array_equal(read.seen.codes, tiny.prompts.codec.encode_film(film.frames))


def test_guidance_begins_where_the_checkpoint_says(tiny: Rhea) -> None:
    desk: Any = Desk(backend=None, model=tiny, store=None, wardrobe=None, language=None, shelf=None, shelf_board=None)  # type: ignore[arg-type]
    assert [desk.guidance(), desk.guidance("film")] == [2.0, tiny.defaults.film_guidance_scale] != [2.0, 2.0]


def test_tabs_are_there_for_what_is_there(tiny: Rhea, tmp_path: Path) -> None:
    from rhea.serving.local import LocalBackend

    def tabs(*given: Any) -> set[str]:
        blocks = create_studio(LocalBackend(tiny), *given)
        return {block.elem_id.removeprefix("tab-") for block in blocks.blocks.values() if _is_tab(block)}

    always = {"create", "ask", "edit", "continue"}
    assert tabs() == always
    assert tabs(tiny) == {*always, "look"}
    assert tabs(None, Store(tmp_path / "j.db")) == {*always, "compare"}


def _is_tab(block: Any) -> bool:
    return type(block).__name__ == "Tab"


def test_a_visitor_names_neither_files_of_this_machine_nor_addresses(
    tiny: Rhea, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rhea.serving.local import LocalBackend

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    fetched: list[str] = []

    async def fetch(url: str, *_: Any, **__: Any) -> None:
        fetched.append(url)
        raise OSError

    monkeypatch.setattr(processing_utils.sh, "get", fetch)
    monkeypatch.setattr(safehttpx, "async_validate_url", fetch)
    (tmp_path / "secret.txt").write_text("secret")
    blocks = create_studio(LocalBackend(tiny))
    direct = next(number for number, each in blocks.fns.items() if each.name == "guidance")  # any that needs no queue
    with TestClient(mount(FastAPI(), blocks)) as client:

        def name(path: str) -> None:
            given = {"path": path, "meta": {"_type": "gradio.FileData"}}
            body = {"data": [given], "fn_index": direct, "session_hash": "x"}
            assert client.post("/gradio_api/run/predict", json=body).status_code != 200

        name(str(tmp_path / "secret.txt"))
        name("https://evil.example/a.png")
        uploaded = client.post("/gradio_api/upload", files={"files": ("a.txt", b"mine")}).json()[0]
        name(uploaded)
        assert client.get(f"/gradio_api/file={uploaded}").content == b"mine"
        for path in ("file=https://evil.example/a.png", "file=HTTP://evil.example", "proxy=https://evil.example"):
            assert client.get(f"/gradio_api/{path}").status_code == 404
        assert client.post("/gradio_api/process_recording", files={"video": b"x"}).status_code == 404
        assert [each.read_text() for each in (tmp_path / "uploads").rglob("*.txt")] == ["mine"]
    assert not list((tmp_path / "uploads").rglob("*.txt")), "nothing is left when it closes"
    assert fetched == []


def test_page_and_api_share_a_door(tiny: Rhea, tmp_path: Path) -> None:
    async def check() -> None:
        heard = asyncio.Queue[str]()
        options = Listening(port=0, api_key=("secret",), drain=1, films=tmp_path / "films")
        store = Store(tmp_path / "j.db")
        running = asyncio.create_task(serve_studio(tiny, options, bound(options), store, heard.put_nowait))
        hearing = asyncio.create_task(heard.get())
        await asyncio.wait([running, hearing], return_when=asyncio.FIRST_COMPLETED)
        assert not running.done() or await running, "the server ended"
        url = hearing.result().split("at ")[1].split()[0]
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            assert (await client.get("/")).status_code == 401
            assert (await client.get("/health")).status_code == 200
            page = await client.get("/", auth=("anybody", "secret"))
            assert page.status_code == 200
            assert "gradio" in page.text
            assert "googleapis" not in page.text
            client.headers["Authorization"] = "Bearer secret"
            models = await client.get("/v1/models")
            assert models.json()["data"][0]["id"]
            assert (await client.options("/v1/models")).headers["allow"] == "GET"
            assert (await client.head("/v1/models")).status_code == 405
            for method, path, status in (("GET", "nothing", 404), ("DELETE", "models", 405), ("GET", "videos/x", 404)):
                answer = await client.request(method, f"/v1/{path}")
                assert (answer.status_code, list(answer.json())) == (status, ["error"]), path
            assert (await client.get("/config", auth=("anybody", "secret"))).json()["analytics_enabled"] is False
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    asyncio.run(check())
