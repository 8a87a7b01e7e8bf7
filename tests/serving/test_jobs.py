"""Jobs and their results through deaths, deletions and crowds; every store here is a real file."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from rhea.errors import InputError
from rhea.serving.jobs import Job, JobStore

Result = TypeVar("Result")


def within(folder: Path, work: Callable[[JobStore], Awaitable[Result]], **options: Any) -> Result:
    """Do ``work`` with the store of a folder, as one server's life."""
    store = JobStore(folder, **options)

    async def life() -> Result:
        return await work(store)

    try:
        return asyncio.run(life())
    finally:
        store.close()


async def ordered(store: JobStore, prompt: str = "a red circle") -> Job:
    return await store.create(model="m", prompt=prompt, size="64x64", seconds=1.5)


def written(path: Path) -> None:
    path.write_bytes(b"film")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"lock", "jobs.sqlite", "jobs.sqlite-wal", "jobs.sqlite-shm"}


def test_a_job_is_kept_from_order_to_result(tmp_path: Path) -> None:
    async def work(store: JobStore) -> None:
        job = await store.create(model="m", prompt="p", size="64x64", seconds=1.5, continued="video_1")
        assert (job.status, job.progress, job.completed_at, job.continued) == ("queued", 0, None, "video_1")
        assert await store.get(job.id) == job
        assert await store.result(job.id) is None
        await store.advance(job.id, 40)
        half = await store.get(job.id)
        assert half is not None
        assert (half.status, half.progress) == ("in_progress", 40)
        assert await store.result(job.id) is None
        assert await store.finish(job.id, written, size="32x64", seconds=2.0)
        done = await store.get(job.id)
        assert done is not None
        assert (done.status, done.progress, done.size, done.seconds) == ("completed", 100, "32x64", 2.0)
        assert done.completed_at is not None
        assert done.completed_at >= done.created_at
        path = await store.result(job.id)
        assert path is not None
        assert path.read_bytes() == b"film"

    within(tmp_path, work)


def test_a_restart_keeps_what_is_finished_and_fails_the_rest(tmp_path: Path) -> None:
    async def first(store: JobStore) -> tuple[str, str, str, str]:
        done, failed, running, queued = [await ordered(store) for _ in range(4)]
        await store.finish(done.id, written, size="64x64", seconds=1)
        await store.fail(failed.id, "engine_down", "try again")
        await store.advance(running.id, 50)
        return done.id, failed.id, running.id, queued.id

    ids = within(tmp_path, first)
    (tmp_path / f".{ids[2]}.half.mp4").write_bytes(b"half of a film")
    (tmp_path / f"{ids[3]}.mp4").write_bytes(b"written, but not marked before the end")

    async def second(store: JobStore) -> tuple[int, list[Job | None], Path | None]:
        return await store.recover(), [await store.get(each) for each in ids], await store.result(ids[0])

    lost, jobs, path = within(tmp_path, second)
    assert lost == 2
    assert [(job.status, job.error_code) for job in jobs if job] == [
        ("completed", None),
        ("failed", "engine_down"),
        ("failed", "server_restarted"),
        ("failed", "server_restarted"),
    ]
    assert names(tmp_path) == {f"{ids[0]}.mp4"}
    assert path is not None
    assert path.read_bytes() == b"film"
    assert within(tmp_path, second)[0] == 0


def test_lists_are_pages_newest_first(tmp_path: Path) -> None:
    async def work(store: JobStore) -> None:
        ids = [(await ordered(store, str(index))).id for index in range(5)]
        page, more = await store.list(limit=2)
        assert ([job.id for job in page], more) == ([ids[4], ids[3]], True)
        page, more = await store.list(limit=2, after=ids[3])
        assert ([job.id for job in page], more) == ([ids[2], ids[1]], True)
        page, more = await store.list(limit=2, after=ids[1])
        assert ([job.id for job in page], more) == ([ids[0]], False)
        page, more = await store.list(limit=3, after=ids[1], newest_first=False)
        assert ([job.id for job in page], more) == ([ids[2], ids[3], ids[4]], False)
        with pytest.raises(InputError, match="after"):
            await store.list(after="video_0")

    within(tmp_path, work)


def test_what_ended_stays_as_it_is(tmp_path: Path) -> None:
    async def work(store: JobStore) -> None:
        done, failed = await ordered(store), await ordered(store)
        await store.finish(done.id, written, size="64x64", seconds=1)
        assert not await store.fail(done.id, "late", "late")
        await store.advance(done.id, 3)
        assert (await store.get(done.id)).progress == 100  # type: ignore[union-attr]
        assert await store.fail(failed.id, "engine_down", "try again")
        assert not await store.finish(failed.id, written, size="64x64", seconds=1)
        assert (await store.get(failed.id)).status == "failed"  # type: ignore[union-attr]
        assert names(tmp_path) == {f"{done.id}.mp4"}

    within(tmp_path, work)


