"""The vision tokenizer of the rich model: shapes, emoji and driving, 64 and 128 pixels wide, to codes of 8 x 8 pixels.

The architecture of the default model's tokenizer and its weights to begin with, all but the codebook: that has four
times as many entries and is taken anew from the first latents. Locality is asked for from the start, and entries that
share a cluster are merged (docs/decisions/0006).
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rhea.checkpoints.load import load_checkpoint
from rhea.errors import InputError
from rhea.generation.loading import DEFAULT_MODEL
from rhea.models.device import choose_device
from rhea.models.vision.tokenizer import VisionTokenizer
from rhea.recipes.default_tokenizer import TokenizerRecipe, default_tokenizer
from rhea.recipes.precision import affordable
from rhea.recipes.rich_frames import RichFrames, RichFramesConfig
from rhea.recipes.seeding import seeded
from rhea.training.schedule import ScheduleConfig
from rhea.training.trainer import Trainer
from rhea.training.vision_tokenizer import CODEBOOK, VisionTokenizerTask


@dataclass(frozen=True, kw_only=True)
class RichTokenizerRecipe(TokenizerRecipe):
    """Everything that decides a tokenizer's training on the three sources."""

    data: RichFramesConfig
    start_from: str = ""
    """A checkpoint whose vision tokenizer differs in its codebook at most; the default model if empty."""

    def run(self, folder: Path) -> bool:
        """Train in ``folder``, or go on there; return whether the training is complete."""
        frames = RichFrames(self.data)
        with seeded(self.trainer.seed):
            model = VisionTokenizer(self.model)
        copy_all_but_codebook(Path(self.start_from or DEFAULT_MODEL), model)
        device = choose_device(self.device)
        task = VisionTokenizerTask(affordable(self.task, device), model.to(device))
        return Trainer(self.trainer, task, frames, folder).train()


def rich_tokenizer() -> RichTokenizerRecipe:
    """Return the recipe; about an hour of one core with AVX-512 and bf16, 3 M parameters."""
    recipe = default_tokenizer()
    steps = 3000
    codebook = replace(recipe.task.codebook, average_decay=0.98, merge_below=0.5, revive_until=steps * 3 // 4)
    return RichTokenizerRecipe(
        model=replace(recipe.model, codebook_size=4096),
        task=replace(recipe.task, locality_weight=10.0, codebook=codebook),
        data=RichFramesConfig(whole_from=steps // 2),
        trainer=replace(
            recipe.trainer,
            total_steps=steps,
            schedule=ScheduleConfig(
                learning_rate=1e-3,
                warmup_steps=50,
                final_learning_rate=1e-5,
                kind="wsd",
                decay_steps=steps // 3,
                decay_shape="linear",
            ),
            checkpoint_every=50,
            log_every=10,
        ),
    )


@torch.no_grad()
def copy_all_but_codebook(folder: Path, model: VisionTokenizer) -> None:
    """Take over a checkpoint's vision tokenizer; InputError if more of it than the codebook has another size."""
    found = load_checkpoint(folder, parts=("vision_tokenizer",), vision_dtype=torch.float32).vision_tokenizer
    size = model.config.codebook_size
    if found is None or replace(found.config, codebook_size=size) != model.config:
        raise InputError(f"{folder} holds no vision tokenizer of this recipe's sizes")
    weights = found.state_dict()
    model.load_state_dict(weights | {CODEBOOK: model.state_dict()[CODEBOOK]})
