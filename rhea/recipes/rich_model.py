"""The rich model: emoji, shapes and driving in one small transformer, pictures of 64 x 64 and of 128 x 128.

Emoji are drawn at both sides from the same words; only the size text tells which. The vision tokenizer comes from a
finished run of ``rich-tokenizer``. What the default model knows of shapes it begins with (``rhea.recipes.growing``).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rhea.documents.grammar import LossWeights
from rhea.documents.mixture import Mixture, Source, WeightedSource
from rhea.documents.shard_source import ShardSource, ShardSourceConfig, ShardTasks
from rhea.errors import InputError
from rhea.generation.loading import DEFAULT_MODEL
from rhea.models.config import TransformerConfig
from rhea.models.vision.tokenizer import VisionTokenizer
from rhea.recipes.default_model import default_model
from rhea.recipes.default_tokenizer import trained_tokenizer
from rhea.recipes.model_recipe import About, ModelRecipe
from rhea.recipes.rich_frames import SIDES, require_shards
from rhea.recipes.rich_tokenizer import RichTokenizerRecipe, rich_tokenizer
from rhea.tokenizers.vision import PixelPolicy
from rhea.training.schedule import ScheduleConfig
from rhea.worlds.driving.source import TASKS, driving_source
from rhea.worlds.emoji.source import EmojiSource, EmojiSourceConfig, EmojiTasks, EmojiWording
from rhea.worlds.shapes.source import ShapesSource, ShapesSourceConfig

SAMPLES = (
    "a flat icon of butterfly",
    "a 3D icon of red apple",
    "扁平图标：狗脸",
    "a small red circle",
    "a large blue star and a small yellow ring",
)
"""What is drawn while it trains, twice each."""
LARGE = 0.1
"""A model that saw large pictures in a smaller part of its documents is shown all pictures small."""
TRAINED_ON = (
    "emoji of four styles, drawings of coloured shapes and films of a car on a race track seen from above, 64 x 64 and "
    "128 x 128 pixels, with captions and questions in English and Chinese; of photographs it knows nothing"
)
CARD = f"""# Rhea's rich model

A small transformer and its vision tokenizer. It draws, films, edits and answers questions, all by predicting the next
token.

**Trained on** {TRAINED_ON}.

**Made by** the recipes `rich-tokenizer` and `rich-model` in `rhea/recipes`.

**Notices** of the emoji and their names are in docs/notice-emoji.txt of the project; they go wherever these weights go.
"""


@dataclass(frozen=True, kw_only=True)
class RichShares:
    """How many of the documents come from where, in proportion."""

    shapes: float = 0.35
    emoji: float = 0.3
    """128 pixels wide."""
    small_emoji: float = 0.2
    """64 pixels wide."""
    driving: float = 0.15
    pictures: float = 0.0
    """Of ``pictures``."""


@dataclass(frozen=True, kw_only=True)
class RichDataConfig:
    emoji: str = ""
    """Folder of the emoji shards; the held-out cells are not shown."""
    driving: str = ""
    """Folder of the films that `rhea record driving` wrote."""
    pictures: str = ""
    """Folder of other captioned pictures, such as those that `rhea record drawings` wrote."""
    seed: int = 0
    shares: RichShares = field(default_factory=RichShares)
    shapes: ShapesSourceConfig = field(default_factory=ShapesSourceConfig)
    emoji_tasks: EmojiTasks = field(default_factory=EmojiTasks)
    emoji_wording: EmojiWording = field(default_factory=EmojiWording)
    num_frames: int = 16
    """Length of the films of driving."""


@dataclass(frozen=True, kw_only=True)
class RichModelRecipe(ModelRecipe):
    """Everything that decides the rich model's training."""

    tokenizer: RichTokenizerRecipe
    data: RichDataConfig

    def about(self) -> About:
        """Pictures between the two sides in area, films of the smaller, of any aspect ratio; or one small square."""
        least, most = min(SIDES) ** 2, max(SIDES) ** 2
        shares = self.data.shares
        if shares.emoji < LARGE * sum(asdict(shares).values()):
            policy = PixelPolicy(min_pixels=least, max_pixels=least, shape="square", rounding="nearest")
        else:
            policy = PixelPolicy(min_pixels=least, max_pixels=most, max_film_pixels=least, rounding="nearest")
        return About(policy=policy, samples=SAMPLES, trained_on=TRAINED_ON, card=CARD)

    def mixture(self, *, seed_offset: int = 0) -> Mixture:
        """Open the shards; InputError that says where they come from if they are not named."""
        return rich_mixture(replace(self.data, seed=self.data.seed + seed_offset), seed=self.trainer.seed)

    def vision_tokenizer(self) -> VisionTokenizer:
        """Load what rich-tokenizer made."""
        return trained_tokenizer(self.tokenizer, Path(self.tokenizer_run), made_by="rich-tokenizer")


