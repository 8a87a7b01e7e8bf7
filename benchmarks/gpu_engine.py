"""The engine on a GPU: Emu3's 8 B architecture with random weights, made on the device in bfloat16; nothing is fetched.

For a guided picture of 512 x 512 and of 720 x 720: the plain loop, the engine drawing one code after the other and in
windows, and several pictures at once. A few hundred forwards are timed in the middle of each picture; a forward's time
is linear in its position, so seconds per picture are that time times the forwards: one per code, or, in windows, as
many as the tokens that a forward writes in the default model (or those stated by argument) leave. How many guesses hold
with random weights means nothing, but a forward takes as long whether they hold or not. The prompt, a few dozen tokens,
is not counted. The floor is what a forward must read (the layers, the visual rows of the head, the keys and values of
all rows) at the speed of a large copy on the same device.
Usage: python benchmarks/gpu_engine.py   (a quarter of an hour on one GPU of 24 GB or more; what does not fit is
recorded as such; --small: a tiny model on any machine, seconds, printed and not recorded)
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from record import median, save
from steps import engine_forward, guided_picture, middle_rows, plain_forward

import rhea
from rhea.documents.document import ImageSize
from rhea.documents.grammar import Grammar
from rhea.generation.engine import Engine, EngineConfig
from rhea.generation.sampling import SamplingConfig
from rhea.models.config import TransformerConfig
from rhea.models.transformer import Transformer
from rhea.models.vision.config import VisionTokenizerConfig
from rhea.models.vision.tokenizer import VisionTokenizer
from rhea.recipes.emu3 import emu3_transformer, emu3_vision_tokenizer
from rhea.tokenizers.text import train_text_tokenizer
from rhea.tokenizers.vocabulary import EMU3_VOCABULARY, Vocabulary, VocabularyConfig, compact_vocabulary

PROMPT = "a small red circle is left of the big blue square, and a green triangle is above them all."
SAMPLING = SamplingConfig(top_k=2048, guidance_scale=3.0)
DEFAULT_MODEL_PROMPTS = ("a large red circle", "a small blue star and a large green square", "two rings")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured on which model."""

    transformer: TransformerConfig
    vocabulary: VocabularyConfig
    vision: VisionTokenizerConfig
    sides: tuple[int, ...]
    """Of the grids, in codes."""
    windows: tuple[int, ...] = (1, 4, 8, 16, 32, 64)
    concurrent: tuple[int, ...] = (1, 4, 16, 32)
    windows_together: tuple[int, ...] = (1, 4, 16)
    forwards: int = 100
    copy_bytes: int = 4 << 30


FULL = Plan(
    transformer=replace(emu3_transformer(max_seq_len=9216), dropout=0.0),
    vocabulary=EMU3_VOCABULARY,
    vision=emu3_vision_tokenizer(),
    sides=(64, 90),
)
_SMALL_VOCABULARY = compact_vocabulary(text_size=300, vision_size=64)
SMALL = Plan(
    transformer=TransformerConfig(
        vocab_size=Vocabulary(_SMALL_VOCABULARY).size,
        dim=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        ffn_dim=48,
        max_seq_len=512,
    ),
    vocabulary=_SMALL_VOCABULARY,
    vision=VisionTokenizerConfig(
        base_channels=8,
        channel_multipliers=(1, 1, 1, 2),
        num_res_blocks=1,
        temporal_res_blocks=1,
        codebook_size=64,
        norm_groups=4,
    ),
    sides=(16,),
    windows=(1, 4),
    concurrent=(1, 2),
    windows_together=(1,),
    forwards=10,
    copy_bytes=1 << 20,
)


def build(plan: Plan, device: torch.device) -> tuple[Transformer, Grammar]:
    """Return the model, its weights drawn on the device, and a grammar of its vocabulary."""
    with torch.device("meta"):
        model = Transformer(plan.transformer)
    model = model.to(torch.bfloat16).to_empty(device=device).eval()
    model.init_weights(seed=0)
    return model, Grammar(Vocabulary(plan.vocabulary), train_text_tokenizer([PROMPT], vocab_size=300))


