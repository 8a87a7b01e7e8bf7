"""Jobs for films, kept in SQLite beside their results, so that a restart loses nothing that was finished.

A result is a file named by the job's generated id, and it is there before its job says so; a job that a dead server
left unfinished is marked as failed at the next start, by the one server that holds the folder's lock.
"""

import asyncio
import contextlib
import fcntl
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from rhea.errors import InputError
from rhea.io import atomic_file

Status = Literal["queued", "in_progress", "completed", "failed"]
Result = TypeVar("Result")

_COLUMNS = (
    "id, status, progress, created_at, completed_at, model, prompt, size, seconds, error_code, error_message, continued"
)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    ordinal INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL,
    progress INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    completed_at INTEGER,
    model TEXT NOT NULL,
    prompt TEXT NOT NULL,
    size TEXT NOT NULL,
    seconds REAL NOT NULL,
    error_code TEXT,
    error_message TEXT,
    continued TEXT
)
"""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A film that was ordered."""

    id: str
    status: Status
    progress: int
    """Percent."""
    created_at: int
    """Seconds since 1970, as below."""
    completed_at: int | None
    model: str
    prompt: str
    size: str
    """WIDTHxHEIGHT."""
    seconds: float
    error_code: str | None
    error_message: str | None
    continued: str | None
    """The id of the job whose film this one continues."""


