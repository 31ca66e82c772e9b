"""Small sizes for the NumPy kernels: their blocks, tiles and chunks hold a few numbers.

So small examples go through all of them.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ...backend.numpy.sizes import SIZES

# With axes of 0 … 3, and 0 … 9 rows, each loop has one round and several, and a last one that is
# full and one that is not.
SMALL: dict[str, dict[str, Any]] = {
    "ones": {"threads": 1, "block": 1, "sums": 1, "copy": 1, "square": 1, "logits": 1,
             "near_tile": 1, "far_tile": 1, "far": 1, "group": 1,
             "chunk": 1, "lanes": 1, "worth": 0, "panel": 1, "alone": 0},
    "twos": {"threads": 2, "block": 2, "sums": 2, "copy": 2, "square": 2, "logits": 20,
             "near_tile": 1, "far_tile": 2, "far": 2, "group": 4,
             "chunk": 2, "lanes": 1, "worth": 0, "panel": 2, "alone": 8},
    "fours": {"threads": 3, "block": 4, "sums": 3, "copy": 4, "square": 1, "logits": 40,
              "near_tile": 2, "far_tile": 3, "far": 2, "group": 40,
              "chunk": 4, "lanes": 2, "worth": 8, "panel": 3, "alone": 1 << 18},
}


@contextlib.contextmanager
def small_sizes(name: str = "twos", **sizes: Any) -> Iterator[None]:
    """Inside the block the NumPy kernels work at the sizes SMALL[name], or at `sizes`.

    `sizes` are given by their names in `backend.numpy.sizes.Sizes`. It changes them for the whole
    process. AttributeError for a size that there is not.
    """
    given = sizes or SMALL[name]
    before = {size: getattr(SIZES, size) for size in given}
    try:
        for size, value in given.items():
            setattr(SIZES, size, value)
        yield
    finally:
        for size, value in before.items():
            setattr(SIZES, size, value)
