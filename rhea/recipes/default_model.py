"""The default model: a small transformer that draws, films, edits and answers about the shapes world.

Its run folder holds the text tokenizer and, at the end, ``checkpoint``: the complete model in our layout, which is what
``rhea.load`` and every command take. The vision tokenizer comes from a finished run of ``default-tokenizer``.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from rhea.checkpoints.configs import CheckpointConfig
from rhea.checkpoints.load import Checkpoint, load_checkpoint
from rhea.checkpoints.save import save_checkpoint
from rhea.documents import formats
from rhea.documents.document import ImageSize, Text
from rhea.documents.grammar import Grammar, LossWeights
from rhea.documents.loader import PackedLoader, PackedLoaderConfig
from rhea.documents.mixture import Mixture, WeightedSource
from rhea.documents.prefetch import Prefetcher
from rhea.errors import InputError
from rhea.generation.completion import Completer, Prompt
from rhea.generation.results import contact_sheet
from rhea.generation.sampling import SamplingConfig
from rhea.media import write_picture
from rhea.models.config import TransformerConfig
from rhea.models.device import choose_device
from rhea.models.transformer import Transformer
from rhea.models.vision.tokenizer import VisionTokenizer
from rhea.recipes.default_tokenizer import VisionTokenizerRecipe, default_tokenizer, trained_tokenizer
from rhea.tokenizers.text import TextTokenizer, load_text_tokenizer, train_text_tokenizer
from rhea.tokenizers.vision import PixelPolicy, VisionCodec
from rhea.tokenizers.vocabulary import Vocabulary, VocabularyConfig, compact_vocabulary
from rhea.training.next_token import NextTokenTask, NextTokenTaskConfig, Sampler
from rhea.training.optimizer import OptimizerConfig
from rhea.training.schedule import ScheduleConfig
from rhea.training.trainer import Trainer, TrainerConfig
from rhea.worlds.shapes.questions import DESCRIBE, LAYOUT, QUESTION_TYPES
from rhea.worlds.shapes.source import ShapesSource, ShapesSourceConfig, ShapesTasks

SIDE = 64
SAMPLES = ("a small red circle", "a large blue star", "a green square and a small yellow ring", "一个紫色的大三角形")
"""What is drawn while it trains, twice each."""
HARD = (
    "colour",
    "count_colour",
    "count_shape",
    "side",
    "height",
    "place",
    "horizontal",
    "vertical",
    "relation",
    "existence",
)
"""Questions that need a look-up in the picture and are learned last, asked three times as often as the others."""
GENERATION: dict[str, Any] = {
    "guidance_scale": 3.0,
    "film_guidance_scale": 1.0,
    "edit_guidance_scale": 2.0,
    "edit_temperature": 0.5,
    "extend_temperature": 0.2,
    "given_frames": 8,
    "max_answer_tokens": 64,
}
"""Defaults of generation, found by measuring (LOG.md)."""
TRAINED_ON = (
    "drawings of one to four coloured shapes on a light ground, 64 x 64 pixels, with captions, questions and edits in "
    "English and Chinese; of photographs it knows nothing"
)

CARD = f"""# Rhea's default model

A small transformer and its vision tokenizer. It draws, films, edits and answers questions, all by predicting the next
token, so that every part of Rhea can be tried on a laptop without a download.

**Trained on** {TRAINED_ON}.
Both parts started from random weights; no other data went in. Ten combinations of size, colour and shape were left out
on purpose, so that what it makes of them can be graded.

