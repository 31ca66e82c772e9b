"""Every op and composed function against PyTorch in float64, and what the engine promises about each of them."""
from __future__ import annotations

import types
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_cases import CASES, COMPOSED, LAYOUTS, Case, close, layout

import minigrad as mg
from minigrad.op import REGISTRY, Rule

EVERY = [pytest.param(c, id=c.label) for c in [*CASES, *COMPOSED]]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")      # means of nothing, as NumPy warns of them


def test_no_op_is_left_out():
    """The table has a case for every op of the registry, and names none that does not exist."""
    assert {c.name for c in CASES} == REGISTRY.keys()


def test_no_function_is_left_out():
    """Every public function of tensors is an op, or stands in the table of composed functions."""
    known = {c.name for c in COMPOSED} | REGISTRY.keys()
    tools = {"tensor", "from_dlpack", "is_grad_enabled", "no_grad", "enable_grad", "checkpoint", "grad", "gradients", "hessian",
             "hvp", "jacobian", "jvp", "value_and_grad", "vjp"}
    functions = {name for name in mg.__all__ if isinstance(getattr(mg, name), types.FunctionType)}
    assert functions - tools - known == set()


def _torch(x: Any, grad: bool = True) -> Any:
    return torch.tensor(np.array(x)).requires_grad_(grad)


def _leaf(x: Any) -> mg.Tensor:
    return mg.Tensor(x).requires_grad_()                # not mg.tensor: it would copy the strides away


def _grads_torch(y: Any, xs: Any, g: Any = None, create_graph: bool = False) -> Any:
    if not y.requires_grad:                             # a derivative that is constant
        return [torch.zeros_like(x) for x in xs]
    grads = torch.autograd.grad(y, xs, g, create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(x) if d is None else d for x, d in zip(xs, grads)]


def _weighted(grads: Any, weights: Any) -> Any:
    return sum((mg.sum(g * mg.Tensor(w)) for g, w in zip(grads, weights)), start=mg.tensor(0.0, dtype="float64"))


@pytest.mark.parametrize("case", EVERY)
@given(data=st.data())
def test_value_and_derivatives_are_pytorchs(case: Case, data: Any):
    """Value, VJP and the VJP of the VJP (in inputs and cotangent) are PyTorch's; nothing that was given is written to."""
    drawn = data.draw(case.inputs)
    arrays, static, rng = drawn.arrays, drawn.static, drawn.rng
    before = [a.copy() for a in arrays]
    xs, ts = [_leaf(a) for a in arrays], [_torch(a) for a in arrays]
    y, t = case.ours(*xs, **static), case.theirs(*ts, **static)
    close(y, t, terms=case.terms, what="value")
    assert y.requires_grad == t.requires_grad
    if not t.requires_grad:
        return

    g = layout(rng.standard_normal(y.shape).astype(y.dtype), data.draw(LAYOUTS))
    g = np.asarray(g, y.dtype)
    weights = [rng.standard_normal(a.shape) for a in arrays]
    kept = g.copy()
    seed, tseed = _leaf(g), _torch(g)
    slopes = _grads_torch(t, ts, tseed, create_graph=True)
    scale = max([1.0, *(float(s.detach().abs().max()) for s in slopes if s.numel())])
    plain = mg.gradients(y, xs, mg.Tensor(g), retain_graph=True)
    live = mg.gradients(y, xs, seed, create_graph=True)
    for i, slope in enumerate(slopes):
        close(plain[i], slope, terms=case.terms, what=f"gradient {i}")
        close(live[i], slope, terms=case.terms, what=f"gradient {i}, to be differentiated")

    total = sum((s * torch.from_numpy(w)).sum() for s, w in zip(slopes, weights))
    curves = _grads_torch(total, [*ts, tseed])
    ours = mg.gradients(_weighted(live, weights), [*xs, seed])
    for i, curve in enumerate(curves):
        close(ours[i], curve, terms=case.terms, scale=scale, what=f"second derivative {i}")
    for a, b in zip([*arrays, g], [*before, kept]):
        np.testing.assert_array_equal(a, b, err_msg="an input or a cotangent was written to")


