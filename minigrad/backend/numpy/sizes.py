"""The sizes at which the NumPy kernels change their method.

They are the sizes of blocks, tiles and chunks, and the sizes from which these are faster. The
kernels read them at each call from the one object SIZES, so that `minigrad.testing.small_sizes` can
make all of them small at once: then even small arrays go through several blocks, a last block that
is not full, and threads.
"""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Sizes:
    """All sizes, with the values that are fastest."""

    threads: int | None = None          # threads that share the work; None: one for each processor
    block: int = 128 * 1024             # elements in the cache, 512 KiB of float32; with smaller
                                        # blocks the calls cost more than the cache saves
    sums: int = 128                     # rows that `column_sums` adds up in one product
    copy: int = 4096                    # elements up to which a copy is faster than a view
    square: int = 128                   # rows and columns that are transposed at a time
    logits: int = 128 << 20             # bytes of logits at a time: with so many rows ∂W is
                                        # seldom read and written
    # attention
    near_tile: int = 64                 # queries per block: small blocks skip more masked scores,
    far_tile: int = 128                 # large blocks make larger products,
    far: int = 256                      # and are used for more queries than this
    group: int = 64 * 1024              # scores worked on at a time: 256 KiB of float32
    # products
    chunk: int = 192                    # terms of a sum that are added up one after the other
    lanes: int = 8                      # BLAS adds so many terms together; a chunk is a multiple
    worth: int = 1 << 20                # with fewer multiplications our own call costs more than it
                                        # saves
    panel: int = 64                     # columns of a panel: four registers of 16 float32
    alone: int = 1 << 18                # multiplications up to which OpenBLAS itself uses one
                                        # thread


SIZES = Sizes()
