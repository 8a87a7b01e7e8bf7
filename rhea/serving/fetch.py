"""Fetch what an https address names, without becoming a tool against the network that the server stands in.

An address is parsed once, by the pattern below, and what it found is what is connected to: servers were fooled where
two parsers read one address differently. A host must be on the list of allowed ones, all its IP addresses must be
public, and the connection goes to a checked one (a second look-up may answer otherwise), under the host's name for TLS.
No redirects, no proxies, no compression, one time limit and one byte limit for all of it.
"""

import asyncio
import contextlib
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import h11

from rhea.serving.errors import ApiError

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Resolver = Callable[[str], Awaitable[list[str]]]
"""IP addresses of a host."""
Connector = Callable[[str, str], Awaitable[Streams]]
"""TLS to an IP address, whose certificate is that of a host."""

_ADDRESS = re.compile(
    r"https://(?P<host>[a-z0-9-]+(?:\.[a-z0-9-]+)*)(?::443)?(?P<target>(?:/[\w.~!$&'()*+,;=:@%/-]*)?(?:\?[\w.~!$&'()*+,;=:@%/?-]*)?)"
    r"(?:#[\w.~!$&'()*+,;=:@%/?-]*)?",
    re.ASCII | re.IGNORECASE,
)
_MAX_ADDRESS = 2048
_PORT = 443
_PUBLIC_V6 = ipaddress.ip_network("2000::/3")


class HttpsFetcher:
    """Gets files from allowed hosts over https."""

    def __init__(
        self,
        allowed_hosts: Collection[str],
        *,
        max_bytes: int = 20 * 2**20,
        seconds: float = 10.0,
        resolver: Resolver | None = None,
        connector: Connector | None = None,
    ) -> None:
        """Allow exactly these host names. Tests give a ``resolver`` and a ``connector`` of their own."""
        self._hosts = {host.lower() for host in allowed_hosts}
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._resolver = resolver or _resolve
        self._connector = connector or _connect

    async def get(self, url: str) -> bytes:
        """Return the body that an address names; raise ApiError if it may not or cannot be had."""
        found = _ADDRESS.fullmatch(url) if len(url) <= _MAX_ADDRESS else None
        if found is None:
            message = "the address is not taken: write https://HOST/PATH without user name, port or special characters"
            raise _error("invalid_url", message)
        host = found["host"].lower()
        if host not in self._hosts:
            raise _error("host_not_allowed", "this server does not fetch from that host: send the file as a data: URL")
        target = found["target"] if found["target"].startswith("/") else "/" + found["target"]
        try:
            async with asyncio.timeout(self._seconds):
                reader, writer = await self._open(host)
                try:
                    return await self._converse(reader, writer, host, target)
                finally:
                    writer.transport.abort()  # whatever the other side still has to say
        except TimeoutError:
            raise _error("fetch_timeout", f"the address gave no whole file within {self._seconds:g} seconds") from None
        except (OSError, h11.RemoteProtocolError):
            raise _failed() from None

    async def _open(self, host: str) -> Streams:
        """Connect to the first address that answers; refuse the host if a single one of them is not public."""
        addresses = await self._resolver(host)
        if not addresses or not all(map(is_public, addresses)):
            raise _error("host_not_allowed", "the address's host is not on the public internet: send the file itself")
        for address in sorted(addresses, key=lambda address: ":" in address):
            with contextlib.suppress(OSError):
                return await self._connector(address, host)
        raise _failed()

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, target: str
    ) -> bytes:
        connection = h11.Connection(h11.CLIENT)
        headers = [("Host", host), ("User-Agent", "rhea"), ("Accept-Encoding", "identity"), ("Connection", "close")]
        writer.write(connection.send(h11.Request(method="GET", target=target, headers=headers)) or b"")
        writer.write(connection.send(h11.EndOfMessage()) or b"")
        await writer.drain()
        body = bytearray()
        while True:
            event: Any = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(2**16))
            elif isinstance(event, h11.Response):
                self._check(event)
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > self._max_bytes:
                    raise self._too_large()
            elif isinstance(event, h11.EndOfMessage):
                return bytes(body)
            elif not isinstance(event, h11.InformationalResponse):
                raise _failed()

    def _check(self, response: h11.Response) -> None:
        headers = dict(response.headers)
        if 300 <= response.status_code < 400:
            raise _error(
                "redirect_refused", "the address leads to another one, which is not followed: give the last one"
            )
        if response.status_code != 200 or headers.get(b"content-encoding", b"identity") != b"identity":
            raise _failed()
        if int(headers.get(b"content-length", b"0")) > self._max_bytes:  # h11 let digits pass only
            raise self._too_large()

    def _too_large(self) -> ApiError:
        message = f"the file is too large: at most {self._max_bytes} bytes are allowed"
        return ApiError(413, message, code="media_too_large")


def is_public(address: str) -> bool:
    """Tell whether an IP address is anybody's to reach: no private, local, shared, multicast or translated one."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and (ip not in _PUBLIC_V6 or ip.sixtofour):
        return False  # outside are mapped (::ffff:0:0/96) and translated (64:ff9b::/96) IPv4 addresses too
    return ip.is_global and not ip.is_multicast


async def _resolve(host: str) -> list[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, _PORT, type=socket.SOCK_STREAM)
    except UnicodeError:  # labels too long or empty
        raise _failed() from None
    return [str(where[0]) for *_, where in found]


async def _connect(address: str, host: str) -> Streams:
    return await asyncio.open_connection(address, _PORT, ssl=ssl.create_default_context(), server_hostname=host)


def _failed() -> ApiError:
    return _error("fetch_failed", "the address gives no file: check it, or send the file itself as a data: URL")


def _error(code: str, message: str) -> ApiError:
    return ApiError(400, message, code=code)
