"""The graph: depth, fan-out, memory without the garbage collector, versions, aliasing, and what is recorded."""
from __future__ import annotations

import gc
import threading
import tracemalloc
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from compare import close
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad as mg
from minigrad.graph import Leaf, state
from minigrad.op import Op

FEW = settings(max_examples=max(5, settings.default.max_examples // 4))


def _leaf(x: Any) -> mg.Tensor:
    return mg.Tensor(np.asarray(x, np.float64)).requires_grad_()


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only reference counts free memory."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# ── depth and width ──
def test_a_residual_stack_of_depth_10000(no_collector: None):
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


def test_a_chain_of_depth_100000(no_collector: None):
    """A chain of 10⁵ ops differentiates, exactly, and is freed without overflowing the stack."""
    x = _leaf(3.0)
    y: Any = x
    for _ in range(100_000):
        y = y - 1.0
    y.backward()
    assert x.grad.item() == 1.0
    nodes = weakref.ref(y.node)
    del y
    assert nodes() is None


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


# ── a random graph against a naive engine ──
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
        "split": lambda a, b: (mg.concat([mg.split(a, 2, axis=0)[1], b[0:1]]) if ours
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


# ── memory ──
def _network(x: Any, w: Any) -> Any:
    y = mg.gelu(mg.layer_norm(x @ w, w[0], w[1]))
    a, b = mg.split(y, 2)
    y = mg.attention(y, y, y) + mg.concat([a * b, b], axis=-1) / 3.0
    return mg.cross_entropy(mg.softmax(y) * mg.exp(-y) + mg.dropout(y, key=1), np.arange(len(y)) % 4)


@pytest.mark.parametrize("backward", ["none", "plain", "retain", "create_graph", "replay"])
def test_memory_goes_when_the_last_name_goes(no_collector: None, backward: str):
    """Without the collector, every intermediate array is freed once loss and names are gone; the leaves keep .grad alone."""
    def run() -> list[Any]:
        x, w = _leaf(np.linspace(-1, 1, 24).reshape(6, 4)), _leaf(np.linspace(-0.5, 1, 16).reshape(4, 4))
        loss = _network(x, w)
        watched, queue = [], [loss.node]
        while queue:
            node = queue.pop()
            if not isinstance(node, Leaf):
                watched += [weakref.ref(node)] + [weakref.ref(s) for s in node.saved if isinstance(s, np.ndarray) and s is not x.array and
                                                  s is not w.array]
                queue += [p for p in node.parents if p is not None]
        if backward == "plain":
            loss.backward()
        elif backward == "retain":
            loss.backward(retain_graph=True)
        elif backward == "create_graph":
            grads = mg.gradients(loss, [x, w], create_graph=True)
            watched += [weakref.ref(g.node) for g in grads] + [weakref.ref(g.array) for g in grads]
        elif backward == "replay":
            (g,) = mg.gradients(loss, [w], create_graph=True)
            (g * g).sum().backward()
        del loss
        return watched

    watched = run()
    assert len(watched) > 20 and all(ref() is None for ref in watched)


def test_memory_returns_to_where_it_was(no_collector: None):
    """After forward, backward and dropping the names, the bytes allocated are those from before."""
    data, w = np.ones((400, 4)), _leaf(np.ones((4, 4)))

    def step() -> None:
        w.grad = None
        _network(mg.Tensor(data), w).backward()

    step()
    tracemalloc.start()
    try:
        step()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(3):
            step()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before > 1_000_000                    # there was something to free
    assert after - before < 20_000


def _probe(seen: list[int]) -> Op:
    """An op that notes how many bytes are allocated when the walk back reaches it."""
    def rule(g):
        seen.append(tracemalloc.get_traced_memory()[0])
        return g

    def probe(xp, x):
        return x + 0.0

    return Op(probe, {"x": rule})


def test_residuals_die_as_they_are_used(no_collector: None):
    """When the walk back reaches the bottom of a chain, the residuals of the chain are gone, unless the graph is retained."""
    size, depth = 50_000, 20
    for retain in (False, True):
        seen: list[int] = []
        x = _leaf(np.full(size, 0.1))
        tracemalloc.start()
        try:
            y = _probe(seen)(x)
            for _ in range(depth):
                y = mg.tanh(y)
            start, total = tracemalloc.get_traced_memory()[0], y.sum()
            assert start > depth * size * 8
            del y
            total.backward(retain_graph=retain)
        finally:
            tracemalloc.stop()
        if retain:
            assert seen[0] > depth * size * 8
        else:
            assert seen[0] < 5 * size * 8


def test_an_interrupted_recording_leaves_nothing(no_collector: None):
    """An op that fails keeps no reference to its inputs once the error is gone."""
    x = _leaf(np.ones(5))
    y = x * 2.0
    ref = weakref.ref(y.node)
    try:
        y + np.ones(3)
    except mg.ShapeError:
        pass
    del y
    assert ref() is None


# ── walking back twice ──
def test_a_second_walk_is_refused():
    """backward() twice is a GraphError that says how to allow it, also through a part that two losses share."""
    x = _leaf([1.0, 2.0])
    loss = (x * x).sum()
    loss.backward()
    with pytest.raises(mg.GraphError, match="retain_graph=True"):
        loss.backward()
    shared = x * x
    one, two = shared.sum(), (shared * 2.0).sum()
    one.backward()
    with pytest.raises(mg.GraphError, match="walked back already"):
        two.backward()


def test_a_retained_graph_adds_again():
    """With retain_graph each walk adds the same gradient into .grad."""
    x = _leaf([1.0, 2.0])
    loss = (x * x).sum()
    for k in (1, 2, 3):
        loss.backward(retain_graph=True)
        assert x.grad.tolist() == [2.0 * k, 4.0 * k]


def test_backward_adds_into_grad_over_graphs():
    """Gradients of several losses add up, until .grad is set to None."""
    x = _leaf([1.0, 2.0])
    (x * 3.0).sum().backward()
    (x * x).sum().backward()
    assert x.grad.tolist() == [5.0, 7.0]
    x.grad = None
    x.sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]


def test_backward_can_itself_be_differentiated():
    """With create_graph .grad is a result of the graph."""
    x = _leaf(2.0)
    (x * x * x).backward(create_graph=True)
    assert mg.gradients(x.grad, [x])[0].item() == 12.0


# ── versions ──
def _step(p: Any) -> None:
    p.grad = mg.Tensor(np.ones(p.shape))
    mg.optim.SGD([p], lr=0.1).step()


KEEPERS = {
    "mul": lambda p: p * p, "matmul": lambda p: p @ p, "einsum": lambda p: mg.einsum("ij,jk->ik", p, p), "tanh-arg": lambda p: mg.erf(p),
    "layer_norm": lambda p: mg.layer_norm(p, p[0], p[1]),
    "gelu": mg.gelu, "attention": lambda p: mg.attention(p, p, p), "linear": lambda p: mg.linear(p, p), "max": mg.max,
    "cross_entropy": lambda p: mg.cross_entropy(p, np.array([0, 1])), "checkpoint": mg.checkpoint(lambda p: mg.tanh(p)),
}


@pytest.mark.parametrize("view", [lambda p: p.T, lambda p: p.reshape(2, 2), lambda p: p[:1], lambda p: p.split(2, axis=0)[1],
                                  lambda p: p.permute(1, 0)[None], lambda p: p.T.reshape(2, 2)],
                         ids=["transpose", "reshape", "slice", "split", "permute", "two"])
def test_a_value_changed_under_a_view_is_refused(view: Any):
    """What a rule kept may be a view of a leaf; an optimiser that writes into the leaf has changed it too."""
    x = mg.tensor(np.ones((2, 2)), requires_grad=True)
    p = mg.tensor(np.ones((2, 2)), requires_grad=True)
    optimizer = mg.optim.SGD([p], lr=1.0)
    (p * 1.0).sum().backward()
    y = (x[:1] * view(p)).sum()
    optimizer.step()
    with pytest.raises(mg.GraphError, match="changed"):
        y.backward()


@pytest.mark.parametrize("change", [_step, lambda p: p.assign(np.zeros(p.shape)), lambda p: p.changed()],
                         ids=["optimiser", "assign", "changed"])
@pytest.mark.parametrize("name", KEEPERS)
def test_a_value_changed_between_forward_and_backward_is_refused(name: str, change: Any):
    """A leaf that a rule kept and that was changed since is a GraphError, not a wrong gradient."""
    p = _leaf([[0.5, 1.0], [-1.0, 2.0]])
    y = KEEPERS[name](p)
    change(p)
    with pytest.raises(mg.GraphError, match="changed"):
        y.backward(np.ones(y.shape))


def test_a_change_that_matters_to_no_rule_is_allowed():
    """Where no rule kept the leaf, a change before backward is harmless, and the gradient right."""
    p, x = _leaf([1.0, 2.0]), _leaf([3.0, 4.0])
    y = (p + x * x).sum()
    _step(p)
    p.grad = None
    y.backward()
    assert p.grad.tolist() == [1.0, 1.0] and x.grad.tolist() == [6.0, 8.0]


def test_a_forward_pass_after_the_change_is_fine():
    """The version counts from the forward pass on."""
    p = _leaf([1.0, 2.0])
    p.assign(np.array([3.0, 4.0]))
    (p * p).sum().backward()
    assert p.grad.tolist() == [6.0, 8.0]


# ── nothing is shared, nothing is written ──
def test_leaves_fed_by_one_cotangent_do_not_share_it():
    """a + b sends the same array both ways; writing into one .grad must not show in the other, nor in the cotangent."""
    a, b, g = _leaf([1.0, 2.0]), _leaf([3.0, 4.0]), np.array([5.0, 6.0])
    (a + b).backward(g)
    a.grad.array[:] = 0.0
    assert b.grad.tolist() == [5.0, 6.0] and g.tolist() == [5.0, 6.0]
    x = _leaf([1.0, 2.0])
    mg.ops.shape.identity(x).backward(g)
    x.grad.array[:] = 0.0
    assert g.tolist() == [5.0, 6.0]
    x.grad = None
    x.backward(g)
    x.grad.array[:] = 0.0
    assert g.tolist() == [5.0, 6.0]


def test_adding_to_grad_makes_a_new_array():
    """Who holds .grad of one step still holds that step's numbers after the next."""
    x = _leaf([1.0, 2.0])
    (x * 3.0).sum().backward()
    held = x.grad
    (x * 3.0).sum().backward()
    assert held.tolist() == [3.0, 3.0] and x.grad.tolist() == [6.0, 6.0]


def test_asking_twice_for_one_gradient_gives_two_arrays():
    """gradients(y, [x, x]) are alike, and not one array."""
    x = _leaf([1.0, 2.0])
    a, b = mg.gradients((x * x).sum(), [x, x])
    assert a.tolist() == b.tolist() == [2.0, 4.0] and not np.shares_memory(a.numpy(), b.numpy())


# ── several outputs ──
@pytest.mark.parametrize("create_graph", [False, True])
def test_outputs_that_nothing_was_computed_from_get_zeros(create_graph: bool):
    """Of a split in three, any subset may be used, in any order and more than once; the rest has gradient zero."""
    for used in ([1], [2, 0], [0, 0, 2], [0, 1, 2]):
        x = _leaf(np.arange(6.0))
        parts = mg.split(x, 3)
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


# ── what is recorded ──
def test_islands_without_gradients():
    """Inside no_grad nothing is recorded, enable_grad records again, and leaving restores what was, also by an exception."""
    x = _leaf([1.0, 2.0])
    with mg.no_grad():
        assert not mg.is_grad_enabled() and not (x * x).requires_grad
        with mg.enable_grad():
            assert mg.is_grad_enabled() and (x * x).requires_grad
        assert not (x * x).requires_grad
        assert not any(part.requires_grad for part in mg.split(x, 2))
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


def test_threads_record_for_themselves():
    """Graphs made at once in several threads are as those made one after the other."""
    w = _leaf(np.linspace(-1.0, 1.0, 16).reshape(4, 4))
    barrier = threading.Barrier(4)

    def work(i: int) -> Any:
        barrier.wait()
        results = []
        for k in range(20):
            if (i + k) % 2:
                with mg.no_grad():
                    assert not (w * 2.0).requires_grad
            x = mg.Tensor(np.full((3, 4), float(i + k)))
            results.append(mg.gradients((x @ w).tanh().sum() + (w * w).sum(), [w])[0].numpy())
        return results

    with ThreadPoolExecutor(4) as pool:
        together = [job.result() for job in [pool.submit(work, i) for i in range(4)]]
    barrier = threading.Barrier(1)
    for i in range(4):
        for a, b in zip(together[i], work(i)):
            np.testing.assert_array_equal(a, b)
    assert state.recording and state.depth == 0


def test_no_grad_in_one_thread_says_nothing_to_another():
    """While a thread stands inside no_grad, this one records."""
    inside, done = threading.Event(), threading.Event()

    def work() -> None:
        with mg.no_grad():
            inside.set()
            done.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(10)
    recorded = (_leaf(1.0) * 2.0).requires_grad
    done.set()
    thread.join()
    assert recorded


def test_nodes_are_numbered_at_birth():
    """A node's parents have smaller numbers, also when several threads number at once."""
    def work(_: int) -> list[int]:
        y, ids = _leaf(1.0), []
        for _ in range(500):
            parent, y = y.node, y * 1.0
            assert y.node.id > parent.id
            ids.append(y.node.id)
        return ids

    with ThreadPoolExecutor(4) as pool:
        ids = [i for part in pool.map(work, range(4)) for i in part]
    assert len(set(ids)) == len(ids)


def test_nothing_older_than_the_targets_is_visited():
    """The gradient of a late value does not walk what came before it."""
    seen: list[int] = []
    tracemalloc.start()
    try:
        x = _leaf([1.0])
        early = _probe(seen)(x)
        late = early * 2.0
        mg.gradients((late * late).sum(), [late], retain_graph=True)
        leaf = _leaf([3.0])
        mg.gradients((early * leaf).sum(), [leaf], retain_graph=True)
        assert seen == []
        mg.gradients((late * late).sum(), [x])
        assert len(seen) == 1
    finally:
        tracemalloc.stop()


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
        (lambda: (x * x).requires_grad_(), mg.GraphError, "leaf"),
        (lambda: (x * x).assign(np.ones(2)), mg.GraphError, "leaves"),
        (lambda: x.assign(np.ones(3)), mg.ShapeError, "float64[3]"),
        (lambda: setattr(x * x, "grad", None), mg.GraphError, "leaf"),
        (lambda: setattr(x, "grad", c), mg.ShapeError, "float32[1]"),
        (lambda: mg.tensor([1, 2], requires_grad=True), mg.DTypeError, "int64[2]"),
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


def test_gradients_of_what_does_not_matter_are_zeros():
    """An input that the output does not depend on has gradient zero, with create_graph too; so has a constant output."""
    x, y = _leaf([1.0, 2.0]), _leaf([3.0])
    for create in (False, True):
        assert mg.gradients((x * x).sum(), [y], create_graph=create)[0].tolist() == [0.0]
    assert mg.gradients(mg.tensor(1.0), [x])[0].tolist() == [0.0, 0.0]


def test_gradients_of_results_on_the_way():
    """gradients() takes results as inputs, touches no .grad, and gives each its own sum."""
    x = _leaf([1.0, 2.0])
    h = x * x
    k = h * 3.0
    dx, dh, dk = mg.gradients((k * h).sum(), [x, h, k])
    assert dk.tolist() == [1.0, 4.0] and dh.tolist() == [6.0, 24.0] and dx.tolist() == [12.0, 96.0] and x.grad is None
