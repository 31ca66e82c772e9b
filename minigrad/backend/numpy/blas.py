"""NumPy's own BLAS: its threads, and products with smaller rounding errors.

The functions here read and set the number of its threads, and can limit it to one.
"""
from __future__ import annotations

import contextlib
import ctypes
import functools
import glob
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from .sizes import SIZES

_PREFIXES = ("scipy_openblas_", "openblas_")
_SUFFIXES = ("64_", "")


@functools.cache
def library() -> tuple[Any, str, str] | None:
    """The loaded OpenBLAS with the prefix and suffix of its names; None for another BLAS."""
    here = os.path.dirname(np.__file__)
    places = (os.path.join(here, "..", "numpy.libs"), os.path.join(here, ".dylibs"))
    files = (found for place in places for found in glob.glob(os.path.join(place, "*openblas*")))
    for path in sorted(files):
        try:
            found = ctypes.CDLL(path)
        except OSError:
            continue
        for prefix in _PREFIXES:
            for suffix in _SUFFIXES:
                if hasattr(found, f"{prefix}set_num_threads{suffix}"):
                    return found, prefix, suffix
    return None


def call(name: str, *args: Any, restype: Any = ctypes.c_int) -> Any:
    """Call OpenBLAS's function `name` (without prefix and suffix); None without OpenBLAS."""
    found = library()
    if found is None:
        return None
    f = getattr(found[0], f"{found[1]}{name}{found[2]}")
    f.restype = restype
    return f(*args)


def sleep_after(power: int) -> bool:
    """Let OpenBLAS's threads spin for 2^power processor cycles when idle, and then sleep.

    Returns whether that was possible; it is not if OPENBLAS_THREAD_TIMEOUT is set already. The
    threads read this variable when they start: so they are ended here, and the next product starts
    them again. No other thread may be inside BLAS during this call.
    """
    found, name = library(), "OPENBLAS_THREAD_TIMEOUT"
    needed = ("openblas_read_env", "blas_thread_shutdown_")
    if found is None or name in os.environ or not all(hasattr(found[0], f) for f in needed):
        return False
    os.environ[name] = str(power)
    try:
        found[0].openblas_read_env()
        found[0].blas_thread_shutdown_()
    finally:
        del os.environ[name]
    return True


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside the block BLAS uses one thread, because several threads call it at once."""
    was = call("get_num_threads")
    if was is None or was == 1:
        yield
        return
    call("set_num_threads", 1)
    try:
        yield
    finally:
        call("set_num_threads", was)


@functools.cache
def _sgemm() -> Any:
    """cblas_sgemm of the loaded library; None if it has none."""
    found = library()
    if found is None:
        return None
    lib, prefix, suffix = found
    f = getattr(lib, f"{prefix.removesuffix('openblas_')}cblas_sgemm{suffix}", None)
    if f is not None:
        integer, array = ctypes.c_int64 if suffix else ctypes.c_int, ctypes.c_void_p
        f.restype = None
        f.argtypes = [*[ctypes.c_int] * 3, *[integer] * 3, ctypes.c_float, array, integer,
                      array, integer, ctypes.c_float, array, integer]
    return f


def _stored(x: Any) -> tuple[int, int] | None:
    """cblas's number for the memory layout of a matrix, and the distance between its lines.

    The number is 111 for rows, 112 for columns. None for any other layout.
    """
    size = x.itemsize
    for word, inner, outer, length in ((111, 1, 0, x.shape[1]), (112, 0, 1, x.shape[0])):
        if (x.strides[inner] == size and x.strides[outer] % size == 0
                and x.strides[outer] >= length * size):
            return word, x.strides[outer] // size
    return None


def matmul(a: Any, b: Any, out: Any = None, add: bool = False) -> Any:
    """a @ b; it is written into `out`, or added to it.

    Large float32 matrices are multiplied SIZES.chunk terms at a time, and each part is added to the
    sum so far. A sum of n terms one after the other has a relative error of about u√(n/6)
    (tolerance.13), and a sum in parts of c terms u√(c/6 + n/6c) (tolerance.14). Most kernels of
    OpenBLAS use 384 terms at a time, with √2 times the error of 192 terms, which need a few percent
    more time.
    """
    if (a.ndim == b.ndim == 2 and a.dtype == b.dtype == np.float32 and a.shape[1] == b.shape[0]
            and (add or a.shape[1] > SIZES.chunk)):
        (m, k), n = a.shape, b.shape[1]
        how_a, how_b, gemm = _stored(a), _stored(b), _sgemm()
        if min(m, n, k) > 1 and m * k * n >= SIZES.worth and how_a and how_b and gemm:
            if out is None:
                out = np.empty((m, n), np.float32)
            how_out = _stored(out) if out.dtype == np.float32 else None
            if how_out and how_out[0] == 111:
                step = -(-k // -(-k // SIZES.chunk))
                step += -step % SIZES.lanes
                for i in range(0, k, step):
                    gemm(101, how_a[0], how_b[0], m, n, min(step, k - i), 1.0,
                         a.ctypes.data + i * a.strides[1], how_a[1],
                         b.ctypes.data + i * b.strides[0], how_b[1],
                         1.0 if i or add else 0.0, out.ctypes.data, how_out[1])
                return out
    if out is None:
        if a.ndim == b.ndim == 2 and len(a) == 1:
            # this calls gemv in every layout; for a single row of a matrix NumPy calls gemm
            return np.matmul(a[0], b)[None]
        return np.matmul(a, b)
    if not add:
        return np.matmul(a, b, out=out)
    out += np.matmul(a, b)
    return out
