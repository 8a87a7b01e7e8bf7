"""Encoding and decoding with the vision tokenizer at the released size, beside transformers on the same random weights.

Every side of a case is a process of its own that holds its model, so its peak resident memory is its own. ``before_gb``
is what it held before the first run: libraries and 1.08 GB of weights in float32; working memory is what came on top.
The sides run in turn, and the medians are compared with transformers' faster setting. Transformers' settings: as it
comes, and with its 2D convolutions channels-last (attention through SDPA in both). Weights are drawn per tensor name,
equal on all sides.
Usage: python benchmarks/vision_tokenizer.py [--quick]   (about an hour on 2 free cores; --quick: 128 x 128, 5 minutes;
--small: the 256 x 256 picture, once each, recorded, 10 minutes)
"""

import multiprocessing
import re
import sys
import time
import zlib
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from record import forget_peak, median, peak_memory_gb, save

from rhea.models.vision.config import VisionTokenizerConfig
from rhea.models.vision.tokenizer import VisionTokenizer

SIDES = ("rhea", "transformers", "transformers, channels-last")
THEIR_NAMES = [
    (r"\.(down|up)_block\.", "."),
    (r"\.middle_block\.attn_norm\.", ".mid.attn_1.norm."),
    (r"\.middle_block\.", ".mid."),
    (r"attn_norms\.(\d)", r"attn.\1.norm"),
    (r"\.(q|k|v)_proj\.", r".\1."),
    (r"\.out_proj\.", ".proj_out."),
]


def our_name(name: str) -> str:
    for pattern, replacement in THEIR_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


@torch.no_grad()
def fill(model: torch.nn.Module) -> None:
    """Give every tensor values that depend on its released name alone: variance 1 / fan-in, norms about 1."""
    for name, tensor in model.state_dict().items():
        name = our_name(name)
        if not tensor.is_floating_point():
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
        if name.endswith("running_var"):
            tensor.abs_().add_(0.5)
        elif tensor.ndim == 1:
            tensor.mul_(0.1).add_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        elif "embedding" not in name:
            tensor.mul_(tensor[0].numel() ** -0.5)


def build(side: str, dtype: torch.dtype) -> tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]:
    """Return the encode and decode functions of one side."""
    if side == "rhea":
        ours = VisionTokenizer(VisionTokenizerConfig()).eval().to(dtype)
        fill(ours)
        return ours.encode, ours.decode
    import transformers

    theirs = transformers.Emu3VQVAE(transformers.Emu3VQVAEConfig()).eval().to(dtype)
    fill(theirs)
    if side.endswith("channels-last"):
        for module in theirs.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def encode(pixels: torch.Tensor) -> torch.Tensor:
        sizes = torch.tensor([[pixels.shape[-2] * 8, pixels.shape[-1] * 8]] * len(pixels))  # too large: crop nothing
        return torch.stack(list(theirs.encode(pixels, image_sizes=sizes).image_tokens))

    return encode, torch.no_grad()(theirs.decode)


def serve(side: str, case: dict[str, Any], pipe: Connection) -> None:
    """Run the case once for every message received; answer with seconds and the result, at the end with the peak."""
    dtype = getattr(torch, case["dtype"])
    encode, decode = build(side, dtype)
    size, clip, generator = case["size"], case["kind"] == "clip", torch.Generator().manual_seed(0)
    if case["do"] == "encode":
        shape = (1, 4, 3, size, size) if clip else (1, 3, size, size)
        function, value = encode, (torch.rand(shape, generator=generator) * 2 - 1).to(dtype)
    else:
        shape = (1, 1, size // 8, size // 8) if clip else (1, size // 8, size // 8)
        function, value = decode, torch.randint(0, 32768, shape, generator=generator)
    function(value[..., :32, :32] if case["do"] == "encode" else value[..., :4, :4])  # warm-up
    forget_peak()
    pipe.send(peak_memory_gb())
    while pipe.recv():
        start, cpu = time.perf_counter(), time.process_time()
        result = function(value)
        pipe.send((time.perf_counter() - start, time.process_time() - cpu, result.float().numpy()))
    pipe.send(peak_memory_gb())


def run_case(case: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Start all sides, let them run in turn, and return medians, peaks and how far the results agree."""
    context = multiprocessing.get_context("spawn")
    pipes, processes, before = {}, [], {}
    for side in SIDES:
        pipes[side], theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(side, case, theirs)))
        processes[-1].start()
        before[side] = pipes[side].recv()
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    cpu_seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    results = {}
    for _ in range(repeats):
        for side, pipe in pipes.items():
            pipe.send(True)
            elapsed, cpu, results[side] = pipe.recv()
            seconds[side].append(elapsed)
            cpu_seconds[side].append(cpu)
    peaks = {}
    for side, pipe in pipes.items():
        pipe.send(False)
        peaks[side] = pipe.recv()
    for process in processes:
        process.join()
    ours, theirs = (torch.from_numpy(results[side]) for side in SIDES[:2])
    difference = (ours != theirs).float().mean() if case["do"] == "encode" else (ours - theirs).abs().max()
    fastest = min(SIDES[1:], key=lambda side: median(seconds[side]))
    return case | {
        "seconds": {side: round(median(values), 3) for side, values in seconds.items()},
        "cpu_seconds": {side: round(median(values), 3) for side, values in cpu_seconds.items()},
        "before_gb": {side: round(value, 2) for side, value in before.items()},
        "peak_gb": {side: round(value, 2) for side, value in peaks.items()},
        "times_faster": round(median(seconds[fastest]) / median(seconds["rhea"]), 2),
        "times_less_processor_time": round(median(cpu_seconds[fastest]) / median(cpu_seconds["rhea"]), 2),
        "working_memory_over_transformers": round(
            (peaks["rhea"] - before["rhea"]) / min(peaks[side] - before[side] for side in SIDES[1:]), 2
        ),
        "peak_over_transformers": round(peaks["rhea"] / min(peaks[side] for side in SIDES[1:]), 2),
        "codes_that_differ" if case["do"] == "encode" else "largest_difference": difference.item(),
    }


def main() -> None:
    quick, small = "--quick" in sys.argv, "--small" in sys.argv
    sizes = [("picture", 256), ("clip", 256), ("picture", 512)]
    if quick or small:
        sizes = [("picture", 128), ("clip", 128)] if quick else sizes[:1]
    cases = [
        {"kind": kind, "size": size, "dtype": dtype, "do": do}
        for dtype in ("float32", "bfloat16")
        for kind, size in sizes
        for do in ("encode", "decode")
    ]
    repeats = 1 if quick or small else 3
    results = []
    for case in cases:
        results.append(run_case(case, repeats))
        print(results[-1], flush=True)
    if not quick:
        save(__file__, {"repeats": repeats, "cases": results})


if __name__ == "__main__":
    main()
