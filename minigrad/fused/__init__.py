"""Ops that exist twice: unfused, as their definition, and fused, with a rule derived by hand."""
from __future__ import annotations

from typing import Any

from .. import random
from .attention import attention, attention_by_parts
from .cross_entropy import cross_entropy as _mean_cross_entropy
from .cross_entropy import cross_entropy_by_parts, weighted_cross_entropy
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


def cross_entropy(logits: Any, targets: Any, *, ignore_index: int = -100, reduction: str = "mean",
                  label_smoothing: float = 0.0, weight: Any = None) -> Any:
    """−log softmax(logits)[target] in nats, by default its mean over the rows   (cross_entropy.1).

    logits [..., V] float, targets [...] integer; rows whose target is ignore_index do not count.
    reduction: "mean", "sum" or "none". label_smoothing: this share of each target is spread evenly
    over all V ids. weight [V]: the weight of a row, by its target. All of this is as in PyTorch,
    except that the classes are the last axis. If no row counts, the mean is NaN and its gradient 0.
    The loss of logits of 16 bits is float32. ShapeError if the shapes do not match or a target lies
    outside 0 … V−1; ValueError for another reduction.
    """
    if reduction == "mean" and not label_smoothing and weight is None:
        return _mean_cross_entropy(logits, targets, ignore_index=ignore_index)
    return weighted_cross_entropy(logits, targets, ignore_index, reduction, label_smoothing, weight)


def dropout(x: Any, p: float = 0.5, training: bool = True, key: int | None = None) -> Any:
    """x with each element set to zero with probability p, and the others divided by 1 − p.

    The result is x itself if training is False or p = 0. key: a key of `minigrad.random`; by
    default the next key of the default stream. The same key has the same mask.
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout: p must lie in [0, 1), not {p}")
    if not training or p == 0.0:
        return x
    return dropout_op(x, p=p, key=random.next_key() if key is None else key)
