"""Products of a few rows on a CPU.

Before BLAS multiplies more than one row with a matrix, it copies the matrix into another order,
which takes three times as long as reading it. Panels are stored in that order, and each is small
enough for the routines that copy nothing; so such a product is as fast as memory.
"""
from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

from .blas import one_thread
from .kernels import cores, spread
from .sizes import SIZES


def terms(k: int) -> int:
    """The number of terms of a sum of k that are added up at a time: a divisor of k.

    It is at most SIZES.chunk if there is a divisor above SIZES.chunk/4, and k if not.
    """
    return next((c for c in range(min(k, SIZES.chunk), SIZES.chunk // 4, -1) if k % c == 0), k)


def pack(matrix: Any) -> Any:
    """Panels [P, q, c, w] of a matrix [k, m]; the last panel is padded with zeros.

    A panel consists of w = SIZES.panel neighbouring columns.
    """
    k, m = matrix.shape
    c, w = terms(k), SIZES.panel
    P = -(-m // w)
    out = np.empty((P, k // c, c, w), matrix.dtype)

    def work(some: slice) -> None:
        for p in range(some.start, some.stop):
            columns = matrix[:, p * w:(p + 1) * w]
            panel = out[p].reshape(k, w)
            panel[:, :columns.shape[1]] = columns
            panel[:, columns.shape[1]:] = 0.0

    over_panels(P, work)
    return out


def over_panels(P: int, work: Callable[[slice], Any]) -> None:
    """work(which) for the P panels, an equal share in each thread."""
    share = -(-P // cores())
    spread([slice(i, min(i + share, P)) for i in range(0, P, share)], work)


def packed_linear(xp, x, panels, bias=None, *, size):
    P, q, c, w = panels.shape
    if x.size == 0 or panels.size == 0:
        return NotImplemented
    rows = np.ascontiguousarray(x).reshape(-1, q, c).swapaxes(0, 1)    # [q, n, c]
    n = rows.shape[1]
    if n == 1:
        rows = np.repeat(rows, 2, axis=1)               # for a single row BLAS is slower
    out = np.empty((n, P, w), x.dtype)
    columns = out.swapaxes(0, 1)                        # [P, n, w]

    def work(some: slice) -> None:
        np.add.reduce(np.matmul(rows, panels[some])[:, :, :n], axis=1, out=columns[some])

    with contextlib.nullcontext() if n * c * w < SIZES.alone else one_thread():
        over_panels(P, work)
    result = out.reshape(n, P * w)[:, :size]
    if bias is not None:
        result += bias
    return result.reshape(*x.shape[:-1], size)
