"""The page: a language, a shelf and the tabs, as Gradio blocks that any FastAPI app can carry at ``/``.

Everything comes from this machine: system fonts, no analytics, pictures inside the page as data.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from rhea.serving.backend import Backend
from rhea.serving.errors import ApiError
from rhea.serving.untrusted import MediaGuard
from rhea.studio import ask, compare, create, edit, extend, gate, look, show
from rhea.studio.desk import Desk
from rhea.studio.shelf import PICK, Shelf, read_upload
from rhea.studio.store import Store
from rhea.studio.texts import LANGUAGES, TEXTS, Wardrobe, preferred, say

if TYPE_CHECKING:
    from fastapi import FastAPI

    from rhea.generation.model import Rhea

MAX_UPLOAD = "32mb"
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", "sans-serif")
MONOSPACE = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
_LEFTOVERS = (600, 3600)
"""How often uploads and exports are looked through, and how old those are that are removed, in seconds."""


def create_studio(
    backend: Backend, model: "Rhea | None" = None, store: Store | None = None, guard: MediaGuard | None = None
) -> gr.Blocks:
    """Build the page over a model's backend.

    ``model`` is for looking inside, ``store`` for comparing; without them these tabs are not there. ``guard`` decodes
    uploads.
    """
    wardrobe = Wardrobe()
    with gr.Blocks(title="Rhea", analytics_enabled=False, delete_cache=_LEFTOVERS) as blocks:
        with gr.Row():
            gr.Markdown("# Rhea")
            language = wardrobe.wear(gr.Radio(LANGUAGES, value="en", elem_id="language"), label="language")
        wardrobe.wear(gr.Markdown(), value=lambda spoken: _about(backend, spoken))
        shelf = gr.State(Shelf())
        shelf_board = gr.HTML(Shelf().html("en"), elem_id="shelf", js_on_load=PICK)
        with gr.Row():
            upload = wardrobe.wear(gr.UploadButton(elem_id="upload", size="sm"), label="upload")
            said = gr.HTML(elem_id="shelf-status")
        desk = Desk(
            backend=backend,
            model=model,
            store=store,
            wardrobe=wardrobe,
            language=language,
            shelf=shelf,
            shelf_board=shelf_board,
        )
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap"):
            for tab in (create, ask, edit, extend, look, compare):
                tab.build(desk)
        decoder = guard or MediaGuard()

        async def take(path: str, shelf: Shelf, language: str) -> tuple[str, str]:
            name = Path(path).name
            try:
                shelf.put(await read_upload(decoder, path, name))
            except ApiError as error:
                reason = say(language, error.code) if error.code in TEXTS else error.message
                return show.error(say(language, "refused", name=name, reason=reason)), shelf.html(language)
            return show.status(say(language, "uploaded", name=name)), shelf.html(language)

        upload.upload(take, [upload, shelf, language], [said, shelf_board], show_progress="hidden")
        shelf_board.select(_pick, [shelf, language], [shelf_board], show_progress="hidden")
        _speak(blocks, desk)
    return blocks


def mount(app: "FastAPI", blocks: gr.Blocks) -> "FastAPI":
    """Let an app carry the page at ``/``; its own routes must be there already, and who may come in is its business."""
    gate.shut(blocks)
    gate.keep(app, "/v1/")
    app.add_middleware(gate.Gate)
    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        theme=gr.themes.Default(font=FONTS, font_mono=MONOSPACE),
        css=show.STYLE,
        js=show.KEYS,
        max_file_size=MAX_UPLOAD,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
    )


def _about(backend: Backend, language: str) -> str:
    info = backend.info
    return say(language, "about", name=info.name, trained_on=info.trained_on)


def _pick(shelf: Shelf, language: str, event: gr.EventData) -> str:
    shelf.choose(int(event.pick))
    return shelf.html(language)


def _speak(blocks: gr.Blocks, desk: Desk) -> None:
    """Let the page change its language: by the switch, and once by what the browser asks for."""
    outputs = [desk.shelf_board, *desk.following, *desk.wardrobe.components]

    def change(language: str, shelf: Shelf) -> list[Any]:
        return [shelf.html(language), *desk.followed(shelf, language), *desk.wardrobe.updates(language)]

    def propose(request: gr.Request, shelf: Shelf) -> list[Any]:
        language = preferred(request.headers.get("accept-language", ""))
        return [language, *change(language, shelf)]

    quiet: dict[str, Any] = {"show_progress": "hidden", "queue": False}
    desk.language.input(change, [desk.language, desk.shelf], outputs, **quiet)
    blocks.load(propose, [desk.shelf], [desk.language, *outputs], **quiet)
    desk.shelf_board.change(desk.followed, [desk.shelf, desk.language], desk.following, **quiet)
