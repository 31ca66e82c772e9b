"""Ops of several results, as `split` is: there is a node of the whole op, and one for each result,
which hands its cotangent to the whole under its number."""
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
    """The op of the node of one result: its cotangent is that part of the whole's."""

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
    """The results as the call returns them: Tensors where an argument is one, with a node each
    where one wants a gradient. dtype: of 16 bits, where they were computed in float32."""
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
    """`Op.pullback` of those cotangents that arrived, by their numbers; of the others, which
    nothing was computed from, they are zeros."""
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
