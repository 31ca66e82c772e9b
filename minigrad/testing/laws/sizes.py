"""Small sizes for the NumPy kernels: their blocks, tiles and chunks hold a few numbers.

Then even small examples need several blocks, tiles and chunks.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ...backend.numpy.sizes import SIZES

# On examples with axes of 0 … 3 and with 0 … 9 rows, each loop of a kernel is tested with one round
# and with several, and with a last round that is full and one that is not.
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
    """Inside the block the NumPy kernels work with the sizes SMALL[name], or with `sizes`.

    sizes: values by their names in `backend.numpy.sizes.Sizes`. They change for the whole process,
    in all threads. AttributeError for an unknown name.
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
