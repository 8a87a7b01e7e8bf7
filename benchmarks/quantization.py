"""What eight bits cost: the default model's guided distributions, its graded pictures and its memory, in each format.

Teacher forced: fresh pictures of the shapes world are coded by the vision tokenizer, and at each place of their grids
the guided distribution after the caption and the true codes so far is compared with that of float32. Graded: one object
drawn exactly as told, the same captions and seeds in every format, sampled and judged as `rhea evaluate shapes` does.
fp8 weights are measured where a GPU and torchao are.
Usage: python benchmarks/quantization.py [--grids 100] [--scenes 200]   (minutes on one core; --small: a few of each,
printed and not recorded)
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from medium import medium
from record import save
from steps import guided_picture
from torch import Tensor

import rhea
from rhea.documents.document import ImageSize
from rhea.errors import InputError
from rhea.evaluation.report import checkpoint_hash
from rhea.generation.engine import Engine, EngineConfig
from rhea.generation.model import Rhea
from rhea.generation.request import Request
from rhea.generation.sampling import SamplingConfig, guided_logits
from rhea.models.config import TransformerConfig
from rhea.models.quantized import WeightFormat, quantize
from rhea.models.slot_cache import CacheStorage, SlotCache
from rhea.models.transformer import Transformer
from rhea.tokenizers.vocabulary import compact_vocabulary
from rhea.worlds.shapes.grader import read_picture
from rhea.worlds.shapes.language import Caption, caption
from rhea.worlds.shapes.render import render
from rhea.worlds.shapes.scene import Scene, sample_scene

SEED = 20261122
"""Of the scenes; training and evaluation have others."""
TOP = (16, 2048)
"""Of how many most probable codes the overlap is told; at most half the codebook, for all of it always overlaps."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """How a model is held in memory."""

    dtype: torch.dtype = torch.float32
    weights: WeightFormat | None = None
    cache: CacheStorage = "model"


FORMATS = {
    "float32": Format(),
    "bfloat16": Format(dtype=torch.bfloat16),
    "int8 weights": Format(weights="int8"),
    "int8 weights, bfloat16": Format(weights="int8", dtype=torch.bfloat16),
    "int8 cache": Format(cache="int8"),
    "fp8 cache": Format(cache="fp8"),
    "int8 weights and cache": Format(weights="int8", cache="int8"),
    "fp8 weights, bfloat16": Format(weights="fp8", dtype=torch.bfloat16),
}


def scenes_and_captions(count: int, section: int) -> tuple[list[Scene], list[Caption]]:
    """Return fresh scenes of one object, and what is said of them."""
    rng = np.random.default_rng([SEED, section])
    scenes = [sample_scene(rng, num_objects=1, held_out="exclude") for _ in range(count)]
    return scenes, [caption(rng, scene, "en") for scene in scenes]


def requests(model: Rhea, captions: Iterable[Caption]) -> list[Request]:
    """Return guided pictures under the checkpoint's own settings."""
    assert model.codec is not None
    defaults, grammar = model.defaults, model.completer.grammar
    side = 64 // model.codec.spatial_factor
    sampling = SamplingConfig(
        temperature=defaults.temperature,
        top_k=defaults.top_k,
        top_p=defaults.top_p,
        guidance_scale=defaults.guidance_scale,
    )
    size = ImageSize(height=side, width=side)
    return [
        replace(guided_picture(grammar, each.text + defaults.prompt_suffix, size, sampling), seed=SEED + index)
        for index, each in enumerate(captions)
    ]


@torch.inference_mode()
def distributions(model: Rhea, asked: Request, codes: np.ndarray, storage: CacheStorage) -> Tensor:
    """Return guided log-probabilities of the codes at each place of a true grid, float64 [places, codebook]."""
    transformer, vocabulary = model.completer.transformer, model.completer.grammar.vocabulary
    visual = vocabulary.vision
    grid = np.pad(codes + visual.start, ((0, 0), (0, 1)), constant_values=vocabulary.eol).ravel()
    places = np.flatnonzero(grid != vocabulary.eol)
    rows = [[*prompt, *grid.tolist()] for prompt in (asked.prompt, asked.negative_prompt or ())]
    assert transformer.norm is not None
    weight = transformer.norm.weight
    cache = SlotCache(transformer.config, 2, max(map(len, rows)), weight.dtype, weight.device, storage)
    cache.feed([(slot, len(row)) for slot, row in enumerate(rows)])
    flat = torch.tensor([[token for row in rows for token in row]], device=weight.device)
    states_ND = transformer.hidden(flat, cache=cache)[0]
    first = [len(asked.prompt) - 1, len(rows[0]) + len(rows[1]) - len(grid) - 1]
    conditional, unconditional = (
        transformer.logits(states_ND[torch.from_numpy(places + start).to(flat.device)], visual.start, visual.stop)
        for start in first
    )
    return guided_logits(conditional, unconditional, asked.sampling.guidance_scale).double().log_softmax(-1).cpu()


