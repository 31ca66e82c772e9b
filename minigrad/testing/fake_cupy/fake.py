"""A fake CuPy on a CPU: the CuPy backend's own code over arrays that behave as CuPy's.

They refuse implicit conversion to NumPy and mixing with NumPy's arrays. Reductions give arrays of
no axes. There are two devices, which do not mix, and one of them is current in a thread. Only names
and arguments that CuPy has can be used, and some functions have another answer than NumPy's
(`manners`). An index out of range wraps around without an error. A ufunc's `at` adds in another
order each time. Memory can run out.

Every wait for the device, upload, allocation and launch of a kernel is counted. The kernels of
kernels.cu run, compiled by g++ (`cuda`, beside this file); where there is no g++ the fake has none,
as a CuPy without them. Launches of ours are captured and replayed as a CUDA graph is. What CuPy
refuses during a capture is refused, and so is everything else that our graphs do without.
"""
from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ... import backend
from ...backend.cupy import CupyBackend
from . import cublas, cuda
from .arrays import Function, _array, _asnumpy, _erf, _in, _shares_memory, ndarray
from .device import (
    DEVICES,
    MEMORY,
    CUDARuntimeError,
    Device,
    refuse,
    state,
    using_allocator,
)
from .names import MODULE
from .streams import Event, Stream, current, used


class Namespace(types.ModuleType):
    """The module cupy: NumPy's functions on our arrays, under the names that CuPy has."""

    def __getattr__(self, name: str) -> Any:
        if name not in MODULE:
            raise AttributeError(f"module 'cupy' has no attribute {name!r}")
        value = getattr(np, name)
        if callable(value) and not isinstance(value, type):
            value = Function(name, value)
        setattr(self, name, value)
        return value


def _namespace() -> Namespace:
    made: Any = Namespace("cupy")
    runtime = types.SimpleNamespace(
        getDeviceCount=lambda: DEVICES, getDevice=lambda: state.thread.devices[-1],
        memGetInfo=lambda: (MEMORY // 2, MEMORY), runtimeGetVersion=lambda: 12090,
        driverGetVersion=lambda: 12090, CUDARuntimeError=CUDARuntimeError)
    pool = types.SimpleNamespace(used_bytes=lambda: MEMORY // 2, total_bytes=lambda: MEMORY // 2)
    made.cuda = types.SimpleNamespace(Device=Device, runtime=runtime,
                                      get_current_stream=current, cublas=cublas,
                                      get_cublas_handle=_handle, Stream=Stream, Event=Event,
                                      using_allocator=using_allocator,
                                      MemoryPool=lambda: types.SimpleNamespace(malloc=None))
    made.get_default_memory_pool = lambda: pool
    made.ndarray, made.asnumpy, made.array = ndarray, _asnumpy, _array
    made.shares_memory = _shares_memory
    made.asarray = lambda value, dtype=None: _array(value, dtype, copy=False)
    made.RawModule = lambda code, options=(): cuda.Module(code, options, _Host())
    return made


def _handle() -> int:
    refuse("cuBLAS")
    return cublas.handle()


class _Host(cuda.Host):
    """What launches ask of the fake's arrays, streams and counters."""

    def numbers(self, array: Any) -> Any:
        if isinstance(array, ndarray):
            array.on_current_device()
            return array._numbers
        return _in(array)

    def started(self, name: str, arrays: list[tuple[Any, bool]]) -> None:
        current().asked()
        for array, written in arrays:
            used(array.use, written, name)
        for counts in state.counters:
            counts.launches[name] += 1

    def captured(self) -> list[Callable[[], None]] | None:
        if state.captured is not None and current() is not state.captured_by:
            raise RuntimeError("a launch on another stream than the one that is captured")
        return state.captured

    def only(self, blocks: int) -> Sequence[int]:
        return state.only(blocks)

    def lent(self, address: int) -> Any:
        return state.lent.get(address)


class FakeCupyBackend(CupyBackend):
    """The CuPy backend over the fake's arrays."""

    name = "fake"

    def __init__(self) -> None:
        super().__init__(_namespace())
        if cuda.compiler() is None:
            self.kernels = {}

    def erf(self, x: Any) -> Any:
        return _erf(x)


_backend = functools.cache(FakeCupyBackend)


def install() -> FakeCupyBackend:
    """Make the backend known under its name; the same one when called again."""
    backend.register(_backend())
    return _backend()
