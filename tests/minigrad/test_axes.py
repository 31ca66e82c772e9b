"""Axes, shapes, sizes and counts: integers of any kind, checked once for all ops, and refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import minigrad as mg
from minigrad.op import REGISTRY

REDUCTIONS = ["sum", "mean", "var", "max", "min", "logsumexp", "prod"]
N = np.int64
INTEGERS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {  # with NumPy's integers, with Python's
    **{
        f: (
            lambda x, f=f: getattr(mg, f)(x, axis=N(1), **_ddof(f)),
            lambda x, f=f: getattr(mg, f)(x, axis=1, **_ddof(f)),
        )
        for f in REDUCTIONS
    },
    **{
        f"{f}-array": (
            lambda x, f=f: getattr(mg, f)(x, axis=np.array([0, -1]), **_ddof(f)),
            lambda x, f=f: getattr(mg, f)(x, axis=(0, -1), **_ddof(f)),
        )
        for f in REDUCTIONS
    },
    **{
        f"{f}-list": (
            lambda x, f=f: getattr(mg, f)(x, axis=[N(0), 2], **_ddof(f)),
            lambda x, f=f: getattr(mg, f)(x, axis=(0, 2), **_ddof(f)),
        )
        for f in REDUCTIONS
    },
    "softmax": (lambda x: mg.softmax(x, axis=N(0)), lambda x: mg.softmax(x, axis=0)),
    "log_softmax": (lambda x: mg.log_softmax(x, axis=np.int8(-2)), lambda x: mg.log_softmax(x, axis=-2)),
    "reshape": (lambda x: x.reshape(N(6), np.uint8(4)), lambda x: x.reshape(6, 4)),
    "reshape-one": (lambda x: x.reshape(N(24)), lambda x: x.reshape(24)),
    "reshape-array": (lambda x: x.reshape(np.array([4, -1])), lambda x: x.reshape(4, -1)),
    "reshape-0d": (lambda x: x.reshape(np.array(24)), lambda x: x.reshape(24)),
    "reshape-op": (lambda x: mg.reshape(x, shape=[N(6), 4]), lambda x: x.reshape(6, 4)),
    "permute": (lambda x: x.permute(N(2), N(0), N(1)), lambda x: x.permute(2, 0, 1)),
    "permute-array": (lambda x: x.permute(np.argsort([2, 0, 1])), lambda x: x.permute(1, 2, 0)),
    "transpose": (lambda x: x.transpose(N(0), N(2)), lambda x: x.transpose(0, 2)),
    "broadcast_to": (
        lambda x: mg.broadcast_to(x, shape=(N(2), *x.shape)),
        lambda x: mg.broadcast_to(x, shape=(2, *x.shape)),
    ),
    "concat": (lambda x: mg.concat([x, x], axis=N(1)), lambda x: mg.concat([x, x], axis=1)),
    "stack": (lambda x: mg.stack([x, x], axis=N(1)), lambda x: mg.stack([x, x], axis=1)),
    "split": (lambda x: mg.split(x, sections=N(2), axis=N(2))[0], lambda x: mg.split(x, sections=2, axis=2)[0]),
    "split-sizes": (
        lambda x: mg.split(x, sizes=np.array([1, 3]), axis=2)[1],
        lambda x: mg.split(x, sizes=[1, 3], axis=2)[1],
    ),
    "tril": (lambda x: mg.tril(x, diagonal=N(1)), lambda x: mg.tril(x, diagonal=1)),
    "triu": (lambda x: x.triu(diagonal=N(1)), lambda x: x.triu(diagonal=1)),
    "take": (lambda x: mg.take(x, np.array([0, 1]), axis=N(1)), lambda x: mg.take(x, np.array([0, 1]), axis=1)),
    "gather": (
        lambda x: mg.gather(x, np.zeros((2, 3, 1), int), axis=N(2)),
        lambda x: mg.gather(x, np.zeros((2, 3, 1), int), axis=2),
    ),
    "scatter_add": (
        lambda x: mg.scatter_add(x, np.zeros((2, 3, 4), int), x, axis=N(2)),
        lambda x: mg.scatter_add(x, np.zeros((2, 3, 4), int), x, axis=2),
    ),
    "split_heads": (
        lambda x: mg.split_heads(x, heads=N(2), parts=N(1))[0],
        lambda x: mg.split_heads(x, heads=2, parts=1)[0],
    ),
}


def _ddof(f: str) -> dict[str, int]:
    return {"ddof": 1} if f == "var" else {}


def _x() -> mg.Tensor:
    return mg.tensor(np.linspace(-1.0, 2.0, 24).reshape(2, 3, 4), requires_grad=True)


@pytest.mark.parametrize("theirs, ours", INTEGERS.values(), ids=INTEGERS.keys())
def test_integers_of_any_kind(theirs: Any, ours: Any):
    """The value, the gradient and the second derivative are those of Python's ints, to the bit."""
    for f in (
        lambda x, g: (g(x) * g(x)).sum(),
        lambda x, g: (mg.gradients((g(x) * g(x)).sum(), [x], create_graph=True)[0] * x).sum(),
    ):
        found = [(y := f(x := _x(), g), mg.gradients(y, [x])[0]) for g in (theirs, ours)]
        for a, b in zip(*found):
            np.testing.assert_array_equal(a.numpy(), b.numpy())


