"""Mixed clients at once against the real server and model: each is answered or refused in order, and as if alone."""

import asyncio
import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rhea.serving.app import create_app
from rhea.serving.choice import ModelChoice
from rhea.serving.limits import Bounds
from rhea.serving.process import ProcessBackend
from rhea.serving.serve import Listening, filming, guarding, running

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CLIENTS = 12
BOUND = 9
"""Tasks that the engine takes at once: fewer than there are clients, and than pictures in a request for ten."""


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("clients")


@asynccontextmanager
async def server(folder: Path) -> AsyncIterator[tuple[str, ProcessBackend]]:
    options = Listening(port=0, films=folder)
    async with ProcessBackend(ModelChoice(), bounds=Bounds(max_requests=BOUND)) as backend, guarding(options) as guard:
        app = create_app(backend, options.settings, guard)
        async with filming(app, options), running(app, options) as listening:
            yield f"http://127.0.0.1:{listening.port}", backend


def test_mixed_clients(clients: ModuleType, tmp_path: Path) -> None:
    each = [clients.Wish(kind, number % 2) for kind, times in clients.WEIGHTS.items() for number in range(times)]
    wished = [each[client::CLIENTS] for client in range(CLIENTS)]
    outcomes: list[Any] = []

    async def come() -> tuple[list[Any], dict[str, float]]:
        async with server(tmp_path) as (url, backend), clients.connect(url) as api:
            await asyncio.gather(*(clients.visit(api, each, outcomes.append) for each in wished))
            others = await clients.differing(api, outcomes)
            return others, await backend.counters()

    others, counters = asyncio.run(come())
    assert [outcome.defect for outcome in outcomes if outcome.defect] == []
    assert sorted(outcome.wish for outcome in outcomes) == sorted(each)
    found = clients.counted(outcomes)
    assert found["ten pictures"] == {"429": 1}
    assert sum(kind.get("200", 0) for kind in found.values()) > len(each) // 3
    assert others == []
    left = {name: counters[name] for name in ("requests", "tokens", "waiting", "running", "rows", "restarts")}
    assert left == dict.fromkeys(left, 0)
