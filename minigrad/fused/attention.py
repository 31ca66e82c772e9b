"""Scaled dot-product attention (Vaswani et al. 2017): definition, derivation, rule, kernel.

The mask may be causal, and may hide padding.
"""
from __future__ import annotations

import math
import sys
from typing import Any

from .. import backend
from ..backend.base import Saved
from ..engine.tensor import Tensor
from ..errors import DTypeError, ShapeError
from ..op import Constant, fused
from ..ops.elementwise import exp, where
from ..ops.linalg import matmul_op
from ..ops.reduce import sum
from ..ops.shape import matrix_transpose as transpose
from ..widen import in_float32
from .dropout import dropout_op
from .softmax import softmax_unfused


def allowed(xp: Any, queries: int, keys: int, causal: bool, mask: Any) -> Any:
    """The keys that each query may see, as bool; None if every query may see all keys.

    The result broadcasts to [..., queries, keys]. causal: query i is at position keys − queries + i
    and sees the keys up to that position: a lower triangle of ones (causal.1, .6). mask: a bool
    array broadcastable to [B, h, queries, keys], false at padding.
    """
    if causal and queries > 1:
        triangle = xp.tri(queries, keys, keys - queries, dtype=bool)
        return triangle if mask is None else triangle & mask
    return mask


@in_float32
def attention_scores(q: Any, k: Any, *, scale: float | None = None) -> Any:
    """S = s Q Kᵀ   (attention.2): [..., queries, keys]. By default s is 1/√d."""
    return matmul_op(q, transpose(k)) * (1.0 / math.sqrt(q.shape[-1]) if scale is None else scale)


@in_float32
def weights_of_scores(scores: Any, mask: Any = None, *, causal: bool) -> Any:
    """P = softmax(S + M)   (attention.2): [..., queries, keys].

    M is 0 where a key may be seen and −∞ where not: the logarithm of the result of `allowed`
    (causal.2–3). For a query that may see no key at all, P is zeros (causal.5).
    """
    array = scores.array if isinstance(scores, Tensor) else scores
    xp = backend.of(array)
    mask = mask.array if isinstance(mask, Tensor) else mask
    seen = allowed(xp, scores.shape[-2], scores.shape[-1], causal, mask)
    if seen is not None:
        # two ops save this mask; as a Tensor it is not copied
        seen = Tensor(seen) if isinstance(scores, Tensor) else seen
        # the lowest finite number replaces −∞; a row of −∞ would be NaN
        scores = where(seen, scores, max(float(xp.finfo(array.dtype).min), -sys.float_info.max))
    weights = softmax_unfused(scores)
    return weights if seen is None else where(seen, weights, 0.0)


@in_float32
def attention_weights(q: Any, k: Any, mask: Any = None, *, causal: bool,
                      scale: float | None = None) -> Any:
    """P = softmax(s Q Kᵀ + M)   (attention.2): the weights of the scores."""
    return weights_of_scores(attention_scores(q, k, scale=scale), mask, causal=causal)


@in_float32
def attention_unfused(q: Any, k: Any, v: Any, mask: Any = None, *, causal: bool,
                       scale: float | None = None, p: float = 0.0, key: int = 0) -> Any:
    """softmax(s Q Kᵀ + M) V   (attention.1): `attention_weights` times V   (attention.3).

    p > 0 drops some of the weights, with the key's mask.
    """
    weights = attention_weights(q, k, mask, causal=causal, scale=scale)
    return matmul_op(dropout_op(weights, p=p, key=key) if p > 0.0 else weights, v)


def _attention_joint(g: Any, q: Any, k: Any, v: Any, mask: Any, out: Any, lse: Any, causal: bool,
                     scale: Any, p: float, key: int) -> tuple[Any, Any, Any, None]:
    """The gradients of q, k and v, and None for the mask   (attention.4–7).

    With P = exp(s Q Kᵀ − lse) on the keys that are seen (attention.10) and D = rowsum(g ⊙ out):
    ∂V = Pᵀ g,  ∂S = P ⊙ (g Vᵀ − D),  ∂Q = s ∂S K,  ∂K = s ∂Sᵀ Q.
    """
    s = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    weights = exp(matmul_op(q, transpose(k)) * s - lse)
    seen = allowed(backend.of(q), q.shape[-2], k.shape[-2], causal, mask)
    if seen is not None:
        weights = where(seen, weights, 0.0)
    dropped, dweights = weights, matmul_op(g, transpose(v))
    if p > 0.0:
        dropped, dweights = dropout_op(weights, p=p, key=key), dropout_op(dweights, p=p, key=key)
    ds = weights * (dweights - sum(g * out, axis=-1, keepdims=True)) * s
    return matmul_op(ds, k), matmul_op(transpose(ds), q), matmul_op(transpose(dropped), g), None


def _check_attention(q: Any, k: Any, v: Any, mask: Any = None, *, causal: Any,
                     **settings: Any) -> None:
    """ShapeError unless q, k and v fit; DTypeError for a mask that is not bool.

    They are q [..., Tq, d], k [..., Tk, d] and v [..., Tk, e] with the same leading axes. TypeError
    if causal is missing.
    """
    if causal is None:
        raise TypeError("write causal=True if a query must not see later keys, as in GPT-2, "
                        "or causal=False (PyTorch's default)")
    if (q.ndim < 2 or q.shape[:-2] != k.shape[:-2] or k.shape[:-1] != v.shape[:-1]
            or q.shape[-1] != k.shape[-1]):
        raise ShapeError(f"attention: q {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)} "
                         "do not fit; q is [..., Tq, d], k [..., Tk, d], v [..., Tk, e]")
    # PyTorch adds a mask of floats to the scores
    if mask is not None and mask.dtype.kind != "b":
        raise DTypeError("attention: the mask must be bool, true where a key may be seen, "
                         f"not {mask.dtype}; for a mask of 0 and −inf write mask == 0")


@fused(attention_unfused, _attention_joint, check=_check_attention)
def attention(xp, q, k, v, mask: Constant = None, *, causal=None, scale=None, p=0.0, key=0):
    """softmax(Q Kᵀ/√d + M) V   (attention.1).
    q [..., Tq, d], k [..., Tk, d], v [..., Tk, e] -> [..., Tq, e].

    mask: bool, broadcastable to [..., Tq, Tk], false where a key must not be seen. causal has no
    default: with True query i sees the keys up to Tk − Tq + i, with False it sees all keys.
    """
    scores = xp.matmul(q, xp.swapaxes(k, -2, -1))
    scores *= 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    seen = allowed(xp, q.shape[-2], k.shape[-2], causal, mask)
    if seen is not None:
        scores = xp.where(seen, scores, -xp.inf)
    top = xp.max(scores, axis=-1, keepdims=True)
    top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))          # a query that sees no key
    scores -= top
    xp.exp(scores, out=scores)
    total = xp.sum(scores, axis=-1, keepdims=True)
    total = xp.where(total > 0, total, xp.ones_like(total))
    scores /= total
    if p > 0.0:
        scores = dropout_op(scores, p=p, key=key)
    return Saved(xp.matmul(scores, v), lse=top + xp.log(total))
