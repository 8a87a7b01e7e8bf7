"""The reinforced model: a trained one that draws exercises of the shapes world and learns from how they are graded.

The run folder holds at the end ``checkpoint``: what it began as, with the new transformer, and with settings of
generation that suit what practised without guidance.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rhea.checkpoints.save import save_checkpoint
from rhea.documents.loader import PackedLoader, PackedLoaderConfig
from rhea.errors import InputError
from rhea.generation.loading import DEFAULT_MODEL
from rhea.models.device import choose_device
from rhea.models.transformer import Transformer
from rhea.recipes.default_model import default_model
from rhea.recipes.practice import PracticeConfig, PracticeLoader, load_artist
from rhea.recipes.precision import affordable
from rhea.recipes.rich_model import RichDataConfig, RichShares, rich_mixture
from rhea.recipes.several import mean_checkpoint
from rhea.training.next_token import NextTokenTask, NextTokenTaskConfig
from rhea.training.optimizer import OptimizerConfig
from rhea.training.schedule import ScheduleConfig
from rhea.training.trainer import Trainer, TrainerConfig
from rhea.worlds.shapes.source import ShapesTasks


@dataclass(frozen=True, kw_only=True)
class ReinforcedModelRecipe:
    """Everything that decides the training."""

    start_from: tuple[str, ...] = (str(DEFAULT_MODEL),)
    """The checkpoint that practises. Of several of one origin, the mean of their weights."""
    practice: PracticeConfig
    data: RichDataConfig
    """The plain documents beside what is practised, of whatever the model knows."""
    loader: PackedLoaderConfig
    """How they are packed."""
    task: NextTokenTaskConfig
    trainer: TrainerConfig
    generation: dict[str, Any]
    """Settings of generation that change in the checkpoint."""
    device: str | None = None
    """Where it trains: cpu, cuda or mps; by default the GPU if there is one."""

    def run(self, folder: Path) -> bool:
        """Train in ``folder``, or go on there, and write ``folder/checkpoint``; return whether it is complete."""
        if not self.start_from:
            raise InputError("start_from names no checkpoint to practise with")
        device = choose_device(self.device)
        if device.type != "cpu" and self.practice.workers > 1:
            raise InputError(f"{self.practice.workers} processes cannot share a GPU: set practice.workers to 1")
        artist = load_artist(self.start_from[0], device)
        start = mean_checkpoint(self.start_from)
        assert start.transformer is not None
        assert start.vocabulary is not None
        model = start.transformer.to(device)
        mixture = rich_mixture(self.data, seed=self.trainer.seed)
        replay = PackedLoader(self.loader, mixture, artist.completer.grammar, artist.codec)
        task = NextTokenTask(affordable(self.task, device), model, start.vocabulary)
        with PracticeLoader(self.practice, model, artist, replay, every=self.trainer.log_every) as practice:
            complete = Trainer(self.trainer, task, practice, folder, [practice]).train()
        half = Transformer(model.config)
        with task.export() as trained:
            half.load_state_dict(trained.state_dict())
        config = replace(start.config, generation=start.config.generation | self.generation)
        origin = " and ".join(self.start_from)
        card = f"# A reinforced model\n\nMade from {origin} by the recipe `reinforced-model` in `rhea/recipes`.\n"
        reinforced = replace(start, config=config, transformer=half.to(torch.bfloat16))
        save_checkpoint(folder / "checkpoint", reinforced, card=card, overwrite=True)
        return complete


def reinforced_model() -> ReinforcedModelRecipe:
    """Return the recipe for the default model: an hour and a half of two cores."""
    steps = 900
    default = default_model()
    return ReinforcedModelRecipe(
        practice=PracticeConfig(
            kept=4,
            replay=0.4,
            colourless_edits=0.4,
            # What is drawn after a prompt was revised.
            captions=("placed", "placed", "plain", "sizeless", "ordered"),
            shown=1.0,
        ),
        data=RichDataConfig(
            seed=900,
            shares=RichShares(shapes=1.0, emoji=0.0, small_emoji=0.0, driving=0.0),
            shapes=replace(
                default.data,
                english=0.6,
                unconditional=0.05,
                min_objects=2,
                colourless_edits=0.6,
                # What tries alone lose (answers) or never find (edits that are wrong every time).
                tasks=ShapesTasks(
                    text_to_image=0.08,
                    captioning=0.01,
                    prompt_revision=0.15,
                    question_answering=0.4,
                    editing=0.4,
                    text_to_video=0.03,
                    video_prediction=0.07,
                    film_question_answering=0.01,
                ),
            ),
        ),
        loader=PackedLoaderConfig(
            rows=2, seq_len=1024, group=8, loss=replace(default.loader.loss, text=3.0, prompt=0.0)
        ),
        task=NextTokenTaskConfig(
            optimizer=OptimizerConfig(betas=(0.9, 0.98), weight_decay=0.0),
            loss_over="kind",
            ema_decay=0.97,
            precision="bfloat16",
        ),
        trainer=TrainerConfig(
            total_steps=steps,
            schedule=ScheduleConfig(
                learning_rate=2e-4, warmup_steps=15, kind="wsd", decay_steps=steps // 2, decay_shape="linear"
            ),
            checkpoint_every=50,
            log_every=10,
        ),
        generation={"guidance_scale": 1.5, "temperature": 1.0, "top_p": 1.0, "edit_guidance_scale": 1.0},
    )
