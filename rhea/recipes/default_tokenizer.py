"""The vision tokenizer of the default model: 64 x 64 pictures of the shapes world to 8 x 8 codes.

The architecture is Emu3's, with a sixteenth of its width, one residual block less per level and a codebook of 1,024
entries of 8 numbers. Two stages: ``default_tokenizer`` learns to see, on crops; ``local_tokenizer`` goes on from it
until its codes can be predicted (docs/decisions/0006).
"""

from dataclasses import dataclass, replace
from pathlib import Path

from rhea.checkpoints.load import load_checkpoint
from rhea.errors import InputError
from rhea.models.device import choose_device
from rhea.models.vision.codebook_training import CodebookTrainingConfig
from rhea.models.vision.config import VisionTokenizerConfig
from rhea.models.vision.initialization import initialize
from rhea.models.vision.losses import ReconstructionConfig
from rhea.models.vision.tokenizer import VisionTokenizer
from rhea.recipes.precision import affordable
from rhea.recipes.seeding import seeded
from rhea.training.optimizer import OptimizerConfig
from rhea.training.schedule import ScheduleConfig
from rhea.training.state import load_newest
from rhea.training.trainer import Trainer, TrainerConfig
from rhea.training.vision_tokenizer import VisionTokenizerTask, VisionTokenizerTaskConfig
from rhea.worlds.shapes.frames import ShapesFrames, ShapesFramesConfig


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipe:
    """What decides a tokenizer's training, but for its data and where it begins."""

    model: VisionTokenizerConfig
    task: VisionTokenizerTaskConfig
    trainer: TrainerConfig
    device: str | None = None
    """Where it trains: cpu, cuda or mps; by default the GPU if there is one."""


@dataclass(frozen=True, kw_only=True)
class VisionTokenizerRecipe(TokenizerRecipe):
    """Everything that decides a tokenizer's training on the shapes world."""

    data: ShapesFramesConfig
    start_from: str = ""
    """A run folder or a checkpoint with a tokenizer of these sizes to go on from; random weights if empty."""

    def run(self, folder: Path) -> bool:
        """Train in ``folder``, or go on there; return whether the training is complete."""
        with seeded(self.trainer.seed):
            model = VisionTokenizer(self.model)
        initialize(model)
        if self.start_from:
            model.load_state_dict(trained_tokenizer(self, Path(self.start_from)).state_dict())
        device = choose_device(self.device)
        task = VisionTokenizerTask(
            affordable(self.task, device), model.to(device), codebook_initialized=bool(self.start_from)
        )
        return Trainer(self.trainer, task, ShapesFrames(self.data), folder).train()


def default_tokenizer() -> VisionTokenizerRecipe:
    """Return the recipe; about 20 minutes on one core with AVX-512 and bf16, 3 M parameters."""
    steps, whole_from = 2600, 2300
    return VisionTokenizerRecipe(
        model=VisionTokenizerConfig(
            base_channels=16,
            channel_multipliers=(1, 2, 4, 8),
            num_res_blocks=1,
            latent_channels=8,
            embed_dim=8,
            codebook_size=1024,
            norm_groups=4,
        ),
        task=VisionTokenizerTaskConfig(
            reconstruction=ReconstructionConfig(chroma=1.0),
            codebook_weight=0.0,
            codebook=CodebookTrainingConfig(average_decay=0.95, revive_after=100, revive_until=steps * 3 // 4),
            optimizer=OptimizerConfig(betas=(0.9, 0.99), weight_decay=1e-4),
            ema_decay=0.998,
            precision="bfloat16",
        ),
        data=ShapesFramesConfig(num_pictures=16, num_clips=2, whole_from=whole_from, whole_divisor=2),
        trainer=TrainerConfig(
            total_steps=steps,
            schedule=ScheduleConfig(learning_rate=1.2e-3, warmup_steps=50, final_learning_rate=1e-5),
            checkpoint_every=200,
            log_every=50,
            sample_every=500,
        ),
    )


def local_tokenizer() -> VisionTokenizerRecipe:
    """Return the second stage: codes of their own place and no two for one thing; ten minutes on one such core."""
    recipe = default_tokenizer()
    steps = 600
    codebook = replace(recipe.task.codebook, merge_below=0.5, revive_until=steps * 3 // 4)
    return replace(
        recipe,
        start_from="runs/default-tokenizer",
        task=replace(recipe.task, locality_weight=10.0, codebook=codebook),
        data=replace(recipe.data, seed=1, whole_from=0, num_clips=6),
        trainer=replace(
            recipe.trainer,
            total_steps=steps,
            schedule=replace(recipe.trainer.schedule, learning_rate=6e-4),
        ),
    )


def trained_tokenizer(recipe: TokenizerRecipe, folder: Path, *, made_by: str = "default-tokenizer") -> VisionTokenizer:
    """Return the vision tokenizer of a run folder (averaged weights, newest state) or of a model's checkpoint folder.

    InputError if there is none; it names the recipe that makes one.
    """
    if (folder / "config.json").is_file():
        found = load_checkpoint(folder, parts=("vision_tokenizer",)).vision_tokenizer
        if found is None or found.config != recipe.model:
            raise InputError(f"{folder} holds no vision tokenizer of this recipe's sizes")
        return found
    task = VisionTokenizerTask(recipe.task, VisionTokenizer(recipe.model))
    saved = load_newest(folder)
    if saved is None:
        raise InputError(f"no trained vision tokenizer in {folder}: run `rhea train {made_by}` first")
    task.load_state(saved.task_state())
    with task.export() as averaged:
        weights = {name: tensor.clone() for name, tensor in averaged.state_dict().items()}
    model = VisionTokenizer(recipe.model)
    model.load_state_dict(weights)
    return model.eval()
