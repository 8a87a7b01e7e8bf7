"""A page over a real model on a real socket, and a browser to look at it with."""

import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import fastapi
import gradio as gr
import uvicorn

from rhea.serving.local import LocalBackend
from rhea.studio.page import mount


@contextlib.contextmanager
def served(blocks: gr.Blocks, backend: LocalBackend, **settings: Any) -> Iterator[str]:
    """Serve a page from a thread of this process; yield its address."""

    @contextlib.asynccontextmanager
    async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
        async with backend:
            yield

    app = mount(fastapi.FastAPI(lifespan=lifespan), blocks, **settings)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended before it began"
        time.sleep(0.02)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=10)
