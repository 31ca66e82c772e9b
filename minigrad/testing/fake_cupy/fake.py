"""A double of CuPy on a CPU: the CuPy backend's own code over arrays that behave as CuPy's.

Where it matters, they do: they refuse implicit conversion to NumPy and mixing with NumPy's arrays;
reductions give arrays of no axes; there are two devices, which do not mix, one of them current in a
thread; only names and arguments that CuPy has can be used; an index out of range wraps around
without a word; a ufunc's `at` adds in another order each time; memory can run out.

Every wait for the device, upload, allocation and launch of a kernel is counted. The kernels of
kernels.cu run, compiled by g++ (`cuda`, beside this file); where there is no g++ the double has
none, as a CuPy without them. Launches of ours are captured and replayed as a CUDA graph is; what
CuPy refuses meanwhile is refused, and so is all that our graphs do without.
"""
from __future__ import annotations

import contextlib
import functools
import math
import operator
import threading
import types
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ... import backend
from ...backend.cupy import CupyBackend
from . import cublas, cuda
from .names import LACKED, MODULE, NDARRAY, UFUNC

DEVICES, MEMORY = 2, 8 << 30                            # bytes of each device
_WAITING = {"get", "item", "tolist", "tobytes", "tofile", "dump", "dumps", "nonzero", "compress",
            "choose", "put"}                            # methods
_WAITING_FUNCTIONS = {          # CuPy's source says where it waits, for some arguments at least
    "asnumpy", "nonzero", "flatnonzero", "argwhere", "unique", "unique_all", "unique_counts",
    "unique_inverse", "unique_values", "extract", "compress", "choose", "put", "bincount",
    "histogram", "histogram2d", "histogramdd", "digitize", "delete", "trim_zeros", "median", "cov",
    "intersect1d", "setdiff1d", "setxor1d", "union1d", "ravel_multi_index", "average", "quantile",
    "percentile", "shares_memory"}


class Counts:
    """What was done to the device.

    syncs (the host waited), uploads, allocations with their bytes, and dtypes allocated; launches
    of each kernel of ours, and replays of graphs.
    """

    def __init__(self) -> None:
        self.syncs = self.uploads = self.allocations = self.bytes = self.replays = 0
        self.dtypes: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()

    def __repr__(self) -> str:
        return (f"{self.syncs} syncs, {self.uploads} uploads, {self.allocations} allocations of "
                f"{self.bytes} bytes ({dict(self.dtypes)})")


_counters: list[Counts] = []


class _Thread(threading.local):
    """The current device of a thread, and those of the blocks around it."""

    def __init__(self) -> None:
        self.devices = [0]


_thread = _Thread()
_left: list[int] = []                                   # allocations that there is still memory for
_captured: list[Callable[[], None]] | None = None       # the launches of a graph in the making
_private = False                                        # is memory from a pool that a graph keeps?
_disorder = np.random.default_rng()


@contextlib.contextmanager
def counting() -> Iterator[Counts]:
    """What happens inside the block is counted in the Counts that it gives."""
    counts = Counts()
    _counters.append(counts)
    try:
        yield counts
    finally:
        _counters.remove(counts)


def _count(what: str) -> None:
    if what in ("syncs", "uploads"):
        _refuse(f"{what} (a wait for the device, or a copy from the host)")
    for counts in _counters:
        setattr(counts, what, getattr(counts, what) + 1)


class CUDARuntimeError(RuntimeError):
    """cupy.cuda.runtime.CUDARuntimeError."""


class OutOfMemoryError(MemoryError):
    """cupy.cuda.memory.OutOfMemoryError."""


@contextlib.contextmanager
def short_of_memory(allocations: int) -> Iterator[None]:
    """Inside the block there is memory for so many allocations, and for none after them."""
    _left.append(allocations)
    try:
        yield
    finally:
        _left.pop()


def _refuse(what: str) -> None:
    if _captured is not None:
        raise RuntimeError(f"{what} while a stream is captured")


