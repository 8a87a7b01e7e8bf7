"""How much a server takes on, in one place, and the door where it is checked before anything is parsed or decoded."""

import asyncio
import base64
import binascii
import contextlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rhea.serving.errors import ApiError

_OPEN_TO_ALL = ("/health",)


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How much may be under way in the engine; what is beyond is refused at once."""

    max_requests: int = 128
    max_tokens: int = 65_536
    """Prompts and what is to come, both branches of guidance counted. A single task is taken whatever its length."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What a server allows its clients."""

    api_keys: tuple[str, ...] = ()
    """One of them is asked for everywhere but at /health; none: no key is needed."""
    hosts: tuple[str, ...] = ()
    """What clients may call the server; empty: anything. Without keys, a page that a browser has opened could otherwise
    reach a server on the same machine by a name that it lets point there."""
    max_body_bytes: int = 32 * 2**20
    """Of a request, checked before it is parsed."""
    max_open: int = 256
    """Requests with a body that are received, worked on or answered at once."""
    body_seconds: float = 60.0
    """To send a whole request."""
    write_seconds: float = 60.0
    """For a client to take something of its answer; one that takes nothing for so long counts as gone."""
    deadline_seconds: float = 600.0
    """For the model's whole work on one request."""


class Door:
    """ASGI middleware: asks for the key, counts who is inside, and takes bodies up to a size.

    A body is read whole before the app sees the request: nothing is parsed that is too large, whether its length was
    announced or not. ``refused`` is told the code of every refusal, ``inside`` the number of requests.
    """

    def __init__(
        self, app: ASGIApp, settings: ServerSettings, refused: Callable[[str], None], inside: Callable[[int], None]
    ) -> None:
        self._app, self._settings, self._refused, self._inside = app, settings, refused, inside
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        try:
            self._check_caller(scope)
        except ApiError as error:
            await self._refuse(error, scope, receive, send)
            return
        if scope["type"] == "websocket" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        if self._open >= self._settings.max_open:
            message = f"{self._open} requests are open already: try again later"
            busy = ApiError(429, message, code="busy", headers={"Retry-After": "1"})
            await self._refuse(busy, scope, receive, send)
            return
        self._open += 1
        self._inside(self._open)
        try:
            await self._with_body(scope, receive, send)
        finally:
            self._open -= 1
            self._inside(self._open)

    async def _with_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                body = await self._body(scope, receive)
        except TimeoutError:
            late = ApiError(408, "the request did not arrive in time", code="request_timeout")
            await self._refuse(late, scope, receive, send)
            return
        except ApiError as error:
            await self._refuse(error, scope, receive, send)
            return
        if body is None:  # the client left
            return
        given = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            return next(given, None) or await receive()

        await self._app(scope, replay, send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        limit = self._settings.max_body_bytes
        announced = dict(scope["headers"]).get(b"content-length", b"")
        if announced.isdigit() and int(announced[:20]) > limit:
            raise self._too_large()
        parts, size = list[bytes](), 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> ApiError:
        limit = self._settings.max_body_bytes
        return ApiError(
            413,
            f"the request is too large: at most {limit} bytes",
            code="request_too_large",
            headers={"Connection": "close"},
        )

    def _check_caller(self, scope: Scope) -> None:
        headers, keys, hosts = dict(scope["headers"]), self._settings.api_keys, self._settings.hosts
        if hosts and _host(headers.get(b"host", b"")) not in hosts:
            message = f"this server is only known as {' or '.join(hosts)}: it needs an API key to be called otherwise"
            raise ApiError(403, message, code="unknown_host")
        if not keys or scope["path"] in _OPEN_TO_ALL:
            return
        given = _credential(headers.get(b"authorization", b""))
        # Every key is compared, in constant time: how long it takes tells nothing.
        if not sum(hmac.compare_digest(given, key.encode()) for key in keys):
            raise ApiError(
                401,
                "this server asks for an API key: send it as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": 'Basic realm="Rhea: any name, the API key as password"'},
            )

    async def _refuse(self, error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        self._refused(error.code)
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await error.response()(scope, receive, send)


def _credential(header: bytes) -> bytes:
    """Return the key of a Bearer header, or the password of a Basic one, which is what browsers can send."""
    scheme, _, value = header.partition(b" ")
    if scheme.lower() == b"basic":
        with contextlib.suppress(binascii.Error):
            return base64.b64decode(value).partition(b":")[2]
        return b""
    return value.strip() if scheme.lower() == b"bearer" else b""


def _host(header: bytes) -> str:
    """Return the name in a Host header, without its port."""
    name = header.decode("latin-1").lower()
    return name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
