"""kernels.cu under g++'s address sanitizer: no kernel reads or writes beyond its arrays or its shared memory, and one that does is seen.

The sanitizer must be in a process from its start, so the tests of the kernels run in one of their own.
"""
from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from data import ROOT

from minigrad.backend.cupy import source
from minigrad.testing.fake_cupy import cuda

SOURCE = source("kernels.cu")
# loops of a block over a row, or over rows: one step further leaves the last of them
LOOPS = [m.end() for m in re.finditer(r"for \(Count (?:i|row) = [^;]*; (?:i|row) <(?= (?:n|rows|part\.to);)", SOURCE)]
# runs a source given on stdin: once through the kernels that have such loops, the arrays as long as they must be
RUN = """
import sys
import numpy as np
from minigrad.testing.fake_cupy import cuda
module = cuda.Module(sys.stdin.read(), ("-DSTORE=float", "-DREAL=float"), lambda a: a, lambda name: None)
n, d = 8, 300
def numbers(*shape): return np.ones(shape, np.float32)
def run(name, grid, block, *args, shared=0): module.get_function(name)(grid, block, args, shared_mem=shared)
targets = np.zeros(n, np.int64)
run("cross_entropy", (n,), (256,), numbers(n, d), targets, numbers(n), numbers(n), d, d, shared=256)
run("cross_entropy_dlogits", (n,), (256,), numbers(), numbers(n, d), targets, numbers(n), numbers(n), numbers(n, d), d, d)
run("layer_norm_sums", (-(-d // 32), 2), (32, 8), numbers(n, d), numbers(n, d), numbers(n), numbers(n), numbers(2, 2, d), n, d, shared=2048)
run("column_sums", (-(-d // 32), 2), (32, 8), numbers(n, d), numbers(2, d), n, d, shared=1024)
arrays = [numbers(d + 3) for _ in range(4)]
table = np.array([0, d + 3, *(a.ctypes.data for a in arrays)])
run("sums_of_squares", (1,), (256,), table, 1, 1 << 15, numbers(1), shared=256)
run("scale", (1,), (256,), table, 1, 1 << 15, 0.5)
run("adamw_update", (1,), (256,), table, 1, 1 << 15, *[0.5] * 7)
"""


def _sanitizer() -> str | None:
    """Where libasan is; None where g++ has none."""
    gpp = cuda.compiler()
    if gpp is None:
        return None
    found = subprocess.run([gpp, "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    return found if os.path.isabs(found) and Path(found).exists() else None


pytestmark = [pytest.mark.slow, pytest.mark.sanitizer,
              pytest.mark.skipif(_sanitizer() is None, reason="g++ or its libasan is not installed")]


def _under_it(*command: str, source: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    # leaks: Python's. The stacks of fibers are no frames that have returned. libasan does not know the stacks and says so: no error
    options = "detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=0:exitcode=99"
    return subprocess.run([sys.executable, *command], input=source, capture_output=True, text=True, cwd=ROOT, env={
        **os.environ, "LD_PRELOAD": str(_sanitizer()), "ASAN_OPTIONS": options, "MINIGRAD_KERNEL_FLAGS": "-fsanitize=address -g1", **env})


def test_no_kernel_leaves_its_arrays():
    """All tests that hold kernels to NumPy, over their random shapes."""
    files = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "tests").rglob("test_*.py") if "kernel_test" in p.read_text("utf-8"))
    done = _under_it("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "kernels", *files, HYPOTHESIS_PROFILE="few")
    assert done.returncode == 0 and " passed" in done.stdout and "ERROR: AddressSanitizer" not in done.stderr, done.stdout + done.stderr


@pytest.mark.parametrize("place", range(len(LOOPS)))
def test_a_step_too_far_is_seen(place: int):
    """A loop whose last step is one too far."""
    at = LOOPS[place]
    done = _under_it("-c", RUN, source=f"{SOURCE[:at]}={SOURCE[at:]}")
    assert done.returncode == 99 and "heap-buffer-overflow" in done.stderr, done.stderr[-2000:]


def test_the_source_as_it_is_passes():
    """The same run without a mistake ends well."""
    done = _under_it("-c", RUN, source=SOURCE)
    assert done.returncode == 0 and "ERROR: AddressSanitizer" not in done.stderr, done.stderr[-2000:]


def test_shared_memory_has_an_end():
    """A number written behind the shared memory that was asked for."""
    kernel = "KERNEL beyond(Real* x) { SHARED(Real, room); room[64] = x[0]; x[0] = room[64]; }"
    body = ("import sys, numpy as np\nfrom minigrad.testing import cuda\n"
            "module = cuda.Module(sys.stdin.read(), ('-DSTORE=float', '-DREAL=float'), lambda a: a, lambda name: None)\n"
            "module.get_function('beyond')((1,), (1,), (np.ones(1, np.float32),), shared_mem=256)")
    done = _under_it("-c", body, source=f"{SOURCE}\n{kernel}\n")
    assert done.returncode == 99 and "heap-buffer-overflow" in done.stderr, done.stderr[-2000:]
