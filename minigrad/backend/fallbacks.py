"""Functions that an array library may lack, written with functions that all libraries have."""
from __future__ import annotations

from typing import Any

# W. J. Cody, "Rational Chebyshev approximation for the error function",
# Mathematics of Computation 23 (1969):
# erf(x) = x P(x²)/Q(x²) for |x| ≤ 0.46875; erfc(x) = exp(−x²) P(x)/Q(x) for 0.46875 < x ≤ 4;
# erfc(x) = exp(−x²)/x · (1/√π − P(x⁻²)/(x² Q(x⁻²))) beyond.
_SMALL_P = (
    1.85777706184603153e-1,
    3.16112374387056560e00,
    1.13864154151050156e02,
    3.77485237685302021e02,
    3.20937758913846947e03,
)
_SMALL_Q = (1.0, 2.36012909523441209e01, 2.44024637934444173e02, 1.28261652607737228e03,
            2.84423683343917062e03)
_MIDDLE_P = (
    2.15311535474403846e-8,
    5.64188496988670089e-1,
    8.88314979438837594e00,
    6.61191906371416295e01,
    2.98635138197400131e02,
    8.81952221241769090e02,
    1.71204761263407058e03,
    2.05107837782607147e03,
    1.23033935479799725e03,
)
_MIDDLE_Q = (1.0, 1.57449261107098347e01, 1.17693950891312499e02, 5.37181101862009858e02,
             1.62138957456669019e03, 3.29079923573345963e03, 4.36261909014324716e03,
             3.43936767414372164e03, 1.23033935480374942e03)
_LARGE_P = (
    1.63153871373020978e-2,
    3.05326634961232344e-1,
    3.60344899949804439e-1,
    1.25781726111229246e-1,
    1.60837851487422766e-2,
    6.58749161529837803e-4,
)
_LARGE_Q = (
    1.0,
    2.56852019228982242e00,
    1.87295284992346725e00,
    5.27905102951428412e-1,
    6.05183413124413191e-2,
    2.33520497626869185e-3,
)
_INVERSE_ROOT_PI = 0.56418958354775628695


def _horner(coefficients: tuple[float, ...], x: Any) -> Any:
    value = x * 0.0 + coefficients[0]
    for c in coefficients[1:]:
        value = value * x + c
    return value


def erf(xp: Any, x: Any) -> Any:
    """erf(x) = 2/√π ∫₀ˣ exp(−t²) dt, elementwise, after Cody (1969).

    x is of any float dtype and shape.
    """
    size = xp.abs(x)
    # each formula gets only arguments for which it holds, so infinities come out right
    small = xp.minimum(size, 0.46875)
    near = small * _horner(_SMALL_P, small * small) / _horner(_SMALL_Q, small * small)
    # beyond 6 the complement is below 2⁻⁵⁵: 1 to the last bit of float64
    outer = xp.minimum(xp.maximum(size, 0.46875), 6.0)
    middle = xp.minimum(outer, 4.0)
    inverse = 1.0 / xp.maximum(outer, 4.0) ** 2
    tail = inverse * _horner(_LARGE_P, inverse) / _horner(_LARGE_Q, inverse)
    decay = xp.exp(-outer * outer)
    ratio = _horner(_MIDDLE_P, middle) / _horner(_MIDDLE_Q, middle)
    complement = decay * xp.where(outer <= 4.0, ratio, (_INVERSE_ROOT_PI - tail) / outer)
    value = xp.where(size <= 0.46875, near, 1.0 - complement)
    return xp.where(xp.isnan(x), x, xp.where(x < 0.0, -value, value))


def add_at_rows(xp: Any, rows: int, index: Any, values: Any) -> Any:
    """An array [rows, d] whose row r is the sum of values[k] over all k with index[k] = r.

    On a GPU the host need not wait for any result.
    """
    if index.shape[0] == 0:
        return xp.zeros((rows, values.shape[1]), dtype=values.dtype)
    index, sums = running_sums(xp, index, values)
    wanted = xp.arange(rows, dtype=index.dtype)
    # the position of each row's complete sum, if the row has one
    last = xp.maximum(xp.searchsorted(index, wanted, side="right") - 1, 0)
    there = (xp.take(index, last, axis=0) == wanted)[:, None]
    return xp.where(there, xp.take(sums, last, axis=0), 0)


def running_sums(xp: Any, index: Any, values: Any) -> tuple[Any, Any]:
    """index [n] sorted, and values [n, d] in the same order as running sums.

    Each value becomes the sum of itself and of the values before it with the same index. This is a
    segmented scan (Hillis, Steele 1986): after the pass of stride s each value is the sum of the
    last 2s values with its index. It needs log₂ n passes; the index determines their order.
    """
    order, stride = xp.argsort(index, kind="stable"), 1
    index, sums = xp.take(index, order, axis=0), xp.take(values, order, axis=0)
    while stride < index.shape[0]:
        same = (index[stride:] == index[:-stride])[:, None]
        sums = xp.concatenate([sums[:stride], sums[stride:] + xp.where(same, sums[:-stride], 0)])
        stride *= 2
    return index, sums


def flat_places(xp: Any, index: tuple[Any, ...], shape: tuple[int, ...]) -> Any:
    """The flat positions, in C order, of the elements at `index` in an array of `shape`.

    index: one array of integers for each axis.
    """
    places, stride = 0, 1
    for i, n in zip(reversed(index), reversed(shape)):
        # negative ones count from the end
        places, stride = places + xp.remainder(i, max(n, 1)) * stride, stride * n
    return places
