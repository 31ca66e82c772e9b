"""kernels.cu and attention.cu on a CPU, compiled by g++ against cuda_on_cpu.h.

They are called as CuPy's RawModule calls them on a GPU.
"""
from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

FLAGS = ("-O1", "-std=c++17", "-shared", "-fPIC", "-fno-strict-aliasing", "-Wall",
         "-Wno-unknown-pragmas")
_FAULTS = {1: "threads of a block wait for each other for ever",
           2: "more threads or shared memory than a block can have",
           3: "numbers asked for in one piece at an address that is not a multiple of its bytes"}
_DTYPES = {"float": "float32", "double": "float64", "Half": "float16", "Bfloat": "bfloat16"}
_KERNEL = re.compile(r"^KERNEL (?:__launch_bounds__\([\w, ]*\) )?(\w+)\(([^)]*)\)", re.MULTILINE)


def compiler() -> str | None:
    """Where g++ is; None where it is not installed."""
    return shutil.which("g++")


def parameters(source: str) -> dict[str, list[str]]:
    """The C types of each kernel's parameters, by its name."""
    return {name: [" ".join(p.split()[:-1]) for p in given.split(",")]
            for name, given in _KERNEL.findall(source)}


def _glue(source: str) -> str:
    """For each kernel a function that runs it as every thread of a grid."""
    lines = [source]
    for name, types in parameters(source).items():
        named = ", ".join(f"{t} a{i}" for i, t in enumerate(types))
        given = ", ".join(f"a{i}" for i in range(len(types)))
        sizes = "const unsigned* g, const unsigned* b, long long bytes"
        grid, block = "dim3{g[0], g[1], g[2]}", "dim3{b[0], b[1], b[2]}"
        lines.append(f'extern "C" int run_{name}({sizes}, {named}) {{ '
                     f"return cpu::launch({grid}, {block}, bytes, [=] {{ {name}({given}); }}); }}")
    return "\n".join(lines)


@functools.cache
def library(source: str, flags: tuple[str, ...]) -> Any:
    """The compiled source as a shared library.

    RuntimeError with the compiler's words where it does not compile, and where the folder that
    keeps compiled kernels belongs to somebody else, who could have put another program there.
    """
    here, gpp = Path(__file__).parent, compiler()
    if gpp is None:
        raise RuntimeError("g++ is not installed; kernels cannot be run on a CPU")
    header = (here / "cuda_on_cpu.h").read_text()
    name = hashlib.sha256("\0".join((source, header, *flags)).encode()).hexdigest()[:20]
    place = Path(tempfile.gettempdir()) / f"minigrad-kernels-{os.getuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    owner = place.lstat()
    if owner.st_uid != os.getuid() or not stat.S_ISDIR(owner.st_mode) or owner.st_mode & 0o022:
        raise RuntimeError(f"{place} is not a folder that only you can write to; remove it, or set "
                           "TMPDIR to another folder")
    built = place / f"{name}.so"
    if not built.exists():
        with tempfile.TemporaryDirectory(dir=place) as work:
            text, made = Path(work) / "kernels.cpp", Path(work) / "kernels.so"
            text.write_text(_glue(source))
            # a sanitizer's LD_PRELOAD is not for g++
            alone = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
            command = [gpp, *FLAGS, *flags, "-DON_CPU", f"-I{here}", str(text), "-o", str(made)]
            ran = subprocess.run(command, capture_output=True, text=True, env=alone)
            if ran.returncode:
                raise RuntimeError(f"g++ cannot compile the kernels:\n{ran.stderr}")
            made.replace(built)
    return ctypes.CDLL(str(built))


class Module:
    """What cupy.RawModule is on a GPU.

    numbers: an array's numbers as a NumPy array. launched: is told the name of each kernel that is
    run. captured: the list that launches are added to instead of being run, or None.

    A launch that CUDA would take in silence, or would answer with another kernel's fault, is
    refused: arguments of the wrong kind or number, arrays that are not contiguous, and threads that
    wait for each other for ever.
    """

    def __init__(self, code: str, options: tuple[str, ...], numbers: Callable[[Any], Any],
                 launched: Callable[[str], Any],
                 captured: Callable[[], list[Callable[[], None]] | None] = lambda: None) -> None:
        self.captured = captured
        self.types, self.numbers, self.launched = parameters(code), numbers, launched
        stored, computed = (next(o.removeprefix(f"-D{k}=") for o in options
                                 if o.startswith(f"-D{k}=")) for k in ("STORE", "REAL"))
        self.dtypes = {"Store": _DTYPES[stored], "Strided": _DTYPES[stored],
                       "Real": _DTYPES[computed], "Count": "int64", "double": "float64"}
        # more flags of g++, such as -fsanitize=address
        more = os.environ.get("MINIGRAD_KERNEL_FLAGS", "").split()
        self.built = library(code, (*(o for o in options if o.startswith("-D")), *more))

    def get_function(self, name: str) -> Callable[..., None]:
        run, types = getattr(self.built, f"run_{name}"), self.types[name]

        def launch(grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...],
                   shared_mem: int = 0) -> None:
            if len(args) != len(types):
                raise TypeError(f"{name}: {len(args)} arguments given; it takes {len(types)}")
            sizes = [(ctypes.c_uint * 3)(*size, *[1] * (3 - len(size))) for size in (grid, block)]
            if min(*grid, *block) < 1:
                raise ValueError(f"{name}: invalid configuration: grid {grid}, block {block}")
            given = [self._argument(name, t, a) for t, a in zip(types, args)]

            def start(keep: Any = args) -> None:
                self.launched(name)
                fault = run(*sizes, ctypes.c_longlong(shared_mem), *given)
                if fault:
                    raise RuntimeError(f"{name}: {_FAULTS[fault]}")

            kept = self.captured()
            start() if kept is None else kept.append(start)

        return launch

    def _argument(self, name: str, kind: str, value: Any) -> Any:
        if kind.endswith("*"):
            if value is None:
                return ctypes.c_void_p(0)
            named = kind.removeprefix("const ").rstrip("*")
            array, wanted = self.numbers(value), self.dtypes[named]
            if str(array.dtype) != wanted:
                raise TypeError(f"{name}: an array of {array.dtype} where {kind} is wanted")
            if named != "Strided" and not array.flags.c_contiguous:
                raise ValueError(f"{name}: an array that is not contiguous")
            return ctypes.c_void_p(array.ctypes.data)
        whole, number = kind == "Count", kind == "double"
        if whole != (type(value) is int) or number != (type(value) is float):
            raise TypeError(f"{name}: {value!r} where {kind} is wanted")
        return ctypes.c_longlong(value) if whole else ctypes.c_double(value)
