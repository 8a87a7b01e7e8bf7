"""Films over HTTP: the official client against a real server, whose backend does what a test says."""

import asyncio
import contextlib
import io
import json
import threading
import urllib.request
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import av
import numpy as np
import openai
import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image
from served import INFO, PATIENCE, FakeBackend, until

from rhea.errors import BusyError, InputError
from rhea.generation.loading import load_model
from rhea.media import write_film
from rhea.serving import errors, videos
from rhea.serving.app import create_app
from rhea.serving.backend import BackendDiedError, Done, Draw, Event, Extend, Partial, Task
from rhea.serving.jobs import JobStore
from rhea.serving.local import LocalBackend
from rhea.serving.metrics import Metrics
from rhea.serving.untrusted import MediaGuard
from rhea.serving.videos import videos_router

FRAMES = np.random.default_rng(0).integers(0, 255, (6, 16, 32, 3), dtype=np.uint8)
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API")


@dataclass
class Cinema:
    """A server at work."""

    url: str
    client: openai.OpenAI

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
        """Send what no client would; return status and JSON."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, body, named, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            return error.code, json.load(error)

    def order(self, **body: Any) -> tuple[int, Any]:
        return self.ask("POST", "/videos", json.dumps(body).encode(), Content_Type="application/json")

    def counted(self, name: str) -> float:
        """Return what /metrics tells of a name with labels; 0 if nothing."""
        with urllib.request.urlopen(self.url.removesuffix("v1") + "metrics", timeout=PATIENCE) as answer:
            told = dict(line.decode().rsplit(" ", 1) for line in answer if not line.startswith(b"#"))
        return float(told.get(name, 0))

    def refuses(self, status: int, code: str, param: str | None, **body: Any) -> None:
        given, answer = self.order(**body)
        found = answer["error"]
        assert (given, found["code"], found["param"]) == (status, code, param), found
        assert found["type"] == "not_found_error" if status == 404 else "invalid_request_error"

    def ended(self, job_id: str) -> Any:
        done = until(lambda: self._unless_open(job_id), "the end of a job")
        return done

    def _unless_open(self, job_id: str) -> Any:
        _, job = self.ask("GET", f"/videos/{job_id}")
        return job if job["status"] in ("completed", "failed") else None


@pytest.fixture(scope="module")
def guard() -> MediaGuard:
    return MediaGuard()


@contextlib.asynccontextmanager
async def listening(app: FastAPI) -> AsyncGenerator[int, None]:
    """Serve an app while the block runs; yield its port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1))
    task = asyncio.create_task(server.serve())
    while not server.started:
        assert not task.done()
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await task


@contextlib.contextmanager
def showing(backend: Any, folder: Path, guard: MediaGuard | None = None, **options: Any) -> Iterator[Cinema]:
    """Serve films until the block ends; what is not finished then is given up."""
    started, ended, found = threading.Event(), threading.Event(), list[int]()

    async def serve() -> None:
        async with contextlib.AsyncExitStack() as stack:
            if hasattr(backend, "__aenter__"):
                await stack.enter_async_context(backend)
            app, jobs = create_app(backend), JobStore(folder)
            metrics = app.state.service.metrics
            router = videos_router(backend, guard or MediaGuard(), jobs, metrics=metrics, **options)
            app.include_router(router)
            await router.start()
            port = await stack.enter_async_context(listening(app))
            found.append(port)
            started.set()
            await asyncio.to_thread(ended.wait)
            await router.stop()
            jobs.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(PATIENCE)
    url = f"http://127.0.0.1:{found[0]}/v1"
    try:
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=PATIENCE) as client:
            yield Cinema(url, client)
    finally:
        ended.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()


class Stage(FakeBackend):
    """A backend whose films wait in the middle until they are let go."""

    def __init__(self) -> None:
        super().__init__(self.film)
        self.go = threading.Event()

    async def film(self, task: Task) -> AsyncGenerator[Event, None]:
        yield Partial(pixels=FRAMES[:4], rows_done=1, rows=4)
        while not self.go.is_set():
            await asyncio.sleep(0.01)
        yield Partial(pixels=FRAMES, rows_done=4, rows=4)
        yield Done(pixels=FRAMES, fps=4.0)


def stage(*, go: bool = True) -> Stage:
    made = Stage()
    if go:
        made.go.set()
    return made


def mp4(folder: Path, frames: np.ndarray = FRAMES, fps: float = 6) -> bytes:
    write_film(folder / "upload.mp4", frames, fps)
    return (folder / "upload.mp4").read_bytes()


