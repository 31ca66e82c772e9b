"""Where a function has no value, no derivative or several: PyTorch's numbers at zeros, ties, infinities and NaN."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import minigrad as mg
from minigrad.testing import fake_cupy

F = torch.nn.functional
inf, nan = math.inf, math.nan
EDGES = [0.0, -0.0, -1.0, 1.0, inf, -inf, nan, 1e-300, 800.0, -800.0]
A = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -2.0, 2.0, 0.0, -0.0, inf, 1.0, 2.0, inf, -2.0]
B = [-1.0, -0.5, 0.0, 1.0, 2.0, 0.5, 2.0, 3.0, 0.5, 0.0, 3.0, -1.0, 2.0, nan, inf, 0.0, -1.0]
CASES: dict[str, tuple[Any, ...]] = {  # ours, PyTorch's, arguments
    "power": (lambda a, b: a**b, lambda a, b: a**b, A, B),
    **{
        f"power {c}": (lambda x, c=c: x**c, lambda x, c=c: x**c, [0.0, -1.0, -2.0, 2.0, inf, nan])
        for c in (-2, -1.0, -0.5, 0, 0.0, 0.5, 1, 1.5, 2.0, 3, nan, inf)
    },
    **{
        f"base {c}": (lambda x, c=c: c**x, lambda x, c=c: c**x, [0.0, -0.0, -1.0, -2.0, 2.0, 0.5, 3.0, inf, nan])
        for c in (0.0, 0, -1.0, 2.0, 1, inf)
    },
    **{f: (getattr(mg, f), getattr(torch, f), EDGES) for f in ("log", "sqrt", "exp", "tanh", "sigmoid", "relu", "erf")},
    "abs": (mg.abs, lambda x: x.abs() * 1.0, [e for e in EDGES if e == e]),
    "divide": (lambda a, b: a / b, lambda a, b: a / b, [0.0, 1.0, inf, 0.0, 1.0], [0.0, 0.0, inf, inf, inf]),
    **{
        f: (
            getattr(mg, f),
            getattr(torch, f),
            [1.0, 1.0, nan, 1.0, nan, inf, -inf, 0.0, 2.0],
            [1.0, 2.0, 1.0, nan, nan, inf, -inf, -0.0, 1.0],
        )
        for f in ("maximum", "minimum")
    },
    "clip": (
        lambda x: mg.clip(x, min=0.0, max=1.0),
        lambda x: torch.clip(x, 0.0, 1.0),
        [0.0, 1.0, 0.5, -1.0, 2.0, nan, inf, -inf],
    ),
    "clip-crossed": (
        lambda x: mg.clip(x, min=1.0, max=0.0),
        lambda x: torch.clip(x, 1.0, 0.0),
        [0.0, 1.0, 0.5, -1.0, 2.0],
    ),
    **{
        f"{f} {x}": (lambda x, f=f: getattr(mg, f)(x), lambda x, f=f: getattr(torch, f)(x), x)
        for f in ("max", "min", "prod")
        for x in ([1.0, 1.0, 0.0], [0.0, -0.0], [0.0, 0.0, 2.0], [1.0, 2.0])
    },
    **{
        f"var {c} {x}": (lambda x, c=c: mg.var(x, correction=c), lambda x, c=c: torch.var(x, correction=c), x)
        for c, x in [
            (0, [3.0]),
            (1, [3.0]),
            (0, [3.0, 3.0]),
            (1, [3.0, 3.0]),
            (2, [3.0, 3.0]),
            (0, [inf, 1.0]),
            (2, [3.0]),
        ]
    },
    **{
        f"{f} {x}": (
            lambda x, f=f: getattr(mg, f)(x, axis=0) * np.arange(1.0, 3.0),
            lambda x, f=f: getattr(torch, f)(x, 0) * torch.tensor([1.0, 2.0]).double(),
            x,
        )
        for f in ("softmax", "log_softmax", "logsumexp")
        for x in ([-inf, -inf], [inf, 1.0], [inf, inf], [nan, 1.0], [-inf, 1.0], [1e308, 1e308])
    },
    **{
        f"{f} {x}": (lambda x, f=f: getattr(mg, f)(x), lambda x, f=f: getattr(torch, f)(x), x)
        for f in ("max", "min")
        for x in ([inf, inf, 1.0], [-inf, -inf])
    },
    "where": (
        lambda x: mg.where(np.array([True, False]), x, mg.sqrt(x - 5.0)),
        lambda x: torch.where(torch.tensor([True, False]), x, torch.sqrt(x - 5.0)),
        [1.0, 9.0],
    ),
    "where-nan": (
        lambda a, b: mg.where(np.array([True, False]), a, b),
        lambda a, b: torch.where(torch.tensor([True, False]), a, b),
        [1.0, nan],
        [nan, 3.0],
    ),
    **{
        f"gelu {a}": (
            lambda x, a=a: mg.gelu(x, approximate=a),
            lambda x, a=a: F.gelu(x, approximate=a),
            [0.0, nan, 100.0],
        )
        for a in ("none", "tanh")
    },
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ours, theirs, arrays", [(f, g, xs) for f, g, *xs in CASES.values()], ids=CASES.keys())
def test_pytorchs_numbers(ours: Any, theirs: Any, arrays: Any):
    """The value and the gradient are PyTorch's, at every place, NaN and the signs of infinities included."""
    xs = [mg.tensor(np.array(a), requires_grad=True) for a in arrays]
    us = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in arrays]
    y, v = ours(*xs), theirs(*us)
    np.testing.assert_allclose(y.numpy(), v.detach().numpy(), rtol=1e-13, equal_nan=True)
    for a, b in zip(mg.gradients(y.sum(), xs), torch.autograd.grad(v.sum(), us)):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-12, atol=1e-300, equal_nan=True)


