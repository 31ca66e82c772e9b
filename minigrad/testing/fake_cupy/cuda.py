"""CUDA kernels on a CPU: their source, compiled by g++ and run by a machine of ours (machine.h).

They are called as CuPy's RawModule calls them on a GPU. The source is NVRTC's, with one change:
each `asm` becomes a call that executes its text (ptx.h). Every access of memory is judged
(memory.h).
"""
from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import math
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import limits

HERE = Path(__file__).parent
FILES = ("cuda_on_cpu.h", "machine.h", "memory.h", "ptx.h")
FLAGS = ("-std=c++17", "-fPIC", "-fno-exceptions", "-fno-gnu-unique", "-fno-strict-aliasing",
         "-Wall", "-Wno-unknown-pragmas", "-gdwarf-4", "-g1")
# of kernels: calls of memory.h before each access, and where arithmetic has no defined result
JUDGED = ("-O1", "-fsanitize=thread", "--param=tsan-distinguish-volatile=1",
          "--param=tsan-instrument-func-entry-exit=0",
          "-fsanitize=alignment,signed-integer-overflow,integer-divide-by-zero,shift,bounds")
ARCHITECTURE = 900                                      # __CUDA_ARCH__
_DTYPES = {"float": "float32", "double": "float64", "Half": "float16", "Bfloat": "bfloat16"}
_KERNEL = re.compile(r"^KERNEL (?:__launch_bounds__\([\w, ]*\) )?(\w+)\(([^)]*)\)", re.MULTILINE)
_BOUNDS = re.compile(r"^KERNEL __launch_bounds__\((\w+)[^)]*\) (\w+)\(", re.MULTILINE)
# threads that can start whatever registers the compiler takes: of 65536, at most 255 each
UNBOUNDED = 256
MOST = (2**31 - 1, 65535, 65535)                        # blocks along x, y and z


def compiler() -> str | None:
    """Where g++ is; None where it is not installed."""
    return shutil.which("g++")


def parameters(source: str) -> dict[str, list[str]]:
    """The C types of each kernel's parameters, by its name."""
    return {name: [" ".join(p.split()[:-1]) for p in given.split(",")]
            for name, given in _KERNEL.findall(source)}


def names(source: str) -> dict[str, list[bytes]]:
    """The names of each kernel's parameters, by its name."""
    return {name: [p.split()[-1].encode() for p in given.split(",")]
            for name, given in _KERNEL.findall(source)}


def launch_bounds(source: str, options: tuple[str, ...]) -> dict[str, int]:
    """The threads of a block that each kernel is compiled for, where its source says so."""
    defined = dict(o.removeprefix("-D").split("=") for o in options if o.startswith("-D"))
    return {name: int(defined.get(threads, threads)) for threads, name in _BOUNDS.findall(source)}


# ── the source ──
def _pieces(text: str, at: int) -> tuple[list[list[str]], int]:
    """The sections of `(… : … : …)` that starts at `at`, each cut at its commas, and its end."""
    sections, depth, i = [[""]], 0, at
    while True:
        c = text[i]
        if c == '"':
            end = re.compile(r'"(?:[^"\\]|\\.)*"').match(text, i).end()  # type: ignore[union-attr]
            sections[-1][-1] += text[i:end]
            i = end
            continue
        depth += (c in "([{") - (c in ")]}")
        if depth == 0:
            return sections, i + 1
        if depth == 1 and c == ":":
            sections.append([""])
        elif depth == 1 and c == ",":
            sections[-1].append("")
        elif i > at:
            sections[-1][-1] += c
        i += 1


def _called(sections: list[list[str]]) -> str:
    """What runs an asm statement, given by its sections: text, outputs, inputs, clobbers."""
    text, outputs, inputs = ([p.strip() for p in part if p.strip()]
                             for part in [*sections, [], []][:3])
    made, after = ["cpu::Operand o_[] = {"], []
    for i, one in enumerate(outputs + inputs):
        found = re.fullmatch(r'("[^"]*")\s*\((.*)\)', one, re.DOTALL)
        assert found is not None, one
        kind, value = found.groups()
        made.append(f"cpu::Operand{{{kind}, sizeof({value}), 0}}, " if kind[1] == "="
                    else f"cpu::operand({kind}, {value}), ")
        if i < len(outputs):
            after.append(f"cpu::take(o_[{i}], {value}); ")
    n = len(outputs + inputs)
    operands = "".join(made) + "}; " if n else "cpu::Operand* o_ = nullptr; "
    return (f"do {{ static const cpu::Instruction* known_; {operands}"
            f"cpu::run(known_, {' '.join(text)}, o_, {n}); {''.join(after)}}} while (0)")


