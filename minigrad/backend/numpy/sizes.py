"""The sizes at which the NumPy kernels change what they do.

They are blocks, tiles and chunks, and the sizes from which those are worth it. They are read at
each call from the one object SIZES, so that `minigrad.testing.small_sizes` can make all of them
small at once: then small arrays go through several blocks, through a last one that is not full, and
through threads.
"""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Sizes:
    """All sizes, with the values that are fast."""

    threads: int | None = None          # that share the work; None: one for each processor of ours
    block: int = 128 * 1024             # elements in the cache, 512 KiB of float32; smaller
                                        # blocks cost more in calls than the cache gives
    sums: int = 128                     # rows that `column_sums` adds up in one product
    copy: int = 4096                    # elements up to which a copy is faster than NumPy's view
    square: int = 128                   # rows and columns that are transposed at a time
    logits: int = 128 << 20             # bytes of logits at a time: enough rows for ∂W to be read
                                        # and written seldom
    # attention
    near_tile: int = 64                 # queries per block: small ones skip more that is masked,
    far_tile: int = 128                 # large ones make larger products,
    far: int = 256                      # and are taken for more queries than these
    group: int = 64 * 1024              # scores worked on at a time: 256 KiB of float32
    # products
    chunk: int = 192                    # terms of a sum that are added up one after the other
    lanes: int = 8                      # BLAS takes so many terms together: a chunk has a multiple
    worth: int = 1 << 20                # below so many multiplications a call of our own costs more
                                        # than it gives
    panel: int = 64                     # columns of a panel: four registers of 16 float32
    alone: int = 1 << 18                # multiplications up to which OpenBLAS takes one thread of
                                        # its own accord


SIZES = Sizes()
