"""Hooks: functions that are called in a backward pass.

A hook of a result is called with the result's cotangent. A hook of a leaf is called as soon as the
leaf's gradient is complete, so data-parallel training can send it while the pass goes on.
"""
from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from .graph import Leaf, Node

hooked: weakref.WeakSet[Leaf] = weakref.WeakSet()       # the leaves that have hooks


class Hooked:
    """The op of a node with hooks, which see the node's complete cotangent and may replace it."""

    def __init__(self, op: Any) -> None:
        self.op = op
        self.hooks: list[Callable[[Any], Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.op, name)


def leaf_hook(leaf: Leaf, hook: Callable[[], None]) -> Callable[[], None]:
    """Add a hook to a leaf; return a function that removes it."""
    leaf.hooks.append(hook)
    hooked.add(leaf)

    def remove() -> None:
        if hook in leaf.hooks:
            leaf.hooks.remove(hook)
        if not leaf.hooks:
            hooked.discard(leaf)

    return remove


def sources(node: Node) -> tuple[Node | None, ...]:
    """The nodes to which a node may send: its parents, and leaves that a checkpoint captured."""
    return node.parents if node.plan is not None else (*node.parents, *node.op.captured(node))


def turns(roots: Iterable[Node]) -> dict[Node, float]:
    """The turn of each leaf with hooks: right after the oldest node that read it   (parallel.8)."""
    oldest: dict[Leaf, int] = {}
    seen: set[Node] = set()
    queue = list(roots)
    while queue:
        node = queue.pop()
        if node in seen or isinstance(node, Leaf):      # a root may be a leaf
            continue
        seen.add(node)
        for parent in sources(node):
            if isinstance(parent, Leaf):
                if parent.hooks:
                    oldest[parent] = min(node.id, oldest.get(parent, node.id))
            elif parent is not None:
                queue.append(parent)
    return {leaf: -at + (i + 1) / (len(oldest) + 1) for i, (leaf, at) in enumerate(oldest.items())}