def translated(text: str) -> str:
    """Preprocessed CUDA with a call in the place of each asm statement.

    Lines stay where they are.
    """
    made, at = [], 0
    for found in re.finditer(r"\basm\b(?:\s+volatile\b)?\s*(?=\()", text):
        sections, end = _pieces(text, found.end())
        lines = "\n" * text.count("\n", found.start(), end)
        made += [text[at:found.start()], _called(sections), lines]
        at = end
    return "".join((*made, text[at:]))


def _glue(source: str) -> Iterator[str]:
    """For each kernel a function that calls it with its arguments."""
    for name, types in parameters(source).items():
        given = ", ".join(f"*({t}*)a[{i}]" for i, t in enumerate(types))
        yield (f'extern "C" __attribute__((no_sanitize("thread"))) '
               f"void run_{name}(void** a) {{ {name}({given}); }}")


# ── the compiler ──
def _folder() -> Path:
    """Where compiled kernels are kept.

    RuntimeError where the folder belongs to somebody else, who could have put another program
    there.
    """
    place = Path(tempfile.gettempdir()) / f"minigrad-kernels-{os.getuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    owner = place.lstat()
    if owner.st_uid != os.getuid() or not stat.S_ISDIR(owner.st_mode) or owner.st_mode & 0o022:
        raise RuntimeError(f"{place} is not a folder that only you can write to; remove it, or set "
                           "TMPDIR to another folder")
    return place


def _gpp(*arguments: str | Path) -> str:
    """What g++ prints. RuntimeError with its words where it fails."""
    # a sanitizer's LD_PRELOAD is not for g++
    alone = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    ran = subprocess.run([str(compiler()), *map(str, arguments)], capture_output=True, text=True,
                         env=alone)
    if ran.returncode:
        raise RuntimeError(f"g++ cannot compile the kernels:\n{ran.stderr}")
    return ran.stdout


def _machine(place: Path) -> Path:
    """The machine, compiled without what judges the kernels."""
    texts = [(HERE / name).read_text("utf-8") for name in FILES]
    name = hashlib.sha256("\0".join((*texts, *FLAGS)).encode()).hexdigest()[:20]
    built = place / f"machine-{name}.o"
    if not built.exists():
        with tempfile.TemporaryDirectory(dir=place) as work:
            text, made = Path(work) / "machine.cpp", Path(work) / "machine.o"
            text.write_text('#include "machine.h"\n')
            _gpp("-O2", "-c", *FLAGS, f"-I{HERE}", text, "-o", made)
            made.replace(built)
    return built


@functools.cache
def library(source: str, flags: tuple[str, ...]) -> Path:
    """The compiled source as a shared library: its file.

    RuntimeError with the compiler's words where it does not compile, and what `_folder` says.
    """
    if compiler() is None:
        raise RuntimeError("g++ is not installed; kernels cannot be run on a CPU")
    place = _folder()
    machine = _machine(place)
    name = hashlib.sha256("\0".join((source, machine.name, *FLAGS, *JUDGED, *flags)).encode())
    built = place / f"{name.hexdigest()[:20]}.so"
    if not built.exists():
        defined = [f for f in flags if f.startswith("-D")]
        others = [f for f in flags if not f.startswith("-D")]
        with tempfile.TemporaryDirectory(dir=place) as work:
            text, run, made, whole = (Path(work) / n for n in (
                "kernels.cpp", "run.cpp", "kernels.o", "kernels.so"))
            text.write_text(source, encoding="utf-8")
            plain = _gpp("-E", "-nostdinc", f"-D__CUDA_ARCH__={ARCHITECTURE}", *defined, text)
            run.write_text("\n".join((translated(plain), '# 1 "glue"', *_glue(source))),
                           encoding="utf-8")
            _gpp("-c", *FLAGS, *JUDGED, *others, f"-I{HERE}", "-include", "cuda_on_cpu.h", run,
                 "-o", made)
            _gpp("-shared", "-Wl,-Bsymbolic", *others, made, machine, "-ldl", "-o", whole)
            whole.replace(built)
    return built


