"""Frozen keyword-only dataclasses to plain JSON values and back, strictly.

Every run and checkpoint folder holds a ``config.json``. Reading one back never guesses: an unknown key, a missing key
or a value of the wrong type is an error that names the path to it (``transformer.num_layers``).
"""

import dataclasses
import types
import typing
from typing import Any, Literal, TypeVar, Union

from rhea.errors import InputError

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """Return the config as nested dicts, lists and scalars that JSON can hold."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def flat(nested: dict[str, Any]) -> dict[str, Any]:
    """Return nested dicts as one, its keys joined by dots, as options are written on the command line."""
    found: dict[str, Any] = {}
    for name, value in nested.items():
        inner = flat(value) if isinstance(value, dict) else {"": value}
        found |= {f"{name}.{key}".rstrip("."): each for key, each in inner.items()}
    return found


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def from_dict(cls: type[T], data: dict[str, Any], path: str = "config") -> T:
    """Build ``cls`` from plain values; raise InputError for unknown or missing keys and for wrong types."""
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected an object, got {data!r}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise InputError(f"{path}: unknown keys {unknown}; known are {sorted(fields)}")
    missing = sorted(
        name
        for name, field in fields.items()
        if name not in data and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    )
    if missing:
        raise InputError(f"{path}: missing keys {missing}")
    values = {name: _typed(hints[name], value, f"{path}.{name}") for name, value in data.items()}
    try:
        return cls(**values)
    except (ValueError, ArithmeticError) as error:  # what the class itself refuses, or cannot compute with
        raise InputError(f"{path}: {error}") from None


def _typed(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, path)
    if origin in (Union, types.UnionType):
        return _first_fitting(arguments, value, path)
    if origin is Literal:
        if not any(type(value) is type(allowed) and value == allowed for allowed in arguments):  # True == 1 in Python
            raise InputError(f"{path}: {value!r} is not one of {list(arguments)}")
        return value
    if origin in (tuple, list):
        return _sequence(origin, arguments, value, path)
    if origin is dict:
        if not isinstance(value, dict):
            raise InputError(f"{path}: expected an object, got {value!r}")
        return {key: _typed(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    return _scalar(hint, value, path)


def _first_fitting(options: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in options:
        return None
    errors = []
    for option in options:
        if option is type(None):
            continue
        try:
            return _typed(option, value, path)
        except InputError as error:
            errors.append(str(error))
    raise InputError("; ".join(errors) or f"{path}: {value!r} does not fit")


def _sequence(origin: type, arguments: tuple[Any, ...], value: Any, path: str) -> Any:
    if not isinstance(value, list | tuple):
        raise InputError(f"{path}: expected a list, got {value!r}")
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise InputError(f"{path}: expected {len(arguments)} values, got {value!r}")
        return tuple(
            _typed(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(zip(arguments, value, strict=True))
        )
    return origin(_typed(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))


def _scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool):
        if type(value) is not hint:
            raise InputError(f"{path}: expected {hint.__name__}, got {value!r}")
        return value
    raise InputError(f"{path}: a field of type {hint} cannot be read from JSON")