@pytest.mark.parametrize("case", EVERY)
@given(data=st.data())
def test_float32_stays_float32(case: Case, data: Any):
    """float32 in gives float32 out and float32 gradients, equal to the float64 run up to float32's rounding."""
    drawn = data.draw(case.inputs)
    arrays = [a.astype(np.float32) for a in drawn.arrays]
    xs, exact = [_leaf(a) for a in arrays], [_leaf(a.astype(np.float64)) for a in arrays]
    y, z = case.ours(*xs, **drawn.static), case.ours(*exact, **drawn.static)
    assert y.dtype == (drawn.static["to"] if case.name == "astype" else np.float32 if z.dtype == np.float64 else z.dtype)
    close(y, z.numpy().astype(y.dtype), terms=case.terms, what="value")
    if not y.requires_grad:
        return
    g = drawn.rng.standard_normal(y.shape).astype(y.dtype)
    scale = max(1.0, float(np.abs(z.numpy()).max(initial=0.0)))
    for ours, truth in zip(mg.gradients(y, xs, g), mg.gradients(z, exact, g.astype(z.dtype))):
        close(ours, truth.numpy().astype(np.float32), terms=case.terms, scale=scale, what="gradient")


@pytest.mark.parametrize("case", EVERY)
@given(data=st.data())
def test_a_gradient_does_not_depend_on_which_others_are_wanted(case: Case, data: Any):
    """Each argument's gradient is the same when the others are constants; bare arrays give the bare value."""
    drawn = data.draw(case.inputs)
    xs = [_leaf(a) for a in drawn.arrays]
    y = case.ours(*xs, **drawn.static)
    if not y.requires_grad:
        return
    g = drawn.rng.standard_normal(y.shape).astype(y.dtype)
    together = mg.gradients(y, xs, g)
    for i, a in enumerate(drawn.arrays):
        alone = [mg.Tensor(b) for b in drawn.arrays]
        alone[i].requires_grad_()
        z = case.ours(*alone, **drawn.static)
        if z.requires_grad:
            close(mg.gradients(z, [alone[i]], g)[0], together[i].numpy(), terms=case.terms, what=f"argument {i} alone")
        assert a.shape == together[i].shape


@pytest.mark.parametrize("case", [pytest.param(c, id=c.label) for c in CASES])
@given(data=st.data())
def test_bare_arrays_give_bare_arrays(case: Case, data: Any):
    """An op on arrays computes the very value that it computes on Tensors, and wraps nothing."""
    if case.name in ("split_op", "unslice", "scatter_add", "not_", "sum_to", "broadcast_to"):
        return                                          # their cases are written with Tensor's methods
    drawn = data.draw(case.inputs)
    bare = case.ours(*drawn.arrays, **drawn.static)
    assert isinstance(bare, np.ndarray)
    np.testing.assert_array_equal(bare, case.ours(*[mg.Tensor(a) for a in drawn.arrays], **drawn.static).numpy())


# What a rule keeps from the forward pass: the names in its signature but for the op's settings.
KEPT: dict[str, dict[str, tuple[str, ...]]] = {
    "add": {"a": (), "b": ()}, "sub": {"a": (), "b": ()}, "mul": {"a": ("b",), "b": ("a",)},
    "div": {"a": ("b",), "b": ("b", "out")}, "neg": {"x": ()}, "power": {"a": ("a", "b"), "b": ("a", "out")},
    "exp": {"x": ("out",)}, "log": {"x": ("x",)}, "sqrt": {"x": ("out",)}, "tanh": {"x": ("out",)}, "erf": {"x": ("x",)},
    "sigmoid": {"x": ("out",)}, "relu": {"x": ("out",)}, "abs": {"x": ("x",)}, "sign": {}, "inside": {}, "not_": {},
    "equal": {}, "not_equal": {}, "less": {}, "less_equal": {}, "greater": {}, "greater_equal": {},
    "maximum": {"a": ("a", "b"), "b": ("a", "b")}, "minimum": {"a": ("a", "b"), "b": ("a", "b")},
    "where": {"a": ("condition",), "b": ("condition",)}, "clip": {"x": ("x",)}, "astype": {"x": ("x_dtype",)},
    "identity": {"x": ()}, "to_op": {"x": ()}, "reshape": {"x": ("x_shape",)}, "transpose": {"x": ()}, "permute": {"x": ()},
    "broadcast_to": {"x": ("x_shape",)}, "sum_to": {"x": ("x_shape",)}, "expand": {"x": ("x_shape",)},
    "concat_op": {"joint": ("xs_shapes",)}, "split_op": {"x": ()}, "tril": {"x": ()}, "triu": {"x": ()},
    "getitem": {"x": ("x_shape",)}, "unslice": {"g": ()}, "embedding_op": {"weight": ("ids", "weight_shape")},
    "scatter_rows": {"values": ("ids",)}, "gather": {"x": ("index", "x_shape")}, "scatter_add": {"x": (), "source": ("index",)},
    "sum": {"x": ("x_shape",)}, "mean": {"x": ("x_shape",)}, "var": {"x": ("x",)}, "max": {"x": ("x", "out")},
    "min": {"x": ("x", "out")}, "logsumexp": {"x": ("x", "out")}, "matmul_op": {"a": ("b", "a_shape"), "b": ("a", "b_shape")},
    "addmm": {"bias": ("bias_shape",), "x": ("weight",), "weight": ("x",)},
    "linear": {"x": ("weight",), "weight": ("x",), "bias": ("bias_shape",)}, "einsum_op": {"joint": ("xs",)},
    "softmax": {"x": ("out",)}, "log_softmax": {"x": ("out",)}, "gelu": {"x": ("x",)}, "dropout_op": {"x": ()},
    "layer_norm": {"joint": ("x", "weight", "mean_", "rstd")}, "cross_entropy": {"logits": ("logits", "targets", "lse", "scale")},
    "attention": {"joint": ("q", "k", "v", "mask", "out", "lse")},
}


