"""What ops do at kinks, ties and the edges of the numbers, and what they refuse. The laws of all ops are in test_laws.py."""
from __future__ import annotations

import inspect
import warnings
from typing import Any

import numpy as np
import pytest
import torch

import minigrad as mg
from minigrad.engine.declaration import REGISTRY

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")      # means of nothing, as NumPy warns of them


# ── conventions at kinks and ties, and numbers at the edge ──
@pytest.mark.parametrize("f, at, slope", [
    (mg.relu, 0.0, 0.0), (mg.abs, 0.0, 0.0), (lambda x: mg.clip(x, min=0.0, max=1.0), 0.0, 1.0),
    (lambda x: mg.clip(x, min=0.0, max=1.0), 1.0, 1.0), (lambda x: mg.maximum(x, 0.0), 0.0, 0.5),
    (lambda x: mg.minimum(x, 0.0), 0.0, 0.5), (lambda x: mg.power(x, 0), 0.0, 0.0), (lambda x: mg.power(x, 1), 0.0, 1.0),
])
def test_the_written_convention_at_kinks(f: Any, at: float, slope: float):
    """relu'(0) = |x|'(0) = 0, clip passes at its bounds, maximum and minimum share at ties, (x⁰)' = 0 at 0."""
    assert mg.grad(f)(mg.tensor(at, dtype="float64")).item() == slope


@pytest.mark.parametrize("f", [mg.relu, lambda x: mg.clip(x, max=0.0), lambda x: mg.where(x < 0.0, x, 0.0),
                               lambda x: mg.where(x > 0.0, 0.0, x), lambda x: mg.maximum(x, 5.0)])
def test_what_is_not_chosen_passes_nothing(f: Any):
    """Where another argument is chosen the gradient is 0, whatever comes: also for a cotangent that is infinite or NaN."""
    x = mg.tensor([-1.0] if f is mg.relu else [1.0], requires_grad=True)
    for g in (np.inf, np.nan):
        assert mg.gradients(f(x), [x], np.array([g], "float32"))[0].tolist() == [0.0]


def test_power_of_zero_has_no_nan_gradient():
    """d(aᵇ)/da is 0 where b = 0, also at a = 0, and d(aᵇ)/db is 0 where a = 0."""
    a, b = mg.tensor([0.0, 0.0, 0.0, 2.0], requires_grad=True), mg.tensor([0.0, 1.0, 2.0, 0.0], requires_grad=True)
    da, db = mg.gradients((a ** b).sum(), [a, b])
    assert da.tolist() == [0.0, 1.0, 0.0, 0.0]
    assert db.tolist() == [0.0, 0.0, 0.0, np.float32(np.log(np.float32(2.0)))]


def test_the_mixed_derivative_of_a_power_with_exponent_zero():
    """∂²(aᵇ)/∂a∂b = a^(b−1)(1 + b ln a), which is 1/a at b = 0."""
    def slope(b: Any) -> Any:
        return mg.grad(lambda a: a ** b)(mg.tensor(4.0, dtype="float64"))

    assert mg.grad(slope)(mg.tensor(0.0, dtype="float64")).item() == 0.25


