"""The graph: depth and width, random graphs beside PyTorch's, several outputs, what is recorded, what is visited."""
from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from compare import close
from hypothesis import given
from hypothesis import strategies as st
from long import slow_unless

import minigrad as mg
from minigrad.backend.base import Saved
from minigrad.engine.fast import FastOp as Op
from minigrad.engine.fast import FastWalk
from minigrad.engine.graph import backprop


def _leaf(x: Any) -> mg.Tensor:
    return mg.Tensor(np.asarray(x, np.float64)).requires_grad_()


# ── depth and width ──
def test_a_residual_stack_of_depth_10000():
    """x ← x + tanh(w x), 10,000 times, differentiates without recursion, and equals the recurrence written out."""
    n, w = 10_000, _leaf([0.001, -0.002])
    x0 = np.array([1.0, -0.5])
    x, values = mg.Tensor(x0), [x0]
    for _ in range(n):
        x = x + (w * x).tanh()
    for _ in range(n):
        values.append(values[-1] + np.tanh(w.numpy() * values[-1]))
    close(x, values[-1], terms=1)
    x.sum().backward()
    g, dw = np.ones(2), np.zeros(2)
    for v in reversed(values[:-1]):
        slope = g * (1.0 - np.tanh(w.numpy() * v) ** 2)
        dw += slope * v
        g = g + slope * w.numpy()
    close(w.grad, dw, terms=10 * n)


def _chain(x: Any, n: int) -> Any:
    y = x
    for _ in range(n):
        y = mg.tanh(y)
    return y


@pytest.mark.parametrize("walk", slow_unless(lambda walk: walk in ("none", "create_graph"), ["none", "plain", "retain", "create_graph"]))
def test_a_chain_of_depth_100000(walk: str):
    """10⁵ times tanh differentiates without recursion, and is freed without overflowing the stack, walked or not.

    tanh(y) ≤ y for y ≥ 0, so all factors 1 − tanh² lie in (0, 1), and their logarithms add up to the slope's.
    """
    n, x = 100_000, _leaf(1e-3)
    y = _chain(x, n)
    watched = [weakref.ref(y.node)]
    if walk != "none":
        create = walk == "create_graph"
        (g,) = mg.gradients(y, [x], create_graph=create, retain_graph=walk == "retain")
        values, v = np.empty(n), 1e-3
        for i in range(n):
            v = values[i] = np.tanh(v)
        exact = float(np.prod(1.0 - values * values))
        close(g, np.asarray(exact), terms=4 * n)        # each factor is three roundings, and NumPy multiplies in another order
        assert g.requires_grad == create
        if create:
            watched.append(weakref.ref(g.node))
    y = g = None
    assert all(ref() is None for ref in watched)


def test_a_gradient_of_a_gradient_of_depth_20000():
    """The graph that create_graph records is as deep again, and is walked and freed the same way: (x + n)² has second derivative 2."""
    x = _leaf(3.0)
    y: Any = x
    for _ in range(20_000):
        y = y + 1.0
    (g,) = mg.gradients(y * y, [x], create_graph=True)
    assert g.item() == 2.0 * 20_003.0 and mg.gradients(g, [x])[0].item() == 2.0


def test_doubling_sixty_times_takes_sixty_steps():
    """x ← x + x has 2⁶⁰ paths; the walk back sums at each node once, and is exact."""
    x = _leaf(1.0)
    y: Any = x
    for _ in range(60):
        y = y + y
    y.backward()
    assert x.grad.item() == 2.0**60


def test_a_fan_out_of_10000():
    """A value used 10⁴ times gets the sum of all cotangents, exactly."""
    x = _leaf([1.0, 2.0])
    y = mg.stack([x * float(i) for i in range(10_000)])
    y.sum().backward()
    assert x.grad.tolist() == [sum(range(10_000))] * 2


# ── random graphs ──
@st.composite
def _programs(draw: Any) -> Any:
    """Straight-line programs over [2, 2] values: (op, operand, operand)."""
    names = ["add", "sub", "mul", "neg", "tanh", "identity", "transpose", "twice", "split", "sum", "reshape", "flip"]
    n = draw(st.integers(1, 12))
    return [(draw(st.sampled_from(names)), draw(st.integers(0, 1 + i)), draw(st.integers(0, 1 + i))) for i in range(n)]


