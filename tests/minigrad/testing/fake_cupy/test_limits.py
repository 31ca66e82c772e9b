"""A launch is refused where a GPU has too few registers or too little shared memory for a block."""
from __future__ import annotations

import numpy as np
import pytest
from cuda_cases import FLOAT
from device import needs_compiler

from minigrad.backend.cupy import source
from minigrad.testing.fake_cupy import cuda, limits


@pytest.mark.parametrize(("registers", "warps"), [(255, 2), (168, 3), (128, 4), (129, 3), (64, 8), (32, 16), (24, 21)])
def test_the_registers_of_a_part_of_a_multiprocessor(registers: int, warps: int):
    """A warp takes registers in steps of 256, eight for each thread: the warps of a part are those of NVIDIA's occupancy tables."""
    assert limits.warps_at_a_time(registers) == warps


@needs_compiler
def test_what_no_gpu_starts_is_refused(monkeypatch: pytest.MonkeyPatch):
    """By what NVRTC says of the kernel: 16 warps of 128 registers are four to a part, and 17 are too many; static memory counts too."""
    module, x = cuda.Module(source("kernels.cu"), FLOAT), np.ones(4, np.float32)
    gelu = module.get_function("gelu")
    monkeypatch.setattr(cuda, "UNBOUNDED", 1024)
    monkeypatch.setitem(limits.figures()[" ".join(FLOAT)], "gelu", [128, 100])
    gelu((1,), (512,), (x, None, x, 4, 1), shared_mem=(48 << 10) - 100)
    with pytest.raises(RuntimeError, match="gelu: too many resources requested for launch: a block of 544 threads of 128 registers each"):
        gelu((1,), (544,), (x, None, x, 4, 1))
    with pytest.raises(RuntimeError, match="49,153 bytes of shared memory, where a block has 49,152"):
        gelu((1,), (32,), (x, None, x, 4, 1), shared_mem=(48 << 10) - 99)
