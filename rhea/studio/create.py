"""Create: a text becomes pictures that appear row by row while their tokens are predicted, or a film."""

import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

import gradio as gr

from rhea.serving.backend import Done, Draw, Edit, Event, Partial, Sampling
from rhea.studio import show
from rhea.studio.desk import Desk
from rhea.studio.shelf import Piece, Shelf
from rhea.studio.texts import say
from rhea.studio.work import MENDABLE, told, work

RATIOS = ("1:1", "4:3", "3:4", "16:9", "9:16")
MOST = 8
"""Pictures of one order."""


def build(desk: Desk) -> None:
    """Add the tab."""
    wear, info = desk.wardrobe.wear, desk.backend.info
    with wear(gr.Tab(id="create", elem_id="tab-create"), label="create"):
        prompt = wear(gr.Textbox(lines=2, elem_id="prompt"), label="prompt", placeholder="prompt_example")
        with gr.Row():
            kind = wear(
                gr.Radio(value="picture", elem_id="kind"),
                label="kind",
                choices=lambda language: [(say(language, name), name) for name in ("picture", "film")],
            )
            number = wear(gr.Slider(1, MOST, value=1, step=1, elem_id="number"), label="number")
            seed = wear(gr.Number(value=0, precision=0, elem_id="seed"), label="seed")
        with wear(gr.Accordion(open=False), label="more"):
            sizes = (f"{info.width}x{info.height}", *RATIOS)
            size = wear(gr.Dropdown(sizes, value=sizes[0], allow_custom_value=True, elem_id="size"), label="size")
            guidance = wear(gr.Slider(0, 10, value=desk.guidance(), step=0.5, elem_id="guidance"), label="guidance")
            best_of = wear(gr.Slider(1, MOST, value=1, step=1, elem_id="best-of"), label="best_of")
            negative = wear(gr.Textbox(elem_id="negative"), label="negative")
        with gr.Row():
            draw = wear(gr.Button(variant="primary", elem_id="draw"), value="draw")
            stop = wear(gr.Button(elem_id="stop"), value="stop")
        said = gr.HTML(elem_id="create-status")
        board = gr.HTML(elem_id="create-board")

    async def create(
        text: str,
        kind: str,
        number: int,
        seed: int | None,
        size: str,
        guidance: float,
        best_of: int,
        negative: str,
        shelf: Shelf,
        language: str,
    ) -> AsyncGenerator[tuple[str, str, str], None]:
        if not text.strip():
            yield show.error(say(language, "needs_prompt")), "", shelf.html(language)
            return
        sampling = Sampling(guidance_scale=guidance, negative_prompt=negative or None, seed=int(seed or 0))
        tasks = drawings(text, kind == "film", int(number), size, int(best_of), sampling, desk)
        async with contextlib.aclosing(draw_on_board(desk, tasks, text, shelf, language)) as shown:
            async for message, figures in shown:
                yield message, show.row(figures), shelf.html(language)

    inputs = [prompt, kind, number, seed, size, guidance, best_of, negative, desk.shelf, desk.language]
    outputs = [said, board, desk.shelf_board]
    going = gr.on([draw.click, prompt.submit], create, inputs, outputs, show_progress="hidden", concurrency_limit=None)
    stop.click(lambda: "", None, said, cancels=[going], queue=False)
    kind.input(desk.guidance, kind, guidance, show_progress="hidden", queue=False)


def drawings(text: str, film: bool, number: int, size: str, best_of: int, sampling: Sampling, desk: Desk) -> list[Draw]:
    """Return the tasks of one order; they differ by their sample's index. Films are drawn once each."""
    order = Draw(
        prompt=text,
        size=size or None,
        num_frames=desk.backend.info.num_frames if film else None,
        best_of=1 if film else best_of,
    )
    return [replace(order, sampling=replace(sampling, sample_index=index)) for index in range(number)]


async def draw_on_board(
    desk: Desk, tasks: Sequence[Draw | Edit], title: str, shelf: Shelf, language: str
) -> AsyncGenerator[tuple[str, list[str]], None]:
    """Draw pictures or films; yield a message and the figures so far, and put what is done on the shelf."""
    seen: dict[int, Event] = {}
    figures: dict[int, str] = {}
    yield show.status(say(language, "waiting")), []
    try:
        async with contextlib.aclosing(work(desk.backend, tasks)) as news:
            async for fresh in news:
                seen |= fresh
                for number, event in fresh.items():
                    figures[number] = _figure(event, title, language)
                    if isinstance(event, Done) and event.pixels is not None:
                        task = _alone(tasks[number], event)
                        shelf.put(Piece(pixels=event.pixels, fps=event.fps, title=title, task=task, done=event))
                yield show.status(_progress(list(seen.values()), language)), _in_order(figures)
    except MENDABLE as error:
        yield show.error(told(error, language)), _in_order(figures)


def _alone(task: Draw | Edit, done: Done) -> Draw | Edit:
    """Return the task that draws the same picture at once: from the words that it was drawn from, without others."""
    if isinstance(task, Edit):
        return task
    number = task.sampling.sample_index if done.sample_index is None else done.sample_index
    prompt, sampling = done.revised_prompt or task.prompt, replace(task.sampling, sample_index=number)
    return replace(task, prompt=prompt, revise=False, best_of=1, sampling=sampling)


def _in_order(figures: dict[int, str]) -> list[str]:
    return [figures[number] for number in sorted(figures)]


def _figure(event: Event, title: str, language: str) -> str:
    if isinstance(event, Partial):
        alt = say(language, "partial_alt", title=title, done=event.rows_done, rows=event.rows)
        return show.figure(show.element(event.pixels, alt, quick=True), title, f"{event.rows_done} / {event.rows}")
    assert isinstance(event, Done)
    assert event.pixels is not None
    note = say(language, "drawn", tokens=event.new_tokens)
    if event.revised_prompt is not None:
        note += say(language, "revised", prompt=event.revised_prompt)
    return show.figure(show.element(event.pixels, title, fps=event.fps), title, note)


def _progress(events: list[Event], language: str) -> str:
    """Say how far all are, as rows of the slowest, or that they are done."""
    behind = [event for event in events if isinstance(event, Partial)]
    if not behind:
        return say(language, "drawn", tokens=sum(event.new_tokens for event in events if isinstance(event, Done)))
    slowest = min(behind, key=lambda event: event.rows_done / event.rows)
    return say(language, "drawing", done=slowest.rows_done, rows=slowest.rows)
