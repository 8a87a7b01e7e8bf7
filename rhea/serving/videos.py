"""``/v1/videos``: films as jobs, in the shape of OpenAI's client: ordered, asked after, fetched, deleted.

    videos = videos_router(backend, guard, jobs)
    app.include_router(videos)              # and at the app's start and end:
    await videos.start(); await videos.stop(30)

A job holds a place from the moment that its order arrives; where all are taken an order is refused at once. A film to
continue waits as the file that came, which is a hundredth of its pixels.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.datastructures import FormData, UploadFile

from rhea.errors import BusyError, InputError
from rhea.logging import logger
from rhea.media import write_film
from rhea.serving.backend import Backend, Done, Draw, Extend, Partial, Sampling, Task
from rhea.serving.errors import ApiError, api_error
from rhea.serving.images import fresh_seed, sampling_of, wanted_size
from rhea.serving.jobs import Job, JobStore
from rhea.serving.metrics import Metrics
from rhea.serving.schemas import Scale, Seed, Size
from rhea.serving.service import Guard, check_shape

_MOST_FRAMES = 4096
_BUSY_SECONDS = 0.5
"""Between two attempts to hand a job to an engine that has enough to do."""
_POLL_MS = "500"


class VideoReference(BaseModel):
    """A film that was made here."""

    id: Annotated[str, Field(max_length=100)]


class VideoBody(BaseModel):
    """What to film; with a film to continue, how to go on."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"additionalProperties": True})
    model: Annotated[str | None, Field(max_length=200)] = None
    prompt: Annotated[str, Field(max_length=32_000)] = ""
    size: Size | None = None
    seconds: Annotated[float | None, Field(gt=0, le=3600, allow_inf_nan=False)] = None
    num_frames: Annotated[int | None, Field(ge=1, le=_MOST_FRAMES)] = None
    fps: Annotated[float | None, Field(gt=0, le=1000, allow_inf_nan=False)] = None
    seed: Seed | None = None
    negative_prompt: Annotated[str | None, Field(max_length=32_000)] = None
    guidance_scale: Scale | None = None
    temperature: Annotated[float | None, Field(ge=0, le=100, allow_inf_nan=False)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1, allow_inf_nan=False)] = None
    top_k: Annotated[int | None, Field(ge=0, le=2**31)] = None
    video: VideoReference | None = None
    """A completed film of this server, to continue."""

    @model_validator(mode="after")
    def _one_length(self) -> "VideoBody":
        if self.seconds is not None and self.num_frames is not None:
            raise ValueError("seconds and num_frames say the same: give one of them")
        return self

    def frames(self, fps: float) -> int | None:
        """Return how many frames are asked for at a frame rate."""
        if self.seconds is None:
            return self.num_frames
        if (frames := max(round(self.seconds * fps), 1)) > _MOST_FRAMES:
            message = f"{self.seconds:g} seconds are {frames} frames; at most {_MOST_FRAMES} are made at once"
            raise ApiError(400, message, code="invalid_value", param="seconds")
        return frames


class VideosRouter(APIRouter):
    """The endpoints, and the jobs behind them."""

    def __init__(self, jobs: JobStore, runner: "_Runner") -> None:
        super().__init__(tags=["videos"])
        self._jobs, self._runner = jobs, runner

    async def start(self) -> None:
        """Mark what a former server left unfinished as failed."""
        self._runner.metrics.films.labels("failed").inc(await self._jobs.recover())

    async def stop(self, seconds: float = 0.0) -> None:
        """Take no more orders, let jobs finish for so many ``seconds``, and mark the others as failed."""
        await self._runner.stop(seconds)


