"""Copies, pickles, in-place operators, and arrays that are written after an op was given them: no gradient is lost or wrong.

PyTorch is the peer: each line gives its number, or an error where it has none or another one.
"""
from __future__ import annotations

import copy
import multiprocessing
import operator
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from minigrad.debug import detect_writes

KINDS: dict[str, Callable[[Any], Any]] = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


def _leaf(x: Any) -> mg.Tensor:
    return mg.tensor(np.asarray(x, np.float32), requires_grad=True)


# ── copies ──
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_of_a_leaf_is_a_leaf_of_its_own(kind: str):
    """x · copy(x): each factor gets its own gradient, and what is added to one is not added to the other."""
    x = _leaf([2.0, 3.0])
    y = KINDS[kind](x)
    (x * y).sum().backward()
    assert type(y) is mg.Tensor and y.is_leaf and y.requires_grad
    assert x.grad.tolist() == y.grad.tolist() == [2.0, 3.0]
    with mg.no_grad():
        y += 1.0
    assert x.tolist() == [2.0, 3.0] and y.tolist() == [3.0, 4.0]


def test_what_is_copied_along():
    """.grad goes with a deepcopy, as in PyTorch, and not with a pickle; a Parameter stays one, a constant stays a constant."""
    x = _leaf([2.0, 3.0])
    (x * x).sum().backward()
    y = copy.deepcopy(x)
    assert y.grad is not x.grad and y.grad.tolist() == [4.0, 6.0] and KINDS["pickle"](x).grad is None
    for f in KINDS.values():
        assert type(f(mg.Parameter(np.ones(2)))) is mg.Parameter
        assert not f(mg.tensor([1.0])).requires_grad and not f(mg.Parameter(np.ones(2), requires_grad=False)).requires_grad
    pair = copy.deepcopy([x, x])
    assert pair[0] is pair[1]


def test_what_a_subclass_holds_is_copied():
    """Attributes of a Parameter's subclass come along, each copy with its own."""

    class Named(mg.Parameter):
        pass

    p = Named(np.ones(2))
    p.tags = ["a"]
    q = copy.deepcopy(p)
    q.tags.append("b")
    assert type(q) is Named and p.tags == ["a"] and q.tags == ["a", "b"]
    assert Named.__reduce__(p)[2] == {"tags": ["a"]}


def test_a_result_is_not_copied():
    """Its graph would be lost, or shared: a GraphError says to detach it; a constant result has no graph and is copied."""
    x = _leaf([2.0])
    for f in KINDS.values():
        with pytest.raises(mg.GraphError, match="detach"):
            f(x * 3.0)
        with pytest.raises(mg.GraphError, match="part of a graph"):
            f(x.node)
        assert f((x * 3.0).detach()).tolist() == [6.0]
    with pytest.raises(mg.GraphError, match="deepcopy"):
        copy.copy(x)


def _gradient_of_cube(pickled: bytes, queue: Any) -> None:
    x = pickle.loads(pickled)
    (x * x * x + x).sum().backward()
    queue.put(x.grad.tolist())


def test_a_pickled_leaf_is_differentiated_in_another_process():
    """Whatever its number was where it was made, it comes after nothing there: d(x³ + x)/dx at 3 is 28."""
    for _ in range(100):
        x = _leaf([3.0])
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_gradient_of_cube, args=(pickle.dumps(x), queue))
    process.start()
    assert queue.get(timeout=60) == [28.0]
    process.join()


@pytest.mark.parametrize("op", [mg.gelu, mg.softmax, mg.ops.elementwise.add])
def test_an_op_is_copied_as_itself(op: Any):
    assert all(f(op) is op for f in KINDS.values())


# ── in place ──
IN_PLACE = {"+=": operator.iadd, "-=": operator.isub, "*=": operator.imul, "/=": operator.itruediv, "**=": operator.ipow}


