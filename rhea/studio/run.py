"""From a model to the studio on a socket, the API beside it: one process, so that looking inside sees this model."""

import asyncio
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rhea.serving.app import create_app
from rhea.serving.limits import Bounds
from rhea.serving.local import LocalBackend
from rhea.serving.serve import Listening, bound, filming, guarding, running
from rhea.studio.page import create_studio, mount
from rhea.studio.store import Store

if TYPE_CHECKING:
    from rhea.generation.model import Rhea


def run(model: "Rhea", options: Listening, judgements: str | Path, say: Callable[[str], None]) -> None:
    """Serve page and API until SIGTERM or Ctrl-C; ``say`` is told the address. Judgements are kept in that file."""
    options.check()
    store = Store(Path(judgements))
    for name in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again after it has stopped
        signal.signal(name, lambda *_: None)
    with bound(options) as port:
        asyncio.run(serve_studio(model, options, port, store, say))


async def serve_studio(
    model: "Rhea", options: Listening, port: socket.socket, store: Store, say: Callable[[str], None]
) -> None:
    """Serve page and API on a bound socket until the server is told to stop."""
    bounds = Bounds(max_requests=options.max_requests, max_tokens=options.max_tokens)
    async with LocalBackend(model, bounds=bounds) as backend, guarding(options) as guard:
        app = create_app(backend, options.settings, guard)
        async with filming(app, options):
            mount(app, create_studio(backend, model, store, guard))  # at "/", so after all else
            async with running(app, options, port) as server:
                say(f"the studio is open at http://{options.host}:{server.port}/ (Ctrl-C closes it)")
                await server.wait()
