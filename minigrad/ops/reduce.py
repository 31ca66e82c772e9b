"""Derivatives of the reductions over axes, such as sums and maxima.

axis: None (all axes), an int or a tuple of ints. keepdims: the reduced axes stay, with size 1.
"""
from __future__ import annotations

import builtins
import math
from typing import Any

from ..axes import whole
from ..errors import ShapeError
from ..op import Axis, Flag, op
from ..widen import in_float32
from .elementwise import astype, exp, sqrt, where
from .index import flip
from .shape import broadcast_to, expand, permute, place, reshape, split


def spread(g: Any, shape: tuple[int, ...], axis: Any, keepdims: bool) -> Any:
    """g, which has the shape of a reduction's result, in a shape that broadcasts to the input."""
    return g if keepdims or axis is None else expand(g, axis=axis, ndim=len(shape))


def count(shape: tuple[int, ...], axis: Any) -> int:
    """How many elements a reduction over `axis` combines into one."""
    axes = range(len(shape)) if axis is None else (axis,) if isinstance(axis, int) else axis
    return math.prod(shape[a] for a in axes)


@op(x=lambda g, x_shape, axis, keepdims:
    broadcast_to(spread(g, x_shape, axis, keepdims), shape=x_shape))
def sum(xp, x, axis: Axis = None, keepdims: Flag = False):
    """Σ x."""
    return xp.sum(x, axis=axis, keepdims=keepdims)


@op(x=lambda g, x_shape, axis, keepdims:
    broadcast_to(spread(g, x_shape, axis, keepdims) / count(x_shape, axis), shape=x_shape))
def mean(xp, x, axis: Axis = None, keepdims: Flag = False):
    """Σ x / n."""
    return xp.mean(x, axis=axis, keepdims=keepdims)


def _var_dx(g: Any, x: Any, axis: Any, keepdims: bool, correction: Any, ddof: Any) -> Any:
    """2 (x − mean) / (n − correction)"""
    n = count(x.shape, axis) - _correction(correction, ddof)
    n = builtins.max(n, 0)                              # too few elements: the result is ∞ or NaN
    return spread(g, x.shape, axis, keepdims) * (x - mean(x, axis=axis, keepdims=True)) * 2.0 / n


def _correction(correction: Any, ddof: Any) -> Any:
    """The number that is subtracted from n: PyTorch calls it correction, NumPy ddof.

    TypeError unless exactly one of them was passed.
    """
    if (correction is None) == (ddof is None):
        raise TypeError("pass the number that is subtracted from n: correction=0 (or ddof=0) for "
                        "the variance of a population, NumPy's default; correction=1 (or ddof=1) "
                        "for that of a sample, PyTorch's default")
    return ddof if correction is None else correction


@op(x=_var_dx)
def var(xp, x, *, axis=None, keepdims=False, correction=None, ddof=None):
    """Variance, Σ (x − mean)² / (n − correction).

    correction (NumPy's name is ddof) has no default: 0 is for a population, which LayerNorm needs
    and which is NumPy's default; 1 is for a sample, PyTorch's default.
    """
    return xp.var(x, axis=axis, keepdims=keepdims, ddof=_correction(correction, ddof))


def std(x: Any, *, axis: Any = None, keepdims: bool = False, correction: Any = None,
        ddof: Any = None) -> Any:
    """Standard deviation, the square root of `var`, with the same arguments.

    Where all elements are equal, its derivative is defined as 0.
    """
    square = var(x, axis=axis, keepdims=keepdims, correction=correction, ddof=ddof)
    none = square == 0.0
    return where(none, 0.0, sqrt(where(none, 1.0, square)))


def _norm_dx(g: Any, x: Any, out: Any, axis: Any, keepdims: bool) -> Any:
    """x / |x|, and 0 where x = 0, which is the smallest subgradient."""
    length = spread(out, x.shape, axis, keepdims)
    return spread(g, x.shape, axis, keepdims) * x / where(length == 0.0, 1.0, length)


