"""How far apart two right answers may lie: the one place where every bound of the laws comes from.

Each operation of floating point rounds once, with a relative error of at most u = eps/2
(tolerance.1; Higham 2002, §2.2). A number that is a sum of n terms, each the result of at most k
operations, is therefore off by at most (n + k) u Σ|terms| to first order (tolerance.2–4; Higham,
§3.1), and Σ|terms| ≤ n·S with S the largest magnitude met on the way. Hence

    |computed − exact| ≤ (n + k) · n · u · S   (tolerance.5).

n  the length of the longest sum: no op that is tried sums over more elements than its largest array
   has.
k  ROUNDINGS for each derivative taken: the longest chain of operations that leads from an argument
   to a result without a sum. LayerNorm's derivative, with √, two means and six products, has 20; 40
   leaves room for exp and tanh, whose libraries promise a few units in the last place and no more.
S  at least 1, so that numbers much below the others are judged by the size of what they were
   cancelled from.

Floats of 16 bits are computed with in float32, and rounded when they are stored: a cotangent, a
value, a gradient, and once more for each derivative taken. With u₁₆ their own half eps and t the
least number there is, that adds

    ROUNDED (u₁₆ S + t/2)   for each derivative (tolerance.15).

Truth is computed in the widest float that NumPy has, where rounding is at most 2⁻¹¹ of float64's,
but for platforms without one.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ... import backend
from ...backend.base import half

WIDE = np.longdouble            # 64 bits of mantissa on x86, 113 elsewhere; float64 on Windows
ROUNDINGS = 40
EACH, PER_ROOT = 12.0, 0.75     # K and C of `allowed`
ROUNDED = 4                     # numbers of 16 bits that an argument goes through to a result
VALUE_ROUNDED = 2               # and to the value of one kernel, where there is no cotangent


def bound(dtype: Any, length: int = 1, scale: float = 1.0, order: int = 1) -> float:
    """(n + k)·n·u·S   (tolerance.5).

    For sums of `length` terms, numbers up to `scale` and derivatives up to `order`.
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
    """How far a right value or gradient may be off, for each of its numbers   (tolerance.16, .17).

    With u half the dtype's eps, y the truth, σ its sensitivity and n the number of terms that a
    result is made of,

        u (K + C √n) (|y| + σ) + 24 u F + min(8s, 512 u F)   (tolerance.16).

    sensitivity: σ, the root mean square of what relative changes of ±1 of all arguments do to it,
    to first order: an error in an argument, or in what is computed from it, cannot cost less.
    erratic: s, how much the error itself changes when the arguments change by a few roundings (0
    where it is not known): rounding errors do, mistakes do not. unit: F, the size of what it is
    computed from. Numbers of 16 bits add the roundings of what is `stored`, and 2 of what was
    `saved` for a gradient   (tolerance.17).
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

    There the h⁴ of `difference`'s D and the rounding eps/h are about equally small.
    """
    return float(np.finfo(dtype).eps) ** 0.2


def difference(f: Any, dtype: Any, sensitivity: Any = 0.0, largest: float = 1.0) -> tuple[Any, Any]:
    """f'(0) of an array-valued f of one number, and how far off each of its numbers may be.

    dtype: what f computes in. With D(h) = (8(f(h) − f(−h)) − (f(2h) − f(−2h)))/12h, exact to h⁴
    (tolerance.10; Abramowitz, Stegun 25.3.6), the result is (16 D(h) − D(2h))/15, exact to h⁶
    (tolerance.11). Its truncation is less than its distance to D(h), which is what is returned,
    with the rounding of D: 1.5·eps·(|f| + σ + |f'| X + X)/h, twice   (tolerance.12), σ the
    sensitivity of f to relative changes of its arguments, X the largest of them: the points at
    which f is computed are rounded too. Three steps are tried, and each number is taken from the
    best: a shorter one where there is a kink nearby.
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

    There is no cancellation, and so no error.
    """
    h = WIDE(1e-100)
    return np.imag(f(1j * h)) / h
