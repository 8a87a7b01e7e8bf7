"""Which devices compute bfloat16 fast."""

import platform
from pathlib import Path

import pytest
import torch

from rhea.models.device import fast_bfloat16

CPU_INFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(
    not CPU_INFO.is_file() or platform.machine() != "x86_64", reason="only Linux on x86 lists a CPU's instructions so"
)
def test_an_x86_cpu_is_fast_in_bfloat16_only_with_instructions_for_it():
    flags = next(line for line in CPU_INFO.read_text().splitlines() if line.startswith("flags")).split()
    assert fast_bfloat16(torch.device("cpu")) == ("avx512_bf16" in flags)


def test_a_gpu_is_fast_in_bfloat16():
    assert fast_bfloat16(torch.device("cuda"))
