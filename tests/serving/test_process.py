"""The engine in a process of its own: it gives the same, and its death is told and mended, the server's ends it."""

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from served import PATIENCE, pixels_of, until
from tiny_model import save_tiny_checkpoint

import rhea
from rhea.errors import BusyError, InputError
from rhea.generation.engine import EngineConfig
from rhea.serving.backend import BackendDiedError, Done, Draw, Partial
from rhea.serving.choice import ModelChoice
from rhea.serving.limits import Bounds
from rhea.serving.process import ProcessBackend

LONG = {"prompt": "red", "size": "128x128", "seed": 1}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", max_seq_len=512)


class Command:
    """``rhea serve`` as people run it."""

    def __init__(self, checkpoint: Path) -> None:
        command = [
            str(Path(sys.executable).with_name("rhea")),
            "serve",
            str(checkpoint),
            "--port",
            "0",
            "--window",
            "1",
            "--films",
            str(checkpoint.parent / "films"),
        ]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.said = self.process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", self.said)
        assert found, self.said
        self.url = found[0]

    @property
    def engine(self) -> psutil.Process | None:
        """The process that holds the model, if there is one."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return next((child for child in children if "rhea.serving.worker" in " ".join(_command(child))), None)

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url + "/v1", api_key="none", max_retries=0, timeout=PATIENCE)


def _command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def _is_zombie(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


@pytest.fixture(scope="module")
def command(tiny: Path) -> Iterator[Command]:
    command = Command(tiny)
    yield command
    command.process.kill()
    command.process.wait()


def stream(client: openai.OpenAI, **settings: Any) -> Any:
    return client.images.generate(
        prompt="red", size="128x128", stream=True, partial_images=3, extra_body={"seed": 1} | settings
    )


def test_it_says_where_it_is_and_how_to_ask(command: Command) -> None:
    assert command.said.startswith("tiny is served at http://127.0.0.1:")
    assert httpx.get(command.url + "/health").status_code == 200


def test_films_are_ordered_and_fetched(command: Command) -> None:
    with httpx.Client(base_url=command.url, timeout=PATIENCE) as client:
        job = client.post("/v1/videos", json={"prompt": "a red circle", "num_frames": 4, "seed": 3}).json()
        give_up = time.monotonic() + PATIENCE
        while job["status"] not in ("completed", "failed") and time.monotonic() < give_up:
            time.sleep(0.05)
            job = client.get(f"/v1/videos/{job['id']}").json()
        assert job["status"] == "completed", job
        assert client.get(f"/v1/videos/{job['id']}/content").content[4:8] == b"ftyp"
        assert 'rhea_films_total{outcome="finished"} 1.0' in client.get("/metrics").text


def test_the_death_of_the_engine_is_told_at_once_and_mended(command: Command, tiny: Path) -> None:
    with command.client() as client:
        events = stream(client)
        assert next(events).partial_image_index == 0
        old = command.engine
        assert old is not None
        old.kill()
        with pytest.raises(openai.APIError) as died:
            list(events)
        assert died.value.code == "engine_down"
        answer = httpx.get(command.url + "/health")
        if answer.status_code != 200:  # it may be there again already
            assert answer.json()["error"]["code"] == "engine_down"
            with contextlib.suppress(openai.InternalServerError):
                client.images.generate(prompt="red")
        until(lambda: httpx.get(command.url + "/health").status_code == 200, "the engine is back")
        assert command.engine is not None
        assert command.engine.pid != old.pid
        made = client.images.generate(prompt="red", extra_body={"seed": 1})
        assert made.data is not None
        expected = rhea.load(tiny, engine=EngineConfig(window=1)).generate("red", seed=1)[0]
        assert (pixels_of(made.data[0].b64_json) == expected.pixels).all()
    assert "rhea_engine_restarts 1.0" in httpx.get(command.url + "/metrics").text


def test_sigterm_while_it_loads_ends_it_at_once(tiny: Path) -> None:
    command = [str(Path(sys.executable).with_name("rhea")), "serve", str(tiny), "--port", "0"]
    process = subprocess.Popen([*command, "--films", str(tiny.parent / "others")], stderr=subprocess.DEVNULL)
    try:
        (engine,) = until(psutil.Process(process.pid).children, "the engine's process, which loads")
        process.terminate()
        assert process.wait(PATIENCE) == -signal.SIGTERM
        until(lambda: not engine.is_running() or _is_zombie(engine), "the engine's process is gone")
    finally:
        process.kill()
        process.wait()


def test_sigterm_to_all_lets_it_finish_and_leaves_nothing_behind(command: Command) -> None:
    engine = command.engine
    assert engine is not None
    with command.client() as client:
        events = stream(client)
        assert next(events).partial_image_index == 0
        for process in psutil.Process(command.process.pid).children(recursive=True):
            process.terminate()  # as systemd does
        command.process.send_signal(signal.SIGTERM)
        assert [event.type for event in events][-1] == "image_generation.completed"
    assert command.process.wait(PATIENCE) == 0
    until(lambda: not engine.is_running(), "the engine's process is gone")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_a_server_that_is_ended_at_work_leaves_nothing_behind(tiny: Path, number: signal.Signals) -> None:
    command = Command(tiny)
    children = psutil.Process(command.process.pid).children(recursive=True)
    assert len(children) == 2, "the engine, and who decodes media"
    with command.client() as client:
        events = stream(client)
        next(events)
        command.process.send_signal(number)
        if number == signal.SIGINT:  # it finishes what it has begun
            assert [event.type for event in events][-1] == "image_generation.completed"
    assert command.process.wait(PATIENCE) == (0 if number == signal.SIGINT else -number)
    until(lambda: all(not child.is_running() or _is_zombie(child) for child in children), "its processes are gone")


def test_tasks_cross_the_socket_and_its_end_ends_the_child(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def tasks() -> None:
        choice = ModelChoice(checkpoint=str(tiny), window=1)
        async with ProcessBackend(choice, bounds=Bounds(max_requests=1)) as backend:
            assert (backend.ready, backend.info.name, backend.info.max_tokens) == (True, "tiny", 512)
            *partial, done = [event async for event in backend.run(Draw(prompt="red"), partials=3)]
            expected = rhea.load(tiny).generate("red")[0]
            assert isinstance(done, Done)
            assert done.pixels is not None
            assert (done.pixels == expected.pixels).all()
            assert [type(each) for each in partial] == [Partial] * 3
            with pytest.raises(InputError, match="prompt is empty"):
                await anext(backend.run(Draw(prompt=" ")))
            long = backend.run(Draw(prompt="red", size="128x128"), partials=1)
            await anext(long)
            with pytest.raises(BusyError):
                await anext(backend.run(Draw(prompt="red")))
            await long.aclose()
            while (await backend.counters())["requests"]:
                await asyncio.sleep(0.01)
            assert (await backend.counters())["grids"] == 1  # the second was never finished
            left = backend.run(Draw(prompt="red", size="128x128"), partials=1)
            await anext(left)
            # As if this process were gone: its end of the socket closes, and nobody kills the child.
            child, writer = backend._child, backend._writer
            assert child is not None
            assert writer is not None
            monkeypatch.setattr(child, "kill", lambda: None)
            writer.transport.abort()
            with pytest.raises(BackendDiedError):
                async for _ in left:
                    pass
            assert await child.wait() == 0
            assert not backend.ready
            with pytest.raises(BackendDiedError):
                await anext(backend.run(Draw(prompt="red")))

    asyncio.run(asyncio.wait_for(tasks(), PATIENCE))


def test_a_model_that_cannot_be_loaded_is_refused_in_one_line(tmp_path: Path) -> None:
    from rhea import cli

    with pytest.raises(InputError, match="nothing"):
        asyncio.run(ProcessBackend(ModelChoice(checkpoint=str(tmp_path / "nothing"))).__aenter__())
    assert cli.main(["serve", str(tmp_path / "nothing"), "--host", "0.0.0.0"]) == 2
