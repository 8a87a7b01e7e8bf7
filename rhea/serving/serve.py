"""From a choice of model to a server that runs until it is told to stop, and then finishes what it has begun."""

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from rhea.errors import InputError
from rhea.serving.app import create_app
from rhea.serving.choice import ModelChoice
from rhea.serving.connection import giving_up_after
from rhea.serving.fetch import HttpsFetcher
from rhea.serving.jobs import JobStore
from rhea.serving.limits import Bounds, ServerSettings
from rhea.serving.process import ProcessBackend
from rhea.serving.untrusted import MediaGuard
from rhea.serving.videos import videos_router

_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Where a server listens and what it takes on; the command line explains each."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: tuple[str, ...] = ()
    no_key: bool = False
    slots: int = 16
    max_requests: int = 128
    max_tokens: int = 65_536
    deadline: float = 600.0
    drain: float = 30.0
    hang_seconds: float = 120.0
    films: Path = Path("films")
    allow_host: tuple[str, ...] = ()

    @property
    def settings(self) -> ServerSettings:
        """What the app is to allow, keys from the environment included."""
        named = (key.strip() for key in os.environ.get("RHEA_API_KEYS", "").split(","))
        keys = (*self.api_key, *(key for key in named if key))
        hosts = () if keys or not _is_loopback(self.host) else (*_LOCAL, self.host)
        return ServerSettings(api_keys=keys, hosts=hosts, deadline_seconds=self.deadline)

    def check(self) -> None:
        """Raise InputError for what must not be."""
        if not _is_loopback(self.host) and not self.settings.api_keys and not self.no_key:
            raise InputError(
                f"at {self.host} other machines could use this server without a key: give --api-key KEY "
                "(or RHEA_API_KEYS in the environment), or --no-key if that is what you want"
            )
        if not 0 <= self.port < 65536:
            raise InputError(f"--port {self.port}: a port is a number from 0 to 65535")
        for name in ("slots", "max_requests", "max_tokens", "deadline", "drain", "hang_seconds"):
            if getattr(self, name) <= 0:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: it must be a positive number")


def serve(
    model: ModelChoice,
    options: Listening,
    say: Callable[[str], None],
    mount: Callable[[FastAPI], FastAPI] | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; then take nothing new and finish what is under way, for ``drain`` seconds at most.

    ``mount`` may put more on the app. ``say`` is told the address once requests are taken. Until then signals end it.
    """
    options.check()
    bounds = Bounds(max_requests=options.max_requests, max_tokens=options.max_tokens)
    with bound(options) as port:
        backend = ProcessBackend(model, bounds=bounds, hang_seconds=options.hang_seconds)
        asyncio.run(_serve(backend, options, port, say, mount))


async def _serve(
    backend: ProcessBackend,
    options: Listening,
    port: socket.socket,
    say: Callable[[str], None],
    mount: Callable[[FastAPI], FastAPI] | None,
) -> None:
    async with backend, guarding(options) as guard:
        app = create_app(backend, options.settings, guard)
        for name in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again after it has stopped
            signal.signal(name, lambda *_: None)
        async with filming(app, options), running(mount(app) if mount else app, options, port) as server:
            say(_welcome(server, options, backend.info.name))
            await server.wait()


class RunningServer:
    """A uvicorn server at work."""

    def __init__(self, server: uvicorn.Server, task: "asyncio.Task[None]", port: int) -> None:
        self._server, self._task, self.port = server, task, port

    async def wait(self) -> None:
        """Wait until it has stopped."""
        await asyncio.shield(self._task)

    def stop(self) -> None:
        """Let it finish what is under way and stop."""
        self._server.should_exit = True


def bound(options: Listening) -> socket.socket:
    """Take the port; InputError if it can't be had. Nobody is let in before the server is ready."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind, protocol)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        said = error.strerror or "it is not known"
        raise InputError(f"cannot listen at {options.host}, port {options.port}: {said}; try another --port") from None
    return taken


@contextlib.asynccontextmanager
async def running(app: FastAPI, options: Listening, port: socket.socket | None = None) -> AsyncIterator[RunningServer]:
    """Serve ``create_app``'s app while the block runs; what is under way at its end has ``drain`` seconds.

    ``port``: bound before.
    """
    port = port or bound(options)
    config = uvicorn.Config(
        app,
        http=giving_up_after(app.state.service.settings.write_seconds),
        log_level=logging.WARNING,
        timeout_graceful_shutdown=max(round(options.drain), 1),
        timeout_keep_alive=30,
        server_header=False,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[port]))
    try:
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        yield RunningServer(server, task, port.getsockname()[1])
    finally:
        server.should_exit = True
        await task


@contextlib.asynccontextmanager
async def filming(app: FastAPI, options: Listening) -> AsyncIterator[None]:
    """Take orders for films while the block runs; they are kept in a folder that one server uses at a time."""
    service, jobs = app.state.service, JobStore(options.films)
    router = videos_router(
        service.backend, service.guard, jobs, deadline_seconds=options.deadline, metrics=service.metrics
    )
    app.include_router(router)
    await router.start()
    try:
        yield
    finally:
        await router.stop(options.drain)
        jobs.close()


@contextlib.asynccontextmanager
async def guarding(options: Listening) -> AsyncIterator[MediaGuard]:
    """Decode what clients send in processes of their own while the block runs."""
    guard = MediaGuard(fetcher=HttpsFetcher(options.allow_host) if options.allow_host else None)
    await guard.start()
    try:
        yield guard
    finally:
        await guard.stop()


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _welcome(server: RunningServer, options: Listening, model: str) -> str:
    host = f"[{options.host}]" if ":" in options.host else options.host
    address = f"http://{host}:{server.port}"
    key = ' -H "Authorization: Bearer $KEY"' if options.settings.api_keys else ""
    body = '{"prompt": "a small red circle", "response_format": "url"}'
    return (
        f"{model} is served at {address}/v1 (documentation: {address}/docs). Try:\n\n"
        f"  curl {address}/v1/images/generations{key} -H 'Content-Type: application/json' -d '{body}'\n\n"
        "Ctrl-C lets it finish what it has begun, and stops it."
    )
