"""Drawings of one model for another: right ones only, clean, the same again, and read as captioned pictures."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import rhea
from rhea.documents.document import Image, Text
from rhea.documents.shards import Shards, find_shards
from rhea.errors import InputError
from rhea.recipes.drawings import DrawingsConfig, record_drawings
from rhea.recipes.rich_model import RichShares, rich_mixture, rich_model
from rhea.worlds.shapes.grader import read_picture
from rhea.worlds.shapes.language import read_caption
from rhea.worlds.shapes.render import render
from rhea.worlds.shapes.scene import Scene

FEW = DrawingsConfig(tries=20, tries_per_shard=12, objects=(2,), captions=("plain",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawings")
    done: list[int] = []
    paths = record_drawings(rhea.load(device="cpu"), FEW, folder, done.append)
    assert [path.name for path in paths] == ["drawings-00000.tar", "drawings-00001.tar"]
    assert done == [12, 20]
    return folder


def test_what_is_kept_is_right_and_clean(folder: Path) -> None:
    shards = Shards(find_shards(folder))
    assert 10 < len(shards) <= FEW.tries
    for number in range(len(shards)):
        objects = read_picture(shards.picture(number))
        named = read_caption(shards.record(number)["caption"])
        assert sorted(thing.kind for thing in objects) == sorted(named)
        assert (
            np.abs(render(Scene(objects=objects)).astype(int) - shards.picture(number)).max() < 60
        )  # a shift of 0.1 px


def test_what_is_there_is_kept_and_lost_shards_come_again(folder: Path) -> None:
    first, second = sorted(folder.glob("*.tar"))
    before, lost = first.stat().st_mtime_ns, second.read_bytes()
    second.unlink()
    record_drawings(rhea.load(device="cpu"), FEW, folder)
    assert first.stat().st_mtime_ns == before
    assert second.read_bytes() == lost
    with pytest.raises(InputError, match="a recording of other settings"):
        record_drawings(rhea.load(device="cpu"), replace(FEW, seed=1), folder)


def test_a_recipe_learns_from_them(folder: Path) -> None:
    shares = RichShares(shapes=0.0, emoji=0.0, small_emoji=0.0, driving=0.0, pictures=1.0)
    mixture = rich_mixture(replace(rich_model().data, pictures=str(folder), shares=shares), seed=0)
    draws, _ = mixture.draws(0, [0], 40)
    captions = []
    for document in map(mixture.document, draws):
        text, picture = document.segments
        assert isinstance(text, Text)
        assert isinstance(picture, Image)
        captions.append(text.text)
    assert 0 < captions.count("") < 15
    with pytest.raises(InputError, match="no captioned pictures are named"):
        rich_mixture(replace(rich_model().data, shares=shares), seed=0)
