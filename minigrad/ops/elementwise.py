"""Derivatives of the elementwise ops. The engine undoes broadcasting, so no rule mentions a shape.

At kinks and ties: relu'(0) = 0, |x|'(0) = 0, clip passes the gradient at its bounds, and for two
equal numbers maximum and minimum give one half of the gradient to each.
"""
from __future__ import annotations

import math
from typing import Any

from .. import backend
from ..backend.base import FLOATS
from ..errors import DTypeError
from ..op import Constant, Placed, elementwise, op


@elementwise(a=lambda g: g, b=lambda g: g)
def add(xp, a, b):
    """a + b."""
    return a + b


@elementwise(a=lambda g: g, b=lambda g: -g)
def sub(xp, a, b):
    """a − b."""
    return a - b


@elementwise(a=lambda g, b: g * b, b=lambda g, a: g * a)
def mul(xp, a, b):
    """a · b."""
    return a * b


@elementwise(a=lambda g, b: g / b, b=lambda g, b, out: -g * out / b)
def div(xp, a, b):
    """a / b. ∂/∂b = −a/b² = −out/b, so a is not saved for backward."""
    return a / b


@elementwise(x=lambda g: -g)
def neg(xp, x):
    """−x."""
    return -x


def _power_da(g: Any, a: Any, b: Any) -> Any:
    """b a^(b−1), which is 0 where b = 0, even at a = 0."""
    if isinstance(b, (int, float)):
        return g * (b * a ** (b - 1)) if b != 0 else g * 0.0
    return g * b * a ** where((a == 0.0) * (b == 0.0), 1.0, b - 1.0)


def _power_db(g: Any, a: Any, b: Any, out: Any) -> Any:
    """a^b ln a; where a = 0 it is 0 for b ≥ 0, even at 0⁰, and −∞ for b < 0.

    For a = 0 and b < 0, a^b is ∞ and ln a is −∞.
    """
    if isinstance(a, (int, float)):
        log_a = (math.log(a) if a > 0 else
                 where(b >= 0.0, 0.0, sign(b) * math.inf) if a == 0 else math.nan)
        return g * out * log_a
    return g * out * log(where((a == 0.0) * (b >= 0.0), 1.0, a))


@elementwise(a=_power_da, b=_power_db)
def power(xp, a, b):
    """a to the power b; where a = 0 and b ≥ 0 the derivative with respect to b is defined as 0.

    DTypeError for an integer to a negative integer power, which is no integer.
    """
    if _integer(a) and _integer(b) and bool(xp.any(b < 0) if hasattr(b, "dtype") else b < 0):
        raise DTypeError("power: an integer to a negative integer power is no integer; cast a "
                         "first, as in a.astype(\"float32\")")
    return a ** b


def _integer(x: Any) -> bool:
    """Whether x is an int, or an array of signed or unsigned integers."""
    return x.dtype.kind in "iu" if hasattr(x, "dtype") else type(x) is int


@elementwise(x=lambda g, out: g * out)
def exp(xp, x):
    """eˣ, its own derivative."""
    return xp.exp(x)


@elementwise(x=lambda g, x: g / x)
def log(xp, x):
    """The natural logarithm."""
    return xp.log(x)


@elementwise(x=lambda g, out: g * (1.0 + out))
def expm1(xp, x):
    """eˣ − 1, to full precision near 0. Its derivative eˣ is out + 1."""
    return xp.expm1(x)


@elementwise(x=lambda g, x: g / (1.0 + x))
def log1p(xp, x):
    """log(1 + x), to full precision near 0."""
    return xp.log1p(x)


@elementwise(x=lambda g, x: g * cos(x))
def sin(xp, x):
    """The sine of x in radians."""
    return xp.sin(x)


@elementwise(x=lambda g, x: -(g * sin(x)))
def cos(xp, x):
    """The cosine of x in radians."""
    return xp.cos(x)


@elementwise(x=lambda g, out: g * 0.5 / out)
def sqrt(xp, x):
    """√x, whose derivative is 1/(2√x)."""
    return xp.sqrt(x)


@elementwise(x=lambda g, out: g * (1.0 - out * out))
def tanh(xp, x):
    """Hyperbolic tangent. d tanh(x)/dx = 1 − tanh²(x), so only the result is saved for backward."""
    return xp.tanh(x)


