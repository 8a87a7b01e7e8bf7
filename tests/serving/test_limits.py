"""What the server takes on: keys, sizes, numbers and time are checked, with a backend that does as a test says."""

import asyncio
import base64
import json
import socket
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from served import FakeBackend, Served, drawn, endless, serving, until

from rhea.errors import BusyError, InputError
from rhea.serving.backend import BackendDiedError, Event, Task, TextDelta
from rhea.serving.errors import ApiError, api_error
from rhea.serving.limits import ServerSettings
from rhea.serving.serve import Listening, bound, guarding

SETTINGS = ServerSettings(api_keys=("first", "second"), max_body_bytes=1000, max_open=3)
IMPATIENT = replace(SETTINGS, body_seconds=0.3, deadline_seconds=0.3)
KEY = {"Authorization": "Bearer second"}
BODY = {"prompt": "red"}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(FakeBackend(), SETTINGS) as server:
        yield server


@pytest.fixture
def backend(served: Served) -> FakeBackend:
    """Return the server's backend, set back."""
    served.backend.script, served.backend.ready, served.backend.left = drawn, True, 0
    served.backend.tasks.clear()
    return served.backend


def draw(served: Served, **settings: Any) -> httpx.Response:
    return httpx.post(f"{served.api}/images/generations", **{"json": BODY, "headers": KEY} | settings)


def code(answer: httpx.Response) -> str:
    return answer.json()["error"]["code"]


def fails_with(error: Exception) -> Any:
    async def script(task: Task) -> AsyncGenerator[Event, None]:
        raise error
        yield

    return script