@pytest.mark.parametrize("symbol", IN_PLACE)
def test_a_leaf_changes_in_place_under_no_grad_alone(symbol: str):
    """The line of every hand-written training loop does what it does in PyTorch, seen also through what shares the memory."""
    f = IN_PLACE[symbol]
    p, q = mg.Parameter(np.float32([1.0, 2.0])), torch.tensor([1.0, 2.0], requires_grad=True)
    (p * p).sum().backward()
    (q * q).sum().backward()
    shared, old = p.detach(), p
    with mg.no_grad(), torch.no_grad():
        p, q = f(p, 0.5 * p.grad), f(q, 0.5 * q.grad)
    assert p is old and p.is_leaf and p.requires_grad
    np.testing.assert_array_equal(p.numpy(), q.detach().numpy())
    np.testing.assert_array_equal(shared.numpy(), p.numpy())
    with pytest.raises(mg.GraphError, match="no_grad"):
        f(p, 1.0)


def test_a_leaf_that_a_graph_needs_is_refused_after_it_was_changed():
    x = _leaf([2.0])
    y = x * x
    with mg.no_grad():
        x += 1.0
    with pytest.raises(mg.GraphError, match="changed"):
        y.backward(np.ones(1, np.float32))


@pytest.mark.parametrize("symbol", IN_PLACE)
def test_a_result_becomes_the_next_one(symbol: str):
    """`loss += penalty`: value and gradient as in PyTorch, under every name of the object."""
    f = IN_PLACE[symbol]
    found = []
    for leaf in (_leaf([1.5, 2.0]), torch.tensor([1.5, 2.0], requires_grad=True)):
        y = leaf * 3.0
        alias = y
        y = f(y, leaf + 1.0)
        assert alias is y
        y.sum().backward()
        found.append([alias.detach().numpy(), leaf.grad.numpy()])
    for ours, theirs in zip(*found):
        np.testing.assert_allclose(ours, theirs, rtol=8 * np.finfo(np.float32).eps)


def test_a_result_changed_under_no_grad_keeps_its_place():
    """As in PyTorch: the change is not recorded, and the gradient is that of what was recorded."""
    x = _leaf([1.0, 2.0])
    y = x * 3.0
    with mg.no_grad():
        y += 10.0
    y.sum().backward()
    assert y.tolist() == [13.0, 16.0] and x.grad.tolist() == [3.0, 3.0]


def test_what_in_place_would_not_do_is_refused():
    """A view (in PyTorch its base changes too) and a result of another shape or dtype; the Tensor stays as it was."""
    x = _leaf(np.ones((2, 2)))
    constant = mg.tensor(np.ones((2, 2), np.float32))
    for view in (constant[0], (x * 1.0).T, (x * 1.0)[0], x.detach(), constant.detach()):
        with pytest.raises(mg.GraphError, match="a view"):
            view += 1.0
    row = mg.tensor(np.ones(2, np.float32))
    with pytest.raises(mg.ShapeError, match=r"\[2\].*\[2, 2\]"):
        row += constant
    with pytest.raises(TypeError):
        row += "1"
    with pytest.raises(mg.DTypeError):
        row += mg.tensor(np.ones(2))
    assert row.tolist() == [1.0, 1.0] and constant.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_a_gradient_is_scaled_in_place():
    x = _leaf([1.0, 2.0])
    (x * x).sum().backward()
    held = x.grad
    x.grad *= 0.5
    assert held is x.grad and x.grad.tolist() == [1.0, 2.0]


