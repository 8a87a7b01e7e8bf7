"""Files written whole or not at all: to a temporary name in the same folder, flushed to disk, then renamed."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rhea.errors import InputError


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it becomes ``path``, on any error nothing is left behind."""
    target = Path(path)
    if target.is_dir():
        raise InputError(f"cannot write {target}: a folder of that name exists")
    with _writable(target):
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem[:100]}.", suffix=target.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
        _flush_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder; on success it replaces ``path``, on any error nothing changes."""
    target = Path(os.path.abspath(path))  # "." and ".." have no name of their own to rename
    if target.exists() and not target.is_dir():
        raise InputError(f"cannot write the folder {target}: a file of that name exists")
    with _writable(target):
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name[:100]}."))
    try:
        yield temporary
        for written in temporary.rglob("*"):
            if written.is_file():
                written.chmod(0o666 & ~_umask())  # some writers leave their files to the owner alone
                with written.open("rb") as handle:
                    os.fsync(handle.fileno())
        temporary.chmod(0o777 & ~_umask())
        if target.exists():
            _replace_folder(target, temporary)
        else:
            temporary.rename(target)
        _flush_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_folder(target: Path, temporary: Path) -> None:
    retired = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name[:100]}.old."))
    target.rename(retired / target.name)
    try:
        temporary.rename(target)
    except BaseException:
        (retired / target.name).rename(target)
        retired.rmdir()
        raise
    shutil.rmtree(retired, ignore_errors=True)


@contextlib.contextmanager
def _writable(target: Path) -> Iterator[None]:
    """Make the parent folder; a path that cannot be written to is the user's to correct."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from None


def _flush_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented UTF-8 JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; raise InputError naming the file if it is missing or malformed."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no such file: {path}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None


def claim(made: Path, manifest: Path, told: dict[str, Any]) -> None:
    """Write into ``manifest`` whose ``made`` is; raise InputError if that is known and differs from ``told``.

    So what an interrupted run made is gone on with by the same run only.
    """
    told = json.loads(json.dumps(told))
    if not manifest.exists():
        write_json(manifest, told)
        return
    known = read_json(manifest)
    different = [name for name, value in told.items() if not isinstance(known, dict) or known.get(name) != value]
    if different:
        raise InputError(
            f"{made} is of another run (other {', '.join(different)}): delete it and {manifest}, or name another"
        )