def distance(ours: Tensor, reference: Tensor) -> dict[str, float]:
    """Return the divergence from the reference in nats, and how much of what is most probable is the same."""
    divergence = (reference.exp() * (reference - ours)).sum(-1)
    results = {
        "kl_mean": divergence.mean().item(),
        "kl_99th_percentile": divergence.quantile(0.99).item(),
        "kl_largest": divergence.max().item(),
        "top_1_equal": (ours.argmax(-1) == reference.argmax(-1)).double().mean().item(),
    }
    for k in sorted({min(most, reference.shape[-1] // 2) for most in TOP}):
        chosen = [torch.zeros_like(each).scatter_(-1, each.topk(k).indices, 1.0) for each in (ours, reference)]
        results[f"top_{k}_overlap"] = (chosen[0] * chosen[1]).sum(-1).mean().item() / k
    return {name: float(f"{value:.4g}") for name, value in results.items()}


def drawn(model: Rhea, asked: list[Request], storage: CacheStorage) -> list[np.ndarray]:
    """Draw pictures; return their codes."""
    transformer, vision = model.completer.transformer, model.completer.grammar.vocabulary.vision
    longest = max(max(len(each.prompt), len(each.negative_prompt or ())) + each.max_new_tokens for each in asked)
    engine = Engine(transformer, EngineConfig(slots=32, max_len=longest, max_waiting=len(asked), cache=storage))
    codes = [np.array([token - vision.start for token in each if token in vision]) for each in engine.run(asked)]
    return [each.reshape(-1, int(len(each) ** 0.5)) for each in codes]


def satisfied(model: Rhea, captions: list[Caption], grids: list[np.ndarray]) -> float:
    """Return the share of pictures that show exactly what was asked for."""
    assert model.codec is not None
    pictures = model.codec.decode_pictures(grids)
    return float(np.mean([c.satisfied_by(read_picture(p)) for c, p in zip(captions, pictures, strict=True)]))


def stored_bytes(model: Transformer) -> int:
    """Return what a transformer's weights take, without copies packed for the processor."""

    def size(tensor: Any) -> int:
        if hasattr(tensor, "__tensor_flatten__"):  # torchao's, made of several
            return sum(size(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
        return tensor.nbytes

    return sum(map(size, model.state_dict().values()))


def cache_bytes(config: TransformerConfig, way: Format) -> int:
    """Return what a token takes in the cache."""
    cache = SlotCache(config, 1, 1, way.dtype, storage=way.cache)
    return sum(each.nbytes for each in (*cache.layers, *cache.scales))


def medium_bytes() -> dict[str, int]:
    """Return the weights of the 110 M model in each format; on the meta device, where they take nothing."""
    sizes = {}
    for name in ("float32", "bfloat16", "int8 weights, bfloat16"):
        with torch.device("meta"):
            model = Transformer(medium(compact_vocabulary(text_size=7224, vision_size=32768), max_seq_len=4096))
        model.to(FORMATS[name].dtype)
        weights = FORMATS[name].weights
        sizes[name] = stored_bytes(model if weights is None else quantize(model, weights))
    return sizes


def compare(checkpoint: str | None, grids: int, scenes: int) -> dict[str, Any]:
    """Measure every format."""
    plain = rhea.load(checkpoint, dtype=torch.float32)
    assert plain.codec is not None
    forced, told = scenes_and_captions(grids, 0)
    truth = plain.codec.encode_pictures([render(scene) for scene in forced])
    graded, captions = scenes_and_captions(scenes, 1)
    reference: list[Tensor] = []
    pictures: list[np.ndarray] = []
    results: dict[str, Any] = {}
    for name, way in FORMATS.items():
        try:
            model = rhea.load(checkpoint, dtype=way.dtype, weights=way.weights)
        except InputError as error:
            results[name] = {"not_measured": str(error)}
            continue
        asked = requests(model, told)
        ours = [distributions(model, each, codes, way.cache) for each, codes in zip(asked, truth, strict=True)]
        codes = drawn(model, requests(model, captions), way.cache)
        reference, pictures = reference or ours, pictures or codes
        results[name] = {
            "weight_bytes": stored_bytes(model.completer.transformer),
            "cache_bytes_per_token": cache_bytes(model.completer.transformer.config, way),
            **distance(torch.cat(ours), torch.cat(reference)),
            "one_object_exact": satisfied(model, captions, codes),
            "pictures_equal_to_float32": float(np.mean([(a == b).all() for a, b in zip(codes, pictures, strict=True)])),
        }
    fits = [
        each.satisfied_by(scene.objects) for i, each in enumerate(captions) for j, scene in enumerate(graded) if i != j
    ]
    return {
        "checkpoint_hash": checkpoint_hash(plain.checkpoint),
        "formats": results,
        "one_object_exact_ceiling": satisfied(
            plain, captions, plain.codec.encode_pictures([render(scene) for scene in graded])
        ),
        "one_object_exact_chance": float(np.mean(fits)),
        "weight_bytes_110M": medium_bytes(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grids", type=int, default=100, help="true pictures whose places are compared")
    parser.add_argument("--scenes", type=int, default=200, help="pictures drawn and graded in each format")
    parser.add_argument("--checkpoint", default=None, help="a folder; the default model if not given")
    parser.add_argument("--small", action="store_true", help="a few of each, printed and not recorded")
    options = parser.parse_args()
    grids, scenes = (4, 4) if options.small else (options.grids, options.scenes)
    results = {"grids": grids, "scenes": scenes, **compare(options.checkpoint, grids, scenes)}
    print(json.dumps(results, indent=2)) if options.small else save(__file__, results)


if __name__ == "__main__":
    main()