# ── arrays that are written later ──
def _written(name: str) -> tuple[Any, Callable[[Any, Any], Any], Any]:
    """An array that an op is given, a function of it and a leaf [4, 3], and what is written over it."""
    rng = np.random.default_rng(0)
    number, places = rng.standard_normal((4, 3)).astype(np.float32), np.array([0, 1, 1])
    mask = np.array([[True, False, True]] * 4)
    every: dict[str, tuple[Any, Callable[[Any, Any], Any], Any]] = {
        "mul": (number, lambda x, c: x * c, 7.0), "rmul": (number, lambda x, c: c * x, 7.0), "div": (number, lambda x, c: x / c, 7.0),
        "power": (np.abs(number), lambda x, c: (x * x) ** c, 7.0), "maximum": (number, mg.maximum, 7.0),
        "matmul": (number.T.copy(), lambda x, c: x @ c, 7.0), "einsum": (number, lambda x, c: mg.einsum("ij,kj->ik", x, c), 7.0),
        "where": (mask, lambda x, c: mg.where(c, x, 0.0), False), "getitem": (places, lambda x, c: x[c], 2),
        "getitem-tuple": (places, lambda x, c: x[:, c], 2), "getitem-mask": (mask, lambda x, c: x[c], False),
        "getitem-list": ([0, 1, 1], lambda x, c: x[c], 2), "getitem-lists": ([0, 1, 1], lambda x, c: x[c, [2, 0, 1]], 2),
        "embedding": (places, lambda x, c: mg.embedding(c, x), 2), "take": (places, lambda x, c: mg.take(x, c), 2),
        "gather": (np.zeros((4, 3), int), lambda x, c: mg.gather(x, c, axis=0), 2),
        "scatter_add": (np.zeros((4, 3), int), lambda x, c: mg.scatter_add(x, c, x * x, axis=0), 2),
        "cross_entropy": (np.zeros(4, int), mg.cross_entropy, 2),
        "linear_cross_entropy": (np.zeros(4, int), lambda x, c: mg.linear_cross_entropy(x, mg.tensor(number, requires_grad=True), c), 2),
        "attention": (np.tri(4, dtype=bool), lambda x, c: mg.attention(x, x, x, c, causal=False), True),
        "layer_norm": (number[0].copy(), lambda x, c: mg.layer_norm(x, c, c), 7.0),
        "linear": (number.copy(), lambda x, c: mg.linear(x, c), 7.0),
        "permute-axes": ([1, 0], lambda x, c: mg.permute(x, axes=c), 0),
        "checkpoint": (number, lambda x, c: mg.checkpoint(lambda a, b: a * b)(x, c), 7.0),
        "concat": (number, lambda x, c: mg.concat([x, c], axis=0) ** 2, 7.0),
    }
    return every[name] if name else every


WRITTEN = sorted(_written(""))                          # type: ignore[arg-type]


@pytest.mark.parametrize("name", WRITTEN)
def test_an_array_may_be_written_once_the_op_has_returned(name: str):
    """A batch buffer that is filled anew, an index list that is reused: the gradient is that of what the op saw; also by create_graph."""
    given, f, value = _written(name)
    found = []
    for write in (False, True):
        x = mg.tensor(np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32), requires_grad=True)
        array = copy.deepcopy(given)
        loss = (f(x, array) ** 2).sum()
        if write:
            array[:] = [value] * len(array) if isinstance(array, list) else value
        g, = mg.gradients(loss, [x], create_graph=True, retain_graph=True)
        second, = mg.gradients((g * g).sum(), [x], retain_graph=True)
        loss.backward()
        found.append([g.numpy(), second.numpy(), x.grad.numpy()])
    for kept, written in zip(*found):
        np.testing.assert_array_equal(kept, written)


def test_a_cotangent_and_primals_may_be_written_later():
    """backward(array), gradients(…, array) and vjp(f, array) copy what a graph still needs."""
    x, g = _leaf([2.0, 3.0]), np.float32([1.0, 1.0])
    first, = mg.gradients(x * x * x, [x], g, create_graph=True)
    (x * x).backward(g, create_graph=True)
    g[:] = 50.0
    assert x.grad.tolist() == [4.0, 6.0] and mg.gradients(first.sum(), [x])[0].tolist() == [12.0, 18.0]
    primal = np.float32([2.0, 3.0])
    _, pull = mg.vjp(lambda a: a * a, primal)
    primal[:] = 50.0
    assert pull(np.float32([1.0, 1.0]))[0].tolist() == [4.0, 6.0]


