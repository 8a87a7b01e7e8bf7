"""Training runs of a second, one per task, and a recipe of a few; also a program, so that a test can kill them:

    python tests/training/tiny_runs.py '{"name": {"kind": "next_token", "folder": ..., "signal": "SIGTERM", "step": 5}}'

It runs each specification in a process of its own and prints their exit codes.
"""

import dataclasses
import itertools
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rhea.documents.grammar import Rendered
from rhea.documents.packing import Packed, pack
from rhea.models.config import TransformerConfig
from rhea.models.transformer import Transformer
from rhea.models.vision.codebook_training import CodebookTrainingConfig
from rhea.models.vision.config import VisionTokenizerConfig
from rhea.models.vision.discriminator import DiscriminatorConfig
from rhea.models.vision.tokenizer import VisionTokenizer
from rhea.recipes.debug import DebugRecipe, debug
from rhea.tokenizers.vocabulary import Vocabulary, compact_vocabulary
from rhea.training.next_token import NextTokenTask, NextTokenTaskConfig
from rhea.training.schedule import ScheduleConfig
from rhea.training.state import checkpoint_folders
from rhea.training.trainer import Trainer, TrainerConfig
from rhea.training.vision_tokenizer import VisionTokenizerTask, VisionTokenizerTaskConfig

VOCABULARY = Vocabulary(compact_vocabulary(text_size=40, vision_size=32))

TRAINER = TrainerConfig(
    total_steps=8,
    schedule=ScheduleConfig(learning_rate=3e-3, warmup_steps=2),
    microbatches_per_step=2,
    checkpoint_every=4,
    log_every=3,
    tensorboard=False,
    seed=5,
)


def documents(number: int) -> list[Rendered]:
    """Return documents that depend on ``number`` only: a few text ids, then visual ids that count up."""
    random = np.random.default_rng([7, number])
    rendered = []
    for _ in range(6):
        start, count = int(random.integers(32)), int(random.integers(4, 12))
        words = random.integers(0, VOCABULARY.text.stop, size=3)
        codes = VOCABULARY.vision.start + (start + np.arange(count)) % 32
        ids = np.concatenate([[VOCABULARY.bos], words, [VOCABULARY.image_token], codes, [VOCABULARY.eos]])
        weights = np.where(ids >= VOCABULARY.vision.start, 0.5, 1.0).astype(np.float32)
        weights[0] = 0.0
        rendered.append(Rendered(ids.astype(np.int64), weights))
    return rendered


class Counting:
    """A loader whose n-th microbatch is a pure function of n."""

    def __init__(self) -> None:
        self.position = 0

    def next_batch(self) -> Any:
        self.position += 1
        return self.make(self.position - 1)

    def make(self, number: int) -> Any:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


class TokenLoader(Counting):
    def make(self, number: int) -> Packed:
        packed = pack(documents(number), 64, VOCABULARY.pad)
        return dataclasses.replace(packed, origins=tuple((f"toy:{number}",) for _ in packed.origins))


class PixelLoader(Counting):
    def make(self, number: int) -> dict[str, Any]:
        random = np.random.default_rng([8, number])
        colours = random.integers(0, 256, size=(4, 2, 2, 3), dtype=np.uint8)
        pictures = colours.repeat(8, 1).repeat(8, 2)
        return {
            "pictures": pictures[:2],
            "clips": pictures[2:, None].repeat(4, 1),
            "description": f"toy pictures {number}",
        }


def transformer(vocabulary: Vocabulary = VOCABULARY, dropout: float = 0.1) -> Transformer:
    model = Transformer(
        TransformerConfig(
            vocab_size=vocabulary.size,
            dim=32,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=8,
            ffn_dim=64,
            max_seq_len=64,
            dropout=dropout,
        )
    )
    model.init_weights(seed=0)
    return model


def next_token_task(dropout: float = 0.1, **changes: Any) -> NextTokenTask:
    config = NextTokenTaskConfig(**({"ema_decay": 0.9} | changes))
    return NextTokenTask(config, transformer(dropout=dropout), VOCABULARY)


