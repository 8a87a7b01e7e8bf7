"""Look inside: a piece's tokens as a grid over it, how sure the model was, what looked at what, and every forward.

For debugging how text and picture are aligned: click a word, and see which patches looked at it when they were drawn,
or which ones it looked at in an answer; click a patch, and see which words it looked at. This tab asks the model
itself, so it is there only with one at hand.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import gradio as gr

from rhea.errors import InputError
from rhea.studio import insight, show
from rhea.studio.desk import Desk
from rhea.studio.grid import render, summary
from rhea.studio.insight import MEAN, WAYS, Look, Way, look_into
from rhea.studio.shelf import Shelf
from rhea.studio.texts import say
from rhea.studio.work import told

VIEWS = ("tokens", "entropy", "surprise", "forwards", "attention")

TOUCH = """
element.addEventListener('click', event => {
  const touched = event.target.closest('[data-place], [data-word], [data-latent]');
  if (touched) trigger('select', Object.fromEntries(['place', 'word', 'latent']
    .filter(name => name in touched.dataset).map(name => [name, Number(touched.dataset[name])])));
});
watch('value', () => {
  const kept = element.querySelector('[data-focus]');
  if (kept) kept.focus({preventScroll: true});
});
"""
"""Clicks tell Python what was touched, and what was touched keeps the focus."""


def build(desk: Desk) -> None:
    """Add the tab; nothing without a model."""
    if desk.model is None:
        return
    wear, model, config = desk.wardrobe.wear, desk.model, desk.model.completer.transformer.config
    with wear(gr.Tab(id="look", elem_id="tab-look"), label="look"):
        wear(gr.Markdown(), value="look_help")
        way = wear(gr.Radio(value="as_drawn", elem_id="way"), label="way", choices=_named(WAYS))
        words = wear(gr.Textbox(elem_id="look-words"), label="look_words", placeholder="look_words_example")
        open_up = wear(gr.Button(variant="primary", elem_id="look"), value="look_now")
        look = gr.State(Look())
        said = gr.HTML(elem_id="look-status")
        view = wear(gr.Radio(value="tokens", elem_id="view"), label="view", choices=_named(VIEWS))
        with gr.Row():
            layers, heads = _numbered(config.num_layers), _numbered(config.num_heads)
            layer = wear(gr.Dropdown(layers("en"), value=MEAN, elem_id="layer"), label="layer", choices=layers)
            head = wear(gr.Dropdown(heads("en"), value=MEAN, elem_id="head"), label="head", choices=heads)
        board = gr.HTML(elem_id="look-board", js_on_load=TOUCH)

    async def open_piece(look: Look, shelf: Shelf, way: Way, words: str, language: str) -> tuple[str, str]:
        look.insight, look.word, look.place, look.latent, look.touched = None, None, None, 0, ""
        if shelf.piece is None:
            return show.error(say(language, "needs_piece")), ""
        try:
            look.insight = await asyncio.to_thread(look_into, model, shelf.piece, way, words)
        except InputError as error:
            return show.error(told(error, language)), ""
        return show.status(summary(look, language)), render(look, language)

    async def touch(look: Look, language: str, event: gr.EventData) -> tuple[str, str, str]:
        await asyncio.to_thread(insight.touch, look, model, event._data)
        return look.view, show.status(summary(look, language)), render(look, language)

    def turn(look: Look, view: str, layer: int, head: int, language: str) -> tuple[str, str]:
        look.view, look.layer, look.head, look.touched = view, layer, head, ""
        return show.status(summary(look, language)), render(look, language)

    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None}
    asked = [look, desk.shelf, way, words, desk.language]
    gr.on([open_up.click, words.submit], open_piece, asked, [said, board], **quiet)
    board.select(touch, [look, desk.language], [view, said, board], **quiet)
    gr.on([view.input, layer.input, head.input], turn, [look, view, layer, head, desk.language], [said, board], **quiet)


def _named(values: tuple[str, ...]) -> Callable[[str], list[tuple[str, str]]]:
    """Return the choices among values that have texts, in a language."""
    return lambda language: [(say(language, value), value) for value in values]


def _numbered(count: int) -> Callable[[str], list[tuple[str, int]]]:
    """Return the choices among that many layers or heads, in a language."""
    return lambda language: [(say(language, "mean"), MEAN), *((str(number), number) for number in range(count))]
