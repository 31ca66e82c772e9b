"""The inputs for the laws: shapes, values away from kinks and ties, and memory layouts.

Hypothesis draws them.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

Shape = tuple[int, ...]
Strategy = st.SearchStrategy[Any]
Settings = Callable[[Any, list[Shape], np.random.Generator], dict[str, Any]]

SIDE = st.integers(0, 3)                                # the length of an axis
LIES = ("C", "F", "reversed", "strided", "readonly")    # how an array may lie in memory
LAYOUTS = st.sampled_from(["C", *LIES])
APART = 0.05                                            # the distance to the points of `avoid`
# Kernels work in blocks of 8, 32, 64, 128, 256 or 1024 numbers. These lengths are just below, at
# and just above such sizes, and some need several blocks.
LONG = st.sampled_from([5, 8, 9, 17, 31, 33, 64, 65, 100, 127, 129, 250, 257, 511, 1000, 1025,
                        2049])
ROWS = st.sampled_from([1, 2, 3, 7, 9, 17])
MAGNITUDES = st.sampled_from([""] * 5 + ["large"] * 2
                             + ["small", "far", "farther", "apart", "outlier"])


@dataclass
class Example:
    """The inputs of one call.

    arrays: the arguments that require gradients, float64 and in C order. settings: the other
    arguments, by name. layouts: the memory layout that each array gets for the call (see LIES).
    seed: for the random cotangents and directions.
    """

    arrays: tuple[Any, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    layouts: tuple[str, ...] = ()
    seed: int = 0
    # results that several laws use, so that they are computed once
    known: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def lies(self) -> tuple[str, ...]:
        """How each array lies in memory."""
        return self.layouts or ("C",) * len(self.arrays)

    def __repr__(self) -> str:
        arrays = [f"{a.tolist()!r} {list(a.shape)}{'' if how == 'C' else f' ({how})'}"
                  for a, how in zip(self.arrays, self.lies)]
        return "; ".join(arrays + [f"{k}={v!r}" for k, v in self.settings.items()])


def small_shapes(least: int = 0, most: int = 3, side: int = 0) -> Strategy:
    """Shapes of `least` to `most` axes of length `side` to 3."""
    return hnp.array_shapes(min_dims=least, max_dims=most, min_side=side, max_side=3)


def shapes(least: int = 0, most: int = 3, side: int = 0) -> Strategy:
    """Shapes of `least` to `most` axes, mostly of length `side` to 3.

    In one of four examples one axis has a length from 5 to 2049.
    """
    small = small_shapes(least, most, side)
    if most == 0:
        return small
    return st.one_of(small, small, small, st.integers(max(1, least), most).flatmap(_long_shape))


def _long_shape(axes: int) -> Strategy:
    """Shapes with one axis of a length from LONG and one from ROWS; the others have 1 or 2.

    The long axis is the last one twice as often as each of the others.
    """
    def build(at: int, long: int, rows: int, rest: int) -> Shape:
        sizes = [rest] * axes
        sizes[(at + 1) % axes] = rows
        sizes[min(at, axes - 1)] = long
        return tuple(sizes)

    return st.builds(build, st.integers(0, axes), LONG, ROWS, st.integers(1, 2))


def together(n: int, side: int = 0) -> Strategy:
    """n shapes that broadcast against each other.

    They include shapes without axes, axes of size 1, and axes of size 0 unless `side` is 1.
    """
    alike = hnp.mutually_broadcastable_shapes(num_shapes=n, max_dims=3, min_side=side, max_side=3)
    return alike.map(lambda b: list(b.input_shapes))


def values(rng: np.random.Generator, shape: Shape, kind: str = "any", avoid: Sequence[float] = (),
           magnitude: str = "") -> Any:
    """Random float64 numbers of a kind; none of them is within APART of a point of `avoid`.

    The kinds are:
    any: normally distributed. positive, nonzero: the same, then moved to at least ½, or at least ½
    away from 0. ties: few different values, so that many are equal. counts: 0, 1 and 2. spread: any
    two numbers are at least 0.6 apart, and half of the rows are sorted, so that their extremes are
    at the ends. halves: as spread, but at least 0.1 away from every number that "spread" can draw.

    magnitude changes the size of the first three kinds:
    large, small: 8 times as large or 8 times smaller. far, farther: all around ±150 or ±6000, where
    an exponential overflows if its argument is not shifted, and a difference of squares cancels.
    apart: each row is around 0, 150 or −1500. outlier: one number of each row is 1000 above the
    others, so that the exponentials of the others are 0 beside it.
    """
    x: Any = rng.standard_normal(shape)
    x = np.asarray(x)
    if kind == "any":
        _part(x)
    if kind in ("any", "positive", "nonzero") and magnitude:
        x = _sized(rng, x, magnitude)
    if kind == "positive":
        x = 0.5 + np.abs(x)
    elif kind == "nonzero":
        x = np.where(x < 0, x - 0.5, x + 0.5)
    elif kind == "counts":
        x = rng.integers(0, 3, shape) * 1.0
    elif kind == "ties":
        x = rng.integers(-2, 3, shape) * 0.5
    elif kind in ("spread", "halves"):
        x = rng.uniform(-0.2, 0.2, shape) + rng.permutation(x.size).reshape(x.shape)
        x = x + (0.5 if kind == "halves" else 0.0)
        x = _climbing(rng, x - x.size // 2)
    for point in avoid:
        x = np.where(np.abs(x - point) < APART, point + np.where(x < point, -APART, APART), x)
    return np.asarray(x, np.float64)


def _sized(rng: np.random.Generator, x: Any, magnitude: str) -> Any:
    """Change the size of normal numbers to a magnitude, which `values` describes."""
    if magnitude == "apart":
        rows = (*x.shape[:1], *[1] * (x.ndim - 1))
        return x + rng.choice([-1500.0, 0.0, 150.0], rows) if x.ndim > 1 else x
    if magnitude == "outlier":
        if not x.size:
            return x
        return x + 1000.0 * (np.arange(x.shape[-1]) == rng.integers(x.shape[-1]) if x.ndim else 1.0)
    narrow = 2.0**-3 if x.ndim and x.shape[-1] > 1 else 1.0
    wide = {"large": 8.0, "small": narrow}.get(magnitude, 1.0)
    far = {"far": 150.0, "farther": 6000.0}.get(magnitude, 0.0)
    return wide * x + far * rng.choice([-1.0, 1.0])


def _climbing(rng: np.random.Generator, x: Any) -> Any:
    """x with half of its rows sorted in increasing order; a row may lie along any axis.

    The maximum is then at the end of a row, so a kernel that drops the end gives a wrong result.
    """
    if x.ndim == 0:
        return x
    axis = rng.choice([x.ndim - 1, rng.integers(x.ndim)])
    chosen = rng.random(x.shape) < 0.5
    return np.where(chosen.take([0], axis) if x.shape[axis] else chosen, np.sort(x, axis), x)


def _part(x: Any) -> None:
    """Move neighbours along axes of 2 and 3 at least 1 apart, and a row's only number from 0.

    The only number of a row is moved at least ½ away from 0. The variance of two equal numbers is
    0, and so is the norm of a 0; near such inputs even a correct program has large errors.
    """
    if x.ndim == 0 or x.shape[-1] == 1:
        x[...] = np.where(np.abs(x) < 0.5, np.where(x < 0.0, -0.5, 0.5), x)
    for axis, length in enumerate(x.shape):
        for i in range(1, length if length <= 3 else 0):
            before, here = x.take(i - 1, axis), x.take(i, axis)
            near = np.abs(here - before) < 1.0
            moved = before + np.where(here < before, -1.0, 1.0)
            x[(slice(None),) * axis + (i,)] = np.where(near, moved, here)


@st.composite
def examples(draw: Any, shapes: Strategy, kinds: str | Sequence[str] = "any",
             settings: Settings | None = None, avoid: Sequence[float] = ()) -> Example:
    """Examples with arrays of drawn shapes.

    shapes: a strategy of lists of shapes, one for each array. kinds: the kind of all arrays, or one
    for each (see `values`). settings(draw, shapes, rng): draws the other arguments, by name.
    """
    sizes = draw(shapes)
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    each = [kinds] * len(sizes) if isinstance(kinds, str) else kinds
    arrays = tuple(values(rng, s, k, avoid) for s, k in zip(sizes, each))
    others = settings(draw, sizes, rng) if settings else {}
    return Example(arrays, others, tuple(draw(LAYOUTS) for _ in sizes), seed)


@st.composite
def examples_of(draw: Any, given: Sequence[Strategy], settings: dict[str, Any]) -> Example:
    """Examples from one strategy for each argument.

    A single strategy may also draw a tuple of all arguments. settings: the other arguments, by
    name: values, or strategies of values.
    """
    drawn = [draw(s) for s in given]
    if len(drawn) == 1 and isinstance(drawn[0], tuple | list):
        drawn = list(drawn[0])
    arrays = tuple(np.asarray(a, np.float64) for a in drawn)
    fixed = {k: draw(v) if isinstance(v, st.SearchStrategy) else v for k, v in settings.items()}
    layouts = tuple(draw(LAYOUTS) for _ in arrays)
    return Example(arrays, fixed, layouts, draw(st.integers(0, 2**32 - 1)))


def arrays(shape: Strategy | Shape | None = None, kind: str = "any",
           avoid: Sequence[float] = ()) -> Strategy:
    """A strategy for `check`: one float64 array of a kind (see `values`).

    shape: a shape or a strategy of shapes; by default shapes of 0 to 3 axes.
    """
    shape = shapes() if shape is None else st.just(shape) if isinstance(shape, tuple) else shape
    return st.builds(
        lambda s, seed, size: values(np.random.default_rng(seed), s, kind, avoid, size),
        shape, st.integers(0, 2**32 - 1), MAGNITUDES)


def broadcastable(n: int, kinds: str | Sequence[str] = "any",
                  avoid: Sequence[float] = ()) -> Strategy:
    """A strategy for `check`: a tuple of n arrays that broadcast against each other.

    kinds: the kind of all arrays, or one for each (see `values`).
    """
    each = [kinds] * n if isinstance(kinds, str) else kinds

    def lengthened(sizes: list[Shape], at: int, long: int) -> list[Shape]:
        from_right = at % max(1, *map(len, sizes)) + 1
        return [tuple(long if k != 1 and len(s) - i == from_right else k for i, k in enumerate(s))
                for s in sizes]

    def build(sizes: list[Shape], seed: int, magnitude: str) -> tuple[Any, ...]:
        return tuple(values(np.random.default_rng((seed, i)), s, each[i], avoid, magnitude)
                     for i, s in enumerate(sizes))

    small = together(n)
    long = st.builds(lengthened, together(n, side=1), st.integers(0, 2), LONG)
    return st.builds(build, st.one_of(small, small, long), st.integers(0, 2**32 - 1), MAGNITUDES)


def numbers_of(example: Example, what: str) -> np.random.Generator:
    """A random generator of an example, for the purpose that `what` names.

    Different purposes get different numbers: for a cotangent that equals the argument, a rule that
    confuses the two would be right.
    """
    return np.random.default_rng([example.seed, *what.encode()])


def lay(xp: Any, array: Any, how: str) -> Any:
    """An array of backend xp with the values of `array`, in the memory layout `how`.

    "readonly" protects the array if the library supports this.
    """
    if how == "readonly":
        array = xp.array(array)
        if hasattr(array.flags, "writeable"):
            array.flags.writeable = False
        return array
    if array.ndim == 0 or how == "C":
        return array
    if how == "F":
        return xp.transpose(xp.ascontiguousarray(xp.transpose(array)))
    back = tuple(slice(None, None, -1) for _ in array.shape)
    if how == "reversed":
        return xp.array(array[back])[back]
    wide = xp.zeros((*array.shape[:-1], 2 * array.shape[-1]), dtype=array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]
