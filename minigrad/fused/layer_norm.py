"""Layer normalisation (Ba, Kiros, Hinton 2016): definition, derivation, rule, kernel."""
from __future__ import annotations

from typing import Any

from .. import backend
from ..backend.base import Saved
from ..engine.tensor import Tensor
from ..errors import ShapeError
from ..op import fused
from ..ops.elementwise import add, sqrt
from ..ops.reduce import mean
from ..ops.shape import sum_to
from ..widen import in_float32


@in_float32
def layer_norm_unfused(x: Any, weight: Any, bias: Any, *, eps: float = 1e-5) -> Any:
    """y = x̂ ⊙ weight + bias, x̂ = (x − μ)/√(σ² + ε)   (layer_norm.1).

    μ and σ² are the mean and the population variance over the last axis.
    """
    centred = x - mean(x, axis=-1, keepdims=True)
    variance = mean(centred * centred, axis=-1, keepdims=True)
    return centred / sqrt(variance + eps) * weight + bias


@in_float32
def reciprocal_deviation(x: Any, mean_: Any, *, eps: float = 1e-5) -> Any:
    """r = 1/√(σ² + ε), over the last axis and with this mean   (layer_norm.1): [..., 1]."""
    centred = x - mean_
    return 1.0 / sqrt(mean(centred * centred, axis=-1, keepdims=True) + eps)


def _layer_norm_joint(g: Any, x: Any, weight: Any, mean_: Any, rstd: Any,
                      wants: tuple[bool, ...]) -> tuple[Any, Any, Any]:
    """The three gradients, with ĝ = g ⊙ weight   (layer_norm.2–7).

    ∂x = rstd (ĝ − mean(ĝ) − x̂ mean(ĝ ⊙ x̂)),  ∂weight = Σ g ⊙ x̂,  ∂bias = Σ g.

    In ∂x the components of ĝ along 1 and along x̂ are subtracted, because a shift or a scaling of x
    does not change the result; the rest is multiplied by rstd.
    """
    normal = (x - mean_) * rstd
    dx = None
    if wants[0]:
        h = g * weight
        dx = (h - mean(h, axis=-1, keepdims=True)
              - normal * mean(h * normal, axis=-1, keepdims=True)) * rstd
    return dx, sum_to(g * normal, shape=weight.shape), sum_to(g, shape=weight.shape)


def _check_layer_norm(x: Any, weight: Any, bias: Any, *, eps: float) -> None:
    """ShapeError unless weight and bias are [d] for x [..., d]."""
    if x.ndim == 0 or weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ShapeError(f"layer_norm: x {list(x.shape)}, weight {list(weight.shape)} and bias "
                         f"{list(bias.shape)} do not fit; x is [..., d], weight [d], bias [d]")


@fused(layer_norm_unfused, _layer_norm_joint, check=_check_layer_norm)
def layer_norm(xp, x, weight, bias, *, eps=1e-5):
    """Layer normalisation over the last axis   (layer_norm.1).
    x [..., d], weight [d], bias [d] -> [..., d].
    """
    mean_ = xp.mean(x, axis=-1, keepdims=True)
    centred = x - mean_
    rstd = 1.0 / xp.sqrt(xp.mean(centred * centred, axis=-1, keepdims=True) + eps)
    return Saved(centred * rstd * weight + bias, mean_=mean_, rstd=rstd)


def add_layer_norm_unfused(x: Any, y: Any, weight: Any, bias: Any, *,
                            eps: float = 1e-5) -> tuple[Any, Any]:
    """s = x + y, and its layer normalisation   (layer_norm.1)"""
    s = x + y
    return s, layer_norm_unfused(s, weight, bias, eps=eps)


def add_layer_norm(x: Any, y: Any, weight: Any, bias: Any, *, eps: float = 1e-5) -> tuple[Any, Any]:
    """s = x + y and layer_norm(s), as at each step of the residual stream   (layer_norm.1).

    x, y [..., d], weight, bias [d] -> 2 × [..., d]. A backend may compute both in one pass (a GPU's
    kernel `layer_norm`); the graph is the same as for one op after the other. In the backward pass
    the gradient of s is the sum of the stream's gradient and that of layer_norm   (block.5–6).
    """
    if (all(isinstance(t, Tensor) for t in (x, y, weight, bias))
            and (kernel := (xp := backend.of(x.array)).kernels.get("add_layer_norm"))):
        with backend.explaining("add_layer_norm"):
            made = kernel(xp, x.array, y.array, weight.array, bias.array, eps=eps)
        if made is not NotImplemented:
            s = add.recorded(made[0], x, y)
            return s, layer_norm.recorded(made[1], s, weight, bias, eps=eps)
    s = add(x, y)
    return s, layer_norm(s, weight, bias, eps=eps)
