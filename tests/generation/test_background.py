"""The engine behind asyncio: tokens as they come, cancellation, refusals, and errors that reach whom they concern."""

import asyncio
import threading
import time

import pytest
from test_plain import MIXED, MODEL, answer

from rhea.errors import BusyError, InputError
from rhea.generation.background import BackgroundEngine
from rhea.generation.engine import Engine, EngineConfig
from rhea.generation.plain import continue_prompts
from rhea.generation.request import Request


async def whole(engine: BackgroundEngine, request: Request) -> list[int]:
    return [token async for tokens in engine.stream(request) for token in tokens]


async def until_idle(engine: Engine) -> None:
    deadline = time.monotonic() + 30
    while not engine.idle:
        assert time.monotonic() < deadline, "still busy"
        await asyncio.sleep(0.01)


def test_everyone_gets_their_own_tokens() -> None:
    async def clients(engine: BackgroundEngine) -> list[list[int]]:
        return await asyncio.gather(*(whole(engine, request) for request in MIXED.values()))

    with BackgroundEngine(Engine(MODEL, EngineConfig(slots=6))) as engine:
        for _ in range(2):
            assert asyncio.run(clients(engine)) == [continue_prompts(MODEL, [r])[0] for r in MIXED.values()]


def test_tokens_come_before_the_end() -> None:
    async def pieces(engine: BackgroundEngine) -> list[list[int]]:
        return [tokens async for tokens in engine.stream(MIXED["picture"])]

    with BackgroundEngine(Engine(MODEL, EngineConfig(window=1))) as engine:
        found = asyncio.run(pieces(engine))
    assert len(found) > 5
    assert [token for tokens in found for token in tokens] == continue_prompts(MODEL, [MIXED["picture"]])[0]


def test_a_watch_says_in_the_engines_thread_when_tokens_are_told() -> None:
    heard, threads = list[int](), set[str]()

    def watch(tokens: list[int]) -> bool:
        heard.extend(tokens)
        threads.add(threading.current_thread().name)
        return len(heard) % 5 == 0

    async def pieces(engine: BackgroundEngine) -> list[list[int]]:
        return [tokens async for tokens in engine.stream(MIXED["picture"], watch)]

    with BackgroundEngine(Engine(MODEL, EngineConfig(window=1))) as engine:
        found = asyncio.run(pieces(engine))
    assert heard == [token for tokens in found for token in tokens] == continue_prompts(MODEL, [MIXED["picture"]])[0]
    assert all(len(tokens) % 5 == 0 for tokens in found[:-1])
    assert len(found) > 2
    assert threads == {"engine"}


def test_a_watch_that_breaks_ends_its_request_alone() -> None:
    def watch(_: list[int]) -> bool:
        raise MemoryError("no memory left")

    async def clients(engine: BackgroundEngine) -> list[int]:
        other = asyncio.create_task(whole(engine, MIXED["answer"]))
        with pytest.raises(MemoryError):
            async for _ in engine.stream(MIXED["film"], watch):
                pass
        tokens = await other
        await until_idle(engine.engine)
        return tokens

    with BackgroundEngine(Engine(MODEL)) as engine:
        assert asyncio.run(clients(engine)) == continue_prompts(MODEL, [MIXED["answer"]])[0]


def test_who_leaves_is_cancelled() -> None:
    async def leave(engine: BackgroundEngine) -> None:
        stream = engine.stream(MIXED["film"])
        assert await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        task = asyncio.create_task(whole(engine, MIXED["longer prompt, cut"]))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_idle(engine.engine)
        assert await whole(engine, MIXED["answer"]) == continue_prompts(MODEL, [MIXED["answer"]])[0]

    with BackgroundEngine(Engine(MODEL, EngineConfig(window=1))) as engine:
        asyncio.run(leave(engine))


def test_refusals_reach_the_client() -> None:
    async def client(engine: BackgroundEngine) -> None:
        with pytest.raises(InputError, match="do not fit"):
            await whole(engine, answer("How many", limit=300))
        with pytest.raises(BusyError):
            await whole(engine, answer("How many"))

    with BackgroundEngine(Engine(MODEL, EngineConfig(max_waiting=0))) as engine:
        asyncio.run(client(engine))


def test_a_step_that_breaks_fails_its_requests_and_not_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Engine(MODEL)
    forward = inner._forward
    broken = [True]

    def fail_once(*arguments: object) -> object:
        if broken:
            broken.pop()
            raise MemoryError("no memory left")
        return forward(*arguments)  # type: ignore[arg-type]

    async def client(engine: BackgroundEngine) -> None:
        with pytest.raises(MemoryError):
            await whole(engine, MIXED["answer"])
        assert await whole(engine, MIXED["film"]) == continue_prompts(MODEL, [MIXED["film"]])[0]

    monkeypatch.setattr(inner, "_forward", fail_once)
    with BackgroundEngine(inner) as engine:
        asyncio.run(client(engine))


def test_what_is_unfinished_at_the_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def client(engine: BackgroundEngine) -> None:
        stream = engine.stream(MIXED["film"])
        await anext(stream)
        await asyncio.to_thread(engine.__exit__)
        with pytest.raises(RuntimeError, match="stopped"):
            async for _ in stream:
                pass

    inner = Engine(MODEL, EngineConfig(window=1))
    engine, advance = BackgroundEngine(inner), inner.step

    def step_until_stopped() -> None:
        while inner.statistics.tokens_written and engine._calls.empty():
            time.sleep(0.001)
        advance()

    monkeypatch.setattr(inner, "step", step_until_stopped)
    engine.__enter__()
    asyncio.run(client(engine))
