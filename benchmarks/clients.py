"""Clients of every kind at once: they draw, watch, edit, ask, film, crowd, err and leave, all through OpenAI's client.

A wish is a kind and a number and nothing else decides what is asked for, so the answer under load can be held against
the answer to the same wish alone. Nothing is tried twice behind a client's back: a refusal is an outcome.
"""

import asyncio
import base64
import contextlib
import io
import random
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import openai
from PIL import Image

from rhea.worlds.shapes.render import render
from rhea.worlds.shapes.scene import sample_scene

PATIENCE = 300.0
"""Seconds after which a request that is neither answered nor refused hangs."""
_PROMPTS = ("a small red circle", "a large blue square and a small green triangle", "一个黄色的星形", "two rings")
_EDITS = ("make it blue", "remove the circle", "add a small green square")
_QUESTIONS = ("How many objects are there?", "What colour is the largest object?", "Is there a circle?")
_ERROR = {"message", "type", "param", "code"}


@dataclass(frozen=True, order=True)
class Wish:
    """A request; its number chooses words, picture and seed."""

    kind: str
    number: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a wish."""

    wish: Wish
    status: str
    """Of HTTP, or "left" if the client did not wait, "hung" or "broken"."""
    seconds: float
    result: str | None = None
    wait: float = 0.0
    """Seconds after which a refused client was told to come again."""
    defect: str | None = None
    """What is wrong with it, if it is neither answered nor refused in order."""


class _LeftError(Exception):
    """The client did not wait for the end."""


@lru_cache
def png(number: int) -> bytes:
    """Return a drawn scene as a file."""
    file = io.BytesIO()
    Image.fromarray(render(sample_scene(np.random.default_rng(number)))).save(file, format="PNG")
    return file.getvalue()


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def question(number: int, picture: str | None = None, **settings: Any) -> dict[str, Any]:
    """Return the body of a question about a picture."""
    parts = [
        {"type": "image_url", "image_url": {"url": picture or data_url(png(number))}},
        {"type": "text", "text": _QUESTIONS[number % len(_QUESTIONS)]},
    ]
    return {"model": "rhea-default", "messages": [{"role": "user", "content": parts}], "seed": number, **settings}


def drawing(number: int, **settings: Any) -> dict[str, Any]:
    """Return the arguments of a picture."""
    return {"prompt": _PROMPTS[number % len(_PROMPTS)], "extra_body": {"seed": number}, **settings}


async def _draw(api: openai.AsyncOpenAI, number: int) -> str:
    made = await api.images.generate(**drawing(number))
    return str(made.data[0].b64_json)


async def _watch(api: openai.AsyncOpenAI, number: int) -> str:
    events = [each async for each in await api.images.generate(**drawing(number, stream=True, partial_images=3))]
    kinds = [each.type for each in events]
    assert kinds[-1:] == ["image_generation.completed"], kinds
    return str(events[-1].b64_json)  # which rows a partial picture shows depends on the engine's pace


async def _edit(api: openai.AsyncOpenAI, number: int) -> str:
    instruction = _EDITS[number % len(_EDITS)]
    made = await api.images.edit(image=png(number), prompt=instruction, extra_body={"seed": number})
    return str(made.data[0].b64_json)  # type: ignore[index]


async def _ask(api: openai.AsyncOpenAI, number: int) -> str:
    answer = await api.chat.completions.create(**question(number, temperature=1.0))
    return str(answer.choices[0].message.content)


async def _listen(api: openai.AsyncOpenAI, number: int) -> str:
    chunks = await api.chat.completions.create(**question(number, temperature=1.0, stream=True))
    return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])


async def _film(api: openai.AsyncOpenAI, number: int) -> str:
    told = {"num_frames": 8, "seed": number}
    job = await api.videos.create(prompt=f"{_PROMPTS[0]} moving to the right", extra_body=told)
    while job.status in ("queued", "in_progress"):
        await asyncio.sleep(0.25)
        job = await api.videos.retrieve(job.id)
    assert job.status == "completed", job.error
    film = (await api.videos.download_content(job.id)).read()
    await api.videos.delete(job.id)
    return base64.b64encode(film).decode()


async def _crowd(api: openai.AsyncOpenAI, number: int) -> str:
    made = await api.images.generate(**drawing(number, n=10))
    return " ".join(str(each.b64_json) for each in made.data or [])


async def _err(api: openai.AsyncOpenAI, number: int) -> None:
    await _ERRORS[number % len(_ERRORS)][1](api)


async def _leave(api: openai.AsyncOpenAI, number: int) -> None:
    if number % 2:
        async with await api.images.generate(**drawing(number, stream=True, partial_images=3)) as events:
            await anext(aiter(events))
    else:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(api.images.generate(**drawing(number)), 0.02 + 0.04 * (number % 10))
    raise _LeftError


_ERRORS: tuple[tuple[str, Callable[[openai.AsyncOpenAI], Awaitable[Any]]], ...] = (
    ("400", lambda api: api.images.generate(prompt="red", size="17x16")),
    ("400", lambda api: api.images.generate(prompt="red", n=11)),
    ("404", lambda api: api.images.generate(prompt="red", model="another")),
    ("404", lambda api: api.videos.retrieve("video_0")),
    ("400", lambda api: api.images.edit(image=b"no picture", prompt="make it blue")),
    ("400", lambda api: api.chat.completions.create(**question(0, picture="data:image/png;base64,AAAA"))),
)
_KINDS: dict[str, Callable[[openai.AsyncOpenAI, int], Awaitable[str | None]]] = {
    "picture": _draw,
    "streamed picture": _watch,
    "edit": _edit,
    "answer": _ask,
    "streamed answer": _listen,
    "film": _film,
    "ten pictures": _crowd,
    "error": _err,
    "leaver": _leave,
}
WEIGHTS = {
    "picture": 4,
    "streamed picture": 4,
    "edit": 3,
    "answer": 4,
    "streamed answer": 3,
    "film": 1,
    "ten pictures": 1,
    "error": 3,
    "leaver": 3,
}
"""How often each kind is wished for."""


def wishes(seed: int, numbers: int) -> Iterator[Wish]:
    """Yield wishes of all kinds without end."""
    choice = random.Random(seed)
    while True:
        (kind,) = choice.choices(list(WEIGHTS), list(WEIGHTS.values()))
        yield Wish(kind, choice.randrange(numbers))


def connect(url: str) -> openai.AsyncOpenAI:
    """Return a client of a server."""
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE)


async def fulfil(api: openai.AsyncOpenAI, wish: Wish) -> Outcome:
    """Send a wish and say what became of it; never raises."""
    start, status, result, wait, defect = time.monotonic(), "200", None, 0.0, None
    try:
        async with asyncio.timeout(PATIENCE):
            result = await _KINDS[wish.kind](api, wish.number)
    except _LeftError:
        status = "left"
    except openai.APIStatusError as error:
        status, wait = str(error.status_code), float(error.response.headers.get("retry-after", 0))
        if not isinstance(error.body, dict) or set(error.body) != _ERROR:
            defect = f"an error of another shape: {error.body}"
        elif status == "429" and not wait:
            defect = "refused without being told when to come again"
    except (TimeoutError, openai.APITimeoutError):
        status, defect = "hung", f"no answer within {PATIENCE:g} seconds"
    except Exception as error:
        status, defect = "broken", f"{type(error).__name__}: {error}"
    if defect is None and status not in _expected(wish):
        defect = f"ended with {status}"
    seconds = time.monotonic() - start
    return Outcome(wish=wish, status=status, seconds=seconds, result=result, wait=wait, defect=defect)


def _expected(wish: Wish) -> tuple[str, ...]:
    """Return the orderly ends of a wish; every kind may be too much at the moment."""
    if wish.kind == "error":
        return (_ERRORS[wish.number % len(_ERRORS)][0], "429")
    return ("left" if wish.kind == "leaver" else "200", "429")


async def visit(api: openai.AsyncOpenAI, wished: Iterable[Wish], tell: Callable[[Outcome], None]) -> None:
    """Be one client, who has one wish after the other and, refused, comes again when told to."""
    for wish in wished:
        outcome = await fulfil(api, wish)
        tell(outcome)
        await asyncio.sleep(outcome.wait)


async def differing(
    api: openai.AsyncOpenAI, outcomes: Iterable[Outcome], tell: Callable[[Outcome], None] = lambda _: None
) -> list[str]:
    """Fulfil each answered wish alone; say of which any answer was another one."""
    answers: dict[Wish, list[str]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.result is not None:
            answers[outcome.wish].append(outcome.result)
    found = []
    for wish in sorted(answers):
        while (alone := await fulfil(api, wish)).status == "429":  # of who has left, something may still be under way
            await asyncio.sleep(alone.wait)
        tell(alone)
        if others := sum(answer != alone.result for answer in answers[wish]):
            said = f"{others} of {len(answers[wish])} answers are others than alone"
            found.append(f"{wish.kind} {wish.number}: {alone.defect or said}")
    return found


def counted(outcomes: Iterable[Outcome]) -> dict[str, dict[str, int]]:
    """Return how often each kind ended with each status."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in outcomes:
        counts[outcome.wish.kind][outcome.status] += 1
    return {kind: dict(sorted(counts[kind].items())) for kind in WEIGHTS if kind in counts}