**Made by** the recipes in `rhea/recipes`, on one core of a shared CPU in less than eight hours:

    rhea train default-tokenizer
    rhea train local-tokenizer --task.codebook.merge-below 0
    rhea train local-tokenizer --start-from runs/local-tokenizer --output runs/tokenizer --data.seed 2 \\
        --trainer.total-steps 360 --task.codebook.revive-until 260
    rhea train default-model --tokenizer-run runs/tokenizer --output runs/first --trainer.total-steps 8500 \\
        --data.min-turns 5 --data.max-turns 8 --loader.loss.text 2     # stopped after step 2,250
    rhea train default-model --tokenizer-run runs/tokenizer --start-from runs/first/checkpoint --data.seed 3 \\
        --output runs/second --trainer.total-steps 3350 --trainer.schedule.decay-steps 1000
    rhea train default-model --tokenizer-run runs/tokenizer --start-from runs/second/checkpoint --data.seed 4 \\
        --output runs/third --trainer.total-steps 7500     # stopped after step 2,505; without questions about halves
    rhea train default-model --tokenizer-run runs/tokenizer --start-from runs/third/checkpoint --data.seed 5 \\
        --output runs/fourth --trainer.total-steps 4100 --trainer.schedule.decay-steps 1200
    rhea train default-model --tokenizer-run runs/tokenizer --start-from runs/fourth/checkpoint --data.seed 6 \\
        --output runs/fifth --trainer.total-steps 2600 --trainer.schedule.decay-steps 1 \\
        --data.tasks.text-to-image 0.36 --data.tasks.question-answering 0.35 --data.tasks.editing 0.08 \\
        --data.tasks.video-prediction 0.15 --data.tasks.text-to-video 0.02 --data.tasks.captioning 0.02 \\
        --data.questions $all $hard height height vertical count_shape     # stopped after step 1,917
    rhea train default-model --tokenizer-run runs/tokenizer --start-from runs/fifth/checkpoint --data.seed 7 \\
        --trainer.total-steps 4400 --trainer.schedule.decay-steps 1200 \\
        --data.tasks.text-to-image 0.40 --data.tasks.question-answering 0.33 --data.tasks.editing 0.08 \\
        --data.tasks.video-prediction 0.13 --data.tasks.text-to-video 0.02 --data.tasks.captioning 0.02 \\
        --data.questions $all $hard

