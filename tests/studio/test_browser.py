"""The studio as people meet it: in a real headless Chromium, over a real socket, with the default model.

``RHEA_SCREENSHOTS=docs/images`` makes the tests write the pictures of docs/studio.md.
"""

import base64
import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright
from studio_pages import served

from rhea import media
from rhea.generation.loading import load_model
from rhea.generation.model import Rhea
from rhea.serving.local import LocalBackend
from rhea.studio.page import create_studio
from rhea.studio.store import Store
from rhea.worlds.shapes.grader import read_picture

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCREENSHOTS = os.environ.get("RHEA_SCREENSHOTS")
PATIENCE = 180_000
"""Milliseconds until a page that does nothing fails a test; nothing is asserted about time."""

TOKENS_OF_A_FILM = 4 * (8 * 9 + 1) + 2

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def model() -> Rhea:
    return load_model(device="cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("studio") / "judgements.db")


@pytest.fixture(scope="module")
def backend(model: Rhea) -> LocalBackend:
    return LocalBackend(model)


@pytest.fixture(scope="module")
def url(model: Rhea, backend: LocalBackend, store: Store) -> Iterator[str]:
    with served(create_studio(backend, model, store), backend) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_playwright() as driver:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*arguments, "--disable-dev-shm-usage"])
        yield browser
        browser.close()


class Visitor:
    """A person at the page, who knows the labels that it shows."""

    def __init__(self, context: Any, url: str) -> None:
        self.page = context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.asked, self.complaints = list[str](), list[str]()
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_selector("#prompt textarea")

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True)

    def write(self, element: str, text: str) -> None:
        self.page.locator(f"#{element} textarea, #{element} input").first.fill(text)

    def until(self, element: str, text: str) -> str:
        """Wait until an element says something; return all that it says."""
        self.page.wait_for_function(
            "([id, text]) => document.getElementById(id)?.innerText.match(new RegExp(text))", arg=[element, text]
        )
        return self.page.locator(f"#{element}").inner_text()

    def slide(self, element: str, number: int) -> None:
        """Type the number of a slider, and wait until the slider shows that it was taken."""
        box = self.page.locator(f"#{element} input[type=number]")
        box.fill(str(number))
        box.press("Tab")
        self.page.wait_for_function(
            "([id, number]) => document.querySelector(`#${id} input[type=range]`).value === number",
            arg=[element, str(number)],
        )

    def draw(self, prompt: str) -> None:
        self.tab("Create")
        self.write("prompt", prompt)
        self.button("Draw").click()
        self.until("create-status", "Done")

    def upload(self, path: Path) -> None:
        self.page.locator("input[type=file]").first.set_input_files(path)

    def screenshot(self, name: str) -> None:
        if SCREENSHOTS:
            self.page.wait_for_timeout(1500)  # for pictures to be painted
            self.page.screenshot(path=Path(SCREENSHOTS) / f"studio-{name}.png", full_page=True)

    def leave(self) -> None:
        self.page.close()


@pytest.fixture(scope="module")
def desktop(chromium: Any) -> Any:
    """One browser for all English visits: the page's scripts are fetched once."""
    return chromium.new_context(viewport={"width": 1100, "height": 800}, locale="en-GB")


@pytest.fixture
def visitor(desktop: Any, url: str) -> Iterator[Visitor]:
    someone = Visitor(desktop, url)
    yield someone
    someone.leave()
    assert not someone.complaints
    here = ("data:", "blob:", url)
    assert [address for address in someone.asked if not address.startswith(here)] == []


def pixels_of(image: Any) -> np.ndarray:
    """Return what an element shows."""
    data = base64.b64decode(image.get_attribute("src").split(",")[1])
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(opened.convert("RGB"))


def test_pictures_are_seen_before_they_are_finished(visitor: Visitor, model: Rhea) -> None:
    page = visitor.page
    page.evaluate(
        """() => { window.seen = [];
          const board = document.getElementById('create-board');
          const note = () => { const image = board.querySelector('img');
            if (!image || window.seen.includes(image.alt)) return;
            window.seen.push(image.alt); window.first ??= image.src; };
          new MutationObserver(note).observe(board, {subtree: true, childList: true, attributes: true}); }"""
    )
    visitor.draw("a large red circle")
    seen = page.evaluate("window.seen")
    parts = [int(match[1]) for text in seen if (match := re.search(r"unfinished: (\d) of 8 rows", text))]
    assert len(parts) > 1, seen
    assert parts == sorted(parts)
    assert seen[-1] == "a large red circle"
    made: Any = model.generate("a large red circle", seed=0)[0]
    shown = pixels_of(page.locator("#create-board img"))
    np.testing.assert_array_equal(shown, made.pixels)
    assert page.evaluate("window.first") != page.locator("#create-board img").get_attribute("src")
    visitor.screenshot("create")