class Stream:
    """cupy.cuda.Stream, as far as capturing goes."""

    def __init__(self, *, non_blocking: bool = False) -> None:
        self.non_blocking = non_blocking

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def synchronize(self) -> None:
        _count("syncs")

    def begin_capture(self) -> None:
        global _captured
        _refuse("a capture")
        _captured = []

    def end_capture(self) -> Graph:
        global _captured
        assert _captured is not None
        graph, _captured = Graph(_captured), None
        return graph


class Graph:
    """cupy.cuda.Graph: launches with the arguments that they had when they were captured."""

    def __init__(self, launches: list[Callable[[], None]]) -> None:
        self.launches = launches

    def launch(self) -> None:
        _refuse("a graph")
        _count("replays")
        for run in self.launches:
            run()


@contextlib.contextmanager
def _using_allocator(malloc: Any) -> Iterator[None]:
    global _private
    _private = True
    try:
        yield
    finally:
        _private = False


class Device:
    """cupy.cuda.Device: arrays are made on the device whose block one is in."""

    attributes = {"MultiProcessorCount": 1}      # fewer blocks are less to run

    def __init__(self, number: int = 0) -> None:
        self.id = number

    def __enter__(self) -> Device:
        _thread.devices.append(self.id)
        return self

    def __exit__(self, *error: object) -> None:
        _thread.devices.pop()

    def use(self) -> Device:
        if self.id >= DEVICES:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        _thread.devices[-1] = self.id
        return self

    @property
    def compute_capability(self) -> str:
        return "90"


