"""What a server does for a client ends with it, within the step under way; until then metrics tell what it holds."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from served import PATIENCE, Served, serving, until
from tiny_model import tiny_checkpoint

from rhea.generation.engine import EngineConfig
from rhea.generation.model import Rhea
from rhea.serving.local import LocalBackend

MESSAGES = [{"role": "user", "content": "How many objects are there?"}]
DRAWING = {"prompt": "red", "size": "128x128"}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    model = Rhea(tiny_checkpoint(max_seq_len=1024), engine=EngineConfig(slots=4, window=1))
    with serving(LocalBackend(model)) as server:
        yield server


def asking(served: Served, path: str, body: dict[str, Any]) -> http.client.HTTPConnection:
    """Send a request and don't wait for its answer."""
    client = http.client.HTTPConnection(served.url.removeprefix("http://"))
    client.request("POST", f"/v1/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    return client


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("path", "body"), [("images/generations", DRAWING), ("chat/completions", {"messages": MESSAGES})]
)
@pytest.mark.parametrize("begun", [1, 3])
def test_who_leaves_is_cancelled_within_one_step(
    served: Served, path: str, body: dict[str, Any], streamed: bool, begun: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, tickets, steps = served.backend, list[Any](), list[int]()
    held, go = threading.Event(), threading.Event()
    step, submit = backend.engine.step, backend.engine.submit

    def held_step() -> None:
        steps.append(len(steps) + 1)
        if steps[-1] == begun:
            held.set()
            assert go.wait(PATIENCE)
        step()

    def seen_submit(request: Any) -> Any:
        tickets.append(submit(request))
        return tickets[-1]

    monkeypatch.setattr(backend.engine, "step", held_step)
    monkeypatch.setattr(backend.engine, "submit", seen_submit)
    client = asking(served, path, body | {"stream": streamed})
    assert held.wait(PATIENCE)
    client.close()
    until(lambda: not backend._background._calls.empty(), "the server notices")
    go.set()
    until(lambda: backend.engine.idle and not backend._requests, "the request is gone")
    assert (len(tickets), tickets[0].cancelled, steps[-1]) == (1, True, begun)


def test_metrics_tell_the_queue_and_the_cache(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, steps, held, go = served.backend.engine, list[int](), threading.Event(), threading.Event()
    step = engine.step

    def held_step() -> None:
        if engine.load["waiting"] + engine.load["running"] + served.backend._for_drawing.waiting < 3:
            time.sleep(0.001)  # until all have come
            return
        if len(steps) == 3:
            held.set()
            assert go.wait(PATIENCE)
        steps.append(1)
        step()

    monkeypatch.setattr(engine, "step", held_step)
    clients = [asking(served, "images/generations", DRAWING) for _ in range(3)]
    assert held.wait(PATIENCE)
    told = httpx.get(served.url + "/metrics").text
    for name, value in {
        "requests": 3,
        "running": 2,
        "waiting": 1,
        "rows": 4,
        "slots": 4,
    }.items():  # guided: two rows each
        assert f"rhea_engine_{name} {value:.1f}\n" in told
    cached = sum(len(engine._held[slot]) for slot in range(4))
    assert f"rhea_engine_cached_tokens {cached:.1f}\n" in told
    assert cached > 0
    for client in clients:
        client.close()
    monkeypatch.undo()
    go.set()
    until(lambda: engine.idle and not served.backend._requests, "the requests are gone")
