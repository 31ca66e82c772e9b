"""Derivatives of the ops that select elements.

The transpose of a gather is a scatter-add, and the transpose of a scatter-add is a gather.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

from .. import backend
from ..axes import index as integer
from ..engine.tensor import Tensor
from ..errors import ShapeError
from ..hints import instead
from ..op import Axis, Constant, Flag, op
from .shape import permute, place, reshape


def plain(key: Any) -> Any:
    """An index with its Tensors replaced by their arrays.

    IndexError for an index with which NumPy and PyTorch order the axes differently.
    """
    if not isinstance(key, tuple):
        return getattr(key, "array", key)
    key = tuple(getattr(k, "array", k) for k in key)
    kinds = ["integer" if isinstance(k, Integral) else
             "slice" if k is None or k is ... or isinstance(k, slice) else "array" for k in key]
    # if a slice stands between arrays, their axes come first; NumPy counts an integer as an array
    # here, and PyTorch does not
    if ("array" in kinds and "slice" in kinds[:kinds.index("array")]
            and _parted(kinds, "array", "integer") and not _parted(kinds, "array")):
        raise IndexError("x[i, :, k] with a slice between an integer and an array has another "
                         "order of axes in NumPy than in PyTorch; write x[i][:, k] for PyTorch's")
    return key


def _parted(kinds: list[str], *some: str) -> bool:
    """Whether a slice stands between the first and the last of these kinds of indices."""
    at = [i for i, kind in enumerate(kinds) if kind in some]
    return "slice" in kinds[at[0]:at[-1]]


@op(x=lambda g, x_shape, index: unslice(g, shape=x_shape, index=index))
def getitem(xp, x, *, index):
    """x[index] with ints, slices, None, … (Ellipsis), and integer or bool arrays, as in NumPy."""
    return x[index]


getitem.view = getitem.narrow = True


@op(g=lambda g, index: getitem(g, index=index))
def unslice(xp, g, *, shape, index):
    """The transpose of getitem: zeros of `shape` with g added at `index`.

    An element that was selected twice gets the sum.
    """
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
    """The transpose of embedding: row r is Σ values[k] over ids[k] = r   (embedding.2–3)."""
    n, d = math.prod(ids.shape), values.shape[-1]
    return xp.add_at_rows(rows, xp.reshape(ids, (n,)), xp.reshape(values, (n, d)))


@instead
def embedding(ids: Any, weight: Any) -> Any:
    """Rows of weight [V, d] at integer ids of any shape [...] -> [..., d].

    ShapeError for an id outside 0 … V−1.
    """
    return embedding_op(weight, ids)


def take(x: Any, indices: Any, *, axis: int | None = None) -> Any:
    """The slices of x at integer `indices` along `axis`; the axes of `indices` replace that axis.

    With axis=None the elements of x, in order, are selected.
    """
    if axis is None:
        x, axis = reshape(x, shape=(-1,)), 0
    at = place(axis, x.ndim, "take")
    array = indices.array if isinstance(indices, Tensor) else indices
    order = (at, *(i for i in range(x.ndim) if i != at))
    rows = permute(x, axes=order)
    flat = reshape(rows, shape=(x.shape[at], math.prod(rows.shape[1:])))
    picked = reshape(embedding_op(flat, array), shape=(*array.shape, *rows.shape[1:]))
    k = array.ndim
    return permute(picked, axes=(*range(k, k + at), *range(k), *range(k + at, picked.ndim)))


@op(x=lambda g, index, x_shape, axis: scatter_add(_zeros(g, x_shape), index, g, axis=axis))
def gather(xp, x, index: Constant, *, axis):
    """out[i, j, …] = x[index[i, j, …], j, …] for axis 0, and so on, as in PyTorch.

    index has as many axes as x, and only along `axis` may it be longer than x.
    """
    at = place(axis, x.ndim, "gather")
    longer = [n > m for i, (n, m) in enumerate(zip(index.shape, x.shape)) if i != at]
    if index.ndim != x.ndim or any(longer):
        raise ShapeError(f"gather: index is {list(index.shape)} but x is {list(x.shape)}; index "
                         f"may be longer only along axis {axis}")
    xp.check_index(index, x.shape[at], "gather: index")
    part = x[tuple(slice(None) if i == at else slice(n) for i, n in enumerate(index.shape))]
    return xp.take_along_axis(part, index, at)


gather.narrow = True


@op(x=lambda g: g, source=lambda g, index, axis: gather(g, index, axis=axis))
def scatter_add(xp, x, index: Constant, source, *, axis):
    """x with source[i, j, …] added at [index[i, j, …], j, …] for axis 0, and so on.

    Where an index repeats, the sum is added.
    """
    if index.shape != source.shape:
        raise ShapeError(f"scatter_add: index is {list(index.shape)} but source is "
                         f"{list(source.shape)}; the shapes must be equal")
    at = place(axis, x.ndim, "scatter_add")
    xp.check_index(index, x.shape[at], "scatter_add: index")
    out = xp.array(x)

    def along(i, n):                                    # all indices of axis i
        return xp.reshape(xp.arange(n), tuple(n if j == i else 1 for j in range(x.ndim)))

    grid = tuple(index if i == at else along(i, n) for i, n in enumerate(index.shape))
    xp.add_at(out, grid, source)
    return out


def flip(x: Any, axis: int | Sequence[int]) -> Any:
    """x with its elements in reverse order along one axis or several (a view)."""
    axes = [place(a, x.ndim, "flip") for a in ([axis] if isinstance(axis, int) else axis)]
    return getitem(x, index=_backwards(x.ndim, axes))


def _backwards(ndim: int, axes: Sequence[int]) -> tuple[slice, ...]:
    """The index that reverses these axes."""
    return tuple(slice(None, None, -1) if i in axes else slice(None) for i in range(ndim))


@op(x=lambda g, x_shape, widths: getitem(g, index=_inner(x_shape, widths)))
def pad_op(xp, x, *, widths, value):
    """x with (before, after) = widths[i] copies of `value` around it along each axis i."""
    out = xp.full(tuple(a + n + b for n, (a, b) in zip(x.shape, widths)), value, dtype=x.dtype)
    out[_inner(x.shape, widths)] = x
    return out


def _inner(shape: Sequence[int], widths: Sequence[tuple[int, int]]) -> tuple[slice, ...]:
    """The index of x inside the padded array."""
    return tuple(slice(a, a + n) for n, (a, _) in zip(shape, widths))


def pad(x: Any, widths: Sequence[Sequence[int]], value: float = 0.0) -> Any:
    """x with `value` around it.

    widths: a pair (before, after) for each axis of x, the first axis first, as in NumPy. ShapeError
    for anything else: a flat list starts with the last axis in PyTorch, and is for every axis in
    NumPy.
    """
    try:
        pairs = tuple((integer(before, "pad: a width"), integer(after, "pad: a width"))
                      for before, after in widths)
    except (TypeError, ValueError):
        pairs = ()
    if len(pairs) != x.ndim:
        raise ShapeError(f"pad: x is {x.dtype}{list(x.shape)}; pass a pair (before, after) for "
                         f"each of its axes, not {widths}")
    if any(n < 0 for pair in pairs for n in pair):
        raise ShapeError(f"pad: the widths {pairs} must not be negative; use slices of x to remove "
                         "elements")
    return pad_op(x, widths=pairs, value=value)


@op()
def argsort(xp, x, axis: Axis = -1, descending: Flag = False):
    """The indices that sort x along one axis, the smallest element first, as int64.

    Equal elements keep their order.
    """
    if not descending:
        return xp.argsort(x, axis=axis, kind="stable")
    back = _backwards(x.ndim, [axis % x.ndim])
    return x.shape[axis] - 1 - xp.argsort(x[back], axis=axis, kind="stable")[back]


pad_op.narrow = argsort.narrow = True


class Sorted(NamedTuple):
    """Sorted elements, and the indices that they had before."""

    values: Any
    indices: Any


def sort(x: Any, axis: int = -1, descending: bool = False) -> Sorted:
    """(values, indices) of x sorted along one axis, the smallest first, as in PyTorch.

    Equal elements keep their order.
    """
    places = argsort(x, axis=place(axis, x.ndim, "sort"), descending=descending)
    return Sorted(gather(x, places, axis=axis), places)


def topk(x: Any, k: int, axis: int = -1) -> Sorted:
    """(values, indices) of the k largest elements along one axis, the largest first (PyTorch's)."""
    axis, k = place(axis, x.ndim, "topk"), integer(k, "topk: k")
    if not 0 <= k <= x.shape[axis]:
        raise ShapeError(f"topk: axis {axis} of {x.dtype}{list(x.shape)} has no {k} elements")
    first = (*[slice(None)] * axis, slice(k))
    places = getitem(argsort(x, axis=axis, descending=True), index=first)
    return Sorted(gather(x, places, axis=axis), places)


def _zeros(like: Any, shape: tuple[int, ...]) -> Any:
    """A constant of zeros in like's dtype and on its device."""
    array = like.array if isinstance(like, Tensor) else like
    zeros = backend.of(array).zeros(shape, dtype=array.dtype)
    return Tensor(zeros) if isinstance(like, Tensor) else zeros
