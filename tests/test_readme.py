"""The README keeps its promises: its figures are those of the benchmarks, its code runs, its commands exist."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FIGURES = (ROOT / "docs" / "figures.md").read_text(encoding="utf-8")


def test_figures_are_those_that_the_benchmarks_wrote() -> None:
    specification = importlib.util.spec_from_file_location("table", ROOT / "benchmarks" / "table.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    advice = "run: python benchmarks/table.py --write"
    assert module.table(module.first_rows()) in README, advice
    assert module.table(module.all_rows(), root="../") in FIGURES, advice


def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "picture.png").stat().st_size > 100


def test_the_guide_to_generation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "generation.md").read_text(encoding="utf-8"), re.DOTALL
    )
    names: dict[str, Any] = {}
    exec(compile(code, "generation.md", "exec"), names)
    assert [codes.shape for codes in names["codes"]] == [(8, 8)] * 4
    assert "tokens in" in capsys.readouterr().out


def test_commands_exist() -> None:
    commands = sorted(set(re.findall(r"^rhea (\w+)", README, re.MULTILINE)))
    assert len(commands) >= 8
    help_text = subprocess.run(
        [sys.executable, "-m", "rhea.cli", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for command in commands:
        assert command in help_text
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
