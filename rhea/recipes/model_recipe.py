"""What the recipes of our own models share: two tokenizers, a transformer trained on a mixture, a complete checkpoint.

The run folder holds the text tokenizer and, at the end, ``checkpoint``: the whole model in our layout, which is what
``rhea.load`` and every command take. A recipe says where its documents come from and what is written about it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from rhea.checkpoints.configs import CheckpointConfig
from rhea.checkpoints.load import Checkpoint
from rhea.checkpoints.save import save_checkpoint
from rhea.documents import formats
from rhea.documents.document import Document, ImageSize, Text
from rhea.documents.grammar import Grammar
from rhea.documents.loader import PackedLoader, PackedLoaderConfig
from rhea.documents.mixture import Mixture
from rhea.documents.prefetch import Prefetcher
from rhea.generation.completion import Completer, Prompt
from rhea.generation.results import contact_sheet
from rhea.generation.sampling import SamplingConfig
from rhea.logging import console
from rhea.media import write_picture
from rhea.models.config import TransformerConfig
from rhea.models.device import choose_device
from rhea.models.growth import grow
from rhea.models.transformer import Transformer
from rhea.models.vision.tokenizer import VisionTokenizer
from rhea.recipes.growing import grow_from
from rhea.recipes.precision import affordable
from rhea.recipes.several import join_from, load_parts, mean_checkpoint
from rhea.tokenizers.text import TextTokenizer, load_text_tokenizer, train_text_tokenizer
from rhea.tokenizers.vision import PixelPolicy, VisionCodec
from rhea.tokenizers.vocabulary import Vocabulary, VocabularyConfig, compact_vocabulary
from rhea.training.next_token import NextTokenTask, NextTokenTaskConfig, Sampler
from rhea.training.state import checkpoint_folders
from rhea.training.trainer import Trainer, TrainerConfig


@dataclass(frozen=True, kw_only=True)
class About:
    """What a recipe's model is for."""

    policy: PixelPolicy
    samples: tuple[str, ...]
    """Prompts of the pictures that are drawn while it trains: two of each, square and as small as the policy allows."""
    trained_on: str
    card: str
    """The README of its checkpoint."""


