"""GELU (Hendrycks, Gimpel 2016), exact and by tanh: definition, derivation, rule, kernel."""
from __future__ import annotations

import math
from typing import Any

from ..op import fused
from ..ops.elementwise import erf, exp, tanh

_C = math.sqrt(2.0 / math.pi)                           # GELU by tanh: ½x(1 + tanh(c(x + a x³)))
_A = 0.044715


def gelu_by_parts(x: Any, *, approximate: str = "tanh") -> Any:
    """x Φ(x) with Φ the normal distribution (gelu.1), or ½x(1 + tanh(√(2/π)(x + 0.044715x³))) as GPT-2 has it (gelu.2)."""
    if approximate == "tanh":
        return 0.5 * x * (1.0 + tanh(_C * (x + _A * (x * x * x))))
    return 0.5 * x * (1.0 + erf(x * (1.0 / math.sqrt(2.0))))


def _gelu_dx(g: Any, x: Any, approximate: str) -> Any:
    """Φ(x) + x φ(x)   (gelu.3); for tanh: ½(1 + t) + ½x(1 − t²)·c(1 + 3a x²)   (gelu.4)"""
    if approximate == "tanh":
        square = x * x
        t = tanh(_C * (x + _A * (square * x)))
        return g * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * (_C * (1.0 + 3.0 * _A * square)))
    return g * (0.5 * (1.0 + erf(x * (1.0 / math.sqrt(2.0)))) + x * exp(-0.5 * (x * x)) * (1.0 / math.sqrt(2.0 * math.pi)))


@fused(gelu_by_parts, x=_gelu_dx)
def gelu(xp, x, *, approximate="tanh"):
    """GELU elementwise; approximate "tanh" (GPT-2's, gelu.2) or "none" (exact, gelu.1)."""
    if approximate == "tanh":
        return 0.5 * x * (1.0 + xp.tanh(_C * (x + _A * (x * x * x))))
    if approximate != "none":
        raise ValueError(f"approximate must be 'tanh' or 'none', not {approximate!r}")
    return 0.5 * x * (1.0 + xp.erf(x * (1.0 / math.sqrt(2.0))))
