"""Types of arguments, checked at the door: a wrong one is one clear line instead of a TypeError from deep inside.

The annotations of a method are the only list of what is allowed. Pictures and films are judged where they are read.
"""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

from rhea.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")

_KINDS: dict[Any, Any] = {str: str, int: Integral, float: Real, bool: bool, types.NoneType: types.NoneType}
_NAMES = {str: ("text", "texts"), int: ("a whole number", "whole numbers"), float: ("a number", "numbers")}


def checked(method: Callable[P, T]) -> Callable[P, T]:
    """Let a method raise InputError for an argument that is annotated as text, number or a list of them and is none.

    NumPy's whole numbers become Python's, which do not overflow.
    """
    signature, hints = inspect.signature(method), typing.get_type_hints(method)

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        given = signature.bind(*args, **kwargs)
        for name, value in given.arguments.items():
            if not _fits(value, hints.get(name, Any)):
                told = " ".join(repr(value).split())[:80]
                raise InputError(f"{name} is {told}; it must be {' or '.join(_named(hints[name]))}")
            if isinstance(value, Integral) and not isinstance(value, bool):
                given.arguments[name] = int(value)
        return method(*given.args, **given.kwargs)

    return call


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Sequence:
        return isinstance(value, Sequence) and not isinstance(value, str) and all(_fits(v, parts[0]) for v in value)
    return hint not in _KINDS or isinstance(value, _KINDS[hint])


def _named(hint: Any) -> list[str]:
    """Return what fits, in words, None left out."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return [words for part in parts for words in _named(part)]
    if origin is Sequence:
        return [f"a list of {_NAMES[parts[0]][1]}"]
    return [] if hint is types.NoneType else ["True or False" if hint is bool else _NAMES[hint][0]]
