"""What a backend's kernels may answer, and whose memory a gradient is: written over, given away, or added into."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compare import close
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from minigrad import backend
from minigrad.backend.base import Saved
from minigrad.op import Op

pytestmark = pytest.mark.rounding


def _leaf(x: Any) -> mg.Tensor:
    return mg.Tensor(np.asarray(x, np.float64)).requires_grad_()


def _op(kernel: Any, name: str = "probe", **how: Any) -> Op:
    kernel.__name__ = name
    rules = {k: f for k, f in how.items() if k not in ("joint", "check", "definition")}
    return Op(kernel, rules, **{k: f for k, f in how.items() if k not in rules})


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The NumPy backend's kernels, to add to for a test."""
    mine = dict(backend.cpu.kernels)
    monkeypatch.setattr(backend.cpu, "kernels", mine)
    return mine


# ── what a kernel may answer ──
def test_a_kernel_that_declines_leaves_the_case_to_the_op(kernels: dict[str, Any]):
    """NotImplemented from a kernel, a rule, or one that adds into a sum: the op's own text is run; another answer is taken."""
    probe = _op(lambda xp, x: x * 2.0, x=lambda g: g * 2.0)
    for answer, value, slope in ((NotImplemented, 6.0, 2.0), (np.array([7.0]), 7.0, 7.0)):
        kernels.update({"probe": lambda xp, x, a=answer: a, "probe/x": lambda g, a=answer: a, "probe/x+": lambda sum, g: NotImplemented})
        x = _leaf([3.0])
        early = probe(x)
        y = early + x * 10.0                            # the newer product is sent first: there is a sum of our own to add into
        assert early.numpy().tolist() == [value]
        y.sum().backward()
        assert x.grad is not None and x.grad.tolist() == [slope + 10.0]


def test_run_asks_the_kernel_first(kernels: dict[str, Any]):
    """Backend.run: the kernel of that name, else the plain function, with the backend in front."""
    kernels["made"] = lambda xp, a, *, b: NotImplemented if b else ("kernel", xp, a)
    plain = lambda xp, a, *, b: ("plain", xp, a)        # noqa: E731
    assert backend.cpu.run("made", plain, 1, b=0) == ("kernel", backend.cpu, 1)
    assert backend.cpu.run("made", plain, 1, b=1) == ("plain", backend.cpu, 1) == backend.cpu.run("other", plain, 1, b=0)


def test_arguments_are_checked_before_any_kernel(kernels: dict[str, Any]):
    """An op's check sees the arrays and the settings, and what it raises comes out whichever kernel there is."""
    ran: list[str] = []

    def check(x: Any, *, n: int) -> None:
        if len(x) != n:
            raise mg.ShapeError(f"probe: {len(x)} is not {n}")

    def probe(xp, x, *, n=2):
        ran.append("own")
        return x * 1.0

    made = _op(probe, check=check, x=lambda g: g)
    for fast in (False, True):
        if fast:
            kernels["probe"] = lambda xp, x, *, n: ran.append("fast") or x * 1.0
        made(np.ones(3), n=3)
        with pytest.raises(mg.ShapeError, match="3 is not 2"):
            made(np.ones(3))
    assert ran == ["own", "fast"]


def test_a_kernel_that_asks_is_told_which_gradients_are_wanted():
    """`wants`: one for each argument, true where its gradient is recorded; it is no setting of the op."""
    seen: list[Any] = []

    def probe(xp, a, b, *, s=1.0, wants=()):
        seen.append(wants)
        return a * b * s

    made = _op(probe, a=lambda g, b, s: g * b * s, b=lambda g, a, s: g * a * s)
    a, b = _leaf([1.0]), mg.Tensor(np.ones(1))
    made(a, b), made(b, a, s=2.0), made(a, a), made(b, b)
    with mg.no_grad():
        made(a, a)
    assert seen == [(True, False), (False, True), (True, True), (False, False), (False, False)]
    with pytest.raises(TypeError, match="wants"):
        made(a, b, wants=(True, True))


# ── whose memory ──
def test_a_view_is_never_written_over():
    """What a rule returns as a view of something stays as it is when more is added to it."""
    held = np.array([2.0, 3.0])
    probe = _op(lambda xp, x: x * 1.0, x=lambda g: held[:])
    x = _leaf([1.0, 1.0])
    early = x * 5.0
    (early + probe(x)).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [7.0, 8.0] and held.tolist() == [2.0, 3.0]


