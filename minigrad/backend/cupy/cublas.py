"""Matrix products by cuBLAS, as CuPy wraps it, on the tensor cores that a dtype has.

Sums of 16 bits are float32's, and nothing is copied whose rows or columns lie one after the other.

What is asked of cuBLAS leaves it no choice of precision. Algorithm 99 lets it multiply float32 as
float16 before compute capability 8.0, and the default math mode lets it round parts of a sum to 16
bits where the result has 16 bits.
"""
from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

# cudaDataType, cublasComputeType_t and cublasGemmAlgo_t: the numbers are of CUDA's binary interface
_KINDS = {"f": 0, "d": 1, "e": 2, "E": 14}              # letters of dtypes; E: ml_dtypes' bfloat16
_FLOAT32, _FLOAT32_BY_TF32, _FLOAT64 = 68, 77, 70
_ALGORITHM = -1                                         # the library's choice
# a math mode (cublasMath_t): no part of a sum is rounded to a smaller dtype than it is computed in
_WHOLE_SUMS = 16
_ZERO, _ONE = ({kind: np.array(value, kind) for kind in ("float32", "float64")}
               for value in (0.0, 1.0))


def multiply(cupy: Any, a: Any, b: Any, *, tf32: bool = False, out: Any = None, add: bool = False,
             dtype: Any = None) -> Any:
    """a [..., n, k] @ b [..., k, m] -> [..., n, m]; NotImplemented where cuBLAS has no one call.

    One dtype, float64, float32, float16 or bfloat16, and the same leading axes. tf32: float32 is
    rounded to 10 bits of mantissa before it is multiplied. out: an array for the result whose rows
    are contiguous, and its matrices one after the other, to which add=True adds; else it is new, of
    `dtype`, which for 16 bits may be float32.
    """
    kind = _KINDS.get(a.dtype.char)
    if (kind is None or a.dtype != b.dtype or a.ndim != b.ndim or a.ndim < 2
            or a.shape[:-2] != b.shape[:-2] or not a.size or not b.size):
        return NotImplemented
    (n, k), m = a.shape[-2:], b.shape[-1]
    if max(n, k, m, math.prod(a.shape[:-2])) > 2**31 - 1:
        return NotImplemented
    if out is None:
        out = cupy.empty((*a.shape[:-1], m), dtype=dtype or a.dtype)
    scalars = "float64" if kind == 1 else "float32"
    compute = _FLOAT64 if kind == 1 else _FLOAT32_BY_TF32 if tf32 and kind == 0 else _FLOAT32
    one, beta = _ONE[scalars].ctypes.data, (_ONE if add else _ZERO)[scalars].ctypes.data
    (a, turn_a, step_a, next_a), (b, turn_b, step_b, next_b) = _layout(cupy, a), _layout(cupy, b)
    # cuBLAS has columns where we have rows: it is asked for Cᵀ = Bᵀ Aᵀ
    blas, handle, made = cupy.cuda.cublas, cupy.cuda.get_cublas_handle(), _KINDS[out.dtype.char]
    batch, step = math.prod(a.shape[:-2]), out.strides[-2] // out.dtype.itemsize if n > 1 else m
    with _whole_sums(blas, handle):
        if batch == 1:
            blas.gemmEx(handle, turn_b, turn_a, m, n, k, one, b.data.ptr, kind, step_b, a.data.ptr,
                        kind, step_a, beta, out.data.ptr, made, step, compute, _ALGORITHM)
        else:
            blas.gemmStridedBatchedEx(handle, turn_b, turn_a, m, n, k, one,
                                      b.data.ptr, kind, step_b, next_b,
                                      a.data.ptr, kind, step_a, next_a,
                                      beta, out.data.ptr, made, step, n * step, batch,
                                      compute, _ALGORITHM)
    return out


@contextlib.contextmanager
def _whole_sums(blas: Any, handle: int) -> Iterator[None]:
    """Inside the block sums are whole. The handle is CuPy's, which changes its mode now and then;
    afterwards it has the mode that it had."""
    before = blas.getMathMode(handle)
    blas.setMathMode(handle, _WHOLE_SUMS)
    try:
        yield
    finally:
        blas.setMathMode(handle, before)


def _layout(cupy: Any, x: Any) -> tuple[Any, int, int, int]:
    """x [..., r, c] as cuBLAS reads it, and how it lies in memory.

    That is whether its columns are what lies together, and the steps to the next row (column) and
    to the next matrix. x is copied where neither rows nor columns lie together, or where the
    matrices are not evenly apart.
    """
    (r, c), size = x.shape[-2:], x.dtype.itemsize
    steps = [s // size for s in x.strides]
    apart = _apart(x.shape[:-2], steps[:-2])
    if apart is not None:
        if (steps[-1] == 1 or c == 1) and (steps[-2] >= c or r == 1):
            return x, 0, steps[-2] if r > 1 else c, apart
        if (steps[-2] == 1 or r == 1) and steps[-1] >= r:
            return x, 1, steps[-1], apart
    return cupy.ascontiguousarray(x), 0, c, r * c


def _apart(shape: tuple[int, ...], steps: list[int]) -> int | None:
    """The one step from each matrix to the next over all leading axes; None where there is none."""
    axes = [(n, step) for n, step in zip(shape, steps) if n > 1]
    for (_, before), (n, step) in itertools.pairwise(axes):
        if before != n * step:
            return None
    return axes[-1][1] if axes and axes[-1][1] >= 0 else None if axes else 0
