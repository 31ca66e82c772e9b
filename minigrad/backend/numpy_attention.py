"""Causal attention on a CPU in tiles: queries in blocks, keys only up to the diagonal, heads dealt to threads."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .base import Saved
from .bits import keep_mask_span
from .blas import one_thread
from .numpy_kernels import KERNELS as _MAIN
from .numpy_kernels import cores, pool

GROUP = 64 * 1024                                       # scores worked on at a time: 256 KiB of float32
KERNELS: dict[str, Callable[..., Any]] = {}


def _tile(T: int) -> int:
    """Queries per block: small ones skip more of the masked half, large ones make larger products."""
    return 64 if T <= 256 else 128


def _over_heads(heads: int, T: int, work: Callable[[int, int], None]) -> None:
    """Call work(first, last) on groups of heads, dealt to threads, each of which calls BLAS on small matrices by itself."""
    n = min(cores(), heads)
    size = min(max(1, GROUP // (_tile(T) * T)), -(-heads // n))
    groups = [(i, min(i + size, heads)) for i in range(0, heads, size)]

    def several(part: list[tuple[int, int]]) -> None:
        for first, last in part:
            work(first, last)

    if n < 2:
        several(groups)
        return
    with one_thread():
        jobs = [pool().submit(several, groups[i::n]) for i in range(n)]
        for job in jobs:
            job.result()


def _plain(q: Any, k: Any, mask: Any) -> bool:
    """Whether this is the case the tiles are for: float matrices, no padding mask, as many queries as keys."""
    return mask is None and q.shape[-2] == k.shape[-2] and q.shape[-2] > 1 and q.size > 0 and q.dtype.kind == "f" and q.dtype.itemsize > 2


def _heads(x: Any) -> Any:
    return x.reshape(-1, *x.shape[-2:])


def _keep(key: int, p: float, heads: range, i: int, j: int, T: int) -> Any:
    """The dropout mask of queries i … j − 1 of some heads, [heads, j − i, j]: the slice of the mask of all scores."""
    return np.stack([keep_mask_span(np, key, (n * T + i) * T, (n * T + j) * T, p).reshape(j - i, T)[:, :j] for n in heads])


def attention(xp, q, k, v, mask=None, *, causal=True, scale=None, p=0.0, key=0):
    if not causal or not _plain(q, k, mask):
        return NotImplemented
    T, dtype = q.shape[-2], q.dtype
    s = dtype.type(1.0 / math.sqrt(q.shape[-1]) if scale is None else scale)
    qs, ks, vs = _heads(q), _heads(k), _heads(v)
    out, lse = np.empty((*vs.shape[:2], v.shape[-1]), dtype), np.empty((len(qs), T, 1), dtype)
    tile, factor = _tile(T), dtype.type(1.0 / (1.0 - p))
    hidden = np.triu(np.full((tile, tile), -np.inf, dtype), 1)

    def work(m: int, n: int) -> None:
        memory = np.empty((n - m) * min(tile, T) * T, dtype)
        for i in range(0, T, tile):
            j = min(i + tile, T)
            scores = memory[:(n - m) * (j - i) * j].reshape(n - m, j - i, j)
            np.matmul(qs[m:n, i:j] * s, ks[m:n, :j].swapaxes(1, 2), out=scores)
            scores[:, :, i:] += hidden[:j - i, :j - i]
            top = scores.max(axis=2, keepdims=True)
            scores -= top
            np.exp(scores, out=scores)
            total = scores.sum(axis=2, keepdims=True)
            if p > 0.0:
                scores *= _keep(key, p, range(m, n), i, j, T)
                scores *= factor
            y = np.matmul(scores, vs[m:n, :j])
            np.divide(y, total, out=out[m:n, i:j])
            np.log(total, out=total)
            np.add(top, total, out=lse[m:n, i:j])

    _over_heads(len(qs), T, work)
    return Saved(out.reshape(*q.shape[:-1], v.shape[-1]), lse=lse.reshape(*q.shape[:-1], 1))


def attention_joint(g, q, k, v, mask, out, lse, causal, scale, p, key):
    if not causal or not _plain(q, k, mask):
        return NotImplemented
    T, dtype = q.shape[-2], q.dtype
    s = dtype.type(1.0 / math.sqrt(q.shape[-1]) if scale is None else scale)
    gs, qs, ks, vs, lses = (_heads(a) for a in (g, q, k, v, lse))
    dq, dk, dv = np.empty_like(qs, order="C"), np.zeros_like(ks, order="C"), np.zeros_like(vs, order="C")
    tile, factor = _tile(T), dtype.type(1.0 / (1.0 - p))
    hidden = np.triu(np.full((tile, tile), -np.inf, dtype), 1)

    def work(m: int, n: int) -> None:
        size = (n - m) * min(tile, T) * T
        memory, other = np.empty(size, dtype), np.empty(size, dtype)
        for i in range(0, T, tile):
            j = min(i + tile, T)
            weights = memory[:(n - m) * (j - i) * j].reshape(n - m, j - i, j)
            ds = other[:weights.size].reshape(weights.shape)
            scaled, here = qs[m:n, i:j] * s, gs[m:n, i:j]
            np.matmul(scaled, ks[m:n, :j].swapaxes(1, 2), out=weights)
            weights[:, :, i:] += hidden[:j - i, :j - i]
            weights -= lses[m:n, i:j]
            np.exp(weights, out=weights)
            weights /= weights.sum(axis=2, keepdims=True)       # lse was rounded, for the whole row alike
            np.matmul(here, vs[m:n, :j].swapaxes(1, 2), out=ds)
            if p > 0.0:
                keep = _keep(key, p, range(m, n), i, j, T) * factor
                ds *= keep
                dv[m:n, :j] += np.matmul((weights * keep).swapaxes(1, 2), here)
            else:
                dv[m:n, :j] += np.matmul(weights.swapaxes(1, 2), here)
            ds -= np.vecdot(weights, ds)[:, :, None]    # all keys of a query are here, and the sum rounds as what it is taken from
            ds *= weights
            np.matmul(ds, ks[m:n, :j], out=dq[m:n, i:j])
            dk[m:n, :j] += np.matmul(ds.swapaxes(1, 2), scaled)
        dq[m:n] *= s

    _over_heads(len(qs), T, work)
    return dq.reshape(q.shape), dk.reshape(k.shape), dv.reshape(v.shape), None


KERNELS.update({"attention": attention, "attention/joint": attention_joint})
assert not KERNELS.keys() & _MAIN.keys()
