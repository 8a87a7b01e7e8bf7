"""Public suites: the files that their scorers read, each drawn once, whatever else is drawn."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_model import tiny_checkpoint

from rhea import cli, media
from rhea.checkpoints.save import save_checkpoint
from rhea.cli_evaluate import EVALUATIONS
from rhea.errors import InputError
from rhea.evaluation import networks
from rhea.evaluation.drawing import draw_suite
from rhea.evaluation.runner import Shard
from rhea.evaluation.suites import read_order
from rhea.generation.model import Rhea

SMALL = {"size": "16x16", "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def model() -> Rhea:
    return Rhea(tiny_checkpoint())


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def file(name: str, *lines: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    return file


def drawn(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_geneval(model: Rhea, write: Callable, tmp_path: Path) -> None:
    lines = ['{"tag": "colors", "include": [], "prompt": "a photo of a red star"}', '{"prompt": "a dog"}']
    file, output = write("evaluation_metadata.jsonl", *lines), tmp_path / "out"
    assert draw_suite(model, "geneval", file, output, samples=2, **SMALL) == 4
    names = {"metadata.jsonl", "samples/0000.png", "samples/0001.png"}
    assert drawn(output) == {f"{number}/{name}" for number in ("00000", "00001") for name in names}
    assert json.loads((output / "00001/metadata.jsonl").read_text()) == {"prompt": "a dog"}
    made = model.generate("a dog", samples=2, **SMALL)
    assert (media.read_picture(output / "00001/samples/0001.png") == made[1].pixels).all()  # type: ignore[union-attr]


def test_t2i_compbench(model: Rhea, write: Callable, tmp_path: Path) -> None:
    file = write("color_val.txt", "a red_star and/or a dog.\tseen", "两只狗")
    output = tmp_path / "out"
    draw_suite(model, "t2i-compbench", file, output, samples=2, **SMALL)
    names = [f"a red star and or a dog._{number:06}.png" for number in range(2)]
    assert sorted(path.name for path in (output / "samples").iterdir()) == [
        *names,
        "两只狗_000002.png",
        "两只狗_000003.png",
    ]
    long = [Path(each.path).name for each in read_order("t2i-compbench", write("long.txt", "两只狗" * 40)).wanted]
    assert [re.split("[_.]", name)[-2] for name in long] == [f"{number:06}" for number in range(10)]
    assert all(name.startswith("两只狗" * 9) and 250 < len(name.encode()) <= 255 for name in long)


def test_dpg_bench(model: Rhea, write: Callable, tmp_path: Path) -> None:
    write("prompts/1.txt", "a red", "star")
    write("prompts/coco_2.txt", "a dog")
    output = tmp_path / "out"
    assert draw_suite(model, "dpg-bench", tmp_path / "prompts", output, **SMALL) == 2
    assert drawn(output) == {"1.png", "coco_2.png"}
    sheet = media.read_picture(output / "1.png")
    made = [each.pixels for each in model.generate("a red star", samples=4, **SMALL)]  # type: ignore[union-attr]
    assert (sheet == np.block([[[made[0]], [made[1]]], [[made[2]], [made[3]]]])).all()
    with pytest.raises(InputError, match="squares"):
        draw_suite(model, "dpg-bench", tmp_path / "prompts", tmp_path / "wide", size="32x16")
    with pytest.raises(InputError, match="at most 4"):
        read_order("dpg-bench", tmp_path / "prompts", 5)


def test_vbench(model: Rhea, write: Callable, tmp_path: Path) -> None:
    entries = [{"prompt_en": "a dog-1", "dimension": ["color"]}, {"prompt_en": "a cat."}, {"prompt_en": "a dog-1"}]
    file, output = write("VBench_full_info.json", json.dumps(entries)), tmp_path / "out"
    draw_suite(model, "vbench", file, output, samples=2, num_frames=4, **SMALL)
    assert drawn(output) == {"a dog-1-0.mp4", "a dog-1-1.mp4", "a cat.-0.mp4", "a cat.-1.mp4"}
    assert len(media.read_film(output / "a cat.-1.mp4").frames) == 4
    lines = read_order("vbench", write("color.txt", " a cat. ", "a dog-1"))
    assert [each.path for each in lines.wanted] == [f"{p}-{i}.mp4" for p in ("a cat.", "a dog-1") for i in range(5)]
    with pytest.raises(InputError, match="two prompts would be called"):
        read_order("vbench", write("twice.txt", "a/b", "a b"))


def test_what_exists_is_not_drawn_again(model: Rhea, write: Callable, tmp_path: Path) -> None:
    file = write("color.txt", "a red star", "a dog", "a cat")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert draw_suite(model, "t2i-compbench", file, whole, samples=2, **SMALL) == 6
    before = {path.name: path.read_bytes() for path in (whole / "samples").iterdir()}
    lost, kept = sorted(before)[2], sorted(before)[0]
    (whole / "samples" / lost).unlink()
    (whole / "samples" / kept).write_bytes(b"mine")
    assert draw_suite(model, "t2i-compbench", file, whole, samples=2, **SMALL) == 1
    assert (whole / "samples" / kept).read_bytes() == b"mine"
    assert (whole / "samples" / lost).read_bytes() == before[lost]
    for index in (1, 0):
        shard = Shard(index=index, count=2)
        assert draw_suite(model, "t2i-compbench", file, parts, samples=2, shard=shard, **SMALL) == 3
    assert {path.name: path.read_bytes() for path in (parts / "samples").iterdir()} == before
    for settings, said in (({"seed": 1}, "settings"), ({"samples": 3}, "samples")):
        with pytest.raises(InputError, match=f"another run \\(other {said}\\)"):
            draw_suite(model, "t2i-compbench", file, whole, **{"samples": 2, **SMALL, **settings})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is not empty"):
        draw_suite(model, "t2i-compbench", file, tmp_path / "mine", **SMALL)


@pytest.mark.parametrize(
    ("suite", "lines", "said"),
    [
        ("geneval", ["{}"], "line 1: not an object"),
        ("geneval", ["3"], "line 1: not an object"),
        ("geneval", ['{"prompt": 3}'], "prompt"),
        ("vbench", [], "holds no prompts"),
        ("paint", ["a dog"], "no suite is called 'paint'"),
    ],
)
def test_wrong_prompt_files(write: Callable, suite: str, lines: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_order(suite, write("prompts.txt", *lines))


def test_the_command(write: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(tmp_path / "tiny", tiny_checkpoint())
    file, model = str(write("color.txt", "a dog")), ["--checkpoint", str(tmp_path / "tiny")]
    options = ["--output", f"{tmp_path}/out", "--size", "16x16", "--samples", "1", *model]
    assert cli.main(["evaluate", "prompts", "t2i-compbench", file, *options]) == 0
    assert drawn(tmp_path / "out") == {"samples/a dog_000000.png"}
    assert cli.main(["evaluate", "prompts", "geneval", file, "--fps", "3", *options]) == 2
    assert cli.main(["evaluate", "prompts", "t2i-compbench", file, "--fps", "3", *options]) == 2
    assert "--fps are for films" in capsys.readouterr().err


def test_the_guides_commands_exist(capsys: pytest.CaptureFixture[str]) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    commands = re.findall(r"^rhea evaluate (\w+)(.*)", guide, re.MULTILINE)
    assert {name for name, _ in commands} == set(EVALUATIONS)
    for name, rest in commands:
        with pytest.raises(SystemExit):
            cli.main(["evaluate", name, "--help"])
        told = capsys.readouterr().out
        assert all(option in told for option in re.findall(r"--[\w-]+", rest)), name
    assert networks.CONVERT in guide
