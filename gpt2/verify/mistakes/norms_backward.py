"""Mistakes in the backward pass of LayerNorm; part of the table in `backward`.

A mistake is a line of a table, see `planting.Bug`. g is the cotangent, and ĝ = g ⊙ weight.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import minigrad as mg
from minigrad import Tensor

from ..formula_parts import mean, only, place_mask, root_mean_square, stop
from ..planting import Bug, Here, at_point, norms, projected, zeroed


def norm(part: Callable[[Tensor, Tensor, Any, Tensor], Tensor],
         gain: Callable[[Tensor, Tensor, Any, Tensor], Any]) -> Callable[..., Tensor]:
    """x̂ ⊙ weight + bias with another derivative.

    ∂x is part(x, x̂, 1/σ, weight), and ∂weight = Σ g ⊙ gain(x, x̂, 1/σ, y).
    """
    def made(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        centred = stop(x - mean(x))
        rstd = stop(1.0 / root_mean_square(centred, eps))
        normal = centred * rstd
        y = stop(normal * weight + bias)
        return y + zeroed(part(x, normal, rstd, stop(weight))) + zeroed(
            stop(gain(stop(x), normal, rstd, y)) * weight) + zeroed(bias)

    return made


def right_part(x: Tensor, normal: Tensor, rstd: Any, weight: Tensor) -> Tensor:
    return weight * projected(x, normal, rstd)


def right_gain(x: Tensor, normal: Tensor, rstd: Any, y: Tensor) -> Tensor:
    return normal


# LayerNorms that share one function in a port
KINDS = (("ln_f", "ln_2", "ln_1"), ("ln_2", "ln_1"), ("ln_2",), ("ln_1",), ("ln_f",))
# the point whose gradient each computes
FIRST = {"ln_f": "resid_post", "ln_2": "resid_mid", "ln_1": "resid_pre"}


def name_of(kinds: tuple[str, ...]) -> str:
    return kinds[0] if len(kinds) == 1 else "LayerNorm"


def norm_bugs(says: str, part: Any = right_part, gain: Any = right_gain) -> list[Bug]:
    """The mistake in all LayerNorms of a port, and in those of one kind.

    says: has {} for the kind.
    """
    leaf = part is right_part
    return [Bug(f"{kinds[0]}.weight" if leaf else FIRST[kinds[0]], says.format(name_of(kinds)),
                norms(norm(part, gain), kinds))
            for kinds in KINDS]


def bias_bugs(says: str, made: Callable[[Tensor, Tensor], Any]) -> list[Bug]:
    """Mistakes in the gradient of LayerNorm's bias; made(y, bias) is what is added to y."""
    def whole(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y = norm(right_part, right_gain)(x, weight, stop(bias), eps)
        return y + zeroed(made(y, bias))

    return [Bug(f"{kinds[0]}.bias", says.format(name_of(kinds)), norms(whole, kinds))
            for kinds in KINDS]


def gain_row(row: int, axis: int) -> Callable[..., Tensor]:
    def gain(x: Tensor, normal: Tensor, rstd: Any, y: Tensor) -> Tensor:
        return normal * place_mask(normal.shape, axis, row).astype(normal.dtype)

    return gain


NORMS = [
    *norm_bugs("{}'s derivative lacks its two means: x is in μ and σ, too",
               lambda x, n, r, w: w * projected(x, n, r, one=False, hat=False)),
    *norm_bugs("{}'s derivative lacks −x̂ mean(ĝ ⊙ x̂): σ depends on x",
               lambda x, n, r, w: w * projected(x, n, r, hat=False)),
    *norm_bugs("{}'s derivative lacks −mean(ĝ): μ depends on x",
               lambda x, n, r, w: w * projected(x, n, r, one=False)),
    *norm_bugs("{}'s weight is left out in the backward pass: ĝ = g ⊙ weight",
               lambda x, n, r, w: projected(x, n, r)),
    *norm_bugs("{}'s weight is multiplied after the two means were taken away; they are of ĝ = g ⊙ "
               "weight",
               lambda x, n, r, w: projected(w * x, n, r)),
    *norm_bugs("{}'s derivative lacks 1/σ", lambda x, n, r, w: w * projected(x, n, 1.0)),
    *norm_bugs("{}'s derivative is divided by σ² instead of σ",
               lambda x, n, r, w: w * projected(x, n, r * r)),
    *norm_bugs("{}'s means in the backward pass are of g; they are of ĝ = g ⊙ weight",
               lambda x, n, r, w: (w * x - mean(x) - n * mean(x * n)) * r),
    *norm_bugs("{}'s means in the backward pass are sums, which are not divided by d",
               lambda x, n, r, w: back(x, n, r, w, one=float(x.shape[-1]), hat=float(x.shape[-1]))),
    *norm_bugs("{}'s mean(ĝ) in the backward pass is a sum, which is not divided by d",
               lambda x, n, r, w: back(x, n, r, w, one=float(x.shape[-1]))),
    *norm_bugs("{}'s mean(ĝ ⊙ x̂) in the backward pass is a sum, which is not divided by d",
               lambda x, n, r, w: back(x, n, r, w, hat=float(x.shape[-1]))),
    *norm_bugs("{}'s derivative adds x̂ mean(ĝ ⊙ x̂); it is taken away",
               lambda x, n, r, w: back(x, n, r, w, hat=-1.0)),
    *norm_bugs("{}'s derivative adds mean(ĝ); it is taken away",
               lambda x, n, r, w: back(x, n, r, w, one=-1.0)),
    *norm_bugs("{}'s derivative has x − μ instead of x̂", lambda x, n, r, w: back(x, n / r, r, w)),
    *norm_bugs("{} hands back the gradient as it is: its derivative is left out",
               lambda x, n, r, w: x),
    *norm_bugs("{} hands back no gradient to what it reads; the gradient there is the sum of both "
               "ways, past it and through it",
               lambda x, n, r, w: x * 0.0),
    *norm_bugs("{}'s weight has the gradient Σ g; it is Σ g ⊙ x̂",
               gain=lambda x, n, r, y: n * 0.0 + 1.0),
    *norm_bugs("{}'s weight has the gradient Σ g ⊙ x; it is Σ g ⊙ x̂", gain=lambda x, n, r, y: x),
    *norm_bugs("{}'s weight has the gradient Σ g ⊙ (x − μ); it is Σ g ⊙ x̂: 1/σ is left out",
               gain=lambda x, n, r, y: n / r),
    *norm_bugs("{}'s weight has the gradient Σ g ⊙ x/σ; it is Σ g ⊙ x̂: μ is not taken away",
               gain=lambda x, n, r, y: x * r),
    *norm_bugs("{}'s weight has the gradient Σ g ⊙ y, of its output; it is Σ g ⊙ x̂",
               gain=lambda x, n, r, y: y),
    *norm_bugs("{}'s weight gets no gradient", gain=lambda x, n, r, y: n * 0.0),
    *norm_bugs("{}'s weight has the gradient of the first row of the batch alone",
               gain=gain_row(0, 0)),
    *norm_bugs("{}'s weight has the gradient of the last row of the batch alone",
               gain=gain_row(-1, 0)),
    *norm_bugs("{}'s weight has the gradient of the last position alone", gain=gain_row(-1, 1)),
    *norm_bugs("{}'s weight has the gradient of the last token alone: it is set in the loop over "
               "tokens, and not added to",
               gain=lambda x, n, r, y: gain_row(-1, 0)(x, n, r, y) * place_mask(
                   n.shape, 1, -1).astype(n.dtype)),
    *bias_bugs("{}'s bias gets no gradient", lambda y, b: stop(b)),
    *bias_bugs("{}'s bias has the gradient of the first row of the batch alone; it is added at all "
               "positions of all rows, and its gradient is their sum",
               lambda y, b: only(mg.broadcast_to(b, shape=y.shape), place_mask(y.shape, 0, 0))),
    *bias_bugs("{}'s bias has the gradient of the last row of the batch alone; it is added at all "
               "positions of all rows, and its gradient is their sum",
               lambda y, b: only(mg.broadcast_to(b, shape=y.shape), place_mask(y.shape, 0, -1))),
    *bias_bugs("{}'s bias has the gradient of the last token alone: it is set in the loop over "
               "tokens, and not added to",
               lambda y, b: only(mg.broadcast_to(b, shape=y.shape),
                                 place_mask(y.shape, 0, -1) * place_mask(y.shape, 1, -1))),
    *bias_bugs("{}'s bias has the gradient of the last position alone; it is added at all "
               "positions, and its gradient is their sum",
               lambda y, b: only(mg.broadcast_to(b, shape=y.shape), place_mask(y.shape, 1, -1))),
    Bug("ln_2.weight", "ln_2 is differentiated with ln_1's μ and σ",
        lambda run, layers, what: at_point("ln_2.out", other_statistics)(run, layers, what)),
]


def back(x: Tensor, normal: Tensor, rstd: Any, weight: Tensor, one: float = 1.0,
         hat: float = 1.0) -> Tensor:
    """A formula with the derivative rstd (ĝ − one·mean(ĝ) − hat·x̂ mean(ĝ ⊙ x̂)).

    It is written as the transpose of that linear map.
    """
    return weight * (x - one * mean(x) - hat * normal * mean(x * normal)) * rstd


def other_statistics(here: Here, x: Tensor) -> Tensor:
    own, given, m = here.block.ln_2, here["resid_pre"], here["resid_mid"]
    rstd = stop(1.0 / root_mean_square(given - mean(given), here.model.config.layer_norm_epsilon))
    return derived(m, own.weight, own.bias, stop(mean(given)), rstd)


def derived(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """A formula with LayerNorm's derivative for this μ and this 1/σ, which are constant."""
    normal = (stop(x) - mean) * rstd
    slope = zeroed(stop(weight) * projected(x, normal, rstd))
    return slope + zeroed(normal * weight) + zeroed(bias)