AXES = [(lambda x, a, f=f: getattr(mg, f)(x, axis=a, **_ddof(f))) for f in REDUCTIONS]


@pytest.mark.parametrize("f", AXES, ids=REDUCTIONS)
@pytest.mark.parametrize(
    "axis, words",
    [
        (True, "integer"),
        (1.0, "integer"),
        ("1", "integer"),
        ((0, True), "integer"),
        ((), "axis=None"),
        ([], "axis=None"),
        (3, "3"),
        (-4, "-4"),
        ((0, 3), "3"),
        ((1, 1), ""),
        ((1, -2), ""),
        (np.array([0.0]), "integer"),
    ],
)
def test_what_is_no_axis_is_refused(f: Any, axis: Any, words: str):
    """A bool, a float, no axis at all, one that is not there, one twice: a ShapeError of one line, before anything is computed."""
    with pytest.raises(mg.ShapeError) as caught:
        f(_x(), axis)
    assert words in str(caught.value) and "\n" not in str(caught.value) and "axis" in str(caught.value)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x.reshape(True, 24),
        lambda x: x.reshape(24.0),
        lambda x: x.permute(0, 1, True),
        lambda x: x.permute(0, 1),
        lambda x: x.permute(0, 0, 1),
        lambda x: x.permute(0, 1, 3),
        lambda x: x.transpose(0, 3),
        lambda x: x.transpose(True, 0),
        lambda x: mg.concat([x, x], axis=True),
        lambda x: mg.concat([x, x], axis=3),
        lambda x: mg.stack([x], axis=5),
        lambda x: mg.stack([x], axis=1.0),
        lambda x: mg.tril(x, diagonal=True),
        lambda x: mg.tril(x, diagonal=0.5),
        lambda x: mg.softmax(x, axis=True),
        lambda x: mg.softmax(x, axis=()),
        lambda x: mg.softmax(x, axis=3),
        lambda x: mg.log_softmax(x, axis="0"),
        lambda x: mg.take(x, np.array([0]), axis=True),
        lambda x: mg.split(x, sections=2.0, axis=2),
        lambda x: mg.split(x, sections=True, axis=2),
        lambda x: mg.split(x, sizes=[1.0, 3.0], axis=2),
        lambda x: x.split(sizes=[2, 2], axis=1.5),
        lambda x: mg.broadcast_to(x, shape=(True, 2, 3, 4)),
    ],
)
def test_what_is_no_integer_is_refused(f: Any):
    """Everywhere else too: a ShapeError of one line."""
    with pytest.raises(mg.ShapeError) as caught:
        f(_x())
    assert "\n" not in str(caught.value)


def test_a_long_wrong_axis_is_one_line():
    """An array of many lines in the place of an axis is shown in one."""
    for axis in (_x(), np.ones((9, 9)), [np.ones((9, 9))]):
        with pytest.raises(mg.ShapeError) as caught:
            _x().sum(axis=axis)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_every_axis_is_checked():
    """Every setting of an op that is called as an axis or a shape is goes through the check."""
    for op in REGISTRY.values():
        wanted = {
            n for n in op.settings if n.startswith("axis") or n in ("axes", "shape", "diagonal", "heads", "parts")
        }
        assert wanted == set(op.whole), op


def test_random_numbers_of_any_shape():
    """Shapes of random numbers may be NumPy's integers too."""
    for shape in (N(3), 3, (3,), [N(3)], np.array([3])):
        assert mg.random.uniform(0, shape).shape == (3,) and mg.random.normal(0, shape).shape == (3,)
    with pytest.raises(mg.ShapeError):
        mg.random.uniform(0, True)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint64])
def test_keys_and_seeds_of_any_kind(kind: Any):
    """Keys, seeds and numbers may be NumPy's integers, which would overflow."""
    r, n = mg.random, kind(5)
    assert r.key(n) == r.key(5) and r.split(n, kind(3)) == r.split(5, 3) and r.fold_in(n, n) == r.fold_in(5, 5)
    assert r.uniform(n, 3).tolist() == r.uniform(5, 3).tolist() and r.randint(n, n, 0, n).tolist() == r.randint(5, 5, 0, 5).tolist()
    assert r.fold_in(np.int64(2**62 + 12345), 1) == r.fold_in(2**62 + 12345, 1)
    with pytest.raises(mg.ShapeError):
        r.key(1.5)


def test_argnums_of_any_kind():
    """grad's argnums may be NumPy's integers too, alone or in a sequence."""
    f = lambda x, y: (x * y * y).sum()  # noqa: E731
    x, y = mg.tensor([2.0]), mg.tensor([3.0])
    assert mg.grad(f, N(1))(x, y).tolist() == [12.0] and mg.value_and_grad(f, N(0))(x, y)[1].tolist() == [9.0]
    assert [g.tolist() for g in mg.grad(f, np.array([1, 0]))(x, y)] == [[12.0], [9.0]]
    assert mg.jacobian(f, N(1))(x, y).tolist() == [12.0] and mg.hessian(f, N(1))(x, y).tolist() == [[4.0]]
