"""Every op and composed function under every law, on NumPy and on the fake CuPy, in float64, float32, float16 and bfloat16."""
from __future__ import annotations

import itertools
import types
from typing import Any

import numpy as np
import pytest
from device import DEVICE
from hypothesis import given, settings
from hypothesis import strategies as st
from long import slow_unless

import minigrad as mg
from minigrad.op import REGISTRY, Rule
from minigrad.testing import fake_cupy
from minigrad.testing.domains import DOMAINS, Domain
from minigrad.testing.laws.check import apply
from minigrad.testing.laws.laws import LAWS
from minigrad.testing.laws.subject import NotApplicable

fake_cupy.install()
try:
    mg.backend.get("cupy")
    NO_GPU = ""
except mg.BackendUnavailable as error:
    NO_GPU = str(error)
DEVICES = [DEVICE] if DEVICE != "fake" else ["numpy", "fake", *([] if NO_GPU else ["cupy"])]
# what adds in an order that the processor's kernels choose
SUMS = {"matmul", "matmul_op", "linear", "addmm", "packed_linear", "einsum", "einsum_op", "attention", "linear_cross_entropy",
        "cross_entropy", "layer_norm", "add_layer_norm", "softmax", "log_softmax", "logsumexp", "sum", "mean", "var", "gelu"}
