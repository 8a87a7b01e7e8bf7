"""Where a model runs."""

import re

import torch

from rhea.errors import InputError


def choose_device(name: str | torch.device | None) -> torch.device:
    """Return the device of that name, or by default the GPU if there is one; InputError if it cannot be used."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = re.fullmatch(r"cpu|cuda|mps|cuda:\d{1,3}", str(name))
    if known is None:
        raise InputError(f"device {str(name)!r} is not one of cpu, cuda, cuda:N and mps")
    if known[0].startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {str(name)!r} is not available: torch finds no CUDA GPU here; use cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {str(name)!r} cannot be used: {str(error).splitlines()[0]}") from None
    return torch.device(name)


def fast_bfloat16(device: torch.device) -> bool:
    """Tell whether products in bfloat16 are faster than in float32: on a CPU only if it has instructions for them.

    Without, torch still computes them, twenty times slower than in float32.
    """
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
