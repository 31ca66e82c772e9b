"""Mistakes that any step of the backward pass can have.

Such as a loop that ends too early, an index that is left out, or another block's array. They are
tried if no mistake of the other tables explains everything, as those of `any_step` are for the
forward pass.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import minigrad as mg
from minigrad import Tensor

from ..formula_parts import layer_norm, masked, mean, only, root_mean_square, softmax, stop
from ..planting import (
    NORMS,
    Bug,
    Here,
    Plant,
    at_point,
    beforehand,
    every,
    linear,
    norms,
    patterns,
    products,
    weighted,
    zeroed,
)
from .any_step import (
    AXES,
    EDGES,
    KINDS,
    LOOP,
    OTHERS,
    STEPS,
    STREAM,
    TERMS,
    Factor,
    alike,
    at_all,
    axes,
    edges,
    marked,
    numbers,
    other,
)
from .backward import BEFORE, gelu_slope
from .formulas import MATRICES
from .norms_backward import derived, norm, right_gain, right_part

# what a rule reads instead of the array that it should read
Held = Callable[[Here, Tensor], Tensor]
Reading = Callable[[Callable[[Held], Plant]], Plant]


# ── the gradient of a step ──
def first_of(points: tuple[str, ...]) -> str:
    """The point of a step that the backward pass reaches first.

    Of Q, K and V it is the last, because their gradients are needed together.
    """
    at = numbers(points)[-1]
    return "attn.q" if at in ("attn.q", "attn.k", "attn.v") else at


def lost() -> Iterator[Bug]:
    """Mistakes in which a part of a step's gradient is not passed on."""
    for step, points in STEPS.items():
        at = first_of(points)
        # the first query's scores have no gradient
        one_key = outputs(points)[0] in ("attn.q", "attn.scores", "attn.pattern")
        for axis, index, said in edges(points):
            if one_key and index == 0 and axis in ("position", "token"):
                continue
            yield Bug(at, f"{step} hands back no gradient of {said}: {LOOP[index]}",
                      at_all(outputs(points),
                             lambda here, x, axis=axis, index=index: only(  # type: ignore[misc]
                                 x, 1.0 - marked(x, axis, index))))
        for axis in axes(points):
            yield Bug(at,
                      f"{step} hands back the gradient of each {axis} to the first "
                      "one: its index is left out",
                      at_all(outputs(points),
                             lambda here, x, axis=axis: alike(x, axis)))  # type: ignore[misc]
            yield Bug(at,
                      f"{step} reads the first {axis}'s gradient for all of them: its index is "
                      "left out",
                      at_all(outputs(points),
                             lambda here, x, axis=axis: zeroed(  # type: ignore[misc]
                                 x.sum(axis=AXES[axis], keepdims=True) * marked(x, axis, 0))))


def outputs(points: tuple[str, ...]) -> tuple[str, ...]:
    """Those points of a step that get a gradient.

    Of attention it is the last one, because the others are computed from it in the backward pass.
    """
    return points[-1:] if points[0] == "attn.scores" else numbers(points)


# ── what the backward pass of a step reads ──
def passed(name: Callable[[int, int], str]) -> Reading:
    """The tensor at the point name(i, n) in block i of n; the point may be a later one."""
    return lambda made: beforehand(lambda i, n: [name(i, n)],
                                   lambda value: made(lambda here, x: value(here, 0)))


def first_alone(axis: str) -> Reading:
    """The array, with its values at the first index of an axis at every index."""
    return lambda made: made(lambda here, x: alike(stop(x), axis))


def held(point: str) -> Iterator[tuple[str, Reading]]:
    """Arrays that a rule may read by mistake instead of a point's tensor, and texts about them."""
    for which, block in OTHERS.items():
        yield f"that of {which}", passed(
            lambda i, n, block=block: f"blocks.{block(i, n)}.{point}")  # type: ignore[misc]
    for axis in ("row of the batch", "token", "head", "position"):
        # c_proj reads z with its heads joined
        if axis != "head" or (point.startswith("attn.") and point != "attn.z"):
            yield f"the first {axis}'s for all of them", first_alone(axis)
    alternatives = {"attn.q": ("attn.k", "attn.v"), "attn.k": ("attn.q", "attn.v"),
                    "attn.v": ("attn.q", "attn.k")}
    others = tuple(p for p in STREAM if p != point)
    for instead in others if point in STREAM else alternatives.get(point, ()):
        yield instead, passed(
            lambda i, n, instead=instead: f"blocks.{i}.{instead}")  # type: ignore[misc]