def frames_of(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


# --- the official client ----------------------------------------------------------------------------------------------


def test_a_film_is_ordered_polled_fetched_and_deleted(tmp_path: Path) -> None:
    backend = stage(go=False)
    with showing(backend, tmp_path) as cinema:
        films = cinema.client.videos
        job = films.create(prompt="a red circle moves", size="32x16", seconds="2", extra_body={"seed": 7, "fps": 3})
        assert (job.object, job.status, job.model, job.size, job.seconds) == ("video", "queued", "fake", "32x16", "2")
        assert job.prompt == "a red circle moves"
        half = until(lambda: (seen := films.retrieve(job.id)).progress and seen, "a first part")
        assert (half.status, half.progress) == ("in_progress", 25)
        with pytest.raises(openai.ConflictError, match="in progress"):
            films.download_content(job.id)
        backend.go.set()
        done = films.poll(job.id, poll_interval_ms=10)
        assert (done.status, done.progress, done.size, done.seconds) == ("completed", 100, "32x16", "1.5")
        assert done.error is None
        content = films.download_content(job.id)
        assert content.response.headers["content-type"] == "video/mp4"
        seen = frames_of(content.read())
        assert seen.shape == FRAMES.shape
        assert np.abs(seen.astype(int) - FRAMES).mean() < 60  # H.264 of noise
        assert films.delete(job.id).deleted
        for ask in (films.retrieve, films.delete, films.download_content):
            with pytest.raises(openai.NotFoundError):
                ask(job.id)
    (task,) = backend.tasks
    assert isinstance(task, Draw)
    assert (task.prompt, task.size, task.num_frames, task.fps) == ("a red circle moves", "32x16", 6, 3.0)
    assert task.sampling.seed == 7
    assert not list(tmp_path.glob("*.mp4"))


def test_an_order_of_a_prompt_alone_gets_the_models_own_size(tmp_path: Path) -> None:
    backend = stage()
    with showing(backend, tmp_path) as cinema:
        job = cinema.client.videos.create_and_poll(prompt="x", poll_interval_ms=10)
    assert job.status == "completed"
    (task,) = backend.tasks
    assert isinstance(task, Draw)
    assert (task.size, task.num_frames, task.fps) == (None, INFO.num_frames, INFO.fps)


def test_lists_are_pages(tmp_path: Path) -> None:
    with showing(stage(), tmp_path) as cinema:
        ids = [cinema.client.videos.create(prompt=str(index)).id for index in range(5)]
        assert [job.id for job in cinema.client.videos.list(limit=2)] == ids[::-1]
        assert [job.id for job in cinema.client.videos.list(limit=2, order="asc")] == ids
        status, page = cinema.ask("GET", f"/videos?limit=2&after={ids[2]}")
        assert (status, page["has_more"], page["last_id"]) == (200, False, ids[0])


def test_uploaded_films_are_continued(tmp_path: Path, guard: MediaGuard) -> None:
    backend, film = stage(), mp4(tmp_path)
    with showing(backend, tmp_path / "jobs", guard) as cinema:
        films = cinema.client.videos
        first = films.create(prompt="on", input_reference=("../../a.mp4", film), extra_body={"num_frames": 3})
        assert (first.size, first.seconds) == ("32x16", "1.5")
        second = films.extend(prompt="", seconds="4", video=("a.txt", film))
        assert films.poll(first.id, poll_interval_ms=10).status == "completed"
        assert films.poll(second.id, poll_interval_ms=10).status == "completed"
        form = f'--x\r\nContent-Disposition: form-data; name="video[id]"\r\n\r\n{first.id}\r\n--x--\r\n'.encode()
        order = json.dumps({"prompt": "and on", "seconds": 4, "video": {"id": first.id}}).encode()
        for kind, body in (("application/json", order), ("multipart/form-data; boundary=x", form)):
            status, third = cinema.ask("POST", "/videos/extensions", body, Content_Type=kind)
            assert (status, third["remixed_from_video_id"]) == (200, first.id)
            assert films.poll(third["id"], poll_interval_ms=10).status == "completed"
        made_here = frames_of(films.download_content(first.id).read())
    uploaded = frames_of(film)
    wanted = [
        (uploaded, 6.0, 3, "on"),
        (uploaded, 6.0, 24, ""),
        (made_here, 4.0, 16, "and on"),
        (made_here, 4.0, None, ""),
    ]
    tasks = sorted(backend.tasks, key=lambda task: [3, 24, 16, None].index(task.num_frames))  # type: ignore[union-attr]
    for task, (frames, fps, length, caption) in zip(tasks, wanted, strict=True):
        assert isinstance(task, Extend)
        assert np.array_equal(task.film.frames, frames)
        assert (task.film.fps, task.num_frames, task.caption) == (fps, length, caption)


def test_the_default_model_makes_and_continues_a_film(tmp_path: Path, guard: MediaGuard) -> None:
    with showing(LocalBackend(load_model(device="cpu")), tmp_path, guard) as cinema:
        films = cinema.client.videos
        job = films.create_and_poll(
            prompt="a red circle moves right", poll_interval_ms=50, extra_body={"num_frames": 8}
        )
        assert job.status == "completed", job.error
        film = films.download_content(job.id).read()
        assert len(frames_of(film)) == 8
        order = films.extend(prompt="", video=("a.mp4", film), seconds="1", extra_body={"seed": 1})
        longer = films.poll(order.id, poll_interval_ms=50)
        assert longer.status == "completed", longer.error
        assert len(frames_of(films.download_content(longer.id).read())) > 8


# --- jobs at work -----------------------------------------------------------------------------------------------------


def test_a_deleted_job_stops_and_gives_its_place_back(tmp_path: Path) -> None:
    backend = stage(go=False)
    with showing(backend, tmp_path, running=1, waiting=1) as cinema:
        films = cinema.client.videos
        running, waiting = films.create(prompt="1"), films.create(prompt="2")
        until(lambda: films.retrieve(running.id).status == "in_progress", "the first job")
        with pytest.raises(openai.RateLimitError) as caught:
            films.create(prompt="3")
        assert caught.value.code == "queue_full"
        assert int(caught.value.response.headers["Retry-After"]) > 0
        assert films.retrieve(waiting.id).status == "queued"
        assert films.delete(running.id).deleted
        assert backend.left == 1
        third = films.create(prompt="3")
        until(lambda: films.retrieve(waiting.id).status == "in_progress", "the second job")
        assert films.retrieve(third.id).status == "queued"
        assert films.delete(third.id).deleted
        backend.go.set()
        assert films.poll(waiting.id, poll_interval_ms=10).status == "completed"
        assert [job.id for job in films.list()] == [waiting.id]
    assert len(backend.tasks) == 2


def test_a_refused_order_holds_no_place(tmp_path: Path, guard: MediaGuard) -> None:
    with showing(stage(), tmp_path, guard, running=1, waiting=0) as cinema:
        for _ in range(3):
            with pytest.raises(openai.BadRequestError):
                cinema.client.videos.create(prompt="x", input_reference=("a.mp4", b"no film"))
        assert cinema.client.videos.create_and_poll(prompt="x", poll_interval_ms=10).status == "completed"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("num_frames is 5; it must be even"), "invalid_input", "it must be even"),
        (BackendDiedError("gone"), "engine_down", "gone"),
        (RuntimeError("secret at 0x7f00"), "internal_error", "something broke"),
        (None, "deadline_exceeded", "in time"),
    ],
)
def test_a_job_that_fails_says_why(tmp_path: Path, error: Exception | None, code: str, words: str) -> None:
    async def failing(task: Task) -> AsyncGenerator[Event, None]:
        yield Partial(pixels=FRAMES, rows_done=1, rows=4)
        if error is None:
            await asyncio.sleep(1000)
        else:
            raise error

    backend = FakeBackend(failing)
    with showing(backend, tmp_path, deadline_seconds=0.1 if error is None else 1000) as cinema:
        job = cinema.client.videos.create_and_poll(prompt="x", poll_interval_ms=10)
        assert (job.status, job.error and job.error.code) == ("failed", code)
        assert job.error is not None
        assert words in job.error.message
        assert "0x" not in job.error.message
        with pytest.raises(openai.ConflictError, match="failed"):
            cinema.client.videos.download_content(job.id)
    assert backend.left == 1