def _run(program: Any, x: Any, y: Any, library: str) -> Any:
    ours, values = library == "mg", [x, y]
    steps = {
        "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: (a * b).tanh(), "neg": lambda a, b: -a,
        "tanh": lambda a, b: a.tanh(), "twice": lambda a, b: a + a, "transpose": lambda a, b: a.T, "sum": lambda a, b: a + b.sum(),
        "reshape": lambda a, b: a.reshape(4).reshape(2, 2), "flip": lambda a, b: a[::-1] if ours else a.flip(0),
        "identity": lambda a, b: mg.ops.shape.identity(a) if ours else a.clone(),
        "split": lambda a, b: (mg.concat([mg.split(a, sections=2)[1], b[0:1]]) if ours
                               else torch.cat([torch.split(a, 1, dim=0)[1], b[0:1]])),
    }
    for name, i, j in program:
        values.append(steps[name](values[i], values[j]))
    return values


@given(program=_programs(), seed=st.integers(0, 99), retain=st.booleans())
def test_random_graphs_have_pytorchs_gradients(program: Any, seed: int, retain: bool):
    """Whatever the order of sharing, views and sums, gradients are PyTorch's; no value on the way is written to."""
    rng = np.random.default_rng(seed)
    a, b, g = (rng.standard_normal((2, 2)) for _ in range(3))
    xs, ts = [_leaf(a), _leaf(b)], [torch.tensor(v, requires_grad=True) for v in (a, b)]
    values, theirs = _run(program, *xs, "mg"), _run(program, *ts, "torch")
    before = [v.numpy().copy() for v in values]
    out, expected = values[-1] + xs[0] * 2.0 + xs[1], theirs[-1] + ts[0] * 2.0 + ts[1]
    cotangent = g.copy()
    out.backward(cotangent, retain_graph=retain)
    expected.backward(torch.tensor(g))
    scale = max(1.0, *(float(t.grad.abs().max()) for t in ts), *(float(np.abs(v).max()) for v in before))
    for x, t in zip(xs, ts):
        close(x.grad, t.grad, terms=200, scale=scale)
    np.testing.assert_array_equal(cotangent, g)
    for v, kept in zip(values, before):
        np.testing.assert_array_equal(v.numpy(), kept)
    if retain:
        first = [x.grad.numpy().copy() for x in xs]
        out.backward(cotangent)
        for x, f in zip(xs, first):
            np.testing.assert_array_equal(x.grad.numpy(), f + f)


def test_the_same_graph_gives_the_same_bits():
    """Sums are made in an order that the graph fixes."""
    def run() -> Any:
        x = _leaf(np.random.default_rng(0).standard_normal(100))
        y = sum((mg.tanh(x * float(i)) for i in range(1, 50)), start=x)
        return mg.gradients(y.sum(), [x])[0].numpy()

    np.testing.assert_array_equal(run(), run())


# ── several outputs ──
@pytest.mark.parametrize("create_graph", [False, True])
def test_outputs_that_nothing_was_computed_from_get_zeros(create_graph: bool):
    """Of a split in three, any subset may be used, in any order and more than once; the rest has gradient zero."""
    for used in ([1], [2, 0], [0, 0, 2], [0, 1, 2]):
        x = _leaf(np.arange(6.0))
        parts = mg.split(x, sections=3, axis=-1)
        total: Any = 0.0
        for k, i in enumerate(used):
            total = total + (parts[i] * parts[i]).sum() * float(k + 1)
        (g,) = mg.gradients(total, [x], create_graph=create_graph)
        expected = np.zeros(6)
        for k, i in enumerate(used):
            expected[2 * i:2 * i + 2] += 2.0 * (k + 1) * np.arange(6.0)[2 * i:2 * i + 2]
        assert g.tolist() == expected.tolist()
        if create_graph:
            assert mg.gradients(g.sum(), [x])[0].numpy().sum() == 2.0 * 2.0 * sum(range(1, len(used) + 1))


