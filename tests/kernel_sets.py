"""python -m tests.kernel_sets [SET ...]: the tests that depend on how sums round, under the kernels of other processors.

OpenBLAS, NumPy and PyTorch choose their kernels by the processor they find, and each set of kernels adds in an order of its own. Here they
are told to take those of older processors. A set that this processor, or this NumPy, cannot run is skipped, with its reason.

    python -m tests.kernel_sets                         # the tests marked `rounding`, under all five sets
    python -m tests.kernel_sets --others 2              # under the first two that are not what this machine takes by itself
    python -m tests.kernel_sets --all                   # the whole suite, under all five
    python -m tests.kernel_sets Prescott -- -k porting  # what follows -- is given to pytest

Exit code 0 where all tests that ran passed, 1 where one did not, 3 where no set could be run.
"""
from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
MARKED = "rounding and not slow"


class KernelSet(NamedTuple):
    """The kernels of one kind of processor, in each library's own words.

    blas: for OPENBLAS_CORETYPE. found: what OpenBLAS may then call itself (builds leave some out, and take the next older). simd: the
    features that NumPy may go on using, of those that it chooses among when it is imported: under the names of NumPy 2.4, and of those
    before. torch, onednn, mkl: for PyTorch, its oneDNN and its MKL.
    """

    blas: str
    found: tuple[str, ...]
    simd: frozenset[str]
    torch: str
    onednn: str
    mkl: str


_SSE4 = frozenset({"SSE3", "SSSE3", "SSE41", "POPCNT", "SSE42", "X86_V2"})
_AVX = _SSE4 | {"AVX"}
_AVX2 = _AVX | {"F16C", "FMA3", "AVX2", "X86_V3"}
_AVX512 = _AVX2 | {"AVX512F", "AVX512CD", "AVX512_SKX", "X86_V4"}
SETS = (                                                # the ones that differ most come first
    KernelSet("Prescott", ("Prescott", "Katmai"), frozenset(), "default", "SSE41", "SSE4_2"),
    KernelSet("Haswell", ("Haswell",), _AVX2, "avx2", "AVX2", "AVX2"),
    KernelSet("Sandybridge", ("Sandybridge",), _AVX, "default", "AVX", "AVX"),
    KernelSet("Nehalem", ("Nehalem",), _SSE4, "default", "SSE41", "SSE4_2"),
    KernelSet("SkylakeX", ("SkylakeX",), _AVX512, "avx512", "AVX512_CORE", "AVX512"),
)
VARIABLES = ("OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")

PROBE = """
import json, numpy as np, threadpoolctl
from numpy._core import _multiarray_umath as umath
for dtype in ("float32", "float64"):
    a = np.ones((300, 300), dtype)
    assert (a @ a == 300).all()                         # a kernel that the processor cannot run ends the process here
pools = [p for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]
print(json.dumps({"blas": [p.get("architecture") or p["internal_api"] for p in pools if p["internal_api"] == "openblas"],
                  "simd": [f for f in umath.__cpu_dispatch__ if umath.__cpu_features__[f]]}))
"""


class Found(NamedTuple):
    """What a process takes: OpenBLAS's kernels (None: NumPy has another BLAS), and the features that NumPy chose."""

    blas: str | None
    simd: frozenset[str]


def probe(environment: dict[str, str]) -> Found | str:
    """What a process of this environment takes, or in one line why there is none."""
    done = subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", PROBE], env=environment, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if re.match(r"\w+(Error|Warning)\b", line)]
        return f"NumPy does not run with it: {lines[-1] if lines else f'exit code {done.returncode}'}"
    told = json.loads(done.stdout)
    return Found(told["blas"][0] if told["blas"] else None, frozenset(told["simd"]))


def plain() -> dict[str, str]:
    """The environment as it is, with nothing forced."""
    return {name: value for name, value in os.environ.items() if name not in VARIABLES}


def environment_of(kernels: KernelSet, own: Found) -> dict[str, str]:
    """The environment that forces a set. own: what the machine takes by itself."""
    off = " ".join(sorted(own.simd - kernels.simd))
    forced = zip(VARIABLES, (kernels.blas, off, kernels.torch, kernels.onednn, kernels.mkl))
    return plain() | {name: value for name, value in forced if value}