def vision_tokenizer_task(**changes: Any) -> VisionTokenizerTask:
    torch.manual_seed(0)
    model = VisionTokenizer(
        VisionTokenizerConfig(
            base_channels=8,
            norm_groups=4,
            channel_multipliers=(1, 2),
            num_res_blocks=1,
            attention_levels=(),
            temporal_res_blocks=1,
            codebook_size=16,
            dropout=0.1,
        )
    )
    defaults = {
        "discriminator": DiscriminatorConfig(base_channels=8),
        "adversarial_start": 3,
        "codebook": CodebookTrainingConfig(revive_after=2),
        "ema_decay": 0.9,
    }
    return VisionTokenizerTask(VisionTokenizerTaskConfig(**(defaults | changes)), model)


def trainer(kind: str, folder: Path, **changes: Any) -> Trainer:
    config = dataclasses.replace(TRAINER, **changes)
    if kind == "next_token":
        return Trainer(config, next_token_task(), TokenLoader(), folder)
    return Trainer(config, vision_tokenizer_task(), PixelLoader(), folder)


def recipe() -> DebugRecipe:
    """Return the debug recipe with Muon, logging every third of its eight steps, and a tokenizer of one update."""
    made = debug()
    optimizer = dataclasses.replace(made.task.optimizer, hidden="muon")
    return dataclasses.replace(
        made,
        tokenizer=dataclasses.replace(
            made.tokenizer, trainer=dataclasses.replace(made.tokenizer.trainer, total_steps=1)
        ),
        task=dataclasses.replace(made.task, optimizer=optimizer),
        trainer=dataclasses.replace(made.trainer, log_every=3, sample_every=0),
    )


def signal_recipe_at(step: int, number: int) -> None:
    """Make the process signal itself while the transformer's step ``step`` (counted from 0) is being computed."""
    compute, steps = NextTokenTask.train_microbatch, itertools.count()

    def and_signal(task: NextTokenTask, microbatch: Any) -> Any:
        if next(steps) == step:
            os.kill(os.getpid(), number)
        return compute(task, microbatch)

    NextTokenTask.train_microbatch = and_signal  # type: ignore[method-assign]


def signal_at(run: Trainer, step: int, number: int, times: int) -> None:
    """Make the process signal itself while step ``step`` (counted from 0) is being computed."""
    compute, left = run.task.train_microbatch, [number] * times

    def and_signal(microbatch: Any) -> Any:
        while run.step == step and left:
            os.kill(os.getpid(), left.pop())
        return compute(microbatch)

    run.task.train_microbatch = and_signal


def kill_after_first_checkpoint(folder: Path, seconds: float) -> None:
    """Make the process kill itself, wherever it then is, that long after its first checkpoint has appeared."""

    def wait_and_kill() -> None:
        while not checkpoint_folders(folder):
            time.sleep(0.001)
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait_and_kill, daemon=True).start()


def run_in_child(spec: dict[str, Any]) -> int:
    """Run one specification, with standard error in a file beside its folder; return the exit code: 3 if stopped."""
    folder = Path(spec["folder"])
    with open(f"{folder}.stderr", "w") as errors:
        os.dup2(errors.fileno(), 2)
    if spec["kind"] == "recipe":
        signal_recipe_at(spec["step"], getattr(signal, spec["signal"]))
        return 0 if recipe().run(folder) else 3
    run = trainer(spec["kind"], folder, checkpoint_every=spec.get("checkpoint_every", TRAINER.checkpoint_every))
    if "signal" in spec:
        signal_at(run, spec["step"], getattr(signal, spec["signal"]), spec.get("times", 1))
    if "kill_after" in spec:
        kill_after_first_checkpoint(folder, spec["kill_after"])
    return 0 if run.train() else 3


def main() -> None:
    """Run all specifications, each in a process of its own: forked, because starting torch anew takes seconds."""
    import torch._dynamo  # every optimizer does this, and it takes a second

    torch.set_num_threads(1)
    children = {}
    for name, spec in json.loads(sys.argv[1]).items():
        child = os.fork()
        if child == 0:
            os._exit(run_in_child(spec))
        children[name] = child
    codes = {name: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for name, child in children.items()}
    print(json.dumps(codes))


if __name__ == "__main__":
    main()
