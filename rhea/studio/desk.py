"""What every tab is given: the model's doors, the store, the language and the shelf."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gradio as gr

from rhea.serving.backend import Backend
from rhea.studio.shelf import Shelf
from rhea.studio.store import Store
from rhea.studio.texts import Wardrobe

if TYPE_CHECKING:
    from rhea.generation.model import Rhea

USUAL_GUIDANCE = 3.0
"""Emu3's choice."""
Follower = Callable[[Shelf, str], list[Any]]
"""Returns new values of some components, given the shelf and the language."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Desk:
    """Shared by the tabs while the page is built."""

    backend: Backend
    model: "Rhea | None"
    """For looking inside; None if the model is elsewhere."""
    store: Store | None
    """For judgements; None if they are not wanted."""
    wardrobe: Wardrobe
    language: gr.Radio
    shelf: gr.State
    shelf_board: gr.HTML
    _followers: list[tuple[Follower, list[Any]]] = field(default_factory=list)

    def guidance(self, kind: str = "picture") -> float:
        """The guidance scale that controls begin with, for a "picture" or a "film"."""
        if self.model is None:
            return USUAL_GUIDANCE
        defaults = self.model.defaults
        return defaults.film_guidance_scale if kind == "film" else defaults.guidance_scale

    def follow(self, follower: Follower, outputs: Sequence[Any]) -> None:
        """Give components new values whenever another piece is taken, or the language changes."""
        self._followers.append((follower, list(outputs)))

    @property
    def following(self) -> list[Any]:
        """All components that follow."""
        return [component for _, outputs in self._followers for component in outputs]

    def followed(self, shelf: Shelf, language: str) -> list[Any]:
        """Return their values."""
        return [value for follower, _ in self._followers for value in follower(shelf, language)]
