"""Files and folders appear whole or not at all, whatever is raised half-way."""

import json
import os
import stat
from pathlib import Path

import pytest

from rhea.errors import InputError
from rhea.io import atomic_file, atomic_folder, read_json, write_json


class Stopped(BaseException):
    """Stands for a Ctrl-C or anything else that is not an Exception."""


def interrupted(written: Path, error: type[BaseException]) -> None:
    """Write half of something, then fail."""
    written.write_text("half")
    raise error


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_appears_under_its_name_with_normal_permissions(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "deep" / "er" / "a.txt") as temporary:
        assert temporary.suffix == ".txt"
        assert not (tmp_path / "deep" / "er" / "a.txt").exists()
        temporary.write_text("whole")
    assert (tmp_path / "deep" / "er" / "a.txt").read_text() == "whole"
    assert names(tmp_path / "deep" / "er") == ["a.txt"]
    plain = tmp_path / "plain.txt"
    plain.touch()
    assert stat.S_IMODE((tmp_path / "deep" / "er" / "a.txt").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("error", [RuntimeError, Stopped, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(error), atomic_file(tmp_path / "a.txt") as temporary:
        interrupted(temporary, error)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_file_cannot_take_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="a folder of that name"), atomic_file(tmp_path / "a"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"), atomic_file(tmp_path / "file" / "b.txt"):
        pass
    assert names(tmp_path) == ["a", "file"]


def test_a_folder_replaces_the_old_one_in_full(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with atomic_folder(tmp_path / "a") as temporary:
            (temporary / f"{content}.txt").write_text(content)
            (temporary / "sub").mkdir()
            (temporary / "sub" / "b.txt").write_text(content)
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["new.txt", "sub"]
    assert (tmp_path / "a" / "sub" / "b.txt").read_text() == "new"
    plain = tmp_path / "plain"
    plain.mkdir()
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("error", [RuntimeError, Stopped])
def test_an_error_leaves_the_old_folder(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old.txt").touch()
    with pytest.raises(error), atomic_folder(tmp_path / "a") as temporary:
        interrupted(temporary / "new.txt", error)
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["old.txt"]


def test_a_failed_rename_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old.txt").touch()
    rename, calls = Path.rename, []

    def failing_second(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise OSError("no space")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing_second)
    with pytest.raises(OSError, match="no space"), atomic_folder(tmp_path / "a") as temporary:
        (temporary / "new.txt").touch()
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["old.txt"]


def test_a_folder_does_not_replace_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("precious")
    with pytest.raises(InputError, match="a file of that name"), atomic_folder(tmp_path / "a"):
        pass
    assert (tmp_path / "a").read_text() == "precious"


def test_a_relative_folder_path_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with atomic_folder("../there") as temporary:
        (temporary / "a").touch()
    assert names(tmp_path) == ["here", "there"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_place_is_the_users_to_correct(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(InputError, match="cannot write"), atomic_file(tmp_path / "locked" / "a"):
        pass


def test_json_round_trip_in_utf8(tmp_path: Path) -> None:
    value = {"name": "瑞亚 \U0001f600", "list": [1, 2.5, None, True]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert "瑞亚" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_a_value_json_cannot_hold_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert names(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"[" * 100_000, json.dumps({})[:1].encode()])
def test_malformed_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_unreadable_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path / "a.json")
    with pytest.raises(InputError, match="cannot read"):
        read_json(tmp_path)
