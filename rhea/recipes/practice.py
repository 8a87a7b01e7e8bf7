"""Reinforcement learning of the shapes world: the model draws, the grader judges, and its tries become training rows.

Group relative policy optimization (arXiv 2402.03300, section 4.1) without a critic, reference, clipping or division by
the deviation (arXiv 2503.20783, section 3.2). Each prompt of a round is drawn several times by the model as it is then,
without guidance and at temperature 1, so that what is drawn is what the loss speaks of. A try's advantage, its reward
(1 if it is exactly right, else 0) less the mean of its prompt's, weighs the loss of its codes: right tries become
likelier, wrong ones less likely. Captions that are always or never right teach nothing. An edit has one outcome, so
its tries are weighed code by code (``advantages``).

Rows of plain documents beside the tries keep what is not practised.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rhea.checkpoints.load import load_checkpoint
from rhea.documents.document import Document, Image, ImageSize
from rhea.documents.grammar import Grammar, LossWeights, Rendered
from rhea.documents.loader import PackedLoader
from rhea.documents.packing import Packed, pack
from rhea.documents.prefetch import live_as_long_as_the_trainer
from rhea.errors import InputError
from rhea.generation.model import Rhea
from rhea.models.transformer import Transformer
from rhea.recipes.exercises import Exercise, draw_exercise
from rhea.training.task import TrainingError
from rhea.worlds.shapes.grader import read_picture
from rhea.worlds.shapes.language import Style
from rhea.worlds.shapes.render import render

_PRACTICE = 20261130
"""First word of the seeds, so that no other draw has them."""
_ANOTHER = 25.0
"""Mean difference of the pixels of one code, of 255, from which it shows another thing: of 66 wrong edits 62
differed by more somewhere, of 134 right ones 23."""
_PATIENCE = 8
"""Rounds without anything to learn from, one after the other, that end a run."""


@dataclass(frozen=True, kw_only=True)
class PracticeConfig:
    prompts: int = 64
    """How many are asked in a round. The model learns from all tries of a round before it draws the next."""
    samples: int = 8
    """Tries of each."""
    kept: int = 3
    """Most right and most wrong tries of a prompt that are learned from; fewer weigh the more (arXiv 2504.13818)."""
    edits: float = 0.5
    """Share of the prompts that are edits; the others are captions."""
    objects: tuple[int, ...] = (1, 2, 2, 3, 3, 3, 3)
    """How many objects a captioned scene has, drawn uniformly."""
    edited_objects: tuple[int, ...] | None = None
    """How many objects an edited scene has, drawn uniformly; None: as many as any scene."""
    colourless_edits: float = 0.0
    """Share of the edits in which colour surely does not tell which object is meant (``ShapesSourceConfig``)."""
    captions: tuple[Style, ...] = ()
    """Styles of the captions, drawn uniformly from those that the scene allows; () means all."""
    guidance: float = 1.0
    """With which captions are drawn. Above 1 more tries are right, but they are not what the loss speaks of: the right
    ones are learned as plain documents are, wrong ones not at all (expert iteration, arXiv 1705.08439). So what
    guidance knows becomes the model's own; for a model that is rarely right without."""
    shown: float = 0.0
    """Weight of the outcome of an edit, learned in place of the tries where none of them is right, for tries can't
    teach what is never tried. 0 shows none, and none is shown that the vision tokenizer itself gets wrong."""
    english: float = 0.6
    rows: int = 8
    """Rows of tries in a microbatch."""
    seq_len: int = 1024
    replay: float = 0.2
    """Weight of the plain documents, as a share of the tries' weights without their signs."""
    seed: int = 0
    workers: int = 1
    """Processes that draw, each with one thread: a CPU of few cores draws faster so. What they draw is the same. A GPU
    wants 1."""

    def __post_init__(self) -> None:
        if min(self.prompts, self.kept, self.rows, self.workers) < 1 or self.samples < 2 or not self.objects:
            raise InputError(
                "practice needs prompts, two samples or more of each, some to keep, a number of objects, rows and a "
                f"worker: {self}"
            )
        if min(self.replay, self.shown, self.guidance - 1) < 0:
            raise InputError(
                f"replay and shown must be 0 or more and guidance 1 or more, got {self.replay}, {self.shown} and "
                f"{self.guidance}"
            )


class Tries(NamedTuple):
    """What became of one prompt."""

    name: str
    right: np.ndarray
    """Whether each try is, in order."""
    documents: list[Rendered]
    """Those to learn from, their codes weighted."""


