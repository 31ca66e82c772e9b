"""The graph: nodes numbered at birth, recording contexts, and the walk back.

Creation order is a topological order, for a node's parents exist before it does   (reverse.5). So the walk back needs no sort
and no recursion: a heap hands out the newest node that has a cotangent, and nothing younger can still send to it.
"""
from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from heapq import heappop, heappush
from typing import Any

from . import backend
from .errors import GraphError, MinigradError
from .widen import narrowed, widened

_birth = itertools.count(1)


class _State(threading.local):
    """Each thread records for itself."""

    recording = True
    depth = 0                                           # how many functions are being differentiated around us
    touched: set[Leaf] | None = None                    # the leaves that ops were given, while somebody wants to know


state = _State()
hooked: weakref.WeakSet[Leaf] = weakref.WeakSet()       # the leaves that have hooks


class Node:
    """One application of an op: whom it came from and what its rules keep; numbered after its parents   (reverse.5). Holds no Tensor."""

    __slots__ = ("id", "op", "plan", "parents", "saved", "static", "shape", "dtype", "version", "leaf", "__weakref__")

    def __init__(self, op: Any, plan: Any, parents: tuple[Node | None, ...], saved: tuple[Any, ...], static: Mapping[str, Any],
                 shape: Any, dtype: Any, version: int = 0) -> None:
        self.id = next(_birth)
        self.op, self.plan, self.parents, self.static = op, plan, parents, static
        self.saved: Any = saved                         # a tuple; None once the walk back has used it
        self.shape, self.dtype, self.version = shape, dtype, version
        self.leaf = leaf_under(parents[0]) if parents and op.view else None    # the one that this is a view of

    def __reduce_ex__(self, protocol: Any) -> Any:      # copy and pickle ask here; a number means nothing elsewhere
        raise GraphError(f"{self!r} is part of a graph, which cannot be copied or pickled; copy Tensors, or x.detach()")

    def __repr__(self) -> str:
        return f"<{self.op.shown} #{self.id} {self.dtype}{list(self.shape)}>"


class Leaf(Node):
    """The start of a graph: a Tensor whose gradient is wanted. `version` counts the changes of its value.

    hooks: what is called, without arguments, once a walk back has added to `grad`.
    """

    __slots__ = ("grad", "hooks")

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        super().__init__(None, None, (), (), {}, shape, dtype)
        self.grad: Any = None
        self.hooks: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<leaf #{self.id} {self.dtype}{list(self.shape)}>"


@contextlib.contextmanager
def recording(on: bool) -> Iterator[None]:
    """Record a graph, or not, inside the block, in this thread."""
    was, state.recording = state.recording, on
    try:
        yield
    finally:
        state.recording = was


@contextlib.contextmanager
def touching() -> Iterator[set[Leaf]]:
    """The set that it gives holds, after the block, every leaf that an op used inside without recording it."""
    was, state.touched = state.touched, set()
    mine = state.touched
    try:
        yield mine
    finally:
        state.touched = was
        if was is not None:
            was |= mine


def leaf_under(node: Node | None) -> Leaf | None:
    """The leaf that a node is, or is a view of."""
    return node if node is None or type(node) is Leaf else node.leaf


def touch(nodes: Iterable[Node | None]) -> None:
    """An op used these without recording them: tell whoever wants to know."""
    if state.touched is not None:
        state.touched.update(leaf for leaf in map(leaf_under, nodes) if leaf is not None)


def no_grad() -> contextlib.AbstractContextManager[None]:
    """Inside the block nothing is recorded: results want no gradient."""
    return recording(False)


def enable_grad() -> contextlib.AbstractContextManager[None]:
    """Record again inside a `no_grad()` block."""
    return recording(True)


class differentiating:
    """Inside a function that is being differentiated: everything is recorded.

    The context, not the inputs, tells an inner `grad` that its result must be differentiable: the outer variable may
    reach it through a closure.
    """

    def __enter__(self) -> None:
        self.was, state.recording = state.recording, True
        state.depth += 1

    def __exit__(self, *error: object) -> None:
        state.depth -= 1
        state.recording = self.was


