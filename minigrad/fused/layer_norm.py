"""Layer normalisation (Ba, Kiros, Hinton 2016): definition, derivation, rule, kernel."""
from __future__ import annotations

from typing import Any

from ..backend.base import Saved
from ..errors import ShapeError
from ..op import fused
from ..ops.elementwise import sqrt
from ..ops.reduce import mean
from ..ops.shape import sum_to


def layer_norm_by_parts(x: Any, weight: Any, bias: Any, *, eps: float = 1e-5) -> Any:
    """y = x̂ ⊙ weight + bias, x̂ = (x − μ)/√(σ² + ε), with μ and the population variance σ² over the last axis   (layer_norm.1)"""
    centred = x - mean(x, axis=-1, keepdims=True)
    variance = mean(centred * centred, axis=-1, keepdims=True)
    return centred / sqrt(variance + eps) * weight + bias


def _layer_norm_joint(
    g: Any, x: Any, weight: Any, mean_: Any, rstd: Any, wants: tuple[bool, ...]
) -> tuple[Any, Any, Any]:
    """With ĝ = g ⊙ weight:  ∂x = rstd (ĝ − mean(ĝ) − x̂ mean(ĝ ⊙ x̂)),  ∂weight = Σ g ⊙ x̂,  ∂bias = Σ g   (layer_norm.5–7).

    Reading ∂x: the part of ĝ along 1 and along x̂ is taken away (shifting or stretching x changes nothing), then rescaled.
    """
    normal = (x - mean_) * rstd
    dx = None
    if wants[0]:
        h = g * weight
        dx = (h - mean(h, axis=-1, keepdims=True) - normal * mean(h * normal, axis=-1, keepdims=True)) * rstd
    return dx, sum_to(g * normal, shape=weight.shape), sum_to(g, shape=weight.shape)


def _check_layer_norm(x: Any, weight: Any, bias: Any, *, eps: float) -> None:
    """ShapeError unless weight and bias are [d] for x [..., d]."""
    if x.ndim == 0 or weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ShapeError(f"layer_norm: x {list(x.shape)}, weight {list(weight.shape)} and bias {list(bias.shape)} do not fit; "
                         "x is [..., d], weight [d], bias [d]")


@fused(layer_norm_by_parts, _layer_norm_joint, check=_check_layer_norm)
def layer_norm(xp, x, weight, bias, *, eps=1e-5):
    """Layer normalisation over the last axis   (layer_norm.1). x [..., d], weight [d], bias [d] -> [..., d]."""
    mean_ = xp.mean(x, axis=-1, keepdims=True)
    centred = x - mean_
    rstd = 1.0 / xp.sqrt(xp.mean(centred * centred, axis=-1, keepdims=True) + eps)
    return Saved(centred * rstd * weight + bias, mean_=mean_, rstd=rstd)
