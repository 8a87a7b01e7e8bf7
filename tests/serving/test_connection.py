"""A client that stops reading and stays: its answer ends, its task is cancelled, and a slow reader is left in peace."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from served import FakeBackend, Served, serving, until
from uvicorn.server import ServerState

from rhea.serving.backend import Done, Event, Partial, Task
from rhea.serving.connection import giving_up_after
from rhea.serving.limits import ServerSettings

NOISE = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
"""A megabyte as a file: a few of them are more than the system holds for a connection."""
PARTS = 10


async def talks(task: Task) -> AsyncGenerator[Event, None]:
    for number in range(PARTS):
        yield Partial(pixels=NOISE, rows_done=number, rows=PARTS)
    yield Done(pixels=NOISE)


async def says_much(task: Task) -> AsyncGenerator[Event, None]:
    yield Done(text="x" * 2**24)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(FakeBackend(), replace(ServerSettings(), max_open=1, write_seconds=0.2)) as server:
        yield server


def deaf(served: Served, path: str, body: dict[str, Any]) -> socket.socket:
    """Send a request and never read."""
    host, _, port = served.url.removeprefix("http://").partition(":")
    connection, content = socket.socket(), json.dumps(body).encode()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
    connection.connect((host, int(port)))
    lines = [
        f"POST /v1/{path} HTTP/1.1",
        "Host: x",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
    ]
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + content)
    return connection


def test_a_stream_that_nobody_reads_ends_and_gives_its_place_back(served: Served) -> None:
    served.backend.script, served.backend.left = talks, 0
    body = {"prompt": "red", "stream": True, "partial_images": 3}
    with deaf(served, "images/generations", body) as connection:
        until(lambda: served.backend.left == 1, "the task is cancelled")
        until(lambda: "rhea_open_requests 0.0" in httpx.get(served.url + "/metrics").text, "its place is free")
        assert b"image_generation.completed" not in b"".join(iter(lambda: connection.recv(2**20), b"")), "it has ended"
    assert "rhea_cancellations_total 1.0" in httpx.get(served.url + "/metrics").text
    answer = httpx.post(f"{served.api}/images/generations", json=body, timeout=None)
    assert answer.content.count(b"event: ") == PARTS + 1, "who reads gets all"


def test_a_whole_answer_that_nobody_reads_holds_no_connection(served: Served) -> None:
    served.backend.script, served.backend.left = says_much, 0
    with deaf(served, "chat/completions", {"messages": [{"role": "user", "content": "two"}]}) as connection:
        until(lambda: served.backend.tasks[-1:] and not served.backend.left, "it is answered")
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            until(lambda: connection.send(b" ") and None, "the connection is ended")


def says_slowly(told: threading.Event) -> Any:
    """An ASGI app that goes on with its answer when told."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"40")]}
        await send(start)
        await send({"type": "http.response.body", "body": b"x" * 20, "more_body": True})
        await asyncio.to_thread(told.wait)

    return app


def test_garbage_in_the_midst_of_an_answer_cuts_it_off() -> None:
    told = threading.Event()
    config = uvicorn.Config(
        says_slowly(told), http=giving_up_after(60), port=0, lifespan="off", log_level="critical", ws="none"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started, "the server has started")
    port = server.servers[0].sockets[0].getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        answer = b""
        while not answer.endswith(b"x" * 20):
            answer += connection.recv(4096)
        connection.sendall(b"zzz\r\n")
        with contextlib.suppress(ConnectionResetError):
            answer += b"".join(iter(lambda: connection.recv(4096), b""))
    told.set()
    server.should_exit = True
    thread.join()
    assert answer.endswith(b"\r\n\r\n" + b"x" * 20), "nothing else was written into its body"


class Pipe:
    """A transport and a clock in a test's hands."""

    def __init__(self) -> None:
        self.left, self.aborted, self.timers = 0, False, list[Any]()

    def get_write_buffer_size(self) -> int:
        return self.left

    def abort(self) -> None:
        self.aborted = True

    def call_later(self, seconds: float, call: Any, *arguments: Any) -> "Pipe":
        assert seconds == 7
        self.timers.append(lambda: call(*arguments))
        return self

    def cancel(self) -> None:
        self.timers.clear()

    def __getattr__(self, _: str) -> Any:
        return lambda *_: None

    def ring(self) -> None:
        self.timers.pop()()


def test_who_reads_slowly_is_left_in_peace() -> None:
    pipe: Any = Pipe()
    connection = giving_up_after(7)(uvicorn.Config(lambda: None), ServerState(), {}, _loop=pipe)  # type: ignore[arg-type]
    connection.connection_made(pipe)
    for rest in (1000, 999, 400):
        pipe.left = rest
        connection.pause_writing() if rest == 1000 else pipe.ring()
    assert (len(pipe.timers), pipe.aborted) == (1, False)
    connection.resume_writing()
    assert not pipe.timers
    connection.pause_writing()
    pipe.ring()
    assert pipe.aborted
