"""Messages between the server and its engine's process: a JSON header, then the bytes of its arrays. No code.

A frame is the header's length in four bytes, the header, and the arrays one after the other. In the header a dataclass
is an object that names itself, an array its dtype and shape; only the classes and dtypes listed here are known.
"""

import asyncio
import dataclasses
import json
import math
from typing import Any

import numpy as np

from rhea.serving.backend import Answer, Clip, Done, Draw, Edit, Extend, ModelInfo, Partial, Sampling, TextDelta

MAX_HEADER = 2**26
MAX_ARRAY = 2**32
"""Bytes; both ends are ours, so these only tell a broken stream from a message."""
_CLASSES = {
    cls.__name__: cls for cls in (Answer, Clip, Done, Draw, Edit, Extend, ModelInfo, Partial, Sampling, TextDelta)
}
_DTYPES = {"uint8", "int64"}


class BrokenStreamError(RuntimeError):
    """What came is no message."""


def pack(message: dict[str, Any]) -> bytes:
    """Return a message as a frame. Tuples come out as such at the other end, and so do lists."""
    arrays: list[np.ndarray] = []
    header = json.dumps(_plain(message, arrays)).encode()
    return b"".join([len(header).to_bytes(4, "big"), header, *(array.tobytes() for array in arrays)])


async def receive(reader: asyncio.StreamReader) -> dict[str, Any]:
    """Return the next message; raise IncompleteReadError at the end of the stream, BrokenStreamError for nonsense."""
    length = int.from_bytes(await reader.readexactly(4), "big")
    if length > MAX_HEADER:
        raise BrokenStreamError(f"a header of {length} bytes")
    content = await reader.readexactly(length)
    try:
        header = json.loads(content)
        found: list[tuple[str, list[int]]] = []
        _find_arrays(header, found)
        arrays = [await _array(reader, dtype, shape) for dtype, shape in found]
        message = _live(header, iter(arrays))
    except (ValueError, TypeError, KeyError) as error:
        raise BrokenStreamError(f"no message: {error}") from None
    if not isinstance(message, dict):
        raise BrokenStreamError("a message is an object")
    return message


async def _array(reader: asyncio.StreamReader, dtype: str, shape: list[int]) -> np.ndarray:
    if dtype not in _DTYPES or math.prod(shape) * np.dtype(dtype).itemsize > MAX_ARRAY:
        raise ValueError(f"an array of {dtype} {shape}")
    content = await reader.readexactly(math.prod(shape) * np.dtype(dtype).itemsize)
    return np.frombuffer(bytearray(content), dtype).reshape(shape)


def _plain(value: Any, arrays: list[np.ndarray]) -> Any:
    if isinstance(value, np.ndarray):
        assert value.dtype.name in _DTYPES, value.dtype
        arrays.append(value)
        return {"array": value.dtype.name, "shape": list(value.shape)}
    if dataclasses.is_dataclass(value):
        fields = {field.name: _plain(getattr(value, field.name), arrays) for field in dataclasses.fields(value)}
        return {"is": type(value).__name__, **fields}
    if isinstance(value, dict):
        return {key: _plain(each, arrays) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each, arrays) for each in value]
    return value


def _find_arrays(value: Any, found: list[tuple[str, list[int]]]) -> None:
    """List the arrays of a header in the order in which they were written."""
    if isinstance(value, dict):
        if "array" in value:
            found.append((value["array"], value["shape"]))
        for each in value.values():
            _find_arrays(each, found)
    elif isinstance(value, list) and value and not isinstance(value[0], int):
        for each in value:
            _find_arrays(each, found)


def _live(value: Any, arrays: Any) -> Any:
    if isinstance(value, list):
        return tuple(_live(each, arrays) for each in value)
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return next(arrays)
    live = {key: _live(each, arrays) for key, each in value.items()}
    if (name := live.pop("is", None)) is None:
        return live
    return _CLASSES[name](**live)