def test_a_job_waits_for_a_busy_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "_BUSY_SECONDS", 0.01)

    async def busy_twice(task: Task) -> AsyncGenerator[Event, None]:
        if len(backend.tasks) < 3:
            raise BusyError("later")
        yield Done(pixels=FRAMES, fps=4.0)

    backend = FakeBackend(busy_twice)
    with showing(backend, tmp_path) as cinema:
        assert cinema.client.videos.create_and_poll(prompt="x", poll_interval_ms=10).status == "completed"
    assert len(backend.tasks) == 3


def test_a_server_that_stops_fails_what_it_leaves_and_keeps_the_rest(tmp_path: Path) -> None:
    backend = stage()
    with showing(backend, tmp_path) as cinema:
        done = cinema.client.videos.create_and_poll(prompt="1", poll_interval_ms=10)
        backend.go.clear()
        left = cinema.client.videos.create(prompt="2")
        until(lambda: cinema.client.videos.retrieve(left.id).status == "in_progress", "the second job")
    assert backend.left == 1
    with showing(backend, tmp_path) as cinema:
        again = cinema.client.videos.retrieve(left.id)
        assert (again.status, again.error and again.error.code) == ("failed", "server_stopped")
        assert frames_of(cinema.client.videos.download_content(done.id).read()).shape == FRAMES.shape


