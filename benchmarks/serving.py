"""`rhea serve` as people run it, on a loopback socket with the default model: what HTTP costs, and how much it bears.

1. overhead: one guided 64 x 64 picture, streamed with three partial pictures, through HTTP and from the engine alone
   (`alone.py`, processes of their own): the same prompts, seeds, previews and PNG files. The three take turns, all else
   is idle, and windows are fixed, for one found by measuring could differ between them. A time begins with the request;
   without a server it ends when the PNG is in base64, through HTTP when the event's line has arrived at the client.
2. answers: short answers about pictures, asked by 1, 8 and 32 clients, each with one question after the other.
3. first token: until the first text of a streamed answer, while 0, 4 and 8 clients draw one picture after the other.
   Pictures may hold 14 of the 16 rows of the cache; the others are kept for texts.
4. load: clients of every kind (`clients.py`) for --load seconds, more than --max-requests lets in. Every request must
   be answered or refused in order, the memory of server and engine must stay as it is after the first quarter, and
   each different request is afterwards sent alone: its answer must be the same, byte for byte.
The script fails, after recording, if one of the musts is broken.

Usage: python benchmarks/serving.py               (about five minutes on 2 free cores)
       python benchmarks/serving.py --quick       (a little of everything, printed and not recorded)
       python benchmarks/serving.py --only load --load 600 --clients 64     (likewise)
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from alone import SLOTS
from clients import Outcome, connect, counted, differing, drawing, question, visit, wishes
from record import median, save
from rich.progress import Progress

from rhea.logging import console

SECTIONS = ("overhead", "answers", "first-token", "load")
WINDOW = 8
"""Of codes, in the first section."""
ROUNDS_BEFORE = 3
"""Uncounted pictures that warm each side up."""
FLAT = 1.1
"""How many times the memory after warming up may be in use at the end of the load."""
MIB = 2**20


class Server:
    """``rhea serve`` in processes of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.log = folder / "log.txt"
        command = [
            str(Path(sys.executable).with_name("rhea")),
            "serve",
            "--port",
            "0",
            "--films",
            str(folder / "films"),
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen([*command, *options], stderr=log)
        self.url = self._found()
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        self.parts = {"server": family[0], "engine": next(p for p in family if "rhea.serving.worker" in p.cmdline())}

    def _found(self) -> str:
        while (found := re.search(r"http://127\.0\.0\.1:\d+", self.log.read_text())) is None:
            if self.process.poll() is not None:
                raise SystemExit(f"rhea serve did not start:\n{self.log.read_text()}")
            time.sleep(0.05)
        return found[0]

    def counters(self) -> dict[str, float]:
        """Return what /metrics tells of the engine."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        engine = [line.split() for line in lines if line.startswith("rhea_engine_")]
        return {name.removeprefix("rhea_engine_"): float(value) for name, value in engine}

    def memory(self) -> dict[str, float]:
        """Return the resident memory of each part in MiB."""
        return {name: part.memory_info().rss / MIB for name, part in self.parts.items()}


@contextlib.contextmanager
def serving(*options: str) -> Iterator[Server]:
    """Run a server until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), *options)
        try:
            yield server
        finally:
            server.process.send_signal(signal.SIGTERM)
            server.process.wait()


@contextlib.contextmanager
def bar(told: str, total: float) -> Iterator[Callable[[float], None]]:
    """Show how far a section is while the block runs; yield what advances it."""
    with Progress(console=console(), transient=True, disable=not console().is_terminal) as progress:
        task = progress.add_task(told, total=total)
        yield lambda more: progress.advance(task, more)


# Overhead


