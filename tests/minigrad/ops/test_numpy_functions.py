"""NumPy's functions on Tensors: what has an op is recorded, and no other gives an array that a gradient was lost from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import minigrad as mg
from minigrad.ops import numpy_protocol as protocol
from minigrad.testing import fake_cupy


def _shape(rng: Any, least: int = 0, most: int = 3) -> tuple[int, ...]:
    return tuple(int(n) for n in rng.integers(1, 4, rng.integers(least, most + 1)))


def _axis(rng: Any, ndim: int) -> int:
    return int(rng.integers(-ndim, ndim))


def _axes(rng: Any, ndim: int) -> Any:
    """None, an axis, one of NumPy's integers, or a tuple of some."""
    some = tuple(int(a) for a in rng.permutation(ndim)[: rng.integers(1, ndim + 1)])
    return [None, _axis(rng, ndim), np.int64(_axis(rng, ndim)), some][rng.integers(4)]


def _x(rng: Any, *shape: int) -> Any:
    return (
        rng.permutation(np.linspace(-2.0, 2.0, int(np.prod(shape)) + 2))[
            : int(np.prod(shape))
        ].reshape(shape)
        + 0.013
    )  # no ties, no zero


def _positive(rng: Any, *shape: int) -> Any:
    return np.abs(_x(rng, *shape)) + 0.5


def _unary(f: Any, make: Any = _x) -> Any:
    return lambda rng: ([make(rng, *_shape(rng))], f)


def _binary(f: Any, make: Any = _x) -> Any:
    def case(rng: Any) -> Any:
        shape = _shape(rng)
        other = tuple(n if rng.random() < 0.7 else 1 for n in shape)[
            rng.integers(0, len(shape) + 1) :
        ]
        return [make(rng, *shape), make(rng, *other)], f

    return case


def _reduction(f: Any) -> Any:
    def case(rng: Any) -> Any:
        shape = _shape(rng, least=1)
        axis, keep = _axes(rng, len(shape)), bool(rng.integers(2))
        calls = [
            lambda x: f(x),
            lambda x: f(x, axis),
            lambda x: f(x, axis=axis, keepdims=keep),
            lambda x: f(a=x, axis=axis),
        ]
        return [_x(rng, *shape)], calls[rng.integers(4)]

    return case


def _spread(f: Any) -> Any:
    def case(rng: Any) -> Any:
        shape = tuple(n + 1 for n in _shape(rng, least=1))
        axis, keep = _axes(rng, len(shape)), bool(rng.integers(2))
        calls = [
            lambda x: f(x),
            lambda x: f(x, axis, ddof=1),
            lambda x: f(x, axis, None, None, 1, keep),
            lambda x: f(x, axis=axis, correction=0.5),
        ]
        return [_x(rng, *shape)], calls[rng.integers(4)]

    return case


def _dot(rng: Any) -> Any:
    k = int(rng.integers(1, 4))
    a, b = (() if rng.random() < 0.1 else (*_shape(rng, most=2), k) for _ in range(2))
    b = (*b[:-2], k, b[-2]) if len(b) > 1 else b
    return [_x(rng, *a), _x(rng, *b)], np.dot


def _inner(rng: Any) -> Any:
    k = int(rng.integers(1, 4))
    return [_x(rng, *_shape(rng, most=2), k), _x(rng, *_shape(rng, most=2), k)], np.inner


def _matmul(f: Any) -> Any:
    def case(rng: Any) -> Any:
        n, k, m = rng.integers(1, 4, 3)
        lead = _shape(rng, most=1)
        return [_x(rng, *lead, n, k), _x(rng, k, m)], f

    return case


def _norm(rng: Any) -> Any:
    shape = _shape(rng, least=2, most=3)
    a, b = (int(i) for i in rng.permutation(len(shape))[:2])
    keep = bool(rng.integers(2))
    calls = [
        np.linalg.norm,
        lambda x: np.linalg.norm(x, axis=a),
        lambda x: np.linalg.norm(x, 2, a, keep),
        lambda x: np.linalg.norm(x, keepdims=True),
        lambda x: np.linalg.norm(x, axis=(a, b)),
        lambda x: np.linalg.norm(x, "fro", (a, b)),
        lambda x: np.linalg.norm(
            x[0, ..., 0].ravel() if isinstance(x, np.ndarray) else np.ravel(x[0, ..., 0]), ord=2
        ),
    ]
    return [_x(rng, *shape)], calls[rng.integers(7)]


