"""CuPy kernels of a step of decoding a transformer: what calls decode.cu.

How a matrix is cut up depends on its size and on how many multiprocessors there are, so equal calls
on one device give equal bits.
"""
from __future__ import annotations

import functools
from typing import Any

from .kernels import room, wide

FILE = "decode.cu"
# threads of a block that multiplies, as decode.cu's __launch_bounds__ has it
THREADS = 512
WARPS = THREADS // 32
# bytes of x in shared memory, of the 48 KiB that every GPU gives a block
PANEL = 28 * 1024
SUMS = 1024                                             # sums of a block, which are there too
LEAST = 64                                              # keys that are worth a block
# bytes that are asked for while attention leaves memory idle
SOON = 8 << 20
ACTIVATIONS = {None: 0, "gelu_new": 1, "gelu": 2, "relu": 3}


@functools.cache
def cut(processors: int, rows: int, outs: int, k: int, c: int,
        itemsize: int) -> tuple[int, int, int, int]:
    """How a product of rows [·, k] with a matrix [outs, k] is cut up.

    It gives blocks, slices of a row, panel, and numbers of shared memory. c: numbers of a chunk.
    itemsize: of a number that is computed with. A warp's time is the chunks that one lane asks for.
    """
    n, r = {1: (1, 1), 2: (2, 2), 3: (4, 2), 4: (4, 2)}.get(rows, (8, 4))          # as in decode.cu
    each = processors * (2 if rows == 1 else 1)         # blocks that run at a time
    blocks = min(outs, each * -(-outs * n // (each * SUMS)))
    here, groups = -(-outs // blocks), -(-k // (32 * c))
    panel = max(1, min(groups, PANEL // (32 * c * n * itemsize)))
    items = -(-here // r)
    fit = (s for s in range(1, WARPS + 1) if s == 1 or here * s * n <= SUMS)
    slices = min(fit, key=lambda s: -(-items * s // WARPS) * -(-panel // s))
    return blocks, slices, panel, n * (panel * 32 * c + 2 + 32) + here * slices * n


def constants(rows: int, *arrays: Any) -> tuple[tuple[str, int], ...]:
    """What decode.cu is compiled with: see its first lines.

    arrays: what is read CHUNK numbers at a time, [..., n] with each row in one piece.
    """
    c = wide(arrays[0].dtype)
    even = all(a.shape[-1] % c == 0 and a.data.ptr % 16 == 0 for a in arrays)
    return (("ROWS", 1 << (rows - 1).bit_length()), ("CHUNK", c if even else 1))


def product(xp: Any, x: Any, weight: Any) -> tuple[Any, int, int, int, int]:
    compiled = constants(x.shape[0], weight)
    return compiled, *cut(xp.processors, x.shape[0], *weight.shape, compiled[1][1],
                          x.dtype.itemsize)


def step_embed(xp, ids, state, pad, wte, wpe, x):
    xp.launch("step_embed", wte.dtype, (1,), (THREADS,), ids, state, pad, wte, wpe, x, *x.shape,
              ids.shape[0] - 1, file=FILE, constants=constants(x.shape[0], wte))


def step_linear(xp, x, weight, bias, out, *, norm, eps, act, add):
    compiled, blocks, slices, panel, numbers = product(xp, x, weight)
    xp.launch("step_linear", weight.dtype, (blocks,), (THREADS,), x, *(norm or (None, None)),
              weight, bias, out, *x.shape, weight.shape[0], slices, panel, ACTIVATIONS[act],
              int(add), float(eps), shared=room(weight.dtype, numbers), file=FILE,
              constants=compiled)


def step_qkv(xp, x, norm, weight, bias, q, keys, values, state, *, eps):
    compiled, blocks, slices, panel, numbers = product(xp, x, weight)
    xp.launch("step_qkv", weight.dtype, (blocks,), (THREADS,), x, *norm, weight, bias, q, keys,
              values, state, *x.shape, keys.shape[3], keys.shape[2], slices, panel, float(eps),
              shared=room(weight.dtype, numbers), file=FILE, constants=compiled)


def step_attention(xp, q, keys, values, state, pad, out, parts, arrived, *, scale, soon):
    rows, heads, size, e = keys.shape
    blocks = max(1, min(parts.shape[2], 2 * xp.processors // (rows * heads), -(-size // LEAST)))
    (next, later), left = (*soon, None, None)[:2], SOON // keys.dtype.itemsize
    of_next = 0 if next is None else min(next.size, left)
    of_later = 0 if later is None else min(later.size, left - of_next)
    xp.launch("step_attention", keys.dtype, (blocks, heads, rows), (256,), q, keys, values, state,
              pad, out, parts, arrived, next, later, e, size, LEAST, of_next, of_later,
              float(scale), shared=room(keys.dtype, 8 * (e + 2)), file=FILE,
              constants=constants(rows, keys, values))
