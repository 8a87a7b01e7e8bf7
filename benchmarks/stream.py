"""A stream of mixed requests: continuous batching beside transformers' static batching, and a lone request's latency.

64 requests arrive at random (Poisson) times: texts of 20 to 400 tokens and guided pictures of four sizes, for the 110 M
model in bfloat16. The engine takes each as it comes. Static batching takes the oldest waiting request and all that can
be batched with it (texts, or pictures of its size), as many as fill the same number of cache rows, and hands them over
when the longest is done. The plain loop takes one request after the other.

Time is a simulated clock for each side: it advances by the measured compute of each engine step or batch, and jumps to
the next arrival when nothing waits. Arrivals cost no compute, so that is what a wall clock would show; but arrivals are
the same on every side and in every run, no idle time is slept through, and the sides take turns within one run (the one
whose clock is behind goes on), so a slow minute of the machine falls on all of them.
Usage: python benchmarks/stream.py [--repeats 3]   (about half an hour on 2 free cores; --small: seconds, not recorded)
"""

import argparse
import json
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from generation import PROMPT, TOP_K, build
from peer import draw_pictures, write_texts
from record import interleaved, median, save
from steps import AnyText, guided_picture

from rhea.documents import formats
from rhea.documents.document import ImageSize
from rhea.documents.grammar import Grammar
from rhea.generation.engine import Engine, EngineConfig, Ticket
from rhea.generation.plain import continue_prompts
from rhea.generation.request import Request
from rhea.generation.sampling import SamplingConfig
from rhea.generation.tuning import WindowTuner
from rhea.models.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What arrives."""

    requests: int = 64
    per_second: float = 2.0
    """Mean rate of arrival: more than either side can serve, so both are kept busy."""
    text_tokens: tuple[int, int] = (20, 400)
    grids: tuple[tuple[int, int], ...] = ((8, 8), (12, 12), (16, 16), (16, 24))


SMALL = Mix(requests=6, per_second=50.0, text_tokens=(2, 6), grids=((1, 2), (2, 2)))
"""For smoke tests and warming up."""


@dataclass(frozen=True, eq=False)
class Arrival:
    """A request and its time in seconds."""

    at: float
    request: Request
    grid: ImageSize | None


def text_request(grammar: Grammar, words: str, new_tokens: int) -> Request:
    prompt = grammar.render_prompt(formats.question_answering(None, words))
    return Request(
        prompt=prompt.tolist(),
        constraint=AnyText(grammar, "text").start(prompt),
        max_new_tokens=new_tokens,
        sampling=SamplingConfig(top_k=50),
    )


def picture_request(grammar: Grammar, words: str, grid: ImageSize) -> Request:
    sampling = SamplingConfig(top_k=TOP_K, guidance_scale=3.0)
    return guided_picture(grammar, words, grid, sampling, negative="blurry")


def stream(grammar: Grammar, mix: Mix, seed: int) -> list[Arrival]:
    """Return half texts, half pictures in random order; prompts of 5 to 20 words."""
    random, at, arrivals = np.random.default_rng(seed), 0.0, list[Arrival]()
    for number in range(mix.requests):
        at += float(random.exponential(1 / mix.per_second))
        words = " ".join([str(number), *random.choice(PROMPT.split(), int(random.integers(5, 21)))])
        if random.random() < 0.5:
            low, high = mix.text_tokens
            arrivals.append(Arrival(at, text_request(grammar, words, int(random.integers(low, high + 1))), None))
        else:
            height, width = mix.grids[int(random.integers(len(mix.grids)))]
            grid = ImageSize(height=height, width=width)
            arrivals.append(Arrival(at, picture_request(grammar, words, grid), grid))
    return arrivals


Finished = dict[Arrival, float]
Side = Callable[[list[Arrival], Finished], Iterator[float]]
"""Serves arrivals, notes when each is finished, and yields its clock after every piece of work."""


def continuous(model: Transformer, config: EngineConfig) -> Side:
    """Return the engine's side; it remembers the best window from stream to stream, as one long-lived engine would."""
    tuner = WindowTuner()

    def serve(arrivals: list[Arrival], finished: Finished) -> Iterator[float]:
        engine, clock, due, running = Engine(model, config, tuner), 0.0, deque(arrivals), dict[Ticket, Arrival]()
        while due or running:
            clock = clock if running else max(clock, due[0].at)
            while due and due[0].at <= clock:
                arrival = due.popleft()
                running[engine.submit(arrival.request)] = arrival
            start = time.perf_counter()
            engine.step()
            clock += time.perf_counter() - start
            for ticket in [ticket for ticket in running if ticket.done]:
                assert ticket.error is None, ticket.error
                finished[running.pop(ticket)] = clock
            yield clock

    return serve


