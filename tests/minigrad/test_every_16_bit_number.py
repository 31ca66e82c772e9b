"""Each of the 65,536 numbers of float16 and bfloat16 through every function of one argument; ends of their range through those of two.

Truth is float64. What an op computes in float32 is off by at most e = 40 u₃₂ S, as the laws have it (tolerance.5), and is rounded
once; rounding keeps order, so the result must lie between the roundings of truth − e and truth + e, both included.

A GPU's kernels take a float32 below 2⁻¹²⁶ for 0 where they read and where they compute one, and bfloat16 has such numbers. So there the
truth of such an argument may be that of 0, and what underflows on the way loses up to 2⁻¹²⁶.
"""
from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from device import DEVICE

import minigrad as mg
from minigrad.fused import gelu_unfused
from minigrad.testing.laws.tolerance import ROUNDINGS

DTYPES = ("float16", "bfloat16")
LEAST, NORMAL = 2.0**-149, 2.0**-126                    # of float32, and the least that is normal: what is lost where a step underflows
LARGEST = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38}
TINY = {"float16": 2.0**-24, "bfloat16": 2.0**-133}
mg.backend.dtype("bfloat16")


def everything(dtype: str) -> np.ndarray:
    """All finite numbers of the dtype, and both infinities."""
    x = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    return x[x.astype(np.float32) == x.astype(np.float32)]


def flushed(x: np.ndarray) -> np.ndarray:
    """The numbers as a GPU's kernels may read them."""
    return np.where(np.abs(x) < NORMAL, np.copysign(0.0, x), x)


def held(found: Any, truths: list[Any], size: Any, what: str, at: Any, device: str) -> None:
    """found is one of the truths with float32's error, relative to `size`, rounded once to found's dtype.

    truths: of the arguments, and of the arguments as a GPU may read them.
    """
    got, good = found.astype(np.float64), np.zeros(found.shape, dtype=bool)
    for truth in truths[:1 if device == "numpy" else 2]:
        assert found.shape == truth.shape
        e = ROUNDINGS * 2.0**-24 * np.maximum(np.abs(truth), size) + (LEAST if device == "numpy" else NORMAL)
        with np.errstate(all="ignore"):
            e = np.where(np.isfinite(e), e, 0.0)
            low, high = ((truth + side * e).astype(found.dtype).astype(np.float64) for side in (-1.0, 1.0))
        good |= (low <= got) & (got <= high) | np.isnan(got) & np.isnan(truth)
    bad = ~good
    assert not bad.any(), f"{what}: {bad.sum()} wrong, at {at[bad][:3]}: {got[bad][:3]}, not {truths[0][bad][:3]}"


def erf(x: np.ndarray) -> np.ndarray:
    return np.array([math.erf(v) for v in x.tolist()])


def phi(x: np.ndarray) -> np.ndarray:
    """The normal distribution function, without the cancellation of 1 + erf."""
    return np.array([0.5 * math.erfc(-v / math.sqrt(2.0)) for v in x.tolist()])


