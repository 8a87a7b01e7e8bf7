"""A client that leaves: nothing more is computed for it than the step that was under way when the server noticed."""

import http.client
import json
import threading
from collections.abc import Iterator
from typing import Any

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
    client = http.client.HTTPConnection(served.url.removeprefix("http://"))
    content = json.dumps(body | {"stream": streamed}).encode()
    client.request("POST", f"/v1/{path}", content, {"Content-Type": "application/json"})
    assert held.wait(PATIENCE)
    client.close()
    until(lambda: not backend._background._calls.empty(), "the server notices")
    go.set()
    until(lambda: backend.engine.idle and not backend._requests, "the request is gone")
    assert (len(tickets), tickets[0].cancelled, steps[-1]) == (1, True, begun)
