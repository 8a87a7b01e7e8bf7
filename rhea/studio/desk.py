"""What every tab is given: the model's doors, the store, the language and the shelf."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import gradio as gr

from rhea.serving.backend import Backend
from rhea.studio.texts import Wardrobe

if TYPE_CHECKING:
    from rhea.generation.model import Rhea


@dataclass(frozen=True, kw_only=True, eq=False)
class Desk:
    """Shared by the tabs while the page is built."""

    backend: Backend
    model: "Rhea | None"
    """For looking inside; None if the model is elsewhere."""
    wardrobe: Wardrobe
    language: gr.Radio
    shelf: gr.State
    shelf_board: gr.HTML