def _split(rng: Any) -> Any:
    shape = _shape(rng, least=1)
    at = _axis(rng, len(shape))
    places = [
        int(i) for i in rng.integers(-1, 5, rng.integers(0, 4))
    ]  # in any order, beyond the end too
    calls = [
        lambda x: np.split(x, places, at),
        lambda x: np.split(x, shape[at], axis=at),
        lambda x: np.split(x, np.array(places, int), axis=at),
    ]
    return [_x(rng, *shape)], calls[rng.integers(3)]


def _clip(rng: Any) -> Any:
    calls = [
        lambda x: np.clip(x, -0.7, 0.9),
        lambda x: np.clip(x, a_min=None, a_max=0.9),
        lambda x: np.clip(x, -0.7, None),
        lambda x: np.clip(x, np.float64(-0.7), 1.1),
        lambda x: np.clip(x, a_max=0.3, a_min=-1),
    ]
    return [_x(rng, *_shape(rng))], calls[rng.integers(5)]


def _where(rng: Any) -> Any:
    shape = _shape(rng)
    c = rng.random(shape) < 0.5
    calls = [
        lambda x, y: np.where(c, x, y),
        lambda x, y: np.where(c, x, 0.5),
        lambda x, y: np.where(c, -1.0, y),
        lambda x, y: np.where(x > y, x, y),
    ]
    return [_x(rng, *shape), _x(rng, *shape)], calls[rng.integers(4)]


def _joined(f: Any, least: int = 1, axis: bool = True) -> Any:
    def case(rng: Any) -> Any:
        shape = _shape(rng, least=least)
        at = _axis(rng, len(shape) + (f is np.stack)) if len(shape) + (f is np.stack) else 0
        constant = _x(rng, *shape)
        calls = [lambda x, y: f([x, y]), lambda x, y: f((x, constant, y))]
        if axis:
            calls += [lambda x, y: f([x, y, x], at), lambda x, y: f([constant, x], axis=at)]
        if f is np.concatenate:
            calls += [lambda x, y: f([x, y], axis=None)]
        return [_x(rng, *shape), _x(rng, *shape)], calls[rng.integers(len(calls))]

    return case


def _shaped(*calls: Callable[..., Any], least: int = 0) -> Any:
    """One of the calls f(x, rng), which draws its arguments itself."""

    def case(rng: Any) -> Any:
        f, seed = calls[rng.integers(len(calls))], int(rng.integers(1 << 30))
        return [_x(rng, *_shape(rng, least=least))], lambda x: f(x, np.random.default_rng(seed))

    return case


def _size(x: Any) -> int:
    return int(np.prod(x.shape))


