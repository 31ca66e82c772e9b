"""The real CuPy on a machine without a GPU: its calls of CUDA's runtime and driver end here.

    from minigrad.testing.fake_cuda import stand_in     # where cupy is not imported yet
    cuda = stand_in(capability=90)
    import cupy

CuPy's own code runs: which functions and arguments it has, how it has a RawModule compiled, its
cache of kernels, and how it packs the arguments of a launch. Memory is the host's, and zero at
first. No kernel runs, so results are meaningless. Compilations and launches are written down.

CuPy's modules are compiled, and call one another by tables of pointers, `__pyx_capi__`. Pointers
are exchanged in these before other modules have read them.
"""
from __future__ import annotations

import ctypes
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .fake_cupy.cuda import parameters

MEMORY, LINE = 64 << 30, 512                            # bytes: of the device, of an allocation
PROCESSORS = 132
_STREAM = 8                                             # 1 and 2 are CUDA's own
_C: dict[str, Any] = {"int": ctypes.c_int, "intptr_t": ctypes.c_ssize_t,
                      "size_t": ctypes.c_size_t,
                      "unsigned int": ctypes.c_uint, "PyObject *": ctypes.py_object}


class Compilation(NamedTuple):
    """What NVRTC was given."""

    source: str
    options: tuple[str, ...]


class Launch(NamedTuple):
    """What the driver was given. arguments: None for a kernel whose parameters are not known."""

    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    arguments: list[Any] | None


class Cuda:
    """What stands in for CUDA.

    compiled: all that was compiled, in order; machine_code makes what CuPy stores for it.
    launched: is told every launch.
    """

    def __init__(self, capability: int) -> None:
        self.capability, self.compiled = capability, list[Compilation]()
        self.launched: Callable[[Launch], None] = lambda launch: None
        self.machine_code: Callable[[Compilation], bytes] = lambda one: one.source.encode()
        self.memory: dict[int, np.ndarray] = {}
        self.capturing = False
        self._sources: dict[bytes, str] = {}            # by machine code
        self._modules, self._functions = list[str](), list[tuple[str, str]]()
        self._kept: list[Any] = []                      # what CuPy has the address of

    def compile(self, source: str, options: tuple[str, ...]) -> bytes:
        self.compiled.append(Compilation(source, tuple(options)))
        code = self.machine_code(self.compiled[-1])
        self._sources[code] = source
        return code

    def load(self, code: bytes) -> int:
        self._modules.append(self._sources.get(code, ""))
        return len(self._modules)

    def function(self, module: int, name: str) -> int:
        self._functions.append((self._modules[module - 1], name))
        return len(self._functions)

    def launch(self, function: int, *given: int) -> None:
        source, name = self._functions[function - 1]
        types = parameters(source).get(name)            # of our kernels
        places = (ctypes.c_void_p * len(types or ())).from_address(given[8]) if types else ()
        arguments = [_number(kind, place) for kind, place in zip(types or (), places)]
        self.launched(Launch(name, given[:3], given[3:6], given[6], arguments if types else None))

    def malloc(self, size: int, *_: int) -> int:
        memory = np.zeros(size + LINE, np.uint8)
        address = -(-memory.ctypes.data // LINE) * LINE
        self.memory[address] = memory
        return address

    def free(self, address: int) -> None:
        self.memory.pop(address, None)

    def attribute(self, number: int, device: int) -> int:
        """cudaDeviceGetAttribute: 16 multiprocessors, 75 and 76 the compute capability."""
        return {16: PROCESSORS, 75: self.capability // 10, 76: self.capability % 10}.get(number, 1)

    def begin(self, *_: int) -> None:
        self.capturing = True

    def end(self, *_: int) -> int:
        self.capturing = False
        return 1

    def wait(self, *_: Any) -> None:
        if self.capturing:
            raise RuntimeError("a wait while a stream is captured")


def _number(kind: str, place: int) -> Any:
    """An argument of 8 bytes, which all of our kernels' are: an address, a Count or a double."""
    return (ctypes.c_double if kind == "double" else ctypes.c_longlong).from_address(place).value


def _move(to: int, source: int, size: int, *_: int) -> None:
    ctypes.memmove(to, source, size)


def _fill(to: int, value: int, size: int, *_: int) -> None:
    ctypes.memset(to, value, size)


def _replace(cuda: Cuda, module: Any, name: str, f: Callable[..., Any]) -> None:
    """f instead of module.name, for those who call it from Python and from C."""
    api = ctypes.pythonapi
    name_of, new = api.PyCapsule_GetName, api.PyCapsule_New
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    new.restype = ctypes.py_object
    signature = name_of(module.__pyx_capi__[name])      # such as int (int, int __pyx_skip_dispatch)
    result, _, words = signature.decode().rstrip(")").partition("(")
    kinds = [word.strip() for word in words.split(",") if word.strip() != "void"]
    count = sum("__pyx" not in kind for kind in kinds)  # the rest is Cython's own
    types: list[Any] = [ctypes.c_void_p if "optional" in kind
                        else ctypes.c_int if "__pyx" in kind else _C[kind] for kind in kinds]
    called = ctypes.PYFUNCTYPE(_C[result.strip()], *types)(lambda *given: f(*given[:count]))
    title = ctypes.create_string_buffer(signature)
    cuda._kept += [called, title]
    module.__pyx_capi__[name] = new(ctypes.cast(called, ctypes.c_void_p), title, None)
    if hasattr(module, name):
        setattr(module, name, f)


def _cublas() -> None:
    """A cuBLAS whose functions do nothing, for CuPy's module to be loaded with."""
    found = importlib.util.find_spec("cupy_backends.cuda.libs.cublas")
    assert found is not None and found.origin is not None
    names = {name.decode() for name in re.findall(rb"\bcublas[A-Z]\w+",
                                                  Path(found.origin).read_bytes())}
    wanted = re.search(rb"libcublas\.so\.(\d+)", Path(found.origin).read_bytes())
    assert wanted is not None
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "cublas.c"
        text.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in sorted(names)))
        for library in ("libcublasLt", "libcublas"):
            name = f"{library}.so.{wanted[1].decode()}"
            built = str(Path(folder) / name)
            subprocess.run(["g++", "-x", "c", "-shared", "-fPIC", "-w", f"-Wl,-soname,{name}",
                            str(text), "-o", built], check=True)
            ctypes.CDLL(built, ctypes.RTLD_GLOBAL)      # then none of this name is looked for


