"""Look inside: a picture's tokens as a grid over it, how sure the model was, what it looked at, what each forward gave.

For debugging how text and picture are aligned: click a word, and see which patches looked at it when they were drawn;
click a patch, and see which words it looked at. This tab asks the model itself, so it is there only with one at hand.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from typing import Any

import gradio as gr
import numpy as np

from rhea.errors import InputError
from rhea.generation import inspection
from rhea.generation.completion import Prompt
from rhea.generation.inspection import Commits, Inspection
from rhea.generation.model import Rhea
from rhea.serving.backend import Draw, Edit
from rhea.studio import show
from rhea.studio.desk import Desk
from rhea.studio.shelf import Piece, Shelf
from rhea.studio.texts import say
from rhea.studio.work import told

VIEWS = ("tokens", "entropy", "surprise", "forwards", "attention")
MEAN = -1
"""Stands for all layers or all heads."""

TOUCH = """
element.addEventListener('click', event => {
  const cell = event.target.closest('[data-place]'), word = event.target.closest('[data-word]');
  if (cell) trigger('select', {place: Number(cell.dataset.place)});
  if (word) trigger('select', {word: Number(word.dataset.word)});
});
element.addEventListener('keydown', event => {
  const cell = event.target.closest('[data-place]');
  if (!cell) return;
  const columns = Number(cell.parentElement.dataset.columns);
  const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns}[event.key];
  const next = step && element.querySelector(`[data-place="${Number(cell.dataset.place) + step}"]`);
  if (next) { event.preventDefault(); next.focus(); }
});
watch('value', () => {
  const kept = element.querySelector('[data-focus]');
  if (kept) kept.focus({preventScroll: true});
});
"""
"""Clicks tell Python what was touched; arrows walk over the grid, whose cells are buttons."""


@dataclass
class Look:
    """What is being looked at, in one visit; changed in place."""

    piece: Piece | None = None
    seen: Inspection | None = None
    commits: Commits | None = None
    view: str = "tokens"
    layer: int = MEAN
    head: int = MEAN
    word: int | None = None
    place: int | None = None
    maps: dict[str, tuple[np.ndarray, ...]] = field(default_factory=dict)
    """Attention of the touched word or place: [layers, heads, ...]."""

    def averaged(self, name: str, index: int = 0) -> np.ndarray:
        """Return one of the maps for the chosen layer and head, or their means."""
        weights = self.maps[name][index]
        layers = weights if self.layer == MEAN else weights[self.layer : self.layer + 1]
        heads = layers if self.head == MEAN else layers[:, self.head : self.head + 1]
        return heads.mean((0, 1))


def build(desk: Desk) -> None:
    """Add the tab; nothing without a model."""
    if desk.model is None:
        return
    wear, model, config = desk.wardrobe.wear, desk.model, desk.model.completer.transformer.config
    with wear(gr.Tab(id="look", elem_id="tab-look"), label="look"):
        wear(gr.Markdown(), value="look_help")
        open_up = wear(gr.Button(variant="primary", elem_id="look"), value="look_now")
        look = gr.State(Look())
        said = gr.HTML(elem_id="look-status")
        view = wear(
            gr.Radio(value="tokens", elem_id="view"),
            label="view",
            choices=lambda language: [(say(language, name), name) for name in VIEWS],
        )
        with gr.Row():
            layers, heads = _numbered(config.num_layers), _numbered(config.num_heads)
            layer = wear(gr.Dropdown(layers("en"), value=MEAN, elem_id="layer"), label="layer", choices=layers)
            head = wear(gr.Dropdown(heads("en"), value=MEAN, elem_id="head"), label="head", choices=heads)
        board = gr.HTML(elem_id="look-board", js_on_load=TOUCH)

    async def open_piece(look: Look, shelf: Shelf, language: str) -> tuple[str, str]:
        look.piece = look.seen = look.commits = look.word = look.place = None
        look.maps.clear()
        piece = shelf.piece
        if piece is None or piece.is_film or piece.done is None or not isinstance(piece.task, Draw | Edit):
            return show.error(say(language, "needs_drawn")), ""
        try:
            prompt = await asyncio.to_thread(prompt_of, model, piece)
            seen = await asyncio.to_thread(inspection.inspect, model.completer, prompt, piece.done.token_ids)
            look.commits = await asyncio.to_thread(inspection.commits, model.completer, prompt)
        except InputError as error:
            return show.error(told(error, language)), ""
        look.piece, look.seen = piece, seen
        return show.status(summary(look, language)), render(look, language)

    async def touch(look: Look, language: str, event: gr.EventData) -> tuple[Any, str, str]:
        touched, seen = event._data, look.seen
        if seen is None:
            return gr.skip(), "", ""
        transformer = model.completer.transformer
        look.word, look.place = None, None
        if "word" in touched and 0 <= int(touched["word"]) < len(seen.words):
            look.word = int(touched["word"])
            word = seen.words[look.word]
            look.maps["word"] = (await asyncio.to_thread(inspection.word_attention, transformer, seen, word),)
        elif "place" in touched and 0 <= int(touched["place"]) < seen.places.size:
            look.place = int(touched["place"])
            look.maps["place"] = await asyncio.to_thread(inspection.code_attention, transformer, seen, look.place)
        look.view = "attention"
        return "attention", show.status(summary(look, language)), render(look, language)

    def turn(look: Look, view: str, layer: int, head: int, language: str) -> tuple[str, str]:
        look.view, look.layer, look.head = view, layer, head
        return show.status(summary(look, language)) if look.seen else "", render(look, language)

    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None}
    open_up.click(open_piece, [look, desk.shelf, desk.language], [said, board], **quiet)
    board.select(touch, [look, desk.language], [view, said, board], **quiet)
    gr.on([view.input, layer.input, head.input], turn, [look, view, layer, head, desk.language], [said, board], **quiet)


def _numbered(count: int) -> Callable[[str], list[tuple[str, int]]]:
    """Return the choices among that many layers or heads, in a language."""
    return lambda language: [(say(language, "mean"), MEAN), *((str(number), number) for number in range(count))]


def prompt_of(model: Rhea, piece: Piece) -> Prompt:
    """Return the prompt that a picture was drawn from."""
    task = piece.task
    assert isinstance(task, Draw | Edit)
    sampling = task.sampling
    settings: dict[str, Any] = {
        "size": task.size,
        "guidance_scale": sampling.guidance_scale,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "negative_prompt": sampling.negative_prompt,
        "seed": sampling.seed,
        "sample_index": sampling.sample_index,
    }
    if isinstance(task, Draw):
        return model.prompts.draw(task.prompt, **settings)
    return model.prompts.edit(task.images, task.instruction, **settings)


def summary(look: Look, language: str) -> str:
    """Say in words what the picture shows in colours."""
    seen, commits = look.seen, look.commits
    assert seen is not None
    assert commits is not None
    if look.view == "attention" and look.word is not None:
        values = look.averaged("word")
        row, column = (int(x) + 1 for x in np.unravel_index(int(values.argmax()), values.shape))
        word = seen.words[look.word].text
        return say(language, "word_said", word=word, row=row, column=column, most=f"{100 * values.max():.1f}")
    if look.view == "attention" and look.place is not None:
        at_words, at_codes = look.averaged("place"), look.averaged("place", 1)
        row, column = (int(x) + 1 for x in np.unravel_index(look.place, seen.places.shape))
        return say(
            language,
            "place_said",
            row=row,
            column=column,
            words=f"{100 * at_words.sum():.0f}",
            codes=f"{100 * at_codes.sum():.0f}",
            rest=f"{100 * (1 - at_words.sum() - at_codes.sum()):.0f}",
        )
    if look.view == "attention":
        return say(language, "touch_first")
    entropy = seen.on_grid(seen.entropy)
    return say(
        language,
        "look_said",
        codes=entropy.size,
        bits=f"{entropy.mean():.2f}",
        log=f"{seen.log_probability.sum():.1f}",
        forwards=len(commits.codes),
        per_forward=f"{commits.codes.mean():.1f}",
    )


def render(look: Look, language: str) -> str:
    """Return the words, the picture with its grid, and what its colours mean."""
    seen, piece = look.seen, look.piece
    if seen is None or piece is None:
        return ""
    values, texts, legend = _layer_of(look, language)
    strength = values / values.max() if values.max() > 0 else np.zeros_like(values)
    rows, columns = seen.places.shape
    cells = "".join(
        _cell(look, place, float(strength.flat[place]), texts[place], language) for place in range(seen.places.size)
    )
    picture = show.element(piece.pixels, piece.title)
    grid = (
        f'<div class="rhea-grid" role="group" aria-label="{escape(say(language, "grid_alt"))}" '
        f'data-columns="{columns}" style="grid-template: repeat({rows}, 1fr) / repeat({columns}, 1fr)">{cells}</div>'
    )
    return (
        f'{_words(look, language)}<div class="rhea-look"><div class="rhea-over">{picture}{grid}</div></div>'
        f'<p class="rhea-note">{escape(legend)}</p>{_forwards(look, language) if look.view == "forwards" else ""}'
    )


def _layer_of(look: Look, language: str) -> tuple[np.ndarray, list[str], str]:
    """Return the values that colour the grid, what is written in its cells, and the legend."""
    seen, commits = look.seen, look.commits
    assert seen is not None
    assert commits is not None
    if look.view == "entropy":
        values = seen.on_grid(seen.entropy)
        return values, [f"{x:.1f}" for x in values.flat], say(language, "entropy_legend", most=f"{values.max():.1f}")
    if look.view == "surprise":
        values = -seen.on_grid(seen.log_probability) / np.log(2)
        values = np.nan_to_num(values, posinf=0.0)
        return values, [f"{x:.1f}" for x in values.flat], say(language, "surprise_legend", most=f"{values.max():.1f}")
    if look.view == "forwards":
        values = commits.codes[commits.forward].astype(float)
        numbers = [str(number + 1) for number in commits.forward.flat]
        return values, numbers, say(language, "forwards_legend", most=int(commits.codes.max()))
    if look.view == "attention" and (look.word is not None or look.place is not None):
        values = look.averaged("word") if look.word is not None else look.averaged("place", 1)
        texts = [f"{100 * x:.0f}" for x in values.flat]
        return values, texts, say(language, "attention_legend", most=f"{100 * values.max():.1f}")
    blank = np.zeros(seen.places.shape)
    if look.view == "attention":
        return blank, [""] * blank.size, say(language, "touch_first")
    codes = [str(code) for code in _codes(look).flat]
    return blank, codes, say(language, "tokens_legend")


def _codes(look: Look) -> np.ndarray:
    assert look.piece is not None
    assert look.piece.done is not None
    assert look.piece.done.codes is not None
    return look.piece.done.codes


def _cell(look: Look, place: int, strength: float, text: str, language: str) -> str:
    """Return one token's button: coloured, labelled with all that is known about it."""
    seen, commits = look.seen, look.commits
    assert seen is not None
    assert commits is not None
    row, column = divmod(place, seen.places.shape[1])
    label = say(
        language,
        "cell_alt",
        row=row + 1,
        column=column + 1,
        code=_codes(look).flat[place],
        bits=f"{seen.on_grid(seen.entropy).flat[place]:.1f}",
        forward=commits.forward.flat[place] + 1,
    )
    chosen = place == look.place
    marks = f' aria-pressed="{"true" if chosen else "false"}"{" data-focus" if chosen else ""}'
    reachable = place == (look.place or 0)
    return (
        f'<button type="button" data-place="{place}" tabindex="{0 if reachable else -1}" title="{escape(label)}" '
        f'aria-label="{escape(label)}"{marks} style="background: rgb(255 96 0 / {0.8 * strength:.3f})">'
        f"<span>{escape(text)}</span></button>"
    )