def videos_router(
    backend: Backend,
    guard: Guard,
    jobs: JobStore,
    *,
    running: int = 2,
    waiting: int = 16,
    deadline_seconds: float = 600.0,
    metrics: Metrics | None = None,
) -> VideosRouter:
    """Return the endpoints: ``running`` jobs are worked on at once, each so long at most, and ``waiting`` more wait.

    ``metrics`` are those of the app, where jobs are to be counted.
    """
    runner = _Runner(backend, jobs, metrics or Metrics(), running, waiting, deadline_seconds)
    routes = VideosRouter(jobs, runner)

    async def order(request: Request) -> JSONResponse:
        with contextlib.ExitStack() as place:
            place.enter_context(runner.place())
            body, film = await _read(request)
            job, prepare = await _prepare(backend, guard, jobs, body, film)
            runner.begin(job, prepare, place.pop_all())
        return JSONResponse(_shown(job))

    @routes.post("/v1/videos", openapi_extra=_body_schema("input_reference"))
    async def create(request: Request) -> JSONResponse:
        """Order a film of a text, or one that continues an uploaded film."""
        return await order(request)

    @routes.post("/v1/videos/extensions", openapi_extra=_body_schema("video"))
    async def extend(request: Request) -> JSONResponse:
        """Order a film that continues an uploaded one or one that was made here."""
        return await order(request)

    @routes.delete("/v1/videos/{video_id}")
    async def delete(video_id: str) -> dict[str, Any]:
        """Forget a film; one that is being made is given up."""
        job = await _known(jobs, video_id)
        await runner.cancel(job.id)
        await jobs.delete(job.id)
        return {"id": job.id, "object": "video.deleted", "deleted": True}

    _add_reading(routes, jobs)
    return routes


