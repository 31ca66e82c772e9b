"""Functions whose answer on CuPy 14.2 is not NumPy's, as CuPy's source has them, on NumPy's arrays.

Most of them accept what NumPy refuses, and then a number is silently wrong.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np


class CompileException(Exception):
    """cupy.cuda.compiler.CompileException."""


def _transpose(x: Any, *axes: Any) -> Any:
    """No axes, as in transpose(x, ()), are all of them, in reverse."""
    if len(axes) == 1 and (axes[0] is None or isinstance(axes[0], tuple | list)):
        axes = tuple(axes[0] or ())
    return x.transpose(*axes)


def _broadcast_to(x: Any, shape: Any) -> Any:
    """A negative size is taken; here the result has no numbers along such an axis."""
    shape = tuple(shape) if np.iterable(shape) else (shape,)
    whole = np.broadcast_to(x, tuple(n if n >= 0 else 1 for n in shape))
    return whole[tuple(slice(None if n >= 0 else 0) for n in shape)]


def _power(a: Any, b: Any) -> Any:
    """A whole number to a negative power is 0; of 1 and −1 it is 1 and ±1."""
    base, exponent = np.asarray(a), np.asarray(b)
    if base.dtype.kind not in "iu" or exponent.dtype.kind not in "iu" or (exponent >= 0).all():
        return a ** b
    odd = np.where(exponent % 2 == 0, 1, base)
    negative = np.where(np.abs(base) == 1, odd, 0)
    return np.where(exponent < 0, negative, base ** np.maximum(exponent, 0)).astype((a * b).dtype)


def _sign(x: Any) -> Any:
    """That of a bool is an int8."""
    return np.sign(x.astype(np.int8) if x.dtype == bool else x)


def _where(condition: Any, *both: Any) -> Any:
    """It knows no bfloat16, and chooses from float32 instead."""
    out = np.where(condition, *both)
    return out.astype(np.float32) if str(getattr(out, "dtype", "")) == "bfloat16" else out


def _triangle(part: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, k=0: _where(part(np.ones(x.shape, dtype=bool), k), x, x.dtype.type(0))


def _var(x: Any, axis: Any = None, *, ddof: Any = 0, **options: Any) -> Any:
    """NaN where the sum of squares is divided by nothing, which is ∞ on NumPy."""
    out = np.var(x, axis=axis, ddof=ddof, **options)
    axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    return out if math.prod(x.shape[a] for a in axes) > ddof else out * np.nan


def _take(x: Any, indices: Any, **options: Any) -> Any:
    """The kernel is compiled for the dtype of the indices, and % is not for floats."""
    if getattr(indices, "size", 0) and indices.dtype.kind not in "iub":
        raise CompileException("error: expression must have integral or unscoped enum type")
    return np.take(x, indices if np.size(indices) else np.asarray(indices, int), **options)


def _sorting(name: str) -> Callable[..., Any]:
    """Thrust sorts no bfloat16; sort and partition take no array without axes."""
    def f(x: Any, *args: Any, **options: Any) -> Any:
        if str(x.dtype) == "bfloat16" and name != "partition":
            raise ValueError("Unsupported dtype (bfloat16)")
        if x.ndim == 0 and name in ("sort", "partition"):
            raise ValueError("Sorting arrays with the rank of zero is not supported")
        return getattr(np, name)(x, *args, **options)

    return f


MANNERS: dict[str, Callable[..., Any]] = {
    "transpose": _transpose, "permute_dims": _transpose, "broadcast_to": _broadcast_to,
    "power": _power, "pow": _power, "sign": _sign, "where": _where, "var": _var, "take": _take,
    "tril": _triangle(np.tril), "triu": _triangle(np.triu), "sort": _sorting("sort"),
    "argsort": _sorting("argsort"), "partition": _sorting("partition")}
