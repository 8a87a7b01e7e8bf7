"""The compiled operators in this process, or none.

They share the threads of torch: its OpenMP library is found among what the process has loaded, and lends its parallel
regions and barriers, so that there is one pool and nothing to link against. Without one they run on one thread.
"""

import ctypes
import logging
import os
from ctypes import c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

from rhea.models.native.build import build

_RUNTIMES = ("libgomp", "libomp", "libiomp5")
_LENT = ("GOMP_parallel", "GOMP_barrier", "omp_get_thread_num", "omp_get_num_threads")


class MatrixStruct(ctypes.Structure):
    """``Matrix`` of the source."""

    _fields_ = (
        ("panels", c_void_p),
        ("inputs", c_int64),
        ("outputs", c_int64),
        ("bfloat16", c_int32),
        ("gated", c_int32),
    )


class LayerStruct(ctypes.Structure):
    """``Layer`` of the source."""

    _fields_ = (
        *((name, c_void_p) for name in ("inward", "outward", "gate", "down")),
        *((name, c_void_p) for name in ("attention_scale", "mlp_scale", "query_scale", "key_scale")),
        *((name, c_int64) for name in ("heads", "groups", "channels")),
        *((name, c_float) for name in ("attention_eps", "mlp_eps", "head_eps")),
    )


class BatchStruct(ctypes.Structure):
    """``Batch`` of the source."""

    _fields_ = (
        *((name, c_void_p) for name in ("cosines", "sines", "slots", "positions")),
        ("tokens", c_int64),
    )


def library() -> ctypes.CDLL | None:
    """Return the operators; None if they can't be had, or RHEA_NATIVE=0 forbids them."""
    return None if os.environ.get("RHEA_NATIVE") == "0" else _load()


@cache
def _load() -> ctypes.CDLL | None:
    path = build()
    if path is None:
        return None
    try:
        found = ctypes.CDLL(str(path))
    except OSError as error:
        logging.getLogger(__name__).info("no operators of our own, torch's serve: %s", error)
        return None
    found.rhea_setup.argtypes = [c_void_p] * len(_LENT)
    found.rhea_product.argtypes = [c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int32, c_int32]
    found.rhea_layers.argtypes = [c_void_p, c_int64, *([c_void_p] * 4), c_int64, c_int32]
    found.rhea_norm.argtypes = [c_void_p, c_void_p, c_float, c_void_p, c_int64, c_int64, c_int32]
    found.rhea_rotary.argtypes = [c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_void_p, c_int32]
    found.rhea_uniform.argtypes = [c_void_p, c_int64, c_void_p, c_int64, c_int32, c_void_p]
    found.rhea_panel_bytes.argtypes = [c_int64, c_int64, c_int32, c_int32]
    found.rhea_panel_bytes.restype = c_int64
    found.rhea_large_pages.argtypes = [c_void_p, c_int64]
    found.rhea_pack.argtypes = [c_void_p, c_void_p, c_int64, c_int64]
    for name in ("setup", "norm", "rotary", "uniform", "large_pages", "pack"):
        getattr(found, f"rhea_{name}").restype = None
    _share_threads(found)
    return found


def _share_threads(found: ctypes.CDLL) -> None:
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    loaded = {line.split(maxsplit=5)[5] for line in lines if "/" in line}
    for path in sorted(path for path in loaded if Path(path).name.startswith(_RUNTIMES)):
        runtime = ctypes.CDLL(path)
        if all(hasattr(runtime, name) for name in _LENT):
            found.rhea_setup(*(ctypes.cast(getattr(runtime, name), c_void_p) for name in _LENT))
            return