def test_the_best_of_several_is_shown_and_can_be_looked_into(visitor: Visitor, model: Rhea) -> None:
    visitor.page.get_by_role("button", name="More settings").click()
    visitor.slide("best-of", 3)
    visitor.draw("a blue star")
    made: Any = model.generate("a blue star", seed=0, best_of=3)[0]
    np.testing.assert_array_equal(pixels_of(visitor.page.locator("#create-board img")), made.pixels)
    visitor.tab("Look inside")
    visitor.button("Look inside").click()
    assert "64 codes" in visitor.until("look-status", "bits each on average")


def test_stopped_drawings_are_cancelled_in_the_engine(visitor: Visitor, model: Rhea, backend: LocalBackend) -> None:
    before = model.completer.statistics.tokens_written
    visitor.page.locator("#kind").get_by_text("Film").click()
    visitor.slide("number", 8)
    visitor.write("prompt", "a green star")
    visitor.button("Draw").click()
    visitor.until("create-status", "Drawing")
    visitor.button("Stop").first.click()
    while backend._requests:
        visitor.page.wait_for_timeout(20)
    assert 0 < model.completer.statistics.tokens_written - before < 8 * TOKENS_OF_A_FILM


def test_questions_are_answered_in_turns_and_corrected(visitor: Visitor, store: Store) -> None:
    visitor.draw("a large red circle")
    visitor.tab("Ask")
    visitor.until("ask-piece", "a large red circle")
    # opened early: Gradio fills a form once more in the frame in which it appears, over what a script has typed by then
    visitor.page.get_by_role("button", name="Correct by hand").click()
    visitor.write("question", "How many objects are there?")
    visitor.button("Ask").click()
    visitor.until("ask-status", "Answered in")
    assert "one" in visitor.page.locator("#chat").inner_text()
    visitor.write("question", "What colour is the circle?")
    visitor.page.keyboard.press("Enter")
    visitor.until("chat", "red")
    assert "How many objects" in visitor.page.locator("#chat").inner_text(), "the earlier turn stays"
    visitor.screenshot("ask")
    visitor.page.wait_for_function("document.querySelector('#right textarea, #right input')?.value === 'red'")
    visitor.write("right", "crimson")
    visitor.button("Keep the correction").click()
    visitor.until("correct-status", "Write your name first")
    visitor.write("corrector", "Ada")
    visitor.button("Keep the correction").click()
    visitor.until("correct-status", "0 captions and 1 answers corrected")
    visitor.screenshot("correct")
    (kept,) = store.answers()
    assert (kept["question"], kept["original"], kept["answer"]) == ("What colour is the circle?", "red", "crimson")
    assert kept["turns"] == [["How many objects are there?", "one"]]


def test_an_uploaded_picture_is_edited(visitor: Visitor, model: Rhea, tmp_path: Path) -> None:
    made: Any = model.generate("a large red circle", seed=0)[0]
    made.save(tmp_path / "circle.png")
    visitor.upload(tmp_path / "circle.png")
    visitor.until("shelf-status", "Uploaded: circle.png")
    visitor.tab("Edit")
    visitor.write("instruction", "make the circle blue")
    visitor.button("Change the picture").click()
    visitor.until("edit-status", "Done")
    before, after = visitor.page.locator("#edit-board img").all()
    np.testing.assert_array_equal(pixels_of(before), made.pixels)
    edited = model.edit(made.pixels, "make the circle blue", seed=0)
    np.testing.assert_array_equal(pixels_of(after), edited.pixels)
    assert read_picture(edited.pixels) is not None
    assert visitor.page.locator("#shelf button").count() == 2
    visitor.screenshot("edit")


