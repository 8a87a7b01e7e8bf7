"""The engine beside the plain loop and transformers.

1. The default model, one guided 64 x 64 picture: seconds and forwards with every window, share of right guesses.
   All of ours make the same tokens; the script fails if they do not. Beside them transformers, with the same weights.
2. The default model, from a text to pixels: seconds of a picture of 64 x 64 and of 128 x 128 (larger than it has seen:
   only the time means something), vision decoding included.
3. The 110 M model of ``generation.py``, bfloat16, one guided picture of 32 x 32 codes beside transformers. How many
   guesses hold with its random weights means nothing: their logits are so flat that the noise alone decides much. What
   windows would bring if as many held as in the default model is an estimate and called so: a forward's time at 110 M
   times the forwards that the default model needs for as many codes.
4. The same model, eight guided pictures at once: the engine beside transformers' static batch, both drawing the same
   number of tokens.
In 3 and 4 transformers runs in bfloat16 and in float32, and ours, in bfloat16, is held to the faster: on processors
without AVX-512 that is now the one, now the other.
Memory is measured by ``engine_memory.py``, precision by ``engine_precision.py``, mixed requests by ``stream.py``.
Usage: python benchmarks/engine.py [--new-tokens 64] [--rows 32] [--repeats 3]   (half an hour on 2 free cores; --small:
a minute, printed and not recorded)
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from generation import PROMPT, TOP_K, WIDTH, build
from peer import draw_pictures, with_qk_norm
from record import interleaved, median, save
from steps import engine_forward, guided_picture, middle_rows

import rhea
from rhea.checkpoints.load import load_checkpoint
from rhea.documents.document import ImageSize
from rhea.documents.grammar import Grammar
from rhea.generation.engine import Engine, EngineConfig
from rhea.generation.loading import DEFAULT_MODEL
from rhea.generation.model import Rhea
from rhea.generation.plain import continue_prompts
from rhea.generation.request import Request
from rhea.generation.sampling import SamplingConfig
from rhea.generation.tuning import WindowTuner
from rhea.models.transformer import Transformer

WINDOWS: tuple[int | None, ...] = (1, 2, 4, 8, 16, 32, None)
PROMPTS = ("a large red circle", "a small blue star and a large green square", "一个橙色的大三角形", "two rings")
PICTURES = 8
GUIDED = SamplingConfig(top_k=TOP_K, guidance_scale=3.0)
PEER = "transformers"
Peers = dict[str, Any]
"""Theirs in each dtype, with the same weights."""


def one_picture(model: Rhea, texts: Sequence[str], repeats: int) -> dict[str, Any]:
    """Compare windows on the default model."""
    completer = model.completer
    sampling = SamplingConfig(guidance_scale=2.0)
    size = ImageSize(height=8, width=8)
    requests = [guided_picture(completer.grammar, text, size, sampling) for text in texts]
    engines = {window: Engine(completer.transformer, EngineConfig(window=window, slots=2)) for window in WINDOWS}
    expected = [continue_prompts(completer.transformer, [each])[0] for each in requests]
    unpacked = load_checkpoint(DEFAULT_MODEL, dtype=torch.float32, parts=("transformer",)).transformer
    assert unpacked is not None
    theirs, vocabulary = with_qk_norm(unpacked.eval()), completer.grammar.vocabulary

    def with_engine(window: int | None) -> Callable[[], None]:
        def run() -> None:
            assert [engines[window].run([each])[0] for each in requests] == expected, f"window {window} differs"

        return run

    sides = {"plain loop": lambda: [continue_prompts(completer.transformer, [each]) for each in requests]}
    sides |= {_name(window): with_engine(window) for window in WINDOWS}
    sides[PEER] = lambda: [draw_pictures(theirs, vocabulary, [each], size) for each in requests]
    seconds = {name: median(times) / len(requests) for name, times in interleaved(sides, repeats).items()}
    results: dict[str, Any] = {name: {"seconds_per_picture": round(seconds[name], 3)} for name in (PEER, "plain loop")}
    for window, engine in engines.items():
        counted, pictures = engine.statistics, (repeats + 1) * len(requests)
        results[_name(window)] = {
            "seconds_per_picture": round(seconds[_name(window)], 3),
            "forwards_per_picture": round(counted.forwards / pictures, 1),
            "guesses_held": round(counted.guesses_right / max(counted.tokens_guessed, 1), 3),
            "times_the_plain_loop": round(seconds["plain loop"] / seconds[_name(window)], 2),
            "times_the_peer": round(seconds[PEER] / seconds[_name(window)], 2),
        }
    return results


def _name(window: int | None) -> str:
    return "window found by measuring" if window is None else f"window {window}"


def pictures_with_pixels(model: Rhea, repeats: int) -> dict[str, Any]:
    """Time a picture from its text to its pixels, and the part of it that is vision decoding."""
    assert model.codec is not None
    results = {}
    for size in ("64x64", "128x128"):
        (picture,) = model.generate(PROMPTS[0], size=size)
        codes = picture.codes
        sides = {
            "seconds": lambda size=size: model.generate(PROMPTS[0], size=size),  # type: ignore[misc]
            "of which vision decoding": lambda codes=codes: model.codec.decode_picture(codes),  # type: ignore[misc]
        }
        results[size] = {name: round(median(times), 3) for name, times in interleaved(sides, 2 * repeats + 1).items()}
    return results


def medium_picture(
    model: Transformer, grammar: Grammar, peers: Peers, rows: int, repeats: int, tokens_per_forward: dict[int, float]
) -> dict[str, Any]:
    """Compare one picture of 32 codes a row with transformers, and estimate what windows bring."""
    size = ImageSize(height=rows, width=32)
    request = guided_picture(grammar, PROMPT, size, GUIDED)
    sides = {
        _name(1): _fresh_engine(model, 1, [request]),
        _name(None): _fresh_engine(model, None, [request]),
        "plain loop": lambda: continue_prompts(model, [request]),
    }
    for name, theirs in peers.items():
        sides[name] = partial(draw_pictures, theirs, grammar.vocabulary, [request], size)
    seconds = {name: median(times) for name, times in interleaved(sides, repeats, warmup=0).items()}
    seconds[PEER] = min(seconds[name] for name in peers)
    step = {
        window: _middle_forward(model, grammar, size, window) for window in tokens_per_forward if window < rows * 32 / 8
    }
    codes, tokens = rows * 32, rows * 33
    estimates = {window: codes / tokens_per_forward[window] * step[window] for window in step}
    best = min(estimates, key=lambda window: estimates[window])
    return {
        "codes": codes,
        "seconds_per_picture": {name: round(value, 2) for name, value in seconds.items()},
        "milliseconds_per_token": {name: round(1000 * value / tokens, 2) for name, value in seconds.items()},
        "times_the_peer": {name: round(seconds[PEER] / seconds[name], 2) for name in sides if name not in peers},
        "milliseconds_per_forward_in_the_middle": {
            _name(window): round(1000 * value, 2) for window, value in step.items()
        },
        "estimate: seconds_per_picture if as many guesses held as in the default model": {
            _name(window): round(value, 2) for window, value in estimates.items()
        },
        "estimate: times_the_peer with the best window": round(seconds[PEER] / estimates[best], 2),
    }


def _fresh_engine(model: Transformer, window: int | None, requests: Sequence[Request]) -> Callable[[], Any]:
    """Return a run that remembers the best window, but no prompt."""
    tuner, longest = WindowTuner(), max(len(each.prompt) + each.max_new_tokens for each in requests)
    config = EngineConfig(slots=2 * len(requests), max_len=longest, window=window)
    return lambda: Engine(model, config, tuner).run(requests)


def _middle_forward(model: Transformer, grammar: Grammar, size: ImageSize, window: int) -> float:
    forwards = min(40, size.height * size.width // 4)
    request = guided_picture(grammar, PROMPT, size, GUIDED, given_rows=middle_rows(size, forwards))
    config = EngineConfig(window=window, slots=2, max_len=len(request.prompt) + request.max_new_tokens)
    return engine_forward(model, config, [request], forwards)


def eight_pictures(model: Transformer, grammar: Grammar, peers: Peers, new_tokens: int, repeats: int) -> dict[str, Any]:
    """Compare a batch of pictures with transformers' static batch."""
    size = ImageSize(height=new_tokens // (WIDTH + 1), width=WIDTH)
    template = guided_picture(grammar, PROMPT, size, GUIDED, max_new_tokens=new_tokens)
    requests = [replace(template, sample_index=index) for index in range(PICTURES)]
    sides = {
        "rhea": _fresh_engine(model, 1, requests),
        "rhea, window found by measuring": _fresh_engine(model, None, requests),
    }
    for name, theirs in peers.items():
        run = partial(draw_pictures, theirs, grammar.vocabulary, requests, size, new_tokens)
        sides[f"{name}, static batch"] = run
    turns = interleaved(sides, repeats, warmup=0)
    rates = {name: PICTURES * new_tokens / median(times) for name, times in turns.items()}
    best = max(rate for name, rate in rates.items() if name.startswith(PEER))
    rates["transformers, static batch"] = best
    return {
        "tokens_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "times_the_peer": round(rates["rhea"] / best, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--new-tokens", type=int, default=64, help="of each of the eight pictures; a multiple of 32")
    parser.add_argument("--rows", type=int, default=32, help="of the one picture at 110 M")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--medium-repeats", type=int, default=3, help="of what runs at 110 M, after no uncounted turn")
    parser.add_argument("--small", action="store_true", help="little of everything, printed and not recorded")
    options, texts = parser.parse_args(), PROMPTS
    if options.small:
        texts = PROMPTS[:1]
        options.new_tokens, options.rows, options.repeats, options.medium_repeats = 32, 2, 1, 1
    model = rhea.load()
    chosen = {name: getattr(options, name) for name in ("new_tokens", "repeats", "medium_repeats")}
    results: dict[str, Any] = dict(chosen)
    windows = results["one picture, default model"] = one_picture(model, texts, options.repeats)
    results["pictures with their pixels, default model"] = pictures_with_pixels(model, options.repeats)
    held = {window: 64 / windows[_name(window)]["forwards_per_picture"] for window in WINDOWS if window is not None}
    medium, grammar, low = build(torch.bfloat16)
    peers = {f"{PEER}, bfloat16": low, f"{PEER}, float32": build(torch.float32)[2]}
    results["one picture, 110 M, bfloat16"] = medium_picture(
        medium, grammar, peers, options.rows, options.medium_repeats, held
    )
    results["eight pictures, 110 M, bfloat16"] = eight_pictures(
        medium, grammar, peers, options.new_tokens, options.medium_repeats
    )
    if options.small:
        print(json.dumps(results, indent=2))
    else:
        save(__file__, results)


if __name__ == "__main__":
    main()