def _byproduct(rules: Any, made: list[Any]) -> Op:
    """Keeps an array of twos beside x·2, or a·b, and remembers it."""
    def probe(xp, *xs: Any) -> Any:
        made.append(np.full_like(xs[0], 2.0))
        return Saved(xs[0] * 2.0, d=made[-1])

    def one(xp, a):
        return probe(xp, a)

    def two(xp, a, b):
        return probe(xp, a, b)

    return _op(one if len(rules) == 1 and "joint" not in rules else two, **rules)


def test_a_byproduct_that_dies_is_given_away():
    """A rule that returns what its kernel made for it alone gives the memory away, unless the graph is kept."""
    made: list[Any] = []
    probe = _byproduct({"a": lambda g, d: d}, made)
    x = _leaf([1.0, 1.0])
    probe(x).sum().backward()
    assert x.grad is not None and x.grad.array is made[0]
    y = (x * 5.0 + probe(x)).sum()
    for _ in range(2):
        x.grad = None
        y.backward(retain_graph=True)
        assert x.grad.tolist() == [7.0, 7.0] and made[1].tolist() == [2.0, 2.0]


@pytest.mark.parametrize("rules", [
    {"a": lambda g, d: d, "b": lambda g, d: d},
    {"joint": lambda g, d: (d, d)},
], ids=["two rules", "a joint rule"])
def test_a_byproduct_for_two_is_given_to_neither(rules: Any):
    """Two gradients never share memory, though one array was made for both."""
    probe = _byproduct(rules, [])
    a, b = _leaf([1.0, 1.0]), _leaf([1.0, 1.0])
    probe(a, b).sum().backward()
    assert a.grad is not None and b.grad is not None and not np.shares_memory(a.grad.array, b.grad.array)
    assert a.grad.tolist() == b.grad.tolist() == [2.0, 2.0]


def test_a_kernel_adds_into_a_sum_that_is_ours(kernels: dict[str, Any]):
    """"op/argument+" is called where there is a sum that nobody else holds, and then the rule is not; else the rule is."""
    called: list[str] = []

    def into(sum: Any, g: Any) -> None:
        called.append("into")
        sum += 2.0 * g

    def rule(g: Any) -> Any:
        called.append("rule")
        return g * 2.0

    kernels["probe/x+"] = into
    probe = _op(lambda xp, x: x * 2.0, x=rule)
    for f, graph, slope, calls in (
        (lambda x: probe(x) + x * 10.0, False, 12.0, ["into"]),
        (lambda x: x * 10.0 + probe(x), False, 12.0, ["rule"]),        # sent first: there is no sum yet
        (lambda x: probe(x) + x, False, 3.0, ["rule"]),                # the sum is the cotangent of +, which others hold
        (lambda x: probe(x) + x * 10.0, True, 12.0, ["rule"]),         # the sum is a Tensor of a graph
    ):
        x = _leaf([3.0])
        called.clear()
        f(x).sum().backward(create_graph=graph)
        assert x.grad is not None and x.grad.tolist() == [slope] and called == calls


@given(st.integers(1, 6), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_rows_are_added_into_a_tables_gradient(rows: int, n: int, seed: int):
    """A table that is used as a matrix too: its gradient is the product's with the rows added, as without the kernel that adds them."""
    rng = np.random.default_rng(seed)
    ids, w, c = rng.integers(0, rows, (n,)), rng.standard_normal((rows, 3)), rng.standard_normal((rows, 3))
    u, grads = rng.standard_normal((n, 3)), []
    for names in (("embedding_op/weight+",), ()):
        was = dict(backend.cpu.kernels)
        try:
            backend.cpu.kernels = {k: f for k, f in was.items() if not k.endswith("+") or k in names}
            t = _leaf(w)
            ((mg.embedding(ids, t) * u).sum() + (t * c).sum()).backward()
        finally:
            backend.cpu.kernels = was
        grads.append(t.grad)
    close(grads[0], grads[1], terms=2 * n + 2, scale=float(np.abs(u).sum() + np.abs(c).max()))


def test_every_kernel_that_adds_is_tested():
    """The kernels that add into a sum are those above."""
    assert {k for k in backend.cpu.kernels if k.endswith("+")} == {"embedding_op/weight+"}