# ── what is recorded, and visited ──
def test_islands_without_gradients():
    """Inside no_grad nothing is recorded, enable_grad records again, and leaving restores what was, also by an exception."""
    x = _leaf([1.0, 2.0])
    with mg.no_grad():
        assert not mg.is_grad_enabled() and not (x * x).requires_grad
        with mg.enable_grad():
            assert mg.is_grad_enabled() and (x * x).requires_grad
        assert not (x * x).requires_grad
        assert not any(part.requires_grad for part in mg.split(x, sections=2, axis=-1))
    with pytest.raises(KeyError), mg.no_grad():
        raise KeyError
    assert mg.is_grad_enabled()
    with mg.no_grad():
        c = x * 3.0
    (x * c).sum().backward()
    assert x.grad.tolist() == [3.0, 6.0]


def test_constants_record_nothing():
    """Without a leaf that wants a gradient there is no node; ints, bools and comparisons never have one."""
    x = mg.tensor([1.0, 2.0])
    assert (x * x).node is None and (_leaf([1.0]) > 0.0).node is None and _leaf([1.5]).astype("int64").node is None
    assert mg.stop_gradient(_leaf([1.0])).node is None and _leaf([1.0]).detach().node is None


def test_an_op_of_arrays_gives_arrays():
    """A Tensor comes from Tensors alone, whatever the op, its dtype, and the number of its results."""
    a = np.ones((2, 3))
    for out in (mg.exp(a), mg.maximum(a, a), mg.layer_norm(a, a[0], a[0]), mg.ops.elementwise.less(a, a), mg.sum(a),
                mg.exp(a.astype(np.float16)), *mg.split(a, sections=3, axis=1)):
        assert type(out) is np.ndarray


def test_a_rule_is_given_what_it_names():
    """In its order: a setting, an argument that was left out, one that was not, shapes, that of a number too, the result."""
    def probe(xp, a, b, c=None, *, s=1.0):
        return a * b * s

    def rule(g, s, c, b, b_shape, a_shape, out):
        seen.append((s, c, b, b_shape, a_shape, out.tolist()))
        return g * b * s

    seen: list[Any] = []
    for rules in ({"a": rule}, {"a": rule, "b": lambda g: g, "c": lambda g: g}):
        f = Op(probe, rules)
        for others in ((2.0,), (np.array([2.0]),), (mg.Tensor(np.array([2.0])), None)):
            f(_leaf([3.0]), *others, s=4.0).sum().backward()
    assert seen == [(4.0, None, 2.0, (), (1,), [24.0]), *[(4.0, None, np.array([2.0]), (1,), (1,), [24.0])] * 2] * 2

    def product(xp, a, b):
        return a * b

    f = Op(product, {"a": lambda g, b_shape: g * (seen.append(b_shape) or 2.0), "b": lambda g: g})
    f(_leaf([3.0]), 2.0).sum().backward()
    assert seen[-1] == ()


def test_nothing_older_than_the_targets_is_visited():
    """The gradient of a late value does not walk what came before it, and leaves its residuals where they are."""
    seen: list[Any] = []

    def rule(g):
        seen.append(g)
        return g

    def probe(xp, x):
        return x + 0.0

    x = _leaf([1.0])
    early = Op(probe, {"x": rule})(x)
    late = early * 2.0
    mg.gradients((late * late).sum(), [late])
    leaf = _leaf([3.0])
    mg.gradients((early * leaf).sum(), [leaf])
    assert seen == []
    mg.gradients((late * late).sum(), [x])
    assert len(seen) == 1


def test_only_what_was_asked_for_is_reported():
    """A walk for some targets holds no array for any other leaf; a walk for none in particular has every leaf."""
    x, y = _leaf([1.0, 2.0]), _leaf([3.0, 4.0])
    for targets, expected in (([x.node], {x.node}), (None, {x.node, y.node})):
        z = x * y
        assert set(backprop(z.node, np.ones(2), targets)) == expected