def test_a_deleted_job_is_gone_with_its_film(tmp_path: Path) -> None:
    async def work(store: JobStore) -> None:
        done, running = await ordered(store), await ordered(store)
        await store.finish(done.id, written, size="64x64", seconds=1)
        for job in (done, running):
            assert await store.delete(job.id)
            assert await store.get(job.id) is None
            assert not await store.delete(job.id)
        assert not await store.finish(running.id, written, size="64x64", seconds=1)
        assert names(tmp_path) == set()

    within(tmp_path, work)


def test_a_film_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    def broken(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    async def work(store: JobStore) -> None:
        job = await ordered(store)
        with pytest.raises(OSError, match="disk full"):
            await store.finish(job.id, broken, size="64x64", seconds=1)
        assert names(tmp_path) == set()
        assert (await store.get(job.id)).status == "queued"  # type: ignore[union-attr]

    within(tmp_path, work)


@pytest.mark.parametrize(
    "wanted", ["../secret", "/etc/passwd", "..\\secret", "secret", "%", "' OR 1=1 --", "", "\0", "\ud800"]
)
def test_an_id_is_no_path_and_no_query(tmp_path: Path, wanted: str) -> None:
    (tmp_path / "secret.mp4").write_bytes(b"secret")

    async def work(store: JobStore) -> None:
        await ordered(store)
        assert await store.get(wanted) is None
        assert await store.result(wanted) is None
        assert not await store.delete(wanted)
        assert not await store.fail(wanted, "x", "x")

    within(tmp_path / "jobs", work)
    assert (tmp_path / "secret.mp4").exists()


def test_ids_are_new_and_tell_nothing(tmp_path: Path) -> None:
    async def work(store: JobStore) -> list[str]:
        return [(await ordered(store, "../../etc/passwd")).id for _ in range(20)]

    ids = within(tmp_path, work)
    assert len(set(ids)) == 20
    assert all(each.removeprefix("video_").isalnum() and len(each) == 38 for each in ids)


def test_many_at_once(tmp_path: Path) -> None:
    async def one(store: JobStore, index: int) -> None:
        job = await ordered(store, str(index))
        await asyncio.gather(*(store.advance(job.id, percent) for percent in range(5)))
        if index % 3 == 0:
            await store.finish(job.id, written, size="64x64", seconds=index)
        elif index % 3 == 1:
            await store.delete(job.id)

    async def work(store: JobStore) -> list[Job]:
        await asyncio.gather(*(one(store, index) for index in range(30)))
        return (await store.list(limit=100))[0]

    jobs = within(tmp_path, work)
    assert sorted(int(job.prompt) for job in jobs) == [index for index in range(30) if index % 3 != 1]
    assert {(job.status, int(job.prompt) % 3) for job in jobs} == {("completed", 0), ("in_progress", 2)}
    assert len(names(tmp_path)) == 10


def test_the_oldest_finished_jobs_make_room(tmp_path: Path) -> None:
    async def work(store: JobStore) -> None:
        running = await ordered(store, "running")
        for index in range(4):
            job = await ordered(store, str(index))
            await store.finish(job.id, written, size="64x64", seconds=1)
        await ordered(store, "new")
        assert [job.prompt for job in (await store.list())[0]] == ["new", "3", "2", "running"]
        assert len(names(tmp_path)) == 2
        assert await store.get(running.id) is not None

    within(tmp_path, work, max_finished=2)


def test_a_folder_has_one_server(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    with pytest.raises(InputError, match="another server"):
        JobStore(tmp_path)
    store.close()
    JobStore(tmp_path).close()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        JobStore(tmp_path / "file")
    (tmp_path / "jobs.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(InputError, match="cannot keep films"):
        JobStore(tmp_path)


def test_the_database_survives_a_writer_that_dies(tmp_path: Path) -> None:
    """What is committed is in the file that another connection opens while the first has not closed."""

    async def work(store: JobStore) -> str:
        return (await ordered(store)).id

    store = JobStore(tmp_path)
    job_id = asyncio.run(work(store))
    other = sqlite3.connect(tmp_path / "jobs.sqlite")
    assert other.execute("SELECT id FROM jobs").fetchall() == [(job_id,)]
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()
    store.close()
