"""Peak memory and time of loading a checkpoint of random weights, beside transformers loading the same folder.

A 288 M transformer with the released vision tokenizer is saved (shards of 500 MB) as float32, in both layouts, and as
bfloat16. Every load runs in a process of its own. Its figure is the peak resident memory (mapped file pages included)
over what the process held before, divided by the size of the loaded model. Each folder is read once before it is
loaded, so that times are not those of the disk; transformers maps float32 and reads it only when the model is used.
Usage: python benchmarks/load_memory.py [FOLDER]   (needs 8 GB of disk; a few minutes on 2 cores)
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from record import save

from rhea.checkpoints.configs import CheckpointConfig
from rhea.checkpoints.load import Checkpoint, load_checkpoint
from rhea.checkpoints.save import convert_checkpoint, save_checkpoint
from rhea.models.config import TransformerConfig
from rhea.models.transformer import Transformer
from rhea.models.vision.config import VisionTokenizerConfig
from rhea.models.vision.tokenizer import VisionTokenizer
from rhea.tokenizers.vision import PixelPolicy
from rhea.tokenizers.vocabulary import compact_vocabulary

REPEATS = 3
SHARD_BYTES = 500_000_000
LOADS = [  # name, loader, folder, dtype to load as
    ("ours, float32", "rhea", "rhea-float32", "float32"),
    ("ours, bfloat16", "rhea", "rhea-bfloat16", "bfloat16"),
    ("ours, float32 to bfloat16", "rhea", "rhea-float32", "bfloat16"),
    ("ours, bfloat16 to float32", "rhea", "rhea-bfloat16", "float32"),
    ("ours, transformers' layout, float32", "rhea", "hf-float32", "float32"),
    ("transformers, float32", "transformers", "hf-float32", "float32"),
    ("transformers, float32 to bfloat16", "transformers", "hf-float32", "bfloat16"),
    ("ours, converting float32 to bfloat16", "convert", "hf-float32", "bfloat16"),
]


def make_folders(root: Path) -> None:
    """Write the three checkpoints."""
    transformer = TransformerConfig(
        vocab_size=32768 + 8 + 32768, dim=1024, num_layers=13, num_heads=8, num_kv_heads=4, head_dim=128,
        ffn_dim=2816, max_seq_len=9216,
    )  # fmt: skip
    config = CheckpointConfig(
        transformer=transformer,
        vision_tokenizer=VisionTokenizerConfig(),
        vocabulary=compact_vocabulary(32768, 32768),
        pixels=PixelPolicy(),
    )
    model, vision = Transformer(transformer), VisionTokenizer(VisionTokenizerConfig())
    model.init_weights()
    for dtype in ("float32", "bfloat16"):
        model.to(getattr(torch, dtype))
        vision.to(getattr(torch, dtype))
        for layout in ("rhea", "hf") if dtype == "float32" else ("rhea",):
            checkpoint = Checkpoint(config=config, transformer=model, vision_tokenizer=vision)
            save_checkpoint(root / f"{layout}-{dtype}", checkpoint, layout=layout, shard_bytes=SHARD_BYTES)


def resident(key: str) -> int:
    """Return VmRSS (now) or VmHWM (the peak so far) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def model_bytes(*models: torch.nn.Module) -> int:
    return sum(tensor.numel() * tensor.itemsize for model in models for tensor in model.state_dict().values())


def one_load(kind: str, folder: Path, dtype_name: str) -> dict[str, float]:
    """Load in this process and measure it."""
    dtype = getattr(torch, dtype_name)
    if kind == "transformers":
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.Emu3ForConditionalGeneration  # noqa: B018 (imported lazily: now, not while measured)
    torch.empty(1, dtype=dtype, device="meta").normal_()
    before, start = resident("VmRSS"), time.perf_counter()
    if kind == "transformers":
        size = model_bytes(transformers.Emu3ForConditionalGeneration.from_pretrained(folder, dtype=dtype))
    elif kind == "rhea":
        loaded = load_checkpoint(folder, dtype=dtype, vision_dtype=dtype)
        assert loaded.transformer is not None
        assert loaded.vision_tokenizer is not None
        size = model_bytes(loaded.transformer, loaded.vision_tokenizer)
    else:
        with tempfile.TemporaryDirectory(dir=folder.parent) as target:
            convert_checkpoint(folder, Path(target) / "new", dtype=dtype, vision_dtype=dtype, shard_bytes=SHARD_BYTES)
            size = sum(file.stat().st_size for file in Path(target).glob("new/*.safetensors"))
    seconds, peak = time.perf_counter() - start, resident("VmHWM")
    return {"model_bytes": size, "before_bytes": before, "peak_bytes": peak - before, "seconds": seconds}


def in_new_process(kind: str, folder: Path, dtype: str) -> dict[str, float]:
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as data:
            while data.read(1 << 24):
                pass
    command = [sys.executable, __file__, "--one", kind, str(folder), dtype]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def measure(root: Path) -> dict[str, Any]:
    """Run all loads, interleaved, and return the medians."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name, *_ in LOADS}
    for _ in range(REPEATS):
        for name, kind, folder, dtype in LOADS:
            runs[name].append(in_new_process(kind, root / folder, dtype))
    results = {}
    for name, found in runs.items():
        size = found[0]["model_bytes"]
        peaks = [run["peak_bytes"] for run in found]
        results[name] = {
            "model_gb": round(size / 1e9, 3),
            "peak_over_model": round(statistics.median(peaks) / size, 3),
            "worst_peak_over_model": round(max(peaks) / size, 3),
            "seconds": round(statistics.median(run["seconds"] for run in found), 2),
            "best_seconds": round(min(run["seconds"] for run in found), 2),
            "process_before_gb": round(statistics.median(run["before_bytes"] for run in found) / 1e9, 3),
        }
    return results


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one_load(sys.argv[2], Path(sys.argv[3]), sys.argv[4])))
        return
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as root:
        make_folders(Path(root))
        results = measure(Path(root))
    for name, result in results.items():
        print(f"{name:40s} {result}")
    save(__file__, {"shard_bytes": SHARD_BYTES, "repeats": REPEATS, "loads": results})


if __name__ == "__main__":
    main()
