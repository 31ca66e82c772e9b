"""Floats of 16 bits are stored, and computed with in float32: the casts, and who does without them.

A sum, a square or a difference of numbers of 16 bits needs more room than they have. So the engine
casts the arguments of an op to float32, runs its kernel, and rounds the result once
(`Op.__call__`); it does the same with what a rule is given and what it gives (`Op.pullback`), and
with cotangents that add up (`Walk.send`). A function that is made of several ops says `in_float32`.

`Op.narrow` says who does without: what computes nothing, or rounds each result once anyway. A GPU's
kernels load 16 bits and compute in float32 by themselves (`Backend.takes_half`), and so do its
products of matrices (`Backend.half_ops`).
"""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from . import backend
from .backend.base import half


def widened(value: Any) -> Any:
    """A Tensor or an array of 16-bit floats in float32, one by one in a tuple.

    Anything else is returned as it is.
    """
    if type(value) is tuple:
        return tuple([widened(v) for v in value])
    dtype = getattr(value, "dtype", None)
    return value.astype("float32") if dtype is not None and half(dtype) else value


def narrowed(value: Any, dtype: Any) -> Any:
    """A float32 Tensor or array rounded to `dtype`, without a warning where that overflows.

    It is returned as it is where it has that dtype already.
    """
    if value.dtype == dtype:
        return value
    with backend.of(getattr(value, "array", value)).errstate(over="ignore"):
        return value.astype(dtype)


def in_float32(f: Callable[..., Any]) -> Callable[..., Any]:
    """f of Tensors or arrays, computed in float32 where they are of 16 bits.

    Whatever it computes on the way is then in float32, and the result is of 16 bits.
    """

    @functools.wraps(f)
    def run(*args: Any, **settings: Any) -> Any:
        given = [a.dtype for a in args if hasattr(a, "dtype") and half(a.dtype)]
        if not given:
            return f(*args, **settings)
        return narrowed(f(*widened(args), **settings), given[0])

    return run