CASES: dict[str, Any] = {
    "add": _binary(np.add),
    "subtract": _binary(np.subtract),
    "multiply": _binary(np.multiply),
    "divide": _binary(np.divide),
    "power": _binary(np.power, _positive),
    "maximum": _binary(np.maximum),
    "minimum": _binary(np.minimum),
    "matmul": _matmul(np.matmul),
    "linalg.matmul": _matmul(np.linalg.matmul),
    "negative": _unary(np.negative),
    "positive": _unary(np.positive),
    "absolute": _unary(np.abs),
    "fabs": _unary(np.fabs),
    "exp": _unary(np.exp),
    "log": _unary(np.log, _positive),
    "sqrt": _unary(np.sqrt, _positive),
    "tanh": _unary(np.tanh),
    "sin": _unary(np.sin),
    "cos": _unary(np.cos),
    "expm1": _unary(np.expm1),
    "log1p": _unary(lambda x: np.log1p(x * x)),
    "square": _unary(np.square),
    "reciprocal": _unary(np.reciprocal),
    "sum": _reduction(np.sum),
    "mean": _reduction(np.mean),
    "prod": _reduction(np.prod),
    "max": _reduction(np.max),
    "amax": _reduction(np.amax),
    "min": _reduction(np.min),
    "amin": _reduction(np.amin),
    "cumsum": _shaped(lambda x, r: np.cumsum(x), lambda x, r: np.cumsum(x, axis=_axis(r, x.ndim)), least=1),
    "flip": _shaped(
        lambda x, r: np.flip(x),
        lambda x, r: np.flip(x, _axis(r, x.ndim)),
        lambda x, r: np.flip(x, axis=_axes(r, x.ndim)),
        least=1,
    ),
    "sort": _shaped(lambda x, r: np.sort(x), lambda x, r: np.sort(x, axis=_axis(r, x.ndim)), lambda x, r: np.sort(x, None), least=1),
    "var": _spread(np.var),
    "std": _spread(np.std),
    "linalg.norm": _norm,
    "linalg.vector_norm": _shaped(
        lambda x, r: np.linalg.vector_norm(x),
        lambda x, r: np.linalg.vector_norm(x, axis=_axes(r, x.ndim), keepdims=True),
        least=1,
    ),
    "linalg.matrix_norm": _shaped(
        lambda x, r: np.linalg.matrix_norm(x, keepdims=bool(r.integers(2))), least=2
    ),
    "dot": _dot,
    "inner": _inner,
    "vdot": lambda rng: ([_x(rng, 2, 3), _x(rng, 3, 2)], np.vdot),
    "outer": _binary(np.outer),
    "linalg.outer": lambda rng: ([_x(rng, 2), _x(rng, 3)], np.linalg.outer),
    "einsum": lambda rng: (
        [_x(rng, 2, 3), _x(rng, 3, 4)],
        [
            lambda x, y: np.einsum("ij,jk", x, y),
            lambda x, y: np.einsum("ij, jk -> ki", x, y, optimize=True),
            lambda x, y: np.einsum("ij,jk->", x, y),
        ][rng.integers(3)],
    ),
    "reshape": _shaped(
        lambda x, r: np.reshape(x, -1),
        lambda x, r: np.reshape(x, (1, _size(x))),
        lambda x, r: np.reshape(x, shape=[_size(x), -1]),
    ),
    "ravel": _shaped(lambda x, r: np.ravel(x)),
    "transpose": _shaped(
        lambda x, r: np.transpose(x),
        lambda x, r: np.transpose(x, list(r.permutation(x.ndim))),
        lambda x, r: np.transpose(x, axes=[int(i) - x.ndim for i in r.permutation(x.ndim)]),
    ),
    "matrix_transpose": _shaped(lambda x, r: np.matrix_transpose(x), least=2),
    "linalg.matrix_transpose": _shaped(lambda x, r: np.linalg.matrix_transpose(x), least=2),
    "swapaxes": _shaped(lambda x, r: np.swapaxes(x, _axis(r, x.ndim), _axis(r, x.ndim)), least=1),
    "moveaxis": _shaped(
        lambda x, r: np.moveaxis(x, _axis(r, x.ndim), _axis(r, x.ndim)),
        lambda x, r: np.moveaxis(x, [0, -1], [-1, 0]),
        least=2,
    ),
    "expand_dims": _shaped(
        lambda x, r: np.expand_dims(x, _axis(r, x.ndim + 1)),
        lambda x, r: np.expand_dims(x, (0, -1)),
    ),
    "squeeze": _shaped(
        lambda x, r: np.squeeze(x),
        lambda x, r: np.squeeze(x[:1], axis=0),
        lambda x, r: np.squeeze(x[:1, None], axis=(-x.ndim, 0)),
        least=1,
    ),
    "broadcast_to": _shaped(
        lambda x, r: np.broadcast_to(x, (2, *x.shape)), lambda x, r: np.broadcast_to(np.sum(x), 3)
    ),
    "tril": _shaped(
        lambda x, r: np.tril(x),
        lambda x, r: np.tril(x, 1),
        lambda x, r: np.tril(m=x, k=-1),
        least=2,
    ),
    "triu": _shaped(lambda x, r: np.triu(x), lambda x, r: np.triu(x, k=1), least=2),
    "astype": _shaped(lambda x, r: np.astype(x, np.float64)) if hasattr(np, "astype") else None,
    "concatenate": _joined(np.concatenate),
    "stack": _joined(np.stack, least=0),
    "vstack": _joined(np.vstack, least=0, axis=False),
    "hstack": _joined(np.hstack, least=0, axis=False),
    "split": _split,
    "take": _shaped(
        lambda x, r: np.take(x, [0, -1, 0]),
        lambda x, r: np.take(x, 0, axis=_axis(r, x.ndim)),
        lambda x, r: np.take(x, np.array([[0, 0]]), _axis(r, x.ndim)),
        least=1,
    ),
    "take_along_axis": _shaped(
        lambda x, r: np.take_along_axis(x, np.argsort(x, axis=-1), -1),
        lambda x, r: np.take_along_axis(x, np.argmax(x, axis=0)[None], axis=0),
        least=1,
    ),
    "clip": _clip,
    "where": _where,
}


def test_every_function_of_the_table_is_tried():
    """No function is declared without a case here, and each case is a function of the table."""
    declared = {
        protocol.name_of(f).removeprefix("np.")
        for f in [*protocol.FUNCTIONS, *protocol.OPERATORS, *protocol.UFUNCS]
    }
    compared = {
        "equal",
        "not_equal",
        "less",
        "less_equal",
        "greater",
        "greater_equal",
        "sign",
    }  # bools, and what is flat
    assert declared - compared == {name for name, case in CASES.items() if case is not None}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case is not None])