def in_batches(run: Callable[[Sequence[Arrival]], Any], rows: int) -> Side:
    """Return a side that runs batches one after the other, each of one kind and at most ``rows`` cache rows."""

    def serve(arrivals: list[Arrival], finished: Finished) -> Iterator[float]:
        clock, due = 0.0, list(arrivals)
        while due:
            clock = max(clock, due[0].at)
            alike = [each for each in due if each.at <= clock and each.grid == due[0].grid]
            batch = alike[: max(rows // (2 if due[0].grid else 1), 1)]
            start = time.perf_counter()
            run(batch)
            clock += time.perf_counter() - start
            finished |= dict.fromkeys(batch, clock)
            due = [each for each in due if each not in finished]
            yield clock

    return serve


def race(sides: dict[str, Side], arrivals: list[Arrival]) -> dict[str, dict[str, float]]:
    """Let all sides serve the same arrivals in turn; return what each took."""
    finished: dict[str, Finished] = {name: {} for name in sides}
    running = {name: side(arrivals, finished[name]) for name, side in sides.items()}
    clocks = dict.fromkeys(sides, 0.0)
    while running:
        behind = min(running, key=lambda name: clocks[name])
        clock = next(running[behind], None)
        if clock is None:
            del running[behind]
        else:
            clocks[behind] = clock
    tokens = sum(each.request.max_new_tokens for each in arrivals)
    results = {}
    for name, ends in finished.items():
        latencies = [ends[each] - each.at for each in arrivals]
        results[name] = {
            "total_seconds": clocks[name],
            "tokens_per_second": tokens / clocks[name],
            "mean_latency": statistics.mean(latencies),
            "latency_95th_percentile": float(np.percentile(latencies, 95)),
        }
    return results


def lone(model: Transformer, grammar: Grammar, config: EngineConfig, mix: Mix, repeats: int) -> dict[str, Any]:
    """Return the seconds of one request on an idle engine and in the plain loop; no two prompts are alike."""
    height, width = mix.grids[-2]
    engine, numbers = Engine(model, config), count()

    def text() -> Request:
        return text_request(grammar, f"{next(numbers)} {PROMPT}", sum(mix.text_tokens) // 2)

    def picture() -> Request:
        return picture_request(grammar, f"{next(numbers)} {PROMPT}", ImageSize(height=height, width=width))

    results = {}
    for name, make in {"text": text, "picture": picture}.items():
        sides: dict[str, Callable[[], Any]] = {
            "engine": lambda make=make: engine.run([make()]),  # type: ignore[misc]
            "plain loop": lambda make=make: continue_prompts(model, [make()]),  # type: ignore[misc]
        }
        seconds = {side: median(times) for side, times in interleaved(sides, repeats).items()}
        results[name] = {
            "new_tokens": make().max_new_tokens,
            "seconds": {side: round(value, 4) for side, value in seconds.items()},
            "engine_over_plain_loop": round(seconds["engine"] / seconds["plain loop"], 3),
        }
    return results


def measure(mix: Mix, repeats: int, rows: int) -> dict[str, Any]:
    """Run everything."""
    model, grammar, theirs = build(torch.bfloat16)
    longest = max([*(height * (width + 1) for height, width in mix.grids), mix.text_tokens[1]])
    config = EngineConfig(slots=rows, max_len=longest + 128)

    def their_batch(batch: Sequence[Arrival]) -> None:
        requests, grid = [each.request for each in batch], batch[0].grid
        if grid is None:
            write_texts(theirs, grammar.vocabulary, requests)
        else:
            draw_pictures(theirs, grammar.vocabulary, requests, grid)

    sides = {
        "rhea": continuous(model, config),
        "rhea, plain loop, one by one": in_batches(lambda batch: continue_prompts(model, [batch[0].request]), 1),
        "transformers, static batches": in_batches(their_batch, rows),
    }
    race(sides, stream(grammar, SMALL, seed=0))
    streams = [stream(grammar, mix, seed) for seed in range(1, repeats + 1)]
    races = [race(sides, arrivals) for arrivals in streams]
    taken = {
        name: {key: round(median([each[name][key] for each in races]), 3) for key in races[0][name]} for name in sides
    }
    ratios = [each["transformers, static batches"]["total_seconds"] / each["rhea"]["total_seconds"] for each in races]
    return {
        "requests": mix.requests,
        "requests_per_second": mix.per_second,
        "last_arrival_seconds": round(median([arrivals[-1].at for arrivals in streams]), 1),
        "new_tokens": median([sum(each.request.max_new_tokens for each in arrivals) for arrivals in streams]),
        "rows": rows,
        "repeats": repeats,
        "sides": taken,
        "times_the_peer": round(median(ratios), 2),
        "lone request": lone(model, grammar, config, mix, max(repeats, 3)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="streams of other arrivals; medians are reported")
    parser.add_argument("--rows", type=int, default=16, help="cache rows of the engine and of a static batch")
    parser.add_argument("--small", action="store_true", help="a few tiny requests, printed and not recorded")
    options = parser.parse_args()
    if options.small:
        print(json.dumps(measure(SMALL, repeats=1, rows=options.rows), indent=2))
    else:
        save(__file__, measure(Mix(), options.repeats, options.rows))


if __name__ == "__main__":
    main()
