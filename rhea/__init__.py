"""Rhea: native multimodal next-token prediction.

    import rhea

    model = rhea.load()
    model.generate("a small red circle and a large blue square")[0].save("picture.png")

``import rhea`` is light: torch is only loaded with the first use of anything below.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rhea.errors import InputError

if TYPE_CHECKING:
    from rhea.generation.loading import load_model as load
    from rhea.generation.model import Rhea
    from rhea.generation.results import Film, Picture

__version__ = "0.1.0"
__all__ = ["Film", "InputError", "Picture", "Rhea", "__version__", "load"]

_LAZY = {
    "Film": ("rhea.generation.results", "Film"),
    "Picture": ("rhea.generation.results", "Picture"),
    "Rhea": ("rhea.generation.model", "Rhea"),
    "load": ("rhea.generation.loading", "load_model"),
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module 'rhea' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