def test_second_derivatives_of_powers_at_zero():
    """xⁿ at 0 has the derivatives that it has: PyTorch's where it has a number, and no NaN where it has none."""
    for n, wanted in [(0, 0.0), (1, 0.0), (2, 2.0), (3, 0.0), (4, 0.0)]:
        for c in (n, float(n)):
            x = mg.tensor(np.array(0.0))
            assert mg.hessian(lambda x, c=c: x**c)(x).item() == wanted
            assert mg.hessian(lambda x, c=c: x ** mg.tensor(np.array(float(c))))(x).item() == wanted


# ── cross-entropy of nothing ──
def _loss(f: Any, dtype: str, device: str, targets: list[int]) -> Any:
    x = mg.tensor(np.array([[1.0, 2.0], [3.0, 1.0]]), dtype=dtype, device=device, requires_grad=True)
    w = mg.tensor(np.array([[1.0, 2.0], [3.0, 1.5], [0.5, -1.0]]), dtype=dtype, device=device, requires_grad=True)
    t = mg.tensor(targets, device=device).array
    loss = f(x, t) if f in (mg.cross_entropy, mg.fused.cross_entropy_unfused) else f(x, w, t)
    loss.backward()
    return loss.to("numpy").item(), x.grad.numpy(), None if w.grad is None else w.grad.numpy()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("device", ["numpy", "fake"])
@pytest.mark.parametrize(
    "f",
    [
        mg.cross_entropy,
        mg.fused.cross_entropy_unfused,
        mg.linear_cross_entropy,
        mg.fused.linear_cross_entropy_unfused,
    ],
    ids=["fused", "unfused", "linear", "linear unfused"],
)
def test_a_loss_of_nothing(f: Any, device: str, dtype: str):
    """Where every target is ignored the loss is NaN and its gradients are 0, as in PyTorch, in every form and on every backend."""
    if device == "fake":
        fake_cupy.install()
    loss, dx, dw = _loss(f, dtype, device, [-100, -100])
    assert math.isnan(loss) and (dx == 0.0).all() and (dw is None or (dw == 0.0).all())
    loss, dx, dw = _loss(f, dtype, device, [-100, 1])
    assert math.isfinite(loss) and (dx[0] == 0.0).all() and (dx[1] != 0.0).all()


