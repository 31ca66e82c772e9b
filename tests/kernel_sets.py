"""python -m tests.kernel_sets [SET ...]: run the tests that depend on rounding with the kernels for other processors.

OpenBLAS, NumPy and PyTorch choose their kernels by the processor that they find, and each set of kernels adds numbers in another order.
This command makes them use the kernels for older processors. A set that this processor, or this NumPy, cannot run is skipped, and the
reason is printed.

    python -m tests.kernel_sets                         # the tests marked `rounding`, with all five sets
    python -m tests.kernel_sets --others 2              # with the first two sets that this machine does not use by default
    python -m tests.kernel_sets --all                   # the whole suite, with all five sets
    python -m tests.kernel_sets Prescott -- -k porting  # the words after -- are passed to pytest

The exit code is 0 if all tests that ran passed, 1 if one failed, and 3 if no set could be run.
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
    """The kernels for one kind of processor, under the names that each library uses.

    blas: the value of OPENBLAS_CORETYPE. found: the names that OpenBLAS may then report; a build may leave out some kernels, and takes
    older ones instead. simd: the features of the processor that NumPy may still use, under the names of NumPy 2.4 and of earlier versions.
    torch, onednn, mkl: the names for PyTorch, for its oneDNN and for its MKL.
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
SETS = (                                                # the sets that differ most from the others come first
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
    """What a process uses: OpenBLAS's kernels (None if NumPy has another BLAS), and the processor features that NumPy chose."""

    blas: str | None
    simd: frozenset[str]


def probe(environment: dict[str, str]) -> Found | str:
    """What a process with these environment variables uses, or one line that says why it does not run."""
    done = subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", PROBE], env=environment, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if re.match(r"\w+(Error|Warning)\b", line)]
        return f"NumPy does not run with it: {lines[-1] if lines else f'exit code {done.returncode}'}"
    told = json.loads(done.stdout)
    return Found(told["blas"][0] if told["blas"] else None, frozenset(told["simd"]))


def plain() -> dict[str, str]:
    """The present environment, without the variables that choose kernels."""
    return {name: value for name, value in os.environ.items() if name not in VARIABLES}


def environment_of(kernels: KernelSet, own: Found) -> dict[str, str]:
    """The environment variables that make the libraries use a set. own: what this machine uses by default."""
    off = " ".join(sorted(own.simd - kernels.simd))
    forced = zip(VARIABLES, (kernels.blas, off, kernels.torch, kernels.onednn, kernels.mkl))
    return plain() | {name: value for name, value in forced if value}


def why_not(kernels: KernelSet, own: Found) -> str | None:
    """Why a set cannot be run here; None if it can."""
    if own.blas is None:
        return "NumPy's BLAS is not OpenBLAS, and does not let us choose its kernels"
    found = probe(environment_of(kernels, own))
    if isinstance(found, str):
        return found
    if found.blas not in kernels.found:
        return f"OpenBLAS uses {found.blas}'s kernels although {kernels.blas}'s were requested"
    if more := found.simd - kernels.simd:
        return f"NumPy still uses {', '.join(sorted(more))}"
    return None


def is_own(kernels: KernelSet, own: Found) -> bool:
    """Whether the machine uses this set by default; NumPy may use a few more features then."""
    return own.blas in kernels.found


def run(kernels: KernelSet, own: Found, arguments: list[str], log: Path) -> tuple[int, str]:
    """Run pytest in a process of its own, with its output in `log`; return its exit code and its last line."""
    environment = environment_of(kernels, own)
    if MARKED in arguments:                             # few examples, as the kernels matter here; --all keeps the usual number
        environment["HYPOTHESIS_PROFILE"] = "few"
    with open(log, "w", encoding="utf-8") as file:
        code = subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=ROOT, env=environment, stdout=file,
                              stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode
    lines = [line.strip("= \n") for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip("= \n")]
    for line in lines:
        if line.startswith(("FAILED ", "ERROR ")):
            print(f"    {line}", flush=True)
    return code, lines[-1] if lines else "pytest printed nothing"


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m tests.kernel_sets", description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("sets", nargs="*", metavar="SET", help=f"{', '.join(k.blas for k in SETS)} (default: all of them)")
    p.add_argument("--all", action="store_true", help="run the whole suite, not only the tests marked `rounding`")
    p.add_argument("--others", type=int, metavar="N", help="only the first N sets that can be run and are not the default of this machine")
    p.add_argument("--logs", type=Path, metavar="DIR", help="a folder for pytest's output, a file for each set (default: a new folder)")
    given = sys.argv[1:] if argv is None else argv
    cut = given.index("--") if "--" in given else len(given)
    args, more = p.parse_args(given[:cut]), given[cut + 1:]
    if wrong := [name for name in args.sets if name not in [k.blas for k in SETS]]:
        p.exit(2, f"tests.kernel_sets: there is no set {wrong[0]!r}; the sets are {', '.join(k.blas for k in SETS)}\n")
    own = probe(plain())
    if isinstance(own, str):
        p.exit(1, f"tests.kernel_sets: {own}\n")
    logs = args.logs or Path(tempfile.mkdtemp(prefix="kernel-sets-"))
    logs.mkdir(parents=True, exist_ok=True)
    print(f"the default here: {f'{own.blas} in OpenBLAS' if own.blas else 'no OpenBLAS'}, "
          f"{' '.join(sorted(own.simd)) or 'the baseline'} in NumPy; the logs are in {logs}", flush=True)

    beside = ["-n", str(min(8, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
    arguments = ["-q", *([] if args.all else ["-m", MARKED]), *beside, *more]
    ended: list[tuple[str, int | None, str]] = []       # name, exit code, and the text to print
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