@contextlib.contextmanager
def alone(kind: str) -> Iterator[Callable[[str, int], dict[str, Any]]]:
    """Run a side without server; yield what draws there."""
    command = [sys.executable, str(Path(__file__).with_name("alone.py")), kind, str(WINDOW)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout
        stdout.readline()

        def draw(prompt: str, seed: int) -> dict[str, Any]:
            stdin.write(json.dumps({"prompt": prompt, "seed": seed, "partial_images": 3}) + "\n")
            stdin.flush()
            return json.loads(stdout.readline())

        yield draw
        stdin.close()


@contextlib.contextmanager
def through_http() -> Iterator[Callable[[str, int], dict[str, Any]]]:
    """Run a server; yield what draws there, over one connection that is kept open."""
    with serving("--window", str(WINDOW)) as server, httpx.Client(timeout=None) as client:

        def draw(prompt: str, seed: int) -> dict[str, Any]:
            body = {"prompt": prompt, "seed": seed, "stream": True, "partial_images": 3}
            start, times, line = time.perf_counter(), list[float](), ""
            with client.stream("POST", f"{server.url}/v1/images/generations", json=body) as answer:
                for each in answer.iter_lines():
                    if each.startswith("data: "):
                        times.append(time.perf_counter() - start)
                        line = each
            return {"first": times[0], "whole": times[-1], "file": json.loads(line[6:])["b64_json"]}

        yield draw


def overhead(rounds: int) -> dict[str, Any]:
    """Let all sides draw in turn; the ratios are medians of the rounds', each against both sides without a server."""
    times: dict[str, list[dict[str, Any]]] = {"engine": [], "backend": [], "http": []}
    with alone("engine") as engine, alone("backend") as backend, through_http() as http:
        sides = {"engine": engine, "backend": backend, "http": http}
        with bar("overhead", rounds + ROUNDS_BEFORE) as advance:
            for turn in range(rounds + ROUNDS_BEFORE):
                order = list(sides)[turn % 3 :] + list(sides)[: turn % 3]
                found = {name: sides[name](drawing(turn)["prompt"], turn) for name in order}
                assert len({each["file"] for each in found.values()}) == 1, f"seed {turn}: the pictures differ"
                for name in sides if turn >= ROUNDS_BEFORE else ():
                    times[name].append(found[name])
                advance(1)
    results: dict[str, Any] = {"rounds": rounds, "window": WINDOW}
    for what in ("first", "whole"):
        seconds = {name: median([each[what] for each in side]) for name, side in times.items()}
        ratios = {
            f"http over {name}": median([a[what] / b[what] for a, b in zip(times["http"], times[name], strict=True)])
            for name in ("engine", "backend")
        }
        title = "first partial picture" if what == "first" else "whole picture"
        results[title] = {
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
            **{name: round(ratio, 3) for name, ratio in ratios.items()},
        }
    return results


# Answers


async def asked(url: str, clients: int, questions: int, told: Callable[[float], None]) -> dict[str, Any]:
    """Let so many clients ask, each one question after the other, until all questions are answered."""
    bodies = [json.dumps(question(number, temperature=0.0)) for number in range(16)]
    seconds, tokens, numbers = list[float](), list[int](), iter(range(questions))
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=f"{url}/v1", timeout=None, limits=limits) as api:

        async def client() -> None:
            for number in numbers:
                start = time.perf_counter()
                body = bodies[number % len(bodies)]
                answer = await api.post("/chat/completions", content=body, headers={"Content-Type": "application/json"})
                seconds.append(time.perf_counter() - start)
                tokens.append(answer.raise_for_status().json()["usage"]["completion_tokens"])
                told(1)

        start = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        rate = questions / (time.perf_counter() - start)
    return {
        "requests": questions,
        "tokens_per_answer": round(float(np.mean(tokens)), 1),
        "requests_per_second": round(rate, 2),
        **spread(seconds),
    }


def spread(seconds: list[float]) -> dict[str, float]:
    return {
        "median_seconds": round(median(seconds), 4),
        "seconds_95th_percentile": round(float(np.percentile(seconds, 95)), 4),
    }


def answers(server: Server, quick: bool) -> dict[str, Any]:
    sizes = {clients: max(4, clients) if quick else 40 + 8 * clients for clients in (1, 8, 32)}
    results = {}
    with bar("answers", sum(sizes.values())) as advance:
        asyncio.run(asked(server.url, 1, 4, lambda _: None))
        for clients, questions in sizes.items():
            results[f"{clients} clients"] = asyncio.run(asked(server.url, clients, questions, advance))
    return results


async def listened(url: str, drawers: int, times: int, told: Callable[[float], None]) -> dict[str, Any]:
    """Return how long streamed answers let wait for their first text while others draw."""
    async with connect(url) as api, asyncio.TaskGroup() as group:

        async def draw(first: int) -> None:
            for number in itertools.count(first, drawers):
                await api.images.generate(**drawing(number))

        busy = [group.create_task(draw(number)) for number in range(drawers)]
        await asyncio.sleep(1 if drawers else 0)
        seconds = list[float]()
        for number in range(times):
            start, before = time.perf_counter(), len(seconds)
            async for chunk in await api.chat.completions.create(**question(number, temperature=0.0, stream=True)):
                if len(seconds) == before and chunk.choices[0].delta.content:
                    seconds.append(time.perf_counter() - start)
            told(1)
        for each in busy:
            each.cancel()
    return {"answers": len(seconds), **spread(seconds)}


def first_token(server: Server, quick: bool) -> dict[str, Any]:
    drawers, times, results = (0, 4, 8), 3 if quick else 30, {}
    with bar("first token", len(drawers) * times) as advance:
        for drawing_ in drawers:
            results[f"{drawing_} clients draw"] = asyncio.run(listened(server.url, drawing_, times, advance))
    return results


# Load


