"""NumPy's functions for Tensors, written with our ops.

Each has the signature of NumPy's function, and its arguments mean what they mean in NumPy. It
returns NotImplemented if no op can do what the arguments ask for.
"""
from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ..engine.making import asarray
from ..engine.tensor import Tensor
from ..errors import ShapeError
from . import elementwise as e
from . import index, linalg
from . import reduce as r
from . import shape as s

FUNCTIONS: dict[Any, tuple[Callable[..., Any], inspect.Signature]] = {}
NONE: Any = np._NoValue                                 # NumPy's default for "no argument given"


def means(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare that a function replaces NumPy's functions of these names for Tensors.

    A name that the installed NumPy does not have is skipped: NumPy 2.0 lacks some of them.
    """

    def keep(f: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            library: Any = np
            for part in name.split("."):
                library = getattr(library, part, None)
            if library is not None:
                FUNCTIONS[library] = f, inspect.signature(f)
        return f

    return keep


def bare(x: Any) -> Any:
    """The arguments, in which each Tensor is replaced by its array."""
    if isinstance(x, Tensor):
        return x.array
    if isinstance(x, dict):
        return {k: bare(v) for k, v in x.items()}
    return type(x)(map(bare, x)) if type(x) in (list, tuple) else x


def _flat(x: Any) -> Any:
    return s.reshape(_array(x), shape=(-1,))


def _array(x: Any) -> Any:
    """x if it is a Tensor or an array; a number or a list becomes an array."""
    return x if hasattr(x, "ndim") else asarray(x)


def _several(axis: Any) -> tuple[int, ...]:
    return tuple(axis) if isinstance(axis, list | tuple) else (axis,)


# reductions
@means("sum")
def _sum(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False,
         initial: Any = None, where: Any = True) -> Any:
    return r.sum(a, axis=axis, keepdims=keepdims)


@means("prod")
def _prod(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False,
          initial: Any = None, where: Any = True) -> Any:
    return r.prod(a, axis=axis, keepdims=keepdims)


@means("mean")
def _mean(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False, *,
          where: Any = True) -> Any:
    return r.mean(a, axis=axis, keepdims=keepdims)


@means("max", "amax")
def _max(a: Any, axis: Any = None, out: Any = None, keepdims: bool = False, initial: Any = None,
         where: Any = True) -> Any:
    return r.max(a, axis=axis, keepdims=keepdims)


@means("min", "amin")
def _min(a: Any, axis: Any = None, out: Any = None, keepdims: bool = False, initial: Any = None,
         where: Any = True) -> Any:
    return r.min(a, axis=axis, keepdims=keepdims)


def _spread(f: Any) -> Any:
    """var or std with NumPy's arguments."""
    def of(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: Any = 0,
           keepdims: bool = False, *, where: Any = True, mean: Any = None,
           correction: Any = NONE) -> Any:
        if correction is not NONE and ddof != 0:
            return NotImplemented                       # NumPy does not take both at once
        correction = ddof if correction is NONE else correction
        return f(a, axis=axis, keepdims=keepdims, correction=correction)

    return of


means("var")(_spread(r.var))
means("std")(_spread(r.std))


@means("linalg.norm")
def _norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    axes = tuple(range(x.ndim)) if axis is None else _several(axis)
    all_of_it = (None,) if axis is None else ()         # the norm of all numbers has any ndim
    if ord not in {1: (None, 2), 2: (None, "fro")}.get(len(axes), all_of_it):
        return NotImplemented
    return r.norm(x, axis=axes if axes else None, keepdims=keepdims)


@means("linalg.vector_norm")
def _vector_norm(x: Any, *, axis: Any = None, keepdims: bool = False, ord: Any = 2) -> Any:
    return r.norm(x, axis=axis, keepdims=keepdims) if ord == 2 else NotImplemented


@means("linalg.matrix_norm")
def _matrix_norm(x: Any, *, keepdims: bool = False, ord: Any = "fro") -> Any:
    return r.norm(x, axis=(-2, -1), keepdims=keepdims) if ord == "fro" else NotImplemented


@means("cumsum")
def _cumsum(a: Any, axis: Any = None, dtype: Any = None, out: Any = None) -> Any:
    return r.cumsum(_flat(a), 0) if axis is None else r.cumsum(a, axis)


# order
@means("flip")
def _flip(m: Any, axis: Any = None) -> Any:
    return index.flip(m, range(m.ndim) if axis is None else _several(axis))


@means("sort")
def _sort(a: Any, axis: Any = -1, kind: Any = None, order: Any = None, *,
          stable: Any = None) -> Any:
    return index.sort(_flat(a), 0).values if axis is None else index.sort(a, axis).values


# products
@means("dot")
def _dot(a: Any, b: Any, out: Any = None) -> Any:
    """The products summed over the last axis of a and the last but one of b.

    In the result the other axes of a come first, and then the other axes of b.
    """
    a, b = _array(a), _array(b)
    if a.ndim == 0 or b.ndim == 0:
        return e.mul(a, b)
    if b.ndim < 3:
        return linalg.matmul(a, b)
    k, rest = b.shape[-2], (*b.shape[:-2], b.shape[-1])
    if a.shape[-1] != k:
        raise ShapeError(f"np.dot: inner sizes differ: a is {a.dtype}{list(a.shape)}, b is "
                         f"{b.dtype}{list(b.shape)} ({a.shape[-1]} ≠ {k})")
    columns = s.permute(b, axes=(b.ndim - 2, *range(b.ndim - 2), b.ndim - 1))
    columns = s.reshape(columns, shape=(k, math.prod(rest)))
    return s.reshape(linalg.matmul(a, columns), shape=(*a.shape[:-1], *rest))


@means("inner")
def _inner(a: Any, b: Any) -> Any:
    b = _array(b)
    return _dot(a, s.matrix_transpose(b) if b.ndim > 1 else b)


@means("vdot")
def _vdot(a: Any, b: Any) -> Any:
    return linalg.matmul(_flat(a), _flat(b))


@means("outer")
def _outer(a: Any, b: Any, out: Any = None) -> Any:
    return e.mul(_flat(a)[:, None], _flat(b)[None, :])


@means("linalg.outer")
def _vectors(x1: Any, x2: Any) -> Any:
    return _outer(x1, x2) if x1.ndim == x2.ndim == 1 else NotImplemented


@means("linalg.matmul")
def _matmul(x1: Any, x2: Any) -> Any:
    return linalg.matmul(x1, x2)


@means("einsum")
def _einsum(*operands: Any, out: Any = None, optimize: Any = False) -> Any:
    return linalg.einsum(*operands) if isinstance(operands[0], str) else NotImplemented


# shapes
@means("reshape")
def _reshape(a: Any, shape: Any, order: str = "C", *, copy: Any = None) -> Any:
    return s.reshape(a, shape=shape)


@means("ravel")
def _ravel(a: Any, order: str = "C") -> Any:
    return _flat(a)


@means("transpose")
def _transpose(a: Any, axes: Any = None) -> Any:
    return s.permute(a, axes=tuple(reversed(range(a.ndim))) if axes is None else axes)


@means("matrix_transpose", "linalg.matrix_transpose")
def _matrix_transpose(x: Any) -> Any:
    return s.matrix_transpose(x)


@means("swapaxes")
def _swapaxes(a: Any, axis1: int, axis2: int) -> Any:
    return s.transpose(a, axis0=axis1, axis1=axis2)


@means("moveaxis")
def _moveaxis(a: Any, source: Any, destination: Any) -> Any:
    n = a.ndim
    froms, to = ([s.place(i, n, "np.moveaxis") for i in _several(x)] for x in (source, destination))
    if len({*froms}) != len(froms) or len({*to}) != len(to) or len(froms) != len(to):
        return NotImplemented
    order = [i for i in range(n) if i not in froms]
    for at, i in sorted(zip(to, froms)):
        order.insert(at, i)
    return s.permute(a, axes=order)


@means("expand_dims")
def _expand_dims(a: Any, axis: Any) -> Any:
    n = a.ndim + len(_several(axis))
    at, sizes = {s.place(i, n, "np.expand_dims") for i in _several(axis)}, iter(a.shape)
    if len(at) != n - a.ndim:
        return NotImplemented
    return s.reshape(a, shape=tuple(1 if i in at else next(sizes) for i in range(n)))


@means("squeeze")
def _squeeze(a: Any, axis: Any = None) -> Any:
    at = ({i for i, n in enumerate(a.shape) if n == 1} if axis is None else
          {s.place(i, a.ndim, "np.squeeze") for i in _several(axis)})
    if any(a.shape[i] != 1 for i in at):
        raise ShapeError(f"np.squeeze: {list(a.shape)} has no axis of size 1 at {axis}")
    return s.reshape(a, shape=tuple(n for i, n in enumerate(a.shape) if i not in at))


@means("broadcast_to")
def _broadcast_to(array: Any, shape: Any, subok: bool = False) -> Any:
    return s.broadcast_to(array, shape=_several(shape))


@means("tril")
def _tril(m: Any, k: int = 0) -> Any:
    return s.tril(m, diagonal=k) if m.ndim > 1 else NotImplemented


@means("triu")
def _triu(m: Any, k: int = 0) -> Any:
    return s.triu(m, diagonal=k) if m.ndim > 1 else NotImplemented


@means("astype")
def _astype(x: Any, dtype: Any, *, copy: bool = True) -> Any:
    return e.astype(x, dtype=dtype)


# parts
@means("concatenate")
def _concatenate(arrays: Sequence[Any], axis: Any = 0, out: Any = None, *, dtype: Any = None,
                 casting: str = "same_kind") -> Any:
    if axis is None:
        return s.concat([_flat(x) for x in arrays], axis=0)
    return s.concat([_array(x) for x in arrays], axis=axis)


@means("stack")
def _stack(arrays: Sequence[Any], axis: int = 0, out: Any = None, *, dtype: Any = None,
           casting: str = "same_kind") -> Any:
    return s.stack([_array(x) for x in arrays], axis=axis)


@means("vstack")
def _vstack(tup: Sequence[Any], *, dtype: Any = None, casting: str = "same_kind") -> Any:
    return s.concat([_flat(x)[None] if _array(x).ndim < 2 else x for x in tup], axis=0)


@means("hstack")
def _hstack(tup: Sequence[Any], *, dtype: Any = None, casting: str = "same_kind") -> Any:
    rows = [_flat(x) if _array(x).ndim == 0 else _array(x) for x in tup]
    return s.concat(rows, axis=min(1, rows[0].ndim - 1))


@means("split")
def _split(ary: Any, indices_or_sections: Any, axis: int = 0) -> Any:
    at = s.place(axis, ary.ndim, "np.split")
    n, cuts = ary.shape[at], indices_or_sections
    if not hasattr(cuts, "__len__"):
        if cuts < 1 or n % cuts:
            raise ShapeError(f"np.split: axis {axis} of {ary.dtype}{list(ary.shape)} cannot be cut "
                             f"into {cuts} equal parts")
        cuts = range(n // cuts, n, n // cuts) if n else [0] * (cuts - 1)
    ends = [0, *map(int, cuts), n]      # as in NumPy, the slices may be empty or overlap
    return [ary[(*[slice(None)] * at, slice(i, j))] for i, j in pairwise(ends)]


@means("take")
def _take(a: Any, indices: Any, axis: Any = None, out: Any = None, mode: str = "raise") -> Any:
    x, at = (_flat(a), 0) if axis is None else (a, s.place(axis, a.ndim, "np.take"))
    if isinstance(indices, list | tuple | int):
        indices = np.asarray(bare(indices))
    return x[(*[slice(None)] * at, indices)]


@means("take_along_axis")
def _take_along_axis(arr: Any, indices: Any, axis: Any = -1) -> Any:
    sizes = enumerate(zip(arr.shape, indices.shape))
    if axis is None or any(n != m for i, (n, m) in sizes if i != axis % arr.ndim):
        return NotImplemented                           # NumPy broadcasts here, gather does not
    return index.gather(arr, indices, axis=axis)


@means("clip")
def _clip(a: Any, a_min: Any = NONE, a_max: Any = NONE, out: Any = None, *, min: Any = NONE,
          max: Any = NONE, dtype: Any = None, where: Any = True, casting: Any = None,
          order: Any = None, subok: Any = None) -> Any:
    if (a_min is not NONE or a_max is not NONE) and (min is not NONE or max is not NONE):
        return NotImplemented                           # NumPy does not take both at once
    low, high = (a_min, a_max) if a_min is not NONE or a_max is not NONE else (min, max)
    low, high = (None if v is NONE else v for v in (low, high))
    if any(isinstance(v, Tensor) or getattr(v, "dtype", a.dtype) != a.dtype for v in (low, high)):
        return NotImplemented   # the op's bounds get no gradients and do not change the dtype
    return e.clip(a, min=low, max=high)


@means("where")
def _where(condition: Any, x: Any = NONE, y: Any = NONE) -> Any:
    of_numpy = isinstance(bare(condition), np.ndarray)
    if x is NONE and y is NONE:
        return np.where(bare(condition)) if of_numpy else NotImplemented
    if not isinstance(x, Tensor) and not isinstance(y, Tensor) and of_numpy:
        return np.where(bare(condition), x, y)          # nothing to record; NumPy chooses the dtype
    return e.where(_array(condition), x, y)
