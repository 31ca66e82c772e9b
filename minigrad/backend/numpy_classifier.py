"""The classifier with its loss on a CPU: rows of logits in blocks, overwritten with their gradient while it is wanted."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .base import Saved
from .blas import matmul
from .numpy_kernels import over_rows

KERNELS: dict[str, Callable[..., Any]] = {}
ROWS = 128 << 20                                        # bytes of logits at a time: enough rows for ∂W to be read and written seldom
COLUMNS = 8192                                          # classes at a time: a block of that is still in the last cache when it is used


def linear_cross_entropy(xp, x, weight, targets, *, ignore_index=-100, wants=(False, False, False)):
    if x.dtype.kind != "f" or x.dtype.itemsize < 4 or x.size == 0:
        return NotImplemented
    V, d = weight.shape
    rows, ids = np.ascontiguousarray(x).reshape(-1, d), targets.reshape(-1)
    kept = ids != ignore_index
    ids = np.where(kept, ids, 0)
    xp.check_index(ids, V, "linear_cross_entropy: targets")
    count = int(kept.sum())
    if count == 0:
        return NotImplemented
    scale = (kept / count).astype(x.dtype)[:, None]
    n = len(rows)
    step = -(-n // -(-n // max(1, ROWS // (V * x.itemsize))))
    dx = np.zeros_like(rows) if wants[0] else None
    dweight = np.empty_like(weight, order="C") if wants[1] else None
    memory = np.empty(min(step, n) * V, x.dtype)
    nll = np.empty(n, x.dtype)
    for i in range(0, n, step):
        j = min(i + step, n)
        _block(rows[i:j], weight, ids[i:j], scale[i:j], memory, nll[i:j], None if dx is None else dx[i:j], dweight, i > 0)
    loss = np.where(kept, nll * scale[:, 0], 0.0).sum(dtype=x.dtype)
    return Saved(loss, dx=None if dx is None else dx.reshape(x.shape), dweight=dweight)


def _block(x, weight, ids, scale, memory, nll, dx, dweight, add):
    """Some rows: their nll, their part of ∂x, and what they add to ∂W. memory: room for their logits, block after block.

    Each block of columns is exponentiated as soon as it is made, shifted by its own maximum, so that no logit is read again:
    softmax is e ⊙ exp(top − lse) with the block's top.
    """
    n, V = len(x), len(weight)
    spans = [(a, min(a + COLUMNS, V)) for a in range(0, V, COLUMNS)]
    blocks = [memory[n * a:n * b].reshape(n, b - a) for a, b in spans]
    tops, sums = np.empty((len(spans), n, 1), x.dtype), np.empty((len(spans), n, 1), x.dtype)
    for k, (a, b) in enumerate(spans):
        here = matmul(x, weight[a:b].T, out=blocks[k])
        hit = np.flatnonzero((ids >= a) & (ids < b))
        nll[hit] = here[hit, ids[hit] - a]

        def work(i, j, here=here, top=tops[k], sum=sums[k]):
            block = here[i:j]
            np.max(block, axis=1, keepdims=True, out=top[i:j])
            block -= top[i:j]
            np.exp(block, out=block)
            np.sum(block, axis=1, keepdims=True, out=sum[i:j])

        over_rows(n, b - a, work)
    top = tops.max(axis=0)
    lse = np.log((sums * np.exp(tops - top)).sum(axis=0)) + top
    np.subtract(lse[:, 0], nll, out=nll)
    if dx is None and dweight is None:
        return
    for k, (a, b) in enumerate(spans):
        here, factor = blocks[k], np.exp(tops[k] - lse) * scale
        _scale(here, factor)
        hit = np.flatnonzero((ids >= a) & (ids < b) & (scale[:, 0] > 0.0))
        here[hit, ids[hit] - a] -= scale[hit, 0]
        if dx is not None:                              # of so many terms the parts' rounding counts most, so there are few of them
            dx += np.matmul(here, weight[a:b])
        if dweight is not None:
            matmul(here.T, x, out=dweight[a:b], add=add)


def _scale(x: Any, factor: Any) -> None:
    """x ⊙ factor, a number for each row, in place."""
    over_rows(len(x), x.shape[1], lambda i, j: np.multiply(x[i:j], factor[i:j], out=x[i:j]))


def _times(g, found):
    """g times a gradient that is ours: the gradient itself where g is 1, as it is for the loss that is walked back from."""
    return found if g == 1.0 else g * found


KERNELS["linear_cross_entropy"] = linear_cross_entropy
KERNELS["linear_cross_entropy/x"] = KERNELS["linear_cross_entropy/weight"] = _times
