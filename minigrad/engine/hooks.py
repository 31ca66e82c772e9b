"""What the graph needs for hooks: those of a result's cotangent, and those of a leaf, which are
called as soon as its gradient is complete, so that data-parallel training sends it while the pass
goes on."""
from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from .graph import Leaf, Node

hooked: weakref.WeakSet[Leaf] = weakref.WeakSet()       # the leaves that have hooks


class Hooked:
    """The op of a node with gradient hooks: each sees the node's whole cotangent, and may replace
    it, before the op gets it."""

    def __init__(self, op: Any) -> None:
        self.op = op
        self.hooks: list[Callable[[Any], Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.op, name)


def leaf_hook(leaf: Leaf, hook: Callable[[], None]) -> Callable[[], None]:
    """Add a hook to a leaf; returns a function that takes it away."""
    leaf.hooks.append(hook)
    hooked.add(leaf)

    def remove() -> None:
        if hook in leaf.hooks:
            leaf.hooks.remove(hook)
        if not leaf.hooks:
            hooked.discard(leaf)

    return remove


def sources(node: Node) -> tuple[Node | None, ...]:
    """What a node may send to: its parents, and the leaves that a checkpointed function read."""
    return node.parents if node.plan is not None else (*node.parents, *node.op.captured(node))


def turns(roots: Iterable[Node]) -> dict[Node, float]:
    """When a backward pass from these nodes has the whole gradient of each leaf with hooks: after
    the oldest node that read it   (parallel.8)."""
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