@dataclass(frozen=True, kw_only=True)
class ModelRecipe(ABC):
    """Everything that decides a training of a model of ours, but for its data."""

    tokenizer_run: str
    """Run folder of the vision tokenizer, or a checkpoint that holds one."""
    start_from: tuple[str, ...] = ()
    """A checkpoint of this model to go on from, with its text tokenizer; random weights if empty. Of several, runs
    beside one another that began alike, the mean of their weights: local SGD (arXiv:1805.09767) by hand. A smaller
    transformer grows to this recipe's sizes (``rhea.models.growth``) and at first says what it said."""
    grow_from: str = ""
    """A checkpoint of a smaller model, of whatever tokenizers, whose skills a new run begins with, if it does not
    ``start_from`` another; random weights if both are empty."""
    join_from: tuple[str, ...] = ()
    """Checkpoints of this recipe's tokenizers that a new run sets side by side, if it does not ``start_from`` another:
    its transformer is as wide as all of them together and begins with the skills of each. Then nothing grows."""
    growth_documents: int = 1000
    """How many documents tell what the smaller model's codes are called now."""
    model: TransformerConfig
    """Its vocab_size is filled in from the two tokenizers."""
    text_vocab_size: int
    text_documents: int
    """How many documents the text tokenizer is trained on."""
    loader: PackedLoaderConfig
    loader_workers: int = 1
    """Processes that make documents and code their pictures. One keeps up with a small model on one core; a GPU is kept
    waiting by less than a process for each core. A run goes on with as many as it began with."""
    task: NextTokenTaskConfig
    trainer: TrainerConfig
    generation: dict[str, Any]
    """Defaults of generation, written into the checkpoint."""
    device: str | None = None
    """Where it trains: cpu, cuda or mps; by default the GPU if there is one. Pictures are coded on the CPU."""

    @abstractmethod
    def about(self) -> About:
        """Say what the model is for."""

    @abstractmethod
    def mixture(self, *, seed_offset: int = 0) -> Mixture:
        """Open the sources of documents, their seeds that much higher; InputError if shards are missing."""

    @abstractmethod
    def vision_tokenizer(self) -> VisionTokenizer:
        """Load the tokenizer of ``tokenizer_run``."""

    def run(self, folder: Path) -> bool:
        """Train in ``folder``, or go on there, and write ``folder/checkpoint``; return whether it is complete."""
        return self.run_transformer(folder)

    def run_transformer(self, folder: Path) -> bool:
        """Do so with the vision tokenizer of ``tokenizer_run``."""
        mixture, vision_tokenizer = self.mixture(), self.vision_tokenizer()
        paths = [path for path in self.start_from if path]
        start = mean_checkpoint(paths) if paths else None
        joined = load_parts(self.join_from, vision_tokenizer) if start is None else []
        known = [
            each.text_tokenizer for each in (start, *joined) if each is not None and each.text_tokenizer is not None
        ]
        text_tokenizer = known[0] if known else self._text_tokenizer(folder)
        vocabulary = compact_vocabulary(text_tokenizer.vocab_size, vision_tokenizer.config.codebook_size)
        model = Transformer(replace(self.model, vocab_size=Vocabulary(vocabulary).size))
        model.init_weights(self.trainer.seed)
        if start is not None and start.transformer is not None:
            grow(start.transformer, model)
        about = self.about()
        grammar, codec = Grammar(Vocabulary(vocabulary), text_tokenizer), VisionCodec(vision_tokenizer, about.policy)
        begins = start is None and not checkpoint_folders(folder)
        if begins and joined:
            plain = replace(self.loader, code_dropout=0.0)
            join_from(joined, model, PackedLoader(plain, self.mixture(seed_offset=1), grammar, codec))
        elif begins and self.grow_from:
            documents, total = _documents(self.mixture(seed_offset=1), self.growth_documents), self.growth_documents
            progress = track(documents, "comparing codes", total, console=console(), transient=True)
            grow_from(self.grow_from, model, grammar, codec, progress)
        device = choose_device(self.device)
        task = NextTokenTask(
            affordable(self.task, device),
            model.to(device),
            Vocabulary(vocabulary),
            sampler=_sampler(about, grammar, codec),
        )
        with Prefetcher(*PackedLoader(self.loader, mixture, grammar, codec).parts(self.loader_workers)) as loader:
            complete = Trainer(self.trainer, task, loader, folder).train()
        with task.export() as trained:
            checkpoint = self._checkpoint(trained, vision_tokenizer, text_tokenizer, vocabulary)
            save_checkpoint(folder / "checkpoint", checkpoint, card=about.card, overwrite=True)
        return complete

    def _text_tokenizer(self, folder: Path) -> TextTokenizer:
        """Train the text tokenizer once, on documents of seeds of their own, and keep it in the run folder."""
        kept = folder / "tokenizer.json"
        if not kept.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            texts = _texts(_documents(self.mixture(seed_offset=1), self.text_documents))
            train_text_tokenizer(texts, self.text_vocab_size).save(folder)
        return load_text_tokenizer(kept)

    def _checkpoint(
        self, model: Transformer, vision: VisionTokenizer, text: TextTokenizer, vocabulary: VocabularyConfig
    ) -> Checkpoint:
        half = Transformer(model.config)
        half.load_state_dict(model.state_dict())
        about = self.about()
        config = CheckpointConfig(
            transformer=model.config,
            vision_tokenizer=vision.config,
            vocabulary=vocabulary,
            pixels=about.policy,
            generation=self.generation,
            trained_on=about.trained_on,
        )
        return Checkpoint(
            config=config, transformer=half.to(torch.bfloat16), vision_tokenizer=vision, text_tokenizer=text
        )


def _sampler(about: About, grammar: Grammar, codec: VisionCodec) -> Sampler:
    """Return what draws one sheet of pictures while the model trains, the same prompts and seeds each time."""

    def draw(model: Transformer, folder: Path, step: int) -> None:
        side = math.isqrt(about.policy.min_pixels) // codec.policy.factor
        prompts = [
            Prompt(
                document=formats.text_to_image(text),
                next=ImageSize(height=side, width=side),
                negative=formats.text_to_image(""),
                sampling=SamplingConfig(guidance_scale=2.0),
                sample_index=index,
            )
            for text in about.samples
            for index in range(2)
        ]
        drawn = Completer(model, grammar, codec).complete(prompts)
        pictures = codec.decode_pictures([each.codes for each in drawn if each.codes is not None])
        write_picture(folder / f"step-{step:08d}.png", contact_sheet(pictures))

    return draw


def _documents(mixture: Mixture, how_many: int) -> Iterator[Document]:
    """Return the first documents of a mixture."""
    draws, _ = mixture.draws(0, [0] * len(mixture.sources), how_many)
    return map(mixture.document, draws)


def _texts(documents: Iterable[Document]) -> Iterator[str]:
    """Yield the texts of one document after the other."""
    for document in documents:
        yield "\n".join(segment.text for segment in document.segments if isinstance(segment, Text))
