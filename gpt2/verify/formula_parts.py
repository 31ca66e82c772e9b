"""Functions that the formulas of mistakes are made of, in float64 on Tensors."""
from __future__ import annotations

from typing import Any

import numpy as np

import minigrad as mg
from minigrad import Tensor


def stop(x: Any) -> Any:
    """The value of x, without a gradient."""
    return x.detach() if isinstance(x, Tensor) else x


def mean(x: Tensor, axis: int | tuple[int, ...] = -1) -> Tensor:
    """The mean over an axis, which stays with length 1."""
    return x.mean(axis=axis, keepdims=True)


def root_mean_square(x: Tensor, eps: float, axis: int | tuple[int, ...] = -1) -> Tensor:
    """√(mean(x²) + ε) over an axis, which stays with length 1."""
    return mg.sqrt((x * x).mean(axis=axis, keepdims=True) + eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm of x [B, T, d], unfused   (layer_norm.1)."""
    centred = x - mean(x)
    return centred / root_mean_square(centred, eps) * weight + bias


def of_norm(kind: str, x: Tensor, own: Any, eps: float) -> Tensor:
    """The "mean", "rstd" or "out" of a LayerNorm of x [B, T, d]; own has its weight and bias."""
    if kind == "out":
        return layer_norm(x, own.weight, own.bias, eps)
    return mean(x) if kind == "mean" else 1.0 / root_mean_square(x - mean(x), eps)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Softmax over an axis, unfused   (softmax.1)."""
    e = mg.exp(x - stop(x.max(axis=axis, keepdims=True)))
    return e / e.sum(axis=axis, keepdims=True)


def masked(x: Tensor, seen: np.ndarray) -> Tensor:
    """Scores x, with a large negative number where `seen` is False."""
    return mg.where(seen, x, -1e30)


def only(x: Any, kept: np.ndarray) -> Any:
    """x, with a gradient only where `kept` is 1; it is 0 elsewhere, and broadcasts."""
    kept = kept.astype(x.dtype)
    return stop(x) * (1.0 - kept) + x * kept


def place_mask(shape: tuple[int, ...], axis: int, index: int) -> np.ndarray:
    """An array with 1 at one index of an axis and 0 at the others; it broadcasts to [B, T, n]."""
    out = np.zeros([n if i == axis else 1 for i, n in enumerate(shape)])
    out[(slice(None),) * axis + (index,)] = 1.0
    return out


def transposed(w: Tensor) -> Tensor:
    """[in, out] numbers read as if the memory were nn.Linear's [out, in], then transposed."""
    return w.reshape(w.shape[::-1]).mT
