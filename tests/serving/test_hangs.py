"""An engine that lives but does not move: it is noticed, told and mended like one that died.

It counts as hung after a long time until it hangs, and after a short one until that is noticed: so no slow machine is
taken for a hang, and no test waits for one.
"""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import PATIENCE, Served, serving, until
from tiny_model import save_tiny_checkpoint, tiny_checkpoint

from rhea.generation.engine import EngineConfig
from rhea.generation.model import Rhea
from rhea.serving import process
from rhea.serving.backend import Done, Draw
from rhea.serving.choice import ModelChoice
from rhea.serving.local import LocalBackend
from rhea.serving.process import ProcessBackend

LONG, SHORT = PATIENCE, 0.1


@pytest.mark.parametrize("thread", ["engine", "pixels"])
def test_a_backend_has_a_pulse_unless_a_thread_hangs(thread: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Rhea(tiny_checkpoint(), engine=EngineConfig(slots=2, window=1))
    begun, go = threading.Event(), threading.Event()

    def held(work: Callable[..., Any]) -> Callable[..., Any]:
        def hold(*arguments: Any, **options: Any) -> Any:
            begun.set()
            assert go.wait(PATIENCE)
            return work(*arguments, **options)

        return hold

    async def client() -> None:
        async with LocalBackend(model) as backend:
            await backend.pulse()
            whose, name = (backend.engine, "step") if thread == "engine" else (model, "results")
            monkeypatch.setattr(whose, name, held(getattr(whose, name)))
            drawing = asyncio.ensure_future(anext(backend.run(Draw(prompt="red"), partials=0)))
            await asyncio.to_thread(begun.wait, PATIENCE)
            pulse = asyncio.ensure_future(backend.pulse())
            done, _ = await asyncio.wait([pulse], timeout=0.1)
            assert not done
            go.set()
            await pulse
            assert isinstance(await drawing, Done)

    asyncio.run(asyncio.wait_for(client(), PATIENCE))


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def served(faults: Path) -> Iterator[Served]:
    choice = ModelChoice(checkpoint=str(save_tiny_checkpoint(faults / "tiny")), window=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAULTS", str(faults))
        patch.setattr(process, "_WORKER", (str(Path(__file__).with_name("faulty_worker.py")),))
        patch.setattr(process, "_PARTS", 600)  # so that a change of the time is soon seen
        with serving(ProcessBackend(choice, hang_seconds=LONG)) as server:
            yield server


def draw(served: Served) -> httpx.Response:
    return httpx.post(f"{served.api}/images/generations", json={"prompt": "red", "seed": 1}, timeout=2 * PATIENCE)


def hang(served: Served, faults: Path, stuck: Callable[[], bool]) -> int:
    """Send a request that lets the engine hang, check that all clients learn of it; return how the process ended.

    Its successor is held up until the file "load" is gone.
    """
    child = served.backend._child
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(draw, served)
        until(stuck, "the engine hangs")
        assert httpx.get(served.url + "/health").status_code == 200  # nobody can tell yet
        (faults / "load").touch()
        served.backend.hang_seconds = SHORT
        answer = waiting.result()
        served.backend.hang_seconds = LONG
    for each in (answer, draw(served), httpx.get(served.url + "/health")):
        assert (each.status_code, each.json()["error"]["code"]) == (503, "engine_down")
        assert each.headers["Retry-After"] == "5"
    until(lambda: child.returncode is not None, "the end of what hangs")
    return child.returncode


def test_a_stuck_engine_beside_a_live_loop(served: Served, faults: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (faults / "forward").touch()
    with monkeypatch.context() as patch:
        patch.setattr(served.backend._child, "kill", lambda: None)  # as if its server were gone: it leaves by itself
        assert hang(served, faults, lambda: not (faults / "forward").exists()) == 0
    (faults / "load").unlink()
    until(lambda: httpx.get(served.url + "/health").status_code == 200, "the engine is back")
    assert draw(served).status_code == 200
    told = httpx.get(served.url + "/metrics").text
    assert "rhea_engine_hangs 1.0" in told
    assert "rhea_engine_restarts 1.0" in told


def test_a_process_that_stands_still(served: Served, faults: Path) -> None:
    os.kill(served.backend.child_id, signal.SIGSTOP)
    assert hang(served, faults, lambda: True) == -signal.SIGKILL
    assert "rhea_engine_hangs 2.0" in httpx.get(served.url + "/metrics").text