def density(x: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x / (1.0 + np.exp(-2.0 * math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def gelu_tanh_slope(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, -1e3, 1e3)
    c = math.sqrt(2.0 / math.pi)
    s = 1.0 / (1.0 + np.exp(-2.0 * c * (x + 0.044715 * x**3)))
    return s * (1.0 + (1.0 - s) * 2.0 * x * c * (1.0 + 3.0 * 0.044715 * x * x))


def kept(x: np.ndarray) -> np.ndarray:
    """Where gelu by tanh and its slope are finite, as PyTorch has it: not at −∞."""
    return x > -np.inf


# name: function, value and slope in float64, the size of what is cancelled (of a value that small, float32's error is that of this
# size), and where it is defined
Truth = Callable[[np.ndarray], Any]
ONE: dict[str, tuple[Callable[..., Any], Truth, Truth, float, Truth]] = {
    "neg": (lambda x: -x, lambda x: -x, lambda x: -1.0 + 0.0 * x, 0.0, np.isfinite),
    "exp": (mg.exp, np.exp, np.exp, 0.0, lambda x: x == x),
    "log": (mg.log, np.log, lambda x: 1.0 / x, 0.0, lambda x: x > 0),
    "sqrt": (mg.sqrt, np.sqrt, lambda x: 0.5 / np.sqrt(x), 0.0, lambda x: x > 0),
    "tanh": (mg.tanh, np.tanh, lambda x: 1.0 / np.cosh(np.clip(x, -300, 300))**2, 1.0, lambda x: x == x),
    "sigmoid": (mg.sigmoid, lambda x: 1.0 / (1.0 + np.exp(-x)), lambda x: 0.25 / np.cosh(np.clip(0.5 * x, -300, 300))**2, 1.0,
                lambda x: x == x),
    "erf": (mg.erf, erf, lambda x: 2.0 / math.sqrt(math.pi) * np.exp(-x * x), 1.0, lambda x: x == x),
    "expm1": (mg.expm1, np.expm1, np.exp, 1.0, lambda x: x == x),
    "log1p": (mg.log1p, np.log1p, lambda x: 1.0 / (1.0 + x), 0.0, lambda x: x > -1.0),
    "sin": (mg.sin, np.sin, np.cos, 0.0, np.isfinite),
    "cos": (mg.cos, np.cos, lambda x: -np.sin(x), 0.0, np.isfinite),
    "relu": (mg.relu, lambda x: np.maximum(x, 0.0), lambda x: (x > 0) * 1.0, 0.0, lambda x: x == x),
    "abs": (mg.abs, np.abs, np.sign, 0.0, lambda x: x == x),
    "square": (lambda x: x**2, lambda x: x * x, lambda x: 2.0 * x, 0.0, lambda x: x == x),
    "root": (lambda x: x**1.5, lambda x: x**1.5, lambda x: 1.5 * np.sqrt(x), 0.0, lambda x: x > 0),
    "inverse": (lambda x: 1.0 / x, lambda x: 1.0 / x, lambda x: -1.0 / (x * x), 0.0, lambda x: (x != 0) & np.isfinite(x)),
    "clip": (lambda x: mg.clip(x, min=-1e-3, max=100.0), lambda x: np.clip(x, -1e-3, 100.0),
             lambda x: ((x >= -1e-3) & (x <= 100.0)) * 1.0, 0.0, lambda x: x == x),
    "small factor": (lambda x: x * 1e-9, lambda x: x * 1e-9, lambda x: 1e-9 + 0.0 * x, 0.0, np.isfinite),
    "large divisor": (lambda x: x / 100000, lambda x: x / 1e5, lambda x: 1e-5 + 0.0 * x, 0.0, np.isfinite),
    "small term": (lambda x: x + 1e-9, lambda x: x + 1e-9, lambda x: 1.0 + 0.0 * x, 0.0, np.isfinite),
    "from far": (lambda x: 100000.0 - x, lambda x: 1e5 - x, lambda x: -1.0 + 0.0 * x, 1e5, np.isfinite),
    "larger": (lambda x: mg.maximum(x, 0.3), lambda x: np.maximum(x, 0.3), lambda x: (x > 0.3) * 1.0, 0.0, lambda x: x == x),
    "gelu": (partial(mg.gelu, approximate="tanh"), gelu_tanh, gelu_tanh_slope, 1.0, kept),
    "gelu unfused": (partial(gelu_unfused, approximate="tanh"), gelu_tanh, gelu_tanh_slope, 1.0,
                      lambda x: np.abs(x) < 1e12),      # x³, and then its square
    "exact gelu": (lambda x: mg.gelu(x, approximate="none"), lambda x: x * phi(x), lambda x: phi(x) + np.where(
        np.isfinite(x), x, 0.0) * density(x), 1.0, kept),
    "exact gelu unfused": (lambda x: gelu_unfused(x, approximate="none"), lambda x: x * phi(x), lambda x: phi(x) + np.where(
        np.isfinite(x), x, 0.0) * density(x), 1.0, lambda x: np.abs(x) < 1e12),
}


@pytest.mark.device
@pytest.mark.parametrize("device", sorted({"numpy", DEVICE}))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ONE)
def test_a_function_of_every_number(name: str, dtype: str, device: str):
    """Value, gradient, and the gradient that will be differentiated."""
    f, value, slope, cancelled, where = ONE[name]
    numbers = everything(dtype)
    with np.errstate(all="ignore"):
        numbers = numbers[np.asarray(where(numbers.astype(np.float64)))]
        wide = numbers.astype(np.float64)
        read = flushed(wide)
        x = mg.tensor(numbers, device=device, requires_grad=True)
        y = f(x)
        size = cancelled * np.maximum(1.0, np.where(np.abs(wide) < 10.0, np.abs(wide), 1.0))
        held(y.numpy(), [value(wide), value(read)], size, name, numbers, device)
        truth = slope(wide)
        fits = np.abs(np.where(np.isinf(wide), 0.0, truth)) < 2.0**128         # float32, too, has no number for other slopes
        for g in (1.0, -0.3):
            u = np.full(wide.shape, g, dtype)
            for live in (False, True):
                found, = mg.gradients(y, [x], mg.tensor(u, device=device), create_graph=live, retain_graph=True)
                assert found.dtype == dtype
                truths = [(u.astype(np.float64) * of)[fits] for of in (truth, slope(read))]
                held(found.numpy()[fits], truths, cancelled, f"{name}' times {g}", numbers[fits], device)


def ends(dtype: str) -> np.ndarray:
    """The least number, the largest, what lies around 1, infinity, and all of them below 0."""
    e = {"float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    some = [TINY[dtype], TINY[dtype] / e, 1e-3, 1.0 - e / 2, 1.0, 1.0 + e, 3.0, 300.0, LARGEST[dtype] / 3, LARGEST[dtype], math.inf]
    return np.array([*some, *(-x for x in some)], dtype)


def tie(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a > b) + 0.5 * (a == b)


TWO: dict[str, tuple[Callable[..., Any], Any, Any, Any]] = {
    "add": (lambda a, b: a + b, lambda a, b: a + b, lambda a, b: 1.0, lambda a, b: 1.0),
    "sub": (lambda a, b: a - b, lambda a, b: a - b, lambda a, b: 1.0, lambda a, b: -1.0),
    "mul": (lambda a, b: a * b, lambda a, b: a * b, lambda a, b: b, lambda a, b: a),
    "div": (lambda a, b: a / b, lambda a, b: a / b, lambda a, b: 1.0 / b, lambda a, b: -a / b / b),
    "maximum": (mg.maximum, np.maximum, tie, lambda a, b: tie(b, a)),
    "minimum": (mg.minimum, np.minimum, lambda a, b: tie(b, a), tie),
    "power": (lambda a, b: abs(a)**b, lambda a, b: np.abs(a)**b, lambda a, b: np.sign(a) * b * np.abs(a)**(b - 1.0),
              lambda a, b: np.abs(a)**b * np.log(np.abs(a))),
    "where": (lambda a, b: mg.where(a > b, a, b), np.maximum, lambda a, b: (a > b) * 1.0, lambda a, b: (a <= b) * 1.0),
}


@pytest.mark.device
@pytest.mark.parametrize("device", sorted({"numpy", DEVICE}))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TWO)
def test_a_function_of_two_ends(name: str, dtype: str, device: str):
    """Each pair of ends; where the value or a gradient is not defined (∞ − ∞, 0·∞) nothing is asked."""
    f, value, da, db = TWO[name]
    a, b = (np.array(x) for x in zip(*itertools.product(ends(dtype), ends(dtype))))
    if name == "power":                                 # a^(b − 1), which is on the way, must be a number of float32
        with np.errstate(all="ignore"):
            base, exponent = np.abs(a.astype("f8")), b.astype("f8")
            fit = np.isfinite(b) & np.isfinite(a) & (np.abs(exponent) <= 300.0) & (base >= NORMAL)
            if device != "numpy":                       # and so must a^b, which ∂b multiplies by ln a
                fit &= base**exponent >= NORMAL
        a, b = a[fit], b[fit]
    wide = a.astype(np.float64), b.astype(np.float64)
    read = flushed(wide[0]), flushed(wide[1])
    with np.errstate(all="ignore"):
        x, y = (mg.tensor(t, device=device, requires_grad=True) for t in (a, b))
        z = f(x, y)
        grads = mg.gradients(z, [x, y], mg.tensor(np.ones(a.shape, dtype), device=device))
        for what, found, of in (("value", z, value), ("∂a", grads[0], da), ("∂b", grads[1], db)):
            truth, other = (of(*given) + 0.0 * np.zeros(a.shape) for given in (wide, read))
            asked = ~np.isnan(truth)
            held(found.numpy()[asked], [truth[asked], other[asked]], 0.0, f"{name}: {what}", np.stack([*wide], 1)[asked], device)


@pytest.mark.parametrize("dtype", DTYPES)
def test_comparisons_with_a_number(dtype: str):
    """A Python number is what it is, also where 16 bits would round it to another."""
    x = mg.tensor(everything(dtype))
    wide = x.numpy().astype(np.float64)
    for number in (0.1, 1e-9, 70000.0, -1.001, 16777216.0):
        for op, exact in ((operator.lt, np.less), (operator.ge, np.greater_equal), (operator.eq, np.equal)):
            assert np.array_equal(op(x, number).numpy(), exact(wide, np.float64(np.float32(number))))
