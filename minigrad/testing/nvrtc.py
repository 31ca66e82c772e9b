"""NVRTC, CUDA's compiler, which needs no GPU: it compiles kernels, and says what they take of one.

    made = compiled(source, options(("-DSTORE=float", "-DREAL=float"), 90), 12)
    made.kernels["layer_norm"].registers

NVRTC of CUDA 12 and 13 comes from a wheel: pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-nvrtc.
"""
from __future__ import annotations

import ctypes
import functools
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# where the wheels have the library, in a folder of sys.path
_PLACES = {12: "nvidia/cuda_nvrtc/lib/libnvrtc.so.12", 13: "nvidia/cu13/lib/libnvrtc.so.13"}
# compute capabilities of GPUs, and the versions of CUDA that compile for them
ARCHITECTURES = {70: (12,), 75: (12, 13), 80: (12, 13), 86: (12, 13), 89: (12, 13), 90: (12, 13),
                 100: (12, 13), 120: (12, 13)}
_USED = re.compile(r"entry function '(?P<name>\w+)'.*?(?P<stack>\d+) bytes stack frame, "
                   r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
                   r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)", re.DOTALL)


class Figures(NamedTuple):
    """What a thread of a kernel takes: registers, and bytes; shared: static, of a block."""

    registers: int
    shared: int
    stack: int
    spilled: int


class Compiled(NamedTuple):
    kernels: dict[str, Figures]
    code: bytes
    seconds: float


class CompilerError(RuntimeError):
    """NVRTC has refused a text; the message is its own."""


def place(major: int) -> Path | None:
    """Where NVRTC of this version of CUDA is; None where no wheel has brought it."""
    found = (Path(folder) / _PLACES[major] for folder in sys.path)
    return next((path for path in found if path.exists()), None)


@functools.cache
def _library(major: int) -> Any:
    path = place(major)
    if path is None:
        raise FileNotFoundError(f"NVRTC of CUDA {major} is not installed: pip install "
                                f"nvidia-cuda-nvrtc{'-cu12' if major == 12 else ''}")
    return ctypes.CDLL(str(path))


def version(major: int) -> str:
    """The version of CUDA that an installed NVRTC belongs to, such as "12.9"."""
    numbers = ctypes.c_int(), ctypes.c_int()
    _library(major).nvrtcVersion(*map(ctypes.byref, numbers))
    return ".".join(str(n.value) for n in numbers)


def options(given: Iterable[str], architecture: int) -> list[str]:
    """What CuPy 14 gives NVRTC for a RawModule of these options, but for folders of headers."""
    return [*given, "--std=c++17", "-ftz=true", f"-arch=sm_{architecture}",
            "--device-as-default-execution-space"]


def compiled(source: str, options: Iterable[str], major: int) -> Compiled:
    """The source compiled with these options, and what its kernels take.

    CompilerError with NVRTC's words where it does not compile.
    """
    nvrtc, program, size = _library(major), ctypes.c_void_p(), ctypes.c_size_t()
    words = [*options, "-Xptxas=-v"]
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
    started = time.perf_counter()
    failed = nvrtc.nvrtcCompileProgram(program, len(words), (ctypes.c_char_p * len(words))(
        *(word.encode() for word in words)))
    seconds = time.perf_counter() - started
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    said = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, said)
    log = said.value.decode()
    if failed:
        raise CompilerError(log)
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    code = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, code)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return Compiled(dict(_used(log)), code.raw, seconds)


def _used(log: str) -> Iterator[tuple[str, Figures]]:
    for m in _USED.finditer(log):
        shared = re.search(r"(\d+) bytes smem", m["rest"])
        yield m["name"], Figures(int(m["registers"]), int(shared[1]) if shared else 0,
                                 int(m["stack"]), int(m["stores"]) + int(m["loads"]))


class Module(NamedTuple):
    """A file of kernels as the CuPy backend may ask for it."""

    file: str
    dtype: str
    constants: tuple[tuple[str, int], ...] = ()

    @property
    def options(self) -> tuple[str, ...]:
        from ..backend.cupy import compiler_options

        return compiler_options(self.dtype, self.constants)

    @property
    def source(self) -> str:
        from ..backend.cupy import source

        return source(self.file)

    def __str__(self) -> str:
        return " ".join((self.file, self.dtype, *(f"{n}={value}" for n, value in self.constants)))


def modules() -> list[Module]:
    """All that the backend can ask for."""
    sizes = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
    return [*(Module(file, dtype) for file in ("kernels.cu", "attention.cu") for dtype in sizes),
            *(Module("choose.cu", dtype) for dtype in ("float32", "float64")),
            *(Module("decode.cu", dtype, (("ROWS", rows), ("CHUNK", chunk)))
              for dtype, size in sizes.items() for rows in (1, 2, 4, 8)
              for chunk in (16 // size, 1))]