def test_sums_are_written_over_only_where_they_are_ours():
    """The first sum of two arrays that others hold is a new array, and further ones go into it; a fresh one is ours at once."""
    node, a, b = _leaf([0.0]).node, np.ones(2), np.full(2, 2.0)
    walk = FastWalk(False, 0, {})
    walk.send(node, a)
    assert walk.total(node) is None and walk.so_far(node) is a and walk.heap == [(-node.id, node)]
    walk.send(node, b)
    first = walk.total(node)
    walk.send(node, b)
    assert walk.total(node) is first and first.tolist() == [5.0, 5.0] and a.tolist() == [1.0, 1.0] and b.tolist() == [2.0, 2.0]
    assert walk.sums.pop(node) is first and node in walk.ours and len(walk.heap) == 1
    walk.ours.clear()
    walk.send(node, a, fresh=True)
    assert walk.total(node) is a
    walk.send(node, b)
    assert walk.total(node) is a and a.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("create_graph", [False, True])
def test_rules_are_recorded_only_for_a_graph(create_graph: bool):
    """In an ordinary walk a rule gets arrays and nothing is recorded, whatever surrounds the walk; with create_graph, Tensors."""
    seen: list[Any] = []

    def rule(g):
        seen.append((mg.is_grad_enabled(), isinstance(g, mg.Tensor)))
        return g

    def probe(xp, x):
        return x + 0.0

    f = Op(probe, {"x": rule})
    for around in (mg.enable_grad(), mg.no_grad()):
        x = _leaf([1.0])
        y = f(x).sum()
        with around:
            mg.gradients(y, [x], create_graph=create_graph)
    assert seen == [(create_graph, create_graph)] * 2


def test_unwanted_gradients_are_not_computed():
    """A rule runs only for an argument that wants its gradient."""
    calls = []

    def pair(xp, a, b):
        return a * b

    def da(g, b):
        calls.append("a")
        return g * b

    def db(g, a):
        calls.append("b")
        return g * a

    f = Op(pair, {"a": da, "b": db})
    f(_leaf([1.0]), mg.Tensor(np.ones(1))).sum().backward()
    assert calls == ["a"]


# ── refusals ──
def test_what_cannot_be_differentiated_is_refused():
    """No gradient to be had, no scalar, a cotangent that does not fit: one line each."""
    x, c = _leaf([1.0, 2.0]), mg.tensor([1.0])
    for f, kind, words in [
        (lambda: c.backward(), mg.GraphError, "requires a gradient"),
        (lambda: (x * x).backward(), mg.ShapeError, "scalar"),
        (lambda: (x * x).backward(np.ones(3)), mg.ShapeError, "float64[3]"),
        (lambda: (x * x).backward(np.ones(2, np.float32)), mg.ShapeError, "float32[2]"),
        (lambda: mg.gradients(x.sum(), [c]), mg.GraphError, "inputs[0]"),
        (lambda: mg.gradients(x.sum(), c), mg.GraphError, "inputs[0]"),
        (lambda: mg.gradients(c, [x]), mg.GraphError, "nothing that output was computed from"),
        (lambda: mg.gradients(x.sum(), []), mg.GraphError, "no inputs"),
        (lambda: mg.gradients(x.sum(), {"x": x}), TypeError, "inputs[0] is a str"),
        (lambda: mg.gradients(x.sum(), np.ones(2)), TypeError, "inputs[0] is a float64"),
        (lambda: mg.gradients(x.sum(), mg.nn.Linear(1, 1)), TypeError, "inputs is a Linear"),
        (lambda: mg.gradients([x.sum()], x), TypeError, "output is a list"),
        (lambda: (x * x).requires_grad_(), mg.GraphError, "leaf"),
        (lambda: (x * x).assign(np.ones(2)), mg.GraphError, "leaves"),
        (lambda: x.assign(np.ones(3)), mg.ShapeError, "float64[3]"),
        (lambda: setattr(x * x, "grad", None), mg.GraphError, "leaf"),
        (lambda: setattr(x, "grad", c), mg.ShapeError, "float32[1]"),
        (lambda: mg.tensor([1, 2], requires_grad=True), mg.DTypeError, "int64[2]"),
        (lambda: mg.exp(mg.tensor([1, 2])), mg.DTypeError, "x is int64[2] would become float64"),
    ]:
        with pytest.raises(kind) as caught:
            f()
        assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("rule, kind, words", [
    (lambda g: g.sum(), mg.ShapeError, "float64[] but x is float64[2]"),
    (lambda g: g.astype("float32"), mg.DTypeError, "float32[2] but x is float64[2]"),
])
def test_a_wrong_rule_is_found_out(rule: Any, kind: Any, words: str):
    """On every edge a gradient has the value's shape and dtype, or the error names op, argument and both."""
    def broken(xp, x):
        return x * 2.0

    f = Op(broken, {"x": rule})
    with pytest.raises(kind) as caught:
        f(_leaf([1.0, 2.0])).sum().backward()
    assert words in str(caught.value) and "∂broken/∂x" in str(caught.value)


