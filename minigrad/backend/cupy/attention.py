"""Attention in tiles on a GPU: what calls attention.cu."""
from __future__ import annotations

import math
from typing import Any

from ..base import Saved
from .kernels import THREADS, fits, real

FILE = "attention.cu"
TILE = 8192                                             # bytes of a tile of shared memory
LONGEST = 64                                            # rows of a tile at most
WIDEST = 128                                            # numbers of a head at most
LEAST = 1e-30                                           # of a scale: float32 has it and its inverse
# what a block of tensor cores uses; others use less
SHARED = 6 * TILE
# compute capability from which bfloat16 is multiplied
TENSOR_CORES = 80


def attended(xp: Any, q: Any, k: Any, v: Any, mask: Any, causal: bool, s: float, p: float) -> bool:
    """Whether this is a case for the kernels.

    It has no padding and no dropout, its heads fit, and every query sees a key.
    """
    plain = (fits(q) and k.size > 0 and v.size > 0 and mask is None and p == 0.0
             and LEAST < s < 1.0 / LEAST)
    return (plain and not (causal and q.shape[-2] > k.shape[-2])
            and max(q.shape[-1], v.shape[-1]) <= WIDEST
            and (q.dtype.itemsize > 2 or xp.capability() >= TENSOR_CORES))


def scale_of(q: Any, scale: float | None) -> float:
    return 1.0 / math.sqrt(q.shape[-1]) if scale is None else float(scale)


def four(xp: Any, x: Any) -> Any:
    """x as [batch, head, row, number], numbers side by side in memory.

    It is a view wherever they lie so and there are no more than four axes.
    """
    x = x.reshape(math.prod(x.shape[:-3]), *x.shape[-3:]) if x.ndim > 2 else x[None, None]
    return x if x.strides[-1] == x.dtype.itemsize or x.shape[-1] == 1 else xp.ascontiguousarray(x)


def steps(*arrays: Any) -> list[int]:
    """From one batch, head and row of [batch, head, row, number] to the next, for each array.

    The steps are counted in numbers.
    """
    return [n // x.dtype.itemsize for x in arrays for n in x.strides[:3]]


def beside(xp: Any, like: Any, size: int) -> tuple[Any, Any]:
    """Memory [batch, row, head, size], and a view of it as [batch, head, row, size].

    Heads are side by side in it, as the model wants them next.
    """
    B, h, T, _ = like.shape
    memory = xp.empty((B, T, h, size), dtype=like.dtype)
    return memory, xp.swapaxes(memory, 1, 2)


def dealt(dtype: Any, width: int, tiles: int) -> tuple[int, int, int]:
    """Rows of a block that keeps so many tiles of a head of `width` numbers, and its threads.

    And the numbers that the head is padded to.
    """
    padded = 64 if width <= 64 else WIDEST
    rows = tiles * TILE // (padded * int(dtype.itemsize))
    return rows, 32 * min(4, rows // (16 if dtype.itemsize == 2 else 4)), padded


def attention(xp, q, k, v, mask=None, *, causal=True, scale=None, p=0.0, key=0):
    s = scale_of(q, scale)
    if not attended(xp, q, k, v, mask, causal, s, p):
        return NotImplemented
    shape, (q, k, v) = q.shape[:-1], (four(xp, x) for x in (q, k, v))
    B, h, T, d = q.shape
    S, e = v.shape[2:]
    memory, out = beside(xp, q, e)
    lse = xp.empty((*shape, 1), dtype=real(q.dtype))
    rows, threads, padded = dealt(q.dtype, max(d, e), 2)
    xp.launch("flash_attention_64" if padded == 64 else "flash_attention_128", q.dtype,
              (B * h * -(-T // rows),), (threads,), q, k, v, memory, lse, *steps(q, k, v),
              h, T, S, d, e, int(causal), s, shared=SHARED, file=FILE)
    return Saved(xp.reshape(out, (*shape, e)), lse=lse)


def attention_joint(xp, g, q, k, v, mask, out, lse, causal, scale, p, key):
    s = scale_of(q, scale)
    if not attended(xp, q, k, v, mask, causal, s, p):
        return NotImplemented
    shapes = (q.shape, k.shape, v.shape)
    g, q, k, v, out = (four(xp, x) for x in (g, q, k, v, out))
    B, h, T, d = q.shape
    S, e = v.shape[2:]
    room = -(-T // LONGEST) * LONGEST
    stats = xp.empty((B * h, room, 2), dtype=lse.dtype)
    xp.launch("attention_statistics", q.dtype, (-(-B * h * room * 8 // THREADS),), (THREADS,),
              g, out, lse, stats, *steps(g, out), h, T, e, room, B * h * room, file=FILE)
    (dq, to_q), (dk, to_k), (dv, to_v) = beside(xp, q, d), beside(xp, k, d), beside(xp, v, e)
    rows, threads, padded = dealt(q.dtype, max(d, e), 1)
    told = (*steps(g, q, k, v), h, T, S, room, d, e, int(causal), s)
    xp.launch("flash_attention_dq_64" if padded == 64 else "flash_attention_dq_128", q.dtype,
              (B * h * -(-T // rows),), (threads,), g, q, k, v, stats, dq, *told,
              shared=SHARED, file=FILE)
    xp.launch("flash_attention_dk_dv_64" if padded == 64 else "flash_attention_dk_dv_128", q.dtype,
              (B * h * -(-S // rows),), (threads,), g, q, k, v, stats, dk, dv, *told,
              shared=SHARED, file=FILE)
    return (*(xp.reshape(x, shape) for x, shape in zip((to_q, to_k, to_v), shapes)), None)
