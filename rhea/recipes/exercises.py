"""Exercises of the shapes world: a caption or an edit to draw, and what tells whether a picture of it is right.

Scenes and edits are fresh, of the kinds that training shows, never of the evaluation's seeds.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rhea.generation.completion import Prompt
from rhea.generation.prompts import PromptWriter
from rhea.worlds.shapes.edits import sample_edit
from rhea.worlds.shapes.language import Language, Style, caption
from rhea.worlds.shapes.render import render
from rhea.worlds.shapes.scene import CANVAS, Scene, ShapeObject, sample_scene


class Exercise(NamedTuple):
    name: str
    """What is practised: "1 object", "2 objects" or the kind of edit."""
    prompt: Prompt
    is_right: Callable[[Sequence[ShapeObject]], bool]
    """Judges the objects that ``read_picture`` finds in what was drawn."""
    outcome: Scene
    """A scene that would be right."""
    exact: bool
    """Whether it is the only one: what is drawn can be compared with it place by place."""


def draw_exercise(
    writer: PromptWriter,
    rng: np.random.Generator,
    *,
    edits: float,
    objects: Sequence[int],
    english: float,
    edited_objects: Sequence[int] | None = None,
    colourless_edits: float = 0.0,
    captions: Sequence[Style] = (),
    guidance: float | None = None,
    **sampling: Any,
) -> Exercise:
    """Draw one: an edit in that share of the cases, else a caption of a scene of one of those numbers of objects.

    ``edited_objects``, ``colourless_edits``, ``captions``: as in ``ShapesSourceConfig``.
    ``sampling``: of ``PromptWriter.draw``, which is else the checkpoint's; ``guidance`` is that of captions.
    """
    language: Language = "en" if rng.random() < english else "zh"
    seed = int(rng.integers(2**31))
    if rng.random() < edits:
        colour_tells = False if colourless_edits and rng.random() < colourless_edits else None
        edit = sample_edit(rng, language, num_objects=edited_objects, colour_tells=colour_tells)
        prompt = writer.edit([render(edit.source)], edit.instruction, seed=seed, **sampling)
        return Exercise(edit.operation, prompt, edit.is_right, edit.target, edit.operation != "add")
    number = int(rng.choice(objects))
    scene = sample_scene(rng, num_objects=number)
    told = caption(rng, scene, language, captions)
    name = "1 object" if number == 1 else f"{number} objects"
    guided = sampling if guidance is None else sampling | {"guidance_scale": guidance}
    prompt = writer.draw(told.text, size=(CANVAS, CANVAS), seed=seed, revise=False, **guided)
    return Exercise(name, prompt, told.satisfied_by, scene, exact=False)