def test_each_op_keeps_what_the_table_says():
    """The residuals of every rule are these and no others."""
    def kept(name: str, rule: Rule) -> tuple[str, ...]:
        return tuple(n for n in rule.needs if n not in REGISTRY[name].settings)

    found = {name: {**{a: kept(name, r) for a, r in o.rules.items()}, **({"joint": kept(name, o.joint)} if o.joint else {})}
             for name, o in REGISTRY.items()}
    assert found == KEPT


@pytest.mark.parametrize("wanted, kept", [("a", "b"), ("b", "a")])
def test_what_no_wanted_gradient_needs_is_not_kept(wanted: str, kept: str):
    """mul keeps b for ∂a and a for ∂b, each only when that gradient is wanted."""
    arrays = {"a": np.ones(3), "b": np.ones(3)}
    tensors = {n: mg.Tensor(a) for n, a in arrays.items()}
    tensors[wanted].requires_grad_()
    y = tensors["a"] * tensors["b"]
    assert len(y.node.saved) == 1 and y.node.saved[0] is arrays[kept]


# ── conventions at kinks and ties, and numbers at the edge ──
@pytest.mark.parametrize("f, at, slope", [
    (mg.relu, 0.0, 0.0), (mg.abs, 0.0, 0.0), (lambda x: mg.clip(x, min=0.0, max=1.0), 0.0, 1.0),
    (lambda x: mg.clip(x, min=0.0, max=1.0), 1.0, 1.0), (lambda x: mg.maximum(x, 0.0), 0.0, 0.5),
    (lambda x: mg.minimum(x, 0.0), 0.0, 0.5), (lambda x: mg.power(x, 0), 0.0, 0.0), (lambda x: mg.power(x, 1), 0.0, 1.0),
])
def test_the_written_convention_at_kinks(f: Any, at: float, slope: float):
    """relu'(0) = |x|'(0) = 0, clip passes at its bounds, maximum and minimum share at ties, (x⁰)' = 0 at 0."""
    assert mg.grad(f)(mg.tensor(at, dtype="float64")).item() == slope


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
    for f in (mg.mean, mg.var):
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
    "split-equal": (lambda: mg.split(_t(2, 3), 2), ["split", "[2, 3]"]),
    "split-axis": (lambda: mg.split(_t(2, 3), 1, axis=2), ["split", "2"]),
    "stack-nothing": (lambda: mg.stack([]), ["stack", "nothing"]),
    "split-sizes": (lambda: mg.split(_t(5), [2, 2]), ["split", "[2, 2]", "[5]"]),
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
    "attention": (lambda: mg.attention(_t(1, 2, 3), _t(1, 2, 4), _t(1, 2, 3)), ["attention", "[1, 2, 3]", "[1, 2, 4]"]),
    "attention-axes": (lambda: mg.attention(_t(3), _t(3), _t(3)), ["attention", "[3]"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(name: str):
    """A ShapeError of one line that names the op and the shapes."""
    f, words = REFUSED[name]
    with pytest.raises(mg.ShapeError) as caught:
        f()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 300
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
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("f, words", [
    (lambda: _t(2) + "three", ["add", "b", "str"]),
    (lambda: mg.maximum(1.0, 2.0), ["maximum", "minigrad.tensor"]),
    (lambda: mg.exp(_t(2), _t(2)), ["exp", "2 arguments"]),
    (lambda: mg.layer_norm(_t(2)), ["layer_norm", "1 arguments"]),
    (lambda: mg.softmax(_t(2), dim=0), ["softmax", "dim"]),
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
