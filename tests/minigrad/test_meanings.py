"""Calls that mean one thing in PyTorch and another in NumPy or JAX: where the two agree so do we, and where they do not we ask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from compare import close

import minigrad as mg
from minigrad import fused
from minigrad.nn import unfused

A = np.arange(24.0).reshape(2, 3, 4) / 7.0
F = torch.nn.functional


def _x(wanted: bool = True) -> mg.Tensor:
    return mg.tensor(A, requires_grad=wanted)


M = (slice(None), 0)  # a matrix of it
AMBIGUOUS: dict[str, tuple[Any, list[str]]] = {
    # PyTorch and NumPy reverse all axes (PyTorch says that it will not for long); ours exchanged the last two
    "T": (lambda x: x.T, ["x.mT", "x.permute(2, 1, 0)"]),
    "transpose": (lambda x: x.transpose(), ["x.mT", "x.permute(2, 1, 0)"]),
    "mg.transpose": (lambda x: mg.transpose(x), ["x.mT"]),
    "transpose-one": (lambda x: x.transpose(1), ["both"]),
    # PyTorch: the size of each part, or the sizes. NumPy and JAX: the number of parts, or the indices to cut at
    "split-int": (lambda x: mg.split(x, 2), ["sections=2", "sizes=[2, …]"]),
    "x.split-int": (lambda x: x.split(2), ["sections=2", "sizes=[2, …]"]),
    "split-np-int": (lambda x: x.split(np.int64(2)), ["sections=2"]),
    "split-list": (lambda x: mg.split(x, [1, 1]), ["sizes=[1, 1]", "np.split"]),
    "split-tuple": (lambda x: x.split((1, 1), axis=0), ["sizes=(1, 1)"]),
    "split-none": (lambda x: x.split(), ["sections=", "sizes="]),
    "split-both": (lambda x: x.split(sections=2, sizes=[1, 1]), ["sections=", "sizes="]),
    # PyTorch's F.gelu is exact, JAX's jax.nn.gelu is by tanh
    "gelu": (lambda x: mg.gelu(x), ['approximate="tanh"', 'approximate="none"']),
    "gelu-bool": (lambda x: mg.gelu(x, approximate=True), ['approximate="tanh"', 'approximate="none"']),
    "gelu-parts-bool": (lambda x: unfused.gelu(x, approximate=True), ['approximate="tanh"', 'approximate="none"']),
    # neither PyTorch's nor JAX's is causal unless told
    "attention": (lambda x: mg.attention(x, x, x), ["causal=True", "causal=False"]),
    # PyTorch: a sample's variance. NumPy and JAX: the population's
    "var": (lambda x: mg.var(x), ["correction=0", "ddof=1"]),
    "x.var": (lambda x: x.var(axis=0), ["correction=0", "ddof=1"]),
    "var-both": (lambda x: x.var(ddof=1, correction=1), ["correction=0", "ddof=1"]),
    # NumPy takes a row for a diagonal, PyTorch refuses
    "tril-row": (lambda x: mg.tril(x[0, 0]), ["tril", "two axes"]),
    "triu-row": (lambda x: x[0, 0].triu(), ["triu", "two axes"]),
    # PyTorch's functions of these names take other arguments
    "hvp": (lambda x: mg.hvp(lambda x: (x * x).sum(), x, x), ["hvp", "tuple"]),
    "jvp": (lambda x: mg.jvp(lambda x: x * x, x, x), ["jvp", "tuple"]),
    "jacobian": (lambda x: mg.jacobian(lambda x: x * x, x), ["argnums", "mg.grad(f)(x)"]),
    "hessian": (lambda x: mg.hessian(lambda x: (x * x).sum(), x), ["argnums"]),
    "grad": (lambda x: mg.grad(lambda x: (x * x).sum(), x), ["argnums"]),
    "layer_norm": (lambda x: mg.layer_norm(x, (4,)), ["layer_norm"]),
    "layer_norm-int": (lambda x: mg.layer_norm(x, 4, x[0, 0], x[0, 0]), ["weight"]),
    "layer_norm-all": (lambda x: mg.layer_norm(x, (4,), x[0, 0], x[0, 0]), ["layer_norm"]),
    "gather": (lambda x: x.gather(np.zeros((2, 3, 4), int)), ["gather"]),
    "scatter_add": (lambda x: x.scatter_add(1, np.zeros((2, 3, 4), int)), ["scatter_add"]),
    # PyTorch's max of an axis gives the places, too
    "max": (lambda x: mg.max(x, 0), ["axis"]),
    "max-dim": (lambda x: x.max(dim=0), ["axis"]),
    "sum-twice": (lambda x: x.sum(0, axis=1), ["axis"]),
    "sum-too-many": (lambda x: x.sum(0, True, 1), ["Tensor.sum()"]),
    "sum-both": (lambda x: x.sum(dim=0, axis=1), ["dim"]),
    "max-two": (lambda x: mg.max(x, x), ["axis"]),
    "bool": (lambda x: bool(x), ["one element"]),
    "list": (lambda x: mg.tensor([x[0, 0, 0], x[0, 0, 1]]), ["mg.stack"]),
    "nested": (lambda x: mg.tensor([[1.0, x[0, 0, 0]], (2.0, 3.0)]), ["mg.stack"]),
    "parameter": (lambda x: mg.tensor([mg.Parameter(A)]), ["mg.stack"]),
}


@pytest.mark.parametrize("line", [
    "x.sum(0)", "x.sum(1, True)", "x.mean(-1)", "x.sum((0, 2))", "x.sum(dim=0)", "x.mean(dim=1, keepdim=True)", "x.logsumexp(2)",
    "x.clip(-0.5, 0.5)", "x.clip(0.0, None)", "x.tril(1)", "x.triu(-1)", "x.reshape(6, 4)", "x.reshape((6, 4))", "x.permute(2, 0, 1)",
    "x.transpose(0, 2)", "x.prod(1)"])
def test_a_setting_has_a_place_as_in_pytorch(line: str):
    """Where PyTorch and NumPy mean the same by it; methods, and PyTorch's names of settings."""
    a = np.random.default_rng(0).standard_normal((2, 3, 4))
    ours, theirs = eval(line, {"x": mg.tensor(a)}), eval(line, {"x": torch.tensor(a)})
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-13)


