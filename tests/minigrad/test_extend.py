"""An op in one file outside the package: its kernel, its rule, faster ones, and every law."""
from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import minigrad as mg
from minigrad import backend
from minigrad.extend import elementwise, faster, op
from minigrad.op import REGISTRY
from minigrad.testing import LawsBroken, arrays, check


def _silu_dx(g: Any, x: Any) -> Any:
    s = mg.sigmoid(x)
    return g * (s * (1.0 + x * (1.0 - s)))


@pytest.fixture
def silu() -> Any:
    """An op that is there for one test."""
    kernels = dict(backend.cpu.kernels)

    @elementwise(x=_silu_dx)
    def silu_of_a_test(xp, x):
        """x·σ(x)."""
        return x / (1.0 + xp.exp(-x))

    yield silu_of_a_test
    REGISTRY.pop("silu_of_a_test", None)
    backend.cpu.kernels.clear()
    backend.cpu.kernels.update(kernels)


def _held(f: Any) -> Any:
    return check(f, arrays(), oracle=lambda x: x / (1.0 + np.exp(-x)), definition=lambda x: x * mg.sigmoid(x), examples=10)


def test_it_gets_every_law(silu: Any):
    """On NumPy and on the fake GPU."""
    assert {v.device for v in _held(silu).verdicts} == {"numpy", "fake"}


@pytest.mark.parametrize("slope", [1.0, 1.01])
def test_faster_kernels_are_run_and_judged(silu: Any, slope: float):
    """Of the op, of its rule, and one that adds to a sum; a wrong one breaks a law."""
    run = []

    @faster(silu)
    def value(xp: Any, x: Any) -> Any:
        run.append("value")
        return x / (1.0 + np.exp(-x))

    @faster("silu_of_a_test", "x")
    def slope_of_it(g: Any, x: Any) -> Any:
        run.append("slope")
        return NotImplemented if x.size == 7 else g * slope * _silu_dx(np.ones_like(g), x)

    @faster(silu, "x", into_sum=True)
    def added(total: Any, g: Any, x: Any) -> Any:
        run.append("added")
        total += g * _silu_dx(np.ones_like(g), x)

    if slope == 1.0:
        assert _held(silu).ok
        x = mg.tensor([1.0, 2.0], requires_grad=True)
        mg.sum(silu(x) + x * x).backward()          # x * x is newer, so its share comes first
        assert set(run) == {"value", "slope", "added"}
    else:
        with pytest.raises(LawsBroken):
            _held(silu)


def test_a_kernel_that_writes_np_for_xp_fails():
    """Its arrays are NumPy's on the CPU alone."""
    @elementwise(x=_silu_dx)
    def by_numpy_of_a_test(xp, x):
        return x / (1.0 + np.exp(-x))

    try:
        with pytest.raises(LawsBroken, match="calls a function of NumPy on an array of another library"):
            _held(by_numpy_of_a_test)
    finally:
        REGISTRY.pop("by_numpy_of_a_test")


def test_a_kernel_of_cupy_waits_for_it(silu: Any, monkeypatch: pytest.MonkeyPatch):
    """It is kept until CuPy is loaded; then it is the one that the backend asks."""
    from minigrad import extend

    monkeypatch.setattr(extend, "KERNELS", {})

    @faster(silu, "x", on="cupy")
    def slope(g: Any, x: Any) -> Any:
        return g * x

    assert extend.KERNELS["silu_of_a_test/x"](None, 2.0, 3.0) == 6.0 and "silu_of_a_test/x" not in backend.cpu.kernels


@pytest.mark.parametrize(("call", "said"), [
    (lambda: faster("slu"), "no op called 'slu'"), (lambda: faster(mg.tanh, "y"), "tanh has no rule 'y'; it has x"),
    (lambda: faster(mg.tanh, on="metal"), "no backend 'metal'"), (lambda: faster(mg.tanh, into_sum=True), "name the rule")])
def test_what_is_not_there_is_refused(call: Any, said: str):
    """With what there is."""
    with pytest.raises(ValueError, match=said):
        call()


def test_an_op_that_is_declared_again_replaces_the_first():
    """In the same module, as in a cell that is run again; a name of another module is refused."""
    def declared(factor: float) -> Any:
        @op(x=lambda g: g * factor)
        def again_of_a_test(xp, x):
            return x * factor

        return again_of_a_test

    try:
        declared(2.0)
        assert declared(3.0)(mg.tensor(1.0)).item() == 3.0 and REGISTRY["again_of_a_test"](mg.tensor(1.0)).item() == 3.0
    finally:
        REGISTRY.pop("again_of_a_test")
    with pytest.raises(ValueError, match=r"'tanh' exists already, in minigrad\.ops\.elementwise"):
        elementwise(x=lambda g: g)(_tanh())


def _tanh() -> Any:
    def tanh(xp: Any, x: Any) -> Any:
        return x

    return tanh


def test_the_text_of_an_op_can_be_read():
    """`inspect.getsource`, and so `mg.softmax??`, shows the kernel with its rule."""
    text = inspect.getsource(mg.softmax)
    assert "def softmax(xp, x" in text and text.startswith("@fused(softmax_unfused")
    assert "lambda g" in inspect.getsource(mg.tanh)
