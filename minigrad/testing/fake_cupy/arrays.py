"""The arrays of a fake GPU, and functions of NumPy on them, with CuPy's manners."""
from __future__ import annotations

import functools
import math
import operator
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .cuda import flushed
from .device import MEMORY, Device, OutOfMemoryError, count, refuse, state
from .manners import MANNERS
from .names import LACKED, NDARRAY, UFUNC
from .streams import Use, current, reached_host, used

_WAITING = {"get", "item", "tolist", "tobytes", "tofile", "dump", "dumps", "nonzero", "compress",
            "choose", "put"}                            # methods
_IN_PLACE = {"fill", "partition", "put", "sort"}
_WAITING_FUNCTIONS = {          # CuPy's source says where it waits, for some arguments at least
    "asnumpy", "nonzero", "flatnonzero", "argwhere", "unique", "unique_all", "unique_counts",
    "unique_inverse", "unique_values", "extract", "compress", "choose", "put", "bincount",
    "histogram", "histogram2d", "histogramdd", "digitize", "delete", "trim_zeros", "median", "cov",
    "intersect1d", "setdiff1d", "setxor1d", "union1d", "ravel_multi_index", "average", "quantile",
    "percentile"}


def _in(x: Any) -> Any:
    """What NumPy is to compute with: our arrays' numbers; numbers and dtypes as they are."""
    if isinstance(x, ndarray):
        x.on_current_device()
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
    if not state.private:
        refuse("memory that the graph does not keep")
    for counts in state.counters:
        counts.allocations += 1
        counts.bytes += numbers.nbytes
        counts.dtypes[str(numbers.dtype)] += 1
    if state.left:
        if state.left[-1] == 0:
            raise OutOfMemoryError(f"Out of memory allocating {numbers.nbytes:,} bytes "
                                   f"(allocated so far: {MEMORY:,} bytes).")
        state.left[-1] -= 1
    return ndarray(numbers)


def _ours(x: Any) -> list[Any]:
    if isinstance(x, tuple | list):
        return [a for y in x for a in _ours(y)]
    return [x] if isinstance(x, ndarray) else []


def _asked(made: Any, given: list[Any], written: Sequence[Any] = ()) -> Any:
    """made, which the current stream is asked to compute from `given`, or to write into `written`.

    A view is none of its affairs.
    """
    new = [a for a in _ours(made) if a.base is None and all(a is not b for b in given)]
    if new or written:
        current().asked()
        for a in given:
            used(a.use, False, "a function of CuPy")
        for a in (*new, *written):
            used(a.use, True, "a function of CuPy")
    return made


def _call(f: Callable[..., Any], args: Any, options: dict[str, Any], into: Any = None) -> Any:
    if f is not np.empty:
        refuse("a kernel that is none of ours")
    given = _ours(args) + _ours(list(options.values()))
    numbers, named = _in(args), {k: _in(v) for k, v in options.items()}
    with flushed(a._numbers for a in given):
        result = f(*numbers, **named)
    made = _out(result, given)
    return made if f is np.empty else _asked(made, given, _ours([into, options.get("out")]))


