"""The graph: nodes numbered in the order of their creation, recording, and the backward pass.

Creation order is a topological order, because a node's parents exist before it does   (reverse.5).
So the backward pass needs no sort and no recursion: a heap returns the newest node that has a
cotangent, and no newer node can still send to it.
"""
from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from heapq import heappop, heappush
from typing import Any

from .. import backend
from ..errors import GraphError
from ..widen import narrowed, widened
from . import refusals

_birth = itertools.count(1)


class _State(threading.local):
    """Whether this thread records; each thread has its own state."""

    recording = True
    depth = 0                                           # of functions that are being differentiated


state = _State()


class Node:
    """One call of an op: the nodes of its arguments, and its residuals. It holds no Tensor."""

    __slots__ = ("id", "op", "plan", "parents", "saved", "static", "shape", "dtype", "version",
                 "leaf", "__weakref__")

    def __init__(self, op: Any, plan: Any, parents: tuple[Node | None, ...], saved: tuple[Any, ...],
                 static: Mapping[str, Any], shape: Any, dtype: Any, version: int = 0) -> None:
        self.id = next(_birth)
        self.op, self.plan, self.parents, self.static = op, plan, parents, static
        self.saved: Any = saved                         # a tuple; None once it has been used
        self.shape, self.dtype, self.version = shape, dtype, version
        self.leaf = leaf_under(parents[0]) if parents and op.view else None     # what it views

    def __reduce_ex__(self, protocol: Any) -> Any:      # its number means nothing elsewhere
        raise GraphError(f"{self!r} is part of a graph, which cannot be copied or pickled; "
                         "copy Tensors, or x.detach()")

    def __repr__(self) -> str:
        return f"<{self.op.shown} #{self.id} {self.dtype}{list(self.shape)}>"


class Leaf(Node):
    """The node at the start of a graph: it belongs to a Tensor whose gradient is wanted.

    `version` counts the changes of the Tensor's value. hooks: functions without arguments, which
    are called after a backward pass has added to `grad`.
    """

    __slots__ = ("grad", "hooks")

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        super().__init__(None, None, (), (), {}, shape, dtype)
        self.grad: Any = None
        self.hooks: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<leaf #{self.id} {self.dtype}{list(self.shape)}>"


def leaf_under(node: Node | None) -> Leaf | None:
    """The node itself if it is a leaf; the leaf of which it is a view; None in any other case."""
    return node if node is None or type(node) is Leaf else node.leaf


@contextlib.contextmanager
def recording(on: bool) -> Iterator[None]:
    """Switch recording on or off inside the block, in this thread."""
    was, state.recording = state.recording, on
    try:
        yield
    finally:
        state.recording = was


def no_grad() -> contextlib.AbstractContextManager[None]:
    """Inside the block nothing is recorded: results require no gradient."""
    return recording(False)


def enable_grad() -> contextlib.AbstractContextManager[None]:
    """Record again inside a `no_grad()` block."""
    return recording(True)


class Walk:
    """A backward pass: the sum of the cotangents that were sent to each node so far.

    live: cotangents are Tensors of a graph. oldest: the number of the oldest target; an older node
    cannot depend on a target. turns: for leaves that are wanted as soon as their sums are complete,
    the position in the order of nodes; all other leaves come last. ours: nodes whose sum is in
    memory that nothing else uses, as far as is known.
    """

    __slots__ = ("live", "oldest", "turns", "sums", "heap")
    ours: Collection[Node] = ()

    def __init__(self, live: bool, oldest: int, turns: Mapping[Node, float]) -> None:
        self.live, self.oldest, self.turns = live, oldest, turns
        self.sums: dict[Node, Any] = {}
        self.heap: list[tuple[float, Node]] = []        # the newest node first

    def send(self, node: Node, g: Any) -> None:
        """Add g to node's sum   (reverse.4)."""
        if node in self.sums:
            self.sums[node] = self.added(node, self.sums[node], g)
        elif node.id >= self.oldest:
            self.sums[node] = g
            heappush(self.heap, (self.turns.get(node, -node.id), node))

    def added(self, node: Node, a: Any, b: Any) -> Any:
        """The sum of two cotangents; in float32 for 16 bits, in which it would stop growing."""
        total = widened(a) + widened(b) if node.dtype.itemsize == 2 else a + b
        return total if self.live else backend.of(total).adopt(total)


walk_of: type[Walk] = Walk                              # or FastWalk, which needs less memory


def backprop(root: Node, seed: Any, targets: Iterable[Node] | None = None, *,
             create_graph: bool = False, retain_graph: bool = False,
             early: Mapping[Node, float] = {}, arrived: Any = None) -> dict[Node, tuple[Any, bool]]:
    """The cotangents J₁ᵀ (J₂ᵀ … (J_Kᵀ g)) of `targets`   (reverse.1–5).

    targets: by default every leaf that is reached. Each result is a pair: the cotangent, and
    whether it is fresh, which means that nothing else uses its memory. seed: the cotangent g of
    root, an array of root's shape and dtype (a Tensor with create_graph, which makes the results
    differentiable). Residuals are freed after use unless retain_graph or create_graph. early:
    leaves with their turns (`hooks.turns`). arrived: a function that is called with such a leaf,
    its cotangent and whether it is fresh, as soon as the cotangent is complete; such a leaf is not
    among the results. GraphError for a second backward pass through a node whose residuals are
    gone.
    """
    wanted = None if targets is None else frozenset(targets)
    walk = walk_of(create_graph, min([node.id for node in wanted or ()], default=0), early)
    walk.send(root, seed)
    result, sums, heap = {}, walk.sums, walk.heap
    was, state.recording = state.recording, create_graph
    try:
        while heap:
            node = heappop(heap)[1]                     # nothing younger can still send to it
            g, op = sums.pop(node), node.op
            if node.dtype.itemsize == 2 and type(g) is not dict:
                g = narrowed(g, node.dtype)
            for hook in () if op is None else op.hooks:
                g = hook(g)
            if node in early:
                arrived(node, g, node in walk.ours)
            elif node in wanted if wanted is not None else op is None:
                result[node] = (g, op is None and node in walk.ours)
            if op is None or node.id == walk.oldest:
                continue
            if (saved := node.saved) is None:
                raise refusals.used_up(node)
            if not (retain_graph or create_graph):
                node.saved = None                       # residuals are freed after use
            op.pullback(node, saved, g, walk)
    except Exception as error:
        backend.translate(error, f"backward of {node}")
        raise
    finally:
        state.recording = was
    return result
