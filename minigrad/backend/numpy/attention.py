"""Causal attention on a CPU in tiles.

It is computed for blocks of queries, with keys only up to the diagonal; threads share the heads.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..base import Saved
from ..splitmix64 import keep_mask_span
from .blas import one_thread
from .kernels import cores, spread
from .sizes import SIZES


def _tile(T: int) -> int:
    """The number of queries in a block if there are T queries."""
    return SIZES.near_tile if T <= SIZES.far else SIZES.far_tile


def _over_heads(rows: int, heads: int, T: int, work: Callable[[int, slice], None]) -> None:
    """Call work(row, some of its heads) for all rows; the calls are divided among threads.

    Each thread calls BLAS on small matrices, and BLAS then uses one thread.
    """
    n = min(cores(), rows * heads)
    size = min(max(1, SIZES.group // (_tile(T) * T)), -(-heads // n) if rows < n else heads)
    groups = [(row, slice(i, min(i + size, heads)))
              for row in range(rows) for i in range(0, heads, size)]

    def several(part: list[tuple[int, slice]]) -> None:
        for row, some in part:
            work(row, some)

    if n < 2:
        several(groups)
        return
    with one_thread():
        spread([groups[i::n] for i in range(n)], several)


def _plain(q: Any, k: Any, mask: Any) -> bool:
    """Whether the tiles support this case: float matrices, no mask, as many queries as keys."""
    return (mask is None and q.shape[-2] == k.shape[-2] and q.shape[-2] > 1 and q.size > 0
            and q.dtype.kind == "f")


def _four(x: Any) -> Any:
    """x as [B, h, T, d]; a view if x has at most four axes."""
    if x.ndim <= 4:
        return x[(None,) * (4 - x.ndim)]
    return x.reshape(-1, *x.shape[-3:])


def _new(like: Any, size: int, fill: Callable[..., Any] = np.empty) -> Any:
    """An array [B, h, T, size] with the memory layout [B, T, h, size].

    So the model can join the heads without a copy.
    """
    B, h, T, _ = like.shape
    return fill((B, T, h, size), like.dtype).swapaxes(1, 2)


def _keep(key: int, p: float, heads: range, i: int, j: int, T: int) -> Any:
    """The dropout mask of queries i … j − 1 of some heads: [heads, j − i, j].

    It is a slice of the mask of all scores.
    """
    return np.stack([
        keep_mask_span(np, key, (n * T + i) * T, (n * T + j) * T, p).reshape(j - i, T)[:, :j]
        for n in heads])


def _one_query(q: Any, k: Any, v: Any, s: Any) -> Saved:
    """Attention of one query over all keys, without a mask, as in a step of decoding.

    It needs few NumPy calls, which would cost most of the time.
    """
    scores = np.matmul(q * s, k.swapaxes(-1, -2))
    top = scores.max(axis=-1, keepdims=True)
    scores -= top
    np.exp(scores, out=scores)
    total = np.add.reduce(scores, axis=-1, keepdims=True)
    out = np.matmul(scores, v)
    out /= total
    return Saved(out, lse=top + np.log(total))


def attention(xp, q, k, v, mask=None, *, causal=True, scale=None, p=0.0, key=0):
    """Blocks of queries, each with all keys that its last query sees (attention.13).

    It saves the logarithm of each row's sum (attention.10).
    """
    if q.shape[-2] == 1 and k.size and v.size and mask is None and p == 0.0:
        return _one_query(q, k, v,
                          q.dtype.type(1.0 / math.sqrt(q.shape[-1]) if scale is None else scale))
    if not causal or not _plain(q, k, mask):
        return NotImplemented
    T, dtype, shape = q.shape[-2], q.dtype, (*q.shape[:-1], v.shape[-1])
    s = dtype.type(1.0 / math.sqrt(q.shape[-1]) if scale is None else scale)
    q, k, v = _four(q), _four(k), _four(v)
    B, h = q.shape[:2]
    out, lse = _new(q, v.shape[-1]), np.empty((B, h, T, 1), dtype)
    tile, factor = _tile(T), dtype.type(1.0 / (1.0 - p))
    hidden = np.triu(np.full((tile, tile), -np.inf, dtype), 1)

    def work(row: int, some: slice) -> None:
        qs, ks, vs, n = (q[row, some], k[row, some].swapaxes(1, 2), v[row, some],
                         some.stop - some.start)
        memory = np.empty(n * min(tile, T) * T, dtype)
        for i in range(0, T, tile):
            j = min(i + tile, T)
            scores = memory[:n * (j - i) * j].reshape(n, j - i, j)
            np.matmul(qs[:, i:j] * s, ks[:, :, :j], out=scores)
            scores[:, :, i:] += hidden[:j - i, :j - i]
            top = scores.max(axis=2, keepdims=True)
            scores -= top
            np.exp(scores, out=scores)
            total = scores.sum(axis=2, keepdims=True)
            if p > 0.0:
                scores *= _keep(key, p, range(row * h + some.start, row * h + some.stop), i, j, T)
                scores *= factor
            np.divide(np.matmul(scores, vs[:, :j]), total, out=out[row, some, i:j])
            np.log(total, out=total)
            np.add(top, total, out=lse[row, some, i:j])

    _over_heads(B, h, T, work)
    return Saved(out.reshape(shape), lse=lse.reshape(*shape[:-1], 1))


def attention_joint(g, q, k, v, mask, out, lse, causal, scale, p, key):
    """The gradients block by block (attention.4–7, .14).

    The weights are computed again from lse (attention.10).
    """
    if not causal or not _plain(q, k, mask):
        return NotImplemented
    T, dtype, shapes = q.shape[-2], q.dtype, (q.shape, k.shape, v.shape)
    s = dtype.type(1.0 / math.sqrt(q.shape[-1]) if scale is None else scale)
    g, q, k, v, lse = (_four(a) for a in (g, q, k, v, lse))
    B, h = q.shape[:2]
    dq, dk, dv = (_new(q, q.shape[-1]), _new(k, k.shape[-1], np.zeros),
                  _new(v, v.shape[-1], np.zeros))
    tile, factor = _tile(T), dtype.type(1.0 / (1.0 - p))
    hidden = np.triu(np.full((tile, tile), -np.inf, dtype), 1)

    def work(row: int, some: slice) -> None:
        gs, qs, ks, vs, ls = g[row, some], q[row, some], k[row, some], v[row, some], lse[row, some]
        dqs, dks, dvs, n = dq[row, some], dk[row, some], dv[row, some], some.stop - some.start
        memory, other = np.empty(n * min(tile, T) * T, dtype), np.empty(n * min(tile, T) * T, dtype)
        for i in range(0, T, tile):
            j = min(i + tile, T)
            weights = memory[:n * (j - i) * j].reshape(n, j - i, j)
            ds = other[:weights.size].reshape(weights.shape)
            scaled, here = qs[:, i:j] * s, gs[:, i:j]
            np.matmul(scaled, ks[:, :j].swapaxes(1, 2), out=weights)
            weights[:, :, i:] += hidden[:j - i, :j - i]
            weights -= ls[:, i:j]
            np.exp(weights, out=weights)
            # lse was rounded, which scales the whole row by one factor
            weights /= weights.sum(axis=2, keepdims=True)
            np.matmul(here, vs[:, :j].swapaxes(1, 2), out=ds)
            if p > 0.0:
                keep = _keep(key, p, range(row * h + some.start, row * h + some.stop),
                             i, j, T) * factor
                ds *= keep
                dvs[:, :j] += np.matmul((weights * keep).swapaxes(1, 2), here)
            else:
                dvs[:, :j] += np.matmul(weights.swapaxes(1, 2), here)
            # ds holds all keys of a query, so its sum has the rounding errors of ds itself
            ds -= np.vecdot(weights, ds)[:, :, None]
            ds *= weights
            np.multiply(np.matmul(ds, ks[:, :j]), s, out=dqs[:, i:j])
            dks[:, :j] += np.matmul(ds.swapaxes(1, 2), scaled)

    _over_heads(B, h, T, work)
    return (*(d.reshape(shape) for d, shape in zip((dq, dk, dv), shapes)), None)
