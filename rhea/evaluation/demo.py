"""The demo: one folder that shows what the default model does, each result graded, and one page that needs no network.

Prompts are fixed and nothing is picked by hand: what comes out of seed 0 is shown, right or wrong, beside what the
exact grader of the shapes world reads in it. One prompt names a combination that training never showed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rhea.errors import InputError
from rhea.evaluation.page import Film, Page, Picture
from rhea.generation.model import Rhea
from rhea.generation.request import Progress
from rhea.generation.results import Film as GeneratedFilm
from rhea.io import atomic_folder, write_json
from rhea.media import Film as PlainFilm
from rhea.worlds.shapes.films import render_film, sample_film
from rhea.worlds.shapes.grader import read_picture
from rhea.worlds.shapes.language import Caption, Relation, Selector, read_caption

PICTURES: dict[str, tuple[tuple[int, str, int], ...]] = {
    "a small red circle": (),
    "a large blue square and a small yellow star": (),
    "from left to right: a small green triangle, a large purple ring and a small orange square": (
        (0, "left", 1),
        (1, "left", 2),
    ),
    "a large yellow circle above a small blue ring": ((0, "above", 1),),
    "a small cyan cross, a large black triangle and a small red square": (),
    "一个绿色大星形和一个黑色小圆环": (),
    "从左到右：一个红色小三角形和一个蓝色大圆环": ((0, "left", 1),),
    "a small red star": (),
}
"""Prompts, each with the relations that it states between its objects."""
UNSEEN = "a small red star"
"""Training never showed a small red star; small things, red things and stars it did."""
QUESTIONS = (
    (1, "How many objects are there?"),
    (1, "What colour is the star?"),
    (2, "What is in the picture?"),
    (3, "Is the circle above or below the ring?"),
    (3, "Is there a square in the picture?"),
    (5, "图中有几个物体？"),
)
EDITS = ((1, "make the square red"), (2, "remove the ring"), (0, "add a large cyan cross"))
EMOJI = (
    "a flat icon of butterfly",
    "a 3D icon of red apple",
    "a color icon of sunflower",
    "a Noto icon of rocket",
    "扁平图标：帆船",
    "立体图标：章鱼",
    "彩色图标：火箭",
    "Noto 图标：房子",
)
NAMING = {"en": "What is this called?", "zh": "这叫什么？"}
FILM = "a small red circle moving to the right, a large green square moving down"
_MARKER = "demo.json"
_SEED = 0
_FRESH = 20260924
"""Seed of the film that is predicted: no training seed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Studio:
    """Where the demo is being written."""

    model: Rhea
    folder: Path
    progress: Callable[[Progress], None] | None


def build_demo(
    model: Rhea, folder: str | Path, *, rich: Rhea | None = None, progress: Callable[[Progress], None] | None = None
) -> Path:
    """Make the demo in ``folder`` and return its page; an older demo is replaced, any other folder is refused.

    ``rich``: a model that draws and names emoji, which the page then shows as well.
    """
    target = Path(folder)
    if target.is_dir() and any(target.iterdir()) and not (target / _MARKER).is_file():
        raise InputError(f"{target} is not empty and is no demo: name another folder")
    page = Page(title="Rhea", trained_on=model.trained_on)
    with atomic_folder(target) as temporary:
        studio = _Studio(model=model, folder=temporary, progress=progress)
        pictures = _pictures(studio, page)
        told: dict[str, Any] = {
            "pictures": [
                {"prompt": text, "read": _read(pixels)} for text, pixels in zip(PICTURES, pictures, strict=True)
            ],
            "answers": _answers(studio, page, pictures),
            "edits": _edits(studio, page, pictures),
            "films": _films(studio, page),
        }
        if rich is not None:
            told["emoji"] = _emoji(replace(studio, model=rich), page)
        write_json(temporary / _MARKER, told)
        (temporary / "index.html").write_text(page.html(), encoding="utf-8")
    return target / "index.html"


def _pictures(studio: _Studio, page: Page) -> list[np.ndarray]:
    made: list[Any] = studio.model.generate(list(PICTURES), size=(64, 64), seed=_SEED, progress=studio.progress)
    shown = []
    for number, (text, each) in enumerate(zip(PICTURES, made, strict=True), 1):
        each.save(studio.folder / f"picture-{number}.png")
        note = "never seen in training" if text == UNSEEN else ""
        shown.append(Picture(pixels=each.pixels, caption=text, verdict=_verdict(text, each.pixels), note=note))
    page.add("Pictures from text", 'rhea generate "a small red circle" --output picture.png', shown)
    return [each.pixels for each in made]


