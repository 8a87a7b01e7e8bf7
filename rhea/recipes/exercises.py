"""Exercises of the shapes world: a caption or an edit to draw, and what tells whether a picture of it is right.

Scenes and edits are fresh, of the kinds that training shows, never of the evaluation's seeds.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rhea.generation.completion import Prompt
from rhea.generation.prompts import PromptWriter
from rhea.worlds.shapes.edits import sample_edit
from rhea.worlds.shapes.language import Language, caption
from rhea.worlds.shapes.render import render
from rhea.worlds.shapes.scene import CANVAS, ShapeObject, sample_scene


class Exercise(NamedTuple):
    name: str
    """What is practised: "1 object", "2 objects" or the kind of edit."""
    prompt: Prompt
    is_right: Callable[[Sequence[ShapeObject]], bool]
    """Judges the objects that ``read_picture`` finds in what was drawn."""


def draw_exercise(
    writer: PromptWriter,
    rng: np.random.Generator,
    *,
    edits: float,
    objects: Sequence[int],
    english: float,
    edited_objects: Sequence[int] | None = None,
    **sampling: Any,
) -> Exercise:
    """Draw one: an edit in that share of the cases, else a caption of a scene of one of those numbers of objects.

    ``edited_objects``: how many objects are edited, drawn uniformly; None: as many as in any scene.
    ``sampling``: of ``PromptWriter.draw``, which is else the checkpoint's.
    """
    language: Language = "en" if rng.random() < english else "zh"
    seed = int(rng.integers(2**31))
    if rng.random() < edits:
        edit = sample_edit(rng, language, num_objects=edited_objects)
        prompt = writer.edit([render(edit.source)], edit.instruction, seed=seed, **sampling)
        return Exercise(edit.operation, prompt, edit.is_right)
    number = int(rng.choice(objects))
    told = caption(rng, sample_scene(rng, num_objects=number), language)
    name = "1 object" if number == 1 else f"{number} objects"
    return Exercise(name, writer.draw(told.text, size=(CANVAS, CANVAS), seed=seed, **sampling), told.satisfied_by)
