"""Faster CuPy kernels for some ops: what calls kernels.cu.

table.py says which op or rule each is for. Each is given the backend first,
means what the op of its name says and is tested against that. Nothing here waits for the device.
"""
from __future__ import annotations

import operator
from itertools import accumulate
from typing import Any

from ..base import FLOATS, Saved, boost, half
from ..splitmix64 import least_kept

THREADS = 256
WARPS = THREADS // 32                                   # rows of a block where a warp has one
# sums over rows are taken in so many parts at most
PARTS = 64
# numbers for a block that goes over several arrays
EACH = 1 << 15
# numbers of 16 bits in a line of the GPU's memory
LINE = 64
LOGITS = 1 << 30                                        # bytes of logits at a time


def fits(x: Any) -> bool:
    """Whether the kernels are for x: floats, at least one, for a grid has at least one block."""
    return x.size > 0 and x.dtype.kind in FLOATS and x.dtype.itemsize <= 8


def real(dtype: Any) -> Any:
    """What is computed with, and what sums and statistics are kept in.

    That is float32 where numbers of 16 bits are stored.
    """
    return dtype if dtype.itemsize > 2 else "float32"


def room(dtype: Any, numbers: int) -> int:
    """Bytes of shared memory for so many numbers that are computed with."""
    return numbers * max(dtype.itemsize, 4)