where `$all` is each of the 13 types of question once (the default's first 13) and `$hard` is height four times,
vertical, relation, count_colour and count_shape three times each and horizontal twice. The first two runs still wrote
the source picture of an edit before the instruction; only the last one had captions that say where things are.

Without detours it is the three recipes, one after the other: default-tokenizer, local-tokenizer, default-model.

**Limits.** 64 x 64 pictures and films of 16 frames. A photograph comes back as blobs of the nearest colours. Answers
are one of a few words.

<!-- figures: written by benchmarks/table.py from benchmarks/*.json -->
<!-- end of figures -->
"""


@dataclass(frozen=True, kw_only=True)
class DefaultModelRecipe:
    """Everything that decides the default model's training."""

    tokenizer: VisionTokenizerRecipe
    tokenizer_run: str
    """Run folder of the vision tokenizer, or a checkpoint that holds one."""
    start_from: str = ""
    """A checkpoint of this model to go on from, with its text tokenizer; random weights if empty."""
    model: TransformerConfig
    """Its vocab_size is filled in from the two tokenizers."""
    text_vocab_size: int
    text_documents: int
    """How many documents the text tokenizer is trained on."""
    data: ShapesSourceConfig
    loader: PackedLoaderConfig
    task: NextTokenTaskConfig
    trainer: TrainerConfig
    generation: dict[str, Any]
    """Defaults of generation, written into the checkpoint."""
    device: str | None = None
    """Where it trains: cpu, cuda or mps; by default the GPU if there is one. Pictures are coded on the CPU."""

    def run(self, folder: Path) -> bool:
        """Train in ``folder``, or go on there, and write ``folder/checkpoint``; return whether it is complete."""
        return self.run_transformer(folder)

    def run_transformer(self, folder: Path) -> bool:
        """Do so with the vision tokenizer of ``tokenizer_run``."""
        vision_tokenizer = trained_tokenizer(self.tokenizer, Path(self.tokenizer_run))
        start = load_checkpoint(self.start_from, dtype=torch.float32) if self.start_from else None
        text_tokenizer = (start and start.text_tokenizer) or self._text_tokenizer(folder)
        vocabulary = compact_vocabulary(text_tokenizer.vocab_size, self.tokenizer.model.codebook_size)
        model = Transformer(replace(self.model, vocab_size=Vocabulary(vocabulary).size))
        model.init_weights(self.trainer.seed)
        if start is not None and start.transformer is not None:
            if start.transformer.config != model.config:
                raise InputError(f"{self.start_from} holds a transformer of other sizes than this recipe's")
            model.load_state_dict(start.transformer.state_dict())
        model.to(choose_device(self.device))
        grammar, codec = Grammar(Vocabulary(vocabulary), text_tokenizer), VisionCodec(vision_tokenizer, pixel_policy())
        task = NextTokenTask(self.task, model, Vocabulary(vocabulary), sampler=_sampler(grammar, codec))
        with self._loader(grammar, codec) as loader:
            complete = Trainer(self.trainer, task, loader, folder).train()
        with task.export() as trained:
            checkpoint = self._checkpoint(trained, vision_tokenizer, text_tokenizer, vocabulary)
            save_checkpoint(folder / "checkpoint", checkpoint, card=CARD, overwrite=True)
        return complete

    def _text_tokenizer(self, folder: Path) -> TextTokenizer:
        """Train the text tokenizer once and keep it in the run folder."""
        kept = folder / "tokenizer.json"
        if not kept.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            texts = islice(_texts(self.data), self.text_documents)
            train_text_tokenizer(texts, self.text_vocab_size).save(folder)
        return load_text_tokenizer(kept)

    def _loader(self, grammar: Grammar, codec: VisionCodec) -> Prefetcher:
        mixture = Mixture([WeightedSource(name="shapes", source=ShapesSource(self.data))], seed=self.trainer.seed)
        return Prefetcher(PackedLoader(self.loader, mixture, grammar, codec))

    def _checkpoint(
        self, model: Transformer, vision: VisionTokenizer, text: TextTokenizer, vocabulary: VocabularyConfig
    ) -> Checkpoint:
        half = Transformer(model.config)
        half.load_state_dict(model.state_dict())
        config = CheckpointConfig(
            transformer=model.config,
            vision_tokenizer=vision.config,
            vocabulary=vocabulary,
            pixels=pixel_policy(),
            generation=self.generation,
            trained_on=TRAINED_ON,
        )
        return Checkpoint(
            config=config, transformer=half.to(torch.bfloat16), vision_tokenizer=vision, text_tokenizer=text
        )


def pixel_policy() -> PixelPolicy:
    """Return the default model's: the middle square, made 64 x 64, and values rounded to the nearest."""
    return PixelPolicy(min_pixels=SIDE**2, max_pixels=SIDE**2, shape="square", rounding="nearest")


def _sampler(grammar: Grammar, codec: VisionCodec) -> Sampler:
    """Return what draws one sheet of pictures while the model trains, the same prompts and seeds each time."""

    def draw(model: Transformer, folder: Path, step: int) -> None:
        size = ImageSize(height=SIDE // codec.policy.factor, width=SIDE // codec.policy.factor)
        prompts = [
            Prompt(
                document=formats.text_to_image(text),
                next=size,
                negative=formats.text_to_image(""),
                sampling=SamplingConfig(guidance_scale=2.0),
                sample_index=index,
            )
            for text in SAMPLES
            for index in range(2)
        ]
        drawn = Completer(model, grammar, codec).complete(prompts)
        pictures = codec.decode_pictures([each.codes for each in drawn if each.codes is not None])
        write_picture(folder / f"step-{step:08d}.png", contact_sheet(pictures))

    return draw


def _texts(config: ShapesSourceConfig) -> Iterator[str]:
    """Yield the texts of one document after the other, from a seed of their own."""
    source, index = ShapesSource(replace(config, seed=config.seed + 1)), 0
    while True:
        segments = source.document(index).segments
        yield "\n".join(segment.text for segment in segments if isinstance(segment, Text))
        index += 1


def default_model() -> DefaultModelRecipe:
    """Return the recipe; about four hours of one core with AVX-512 and bf16, 3 M parameters."""
    steps = 12_000
    return DefaultModelRecipe(
        tokenizer=default_tokenizer(),
        tokenizer_run="runs/local-tokenizer",
        model=TransformerConfig(
            vocab_size=0,
            dim=192,
            num_layers=6,
            num_heads=4,
            num_kv_heads=2,
            head_dim=48,
            ffn_dim=512,
            max_seq_len=1024,
            rope_theta=10_000.0,
            qk_norm=True,
        ),
        text_vocab_size=512,
        text_documents=3000,
        data=ShapesSourceConfig(
            tasks=ShapesTasks(
                text_to_image=0.38,
                captioning=0.03,
                question_answering=0.27,
                editing=0.14,
                text_to_video=0.03,
                video_prediction=0.13,
                film_question_answering=0.02,
            ),
            max_objects=3,
            max_moving=3,
            given_latents=2,
            min_turns=10,
            max_turns=14,
            questions=(*QUESTION_TYPES, DESCRIBE, LAYOUT, *HARD, *HARD),
        ),
        loader=PackedLoaderConfig(
            rows=4,
            seq_len=1024,
            loss=LossWeights(text=4.0, vision=0.5, structure=0.1, prompt=0.05),
        ),
        task=NextTokenTaskConfig(
            optimizer=OptimizerConfig(hidden="muon", betas=(0.9, 0.98), weight_decay=0.05),
            ema_decay=0.998,
            precision="bfloat16",
        ),
        trainer=TrainerConfig(
            total_steps=steps,
            schedule=ScheduleConfig(learning_rate=3e-3, warmup_steps=100, kind="wsd", decay_steps=steps // 4),
            checkpoint_every=250,
            log_every=25,
            sample_every=500,
        ),
        generation=GENERATION,
    )
