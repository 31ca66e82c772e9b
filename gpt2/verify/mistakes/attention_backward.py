"""Mistakes in the backward pass of attention; a part of `backward`'s table."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

import minigrad as mg
from minigrad import Tensor

from ..formula_parts import softmax, stop
from ..planting import (
    Bug,
    Here,
    Plant,
    at_point,
    every,
    patterns,
    products,
    scale_of,
    weighted,
    zeroed,
)


def of_softmax(says: str, made: Callable[[Tensor, Tensor, np.ndarray], Tensor]) -> Bug:
    """Plant weights with the derivative of made(P, scores, mask); P is constant."""
    return Bug("attn.scores", says, patterns(lambda here, s, seen: made(
        stop(mg.where(seen, softmax(mg.where(seen, s, -1e30)), 0.0)), s, seen)))


def of_scores(at: str, says: str, made: Callable[[Here], Tensor]) -> Bug:
    """Plant scores with the derivative of made(here). at: the first gradient that is wrong."""
    return Bug(f"attn.{at}", says,
               at_point("attn.scores", lambda here, x: stop(x) + zeroed(made(here))))


def score(here: Here, q: float = 1.0, k: float = 1.0) -> Tensor:
    """q kᵀ, with q's gradient times one number and k's gradient times another."""
    return q * products(here["attn.q"],
                        stop(here["attn.k"])) + k * products(stop(here["attn.q"]), here["attn.k"])


def own_alone(x: Tensor) -> Tensor:
    """[B, h, T, T] with the derivative that x has in row t, at every column."""
    return (stop(x) * x).sum(axis=-1, keepdims=True) + np.zeros((x.shape[-2], x.shape[-2]), x.dtype)


def causal(s: Tensor, seen: np.ndarray) -> Tensor:
    return mg.where(seen, s, 0.0)


def last(n: int) -> np.ndarray:
    """1 at the last of n positions, 0 at the others."""
    return np.arange(n) == n - 1


def without(says: str, kept: Callable[[np.ndarray], np.ndarray]) -> list[Bug]:
    """Mistakes in which some scores get no gradient, or pass none on."""
    return [of_softmax(says, lambda p, s, seen: weighted(p, causal(s, kept(seen)))),
            of_scores("k", says,
                      lambda here: causal(score(here) * here.scale,
                                          kept(np.tri(here["attn.q"].shape[-2], dtype=bool))))]


def thirds_swapped(a: str, b: str) -> Plant:
    """The gradients of two of Q, K and V are swapped in c_attn's columns."""
    def third(here: Here, x: Tensor, part: str) -> Tensor:
        own = here.block.attn.c_attn
        q, k, v = mg.split_heads(here["ln_1.out"] @ own.weight + own.bias,
                                 heads=here.model.config.n_head, parts=3)
        return stop(x) + zeroed({"q": q, "k": k, "v": v}[part])

    return every(at_point(f"attn.{a}", partial(third, part=b)),
                 at_point(f"attn.{b}", partial(third, part=a)))


def thirds_of(role: str, kept: str) -> Plant:
    """c_attn with gradients only by some of Q, K and V.

    The gradient is that of its input ("x"), of its matrix ("w"), or of its matrix and bias ("wb").
    """
    def third(here: Here, x: Tensor, part: str) -> Tensor:
        own, given = here.block.attn.c_attn, here["ln_1.out"]
        y = (stop(given) if role == "x"
             else given) @ (own.weight if role == "x" else stop(own.weight))
        y = y + (stop(own.bias) if role == "wb" else own.bias)
        return mg.split_heads(y, heads=here.model.config.n_head, parts=3)["qkv".index(part)]

    return every(*(at_point(f"attn.{part}", partial(third, part=part))
                   for part in "qkv" if part not in kept))


