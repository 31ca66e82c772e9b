"""The results of a function in a wider float, and how far off a correct program may be.

The sensitivity of a result is not derived by hand. It is measured on the numbers of the example:
all arguments are changed by a few roundings, up or down at random, and the change of each number of
the result in the wide float is recorded (Parker 1997, Monte Carlo arithmetic). The length of the
sums is not declared either. One number of an argument is changed, and the numbers of the result
that change are counted. If each of N numbers changes m of the M numbers of the result, each result
is a sum of about N·m/M terms.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...backend.base import half
from .tolerance import ROUNDED, VALUE_ROUNDED, WIDE, allowed, eps

PROBES = 4
MORE = 12                               # further probes, for a result that seems to be wrong
STEP = 4.0                              # a probe changes each number by about this many roundings
# (arguments, cotangent or None) ↦ [value, *gradients], in the arguments' dtype
Evaluate = Callable[[Sequence[Any], Any], list[Any]]


class Reference:
    """The results in the wide float, and how far off those of a correct program may be.

    results: [value, *gradients]. The next three are lists with one entry for each result. allowed:
    the bound of the error of each number. elementwise: True if changing one number of an argument
    was never seen to change more than one number of the result. roundings: how the error varies
    from probe to probe. fits: all results are finite and within the range of the narrow dtype.
    again(): measure once more with more probes; it returns False, and does nothing, if that has
    been done already or if the dtype has 16 bits.
    """

    allowed: list[Any]
    roundings: list[list[Any]]
    again: Callable[[], bool]

    def __init__(self, wide: Evaluate, narrow: Evaluate | None, arrays: Sequence[Any], u: Any,
                 dtype: np.dtype, coarse: np.dtype, rng: np.random.Generator, above: np.dtype,
                 degree: int = 1) -> None:
        """Compute the results, and measure how changes of the arguments change them.

        dtype: that of the arrays and of the cotangent u. wide: the function to evaluate in the
        wider dtype `above`. narrow: the function to evaluate in `dtype`, or None. coarse: the dtype
        that rounds most in the computation. degree: how often one argument may be a factor of an
        intermediate value: 2 for a function that is composed of ops.
        """
        self.rng = rng
        given = [*arrays] if u is None else [*arrays, u]

        def at(f: Evaluate, args: Sequence[Any], to: np.dtype | None) -> list[Any]:
            cast = [a.astype(to) if to is not None else a for a in args]
            found = f(cast, None) if u is None else f(cast[:-1], cast[-1])
            return [np.asarray(r).astype(WIDE) for r in found]

        self.results = at(wide, given, above)
        largest = np.finfo(np.float32 if dtype.kind == "V" else dtype).max
        with np.errstate(all="ignore"):
            # if the arguments are not finite, the results need not be finite either
            finite = all(bool(np.isfinite(a.astype(WIDE)).all()) for a in given)
            self.fits = all(
                bool(((np.abs(r) < 0.25 * largest) | (not finite and ~np.isfinite(r))).all())
                for r in self.results)
            moved: list[Any] = []
            errors: list[Any] = []

            def probe(times: int) -> None:
                for _ in range(times):
                    args = [self._moved(a, self.rng.choice([-1.0, 1.0], a.shape) if moved
                                        else alternating(a.shape)) for a in given]
                    there = at(wide, args, above)
                    change = STEP * 0.5 * eps(dtype)
                    moved.append([(m - r) / change for m, r in zip(there, self.results)])
                    if narrow is not None:
                        errors.append([n - m for n, m in zip(at(narrow, args, None), there)])

            probe(PROBES)
            terms, self.elementwise = self._terms(lambda args: at(wide, args, above), given)

        def judge() -> None:
            # the size of a product with one factor from each argument
            unit = float(np.prod([max(1.0, rms(a)) for a in arrays])) ** degree
            self.allowed, self.roundings = [], []
            for i, truth in enumerate(self.results):
                sensitivity = _rms_of([m[i] for m in moved])
                erratic: Any = np.inf
                varies: list[Any] = []
                if errors:          # rounding varies from probe to probe, and a mistake does not
                    mean = sum(e[i] for e in errors) / len(errors)
                    varies = [e[i] - mean for e in errors]
                    erratic = _rms_of(varies)
                    worst = float(np.max(erratic, initial=0.0, where=np.isfinite(erratic)))
                    erratic = np.maximum(erratic, max(rms(erratic), 0.25 * worst))
                size = unit if i == 0 or u is None else unit * rms(u)
                self.roundings.append(varies)
                stored = VALUE_ROUNDED if i == 0 and degree == 1 else ROUNDED
                self.allowed.append(allowed(coarse, truth, sensitivity, erratic, terms[i], size,
                                            stored, saved=i > 0))

        def again() -> bool:
            # a function that computes in 16 bits by mistake varies from probe to probe because of
            # this mistake
            if half(dtype) or not errors or len(errors) > PROBES:
                return False
            with np.errstate(all="ignore"):
                probe(MORE)
                judge()
            return True

        with np.errstate(all="ignore"):
            judge()
        self.again = again

    def _moved(self, a: Any, signs: Any) -> Any:
        """a, with each number changed by about STEP roundings of its dtype.

        The amounts differ at random, because rounding depends on whether the last bit is even.
        """
        by = signs * self.rng.uniform(0.5, 1.5, a.shape)
        return (a.astype(WIDE) * (1.0 + STEP * 0.5 * eps(a.dtype) * by)).astype(a.dtype)

    def _terms(self, f: Callable[[Sequence[Any]], list[Any]],
               given: Sequence[Any]) -> tuple[list[float], list[bool]]:
        """The number of terms of each result, and whether each result is elementwise.

        Both are estimated from at most three changes for each argument.
        """
        terms, most = [0.0] * len(self.results), [0] * len(self.results)
        for i, a in enumerate(given):
            changed = [0] * len(self.results)
            # in a running sum the first or the last number changes all results
            for index in {0, a.size - 1, self.rng.integers(a.size)} if a.size else ():
                other = np.array(a, order="C")
                flat = other.reshape(-1)
                flat[index] = flat[index].astype(WIDE) * WIDE(1.0 + 2.0**-6)
                found = f([*given[:i], other, *given[i + 1:]])
                for k, (r, old) in enumerate(zip(found, self.results)):
                    count = int(np.count_nonzero(r != old)) if r.shape == old.shape else 0
                    changed[k] = max(changed[k], count)
            for k, r in enumerate(self.results):
                terms[k] += changed[k] * a.size / max(1, r.size)
                most[k] = max(most[k], changed[k])
        return terms, [m <= 1 for m in most]


def alternating(shape: tuple[int, ...]) -> Any:
    """1 and −1 in turn along every axis.

    With these signs neighbours change in opposite directions. A normalised row would not change at
    all if its numbers were all multiplied by the same factor.
    """
    return 1.0 - 2.0 * (np.indices(shape).sum(0) % 2)


def aligned(error: Any, truth: Any, dtype: Any, bounds: Any,
            roundings: Sequence[Any] = ()) -> float:
    """|⟨error, truth⟩| as a share of its bound   (tolerance.18).

    This finds a wrong factor that all numbers share, even if each number is within its own bound.
    The roundings of different numbers are mostly independent, so their sum grows like the root of
    the sum of the squared bounds. Three times this root is allowed. In 16 bits it is √3 times: each
    number is rounded by itself when it is stored, and this is three standard deviations of errors
    that are uniform within their bounds.

    Some rounding errors are the same in all numbers. For these it allows in addition a relative
    error of 12 eps, an absolute error of 1.5 eps, and a twelfth of the bound. (A constant such as ε
    is rounded alike in all rows of one size; if the numbers then cancel, this error is large.)
    Numbers that share partial sums, as in a running sum, share roundings too: `roundings` has the
    variation of the errors from probe to probe, and 4 times the root mean square of their
    projections is added; more if there are many rows.

    The result is the largest share among those of all numbers together and of each row, because
    kernels work row by row.
    """
    stored, way = (0.5 * eps(dtype), np.float32) if half(np.dtype(dtype)) else (0.0, dtype)
    alike = (12.0 * eps(way) + stored) * np.abs(truth) + 1.5 * eps(way) + bounds / 12.0
    shared = np.minimum(bounds, alike)
    times = 3.0 if half(np.dtype(dtype)) else 9.0       # the square of √3, or of 3

    def share(axis: int | None) -> Any:
        largest = np.max(np.abs(truth), axis=axis, keepdims=True, initial=0.0)
        # divided by the largest, because squares of very small numbers would be 0
        w = truth / np.where(largest > 0.0, largest, 1.0)
        apart = np.sqrt(times * np.sum((w * bounds) ** 2, axis=axis))
        may = np.sum(np.abs(w) * shared, axis=axis) + apart
        if roundings:
            rows = 1 if axis is None else max(1, truth.size // max(1, truth.shape[-1]))
            # the largest of many values is further from the mean
            many = max(4.0, 2.0 + math.sqrt(2.0 * math.log(rows)))
            along = [np.sum(w * np.where(np.isfinite(r), r, 0.0), axis=axis) for r in roundings]
            may = may + many * _rms_of(along)
        return np.abs(np.sum(w * error, axis=axis)) / np.where(may > 0.0, may, np.inf)

    return max(float(np.max(share(-1), initial=0.0)), float(share(None)))


def rms(*arrays: Any) -> float:
    """The root mean square of all finite numbers of the arrays."""
    flat = [np.asarray(a).astype(WIDE).reshape(-1) for a in arrays]
    numbers = np.concatenate(flat) if flat else np.zeros(0, WIDE)
    numbers = numbers[np.isfinite(numbers)]
    return float(np.sqrt(np.mean(numbers * numbers))) if numbers.size else 0.0


def _rms_of(many: Sequence[Any]) -> Any:
    return np.sqrt(sum(m * m for m in many) / len(many))