def _add_reading(routes: VideosRouter, jobs: JobStore) -> None:
    """Add the endpoints that only tell what there is."""

    @routes.get("/v1/videos")
    async def listing(
        after: Annotated[str | None, Query(max_length=100)] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> dict[str, Any]:
        """List films, the newest first."""
        try:
            found, more = await jobs.list(after=after, limit=limit, newest_first=order == "desc")
        except InputError as error:
            raise ApiError(400, str(error), code="invalid_value", param="after") from None
        ids = {"first_id": found[0].id, "last_id": found[-1].id} if found else {"first_id": None, "last_id": None}
        return {"object": "list", "data": [_shown(job) for job in found], "has_more": more, **ids}

    @routes.get("/v1/videos/{video_id}")
    async def retrieve(video_id: str) -> JSONResponse:
        """Tell how far a film is."""
        return JSONResponse(_shown(await _known(jobs, video_id)), headers={"openai-poll-after-ms": _POLL_MS})

    @routes.get("/v1/videos/{video_id}/content", response_class=FileResponse)
    async def content(video_id: str, variant: Literal["video"] = "video") -> Response:
        """Return a finished film as MP4."""
        path = await _finished(jobs, video_id)
        return FileResponse(path, media_type="video/mp4", filename=path.name)


async def _read(request: Request) -> tuple[VideoBody, bytes | None]:
    """Return an order, sent as JSON or as a form, and the film that came with a form."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind == "application/json":
        body = VideoBody.model_validate_json(await request.body())
        if "input_reference" in (body.model_extra or {}):
            raise _bad_reference()
        return body, None
    if kind != "multipart/form-data":
        raise ApiError(415, "send JSON, or a form (multipart/form-data) with a film", code="unsupported_media_type")
    try:
        form = await request.form(max_files=1, max_fields=32)
    except Exception:  # the parser raises several kinds, in its own words
        raise ApiError(400, "the form is damaged, or has more than one file", code="invalid_form") from None
    try:
        return await _fields(form)
    finally:
        await form.close()


async def _fields(form: FormData) -> tuple[VideoBody, bytes | None]:
    texts: dict[str, Any] = {name: value for name, value in form.multi_items() if isinstance(value, str)}
    files = {name: value for name, value in form.multi_items() if isinstance(value, UploadFile)}
    if not files.keys() <= {"input_reference", "video"} or any(_is_reference(name) for name in texts):
        raise _bad_reference()
    if "video[id]" in texts:
        texts["video"] = {"id": texts.pop("video[id]")}
    film = [await file.read() for file in files.values()]  # one at most
    return VideoBody.model_validate(texts), film[0] if film else None


def _is_reference(name: str) -> bool:
    return name == "video" or name.startswith("input_reference")


async def _prepare(
    backend: Backend, guard: Guard, jobs: JobStore, body: VideoBody, film: bytes | None
) -> tuple[Job, Callable[[], Awaitable[Task]]]:
    """Check an order, enter it as a job, and return what makes its task when its turn comes."""
    info = backend.info
    if body.model and body.model != info.name:
        raise ApiError(404, f"there is no such model here; this is {info.name}", code="model_not_found", param="model")
    if film is not None and body.video is not None:
        raise ApiError(400, "give a file or the id of a film, not both", code="invalid_value", param="video")
    body.seed = fresh_seed() if body.seed is None else body.seed
    sampling = sampling_of(body)
    if body.video is not None:
        film = await asyncio.to_thread((await _finished(jobs, body.video.id)).read_bytes)
    if film is None:
        return await _drawn(backend, jobs, body, sampling)
    if body.size is not None or body.fps is not None:
        wrong = "size" if body.size is not None else "fps"
        raise ApiError(400, f"{wrong} is that of the film: leave it out", code="invalid_value", param=wrong)
    clip = await guard.film(film, param="video")  # now, to refuse it if need be; and again when its turn comes
    check_shape(info, "film", clip.frames, "video")
    frames = body.frames(clip.fps)

    async def continued() -> Task:
        film_ = await guard.film(film, param="video")
        return Extend(film=film_, num_frames=frames, caption=body.prompt, sampling=sampling)

    height, width = clip.frames.shape[1:3]
    seconds = (len(clip.frames) + (frames or info.num_frames)) / clip.fps
    source = body.video.id if body.video else None
    job = await jobs.create(
        model=info.name, prompt=body.prompt, size=f"{width}x{height}", seconds=seconds, continued=source
    )
    return job, continued


async def _drawn(
    backend: Backend, jobs: JobStore, body: VideoBody, sampling: Sampling
) -> tuple[Job, Callable[[], Awaitable[Task]]]:
    info = backend.info
    if not body.prompt.strip():
        raise ApiError(400, "say in prompt what the film is to show", code="invalid_value", param="prompt")
    fps = body.fps or info.fps
    size, frames = wanted_size(body.size), body.frames(fps) or info.num_frames

    async def drawn() -> Task:
        return Draw(prompt=body.prompt, size=size, num_frames=frames, fps=fps, sampling=sampling)

    shown = size or f"{info.width}x{info.height}"
    return await jobs.create(model=info.name, prompt=body.prompt, size=shown, seconds=frames / fps), drawn


class _Runner:
    """Works on jobs, a few at a time."""

    def __init__(
        self, backend: Backend, jobs: JobStore, metrics: Metrics, running: int, waiting: int, deadline_seconds: float
    ) -> None:
        self._backend, self._jobs, self.metrics, self._deadline = backend, jobs, metrics, deadline_seconds
        self._turns = asyncio.Semaphore(running)
        self._places = running + waiting
        self._taken = 0
        self._stopped = False
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @contextlib.contextmanager
    def place(self) -> Any:
        """Hold a place for a job; ApiError if none is left."""
        if self._stopped:
            raise ApiError(503, "the server is stopping", code="stopping", headers={"Retry-After": "5"})
        if self._taken >= self._places:
            message = f"{self._taken} films are ordered already: try again later"
            raise ApiError(429, message, code="queue_full", headers={"Retry-After": "5"})
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    def begin(self, job: Job, prepare: Callable[[], Awaitable[Task]], place: contextlib.ExitStack) -> None:
        """Work on a job in the background, and give its place back at the end."""
        task = asyncio.create_task(self._work(job, prepare))
        self._tasks[job.id] = task

        def ended(_: "asyncio.Task[None]") -> None:
            del self._tasks[job.id]
            place.close()

        task.add_done_callback(ended)

    async def cancel(self, job_id: str) -> None:
        """Give a job up, if it is worked on."""
        if (task := self._tasks.get(job_id)) is not None:
            task.cancel()
            await asyncio.wait([task])

    async def stop(self, seconds: float) -> None:
        self._stopped = True
        if tasks := set(self._tasks.values()):
            _, late = await asyncio.wait(tasks, timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _work(self, job: Job, prepare: Callable[[], Awaitable[Task]]) -> None:
        try:
            async with self._turn():
                start = time.monotonic()
                async with asyncio.timeout(self._deadline):
                    done = await self._made(job, await prepare())
                await self._keep(job, done, start)
        except asyncio.CancelledError:
            await self._jobs.fail(job.id, "server_stopped", "the server was stopped before this film was finished")
            self.metrics.films.labels("failed" if self._stopped else "cancelled").inc()
            raise
        except Exception as error:
            told = api_error(error)
            if told.status >= 500:
                logger.error("%s: %s", job.id, error, exc_info=error if told.status == 500 else None)
            await self._jobs.fail(job.id, told.code, told.message)
            self.metrics.films.labels("failed").inc()

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        with self.metrics.films_waiting.track_inprogress():
            await self._turns.acquire()
        try:
            with self.metrics.films_running.track_inprogress():
                yield
        finally:
            self._turns.release()

    async def _made(self, job: Job, task: Task) -> Done:
        await self._jobs.advance(job.id, 0)
        while True:
            try:
                return await self._attempt(job, task)
            except BusyError:  # the order was taken: it waits until the engine has room
                await asyncio.sleep(_BUSY_SECONDS)

    async def _attempt(self, job: Job, task: Task) -> Done:
        async with contextlib.aclosing(self._backend.run(task)) as events:
            async for event in events:
                if isinstance(event, Done):
                    return event
                if isinstance(event, Partial):
                    await self._jobs.advance(job.id, min(100 * event.rows_done // event.rows, 99))
        raise AssertionError("a task ends with Done")

    async def _keep(self, job: Job, done: Done, start: float) -> None:
        assert done.pixels is not None
        assert done.fps is not None
        frames, height, width, _ = done.pixels.shape
        write = functools.partial(write_film, frames=done.pixels, fps=done.fps)
        if await self._jobs.finish(job.id, write, size=f"{width}x{height}", seconds=frames / done.fps):
            self.metrics.film(done.pixels.shape, time.monotonic() - start)


async def _known(jobs: JobStore, job_id: str) -> Job:
    if (job := await jobs.get(job_id)) is None:
        raise ApiError(404, "there is no video of this id", code="video_not_found", param="video_id")
    return job


async def _finished(jobs: JobStore, job_id: str) -> Any:
    job = await _known(jobs, job_id)
    if (path := await jobs.result(job_id)) is None:
        raise ApiError(409, f"this video is {job.status.replace('_', ' ')}: there is no film", code="video_not_ready")
    return path


def _shown(job: Job) -> dict[str, Any]:
    """Return a job as OpenAI's ``Video``."""
    failed = {"code": job.error_code, "message": job.error_message}
    return {
        "id": job.id,
        "object": "video",
        "status": job.status,
        "progress": job.progress,
        "created_at": job.created_at,
        "completed_at": job.completed_at,
        "expires_at": None,
        "model": job.model,
        "prompt": job.prompt,
        "size": job.size,
        "seconds": f"{job.seconds:.6g}",
        "remixed_from_video_id": job.continued,
        "error": failed if job.status == "failed" else None,
    }


def _bad_reference() -> ApiError:
    message = "input_reference must be a film (MP4, WebM or GIF), uploaded as a file of a form (multipart/form-data)"
    return ApiError(400, message, code="invalid_value", param="input_reference")


def _body_schema(file: str) -> dict[str, Any]:
    """Describe an order for the OpenAPI document."""
    schema = VideoBody.model_json_schema(ref_template="#/components/schemas/{model}")
    schema["properties"]["video"] = VideoReference.model_json_schema()
    schema.pop("$defs")
    upload = {"type": "object", "properties": {file: {"type": "string", "format": "binary"}}}
    kinds = {"application/json": schema, "multipart/form-data": {"allOf": [schema, upload]}}
    return {"requestBody": {"required": True, "content": {kind: {"schema": each} for kind, each in kinds.items()}}}