@given(st.sampled_from(["Tensor", "from_dlpack", "array", "detached", "checkpoint"]))
def test_detect_writes_finds_what_nobody_else_sees(how: str):
    """Memory that is shared with a Tensor on purpose: an error names the op and the array; without a write there is none."""
    for write in (False, True):
        w, a = _leaf([1.0, 2.0]), np.float32([3.0, 4.0])
        with detect_writes():
            if how == "detached":
                c: Any = mg.Tensor(a).requires_grad_().detach()
            elif how == "array":
                c = mg.tensor(a)
                a = c.array
            else:
                c = (mg.from_dlpack if how == "from_dlpack" else mg.Tensor)(a)
            y = (mg.checkpoint(lambda x, c: x * c)(w, c) if how == "checkpoint" else w * c).sum()
            if write:
                a[0] = 9.0
                with pytest.raises(mg.GraphError, match=r"float32\[2\], was saved for backward and has been changed"):
                    y.backward()
            else:
                y.backward()
                assert w.grad.tolist() == [3.0, 4.0]


def test_a_parameter_does_not_share_the_callers_array():
    """Parameter(array) and assign(array) copy; a Tensor, which cannot be written, is shared."""
    a, t = np.float32([1.0, 2.0]), mg.tensor([1.0, 2.0])
    p, q = mg.Parameter(a), mg.Parameter([3.0, 4.0]).assign(a)
    a[:] = 0.0
    assert p.tolist() == q.tolist() == [1.0, 2.0] and mg.Parameter([0.5]).tolist() == [0.5]
    assert mg.Parameter(t).array is t.array and q.assign(t).array is t.array


# ── threads ──
def test_threads_lose_no_gradient():
    """Eight threads that each add to one leaf's .grad a hundred times: every addition arrives."""
    x = _leaf(np.zeros(1000))

    def work() -> None:
        for _ in range(100):
            (x * 1.0).sum().backward()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert (x.grad.numpy() == 800.0).all()


def test_gradients_are_added_one_after_the_other(monkeypatch: pytest.MonkeyPatch):
    """No thread begins to add to a .grad while another one does, however long that takes."""
    from minigrad.engine import tensor

    x, inside, most = _leaf(np.zeros(3)), [], []
    (x * 1.0).sum().backward()
    added = tensor._added

    def slow(*given: Any) -> Any:
        inside.append(None)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        return added(*given)

    monkeypatch.setattr(tensor, "_added", slow)
    threads = [threading.Thread(target=lambda: (x * 1.0).sum().backward()) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert max(most) == 1 and len(most) == 8 and (x.grad.numpy() == 9.0).all()


def test_a_hook_sees_what_the_result_was_used_for_before_too():
    """register_hook after the use, several hooks, and gradients() of the result itself: PyTorch's numbers."""
    found = []
    for leaf, gradients in ((_leaf([1.0, 2.0]), mg.gradients), (torch.tensor([1.0, 2.0], requires_grad=True), torch.autograd.grad)):
        seen: list[Any] = []
        y = leaf * 2.0
        z = (y + 1.0).sum()
        y.register_hook(lambda g: g * 3.0)
        y.register_hook(lambda g, seen=seen: seen.append(g.tolist()))
        at, = gradients(z, [y], retain_graph=True)
        (z + y.sum()).backward()
        found.append([at.tolist(), seen, leaf.grad.tolist()])
    assert found[0] == found[1]


def test_a_gradient_is_not_forgotten():
    """requires_grad_(False) while .grad waits for a step: PyTorch keeps it, here it is refused; without one it freezes the leaf."""
    x = _leaf([1.0])
    (x * x).sum().backward()
    with pytest.raises(mg.GraphError, match="zero_grad"):
        x.requires_grad_(False)
    x.grad = None
    assert not x.requires_grad_(False).requires_grad


def test_numpy_does_not_take_a_gradient_away():
    """What NumPy would make plain numbers of is refused while a gradient is wanted, as in PyTorch; values stay readable."""
    w = _leaf([1.0, 2.0])
    for f in (np.asarray, np.array, lambda x: np.array([x.sum(), x.sum()]), lambda x: list(np.asarray(x * 2.0)), np.from_dlpack,
              lambda x: np.zeros(2).__setitem__(slice(None), x)):
        with pytest.raises(mg.GraphError, match="detach"):
            f(w)
    with mg.no_grad():
        assert np.asarray(w).tolist() == [1.0, 2.0]
    assert w.numpy().tolist() == w.tolist() == np.asarray(w.detach()).tolist() == [1.0, 2.0]
