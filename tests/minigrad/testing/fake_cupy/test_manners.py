"""Where CuPy's functions differ from NumPy's the fake CuPy has CuPy's manners, and minigrad's ops have NumPy's on both."""
from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from device import DEVICE

import minigrad as mg
from minigrad.op import REGISTRY
from minigrad.testing import fake_cupy
from minigrad.testing.fake_cupy import cuda

HERE = fake_cupy.install()
cp = HERE.namespace
mg.backend.dtype("bfloat16")


# ── as CuPy 14.2's source has them ──
def test_functions_that_take_more_than_numpys():
    """No axes reverse them all; a negative size; a whole number to a negative power; the sign of a bool."""
    x = cp.arange(6.0).reshape(2, 3)
    assert cp.transpose(x, ()).shape == x.transpose(()).shape == x.transpose().shape == (3, 2)
    assert cp.transpose(x, (1, 0)).shape == x.transpose(1, 0).shape == (3, 2) and x.transpose((0, 1)).shape == (2, 3)
    for axes in ((0,), (0, 0), (0, 2)):
        with pytest.raises(ValueError):
            cp.transpose(x, axes)
    assert cp.broadcast_to(cp.ones(1), (2, -1)).size == 0 and cp.broadcast_to(cp.ones(1), (2, 3)).shape == (2, 3)
    whole = cp.array(np.array([-2, -1, 0, 1, 2]))
    for exponent, wanted in ((-1, [0, -1, 0, 1, 0]), (-2, [0, 1, 0, 1, 0]), (2, [4, 1, 0, 1, 4])):
        assert (whole ** exponent).tolist() == cp.power(whole, exponent).tolist() == wanted and (whole ** exponent).dtype == "int64"
    assert (whole ** cp.array(np.array([2, -1, -3, 3, 1]))).tolist() == [4, -1, 0, 1, 2] and (whole ** -1.0).dtype == "float64"
    assert cp.sign(whole > 0).dtype == "int8" and cp.sign(whole).tolist() == [-1, -1, 0, 1, 1]


def test_functions_that_take_less_than_numpys():
    """Floats as indices are no error of theirs; Thrust sorts no bfloat16, and nothing without axes."""
    x = cp.arange(6.0)
    with pytest.raises(Exception, match="integral") as caught:
        cp.take(x, cp.ones(2), axis=0)
    assert type(caught.value).__name__ == "CompileException" and cp.take(x, cp.array(np.array([5]))).tolist() == [5.0]
    for f in (cp.sort, cp.argsort):
        with pytest.raises(ValueError, match="bfloat16"):
            f(x.astype("bfloat16"))
    with pytest.raises(ValueError, match="rank of zero"):
        cp.sort(x[0])
    assert cp.argsort(x[0]).shape == (1,) and cp.sort(-x).tolist() == sorted((-x).tolist())


def test_functions_with_another_result():
    """where, and what is made of it, has no bfloat16; a variance of too few is NaN; arrays without axes always share memory."""
    x = cp.ones((2, 2), dtype="bfloat16")
    for y in (cp.where(x > 0, x, x), cp.tril(x), cp.triu(x, 1)):
        assert y.dtype == "float32"
    assert cp.tril(cp.ones((2, 2))).tolist() == [[1.0, 0.0], [1.0, 1.0]]
    assert np.isnan(cp.var(cp.arange(2.0), ddof=2).item()) and cp.var(cp.arange(2.0)).item() == 0.25
    a, b, c = cp.ones(()), cp.ones(()), cp.ones(2)
    assert cp.shares_memory(a, b) and not cp.shares_memory(c, c[0]) and cp.shares_memory(c, c[1:]) and not cp.shares_memory(c, cp.ones(2))


