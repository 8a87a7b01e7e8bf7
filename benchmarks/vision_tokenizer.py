"""Encoding and decoding with the vision tokenizer at the released size, beside transformers on the same random weights.

Every side of a case is a process of its own that loads its model from files, so its peak resident memory (pages of
mapped files included) is its own. ``before_gb`` is what it held before the first whole run; working memory is what came
on top. The sides run in turn, and the medians are compared with transformers' faster setting: as it comes, or with its
2D convolutions channels-last (attention through SDPA in both). The latter is tried on pictures of 256 x 256 only: it is
hardly faster there, and its copies of the weights need half as much memory again. 512 x 512 runs in float32 only, which
codes are made in.
Usage: python benchmarks/vision_tokenizer.py [--rounds N]   (3 by default: about an hour on 2 free cores)
       python benchmarks/vision_tokenizer.py --quick        (128 x 128, once, printed and not recorded; 5 minutes)
"""

import argparse
import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from record import forget_peak, median, peak_memory_gb, save

from rhea.checkpoints.configs import CheckpointConfig
from rhea.checkpoints.load import Checkpoint, load_checkpoint
from rhea.checkpoints.save import save_checkpoint
from rhea.models.vision.config import VisionTokenizerConfig
from rhea.models.vision.tokenizer import VisionTokenizer
from rhea.tokenizers.vision import PixelPolicy

DTYPES = ("float32", "bfloat16")
SIDES = ("rhea", "transformers", "transformers, channels-last")


@torch.no_grad()
def fill(model: torch.nn.Module) -> None:
    """Draw every tensor: variance 1 / fan-in, norms about 1."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
        if name.endswith("running_var"):
            tensor.abs_().add_(0.5)
        elif tensor.ndim == 1:
            tensor.mul_(0.1).add_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        elif "embedding" not in name:
            tensor.mul_(tensor[0].numel() ** -0.5)


def write(folder: Path) -> None:
    """Save one tokenizer of the released size in float32 and bfloat16, as ours and as transformers'."""
    model = VisionTokenizer(VisionTokenizerConfig())
    fill(model)
    for dtype in DTYPES:
        checkpoint = Checkpoint(
            config=CheckpointConfig(vision_tokenizer=model.config, pixels=PixelPolicy()),
            vision_tokenizer=model.to(getattr(torch, dtype)),
        )
        for layout in ("rhea", "hf"):
            save_checkpoint(folder / f"{layout}-{dtype}", checkpoint, layout=layout)


def load(side: str, folder: Path, dtype: str) -> tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]:
    """Return the encode and decode functions of one side."""
    if side == "rhea":
        ours = load_checkpoint(folder / f"rhea-{dtype}", mapped=True).vision_tokenizer  # as transformers does
        assert ours is not None
        return ours.encode, ours.decode
    import transformers

    theirs = transformers.Emu3VQVAE.from_pretrained(folder / f"hf-{dtype}", dtype=getattr(torch, dtype)).eval()
    if side.endswith("channels-last"):
        for module in theirs.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def encode(pixels: torch.Tensor) -> torch.Tensor:
        sizes = torch.tensor([[pixels.shape[-2] * 8, pixels.shape[-1] * 8]] * len(pixels))  # too large: crop nothing
        return torch.stack(list(theirs.encode(pixels, image_sizes=sizes).image_tokens))

    return encode, torch.no_grad()(theirs.decode)


def serve(side: str, folder: Path, case: dict[str, Any], pipe: Connection) -> None:
    """Run the case once for every message received; answer with seconds and the result, at the end with the peak."""
    encode, decode = load(side, folder, case["dtype"])
    size, clip, generator = case["size"], case["kind"] == "clip", torch.Generator().manual_seed(0)
    if case["do"] == "encode":
        shape = (1, 4, 3, size, size) if clip else (1, 3, size, size)
        function, value = encode, (torch.rand(shape, generator=generator) * 2 - 1).to(getattr(torch, case["dtype"]))
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


def run_case(folder: Path, case: dict[str, Any], sides: Sequence[str], repeats: int) -> dict[str, Any]:
    """Start all sides, let them run in turn, and return medians, peaks and how far the results agree."""
    context = multiprocessing.get_context("spawn")
    pipes, processes, before = {}, [], {}
    for side in sides:
        pipes[side], theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(side, folder, case, theirs)))
        processes[-1].start()
        before[side] = pipes[side].recv()
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    cpu_seconds: dict[str, list[float]] = {side: [] for side in sides}
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
    ours, theirs = (torch.from_numpy(results[side]) for side in sides[:2])
    difference = (ours != theirs).float().mean() if case["do"] == "encode" else (ours - theirs).abs().max()
    exact = case["dtype"] == "float32"
    assert not exact or difference < 1e-3, f"{case}: the results differ by {difference}"
    fastest = min(sides[1:], key=lambda side: median(seconds[side]))
    return case | {
        "seconds": {side: round(median(values), 3) for side, values in seconds.items()},
        "cpu_seconds": {side: round(median(values), 3) for side, values in cpu_seconds.items()},
        "before_gb": {side: round(value, 2) for side, value in before.items()},
        "peak_gb": {side: round(value, 2) for side, value in peaks.items()},
        "faster_peer": fastest,
        "times_faster": round(median(seconds[fastest]) / median(seconds["rhea"]), 2),
        "times_less_processor_time": round(median(cpu_seconds[fastest]) / median(cpu_seconds["rhea"]), 2),
        "working_memory_over_transformers": round(
            (peaks["rhea"] - before["rhea"]) / min(peaks[side] - before[side] for side in sides[1:]), 2
        ),
        "peak_over_transformers": round(peaks["rhea"] / min(peaks[side] for side in sides[1:]), 2),
        "codes_that_differ" if case["do"] == "encode" else "largest_difference": difference.item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="128 x 128, once, printed and not recorded")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    sizes = [("picture", 256), ("clip", 256), ("picture", 512)]
    if options.quick:
        sizes = [("picture", 128), ("clip", 128)]
    results = list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        for dtype, (kind, size), do in itertools.product(DTYPES, sizes, ("encode", "decode")):
            if size == 512 and dtype != "float32":
                continue
            case = {"kind": kind, "size": size, "dtype": dtype, "do": do}
            sides = SIDES if (kind, size) == ("picture", 256) else SIDES[:2]
            results.append(run_case(Path(folder), case, sides, rounds))
            print(results[-1], flush=True)
    if not options.quick:
        save(__file__, {"rounds": rounds, "cases": results})


if __name__ == "__main__":
    main()
