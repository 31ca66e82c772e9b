"""Products of a few rows on a CPU.

BLAS copies a matrix into an order of its own before it multiplies more than one row with it, which
takes three times as long as reading it. Panels lie in that order already, and each is small enough
for the routines that copy nothing; so such a product is as fast as memory is.
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
    """How many of a sum's k terms are added up at a time: a divisor of k.

    It is at most SIZES.chunk, where there is such a divisor of some size.
    """
    return next((c for c in range(min(k, SIZES.chunk), SIZES.chunk // 4, -1) if k % c == 0), k)


def pack(matrix: Any) -> Any:
    """Panels [P, q, c, w] of a matrix [k, m], the last of them filled up with zeros.

    A panel is w = SIZES.panel columns after one another.
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
        rows = np.repeat(rows, 2, axis=1)               # for one row BLAS takes a slower way
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
