"""Fetching over real TLS on this machine, with names and addresses that a test invents; nothing else is let through."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable

import pytest
import trustme

from rhea.serving import fetch
from rhea.serving.errors import ApiError
from rhea.serving.fetch import HttpsFetcher, Streams, is_public

HOST = "pictures.example"
PUBLIC, OTHER = "93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class World:
    """A host with a certificate, what it answers, and what was asked of it."""

    def __init__(self, authority: trustme.CA, answer: bytes | Answer = b"", *, certified: str = HOST) -> None:
        self.addresses: list[list[str]] = [[PUBLIC]]
        self.unreachable: set[str] = set()
        self.resolved: list[str] = []
        self.connected: list[str] = []
        self.requests: list[bytes] = []
        self._answer = answer
        self._server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(certified).configure_cert(self._server_tls)
        self._client_tls = ssl.create_default_context()
        authority.configure_trust(self._client_tls)
        self._port = 0

    async def resolve(self, host: str) -> list[str]:
        self.resolved.append(host)
        return self.addresses[min(len(self.resolved), len(self.addresses)) - 1]

    async def connect(self, address: str, host: str) -> Streams:
        self.connected.append(address)
        if address in self.unreachable:
            raise OSError("no route")
        return await asyncio.open_connection("127.0.0.1", self._port, ssl=self._client_tls, server_hostname=host)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append(await reader.readuntil(b"\r\n\r\n"))
        try:
            if isinstance(self._answer, bytes):
                writer.write(self._answer)
                await writer.drain()
            else:
                await self._answer(writer)
        except OSError:
            pass  # the client has left
        finally:
            writer.transport.abort() if writer.is_closing() else writer.close()

    def get(self, url: str, **options: float) -> bytes:
        async def fetched() -> bytes:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._server_tls)
            self._port = server.sockets[0].getsockname()[1]
            fetcher = HttpsFetcher([HOST], resolver=self.resolve, connector=self.connect, **options)
            async with server:
                return await fetcher.get(url)

        return asyncio.run(fetched())

    def refuses(self, url: str, code: str, status: int = 400, **options: float) -> None:
        with pytest.raises(ApiError) as caught:
            self.get(url, **options)
        assert (caught.value.code, caught.value.status) == (code, status)


def response(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def test_a_file_is_fetched_from_the_checked_address(authority: trustme.CA) -> None:
    world = World(authority, response(b"pixels", Content_Length="6"))
    assert world.get(f"https://{HOST.upper()}:443/a/b.png?x=%20&y=1#part") == b"pixels"
    assert (world.resolved, world.connected) == ([HOST], [PUBLIC])
    request = world.requests[0].decode().lower()
    assert request.startswith("get /a/b.png?x=%20&y=1 http/1.1\r\n")
    assert f"host: {HOST}\r\n" in request
    assert "accept-encoding: identity" in request


def test_chunks_and_bodies_up_to_the_end_of_the_stream_are_files_too(authority: trustme.CA) -> None:
    chunked = response(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", Transfer_Encoding="chunked")
    assert World(authority, chunked).get(f"https://{HOST}/") == b"abcde"
    world = World(authority, response(b"abcde"))
    assert world.get(f"https://{HOST}?q") == b"abcde"
    assert world.requests[0].startswith(b"GET /?q HTTP/1.1")


def test_the_next_address_is_tried_if_one_does_not_answer(authority: trustme.CA) -> None:
    world = World(authority, response(b"x", Content_Length="1"))
    world.addresses, world.unreachable = [[OTHER, PUBLIC]], {PUBLIC}
    assert world.get(f"https://{HOST}/") == b"x"
    assert world.connected == [PUBLIC, OTHER]
    world.unreachable = {PUBLIC, OTHER}
    world.refuses(f"https://{HOST}/", "fetch_failed")


def test_the_proxy_environment_is_not_asked(authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert World(authority, response(b"x", Content_Length="1")).get(f"https://{HOST}/") == b"x"


# --- addresses that are not what they seem ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        f"http://{HOST}/",
        f"https://{HOST}:8443/",
        f"https://{HOST}:/",
        f"https://{HOST}\\@127.0.0.1/",
        f"https://127.0.0.1\\@{HOST}/",
        f"https://{HOST}\\.evil.example/",
        f"https://user@{HOST}/",
        f"https://user:password@{HOST}/",
        f"https://127.0.0.1@{HOST}/",
        f"https://{HOST}@127.0.0.1/",
        f"https://{HOST}/a b",
        f"https://{HOST}/a\r\nX-Injected: 1",
        f"https://{HOST}/\n",
        f"https://{HOST}\t/",
        f"https://{HOST}./",
        f"https://{HOST}%2eevil.example/",
        f"https://{HOST}/ä",
        "https://pictures。example/",
        "https://PİCTURES.example/",
        f"https:{HOST}/",
        f"https:///{HOST}/",
        f" https://{HOST}/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://",
        f"https://{HOST}/" + "a" * 2048,
    ],
)
def test_unusual_addresses_are_refused_unresolved(authority: trustme.CA, url: str) -> None:
    world = World(authority)
    world.refuses(url, "invalid_url")
    assert not world.resolved


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "127.0.0.1",
        "localhost",
        "evil.example",
        f"{HOST}.evil.example",
    ],
)
def test_hosts_must_be_on_the_list(authority: trustme.CA, host: str) -> None:
    world = World(authority)
    world.refuses(f"https://{host}/", "host_not_allowed")
    assert not world.resolved


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "127.1", "127.0.0.1", "localhost"])
def test_an_allowed_host_is_still_no_way_to_this_machine(host: str) -> None:
    """With the system's own resolver, which reads all of these as 127.0.0.1."""
    with pytest.raises(ApiError) as caught:
        asyncio.run(HttpsFetcher([host], connector=lambda *_: pytest.fail("connected")).get(f"https://{host}/"))
    assert caught.value.code == "host_not_allowed"


