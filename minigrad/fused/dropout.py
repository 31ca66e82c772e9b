"""Dropout (Srivastava et al. 2014) from a counter-based generator.

The mask is a function of the key, so nothing is saved for backward.
"""
from __future__ import annotations

from ..backend.splitmix64 import keep_mask
from ..op import op


@op(x=lambda g, p, key: dropout_op(g, p=p, key=key))
def dropout_op(xp, x, *, p, key):
    """x: each element is set to 0 with probability p, or divided by 1 − p   (dropout.1).

    It is linear in x with a symmetric matrix, so its derivative is the same op with the same key
    (dropout.2).
    """
    return x * keep_mask(xp, key, x.shape, p).astype(x.dtype) * (1.0 / (1.0 - p))
