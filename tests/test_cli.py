"""The command line: what each command writes and prints, and that bad input is one line and exit code 2."""

import importlib
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from rich.console import Console
from tiny_model import TRAINED_ON, save_tiny_checkpoint, tiny_checkpoint

from rhea import cli, media
from rhea.checkpoints.save import save_checkpoint
from rhea.cli_messages import token_progress
from rhea.generation.request import Progress
from rhea.training.task import TrainingError

PIXELS = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
FRAMES = np.random.default_rng(1).integers(0, 256, (8, 32, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", height=64, width=64)


@pytest.fixture
def run(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command with the tiny model in an empty folder; return exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments: str | Path, model: bool = True) -> tuple[int, str, str]:
        capsys.readouterr()
        chosen = ["--checkpoint", str(tiny)] if model else []
        try:
            code = cli.main([*map(str, arguments), *chosen])
        except SystemExit as left:
            code = int(left.code or 0)
        output = capsys.readouterr()
        return code, output.out, output.err

    return run_command


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_generate_writes_pictures_by_extension(run: Callable, tmp_path: Path) -> None:
    assert run("generate", "a red circle", "--size", "32x16")[0] == 0
    assert media.read_picture("picture.png").shape == (16, 32, 3)
    assert run("generate", "a red circle", "--output", "new/a.webp", "--samples", "2", "--seed", "3")[0] == 0
    assert names(tmp_path / "new") == {"a-1.webp", "a-2.webp"}
    assert run("generate", "red", "--samples", "3", "--sheet", "--size", "16x16", "--output", "sheet.png")[0] == 0
    assert media.read_picture("sheet.png").shape == (36, 36, 3)
    code, _, errors = run("generate", "red", "--output", "film.gif", "--size", "16x16", "--num-frames", "6")
    assert (code, errors) == (0, "wrote film.gif\n")
    assert len(media.read_film("film.gif").frames) == 6


def test_a_terminal_gets_a_progress_bar(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def screen() -> Console:
        console = Console(file=io.StringIO(), force_terminal=True, width=120)
        monkeypatch.setattr("rhea.logging.console", lambda: console)
        return console

    told = screen()
    with token_progress("drawing") as tell:
        tell(Progress(tokens=30, max_tokens=120, tokens_per_second=1234.4))
    shown = told.file.getvalue()
    assert "drawing" in shown
    assert "25%" in shown
    assert "1,234 tokens/s" in shown
    told = screen()
    assert run("generate", "a red circle", "--size", "32x16")[0] == 0
    shown = told.file.getvalue()
    assert "100%" in shown
    assert re.search(r"[1-9][\d,]* tokens/s", shown)


def test_a_file_of_prompts_is_drawn_together(run: Callable, tmp_path: Path) -> None:
    Path("prompts.txt").write_text("a red circle\n\n  a blue square \n", encoding="utf-8")
    code, _, errors = run("generate", "--batch", "prompts.txt", "--size", "16x16", "--samples", "2", "--stats")
    assert code == 0
    assert names(tmp_path) == {"prompts.txt", *(f"picture-{number}.png" for number in range(1, 5))}
    assert "prompt tokens shared" in errors
    assert run("generate", "a blue square", "--size", "16x16", "--output", "alone.png")[0] == 0
    assert (media.read_picture("alone.png") == media.read_picture("picture-3.png")).all()
    Path("empty.txt").write_text("\n", encoding="utf-8")
    check(run("generate", "--batch", "empty.txt"), "holds no prompts")
    check(run("generate", "--batch", "nothing.txt"), "nothing.txt")
    check(run("generate", "a red circle", "--batch", "prompts.txt"), "either a PROMPT or --batch")
    check(run("generate"), "either a PROMPT or --batch")


def test_tiles_must_be_wider_than_they_overlap(run: Callable) -> None:
    media.write_picture("wide.png", np.zeros((24, 96, 3), np.uint8))
    assert run("reconstruct", "wide.png", "--tile", "9")[0] == 0
    check(run("reconstruct", "wide.png", "--tile", "8"), "they overlap by 8")


def test_settings_reach_the_model(run: Callable) -> None:
    pictures = []
    for settings in ([], ["--seed", "1"], ["--temperature", "0"], ["--guidance-scale", "1"], ["--top-k", "2"]):
        assert run("generate", "red", "--size", "32x32", *settings)[0] == 0
        pictures.append(media.read_picture("picture.png").tobytes())
    assert len(set(pictures)) == 5


def test_answers_go_to_standard_output_and_the_rest_does_not(run: Callable) -> None:
    media.write_picture("picture.png", PIXELS)
    code, output, errors = run("ask", "picture.png", "How many objects are there?")
    assert code == 0
    assert output.count("\n") == 1
    assert errors == f"note: this model was trained on {TRAINED_ON}\n"


def test_extend_edit_and_reconstruct(run: Callable) -> None:
    media.write_film("film.mp4", FRAMES, 8.0)
    media.write_picture("picture.jpg", PIXELS)
    assert run("extend", "film.mp4", "--num-frames", "3", "--output", "longer.mp4")[0] == 0
    assert len(media.read_film("longer.mp4").frames) == 11
    assert run("edit", "picture.jpg", "make it blue", "--more-pictures", "picture.jpg")[0] == 0
    assert media.read_picture("edited.png").shape == (16, 32, 3)
    code, _, errors = run("reconstruct", "picture.jpg")
    assert code == 0
    assert TRAINED_ON in errors
    assert "8 visual tokens, grid 2 x 4" in errors
    assert media.read_picture("picture-reconstructed.png").shape == (16, 32, 3)
    assert run("reconstruct", "film.mp4", "--output", "back.gif")[0] == 0
    assert len(media.read_film("back.gif").frames) == 8


def test_inspect_and_convert(run: Callable, tiny: Path) -> None:
    code, output, _ = run("inspect", tiny, model=False)
    assert code == 0
    assert "transformer" in output
    assert TRAINED_ON in output
    check(run("convert", tiny, "hf", "--layout", "hf", model=False), "only fits our own layout")
    save_checkpoint("talker", replace(tiny_checkpoint(), vision_tokenizer=None))
    assert run("convert", "talker", "hf", "--layout", "hf", model=False)[0] == 0
    assert run("convert", "hf", "back", model=False)[0] == 0
    assert json.loads(Path("back/config.json").read_text())["transformer"]["dim"] == 32
    check(run("convert", tiny, "back", model=False), "back")


def test_evaluate_and_demo(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, errors = run("evaluate", "shapes", "--scenes", "2", "--tasks", "edits", "--output", "report.json")
    assert code == 0
    assert "recolour" in errors
    assert len(json.loads(Path("report.json").read_text())["figures"]) == 6
    assert run("evaluate", "shapes", "--output", "report.txt")[0] == 2


def test_help_teaches_with_examples(run: Callable) -> None:
    code, output, _ = run("--help", model=False)
    assert code == 0
    for command in (
        "generate",
        "ask",
        "extend",
        "edit",
        "reconstruct",
        "train",
        "record",
        "evaluate",
        "inspect",
        "convert",
        "demo",
        "serve",
        "studio",
    ):
        assert command in output
        code, told, _ = run(command, "--help", model=False)
        assert code == 0
        assert f"$ rhea {command}" in told
    assert run("--version", model=False)[1].startswith("rhea ")
    assert run("paint", model=False)[0] == 2


def test_the_demo_ends_by_naming_the_studio(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rhea.evaluation.demo.build_demo", lambda *_, **__: Path("index.html"))
    code, _, told = run("demo", "--output", "demo")
    assert code == 0
    assert told.split()[-2:] == ["rhea", "studio"]


def test_ctrl_c_leaves_nothing_behind(run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rhea.generation.model import Rhea

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Rhea, "generate", interrupted)
    code, _, errors = run("generate", "red")
    assert (code, errors) == (130, "rhea: interrupted\n")
    assert names(tmp_path) == set()


def empty_film() -> bytes:
    """Return an MP4 that has sound but no frames."""
    import av

    with av.open("sound.mp4", "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        for _ in range(4):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    content = Path("sound.mp4").read_bytes()
    Path("sound.mp4").unlink()
    return content


@pytest.fixture
def bad_files(run: Callable, tmp_path: Path) -> Path:
    """Fill the current folder with files that are wrong in every way of the list."""
    media.write_picture("good.png", PIXELS)
    media.write_film("good.mp4", FRAMES, 8.0)
    Path("empty.png").touch()
    Path("text.png").write_text("not a picture")
    Path("cut.png").write_bytes(Path("good.png").read_bytes()[:2000])
    Path("cut.mp4").write_bytes(Path("good.mp4").read_bytes()[:2000])
    Path("open.png").write_bytes(Path("good.png").read_bytes()[:-12])  # without its last chunk
    Path("head.mp4").write_bytes(Path("good.mp4").read_bytes()[:350])
    Path("still.mp4").write_bytes(empty_film())
    Image.new("RGB", (1, 1)).save("dot.png")
    Image.new("RGB", (520, 100)).save("wide.png")
    Image.new("1", (9000, 8000)).save("bomb.png", compress_level=1)
    return tmp_path


BAD_FILES = {
    "nowhere.png": "no such file",
    "empty.png": "is empty",
    "text.png": "not a picture",
    "cut.png": "cut off",
    "cut.mp4": "cut off",
    "still.mp4": "no frames",
    "dot.png": "dot.png: picture of 1 x 1 pixels: sides must be at least 8",
    "wide.png": "wide.png: picture of 100 x 520 pixels: aspect ratio is over 5",
    "open.png": "open.png is cut off",
    "head.mp4": "head.mp4 cannot be read",
    "bomb.png": "at most",
}


@pytest.mark.parametrize("command", ["ask", "reconstruct"])
def test_bad_files(run: Callable, bad_files: Path, command: str) -> None:
    before = names(bad_files)
    for name, said in BAD_FILES.items():
        check(run(command, name, *(["What?"] if command == "ask" else [])), said, name)
    assert names(bad_files) == before


def check(result: tuple[int, str, str], said: str, about: str = "") -> None:
    """Assert one clear line on standard error, nothing on standard output, exit code 2."""
    code, output, errors = result
    assert (code, output) == (2, ""), (about, errors)
    assert errors.startswith("rhea: "), errors
    assert errors.count("\n") == 1, errors
    assert said in errors, errors


def test_bad_words_and_sizes(run: Callable, tmp_path: Path) -> None:
    check(run("generate", ""), "prompt is empty")
    check(run("generate", " \n"), "prompt is empty")
    check(run("generate", "red " * 300), "context of 256 tokens")
    check(run("generate", "red", "--size", "60x64"), "near are 56x64, 64x64")
    check(run("generate", "red", "--size", "huge"), "WIDTHxHEIGHT")
    check(run("generate", "red", "--size", "0x0"), "both sides must be positive")
    check(run("generate", "red", "--size", "16:1"), "aspect ratio is over 5")
    check(run("generate", "red", "--size", "64x640", "--output", "film.mp4"), "aspect ratio is over 5")
    check(run("generate", "red", "--num-frames", "4"), "--num-frames and --fps are for films; picture.png")
    check(run("generate", "red", "--fps", "4", "--output", "a.webp"), "--num-frames and --fps are for films; a.webp")
    check(run("generate", "red", "--samples", "0"), "samples")
    check(run("generate", "red", "--temperature", "-1"), "temperature")
    check(run("generate", "red", "--output", "picture.txt"), "extension")
    check(run("generate", "red", "--output", "picture"), "extension")
    check(run("generate", "red", "--sheet", "--output", "film.mp4"), "--sheet")
    check(run("generate", "red", "--output", "/proc/none/picture.png"), "cannot write")
    media.write_picture("good.png", PIXELS)
    check(run("ask", "good.png", ""), "question is empty")
    check(run("ask", "good.png", "."), "question is empty")
    check(run("ask", "good.png", "red " * 300), "context of 256 tokens")
    check(run("edit", "good.png", ""), "instruction is empty")
    check(run("edit", "good.png", "make it blue", "--output", "film.mp4"), "film")
    check(run("extend", "good.png"), "is a picture")
    check(run("extend", "good.png", "--output", "longer.png"), ".mp4")
    check(run("reconstruct", "good.png", "--output", "back.mp4"), "extension of the other")
    check(run("train", "pastry", model=False), "default-tokenizer")
    assert names(tmp_path) == {"good.png"}


def test_bad_checkpoints(run: Callable, tiny: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(tiny, tmp_path / name))

    (tmp_path / "folder").mkdir()
    other = copy("other")
    (other / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
    unknown = copy("unknown")
    settings = json.loads((unknown / "config.json").read_text()) | {"colour": "red"}
    (unknown / "config.json").write_text(json.dumps(settings))
    broken = copy("broken")
    (broken / "config.json").write_text("{")
    spoilt, cut, missing = copy("spoilt"), copy("cut"), copy("missing")
    weights = safetensors.torch.load_file(spoilt / "transformer.safetensors")
    weights["norm.weight"][3] = torch.nan
    safetensors.torch.save_file(weights, spoilt / "transformer.safetensors")
    del weights["norm.weight"]
    safetensors.torch.save_file(weights, missing / "transformer.safetensors")
    (cut / "transformer.safetensors").write_bytes((tiny / "transformer.safetensors").read_bytes()[:5000])
    expected = {
        "nowhere": "no such folder",
        "folder": "no checkpoint",
        "other": "another model",
        "unknown": "colour",
        "broken": "not valid JSON",
        "spoilt": "norm.weight",
        "cut": "transformer.safetensors",
        "missing": "norm.weight",
    }
    before = names(tmp_path)
    for name, said in expected.items():
        check(run("generate", "red", "--checkpoint", name, model=False), said, name)
        if name not in ("spoilt",):
            check(run("inspect", name, model=False), said, name)
    check(run("generate", "red", "--device", "toaster"), "toaster")
    check(run("generate", "red", "--device", "meta"), "cpu, cuda, cuda:N and mps")
    assert names(tmp_path) == before


def test_the_program_itself(tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rhea.cli", "ask", "nowhere.png", "What?", "--checkpoint", str(tiny)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    check((result.returncode, result.stdout, result.stderr), "no such file: nowhere.png")


@dataclass(frozen=True, kw_only=True)
class Oven:
    degrees: int = 200


@dataclass(frozen=True, kw_only=True)
class Cake:
    """A recipe as the command line sees one: nested values, and a run in a folder."""

    oven: Oven = field(default_factory=Oven)
    layers: tuple[int, ...] = (1, 2)

    def run(self, folder: Path) -> bool:
        if self.oven.degrees > 300:
            raise TrainingError("step 3: burnt;\nlast good checkpoint: none")
        folder.mkdir(parents=True)
        (folder / "cake.txt").write_text(f"{self.oven.degrees} {self.layers}")
        return self.oven.degrees > 100


def test_train_runs_a_recipe_with_overrides(run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("bakery")
    module.cake = Cake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bakery", module)
    monkeypatch.setattr(cli, "_RECIPES", {"cake": ("bakery", "cake")})
    assert run("train", "cake", model=False)[0] == 0
    assert (tmp_path / "runs" / "cake" / "cake.txt").read_text() == "200 (1, 2)"
    overrides = ("--oven.degrees", "120", "--layers", "3", "--output", "mine")
    assert run("train", "cake", *overrides, model=False)[0] == 0
    assert (tmp_path / "mine" / "cake.txt").read_text() == "120 (3,)"
    assert run("train", "cake", "--oven.degrees", "50", "--output", "raw", model=False)[0] == 130
    code, _, errors = run("train", "cake", "--oven.degrees", "400", model=False)
    assert (code, errors) == (1, "rhea: step 3: burnt; last good checkpoint: none\n")
    code, told, _ = run("train", "cake", "--help", model=False)
    assert code == 0
    assert "--oven.degrees" in told
    assert run("train", "cake", "--oven.colour", "red", model=False)[0] == 2


def test_every_recipe_that_is_listed_exists() -> None:
    for module, function in cli._RECIPES.values():
        if importlib.util.find_spec(module) is not None:
            assert hasattr(getattr(importlib.import_module(module), function)(), "run")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """Output goes to a pipe whose other end is closed already, as ``rhea train debug --help | head -1`` may find."""
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-m", "rhea.cli", "train", "rich-model", "--help"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (ended.stderr, ended.returncode) == ("", 128 + signal.SIGPIPE)
