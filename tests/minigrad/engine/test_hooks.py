"""Hooks that a backward calls as it goes: of leaves, once .grad is whole, and of results."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from minigrad.errors import GraphError

OPS = [mg.tanh, mg.exp, lambda x: x * x, lambda x: x.T, lambda x: x[::-1], lambda x: mg.checkpoint(mg.tanh)(x)]


def graph(leaves, choices):
    """A scalar made of the leaves as `choices` say: pairs of two earlier values and an op."""
    values = list(leaves)
    for i, j, k in choices:
        a, b = values[i % len(values)], values[j % len(values)]
        values.append(OPS[k % len(OPS)](a) * 0.5 + mg.tanh(b @ a))
    return mg.stack(values).sum()


@given(st.integers(1, 4), st.lists(st.tuples(*[st.integers(0, 50)] * 3), max_size=12), st.integers(0, 9))
def test_hooks_change_no_gradient(n, choices, seed):
    """With hooks on some leaves every gradient has the same bits as without, each hook is called once, and .grad is whole by then."""
    def leaves():
        return [mg.random.normal(mg.random.fold_in(seed, i), (3, 3), dtype="float64").requires_grad_() for i in range(n)]

    plain = leaves()
    for _ in range(2):                                  # the second adds to the first
        graph(plain, choices).backward()
    ours, seen = leaves(), []
    for i, x in enumerate(ours):
        if i % 2 == 0:
            x.register_post_accumulate_grad_hook(lambda x, i=i: seen.append((i, x.grad.numpy().copy())))
    for _ in range(2):
        graph(ours, choices).backward()
    assert sorted(i for i, _ in seen) == sorted([*range(0, n, 2)] * 2)
    for x, y in zip(plain, ours):
        np.testing.assert_array_equal(x.grad.numpy(), y.grad.numpy())
    for i, found in seen[len(seen) // 2:]:
        np.testing.assert_array_equal(found, ours[i].grad.numpy())


@pytest.mark.parametrize("wrap", [lambda f: f, mg.checkpoint], ids=["plain", "checkpoint"])
def test_a_hook_is_called_while_backward_goes_on(wrap):
    """The hook of a weight comes as soon as the oldest node that read it is done: older ones have yet to be walked."""
    weights = [mg.random.normal(i, (4, 4)).requires_grad_() for i in range(3)]
    shared = mg.random.normal(9, (4, 4)).requires_grad_()
    x, nodes, seen = mg.random.normal(5, (2, 4)), [], []
    for w in weights:
        x = wrap(lambda x, w=w: mg.tanh(x @ w + x @ shared))(x)
        nodes.append(x.node)
    for name, w in [*enumerate(weights), ("shared", shared)]:
        w.register_post_accumulate_grad_hook(lambda w, name=name: seen.append((name, [node.saved is None for node in nodes])))
    x.sum().backward()
    assert seen[:2] == [(2, [False, False, True]), (1, [False, True, True])]
    assert {name for name, _ in seen[2:]} == {0, "shared"} and all(all(done) for _, done in seen[2:])


def test_a_hook_that_is_taken_away():
    """It is not called any more; the others are."""
    x, seen = mg.tensor([1.0], requires_grad=True), []
    first = x.register_post_accumulate_grad_hook(lambda x: seen.append("first"))
    second = x.register_post_accumulate_grad_hook(lambda x: seen.append("second"))
    x.sum().backward()
    first()
    first()
    x.sum().backward()
    second()
    x.sum().backward()
    assert seen == ["first", "second", "second"] and x.grad.item() == 3.0


def test_what_has_no_hooks():
    """A result and a constant have no .grad to wait for; mg.gradients touches no .grad, and calls no hook."""
    x, seen = mg.tensor([1.0], requires_grad=True), []
    for bad in (x * 2.0, mg.tensor([1.0])):
        with pytest.raises(GraphError, match="for a leaf that requires a gradient"):
            bad.register_post_accumulate_grad_hook(print)
    x.register_post_accumulate_grad_hook(seen.append)
    mg.gradients((x * x).sum(), [x])
    assert not seen and x.grad is None


def test_a_hook_of_what_backward_starts_from():
    """A leaf's own backward calls its hook."""
    x, seen = mg.tensor(2.0, requires_grad=True), []
    x.register_post_accumulate_grad_hook(lambda x: seen.append(x.grad.item()))
    x.backward()
    assert seen == [1.0]


def test_hooks_of_gradients_of_gradients():
    """With create_graph the hook sees a .grad that can be differentiated."""
    x, seen = mg.tensor([3.0], requires_grad=True), []
    x.register_post_accumulate_grad_hook(lambda x: seen.append(x.grad.requires_grad))
    (x * x * x).sum().backward(create_graph=True)
    assert seen == [True] and x.grad.item() == 27.0
    assert mg.gradients(x.grad.sum(), [x])[0].item() == 18.0


def test_a_hook_of_a_result():
    """It gets the whole gradient of the result, may change it, and can be differentiated through."""
    x, seen = mg.tensor([1.0, 2.0], requires_grad=True), []
    y = x * 3.0
    before = y.sum()
    y.register_hook(lambda g: seen.append(g.numpy().copy()))
    ((y * y).sum() + y.sum() + before).backward()
    np.testing.assert_array_equal(seen, [[8.0, 14.0]])
    np.testing.assert_array_equal(x.grad.numpy(), [24.0, 42.0])
    z = x * x
    z.register_hook(lambda g: g * 2.0)
    (first,) = mg.gradients((z * z).sum(), [x], create_graph=True)
    np.testing.assert_array_equal(first.numpy(), [8.0, 64.0])          # 2 · 4x³
    # it is 8 x z: 8 z, and 8 x through z, where the hook doubles once more
    np.testing.assert_array_equal(mg.gradients(first.sum(), [x])[0].numpy(), [40.0, 160.0])
    for bad in (x, mg.tensor(1.0)):
        with pytest.raises(GraphError, match=r"register_hook is for a result that requires a gradient"):
            bad.register_hook(print)
    y = x * 1.0
    y.register_hook(lambda g: g[:1])
    with pytest.raises(mg.ShapeError, match="returned"):
        y.sum().backward()