ATTENTION = [
    of_scores("k", "the scale 1/√(d/h) is left out in the backward pass", score),
    of_scores("k", "the scale 1/√(d/h) is applied twice in the backward pass",
              lambda here: score(here) * here.scale ** 2),
    of_scores("k", "scores are multiplied by √(d/h) in the backward pass; they are divided by it",
              lambda here: score(here) * scale_of(here)),
    of_scores("k", "scores are divided by √d in the backward pass; they are divided by √(d/h)",
              lambda here: score(here) * here.model.config.n_embd ** -0.5),
    of_scores("k", "the scale 1/√(d/h) is left out of K's gradient",
              lambda here: score(here, here.scale, 1.0)),
    of_scores("q", "the scale 1/√(d/h) is left out of Q's gradient",
              lambda here: score(here, 1.0, here.scale)),
    of_scores("k", "K gets no gradient", lambda here: score(here, here.scale, 0.0)),
    of_scores("q", "Q gets no gradient", lambda here: score(here, 0.0, here.scale)),
    of_scores("k", "K has its gradient with K and not Q: ∂K = ∂Sᵀ Q",
              lambda here: here.scale * (products(here["attn.q"], stop(here["attn.k"]))
                                         + products(stop(here["attn.k"]), here["attn.k"]))),
    of_scores("q", "Q has its gradient with Q and not K: ∂Q = ∂S K",
              lambda here: here.scale * (products(here["attn.q"], stop(here["attn.q"]))
                                         + products(stop(here["attn.q"]), here["attn.k"]))),
    of_scores("k", "K has its gradient with ∂S, not transposed: ∂K = ∂Sᵀ Q",
              lambda here: here.scale * (products(here["attn.q"], stop(here["attn.k"]))
                                         + products(here["attn.k"], stop(here["attn.q"])))),
    of_scores("k", "K has its gradient with its own K and not Q: ∂K = ∂Sᵀ Q",
              lambda here: here.scale * (products(here["attn.q"], stop(here["attn.k"]))
                                         + own_alone(here["attn.k"]).mT)),
    of_scores("q", "Q has its gradient with its own Q and not K: ∂Q = ∂S K",
              lambda here: here.scale * (products(stop(here["attn.q"]), here["attn.k"])
                                         + own_alone(here["attn.q"]))),
    of_scores("k", "the gradients of Q and K are swapped",
              lambda here: here.scale * (products(here["attn.k"], stop(here["attn.k"]))
                                         + products(stop(here["attn.q"]), here["attn.q"]))),
    of_softmax("softmax's derivative lacks −⟨p, g⟩: it is p ⊙ (g − ⟨p, g⟩)",
               lambda p, s, seen: p * s),
    of_softmax("softmax's derivative is left out", lambda p, s, seen: causal(s, seen)),
    of_softmax("softmax's derivative is left out, and the causal mask too", lambda p, s, seen: s),
    *(of_softmax("softmax's derivative has ⟨p², g⟩ instead of p ⟨p, g⟩: another index of p", made)
      for made in (lambda p, s, seen: p * s - causal((p * p * s).sum(axis=-1, keepdims=True) * 1.0,
                                                     seen),
                   lambda p, s, seen: p * (s - (p * p * s).sum(axis=-1, keepdims=True)))),
    of_softmax("softmax's derivative is p ⊙ (1 − p) ⊙ g, its diagonal alone; it is p ⊙ (g − ⟨p, "
               "g⟩)",
               lambda p, s, seen: p * (1.0 - p) * s),
    of_softmax("softmax's derivative has mean(g) instead of ⟨p, g⟩",
               lambda p, s, seen: (p * s
                                   - causal((p * s).sum(axis=-1, keepdims=True) * 1.0, seen)
                                   / np.arange(1.0, s.shape[-1] + 1).astype(s.dtype)[:, None])),
    *(of_softmax("softmax's derivative has Σ g instead of ⟨p, g⟩", made) for made in (
        lambda p, s, seen: p * s - causal((p * s).sum(axis=-1, keepdims=True), seen),
        lambda p, s, seen: p * s - (p * s).sum(axis=-1, keepdims=True))),
    of_softmax("softmax's derivative adds ⟨p, g⟩; it is taken away: p ⊙ (g − ⟨p, g⟩)",
               lambda p, s, seen: p * (s + (p * s).sum(axis=-1, keepdims=True))),
    of_softmax("the causal mask is left out in the backward pass: P is computed anew without it",
               lambda p, s, seen: weighted(stop(softmax(s)), s)),
    *without("the diagonal of the scores gets no gradient: the loop over keys ends at t",
             lambda seen: np.tri(len(seen), k=-1, dtype=bool)),
    *without("the first key gets no gradient from the scores: the loop over keys starts at 0",
             lambda seen: seen & (np.arange(len(seen)) > 0)),
    *(Bug("attn.c_attn.weight",
          f"the gradients of {a.upper()} and {b.upper()} are swapped where they are put together "
          "for c_attn",
          thirds_swapped(a, b))
      for a, b in ("qk", "kv", "qv")),
    *(Bug("attn.v",
          f"the gradients of {a.upper()} and V are swapped where they are "
          "put together for c_attn",
          every(at_point("attn.scores",
                         lambda here, x, a=a: stop(x) + zeroed(  # type: ignore[misc]
                             here.scale * (
                                 products(here["attn.v" if a == "q"
                                               else "attn.q"],
                                          stop(here["attn.k"]))
                                 + products(stop(here["attn.q"]),
                                            here["attn.v" if a == "k"
                                                 else "attn.k"])))),
                at_point("attn.z",
                         lambda here, x, a=a: mg.matmul(  # type: ignore[misc]
                             here["attn.pattern"], stop(here["attn.v"]))
                         + zeroed(mg.matmul(stop(here["attn.pattern"]),
                                            here[f"attn.{a}"])))))
      for a in "qk"),
    *(Bug("ln_1.out", f"c_attn hands back the gradient {said}", thirds_of("x", kept))
      for said, kept in (("without Q's part", "kv"), ("without K's part", "qv"),
                         ("without V's part", "qk"),
                         ("of Q's part alone: it is set, not added to", "q"),
                         ("of K's part alone: it is set, not added to", "k"),
                         ("of V's part alone: it is set, not added to", "v"))),
    *(Bug("attn.c_attn.weight", f"c_attn's columns of {lost} get no gradient",
          thirds_of(role, kept))
      for lost, kept in (("Q", "kv"), ("K", "qv"), ("V", "qk")) for role in ("w", "wb")),
    Bug("attn.v", "V has its gradient with the scores; it is with P, what softmax made of them",
        at_point("attn.z", lambda here, x: (
            mg.matmul(here["attn.pattern"], stop(here["attn.v"]))
            + zeroed(mg.matmul(stop(causal(products(here["attn.q"], here["attn.k"]) * here.scale,
                                           np.tri(x.shape[-2], dtype=bool))),
                               here["attn.v"]))))),
    Bug("attn.v", "V gets no gradient",
        at_point("attn.z", lambda here, x: mg.matmul(here["attn.pattern"], stop(here["attn.v"])))),
    Bug("attn.v", "V has its gradient with P, not transposed: ∂V = Pᵀ ∂z",
        at_point("attn.z",
                 lambda here, x: (mg.matmul(here["attn.pattern"], stop(here["attn.v"]))
                                  + zeroed(mg.matmul(stop(here["attn.pattern"]).mT,
                                                     here["attn.v"]))))),
    Bug("attn.v", "V's gradient lacks the diagonal: the loop over keys ends at t",
        at_point("attn.z",
                 lambda here, x: (mg.matmul(here["attn.pattern"], stop(here["attn.v"]))
                                  + zeroed(mg.matmul(mg.where(np.tri(x.shape[-2], k=-1, dtype=bool),
                                                              stop(here["attn.pattern"]), 0.0),
                                                     here["attn.v"]))))),
    Bug("attn.v", "V's gradient is added up at the query's position, not at the key's: ∂V = Pᵀ ∂z",
        at_point("attn.z",
                 lambda here, x: mg.matmul(here["attn.pattern"], stop(here["attn.v"])) + zeroed(
                     stop(here["attn.pattern"].sum(axis=-1, keepdims=True)) * here["attn.v"]))),
    Bug("attn.v",
        "V has the gradient of the last query alone: it is set in the loop over queries, and not "
        "added to",
        at_point("attn.z",
                 lambda here, x: mg.matmul(here["attn.pattern"], stop(here["attn.v"])) + zeroed(
                     mg.matmul(stop(here["attn.pattern"])
                               * last(x.shape[-2])[:, None].astype(x.dtype),
                               here["attn.v"])))),
    of_scores("k",
              "K has the gradient of the last query alone: it is set in the loop over queries, and "
              "not added to",
              lambda here: (here.scale * (products(here["attn.q"], stop(here["attn.k"]))
                                          + products(
                                              stop(here["attn.q"])
                                              * last(here["attn.q"].shape[-2])[:, None].astype(
                                                  here["attn.q"].dtype),
                                              here["attn.k"])))),
    of_scores("q",
              "Q has the gradient of its own key alone: it is set in the loop over keys, and not "
              "added to",
              lambda here: (here.scale * (products(stop(here["attn.q"]), here["attn.k"])
                                          + mg.where(np.eye(here["attn.q"].shape[-2], dtype=bool),
                                                     products(here["attn.q"], stop(here["attn.k"])),
                                                     0.0)))),
    Bug("attn.v", "V has its gradient without P: ∂V = Pᵀ ∂z",
        at_point("attn.z",
                 lambda here, x: (mg.matmul(here["attn.pattern"], stop(here["attn.v"]))
                                  + zeroed(mg.matmul(np.tri(x.shape[-2]).astype(x.dtype),
                                                     here["attn.v"]))))),
    Bug("attn.pattern", "the attention weights get no gradient",
        at_point("attn.z", lambda here, x: mg.matmul(stop(here["attn.pattern"]), here["attn.v"]))),
    Bug("attn.z",
        "heads are taken apart in the backward pass without the transpose, from [B, T, d] to [B, "
        "h, T, d/h]",
        at_point("attn.out",
                 lambda here, x: (
                     zeroed(here["attn.z"].reshape(x.shape) @ stop(here.block.attn.c_proj.weight))
                     + stop(x)
                     + zeroed(stop(mg.join_heads(here["attn.z"])) @ here.block.attn.c_proj.weight)
                     + zeroed(here.block.attn.c_proj.bias)))),
]
