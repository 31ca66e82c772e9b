"""Walking back: once, again where the graph was retained, and never over a value that was changed since."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import minigrad as mg


def _leaf(x: Any) -> mg.Tensor:
    return mg.Tensor(np.asarray(x, np.float64)).requires_grad_()


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
    with pytest.raises(mg.GraphError, match="has gone through"):
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
    """With create_graph .grad is a result of the graph, adds up as one, and a plain walk adds a constant to it."""
    x = _leaf(2.0)
    (x * x * x).backward(create_graph=True)
    assert mg.gradients(x.grad, [x], retain_graph=True)[0].item() == 12.0
    (x * x).backward(create_graph=True)
    (x * 5.0).backward()
    assert x.grad.item() == 21.0
    assert mg.gradients(x.grad, [x])[0].item() == 14.0


# ── versions ──
def _step(p: Any) -> None:
    p.grad = mg.Tensor(np.ones(p.shape))
    mg.optim.SGD([p], lr=0.1).step()


KEEPERS = {
    "mul": lambda p: p * p, "matmul": lambda p: p @ p, "einsum": lambda p: mg.einsum("ij,jk->ik", p, p), "tanh-arg": lambda p: mg.erf(p),
    "layer_norm": lambda p: mg.layer_norm(p, p[0], p[1]),
    "gelu": lambda p: mg.gelu(p, approximate="tanh"),
    "attention": lambda p: mg.attention(p, p, p, causal=True), "linear": lambda p: mg.linear(p, p), "max": mg.max,
    "cross_entropy": lambda p: mg.cross_entropy(p, np.array([0, 1])), "checkpoint": mg.checkpoint(lambda p: mg.tanh(p)),
    "captured": lambda p: mg.checkpoint(lambda x: x * p)(_ones()), "captured-view": lambda p: _captured(p.T),
    "captured-within": lambda p: mg.checkpoint(lambda x: mg.checkpoint(lambda x: x * p)(x))(_ones()),
    "captured-split": lambda p: mg.checkpoint(lambda x: x * mg.split(p, sections=2)[0])(_ones()),
}


def _ones() -> mg.Tensor:
    return _leaf(np.ones((2, 2)))


def _captured(v: mg.Tensor) -> mg.Tensor:
    return mg.checkpoint(lambda x: x * v)(_ones())


@pytest.mark.parametrize("view", [lambda p: p.T, lambda p: p.reshape(2, 2), lambda p: p[:1], lambda p: p.split(sections=2)[1],
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


def test_a_number_of_numpys_is_assigned_as_an_array():
    """What NumPy returns for an array of no axes is no array; assigned, it is one, and an optimiser can change it in place."""
    p = _leaf(2.0)
    p.assign(p.numpy() * 0.5)
    p.grad = mg.Tensor(np.asarray(1.0))
    mg.optim.SGD([p], lr=1.0).step()
    assert p.item() == 0.0
