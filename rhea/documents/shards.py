"""Samples in WebDataset shards, read at random: a tar file holds KEY.webp (.png, .jpg, .mp4, ...) beside KEY.json.

The ``webdataset`` package streams shards front to back through a shuffle buffer, so no document could be made again
alone; here the headers of each tar are walked once, and a sample is then one read at a known offset. Nothing is
extracted. Shards are untrusted: names are never used as paths, sizes are held against caps before anything is read, and
pixels are decoded by ``rhea.media``. What else a sample holds (.txt, .cls, ...) is left alone.
"""

import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from rhea.errors import InputError
from rhea.io import atomic_file, read_json, write_json
from rhea.media import FILM_SUFFIXES, PICTURE_SUFFIXES, Film, is_film, read_film, read_picture

VISUAL_SUFFIXES = frozenset((*PICTURE_SUFFIXES, *FILM_SUFFIXES, ".webm", ".mkv", ".mov", ".avif", ".bmp", ".tiff"))
MAX_RECORD_BYTES = 2**20
MAX_VISUAL_BYTES = 2**28
MAX_PICTURE_PIXELS = 2**24
MAX_FILM_PIXELS = 2**28
"""Frames x height x width."""

_BLOCK = 512
"""Tar files are written in blocks of so many bytes; one of zeros ends them."""


@dataclass(frozen=True)
class _Member:
    suffix: str
    offset: int
    size: int


@dataclass(kw_only=True)
class _Sample:
    shard: Path
    key: str
    visual: _Member | None = None
    record: _Member | None = None
    suffixes: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """Name it in messages: keys come from strangers, so they are written in ASCII."""
        return f"sample {self.key!a} of {self.shard}"


def find_shards(where: str | Path) -> list[Path]:
    """Return the .tar files of a folder in the order of their names, or the one file that is given."""
    path = Path(where)
    found = sorted(path.glob("[!.]*.tar")) if path.is_dir() else [path]  # hidden ones are still being written
    if not found:
        raise InputError(f"no shards in {path}: it should hold .tar files")
    return found


class Passes:
    """Endless passes over the numbers below ``size``, each once per pass, every pass in another order."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, dtype=np.int64))

    def __getitem__(self, index: int) -> int:
        """Return number ``index`` of all passes, a pure function of it, the size and the seed."""
        number, place = divmod(index, self.size)
        if self._order[0] != number:
            self._order = (number, np.random.default_rng([self.seed, number]).permutation(self.size))
        return int(self._order[1][place])


class Shards:
    """A sequence of samples over one or more shards, in the order of the files; safe to share between processes."""

    def __init__(self, paths: Iterable[str | Path]) -> None:
        """Index the shards; raise InputError for one that is cut off or a sample without a visual or a .json."""
        self.paths = tuple(Path(path) for path in paths)
        self._samples = [sample for path in self.paths for sample in _index(path)]
        if not self._samples:
            raise InputError(f"no samples in {', '.join(map(str, self.paths)) or 'an empty list of shards'}")

    def __len__(self) -> int:
        return len(self._samples)

    def key(self, number: int) -> str:
        """Return the name of a sample, unique in its shard; never use it as a path."""
        return self._samples[number].key

    def name(self, number: int) -> str:
        """Return how to call a sample in messages."""
        return self._samples[number].name

    def record(self, number: int) -> dict[str, Any]:
        """Read the .json of a sample; raise InputError if it is no JSON object."""
        sample = self._samples[number]
        assert sample.record is not None
        try:
            record = json.loads(_read(sample, sample.record, MAX_RECORD_BYTES))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"the .json of {sample.name} is not valid JSON: {error}") from None
        if not isinstance(record, dict):
            raise InputError(f"the .json of {sample.name} holds no object but a {type(record).__name__}")
        return record

    def picture(self, number: int) -> np.ndarray:
        """Decode a sample's picture (a film's first frame), uint8 [H, W, 3], alpha laid over white."""
        visual = self._decode(number, films=False)
        assert isinstance(visual, np.ndarray)
        return visual

    def film(self, number: int) -> Film:
        """Decode a sample's film: a video file or an animated picture."""
        visual = self._decode(number, films=True)
        assert isinstance(visual, Film)
        return visual

    def visual(self, number: int) -> np.ndarray | Film:
        """Decode whatever a sample shows."""
        return self._decode(number, films=None)

    def _decode(self, number: int, films: bool | None) -> np.ndarray | Film:
        """Decode through a temporary file of our own naming, which is what decoders of films want."""
        sample = self._samples[number]
        assert sample.visual is not None
        with tempfile.NamedTemporaryFile(prefix="rhea-", suffix=sample.visual.suffix) as file:
            file.write(_read(sample, sample.visual, MAX_VISUAL_BYTES))
            file.flush()
            try:
                if is_film(file.name) if films is None else films:
                    return read_film(file.name, max_pixels=MAX_FILM_PIXELS)
                return read_picture(file.name, max_pixels=MAX_PICTURE_PIXELS)
            except InputError as error:
                said = str(error).replace(file.name, f"the {sample.visual.suffix}")
                raise InputError(f"{sample.name}: {said}") from None


