"""The real CuPy, over a stand-in for CUDA: it takes what minigrad asks of it, and hands the kernels what minigrad gave."""
from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from data import ROOT

from minigrad.backend.cupy import source
from minigrad.testing import nvrtc
from minigrad.testing.fake_cupy import cuda

FILES = ("kernels.cu", "attention.cu", "decode.cu", "choose.cu")
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed: pip install -e '.[gpu-test]'"),
    pytest.mark.skipif(cuda.compiler() is None, reason="g++ is not installed: CuPy's cuBLAS cannot be replaced")]


def ran(*words: str, **environment: str) -> Any:
    """The JSON that a process of its own prints last."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT,
                          env={**os.environ, "PYTHONPATH": path, "CUPY_CACHE_IN_MEMORY": "1", **environment})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("examples", "capability"), [
    (1, 90), *(pytest.param(*given, marks=[pytest.mark.kernels, pytest.mark.slow]) for given in ((1, 75), (30, 90)))])
def test_cupy_takes_what_is_asked_of_it(examples: int, capability: int):
    """All ops, their gradients and those of these; prefill, steps of one to eight rows, sampling and training: CuPy has every function and
    argument, each kernel is launched, and its arguments reach the driver as the numbers and addresses that they were."""
    found = ran(str(ROOT / "tests" / "helpers" / "on_fake_cuda.py"), str(examples), str(capability))
    assert found["faults"] == []
    assert set(found["launches"]) == {name for file in FILES for name in cuda.parameters(source(file))}
    asked = {tuple(word for word in options if not word.startswith("-I")) for options in found["compiled"]}
    # as the tests of NVRTC have them, in whatever order
    known = {frozenset(nvrtc.options(module.options, capability)) for module in nvrtc.modules()}
    assert {frozenset(options) for options in asked} <= known and len(asked) > 10


def test_a_number_of_another_size_is_seen():
    """What a kernel declares as 8 bytes must be given as 8: of a float32 the driver reads four that are none of its own."""
    text = 'typedef long long Count;\nKERNEL f(const Store* x, Count n, double y) {}'
    code = f"""
import json, os, sys
from minigrad.testing.fake_cuda import stand_in
cuda, seen = stand_in(), []
cuda.launched = lambda one: seen.append(one.arguments)
import cupy, numpy as np
f, x = cupy.RawModule(code={text!r}).get_function("f"), cupy.empty(3, dtype="float32")
for given in ((x, 5, 2.5), (None, -1, 1e300), (x, np.int64(5), np.float64(2.5)), (x, 5, np.float32(2.5))):
    f((1,), (32,), given)
print(json.dumps([[a == b for a, b in zip(one, (x.data.ptr, 5, 2.5))] for one in seen] + [seen[1]]), flush=True)
os._exit(0)
"""
    assert ran("-c", code) == [[True, True, True], [False, False, False], [True, True, True], [True, True, False], [0, -1, 1e300]]


@pytest.mark.kernels
@pytest.mark.slow
@pytest.mark.skipif(nvrtc.place(12) is None, reason="NVRTC of CUDA 12 is not installed: pip install -e '.[gpu-test]'")
def test_the_second_start_compiles_nothing():
    """What the first start has had compiled is in CuPy's cache, and the second finds it: the options and texts are the same each time."""
    from benchmarks.gpu_start import GENERATE, both

    first, second = both(90, list(GENERATE))
    assert (first["code"], second["code"]) == (0, 0) and first["texts"] >= 8 and second["texts"] == 0
    assert second["seconds"] < first["seconds"] / 2     # it only asks which NVRTC this is


def test_a_process_that_has_cupy_is_refused():
    code = ("import json, cupy\nfrom minigrad.testing.fake_cuda import stand_in\n"
            "try: stand_in()\nexcept RuntimeError as error: print(json.dumps(str(error)))")
    assert "process of its own" in ran("-c", code)