def test_a_film_goes_on_with_its_new_frames_marked(visitor: Visitor, model: Rhea, tmp_path: Path) -> None:
    film: Any = model.generate("a large green square moving to the right", video=True, num_frames=8, seed=0)[0]
    media.write_film(tmp_path / "square.mp4", film.frames, film.fps)
    visitor.upload(tmp_path / "square.mp4")
    visitor.until("shelf-status", "Uploaded: square.mp4")
    visitor.tab("Continue")
    visitor.button("Go on with the film").click()
    visitor.until("continue-status", "Done")
    frames = visitor.page.locator("#continue-board .rhea-strip figure")
    names = [frame.inner_text() for frame in frames.all()]
    assert names == ["given"] * 8 + ["model"] * 8
    assert frames.nth(8).locator("img").get_attribute("alt") == "Frame 9, by the model"
    visitor.page.wait_for_function("document.querySelector('#continue-board video')?.readyState > 1")
    assert visitor.page.evaluate("Math.round(document.querySelector('#continue-board video').duration)") == 2
    visitor.screenshot("continue")


def test_a_picture_is_looked_into_by_mouse_and_keyboard(visitor: Visitor) -> None:
    page = visitor.page
    visitor.tab("Look inside")
    visitor.button("Look inside").click()
    visitor.until("look-status", "Take a piece from the shelf")
    visitor.draw("a small red circle and a large blue square")
    visitor.tab("Look inside")
    visitor.button("Look inside").click()
    assert "64 codes" in visitor.until("look-status", "bits each on average")
    assert page.locator("#look-board [data-place]").count() == 64
    page.locator("#view").get_by_text("Uncertainty").click()
    visitor.until("look-board", "Bits of uncertainty")
    visitor.screenshot("entropy")
    page.locator("#view").get_by_text("Forwards").click()
    visitor.until("look-board", "number of the forward")
    words = [button.inner_text() for button in page.locator("#look-board [data-word]").all()]
    assert words == ["a", "small", "red", "circle", "and", "a", "large", "blue", "square"]
    page.get_by_role("button", name="blue", exact=True).click()
    visitor.until("look-status", "“blue” was looked at most")
    visitor.screenshot("attention")
    page.locator("[data-place='20']").click()
    visitor.until("look-status", "row 3, column 5")
    page.wait_for_function("document.activeElement?.dataset.place === '20'")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    visitor.until("look-status", "row 4, column 5")
    shares = [float(text.split()[-2]) for text in page.locator("#look-board [data-word]").all_inner_texts()]
    told = float(re.search(r"gave (\d+) %", page.locator("#look-status").inner_text())[1])  # type: ignore[index]
    assert abs(sum(shares) - told) < 1.5, "rounded shares of words add up to what is told of all words"


def test_an_answer_about_an_upload_is_looked_into(visitor: Visitor, model: Rhea, tmp_path: Path) -> None:
    made: Any = model.generate("a large red circle", seed=0)[0]
    made.save(tmp_path / "circle.png")
    visitor.upload(tmp_path / "circle.png")
    visitor.until("shelf-status", "Uploaded: circle.png")
    visitor.tab("Look inside")
    visitor.page.locator("#way").get_by_text("As it is read").click()
    visitor.write("look-words", "What colour is the circle?")
    visitor.button("Look inside").click()
    visitor.until("look-status", "64 codes.*the model answers “red”")
    visitor.page.locator("#look-board [data-word]").last.click()
    visitor.until("look-status", "“red” looked most at the patch in row")
    visitor.screenshot("answer")
    visitor.page.locator("#way").get_by_text("As it is drawn").click()
    visitor.write("look-words", "a small blue square")
    visitor.page.locator("#look-words textarea, #look-words input").press("Enter")
    visitor.until("look-board", "small\\s+blue\\s+square")