@pytest.mark.parametrize("f", [mg.max, mg.min])
def test_the_extremes_share_among_ties(f: Any):
    """k equal extremes get 1/k of the gradient each."""
    x = mg.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]], requires_grad=True)
    assert mg.gradients(f(x), [x])[0].tolist() == [[0.125] * 4] * 2
    assert mg.gradients(f(x, axis=1).sum(), [x])[0].tolist() == [[0.25] * 4] * 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_numbers_neither_overflow_nor_give_nan(dtype: str):
    """sigmoid, softmax, log_softmax, logsumexp and cross_entropy are finite, with their gradients, far out."""
    x = mg.tensor([-1e4, 0.0, 1e4], dtype=dtype, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outs = [mg.sigmoid(x), mg.softmax(x), mg.log_softmax(x), mg.logsumexp(x), mg.cross_entropy(x, np.array(0)), mg.tanh(x)]
        for y in outs:
            assert np.isfinite(y.numpy()).all()
            assert np.isfinite(mg.gradients(y, [x], np.ones(y.shape, dtype))[0].numpy()).all()
    assert mg.sigmoid(x).tolist() == [0.0, 0.5, 1.0] and mg.logsumexp(x).item() == 1e4


def test_logsumexp_of_minus_infinities_is_minus_infinity():
    """A slice of −∞ alone has the logarithm of zero; one finite element is itself."""
    x = mg.tensor([[-np.inf, -np.inf], [-np.inf, 3.0]], dtype="float64")
    assert mg.logsumexp(x, axis=1).tolist() == [-np.inf, 3.0]


def test_the_mean_of_nothing_is_nan_and_its_gradient_empty():
    """Over no elements mean and var are NaN, as in NumPy and PyTorch, and their gradients empty; so is 0/0 in var."""
    x = mg.tensor(np.zeros((2, 0)), requires_grad=True)
    for f in (mg.mean, lambda x, axis: mg.var(x, axis=axis, ddof=0)):
        y = f(x, axis=1)
        assert np.isnan(y.numpy()).all() and mg.gradients(y, [x], np.ones(2))[0].shape == (2, 0)
    one = mg.tensor([3.0], requires_grad=True)
    y = mg.var(one, correction=1)
    assert np.isnan(y.item()) and np.isnan(mg.gradients(y, [one])[0].item())


def test_prod_is_right_with_zeros():
    """∂Π/∂x_i is the product of the others, also where one or two elements are zero, in both derivatives."""
    for row in ([2.0, 0.0, 3.0], [0.0, 0.0, 5.0], [2.0, 3.0, 4.0]):
        h = mg.hessian(lambda x: mg.prod(x))(mg.tensor(row, dtype="float64")).tolist()
        expected = torch.autograd.functional.hessian(lambda t: torch.prod(t), torch.tensor(row, dtype=torch.float64))
        assert h == expected.tolist()


# ── refusals: one line with the op and both shapes ──
def _t(*shape: int, dtype: str = "float32") -> mg.Tensor:
    return mg.tensor(np.ones(shape), dtype=dtype)


REFUSED = {
    "add": (lambda: _t(2, 3) + _t(4), ["add", "[2, 3]", "[4]"]),
    "where": (lambda: mg.where(np.ones(3, bool), _t(2), 0.0), ["where", "[3]", "[2]"]),
    "matmul": (lambda: _t(2, 3) @ _t(4, 5), ["matmul", "float32[2, 3]", "float32[4, 5]", "3 ≠ 4"]),
    "matmul-batch": (lambda: _t(2, 3, 3) @ _t(4, 3, 3), ["matmul", "[2, 3, 3]", "[4, 3, 3]"]),
    "matmul-scalar": (lambda: mg.matmul(_t(), _t(2)), ["matmul", "axis"]),
    "matmul-number": (lambda: _t(2) @ 3.0, ["matmul", "axis"]),
    "addmm": (lambda: mg.addmm(_t(5), _t(2, 3), _t(4, 5)), ["[2, 3]", "[4, 5]"]),
    "addmm-bias": (lambda: mg.addmm(_t(6, 5), _t(3, 2, 4), _t(4, 5)), ["addmm", "[6, 5]"]),
    "linear": (lambda: mg.linear(_t(2, 3), _t(5, 4)), ["linear", "[2, 3]", "[5, 4]"]),
    "linear-bias": (lambda: mg.linear(_t(2, 3), _t(5, 3), _t(4)), ["linear", "[4]"]),
    "einsum-ellipsis": (lambda: mg.einsum("...i->i", _t(2, 3)), ["einsum", "not supported"]),
    "einsum-diagonal": (lambda: mg.einsum("ii->i", _t(2, 2)), ["einsum", "twice"]),
    "einsum-count": (lambda: mg.einsum("i,i->i", _t(2)), ["einsum", "2 operands"]),
    "einsum-axes": (lambda: mg.einsum("ij->i", _t(2)), ["einsum", "[2]"]),
    "einsum-sizes": (lambda: mg.einsum("i,i->", _t(2), _t(3)), ["einsum", "[2]", "[3]"]),
    "einsum-one": (lambda: mg.einsum("i,i->", _t(2), _t(1)), ["einsum", "[2]", "[1]"]),
    "reshape": (lambda: _t(2, 3).reshape(4), ["reshape", "[2, 3]", "(4,)"]),
    "transpose": (lambda: _t(2).transpose(0, 1), ["transpose", "[2]"]),
    "permute": (lambda: _t(2, 3).permute(0, 0), ["permute", "[2, 3]"]),
    "broadcast_to": (lambda: mg.broadcast_to(_t(2), shape=(3,)), ["broadcast_to", "[2]", "(3,)"]),
    "concat": (lambda: mg.concat([_t(2, 3), _t(2, 4)], axis=0), ["concat", "[2, 3]", "[2, 4]"]),
    "stack-axis": (lambda: mg.stack([_t(2)], axis=2), ["stack", "2"]),
    "split-equal": (lambda: mg.split(_t(2, 3), sections=2, axis=1), ["split", "[2, 3]"]),
    "split-axis": (lambda: mg.split(_t(2, 3), sections=1, axis=2), ["split", "2"]),
    "stack-nothing": (lambda: mg.stack([]), ["stack", "nothing"]),
    "split-sizes": (lambda: mg.split(_t(5), sizes=[2, 2]), ["split", "[2, 2]", "[5]"]),
    "sum-axis": (lambda: _t(2).sum(axis=1), ["sum", "[2]"]),
    "prod-axis": (lambda: _t(2).prod(axis=1), ["prod", "1"]),
    "take-axis": (lambda: _t(2).take(np.array([0]), axis=1), ["take", "1"]),
    "max-empty": (lambda: _t(0).max(), ["max", "[0]"]),
    "getitem": (lambda: _t(2)[2], ["getitem", "[2]"]),
    "embedding": (lambda: mg.embedding(np.array([0, 7]), _t(5, 2)), ["embedding", "0 … 4", "7"]),
    "embedding-negative": (lambda: mg.embedding(np.array([-1]), _t(5, 2)), ["embedding", "-1"]),
    "embedding-floats": (lambda: mg.embedding(_t(2), _t(5, 2)), ["embedding", "integers", "float32"]),
    "gather": (lambda: mg.gather(_t(2, 3), np.array([[3]]), axis=1), ["gather", "0 … 2", "3"]),
    "gather-shape": (lambda: mg.gather(_t(1, 3), np.zeros((2, 1), int), axis=1), ["gather", "[1, 3]", "[2, 1]"]),
    "scatter_add": (lambda: mg.scatter_add(_t(3), np.array([0, 1]), _t(3), axis=0), ["scatter_add", "[2]", "[3]"]),
    "softmax": (lambda: mg.softmax(_t(2), axis=1), ["softmax", "[2]"]),
    "layer_norm": (lambda: mg.layer_norm(_t(2, 3), _t(4), _t(4)), ["layer_norm", "[2, 3]", "[4]"]),
    "cross_entropy": (lambda: mg.cross_entropy(_t(2, 3), np.array([0])), ["cross_entropy", "[2, 3]", "[1]"]),
    "cross_entropy-id": (lambda: mg.cross_entropy(_t(2, 3), np.array([0, 3])), ["cross_entropy", "0 … 2", "3"]),
    "attention": (lambda: mg.attention(_t(1, 2, 3), _t(1, 2, 4), _t(1, 2, 3), causal=True), ["attention", "[1, 2, 3]", "[1, 2, 4]"]),
    "attention-axes": (lambda: mg.attention(_t(3), _t(3), _t(3), causal=True), ["attention", "[3]"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(name: str):
    """A ShapeError of one line that names the op and the shapes."""
    f, words = REFUSED[name]
    with pytest.raises(mg.ShapeError) as caught:
        f()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 300 and "_op" not in text
    for word in words:
        assert word in text, f"{word!r} is missing in {text!r}"


@pytest.mark.parametrize("f, words", [
    (lambda: _t(2).astype("int64") + 0.5, ["add", "int64[2]", "astype"]),
    (lambda: mg.mean(_t(2).astype("int64")), ["mean", "int64[2]", "astype"]),
    (lambda: mg.exp(_t(2).astype("int64")), ["exp", "int64[2]", "astype"]),
    (lambda: _t(2) * _t(2, dtype="float64"), ["mul", "float32", "float64", "astype"]),
    (lambda: _t(2) @ _t(2, dtype="float64"), ["matmul", "float32", "float64", "astype"]),
    (lambda: -(_t(2) > 0.0), ["neg", "bool[2]"]),
], ids=["int+float", "mean-of-ints", "exp-of-ints", "mixed", "matmul", "minus-bool"])
def test_dtypes_never_mix_silently(f: Any, words: list[str]):
    """A DTypeError of one line that names the op and the dtypes, and says to cast."""
    with pytest.raises(mg.DTypeError) as caught:
        f()
    assert "\n" not in str(caught.value) and "_op" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("f, words", [
    (lambda: _t(2) + "three", ["add", "b", "str"]),
    (lambda: mg.maximum(1.0, 2.0), ["maximum", "minigrad.tensor"]),
    (lambda: mg.exp(_t(2), _t(2)), ["exp", "2 arguments"]),
    (lambda: mg.layer_norm(_t(2)), ["layer_norm", "1 arguments"]),
    (lambda: mg.softmax(_t(2), axes=0), ["softmax", "axes"]),
], ids=["str", "numbers-only", "too-many", "too-few", "unknown-setting"])
def test_wrong_arguments_are_a_type_error(f: Any, words: list[str]):
    """A TypeError of one line that names the op and the argument."""
    with pytest.raises(TypeError) as caught:
        f()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_integers_cast_to_floats_when_asked():
    """astype turns ints and bools into floats; sums and products of ints stay ints."""
    x = mg.tensor([1, 2, 3])
    assert x.astype("float32").dtype == "float32" and (x > 1).astype("float64").dtype == "float64"
    assert mg.sum(x).dtype == "int64" and (x * 2).dtype == "int64" and mg.prod(x).item() == 6
    assert mg.prod(mg.tensor(np.zeros(0, np.int64))).dtype == "int64"


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint64", "bool", "float16"])
def test_results_of_no_axes_are_arrays_in_every_dtype(dtype: str):
    """A reduction to no axes gives a Tensor that the next op takes, whatever the dtype."""
    top = mg.tensor(np.array([0, 1, 1]).astype(dtype)).max()
    assert isinstance(top.numpy(), np.ndarray) and (top == top).item() is True


@pytest.mark.parametrize("name", [name for name, op in REGISTRY.items() if inspect.Parameter.empty in op.settings.values()])
def test_a_setting_that_is_needed_is_named(name: str):
    """It is no default that stands for it: a class in its place, which NumPy takes for a dtype of objects."""
    op, x = REGISTRY[name], mg.Tensor(np.ones((2, 2), np.float32))
    lacks = [key for key, value in op.settings.items() if value is inspect.Parameter.empty]
    with pytest.raises(TypeError, match=f"{op.shown} is called without {' and '.join(lacks)}; it takes"):
        op(*[x] * max(1, op.required))


@pytest.mark.parametrize("dtype", [object, list, "U5", "datetime64[s]", complex])
def test_what_is_no_number_is_no_dtype(dtype: Any):
    with pytest.raises(mg.DTypeError, match="astype: a dtype of numbers is needed, not"):
        mg.tensor([1.0]).astype(dtype)