def rich_mixture(data: RichDataConfig, *, seed: int) -> Mixture:
    """Open the sources that have a share; InputError if their shards are not named or not there."""
    shares = data.shares
    require_shards(
        emoji=data.emoji or not (shares.emoji or shares.small_emoji), driving=data.driving or not shares.driving
    )

    if shares.pictures and not data.pictures:
        raise InputError("no captioned pictures are named: give --data.pictures FOLDER (see `rhea record drawings`)")

    def emoji(side: int, seed: int) -> EmojiSource:
        tasks, wording = data.emoji_tasks, data.emoji_wording
        return EmojiSource(EmojiSourceConfig(shards=data.emoji, seed=seed, side=side, tasks=tasks, wording=wording))

    pictures = ShardSourceConfig(
        shards=data.pictures,
        seed=data.seed,
        tasks=ShardTasks(generation=1.0, captioning=0.0),
        unconditional=data.shapes.unconditional,
    )

    def driving() -> ShardSource:
        films = ShardSourceConfig(
            shards=data.driving, seed=data.seed, tasks=TASKS, num_frames=data.num_frames, given_latents=2
        )
        return driving_source(films)

    sources: dict[str, tuple[float, Callable[[], Source]]] = {
        "shapes": (shares.shapes, lambda: ShapesSource(replace(data.shapes, seed=data.seed))),
        "emoji": (shares.emoji, lambda: emoji(max(SIDES), 2 * data.seed)),
        "small-emoji": (shares.small_emoji, lambda: emoji(min(SIDES), 2 * data.seed + 1)),
        "driving": (shares.driving, driving),
        "pictures": (shares.pictures, lambda: ShardSource(pictures)),
    }
    shown = [
        WeightedSource(name=name, source=make(), weight=weight) for name, (weight, make) in sources.items() if weight
    ]
    return Mixture(shown, seed=seed)


def rich_model() -> RichModelRecipe:
    """Return the recipe; about 11 M parameters, planned for some ten hours of one core with AVX-512 and bf16."""
    recipe, steps = default_model(), 14_000
    return RichModelRecipe(
        tokenizer=rich_tokenizer(),
        tokenizer_run="runs/rich-tokenizer",
        grow_from=str(DEFAULT_MODEL),
        model=TransformerConfig(
            vocab_size=0,
            dim=256,
            num_layers=8,
            num_heads=6,
            num_kv_heads=3,
            head_dim=48,
            ffn_dim=768,
            max_seq_len=1024,
            rope_theta=10_000.0,
            qk_norm=True,
        ),
        text_vocab_size=4096,
        text_documents=16_000,
        data=RichDataConfig(shapes=recipe.data),
        loader=replace(
            recipe.loader,
            loss=LossWeights(text=2.0, vision=0.5, structure=0.1, prompt=0.05),
            code_dropout=0.7,
            beginnings=0.5,
            remembered_pictures=100_000,
        ),
        task=replace(recipe.task, loss_over="kind"),
        trainer=replace(
            recipe.trainer,
            total_steps=steps,
            schedule=ScheduleConfig(learning_rate=2e-3, warmup_steps=200, kind="wsd", decay_steps=steps // 4),
        ),
        generation=recipe.generation | {"temperature": 0.2, "top_p": 1.0, "guidance_scale": 1.0},
    )