def record_shards(
    folder: str | Path,
    name: str,
    settings: Mapping[str, Any],
    total: int,
    per_shard: int,
    samples: Callable[[range], Iterable[tuple[str, Mapping[str, bytes]]]],
    progress: Callable[[int], None] | None = None,
) -> list[Path]:
    """Write ``total`` samples, so many in a shard, and return the paths; shards that are there are kept.

    ``settings`` stand beside them in recording.json. ``samples`` makes those of a range of numbers. ``progress`` is
    told how many numbers are done. InputError for a folder with samples of other settings.
    """
    folder = Path(folder)
    kept = folder / "recording.json"
    if kept.is_file() and read_json(kept) != settings:
        raise InputError(f"{folder} holds a recording of other settings (see {kept}): choose another folder")
    if not kept.is_file() and any(folder.glob("[!.]*.tar")):
        raise InputError(f"{folder} holds shards of another origin: choose an empty folder")
    write_json(kept, settings)
    paths = []
    for shard, first in enumerate(range(0, total, per_shard)):
        path = folder / f"{name}-{shard:05d}.tar"
        mine = range(first, min(first + per_shard, total))
        if not path.is_file():
            write_shard(path, samples(mine))
        if progress is not None:
            progress(mine.stop)
        paths.append(path)
    return paths


def write_shard(path: str | Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
    """Write samples (key, {".webp": bytes, ".json": bytes}) as one shard, which appears only when it is complete.

    The same samples give the same bytes.
    """
    with atomic_file(path) as temporary, tarfile.open(temporary, "w:", format=tarfile.PAX_FORMAT) as tar:
        for key, files in samples:
            assert not set(key) & set("./"), f"{key!r} is no key: a dot ends it, a slash is a folder"
            for suffix, data in files.items():
                member = tarfile.TarInfo(key + suffix)
                member.size, member.mode = len(data), 0o644
                tar.addfile(member, io.BytesIO(data))


def _index(path: Path) -> list[_Sample]:
    samples: dict[str, _Sample] = {}
    for member in _members(path):
        pure = PurePosixPath(member.name)
        stem, dot, suffix = pure.name.partition(".")
        if not stem or not dot:  # hidden files, such as macOS adds, and files without a suffix
            continue
        key = str(pure.with_name(stem))
        sample = samples.setdefault(key, _Sample(shard=path, key=key))
        _add(sample, _Member("." + suffix.lower(), member.offset_data, member.size))
    for sample in samples.values():
        if sample.record is None:
            raise InputError(f"{sample.name} has no .json")
        if sample.visual is None:
            raise InputError(f"{sample.name} has no picture or film: {_listed(VISUAL_SUFFIXES)}")
    return list(samples.values())


def _add(sample: _Sample, member: _Member) -> None:
    if member.suffix in sample.suffixes:
        raise InputError(f"{sample.name} has two {member.suffix!a}")
    sample.suffixes.add(member.suffix)
    if member.suffix == ".json":
        sample.record = member
    elif member.suffix in VISUAL_SUFFIXES:
        if sample.visual is not None:
            raise InputError(f"{sample.name} has a {sample.visual.suffix} and a {member.suffix}; one is allowed")
        sample.visual = member


def _members(path: Path) -> list[tarfile.TarInfo]:
    """Walk the headers; raise InputError unless every member's bytes and the end mark are there."""
    if not path.is_file():
        raise InputError(f"no such shard: {path}")
    members, position = [], -1
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                if tar.offset <= position:
                    raise tarfile.HeaderError("a negative size")  # Python would go round in circles
                position = tar.offset
                members.append(member)
            end = tar.offset
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{path} is no uncompressed tar, or it is damaged or cut off: {error}") from None
    with path.open("rb") as file:
        file.seek(end)
        if file.read(_BLOCK) != bytes(_BLOCK):  # Python takes a header that it cannot read for the end
            raise InputError(f"{path} is damaged or cut off: no end mark after its {len(members)} files")
    return [member for member in members if member.isreg() and not member.issparse()]


def _read(sample: _Sample, member: _Member, cap: int) -> bytes:
    if member.size > cap:
        raise InputError(f"the {member.suffix} of {sample.name} has {member.size} bytes; at most {cap} are allowed")
    with sample.shard.open("rb") as file:
        file.seek(member.offset)
        data = file.read(member.size)
    if len(data) < member.size:
        raise InputError(f"{sample.shard} has become shorter since it was indexed")
    return data


def _listed(suffixes: Iterable[str]) -> str:
    return " ".join(sorted(suffixes))
