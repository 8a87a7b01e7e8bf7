"""Continue: the model predicts the frames that follow a film; its frames are marked, in colour and in words."""

import contextlib
from collections.abc import AsyncGenerator

import gradio as gr
import numpy as np

from rhea.serving.backend import Done, Event, Extend, Partial, Sampling
from rhea.studio import show
from rhea.studio.desk import Desk
from rhea.studio.shelf import Piece, Shelf
from rhea.studio.texts import TEXTS, say
from rhea.studio.work import MENDABLE, told, work


def build(desk: Desk) -> None:
    """Add the tab."""
    wear, length = desk.wardrobe.wear, desk.backend.info.num_frames
    with wear(gr.Tab(id="continue", elem_id="tab-continue"), label="continue"):
        piece = gr.HTML(elem_id="continue-piece")
        caption = wear(gr.Textbox(elem_id="caption"), label="caption")
        with gr.Row():
            frames = wear(gr.Slider(1, 2 * length, value=max(length // 2, 1), step=1, elem_id="frames"), label="frames")
            seed = wear(gr.Number(value=0, precision=0, elem_id="continue-seed"), label="seed")
        with gr.Row():
            go_on = wear(gr.Button(variant="primary", elem_id="go-on"), value="go_on")
            stop = wear(gr.Button(elem_id="continue-stop"), value="stop")
        said = gr.HTML(elem_id="continue-status")
        board = gr.HTML(elem_id="continue-board")

    async def extend(
        caption: str, frames: int, seed: int | None, shelf: Shelf, language: str
    ) -> AsyncGenerator[tuple[str, str, str], None]:
        source = shelf.piece
        if source is None or not source.is_film:
            yield show.error(say(language, "needs_film")), "", shelf.html(language)
            return
        film, sampling = source.visual, Sampling(seed=int(seed or 0))
        assert not isinstance(film, np.ndarray)
        task = Extend(film=film, num_frames=int(frames), caption=caption.strip(), sampling=sampling)
        title, given, shown = say(language, "longer", title=source.title), len(source.pixels), ""
        yield show.status(say(language, "waiting")), "", shelf.html(language)
        try:
            async with contextlib.aclosing(work(desk.backend, [task])) as news:
                async for fresh in news:
                    event = fresh[0]
                    shown = _film(event, title, given, language)
                    if isinstance(event, Done) and event.pixels is not None:
                        shelf.put(Piece(pixels=event.pixels, fps=event.fps, title=title, task=task, done=event))
                    yield show.status(_progress(event, language)), shown, shelf.html(language)
        except MENDABLE as error:
            yield show.error(told(error, language)), shown, shelf.html(language)

    going = go_on.click(
        extend,
        [caption, frames, seed, desk.shelf, desk.language],
        [said, board, desk.shelf_board],
        show_progress="hidden",
        concurrency_limit=None,
    )
    stop.click(lambda: "", None, said, cancels=[going], queue=False)
    desk.follow(lambda shelf, language: [shelf.shown(language)], [piece])


def _film(event: Event, title: str, given: int, language: str) -> str:
    """Return the film so far: frame by frame, and moving once it is whole."""
    assert isinstance(event, Partial | Done)
    assert event.pixels is not None
    spoken = language == "zh"
    alts = TEXTS["given_frame"][spoken], TEXTS["model_frame"][spoken]
    names = say(language, "given"), say(language, "model")
    moving = ""
    if isinstance(event, Done):
        moving = show.row([show.figure(show.element(event.pixels, title, fps=event.fps), title)])
    return moving + show.strip(event.pixels, given, names, alts)


def _progress(event: Event, language: str) -> str:
    if isinstance(event, Partial):
        return say(language, "drawing", done=event.rows_done, rows=event.rows)
    assert isinstance(event, Done)
    return say(language, "drawn", tokens=event.new_tokens)
