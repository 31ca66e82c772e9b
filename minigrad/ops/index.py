"""Derivatives of picking elements out: the transpose of a gather is a scatter-add, and the other way round."""
from __future__ import annotations

import math
from typing import Any

from .. import backend
from ..errors import ShapeError
from ..op import Constant, op
from ..tensor import Tensor
from .shape import permute, place, reshape


@op(x=lambda g, x_shape, index: unslice(g, shape=x_shape, index=index))
def getitem(xp, x, *, index):
    """x[index]: ints, slices, None, …, and integer or bool arrays, as NumPy has it."""
    return x[index]


getitem.view = getitem.narrow = True


@op(g=lambda g, index: getitem(g, index=index))
def unslice(xp, g, *, shape, index):
    """The transpose of getitem: zeros of `shape` with g added at `index`; elements picked twice get the sum."""
    out = xp.zeros(shape, dtype=g.dtype)
    parts = index if isinstance(index, tuple) else (index,)
    if any(hasattr(i, "dtype") or isinstance(i, list) for i in parts):
        xp.add_at(out, index, g)
    else:
        out[index] = g
    return out


@op(weight=lambda g, ids, weight_shape: scatter_rows(g, ids, rows=weight_shape[0]))
def embedding_op(xp, weight, ids: Constant):
    """weight[ids]: one row of weight [V, d] for each id   (embedding.1)."""
    xp.check_index(ids, weight.shape[0], "embedding: ids")
    return xp.take(weight, ids, axis=0)


embedding_op.narrow = True


@op(values=lambda g, ids: embedding_op(g, ids))
def scatter_rows(xp, values, ids: Constant, *, rows):
    """The transpose of embedding: row r of the result is the sum of values[k] over ids[k] = r   (embedding.2–3)."""
    d = values.shape[-1]
    return xp.add_at_rows(rows, xp.reshape(ids, (math.prod(ids.shape),)), xp.reshape(values, (math.prod(ids.shape), d)))


def embedding(ids: Any, weight: Any) -> Any:
    """Rows of weight [V, d] at integer ids of any shape [...] -> [..., d]. ShapeError for an id outside 0 … V−1."""
    return embedding_op(weight, ids)


def take(x: Any, indices: Any, *, axis: int | None = None) -> Any:
    """The slices of x at integer `indices` (any shape) along `axis`, whose place their axes take; axis None: the elements of x in order."""
    if axis is None:
        x, axis = reshape(x, shape=(-1,)), 0
    at, array = place(axis, x.ndim, "take"), indices.array if isinstance(indices, Tensor) else indices
    order = (at, *(i for i in range(x.ndim) if i != at))
    rows = permute(x, axes=order)
    flat = reshape(rows, shape=(x.shape[at], math.prod(rows.shape[1:])))
    picked = reshape(embedding_op(flat, array), shape=(*array.shape, *rows.shape[1:]))
    k = array.ndim
    return permute(picked, axes=(*range(k, k + at), *range(k), *range(k + at, picked.ndim)))


@op(x=lambda g, index, x_shape, axis: scatter_add(_zeros(g, x_shape), index, g, axis=axis))
def gather(xp, x, index: Constant, *, axis):
    """out[i, j, …] = x[index[i, j, …], j, …] for axis 0, and so on, as PyTorch has it.

    index has as many axes as x and is nowhere longer but along `axis`.
    """
    at = place(axis, x.ndim, "gather")
    if index.ndim != x.ndim or any(n > m for i, (n, m) in enumerate(zip(index.shape, x.shape)) if i != at):
        raise ShapeError(f"gather: index is {list(index.shape)} but x is {list(x.shape)}; it may be longer along axis {axis} alone")
    xp.check_index(index, x.shape[at], "gather: index")
    part = x[tuple(slice(None) if i == at else slice(n) for i, n in enumerate(index.shape))]
    return xp.take_along_axis(part, index, at)


gather.narrow = True


@op(x=lambda g: g, source=lambda g, index, axis: gather(g, index, axis=axis))
def scatter_add(xp, x, index: Constant, source, *, axis):
    """x with source[i, j, …] added at [index[i, j, …], j, …] for axis 0, and so on; sums where an index repeats."""
    if index.shape != source.shape:
        raise ShapeError(f"scatter_add: index is {list(index.shape)} but source is {list(source.shape)}; they must be alike")
    at = place(axis, x.ndim, "scatter_add")
    xp.check_index(index, x.shape[at], "scatter_add: index")
    out = xp.array(x)
    grid = tuple(index if i == at else xp.reshape(xp.arange(n), tuple(n if j == i else 1 for j in range(x.ndim)))
                 for i, n in enumerate(index.shape))
    xp.add_at(out, grid, source)
    return out


def _zeros(like: Any, shape: tuple[int, ...]) -> Any:
    """A constant of zeros in like's dtype, where like lives."""
    array = like.array if isinstance(like, Tensor) else like
    zeros = backend.of(array).zeros(shape, dtype=array.dtype)
    return Tensor(zeros) if isinstance(like, Tensor) else zeros
