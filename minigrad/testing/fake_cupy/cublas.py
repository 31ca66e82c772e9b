"""cuBLAS for the fake CuPy: what `minigrad.backend.cupy.cublas` calls, on memory at an address.

It knows the compute types, algorithms and math modes of cuBLAS 12, refuses all others and
combinations that cuBLAS does not have, and rounds wherever they allow cuBLAS to round: factors to
the numbers that a fast compute type may convert them to, and parts of a sum to the result's dtype.
So whoever asks for less precision than is meant gets other numbers.
"""
from __future__ import annotations

import ctypes
from collections import defaultdict
from typing import Any

import numpy as np

from .device import Device, state
from .streams import current, used

_DTYPES = {0: "float32", 1: "float64", 2: "float16", 14: "bfloat16"}
_16F, _32F, _64F, _32F_FAST_16F, _32F_FAST_16BF, _32F_FAST_TF32 = 64, 68, 70, 74, 75, 77
_PEDANTIC = {_16F: 65, _32F: 69, _64F: 71}              # those of them that never round more
_DEFAULT, _TENSOR_OP = -1, 99
_ALGORITHMS = {_DEFAULT, *range(24), _TENSOR_OP, *range(100, 116)}
# math modes: the default; tensor cores (deprecated), pedantic and TF32; and a bit beside them
_TENSOR_OP_MATH, _PEDANTIC_MATH, _TF32_MATH, _WHOLE_SUMS = 1, 2, 3, 16
_TYPES = {                                              # of the factors, and of the result
    _16F: {(2, 2)}, _64F: {(1, 1)}, _32F: {(0, 0), (2, 2), (2, 0), (14, 14), (14, 0)},
    _32F_FAST_16F: {(0, 0)}, _32F_FAST_16BF: {(0, 0)}, _32F_FAST_TF32: {(0, 0)}}
_TYPES |= {pedantic: _TYPES[kind] for kind, pedantic in _PEDANTIC.items()}
_SCALARS = {_16F: "float16", _PEDANTIC[_16F]: "float16", _64F: "float64",
            _PEDANTIC[_64F]: "float64"}
_modes: defaultdict[int, int] = defaultdict(int)        # the math mode of each handle


class CUBLASError(RuntimeError):
    """cupy_backends.cuda.libs.cublas.CUBLASError."""


def handle() -> int:
    """The handle of the current device."""
    return 1 + state.thread.devices[-1]


def getMathMode(handle: int) -> int:
    return _modes[handle]


def setMathMode(handle: int, mode: int) -> None:
    if mode & ~_WHOLE_SUMS not in range(4):
        raise CUBLASError(f"CUBLAS_STATUS_INVALID_VALUE: math mode {mode}")
    _modes[handle] = mode


def _numbers(address: int, n: int, dtype: Any) -> Any:
    memory: Any = (ctypes.c_char * (n * dtype.itemsize)).from_address(address)
    return np.frombuffer(memory, dtype)


def _matrices(address: int, kind: int, turned: int, rows: int, columns: int, step: int, apart: int,
              batch: int) -> Any:
    """op(X) [batch, rows, columns] of matrices that are stored column by column.

    step: how many numbers apart two columns are.
    """
    dtype, (high, wide) = np.dtype(_DTYPES[kind]), (columns, rows) if turned else (rows, columns)
    if step < high:
        raise CUBLASError("CUBLAS_STATUS_INVALID_VALUE: "
                          f"columns of {high} numbers cannot be {step} apart")
    length = (batch - 1) * apart + (wide - 1) * step + high
    memory, size = _numbers(address, length, dtype), dtype.itemsize
    steps = (apart * size, size, step * size)
    stored = np.lib.stride_tricks.as_strided(memory, (batch, high, wide), steps)
    return stored.swapaxes(1, 2) if turned else stored


def _multiplied_by(compute: int, algorithm: int, mode: int) -> int:
    """The compute type whose factors are what is really multiplied for float32."""
    if compute == _32F and mode & ~_WHOLE_SUMS == _TF32_MATH:
        return _32F_FAST_TF32
    tensor_cores = algorithm >= _TENSOR_OP or mode & ~_WHOLE_SUMS == _TENSOR_OP_MATH
    if compute == _32F and tensor_cores and int(Device().compute_capability) < 80:
        return _32F_FAST_16F
    return compute


