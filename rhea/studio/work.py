"""Several tasks at the model at once, heard as one stream; and its errors in the user's words."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence

from rhea.errors import BusyError, InputError
from rhea.serving.backend import Backend, BackendDiedError, Event, Task
from rhea.studio.refusals import in_chinese
from rhea.studio.texts import say

MENDABLE = (InputError, BusyError, BackendDiedError)
"""What a task may fail with."""


async def work(
    backend: Backend, tasks: Sequence[Task], *, partials: int | None = None
) -> AsyncGenerator[dict[int, Event], None]:
    """Yield what is new of each task by its number, only the newest event: a slow page skips what is outdated.

    So it is for pictures and films, not for answers, of which every piece counts. Leaving the loop cancels all tasks;
    the first error ends them and is raised.
    """
    news: dict[int, Event] = {}
    arrived = asyncio.Event()

    async def follow(number: int, task: Task) -> None:
        async with contextlib.aclosing(backend.run(task, partials=partials)) as events:
            async for event in events:
                news[number] = event
                arrived.set()

    # No task group: whoever draws a generator's items may be another task each time, and a group belongs to one.
    running = [asyncio.create_task(follow(number, task)) for number, task in enumerate(tasks)]
    for each in running:
        each.add_done_callback(lambda _: arrived.set())
    try:
        while news or not all(each.done() for each in running):
            await arrived.wait()
            arrived.clear()
            for each in running:
                if each.done():
                    each.result()
            fresh, news = news, {}
            if fresh:
                yield fresh
    finally:
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def told(error: BaseException, language: str) -> str:
    """Say in the user's language what went wrong and what to do."""
    if isinstance(error, BusyError):
        return say(language, "busy")
    if isinstance(error, BackendDiedError):
        return say(language, "died")
    return say(language, "wrong", reason=in_chinese(str(error)) if language == "zh" else str(error))
