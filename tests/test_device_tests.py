"""The tests marked `device` compare on a GPU, where launches alone are counted, the numbers that they compare on the fake CuPy."""
from __future__ import annotations

import os
import subprocess
import sys

import device
import numpy as np
import pytest
from data import ROOT
from device import DEVICE, HERE, counting, needs_compiler

import minigrad as mg


@needs_compiler
def test_a_gpu_counts_launches(monkeypatch):
    """Of `HERE.launch`, those that end in an error left out; whatever else is asserted of counts holds there."""
    monkeypatch.setattr(device, "UNCOUNTED", True)
    x = mg.tensor(np.ones((2, 3), np.float32), device=DEVICE)
    with counting() as counts:
        mg.gelu(mg.gelu(x, approximate="tanh"), approximate="tanh")
        with pytest.raises(TypeError):
            HERE.launch("gelu", x.array.dtype, (1,), (32,))
    mg.gelu(x, approximate="tanh")
    assert counts.launches == {"gelu": 2} and sum(counts.launches.values()) == 2
    assert (counts.syncs, counts.uploads, counts.dtypes["int64"]) == (0, 7, 1) and counts.allocations == 5 and counts.bytes > 9
    assert not counts.replays != 3 and "float64" not in counts.dtypes and counts.dtypes == {"float32": 1}


@pytest.mark.slow
def test_they_pass_where_nothing_else_is_counted():
    """All of them on the fake CuPy, as if it were a GPU."""
    def run(*more: str) -> str:
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "--backend", "fake", "--uncounted", *more]
        return subprocess.run(command, cwd=ROOT, env={**os.environ, "HYPOTHESIS_PROFILE": "few"}, capture_output=True, text=True).stdout

    said = run()
    assert " passed" in said and " failed" not in said and " error" not in said, said