def _factors(x: Any, compute: int) -> Any:
    """The numbers that are multiplied: float32 for those of 16 bits; for TF32 10 bits of mantissa,
    rounded to nearest."""
    if compute in (_16F, _PEDANTIC[_16F]) or x.dtype == np.float64:
        return x
    with np.errstate(over="ignore"):
        if compute == _32F_FAST_16F and x.dtype == np.float32:
            x = x.astype(np.float16)
        elif compute == _32F_FAST_16BF and x.dtype == np.float32:
            x = x.astype("bfloat16")
    x = x.astype(np.float32)
    if compute == _32F_FAST_TF32:
        bits = x.view(np.uint32)
        bits += np.uint32(1 << 12)
        bits &= np.uint32(~((1 << 13) - 1) & 0xFFFFFFFF)
    return x


def _product(a: Any, b: Any, scalar: Any, out: Any, whole: bool) -> Any:
    """a @ b, summed in the dtype of the scalars.

    whole: in one sum; otherwise in two, of which each is rounded to out's dtype, as cuBLAS may
    do where that is smaller. Sums of float16 are rounded after each addition.
    """
    if scalar == np.float16:
        total = np.zeros(out.shape, scalar)
        for i in range(a.shape[-1]):
            total = total + a[..., i:i + 1] * b[..., i:i + 1, :]
        return total
    if whole or out.dtype.itemsize >= scalar.itemsize or a.shape[-1] < 2:
        return np.matmul(a, b)
    half = a.shape[-1] // 2
    parts = np.matmul(a[..., :half], b[..., :half, :]), np.matmul(a[..., half:], b[..., half:, :])
    return sum(part.astype(out.dtype).astype(scalar) for part in parts)


def gemmStridedBatchedEx(handle: int, turn_a: int, turn_b: int, m: int, n: int, k: int, alpha: int,
                         a: int, a_kind: int, lda: int, next_a: int,
                         b: int, b_kind: int, ldb: int, next_b: int, beta: int,
                         c: int, c_kind: int, ldc: int, next_c: int,
                         batch: int, compute: int, algorithm: int) -> None:
    """C = α op(A) op(B) + β C, column by column, for each of a batch."""
    if algorithm not in _ALGORITHMS:
        raise CUBLASError(f"CUBLAS_STATUS_INVALID_VALUE: algorithm {algorithm}")
    if a_kind != b_kind or (a_kind, c_kind) not in _TYPES.get(compute, ()):
        raise CUBLASError(f"CUBLAS_STATUS_NOT_SUPPORTED: compute type {compute} for factors of "
                          f"{a_kind} and {b_kind} and a result of {c_kind}")
    if handle != 1 + state.thread.devices[-1]:
        raise CUBLASError("CUBLAS_STATUS_NOT_INITIALIZED: a handle of another device")
    current().asked()
    for address, written in ((a, False), (b, False), (c, True)):
        used(state.lent[address].use, written, "cuBLAS")
    scalar, mode = np.dtype(_SCALARS.get(compute, "float32")), _modes[handle]
    one, add = (_numbers(p, 1, scalar)[0] for p in (alpha, beta))
    by = _multiplied_by(compute, algorithm, mode)
    left = _factors(_matrices(a, a_kind, turn_a, m, k, lda, next_a, batch), by)
    right = _factors(_matrices(b, b_kind, turn_b, k, n, ldb, next_b, batch), by)
    out = _matrices(c, c_kind, 0, m, n, ldc, next_c, batch)
    whole = bool(mode & _WHOLE_SUMS) or mode == _PEDANTIC_MATH or compute in _PEDANTIC.values()
    with np.errstate(over="ignore", invalid="ignore"):  # a device says nothing
        product = one * _product(left, right, scalar, out, whole)
        out[...] = product + add * out.astype(product.dtype) if add else product


def gemmEx(handle: int, turn_a: int, turn_b: int, m: int, n: int, k: int, alpha: int,
           a: int, a_kind: int, lda: int, b: int, b_kind: int, ldb: int, beta: int,
           c: int, c_kind: int, ldc: int, compute: int, algorithm: int) -> None:
    """The same for one of each."""
    gemmStridedBatchedEx(handle, turn_a, turn_b, m, n, k, alpha, a, a_kind, lda, 0, b, b_kind, ldb,
                         0, beta, c, c_kind, ldc, 0, 1, compute, algorithm)