def _in(x: Any) -> Any:
    """What NumPy is to compute with: our arrays' numbers; numbers and dtypes as they are."""
    if isinstance(x, ndarray):
        if x.device.id != _thread.devices[-1]:
            raise ValueError(f"The device where the array resides ({x.device.id}) is different "
                             f"from the current device ({_thread.devices[-1]}). "
                             "Peer access is unavailable between these devices.")
        return x._numbers
    if isinstance(x, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(x, tuple | list):
        return type(x)(map(_in, x))
    return x


def _out(x: Any, given: Any = ()) -> Any:
    """A result of NumPy as ours: a view of one of the arrays given, or a new allocation."""
    if isinstance(x, tuple | list):
        return type(x)(_out(y, given) for y in x)
    if not isinstance(x, np.ndarray | np.generic):
        return x
    numbers = np.asarray(x)
    for a in given:
        if a._numbers is numbers:
            return a
        if numbers.base is not None and np.may_share_memory(numbers, a._numbers):
            return ndarray(numbers, a.base if a.base is not None else a)
    if not numbers.flags.writeable:     # NumPy's broadcast_to of nothing: it overlaps no argument
        numbers = numbers.copy()
    if not _private:
        _refuse("memory that the graph does not keep")
    for counts in _counters:
        counts.allocations += 1
        counts.bytes += numbers.nbytes
        counts.dtypes[str(numbers.dtype)] += 1
    if _left:
        if _left[-1] == 0:
            raise OutOfMemoryError(f"Out of memory allocating {numbers.nbytes:,} bytes "
                                   f"(allocated so far: {MEMORY:,} bytes).")
        _left[-1] -= 1
    return ndarray(numbers)


def _ours(x: Any) -> list[Any]:
    if isinstance(x, tuple | list):
        return [a for y in x for a in _ours(y)]
    return [x] if isinstance(x, ndarray) else []


def _call(f: Callable[..., Any], args: Any, options: dict[str, Any]) -> Any:
    if f is not np.empty:
        _refuse("a kernel that is none of ours")
    given = _ours(args) + _ours(list(options.values()))
    return _out(f(*_in(args), **{k: _in(v) for k, v in options.items()}), given)


class ndarray:
    """cupy.ndarray, as far as its manners go."""

    __slots__ = ("_numbers", "base", "device", "__weakref__")
    __array_ufunc__ = None                             # NumPy's operators leave the refusal to ours
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, numbers: np.ndarray, base: Any = None) -> None:
        self._numbers, self.base = numbers, base
        self.device = Device(_thread.devices[-1]) if base is None else base.device

    def __array__(self, *args: Any, **options: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. "
                        "Please use `.get()` to construct a NumPy array explicitly.")

    def __getattr__(self, name: str) -> Any:
        if name not in NDARRAY:
            raise AttributeError(f"'cupy.ndarray' object has no attribute {name!r}")
        if name == "get":
            _count("syncs")
            return self._numbers.copy
        if name == "data":
            return types.SimpleNamespace(ptr=self._numbers.ctypes.data, device_id=self.device.id)
        value = getattr(self._numbers, name)
        if not callable(value):
            return _out(value, [self]) if isinstance(value, np.ndarray) else value
        if name in _WAITING:
            _count("syncs")
        lacked = LACKED.get(name, frozenset())

        def method(*args: Any, **options: Any) -> Any:
            _in(self)                                   # on the current device?
            _known(name, options.keys() & lacked)
            given = [self, *_ours(args), *_ours(list(options.values()))]
            result = value(*_in(args), **{k: _in(v) for k, v in options.items()})
            return result if name in _WAITING - {"nonzero"} else _out(result, given)

        return method

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return repr(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        return _out(_in(self)[_index(index, self.shape)], [self])

    def __setitem__(self, index: Any, value: Any) -> None:
        _refuse("a kernel that is none of ours")
        _in(self)[_index(index, self.shape)] = _in(value)


def _known(name: str, unknown: Any) -> None:
    """TypeError where an argument was given that CuPy does not take."""
    if unknown:
        raise TypeError(f"{name}() got an unexpected keyword argument {min(unknown)!r}")


def _index(index: Any, shape: tuple[int, ...]) -> Any:
    """An index into `shape` for NumPy; whole numbers in arrays wrap around.

    A mask must be counted before the result has a shape, so the host waits; an array of NumPy or a
    list is uploaded.
    """
    parts = list(index) if isinstance(index, tuple) else [index]
    taken = [0 if p is None or p is Ellipsis
             else p.ndim if str(getattr(p, "dtype", "")) == "bool" else 1 for p in parts]
    axis, rest = 0, len(shape) - sum(taken)
    for i, p in enumerate(parts):
        if isinstance(p, np.ndarray | list):
            _count("uploads")
            p = np.asarray(p)
        elif isinstance(p, ndarray):
            p = _in(p)
        if isinstance(p, np.ndarray) and p.dtype == bool:
            _count("syncs")
        elif isinstance(p, np.ndarray) and p.dtype.kind in "iu":
            p = _wrapped(p, shape[axis] if axis < len(shape) else 0)
        parts[i] = p
        axis += rest if p is Ellipsis else taken[i]
    return tuple(parts) if isinstance(index, tuple) else parts[0]


def _wrapped(index: Any, n: int) -> Any:
    return index % n if n else index


def _operators() -> None:
    def binary(f: Callable[..., Any]) -> Any:
        return lambda self, other: _call(f, (self, other), {})

    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_",
                 "xor", "lshift", "rshift"):
        f = getattr(operator, name)
        dunder = name.rstrip("_")
        setattr(ndarray, f"__{dunder}__", binary(f))
        setattr(ndarray, f"__r{dunder}__", binary(lambda a, b, f=f: f(b, a)))
        setattr(ndarray, f"__i{dunder}__", binary(getattr(operator, f"i{dunder}")))
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(ndarray, f"__{name}__", binary(getattr(operator, name)))
    for name in ("neg", "pos", "abs", "invert"):
        f = getattr(operator, name)
        unary = functools.partialmethod(lambda self, f: _call(f, (self,), {}), f)
        setattr(ndarray, f"__{name}__", unary)

    def number(f: Callable[..., Any]) -> Any:
        def convert(self: Any) -> Any:
            _count("syncs")
            return f(self._numbers)

        return convert

    convert: Any
    for name, convert in {"bool": bool, "int": int, "float": float, "complex": complex,
                          "index": operator.index}.items():
        setattr(ndarray, f"__{name}__", number(convert))


_operators()


