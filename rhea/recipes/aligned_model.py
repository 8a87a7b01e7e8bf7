"""The aligned model: a trained one that learns from its own right and wrong tries what is preferred (DPO).

Pairs come from a file (``rhea.documents.pairs``), or from what people preferred in the studio; without one the model
draws pictures and edits of the shapes world, which the grader sorts. The run folder keeps them, and at the end the
checkpoint.
"""

from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from rhea.checkpoints.load import load_checkpoint
from rhea.checkpoints.save import save_checkpoint
from rhea.documents.pairs import Pair, PairLoader, read_pairs
from rhea.errors import InputError
from rhea.generation.loading import DEFAULT_MODEL, load_model
from rhea.models.device import choose_device
from rhea.models.transformer import Transformer
from rhea.recipes.precision import affordable
from rhea.recipes.preferences import ShapesPreferencesConfig, draw_preferences
from rhea.recipes.several import mean_checkpoint
from rhea.studio.export import preferred
from rhea.training.next_token import NextTokenTaskConfig
from rhea.training.optimizer import OptimizerConfig
from rhea.training.preference import PreferenceTask, PreferenceTaskConfig
from rhea.training.schedule import ScheduleConfig
from rhea.training.trainer import Trainer, TrainerConfig


@dataclass(frozen=True, kw_only=True)
class AlignedModelRecipe:
    """Everything that decides the training."""

    start_from: tuple[str, ...] = (str(DEFAULT_MODEL),)
    """The checkpoint to align; it is also the reference. Of several of one origin, the mean of their weights."""
    pairs: str = ""
    """A file of pairs, or a .zip that the studio's Compare exported; if empty, they are drawn as ``shapes`` says."""
    shapes: ShapesPreferencesConfig = field(default_factory=ShapesPreferencesConfig)
    rows: int = 4
    seq_len: int = 1024
    task: PreferenceTaskConfig
    blend: float = 0.5
    """How far the checkpoint goes from the weights before to the trained ones: half way keeps what no pair asked for
    (arXiv 2109.01903)."""
    trainer: TrainerConfig
    device: str | None = None
    """Where it trains: cpu, cuda or mps; by default the GPU if there is one."""

    def run(self, folder: Path) -> bool:
        """Train in ``folder``, or go on there, and write ``folder/checkpoint``; return whether it is complete."""
        if not 0 < self.blend <= 1:
            raise InputError(f"blend is {self.blend}; it must be above 0 and at most 1")
        if not self.start_from:
            raise InputError("start_from names no checkpoint to align")
        start, device = load_checkpoint(self._start(folder), dtype=torch.float32), choose_device(self.device)
        model, vocabulary = start.transformer, start.vocabulary
        if model is None or vocabulary is None:
            raise InputError(f"{self._start(folder)} holds no transformer to align")
        loader = PairLoader(
            self._pairs(folder, vocabulary.size),
            rows=self.rows,
            seq_len=self.seq_len,
            pad=vocabulary.pad,
            seed=self.trainer.seed,
        )
        config = replace(self.task, base=affordable(self.task.base, device))
        task = PreferenceTask(config, model.to(device), deepcopy(model), vocabulary)
        complete = Trainer(self.trainer, task, loader, folder).train()
        blended, before = Transformer(model.config), task.reference.state_dict()
        with task.export() as trained:
            after = trained.state_dict()
            blended.load_state_dict({name: before[name].lerp(after[name], self.blend) for name in after})
        origin = " and ".join(self.start_from)
        card = f"# An aligned model\n\nMade from {origin} by the recipe `aligned-model` in `rhea/recipes`.\n"
        aligned = replace(start, transformer=blended.to(torch.bfloat16))
        save_checkpoint(folder / "checkpoint", aligned, card=card, overwrite=True)
        return complete

    def _start(self, folder: Path) -> str:
        """Return the one checkpoint to start from; a mean of several is kept in the run folder."""
        if len(self.start_from) == 1:
            return self.start_from[0]
        mean = folder / "start"
        if not mean.is_dir():
            checkpoint = mean_checkpoint(self.start_from)
            assert checkpoint.transformer is not None
            checkpoint.transformer.to(torch.bfloat16)
            save_checkpoint(mean, checkpoint)
        return str(mean)

    def _pairs(self, folder: Path, vocab_size: int) -> list[Pair]:
        path = Path(self.pairs or folder / "preferences.jsonl")
        if path.suffix == ".zip":
            return preferred(path, load_model(self._start(folder), device=self.device))
        if not self.pairs:
            draw_preferences(load_model(self._start(folder), device=self.device), self.shapes, path)
        return read_pairs(path, vocab_size)


def aligned_model() -> AlignedModelRecipe:
    """Return the recipe for the default model: pairs in a quarter of an hour of one core, training in a few minutes."""
    steps = 150
    return AlignedModelRecipe(
        task=PreferenceTaskConfig(
            base=NextTokenTaskConfig(
                optimizer=OptimizerConfig(betas=(0.9, 0.98), weight_decay=0.0),
                loss_over="kind",
                precision="bfloat16",
            ),
        ),
        trainer=TrainerConfig(
            total_steps=steps,
            schedule=ScheduleConfig(learning_rate=4e-5, warmup_steps=10, kind="wsd", decay_steps=steps // 2),
            checkpoint_every=50,
            log_every=5,
        ),
    )
