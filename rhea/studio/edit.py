"""Edit: an instruction changes the picture that was taken from the shelf; before and after stand side by side."""

import contextlib
from collections.abc import AsyncGenerator

import gradio as gr

from rhea.serving.backend import Edit, Sampling
from rhea.studio import show
from rhea.studio.create import draw_on_board
from rhea.studio.desk import Desk
from rhea.studio.shelf import Shelf
from rhea.studio.texts import say


def build(desk: Desk) -> None:
    """Add the tab."""
    wear = desk.wardrobe.wear
    with wear(gr.Tab(id="edit", elem_id="tab-edit"), label="edit"):
        piece = gr.HTML(elem_id="edit-piece")
        instruction = wear(gr.Textbox(elem_id="instruction"), label="instruction", placeholder="instruction_example")
        seed = wear(gr.Number(value=0, precision=0, elem_id="edit-seed"), label="seed")
        with gr.Row():
            change = wear(gr.Button(variant="primary", elem_id="change"), value="change")
            stop = wear(gr.Button(elem_id="edit-stop"), value="stop")
        said = gr.HTML(elem_id="edit-status")
        board = gr.HTML(elem_id="edit-board")

    async def edit(
        asked: str, seed: int | None, shelf: Shelf, language: str
    ) -> AsyncGenerator[tuple[str, str, str], None]:
        source = shelf.piece
        if source is None or source.is_film or not asked.strip():
            missing = "needs_instruction" if source is not None and not source.is_film else "needs_picture"
            yield show.error(say(language, missing)), "", shelf.html(language)
            return
        task = Edit(images=(source.pixels,), instruction=asked, sampling=Sampling(seed=int(seed or 0)))
        before = show.figure(show.element(source.pixels, source.title), source.title, say(language, "before"))
        async with contextlib.aclosing(draw_on_board(desk, [task], asked, shelf, language)) as shown:
            async for message, figures in shown:
                yield message, show.row([before, *figures]), shelf.html(language)

    going = gr.on(
        [change.click, instruction.submit],
        edit,
        [instruction, seed, desk.shelf, desk.language],
        [said, board, desk.shelf_board],
        show_progress="hidden",
        concurrency_limit=None,
    )
    stop.click(lambda: "", None, said, cancels=[going], queue=False)
    desk.follow(lambda shelf, language: [shelf.shown(language)], [piece])