@pytest.mark.parametrize("rules, joint", [({"x": lambda g: None}, None), ({}, lambda g: None)])
def test_a_rule_that_returns_nothing_is_found_out(rules: Any, joint: Any):
    def broken(xp, x):
        return x * 2.0

    with pytest.raises(TypeError, match=r"broken: its rule broken/.* returned None"):
        Op(broken, rules, joint=joint)(_leaf([1.0, 2.0])).sum().backward()


@pytest.mark.parametrize("made, create_graph", [
    (lambda: mg.Tensor(np.array(2.0)), False), (lambda: mg.Tensor(np.array(2.0)), True), (lambda: np.float64(2.0), False),
    (lambda: np.float64(2.0), True), (lambda: np.array(2.0), False), (lambda: np.array(2.0), True)])
def test_a_rule_may_return_a_tensor_or_a_number(made: Any, create_graph: bool):
    """.grad is a Tensor, and an array is in it, in either case."""
    def probe(xp, x):
        return x * 2.0

    for f in (Op(probe, {"x": lambda g: made()}), Op(probe, {}, joint=lambda g: (made(),))):
        x = _leaf(3.0)
        f(x * 1.0).backward(create_graph=create_graph)
        assert type(x.grad) is mg.Tensor and type(x.grad.array) is np.ndarray and x.grad.item() == 2.0
        x.grad = None
        f(x).backward(create_graph=create_graph)
        assert type(x.grad) is mg.Tensor and type(x.grad.array) is np.ndarray and x.grad.item() == 2.0


@pytest.mark.parametrize("made", [lambda x: x * 2.0, lambda x: Saved(x * 2.0, other=x)])
def test_a_rule_that_names_what_nobody_saves_is_found_out(made: Any):
    """In the forward pass, where the op is called."""
    def broken(xp, x):
        return made(x)

    with pytest.raises(TypeError, match="broken: a rule names 'lost', which is no argument of the kernel"):
        Op(broken, {"x": lambda g, lost: g})(_leaf([1.0, 2.0]))


def test_gradients_of_what_does_not_matter_are_zeros():
    """An input that the output does not depend on has gradient zero, with create_graph too; so has a constant function's."""
    x, y = _leaf([1.0, 2.0]), _leaf([3.0])
    for create in (False, True):
        assert mg.gradients((x * x).sum(), [y], create_graph=create)[0].tolist() == [0.0]
    assert mg.grad(lambda x: mg.tensor(1.0))(x).tolist() == [0.0, 0.0]


def test_gradients_take_one_tensor_or_any_collection():
    """As torch.autograd.grad: a tuple in each case, of one for one Tensor."""
    x, t = _leaf([1.0, 2.0]), torch.tensor([1.0, 2.0], requires_grad=True)
    for give in (lambda x: x, lambda x: [x], lambda x: (x, x), lambda x: (y for y in [x])):
        found, theirs = mg.gradients((x * x).sum(), give(x)), torch.autograd.grad((t * t).sum(), give(t))
        assert isinstance(found, tuple) and [g.tolist() for g in found] == [g.tolist() for g in theirs]
        assert x.grad is None


def test_gradients_of_results_on_the_way():
    """gradients() takes results as inputs, touches no .grad, and gives each its own sum."""
    x = _leaf([1.0, 2.0])
    h = x * x
    k = h * 3.0
    dx, dh, dk = mg.gradients((k * h).sum(), [x, h, k])
    assert dk.tolist() == [1.0, 4.0] and dh.tolist() == [6.0, 24.0] and dx.tolist() == [12.0, 96.0] and x.grad is None
