"""Memory: it goes when the last name goes, without the garbage collector; nobody's arrays are shared or written to."""
from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import minigrad as mg
from minigrad.engine.fast import FastOp as Op
from minigrad.engine.graph import Leaf, state


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


# ── what is freed ──
def _network(x: Any, w: Any) -> Any:
    y = mg.gelu(mg.layer_norm(x @ w, w[0], w[1]), approximate="tanh")
    a, b = mg.split(y, sections=2, axis=-1)
    y = mg.attention(y, y, y, causal=True) + mg.concat([a * b, b], axis=-1) / 3.0
    return mg.cross_entropy(mg.softmax(y) * mg.exp(-y) + mg.dropout(y, key=1), np.arange(len(y)) % 4)


def _watch(loss: Any, leaves: Any) -> list[Any]:
    """Weak references to every node below `loss` and every array that they keep, but for those of the leaves."""
    watched, queue = [], [loss.node]
    while queue:
        node = queue.pop()
        if not isinstance(node, Leaf):
            watched += [weakref.ref(node)]
            watched += [weakref.ref(s) for s in node.saved if isinstance(s, np.ndarray) and not any(s is x.array for x in leaves)]
            queue += [p for p in node.parents if p is not None]
    return watched


@pytest.mark.parametrize("backward", ["none", "plain", "retain", "create_graph", "replay"])
def test_memory_goes_when_the_last_name_goes(no_collector: None, backward: str):
    """Without the collector, every intermediate array is freed once loss and names are gone; the leaves keep .grad alone."""
    def run() -> list[Any]:
        x, w = _leaf(np.linspace(-1, 1, 24).reshape(6, 4)), _leaf(np.linspace(-0.5, 1, 16).reshape(4, 4))
        loss = _network(x, w)
        watched = _watch(loss, (x, w))
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


@pytest.mark.parametrize("create_graph", [False, True])
def test_an_error_in_the_middle_of_a_walk_leaves_nothing(no_collector: None, create_graph: bool):
    """A rule that raises: no .grad is touched, the recording context is left, and all is freed with the names and the error."""
    def failing(g):
        raise ZeroDivisionError

    def fragile(xp, x):
        return x + 0.0

    f = Op(fragile, {"x": failing})

    def run() -> list[Any]:
        x, w = _leaf(np.linspace(-1, 1, 24).reshape(6, 4)), _leaf(np.linspace(-0.5, 1, 16).reshape(4, 4))
        h = f(mg.tanh(x @ w)) * 2.0
        loss = _network(h, w)                           # w is reached before the failing rule is, and after it
        watched = _watch(loss, (x, w))
        try:
            loss.backward(create_graph=create_graph)
        except ZeroDivisionError:
            pass
        assert x.grad is None and w.grad is None and state.recording and state.depth == 0
        return watched

    watched = run()
    assert len(watched) > 20 and all(ref() is None for ref in watched)


@pytest.mark.parametrize("failing", [1, 2], ids=["forward", "replay"])
def test_an_interrupted_checkpoint_leaves_nothing(no_collector: None, failing: int):
    """An error inside a checkpoint, forward or replayed: contexts and the default stream are as they were, and all is freed."""
    inside: list[Any] = []

    def f(x: Any) -> Any:
        y = mg.dropout(x * 2.0, p=0.5)
        inside.append(weakref.ref(y.array))
        if len(inside) == failing:
            raise KeyboardInterrupt
        return mg.tanh(y)

    mg.random.manual_seed(0)
    x = _leaf(np.ones(5))
    h = x * 3.0
    watched = [weakref.ref(h.node), weakref.ref(h.array)]
    y = z = None
    try:
        y = mg.checkpoint(f)(h)
        z = mg.dropout(y, p=0.5)
        z.sum().backward()
    except KeyboardInterrupt:
        pass
    drawn = failing                                     # forward: the one inside; replay: that and the one after it, none twice
    assert mg.random.get_state() == (mg.random.key(0), drawn) and state.recording and x.grad is None
    y = z = h = None
    assert len(inside) == failing and all(ref() is None for ref in watched + inside)


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("transform", ["hvp", "jacobian"])
def test_grad_inside_grad_leaves_nothing(no_collector: None, transform: str, failing: bool):
    """The transforms keep nothing either, also where the function raised."""
    x, w = _leaf(np.linspace(-1, 1, 24).reshape(6, 4)), _leaf(np.linspace(-0.5, 1, 16).reshape(4, 4))
    seen: list[Any] = []

    def f(x: Any) -> Any:
        y = mg.tanh(x @ w)
        seen.extend([weakref.ref(y.node), weakref.ref(y.array)])
        if failing:
            raise ZeroDivisionError
        return (y * y).sum()

    try:
        if transform == "hvp":
            mg.hvp(f, (x,), (np.ones((6, 4)),))
        else:
            mg.jacobian(mg.grad(f))(x)
    except ZeroDivisionError:
        pass
    assert state.depth == 0 and state.recording
    assert len(seen) == 2 and all(ref() is None for ref in seen)


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


