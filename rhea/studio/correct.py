"""Correct by hand: what a piece really shows, or how a question should have been answered, and who says so.

It stands under the chat, because that is where people see that the model is wrong. What is kept becomes training data
by ``export.Corrections``.
"""

from typing import Any

import gradio as gr

from rhea.errors import InputError
from rhea.studio import show
from rhea.studio.desk import Desk
from rhea.studio.shelf import Shelf
from rhea.studio.store import Store
from rhea.studio.texts import say
from rhea.studio.work import told

CAPTION = -1
"""Stands for what the piece shows; answers are numbered from 0."""


def build(desk: Desk, *changes: Any) -> None:
    """Add the form, which is filled in anew after events that change the chat; nothing without a store."""
    store = desk.store
    if store is None:
        return
    wear, model = desk.wardrobe.wear, desk.backend.info.name
    with wear(gr.Accordion(open=False, elem_id="correct"), label="correct"):
        wear(gr.Markdown(), value="correct_help")
        which = wear(gr.Dropdown([], elem_id="correct-what"), label="correct_what")
        right = wear(gr.Textbox(elem_id="right"), label="right")
        annotator = wear(gr.Textbox(elem_id="corrector"), label="annotator")
        button = wear(gr.Button(elem_id="keep-correction"), value="keep_correction")
        said = gr.HTML(elem_id="correct-status")

    def anew(shelf: Shelf, language: str) -> list[Any]:
        found = choices(shelf, language)
        last = found[-1][1] if found else None
        return [gr.update(choices=found, value=last), original(shelf, last), ""]

    def keep(which: int | None, text: str, name: str, shelf: Shelf, language: str) -> str:
        try:
            keep_correction(store, shelf, which, text, name, model, language)
        except InputError as error:
            return show.error(told(error, language))
        counts = store.counts()
        return show.status(say(language, "corrected", captions=counts["captions"], answers=counts["answers"]))

    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None}
    desk.follow(anew, [which, right, said])
    for change in changes:
        change.then(anew, [desk.shelf, desk.language], [which, right, said], **quiet)
    which.input(lambda which, shelf: original(shelf, which), [which, desk.shelf], [right], **quiet)
    button.click(keep, [which, right, annotator, desk.shelf, desk.language], [said], **quiet)


def choices(shelf: Shelf, language: str) -> list[tuple[str, int]]:
    """Return what can be corrected: the piece's caption, and every answer of its chat."""
    caption = [] if shelf.piece is None else [(say(language, "its_caption"), CAPTION)]
    turns = shelf.chats.get(shelf.chosen, [])
    return caption + [(f"{question} → {answer}", number) for number, (question, answer) in enumerate(turns)]


def original(shelf: Shelf, which: int | None) -> str:
    """Return what a choice says now."""
    turns = shelf.chats.get(shelf.chosen, [])
    if which is not None and 0 <= which < len(turns):
        return turns[which][1]
    return shelf.piece.text if which == CAPTION and shelf.piece is not None else ""


def keep_correction(
    store: Store, shelf: Shelf, which: int | None, text: str, annotator: str, model: str, language: str
) -> None:
    """Keep what should have been said about the piece that is taken; InputError for what is missing."""
    piece, turns = shelf.piece, shelf.chats.get(shelf.chosen, [])
    if which not in [number for _, number in choices(shelf, language)]:
        raise InputError(say(language, "nothing_to_correct"))
    if not text.strip():
        raise InputError(say(language, "needs_right"))
    if not annotator.strip():
        raise InputError(say(language, "needs_annotator"))
    assert which is not None
    sample = None if piece is None else store.keep(piece.sample(model))
    if which == CAPTION:
        assert sample is not None
        store.correct(sample, annotator, text)
    else:
        store.correct_answer(sample, annotator, turns[: which + 1], text)
