"""The domains of `minigrad.ops.elementwise`."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ... import ops
from ...op import REGISTRY
from ..laws.strategies import together
from .table import ANY, constant, domain, one_of

assert ops                                      # importing the ops fills the registry


def _pick(a: Any, b: Any, first: Callable[[Any, Any], Any]) -> Any:
    return np.where(first(np.real(a), np.real(b)), a, b)


def erf(z: Any) -> Any:
    """2/√π e^(−z²) Σ 2ⁿ z^(2n+1)/(2n+1)!!   (Abramowitz, Stegun 7.1.6).

    All terms have one sign, for complex z as well.
    """
    z = np.asarray(z)
    term = total = z
    for n in range(1, 200):
        term = term * (2 * z * z / (2 * n + 1))
        total = total + term
    pi = np.longdouble(np.pi) + np.longdouble(1.2246467991473532e-16)
    return 2.0 / np.sqrt(pi) * np.exp(-z * z) * total


# At these points erf changes from one formula to another, whose values differ by a rounding.
SEAMS = (-4.0, -0.46875, 0.46875, 4.0)
PAIRS: dict[str, tuple[Callable[..., Any], Any, str]] = {
    "add": (lambda a, b: a + b, "any", "add"),
    "sub": (lambda a, b: a - b, "any", "sub"),
    "mul": (lambda a, b: a * b, "any", "mul"),
    "div": (lambda a, b: a / b, ("any", "nonzero"), "div"),
    "power": (lambda a, b: a ** b, ("positive", "any"), "pow"),
    "maximum": (lambda a, b: _pick(a, b, np.greater), ("spread", "halves"), "maximum"),
    "minimum": (lambda a, b: _pick(a, b, np.less), ("spread", "halves"), "minimum"),
}
for _name, (_oracle, _kinds, _torch) in PAIRS.items():
    domain(_name, (together(2), _kinds), _oracle, _torch)
for _name in ("add", "sub", "mul", "div"):
    _f = PAIRS[_name][0]
    domain(_name, (ANY, "any", one_of(c=[2, -0.5, 3.0])),
           lambda x, c, f=_f: f(x, c), lambda _, x, c, f=_f: f(x, c),
           label="scalar-right", call=lambda x, c, op=_name: REGISTRY[op](x, c))
    domain(_name, (ANY, "nonzero", one_of(c=[2, -0.5, 3.0])),
           lambda x, c, f=_f: f(c, x), lambda _, x, c, f=_f: f(c, x),
           label="scalar-left", call=lambda x, c, op=_name: REGISTRY[op](c, x))
for _label, _kind, _exponents, _smooth in [("whole", "nonzero", [0, 1, 2, 3, -1, -2.0], True),
                                           ("root", "positive", [0.5, -1.5, 2.5], True),
                                           ("at-zero", "ties", [0, 1, 2, 3], False)]:
    domain("power", (ANY, _kind, one_of(c=_exponents)),
           lambda x, c: x ** c if c != 0 else x * 0.0 + 1.0, lambda _, x, c: x ** c,
           label=_label, call=lambda x, c: REGISTRY["power"](x, c), smooth=3 if _smooth else 0)
# PyTorch replaces b a^(b−1) by 0 where b = 0, so its derivative with respect to b, which is 1/a, is
# lost; and where a = 0 PyTorch's second derivative is NaN.
domain("power", (together(2), ["positive", "counts"]), lambda a, b: a ** b, "pow",
       label="whole-array", torch_orders=1)
domain("power", (together(2), "counts"), lambda a, b: a ** b, "pow",        # includes 0⁰
       label="corner", smooth=0, torch_orders=1)
domain("power", (ANY, "positive", one_of(c=[0, 0.0])),
       lambda x, c: x * 0.0, lambda _, x, c: c ** x,
       label="zero-base", call=lambda x, c: REGISTRY["power"](c, x), torch_orders=1)
domain("power", (ANY, "counts", one_of(c=[0, 0.0])),                        # includes 0⁰
       lambda x, c: np.where(x == 0, x + 1.0, x * 0.0), lambda _, x, c: c ** x,
       label="zero-base-corner", call=lambda x, c: REGISTRY["power"](c, x),
       smooth=0, torch_orders=1)
domain("power", (ANY, "any", one_of(c=[2, 0.5, 1.0])),
       lambda x, c: np.exp(x * np.log(np.longdouble(c))), lambda _, x, c: c ** x,
       label="scalar-base", call=lambda x, c: REGISTRY["power"](c, x))
for _name in ("maximum", "minimum"):
    domain(_name, (together(2), "ties"), PAIRS[_name][0], _name, label="ties", smooth=0)
domain("maximum", (ANY, "any", None, (0.0,)),
       lambda x: np.where(np.real(x) > 0, x, 0.0), lambda t, x: t.maximum(x, t.zeros_like(x)),
       label="scalar", call=lambda x: REGISTRY["maximum"](x, 0.0))
_ONE: list[tuple[str, Callable[..., Any], str, tuple[float, ...]]] = [
    ("neg", lambda x: -x, "any", ()), ("exp", np.exp, "any", ()), ("log", np.log, "positive", ()),
    ("sqrt", np.sqrt, "positive", ()), ("expm1", np.expm1, "any", ()),
    ("log1p", np.log1p, "positive", ()), ("sin", np.sin, "any", ()), ("cos", np.cos, "any", ()),
    ("tanh", np.tanh, "any", ()), ("erf", erf, "any", SEAMS),
    ("sigmoid", lambda x: 1.0 / (1.0 + np.exp(-x)), "any", (0.0,)),
    ("relu", lambda x: np.where(np.real(x) > 0, x, 0.0), "any", (0.0,)),
    ("abs", lambda x: np.where(np.real(x) > 0, x, -x), "any", (0.0,)),
]
for _name, _oracle, _kind, _avoid in _ONE:
    domain(_name, (ANY, _kind, None, _avoid), _oracle, _name)
_KINKS: dict[str, Callable[..., Any]] = {"relu": lambda x: np.maximum(x, 0.0), "abs": np.abs}
for _name, _oracle in _KINKS.items():
    domain(_name, (ANY, "ties"), _oracle, _name, label="kink", smooth=0)
domain("sign", (ANY, "ties"), lambda x: np.sign(x), lambda t, x: t.sign(x).detach())


def _condition(draw: Any, sizes: Any, rng: Any) -> Any:
    return {"condition": np.asarray(rng.random(sizes[-1]) < 0.5)}


# the third array only gives the condition its shape; the result does not depend on it
domain("where", (together(3), "any", _condition),
       lambda a, b, _, condition: np.where(condition, a, b),
       lambda t, a, b, _, condition: t.where(constant(t, condition), a, b),
       call=lambda a, b, _, condition: REGISTRY["where"](condition, a, b))
domain("where", (ANY, "any", _condition), lambda a, condition: np.where(condition, a, 0.5),
       lambda t, a, condition: t.where(constant(t, condition), a, t.full((), 0.5, dtype=a.dtype)),
       label="scalar", call=lambda a, condition: REGISTRY["where"](condition, a, 0.5))
_BOUNDS = [{"min": -0.5, "max": 0.5}, {"min": None, "max": 0.0},
           {"min": -1.0, "max": None}, {"min": 0, "max": 1}]


def _clipped(x: Any, min: Any, max: Any) -> Any:
    low = x if min is None else np.where(np.real(x) < min, min, x)
    return low if max is None else np.where(np.real(low) > max, max, low)


_EDGES = (-1.0, -0.5, 0.0, 0.5, 1.0)
domain("clip", (ANY, "any", lambda d, s, r: d(st.sampled_from(_BOUNDS)), _EDGES), _clipped,
       lambda t, x, min, max: t.clamp(x, min, max))
domain("clip", (ANY, "ties", lambda d, s, r: d(st.sampled_from(_BOUNDS))), _clipped,
       lambda t, x, min, max: t.clamp(x, min, max), label="kink", smooth=0)


def _inside(x: Any, min: Any, max: Any) -> Any:
    return (x >= (-math.inf if min is None else min)) & (x <= (math.inf if max is None else max))


_ALL = [*_BOUNDS, {"min": None, "max": None}]
domain("inside", (ANY, "ties", lambda d, s, r: d(st.sampled_from(_ALL))), _inside,
       lambda t, x, min, max: _inside(x, min, max))
_ORDERS = {"equal": "eq", "not_equal": "ne", "less": "lt", "less_equal": "le", "greater": "gt",
           "greater_equal": "ge"}
for _name, _torch in _ORDERS.items():
    domain(_name, (together(2), "ties"), getattr(np, _name), _torch)
domain("astype", (ANY, "any", one_of(dtype=["float32", "float64", "float16"])), lambda x, dtype: x,
       lambda t, x, dtype: x.to(getattr(t, dtype)), smooth=1)
domain("astype", (ANY, "any", one_of(dtype=["int64", "bool"])), lambda x, dtype: x.astype(dtype),
       lambda t, x, dtype: x.to(getattr(t, dtype)), label="whole")
