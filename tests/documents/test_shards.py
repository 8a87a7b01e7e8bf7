"""Shards: what is in them comes back at random access, and what is wrong with them is said in one sentence."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from tiny_shards import noise, pictures, sample, webp

from rhea.documents.shards import MAX_RECORD_BYTES, Passes, Shards, find_shards, write_shard
from rhea.errors import InputError


def tar_of(path: Path, *files: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_samples_come_back_in_any_order(tmp_path: Path) -> None:
    shards = Shards(find_shards(pictures(tmp_path)))
    assert [shards.key(number) for number in range(len(shards))] == ["k0", "k2", "k4", "k1", "k3"]
    for number in (4, 0, 2, 2):
        n = shards.record(number)["n"]
        assert f"k{n}" == shards.key(number)
        np.testing.assert_array_equal(shards.picture(number), noise(n, 16, 24))
        np.testing.assert_array_equal(shards.visual(number), noise(n, 16, 24))


def test_films_keep_their_frames_and_rate(tmp_path: Path) -> None:
    frames = noise(0, 6, 16, 16)
    write_shard(tmp_path / "f.tar", [("film", {".webp": webp(frames, 80), ".json": b"{}"})])
    shards = Shards([tmp_path / "f.tar"])
    film = shards.film(0)
    np.testing.assert_array_equal(film.frames, frames)
    assert film.fps == 12.5
    assert not isinstance(shards.visual(0), np.ndarray)
    np.testing.assert_array_equal(shards.picture(0), frames[0])


def test_alpha_is_laid_over_white(tmp_path: Path) -> None:
    clear = np.concatenate([noise(0, 8, 8), np.zeros((8, 8, 1), np.uint8)], axis=2)
    write_shard(tmp_path / "a.tar", [sample("clear", clear)])
    assert (Shards([tmp_path / "a.tar"]).picture(0) == 255).all()


def test_the_same_samples_make_the_same_file(tmp_path: Path) -> None:
    first, again = pictures(tmp_path / "1", shards=1), pictures(tmp_path / "2", shards=1)
    assert (first / "p-0.tar").read_bytes() == (again / "p-0.tar").read_bytes()


def test_a_shard_that_fails_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    def samples():  # type: ignore[no-untyped-def]
        yield sample("one", noise(0, 8, 8))
        raise RuntimeError("the simulator crashed")

    with pytest.raises(RuntimeError):
        write_shard(tmp_path / "s.tar", samples())
    assert list(tmp_path.iterdir()) == []


def test_names_are_only_names(tmp_path: Path) -> None:
    files = [("../../etc/x.webp", webp(noise(1, 8, 8))), ("../../etc/x.JSON", b'{"a": 1}'), ("._x.webp", b"rubbish")]
    shards = Shards([tar_of(tmp_path / "s.tar", *files, ("README", b"hello"), ("../../etc/x.cls", b"7"))])
    assert len(shards) == 1
    assert shards.record(0) == {"a": 1}
    np.testing.assert_array_equal(shards.picture(0), noise(1, 8, 8))
    assert [path.name for path in tmp_path.iterdir()] == ["s.tar"]


@pytest.mark.parametrize("kept", [600, 1124, -600, -100])
def test_a_shard_that_is_cut_off_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "s.tar"
    write_shard(path, [sample("a", noise(0, 64, 64)), sample("b", noise(1, 64, 64))])
    with tarfile.open(path) as tar:
        end = tar.getmembers()[-1].offset_data + 512
    data = path.read_bytes()[:end]  # without the end mark
    path.write_bytes(data[:kept])
    with pytest.raises(InputError, match=r"s\.tar is (no uncompressed tar|damaged or cut off)"):
        Shards([path])


def test_a_lost_end_mark_and_a_spoilt_header_are_noticed(tmp_path: Path) -> None:
    path = pictures(tmp_path, shards=1) / "p-0.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        third, end = tar.getmembers()[2].offset, tar.getmembers()[-1].offset_data + 512
    path.write_bytes(whole[:end])
    with pytest.raises(InputError, match="no end mark after its 10 files"):
        Shards([path])
    path.write_bytes(whole[:third] + b"?" * 512 + whole[third + 512 :])
    with pytest.raises(InputError, match="no end mark after its 2 files"):
        Shards([path])


def test_a_negative_size_does_not_go_round_in_circles(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "s.tar", ("a.json", b"{}"), ("b.json", b"{}"))
    data = bytearray(path.read_bytes())
    header = data[1024:1536]
    header[124:136] = (2**96 - 1024).to_bytes(12)  # base 256, minus one header and its file
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[1024:1536] = header
    path.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        Shards([path])


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([("x.webp", b"1")], "sample 'x' of .* has no .json"),
        ([("x.json", b"{}")], "sample 'x' of .* has no picture or film"),
        ([("x.json", b"{}"), ("x.webp", b"1"), ("x.png", b"1")], "a .webp and a .png; one is allowed"),
        ([("x.json", b"{}"), ("x.json", b"{}")], "two '.json'"),
        ([("folder/\x1b[31m.json", b"{}")], r"'folder/\\x1b\[31m'"),
        ([], "no samples"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, files: list[tuple[str, bytes]], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Shards([tar_of(tmp_path / "s.tar", *files)])


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1]", "no object but a list"),
        (b" " * (MAX_RECORD_BYTES + 1), "bytes; at most"),
    ],
)
def test_bad_records_are_input_errors(tmp_path: Path, record: bytes, said: str) -> None:
    path = tar_of(tmp_path / "s.tar", ("x.json", record), ("x.webp", b"no picture"))
    with pytest.raises(InputError, match=said):
        Shards([path]).record(0)


def test_an_undecodable_picture_names_its_sample(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "s.tar", ("x.json", json.dumps({}).encode()), ("x.webp", webp(noise(0, 32, 32))[:200]))
    with pytest.raises(InputError, match=r"^sample 'x' of .*s\.tar: the \.webp ") as error:
        Shards([path]).picture(0)
    assert "/rhea-" not in str(error.value)  # nothing of our temporary file
    with pytest.raises(InputError, match="sample 'x'"):
        Shards([path]).film(0)


def test_a_shard_that_shrinks_is_noticed(tmp_path: Path) -> None:
    path = pictures(tmp_path, shards=1) / "p-0.tar"
    shards = Shards([path])
    os.truncate(path, 3000)
    with pytest.raises(InputError, match="shorter since it was indexed"):
        shards.picture(4)


def test_no_shards(tmp_path: Path) -> None:
    (tmp_path / ".p.x1y2.tar").write_bytes(b"still being written")
    with pytest.raises(InputError, match=r"it should hold \.tar files"):
        find_shards(tmp_path)
    for path in (tmp_path / "absent.tar", tmp_path):
        with pytest.raises(InputError, match="no such shard"):
            Shards([path])
    (tmp_path / "x.tar").write_bytes(b"not a tar" * 100)
    with pytest.raises(InputError, match="no uncompressed tar"):
        Shards([tmp_path / "x.tar"])


def test_passes_show_each_number_once_in_new_orders() -> None:
    passes = Passes(30, seed=1)
    orders = [[passes[30 * number + place] for place in range(30)] for number in range(3)]
    assert all(sorted(order) == list(range(30)) for order in orders)
    assert len(set(map(tuple, orders))) == 3
    assert passes[3] == orders[0][3]  # going back gives the same
    assert [Passes(30, seed=2)[place] for place in range(30)] != orders[0]
