"""How far apart two correct results may lie: every bound of the laws is computed here.

Each floating-point operation rounds once, with a relative error of at most u = eps/2
(tolerance.1; Higham 2002, §2.2). A number that is a sum of n terms, each the result of at most k
operations, is therefore off by at most (n + k) u Σ|terms| to first order (tolerance.2–4; Higham,
§3.1), and Σ|terms| ≤ n·S, where S is the largest magnitude among the intermediate values. Hence

    |computed − exact| ≤ (n + k) · n · u · S   (tolerance.5).

n  the length of the longest sum: no op that is tested sums over more elements than its largest
   array has.
k  ROUNDINGS for each derivative: the longest chain of operations without a sum that leads from an
   argument to a result. LayerNorm's derivative, with √, two means and six products, has 20; 40
   leaves room for exp and tanh, whose libraries guarantee an error of a few units in the last
   place.
S  at least 1, so that a small difference of larger numbers is judged by the size of these numbers.

Numbers of 16 bits are converted to float32 for the computation, and rounded when they are stored: a
cotangent, a value, a gradient, and once more for each further derivative. If u₁₆ is half their eps
and t their smallest positive number, this adds

    ROUNDED (u₁₆ S + t/2)   for each derivative (tolerance.15).

The reference is computed in NumPy's widest float, whose roundings are at most 2⁻¹¹ of those of
float64; some platforms have no float wider than float64.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ... import backend
from ...backend.base import half

WIDE = np.longdouble            # 64 bits of mantissa on x86, 113 elsewhere; float64 on Windows
ROUNDINGS = 40
EACH, PER_ROOT = 12.0, 0.75     # K and C of `allowed`
ROUNDED = 4                     # the roundings to 16 bits between an argument and a result
VALUE_ROUNDED = 2               # the same for the value of one kernel, which has no cotangent


def bound(dtype: Any, length: int = 1, scale: float = 1.0, order: int = 1) -> float:
    """The bound (n + k)·n·u·S of an error   (tolerance.5).

    length: n, the terms of the longest sum. scale: S. order: the number of derivatives in k.
    """
    dtype = np.dtype(backend.dtype(dtype))
    if half(dtype):
        stored = 0.5 * eps(dtype) * max(1.0, scale) + 0.5 * _least(dtype)
        return bound(np.float32, length, scale, order) + ROUNDED * max(1, order) * stored
    n = max(1, length)
    return (n + ROUNDINGS * max(1, order)) * n * 0.5 * float(np.finfo(dtype).eps) * max(1.0, scale)


def eps(dtype: Any) -> float:
    """The distance from 1 to the next number of the dtype; NumPy's finfo does not know bfloat16."""
    return 2.0**-7 if np.dtype(backend.dtype(dtype)).kind == "V" else float(np.finfo(dtype).eps)


def magnitude(*arrays: Any, least: float = 1.0) -> float:
    """The largest finite |element| of all the arrays, at least 1: the S of `bound`."""
    largest = least
    for a in arrays:
        a = np.asarray(a)
        if a.dtype.kind in "fVc" and a.size:
            size = np.abs(a.astype(WIDE) if half(a.dtype) else a)
            largest = max(largest, float(size[np.isfinite(size)].max(initial=0.0)))
    return largest


def allowed(dtype: Any, truth: Any, sensitivity: Any, erratic: Any, terms: float, unit: float,
            stored: int = ROUNDED, saved: bool = True) -> Any:
    """How far each number of a correct value or gradient may be off   (tolerance.16, .17).

    With u for half the dtype's eps, y for the reference, σ for its sensitivity and n for the number
    of terms that a result is the sum of, the bound is

        u (K + C √n) (|y| + σ) + 24 u F + min(8s, 512 u F)   (tolerance.16).

    truth: y. sensitivity: σ, the root mean square change of y for relative changes of ±1 of all
    arguments, to first order; an error in an argument, or in what is computed from it, has at least
    this effect. erratic: s, how much the error itself varies when the arguments change by a few
    roundings (0 if this is unknown); rounding errors vary, and mistakes do not. terms: n. unit: F,
    the size of the numbers that y is computed from. In 16 bits `stored` roundings of the result are
    added, and for a gradient (saved=True) 2 roundings of what was saved for backward
    (tolerance.17).
    """
    short = half(np.dtype(backend.dtype(dtype)))
    u = WIDE(0.5) * WIDE(np.finfo(np.float32 if short else dtype).eps)
    size = np.abs(truth) + sensitivity
    found = u * ((EACH + PER_ROOT * np.sqrt(max(1.0, terms))) * size + 24.0 * unit)
    found = found + np.minimum(8.0 * erratic, 512.0 * u * unit)
    if short:
        found = found + stored * (0.5 * eps(dtype) * size + 0.5 * _least(dtype))
        found = found + saved * eps(dtype) * unit
    return found


def _least(dtype: Any) -> float:
    return 2.0**-24 if np.dtype(backend.dtype(dtype)) == "float16" else 2.0**-133


def step(dtype: Any) -> float:
    """The step of a central difference: eps^(1/5).

    With this step the error h⁴ of D in `difference` and the rounding error eps/h are about equal.
    """
    return float(np.finfo(dtype).eps) ** 0.2


def difference(f: Any, dtype: Any, sensitivity: Any = 0.0, largest: float = 1.0) -> tuple[Any, Any]:
    """f'(0) of an array-valued f of one number, and a bound of the error of each of its numbers.

    dtype: the dtype in which f computes. With D(h) = (8(f(h) − f(−h)) − (f(2h) − f(−2h)))/12h,
    exact to h⁴ (tolerance.10; Abramowitz, Stegun 25.3.6), the result is (16 D(h) − D(2h))/15, exact
    to h⁶ (tolerance.11). The bound is the sum of two parts   (tolerance.12). One is the distance of
    the result to D(h), which is larger than the truncation error of the result. The other is twice
    the rounding error of D, 1.5·eps·(|f| + σ + |f'| X + X)/h, because the points at which f is
    computed are rounded too; σ is the sensitivity of f to relative changes of its arguments, and X
    is the largest argument. Three steps are tried, and each number is taken from the step with the
    smallest bound; near a kink this is a short step.
    """
    best: Any = None
    for shorter in (1, 8, 64):
        h = WIDE(step(dtype)) / shorter
        at = {k: np.asarray(f(k * h), WIDE) for k in (-4, -2, -1, 1, 2, 4)}
        one = (8.0 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12.0 * h)
        two = (8.0 * (at[2] - at[-2]) - (at[4] - at[-4])) / (24.0 * h)
        result = (16.0 * one - two) / 15.0
        size = np.maximum(np.abs(at[1]), np.abs(at[-1])) + sensitivity
        size = size + np.abs(result) * largest + largest
        error = np.abs(result - one) + 3.0 * np.finfo(dtype).eps / h * size
        if best is None:
            best = result, error
        else:
            better = ~(best[1] <= error)                # NaN is worse than anything
            best = np.where(better, result, best[0]), np.where(better, error, best[1])
    return best


def complex_step(f: Any) -> Any:
    """f'(0) of an analytic f of one number: Im f(ih)/h   (tolerance.9; Squire, Trapp 1998).

    Nothing cancels, so the result is exact to a few units in the last place.
    """
    h = WIDE(1e-100)
    return np.imag(f(1j * h)) / h
