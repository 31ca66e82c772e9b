"""GELU (Hendrycks, Gimpel 2016), exact and by tanh: definition, derivation, rule, kernel."""
from __future__ import annotations

import math
from typing import Any

from ..errors import ShapeError
from ..op import fused
from ..ops.elementwise import clip, erf, exp, tanh
from ..ops.shape import sum_to
from ..widen import in_float32

_C = math.sqrt(2.0 / math.pi)                           # GELU by tanh: ½x(1 + tanh(c(x + a x³)))
_A = 0.044715
# where x² overflows, the derivative is 0 or 1
_FAR = 1e4


@in_float32
def gelu_unfused(x: Any, bias: Any = None, *, approximate: str) -> Any:
    """x Φ(x) with Φ the normal distribution   (gelu.1), or GPT-2's form of it   (gelu.2).

    GPT-2's form is ½x(1 + tanh(√(2/π)(x + 0.044715x³))). With a bias, x + bias replaces x.
    """
    _check_which(approximate)
    if bias is not None:
        x = x + bias
    if approximate == "tanh":
        return 0.5 * x * (1.0 + tanh(_C * (x + _A * (x * x * x))))
    return 0.5 * x * (1.0 + erf(x * (1.0 / math.sqrt(2.0))))


def _gelu_joint(g: Any, x: Any, bias: Any, approximate: str) -> tuple[Any, Any]:
    """g ⊙ gelu′(x + bias), and its sum over the rows to which the bias was added   (gelu.5)."""
    dx = _gelu_dx(g, x if bias is None else x + bias, approximate)
    return dx, None if bias is None else sum_to(dx, shape=bias.shape)


def _gelu_dx(g: Any, x: Any, approximate: str) -> Any:
    """Φ(x) + x φ(x)   (gelu.3); for tanh: ½(1 + t) + ½x(1 − t²)·c(1 + 3a x²)   (gelu.4)"""
    x = clip(x, min=-_FAR, max=_FAR)
    if approximate == "tanh":
        square = x * x
        t = tanh(_C * (x + _A * (square * x)))
        return g * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * (_C * (1.0 + 3.0 * _A * square)))
    return g * (0.5 * (1.0 + erf(x * (1.0 / math.sqrt(2.0))))
                + x * exp(-0.5 * (x * x)) * (1.0 / math.sqrt(2.0 * math.pi)))


def _check_which(approximate: Any) -> None:
    if approximate not in ("none", "tanh"):
        raise ValueError("gelu: write approximate=\"tanh\" for GPT-2's GELU (JAX's default), or "
                         "approximate=\"none\" for the exact one (PyTorch's default)")


def _check_gelu(x: Any, bias: Any = None, *, approximate: str) -> None:
    """ShapeError unless the bias is [d] for x [..., d]; ValueError for another `approximate`."""
    _check_which(approximate)
    if bias is not None and (x.ndim == 0 or bias.shape != x.shape[-1:]):
        raise ShapeError(f"gelu: x is {list(x.shape)}, so the bias must be {list(x.shape[-1:])}, "
                         f"not {list(bias.shape)}")


@fused(gelu_unfused, _gelu_joint, check=_check_gelu)
def gelu(xp, x, bias=None, *, approximate=None):
    """GELU of each number of x [..., d], or of x + bias with bias [d].

    approximate: "tanh" is GPT-2's form (gelu.2), "none" is the exact one (gelu.1). There is no
    default, because PyTorch's default is the exact form and JAX's is the other.
    """
    if bias is not None:
        x = x + bias
    if approximate == "tanh":
        return 0.5 * x * (1.0 + xp.tanh(_C * (x + _A * (x * x * x))))
    return 0.5 * x * (1.0 + xp.erf(x * (1.0 / math.sqrt(2.0))))