def test_numpys_value_and_its_gradient(name: str, seed: int):
    """The value is NumPy's on the arrays, shapes included; the gradient is the difference quotient's, with other arguments each time."""
    arrays, f = CASES[name](np.random.default_rng([seed, *map(ord, name)]))
    ys = f(*[mg.tensor(a, requires_grad=True) for a in arrays])
    expected = f(*arrays)
    assert type(ys) is list if name == "split" else isinstance(ys, mg.Tensor)
    for y, e in zip(ys, expected, strict=True) if name == "split" else [(ys, expected)]:
        assert y.shape == e.shape and y.dtype == e.dtype
        np.testing.assert_allclose(
            y.numpy(), e, rtol=1e-13, atol=1e-13
        )  # at most 27 terms of magnitude 10

    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal(e.shape) for e in (expected if name == "split" else [expected])]

    def whole(*xs: Any) -> Any:
        parts = f(*xs)
        return sum((w * p).sum() for w, p in zip(weights, parts if name == "split" else [parts]))

    xs = [mg.tensor(a, requires_grad=True) for a in arrays]
    loss = whole(*xs)
    grads = mg.gradients(loss, xs) if loss.requires_grad else [np.zeros_like(a) for a in arrays]
    h = 1e-6  # ε^⅓ balances the rounding ε/h of a quotient and its h²; both are below 1e-8
    for i, (a, g) in enumerate(zip(arrays, grads)):
        assert g.shape == a.shape
        for at in np.ndindex(a.shape):
            step = np.zeros_like(a)
            step[at] = h
            up, down = (
                whole(*[x + s * step if j == i else x for j, x in enumerate(arrays)])
                for s in (1, -1)
            )
            slope = (up - down) / (2 * h)
            assert abs(
                float(g.numpy()[at] if isinstance(g, mg.Tensor) else g[at]) - slope
            ) < 1e-7 * max(1.0, abs(slope), abs(up))


@pytest.mark.parametrize(
    "f", [np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal]
)
def test_comparisons_are_the_operators(f: Any):
    a, b = np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])
    for x, y in [
        (mg.tensor(a, requires_grad=True), b),
        (a, mg.tensor(b)),
        (mg.tensor(a), mg.tensor(b)),
    ]:
        assert isinstance(f(x, y), mg.Tensor) and f(x, y).tolist() == f(a, b).tolist()


def test_norms_and_deviations_are_flat_at_zero():
    """At 0, and of equal numbers, the derivative of a norm or a standard deviation is 0, as in PyTorch; NaN stays NaN."""
    for f in (np.linalg.norm, lambda x: np.linalg.norm(x, axis=0), np.std):
        x = mg.tensor(np.zeros(3), requires_grad=True)
        f(x).backward()
        assert x.grad.tolist() == [0.0, 0.0, 0.0] and f(x).item() == 0.0
        assert np.isnan(f(mg.tensor(np.array([np.nan, 0.0]))).item())


def test_the_case_of_the_lost_gradient():
    """np.dot in the middle of a graph."""
    w, v = mg.tensor([1.0, 2.0], requires_grad=True), mg.tensor([3.0, 4.0], requires_grad=True)
    (v * np.dot(w, np.ones(2, np.float32))).sum().backward()
    assert w.grad.tolist() == [7.0, 7.0] and v.grad.tolist() == [3.0, 3.0]


def test_twice_differentiable():
    """A function of NumPy's inside grad(grad()) is differentiated twice."""
    f = mg.grad(lambda x: np.sum(np.exp(x) * x))
    close = mg.grad(lambda x: np.sum(f(x)))(mg.tensor(np.array([0.5])))
    np.testing.assert_allclose(close.numpy(), np.exp(0.5) * 2.5, rtol=1e-14)


def test_on_a_gpu():
    """Of a Tensor on a GPU, what has an op is that op, and stays there; all else is refused, for NumPy cannot compute it."""
    fake_cupy.install()
    x = mg.tensor([[1.0, 2.0], [3.0, 4.0]], device="fake", requires_grad=True)
    for f in (
        np.exp,
        np.sum,
        np.transpose,
        lambda x: np.concatenate([x, x]),
        lambda x: np.dot(x, x),
        lambda x: np.where(x > 2.0, x, 0.0),
    ):
        y = f(x)
        assert y.device == "fake:0" and y.requires_grad
        assert mg.gradients(y.sum(), [x])[0].device == "fake:0"
    with pytest.raises(mg.GraphError, match=r"np\.sinh"):
        np.sinh(x)
    for f in (np.sinh, np.cumprod, np.argmax, np.isnan):
        with pytest.raises(mg.DeviceError, match=rf"np\.{f.__name__} of a Tensor on fake:0"):
            f(x.detach())