def test_jobs_may_finish_while_a_server_stops(tmp_path: Path) -> None:
    backend, jobs = stage(go=False), JobStore(tmp_path)

    async def life() -> list[str]:
        app = FastAPI()
        errors.install(app)
        router = videos_router(backend, MediaGuard(), jobs)
        app.include_router(router)
        async with listening(app) as port:
            cinema = Cinema(f"http://127.0.0.1:{port}/v1", openai.OpenAI(api_key="none"))
            await asyncio.to_thread(cinema.order, prompt="x")
            stopping = asyncio.create_task(router.stop(PATIENCE))
            await asyncio.sleep(0)
            status, answer = await asyncio.to_thread(cinema.order, prompt="y")
            assert (status, answer["error"]["code"]) == (503, "stopping")
            backend.go.set()
            await stopping
        return [job.status for job in (await jobs.list())[0]]

    assert asyncio.run(life()) == ["completed"]


def test_metrics_tell_of_jobs(tmp_path: Path) -> None:
    backend = stage(go=False)

    async def broken(task: Task) -> AsyncGenerator[Event, None]:
        raise BackendDiedError("gone")
        yield

    def now(cinema: Cinema) -> list[float]:
        outcomes = (f'rhea_films_total{{outcome="{outcome}"}}' for outcome in ("finished", "failed", "cancelled"))
        return [cinema.counted(name) for name in ("rhea_films_waiting", "rhea_films_running", *outcomes)]

    with showing(backend, tmp_path, running=1) as cinema:
        films = cinema.client.videos
        assert now(cinema) == [0, 0, 0, 0, 0]
        first, second, third = (films.create(prompt=str(number)) for number in range(3))
        until(lambda: now(cinema) == [2, 1, 0, 0, 0], "one at a time")
        films.delete(first.id)
        films.delete(third.id)
        until(lambda: now(cinema) == [0, 1, 0, 0, 2], "two are given up, one of them while it waited")
        backend.go.set()
        until(lambda: now(cinema) == [0, 0, 1, 0, 2], "one is there")
        assert cinema.counted('rhea_film_seconds_count{frames="6",size="32x16"}') == 1
        films.delete(second.id)
        backend.script = broken
        films.create(prompt="x")
        until(lambda: now(cinema) == [0, 0, 1, 1, 2], "one failed; that a finished one is forgotten is no outcome")
        assert cinema.counted('rhea_film_seconds_count{frames="6",size="32x16"}') == 1


def test_metrics_of_films_do_not_grow_with_what_clients_send() -> None:
    metrics = Metrics()
    for frames in range(1, 100):
        metrics.film((frames, 16, 32, 3), 1.0)
    told = metrics.render({}, True).decode()
    assert told.count("rhea_film_seconds_count{") == 33
    assert 'rhea_film_seconds_count{frames="other",size="other"} 67.0' in told


def test_what_a_former_server_left_counts_as_failed(tmp_path: Path) -> None:
    jobs = JobStore(tmp_path)
    asyncio.run(jobs.create(model="m", prompt="x", size="32x16", seconds=1))
    jobs.close()
    with showing(stage(), tmp_path) as cinema:
        assert cinema.counted('rhea_films_total{outcome="failed"}') == 1


# --- orders that are refused ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cinema(tmp_path_factory: pytest.TempPathFactory, guard: MediaGuard) -> Iterator[Cinema]:
    with showing(stage(), tmp_path_factory.mktemp("jobs"), guard) as served:
        yield served


