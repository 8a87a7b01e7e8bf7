"""The default model in bfloat16 beside float32: where its pictures first differ, and how both are graded.

In float32 the engine's tokens are proven equal to the plain loop's; in bfloat16 sums depend on the shape of a batch, so
nothing is claimed but what is measured here. One draw that tips the other way changes all that follow, so early
divergence says nothing about quality: the grades do.
Usage: python benchmarks/engine_precision.py [--samples 16] [--scenes 50]   (half an hour on 2 free cores; --scenes 0
grades nothing; --small: one sample, no grades, printed and not recorded)
"""

import argparse
import json
from dataclasses import replace
from typing import Any

import numpy as np
from engine import PROMPTS
from record import save
from steps import guided_picture

import rhea
from rhea.documents.document import ImageSize
from rhea.evaluation.shapes.bench import ShapesBenchmark
from rhea.evaluation.shapes.task import evaluate_shapes
from rhea.generation.engine import Engine, EngineConfig
from rhea.generation.model import Rhea
from rhea.generation.sampling import SamplingConfig

DTYPES = ("float32", "bfloat16")


def drawn(model: Rhea, samples: int, window: int) -> list[list[int]]:
    """Draw each prompt's samples and return their codes."""
    completer = model.completer
    size, sampling = ImageSize(height=8, width=8), SamplingConfig(guidance_scale=model.defaults.guidance_scale)
    requests = [
        replace(guided_picture(completer.grammar, text, size, sampling), sample_index=index)
        for text in PROMPTS
        for index in range(samples)
    ]
    tokens = Engine(completer.transformer, EngineConfig(window=window, slots=16)).run(requests)
    vision = completer.grammar.vocabulary.vision
    return [[token for token in each if token in vision] for each in tokens]


def divergence(ones: list[list[int]], others: list[list[int]]) -> dict[str, Any]:
    """Compare draws code by code."""
    pairs = list(zip(ones, others, strict=True))
    first = [next((at for at, (a, b) in enumerate(zip(*pair, strict=True)) if a != b), None) for pair in pairs]
    places = [at for at in first if at is not None]
    return {
        "pictures": len(first),
        "codes_of_each": len(ones[0]),
        "equal": len(first) - len(places),
        "median_first_difference": float(np.median(places)) if places else None,
        "first_differences": first,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=16, help="of each prompt")
    parser.add_argument("--scenes", type=int, default=50, help="per graded figure")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    if options.small:
        options.samples, options.scenes = 1, 0
    models = {dtype: rhea.load(dtype=dtype) for dtype in DTYPES}
    codes = {(dtype, window): drawn(models[dtype], options.samples, window) for dtype in DTYPES for window in (1, 8)}
    results: dict[str, Any] = {
        "samples": options.samples,
        "bfloat16 against float32, window 1": divergence(codes["float32", 1], codes["bfloat16", 1]),
        "window 8 against window 1, float32": divergence(codes["float32", 1], codes["float32", 8]),
        "window 8 against window 1, bfloat16": divergence(codes["bfloat16", 1], codes["bfloat16", 8]),
    }
    if options.scenes:
        reports = {
            dtype: evaluate_shapes(model, ShapesBenchmark(scenes=options.scenes)) for dtype, model in models.items()
        }
        results["scenes"] = options.scenes
        results["grades"] = {
            f"{figure.group}: {figure.name}": {
                dtype: round(report.figure(figure.group, figure.name).value, 3) for dtype, report in reports.items()
            }
            for figure in reports["float32"].figures
        }
    if options.small:
        print(json.dumps(results, indent=2))
    else:
        save(__file__, results)


if __name__ == "__main__":
    main()