class ndarray:
    """cupy.ndarray, as far as its manners go."""

    __slots__ = ("__weakref__", "_numbers", "base", "device", "use")
    __array_ufunc__ = None                             # NumPy's operators leave the refusal to ours
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, numbers: np.ndarray, base: Any = None) -> None:
        self._numbers, self.base = numbers, base
        self.device = Device(state.thread.devices[-1]) if base is None else base.device
        self.use = Use() if base is None else base.use

    def on_current_device(self) -> None:
        here = state.thread.devices[-1]
        if self.device.id != here:
            raise ValueError(f"The device where the array resides ({self.device.id}) is different "
                             f"from the current device ({here}). "
                             "Peer access is unavailable between these devices.")

    def __array__(self, *args: Any, **options: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. "
                        "Please use `.get()` to construct a NumPy array explicitly.")

    def __getattr__(self, name: str) -> Any:
        if name not in NDARRAY:
            raise AttributeError(f"'cupy.ndarray' object has no attribute {name!r}")
        if name == "get":
            count("syncs")
            reached_host(self)
            return self._numbers.copy
        if name == "data":
            state.lent[self._numbers.ctypes.data] = self
            return types.SimpleNamespace(ptr=self._numbers.ctypes.data, device_id=self.device.id)
        value = getattr(self._numbers, name)
        if name in MANNERS and name != "sort":          # the method sorts in place
            value = functools.partial(MANNERS[name], self._numbers)
        if not callable(value):
            return _out(value, [self]) if isinstance(value, np.ndarray) else value
        if name in _WAITING:
            count("syncs")
        lacked = LACKED.get(name, frozenset())

        def method(*args: Any, **options: Any) -> Any:
            _in(self)                                   # on the current device?
            _known(name, options.keys() & lacked)
            given = [self, *_ours(args), *_ours(list(options.values()))]
            numbers, named = _in(args), {k: _in(v) for k, v in options.items()}
            with flushed(a._numbers for a in given):
                result = value(*numbers, **named)
            if name in _WAITING - {"nonzero"}:
                reached_host(self)
                return result
            return _asked(_out(result, given), given, [self] if name in _IN_PLACE else ())

        return method

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return repr(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        given = [self, *_ours(index)]
        return _asked(_out(_in(self)[_index(index, self.shape)], [self]), given)

    def __setitem__(self, index: Any, value: Any) -> None:
        refuse("a kernel that is none of ours")
        _in(self)[_index(index, self.shape)] = _in(value)
        _asked(None, [*_ours(index), *_ours(value)], [self])


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
            count("uploads")
            p = np.asarray(p) if np.size(p) else np.zeros(np.shape(p), dtype=int)
        elif isinstance(p, ndarray):
            p = _in(p)
        if isinstance(p, np.ndarray) and p.dtype == bool:
            count("syncs")
        elif isinstance(p, np.ndarray) and p.dtype.kind in "iu":
            p = _wrapped(p, shape[axis] if axis < len(shape) else 0)
        parts[i] = p
        axis += rest if p is Ellipsis else taken[i]
    return tuple(parts) if isinstance(index, tuple) else parts[0]


def _wrapped(index: Any, n: int) -> Any:
    return index % n if n else index


def _operators() -> None:
    def binary(f: Callable[..., Any], in_place: bool = False) -> Any:
        return lambda self, other: _call(f, (self, other), {}, self if in_place else None)

    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_",
                 "xor", "lshift", "rshift"):
        f = MANNERS.get(name, getattr(operator, name))
        dunder = name.rstrip("_")
        setattr(ndarray, f"__{dunder}__", binary(f))
        setattr(ndarray, f"__r{dunder}__", binary(lambda a, b, f=f: f(b, a)))
        in_place = binary(getattr(operator, f"i{dunder}"), in_place=True)
        setattr(ndarray, f"__i{dunder}__", in_place)
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(ndarray, f"__{name}__", binary(getattr(operator, name)))
    for name in ("neg", "pos", "abs", "invert"):
        f = getattr(operator, name)
        unary = functools.partialmethod(lambda self, f: _call(f, (self,), {}), f)
        setattr(ndarray, f"__{name}__", unary)

    def number(f: Callable[..., Any]) -> Any:
        def convert(self: Any) -> Any:
            count("syncs")
            reached_host(self)
            return f(self._numbers)

        return convert

    convert: Any
    for name, convert in {"bool": bool, "int": int, "float": float, "complex": complex,
                          "index": operator.index}.items():
        setattr(ndarray, f"__{name}__", number(convert))


_operators()


class Function:
    """A function of the namespace; ufuncs also have `at` and the like."""

    def __init__(self, name: str, f: Any) -> None:
        self.__name__, self._f, self._called = name, f, MANNERS.get(name, f)

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self.__name__ in _WAITING_FUNCTIONS or (self.__name__ == "where" and len(args) == 1):
            count("syncs")
        ufunc = isinstance(self._f, np.ufunc) and self._f.signature is None
        lacked = LACKED.get(self.__name__, frozenset())
        _known(self.__name__, options.keys() - UFUNC if ufunc else options.keys() & lacked)
        if self.__name__ == "take":
            options["mode"] = "wrap"
        elif self.__name__ == "take_along_axis" and isinstance(args[1], ndarray):
            axis = args[2] if len(args) > 2 else options["axis"]
            args = (args[0], _out(_wrapped(_in(args[1]), args[0].shape[axis])), *args[2:])
        return _call(self._called, args, options)

    def at(self, array: Any, index: Any, values: Any) -> None:
        numbers = _in(array)
        _asked(None, [*_ours(index), *_ours(values)], [array])
        places = np.arange(numbers.size).reshape(numbers.shape)[_index(index, numbers.shape)]
        order = state.disorder.permutation(places.size)      # threads of a GPU come in any order
        where = np.unravel_index(places.reshape(-1)[order], numbers.shape)
        self._f.at(numbers, where, np.broadcast_to(_in(values), places.shape).reshape(-1)[order])


def _array(value: Any, dtype: Any = None, copy: bool = True) -> Any:
    """cupy.array and asarray: a copy of ours, or an upload."""
    if isinstance(value, ndarray):
        if value.device.id != state.thread.devices[-1]:             # from one device to another
            if not (value._numbers.flags.c_contiguous or value._numbers.flags.f_contiguous):
                raise NotImplementedError("CuPy cannot copy non-contiguous array between devices.")
        elif not copy and dtype in (None, value.dtype):
            return value
        return _asked(_out(np.array(value._numbers, dtype=dtype)), [value])
    count("uploads")
    return _asked(_out(np.array(value, dtype=dtype)), [])


def _asnumpy(array: Any) -> Any:
    count("syncs")
    reached_host(array)
    return array._numbers.copy()


def _shares_memory(a: Any, b: Any) -> bool:
    """CuPy compares the addresses of numbers; of an array without axes, that of a copy of it."""
    count("syncs")
    if a is b:
        return bool(a.size)
    if a.ndim == 0 or b.ndim == 0:
        return bool(a.ndim == b.ndim)
    return bool(np.shares_memory(_in(a), _in(b)))


def _erf(x: Any) -> Any:
    exact = [math.erf(v) for v in _in(x).ravel().tolist()]
    return _out(np.array(exact, x.dtype).reshape(x.shape))
