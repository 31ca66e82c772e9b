"""The gradient of a gradient: a backward pass with create_graph.

Its cotangents are Tensors of a graph, and the rules run on Tensors, so their results are recorded.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import backend
from ..backend.base import Backend
from ..widen import narrowed
from .declaration import REGISTRY
from .graph import Node, Walk, recording, state
from .tensor import Tensor

if TYPE_CHECKING:
    from .op import Op


class differentiating:
    """The context of a function that is being differentiated; everything in it is recorded.

    An inner `grad` makes its result differentiable because of this context, not because of its
    inputs: the outer variable may reach it through a closure.
    """

    def __enter__(self) -> None:
        self.was, state.recording = state.recording, True
        state.depth += 1

    def __exit__(self, *error: object) -> None:
        state.depth -= 1
        state.recording = self.was


def pullback(op: Op, node: Node, saved: tuple[Any, ...], g: Tensor, walk: Walk) -> None:
    """`Op.pullback` for a cotangent that is a Tensor."""
    shares(op, node, saved, g, backend.of(g.array).at(g.array), walk)


def shares(op: Op, node: Node, saved: tuple[Any, ...], g: Any, here: Backend, walk: Walk) -> None:
    """Send each argument's share of g, which is a Tensor or a tuple with one for each output.

    The op's rules compute the shares if all residuals are part of the graph. A by-product is not;
    then the definition is replayed.
    """
    if node.plan.replay:
        replay(op, node, saved, g, walk)
    else:
        op._shares(node, alive(node, saved), g, here, walk)


def alive(node: Node, saved: tuple[Any, ...]) -> tuple[Any, ...]:
    """The residuals for ∂(Jᵀ g): those that are part of the graph become Tensors   (reverse.6)."""
    values = list(saved)
    for k, (kind, at) in enumerate(node.plan.sources):
        if kind == "arg" and at < len(node.parents) and node.parents[at] is not None:
            values[k] = Tensor(saved[k], node.parents[at])
        elif kind == "args":
            values[k] = tuple(Tensor(a, p) for a, p in zip(saved[k], node.parents))
        elif kind == "out":
            values[k] = Tensor(saved[k], node)
            if saved[k].dtype != node.dtype:            # it was saved before it was rounded
                rounded = Tensor(narrowed(saved[k], node.dtype), node)
                values[k] = REGISTRY["astype"].recorded(saved[k], rounded, dtype="float32")
    return tuple(values)


def replay(op: Op, node: Node, saved: tuple[Any, ...], g: Any, walk: Walk) -> None:
    """Run the definition again, recorded   (reverse.7).

    Its nodes are the newest, so the backward pass goes on through them.
    """
    values = dict(zip(node.plan.names, saved))
    inputs = [Tensor(values[a], p) if hasattr(values[a], "dtype") else values[a]
              for a, p in zip(op.args, node.parents)]
    assert op.definition is not None
    with recording(True):
        out = op.definition(*inputs, **node.static)
    walk.send(out.node, g)