async def laden(server: Server, clients: int, seconds: float, numbers: int) -> dict[str, Any]:
    """Let mixed clients in for some seconds, then send each different wish alone."""
    outcomes, samples, start = list[Outcome](), list[dict[str, float]](), time.monotonic()
    end = start + seconds

    async def sample(advance: Callable[[float], None]) -> None:
        while time.monotonic() < end:
            samples.append({"at": time.monotonic() - start, **server.memory()})
            await asyncio.sleep(pause)
            advance(pause)

    def client(number: int) -> Awaitable[None]:
        wished = itertools.takewhile(lambda _: time.monotonic() < end, wishes(number, numbers))
        return visit(api, wished, outcomes.append)

    pause = min(1.0, seconds / 20)
    async with connect(server.url) as api:
        with bar("load", seconds) as advance:
            await asyncio.gather(sample(advance), *(client(number) for number in range(clients)))
        taken = time.monotonic() - start
        distinct = len({outcome.wish for outcome in outcomes if outcome.result is not None})
        with bar("the same alone", distinct) as advance:
            others = await differing(api, outcomes, lambda _: advance(1))
    samples.append({"at": time.monotonic() - start, **server.memory()})
    answered = [outcome for outcome in outcomes if outcome.status == "200"]
    return {
        "clients": clients,
        "seconds": round(taken, 1),
        "requests": len(outcomes),
        "answered or refused in order": sum(not each.defect for each in outcomes),
        "statuses": counted(outcomes),
        "answered": {
            kind: spread([each.seconds for each in answered if each.wish.kind == kind])
            for kind in sorted({each.wish.kind for each in answered})
        },
        "longest_seconds": round(max(outcome.seconds for outcome in outcomes), 1),
        "defects": [f"{each.wish.kind} {each.wish.number}: {each.defect}" for each in outcomes if each.defect][:20],
        "compared_with_the_same_alone": {"distinct": distinct, "different": others},
        "memory": {name: flatness(samples, name, seconds / 4) for name in server.parts},
    }


def flatness(samples: list[dict[str, float]], name: str, warm: float) -> dict[str, float]:
    """Return resident memory after warming up and at the very end, and its slope under load between."""
    at, used = (np.array([each[key] for each in samples[:-1] if each["at"] >= warm]) for key in ("at", name))
    return {
        "mib_after_warm_up": round(float(used[0]), 1),
        "mib_at_the_end_of_the_load": round(float(used[-1]), 1),
        "mib_idle_again": round(samples[-1][name], 1),
        "mib_per_minute": round(60 * float(np.polyfit(at, used, 1)[0]), 2),
    }


def load(clients: int, seconds: float, quick: bool) -> dict[str, Any]:
    """Return what a server bore that lets in three quarters of the clients."""
    bound = max(3 * clients // 4, 1)
    with serving("--max-requests", str(bound)) as server:
        found = asyncio.run(laden(server, clients, seconds, numbers=2 if quick else 5))
        counters = server.counters()
        log = server.log.read_text().partition("stops it.\n")[2]
    left = {name: counters[name] for name in ("waiting", "running", "rows", "requests", "tokens", "restarts")}
    return {"max_requests": bound, **found, "left in the engine": left, "log_lines": len(log.splitlines())}


def broken(found: dict[str, Any]) -> list[str]:
    """Return which of the musts a load has broken."""
    wrong = [*found["defects"], *found["compared_with_the_same_alone"]["different"]]
    for name, used in found["memory"].items():
        if used["mib_at_the_end_of_the_load"] > FLAT * used["mib_after_warm_up"]:
            wrong.append(f"the memory of the {name} grew: {used}")
    wrong += [f"{value:g} {name} left in the engine" for name, value in found["left in the engine"].items() if value]
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="pictures of each side that count for the overhead")
    parser.add_argument("--load", type=float, default=120.0, metavar="SECONDS", help="how long the mixed clients come")
    parser.add_argument("--clients", type=int, default=64, help="of the load")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="printed, not recorded")
    parser.add_argument("--quick", action="store_true", help="a little of everything, printed and not recorded")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.load, options.clients = 2, min(options.load, 6.0), min(options.clients, 12)
    results: dict[str, Any] = {"omp_num_threads": os.environ.get("OMP_NUM_THREADS"), "slots": SLOTS}
    if "overhead" in options.only:
        results["overhead"] = overhead(options.rounds)
    if "answers" in options.only or "first-token" in options.only:
        with serving() as server:
            for name, measure in {"answers": answers, "first-token": first_token}.items():
                if name in options.only:
                    results[name] = measure(server, options.quick)
    if "load" in options.only:
        results["load"] = load(options.clients, options.load, options.quick)
    if options.quick or len(options.only) < len(SECTIONS):
        print(json.dumps(results, indent=2))
    else:
        save(__file__, results)
    if wrong := broken(results["load"]) if "load" in options.only else []:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