def test_two_annotators_compare_and_export(visitor: Visitor, desktop: Any, url: str, tmp_path: Path) -> None:
    page = visitor.page
    visitor.tab("Compare")
    visitor.write("compare-prompt", "a small red circle")
    visitor.button("Draw samples to compare").click()
    visitor.until("compare-status", "Write your name first")
    visitor.button("Keep my judgement").click()
    visitor.until("compare-status", "draw samples, or take the next comparison, first")
    visitor.write("annotator", "Ada")
    visitor.button("Draw samples to compare").click()
    visitor.until("compare-status", "Which is better?")
    assert "seed" not in page.locator("#compare-board").inner_text(), "how they were made is not told yet"
    page.locator("#best").get_by_text("A", exact=True).click()
    page.locator("#text_match-A").get_by_text("5", exact=True).click()
    visitor.write("caption-B", "a red circle on grey")
    best = page.locator("#compare-board img").first.get_attribute("src")
    visitor.screenshot("compare")
    visitor.button("Keep my judgement").click()
    assert "sample_index" in (visitor.until("compare-status", "Kept") and visitor.until("compare-board", "seed 0"))

    other = Visitor(desktop, url)
    other.tab("Compare")
    other.write("annotator", "Grace")
    other.button("Next one that I have not judged").click()
    other.until("compare-status", "Which is better?")
    places = [image.get_attribute("src") for image in other.page.locator("#compare-board img").all()]
    other.page.locator("#best").get_by_text("AB"[places.index(best)], exact=True).click()
    other.button("Keep my judgement").click()
    other.until("agreement", "2 annotators on 1 shared comparisons: 100 % of pairs alike")
    other.button("Next one that I have not judged").click()
    other.until("compare-status", "You have judged every comparison")

    other.button("Export judgements").click()
    link = other.page.locator("#export-file a").first
    with other.page.expect_download() as download:
        link.click()
    download.value.save_as(tmp_path / "judgements.zip")
    other.leave()
    with zipfile.ZipFile(tmp_path / "judgements.zip") as archive:
        preferences = [json.loads(line) for line in archive.read("preferences.jsonl").splitlines()]
        judgements = [json.loads(line) for line in archive.read("judgements.jsonl").splitlines()]
        captions = [json.loads(line) for line in archive.read("captions.jsonl").splitlines()]
        chosen = archive.read(preferences[0]["chosen"])
    assert [each["annotator"] for each in preferences] == ["Ada", "Grace"]
    assert len(preferences[0]["chosen_ids"]) == 75
    assert preferences[0]["prompt"] == "a small red circle"
    (rating,) = [each for each in judgements[0]["ratings"] if each["sample"] == judgements[0]["best"]]
    assert (rating["text_match"], rating["look"]) == (5, None)
    assert captions[0]["caption"] == "a red circle on grey"
    assert chosen.startswith(b"\x89PNG")


def test_films_are_created_looked_into_and_compared(visitor: Visitor, store: Store) -> None:
    page = visitor.page
    page.locator("#kind").get_by_text("Film").click()
    page.get_by_role("button", name="More settings").click()
    page.wait_for_function("document.querySelector('#guidance input[type=number]')?.value === '2'")
    visitor.draw("a green star moving down")
    page.wait_for_function("document.querySelector('#create-board video')?.readyState > 1")
    visitor.tab("Ask")
    visitor.until("ask-piece", "a green star moving down")
    visitor.write("question", "How many objects are there?")
    visitor.button("Ask").click()
    visitor.until("ask-status", "Answered in")
    visitor.tab("Look inside")
    visitor.button("Look inside").click()
    visitor.until("look-status", "256 codes")
    page.get_by_role("button", name="frames 9 to 12", exact=True).click()
    page.wait_for_function("document.activeElement?.dataset.latent === '2'")
    page.get_by_role("button", name="star", exact=True).click()
    visitor.until("look-status", "“star” was looked at most by the patch in frames")
    visitor.screenshot("film")
    visitor.tab("Compare")
    visitor.write("annotator", "Ada")
    visitor.write("compare-prompt", "a green star moving down")
    page.locator("#compare-kind").get_by_text("Film").click()
    visitor.button("Draw samples to compare").click()
    visitor.until("compare-status", "Which is better?")
    page.wait_for_function(
        "(films => films.length === 2 && films.every(film => film.readyState > 1 && !film.paused))"
        "([...document.querySelectorAll('#compare-board video')])"
    )
    page.locator("#best").get_by_text("B", exact=True).click()
    visitor.screenshot("films")
    visitor.button("Keep my judgement").click()
    visitor.until("compare-status", "Kept")
    found = list(store.preferences())[-1]
    assert (found["chosen"][-4:], len(found["chosen_ids"])) == (".mp4", TOKENS_OF_A_FILM)
    assert found["chosen_settings"]["num_frames"] == 16


def test_a_refused_upload_is_told_in_words(visitor: Visitor, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"nothing" * 20)
    visitor.upload(tmp_path / "broken.png")
    visitor.until("shelf-status", "broken.png was not taken: it is damaged or cut off")
    (tmp_path / "notes.txt").write_text("no picture")
    visitor.upload(tmp_path / "notes.txt")
    said = visitor.until("shelf-status", "notes.txt was not taken: it must be a PNG")
    assert str(tmp_path) not in said
    assert visitor.page.locator("#shelf-status [role=alert]").count() == 1
    assert visitor.page.locator("#shelf button").count() == 0
    visitor.screenshot("refused")