@pytest.mark.skipif(cuda.compiler() is None or platform.machine() not in ("x86_64", "AMD64"), reason="g++ on x86 flushes numbers near 0")
def test_numbers_near_0_are_0():
    """With -ftz=true, as CuPy compiles: of float32 and bfloat16, read or computed, in its kernels and in ours; NumPy keeps its own."""
    small = np.array([2.0**-130, -2.0**-130, 2.0**-126, 1.0])
    for dtype, kept in (("float32", [0.0, 0.0, 2.0**-126, 1.0]), ("bfloat16", [0.0, 0.0, 2.0**-126, 1.0]), ("float64", small.tolist())):
        x = cp.array(small.astype(dtype))
        ours = REGISTRY["add"](x, cp.zeros_like(x))     # one launch of the kernel
        for y in (ours, x + cp.zeros_like(x)):
            assert HERE.host(y).astype(float).tolist() == kept, dtype
    assert (cp.array(np.float32([2.0**-100])) * 2.0**-30).tolist() == [0.0]
    half = cp.array(np.array([2.0**-24], np.float16))
    assert (half * half.dtype.type(1.0)).tolist() == [2.0**-24]
    with pytest.raises(ValueError):
        cp.ones(2, dtype="float32") + cp.ones(3, dtype="float32")
    assert (np.float32([2.0**-130]) * np.float32(1.0)).tolist() == [2.0**-130]


