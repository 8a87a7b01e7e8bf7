"""What a model of ours gets right and wrong in the shapes world, in pairs: several tries of one prompt, graded exactly.

Both tries are drawn as people draw them, with the checkpoint's guidance and temperature.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.progress import track

from rhea.config import to_dict
from rhea.documents.pairs import Pair, read_pairs, write_pairs
from rhea.errors import InputError
from rhea.evaluation.report import checkpoint_hash
from rhea.generation.completion import Completion
from rhea.generation.model import Rhea
from rhea.io import claim
from rhea.logging import console
from rhea.recipes.exercises import Exercise, draw_exercise
from rhea.worlds.shapes.grader import read_picture

_PREFERENCES = 20261129
"""First word of the seeds, so that no other draw has them."""
_GROUP = 16
"""Prompts that are drawn together; an interruption loses at most as many."""


@dataclass(frozen=True, kw_only=True)
class ShapesPreferencesConfig:
    prompts: int = 1408
    """How many to ask; those that are always or never right give no pairs."""
    samples: int = 4
    """Tries of each."""
    edits: float = 0.6
    """Share of the prompts that are edits; the others are captions."""
    objects: tuple[int, ...] = (2, 3, 3)
    """How many objects a captioned scene has, drawn uniformly."""
    english: float = 0.6
    seed: int = 0


def draw_preferences(model: Rhea, config: ShapesPreferencesConfig, path: Path) -> None:
    """Write the pairs into ``path``, or go on where an interrupted call stopped; nothing to do if the file is there.

    InputError if what is there was drawn by another checkpoint or with other settings.
    """
    if config.prompts < 1 or config.samples < 2 or not config.objects:
        raise InputError(f"pairs need prompts, two samples or more of each, and a number of objects: {config}")
    by = {"checkpoint": checkpoint_hash(model.checkpoint), "generation": to_dict(model.defaults)}
    claim(path, path.with_suffix(".json"), to_dict(config) | by)
    if path.is_file():
        return
    vocab_size, found = model.completer.grammar.vocabulary.size, list[Pair]()
    parts = path.with_suffix(".parts")
    parts.mkdir(exist_ok=True)
    firsts = range(0, config.prompts, _GROUP)
    for first in track(firsts, "drawing pairs", console=console(), transient=True):
        part = parts / f"{first:06d}.jsonl"
        if not part.is_file():
            write_pairs(part, _draw(model, config, range(first, min(first + _GROUP, config.prompts))))
        found += read_pairs(part, vocab_size)
    write_pairs(path, found)
    for part in parts.iterdir():
        part.unlink()
    parts.rmdir()


def _draw(model: Rhea, config: ShapesPreferencesConfig, numbers: Sequence[int]) -> list[Pair]:
    """Return the pairs of some prompts."""
    asked = [_ask(model, config, number) for number in numbers]
    prompts = [replace(each.prompt, sample_index=index) for each in asked for index in range(config.samples)]
    completions = model.completer.complete(prompts)
    assert model.codec is not None
    pictures = model.codec.decode_pictures([each.codes for each in completions if each.codes is not None])
    pairs = []
    for place, exercise in enumerate(asked):
        mine = slice(place * config.samples, (place + 1) * config.samples)
        graded = [
            (exercise.is_right(read_picture(pixels)), each)
            for pixels, each in zip(pictures[mine], completions[mine], strict=True)
        ]
        right, wrong = ([each for good, each in graded if good is wanted] for wanted in (True, False))
        ids = model.completer.grammar.render_prompt(exercise.prompt.document, exercise.prompt.next)
        pairs += [_pair(ids, *both) for both in zip(right, wrong, strict=False)]
    return pairs


def _ask(model: Rhea, config: ShapesPreferencesConfig, number: int) -> Exercise:
    rng = np.random.default_rng([_PREFERENCES, config.seed, number])
    return draw_exercise(model.prompts, rng, edits=config.edits, objects=config.objects, english=config.english)


def _pair(prompt_ids: np.ndarray, chosen: Completion, rejected: Completion) -> Pair:
    return Pair(tuple(prompt_ids.tolist()), tuple(chosen.token_ids), tuple(rejected.token_ids))
