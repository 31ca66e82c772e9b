"""Floats of 16 bits are stored, and computed with in float32: the casts, and who does without them.

A sum, a square or a difference of numbers of 16 bits needs more room than they have. So the engine
casts the arguments of an op to float32, runs its kernel, and rounds the result once
(`engine.op.run`, `rounded`); it does the same with what a rule is given and what it gives, and with
cotangents that add up (`Walk.added`). A function that is made of several ops says `in_float32`.

`Op.narrow` says who does without: what computes nothing, or rounds each result once anyway. A GPU's
kernels load 16 bits and compute in float32 by themselves (`Backend.takes_half`), and so do its
products of matrices (`Backend.half_ops`).
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from . import backend
from .backend.base import Backend, half


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


def needed_for(op: Any, here: Backend, arrays: Sequence[Any]) -> bool:
    """Whether these are floats of 16 bits that the op computes with in float32; a Python number
    among them always asks for it."""
    halves = any(hasattr(a, "dtype") and half(a.dtype) for a in arrays)
    return halves and (needed(op, here) or any(type(a) in (int, float) for a in arrays))


def needed(op: Any, here: Backend) -> bool:
    """Whether the op's kernel and rules need float32 in the place of floats of 16 bits."""
    return not (op.narrow or op.name in here.half_ops)


def rounded(op: Any, out: Any, args: Sequence[Any]) -> Any:
    """A result that was computed in float32, of the dtype of the arguments of 16 bits."""
    if op.widens or out.dtype.kind != "f":
        return out
    return narrowed(out, next(a.dtype for a in args if hasattr(a, "dtype") and half(a.dtype)))


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
