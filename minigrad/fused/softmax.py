"""Softmax and log-softmax: definition, derivation, rule, kernel."""
from __future__ import annotations

from typing import Any

from ..op import Axis, fused
from ..ops.elementwise import exp, log
from ..ops.reduce import max, sum
from ..ops.shape import stop_gradient
from ..widen import in_float32


@in_float32
def softmax_unfused(x: Any, axis: int = -1) -> Any:
    """softmax(x)_i = exp(x_i − m) / Σ_j exp(x_j − m), m = max_j x_j   (softmax.1).

    The shift m cancels, so it is a constant of the derivative.
    """
    e = exp(x - stop_gradient(max(stop_gradient(x), axis=axis, keepdims=True)))
    return e / sum(e, axis=axis, keepdims=True)


def _softmax_dx(g: Any, out: Any, axis: int) -> Any:
    """(diag(p) − p pᵀ) g = p ⊙ (g − ⟨p, g⟩)   (softmax.2–4)"""
    return out * (g - sum(g * out, axis=axis, keepdims=True))


@fused(softmax_unfused, x=_softmax_dx)
def softmax(xp, x, axis: Axis = -1):
    """exp(x) / Σ exp(x) along `axis`, x of any shape   (softmax.1)."""
    out = x - xp.max(x, axis=axis, keepdims=True)
    xp.exp(out, out=out)
    out /= xp.sum(out, axis=axis, keepdims=True)
    return out


@in_float32
def log_softmax_unfused(x: Any, axis: int = -1) -> Any:
    """log softmax(x)_i = x_i − m − log Σ_j exp(x_j − m)   (log_softmax.1)"""
    shifted = x - stop_gradient(max(stop_gradient(x), axis=axis, keepdims=True))
    return shifted - log(sum(exp(shifted), axis=axis, keepdims=True))


def _log_softmax_dx(g: Any, out: Any, axis: int) -> Any:
    """(I − 1 pᵀ)ᵀ g = g − p Σ g   (log_softmax.2–3)"""
    return g - exp(out) * sum(g, axis=axis, keepdims=True)


@fused(log_softmax_unfused, x=_log_softmax_dx)
def log_softmax(xp, x, axis: Axis = -1):
    """The logarithm of softmax along `axis`, exact where softmax underflows   (log_softmax.1)."""
    out = x - xp.max(x, axis=axis, keepdims=True)
    out -= xp.log(xp.sum(xp.exp(out), axis=axis, keepdims=True))
    return out