# ── nothing is shared, nothing is written ──
@pytest.mark.parametrize("hooks", [False, True])
def test_leaves_fed_by_one_cotangent_do_not_share_it(hooks: bool):
    """a + b sends the same array both ways; writing into one .grad must not show in the other, nor in the cotangent."""
    a, b, g = _leaf([1.0, 2.0]), _leaf([3.0, 4.0]), np.array([5.0, 6.0])
    for x in (a, b) if hooks else ():
        x.register_post_accumulate_grad_hook(lambda x: None)
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


def test_adding_to_grad_keeps_the_tensor_and_makes_a_new_array():
    """As in PyTorch .grad stays the same Tensor while gradients are added to it; an array taken from it keeps its numbers."""
    x = _leaf([1.0, 2.0])
    (x * 3.0).sum().backward()
    held, array = x.grad, x.grad.numpy()
    (x * 3.0).sum().backward()
    assert held is x.grad and held.tolist() == [6.0, 6.0] and array.tolist() == [3.0, 3.0]
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0.0


def test_adding_to_a_live_grad_makes_a_new_tensor():
    """A graph is behind the old one."""
    x = _leaf([1.0, 2.0])
    (x * x).sum().backward(create_graph=True)
    held = x.grad
    (x * 3.0).sum().backward()
    assert held.tolist() == [2.0, 4.0] and x.grad.tolist() == [5.0, 7.0] and x.grad.requires_grad


def test_a_cotangent_that_is_a_tensor_stays_the_callers():
    """What is added to .grad later is not added to it."""
    x, g = _leaf([1.0, 2.0]), mg.Tensor(np.array([5.0, 6.0]))
    x.backward(g, create_graph=True)
    (x * 3.0).sum().backward()
    assert x.grad.tolist() == [8.0, 9.0] and g.tolist() == [5.0, 6.0]


def test_asking_twice_for_one_gradient_gives_two_arrays():
    """gradients(y, [x, x]) are alike, and not one array."""
    x = _leaf([1.0, 2.0])
    a, b = mg.gradients((x * x).sum(), [x, x])
    assert a.tolist() == b.tolist() == [2.0, 4.0] and not np.shares_memory(a.numpy(), b.numpy())


def test_a_gradient_on_the_way_is_not_what_a_hook_gave():
    """A hook's Tensor is its owner's, who may write it later."""
    y = _leaf([1.0, 2.0]) * 2.0
    mine = mg.Tensor(np.array([3.0, 4.0]))
    y.register_hook(lambda g: mine)
    (slope,) = mg.gradients((y * 5.0).sum(), [y])
    assert slope.tolist() == [3.0, 4.0] and not np.shares_memory(slope.array, mine.array)


def test_a_rule_that_returns_what_it_kept_gives_nothing_away():
    """Where a rule's gradient is a residual itself, .grad is a copy, and no sum is written over the residual."""
    def product(xp, x, slopes):
        return x * slopes

    f = Op(product, {"x": lambda g, slopes: slopes})    # right for a cotangent of ones, which is all it is given here
    x, slopes = _leaf([1.0, 2.0]), np.array([3.0, 4.0])
    for given in (slopes, mg.Tensor(slopes)):
        x.grad = None
        f(x, given).sum().backward()
        assert x.grad.tolist() == [3.0, 4.0] and not np.shares_memory(x.grad.array, slopes)
    y = x * 1.0
    (f(y, slopes).sum() + f(y, slopes).sum() + (y * y).sum()).backward()
    assert slopes.tolist() == [3.0, 4.0] and x.grad.tolist() == [3.0 + 6.0 + 2.0, 4.0 + 8.0 + 4.0]
