"""NumPy: arrays in the memory of this machine."""
from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ShapeError
from ..base import Backend
from . import blas
from .kernels import add_rows, cores, over_rows
from .packed_linear import pack
from .sizes import SIZES
from .table import KERNELS

# log₂ of the cycles that idle threads spin, 0.4 ms; OpenBLAS's default is 2²⁸, 0.1 s
SPIN = 20


class NumpyBackend(Backend):
    """The CPU. Its arrays are numpy.ndarray, memory-mapped ones included."""

    name = "numpy"
    namespace = np
    array_types = (np.ndarray,)
    scalar_types = (np.bool_, np.float16, np.float32, np.float64, np.longdouble,
                    np.int8, np.int16, np.int32, np.int64,
                    np.uint8, np.uint16, np.uint32, np.uint64)

    def __init__(self) -> None:
        self.logits = SIZES.logits
        self.kernels = dict(KERNELS)

    def errstate(self, **kinds: Any) -> Any:
        return np.errstate(**kinds)

    def host(self, array: Any) -> Any:
        return array

    def sum(self, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        total: Any = np.add.reduce
        return total(x, axis=axis, keepdims=keepdims)   # np.sum without its overhead

    def matmul(self, a: Any, b: Any) -> Any:
        return blas.matmul(a, b)

    def take(self, x: Any, indices: Any, axis: int = 0) -> Any:
        if axis == 0 and not x.flags.c_contiguous:
            return x[indices]                           # np.take would copy all of x first
        return np.take(x, indices, axis=axis)

    def owns(self, array: Any) -> bool:
        return array.base is None

    def free_memory(self) -> int:
        # the memory that Linux has without swapping, and that a container may still use; other
        # systems have no such number
        free = [sys.maxsize]
        with contextlib.suppress(OSError, StopIteration, ValueError, IndexError):
            lines = Path("/proc/meminfo").read_text().splitlines()
            found = next(line for line in lines if line.startswith("MemAvailable:"))
            free.append(1024 * int(found.split()[1]))
        with contextlib.suppress(OSError, ValueError):
            most, used = (int(Path("/sys/fs/cgroup", name).read_text())
                          for name in ("memory.max", "memory.current"))
            free.append(max(0, most - used))
        return min(free)

    def settle(self, part: int = 0, parts: int = 1) -> None:
        # glibc returns large arrays to the system when they are freed, and each new one then costs
        # page faults
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            # M_MMAP_MAX: no array is a mapping of its own, unmapped when it is freed
            libc.mallopt(-4, 0)
            libc.mallopt(-1, 2**31 - 1)                 # M_TRIM_THRESHOLD
        n = cores()
        # if n is smaller, the cores have been divided already
        if parts > 1 and n == os.cpu_count() and hasattr(os, "sched_setaffinity"):
            first = part * n // parts
            after = max(first + 1, (part + 1) * n // parts)
            mine = sorted(os.sched_getaffinity(0))[first:after]
            os.sched_setaffinity(0, mine)
            blas.call("set_num_threads", min(len(mine), blas.call("get_num_threads") or 1))
        blas.sleep_after(SPIN)

    def lay_out(self, matrix: Any) -> Any:
        rows, columns = matrix.shape
        if rows < columns and matrix.flags.f_contiguous and not matrix.flags.c_contiguous:
            return self.lay_out(matrix.T).T
        if rows <= columns or matrix.flags.f_contiguous or not matrix.flags.c_contiguous:
            return matrix
        square = SIZES.square
        # gemv reads the longest runs of memory if the longer axis is the inner one
        out = np.empty((columns, rows), matrix.dtype)

        def work(i: int, j: int) -> None:
            for k in range(0, columns, square):
                out[k:k + square, i:j] = matrix[i:j, k:k + square].T

        over_rows(rows, SIZES.block // square, work)
        return out.T

    def pack(self, matrix: Any) -> Any:
        return pack(matrix) if matrix.dtype in (np.float32, np.float64) else None

    def add_at_rows(self, rows: int, index: Any, values: Any) -> Any:
        out = np.zeros((rows, values.shape[1]), values.dtype)
        add_rows(out, index, values)
        return out

    def add_at(self, array: Any, index: Any, values: Any) -> None:
        np.add.at(array, index, values)

    def check_index(self, index: Any, size: int, what: str) -> None:
        super().check_index(index, size, what)
        if index.size and (index.min() < 0 or index.max() >= size):
            bad = index[(index < 0) | (index >= size)].flat[0]
            raise ShapeError(f"{what} must lie in 0 … {size - 1}; {bad} does not")