# ── layer normalisation of equal numbers ──
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "rows",
    [
        [[2.0, 2.0, 2.0]],
        [[2.0] * 3, [2.0] * 3],
        [[1e-200, -1e-200, 0.0]],
        [[inf, 1.0, 2.0]],
        [[nan, 1.0, 2.0]],
        [[1.0, 2.0, 4.0]],
    ],
)
@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_layer_norm_of_rows_without_a_variance(rows: Any, eps: float):
    """One row, or several: x̂ is PyTorch's, NaN where σ² + ε is 0 and x − μ too."""
    w, b = np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.0, -0.5])
    for f in (mg.layer_norm, mg.fused.layer_norm_unfused):
        x, u = (
            mg.tensor(np.array(rows), requires_grad=True),
            torch.tensor(rows, dtype=torch.float64, requires_grad=True),
        )
        y, v = f(x, w, b, eps=eps), F.layer_norm(u, (3,), torch.tensor(w), torch.tensor(b), eps)
        np.testing.assert_allclose(y.numpy(), v.detach().numpy(), rtol=1e-12, atol=1e-12, equal_nan=True)
        np.testing.assert_allclose(
            mg.gradients((y * y).sum(), [x])[0].numpy(),
            torch.autograd.grad((v * v).sum(), u)[0].numpy(),
            rtol=1e-9,
            atol=1e-9,
            equal_nan=True,
        )


# ── tangents ──
def _square(x: Any, y: Any) -> Any:
    return (x * x * y).sum()


@pytest.mark.parametrize("f", [mg.jvp, mg.hvp], ids=["jvp", "hvp"])
@pytest.mark.parametrize(
    "tangents, kind, words",
    [
        (([5.0], [1.0]), mg.ShapeError, ["tangents[0]", "float32[1]", "float32[2]"]),  # which broadcast
        ((5.0, [1.0]), mg.ShapeError, ["tangents[0]", "float32[]"]),
        (([1.0, 2.0], [[1.0]]), mg.ShapeError, ["tangents[1]"]),
        (([1.0, 2.0],), mg.ShapeError, ["2 primals", "1 tangents"]),
        (([1.0, 2.0], [1.0], [1.0]), mg.ShapeError, ["3 tangents"]),
        ((np.ones(2), np.ones(1, np.float32)), mg.DTypeError, ["tangents[0]", "float64", "float32"]),
        ((np.ones(2, int), np.ones(1, np.float32)), mg.DTypeError, ["tangents[0]", "int64"]),
        (mg.tensor([1.0, 2.0]), TypeError, ["tuple", "Tensor"]),
    ],
)
def test_a_tangent_is_as_its_primal(f: Any, tangents: Any, kind: Any, words: list[str]):
    """Another shape, dtype or number of tangents is refused, as PyTorch and JAX do; a list takes its primal's dtype."""
    primals = (mg.tensor([1.0, 2.0]), mg.tensor([3.0]))
    with pytest.raises(kind) as caught:
        f(_square, primals, tangents)
    assert all(w in str(caught.value) for w in [f.__name__, *words]) and "\n" not in str(caught.value)
    wide = tuple(mg.tensor(p.numpy(), dtype="float64") for p in primals)
    assert f(_square, wide, ([1.0, 2.0], [1.0]))[0].dtype == "float64"


def test_a_cotangent_is_as_the_value():
    """A pullback refuses a cotangent of another shape or dtype."""
    _, pull = mg.vjp(lambda x: x * x, mg.tensor([1.0, 2.0]))
    for bad in ([1.0], 1.0, [[1.0, 2.0]], np.ones(2), np.ones(2, int)):
        with pytest.raises(mg.MinigradError):
            pull(bad)
    assert pull([1.0, 2.0])[0].tolist() == [2.0, 8.0]