def row_blocks(rows: int) -> tuple[int]:
    """The grid that has a warp for each row."""
    return (-(-rows // WARPS),)


def row_threads(width: int) -> tuple[int]:
    """The block that has a row to itself: whole warps, no more than there are numbers for."""
    return (min(THREADS, -(-width // 32) * 32),)


def number_blocks(n: int, each: int = 1) -> tuple[int]:
    """The grid that has a thread for each number, or for so many."""
    return (-(-n // (THREADS * each)),)


def column_blocks(rows: int, d: int) -> tuple[int, int]:
    """The grid that has 32 columns and a part of the rows for each block of 32 × 8 threads."""
    return (-(-d // 32), min(PARTS, -(-rows // 8)))


def wide(dtype: Any) -> int:
    """How many numbers of memory a thread can ask for at a time."""
    return 16 // int(dtype.itemsize)


def layer_norm(xp, x, weight, bias, *, eps=1e-5):
    return normalized(xp, x, None, weight, bias, eps)[1] if fits(x) else NotImplemented


def add_layer_norm(xp, x, y, weight, bias, *, eps=1e-5):
    if (not fits(x) or x.ndim == 0 or x.shape != y.shape or weight.shape != x.shape[-1:]
            or bias.shape != weight.shape
            or any(a.dtype != x.dtype or xp.device(a) != xp.device(x) for a in (y, weight, bias))):
        return NotImplemented
    xp.at(x)
    return normalized(xp, x, y, weight, bias, eps)


def normalized(xp: Any, x: Any, more: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any]:
    """x + more, and what `layer_norm` gives for that; where more is None, for x."""
    x, d = xp.ascontiguousarray(x), x.shape[-1]
    rows, small = x.size // d, (*x.shape[:-1], 1)
    out = xp.empty_like(x)
    mean, rstd = (xp.empty(small, dtype=real(x.dtype)) for _ in range(2))
    both = None if more is None else xp.empty_like(x)
    xp.launch("layer_norm", x.dtype, row_blocks(rows), (THREADS,), x, or_none(xp, more), both,
              xp.ascontiguousarray(weight), xp.ascontiguousarray(bias), out, mean, rstd,
              rows, d, float(eps))
    return both, Saved(out, mean_=mean, rstd=rstd)


def layer_norm_joint(xp, g, x, weight, mean_, rstd, wants):
    return layer_norm_joint_into(xp, None, g, x, weight, mean_, rstd, wants)


def layer_norm_joint_into(xp, sum, g, x, weight, mean_, rstd, wants):
    if not fits(x):
        return NotImplemented
    g, x, weight = (xp.ascontiguousarray(a) for a in (g, x, weight))
    rows, d = x.size // x.shape[-1], x.shape[-1]
    dx = None
    if wants[0]:
        dx = xp.empty_like(x)
        xp.launch("layer_norm_dx", x.dtype, row_blocks(rows), (THREADS,), g, x, weight,
                  or_none(xp, sum), mean_, rstd, dx, rows, d)
    grid = column_blocks(rows, d)
    sums = xp.empty((grid[1], 2, d), dtype=real(x.dtype))
    xp.launch("layer_norm_sums", x.dtype, grid, (32, 8), g, x, mean_, rstd, sums, rows, d,
              shared=room(x.dtype, 512))
    dweight, dbias = xp.sum(sums, axis=0).astype(x.dtype, copy=False)
    return dx, dweight, dbias


def add(xp, a, b):
    if (not hasattr(a, "dtype") or not hasattr(b, "dtype") or a.dtype != b.dtype
            or a.shape != b.shape or not fits(a)
            or not a.flags.c_contiguous or not b.flags.c_contiguous):
        return NotImplemented
    out = xp.empty(a.shape, dtype=a.dtype)
    xp.launch("add", a.dtype, number_blocks(a.size, wide(a.dtype)), (THREADS,), a, b, out, a.size)
    return out


def astype(xp, x, *, dtype):
    narrow, stored = x.dtype == "float32", xp.dtype(dtype) if x.dtype == "float32" else x.dtype
    if (stored.itemsize != 2 or stored.kind not in FLOATS or not fits(x)
            or not (narrow or dtype == "float32") or not x.flags.c_contiguous):
        return NotImplemented
    out = xp.empty(x.shape, dtype=dtype)
    xp.launch("narrow" if narrow else "widen", stored, number_blocks(x.size, wide(stored)),
              (THREADS,), x, out, x.size)
    return out


def sum_to(xp, x, *, shape):
    if not fits(x) or x.ndim < 2 or shape != x.shape[-1:] or not x.flags.c_contiguous:
        return NotImplemented
    return column_sums(xp, x, shape[0])


def column_sums(xp: Any, x: Any, d: int) -> Any:
    """Contiguous x as rows of d numbers, summed up over the rows: [d]."""
    rows = x.size // d
    grid = column_blocks(rows, d)
    sums = xp.empty((grid[1], d), dtype=real(x.dtype))
    xp.launch("column_sums", x.dtype, grid, (32, 8), x, sums, rows, d, shared=room(x.dtype, 256))
    return xp.sum(sums, axis=0).astype(x.dtype, copy=False)


def addmm(xp, bias, x, weight):
    """Of 16 bits alone: the product is added to the bias in place, so both are rounded once."""
    if not half(x.dtype):
        return NotImplemented
    out = xp.empty((x.size // max(1, x.shape[-1]), weight.shape[1]), dtype=x.dtype)
    out[...] = bias
    made = xp.product(xp.reshape(x, (-1, x.shape[-1])) if x.size else x, weight, out=out, add=True)
    return made if made is NotImplemented else xp.reshape(made, (*x.shape[:-1], weight.shape[1]))


def linear(xp, x, weight, bias=None):
    return NotImplemented if bias is None else addmm(xp, bias, x, xp.swapaxes(weight, 0, 1))


def gelu(xp, x, bias=None, *, approximate="tanh"):
    if approximate != "tanh" or not fits(x):
        return NotImplemented
    out = xp.empty(x.shape, dtype=x.dtype)
    xp.launch("gelu", x.dtype, number_blocks(x.size, wide(x.dtype)), (THREADS,),
              xp.ascontiguousarray(x), or_none(xp, bias), out, x.size,
              1 if bias is None else x.shape[-1])
    return out


def gelu_joint(xp, g, x, bias, approximate):
    if approximate != "tanh" or not fits(x):
        return NotImplemented
    out = xp.empty(x.shape, dtype=x.dtype)
    xp.launch("gelu_dx", x.dtype, number_blocks(x.size, wide(x.dtype)), (THREADS,),
              xp.ascontiguousarray(g), xp.ascontiguousarray(x), or_none(xp, bias), out, x.size,
              1 if bias is None else x.shape[-1])
    return out, None if bias is None else column_sums(xp, out, bias.size)


def or_none(xp: Any, array: Any) -> Any:
    """An array that a kernel can do without, as it takes it."""
    return None if array is None else xp.ascontiguousarray(array)


def dropout_op(xp, x, *, p, key):
    if not fits(x):
        return NotImplemented
    key = operator.index(key)
    out, signed = xp.empty(x.shape, dtype=x.dtype), key - (key >> 63 << 64)
    xp.launch("dropout_op", x.dtype, number_blocks(x.size, 2), (THREADS,),
              xp.ascontiguousarray(x), out, x.size, signed, least_kept(p), 1.0 / (1.0 - p))
    return out


def counted(xp: Any, targets: Any, ignore_index: int, dtype: Any) -> tuple[Any, Any]:
    """Targets as a row of ids, 0 where they do not count, and each one's share of the mean.

    The share is 1/n, or 0.
    """
    ids = xp.reshape(targets, (targets.size,))
    kept = ids != ignore_index
    ones = kept.astype(real(dtype))
    return xp.where(kept, ids, 0).astype("int64"), ones / xp.maximum(xp.sum(ones), 1.0)


def lse_and_nll(xp: Any, logits: Any, ids: Any, size: int) -> tuple[Any, Any]:
    """The log-sum-exp and the loss of each row of logits [n, V].

    Of a row the first `size` numbers count.
    """
    lse, nll = (xp.empty(ids.shape, dtype=real(logits.dtype)) for _ in range(2))
    xp.launch("cross_entropy", logits.dtype, (ids.size,), row_threads(size), logits,
              xp.remainder(ids, size), lse, nll, logits.shape[-1], size,
              shared=room(logits.dtype, 64))
    return lse, nll


def to_gradient(xp: Any, g: Any, logits: Any, ids: Any, lse: Any, scale: Any, out: Any,
                size: int) -> None:
    """out, which may be the logits themselves, becomes ∂/∂logits."""
    xp.launch("cross_entropy_dlogits", logits.dtype, (ids.size,), row_threads(size),
              g, logits, ids, lse, scale, out, logits.shape[-1], size)


def cross_entropy(xp, logits, targets, *, ignore_index=-100):
    if not fits(logits):
        return NotImplemented
    ids, scale = counted(xp, targets, ignore_index, logits.dtype)
    lse, nll = lse_and_nll(xp, xp.ascontiguousarray(logits), ids, logits.shape[-1])
    small = (*targets.shape, 1)
    return Saved(mean_of(xp, nll, scale), lse=xp.reshape(lse, small),
                 scale=xp.reshape(scale, small))


def mean_of(xp: Any, nll: Any, scale: Any) -> Any:
    """Σ nll ⊙ scale, whatever stands where scale is 0; NaN where nothing counts."""
    total = xp.sum(xp.where(scale != 0.0, nll * scale, 0.0))
    return total + 0.0 / xp.sum(scale)                  # 0, or 0/0, without a wait for the device


def cross_entropy_dlogits(xp, g, logits, targets, lse, scale):
    if not fits(logits):
        return NotImplemented
    logits = xp.ascontiguousarray(logits)
    ids = xp.reshape(targets, (targets.size,)).astype("int64")
    out = xp.empty_like(logits)
    to_gradient(xp, xp.ascontiguousarray(g), logits, ids, lse, scale, out, logits.shape[-1])
    return out


def linear_cross_entropy(xp, x, weight, targets, *, ignore_index=-100, wants=(False, False, False)):
    if not fits(x):
        return NotImplemented
    (V, d), table = weight.shape, weight
    rows, lifted = xp.reshape(xp.ascontiguousarray(x), (-1, d)), boost(x.dtype, targets.size)
    factor = xp.full((), lifted, dtype=real(x.dtype))
    ids, scale = counted(xp, targets, ignore_index, x.dtype)
    # rows of logits start on whole lines of memory: tensor cores want them there
    n, width = len(rows), -(-V // LINE) * LINE
    if V % wide(x.dtype):                               # and sides of whole pieces of 16 bytes
        table = xp.zeros((width, d), dtype=x.dtype)     # so the logits of rows beyond V are 0
        table[:V] = weight
    size = len(table)
    # blocks of one size
    step = -(-n // -(-n // max(1, LOGITS // (width * x.dtype.itemsize))))
    memory = xp.empty((step, width), dtype=x.dtype)
    dx = xp.empty_like(rows) if wants[0] else None
    dweight = None
    if wants[1]:
        dweight = xp.empty((size, d), dtype=real(x.dtype) if step < n else x.dtype)
    nll = []
    for i in range(0, n, step):
        here = slice(i, min(i + step, n))
        whole = memory[:here.stop - i]
        logits = xp.product(rows[here], table.T, out=whole[:, :size])
        lse, some = lse_and_nll(xp, whole, ids[here], V)
        nll.append(some)
        if dx is not None or dweight is not None:
            to_gradient(xp, factor, whole, ids[here], lse, scale[here], whole, V)
        if dx is not None:
            xp.product(logits, table, out=dx[here])
        if dweight is not None:
            xp.product(logits.T, rows[here], out=dweight, add=i > 0)
    return Saved(mean_of(xp, xp.concatenate(nll), scale),
                 dx=None if dx is None else xp.reshape(dx, x.shape),
                 dweight=None if dweight is None else dweight[:V].astype(x.dtype, copy=False),
                 boost=lifted)


def add_rows(xp: Any, sum: Any, index: Any, values: Any) -> None:
    """sum[index[k]] += values[k] for all k, in place, in an order that the index fixes.

    Indices that do not exist wrap around.
    """
    rows, d = sum.shape
    index = xp.remainder(index, rows).astype("int64")
    order = xp.argsort(index, kind="stable")
    xp.launch("add_rows", sum.dtype, (index.size,), row_threads(d), sum, xp.take(index, order),
              order, xp.ascontiguousarray(values), index.size, d)


def embedding_into(xp, sum, g, ids, weight_shape):
    if not fits(g) or not sum.flags.c_contiguous:
        return NotImplemented
    add_rows(xp, sum, xp.reshape(ids, (ids.size,)), xp.reshape(g, (ids.size, g.shape[-1])))


def over_arrays(xp: Any, name: str, kinds: tuple[Any, ...], *args: Any, sums: bool = False) -> Any:
    """Run a kernel that goes over several arrays in one launch.

    NotImplemented where they are not of one dtype, or not contiguous. kinds: sequences of as many
    arrays each, of which those at one place belong together and have one size. Where they lie is
    uploaded. sums: the kernel gives a number for each block, and they are what is returned.
    """
    everything = [a for kind in kinds for a in kind]
    if not all(fits(a) and a.flags.c_contiguous and a.dtype == everything[0].dtype
               for a in everything):
        return NotImplemented
    sizes = [a.size for a in kinds[0]]
    first = [0, *accumulate(-(-size // EACH) for size in sizes)]
    places = ([a.data.ptr for a in kind] for kind in kinds)
    table = xp.asarray([first[:-1], sizes, *places], dtype="int64")
    dtype = everything[0].dtype
    out = xp.empty((first[-1],), dtype=real(dtype)) if sums else None
    xp.launch(name, dtype, (first[-1],), (THREADS,), table, len(sizes), EACH,
              *([out] if sums else args), shared=room(dtype, 32) * sums)
    return out


def sums_of_squares(xp, arrays):
    return over_arrays(xp, "sums_of_squares", (arrays,), sums=True)


def scale(xp, arrays, factor):
    return over_arrays(xp, "scale", (arrays,), float(factor))


def adamw_update(xp, ps, gs, ms, vs, *, lr, beta1, beta2, eps, weight_decay, correct1, correct2):
    settings = (lr, beta1, beta2, eps, weight_decay, correct1, correct2)
    gs = [xp.ascontiguousarray(g) for g in gs]
    return over_arrays(xp, "adamw_update", (ps, gs, ms, vs), *map(float, settings))
