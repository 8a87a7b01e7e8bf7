"""Where a model runs."""

import platform
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

    Without, torch still computes them, four (AVX-512) to twenty times (AVX2) slower than in float32. oneDNN calls
    bfloat16 supported on every CPU with AVX-512, so it is asked on others only.
    """
    if device.type != "cpu":
        return True
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
