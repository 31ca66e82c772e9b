"""The functions that modules call, with PyTorch's names: ops, and fused ops.

A module calls them as `self.F.name(...)`. `minigrad.nn.unfused` has the same names.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import hints
from ..fused import (
    add_layer_norm,
    attention,
    cross_entropy,
    dropout,
    gelu,
    layer_norm,
    linear_cross_entropy,
    log_softmax,
    softmax,
)
from ..ops import elementwise
from ..ops.elementwise import tanh
from ..ops.index import embedding
from ..ops.linalg import addmm, linear, matmul
from ..ops.shape import join_heads, split_heads

__all__ = ["add_layer_norm", "addmm", "attention", "cross_entropy", "dropout", "embedding", "gelu",
           "join_heads", "layer_norm", "linear", "linear_cross_entropy", "log_softmax", "matmul",
           "relu", "softmax", "split_heads", "tanh"]


def relu(x: Any, bias: Any = None) -> Any:
    """max(x, 0), or max(x + bias, 0) with bias [d] for x [..., d]   (relu.1)."""
    return elementwise.relu(x if bias is None else x + bias)


if not TYPE_CHECKING:
    __getattr__ = hints.missing("minigrad.nn.functional", {**hints.MODULE, **hints.NN},
                                lambda: __all__)
