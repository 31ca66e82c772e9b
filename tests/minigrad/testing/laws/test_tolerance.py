"""The bounds of the laws: wide enough for what is right, and narrow enough for a factor of 1 + 1e-5 in float32, 1 + 1e-13 in float64."""
from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
from long import slow_unless

import minigrad as mg
from minigrad.op import REGISTRY, Op
from minigrad.testing import arrays, check
from minigrad.testing.domains import lines_of
from minigrad.testing.laws.check import examine
from minigrad.testing.laws.reference import Reference, aligned
from minigrad.testing.laws.tolerance import WIDE, allowed
from minigrad.testing.mutate import _computed, _ruled, _spoiled

FACTORS = {"float32": 1e-5, "float64": 1e-13}


def _by(factor: float, dtype: str) -> Callable[[Any], Any]:
    """What multiplies arrays of the dtype, and no others, by 1 + factor."""
    return lambda x: x * x.dtype.type(1.0 + factor) if getattr(x, "dtype", None) == dtype else x


def _spoilt(op: Op, spoil: Callable[[Any], Any]) -> dict[str, AbstractContextManager[None]]:
    """The value and each gradient of an op, spoilt one at a time."""
    found = {"value": _computed(op, _spoiled(op.kernel, spoil))}
    found |= {f"∂{a}": _ruled(op, a, _spoiled(rule.function, spoil)) for a, rule in op.rules.items()}
    if op.joint:
        found["all ∂"] = _ruled(op, None, _spoiled(op.joint.function, spoil))
    return found


@pytest.mark.parametrize("dtype", slow_unless(lambda dtype: dtype == "float32", FACTORS))
@pytest.mark.parametrize("name", [name for name, op in REGISTRY.items() if op.differentiable])
def test_a_small_factor_is_seen(name: str, dtype: str):
    """In the value and in every gradient of every op, within 25 examples."""
    lines = [line for line in lines_of(name) if line.smooth]
    for what, spoilt in _spoilt(REGISTRY[name], _by(FACTORS[dtype], dtype)).items():
        with spoilt:
            found = {examine("rounded", line.subject, line.examples, dtype, examples=25, shrink=False).status for line in lines}
        assert "broken" in found, what


@pytest.mark.parametrize("n", slow_unless(lambda n: n == 1000, [1, 4, 33, 1000]))
@pytest.mark.parametrize("dtype", FACTORS)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "layer_norm", "mean", "var", "gelu", "tanh"])
def test_a_right_kernel_uses_some_of_its_bound(name: str, dtype: str, n: int):
    """More than 1 % on some example of each size, and never all of it; where there is one number to a row, results may be exact."""
    settings = {"gelu": {"approximate": "tanh"}, "tanh": {}, "layer_norm": {}, "var": {"axis": -1, "correction": 0}}.get(name, {"axis": -1})
    strategies = [arrays((3, n)), *([arrays((n,)), arrays((n,))] if name == "layer_norm" else [])]
    examples = 200 if (name, n) == ("softmax", 1000) else 30       # its roundings are mostly far smaller than in the worst order
    report = check(getattr(mg, name), *strategies, laws=["rounded"], dtypes=[dtype], device="numpy", examples=examples, **settings)
    (verdict,) = report.verdicts
    assert (0.01 if n > 1 else 0.0) <= verdict.units < 1.0


def test_the_length_of_sums_is_measured():
    """Elementwise, rows, all, and products: the number of terms is what a change of one number reaches."""
    def terms(f: Callable[[Any], Any], *shapes: tuple[int, ...]) -> float:
        made = [np.random.default_rng(0).standard_normal(s) for s in shapes]
        reference = Reference(lambda a, u: [f(*a)], None, made, None, np.dtype("float64"), np.dtype("float64"), np.random.default_rng(0),
                              np.dtype(WIDE))
        return reference._terms(lambda a: [f(*[x.astype(WIDE) for x in a])], made)[0][0]

    assert terms(np.tanh, (8, 128)) == 1
    assert terms(lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True), (8, 128)) == 128
    assert terms(np.sum, (8, 128)) == 1024
    assert terms(lambda a, b: a @ b, (5, 7), (7, 3)) == 14


def test_the_formula():
    """(tolerance.16): u (12 + ¾√n)(|y| + σ) + 24 u F + min(8s, 512 u F), by hand."""
    u = 2.0**-24
    assert allowed("float32", np.array(2.0), 3.0, 0.0, 16.0, 1.0) == pytest.approx(u * (15.0 * 5.0 + 24.0))
    assert allowed("float32", np.array(2.0), 3.0, 1e-3, 16.0, 1.0) == pytest.approx(u * (15.0 * 5.0 + 24.0 + 512.0))


def test_what_all_numbers_share_stands_out():
    """Ten thousand roundings are within the bound of their sum; a tenth of each, all of one sign, is not, nor is half of each in a row."""
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((100, 100))
    bounds = np.full(truth.shape, 1e-3)
    assert aligned(rng.uniform(-1.0, 1.0, truth.shape) * bounds, truth, "float64", bounds) < 1.0
    assert aligned(1e-4 * truth, truth, "float64", bounds) > 1.0
    one_row = np.where(np.arange(100)[:, None] == 7, 5e-4 * truth, 0.0)
    assert abs(float(np.sum(one_row * truth))) < 3.0 * np.sqrt(np.sum((truth * bounds) ** 2))      # all together say nothing
    assert aligned(one_row, truth, "float64", bounds) > 1.0
    least = 1e-200 * truth                              # whose squares are 0
    assert 0.0 < aligned(rng.uniform(-1.0, 1.0, truth.shape) * bounds, least, "float64", bounds) < 1.0
