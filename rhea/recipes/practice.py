"""Reinforcement learning of the shapes world: the model draws, the grader judges, and its tries become training rows.

Group relative policy optimization (arXiv 2402.03300, section 4.1) without a critic, reference, clipping or division by
the deviation (arXiv 2503.20783, section 3.2). Each prompt of a round is drawn several times by the model as it is then,
without guidance and at temperature 1, so that what is drawn is what the loss speaks of. A try's advantage, its reward
(1 if it is exactly right, else 0) less the mean of its prompt's, weighs the loss of its codes: right tries become
likelier, wrong ones less likely. Prompts that are always or never right teach nothing.

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
from rhea.documents.grammar import Rendered
from rhea.documents.loader import PackedLoader
from rhea.documents.packing import Packed, pack
from rhea.documents.prefetch import live_as_long_as_the_trainer
from rhea.errors import InputError
from rhea.generation.model import Rhea
from rhea.models.transformer import Transformer
from rhea.recipes.exercises import Exercise, draw_exercise
from rhea.training.task import TrainingError
from rhea.worlds.shapes.grader import read_picture

_PRACTICE = 20261130
"""First word of the seeds, so that no other draw has them."""
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
        if self.replay < 0:
            raise InputError(f"replay must be 0 or more, got {self.replay}")


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
        documents = [
            _weighted(ids, written[index], weight, first_code) for index, weight in advantages(right, config.kept)
        ]
        found.append(Tries(exercise.name, right, documents))
    return found


def ask(config: PracticeConfig, artist: Rhea, number: int) -> Exercise:
    """Return the exercise of a number, without guidance and at temperature 1."""
    return draw_exercise(
        artist.prompts,
        np.random.default_rng([_PRACTICE, config.seed, number, 1]),
        edits=config.edits,
        objects=config.objects,
        english=config.english,
        edited_objects=config.edited_objects,
        guidance_scale=1.0,
        temperature=1.0,
        top_p=1.0,
    )


def advantages(right: np.ndarray, kept: int) -> Iterator[tuple[int, float]]:
    """Yield which tries of a prompt are learned from, at most ``kept`` right and as many wrong ones, and their weights.

    Right and wrong ones weigh the same in all, as much as without the limit. None if all are right or all wrong.
    """
    share = right.mean()
    for wanted, sign in ((True, 1), (False, -1)):
        chosen = np.flatnonzero(right == wanted)[:kept]
        for index in chosen if 0 < share < 1 else ():
            yield int(index), float(sign * len(right) * share * (1 - share) / len(chosen))


def _weighted(prompt_ids: np.ndarray, written_ids: np.ndarray, weight: float, first_code: int) -> Rendered:
    """Return a try; only its codes were chosen by the model, the rest is the grammar's."""
    weights = np.where(written_ids >= first_code, weight, 0)
    return Rendered(
        np.concatenate([prompt_ids, written_ids]).astype(np.int64),
        np.concatenate([np.zeros(len(prompt_ids)), weights]).astype(np.float32),
    )


_begun: list[tuple[PracticeConfig, Rhea]] = []
"""In a process that draws: what it draws with."""


def _begin(config: PracticeConfig, path: str) -> None:
    live_as_long_as_the_trainer()
    torch.set_num_threads(1)
    _begun.append((config, load_artist(path)))


def _draw(weights: Mapping[str, Tensor], numbers: Sequence[int]) -> list[Tries]:
    return draw_tries(*_begun[0], weights, numbers)
