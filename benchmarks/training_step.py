"""One training step of the 110 M model beside transformers: tokens per second and peak memory.

4 rows of 1,024 tokens, bfloat16 autocast, gradients clipped to norm 1, fused AdamW; vocabularies of 40,000 tokens and
Emu3's 184,622. Ours is the trainer's own task. Every measurement is a process of its own (its peak resident memory is
the side's own), and the sides take turns. Transformers: SDPA attention; eager attention was tried and is slower.
Usage: python benchmarks/training_step.py [--quick]   (10 to 20 minutes on 2 free cores, 20 GB of memory; --quick: one
row of 1,024 tokens, the small vocabulary, one round; --once: one round of one counted step, recorded)
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from medium import medium
from record import median, peak_memory_gb, save

from rhea.documents.packing import Packed
from rhea.models.transformer import Transformer
from rhea.tokenizers.vocabulary import EMU3_VOCABULARY, Vocabulary, VocabularyConfig, compact_vocabulary
from rhea.training.next_token import NextTokenTask, NextTokenTaskConfig

SIDES = ("rhea", "transformers")
VOCABULARIES = {"40k": compact_vocabulary(7224, 32768), "184,622": EMU3_VOCABULARY}
SEQ_LEN = 1024
ROUNDS = 3
STEPS = 3
"""Counted steps of one process, after one that makes the optimizer's state."""


def our_step(vocabulary: VocabularyConfig, token_ids: np.ndarray) -> Callable[[], None]:
    """Return one step of the trainer's task."""
    model = Transformer(medium(vocabulary, SEQ_LEN))
    model.init_weights(seed=0)
    task = NextTokenTask(NextTokenTaskConfig(precision="bfloat16"), model, Vocabulary(vocabulary))
    labels = np.roll(token_ids, -1, 1)
    labels[:, -1] = -100
    batch = Packed(
        token_ids=token_ids,
        labels=labels,
        loss_weights=(labels >= 0).astype(np.float32),
        document_ids=np.zeros_like(token_ids),
        positions=np.broadcast_to(np.arange(SEQ_LEN), token_ids.shape).copy(),
        origins=(),
    )

    def step() -> None:
        task.train_microbatch(batch)
        task.optimizer_step(1e-4)

    return step


def their_step(vocabulary: VocabularyConfig, token_ids: np.ndarray) -> Callable[[], None]:
    """Return the same step with transformers."""
    import transformers

    config = medium(vocabulary, SEQ_LEN)
    model = transformers.Emu3ForCausalLM(
        transformers.Emu3TextConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            intermediate_size=config.ffn_dim,
            max_position_embeddings=SEQ_LEN,
            attention_dropout=0.0,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    ids = torch.from_numpy(token_ids)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def one(side: str, name: str, rows: int, steps: int) -> dict[str, Any]:
    """Measure one side in this process."""
    vocabulary = VOCABULARIES[name]
    random = np.random.default_rng(0)
    token_ids = random.integers(3, Vocabulary(vocabulary).size, (rows, SEQ_LEN))
    step = (our_step if side == "rhea" else their_step)(vocabulary, token_ids)
    step()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "peak_gb": peak_memory_gb()}


def compare(name: str, rows: int, rounds: int, steps: int) -> dict[str, Any]:
    """Let the sides take turns; return their medians and ratios."""
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    peaks: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            command = [sys.executable, __file__, "--one", side, name, str(rows), str(steps)]
            run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            result = json.loads(run.stdout.splitlines()[-1])
            seconds[side] += result["seconds"]
            peaks[side].append(result["peak_gb"])
    rates = {side: rows * SEQ_LEN / median(times) for side, times in seconds.items()}
    peak = {side: median(values) for side, values in peaks.items()}
    return {
        "tokens_per_second": {side: round(rate, 1) for side, rate in rates.items()},
        "peak_gb": {side: round(value, 2) for side, value in peak.items()},
        "times_the_peers_speed": round(rates["rhea"] / rates["transformers"], 2),
        "times_the_peers_memory": round(peak["rhea"] / peak["transformers"], 2),
    }


def main() -> None:
    if "--one" in sys.argv:
        side, name, rows, steps = sys.argv[2:]
        print(json.dumps(one(side, name, int(rows), int(steps))))
        return
    if "--quick" in sys.argv:
        print(json.dumps(compare("40k", rows=1, rounds=1, steps=2), indent=2))
        return
    rounds, steps = (1, 1) if "--once" in sys.argv else (ROUNDS, STEPS)
    results = {name: compare(name, rows=4, rounds=rounds, steps=steps) for name in VOCABULARIES}
    save(__file__, {"tokens": 4 * SEQ_LEN, "rounds": rounds, "steps": steps, "vocabularies": results})


if __name__ == "__main__":
    main()