class JobStore:
    """Jobs in a folder; every method may be called from any task of one event loop."""

    def __init__(self, folder: str | Path, *, max_finished: int = 1000) -> None:
        """Open or make the folder; beyond ``max_finished`` the oldest finished jobs make room.

        Raises InputError if the folder cannot be used, or another server uses it.
        """
        self._folder = Path(folder)
        self._max_finished = max_finished
        self._turn = threading.Lock()  # one connection, many threads
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self._folder / "lock").open("a")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._database = sqlite3.connect(
                self._folder / "jobs.sqlite", check_same_thread=False, isolation_level=None
            )
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute(_SCHEMA)
        except BlockingIOError:
            raise InputError(f"another server keeps its films in {folder}; give this one a folder of its own") from None
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"cannot keep films in {folder}: {error}") from None

    def close(self) -> None:
        """Close the database and let another server have the folder."""
        with self._turn:
            self._database.close()
            self._lock.close()

    async def create(self, *, model: str, prompt: str, size: str, seconds: float, continued: str | None = None) -> Job:
        """Add a queued job."""
        job = Job(
            id=f"video_{secrets.token_hex(16)}",
            status="queued",
            progress=0,
            created_at=int(time.time()),
            completed_at=None,
            model=model,
            prompt=prompt,
            size=size,
            seconds=seconds,
            error_code=None,
            error_message=None,
            continued=continued,
        )
        values = [getattr(job, name) for name in _COLUMNS.split(", ")]

        def insert() -> Job:
            self._execute(f"INSERT INTO jobs ({_COLUMNS}) VALUES ({', '.join('?' * len(values))})", values)
            self._make_room()
            return job

        return await self._run(insert)

    async def get(self, job_id: str) -> Job | None:
        """Return a job, or None if there is none of this id."""
        return await self._run(lambda: self._one(job_id))

    async def list(
        self, *, after: str | None = None, limit: int = 20, newest_first: bool = True
    ) -> tuple[list[Job], bool]:
        """Return at most ``limit`` jobs that come after the job ``after``, and whether there are more.

        Raises InputError if there is no job ``after``.
        """

        def select() -> tuple[list[Job], bool]:
            comparison, order = ("<", "DESC") if newest_first else (">", "ASC")
            where, values = "", [limit + 1]
            if after is not None:
                found = self._execute("SELECT ordinal FROM jobs WHERE id = ?", (after,)).fetchone()
                if found is None:
                    raise InputError("there is no video of the id given as after")
                where, values = f"WHERE ordinal {comparison} ?", [found[0], limit + 1]
            query = f"SELECT {_COLUMNS} FROM jobs {where} ORDER BY ordinal {order} LIMIT ?"
            jobs = [_job(row) for row in self._execute(query, values)]
            return jobs[:limit], len(jobs) > limit

        return await self._run(select)

    async def advance(self, job_id: str, progress: int) -> None:
        """Note that a job is being worked on, and how far it is in percent."""
        query = (
            "UPDATE jobs SET status = 'in_progress', progress = ? WHERE id = ? AND status IN ('queued', 'in_progress')"
        )
        await self._run(lambda: self._execute(query, (progress, job_id)))

    async def finish(self, job_id: str, write: Callable[[Path], None], *, size: str, seconds: float) -> bool:
        """Keep what ``write`` writes to the path it is given, then mark the job as completed.

        Returns False, and keeps nothing, if the job was deleted or failed meanwhile.
        """

        def complete() -> bool:
            path = self._path(job_id)
            with atomic_file(path) as temporary:  # may take a while: others have their turn at the database
                write(temporary)
            with self._turn:
                done = self._end(job_id, "completed", progress=100, size=size, seconds=seconds)
                if not done:
                    path.unlink(missing_ok=True)
            return done

        return await asyncio.to_thread(complete)

    async def fail(self, job_id: str, code: str, message: str) -> bool:
        """Mark an unfinished job as failed; return False if there is none of this id."""
        return await self._run(lambda: self._end(job_id, "failed", error_code=code, error_message=message))

    async def delete(self, job_id: str) -> bool:
        """Forget a job and its result; return False if there is none of this id."""

        def remove() -> bool:
            if self._one(job_id) is None:
                return False
            self._forget(job_id)
            return True

        return await self._run(remove)

    async def result(self, job_id: str) -> Path | None:
        """Return the file of a completed job, or None."""

        def find() -> Path | None:
            job = self._one(job_id)  # ids come from outside: only one that is stored becomes a path
            return self._path(job.id) if job is not None and job.status == "completed" else None

        return await self._run(find)

    async def recover(self) -> int:
        """After a restart, mark what was left unfinished as failed and remove files without a job; return how many."""

        def mend() -> int:
            unfinished = "SELECT id FROM jobs WHERE status IN ('queued', 'in_progress')"
            lost = [row[0] for row in self._execute(unfinished).fetchall()]
            for job_id in lost:
                self._end(
                    job_id,
                    "failed",
                    error_code="server_restarted",
                    error_message="the server was restarted before this film was finished: order it again",
                )
            completed = "SELECT id FROM jobs WHERE status = 'completed'"
            kept = {self._path(row[0]) for row in self._execute(completed)}
            for file in self._folder.glob("*.mp4"):
                if file not in kept:
                    file.unlink()
            return len(lost)

        return await self._run(mend)

    async def _run(self, work: Callable[[], Result]) -> Result:
        def alone() -> Result:
            with self._turn:
                return work()

        # Even a task that is cancelled leaves no half-done work: the thread goes on, and the next waits for its turn.
        return await asyncio.to_thread(alone)

    def _execute(self, query: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        # A lone surrogate, which JSON can hold, has no UTF-8.
        sound = [each.encode("utf-8", "replace").decode() if isinstance(each, str) else each for each in values]
        return self._database.execute(query, sound)

    def _one(self, job_id: str) -> Job | None:
        row = self._execute(f"SELECT {_COLUMNS} FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return None if row is None else _job(row)

    def _end(self, job_id: str, status: Status, **values: Any) -> bool:
        changes = {"status": status, "completed_at": int(time.time()), **values}
        settings = ", ".join(f"{name} = ?" for name in changes)
        query = f"UPDATE jobs SET {settings} WHERE id = ? AND status IN ('queued', 'in_progress')"
        return self._execute(query, (*changes.values(), job_id)).rowcount == 1

    def _make_room(self) -> None:
        old = "SELECT id FROM jobs WHERE status IN ('completed', 'failed') ORDER BY ordinal DESC LIMIT -1 OFFSET ?"
        for (job_id,) in self._execute(old, (self._max_finished,)).fetchall():
            self._forget(job_id)

    def _forget(self, job_id: str) -> None:
        self._execute("DELETE FROM jobs WHERE id = ?", (job_id,))
        with contextlib.suppress(FileNotFoundError):
            self._path(job_id).unlink()

    def _path(self, job_id: str) -> Path:
        return self._folder / f"{job_id}.mp4"


def _job(row: tuple[Any, ...]) -> Job:
    return Job(**dict(zip(_COLUMNS.split(", "), row, strict=True)))