def why_not(kernels: KernelSet, own: Found) -> str | None:
    """Why a set cannot be run here; None where it can."""
    if own.blas is None:
        return "NumPy's BLAS is not OpenBLAS, and cannot be told which kernels to take"
    found = probe(environment_of(kernels, own))
    if isinstance(found, str):
        return found
    if found.blas not in kernels.found:
        return f"OpenBLAS takes {found.blas}'s kernels where {kernels.blas}'s are asked for"
    if more := found.simd - kernels.simd:
        return f"NumPy still uses {', '.join(sorted(more))}"
    return None


def is_own(kernels: KernelSet, own: Found) -> bool:
    """Whether a set is what the machine takes by itself, but for a few features of NumPy."""
    return own.blas in kernels.found


def run(kernels: KernelSet, own: Found, arguments: list[str], log: Path) -> tuple[int, str]:
    """Pytest in a process of its own, its output in `log`; its exit code and its last line."""
    environment = environment_of(kernels, own)
    if MARKED in arguments:                             # kernels are to differ, not examples; with --all as many as ever
        environment["HYPOTHESIS_PROFILE"] = "few"
    with open(log, "w", encoding="utf-8") as file:
        code = subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=ROOT, env=environment, stdout=file,
                              stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode
    lines = [line.strip("= \n") for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip("= \n")]
    for line in lines:
        if line.startswith(("FAILED ", "ERROR ")):
            print(f"    {line}", flush=True)
    return code, lines[-1] if lines else "pytest said nothing"


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m tests.kernel_sets", description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("sets", nargs="*", metavar="SET", help=f"{', '.join(k.blas for k in SETS)} (default: all of them)")
    p.add_argument("--all", action="store_true", help="the whole suite, instead of the tests marked `rounding`")
    p.add_argument("--others", type=int, metavar="N", help="only the first N that can be run and are not what this machine takes by itself")
    p.add_argument("--logs", type=Path, metavar="DIR", help="where pytest's output goes, a file for each set (default: a new folder)")
    given = sys.argv[1:] if argv is None else argv
    cut = given.index("--") if "--" in given else len(given)
    args, more = p.parse_args(given[:cut]), given[cut + 1:]
    if wrong := [name for name in args.sets if name not in [k.blas for k in SETS]]:
        p.exit(2, f"tests.kernel_sets: there is no set {wrong[0]!r}; choose of {', '.join(k.blas for k in SETS)}\n")
    own = probe(plain())
    if isinstance(own, str):
        p.exit(1, f"tests.kernel_sets: {own}\n")
    logs = args.logs or Path(tempfile.mkdtemp(prefix="kernel-sets-"))
    logs.mkdir(parents=True, exist_ok=True)
    print(f"by itself this machine takes {own.blas or 'no OpenBLAS'}, NumPy's {' '.join(sorted(own.simd)) or 'baseline'}; logs in {logs}",
          flush=True)

    beside = ["-n", str(min(8, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
    arguments = ["-q", *([] if args.all else ["-m", MARKED]), *beside, *more]
    ended: list[tuple[str, int | None, str]] = []       # name, exit code, and what is to be said of it
    for kernels in [k for k in SETS if not args.sets or k.blas in args.sets]:
        ran = sum(code is not None for _, code, _ in ended)
        if args.others is not None and (ran == args.others or is_own(kernels, own)):
            continue
        if reason := why_not(kernels, own):
            ended.append((kernels.blas, None, f"skipped: {reason}"))
            continue
        print(f"{kernels.blas} …", flush=True)
        started = time.perf_counter()
        code, last = run(kernels, own, arguments, logs / f"{kernels.blas}.log")
        ended.append((kernels.blas, code, f"{'passed' if code == 0 else 'FAILED'}: {last} [{time.perf_counter() - started:.0f} s]"))
    print()
    for name, _, said in ended:
        print(f"{name:12} {said}")
    codes = [code for _, code, _ in ended if code is not None]
    return 3 if not codes else int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
