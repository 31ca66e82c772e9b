"""Ops that exist twice: unfused, as their definition, and fused, with a rule derived by hand."""
from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from .. import random
from .attention import attention, attention_unfused
from .cross_entropy import cross_entropy as _mean_cross_entropy
from .cross_entropy import cross_entropy_unfused, weighted_cross_entropy
from .dropout import dropout_op
from .gelu import gelu, gelu_unfused
from .layer_norm import add_layer_norm, add_layer_norm_unfused, layer_norm, layer_norm_unfused
from .linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_unfused
from .packed_linear import packed_linear, packed_linear_unfused
from .softmax import log_softmax, log_softmax_unfused, softmax, softmax_unfused

__all__ = [
    "add_layer_norm",
    "add_layer_norm_unfused",
    "attention",
    "attention_unfused",
    "cross_entropy",
    "cross_entropy_unfused",
    "dropout",
    "dropout_op",
    "gelu",
    "gelu_unfused",
    "layer_norm",
    "layer_norm_unfused",
    "linear_cross_entropy",
    "linear_cross_entropy_unfused",
    "log_softmax",
    "log_softmax_unfused",
    "packed_linear",
    "packed_linear_unfused",
    "softmax",
    "softmax_unfused",
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


if not TYPE_CHECKING:
    def __getattr__(name):
        """`softmax_by_parts` and so on, the names of the definitions before version 0.2."""
        new = name.replace("_by_parts", "_unfused")
        if new == name or new not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        warnings.warn(f"minigrad.fused.{name} is {new} now, and its old name goes with the next "
                      "version", DeprecationWarning, stacklevel=2)
        return globals()[new]
