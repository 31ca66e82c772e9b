"""Formulas of mistakes in the forward pass, and ways to plant them; `forward` has their table."""
from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

import minigrad as mg
from minigrad import Tensor

from ..formula_parts import masked, softmax, transposed
from ..planting import (
    Bug,
    Here,
    Plant,
    at_point,
    every,
    in_parameters,
    linear,
    module,
    patterns,
    products,
    scores,
)

MATRICES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
CONV1D = ("GPT-2's checkpoints store [in, out] (Conv1D): multiply x W, or transpose when loading "
          "into nn.Linear")


def in_layout(here: Here, x: Tensor, order: str) -> Tensor:
    """c_attn's result x in a port that reads its columns in another order.

    The right order is parts (Q, K, V), heads, numbers: "phk".
    """
    sizes = {"p": 3, "h": here.model.config.n_head,
             "k": here.model.config.n_embd // here.model.config.n_head}
    columns = np.arange(x.shape[-1]).reshape([sizes[c] for c in order])
    return x[..., columns.transpose([order.index(c) for c in "phk"]).reshape(-1)]


def other_layout(here: Here, x: Tensor, w: Tensor, b: Tensor, order: str) -> Tensor:
    return in_layout(here, x @ w + b, order)


def other_parts(here: Here, x: Tensor, w: Tensor, b: Tensor, order: str) -> Tensor:
    """c_attn's result in a port that reads its thirds in another order, such as "kqv"."""
    thirds = mg.split(x @ w + b, sections=3, axis=-1)
    return mg.concat([thirds[order.index(part)] for part in "qkv"], axis=-1)


LAYOUTS = (("hpk", "not each head's Q, K, V"), ("pkh", "not number by number through the heads"),
           ("hkp", "not q, k, v number by number"),
           ("khp", "not q, k, v number by number, heads inside"))


def read_as(order: str) -> Plant:
    """Attention reads Q, K and V in this order, though the points of Q, K and V are right."""
    def part(here: Here, own: str) -> Tensor:
        buffer = mg.concat([mg.join_heads(here[f"attn.{p}"]) for p in "qkv"], axis=-1)
        return mg.split_heads(in_layout(here, buffer, order), heads=here.model.config.n_head,
                              parts=3)["qkv".index(own)]

    return every(scores(lambda here: products(part(here, "q"), part(here, "k")) * here.scale),
                 at_point("attn.z",
                          lambda here, x: mg.matmul(here["attn.pattern"], part(here, "v"))))


def used_for(order: str) -> Plant:
    """Attention uses the thirds in this order, though the points of Q, K and V are right."""
    def role(here: Here, part: str) -> Tensor:
        return here[f"attn.{'qkv'[order.index(part)]}"]

    return every(scores(lambda here: products(role(here, "q"), role(here, "k")) * here.scale),
                 at_point("attn.z",
                          lambda here, x: mg.matmul(here["attn.pattern"], role(here, "v"))))


def tanh_gelu(x: Tensor, cubic: float = 0.044715, root: float = math.sqrt(2.0 / math.pi)) -> Tensor:
    return 0.5 * x * (1.0 + mg.tanh(root * (x + cubic * (x * x * x))))


def act(f: Callable[[Tensor], Tensor]) -> Plant:
    return at_point("mlp.act", lambda here, x: f(here["mlp.pre"]))


def varied(f: Callable[[Tensor], Tensor]) -> Plant:
    """GELU by tanh with another number in it, if the model uses GELU by tanh."""
    return at_point("mlp.act",
                    lambda here, x: f(here["mlp.pre"])
                    if here.model.config.activation_function == "gelu_new" else x)


def shown(which: Callable[[int], np.ndarray]) -> list[tuple[str, Plant]]:
    """Plants in which queries see the keys that which(T) [T, T] marks.

    The weights of a query without keys are uniform, or zero. The other scores are present, or 0.
    """
    def seen_alone(here: Here) -> Tensor:
        s = products(here["attn.q"], here["attn.k"]) * here.scale
        return mg.where(which(s.shape[-1]), s, 0.0)

    weights = (patterns(lambda here, s, seen: softmax(masked(s, which(s.shape[-1])))),
               patterns(lambda here, s, seen: mg.where(
                   which(s.shape[-1]), softmax(masked(s, which(s.shape[-1]))), 0.0)))
    hides = not which(256)[np.tri(256, dtype=bool)].all()
    return [*(("attn.pattern", plant) for plant in weights),
            *(("attn.scores", every(scores(seen_alone), plant)) for plant in weights if hides)]


def scaled(factor: Callable[[Here], float]) -> Plant:
    """Plant scores that are multiplied by this factor."""
    return scores(lambda here: products(here["attn.q"], here["attn.k"]) * factor(here))


def softmax_over(here: Here, s: Tensor, seen: np.ndarray, axis: int, low: float | None) -> Tensor:
    """Softmax over another axis; `low` masks the scores, None masks the weights."""
    return mg.where(seen, softmax(s, axis),
                    0.0) if low is None else softmax(mg.where(seen, s, low), axis)


def window(n: int) -> Callable[[int], np.ndarray]:
    return lambda size: np.tri(size, dtype=bool) & ~np.tri(size, k=-n, dtype=bool)


def unsplit(here: Here, x: Tensor) -> Tensor:
    """The numbers of Q, K or V [B, h, T, d/h] in the order of [B, T, d]."""
    return mg.join_heads(x).reshape(x.shape)


def merged(here: Here, z: Tensor) -> Tensor:
    """c_proj's result for z [B, T, d]."""
    own = here.block.attn.c_proj
    return z @ own.weight + own.bias


def heads_alike(point: str, head: int) -> Plant:
    """Plant the values of this head in all heads, after the points of Q, K and V."""
    if point == "attn.v":
        return at_point("attn.z",
                        lambda here, x: mg.matmul(here["attn.pattern"],
                                                  here["attn.v"][:, head:head + 1 or None]))

    return scores(lambda here: products(here["attn.q"],
                                        here["attn.k"][:, head:head + 1 or None]) * here.scale)


def first_rows(part: str) -> Plant:
    """Attention uses the first row's Q, K or V for every row of the batch, after their points."""
    def role(here: Here, own: str) -> Tensor:
        x = here[f"attn.{own}"]
        return mg.broadcast_to(x[:1], shape=x.shape) if own == part else x

    if part == "v":
        return at_point("attn.z", lambda here, x: mg.matmul(here["attn.pattern"], role(here, "v")))
    return scores(lambda here: products(role(here, "q"), role(here, "k")) * here.scale)


def bias_twice(part: str) -> Plant:
    return linear(part, lambda here, x, w, b: x @ w + b + b)


def without_bias(here: Here, x: Tensor, w: Tensor, b: Tensor, part: str) -> Tensor:
    """c_attn's result without the bias of Q, K or V."""
    return x @ w + b * (np.repeat(list("qkv"), len(b) // 3) != part).astype(b.dtype)


def bare(part: str) -> Plant:
    return linear(part, lambda here, x, w, b: x @ w)


def flipped(at: str, part: str, more: str = "") -> list[Bug]:
    """Mistakes in which a matrix is read transposed.

    The checkpoint has it as [in, out], or as [out, in], where the memory has another order.
    """
    def reordered(name: str, a: np.ndarray) -> np.ndarray:
        if not name.endswith(f"{part}.weight"):
            return a
        return np.ascontiguousarray(a.reshape(a.shape[::-1]).T)

    return [Bug(at, f"{part}'s weight is read transposed{more}; {CONV1D}", plant)
            for plant in (linear(part, lambda here, x, w, b: x @ transposed(w) + b),
                          linear(part, lambda here, x, w, b: x @ w.mT.reshape(w.shape) + b),
                          in_parameters(reordered))]


def offset(part: str, kind: str, times: int) -> Plant:
    """Plant block l's weight or bias from l·s numbers after block 0's.

    s is the size of a parameter whose last axis has `times` times d numbers.
    """
    def made(here: Here, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        own = w if kind == "weight" else b
        size = own.numel()
        first, begin = divmod(
            here.layer * (size // own.shape[-1] * here.model.config.n_embd * times), size)
        both = [getattr(module(here.model.h[i], part), kind).reshape(-1)
                for i in (first, min(first + 1, here.layer))]
        other = mg.concat([both[0][begin:], both[1][:begin]]).reshape(own.shape)
        return x @ other + b if kind == "weight" else x @ w + other

    return linear(part, made)


def offsets(at: str, part: str, width: int) -> list[Bug]:
    """Mistakes in which the parameters of each block are taken from the wrong offset.

    The matrix has `width` times d columns; the offset is that of a narrower one.
    """
    return [Bug(at,
                f"{part}'s {kind} of block l is taken from the wrong place: l · {size} numbers "
                f"after block 0's, and not l · {whole}",
                offset(part, kind, times))
            for kind in ("bias", "weight") for times in range(1, width)
            for size, whole in [tuple(f"{n if n > 1 else ''}d{'²' if kind == 'weight' else ''}"
                                      for n in (times, width))]]