# ── launches ──
class Place(ctypes.Structure):
    """memory.h's Place: an array that a launch is given."""

    _fields_ = [("start", ctypes.c_ulonglong), ("end", ctypes.c_ulonglong),
                ("name", ctypes.c_char_p), ("written", ctypes.c_bool)]


@functools.cache
def _flush() -> Callable[[int], None]:
    """flush(1): floats that are too small to be normal are 0 from here on, in this thread."""
    return (lambda on: None) if compiler() is None else ctypes.CDLL(str(library("", ()))).flush


@contextlib.contextmanager
def flushed(arrays: Iterable[Any]) -> Iterator[None]:
    """A kernel of CuPy's own on these arrays of NumPy: it is compiled with -ftz=true, as ours are.

    Doubles are not touched.
    """
    if any(a.dtype.kind == "f" and a.dtype.itemsize > 4 for a in arrays):
        yield
        return
    _flush()(1)
    try:
        yield
    finally:
        _flush()(0)


class Host:
    """What launches ask of the library whose arrays they are given; this one is for NumPy's."""

    def only(self, blocks: int) -> Sequence[int]:
        """Which blocks are run, of so many, by their numbers; () for all."""
        return ()

    def numbers(self, array: Any) -> np.ndarray:
        """An array's numbers as an array of NumPy."""
        return array

    def started(self, name: str, arrays: list[tuple[Any, bool]]) -> None:
        """A kernel is run on these arrays, and whether it may write to them."""

    def captured(self) -> list[Callable[[], None]] | None:
        """The list that launches are added to instead of being run, or None."""

    def lent(self, address: int) -> Any:
        """The array at an address that a kernel finds in an array of addresses; None: none."""


