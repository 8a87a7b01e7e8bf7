"""Peak memory of a process that draws pictures with the engine, beside its weights and the cache that it reserves.

The 110 M model in bfloat16, eight guided pictures at once, weights packed (as ``rhea.load`` does on CPUs) and not.
Every measurement is a process of its own: its peak resident memory over what it held before the model was made, beside
the bytes of weights and cache. The cache is just as long as the pictures need: memory that is reserved and never
written is not resident.
Usage: python benchmarks/engine_memory.py [--rows 16] [--repeats 3]   (ten minutes on 2 free cores; --small: a minute,
printed and not recorded)
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import torch
from generation import PROMPT, TOP_K
from load_memory import model_bytes, resident
from medium import medium
from record import median, save
from steps import guided_picture

from rhea.documents.document import ImageSize
from rhea.documents.grammar import Grammar
from rhea.generation.engine import Engine, EngineConfig
from rhea.generation.sampling import SamplingConfig
from rhea.models.transformer import Transformer
from rhea.tokenizers.text import train_text_tokenizer
from rhea.tokenizers.vocabulary import Vocabulary, compact_vocabulary

PICTURES = 8
WIDTH = 32
AIM = 1.15
CASES: dict[str, tuple[bool, int | None]] = {
    "packed": (True, None),
    "not packed": (False, None),
    "not packed, window 1": (False, 1),
}
"""Whether packed, and the window; None finds the fastest, and on the way tries wide ones with their many logits."""


def one(packed: bool, window: int | None, rows: int) -> dict[str, int]:
    """Measure in this process."""
    vocabulary = compact_vocabulary(text_size=7224, vision_size=32768)
    grammar = Grammar(Vocabulary(vocabulary), train_text_tokenizer([PROMPT], vocab_size=300))
    size = ImageSize(height=rows, width=WIDTH)
    template = guided_picture(grammar, PROMPT, size, SamplingConfig(top_k=TOP_K, guidance_scale=3.0))
    requests = [replace(template, sample_index=index) for index in range(PICTURES)]
    torch.ones(64, 64, dtype=torch.bfloat16) @ torch.ones(64, 64, dtype=torch.bfloat16)  # loads its libraries
    before = resident("VmRSS")
    torch.set_default_dtype(torch.bfloat16)
    model = Transformer(medium(vocabulary, max_seq_len=4096)).eval()
    torch.set_default_dtype(torch.float32)
    model.init_weights(seed=0)
    if packed:
        model.pack(grammar.vocabulary.boundaries, alone=True)
    config = EngineConfig(slots=2 * PICTURES, max_len=len(template.prompt) + template.max_new_tokens, window=window)
    engine = Engine(model, config)
    engine.run(requests)
    return {
        "weights": model_bytes(model),
        "cache": sum(layer.numel() * layer.itemsize for layer in engine.cache.layers),
        "peak": resident("VmHWM") - before,
    }


def measure(rows: int, repeats: int) -> dict[str, Any]:
    """Let all cases take turns; return the medians."""
    runs: dict[str, list[dict[str, int]]] = {name: [] for name in CASES}
    for _ in range(repeats):
        for name, found in runs.items():
            command = [sys.executable, __file__, "--one", name, "--rows", str(rows)]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            found.append(json.loads(output.splitlines()[-1]))
    results: dict[str, Any] = {"pictures": PICTURES, "codes": rows * WIDTH, "repeats": repeats, "aim": AIM}
    for name, found in runs.items():
        weights, cache = found[0]["weights"], found[0]["cache"]
        peak = median([each["peak"] for each in found])
        results[name] = {
            "weights_gb": round(weights / 1e9, 3),
            "cache_gb": round(cache / 1e9, 3),
            "peak_gb": round(peak / 1e9, 3),
            "peak_over_weights_and_cache": round(peak / (weights + cache), 3),
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=16, help="of 32 codes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="one row, once, printed and not recorded")
    parser.add_argument("--one", choices=CASES, help="measure in this process")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(*CASES[options.one], options.rows)))
    elif options.small:
        print(json.dumps(measure(rows=1, repeats=1), indent=2))
    else:
        save(__file__, measure(options.rows, options.repeats))


if __name__ == "__main__":
    main()