class _Function:
    """A function of the namespace; ufuncs also have `at` and the like."""

    def __init__(self, name: str, f: Any) -> None:
        self.__name__, self._f = name, f

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self.__name__ in _WAITING_FUNCTIONS or (self.__name__ == "where" and len(args) == 1):
            _count("syncs")
        ufunc = isinstance(self._f, np.ufunc) and self._f.signature is None
        lacked = LACKED.get(self.__name__, frozenset())
        _known(self.__name__, options.keys() - UFUNC if ufunc else options.keys() & lacked)
        if self.__name__ == "take":
            options["mode"] = "wrap"
        elif self.__name__ == "take_along_axis" and isinstance(args[1], ndarray):
            axis = args[2] if len(args) > 2 else options["axis"]
            args = (args[0], _out(_wrapped(_in(args[1]), args[0].shape[axis])), *args[2:])
        return _call(self._f, args, options)

    def at(self, array: Any, index: Any, values: Any) -> None:
        numbers = _in(array)
        places = np.arange(numbers.size).reshape(numbers.shape)[_index(index, numbers.shape)]
        order = _disorder.permutation(places.size)      # threads of a GPU come in any order
        where = np.unravel_index(places.reshape(-1)[order], numbers.shape)
        self._f.at(numbers, where, np.broadcast_to(_in(values), places.shape).reshape(-1)[order])


def _array(value: Any, dtype: Any = None, copy: bool = True) -> Any:
    """cupy.array and asarray: a copy of ours, or an upload."""
    if isinstance(value, ndarray):
        if value.device.id != _thread.devices[-1]:             # from one device to another
            if not (value._numbers.flags.c_contiguous or value._numbers.flags.f_contiguous):
                raise NotImplementedError("CuPy cannot copy non-contiguous array between devices.")
        elif not copy and dtype in (None, value.dtype):
            return value
        return _out(np.array(value._numbers, dtype=dtype))
    _count("uploads")
    return _out(np.array(value, dtype=dtype))


def _asnumpy(array: Any) -> Any:
    _count("syncs")
    return array._numbers.copy()


def _erf(x: Any) -> Any:
    exact = [math.erf(v) for v in _in(x).ravel().tolist()]
    return _out(np.array(exact, x.dtype).reshape(x.shape))


class Namespace(types.ModuleType):
    """The module cupy: NumPy's functions on our arrays, under the names that CuPy has."""

    def __getattr__(self, name: str) -> Any:
        if name not in MODULE:
            raise AttributeError(f"module 'cupy' has no attribute {name!r}")
        value = getattr(np, name)
        if callable(value) and not isinstance(value, type):
            value = _Function(name, value)
        setattr(self, name, value)
        return value


def _namespace() -> Namespace:
    made: Any = Namespace("cupy")
    stream = Stream()
    runtime = types.SimpleNamespace(
        getDeviceCount=lambda: DEVICES, getDevice=lambda: _thread.devices[-1],
        memGetInfo=lambda: (MEMORY // 2, MEMORY), runtimeGetVersion=lambda: 12090,
        driverGetVersion=lambda: 12090, CUDARuntimeError=CUDARuntimeError)
    pool = types.SimpleNamespace(used_bytes=lambda: MEMORY // 2, total_bytes=lambda: MEMORY // 2)
    made.cuda = types.SimpleNamespace(Device=Device, runtime=runtime,
                                      get_current_stream=lambda: stream, cublas=cublas,
                                      get_cublas_handle=_handle, Stream=Stream,
                                      using_allocator=_using_allocator,
                                      MemoryPool=lambda: types.SimpleNamespace(malloc=None))
    made.get_default_memory_pool = lambda: pool
    made.ndarray, made.asnumpy, made.array = ndarray, _asnumpy, _array
    made.asarray = lambda value, dtype=None: _array(value, dtype, copy=False)
    made.RawModule = lambda code, options=(): cuda.Module(
        code, options, _in, _launched, lambda: _captured)
    return made


def _handle() -> int:
    _refuse("cuBLAS")
    return 0


def _launched(name: str) -> None:
    for counts in _counters:
        counts.launches[name] += 1


class CupyDouble(CupyBackend):
    """The CuPy backend over the double's arrays, under the name "double"."""

    name = "double"

    def __init__(self) -> None:
        super().__init__(_namespace())
        if cuda.compiler() is None:
            self.kernels = {}

    def erf(self, x: Any) -> Any:
        return _erf(x)


_double = functools.cache(CupyDouble)


def install() -> CupyDouble:
    """Make the double known as "double"; the same one when called again."""
    backend.register(_double())
    return _double()
