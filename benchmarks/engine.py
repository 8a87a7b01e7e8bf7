"""The engine beside the plain loop and transformers.

1. The default model, one guided 64 x 64 picture: seconds and forwards with every window, share of right guesses.
   All sides make the same tokens; the script fails if they do not.
2. The 110 M model of ``generation.py``, bfloat16, eight guided pictures at once: the engine beside transformers' static
   batch, both drawing the same number of tokens.
Usage: python benchmarks/engine.py [--new-tokens 64] [--repeats 3]   (about ten minutes on 2 free cores)
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from generation import PROMPT, TOP_K, WIDTH, build
from record import interleaved, median, save

import rhea
from rhea.documents import formats
from rhea.documents.constraint import Constraint
from rhea.documents.document import ImageSize
from rhea.documents.grammar import Grammar
from rhea.generation.engine import Engine, EngineConfig
from rhea.generation.plain import continue_prompts
from rhea.generation.request import Request
from rhea.generation.sampling import SamplingConfig

WINDOWS: tuple[int | None, ...] = (1, 2, 4, 8, 16, 32, None)
PROMPTS = ("a large red circle", "a small blue star and a large green square", "一个橙色的大三角形", "two rings")
PICTURES = 8


def request(grammar: Grammar, text: str, size: ImageSize, sampling: SamplingConfig, **limits: int) -> Request:
    """Return a guided picture."""
    prompt = grammar.render_prompt(formats.text_to_image(text), size)
    constraint = Constraint(grammar, "visual").start(prompt)
    return Request(
        prompt=prompt.tolist(),
        negative_prompt=grammar.render_prompt(formats.text_to_image(""), size).tolist(),
        constraint=constraint,
        max_new_tokens=limits.get("max_new_tokens", constraint.remaining_grid_tokens + 2),
        sampling=sampling,
    )


def one_picture(repeats: int) -> dict[str, Any]:
    """Compare windows on the default model."""
    completer = rhea.load().completer
    sampling = SamplingConfig(guidance_scale=2.0)
    size = ImageSize(height=8, width=8)
    requests = [request(completer.grammar, text, size, sampling) for text in PROMPTS]
    engines = {window: Engine(completer.transformer, EngineConfig(window=window, slots=2)) for window in WINDOWS}
    expected = [continue_prompts(completer.transformer, [each])[0] for each in requests]

    def with_engine(window: int | None) -> Callable[[], None]:
        def run() -> None:
            assert [engines[window].run([each])[0] for each in requests] == expected, f"window {window} differs"

        return run

    sides = {"plain loop": lambda: [continue_prompts(completer.transformer, [each]) for each in requests]}
    sides |= {_name(window): with_engine(window) for window in WINDOWS}
    seconds = {name: median(times) / len(requests) for name, times in interleaved(sides, repeats).items()}
    results: dict[str, Any] = {"plain loop": {"seconds_per_picture": round(seconds["plain loop"], 3)}}
    for window, engine in engines.items():
        counted, pictures = engine.statistics, (repeats + 1) * len(requests)
        results[_name(window)] = {
            "seconds_per_picture": round(seconds[_name(window)], 3),
            "forwards_per_picture": round(counted.forwards / pictures, 1),
            "guesses_held": round(counted.guesses_right / max(counted.tokens_guessed, 1), 3),
            "times_the_plain_loop": round(seconds["plain loop"] / seconds[_name(window)], 2),
        }
    return results


def _name(window: int | None) -> str:
    return "window found by measuring" if window is None else f"window {window}"


def eight_pictures(new_tokens: int, repeats: int) -> dict[str, Any]:
    """Compare a batch of pictures with transformers' static batch."""
    model, grammar, theirs = build(torch.bfloat16)
    sampling = SamplingConfig(top_k=TOP_K, guidance_scale=3.0)
    size = ImageSize(height=new_tokens // (WIDTH + 1), width=WIDTH)
    template = request(grammar, PROMPT, size, sampling, max_new_tokens=new_tokens)
    requests = [replace(template, sample_index=index) for index in range(PICTURES)]
    prompt, visual = template.prompt, list(grammar.vocabulary.vision)

    def allowed(_: int, ids: torch.Tensor) -> list[int]:
        return [grammar.vocabulary.eol] if (len(ids) - len(prompt)) % (WIDTH + 1) == WIDTH else visual

    def peer() -> None:
        theirs.generate(
            torch.tensor([prompt] * PICTURES),
            negative_prompt_ids=torch.tensor([template.negative_prompt] * PICTURES),
            guidance_scale=3.0,
            prefix_allowed_tokens_fn=allowed,
            do_sample=True,
            top_k=TOP_K,
            max_new_tokens=new_tokens,
            cache_implementation="dynamic",
        )

    def ours(window: int | None) -> Callable[[], None]:
        config = EngineConfig(slots=2 * PICTURES, max_len=len(prompt) + new_tokens, window=window)
        return lambda: Engine(model, config).run(requests) and None

    sides = {"rhea": ours(1), "rhea, window found by measuring": ours(None), "transformers, static batch": peer}
    rates = {name: PICTURES * new_tokens / median(times) for name, times in interleaved(sides, repeats).items()}
    return {
        "tokens_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "times_the_peer": round(rates["rhea"] / rates["transformers, static batch"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--new-tokens", type=int, default=64, help="of each of the eight pictures; a multiple of 32")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    results = {"one picture, default model": one_picture(options.repeats)}
    results["eight pictures, 110 M, bfloat16"] = eight_pictures(options.new_tokens, options.repeats)
    save(__file__, {"new_tokens": options.new_tokens, "repeats": options.repeats, **results})


if __name__ == "__main__":
    main()