def reads() -> Iterator[Bug]:
    """Mistakes in which a rule reads another array than it should."""
    for part in MATRICES:
        source = BEFORE[part]
        for said, reading in held(source):
            yield Bug(f"{part}.weight",
                      f"{part}'s weight has the gradient with {said}; it is with its own {source}",
                      reading(lambda own, part=part: linear(  # type: ignore[misc]
                          part,
                          lambda here, x, w, b: x @ stop(w) + zeroed(rows(own(here, x)) @ w) + b)))
        for which in OTHERS:
            yield Bug(
                source, f"{part} hands back the gradient with the weight of {which}",
                linear(part,
                       lambda here, x, w, b, part=part, which=which: (  # type: ignore[misc]
                           x @ stop(other(here, part, which).weight) + stop(x) @ w + b)))
    for axis in ("row of the batch", "token", "position"):
        yield Bug(
            "wte.weight",
            f"the head's part of wte's gradient has the first {axis}'s x for all of them",
            at_point("logits",
                     lambda here, x, axis=axis: here["ln_f.out"] @ stop(  # type: ignore[misc]
                         here.model.lm_head.weight).mT
                     + (alike(stop(here["ln_f.out"]), axis) @ here.model.lm_head.weight.mT)))
    for said, reading in held("attn.k"):
        yield Bug("attn.q", f"attn.q has its gradient with attn.k from elsewhere: {said}",
                  reading(lambda own: at_point("attn.scores", lambda here, x: here.scale * (
                      products(here["attn.q"], own(here, here["attn.k"]))
                      + products(stop(here["attn.q"]), here["attn.k"])))))
    for said, reading in held("attn.q"):
        yield Bug("attn.k", f"attn.k has its gradient with attn.q from elsewhere: {said}",
                  reading(lambda own: at_point("attn.scores", lambda here, x: here.scale * (
                      products(here["attn.q"], stop(here["attn.k"]))
                      + products(own(here, here["attn.q"]), here["attn.k"])))))
    for said, reading in held("attn.v"):
        yield Bug("attn.pattern",
                  f"the attention weights have their gradient with attn.v from elsewhere: {said}",
                  reading(lambda own: at_point("attn.z", lambda here, x: (
                      mg.matmul(here["attn.pattern"], own(here, here["attn.v"]))
                      + mg.matmul(stop(here["attn.pattern"]), here["attn.v"])))))
    for said, reading in held("attn.pattern"):
        for_v = reading(lambda own: at_point("attn.z", lambda here, x: (
            mg.matmul(here["attn.pattern"], stop(here["attn.v"]))
            + mg.matmul(own(here, here["attn.pattern"]), here["attn.v"]))))
        for_scores = reading(lambda own: patterns(lambda here, s, seen: weighted(
            own(here, softmax(masked(s, seen))), mg.where(seen, s, 0.0))))
        yield Bug("attn.v",
                  f"attn.v has its gradient with attention weights from elsewhere: {said}", for_v)
        yield Bug("attn.scores",
                  f"softmax's derivative has attention weights from elsewhere: {said}", for_scores)
        yield Bug("attn.v",
                  f"attention's backward pass has attention weights from elsewhere: {said}",
                  every(for_v, for_scores))
    for said, reading in held("mlp.pre"):
        yield Bug("mlp.pre", f"the activation's derivative is at the inputs from elsewhere: {said}",
                  reading(lambda own: at_point("mlp.act",
                                               lambda here, x: here["mlp.pre"] * stop(
                                                   gelu_slope(own(here, here["mlp.pre"]))))))


def rows(x: Tensor) -> Tensor:
    """x as [B, T, n]; it may be [B, h, T, d/h]."""
    return mg.join_heads(x) if x.ndim == 4 else x


def with_statistics(kind: str, named: str) -> Plant:
    """LayerNorm's derivative with the μ and σ of another LayerNorm.

    The other one is "blocks.{0}.ln_2", "ln_f", or the same one in a block of OTHERS.
    """
    def points(i: int, n: int) -> list[str]:
        name = f"blocks.{OTHERS[named](i, n)}.{kind}" if named in OTHERS else named.format(i)
        return [f"{name}.mean", f"{name}.rstd"]

    def formula(here: Here, x: Tensor, value: Callable[[Here, int], Tensor]) -> Tensor:
        own = getattr(here.block, kind)
        return derived(here[NORMS[kind]], own.weight, own.bias, value(here, 0), value(here, 1))

    return beforehand(points, lambda value: at_point(f"{kind}.out", partial(formula, value=value)))


def norm_reads() -> Iterator[Bug]:
    """Mistakes in which LayerNorm's rule reads other numbers than it should."""
    def first_of_axis(x: Tensor, w: Tensor, b: Tensor, eps: float, axis: str, which: str) -> Tensor:
        m, r = stop(mean(x)), stop(1.0 / root_mean_square(x - mean(x), eps))
        return derived(x, w, b, alike(m, axis) if "μ" in which else m,
                       alike(r, axis) if "σ" in which else r)

    for which in ("μ", "σ", "μ and σ"):
        for axis in ("row of the batch", "position"):
            for kinds in (KINDS, *((kind,) for kind in KINDS)):
                name = "LayerNorm" if len(kinds) > 1 else kinds[0]
                yield Bug(f"{kinds[-1]}.out",
                          f"in the backward pass {name} has the first {axis}'s {which} for all of "
                          "them",
                          norms(partial(first_of_axis, axis=axis, which=which), kinds))
    for kind in NORMS:
        for said, named in (*((f"{other_kind}'s", f"blocks.{{0}}.{other_kind}")
                              for other_kind in NORMS if other_kind != kind),
                            ("ln_f's", "ln_f"),
                            *((f"its own of {which}", which) for which in OTHERS)):
            yield Bug(f"{kind}.out", f"{kind} has {said} μ and σ in the backward pass",
                      with_statistics(kind, named))
    for kind, source in NORMS.items():
        def other_weight(here: Here, x: Tensor, kind: str, source: str, which: str) -> Tensor:
            own, given = getattr(here.block, kind), here[source]
            w = stop(other(here, kind, which).weight)
            return norm(lambda x, n, r, _: right_part(x, n, r, w), right_gain)(
                given, own.weight, own.bias, here.model.config.layer_norm_epsilon)

        for which in OTHERS:
            yield Bug(source, f"{kind} hands back the gradient with the weight of {which}",
                      at_point(f"{kind}.out",
                               partial(other_weight, kind=kind, source=source, which=which)))


