"""Ops with several results, such as `split`.

The whole op has one node, and each result has a node too, which sends its cotangent, with its
number, to the node of the whole op.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import backend
from ..widen import narrowed
from . import live
from .graph import Node, Walk, state
from .tensor import Tensor
from .touched import constant

if TYPE_CHECKING:
    from .op import Op


class Pick:
    """The op of the node of one result: its cotangent is one part of the whole op's cotangent."""

    shown, variadic, view, hooks = "pick", False, True, ()

    def captured(self, node: Node) -> tuple[()]:
        return ()

    def pullback(self, node: Node, saved: tuple[int], g: Any, walk: Walk) -> None:
        whole = node.parents[0]
        assert whole is not None
        if whole in walk.sums:
            walk.sums[whole][saved[0]] = g
        else:
            walk.send(whole, {saved[0]: g})


PICK = Pick()


def wrapped(op: Op, outs: tuple[Any, ...], dtype: Any, args: Sequence[Any],
            nodes: Sequence[Node | None], settings: dict[str, Any]) -> tuple[Any, ...]:
    """The results as the call returns them.

    They are Tensors if an argument is one, and have a node each if an argument wants a gradient.
    dtype: a dtype of 16 bits if the results were computed in float32 and must be rounded.
    """
    if dtype is not None:
        outs = tuple(narrowed(o, dtype) for o in outs)
    if not any(isinstance(a, Tensor) for a in args):
        return outs
    if not (state.recording and any(nodes)):
        return tuple(constant(o, nodes) for o in outs)
    shapes = tuple(o.shape for o in outs)
    whole = op._record(args, nodes, None, None, settings, shapes, outs[0].dtype)
    return tuple(Tensor(o, Node(PICK, None, (whole,), (i,), {}, o.shape, o.dtype))
                 for i, o in enumerate(outs))


def pullback(op: Op, node: Node, saved: tuple[Any, ...], parts: dict[int, Any],
             walk: Walk) -> None:
    """`Op.pullback` for several outputs.

    parts: the cotangents that arrived, by the output's number. An output from which nothing was
    computed has a cotangent of zeros.
    """
    some = next(iter(parts.values()))
    array = some.array if walk.live else some
    here = backend.of(array).at(array)

    def zeros(shape: Any) -> Any:
        array = here.zeros(shape, dtype=node.dtype)
        return Tensor(array) if walk.live else array

    g = tuple(parts[i] if i in parts else zeros(shape) for i, shape in enumerate(node.shape))
    if walk.live:
        live.shares(op, node, saved, g, here, walk)
    else:
        op._shares(node, saved, g, here, walk)