@pytest.mark.parametrize("path", ["/v1/models", "/ready", "/metrics", "/docs", "/openapi.json", "/nothing"])
def test_everything_but_health_asks_for_a_key(served: Served, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer"}, {"Authorization": "first"}):
        answer = httpx.get(served.url + path, headers=headers)
        assert (answer.status_code, code(answer)) == (401, "invalid_api_key")
    browser = "Basic " + base64.b64encode(b"me:first").decode()
    for headers in (KEY, {"Authorization": browser}):
        assert httpx.get(served.url + path, headers=headers).status_code == (404 if path == "/nothing" else 200)
    assert httpx.get(served.url + "/health").status_code == 200


def test_the_client_raises_for_a_wrong_key(served: Served) -> None:
    with served.client("wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    with served.client("first") as client:
        assert client.models.list().data


def test_a_large_body_is_refused_before_it_is_parsed(served: Served, backend: FakeBackend) -> None:
    padded = json.dumps(BODY | {"user": "x" * 1000}).encode()
    for content in (padded, iter([padded[:500], padded[500:]])):  # announced, and in chunks
        answer = draw(served, json=None, content=content, headers=KEY | {"Content-Type": "application/json"})
        assert (answer.status_code, code(answer)) == (413, "request_too_large")
    assert not backend.tasks
    assert draw(served, json=BODY | {"user": "x" * 900}).status_code == 200


def test_too_many_open_requests_are_refused_early(served: Served, backend: FakeBackend) -> None:
    backend.script = endless
    with httpx.Client(headers=KEY) as client:
        streams = [
            client.stream("POST", f"{served.api}/images/generations", json=BODY | {"stream": True, "partial_images": 1})
            for _ in range(3)
        ]
        answers = [stream.__enter__() for stream in streams]
        assert [answer.status_code for answer in answers] == [200] * 3
        with served.client("first") as impatient, pytest.raises(openai.RateLimitError) as refused:
            impatient.images.generate(prompt="red")
        assert refused.value.response.headers["Retry-After"] == "1"
        assert len(backend.tasks) == 3
        assert httpx.get(served.url + "/health").status_code == 200
        for stream in streams:
            stream.__exit__(None, None, None)
    until(lambda: backend.left == 3, "those who left are cancelled")
    backend.script = drawn
    until(lambda: draw(served).status_code == 200, "there is room again")


@pytest.mark.parametrize(
    ("error", "status", "told", "retry"),
    [
        (BusyError("8 requests wait"), 429, "busy", "1"),
        (BackendDiedError("it broke down"), 503, "engine_down", "5"),
        (RuntimeError("/secret/path: 0x7f00"), 500, "internal_error", None),
    ],
)
def test_what_the_engine_raises(
    served: Served, backend: FakeBackend, error: Exception, status: int, told: str, retry: str | None
) -> None:
    backend.script = fails_with(error)
    for body in (BODY, BODY | {"n": 2}, BODY | {"stream": True}):
        answer = draw(served, json=body)
        assert (answer.status_code, code(answer), answer.headers.get("Retry-After")) == (status, told, retry)
        assert "secret" not in answer.text


def test_an_error_in_a_stream_is_an_event(served: Served, backend: FakeBackend) -> None:
    async def breaks(task: Task) -> AsyncGenerator[Event, None]:
        yield TextDelta(text="one ")
        raise RuntimeError("/secret/path")

    backend.script = breaks
    with served.client("first") as client:
        stream = client.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": "two"}], stream=True
        )
        assert next(stream).choices[0].delta.content == "one "
        with pytest.raises(openai.APIError, match="something broke inside") as told:
            next(stream)
    assert "secret" not in str(told.value.body)


def test_time_is_limited() -> None:
    with serving(FakeBackend(endless), IMPATIENT) as server:
        host, _, port = server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as connection:
            lines = ["POST /v1/images/generations HTTP/1.1", "Host: x", "Authorization: Bearer first"]
            connection.sendall("\r\n".join([*lines, "Content-Length: 9", "", "{"]).encode())
            assert b"408" in connection.recv(4096).split(b"\r\n")[0]
        answer = draw(server)
        assert (answer.status_code, code(answer)) == (504, "deadline_exceeded")
        until(lambda: server.backend.left == 1, "the task is cancelled")
        streamed = draw(server, json=BODY | {"stream": True, "partial_images": 1})
        assert streamed.status_code == 200
        assert streamed.text.count("event: image_generation.partial_image") == 1
        assert '"code": "deadline_exceeded"' in streamed.text


def test_health_tells_that_the_engine_is_down(served: Served, backend: FakeBackend) -> None:
    backend.ready = False
    for path in ("/health", "/ready"):
        answer = httpx.get(served.url + path, headers=KEY)
        assert (answer.status_code, code(answer)) == (503, "engine_down")
    assert "rhea_engine_ready 0.0" in httpx.get(served.url + "/metrics", headers=KEY).text


def test_metrics_do_not_grow_with_what_clients_send(served: Served) -> None:
    from rhea.serving.metrics import Metrics

    metrics = Metrics()
    for width in range(1, 100):
        metrics.image((8, width, 3), 1.0)
    told = metrics.render({}, True).decode()
    assert told.count("rhea_image_seconds_count{") == 33
    assert 'rhea_image_seconds_count{size="other"} 67.0' in told


def test_other_machines_need_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RHEA_API_KEYS", raising=False)
    for host in ("127.0.0.1", "localhost", "::1"):
        Listening(host=host).check()
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.org"):
        with pytest.raises(ValueError, match="without a key"):
            Listening(host=host).check()
    Listening(host="0.0.0.0", no_key=True).check()
    monkeypatch.setenv("RHEA_API_KEYS", "one, two,")
    assert Listening(host="0.0.0.0", api_key=("zero",)).settings.api_keys == ("zero", "one", "two")
    Listening(host="0.0.0.0").check()
    for wrong in ({"port": 70000}, {"slots": 0}, {"drain": -1.0}):
        with pytest.raises(ValueError, match=r"must be|a port is"):
            Listening(**wrong).check()


def test_without_a_key_a_local_server_only_answers_to_its_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page in a browser may have its own name point at this machine, and would then be of the same origin."""
    monkeypatch.delenv("RHEA_API_KEYS", raising=False)
    with serving(FakeBackend(), Listening().settings) as server:
        for host, status in (
            ("evil.example", 403),
            ("evil.example:8000", 403),
            ("", 403),
            ("127.0.0.1:1", 200),
            ("localhost", 200),
            ("[::1]:8000", 200),
        ):
            assert httpx.get(server.url + "/v1/models", headers={"Host": host}).status_code == status
    assert Listening(api_key=("one",)).settings.hosts == ()


def test_media_are_fetched_only_where_hosts_are_named() -> None:
    async def load(*hosts: str) -> None:
        async with guarding(Listening(allow_host=hosts)) as guard:
            await guard.load("https://a.example/a.png")

    for hosts, told in (((), "remote_media_disabled"), (("b.example",), "host_not_allowed")):
        with pytest.raises(ApiError) as refused:
            asyncio.run(load(*hosts))
        assert refused.value.code == told


def test_a_port_that_is_taken_is_told() -> None:
    with bound(Listening(port=0)) as taken:
        taken.listen()
        with pytest.raises(InputError, match=r"cannot listen at 127.0.0.1, port \d+: Address already in use"):
            bound(Listening(port=taken.getsockname()[1]))


def test_stopping_lets_requests_finish() -> None:
    async def slow(task: Task) -> AsyncGenerator[Event, None]:
        async for event in drawn(task):
            await asyncio.sleep(0.2)
            yield event

    with serving(FakeBackend(slow)) as server, httpx.Client() as client:
        body = BODY | {"stream": True, "partial_images": 1}
        with client.stream("POST", f"{server.api}/images/generations", json=body) as answer:
            lines = answer.iter_lines()
            assert "partial_image" in next(lines)
            server.stop()
            assert "image_generation.completed" in "".join(lines)


def test_what_is_no_http_is_refused_in_the_same_shape(served: Served) -> None:
    host, _, port = served.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost : x\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


def test_errors_of_any_kind_have_a_shape() -> None:
    told = api_error(ValueError("/secret/path")).body["error"]
    assert (told["type"], told["code"]) == ("server_error", "internal_error")
    assert "secret" not in told["message"]