class Walk:
    """A walk back: what has been sent to each node so far, and whether nobody else holds the memory of that.

    live: cotangents are Tensors of a graph. oldest: the number of the oldest target; nothing older can depend on one. turns: of leaves
    that are wanted as soon as their sums are complete, when that is; all others come last.
    """

    __slots__ = ("live", "oldest", "turns", "sums", "heap")

    def __init__(self, live: bool, oldest: int, turns: Mapping[Node, float]) -> None:
        self.live, self.oldest, self.turns = live, oldest, turns
        self.sums: dict[Node, tuple[Any, bool]] = {}
        self.heap: list[tuple[float, Node]] = []        # the newest node first: nothing younger can still send to it

    def send(self, node: Node, g: Any, fresh: bool = False, slot: int | None = None) -> None:
        """Add g to node's sum   (reverse.4). `fresh`: nobody else holds g's memory. slot: of an op's several outputs, each sent once."""
        if node.id < self.oldest:
            return
        if node not in self.sums:
            self.sums[node] = (g if slot is None else {slot: g}, fresh)
            heappush(self.heap, (self.turns.get(node, -node.id), node))
            return
        old, ours = self.sums[node]
        if slot is not None:
            old[slot] = g
        elif node.dtype.itemsize == 2:                  # in float32 until it is whole: a sum of 16 bits stops growing
            self.sums[node] = (widened(old) + widened(g), not self.live)
        elif self.live:
            self.sums[node] = (old + g, False)
        elif ours:
            old += g
        else:
            self.sums[node] = (backend.of(old).adopt(old + g), True)

    def sent(self, node: Node) -> Any:
        """node's sum so far, which others may hold too; None where nothing of the node's dtype was sent yet."""
        sum = self.sums[node][0] if node in self.sums else None
        return None if sum is None or sum.dtype != node.dtype else sum

    def replace(self, node: Node, g: Any) -> None:
        """g, which nobody else holds, in the place of node's sum."""
        self.sums[node] = (g, True)

    def sum(self, node: Node) -> Any:
        """node's sum if it may be written over, else None."""
        sum, ours = self.sums.get(node, (None, False))
        return sum if ours and sum.dtype == node.dtype else None


class Hooked:
    """The op of a node with gradient hooks: each sees the node's whole cotangent, and may replace it, before the op gets it."""

    def __init__(self, op: Any) -> None:
        self.op = op
        self.hooks: list[Callable[[Any], Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.op, name)


def sources(node: Node) -> tuple[Node | None, ...]:
    """What a node's walk back may send to: its parents, and the leaves that a checkpointed function read."""
    return node.parents if node.plan is not None else (*node.parents, *node.op.captured(node))


def turns(roots: Iterable[Node]) -> dict[Node, float]:
    """When a walk back from these nodes has the whole gradient of each leaf with hooks: after the oldest node that read it (parallel.8)."""
    oldest: dict[Leaf, int] = {}
    seen: set[Node] = set()
    queue = list(roots)
    while queue:
        node = queue.pop()
        if node in seen or isinstance(node, Leaf):      # a root may be one
            continue
        seen.add(node)
        for parent in sources(node):
            if isinstance(parent, Leaf):
                if parent.hooks:
                    oldest[parent] = min(node.id, oldest.get(parent, node.id))
            elif parent is not None:
                queue.append(parent)
    return {leaf: -at + (i + 1) / (len(oldest) + 1) for i, (leaf, at) in enumerate(oldest.items())}


def backprop(seeds: Iterable[tuple[Node, Any]], targets: Iterable[Node] | None = None, *, create_graph: bool = False,
             retain_graph: bool = False, arrived: Callable[[Leaf, Any, bool], None] | None = None) -> dict[Node, tuple[Any, bool]]:
    """Cotangents J₁ᵀ (J₂ᵀ … (J_Kᵀ g))   (reverse.1–5) of `targets` (default: of every leaf reached), each with whether its memory is
    nobody else's.

    seeds: pairs of a node and its cotangent, an array of the node's shape and dtype (a Tensor with create_graph, which
    makes the results differentiable). Residuals die as they are used unless retain_graph or create_graph.
    arrived: called with a leaf that has hooks, its cotangent and whether that is nobody else's, as soon as it is complete; such a leaf
    is not among the results.
    GraphError on a second walk over a node whose residuals are gone.
    """
    wanted = None if targets is None else frozenset(targets)
    seeds = list(seeds)
    early = {} if arrived is None else turns(node for node, _ in seeds)
    walk = Walk(create_graph, 0 if not wanted else min([node.id for node in wanted]), early)
    retain, result = retain_graph or create_graph, {}
    sums, heap = walk.sums, walk.heap
    for node, g in seeds:
        walk.send(node, g)
    was, state.recording = state.recording, create_graph
    try:
        while heap:
            node = heappop(heap)[1]
            g, fresh = sums.pop(node)
            if node.dtype.itemsize == 2 and type(g) is not dict:
                g = narrowed(g, node.dtype)
            if node in early:
                assert arrived is not None and isinstance(node, Leaf)
                arrived(node, g, fresh)
                continue
            if node.op is None:
                if wanted is None or node in wanted:
                    result[node] = (g, fresh)
                continue
            if type(node.op) is Hooked:
                for hook in node.op.hooks:
                    g = hook(g)
            if wanted is not None and node in wanted:
                result[node] = (g, False)
                if node.id == walk.oldest:
                    continue
            saved = node.saved
            if saved is None:
                raise GraphError(f"{node} was walked back already and its residuals are gone; pass retain_graph=True to the first walk")
            if not retain:
                node.saved = None                       # residuals die as soon as they are used
            node.op.pullback(node, saved, g, walk)
    except MinigradError:
        raise
    except Exception as error:
        if (ours := backend.explained(error, f"backward of {node}")) is None:
            raise
        raise ours from None
    finally:
        state.recording = was
    return result
