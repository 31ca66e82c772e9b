"""Faster NumPy kernels for some ops.

They process rows in blocks that stay in the cache, do all steps in place, and use several threads.
Each computes the same as the op of its name (`KERNELS` maps "op", "op/argument" and "op/argument+"
to it) and is tested against that op.
"""
from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from ..base import Saved
from ..splitmix64 import keep_mask_span
from .blas import matmul
from .sizes import SIZES

_pool: Any = None


def _forget_pool() -> None:
    """In a forked child: it has none of the threads of the pool."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):                     # Windows has no fork
    os.register_at_fork(after_in_child=_forget_pool)


def cores() -> int:
    """The number of threads that share the work: one for each processor that this process may use.

    SIZES.threads overrides it.
    """
    if SIZES.threads:
        return SIZES.threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pool() -> Any:
    """The threads that share elementwise work; NumPy's loops release the interpreter lock."""
    global _pool
    if _pool is None:
        # slow to import, and many programs never need it
        from concurrent.futures import ThreadPoolExecutor

        _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="minigrad")
    return _pool


def over_rows(rows: int, width: int, work: Callable[[int, int], Any]) -> list[Any]:
    """Call work(start, stop) over blocks of rows, and return the results in order.

    The blocks depend only on the sizes, so sums over blocks do not depend on the number of threads.
    """
    step = max(1, SIZES.block // max(1, width))
    if rows <= step:
        return [work(0, rows)] if rows else []
    spans = [(i, min(i + step, rows)) for i in range(0, rows, step)]
    n = cores()
    if len(spans) < 2 * n or n == 1:
        return [work(i, j) for i, j in spans]
    share = -(-len(spans) // n)
    parts = [spans[k:k + share] for k in range(0, len(spans), share)]
    return [result for part in spread(parts, lambda part: [work(i, j) for i, j in part])
            for result in part]


def spread(parts: list[Any], work: Callable[[Any], Any]) -> list[Any]:
    """The results of work(part) for each part, in order; this thread does a part too."""
    jobs = [pool().submit(work, part) for part in parts[1:]]
    return [work(parts[0]), *(job.result() for job in jobs)]


def as_rows(x: Any) -> Any:
    """x as a matrix whose rows are x's last axis."""
    return x.reshape(-1, x.shape[-1]) if x.ndim > 1 and x.shape[-1] else x.reshape(1, -1)


def column_sums(x: Any) -> Any:
    """The sum over the rows of a matrix, as products with ones.

    BLAS adds several rows at a time, and np.sum does not; so BLAS is faster, and its rounding error
    is smaller. In parts of 128 rows, the error is that of sums of 128/8 + n/128 terms.
    """
    n, part = len(x), SIZES.sums
    whole = n // part * part
    if n < 2 or x.dtype.kind != "f" or not x.flags.c_contiguous or x.shape[1] < 2:
        return x.sum(axis=0)
    if n < 2 * part:
        return np.ones(n, x.dtype) @ x
    parts = np.ones(part, x.dtype) @ x[:whole].reshape(-1, part, x.shape[1])
    out = np.ones(len(parts), x.dtype) @ parts
    if whole < n:
        out += np.ones(n - whole, x.dtype) @ x[whole:]
    return out


def sum_to(xp, x, *, shape):
    lead = x.ndim - len(shape)
    if lead and x.size and x.shape[lead:] == shape and len(shape) == 1:
        return column_sums(x.reshape(-1, *shape))
    return NotImplemented


def broadcast_to(xp, x, *, shape):
    if math.prod(shape) > SIZES.copy:
        return NotImplemented
    out = np.empty(shape, x.dtype)                      # a small copy is faster than NumPy's view
    out[...] = x
    return out


def add_rows(out: Any, index: Any, values: Any) -> None:
    """out[index[k]] += values[k] for all k, in place; only the index determines the order."""
    if len(index):
        # rows with equal indices keep their order, so the sum is deterministic
        order = np.argsort(index, kind="stable")
        sorted_index = index[order]
        starts = np.flatnonzero(np.concatenate([[True], sorted_index[1:] != sorted_index[:-1]]))
        places = sorted_index[starts]
        out[places] = out[places] + np.add.reduceat(values[order], starts, axis=0)


def embedding_into(sum, g, ids, weight_shape):
    """Add to the gradient so far, for a tied table that of the language-model head   (tying.2)."""
    add_rows(sum, ids.reshape(-1), g.reshape(-1, g.shape[-1]))


def addmm(xp, bias, x, weight):
    if x.size == 0 or weight.size == 0 or x.dtype != np.float32:
        return NotImplemented
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) == 1:
        out = matmul(rows, weight)
        out += bias
        return out.reshape(*x.shape[:-1], weight.shape[1])
    out = np.empty((len(rows), weight.shape[1]), x.dtype)
    # what the product adds to: a pass over the result less than adding it afterwards
    out[...] = bias
    return matmul(rows, weight, out=out, add=True).reshape(*x.shape[:-1], weight.shape[1])


_C = math.sqrt(2.0 / math.pi)
_A = 0.044715
# beyond it gelu′ is taken as it is there: 0 or 1
FAR = 1e4


def gelu(xp, x, bias=None, *, approximate="tanh"):
    if approximate != "tanh" or x.size == 0:
        return NotImplemented
    out = np.empty_like(x, order="C")
    width = 1 if bias is None else x.shape[-1]
    rows, outs = np.ascontiguousarray(x).reshape(-1, width), out.reshape(-1, width)

    def work(i, j):
        a, t = rows[i:j] if bias is None else rows[i:j] + bias, outs[i:j]
        np.multiply(a, a, out=t)
        t *= _C * _A
        t += _C
        t *= a
        np.tanh(t, out=t)
        t += 1.0
        t *= 0.5                                        # before it is as large as x
        t *= a

    over_rows(len(rows), width, work)
    return out


def gelu_joint(g, x, bias, approximate):
    if approximate != "tanh" or x.size == 0:
        return NotImplemented
    out = np.empty_like(x, order="C")
    width = 1 if bias is None else x.shape[-1]
    rows, gs, outs = (np.ascontiguousarray(a).reshape(-1, width) for a in (x, g, out))

    def work(i, j):
        # with v = c(x + a x³) and s = ½(1 + tanh v) = 1/(1 + e^(−2v)), gelu′ is
        # s(1 + (1 − s) 2x v′), 1 − s = e^(−2v) s   (gelu.6)
        d = outs[i:j]
        # a is in d's memory, and is read for the last time before d is written
        a = rows[i:j] if bias is None else np.add(rows[i:j], bias, out=d)
        # where x² is no number any more, gelu′ has long been 0 or 1
        a = np.clip(a, -FAR, FAR, out=d)
        t, u = np.multiply(a, a), np.empty_like(a)
        np.multiply(t, -2.0 * _C * _A, out=u)
        u += -2.0 * _C
        u *= a
        # every float holds the exponential of 80; beyond it gelu′ is 0 to rounding
        np.minimum(u, 80.0, out=u)
        np.exp(u, out=u)                                # e^(−2v)
        t *= 6.0 * _C * _A
        t += 2.0 * _C
        t *= a                                          # 2x v′ = 2x c(1 + 3a x²)
        np.add(u, 1.0, out=d)
        np.reciprocal(d, out=d)
        u *= d
        u *= t
        u += 1.0
        d *= u
        d *= gs[i:j]
        return None if bias is None else column_sums(d)

    parts = over_rows(len(rows), width, work)
    return out, None if bias is None else column_sums(np.stack(parts))


def _one_layer_norm(x: Any, weight: Any, bias: Any, eps: float) -> Saved:
    """`layer_norm` of one row, as in a step of decoding.

    Its mean and variance are Python numbers, and it needs few NumPy calls.
    """
    n, small, number = x.shape[-1], (1,) * x.ndim, x.dtype.type
    mean = float(np.add.reduce(x, axis=None)) / n
    y = x - mean
    square = float(np.vdot(y, y)) / n + eps
    # as of several rows
    rstd = 1.0 / math.sqrt(square) if square > 0.0 else math.inf if square == 0.0 else math.nan
    y *= rstd
    y *= weight
    y += bias
    return Saved(y, mean_=number(mean).reshape(small), rstd=number(rstd).reshape(small))


def layer_norm(xp, x, weight, bias, *, eps=1e-5):
    n = x.shape[-1]
    if x.size == n and x.dtype in (np.float32, np.float64):
        return _one_layer_norm(x, weight, bias, eps)
    rows = as_rows(np.ascontiguousarray(x))
    out = np.empty_like(rows)
    mean, rstd = np.empty((len(rows), 1), x.dtype), np.empty((len(rows), 1), x.dtype)
    wide = np.promote_types(x.dtype, np.float64)

    def work(i, j):
        y = out[i:j]
        np.add.reduce(rows[i:j], axis=1, keepdims=True, out=mean[i:j])
        mean[i:j] /= n
        np.subtract(rows[i:j], mean[i:j], out=y)
        s = np.vecdot(y, y)[:, None].astype(wide)       # its rounding would be a whole row's
        rstd[i:j] = 1.0 / np.sqrt(s / n + eps)
        y *= rstd[i:j]
        y *= weight
        y += bias

    over_rows(len(rows), n, work)
    small = (*x.shape[:-1], 1)
    return Saved(out.reshape(x.shape), mean_=mean.reshape(small), rstd=rstd.reshape(small))


def layer_norm_joint(g, x, weight, mean_, rstd, wants):
    n = x.shape[-1]
    rows, gs = as_rows(np.ascontiguousarray(x)), as_rows(np.ascontiguousarray(g))
    means, scales = mean_.reshape(-1, 1), rstd.reshape(-1, 1)
    out = np.empty_like(rows)

    def work(i, j):
        normal, dx = rows[i:j] - means[i:j], out[i:j]
        normal *= scales[i:j]
        np.multiply(gs[i:j], normal, out=dx)
        dweight, dbias = column_sums(dx), column_sums(gs[i:j])
        np.multiply(gs[i:j], weight, out=dx)
        along = np.vecdot(dx, normal)[:, None] / n
        dx -= dx.mean(axis=1, keepdims=True)
        normal *= along
        dx -= normal
        dx *= scales[i:j]
        return dweight, dbias

    parts = over_rows(len(rows), n, work)
    dweight, dbias = np.zeros_like(weight), np.zeros_like(weight)
    for a, b in parts:
        dweight += a
        dbias += b
    return out.reshape(x.shape), dweight, dbias


def counted(xp: Any, targets: Any, ignore_index: int, classes: int, dtype: Any,
            what: str) -> tuple[Any, Any]:
    """The targets as ids [n], 0 where a target does not count, and each target's share of the mean.

    The share is 1 over the number of targets that count, or 0.
    """
    ids = targets.reshape(-1)
    kept = ids != ignore_index
    ids = np.where(kept, ids, 0)
    xp.check_index(ids, classes, f"{what}: targets")
    return ids, (kept / max(kept.sum(), 1)).astype(dtype)


def mean_of(nll: Any, scale: Any) -> Any:
    """Σ nll ⊙ scale without the rows of scale 0, even if nll is NaN there; NaN if no row counts."""
    return (np.where(scale != 0.0, nll * scale, 0.0).sum(dtype=nll.dtype) if scale.any()
            else nll.dtype.type(np.nan))


def cross_entropy(xp, logits, targets, *, ignore_index=-100):
    rows = as_rows(np.ascontiguousarray(logits))
    ids, scale = counted(xp, targets, ignore_index, rows.shape[1], logits.dtype, "cross_entropy")
    lse = np.empty((len(rows), 1), logits.dtype)

    def work(i, j):
        top = rows[i:j].max(axis=1, keepdims=True)
        shifted = rows[i:j] - top
        np.exp(shifted, out=shifted)
        np.log(shifted.sum(axis=1, keepdims=True), out=lse[i:j])
        lse[i:j] += top

    over_rows(len(rows), rows.shape[1], work)
    loss = mean_of(lse[:, 0] - rows[np.arange(len(rows)), ids], scale)
    return Saved(loss, lse=lse.reshape(*targets.shape, 1), scale=scale.reshape(*targets.shape, 1))


def cross_entropy_dlogits(g, logits, targets, lse, scale):
    rows, ids = as_rows(np.ascontiguousarray(logits)), targets.reshape(-1)
    shifts, scales = lse.reshape(-1, 1), scale.reshape(-1, 1)
    kept = scales[:, 0] > 0.0
    out = np.empty_like(rows)

    def work(i, j):
        p = out[i:j]
        np.subtract(rows[i:j], shifts[i:j], out=p)
        np.exp(p, out=p)
        hit = np.flatnonzero(kept[i:j])
        p[hit, ids[i:j][hit]] -= 1.0
        p *= scales[i:j] * g

    over_rows(len(rows), rows.shape[1], work)
    return out.reshape(logits.shape)


def dropout(xp, x, *, p, key):
    flat = np.ascontiguousarray(x).reshape(-1)
    out = np.empty_like(flat)
    factor = x.dtype.type(1.0 / (1.0 - p))

    def work(i, j):
        np.multiply(flat[i:j], keep_mask_span(np, key, i, j, p), out=out[i:j])
        out[i:j] *= factor

    over_rows(len(flat), 1, work)
    return out.reshape(x.shape)


def adamw_update(xp, ps, gs, ms, vs, *, lr, beta1, beta2, eps, weight_decay, correct1, correct2):
    if not all(a.flags.c_contiguous for kind in (ps, ms, vs) for a in kind):
        # made flat here, they would be copies, and the step lost
        return NotImplemented
    for p, g, m, v in zip(ps, gs, ms, vs):
        flats = [np.ascontiguousarray(a).reshape(-1, 1) for a in (p, g, m, v)]

        def work(i, j, flats=flats):
            a, d, m1, v2 = (f[i:j] for f in flats)
            t = d * (1.0 - beta1)
            m1 *= beta1
            m1 += t
            np.multiply(d, d, out=t)
            t *= 1.0 - beta2
            v2 *= beta2
            v2 += t
            np.divide(v2, correct2, out=t)
            np.sqrt(t, out=t)
            t += eps
            np.divide(m1, t, out=t)
            t *= lr / correct1
            if weight_decay:
                a *= 1.0 - lr * weight_decay
            a -= t

        over_rows(len(flats[0]), 1, work)