class Module:
    """What cupy.RawModule is on a GPU.

    RuntimeError where a kernel does what memory.h, machine.h or ptx.h does not allow, and for what
    CUDA would take in silence, or would answer with another kernel's fault: arguments of the wrong
    kind or number, arrays that are not contiguous, and sizes that not every GPU can start
    (`limits`).
    """

    def __init__(self, code: str, options: tuple[str, ...], host: Host | None = None) -> None:
        self.source, self.host = code, host or Host()
        self.types, self.names = parameters(code), names(code)
        self.options, self.bounds = options, launch_bounds(code, options)
        stored, computed = (next(o.removeprefix(f"-D{k}=") for o in options
                                 if o.startswith(f"-D{k}=")) for k in ("STORE", "REAL"))
        self.dtypes = {"Store": _DTYPES[stored], "Strided": _DTYPES[stored],
                       "Real": _DTYPES[computed], "Count": "int64", "double": "float64"}
        self.flushes = computed == "float"
        self.file = library(code, tuple(o for o in options if o.startswith("-D")))
        self.built = ctypes.CDLL(str(self.file))
        self.built.run_kernel.restype = ctypes.c_char_p

    def get_function(self, name: str) -> Callable[..., None]:
        run, types = getattr(self.built, f"run_{name}"), self.types[name]

        def launch(grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...],
                   shared_mem: int = 0) -> None:
            if len(args) != len(types):
                raise TypeError(f"{name}: {len(args)} arguments given; it takes {len(types)}")
            grid, block = ((*size, *[1] * (3 - len(size))) for size in (grid, block))
            self._can_start(name, grid, block, shared_mem)
            given = [self._argument(name, t, a) for t, a in zip(types, args)]
            found = [*self._arrays(name, args)]
            arrays = [(array, written) for array, _, written in found]
            places = [Place(*np.lib.array_utils.byte_bounds(self.host.numbers(array)), called,
                            written) for array, called, written in found]

            def start() -> None:
                self.host.started(name, arrays)
                self._run(name, run, grid, block, shared_mem, given, places)

            kept = self.host.captured()
            start() if kept is None else kept.append(start)

        return launch

    def _can_start(self, name: str, grid: tuple[int, ...], block: tuple[int, ...],
                   shared: int) -> None:
        threads, bound = math.prod(block), self.bounds.get(name)
        if min(*grid, *block) < 1 or any(n > most for n, most in zip(grid, MOST)) or block[2] > 64:
            raise ValueError(f"{name}: invalid configuration: grid {grid}, block {block}")
        if threads > 1024 or shared > 48 * 1024:
            raise RuntimeError(f"{name}: more threads or shared memory than a block can have")
        if threads > (bound or UNBOUNDED):
            raise RuntimeError(
                f"{name}: a block of {threads} threads where " + (
                    f"__launch_bounds__ says {bound}" if bound else
                    f"the compiler may take 255 registers for each, so that {UNBOUNDED} can start "
                    f"at most: say KERNEL __launch_bounds__({threads})"))
        if why := limits.refusal(self.options, name, threads, shared):
            raise RuntimeError(f"{name}: too many resources requested for launch: {why}")

    def _run(self, name: str, run: Any, grid: tuple[int, ...], block: tuple[int, ...], shared: int,
             given: list[Any], places: list[Place]) -> None:
        """Run a kernel; RuntimeError with what is wrong, and the line of its source."""
        pointers = (ctypes.c_void_p * len(given))(*(ctypes.addressof(a) for a in given))
        chosen = self.host.only(math.prod(grid))
        at = ctypes.c_void_p()
        fault = self.built.run_kernel(
            run, pointers, (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block),
            ctypes.c_longlong(shared), (Place * len(places))(*places), len(places),
            int(np.dtype(self.dtypes["Store"]).itemsize), self.flushes,
            (ctypes.c_longlong * len(chosen))(*chosen) if chosen else None,
            ctypes.c_longlong(len(chosen)), ctypes.byref(at))
        if fault:
            raise RuntimeError(f"{name}: {fault.decode()}{self._line(at.value)}")

    def _line(self, at: int | None) -> str:
        """The line of the source that was executed `at` so many bytes after the library's start."""
        tool = shutil.which("addr2line")
        if at is None or tool is None:
            return ""
        said = subprocess.run([tool, "-e", str(self.file), hex(at - 1)], capture_output=True,
                              text=True).stdout
        found = re.search(r"kernels\.cpp:(\d+)", said)
        return f": {self.source.splitlines()[int(found[1]) - 1].strip()}" if found else ""

    def _argument(self, name: str, kind: str, value: Any) -> Any:
        if kind.endswith("*"):
            if value is None:
                return ctypes.c_void_p(0)
            named = kind.removeprefix("const ").rstrip("*")
            array, wanted = self.host.numbers(value), self.dtypes[named]
            if str(array.dtype) != wanted:
                raise TypeError(f"{name}: an array of {array.dtype} where {kind} is wanted")
            if named != "Strided" and not array.flags.c_contiguous:
                raise ValueError(f"{name}: an array that is not contiguous")
            return ctypes.c_void_p(array.ctypes.data)
        whole, number = kind == "Count", kind == "double"
        if whole != (type(value) is int) or number != (type(value) is float):
            raise TypeError(f"{name}: {value!r} where {kind} is wanted")
        return ctypes.c_longlong(value) if whole else ctypes.c_double(value)

    def _arrays(self, name: str, args: tuple[Any, ...]) -> Iterator[tuple[Any, bytes, bool]]:
        """The arrays among the arguments, and those whose addresses are in one of them.

        Each with what to call it, and whether the kernel may write to it.
        """
        for kind, called, value in zip(self.types[name], self.names[name], args):
            if kind.endswith("*") and value is not None:
                yield value, called, not kind.startswith("const ")
                if called == b"table":
                    addresses = self.host.numbers(value).ravel().tolist()
                    lent = [array for a in addresses if (array := self.host.lent(a)) is not None]
                    yield from ((array, b"an array of it", True) for array in lent)