@op(x=_norm_dx)
def norm(xp, x, *, axis=None, keepdims=False):
    """Euclidean length, √(Σ x²); its derivative at 0 is defined as 0."""
    return xp.sqrt(xp.sum(x * x, axis=axis, keepdims=keepdims))


@op(x=lambda g, axis: flip(cumsum_op(flip(g, axis), axis=axis), axis))
def cumsum_op(xp, x, *, axis):
    """Running sums along `axis`.

    Element i is in every sum from the i-th on, so its gradient is the sum of g from i on.
    """
    return xp.cumsum(x, axis=axis)


def cumsum(x: Any, axis: int | None) -> Any:
    """Running sums along `axis`: out[i] = x[0] + … + x[i]."""
    if axis is None:
        raise ShapeError("cumsum: pass the axis, as in x.cumsum(0); for all elements in order "
                         "write x.reshape(-1).cumsum(0)")
    return cumsum_op(x, axis=place(axis, x.ndim, "cumsum"))


def _extreme_dx(g: Any, x: Any, out: Any, axis: Any, keepdims: bool) -> Any:
    """The gradient goes to the largest (or smallest) elements; equal ones get equal parts."""
    hit = astype(x == spread(out, x.shape, axis, keepdims), dtype=x.dtype)
    return hit * (spread(g, x.shape, axis, keepdims) / sum(hit, axis=axis, keepdims=True))


@op(x=_extreme_dx)
def max(xp, x, *, axis=None, keepdims=False):
    """The largest element."""
    return xp.max(x, axis=axis, keepdims=keepdims)


@op(x=_extreme_dx)
def min(xp, x, *, axis=None, keepdims=False):
    """The smallest element."""
    return xp.min(x, axis=axis, keepdims=keepdims)


@op()
def argmax(xp, x, axis: Axis = None, keepdims: Flag = False):
    """The index of the largest element along one axis, the first of several, as int64.

    With axis=None it is the index among all elements in order.
    """
    return xp.argmax(x, axis=axis, keepdims=keepdims)


@op()
def argmin(xp, x, axis: Axis = None, keepdims: Flag = False):
    """The index of the smallest element; the arguments are those of `argmax`."""
    return xp.argmin(x, axis=axis, keepdims=keepdims)


argmax.narrow = argmin.narrow = True


@op(x=lambda g, x, out, axis, keepdims:
    spread(g, x.shape, axis, keepdims) * exp(x - spread(out, x.shape, axis, keepdims)))
def logsumexp(xp, x, axis: Axis = None, keepdims: Flag = False):
    """log Σ exp(x), shifted by the maximum so that nothing overflows.

    Its derivative is softmax(x) = exp(x − out).
    """
    top = xp.max(x, axis=axis, keepdims=True)
    top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))   # if all are −inf: log 0
    with xp.errstate(divide="ignore"):
        out = xp.log(xp.sum(xp.exp(x - top), axis=axis, keepdims=True)) + top
    return out if keepdims else xp.reshape(out, xp.sum(x, axis=axis).shape)


@in_float32
def prod(x: Any, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Any:
    """Π x, computed as a tree: the halves are multiplied until one element is left.

    So every derivative is right, even where elements are 0 (with out/x it would not be).
    """
    ndim = x.ndim
    axis = whole(axis, "prod: axis", some=True)
    given = range(ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    axes = tuple(place(a, ndim, "prod") for a in given)
    if len(set(axes)) < len(axes):
        raise ShapeError(f"prod: axis={axis} names an axis of {x.dtype}{list(x.shape)} twice")
    rest = tuple(i for i in range(ndim) if i not in axes)
    kept = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    n = count(x.shape, axes)
    left = reshape(permute(x, axes=axes + rest), shape=(n, *(x.shape[i] for i in rest)))
    if n == 0:
        return sum(x, axis=axis, keepdims=keepdims) + 1
    while n > 1:
        half = n // 2
        parts = split(left, sizes=[half, half, n - 2 * half], axis=0)
        left, n = parts[0] * parts[1], n - half
        if parts[2].shape[0]:
            from .shape import concat

            left = concat([left, parts[2]], axis=0)
    return reshape(left, shape=kept if keepdims else tuple(x.shape[i] for i in rest))