# ── the gradients of parameters ──
def leaves() -> Iterator[tuple[str, str, Callable[[Callable[[Here, Tensor, str], Any]], Plant]]]:
    """The parameters of a block, and how to plant another gradient for each.

    (the parameter's name in a block, the module's, a plant of made(here, parameter, kind) in its
    place).
    """
    for part in MATRICES:
        yield f"{part}.weight", part, lambda made, part=part: linear(  # type: ignore[misc]
            part, lambda here, x, w, b: stop(x) @ made(here, w, "weight") + x @ stop(w) + b)
        yield f"{part}.bias", part, lambda made, part=part: linear(  # type: ignore[misc]
            part, lambda here, x, w, b: x @ w + made(here, b, "bias"))
    for kind in ("ln_1", "ln_2"):
        def plant(made: Callable[[Here, Tensor, str], Any], kind: str, of: str) -> Plant:
            def formula(here: Here, x: Tensor) -> Tensor:
                own, given, eps = getattr(
                    here.block, kind), here[NORMS[kind]], here.model.config.layer_norm_epsilon
                w, b = own.weight, own.bias
                return layer_norm(given, made(here, w, of) if of == "weight" else w,
                                  made(here, b, of) if of == "bias" else b, eps)

            return at_point(f"{kind}.out", formula)

        for of in ("weight", "bias"):
            yield f"{kind}.{of}", kind, partial(plant, kind=kind, of=of)


def of_leaves() -> Iterator[Bug]:
    for name, part, planted in leaves():
        said = f"{part}'s {name.rpartition('.')[2]}"
        for which in ("block 0", "the last block"):
            yield Bug(
                name,
                f"{said}: its gradient is added to that of {which}, in "
                "every block",
                planted(
                    lambda here, p, kind, part=part, which=which: stop(p)  # type: ignore[misc]
                    + zeroed(getattr(other(here, part, which), kind))))
        for index, edge in LOOP.items():
            which = "last" if index else "first"
            for axis, word in (("column", "column"),
                               ("position", "row"))[:1 + (part in MATRICES and "weight" in name)]:
                yield Bug(
                    name,
                    f"{said} has no gradient in its {which} {word}: {edge}",
                    planted(
                        lambda here, p, kind, axis=axis, index=index: only(  # type: ignore[misc]
                            p, 1.0 - marked(p, axis, index))))
    for part in MATRICES:
        for axis, index, which in EDGES[:6]:
            yield Bug(
                f"{part}.weight", f"{part}'s weight lacks {which} in its gradient: {LOOP[index]}",
                linear(part,
                       lambda here, x, w, b, axis=axis, index=index: (  # type: ignore[misc]
                           x @ stop(w) + zeroed(stop(x * (1.0 - marked(x, axis, index))) @ w) + b)))
            yield Bug(f"{part}.bias",
                      f"{part}'s bias lacks {which} in its gradient: "
                      f"{LOOP[index]}",
                      linear(
                          part,
                          lambda here, x, w, b, axis=axis, index=index: (  # type: ignore[misc]
                              x @ w
                              + only(mg.broadcast_to(
                                         b, shape=(*x.shape[:-1], len(b))),
                                     1.0 - marked(x, axis, index)))))


GENERAL_BACK = [*lost(), *reads(), *norm_reads(), *of_leaves()]
FACTORS_BACK = [
    *(Factor(at, f"{said} {{}} times",
             lambda c, point=point, own=own: at_point(  # type: ignore[misc]
                 point, lambda here, x: here[own[0]] + only(here[own[1]], np.asarray(c))))
      for point, _, own, said, at in TERMS),
    *(Factor(first_of(points), f"the gradient of what {step} gives is multiplied by {{}}",
             lambda c, points=points: at_all(outputs(points),  # type: ignore[misc]
                                             lambda here, x: only(x, np.asarray(c))))
      for step, points in STEPS.items()),
    *(Factor(name, f"{part}'s {name.rpartition('.')[2]} has its gradient {{}} times",
             lambda c, planted=planted: planted(lambda here, p, kind: only(  # type: ignore[misc]
                                                    p, np.asarray(c))))
      for name, part, planted in leaves()),
]
