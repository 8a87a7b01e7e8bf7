"""A compiler is never required: without one, or with a broken one, torch's operators give the same tokens, quietly."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rhea.models.native import binding
from rhea.models.native.build import build

needs_a_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture(autouse=True)
def fresh_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    return tmp_path / "cache"


def compiler(folder: Path, script: str) -> str:
    """Write a compiler that does this."""
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_without_a_compiler_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "nothing"))
    assert build() is None
    assert binding._load.__wrapped__() is None


@pytest.mark.parametrize(
    "script",
    ["echo 'kernels.c:1: error' >&2; exit 1", 'while [ "$1" != -o ]; do shift; done; echo nonsense > "$2"', "exit 0"],
    ids=["fails", "writes nonsense", "writes nothing"],
)
def test_a_broken_compiler_is_not_even_mentioned(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, script: str
) -> None:
    monkeypatch.setenv("CC", compiler(tmp_path, script))
    assert binding._load.__wrapped__() is None
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_cache_that_can_not_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert build() is None


@needs_a_compiler
def test_two_processes_build_at_once_and_a_third_finds_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fresh_cache: Path
) -> None:
    command = [sys.executable, "-c", "from rhea.models.native.build import build; print(build())"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    (first, _), (second, _) = (each.communicate(timeout=120) for each in both)
    assert first == second
    found = Path(first.strip())
    assert [path for path in fresh_cache.rglob("*") if not path.is_dir()] == [found]
    assert [path for path in found.parent.iterdir() if path.is_dir()] == [], "nothing is left behind"
    made = found.stat().st_mtime_ns
    assert build() == found
    assert found.stat().st_mtime_ns == made
    monkeypatch.setenv("CC", f"{shutil.which('cc')} -DANOTHER")
    assert build() not in (None, found), "other words for the compiler, another library"


@needs_a_compiler
@pytest.mark.parametrize("how", ["RHEA_NATIVE=0", "no compiler"])
def test_without_operators_the_tokens_are_the_same(tmp_path: Path, how: str) -> None:
    script = """
import sys
from test_plain import MIXED, tiny_parts
from rhea.generation.engine import Engine
from rhea.generation.plain import continue_prompts
from rhea.models.native.binding import library
model = tiny_parts()[0].pack()
tokens = [continue_prompts(model, [each])[0] for each in MIXED.values()]
assert Engine(model).run(list(MIXED.values())) == tokens
print(library() is not None, tokens)
"""
    variables = {"RHEA_NATIVE": "0"} if how == "RHEA_NATIVE=0" else {"CC": str(tmp_path / "nothing")}
    tests = Path(__file__).parents[2]
    path = os.pathsep.join([str(tests), str(tests / "generation"), os.environ.get("PYTHONPATH", ""), *sys.path])
    said = []
    for more in ({}, variables):
        environment = {**os.environ, "PYTHONPATH": path, **more}
        result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert not result.stderr
        said.append(result.stdout.split(" ", 1))
    assert [had for had, _ in said] == ["True", "False"]
    assert said[0][1] == said[1][1]
