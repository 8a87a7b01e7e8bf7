"""The smallest complete training, in seconds: for tests, and for watching every part of the loop at work."""

from dataclasses import replace
from pathlib import Path

from rhea.models.config import TransformerConfig
from rhea.models.vision.config import VisionTokenizerConfig
from rhea.recipes.default_model import DefaultModelRecipe, default_model
from rhea.recipes.default_tokenizer import VisionTokenizerRecipe, default_tokenizer
from rhea.training.schedule import ScheduleConfig


class DebugRecipe(DefaultModelRecipe):
    """Trains its own tiny vision tokenizer first, inside the run folder."""

    def run(self, folder: Path) -> bool:
        """Train both models in ``folder``, or go on there; return whether the training is complete."""
        tokenizer_run = folder / "tokenizer"
        if not self.tokenizer.run(tokenizer_run):
            return False
        return replace(self, tokenizer_run=str(tokenizer_run)).run_transformer(folder)


def debug_tokenizer() -> VisionTokenizerRecipe:
    """Return a tokenizer recipe of four updates."""
    recipe = default_tokenizer()
    return replace(
        recipe,
        model=VisionTokenizerConfig(
            base_channels=8,
            channel_multipliers=(1, 1, 2, 2),
            num_res_blocks=1,
            latent_channels=4,
            embed_dim=4,
            codebook_size=64,
            norm_groups=4,
        ),
        task=replace(recipe.task, precision="float32"),
        data=replace(recipe.data, num_pictures=4, num_clips=1, whole_from=0, whole_divisor=1),
        trainer=replace(
            recipe.trainer,
            total_steps=4,
            schedule=ScheduleConfig(learning_rate=1e-3),
            checkpoint_every=4,
            log_every=1,
            sample_every=0,
        ),
    )


def debug() -> DebugRecipe:
    """Return a recipe of four tokenizer updates and eight transformer updates, in float32."""
    recipe = default_model()
    return DebugRecipe(
        tokenizer=debug_tokenizer(),
        tokenizer_run="",
        model=TransformerConfig(
            vocab_size=0,
            dim=32,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            head_dim=16,
            ffn_dim=64,
            max_seq_len=1024,
            qk_norm=True,
        ),
        text_vocab_size=300,
        text_documents=50,
        data=replace(recipe.data, min_turns=4, max_turns=6),
        loader=replace(recipe.loader, rows=1, group=8, loss=replace(recipe.loader.loss, text=2.0)),
        task=replace(recipe.task, precision="float32", optimizer=replace(recipe.task.optimizer, hidden="adamw")),
        trainer=replace(
            recipe.trainer,
            total_steps=8,
            schedule=ScheduleConfig(learning_rate=1e-3, warmup_steps=2),
            checkpoint_every=4,
            log_every=1,
            sample_every=8,
        ),
        generation=recipe.generation,
    )
