"""The shapes world as training documents: document ``index`` is a pure function of (seed, index), for every task.

A task, a language and a scene are drawn for each document alone, so any document can be made again and workers can
share the work by index. Evaluation draws from other seeds with the same functions of ``scene``, ``questions``,
``edits`` and ``films``; kinds that are held out appear here neither in pictures nor in words.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from rhea.documents import formats
from rhea.documents.document import Document, Image, Video
from rhea.documents.mixture import draw_task, task_shares
from rhea.errors import InputError
from rhea.worlds.shapes.edits import OPERATIONS, Additions, possible_numbers, sample_edit
from rhea.worlds.shapes.films import MAX_MOVING, Film, render_film, sample_film
from rhea.worlds.shapes.language import (
    STYLES,
    Language,
    Selector,
    Style,
    caption,
    describe,
    film_caption,
    finish,
    join,
    pick,
    possible_styles,
)
from rhea.worlds.shapes.questions import DESCRIBE, LAYOUT, QUESTION_TYPES, ask, sample_crowded_scene
from rhea.worlds.shapes.render import render
from rhea.worlds.shapes.scene import CANVAS, MAX_OBJECTS, HeldOut, Kind, Scene, sample_scene

STILL_QUESTIONS = ("side", "height", "horizontal", "place", "vertical", "relation", DESCRIBE, LAYOUT)
"""Questions whose answer may change while things move."""
REVISED = 0.7
"""Share of the prompts to revise in which objects are related, which are told by their places instead: objects that are
named in the order and with the places in which they are drawn are far easier to draw. The two that are related come
first, the others as they were named, so that there is one order to learn. Other prompts stay as they are."""
CROWDED = 0.6
"""Share of the pictures to ask about in which objects share a colour or a shape on purpose."""


@dataclass(frozen=True, kw_only=True)
class ShapesTasks:
    """How often each task is drawn, in proportion; 0 leaves it out."""

    text_to_image: float = 0.35
    captioning: float = 0.08
    prompt_revision: float = 0.0
    question_answering: float = 0.2
    editing: float = 0.15
    text_to_video: float = 0.06
    video_prediction: float = 0.12
    film_question_answering: float = 0.04


@dataclass(frozen=True, kw_only=True)
class ShapesSourceConfig:
    """What the documents of a ShapesSource are like."""

    seed: int = 0
    tasks: ShapesTasks = field(default_factory=ShapesTasks)
    held_out: HeldOut = "exclude"
    english: float = 0.7
    """Share of the documents in English; the others are in Chinese."""
    canvas: int = CANVAS
    min_objects: int = 1
    max_objects: int = MAX_OBJECTS
    max_moving: int = MAX_MOVING
    """Most objects in a film."""
    num_frames: int = 16
    fps: float = 8.0
    given_latents: int = 1
    """Latent frames (of four frames each) from which video prediction starts."""
    unconditional: float = 0.1
    """Share of the captions and instructions before what is drawn that are left empty, for classifier-free guidance."""
    min_turns: int = 4
    max_turns: int = 6
    """Questions about one picture."""
    questions: tuple[str, ...] = (*QUESTION_TYPES, DESCRIBE, LAYOUT)
    """Their types, drawn uniformly: one that stands here twice is asked twice as often."""
    edits: tuple[str, ...] = OPERATIONS
    """What edits do, drawn uniformly likewise."""
    edited_objects: tuple[int, ...] | None = None
    """How many objects an edited scene has, drawn uniformly likewise; None: as many as any scene."""
    colourless_edits: float = 0.0
    """Share of the edits that are surely such that colour does not tell which object is meant: the instruction names it
    by its shape alone, or another object has its colour. Of the others many are, as it comes."""
    additions: Additions = "anywhere"
    """Where edits add an object, which instructions leave open; ``roomiest`` makes targets a function of the prompt."""
    captions: tuple[Style, ...] = ()
    """Styles of the captions to draw from, drawn uniformly likewise from those that the scene allows; () means all."""


class ShapesSource:
    """An endless source of documents (the Source protocol of ``rhea.documents.mixture``)."""

    def __init__(self, config: ShapesSourceConfig | None = None) -> None:
        self.config = config or ShapesSourceConfig()
        self._shares = task_shares(self.config.tasks)
        if self.config.seed < 0:
            raise InputError(f"a seed must not be negative, got {self.config.seed}")
        if not 1 <= self.config.min_turns <= self.config.max_turns:
            raise InputError(f"turns from {self.config.min_turns} to {self.config.max_turns} is no range of 1 or more")
        if not 1 <= self.config.min_objects <= self.config.max_objects:
            raise InputError(f"{self.config.min_objects} to {self.config.max_objects} objects is no range of 1 or more")
        if not self.config.edits or not set(self.config.edits) <= set(OPERATIONS):
            raise InputError(f"edits are some of {', '.join(OPERATIONS)}, not {', '.join(self.config.edits) or 'none'}")
        if not set(self.config.captions) <= set(STYLES):
            raise InputError(f"captions are some of {', '.join(STYLES)}, not {', '.join(self.config.captions)}")
        if not 0 <= self.config.colourless_edits <= 1:
            raise InputError(f"colourless_edits is a share from 0 to 1, not {self.config.colourless_edits}")
        if self.config.edited_objects is not None:
            for edit in self.config.edits:
                possible_numbers(edit, self.config.edited_objects)
        self._builders: list[Callable[[np.random.Generator, Language], Document]] = [
            getattr(self, f"_{task.name}") for task in dataclasses.fields(self.config.tasks)
        ]

    def document(self, index: int) -> Document:
        """Make document ``index``, with pixels; the same index always gives the same document."""
        rng = np.random.default_rng([self.config.seed, index])
        task = draw_task(rng, self._shares)
        language: Language = "en" if rng.random() < self.config.english else "zh"
        return self._builders[task](rng, language)

    def _text_to_image(self, rng: np.random.Generator, language: Language) -> Document:
        scene = self._scene(rng)
        text = caption(rng, scene, language, self.config.captions).text
        return formats.text_to_image(self._or_nothing(rng, text), _image(scene))

    def _captioning(self, rng: np.random.Generator, language: Language) -> Document:
        scene = self._scene(rng)
        return formats.captioning(_image(scene), finish(rng, describe(scene, language), language))

    def _prompt_revision(self, rng: np.random.Generator, language: Language) -> Document:
        revised = self.config.max_objects > 1 and rng.random() < REVISED
        while True:
            scene = self._scene(rng)
            styles = possible_styles(scene)
            if not revised:
                return formats.prompt_revision(self._fine_prompt(rng, scene, styles, language), formats.KEPT)
            if "related" in styles:
                told, placed = (caption(rng, scene, language, style) for style in ("related", "placed"))
                if told.relations[0].follows(scene.objects, scene.canvas) and placed.objects == told.related_first():
                    return formats.prompt_revision(told.text, placed.text)

    def _fine_prompt(self, rng: np.random.Generator, scene: Scene, styles: list[Style], language: Language) -> str:
        """Draw what may be asked for and is fine: a caption, and at times a film's, or names without any grammar."""
        kind = rng.random()
        if kind < 0.1:
            return film_caption(rng, self._film(rng), language).text
        if kind < 0.3:
            names = [_vague(rng, thing.kind).name(language) for thing in scene.objects[:2]]
            return finish(rng, join(names, language), language)
        return caption(rng, scene, language, [style for style in styles if style != "related"]).text

    def _question_answering(self, rng: np.random.Generator, language: Language) -> Document:
        if rng.random() < CROWDED:
            scene = sample_crowded_scene(rng, held_out=self.config.held_out, canvas=self.config.canvas)
        else:
            scene = self._scene(rng)
        turns = self._turns(rng, scene, language, self.config.questions)
        return formats.question_answering(_image(scene), turns)

    def _editing(self, rng: np.random.Generator, language: Language) -> Document:
        config = self.config
        operation = pick(rng, config.edits)
        edit = sample_edit(
            rng,
            language,
            operation=operation,
            num_objects=config.edited_objects,
            additions=config.additions,
            colour_tells=False if config.colourless_edits and rng.random() < config.colourless_edits else None,
            held_out=config.held_out,
            canvas=config.canvas,
        )
        instruction = self._or_nothing(rng, edit.instruction)
        return formats.editing([_image(edit.source)], instruction, _image(edit.target))

    def _text_to_video(self, rng: np.random.Generator, language: Language) -> Document:
        film = self._film(rng)
        text = film_caption(rng, film, language).text
        return formats.text_to_video(self._or_nothing(rng, text), self._video(film))

    def _video_prediction(self, rng: np.random.Generator, language: Language) -> Document:
        film = self._film(rng)
        text = film_caption(rng, film, language).text if rng.random() < 0.25 else ""
        return formats.video_prediction(self._video(film), self.config.given_latents, text)

    def _film_question_answering(self, rng: np.random.Generator, language: Language) -> Document:
        film = self._film(rng)
        types = tuple(name for name in self.config.questions if name not in STILL_QUESTIONS)
        turns = self._turns(rng, film.scene(0), language, types)
        return formats.question_answering(self._video(film), turns)

    def _or_nothing(self, rng: np.random.Generator, text: str) -> str:
        return "" if rng.random() < self.config.unconditional else text

    def _scene(self, rng: np.random.Generator) -> Scene:
        config = self.config
        return sample_scene(
            rng,
            min_objects=config.min_objects,
            max_objects=config.max_objects,
            held_out=config.held_out,
            canvas=config.canvas,
        )

    def _film(self, rng: np.random.Generator) -> Film:
        config = self.config
        return sample_film(
            rng,
            num_frames=config.num_frames,
            max_objects=config.max_moving,
            held_out=config.held_out,
            canvas=config.canvas,
        )

    def _video(self, film: Film) -> Video:
        return Video(frames=render_film(film), fps=self.config.fps)

    def _turns(
        self, rng: np.random.Generator, scene: Scene, language: Language, types: tuple[str, ...]
    ) -> list[tuple[str, str | None]]:
        """Draw different questions about one picture, of types drawn uniformly."""
        wanted = int(rng.integers(self.config.min_turns, self.config.max_turns + 1))
        turns: dict[str, str | None] = {}
        for choice in rng.integers(len(types), size=4 * wanted).tolist():
            question = ask(rng, scene, types[choice], language, held_out=self.config.held_out)
            if question is not None:
                turns.setdefault(question.text, question.answer)
            if len(turns) == wanted:
                break
        return list(turns.items())


def _vague(rng: np.random.Generator, kind: Kind) -> Selector:
    """Return some attributes of a kind."""
    return Selector(*(value if rng.random() < 0.6 else None for value in kind))


def _image(scene: Scene) -> Image:
    return Image(pixels=render(scene))
