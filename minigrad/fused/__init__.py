"""Ops that exist twice: by parts, from the linear algebra, and fused, with the derivative worked out by hand."""
from __future__ import annotations

from typing import Any

from .. import random
from .attention import attention, attention_by_parts
from .cross_entropy import cross_entropy, cross_entropy_by_parts
from .dropout import dropout_op
from .gelu import gelu, gelu_by_parts
from .layer_norm import add_layer_norm, add_layer_norm_by_parts, layer_norm, layer_norm_by_parts
from .linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_by_parts
from .packed_linear import packed_linear, packed_linear_by_parts
from .softmax import log_softmax, log_softmax_by_parts, softmax, softmax_by_parts

__all__ = [
    "add_layer_norm",
    "add_layer_norm_by_parts",
    "attention",
    "attention_by_parts",
    "cross_entropy",
    "cross_entropy_by_parts",
    "dropout",
    "dropout_op",
    "gelu",
    "gelu_by_parts",
    "layer_norm",
    "layer_norm_by_parts",
    "linear_cross_entropy",
    "linear_cross_entropy_by_parts",
    "log_softmax",
    "log_softmax_by_parts",
    "packed_linear",
    "packed_linear_by_parts",
    "softmax",
    "softmax_by_parts",
]


def dropout(x: Any, *, p: float = 0.5, training: bool = True, key: int | None = None) -> Any:
    """x with elements zeroed with probability p and the rest divided by 1 − p; x itself when not training or p = 0.

    key: of `minigrad.random`; the next of the default stream when left out. The same key gives the same mask.
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout: p must lie in [0, 1), not {p}")
    if not training or p == 0.0:
        return x
    return dropout_op(x, p=p, key=random.next_key() if key is None else key)