# on the fake CuPy what a GPU computes in; float64 there is what NumPy has, through the same code
PLACES = slow_unless(lambda place: place != ("fake", "float64"), itertools.product(DEVICES, ["float64", "float32"]))
FEW = settings(max_examples=max(5, settings.default.max_examples // 10))


@pytest.mark.device
@pytest.mark.parametrize("device, dtype", PLACES)
@pytest.mark.parametrize("domain", [
    pytest.param(d, id=d.label, marks=[pytest.mark.rounding] if d.subject.name in SUMS else []) for d in DOMAINS])
@FEW
@given(data=st.data())
def test_every_law_holds(domain: Domain, device: str, dtype: str, data: Any):
    """Each law that says something about the op holds; one at least does."""
    _hold(domain, device, dtype, data)


def _hold(domain: Domain, device: str, dtype: str, data: Any) -> None:
    example, asked = data.draw(domain.examples), 0
    for law in LAWS:
        if domain.asks(law):
            try:
                apply(law, domain.subject, example, dtype, device)
                asked += 1
            except NotApplicable:
                pass
            except AssertionError as error:
                raise AssertionError(f"{law}: {error}, on {example!r}") from error
    assert asked


@pytest.mark.device
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("domain", [pytest.param(d, id=d.label) for d in DOMAINS])
@settings(max_examples=2)
@given(data=st.data())
def test_every_law_holds_in_16_bits(domain: Domain, dtype: str, data: Any):
    """With float32's bound, and the roundings of what is stored: laws know of no other   (tolerance.15)."""
    _hold(domain, data.draw(st.sampled_from(DEVICES)), dtype, data)


@pytest.mark.slow
@pytest.mark.device
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("domain", [pytest.param(d, id=d.label) for d in DOMAINS])
@settings(max_examples=100)
@given(data=st.data())
def test_every_law_holds_in_16_bits_on_many_examples(domain: Domain, dtype: str, data: Any):
    """The same, asked longer."""
    for device in DEVICES:
        _hold(domain, device, dtype, data)


def test_the_laws_are_asked_of_a_gpu():
    """Where there is a GPU every law above was asked of it as well."""
    if NO_GPU:
        pytest.skip(f"the laws were not asked of a GPU: {NO_GPU}")
    assert "cupy" in DEVICES


def test_no_op_is_left_out():
    """The table has a line for every op of the registry, with an oracle, and with a smooth domain where the op has a derivative."""
    assert {d.subject.op.name for d in DOMAINS if d.subject.op} == REGISTRY.keys()
    assert {d.subject.name for d in DOMAINS if d.subject.oracle} >= REGISTRY.keys()
    for name, op in REGISTRY.items():
        assert not op.differentiable or max(d.smooth for d in DOMAINS if d.subject.name == name) == 3


def test_no_function_is_left_out():
    """Every public function of tensors is an op, or stands in the table as a composed function."""
    known = {d.subject.name for d in DOMAINS}
    tools = {"tensor", "from_dlpack", "is_grad_enabled", "no_grad", "enable_grad", "checkpoint", "grad", "gradients", "hessian",
             "zeros", "ones", "full", "arange", "linspace", "eye", "rand", "randn", "zeros_like", "ones_like", "full_like",
             "hvp", "jacobian", "jvp", "value_and_grad", "vjp", "get_float32_matmul_precision", "set_float32_matmul_precision"}
    functions = {name for name in mg.__all__ if isinstance(getattr(mg, name), types.FunctionType)}
    assert functions - tools - known == set()


# What a rule keeps from the forward pass: the names in its signature but for the op's settings.
KEPT: dict[str, dict[str, tuple[str, ...]]] = {
    "add": {"a": (), "b": ()}, "sub": {"a": (), "b": ()}, "mul": {"a": ("b",), "b": ("a",)},
    "div": {"a": ("b",), "b": ("b", "out")}, "neg": {"x": ()}, "power": {"a": ("a", "b"), "b": ("a", "b", "out")},
    "exp": {"x": ("out",)}, "log": {"x": ("x",)}, "sqrt": {"x": ("out",)}, "tanh": {"x": ("out",)}, "erf": {"x": ("x",)},
    "expm1": {"x": ("out",)}, "log1p": {"x": ("x",)}, "sin": {"x": ("x",)}, "cos": {"x": ("x",)},
    "sigmoid": {"x": ("out",)}, "relu": {"x": ("out",)}, "abs": {"x": ("x",)}, "sign": {}, "inside": {},
    "equal": {}, "not_equal": {}, "less": {}, "less_equal": {}, "greater": {}, "greater_equal": {},
    "maximum": {"a": ("a", "b"), "b": ("a", "b")}, "minimum": {"a": ("a", "b"), "b": ("a", "b")},
    "where": {"a": ("condition",), "b": ("condition",)}, "clip": {"x": ("x",)}, "astype": {"x": ("x_dtype",)},
    "identity": {"x": ()}, "to_op": {"x": ()}, "reshape": {"x": ("x_shape",)}, "transpose_op": {"x": ()}, "permute": {"x": ()},
    "broadcast_to": {"x": ("x_shape",)}, "sum_to": {"x": ("x_shape",)}, "expand": {"x": ("x_shape",)},
    "concat_op": {"joint": ("xs_shapes",)}, "split_op": {"x": ()}, "split_heads": {"x": ()},
    "join_heads": {"joint": ("xs_shapes",)}, "tril": {"x": ()}, "triu": {"x": ()},
    "getitem": {"x": ("x_shape",)}, "unslice": {"g": ()}, "embedding_op": {"weight": ("ids", "weight_shape")},
    "scatter_rows": {"values": ("ids",)}, "gather": {"x": ("index", "x_shape")}, "scatter_add": {"x": (), "source": ("index",)},
    "pad_op": {"x": ("x_shape",)}, "argsort": {}, "argmax": {}, "argmin": {}, "cumsum_op": {"x": ()}, "norm": {"x": ("x", "out")},
    "sum": {"x": ("x_shape",)}, "mean": {"x": ("x_shape",)}, "var": {"x": ("x",)}, "max": {"x": ("x", "out")},
    "min": {"x": ("x", "out")}, "logsumexp": {"x": ("x", "out")}, "matmul_op": {"a": ("b", "a_shape"), "b": ("a", "b_shape")},
    "addmm": {"bias": ("bias_shape",), "x": ("weight",), "weight": ("x",)},
    "linear": {"x": ("weight",), "weight": ("x",), "bias": ("bias_shape",)}, "einsum_op": {"joint": ("xs",)},
    "packed_linear": {"x": ("panels",), "panels": ("x", "panels_shape"), "bias": ("bias_shape",)},
    "softmax": {"x": ("out",)}, "log_softmax": {"x": ("out",)}, "gelu": {"joint": ("x", "bias")}, "dropout_op": {"x": ()},
    "layer_norm": {"joint": ("x", "weight", "mean_", "rstd")}, "cross_entropy": {"logits": ("logits", "targets", "lse", "scale")},
    "linear_cross_entropy": {"x": ("dx", "boost"), "weight": ("dweight", "boost")},
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