@elementwise(x=lambda g, x: g * (2.0 / math.sqrt(math.pi)) * exp(-(x * x)))
def erf(xp, x):
    """The error function 2/√π ∫₀ˣ exp(−t²) dt."""
    return xp.erf(x)


@elementwise(x=lambda g, out: g * out * (1.0 - out))
def sigmoid(xp, x):
    """1/(1 + e⁻ˣ), computed from e^−|x| so that nothing overflows."""
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, 1.0, e) / (1.0 + e)


@elementwise(x=lambda g, out: where(out <= 0.0, 0.0, g))
def relu(xp, x):
    """max(x, 0)   (relu.1), with derivative 0 at 0."""
    return xp.maximum(x, xp.zeros_like(x))


@elementwise(x=lambda g, x: g * sign(x))
def abs(xp, x):
    """|x|, with derivative 0 at 0."""
    return xp.abs(x)


@op()
def sign(xp, x):
    """−1, 0 or 1; the result is a constant without a gradient."""
    if x.dtype.kind == "b":                             # CuPy would make integers of them
        raise DTypeError("sign: bools have no sign; cast x first, as in x.astype(\"int64\")")
    return xp.sign(x)


def _larger(g: Any, a: Any, b: Any) -> Any:
    """g where a > b, and g/2 where a = b.

    Where a or b is NaN, the result is NaN and both get g, as in PyTorch.
    """
    return where(a == b, 0.5 * g, where(a < b, 0.0, g))


@elementwise(a=lambda g, a, b: _larger(g, a, b), b=lambda g, a, b: _larger(g, b, a))
def maximum(xp, a, b):
    """The larger of a and b; ties share the gradient."""
    return xp.maximum(a, b)


@elementwise(a=lambda g, a, b: _larger(g, b, a), b=lambda g, a, b: _larger(g, a, b))
def minimum(xp, a, b):
    """The smaller of a and b; ties share the gradient."""
    return xp.minimum(a, b)


@elementwise(a=lambda g, condition: where(condition, g, 0.0),
             b=lambda g, condition: where(condition, 0.0, g))
def where(xp, condition: Constant, a, b):
    """a where condition (bool) is true, else b.

    For two Python numbers the dtype is that of `tensor`: float32, int64 or bool.
    """
    if type(condition) is not bool and condition.dtype.kind != "b":
        raise DTypeError(f"where: the condition must be bool, not {condition.dtype}; write a "
                         "comparison, as in x != 0")
    out, kinds = xp.where(condition, a, b), {type(a), type(b)}
    if kinds <= {bool, int, float}:
        out = out.astype("float32" if float in kinds else "int64" if int in kinds else "bool")
    return out


@elementwise(x=lambda g, x, min, max: where(inside(x, min=min, max=max), g, 0.0))
def clip(xp, x, min: Placed = None, max: Placed = None):
    """x limited to [min, max]; the gradient passes inside and at the bounds."""
    return xp.clip(x, min, max)


@op()
def inside(xp, x, *, min=None, max=None):
    """Whether min ≤ x ≤ max (bool); None means no bound."""
    low = xp.ones_like(x, dtype=bool) if min is None else x >= min
    return low if max is None else low & (x <= max)


@op()
def equal(xp, a, b):
    """a = b, elementwise, as bool."""
    return a == b


@op()
def not_equal(xp, a, b):
    """a ≠ b, elementwise, as bool."""
    return a != b


@op()
def less(xp, a, b):
    """a < b, elementwise, as bool."""
    return a < b


@op()
def less_equal(xp, a, b):
    """a ≤ b, elementwise, as bool."""
    return a <= b


@op()
def greater(xp, a, b):
    """a > b, elementwise, as bool."""
    return a > b


@op()
def greater_equal(xp, a, b):
    """a ≥ b, elementwise, as bool."""
    return a >= b


@op(x=lambda g, x_dtype: astype(g, dtype=x_dtype))
def astype(xp, x, *, dtype):
    """x in another dtype; between floats the gradient is cast back   (cast.1–2)."""
    y = x.astype(backend.dtype(dtype))
    if y.dtype.kind not in "iub" + FLOATS:
        raise DTypeError(f"astype: a dtype of numbers is needed, not {y.dtype}")
    return y


for _op in (add, sub, neg, relu, astype):               # one rounding, or none
    _op.narrow = True


def type_as(x: Any, other: Any) -> Any:
    """x in the dtype of `other`; x itself if it has this dtype already."""
    return x if x.dtype == other.dtype else astype(x, dtype=other.dtype)
