"""explain(loss): what a graph keeps is counted, each memory once, and nothing is held by the counting."""
from __future__ import annotations

import gc
import subprocess
import sys
import tracemalloc
import weakref
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import minigrad as mg
from minigrad import fused
from minigrad.debug import detect_anomaly, explain, size_of
from minigrad.errors import GraphError
from minigrad.nn import unfused
from minigrad.testing import fake_cupy


def _leaf(*shape: int, seed: int = 0) -> mg.Tensor:
    return mg.Tensor(np.random.default_rng(seed).standard_normal(shape)).requires_grad_()


# ── the bytes are those that go with the graph ──
def _products(x: Any, w: Any) -> Any:
    return ((x @ w) * (x @ w).tanh() + 3.0).sum()


def _slices(x: Any, w: Any) -> Any:
    a, b = mg.split(x @ w, sections=2, axis=-1)
    return (mg.concat([a * b, b[:2]], axis=0) * mg.tensor(np.ones(w.shape[1] // 2))).sum() / w.mean()


def _gathered(x: Any, w: Any) -> Any:
    return (mg.embedding(np.arange(40) % 6, x)[np.arange(20), 1] * w[0, 0]).sum()


def _network(F: Any) -> Any:
    def f(x: Any, w: Any) -> Any:
        y = F.gelu(F.layer_norm(x @ w, w[0], w[1]), approximate="tanh")
        y = F.attention(y, y, y, causal=True) + mg.dropout(y, key=1)
        return F.cross_entropy(F.softmax(y), np.arange(len(y)) % 4)

    return f


def _checkpointed(x: Any, w: Any) -> Any:
    return mg.checkpoint(lambda y: mg.tanh(y @ w) * y)(x * 2.0).sum()


GRAPHS = {"products": _products, "slices": _slices, "gathered": _gathered, "fused": _network(fused), "unfused": _network(unfused),
          "checkpoint": _checkpointed}


@pytest.mark.parametrize("name", GRAPHS)
def test_kept_is_what_is_freed_with_the_graph(name: str):
    """The bytes of arrays that are freed when the last name of the loss goes are those of `kept`, and the loss itself."""
    x, w = _leaf(6, 8), _leaf(8, 8, seed=1)
    GRAPHS[name](x, w)                                  # whatever is made once and for all
    only = [tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)]

    def arrays() -> int:
        return sum(t.size for t in tracemalloc.take_snapshot().filter_traces(only).traces)

    gc.collect()
    tracemalloc.start()
    try:
        before = arrays()
        loss = GRAPHS[name](x, w) * 1.0                 # whose own number no node keeps
        kept, held, own = explain(loss).kept, arrays() - before, loss.array.nbytes
        del loss
        left = arrays() - before
    finally:
        tracemalloc.stop()
    assert kept > 100 and left == 0
    assert held == kept + own


# ── each memory once ──
def test_a_residual_of_two_nodes_is_counted_at_the_older():
    """y·y, y·2 and y·x keep y: its bytes are those of one array, at the first; the leaf x is counted among the leaves alone."""
    x = _leaf(100)
    y = x * 2.0
    told = explain((y * x + y * y).sum(), nodes=True)
    first, second = [row for row in told.rows if row.keeps or (row.op.startswith("mul") and row.kept == 0 and "a" in row.shares)]
    assert told.kept == 800 == first.kept and second.kept == 0
    assert (first.keeps, first.shares, second.keeps, second.shares) == (("a",), ("b",), (), ("b", "a"))
    assert (told.leaves, told.shared, told.leaf_count) == (800, 800, 1)


def test_a_view_keeps_all_that_it_looks_into():
    """Who keeps a slice of an array keeps the array; a view of a leaf costs nothing."""
    x = _leaf(10, 50)
    assert explain(mg.tanh((x * 2.0)[0]).exp().sum()).kept == 2 * 50 * 8         # the results of tanh and exp
    part = (x * 2.0)[0]
    assert explain((part * part).sum()).kept == 10 * 50 * 8
    row = mg.transpose(x)[0]
    told = explain((row * row).sum())
    assert (told.kept, told.shared, told.leaves) == (0, 4000, 4000)


def test_a_copy_of_a_leaf_is_no_view_of_it():
    """What x[index] copies is kept, though x[3:5] would not be, and x[0, 0] of no axes neither."""
    x = _leaf(6, 8)
    rows, part, one, copied = x[np.array([1, 0, 1])], x[3:5], x[0, 0], x[np.array([1, 2])].transpose(0, 1)
    assert [explain((y * y).sum()).kept for y in (rows, part, one, copied)] == [3 * 64 + 3 * 8, 0, 8, 2 * 64 + 2 * 8]


def test_a_broadcast_array_counts_with_its_memory():
    """50 numbers, seen as 10 rows, are 50 numbers."""
    rows = mg.Tensor(np.broadcast_to(np.ones(50), (10, 50)))
    assert explain((_leaf(10, 50) * rows).sum()).kept == 50 * 8


def test_a_constant_counts_as_kept():
    """An array that an op was given, and that wants no gradient, stays for the graph's sake; where it is used twice, once."""
    data = np.ones((30, 4))
    told = explain((mg.Tensor(data) @ _leaf(4, 4) + mg.Tensor(data) @ _leaf(4, 4)).sum())
    assert (told.kept, told.shared, told.leaves) == (data.nbytes, 0, 2 * 128)


def test_numbers_are_no_arrays():
    """Python's and NumPy's numbers are kept and cost nothing."""
    assert [explain((_leaf(5) * two).sum()).kept for two in (2.0, 2, np.float64(2.0))] == [0, 0, 0]


def test_indices_are_kept_too():
    """An array in a setting, as in x[index], is memory of the graph's."""
    told = explain(_leaf(20)[np.arange(10)].sum())
    assert (told.kept, [row.keeps for row in told.rows if row.keeps]) == (80, [("index",)])


# ── what is counted ──
@pytest.mark.parametrize("name", GRAPHS)
def test_rows_add_up(name: str):
    """By node and by op the same nodes, the same bytes, and what is largest first; a node's row says its shape."""
    loss = GRAPHS[name](_leaf(6, 8), _leaf(8, 8, seed=1))
    by_op, by_node = explain(loss), explain(loss, nodes=True)
    assert by_op.kept == by_node.kept == sum(row.kept for row in by_op.rows) == sum(row.kept for row in by_node.rows)
    assert by_op.ops == by_node.ops == Counter({row.op: row.nodes for row in by_op.rows})
    assert by_op.nodes == len(by_node.rows) == by_op.ops.total()
    assert [row.kept for row in by_op.rows] == sorted((row.kept for row in by_op.rows), reverse=True)
    assert by_op.largest[0].nbytes == max(r.nbytes for r in by_op.largest) and by_op.largest == by_node.largest
    assert all(row.shape is None for row in by_op.rows) and all(row.nodes == 1 for row in by_node.rows)
    assert by_node.rows[-1].shape == () and by_node.rows[-1].op == f"{loss.node.op.shown} #{loss.node.id}"
    assert by_op.leaf_count == 2 and by_op.leaves == (6 * 8 + 8 * 8) * 8


def test_a_checkpoint_keeps_its_inputs():
    """One node with its argument; a leaf that only its inside uses is a leaf of the graph all the same."""
    told = explain(_checkpointed(_leaf(6, 8), _leaf(8, 8)))
    assert told.kept == 6 * 8 * 8 and told.leaf_count == 2
    assert [(row.op, row.keeps) for row in told.rows if row.keeps] == [("checkpoint(<lambda>)", ("inputs",))]
    inside = explain(mg.checkpoint(lambda y: mg.tanh(y))(_leaf(50)).sum())
    assert (inside.kept, inside.shared) == (0, 400)     # its input is a leaf


def test_depth_is_no_limit():
    """100,000 nodes in a row."""
    y = _leaf(1)
    for _ in range(100_000):
        y = -y
    told = explain(y)
    assert (told.nodes, told.kept, told.leaves) == (100_000, 0, 8)


def test_after_the_walk_back_nothing_is_kept():
    """All nodes are gone after backward, none while the graph is retained."""
    x, w = _leaf(6, 8), _leaf(8, 8)
    loss = _products(x, w)
    before = explain(loss)
    loss.backward(retain_graph=True)
    again = explain(loss)
    assert again == before and again.gone == 0 and "freed" not in str(again)
    loss.backward()
    told = explain(loss)
    assert (told.kept, told.gone, told.nodes, told.largest, told.shared) == (0, before.nodes, before.nodes, [], 0)
    assert f"{before.nodes} nodes have had their backward pass already" in str(told)


def test_a_graph_of_the_gradient_is_a_graph():
    """With create_graph, what the gradient's own gradient needs is counted."""
    x = _leaf(50)
    (g,) = mg.gradients(mg.tanh(x).sum(), [x], create_graph=True)
    told = explain(g)
    assert told.kept >= 400 and told.nodes > 3 and told.leaf_count == 1


@pytest.mark.parametrize(("make", "says"), [(lambda: mg.tensor(1.0), "no graph: nothing"), (lambda: _leaf(3), "no graph: a leaf")])
def test_no_graph(make: Any, says: str):
    """A constant and a leaf have nothing behind them, and str() says which it is."""
    told = explain(make())
    assert (told.nodes, told.kept, told.rows, told.largest) == (0, 0, [], []) and str(told).startswith(says)


@pytest.mark.parametrize("wrong", [np.ones(3), 1.0, None])
def test_only_a_tensor_has_a_graph(wrong: Any):
    """Anything else is a TypeError that says what to give."""
    with pytest.raises(TypeError, match=f"^explain: this is a {type(wrong).__name__}; pass the last Tensor"):
        explain(wrong)


def test_nothing_is_held():
    """While the explanation lives, the graph goes with the loss, without the collector."""
    gc.collect()
    gc.disable()
    try:
        x, w = _leaf(6, 8), _leaf(8, 8)
        y = x @ w
        loss = (y * y).sum()
        refs = [weakref.ref(y.node), weakref.ref(y.array), weakref.ref(loss.node), weakref.ref(loss.array)]
        told = explain(loss), explain(loss, nodes=True)
        del y, loss
        assert told[0].kept == 6 * 8 * 8 and all(ref() is None for ref in refs)
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["products", "checkpoint"])
def test_it_is_the_same_on_the_fake(name: str):
    """A graph of the same ops on the fake GPU keeps the same."""
    fake_cupy.install()

    def told(device: str) -> Any:
        x, w = (mg.tensor(a.array, device=device, requires_grad=True) for a in (_leaf(6, 8), _leaf(8, 8)))
        return explain(GRAPHS[name](x, w))

    a, b = told("numpy"), told("fake")
    assert a.kept > 0 and (a.kept, a.ops, a.leaves, a.shared, a.largest) == (b.kept, b.ops, b.leaves, b.shared, b.largest)


# ── in words ──
def test_the_table():
    """A line for each op with its nodes, bytes and residuals, () around what is counted elsewhere; totals; the largest."""
    x, w = _leaf(10, 10), _leaf(10, 10)
    text = str(explain(mg.tanh(x @ w).sum())).splitlines()
    assert [line.split() for line in text[:4]] == [["op", "nodes", "kept", "keeps"], ["tanh", "1", "800", "B", "out"],
                                                   ["matmul", "1", "0", "B", "(b),", "(a)"], ["sum", "1", "0", "B"]]
    assert text[4].startswith("(…): memory of a leaf")
    assert text[5:] == ["3 nodes keep 800 B; 2 leaves hold 1.6 kB, and 1.6 kB of that is kept as well",
                        "largest:    800 B  tanh, out float64[10, 10]"]
    parts = str(explain(mg.split(x, sizes=[3, 7], axis=1)[0].sum(), nodes=True))
    assert "[10, 3] [10, 7]" in parts and "5 × [10, 2]" in str(explain(mg.split(x, sections=5, axis=1)[0].sum(), nodes=True))


@example(999_949).via("999.9 kB")
@example(999_950).via("1.0 MB")
@given(st.integers(0, 10**13))
def test_sizes_are_rounded_to_a_tenth(n: int):
    """A size is off by no more than half of its last digit, and is written with the largest unit that it reaches."""
    number, unit = size_of(n).split()
    power = {"B": 0, "kB": 3, "MB": 6, "GB": 9}[unit]
    digit = 0.5 if unit == "B" else 0.05 * 10**power
    assert abs(float(number) * 10**power - n) <= digit * (1 + 1e-9)    # the product above is rounded
    assert unit == "GB" or float(number) < 1000
    assert unit == "B" or float(number) >= 1


def test_importing_minigrad_does_not_import_it():
    """It is loaded when it is asked for."""
    code = "import sys, minigrad; sys.exit('minigrad.debug' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ── where NaN comes from ──
def _numbers(*numbers: float) -> mg.Tensor:
    return mg.tensor(np.array(numbers), requires_grad=True)


@pytest.mark.parametrize(("f", "message"), [
    (lambda: mg.log(_numbers(1.0, -1.0)), r"log: x is float64\[2\]: the result holds NaN, but no input does"),
    (lambda: mg.exp(_numbers(1.0, 1e4)), r"exp: .*: the result holds \+∞, but no input does"),
    (lambda: _numbers(1.0, np.nan) * 2.0, r"mul: .*: the result holds NaN, because a holds NaN"),
])
def test_the_op_that_makes_nan(f: Any, message: str):
    """The first op whose result is not finite is named, whatever stands in what it was given; outside the block nobody looks."""
    with np.errstate(all="ignore"):
        f()
        with detect_anomaly(), pytest.raises(GraphError, match=message):
            f()
        f()


def test_the_rule_that_makes_nan():
    """On the way back it is the rule's argument that is named; −∞ of a mask is no anomaly, nor is what float16 does there."""
    x = _numbers(0.0, 4.0)
    with np.errstate(all="ignore"):
        y = mg.where(mg.tensor([True, False]), mg.sqrt(x) * 0.0, 1.0).sum()
        with detect_anomaly(), pytest.raises(GraphError, match=r"backward of <sqrt .*: ∂sqrt/∂x holds NaN"):
            y.backward()
        with detect_anomaly():
            half = mg.tensor(np.array([0.0], np.float16), requires_grad=True)
            (mg.sqrt(half) * 0.0).sum().backward()
            assert mg.softmax(mg.tensor([1.0, -np.inf]) + _numbers(0.0, 0.0).astype("float32")).numpy()[1] == 0.0
