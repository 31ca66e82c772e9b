"""The classifier and its loss as one op, which does not save the logits for backward."""
from __future__ import annotations

import math
from typing import Any

from ..backend.base import Saved
from ..errors import ShapeError
from ..op import Constant, fused
from ..ops.linalg import linear
from ..widen import widened
from .cross_entropy import (
    check_targets,
    cross_entropy,
    cross_entropy_dlogits,
    cross_entropy_unfused,
)


def linear_cross_entropy_unfused(x: Any, weight: Any, targets: Any, *,
                                  ignore_index: int = -100) -> Any:
    """cross_entropy(x Wᵀ, targets)   (linear_cross_entropy.1)"""
    logits = linear(widened(x), widened(weight))
    return cross_entropy_unfused(logits, targets, ignore_index=ignore_index)


def _check_linear_cross_entropy(x: Any, weight: Any, targets: Any, *, ignore_index: int) -> None:
    """ShapeError unless weight is [V, d] and targets are [...] for x [..., d].

    DTypeError unless targets are integers.
    """
    check_targets("linear_cross_entropy", targets)
    if x.ndim == 0 or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise ShapeError("linear_cross_entropy: inner sizes differ: "
                         f"x is {x.dtype}{list(x.shape)}, weight is "
                         f"{weight.dtype}{list(weight.shape)}; x is [..., d], weight [V, d]")
    if x.shape[:-1] != targets.shape:
        raise ShapeError(f"linear_cross_entropy: x is {x.dtype}{list(x.shape)}, so targets must be "
                         f"{list(x.shape[:-1])}, not {list(targets.shape)}")


def _times(g: Any, found: Any, boost: float) -> Any:
    """g times a gradient that was computed before g was known   (linear_cross_entropy.2–3).

    `found` is that gradient times `boost`.
    """
    return g / boost * found


@fused(linear_cross_entropy_unfused, check=_check_linear_cross_entropy, widens=True,
       x=lambda g, dx, boost: _times(g, dx, boost),
       weight=lambda g, dweight, boost: _times(g, dweight, boost))
def linear_cross_entropy(xp, x, weight, targets: Constant, *, ignore_index=-100,
                         wants=(False, False, False)):
    """The mean of −log softmax(x Wᵀ)[target] in nats   (linear_cross_entropy.1).

    x [..., d], weight [V, d], targets [...] integer; rows whose target is ignore_index do not count
    (the loss is NaN if no row counts). ShapeError if the shapes do not match or a target lies
    outside 0 … V−1. If x has 16 bits, the loss is float32. The loss is a scalar, so its gradients
    can be computed with the logits, up to the factor g: with G = (softmax(x Wᵀ) − onehot(target))/n
    they are ∂x = G W and ∂W = Gᵀ x (linear_cross_entropy.2–3). The kernel computes those that are
    wanted; these are saved for backward, and not the logits [..., V].
    """
    n = math.prod(targets.shape)
    rows, ids = xp.reshape(x, (n, x.shape[-1])), xp.reshape(targets, (n,))
    logits = xp.matmul(rows, xp.swapaxes(weight, 0, 1))
    made = cross_entropy.kernel(xp, logits, ids, ignore_index=ignore_index)
    dx = dweight = None
    if wants[0] or wants[1]:
        dlogits = cross_entropy_dlogits(1.0, logits, ids, **made.extra)
        dx = xp.reshape(xp.matmul(dlogits, weight), x.shape) if wants[0] else None
        dweight = xp.matmul(xp.swapaxes(dlogits, 0, 1), rows) if wants[1] else None
    return Saved(made.out, dx=dx, dweight=dweight, boost=1.0)