NOT_PUBLIC = [
    "127.0.0.1",
    "127.8.9.1",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "192.0.2.1",
    "198.18.0.1",
    "::",
    "::1",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fec0::1",
    "ff02::1",
    "2001:db8::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    f"::ffff:{PUBLIC}",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "2001:0:7f00:1::",
    "not an address",
    "",
]


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_addresses_that_are_not_public(authority: trustme.CA, address: str) -> None:
    assert not is_public(address)
    world = World(authority)
    world.addresses = [[PUBLIC, address]]
    world.refuses(f"https://{HOST}/", "host_not_allowed")
    assert not world.connected


@pytest.mark.parametrize("address", [PUBLIC, OTHER, "1.1.1.1", "2a00:1450:4001:80b::200e"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


def test_a_second_answer_of_the_resolver_is_never_asked_for(authority: trustme.CA) -> None:
    world = World(authority, response(b"x", Content_Length="1"))
    world.addresses = [[PUBLIC], ["127.0.0.1"]]
    assert world.get(f"https://{HOST}/") == b"x"
    assert (world.resolved, world.connected) == ([HOST], [PUBLIC])


def test_a_host_without_address_gives_no_file(authority: trustme.CA) -> None:
    world = World(authority)
    world.addresses = [[]]
    world.refuses(f"https://{HOST}/", "host_not_allowed")

    async def unknown(host: str) -> list[str]:
        raise OSError("no such host at 0x7f")

    with pytest.raises(ApiError, match="check it"):
        asyncio.run(HttpsFetcher([HOST], resolver=unknown).get(f"https://{HOST}/"))


# --- hosts that misbehave ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
def test_redirects_are_not_followed(authority: trustme.CA, status: str) -> None:
    world = World(authority, response(b"", status, Location="https://169.254.169.254/", Content_Length="0"))
    world.refuses(f"https://{HOST}/", "redirect_refused")
    assert len(world.connected) == len(world.resolved) == 1


def test_a_certificate_must_be_the_hosts_own(authority: trustme.CA) -> None:
    World(authority, response(b"x"), certified="evil.example").refuses(f"https://{HOST}/", "fetch_failed")
    stranger = World(trustme.CA(), response(b"x"))
    stranger._client_tls = World(authority)._client_tls
    stranger.refuses(f"https://{HOST}/", "fetch_failed")
    assert not stranger.requests


def test_the_real_connector_checks_certificates(authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> None:
    """The authority of these tests is not one that the system trusts."""
    world = World(authority, response(b"x", Content_Length="1"))

    async def real(address: str, host: str) -> Streams:
        monkeypatch.setattr(fetch, "_PORT", world._port)
        return await fetch._connect("127.0.0.1", host)

    monkeypatch.setattr(world, "connect", real)
    world.refuses(f"https://{HOST}/", "fetch_failed")
    assert not world.requests


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"no http at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 2**18,
        response(b"abc", Content_Length="5"),
        response(b"5\r\nab", Transfer_Encoding="chunked"),
        response(b"x", Content_Length="-1"),
        response(b"x", Content_Length="1, 2"),
        response(b"\x1f\x8b", Content_Encoding="gzip", Content_Length="2"),
        response(b"gone", "404 Not Found", Content_Length="4"),
        response(b"part", "206 Partial Content", Content_Length="4"),
        response(b"", "101 Switching Protocols"),
    ],
)
def test_broken_answers_give_no_file(authority: trustme.CA, answer: bytes) -> None:
    World(authority, answer).refuses(f"https://{HOST}/", "fetch_failed")


def test_bytes_are_capped_by_announcement_and_by_count(authority: trustme.CA) -> None:
    exact = World(authority, response(b"12345678", Content_Length="8"))
    assert exact.get(f"https://{HOST}/", max_bytes=8) == b"12345678"
    exact.refuses(f"https://{HOST}/", "media_too_large", 413, max_bytes=7)

    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(response(b"", Transfer_Encoding="chunked"))
        while True:
            writer.write(b"ff\r\n" + bytes(255) + b"\r\n")
            await writer.drain()

    World(authority, endless).refuses(f"https://{HOST}/", "media_too_large", 413, max_bytes=10_000)

    async def only_announced(writer: asyncio.StreamWriter) -> None:
        writer.write(response(b"", Content_Length="99999999999"))
        await asyncio.sleep(1000)

    World(authority, only_announced).refuses(f"https://{HOST}/", "media_too_large", 413, seconds=1000)


@pytest.mark.parametrize(
    ("start", "drop"),
    [(b"", b"H"), (b"", b"HTTP/1.1 102 Processing\r\n\r\n"), (response(b"", Content_Length="1000"), b"x")],
)
def test_a_slow_drip_ends_with_the_time(authority: trustme.CA, start: bytes, drop: bytes) -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            writer.write(drop)
            await writer.drain()
            await asyncio.sleep(0.02)

    World(authority, drip).refuses(f"https://{HOST}/", "fetch_timeout", seconds=0.5)


def test_a_resolver_that_hangs_ends_with_the_time() -> None:
    async def hang(host: str) -> list[str]:
        await asyncio.sleep(1000)
        return []

    with pytest.raises(ApiError) as caught:
        asyncio.run(HttpsFetcher([HOST], resolver=hang, seconds=0.05).get(f"https://{HOST}/"))
    assert caught.value.code == "fetch_timeout"