def _answers(studio: _Studio, page: Page, pictures: list[np.ndarray]) -> list[dict[str, str]]:
    told, shown = [], []
    for index, question in QUESTIONS:
        answer = studio.model.ask(pictures[index], question, seed=_SEED)
        told.append({"picture": f"picture-{index + 1}.png", "question": question, "answer": answer})
        shown.append(Picture(pixels=pictures[index], caption=question, answer=answer))
    page.add("Questions about pictures", 'rhea ask picture.png "How many objects are there?"', shown)
    return told


def _edits(studio: _Studio, page: Page, pictures: list[np.ndarray]) -> list[dict[str, Any]]:
    told, shown = [], []
    for number, (index, instruction) in enumerate(EDITS, 1):
        edited = studio.model.edit(pictures[index], instruction, seed=_SEED, progress=studio.progress)
        edited.save(studio.folder / f"edit-{number}.png")
        told.append({"picture": f"picture-{index + 1}.png", "instruction": instruction, "read": _read(edited.pixels)})
        shown += [
            Picture(pixels=pictures[index], caption="before"),
            Picture(pixels=edited.pixels, caption=instruction, answer=_listed(_read(edited.pixels))),
        ]
    page.add("Edits", 'rhea edit picture.png "make the square red" --output edited.png', shown)
    return told


def _films(studio: _Studio, page: Page) -> list[dict[str, Any]]:
    model = studio.model
    made: Any = model.generate(FILM, video=True, size=(64, 64), seed=_SEED, progress=studio.progress)[0]
    _save_film(studio.folder, "film", made)
    page.add(
        "A film from text",
        f'rhea generate "{FILM}" --output film.mp4',
        [Film(frames=made.frames, fps=made.fps, caption=FILM)],
    )
    truth = render_film(sample_film(np.random.default_rng(_FRESH), num_frames=model.defaults.num_frames, num_objects=2))
    given = model.defaults.given_frames
    first = PlainFilm(frames=truth[:given], fps=model.defaults.fps)
    longer = model.extend(first, seed=_SEED, progress=studio.progress)
    _save_film(studio.folder, "extended", longer)
    page.add(
        "A film goes on",
        "rhea extend first-frames.mp4 --output longer.mp4",
        [
            Film(frames=longer.frames, fps=longer.fps, caption="predicted", given=given),
            Film(frames=truth, fps=longer.fps, caption="what really happens", given=given),
        ],
    )
    return [
        {"prompt": FILM, "read": _read(made.frames[0])},
        {"given_frames": given, "frames": len(longer.frames), "read": _read(longer.frames[-1])},
    ]


def _emoji(studio: _Studio, page: Page) -> list[dict[str, str]]:
    """Draw emoji and ask the model what it sees in them."""
    made: list[Any] = studio.model.generate(list(EMOJI), size=(64, 64), seed=_SEED, progress=studio.progress)
    told, shown = [], []
    for number, (text, each) in enumerate(zip(EMOJI, made, strict=True), 1):
        each.save(studio.folder / f"emoji-{number}.png")
        name = studio.model.ask(each, NAMING["en" if text.isascii() else "zh"], seed=_SEED)
        told.append({"prompt": text, "named": name})
        shown.append(Picture(pixels=each.pixels, caption=text, answer=f"it calls this: {name}"))
    page.add("Emoji, by the package's second model", f'rhea generate "{EMOJI[0]}" --checkpoint rich', shown)
    return told


def _save_film(folder: Path, name: str, film: GeneratedFilm) -> None:
    for suffix in (".mp4", ".gif"):
        film.save(folder / f"{name}{suffix}")


def _read(pixels: np.ndarray) -> list[str]:
    """Return what the exact grader reads in a picture."""
    return [f"{kind.size} {kind.colour} {kind.shape}" for kind in (thing.kind for thing in read_picture(pixels))]


def _listed(names: list[str]) -> str:
    return "reads: " + (", ".join(names) or "nothing")


def _verdict(text: str, pixels: np.ndarray) -> str:
    """Say whether the picture shows exactly the objects of the prompt, in the relations that it states."""
    named = [Selector(*kind) for kind in read_caption(text)]
    relations = tuple(Relation(named[first], word, named[second]) for first, word, second in PICTURES[text])
    asked = Caption(text=text, objects=tuple(named), relations=relations)
    return "exactly as asked" if asked.satisfied_by(read_picture(pixels)) else _listed(_read(pixels))
