"""The demo of a tiny random model: complete, self-contained, well-formed, and safe for other folders."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tiny_model import TRAINED_ON, tiny_checkpoint

import rhea
from rhea import media
from rhea.errors import InputError
from rhea.evaluation import demo
from rhea.evaluation.demo import build_demo
from rhea.generation.model import Rhea
from rhea.tokenizers.vision import PixelPolicy
from rhea.worlds.shapes.language import read_caption
from rhea.worlds.shapes.scene import HELD_OUT_KINDS


@pytest.fixture(scope="module")
def model() -> Rhea:
    checkpoint = tiny_checkpoint(height=64, width=64, max_seq_len=512)
    square = PixelPolicy(min_pixels=4096, max_pixels=4096, shape="square")
    return Rhea(replace(checkpoint, config=replace(checkpoint.config, pixels=square)))


class Reader(HTMLParser):
    """Collects the attributes that may point elsewhere, and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe")
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "srcset")]
        if tag not in ("img", "br", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_emoji_of_a_second_model(model: Rhea, tmp_path: Path) -> None:
    rich = rhea.load("rich", device="cpu")
    text = build_demo(model, tmp_path / "demo", rich=rich).read_text(encoding="utf-8")
    told = json.loads((tmp_path / "demo" / "demo.json").read_text(encoding="utf-8"))["emoji"]
    assert [each["prompt"] for each in told] == list(demo.EMOJI)
    for number, each in enumerate(told, 1):
        assert media.read_picture(tmp_path / "demo" / f"emoji-{number}.png").shape == (64, 64, 3)
        assert each["prompt"] in text
        assert f"it calls this: {each['named']}" in text
    right = [each["named"] for each in told if each["prompt"].endswith(each["named"])]
    assert len(right) >= 3, told  # it reads what it drew; the drawing itself may be of another emoji


def test_the_folder_and_its_page(model: Rhea, tmp_path: Path) -> None:
    page = build_demo(model, tmp_path / "demo")
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    assert {"index.html", "demo.json", "picture-1.png", "edit-1.png", "film.mp4", "film.gif", "extended.mp4"} <= names
    assert media.read_picture(tmp_path / "demo" / "picture-1.png").shape == (64, 64, 3)
    assert len(media.read_film(tmp_path / "demo" / "extended.mp4").frames) == model.defaults.num_frames
    reader = Reader()
    text = page.read_text(encoding="utf-8")
    reader.feed(text)
    assert reader.open == []
    assert len(reader.links) > 20
    assert all(link.startswith("data:image/") for link in reader.links)
    assert "http" not in text
    assert TRAINED_ON in text
    assert "Emoji" not in text
    for prompt in demo.PICTURES:
        assert prompt in text
    told = json.loads((tmp_path / "demo" / "demo.json").read_text(encoding="utf-8"))
    assert [each["prompt"] for each in told["pictures"]] == list(demo.PICTURES)


def test_a_demo_replaces_a_demo_and_nothing_else(model: Rhea, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="no demo"):
        build_demo(model, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_only_the_one_prompt_is_of_unseen_kinds() -> None:
    for prompt in demo.PICTURES:
        kinds = read_caption(prompt)
        assert kinds, prompt
        assert any(kind in HELD_OUT_KINDS for kind in kinds) == (prompt == demo.UNSEEN), prompt