def seconds(run: Callable[[], Any], device: torch.device, repeats: int = 10) -> float:
    """Return the median seconds of a call, the device's work included, after two uncounted ones."""
    times = []
    for _ in range(2 + repeats):
        _synchronize(device)
        start = time.perf_counter()
        run()
        _synchronize(device)
        times.append(time.perf_counter() - start)
    return median(times[2:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_bandwidth(plan: Plan, device: torch.device) -> float:
    """Return the bytes per second, read and written, of a large copy."""
    source = torch.empty(plan.copy_bytes, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * plan.copy_bytes / seconds(lambda: target.copy_(source), device)


def forward_bytes(model: Transformer, rows: int, length: int, visual_rows: int) -> int:
    """Return what a forward must read: the layers, the visual rows of the head, keys and values of ``rows``."""
    config = model.config
    layers = sum(parameter.numel() for parameter in model.layers.parameters())
    cached = rows * length * 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return 2 * (layers + visual_rows * config.dim + cached)


def default_tokens_per_forward(windows: Sequence[int]) -> dict[int, float]:
    """Return how many codes of the default model's pictures a forward writes with each window."""
    completer = rhea.load().completer
    size, found = ImageSize(height=8, width=8), {}
    requests = [guided_picture(completer.grammar, text, size, SAMPLING) for text in DEFAULT_MODEL_PROMPTS]
    for window in windows:
        engine = Engine(completer.transformer, EngineConfig(window=window, slots=2))
        for request in requests:
            engine.run([request])
        found[window] = 64 * len(requests) / engine.statistics.forwards
    return found


class Measurement:
    """Everything about pictures of one size."""

    def __init__(self, plan: Plan, model: Transformer, grammar: Grammar, side: int, bandwidth: float) -> None:
        self.plan, self.model, self.bandwidth, self.codes = plan, model, bandwidth, side * side
        self.device = next(model.parameters()).device
        size = ImageSize(height=side, width=side)
        given = middle_rows(size, plan.forwards)
        self.request = guided_picture(grammar, PROMPT, size, SAMPLING, negative="blurry", given_rows=given)

    def plain_loop(self) -> dict[str, Any]:
        request = replace(self.request, max_new_tokens=min(self.plan.forwards + 20, self.request.max_new_tokens))
        return self._guarded(lambda: plain_forward(self.model, request, self.device), 1, 1.0)

    def engine(self, window: int, concurrent: int, tokens_per_forward: float) -> dict[str, Any]:
        requests = [replace(self.request, sample_index=index) for index in range(concurrent)]
        max_len = len(self.request.prompt) + self.request.max_new_tokens
        config = EngineConfig(slots=2 * concurrent, max_len=max_len, window=window)
        forwards = self.plan.forwards
        return self._guarded(
            lambda: engine_forward(self.model, config, requests, forwards), concurrent, tokens_per_forward
        )

    def _guarded(self, run: Callable[[], float], concurrent: int, tokens_per_forward: float) -> dict[str, Any]:
        """Return the figures of ``concurrent`` pictures, or that they do not fit."""
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            forward = run()
        except torch.OutOfMemoryError:
            return {"failed": "out of memory"}
        middle = len(self.request.prompt) + self.plan.forwards // 2
        read = forward_bytes(self.model, 2 * concurrent, middle, self.plan.vocabulary.vision_size)
        rate = concurrent * tokens_per_forward / forward
        return {
            "milliseconds_per_forward": round(1000 * forward, 3),
            "tokens_per_forward_and_picture": round(tokens_per_forward, 2),
            "seconds_per_picture": round(self.codes / tokens_per_forward * forward, 3),
            "pictures_per_minute": round(60 * rate / self.codes, 3),
            "tokens_per_second": round(rate, 1),
            "share_of_roofline": float(f"{read / self.bandwidth / forward:.3g}"),
            "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if on_gpu else None,
        }


def vision_decoding(plan: Plan, side: int, device: torch.device) -> float:
    """Return the seconds from one picture's codes to its pixels, in float32."""
    model = VisionTokenizer(plan.vision).to(device).eval()
    codes = torch.randint(plan.vision.codebook_size, (1, side, side), device=device)
    with torch.inference_mode():
        return seconds(lambda: model.decode(codes), device, repeats=3)


def measure(plan: Plan, device: torch.device, stated: float | None) -> dict[str, Any]:
    """Measure all sizes; ``stated`` tokens per forward are assumed with every window, where given."""
    held = dict.fromkeys(plan.windows, stated) if stated else default_tokens_per_forward(plan.windows)
    held[1] = 1.0
    model, grammar = build(plan, device)
    bandwidth = copy_bandwidth(plan, device)
    results: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "copy_gb_per_second": round(bandwidth / 1e9, 1),
        "forwards_timed": plan.forwards,
        "seconds_per_picture_are": "codes / tokens per forward x a forward's time in the middle of the picture",
        "tokens_per_forward_are": "stated" if stated else "those of the default model",
        "pictures": {},
    }
    for side in plan.sides:
        measurement = Measurement(plan, model, grammar, side, bandwidth)
        found: dict[str, Any] = {"plain loop": measurement.plain_loop()}
        for concurrent in plan.concurrent:
            for window in plan.windows if concurrent == 1 else plan.windows_together:
                name = f"{concurrent} at once, window {window}"
                found[name] = measurement.engine(window, concurrent, held[window])
                print(f"{8 * side} x {8 * side}, {name}: {found[name]}", file=sys.stderr)
        found["vision_decoding_seconds"] = round(vision_decoding(plan, side, device), 3)
        results["pictures"][f"{8 * side} x {8 * side}"] = found
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a tiny model, on the GPU if there is one")
    parser.add_argument("--tokens-per-forward", type=float, help="assumed with every window; else the default model's")
    options = parser.parse_args(arguments)
    gpu = torch.cuda.is_available()
    if not gpu and not options.small:
        sys.exit("this benchmark needs a CUDA GPU, and torch finds none here; --small tries it with a tiny model")
    device = torch.device("cuda" if gpu else "cpu")
    results = measure(SMALL if options.small else FULL, device, options.tokens_per_forward)
    if options.small:
        print(json.dumps(results, indent=2))
    else:
        save(__file__, results)


if __name__ == "__main__":
    main()
