"""Replicas of the app on Ray Serve: several engines behind one address.

    pip install -e '.[ray]'
    python examples/ray_serve.py --replicas 2

Ray spreads requests over the replicas and replaces those that die or whose engine stays down. Each replica is what
``rhea serve`` is, films aside: an app over an engine in a process of its own. So a model at work never holds up Ray's
checks, and who waited for an engine that died is told in the API's own words while the replica lives on.
"""

import contextlib
import math
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator

os.environ.update(  # read by Ray when it is imported; what is set already stays
    {
        "RAY_USAGE_STATS_ENABLED": "0",  # it reports to nobody
        "RAY_AUTH_MODE": "token",  # its ports are open to the network, and would run anybody's code
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_worker_niceness": "0",  # replicas are no background work
    }
    | os.environ
)

import ray
import tyro
from fastapi import FastAPI
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.schema import LoggingConfig
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rhea.errors import InputError
from rhea.serving.app import create_app
from rhea.serving.choice import ModelChoice
from rhea.serving.errors import ApiError
from rhea.serving.limits import Bounds, ServerSettings
from rhea.serving.process import ProcessBackend
from rhea.serving.serve import Listening, bound, guarding

_HEALTH_SECONDS = 1.0
"""Between two checks; Ray replaces a replica that fails three in a row."""
_OBJECT_BYTES = 256 * 2**20
"""Ray's shared memory: only bodies of requests lie in it, and only while they are handed on."""
_NAME, _QUIET = "rhea", LoggingConfig(log_level="WARNING")


@serve.ingress()
class Replica:
    """The app over an engine of its own, as Ray starts, checks and stops it."""

    def __init__(self, model: ModelChoice, options: Listening, settings: ServerSettings) -> None:
        self._model, self._options, self._settings = model, options, settings
        self._stack = contextlib.AsyncExitStack()

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Load the model and return the app; InputError if it can't be loaded."""
        bounds = Bounds(max_requests=self._options.max_requests, max_tokens=self._options.max_tokens)
        self._backend = await self._stack.enter_async_context(ProcessBackend(self._model, bounds=bounds))
        guard = await self._stack.enter_async_context(guarding(self._options))
        app = create_app(self._backend, self._settings, guard)

        @app.api_route("/v1/videos{rest:path}", methods=["GET", "POST", "DELETE"], tags=["videos"])
        async def videos(rest: str) -> None:
            """Refuse films: a job is known to the one server that took it, and the next request may reach another."""
            message = "films are not made here, where several servers share an address: ask one that rhea serve runs"
            raise ApiError(404, message, code="films_off")

        app.add_middleware(_Named, name=serve.get_replica_context().replica_id.unique_id)
        return app

    async def check_health(self) -> None:
        """Tell Ray that the engine is down by raising."""
        if not self._backend.ready:
            raise RuntimeError("the engine is down")

    async def __del__(self) -> None:
        """Stop; Ray has waited for what was under way."""
        await self._stack.aclose()


class _Named:
    """ASGI middleware that says which replica answered."""

    def __init__(self, app: ASGIApp, name: str) -> None:
        self._app, self._header = app, (b"x-rhea-replica", name.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], self._header]
            await send(message)

        await self._app(scope, receive, named)


def replicated(
    model: ModelChoice, options: Listening, *, replicas: int, cpus: float = 1.0, gpus: float = 0.0
) -> serve.Application:
    """Return what ``serve.run`` takes. ``cpus`` and ``gpus`` are each replica's own; what all can't take waits."""
    deployment = serve.deployment(
        name="replica",
        num_replicas=replicas,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        max_ongoing_requests=options.max_requests,
        max_queued_requests=options.max_requests,
        health_check_period_s=_HEALTH_SECONDS,
        graceful_shutdown_wait_loop_s=_HEALTH_SECONDS,
        graceful_shutdown_timeout_s=options.drain,
        logging_config=_QUIET,
    )(Replica)
    return deployment.bind(model, options, options.settings)


def main(
    checkpoint: str | None = None,
    replicas: int = 2,
    cpus: float = 1.0,
    gpus: float = 0.0,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: tuple[str, ...] = (),
) -> None:
    """Serve replicas of a model on this machine until SIGTERM or Ctrl-C, then finish what has begun.

    Args:
        checkpoint: Folder or hub id; the default model if not given.
        replicas: Engines, each with its own copy of the model.
        cpus: Cores of each replica.
        gpus: GPUs of each replica; a share lets several use one.
        host: Address to listen at; 0.0.0.0 lets other machines in, who then need a key.
        port: 0 takes any that is free.
        api_key: Clients must send one of these; RHEA_API_KEYS (with commas between) hides them from other users.
    """
    options = Listening(host=host, port=port, api_key=api_key)
    options.check()
    with bound(options) as free:
        port = free.getsockname()[1]
    model = ModelChoice(checkpoint=checkpoint)
    with contextlib.suppress(KeyboardInterrupt), ray_serve(host, port, cpus=math.ceil(replicas * cpus)):
        serve.run(replicated(model, options, replicas=replicas, cpus=cpus, gpus=gpus), name=_NAME)
        print(f"{model.name} is served {replicas} times at http://{host}:{port}/v1", flush=True)
        threading.Event().wait()


@contextlib.contextmanager
def ray_serve(host: str, port: int, cpus: int) -> Iterator[None]:
    """Run Ray on this machine, with a proxy that listens, while the block runs; what is under way then may finish."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=_OBJECT_BYTES)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # again: Ray has taken it for itself
    try:
        serve.start(ProxyLocation.HeadOnly, HTTPOptions(host=host, port=port), logging_config=_QUIET)
        yield
    finally:
        serve.delete(_NAME)  # first, while the proxy still hands on what replicas say
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except InputError as error:
        sys.exit(f"error: {error}")
