"""The classifier with its loss on a CPU.

The logits are computed in blocks of rows, and their gradient overwrites them.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ..base import Saved
from .blas import matmul
from .kernels import counted, mean_of, over_rows
from .sizes import SIZES


def linear_cross_entropy(xp, x, weight, targets, *, ignore_index=-100, wants=(False, False, False)):
    if x.dtype.kind != "f" or x.size == 0:
        return NotImplemented
    V, d = weight.shape
    rows = np.ascontiguousarray(x).reshape(-1, d)
    ids, scale = counted(xp, targets, ignore_index, V, x.dtype, "linear_cross_entropy")
    n = len(rows)
    step = -(-n // -(-n // max(1, SIZES.logits // (V * x.itemsize))))        # blocks of one size
    dx = np.empty_like(rows) if wants[0] else None
    dweight = np.empty_like(weight, order="C") if wants[1] else None
    memory, nll = np.empty((step, V), x.dtype), np.empty(n, x.dtype)
    for i in range(0, n, step):
        here = slice(i, min(i + step, n))
        logits = matmul(rows[here], weight.T, out=memory[:here.stop - i])
        _to_gradient(logits, ids[here], scale[here], nll[here])
        # with so many terms each part adds a rounding error, so there are few parts
        if dx is not None:
            np.matmul(logits, weight, out=dx[here])
        if dweight is not None:
            matmul(logits.T, rows[here], out=dweight, add=i > 0)
    return Saved(mean_of(nll, scale), dx=None if dx is None else dx.reshape(x.shape),
                 dweight=dweight, boost=1.0)


def _to_gradient(logits: Any, ids: Any, scale: Any, nll: Any) -> None:
    """Replace logits [n, V] by (softmax − onehot(ids)) ⊙ scale (cross_entropy.3), and set nll [n].

    nll is computed here because the rows are in the cache.
    """
    at = np.arange(len(ids))

    def work(i: int, j: int) -> None:
        e, some = logits[i:j], (at[:j - i], ids[i:j])
        top = e.max(axis=1, keepdims=True)
        e -= top
        picked = e[some]
        np.exp(e, out=e)
        total = e.sum(axis=1, keepdims=True)
        np.subtract(np.log(total[:, 0]), picked, out=nll[i:j])
        factor = scale[i:j, None]
        e *= factor / total
        e[some] -= factor[:, 0]

    over_rows(len(logits), logits.shape[1], work)


def times(g, found, boost):
    """g times a gradient that this kernel saved, with boost = 1.

    If g is 1, as for the loss from which the backward pass starts, it is that gradient itself.
    """
    return found if g == 1.0 else g * found
