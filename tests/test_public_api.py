"""The public names are a list, they all exist, and importing the package loads nothing heavy."""

import subprocess
import sys

import pytest

import rhea


def test_the_list_of_public_names() -> None:
    assert rhea.__all__ == ["Film", "InputError", "Picture", "Rhea", "__version__", "load"]
    for name in rhea.__all__:
        assert getattr(rhea, name) is not None
        assert name in dir(rhea)


def test_methods_of_a_model() -> None:
    public = {name for name in vars(rhea.Rhea) if not name.startswith("_")}
    assert public == {"ask", "completer", "edit", "extend", "generate", "reconstruct", "results", "trained_on"}


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'paint'"):
        rhea.paint  # noqa: B018


def test_import_is_light() -> None:
    heavy = ("torch", "numpy", "av", "PIL", "transformers", "tyro", "rich")
    code = f"import sys, rhea; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
