"""Axes, shapes and counts as Python ints, whatever kind of integer they were given as."""

from __future__ import annotations

import operator
from typing import Any

from .errors import ShapeError

# The settings of an op that hold such integers, whatever the op: `Op` passes them through `whole`.
NAMES = frozenset(("axis", "axes", "axis0", "axis1", "shape", "diagonal", "heads", "parts"))


def index(value: Any, what: str) -> int:
    """`value`, an integer of Python's, NumPy's or another kind, as an int.

    ShapeError for a bool and for what is no integer.
    """
    if type(value) is int:
        return value
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        shown = " ".join(repr(value).split())           # arrays and Tensors take several lines
        raise ShapeError(f"{what} must be an integer, or a tuple of integers, "
                         f"not {shown[:80]}") from None


def whole(value: Any, what: str, some: bool = False) -> Any:
    """None, an int, or a tuple of ints, from integers of any kind in a tuple, a list or an array.

    some: there must be at least one.
    """
    if value is None:
        return None
    if not isinstance(value, list | tuple | range) and getattr(value, "ndim", 0) == 0:
        return index(value, what)
    if some and len(value) == 0:
        raise ShapeError(f"{what}=() is no axis in NumPy and every axis in PyTorch; axis=None is "
                         "every axis")
    return tuple([n if type(n) is int else index(n, what) for n in value])
