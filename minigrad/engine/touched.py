"""Results that are not recorded; `checkpoint` must know from which leaves they are computed."""
from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from .graph import Leaf, Node, leaf_under
from .tensor import Tensor


class _Asked(threading.local):
    """The set that collects leaves; each thread has its own."""

    leaves: set[Leaf] | None = None                     # None outside `touching()`


asked = _Asked()


@contextlib.contextmanager
def touching() -> Iterator[set[Leaf]]:
    """Yield a set; after the block it holds every leaf that an op in the block used unrecorded."""
    was, asked.leaves = asked.leaves, set()
    mine = asked.leaves
    try:
        yield mine
    finally:
        asked.leaves = was
        if was is not None:
            was |= mine


def constant(out: Any, nodes: Iterable[Node | None]) -> Tensor:
    """A result as a constant; inside `touching()` the leaves among `nodes` join the set."""
    if asked.leaves is not None:
        asked.leaves.update(leaf for leaf in map(leaf_under, nodes) if leaf is not None)
    return Tensor(out)