# ── what minigrad makes of them ──
def _x(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.linspace(-2.0, 3.0, int(np.prod(shape))).reshape(shape).astype(dtype)


X, WHOLE, FLAGS, ONE = _x(2, 3), np.arange(-2, 3), np.array([True, False]), np.float32(1.5)
HALF, FLOATS = _x(3, 3, dtype="bfloat16"), np.array([0.0, 1.0])
CALLS: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "permute()": (lambda x: mg.permute(x, axes=()), [X]),
    "x.permute()": (lambda x: x.permute(), [X]),
    "permute of nothing": (lambda x: mg.permute(x, axes=()), [ONE]),
    "permute(1)": (lambda x: mg.permute(x, axes=(1,)), [X]),
    "permute(0, 0)": (lambda x: mg.permute(x, axes=(0, 0)), [X]),
    "permute(0, 2)": (lambda x: mg.permute(x, axes=(0, 2)), [X]),
    "permute(-1, 0)": (lambda x: mg.permute(x, axes=(-1, 0)), [X]),
    "transpose(0, 2)": (lambda x: x.transpose(0, 2), [X]),
    "np.transpose": (lambda x: np.transpose(x, ()), [X]),
    "broadcast_to(-1)": (lambda x: mg.broadcast_to(x, shape=(-1,)), [_x(1)]),
    "broadcast_to(-1, 3)": (lambda x: mg.broadcast_to(x, shape=(-1, 3)), [_x(1, 3)]),
    "broadcast_to(2, -1)": (lambda x: mg.broadcast_to(x, shape=(2, -1)), [ONE]),
    "broadcast_to a smaller": (lambda x: mg.broadcast_to(x, shape=(3,)), [X]),
    "reshape(-1, 4)": (lambda x: x.reshape(-1, 4), [X]),
    "reshape(-1, -1)": (lambda x: x.reshape(-1, -1), [X]),
    "reshape(-2, 3)": (lambda x: x.reshape(-2, 3), [X]),
    "reshape(0, -1)": (lambda x: x.reshape(0, -1), [_x(0, 3)]),
    "whole ** -1": (lambda x: x ** -1, [WHOLE]),
    "whole ** whole": (lambda x, y: x ** y, [WHOLE, WHOLE]),
    "whole ** 2": (lambda x: x ** 2, [WHOLE]),
    "whole ** 0": (lambda x: x ** 0, [WHOLE]),
    "2 ** whole": (lambda x: 2 ** x, [WHOLE]),
    "whole ** -1.0": (lambda x: x ** -1.0, [WHOLE]),
    "x ** -1": (lambda x: x ** -1, [X]),
    "sign of bools": (mg.sign, [FLAGS]),
    "abs of bools": (mg.abs, [FLAGS]),
    "- bools": (lambda x: -x, [FLAGS]),
    "sum over ()": (lambda x: mg.sum(x, axis=()), [X]),
    "sum twice": (lambda x: mg.sum(x, axis=(0, 0)), [X]),
    "sum(2)": (lambda x: x.sum(2), [X]),
    "var over nothing": (lambda x: mg.var(x, axis=0, ddof=0), [_x(0, 3)]),
    "max of nothing": (mg.max, [_x(0, 3)]),
    "argmax of nothing": (lambda x: mg.argmax(x), [_x(0, 3)]),
    "argmax(2)": (lambda x: mg.argmax(x, axis=2), [X]),
    "argsort of one": (mg.argsort, [ONE]),
    "sort of one": (mg.sort, [ONE]),
    "argsort of bfloat16": (mg.argsort, [HALF]),
    "sort of bfloat16": (mg.sort, [HALF]),
    "topk of bfloat16": (lambda x: mg.topk(x, 2), [HALF]),
    "argsort down of bfloat16": (lambda x: mg.argsort(x, axis=0, descending=True), [HALF]),
    "tril of bfloat16": (mg.tril, [HALF]),
    "triu of bfloat16": (mg.triu, [HALF]),
    "where of bfloat16": (lambda c, x: mg.where(c, x, x), [np.eye(3, dtype=bool), HALF]),
    "where of bfloat16 and 0": (lambda c, x: mg.where(c, x, 0.0), [np.eye(3, dtype=bool), HALF]),
    "clip of bfloat16": (lambda x: mg.clip(x, None, 1.0), [HALF]),
    "clip": (mg.clip, [X]),
    "embedding of floats": (lambda w, i: mg.embedding(i, w), [X, FLOATS]),
    "embedding of bools": (lambda w, i: mg.embedding(i, w), [X, FLAGS]),
    "embedding of an empty table": (lambda w, i: mg.embedding(i, w), [_x(0, 3), np.array([], dtype=int)]),
    "take of floats": (lambda x, i: mg.take(x, i, axis=1), [X, FLOATS]),
    "gather of floats": (lambda x, i: mg.gather(x, i, axis=0), [X, X]),
    "scatter_add of floats": (lambda x, i: mg.scatter_add(x, i, x, axis=0), [X, X]),
    "cross_entropy of floats": (mg.cross_entropy, [X, FLOATS]),
    "cross_entropy of bools": (mg.cross_entropy, [X, FLAGS]),
    "linear_cross_entropy of floats": (mg.linear_cross_entropy, [X, _x(4, 3), FLOATS]),
    "x[True]": (lambda x: x[True], [X]),
    "x[[]]": (lambda x: x[[]], [X]),
    "x[1.0]": (lambda x: x[1.0], [X]),
    "x[2]": (lambda x: x[2], [X]),
    "x[3 flags]": (lambda x: x[np.array([True, False, True])], [X]),
    "x[:, 2 flags]": (lambda x: x[:, FLAGS], [X]),
    "one[flag]": (lambda x: x[np.array(True)], [ONE]),
    "x[::-1, ::-2]": (lambda x: x[::-1, ::-2], [X]),
    "x[0, 0, 0]": (lambda x: x[0, 0, 0], [X]),
    "x[..., ...]": (lambda x: x[..., ...], [X]),
    "x[floats]": (lambda x: x[FLOATS], [X]),
    "einsum ij->k": (lambda x: mg.einsum("ij->k", x), [X]),
    "einsum ij->ii": (lambda x: mg.einsum("ij->ii", x), [X]),
    "concat of ones": (lambda x: mg.concat([x, x]), [ONE]),
    "concat(2)": (lambda x: mg.concat([x, x], axis=2), [X]),
    "concat of two widths": (lambda x: mg.concat([x, x[:, :2]]), [X]),
    "x @ one": (mg.matmul, [X, ONE]),
    "x @ x": (mg.matmul, [X, X]),
    "x + y": (lambda x, y: x + y, [X, _x(2, 2)]),
    "tril of a vector": (mg.tril, [_x(3)]),
    "cumsum(1)": (lambda x: mg.cumsum(x, 1), [_x(3)]),
}


def _outcome(f: Callable[..., Any], arrays: list[Any], device: str) -> Any:
    """The kind of error, or dtype, shape and numbers of each result."""
    try:
        with np.errstate(all="ignore"):
            made = f(*[mg.tensor(a, device=device) for a in arrays])
    except Exception as error:
        return type(error)
    return [(str(t.dtype), t.shape, t.numpy().tolist()) for t in (made if isinstance(made, tuple) else (made,))]


@pytest.mark.device
@pytest.mark.filterwarnings("ignore:.*(empty slice|Degrees of freedom):RuntimeWarning")
@pytest.mark.parametrize("call", CALLS)
def test_a_device_refuses_and_answers_as_numpy(call: str):
    """The same kind of error, or the same numbers; an error of ours either way."""
    f, arrays = CALLS[call]
    wanted = _outcome(f, arrays, "numpy")
    np.testing.assert_equal(_outcome(f, arrays, DEVICE), wanted)
    assert isinstance(wanted, list) or issubclass(wanted, mg.MinigradError), wanted
