"""Cross-entropy of logits against target ids: definition, derivation, rule, kernel."""
from __future__ import annotations

import math
from typing import Any

from ..backend.base import Saved
from ..engine.tensor import Tensor
from ..errors import DTypeError, ShapeError
from ..op import Constant, fused
from ..ops.elementwise import astype, exp, where
from ..ops.index import gather, scatter_add
from ..ops.reduce import sum
from ..ops.shape import broadcast_to
from ..widen import widened
from .softmax import log_softmax


def cross_entropy_unfused(logits: Any, targets: Any, *, ignore_index: int = -100) -> Any:
    """−(1/n) Σ_i log softmax(logits_i)[target_i]   (cross_entropy.1).

    The sum and n are over the rows whose target is not ignore_index.
    """
    targets = targets.array if isinstance(targets, Tensor) else targets
    logits = widened(logits)
    kept = targets != ignore_index
    picked = gather(log_softmax(logits), where(kept, targets, 0)[..., None], axis=-1)
    return -sum(where(kept[..., None], picked, 0.0)) / sum(astype(kept, dtype=logits.dtype))


def cross_entropy_dlogits(g: Any, logits: Any, targets: Any, lse: Any, scale: Any) -> Any:
    """(softmax(logits) − onehot(target))/n, or 0 on rows that do not count   (cross_entropy.2–3)"""
    # a row that does not count may have any id: its scale is 0
    places = where(scale[..., 0] > 0.0, targets, 0)[..., None]
    return scatter_add(exp(logits - lse), places, scale * 0.0 - 1.0, axis=-1) * (scale * g)


def check_targets(name: str, targets: Any) -> None:
    """DTypeError unless targets are integers; the message begins with the op's `name`.

    An empty array may have any dtype.
    """
    if targets.dtype.kind not in "iu" and math.prod(targets.shape):
        raise DTypeError(f"{name}: targets must be integers, not {targets.dtype}; "
                         "probabilities are not supported")


def _check_cross_entropy(logits: Any, targets: Any, *, ignore_index: int) -> None:
    """ShapeError unless targets are [...] for logits [..., V]; DTypeError unless integers."""
    check_targets("cross_entropy", targets)
    if logits.shape[:-1] != targets.shape:
        raise ShapeError(f"cross_entropy: logits are {logits.dtype}{list(logits.shape)}, so "
                         f"targets must be {list(logits.shape[:-1])}, not {list(targets.shape)}")


@fused(cross_entropy_unfused, check=_check_cross_entropy, widens=True,
       logits=cross_entropy_dlogits)
def cross_entropy(xp, logits, targets: Constant, *, ignore_index=-100):
    """The mean of −log softmax(logits)[target] in nats   (cross_entropy.1).

    logits [..., V] float, targets [...] integer; rows whose target is ignore_index do not count.
    If no row counts, the loss is NaN and the gradient 0, as in PyTorch. The loss of logits of 16
    bits is float32. ShapeError if the shapes do not match or a target lies outside 0 … V−1.
    """
    kept = targets != ignore_index
    ids = xp.where(kept, targets, 0)
    xp.check_index(ids, logits.shape[-1], "cross_entropy: targets")
    top = xp.max(logits, axis=-1, keepdims=True)
    lse = xp.log(xp.sum(xp.exp(logits - top), axis=-1, keepdims=True)) + top
    nll = (lse - xp.take_along_axis(logits, ids[..., None], -1))[..., 0]
    ones = kept.astype(logits.dtype)
    count = xp.sum(ones)
    # if no row counts, the scale is 0, and so is the gradient
    scale = (ones / xp.where(count > 0.0, count, xp.ones_like(count)))[..., None]
    with xp.errstate(invalid="ignore"):                 # if no row counts: 0/0, the loss is NaN
        loss = xp.sum(xp.where(kept, nll, 0.0)) / count
    return Saved(loss, lse=lse, scale=scale)


def weighted_cross_entropy(logits: Any, targets: Any, ignore_index: int, reduction: str,
                           label_smoothing: float, weight: Any) -> Any:
    """Cross-entropy with PyTorch's options, as a chain of ops.

    Each row is (1 − ε) wₜ nllₜ + (ε/V) Σᵥ wᵥ nllᵥ, and for the mean their sum is divided by Σ wₜ.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"cross_entropy: reduction must be mean, sum or none, not {reduction!r}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError("cross_entropy: label_smoothing must lie in [0, 1], "
                         f"not {label_smoothing}")
    targets = targets.array if isinstance(targets, Tensor) else targets
    _check_cross_entropy(logits, targets, ignore_index=ignore_index)
    nll = -log_softmax(widened(logits))                                     # [..., V]
    kept = targets != ignore_index                                          # [...]
    ids = where(kept, targets, 0)                                           # [...]
    one = (nll * 0.0 + 1.0 if weight is None                                # [..., V]
           else broadcast_to(astype(weight, dtype=nll.dtype), shape=nll.shape))
    share = gather(one, ids[..., None], axis=-1)[..., 0]                    # [...]
    each = share * gather(nll, ids[..., None], axis=-1)[..., 0] * (1.0 - label_smoothing)
    if label_smoothing:
        each = each + sum(one * nll, axis=-1) * (label_smoothing / nll.shape[-1])
    each = where(kept, each, 0.0)
    if reduction == "none":
        return each
    return sum(each) if reduction == "sum" else sum(each) / sum(where(kept, share, 0.0))
