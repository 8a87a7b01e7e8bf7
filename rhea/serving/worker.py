"""The engine's own process: ``python -m rhea.serving.worker FD`` answers the messages of ``process.py`` on a socket.

It lives as long as the socket: when the server is gone, however that came, the stream ends and so does this process.
SIGTERM goes to all processes of a service at once; here it is passed over, for the server first lets them finish.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from typing import Any

import torch

from rhea.config import from_dict
from rhea.errors import BusyError, InputError
from rhea.generation.engine import EngineConfig
from rhea.generation.loading import load_model
from rhea.logging import logger
from rhea.serving.backend import Task
from rhea.serving.choice import ModelChoice
from rhea.serving.limits import Bounds
from rhea.serving.local import LocalBackend
from rhea.serving.wire import BrokenStreamError, pack, receive


def load(choice: ModelChoice, bounds: Bounds) -> LocalBackend:
    """Load a model into this process."""
    model = load_model(
        choice.checkpoint,
        device=choice.device,
        dtype=choice.dtype,
        vision_tokenizer=choice.vision_tokenizer,
        tile=choice.tile,
        weights=choice.weights,
        engine=EngineConfig(
            slots=choice.slots,
            max_len=choice.max_len,
            window=choice.window,
            parallel=choice.parallel,
            cache=choice.cache,
        ),
    )
    return LocalBackend(model, name=choice.name, bounds=bounds)


class Worker:
    """Works on what comes in until the stream ends."""

    def __init__(self, backend: LocalBackend, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._backend, self._reader, self._writer = backend, reader, writer
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def serve(self) -> None:
        """Take messages: run a task, cancel one, tell the counters, show that the engine moves."""
        await self._send({"kind": "ready", "info": self._backend.info})
        while True:
            message = await receive(self._reader)
            number = message["number"]
            if message["kind"] == "cancel":
                if (task := self._tasks.get(number)) is not None:
                    task.cancel()
                continue
            kinds = {"run": self._run, "counters": self._counters, "beat": self._beat}
            self._tasks[number] = asyncio.create_task(kinds[message["kind"]](number, message))
            self._tasks[number].add_done_callback(lambda _, number=number: self._tasks.pop(number, None))  # type: ignore[misc]

    async def _run(self, number: int, message: dict[str, Any]) -> None:
        task: Task = message["task"]
        try:
            async with contextlib.aclosing(self._backend.run(task, partials=message["partials"])) as events:
                async for event in events:
                    await self._send({"kind": "event", "number": number, "event": event})
            await self._send({"kind": "end", "number": number})
        except Exception as error:
            kinds = {InputError: "input", BusyError: "busy"}
            kind = next((name for cls, name in kinds.items() if isinstance(error, cls)), "died")
            message_ = str(error) if kind != "died" else "the engine broke down while it worked on this"
            await self._send({"kind": "error", "number": number, "error": kind, "message": message_})

    async def _counters(self, number: int, _: dict[str, Any]) -> None:
        await self._send({"kind": "counters", "number": number, "counters": await self._backend.counters()})

    async def _beat(self, number: int, _: dict[str, Any]) -> None:
        await self._backend.pulse()
        await self._send({"kind": "beat", "number": number})

    async def _send(self, message: dict[str, Any]) -> None:
        self._writer.write(pack(message))
        await self._writer.drain()


def leave_a_core() -> None:
    """Let the engine compute on all cores but one, unless OMP_NUM_THREADS says on how many.

    Pixels, HTTP and their own teams of threads need one as well: a team that waits for a core waits in every product.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(torch.get_num_threads() - 1, 1))


async def work(descriptor: int) -> None:
    """Load the model that the first message names and serve it; at the end leave at once, whatever the engine is at."""
    code = 0
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        await _serve(*await asyncio.open_unix_connection(sock=socket.socket(fileno=descriptor)))
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the server is gone
    except BrokenStreamError as error:
        logger.error("the server's messages make no sense: %s", error)
        code = 1
    sys.stdout.flush()
    os._exit(code)


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    message = await receive(reader)
    choice, bounds = from_dict(ModelChoice, message["model"]), from_dict(Bounds, message["bounds"])
    try:
        backend = await asyncio.to_thread(load, choice, bounds)
    except (InputError, OSError) as error:
        writer.write(pack({"kind": "refused", "message": str(error)}))
        await writer.drain()
        return
    await backend.__aenter__()  # and never left, for that waits for the engine
    await Worker(backend, reader, writer).serve()


if __name__ == "__main__":
    leave_a_core()
    asyncio.run(work(int(sys.argv[1])))
