"""What the checks of the pages' equations are made of: slopes by differences, the engine's gradients, and comparisons that can fail.

Everything is float64 and each number is of order 1, so what is rounded is far below 1e-7, and what a wrong sign, factor or index
changes is far above it.
"""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

import minigrad as mg

made: list[str] = []  # what was compared since the list was last cleared: a check compares something


def array(x: Any) -> np.ndarray:
    """A copy of numbers, lists, arrays and Tensors, in float64."""
    return np.array(x.numpy() if isinstance(x, mg.Tensor) else x, np.float64)


def same(*sides: Any, within: float = 1e-7) -> None:
    """The sides of a chain of = are one and the same number, or array of them, and not 0, where no wrong sign could be seen."""
    first, *others = map(array, sides)
    size = np.abs(first).max()
    assert np.isfinite(first).all() and size > 0.0, "the first side is 0 or not finite, so that it tells nothing"
    for n, other in enumerate(others, 2):
        assert other.shape == first.shape, f"side 1 is {first.shape} and side {n} is {other.shape}"
        gap = np.abs(other - first).max()
        assert gap <= within * max(size, 1.0), f"side {n} differs from side 1 by {gap:.2g}:\n{other}\n{first}"
        made.append("same")


def zero(side: Any, beside: Any) -> None:
    """A number that has to be 0 is 0, and one beside it is not."""
    assert (array(side) == 0.0).all() and (array(beside) != 0.0).all(), f"{side} is not 0, or {beside} is"
    made.append("zero")


def differs(one: Any, other: Any) -> None:
    """Two sides with ≠ between them differ."""
    assert np.abs(array(one) - array(other)).max() > 1e-3
    made.append("differs")


def at_most(small: Any, large: Any, share: float) -> None:
    """small ≤ large, number by number, and somewhere it takes at least `share` of it, so that a tighter bound would be broken."""
    part = array(small) / array(large)
    assert (part <= 1.0).all() and part.max() >= share, f"from {part.min():.2g} to {part.max():.2g} of the bound"
    made.append("at_most")


def is_so(condition: Any) -> None:
    """What is no comparison of numbers."""
    assert np.all(condition)
    made.append("is_so")


def slope(f: Callable[..., Any], *xs: Any) -> np.ndarray:
    """∂f/∂x at the first argument, by differences that are exact to h⁴: the axes of f, then those of x."""
    x, rest, h = array(xs[0]), xs[1:], 1e-3
    columns = []
    for i in range(x.size):
        step = np.zeros(x.size)
        step[i] = h
        step = step.reshape(x.shape)
        one, two = (array(f(x + k * step, *rest)) - array(f(x - k * step, *rest)) for k in (1, 2))
        columns.append((8.0 * one - two) / (12.0 * h))
    return np.stack(columns, axis=-1).reshape((*columns[0].shape, *x.shape))


def pulled(f: Callable[..., Any], g: Any, *xs: Any) -> list[np.ndarray]:
    """Jᵀg of a function of Tensors, by the engine: one array for each argument."""
    _, pull = mg.vjp(f, *(mg.tensor(array(x)) for x in xs))
    return [array(found) for found in pull(mg.tensor(array(g)))]


def weights(x: Any) -> np.ndarray:
    """Softmax along the last axis."""
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def integral(f: Callable[[Any], Any], a: float, b: float) -> float:
    """From a to b, by Gauss and Legendre on 200 points."""
    at, share = points()
    return (b - a) / 2 * share @ f((b - a) / 2 * at + (a + b) / 2)


@functools.cache
def points() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(200)
