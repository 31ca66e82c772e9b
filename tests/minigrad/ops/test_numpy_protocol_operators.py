"""An array or a number of NumPy on the left of an operator: the Tensor's own reflected method decides, as if NumPy were not there."""
from __future__ import annotations

import operator
from typing import Any

import numpy as np
import pytest

import minigrad as mg

REFLECTED = {operator.add: "__radd__", operator.sub: "__rsub__", operator.mul: "__rmul__", operator.truediv: "__rtruediv__",
             operator.pow: "__rpow__", operator.matmul: "__rmatmul__", operator.eq: "__eq__", operator.ne: "__ne__",
             operator.lt: "__gt__", operator.le: "__ge__", operator.gt: "__lt__", operator.ge: "__le__"}
NONE = [operator.floordiv, operator.mod, divmod, operator.and_, operator.or_, operator.xor, operator.lshift, operator.rshift]
IN_PLACE = [operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow, operator.ifloordiv, operator.imod]
LEFT = {
    "float32": np.array([[1.5, 2.0], [0.5, 3.0]], np.float32), "float64": np.array([[1.5, 2.0], [0.5, 3.0]]),
    "float16": np.array([[1.5, 2.0], [0.5, 3.0]], np.float16), "int": np.array([[1, 2], [3, 4]]), "row": np.array([2.0, 3.0], np.float32),
    "bool": np.array([[True, False], [True, True]]), "0-d": np.array(2.0, np.float32), "other-shape": np.ones((3, 2), np.float32),
    "empty": np.ones((0, 2), np.float32), "np.float16": np.float16(1.5), "np.float32": np.float32(1.5), "np.float64": np.float64(1.5),
    "np.int64": np.int64(3), "np.bool": np.True_,
}
RIGHT = [("float32", True), ("float32", False), ("float64", True), ("int64", False), ("bool", False)]


def _tensor(dtype: str, wanted: bool, shape: tuple[int, ...] = (2, 2)) -> mg.Tensor:
    return mg.tensor(np.array([[1.0, 2.0], [3.0, 0.5]])[:shape[0]].astype(dtype).reshape(shape), requires_grad=wanted)


def _said(f: Any) -> Any:
    """What f gives: its type, dtype and numbers, and whether a gradient passes; or the error."""
    with np.errstate(all="ignore"):
        try:
            y = f()
        except Exception as error:
            return type(error), str(error)
    return type(y), str(y.dtype), y.shape, y.tolist(), y.requires_grad


@pytest.mark.parametrize("dtype, wanted", RIGHT)
@pytest.mark.parametrize("left", LEFT.values(), ids=LEFT.keys())
@pytest.mark.parametrize("f", REFLECTED, ids=lambda f: f.__name__)
def test_the_tensor_answers(f: Any, left: Any, dtype: str, wanted: bool):
    """`a + t` is t.__radd__(a) for every a of NumPy, to the type, the dtype, the bit and the words of the error."""
    t = _tensor(dtype, wanted)
    assert _said(lambda: f(left, t)) == _said(lambda: getattr(t, REFLECTED[f])(left))


@pytest.mark.parametrize("left", LEFT.values(), ids=LEFT.keys())
@pytest.mark.parametrize("f", NONE, ids=lambda f: f.__name__)
def test_what_tensors_lack_is_lacking_on_either_side(f: Any, left: Any):
    """Operators that Tensors do not have are a TypeError, whether or not a gradient is wanted."""
    for dtype, wanted in RIGHT:
        t = _tensor(dtype, wanted)
        for a, b in [(left, t), (t, left)]:
            with pytest.raises(TypeError):
                f(a, b)


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("f", IN_PLACE, ids=lambda f: f.__name__)
def test_an_array_takes_no_tensor_in_place(f: Any, wanted: bool):
    """`array += tensor` is a TypeError, and the array keeps its numbers."""
    a = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    before = a.copy()
    with pytest.raises(TypeError):
        f(a, _tensor("float32", wanted))
    np.testing.assert_array_equal(a, before)


def test_a_number_of_numpy_on_the_left_takes_a_gradient():
    """np.float64 and np.float32 on the left of a Tensor of their dtype: the value and the gradient."""
    for dtype in ("float32", "float64"):
        t = mg.tensor(np.array([1.0, 2.0], dtype), requires_grad=True)
        for f, slope in [(operator.mul, [3.0, 3.0]), (operator.sub, [-1.0, -1.0]), (operator.truediv, [-3.0, -0.75])]:
            y = f(np.dtype(dtype).type(3.0), t)
            assert isinstance(y, mg.Tensor) and y.dtype == dtype
            assert mg.gradients(y.sum(), [t])[0].tolist() == slope