@pytest.mark.parametrize(
    ("status", "code", "param", "body"),
    [
        (400, "invalid_value", "prompt", {}),
        (400, "invalid_value", "prompt", {"prompt": " \n"}),
        (400, "invalid_value", "prompt", {"prompt": 3}),
        (400, "invalid_value", "prompt", {"prompt": "x" * 32_001}),
        (400, "invalid_value", None, {"prompt": "x", "seconds": 1, "num_frames": 8}),
        (400, "invalid_value", "seconds", {"prompt": "x", "seconds": 0}),
        (400, "invalid_value", "seconds", {"prompt": "x", "seconds": 3000, "fps": 500}),
        (400, "invalid_value", "seconds", {"prompt": "x", "seconds": 1e300}),
        (400, "invalid_value", "num_frames", {"prompt": "x", "num_frames": 10**9}),
        (400, "invalid_value", "num_frames", {"prompt": "x", "num_frames": 0}),
        (400, "invalid_value", "fps", {"prompt": "x", "fps": -1}),
        (400, "invalid_value", "seed", {"prompt": "x", "seed": 2**63}),
        (404, "model_not_found", "model", {"prompt": "x", "model": "sora-2"}),
        (404, "video_not_found", "video_id", {"prompt": "x", "video": {"id": "../jobs"}}),
        (400, "invalid_value", "input_reference", {"prompt": "x", "input_reference": {"image_url": "file:///x"}}),
    ],
)
def test_orders_that_make_no_sense(cinema: Cinema, status: int, code: str, param: str | None, body: Any) -> None:
    cinema.refuses(status, code, param, **body)


@pytest.mark.parametrize(
    ("kind", "body", "status", "code"),
    [
        ("application/json", b"", 400, "invalid_json"),
        ("application/json", b"{", 400, "invalid_json"),
        ("application/json", b"[" * 100_000, 400, "invalid_json"),
        ("application/json", b'{"prompt": "\\ud800"}', 400, "invalid_json"),
        ("application/json", b'{"prompt": "x", "fps": NaN}', 400, "invalid_value"),
        ("application/json", b'{"prompt": "\xff"}', 400, "invalid_json"),
        ("application/json", b"3", 400, "invalid_value"),
        ("text/plain", b"prompt", 415, "unsupported_media_type"),
        ("application/x-www-form-urlencoded", b"prompt=x", 415, "unsupported_media_type"),
        ("multipart/form-data", b"prompt=x", 400, "invalid_form"),
        ("multipart/form-data; boundary=x", b"--y\r\n", 400, "invalid_form"),
        ("multipart/form-data; boundary=x", b"", 400, "invalid_value"),
    ],
)
def test_bodies_that_are_no_orders(cinema: Cinema, kind: str, body: bytes, status: int, code: str) -> None:
    given, answer = cinema.ask("POST", "/videos", body, Content_Type=kind)
    assert (given, answer["error"]["code"]) == (status, code), answer


def test_uploads_that_are_no_films(cinema: Cinema, tmp_path: Path) -> None:
    films = cinema.client.videos
    picture = io.BytesIO()
    Image.fromarray(FRAMES[0]).save(picture, format="PNG")
    film = mp4(tmp_path)
    bad = [picture.getvalue(), b"", b"<svg/>", film[: len(film) // 2]]
    for data in bad:
        with pytest.raises(openai.BadRequestError) as caught:
            films.create(prompt="x", input_reference=("a.mp4", data))
        assert caught.value.param == "video"
        assert "0x" not in caught.value.message
    for more in ({"size": "32x16"}, {"fps": 3}, {"input_reference": {"image_url": "data:image/png;base64,"}}):
        with pytest.raises(openai.BadRequestError):
            films.extend(prompt="x", seconds="4", video=("a.mp4", film), extra_body=more)
    with pytest.raises(openai.BadRequestError, match="not both"):
        films.create(prompt="x", input_reference=("a.mp4", film), extra_body={"video": {"id": "video_1"}})


@pytest.mark.parametrize(
    "wanted", ["x", "..%2f..%2fetc%2fpasswd", "%2e%2e", "..%5cjobs.sqlite", "%00", "%ff", "video_" + "0" * 32]
)
def test_ids_that_name_nothing(cinema: Cinema, wanted: str) -> None:
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        status, answer = cinema.ask(method, f"/videos/{wanted}{path}")
        assert (status, answer["error"]["type"]) == (404, "not_found_error")


@pytest.mark.parametrize(
    ("path", "param"),
    [("?limit=0", "limit"), ("?limit=x", "limit"), ("?order=up", "order"), ("?after=video_1", "after")],
)
def test_lists_that_cannot_be(cinema: Cinema, path: str, param: str) -> None:
    status, answer = cinema.ask("GET", f"/videos{path}")
    assert (status, answer["error"]["param"]) == (400, param)


def test_other_variants_of_a_film_are_refused(cinema: Cinema) -> None:
    job = cinema.client.videos.create_and_poll(prompt="x", poll_interval_ms=10)
    with pytest.raises(openai.BadRequestError, match="variant"):
        cinema.client.videos.download_content(job.id, variant="thumbnail")
