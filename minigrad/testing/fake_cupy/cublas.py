"""cuBLAS for the fake CuPy: what `minigrad.backend.cupy.cublas` calls, on memory at an address."""
from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

_DTYPES = {0: "float32", 1: "float64", 2: "float16", 14: "bfloat16"}
_TF32 = 77


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
        raise ValueError(f"cuBLAS: columns of {high} numbers cannot be {step} apart")
    length = (batch - 1) * apart + (wide - 1) * step + high
    memory, size = _numbers(address, length, dtype), dtype.itemsize
    steps = (apart * size, size, step * size)
    stored = np.lib.stride_tricks.as_strided(memory, (batch, high, wide), steps)
    return stored.swapaxes(1, 2) if turned else stored


def _computed(x: Any, compute: int) -> Any:
    """The numbers that are multiplied: float32 for those of 16 bits; for TF32 10 bits of mantissa,
    rounded to nearest."""
    x = x.astype(np.result_type(x.dtype, np.float32) if x.dtype.itemsize > 2 else np.float32)
    if compute == _TF32:
        bits = x.view(np.uint32)
        bits += np.uint32(1 << 12)
        bits &= np.uint32(~((1 << 13) - 1) & 0xFFFFFFFF)
    return x


def gemmStridedBatchedEx(handle: int, turn_a: int, turn_b: int, m: int, n: int, k: int, alpha: int,
                         a: int, a_kind: int, lda: int, next_a: int,
                         b: int, b_kind: int, ldb: int, next_b: int, beta: int,
                         c: int, c_kind: int, ldc: int, next_c: int,
                         batch: int, compute: int, algorithm: int) -> None:
    """C = α op(A) op(B) + β C, column by column, for each of a batch."""
    scalar = np.float64 if compute == 70 else np.float32
    one, add = (_numbers(p, 1, np.dtype(scalar))[0] for p in (alpha, beta))
    left = _computed(_matrices(a, a_kind, turn_a, m, k, lda, next_a, batch), compute)
    right = _computed(_matrices(b, b_kind, turn_b, k, n, ldb, next_b, batch), compute)
    out = _matrices(c, c_kind, 0, m, n, ldc, next_c, batch)
    product = one * np.matmul(left, right)
    with np.errstate(over="ignore"):                    # a device says nothing
        out[...] = product + add * out.astype(product.dtype) if add else product


def gemmEx(handle: int, turn_a: int, turn_b: int, m: int, n: int, k: int, alpha: int,
           a: int, a_kind: int, lda: int, b: int, b_kind: int, ldb: int, beta: int,
           c: int, c_kind: int, ldc: int, compute: int, algorithm: int) -> None:
    """The same for one of each."""
    gemmStridedBatchedEx(handle, turn_a, turn_b, m, n, k, alpha, a, a_kind, lda, 0, b, b_kind, ldb,
                         0, beta, c, c_kind, ldc, 0, 1, compute, algorithm)
