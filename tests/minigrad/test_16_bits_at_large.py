"""Long axes, large numbers and many shares of floats of 16 bits: sums, counts, squares and scores are float32's, whoever computes them."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from device import DEVICE, HERE

import minigrad as mg
from minigrad import fused
from minigrad.nn import unfused

mg.backend.dtype("bfloat16")
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
TINY = {"float16": 2.0**-24, "bfloat16": 2.0**-133}
LONG = 100_000
DEVICES = sorted({"numpy", DEVICE})
ONES = np.ones(LONG)


def close(found: Any, truth: np.ndarray, dtype: str, what: str, roundings: int = 1) -> None:
    """found has the dtype, and is truth rounded once; e is what float32 loses in sums of LONG terms, as their errors add up by chance."""
    assert str(found.dtype) == dtype, what
    got = found.numpy().astype(np.float64)
    e = 4.0 * LONG**0.5 * 2.0**-24 * np.abs(truth).max(initial=0.0) + 0.5 * roundings * TINY[dtype]
    worst = np.abs(got - truth) - roundings * UNIT[dtype] * np.abs(truth)
    assert not np.isnan(got).any() and worst.max(initial=0.0) <= e, f"{what}: {got.ravel()[:3]}, not {truth.ravel()[:3]}"


def compared(f: Callable[..., Any], arrays: list[np.ndarray], dtype: str, device: str, g: float = 1.0, roundings: int = 1) -> None:
    """f's value, gradients, and gradients that will be differentiated, against float64's of the same numbers."""
    given = [a.astype(dtype) for a in arrays]
    results = []
    for kind, where in ((dtype, device), ("float64", "numpy")):
        xs = [mg.tensor(a.astype(np.float64), dtype=kind, device=where, requires_grad=True) for a in given]
        y = f(*xs)
        u = mg.tensor(np.full(y.shape, g, dtype).astype(np.float64), dtype=y.dtype, device=where)
        results.append((y, mg.gradients(y, xs, u, retain_graph=True), mg.gradients(y, xs, u, create_graph=True)))
    (y, grads, live), (truth, wanted, _) = results
    if str(y.dtype) == dtype:
        close(y, truth.numpy(), dtype, "the value", roundings)
    else:                                               # a loss
        np.testing.assert_allclose(y.numpy(), truth.numpy(), rtol=1e-6)
    for some in (grads, live):
        for i, (found, exact) in enumerate(zip(some, wanted)):
            close(found, exact.numpy(), dtype, f"gradient {i}", roundings)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def zeros(like: mg.Tensor, *shape: int) -> mg.Tensor:
    return mg.tensor(np.zeros(shape, int), device=like.device)


REDUCED: dict[str, tuple[Callable[..., Any], list[np.ndarray], float]] = {
    "sum": (lambda x: x.sum(), [np.abs(numbers(LONG)) * 0.1], 1.0),
    "sum over rows": (lambda x: x.sum(axis=0), [np.abs(numbers(LONG, 2)) * 0.1], 1.0),
    "sum of what cancels": (lambda x: x.sum(), [np.where(np.arange(LONG) % 2, 6e4, -6e4)], 1.0),
    "mean": (lambda x: x.mean(), [numbers(LONG) + 3.0], 1.0),
    "mean of large numbers": (lambda x: x.mean(), [np.abs(numbers(LONG)) * 1e4], 8.0),
    "var": (lambda x: x.var(correction=0), [numbers(LONG) * 100.0 + 5.0], 1.0),
    "sample var": (lambda x: x.var(correction=1), [numbers(LONG)], 1.0),
    "tied max": (lambda x: x.max(), [ONES], 1.0),
    "tied min": (lambda x: x.min(axis=0), [ONES.reshape(-1, 1)], 1.0),
    "sum by a count": (lambda x: x.sum() / LONG, [ONES * 0.5], 1.0),
    "logsumexp": (lambda x: x.logsumexp(), [numbers(LONG) * 5.0], 16.0),
    "logsumexp of large numbers": (lambda x: x.logsumexp(), [numbers(LONG) * 1e4], 1.0),
    "softmax": (lambda x: (mg.softmax(x) * x).sum(), [numbers(LONG)], 256.0),
    "log_softmax": (lambda x: mg.log_softmax(x)[:2], [numbers(LONG)], 1.0),
    "norm": (lambda x: mg.sqrt((x * x).mean()), [numbers(LONG) * 3.0], 64.0),
    "a repeated row": (lambda x, w: x + w, [numbers(LONG, 2), numbers(2)], 0.01),
    "a repeated factor": (lambda x, w: x * w, [np.abs(numbers(LONG, 2)) * 1e-4, numbers(2)], 1e-4),
    "a repeated matrix": (lambda a, b: a @ b, [np.abs(numbers(2, 2)), np.abs(numbers(LONG // 4, 2, 2))], 1e-3),
    "a repeated matrix of small numbers": (lambda a, b: a @ b, [numbers(2, 2), np.full((LONG // 4, 2, 2), 1e-4)], 1e-4),
    "broadcast products": (lambda a, b: a @ b, [np.abs(numbers(1, 2, LONG // 4)) * 0.3, np.abs(numbers(2, LONG // 4, 2, seed=1))], 1.0),
    "einsum": (lambda a, b: mg.einsum("ni,ni->i", a, b), [np.abs(numbers(LONG, 2)) * 0.1, np.abs(numbers(LONG, 2, seed=1)) * 0.1], 1.0),
    "einsum of three": (lambda a, b, c: mg.einsum("i,i,i->", a, b, c), [ONES * 300.0, ONES * 300.0, ONES * 1e-6], 0.1),
    "one place": (lambda x: x[np.zeros(LONG, int)], [numbers(3)], 0.1),
    "one row": (lambda w: mg.embedding(zeros(w, LONG), w), [numbers(3, 2)], 0.1),
    "one row, of a tied table": (lambda w: mg.concat([mg.embedding(zeros(w, LONG), w), w * 1.0], axis=0), [numbers(3, 2)], 0.1),
    "gathered": (lambda x: mg.gather(x, zeros(x, LONG, 1), axis=0), [numbers(3, 1)], 0.1),
    "scattered": (lambda x, s: mg.scatter_add(x, zeros(x, LONG), s, axis=0), [numbers(3), np.abs(numbers(LONG)) * 0.1], 1.0),
    "product": (lambda x: x.prod(), [np.array([6e4, 6e4, 1e-4, 1e-4, 3.0])], 1e-2),
}


@pytest.mark.device
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", sorted(UNIT))
@pytest.mark.parametrize("name", REDUCED)
def test_sums_and_counts_over_a_long_axis(name: str, dtype: str, device: str):
    """100,000 numbers: their count is infinite in float16, and a sum of 16 bits stops growing at 256 or 2,048 ones."""
    f, arrays, g = REDUCED[name]
    with np.errstate(over="ignore"):
        compared(f, arrays, dtype, device, g, roundings=4 if name in ("softmax", "norm") else 1)    # of several ops


FORMS = {"fused": fused, "unfused": unfused}


@pytest.mark.device
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", sorted(UNIT))
@pytest.mark.parametrize("form", FORMS)
def test_large_numbers_in_both_forms(form: str, dtype: str, device: str):
    """Squares, cubes and scores that 16 bits have no room for, on the way to results that they have."""
    F = FORMS[form]
    x = numbers(4, 64) * 2000.0
    compared(lambda x, w, b: F.layer_norm(x, w, b), [x, numbers(64), numbers(64, seed=1)], dtype, device, roundings=2)
    compared(lambda x: F.gelu(x, approximate="tanh"), [numbers(300) * 1000.0], dtype, device)
    compared(lambda x: F.gelu(x, approximate="none"), [numbers(300) * 1000.0], dtype, device)
    compared(lambda x: F.softmax(x * 1.0), [numbers(3, 50) * 3e3], dtype, device, roundings=2)
    ids = np.arange(4)
    compared(lambda x: F.cross_entropy(x, mg.tensor(ids, device=x.device)), [numbers(4, 60) * 3e3], dtype, device, g=8.0)
    heads = [numbers(2, 3, 5, 16, seed=i) * 100.0 for i in range(3)]            # a score is 1.6e5, a quarter of it 4e4
    with np.errstate(over="ignore"):
        for causal in (True, False):
            attended = [heads[0], heads[1], heads[2] * 0.01]
            given = [mg.tensor(a.astype(dtype), device=device) for a in attended]
            exact = [mg.tensor(t.numpy().astype(np.float64)) for t in given]
            out, truth = F.attention(*given, causal=causal), F.attention(*exact, causal=causal).numpy()
            close(out, truth, dtype, "attention", roundings=3)          # a GPU rounds the weights too


@pytest.mark.device
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", sorted(UNIT))
@pytest.mark.parametrize("live", [False, True])
def test_many_shares_of_one_tensor(live: bool, dtype: str, device: str):
    """A Tensor that 501 ops read gets as many cotangents, which add up in float32: in 16 bits 2048 and 1 are 2048."""
    x = mg.tensor(np.ones(1, dtype), device=device, requires_grad=True)
    ys = [-x for _ in range(501)]
    cotangents = np.array([-1.0] * 500 + [-2048.0], dtype)          # the newest op is the first on the way back
    g, = mg.gradients(mg.concat(ys, axis=0), [x], mg.tensor(cotangents, device=device), create_graph=live)
    assert str(g.dtype) == dtype and g.numpy() == np.array([2548.0], dtype)


@pytest.mark.device
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", sorted(UNIT))
def test_a_bias_is_added_before_the_product_is_rounded(dtype: str, device: str):
    """x W + b is rounded once: 1 + u₁₆ survives where −1 comes to it."""
    u = UNIT[dtype]
    x, w, b = np.array([[1.0, u]], dtype), np.ones((2, 1), dtype), np.array([-1.0], dtype)
    given = [mg.tensor(a, device=device) for a in (b, x, w)]
    assert mg.addmm(*given).item() == u
    assert mg.linear(given[1], given[2].T, given[0]).item() == u


@pytest.mark.device
@pytest.mark.parametrize("dtype", sorted(UNIT))
def test_a_product_that_cublas_has_no_call_for(dtype: str, monkeypatch: pytest.MonkeyPatch):
    """CuPy, whose own product may add up in any way, is given float32."""
    product, seen = HERE.namespace.matmul, list[str]()

    def watched(a: Any, b: Any) -> Any:
        seen.extend((str(a.dtype), str(b.dtype)))
        return product(a, b)

    monkeypatch.setattr(HERE.namespace, "matmul", watched)
    a, b = (mg.tensor(np.ones(shape, dtype), device=DEVICE) for shape in ((1, 2, 3), (4, 3, 2)))
    assert str((a @ b).dtype) == dtype and seen == ["float32"] * 2


@pytest.mark.parametrize("dtype", sorted(UNIT))
def test_a_result_that_rounds_to_an_end_has_its_slope(dtype: str):
    """Where tanh and softmax are 1 in 16 bits, their derivatives, of first and second order, are float32's."""
    for f, at in ((mg.tanh, [4.5, -5.0]), (mg.sigmoid, [9.0, 10.0]), (lambda x: mg.softmax(x)[:1], [9.0, 0.0])):
        results = []
        for kind in (dtype, "float64"):
            x = mg.tensor(np.array(at), dtype=kind, requires_grad=True)
            g, = mg.gradients(f(x).sum(), [x], create_graph=True)
            h, = mg.gradients(g.sum() if kind == "float64" else (g * 1.0).sum(), [x])
            results.append((g.numpy().astype(np.float64), h.numpy().astype(np.float64)))
        (g, h), (exact, second) = results
        assert np.abs(g - exact).max() <= 2 * UNIT[dtype] * np.abs(exact).max() + 2.0**-21, (g, exact)
        assert np.abs(h - second).max() <= 4 * UNIT[dtype] * np.abs(second).max() + 2.0**-20, (h, second)


def test_definitions_are_computed_in_float32():
    """What a fused op is defined as, and a model is run on with explicit=True, says so itself, every one of them."""
    from minigrad.op import REGISTRY

    seen: list[str] = []
    for name, op in REGISTRY.items():
        if op.definition is not None and not op.widens:
            assert hasattr(op.definition, "__wrapped__") and op.definition.__qualname__.startswith(op.definition.__wrapped__.__qualname__)
            seen.append(name)
    assert {"gelu", "softmax", "log_softmax", "layer_norm", "attention", "addmm", "linear", "packed_linear"} == set(seen)