class PracticeLoader:
    """Call ``next_batch()`` for ever. It is an evaluator as well: it logs how many of its tries were right.

    Leave its ``with`` block to end the processes that draw.
    """

    def __init__(
        self, config: PracticeConfig, model: Transformer, artist: Rhea, replay: PackedLoader, *, every: int
    ) -> None:
        """``model``: the one that is trained; ``artist``: of ``load_artist``, is given the trained weights before each
        round; ``replay``: plain documents; ``every``: steps between log lines."""
        self.config, self.every = config, every
        self._model, self._artist, self._replay = model, artist, replay
        self._round = 0
        self._packed: list[Packed] = []
        self._rewards = defaultdict[str, list[float]](list)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "PracticeLoader":
        if self.config.workers > 1:
            context = torch.multiprocessing.get_context("spawn")
            begin = self.config, str(self._artist.checkpoint.source)
            self._pool = ProcessPoolExecutor(self.config.workers, context, initializer=_begin, initargs=begin)
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def next_batch(self) -> Packed:
        """Return rows of tries, their weights signed, and behind them rows of plain documents."""
        first = self._round
        while not self._packed:
            if self._round == first + _PATIENCE:
                raise TrainingError(f"{_PATIENCE} rounds of prompts were always or never right: nothing to learn from")
            self._packed = self._drawn(self._round)
            self._round += 1
        tries = self._packed.pop(0)
        if not self.config.replay:
            return tries
        documents = self._replay.next_batch()
        share = self.config.replay * np.abs(tries.loss_weights).sum() / max(documents.loss_weights.sum(), 1e-9)
        return tries + replace(documents, loss_weights=(documents.loss_weights * share).astype(np.float32))

    def state_dict(self) -> dict[str, Any]:
        """Return the place, without what is left of a round: a resumed run draws the next one."""
        return {"round": self._round, "replay": self._replay.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the next round; InputError if the plain documents are others."""
        self._replay.load_state_dict(state["replay"])
        self._round, self._packed = state["round"], []

    def evaluate(self, task: Any, step: int, folder: Path) -> dict[str, float]:
        """Return the mean reward of all tries and of each kind since the last call, by the names that the log has."""
        rewards, self._rewards = self._rewards, defaultdict[str, list[float]](list)
        if not rewards:
            return {}
        means = {f"reward/{name}": float(np.mean(found)) for name, found in sorted(rewards.items())}
        return {"reward": float(np.mean(np.concatenate([*rewards.values()])))} | means

    def _drawn(self, number: int) -> list[Packed]:
        """Draw a round with the weights of now and return what is to be learned from it; nothing, if all are alike."""
        config, weights = self.config, self._model.state_dict()
        numbers = range(number * config.prompts, (number + 1) * config.prompts)
        if self._pool is None:
            found = draw_tries(config, self._artist, weights, numbers)
        else:
            parts = [part.tolist() for part in np.array_split(numbers, config.workers)]
            found = [tries for part in self._pool.map(_draw, [weights] * len(parts), parts) for tries in part]
        for tries in found:
            self._rewards[tries.name] += tries.right.astype(float).tolist()
        documents = [document for tries in found for document in tries.documents]
        order = np.random.default_rng([_PRACTICE, config.seed, number]).permutation(len(documents))
        pad = self._artist.completer.grammar.vocabulary.pad
        packed = pack([documents[index] for index in order], config.seq_len, pad)
        return [packed[first : first + config.rows] for first in range(0, len(packed.token_ids), config.rows)]


def load_artist(path: str, device: torch.device | str = "cpu") -> Rhea:
    """Load a whole checkpoint to draw with weights that change; InputError if a part is missing."""
    checkpoint = load_checkpoint(path, dtype=torch.float32, vision_dtype=torch.float32, device=device)
    if checkpoint.transformer is None or checkpoint.vocabulary is None or checkpoint.vision_tokenizer is None:
        raise InputError(f"{path} is not a whole model: practice needs a transformer and a vision tokenizer")
    checkpoint.transformer.eval().requires_grad_(False).pack(checkpoint.vocabulary.boundaries)
    return Rhea(checkpoint)


def draw_tries(
    config: PracticeConfig, artist: Rhea, weights: Mapping[str, Tensor], numbers: Sequence[int]
) -> list[Tries]:
    """Give the artist's transformer the weights, let it draw the prompts of those numbers, and grade what comes.

    What is drawn depends on the numbers, the seed and the weights only, not on what is drawn beside it.
    """
    completer, codec, tries = artist.completer, artist.codec, config.samples
    assert codec is not None
    completer.transformer.load_state_dict(weights)
    asked = [ask(config, artist, number) for number in numbers]
    prompts = [replace(each.prompt, sample_index=index) for each in asked for index in range(tries)]
    completions = completer.complete(prompts, max_requests=128)
    pictures = codec.decode_pictures([each.codes for each in completions if each.codes is not None])
    found = []
    for place, exercise in enumerate(asked):
        mine = slice(place * tries, (place + 1) * tries)
        right = np.array([exercise.is_right(read_picture(pixels)) for pixels in pictures[mine]])
        ids = completer.grammar.render_prompt(exercise.prompt.document, exercise.prompt.next)
        written = [np.array(each.token_ids) for each in completions[mine]]
        first_code = completer.grammar.vocabulary.vision.start
        places = right[:, None]
        if exercise.exact:
            size, outcome = exercise.prompt.next, render(exercise.outcome)
            assert isinstance(size, ImageSize)
            places = right_places(pictures[mine], outcome, right, size)
        guided = exercise.prompt.sampling.guidance_scale != 1
        chosen = imitated(right, config.kept) if guided else advantages(right, places, config.kept)
        documents = [_weighted(ids, written[index], weights, first_code) for index, weights in chosen]
        if exercise.exact and config.shown and not right.any():
            (codes,) = codec.encode_pictures([outcome])
            if exercise.is_right(read_picture(codec.decode_picture(codes))):
                documents = [_shown(exercise.prompt.document, codes, completer.grammar, config.shown)]
        found.append(Tries(exercise.name, right, documents))
    return found


def ask(config: PracticeConfig, artist: Rhea, number: int) -> Exercise:
    """Return the exercise of a number at temperature 1, an edit without guidance."""
    return draw_exercise(
        artist.prompts,
        np.random.default_rng([_PRACTICE, config.seed, number, 1]),
        edits=config.edits,
        objects=config.objects,
        english=config.english,
        edited_objects=config.edited_objects,
        colourless_edits=config.colourless_edits,
        captions=config.captions,
        guidance=config.guidance,
        guidance_scale=1.0,
        temperature=1.0,
        top_p=1.0,
    )


def right_places(pictures: Sequence[np.ndarray], outcome: np.ndarray, right: np.ndarray, size: ImageSize) -> np.ndarray:
    """Return bool [tries, codes]: where each of the pictures shows what the outcome shows.

    One that is right does so everywhere, one that is wrong at least not where it differs most.
    """
    differences = np.abs(np.stack(pictures).astype(np.float32) - outcome).mean(axis=-1)
    tries, height, width = differences.shape
    blocks = differences.reshape(tries, size.height, height // size.height, size.width, width // size.width)
    mean = blocks.mean(axis=(2, 4)).reshape(tries, -1)
    return right[:, None] | ((mean < _ANOTHER) & (mean < mean.max(axis=1, keepdims=True)))


def advantages(right: np.ndarray, places: np.ndarray, kept: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield which tries of a prompt are learned from, at most ``kept`` right and as many wrong ones, and their weights.

    ``places``, bool [tries, choices], tells which choices were right; one choice may stand for the whole try. A choice
    weighs 1 if it was right, else 0, less the share of right ones among the tries that had been right until then;
    after its first wrong choice nothing of a try weighs. Those that are kept stand for the others of their kind.
    """
    until_then = np.ones_like(places)
    until_then[:, 1:] = np.logical_and.accumulate(places, axis=1)[:, :-1]
    share = (places & until_then).sum(axis=0) / np.maximum(until_then.sum(axis=0), 1)
    weights = until_then * (places - share)
    for kind in (right, ~right):
        chosen = kind.nonzero()[0][:kept]
        for index in chosen:
            if weights[index].any():
                yield int(index), weights[index] * kind.sum() / len(chosen)


def imitated(right: np.ndarray, kept: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield at most ``kept`` right tries, each of weight 1."""
    for index in right.nonzero()[0][:kept]:
        yield int(index), np.ones(1)


def _weighted(prompt_ids: np.ndarray, written_ids: np.ndarray, weights: np.ndarray, first_code: int) -> Rendered:
    """Return a try; only its codes were chosen by the model, the rest is the grammar's."""
    ids = np.concatenate([prompt_ids, written_ids]).astype(np.int64)
    placed = np.zeros(len(ids), dtype=np.float32)
    placed[len(prompt_ids) + (written_ids >= first_code).nonzero()[0]] = weights
    return Rendered(ids, placed)


def _shown(asked: Document, codes: np.ndarray, grammar: Grammar, weight: float) -> Rendered:
    """Return what was asked for with an outcome, to learn as plain documents are."""
    document = Document((*asked.segments, Image(codes=codes)), bos=asked.bos)
    return grammar.render(document, LossWeights(vision=weight, structure=0.0, eos=0.0, prompt=0.0))


_begun: list[tuple[PracticeConfig, Rhea]] = []
"""In a process that draws: what it draws with."""


def _begin(config: PracticeConfig, path: str) -> None:
    live_as_long_as_the_trainer()
    torch.set_num_threads(1)
    _begun.append((config, load_artist(path)))


def _draw(weights: Mapping[str, Tensor], numbers: Sequence[int]) -> list[Tries]:
    return draw_tries(*_begun[0], weights, numbers)