@pytest.mark.parametrize("line", [
    "softmax(x, 1)", "log_softmax(x, -1)", "reshape(x, (6, 4))", "broadcast_to(x, (5, 2, 3, 4))", "concat([x, x], 1)", "stack([x, x], 2)",
    "sum(x, 0)", "clip(x, 0, 1)", "tril(x, 1)", "permute(x, (2, 0, 1))", "transpose(x, 0, 1)"])
def test_a_setting_of_a_function_has_a_place(line: str):
    a = np.random.default_rng(0).standard_normal((2, 3, 4))
    ours, theirs = (eval(f"lib.{line}", {"lib": lib, "x": lib.tensor(a)}) for lib in (mg, torch))
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-13)


@pytest.mark.parametrize("call, words", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_what_might_mean_two_things_is_refused(call: Any, words: list[str]):
    """The error is one line and shows what to write for either meaning."""
    with pytest.raises((mg.MinigradError, TypeError, ValueError)) as caught:
        call(_x())
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


MEANT: dict[str, tuple[Any, Any]] = {  # ours, PyTorch's or NumPy's
    "T": (lambda x: x[M].T, lambda x: x[M].T),
    "T-1": (lambda x: x[0, 0].T, lambda x: x[0, 0]),
    "mT": (lambda x: x.mT, lambda x: x.mT),
    "transpose-matrix": (lambda x: x[M].transpose(), lambda x: x[M].T),
    "transpose": (lambda x: x.transpose(0, 2), lambda x: x.transpose(0, 2)),
    "split-sections": (lambda x: mg.split(x, sections=2)[1], lambda x: torch.chunk(x, 2)[1]),
    "split-sizes": (lambda x: mg.split(x, sizes=[1, 2], axis=1)[1], lambda x: torch.split(x, [1, 2], dim=1)[1]),
    "split-axis": (
        lambda x: x.split(sections=2)[0],
        lambda x: torch.tensor_split(x, 2)[0],
    ),  # along the first axis, in both
    "np.split": (lambda x: np.split(x, [1, 3], axis=2)[1], lambda x: torch.tensor_split(x, [1, 3], dim=2)[1]),
    "gelu-none": (lambda x: mg.gelu(x, approximate="none"), F.gelu),
    "gelu-tanh": (lambda x: mg.gelu(x, approximate="tanh"), lambda x: F.gelu(x, approximate="tanh")),
    "nn.GELU": (lambda x: mg.nn.GELU()(x), torch.nn.GELU()),
    "causal": (
        lambda x: mg.attention(x, x, x, causal=True),
        lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    ),
    "not-causal": (lambda x: mg.attention(x, x, x, causal=False), lambda x: F.scaled_dot_product_attention(x, x, x)),
    "var-ddof": (lambda x: x.var(ddof=1), torch.var),
    "var-correction": (lambda x: mg.var(x, axis=1, correction=0), lambda x: x.var(1, correction=0)),
    "var-half": (
        lambda x: mg.var(x, axis=(0, 2), ddof=0.5, keepdims=True),
        lambda x: x.var((0, 2), correction=0.5, keepdim=True),
    ),
    "np.var": (lambda x: np.var(x), lambda x: x.var(correction=0)),  # NumPy's name, NumPy's meaning
    "take": (lambda x: mg.take(x, np.array([[5, 0]])), lambda x: torch.take(x, torch.tensor([[5, 0]]))),
    "take-axis": (lambda x: x.take(np.array([1, 0]), axis=2), lambda x: x.index_select(2, torch.tensor([1, 0]))),
    "stack": (lambda x: mg.stack([x[0, 0, 0], x[0, 0, 1]]), lambda x: torch.stack([x[0, 0, 0], x[0, 0, 1]])),
    "in": (lambda x: x * float(A[0, 0, 1] in x[0, 0]), lambda x: x * float(A[0, 0, 1] in x[0, 0])),
}


@pytest.mark.parametrize("ours, theirs", MEANT.values(), ids=MEANT.keys())
def test_each_meaning_can_be_said(ours: Any, theirs: Any):
    """Said so that it means one thing, a call gives the peer's value and gradient."""
    x, u = _x(), torch.tensor(A, requires_grad=True)
    y, v = ours(x), theirs(u)
    close(y.detach(), v.detach(), terms=200)
    close(mg.gradients((y * y).sum(), [x])[0], torch.autograd.grad((v * v).sum(), u)[0], terms=2000)


def test_variance_is_in_every_derivative_what_was_asked_for():
    """∂²/∂x² of the variance, by either name of the correction."""
    for how in ({"ddof": 1}, {"correction": 1}):
        f = mg.hessian(lambda x, how=how: mg.var(x, **how))
        found = f(mg.tensor(np.array([1.0, 2.0, 4.0])))
        np.testing.assert_allclose(found.numpy(), np.eye(3) - 1 / 3, rtol=1e-14, atol=1e-15)  # 2/(n − 1) (I − 11ᵀ/n)


def test_unfused_asks_as_well():
    """The unfused definitions have no defaults for what the fused ops ask for."""
    for f in (lambda x: fused.attention_unfused(x, x, x), lambda x: fused.gelu_unfused(x)):
        with pytest.raises(TypeError, match=r"causal|approximate"):
            f(_x())


@pytest.mark.parametrize("a, b", [(1.0, 0.0), (1, 0), (1, 0.5), (0.5, 1), (True, False), (True, 1), (False, 0.5)])
@pytest.mark.parametrize("make", [lambda c: c, mg.tensor], ids=["array", "Tensor"])
def test_where_of_two_numbers(make: Any, a: Any, b: Any):
    """Python numbers become float32, int64 or bool, as `tensor` makes them and PyTorch's where does."""
    c = np.array([True, False])
    y = mg.where(make(c), a, b)
    u = torch.where(torch.tensor(c), a, b)
    assert str(u.dtype) == f"torch.{y.dtype}" and y.tolist() == u.tolist()


def test_where_keeps_an_arrays_dtype():
    """Beside an array, a Tensor or a number of NumPy a Python number takes its dtype."""
    c = np.array([True, False])
    for other in (np.ones(2), mg.tensor(np.ones(2)), np.float64(1.0)):
        assert mg.where(c, other, 0.0).dtype == mg.where(c, 0, other).dtype == "float64"
    assert np.where(mg.tensor(c), 1.0, 0.0).dtype == "float64"  # NumPy's name, NumPy's meaning


def test_a_list_of_constants_is_a_tensor():
    """Without gradients a list of Tensors is what it was."""
    x = mg.tensor([1.0, 2.0])
    assert mg.tensor([x[0], x[1]]).tolist() == [1.0, 2.0] and mg.tensor([[x[0], 3.0]]).tolist() == [[1.0, 3.0]]
    w = mg.tensor([1.0], requires_grad=True)
    with mg.no_grad():
        assert mg.tensor([w * 2.0, w * 3.0]).tolist() == [[2.0], [3.0]]
    assert mg.tensor(w).tolist() == [1.0]