def test_a_phone_in_chinese(chromium: Any, url: str) -> None:
    phone = chromium.new_context(viewport={"width": 390, "height": 844}, locale="zh-CN", has_touch=True)
    someone = Visitor(phone, url)
    page = someone.page
    someone.until("draw", "开始绘制")
    someone.write("prompt", "一个红色大圆形")
    page.get_by_role("button", name="开始绘制").tap()
    someone.until("create-status", "完成")
    assert page.locator("#create-board img").get_attribute("alt") == "一个红色大圆形"
    someone.screenshot("phone")
    tabs = page.get_by_role("tab").all()
    assert len(tabs) == 6
    for tab in tabs:
        tab.tap()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing sticks out at the side"
    page.locator("#language").get_by_text("English").tap()
    someone.until("draw", "Draw")
    someone.leave()


FOCUSED = """() => { const it = document.activeElement, style = getComputedStyle(it);
  return [it.closest('[id]').id, it.innerText || it.value || '', style.outlineStyle, parseInt(style.outlineWidth)]; }"""


def walk(page: Any, until: str, words: str = "") -> None:
    """Press Tab until something of that id, or inside of it, has the focus; what has it on the way must show it."""
    for _ in range(60):
        page.keyboard.press("Tab")
        element, text, style, width = page.evaluate(FOCUSED)
        assert (style, width) == ("solid", 3), (element, text)
        if page.evaluate("id => document.activeElement.closest('#' + id) !== null", until) and words in text:
            return
    raise AssertionError(f"the Tab key does not come to {until} {words}")


def test_a_hand_that_only_has_keys(visitor: Visitor) -> None:
    page, keys = visitor.page, visitor.page.keyboard
    page.evaluate("document.body.focus()")
    for number, prompt in enumerate(("a red circle", "a blue star")):
        if number:
            page.locator("#language input").first.focus()
        walk(page, "prompt")
        keys.press("Control+a")
        keys.type(prompt)
        walk(page, "draw")
        keys.press("Enter")
        page.wait_for_function("n => document.querySelectorAll('#shelf button').length > n", arg=number)
        visitor.until("create-status", "Done")
    page.locator("#language input").first.focus()
    walk(page, "shelf")
    keys.press("ArrowRight")
    keys.press("Enter")
    page.wait_for_function("document.activeElement.ariaPressed === 'true'")
    assert page.evaluate("document.activeElement.ariaLabel") == "Take a red circle"
    walk(page, "upload")
    page.evaluate(
        "() => { document.querySelector('input[type=file]').onclick = () => { window.asked = true; return false; } }"
    )
    keys.press("Enter")
    page.wait_for_function("window.asked")
    walk(page, "tabs", "Create")
    keys.press("End")
    keys.press("ArrowLeft")
    keys.press("Enter")
    walk(page, "look")
    keys.press("Enter")
    visitor.until("look-status", "64 codes")
    walk(page, "view", "surprise")
    keys.press("Space")
    visitor.until("look-board", "How improbable")
    walk(page, "look-board", "a")
    keys.press("ArrowRight")
    keys.press("Enter")
    visitor.until("look-status", "“red” was looked at most")
    page.wait_for_function("document.activeElement.dataset.word === '1'")
    walk(page, "look-board", "")
    for key, place in (
        ("End", 63),
        ("ArrowUp", 55),
        ("Home", 0),
        ("ArrowDown", 8),
        ("ArrowRight", 9),
        ("ArrowLeft", 8),
    ):
        keys.press(key)
        assert page.evaluate("document.activeElement.dataset.place") == str(place)
    keys.press("Enter")
    visitor.until("look-status", "row 2, column 1")


def test_what_can_be_operated_has_a_name(visitor: Visitor) -> None:
    for tab in ("Create", "Ask", "Edit", "Continue", "Look inside", "Compare"):
        visitor.tab(tab)
        nameless = visitor.page.evaluate(
            """() => [...document.querySelectorAll('button, input, textarea, [role=radio]')]
              .filter(e => e.offsetParent && !e.closest('.wrap.generating'))
              .filter(e => !(e.innerText.trim() || e.getAttribute('aria-label') || e.title || e.placeholder ||
                (e.labels && [...e.labels].some(l => l.innerText.trim()))))
              .map(e => e.outerHTML.slice(0, 160))"""
        )
        assert nameless == [], tab
