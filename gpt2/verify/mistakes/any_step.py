"""Mistakes that any step can have, whatever it computes.

Such as a loop that ends too early, an index that is left out, or another block's array. They are
tried if no mistake of the other tables explains everything. A step is what a port probably has as
one function: a mistake is planted at all points that the step computes. A mistake is a line of a
table, see `planting.Bug`.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg
from minigrad import Tensor

from ...hooks import STATISTICS
from ..formula_parts import layer_norm, of_norm, place_mask, root_mean_square
from ..planting import (
    LINEAR,
    NORMS,
    OUTPUTS,
    Bug,
    Formula,
    Here,
    Plant,
    at_point,
    every,
    in_loss,
    linear,
    module,
    products,
    statistics,
)
from .formulas import MATRICES, tanh_gelu, varied
from .loss import per_token
from .norms import epsilon


class Factor(NamedTuple):
    """A mistake with an unknown number, which is fitted to the port.

    As `planting.Bug`; `says` has {} for the number, and `plant` takes it.
    """

    at: str
    says: str
    plant: Callable[[float], Plant]


# of [B, T, n], [B, h, T, n] and [T, n]; a token is a position of a row
AXES: dict[str, Any] = {"row of the batch": 0, "head": 1, "position": -2, "column": -1,
                        "token": (0, -2)}
KINDS = ("ln_1", "ln_2", "ln_f")


def of_kind(*kinds: str) -> tuple[str, ...]:
    return tuple(f"{kind}.{point}" for kind in kinds for point in ("mean", "rstd", "out"))


# a text about a step -> the points that it computes
STEPS: dict[str, tuple[str, ...]] = {
    "LayerNorm": of_kind(*KINDS), **{kind: of_kind(kind) for kind in KINDS},
    "each matrix": (*(point for part in MATRICES for point in OUTPUTS[part]), "logits"),
    **OUTPUTS,
    "the head": ("logits",),
    "attention": ("attn.scores", "attn.pattern", "attn.z"),
    "the step of the scores": ("attn.scores",),
    "softmax": ("attn.pattern",),
    "the sum over V": ("attn.z",),
    "GELU": ("mlp.act",),
    "the first addition": ("resid_mid",),
    "the second addition": ("resid_post",),
    "each addition": ("resid_mid", "resid_post"),
    "the token embedding": ("embed",),
    "the position embedding": ("pos_embed",),
    "Q": ("attn.q",), "K": ("attn.k",), "V": ("attn.v",),
}


# ── an index of an axis ──
def marked(x: Tensor, axis: str, index: int) -> np.ndarray:
    """1 at one index of an axis and 0 elsewhere, as it broadcasts to x.

    IndexError if x does not have this axis.
    """
    if axis == "token":
        return marked(x, "row of the batch", index) * marked(x, "position", index)
    at = range(x.ndim)[AXES[axis]]
    if (axis == "head"
        and x.ndim < 4) or (axis == "row of the batch" and x.ndim < 3) or x.shape[at] == 1:
        raise IndexError(axis)
    return place_mask(x.shape, at, index).astype(x.dtype)


def alike(x: Tensor, axis: str) -> Tensor:
    """x, with its values at the first index of this axis at every index."""
    return mg.broadcast_to((x * marked(x, axis, 0)).sum(axis=AXES[axis], keepdims=True),
                           shape=x.shape)


def numbers(points: tuple[str, ...]) -> tuple[str, ...]:
    """Those points of a step that are in the path of the pass and get a gradient."""
    return tuple(point for point in points if not point.endswith(STATISTICS))


def at_all(points: tuple[str, ...], made: Formula) -> Plant:
    """Plant made(here, x) at all points of a step that have the axis that it needs."""
    def formula(here: Here, x: Tensor) -> Tensor:
        try:
            return made(here, x)
        except IndexError:
            if len(points) == 1:
                raise
            return x

    return every(*(at_point(point, formula) for point in points))


EDGES = [(axis, index, f"the {said} {axis}")
         for axis in ("row of the batch", "position", "token", "head", "column")
         for index, said in ((-1, "last"), (0, "first"))]
LOOP = {-1: "the loop ends one too early", 0: "the loop starts at 1"}


def axes(points: tuple[str, ...]) -> list[str]:
    """The axes of a step, without the last one."""
    heads = any(point in ("attn.q", "attn.k", "attn.v", "attn.scores", "attn.pattern", "attn.z")
                for point in points)
    return [*["row of the batch", "token"] * ("pos_embed" not in points), *["head"] * heads,
            "position"]


def edges(points: tuple[str, ...]) -> list[tuple[str, int, str]]:
    """The first and the last index of each axis of a step, and the first and the last token."""
    own = {*axes(points), "column"}
    return [edge for edge in EDGES if edge[0] in own]


def left_out() -> Iterator[Bug]:
    """Mistakes: a part of a step stays 0, or all indices of an axis have the same values."""
    for step, points in STEPS.items():
        for axis, index, said in edges(points):
            yield Bug(points[0], f"{step} leaves out {said}, which stays 0: {LOOP[index]}",
                      at_all(points,
                             lambda here, x, axis=axis, index=index: x * (  # type: ignore[misc]
                                 1.0 - marked(x, axis, index))))
        for axis in axes(points):
            yield Bug(points[0],
                      f"{step} gives each {axis} what the first one has: its "
                      "index is left out",
                      at_all(points,
                             lambda here, x, axis=axis: alike(x, axis)))  # type: ignore[misc]


# ── what a step reads ──
def without(x: Tensor, index: int) -> Tensor:
    """x with 0 at one index of its last axis."""
    return x * (1.0 - marked(x, "column", index))


def shorter_sums() -> Iterator[Bug]:
    """Mistakes in which a sum lacks its first or its last term."""
    for index, said in LOOP.items():
        def lacking(here: Here, x: Tensor, w: Tensor, b: Tensor, index: int = index) -> Tensor:
            return without(x, index) @ w + b

        def head(here: Here, x: Tensor, index: int = index) -> Tensor:
            return without(here["ln_f.out"], index) @ here.model.lm_head.weight.mT

        term = f"lacks the {'last' if index else 'first'} term of its sum: {said}"
        blocks = every(*(linear(part, lacking) for part in MATRICES))
        yield Bug("attn.q", f"each matrix {term}", every(blocks, at_point("logits", head)))
        yield from (Bug(OUTPUTS[part][0], f"{part} {term}", linear(part, lacking))
                    for part in MATRICES)
        yield Bug("logits", f"the head {term}", at_point("logits", head))
        yield Bug("attn.scores", f"q · k {term}",
                  at_point("attn.scores",
                           lambda here, x, index=index: products(  # type: ignore[misc]
                               without(here["attn.q"], index), here["attn.k"]) * here.scale))
        yield Bug("ln_1.mean", f"LayerNorm's mean {term}",
                  statistics(lambda x, index=index: without(x, index).mean(  # type: ignore[misc]
                                 axis=-1, keepdims=True),
                             lambda c, eps: 1.0 / root_mean_square(c, eps)))
        yield Bug("ln_1.rstd", f"LayerNorm's variance {term}",
                  statistics(lambda x: x.mean(axis=-1, keepdims=True),
                             lambda c, eps, index=index: 1.0  # type: ignore[misc]
                             / root_mean_square(without(c, index), eps)))
        yield Bug("loss", f"the loss's sum over the vocabulary {term}",
                  in_loss(lambda loss, z, y, index=index: per_token(  # type: ignore[misc]
                              mg.where(marked(z, "column", index) == 0.0, z, -1e30), y).mean()))


# the block that is used instead of block i, of n
OTHERS: dict[str, Callable[[int, int], int]] = {
    "block 0": lambda i, n: 0, "the last block": lambda i, n: n
               - 1, "the block before": lambda i, n: max(i - 1, 0),
    "the next block": lambda i, n: min(i + 1, n - 1),
}


def other(here: Here, part: str, which: str) -> Any:
    """A module of another block."""
    n = here.model.config.n_layer
    return module(here.model.h[OTHERS[which](here.layer, n)], part)


def other_blocks() -> Iterator[Bug]:
    """Mistakes in which a block uses a parameter of another block."""
    for which in OTHERS:
        for kinds, said in ((("weight",), "'s weight"), (("bias",), "'s bias"),
                            (("weight", "bias"), "")):
            for part in MATRICES:
                def matrix(here: Here, x: Tensor, w: Tensor, b: Tensor, part: str = part,
                           which: str = which, kinds: tuple[str, ...] = kinds) -> Tensor:
                    own = other(here, part, which)
                    return x @ (own.weight if "weight" in kinds
                                else w) + (own.bias if "bias" in kinds else b)

                yield Bug(OUTPUTS[part][0], f"{part}{said} is that of {which}, in every block",
                          linear(part, matrix))
            for kind in ("ln_1", "ln_2"):
                def norm(here: Here, x: Tensor, kind: str = kind, which: str = which,
                         kinds: tuple[str, ...] = kinds) -> Tensor:
                    own, given = getattr(here.block, kind), other(here, kind, which)
                    return layer_norm(here[NORMS[kind]],
                                      (given if "weight" in kinds else own).weight,
                                      (given if "bias" in kinds else own).bias,
                                      here.model.config.layer_norm_epsilon)

                yield Bug(f"{kind}.out", f"{kind}{said} is that of {which}, in every block",
                          at_point(f"{kind}.out", norm))


# [B, T, d], in order
STREAM = ("resid_pre", "ln_1.out", "attn.z", "attn.out", "resid_mid", "ln_2.out", "mlp.out")


def read(here: Here, point: str) -> Tensor:
    return mg.join_heads(here[point]) if point == "attn.z" else here[point]


def other_inputs() -> Iterator[Bug]:
    """Mistakes in which a step reads the result of another step, or zeros."""
    def before(point: str) -> list[str]:
        return list(STREAM[:STREAM.index(point)])

    for part, (source, point) in (("attn.c_attn", ("ln_1.out", "attn.q")), *LINEAR.items()):
        if source not in STREAM:
            continue
        for given in (*before(source), "0"):
            yield Bug(point, f"{part} reads {given}; it reads {source}",
                      linear(part,
                             lambda here, x, w, b, given=given: (  # type: ignore[misc]
                                 (x * 0.0 if given == "0" else read(here, given)) @ w + b)))
    for kind, source in NORMS.items():
        for given in (*before(source), "0"):
            def norm(here: Here, x: Tensor, end: str, kind: str = kind, source: str = source,
                     given: str = given) -> Tensor:
                own = here[source] * 0.0 if given == "0" else read(here, given)
                return of_norm(end, own, getattr(here.block, kind),
                               here.model.config.layer_norm_epsilon)

            yield Bug(f"{kind}.mean", f"{kind} reads {given}; it reads {source}",
                      every(*(at_point(f"{kind}.{end}", partial(norm, end=end))
                              for end in ("mean", "rstd", "out"))))
    for point, own in (("resid_mid", ("resid_pre", "attn.out")),
                       ("resid_post", ("resid_mid", "mlp.out"))):
        for i in (0, 1):
            for given in (*(p for p in before(own[1]) if p not in own), own[1 - i]):
                yield Bug(
                    point,
                    f"{point} is {given} + {own[1 - i]}; it is "
                    f"{' + '.join(own)}",
                    at_point(
                        point,
                        lambda here, x, given=given, kept=own[1 - i]: read(  # type: ignore[misc]
                            here, given) + read(here, kept)))


GENERAL = [*left_out(), *shorter_sums(), *other_blocks(), *other_inputs()]
# for an addition: its point, a term's name, both terms with that one last, a text about the term's
# gradient, and the point whose gradient shows it first
TERMS = (("resid_mid", "attention's output", ("resid_pre", "attn.out"),
          "attention's branch gets the gradient", "attn.out"),
         ("resid_mid", "the block's input", ("attn.out", "resid_pre"),
          "the gradient goes past ln_1", "resid_pre"),
         ("resid_post", "the MLP's output", ("resid_mid", "mlp.out"),
          "the MLP's branch gets the gradient", "mlp.out"),
         ("resid_post", "the stream", ("mlp.out", "resid_mid"), "the gradient goes past ln_2",
          "resid_mid"))
FACTORS = [
    Factor("ln_1.rstd", "LayerNorm's ε is {}", epsilon),
    Factor("mlp.act", "GELU's factor is {}; it is √(2/π)",
           lambda c: varied(lambda x: tanh_gelu(x, root=c))),
    Factor("mlp.act", "GELU's constant is {}; it is 0.044715",
           lambda c: varied(lambda x: tanh_gelu(x, cubic=c))),
    *(Factor(point, f"{said} is added {{}} times",
             lambda c, point=point, own=own: at_point(  # type: ignore[misc]
                 point, lambda here, x: here[own[0]] + c * here[own[1]]))
      for point, said, own, _, _ in TERMS),
    *(Factor(points[0], f"what {step} gives is multiplied by {{}}",
             lambda c, points=points: at_all(numbers(points),  # type: ignore[misc]
                                             lambda here, x: x * c))
      for step, points in STEPS.items()),
]
