"""What a backend's kernels may answer, and whose memory a gradient is: written over, given away, or added into."""
from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from compare import close
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from minigrad import backend
from minigrad.backend.base import Saved
from minigrad.engine.fast import FastOp as Op
from minigrad.engine.fast import explicit
from minigrad.testing import fake_cupy

pytestmark = pytest.mark.rounding
fast_alone = pytest.mark.skipif("pullback" not in vars(Op), reason="the engine's definition gives no memory away")


def _leaf(x: Any) -> mg.Tensor:
    return mg.Tensor(np.asarray(x, np.float64)).requires_grad_()


def _op(kernel: Any, name: str = "probe", **how: Any) -> Op:
    kernel.__name__ = name
    rules = {k: f for k, f in how.items() if k not in ("joint", "check", "definition", "widens")}
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


def test_two_libraries_are_refused_before_any_kernel():
    """Whether or not the kernel would look at the second array."""
    fake_cupy.install()
    here, there = mg.tensor([1.0]), mg.tensor([1.0], device="fake")
    probe = _op(lambda xp, a, b: a * 1.0, a=lambda g: g, b=lambda g: g)
    for a, b in ((here, there), (there, here)):
        with pytest.raises(mg.DeviceError, match="probe: a is on"):
            probe(a, b)


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


def test_a_joint_rule_that_asks_is_told_which_gradients_are_wanted():
    """`wants`, one for each argument; it need not compute the others."""
    seen: list[Any] = []

    def rule(g: Any, wants: Any) -> Any:
        seen.append(wants)
        return g * 1.0, g * 1.0

    made = _op(lambda xp, a, b: a + b, joint=rule)
    a, b = _leaf([1.0]), mg.Tensor(np.ones(1))
    for y in (made(a, b), made(b, a), made(a, a)):
        y.sum().backward()
    assert seen == [(True, False), (False, True), (True, True)]


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


@fast_alone
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
    x.register_post_accumulate_grad_hook(lambda x: None)
    x.grad = None
    probe(x).sum().backward()
    assert x.grad.array is made[2]


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


@fast_alone
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


