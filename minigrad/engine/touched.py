"""Results that are not recorded, and the leaves that they are computed from, which `checkpoint`
has to know."""
from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from .graph import Leaf, Node, leaf_under
from .tensor import Tensor


class _Asked(threading.local):
    """Each thread asks for itself."""

    leaves: set[Leaf] | None = None                     # None: nobody asks


asked = _Asked()


@contextlib.contextmanager
def touching() -> Iterator[set[Leaf]]:
    """The set that it gives holds, after the block, every leaf that an op used inside without
    recording it."""
    was, asked.leaves = asked.leaves, set()
    mine = asked.leaves
    try:
        yield mine
    finally:
        asked.leaves = was
        if was is not None:
            was |= mine


def constant(out: Any, nodes: Iterable[Node | None]) -> Tensor:
    """A result as a constant; whoever wants to know is told of the leaves among the arguments'
    nodes."""
    if asked.leaves is not None:
        asked.leaves.update(leaf for leaf in map(leaf_under, nodes) if leaf is not None)
    return Tensor(out)