def _words(look: Look, language: str) -> str:
    """Return the words of the prompt as buttons; where a patch was touched, with how much it looked at each."""
    seen = look.seen
    assert seen is not None
    weights = look.averaged("place") if look.view == "attention" and look.place is not None else None
    buttons = []
    for number, word in enumerate(seen.words):
        chosen = number == look.word
        weight = 0.0 if weights is None else float(weights[number])
        strength = 0.0 if weights is None else weight / max(float(weights.max()), 1e-9)
        told = "" if weights is None else f" <small>{100 * weight:.1f} %</small>"
        buttons.append(
            f'<button type="button" data-word="{number}" aria-pressed="{"true" if chosen else "false"}"'
            f'{" data-focus" if chosen else ""} style="background: rgb(255 96 0 / {0.8 * strength:.3f})">'
            f"{escape(word.text)}{told}</button>"
        )
    return (
        f'<div class="rhea-words" role="group" aria-label="{escape(say(language, "words"))}">{"".join(buttons)}</div>'
    )


def _forwards(look: Look, language: str) -> str:
    """Return bars: how many codes each forward gave."""
    assert look.commits is not None
    most = int(look.commits.codes.max())
    bars = "".join(f'<i style="height: {100 * count / most:.0f}%" title="{count}"></i>' for count in look.commits.codes)
    told = ", ".join(map(str, look.commits.codes))
    alt = escape(say(language, "bars_alt", counts=told))
    return f'<div class="rhea-bars" role="img" aria-label="{alt}">{bars}</div>'