@pytest.fixture(params=["numpy", "fake"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """NumPy's backend and one with devices, to whose kernels a test may add."""
    fake_cupy.install()
    here = backend.get(request.param).backend
    monkeypatch.setattr(here, "kernels", {**here.kernels})
    return request.param


def _there(device: str, x: Any, dtype: str = "float64") -> mg.Tensor:
    return mg.tensor(x, dtype=dtype, device=device, requires_grad=True)


@fast_alone
@pytest.mark.parametrize("declines", [False, True])
@pytest.mark.parametrize("widens", [False, True])
def test_a_kernel_of_a_rule_is_given_arrays(device: str, widens: bool, declines: bool):
    """Neither Tensors nor the cotangents of several outputs; what it declines, one that adds as well, is left to the rule."""
    called: list[str] = []

    def into(sum: Any, g: Any) -> Any:
        called.append("into")
        if declines:
            return NotImplemented
        sum += 2.0 * g
        return None

    def faster(g: Any) -> Any:
        called.append("faster")
        return NotImplemented if declines else 2.0 * g

    backend.get(device).backend.kernels.update({"probe/x+": into, "probe/x": faster})
    one = _op(lambda xp, x: x * 2.0, widens=widens, x=lambda g: g * 2.0)
    two = _op(lambda xp, x: (x * 2.0, x * 3.0), widens=widens, x=lambda g: g[0] * 2.0 + g[1] * 3.0)
    for f, live, slope, calls in (
        (lambda x: one(x) + x * 10.0, False, 12.0, ["into", "faster"] if declines else ["into"]),
        (lambda x: one(x) + x, False, 3.0, ["faster"]),                # the sum is the cotangent of +, which others hold
        (lambda x: one(x) + x * 10.0, True, 12.0, []),
        (lambda x: two(x)[0] + x * 10.0, False, 12.0, []),
        (lambda x: two(x)[0] + x * 10.0, True, 12.0, []),
    ):
        x = _there(device, [3.0])
        called.clear()
        f(x).sum().backward(create_graph=live)
        assert x.grad is not None and x.grad.tolist() == [slope] and called == calls


@fast_alone
@pytest.mark.parametrize("declines", [False, True])
def test_a_joint_kernel_makes_the_first_arguments_new_sum(device: str, declines: bool):
    """"op/joint+" is given the first argument's sum, whoever holds it; its first gradient is the new sum, which is ours."""
    made: list[Any] = []

    def into(sum: Any, g: Any) -> Any:
        made.append(sum + 2.0 * g)
        return NotImplemented if declines else (made[-1], 3.0 * g)

    backend.get(device).backend.kernels["probe/joint+"] = into
    probe = _op(lambda xp, a, b: a * 2.0 + b * 3.0, joint=lambda g: (g * 2.0, g * 3.0))
    one = _there(device, [1.0]).detach()
    for f, slopes, asked in (
        (lambda a, b: probe(a, b) + a + b, [3.0, 4.0], 1),              # the sums of a and b are one array
        (lambda a, b: a * 5.0 + (probe(a, b) + a), [8.0, 3.0], 1),
        (lambda a, b: probe(a, b) + b, [2.0, 4.0], 0),                  # of a there is no sum yet
        (lambda a, b: probe(a, one) + a + b, [3.0, 1.0], 1),
        (lambda a, b: probe(one, b) + a + b, [1.0, 4.0], 0),
    ):
        for live in (False, True):
            a, b = _there(device, [1.0]), _there(device, [1.0])
            made.clear()
            f(a, b).sum().backward(create_graph=live)
            assert a.grad is not None and b.grad is not None and [a.grad.item(), b.grad.item()] == slopes
            assert len(made) == (0 if live else asked)
    early = a * 5.0
    a.grad = None
    (early + (probe(a, one) + a)).sum().backward()
    assert a.grad.item() == 8.0 and (declines or a.grad.array is made[-1])


@fast_alone
def test_a_joint_kernel_that_adds_is_given_16_bits_where_kernels_take_them(device: str):
    """Else the cotangent and the residuals in float32. A sum of two shares is in float32, and no kernel adds to that."""
    seen: list[Any] = []

    def into(sum: Any, g: Any, a: Any) -> Any:
        seen.append((g.dtype, a.dtype))
        return (sum + 2.0 * g * a).astype("float16"),

    here = backend.get(device).backend
    here.kernels["probe/joint+"] = into
    probe = _op(lambda xp, a: a * a, joint=lambda g, a: (g * 2.0 * a,))
    a = _there(device, [3.0], "float16")
    (probe(a) + a).sum().backward()
    assert a.grad is not None and a.grad.tolist() == [7.0] and seen == [("float16",) * 2 if here.takes_half else ("float32",) * 2]
    (probe(a) + (a + a)).sum().backward()
    assert a.grad.tolist() == [15.0] and len(seen) == 1


@pytest.mark.parametrize("widens", [False, True])
def test_kernels_are_given_16_bits_where_they_take_them(device: str, widens: bool):
    """Else float32, as the op's own text and its rule are; results are of 16 bits again, each of several too, but for a loss."""
    seen: list[str] = []

    def note(x: Any, answer: Any = NotImplemented) -> Any:
        seen.append(x.dtype.name)
        return answer

    here = backend.get(device).backend
    here.kernels.update({"probe": lambda xp, x: note(x), "probe/x": lambda g, x: note(x)})
    kernels = "float16" if here.takes_half else "float32"
    one = _op(lambda xp, x: note(x, x * x), widens=widens, x=lambda g, x: note(x, g * 2.0 * x))
    x = _there(device, [3.0], "float16")
    y = one(x)
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [6.0] and seen == [kernels, "float32"] * 2
    assert y.dtype == ("float32" if widens else "float16")
    two = _op(lambda xp, x: (x * x, x * 2.0), name="two", x=lambda g, x: g[0] * 2.0 * x + g[1] * 2.0)
    assert [y.dtype for y in two(x)] == ["float16", "float16"]


@pytest.mark.parametrize("how", ["narrow", "half_ops"])
def test_an_op_that_needs_no_float32_is_given_16_bits(how: str, monkeypatch: pytest.MonkeyPatch):
    """By its own word, or its backend's."""
    seen: list[str] = []

    def doubled(x: Any) -> Any:
        seen.append(x.dtype.name)
        return x * np.float16(2.0)

    probe = _op(lambda xp, x: doubled(x), x=doubled)
    monkeypatch.setattr(*(probe, "narrow", True) if how == "narrow" else (backend.cpu, "half_ops", {"probe"}))
    x = _there("numpy", [3.0], "float16")
    probe(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [2.0] and seen == ["float16", "float16"]


@pytest.mark.parametrize("rule", [lambda g, c: (g, g), lambda g, c: (g[:], g[:]), lambda g, c: (c, c)], ids=["g", "views", "saved"])
def test_what_a_joint_rule_gives_twice_is_not_written_over(rule: Any):
    """Sums that start as one array, which is not theirs, do not end as one."""
    probe = _op(lambda xp, a, b, c: a + b, joint=rule)
    a, b, c = _leaf([1.0]), _leaf([1.0]), np.array([1.0])
    early = a * 5.0 + b * 7.0
    (early + probe(a, b, mg.Tensor(c))).sum().backward()
    assert a.grad is not None and b.grad is not None and [a.grad.item(), b.grad.item(), c.item()] == [6.0, 8.0, 1.0]


@fast_alone
def test_what_a_joint_rule_makes_is_given_away():
    """Its gradients are the leaves', without a copy."""
    made: list[Any] = []

    def rule(g: Any) -> Any:
        made[:] = g * 2.0, g * 3.0
        return tuple(made)

    a, b = _leaf([1.0]), _leaf([1.0])
    _op(lambda xp, a, b: a * 2.0 + b * 3.0, joint=rule)(a, b).sum().backward()
    assert a.grad is not None and b.grad is not None and a.grad.array is made[0] and b.grad.array is made[1]


def _fast(f: Callable[[], Any]) -> set[str]:
    """The functions of the fast path that f calls."""
    names: set[str] = set()

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename == sys.modules[Op.__module__].__file__:
            names.add(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        f()
    finally:
        sys.setprofile(None)
    return names


def test_the_environment_says_which_path_a_process_is_on():
    """MINIGRAD_EXPLICIT: the definition; else the fast path."""
    assert ("pullback" in vars(Op)) is not bool(os.environ.get("MINIGRAD_EXPLICIT"))


def test_explicit_runs_nothing_of_the_fast_path():
    """Neither calls nor the backward pass; and it is run again after the block, or after an error in it."""
    x = _leaf([[1.0, 2.0], [3.0, 4.0]])

    def run() -> None:
        a, b = mg.split(mg.softmax(x * x), sections=2, axis=0)
        (mg.layer_norm(a + b, x[0], x[1]) + x).sum().backward()

    run()
    was = _fast(run)
    with pytest.raises(KeyError), explicit():
        assert _fast(run) == set()
        with explicit():
            pass
        assert _fast(run) == set()
        raise KeyError
    assert _fast(run) == was


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