def stand_in(capability: int = 90) -> Cuda:
    """Import CuPy over one device of this compute capability; g++ is needed."""
    if "cupy" in sys.modules:
        raise RuntimeError("cupy is imported already; use a process of its own")
    import cupy_backends.cuda.api.driver as driver
    import cupy_backends.cuda.api.runtime as runtime

    cuda, version = Cuda(capability), driver.get_build_version()

    def nothing(*_: Any) -> None:
        pass

    def handle(*_: int) -> int:
        return _STREAM

    def zero(*_: int) -> int:
        return 0

    answers: dict[str, Callable[..., Any]] = {
        "getDevice": zero, "getDeviceCount": lambda: 1, "deviceGetAttribute": cuda.attribute,
        "driverGetVersion": lambda: version, "runtimeGetVersion": lambda: version,
        "getDeviceProperties": lambda _: {"warpSize": 32},
        "memGetInfo": lambda: (MEMORY, MEMORY), "malloc": cuda.malloc, "free": cuda.free,
        "hostAlloc": cuda.malloc, "freeHost": cuda.free, "pointerGetMemoryType": zero,
        "memcpy": _move, "memcpyAsync": _move, "memset": _fill, "memsetAsync": _fill,
        "deviceSynchronize": cuda.wait, "streamSynchronize": cuda.wait,
        "eventSynchronize": cuda.wait, "eventQuery": zero, "streamBeginCapture": cuda.begin,
        "streamEndCapture": cuda.end, "streamIsCapturing": lambda _: int(cuda.capturing),
        **dict.fromkeys(("streamCreateWithFlags", "streamCreateWithPriority", "graphInstantiate",
                         "eventCreate", "eventCreateWithFlags"), handle),
        **dict.fromkeys(("setDevice", "_ensure_context", "streamDestroy", "streamWaitEvent",
                         "graphLaunch", "graphUpload", "graphDestroy", "graphExecDestroy",
                         "eventRecord", "eventDestroy"), nothing)}
    for name, f in answers.items():
        _replace(cuda, runtime, name, f)
    _replace(cuda, driver, "moduleLoadData", cuda.load)
    _replace(cuda, driver, "moduleGetFunction", cuda.function)
    _replace(cuda, driver, "moduleUnload", nothing)
    _replace(cuda, driver, "launchKernel", cuda.launch)
    _cublas()
    from cupy.cuda import compiler, nvrtc, thrust

    for name in ("sort", "argsort", "lexsort"):         # they have a runtime of their own
        setattr(thrust, name, nothing)
    class Program:
        """CuPy's `_NVRTCProgram`."""

        def __init__(self, source: str, *_: Any, **__: Any) -> None:
            self.source = source

        def compile(self, options: tuple[str, ...] = (), log: Any = None) -> tuple[bytes, None]:
            code = cuda.compile(self.source, options)
            # an empty text is asked for to see which NVRTC this is
            return (code if self.source else b"// 12.9"), None

    compiler._NVRTCProgram = Program
    nvrtc.getVersion = lambda: (12, 9)
    return cuda
