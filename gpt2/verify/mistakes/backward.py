"""Mistakes in the backward pass: the value is right, the derivative is that of another formula.

A mistake is a line of a table, see `planting.Bug`; it is planted in the derivative alone. g is the
cotangent, and ĝ = g ⊙ weight.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

import minigrad as mg
from minigrad import Tensor

from ..formula_parts import only, place_mask, softmax, stop, transposed
from ..planting import Bug, Here, Plant, Run, at_point, every, in_loss, linear, norms, zeroed
from .adamw import clipped
from .attention_backward import ATTENTION
from .formulas import MATRICES, tanh_gelu
from .loss import per_token
from .norms_backward import NORMS, norm, right_gain

SOURCES = {"attn.c_attn": "what ln_1 made", "attn.c_proj": "z", "mlp.c_fc": "what ln_2 made",
           "mlp.c_proj": "what GELU made"}


# ── the loss ──
def times(factor: Callable[[np.ndarray], float]) -> Plant:
    return in_loss(lambda loss, z, y: loss * factor(y))


def one_hot(z: Tensor, y: np.ndarray) -> Tensor:
    """The mean of the targets' logits; its derivative is the one-hot part of the loss's."""
    return mg.gather(z, y[..., None], axis=-1).mean()


def of_ids(run: Run, layers: list[int], what: str) -> Run:
    return in_loss(lambda loss, z, y: per_token(z, run.ids).mean())(run, layers, what)


LOSS = [
    Bug("loss", "the one-hot part of the loss's derivative is of the ids; it is of the targets",
        of_ids),
    *(Bug("loss", f"gradients are {said}", times(factor))
      for said, factor in (
          ("not divided by the number of tokens: the loss is their mean", lambda y: float(y.size)),
          ("divided by the number of tokens B·T twice", lambda y: 1.0 / y.size),
          ("divided by B, the number of rows, once too often", lambda y: 1.0 / y.shape[0]),
          ("divided by T, the tokens of a row, once too often", lambda y: 1.0 / y.shape[1]),
          ("divided by T alone, as by who accumulates row by row; the loss is the mean over all "
           "B·T tokens",
           lambda y: float(y.shape[0])),
          ("divided by B alone; the loss is the mean over all B·T tokens",
           lambda y: float(y.shape[1])),
          ("added up twice: is backward run twice without zeroing them?", lambda y: 2.0),
          ("divided by T − 1; the loss is the mean over all tokens",
           lambda y: y.shape[1] / max(y.shape[1] - 1, 0.5)),)),
    Bug("loss", "gradients are clipped to a norm of 1 before they are written",
        lambda run, layers, what: run._replace(after=(*run.after, clipped))),
    Bug("loss", "gradients are divided by the size of the vocabulary, too",
        in_loss(lambda loss, z, y: loss / z.shape[-1])),
    Bug("loss",
        "gradients have the wrong sign: the gradient of the logits is softmax minus one-hot",
        times(lambda y: -1.0)),
    Bug("loss",
        "the gradient of the logits is softmax alone; the one-hot target is to be taken away",
        in_loss(lambda loss, z, y: loss + one_hot(z, y))),
    Bug("loss",
        "the gradient of the logits is softmax minus one-hot/(B·T): softmax is to be divided, too",
        in_loss(lambda loss, z, y: loss * float(y.size) + one_hot(z, y) * (float(y.size) - 1.0))),
    Bug("loss",
        "the gradient of the logits is softmax/(B·T) minus one-hot: the target is to be divided, "
        "too",
        in_loss(lambda loss, z, y: loss - one_hot(z, y) * (float(y.size) - 1.0))),
    Bug("loss",
        "the gradient of the logits is minus the one-hot target alone; it is softmax minus one-hot",
        in_loss(lambda loss, z, y: -one_hot(z, y))),
    Bug("loss",
        "the gradient of the logits is softmax plus the one-hot target; it is softmax minus "
        "one-hot",
        in_loss(lambda loss, z, y: loss + 2.0 * one_hot(z, y))),
    Bug("loss", "the gradient of the logits is that of the squared error, (p − y) ⊙ p (1 − p)",
        in_loss(lambda loss, z, y: (stop((p := softmax(z)) * (1.0 - p)) * loss_of(z, y)).sum())),
    Bug("loss",
        "the last position of each row gets no gradient from the loss; it has a target, too",
        in_loss(lambda loss, z, y: (
            per_token(z, y) * (np.arange(y.shape[1]) < y.shape[1] - 1).astype(z.dtype)).mean())),
    *(Bug("loss", f"the {said} token of the batch gets no gradient from the loss",
          in_loss(lambda loss, z, y, i=i: only(  # type: ignore[misc]
              per_token(z, y),
              1.0 - place_mask(y.shape, 0, i) * place_mask(y.shape, 1, i)).mean()))
      for i, said in ((0, "first"), (-1, "last"))),
    Bug("loss", "the first position of each row gets no gradient from the loss",
        in_loss(lambda loss, z, y: (
            per_token(z, y) * (np.arange(y.shape[1]) > 0).astype(z.dtype)).mean())),
    *(Bug("loss", f"only the {said} row of the batch gets a gradient from the loss",
          in_loss(lambda loss, z, y, row=row: only(per_token(z, y),  # type: ignore[misc]
                                                   place_mask(y.shape, 0, row)).mean()))
      for row, said in ((0, "first"), (-1, "last"))),
    Bug("loss", "only the last position of each row gets a gradient from the loss", in_loss(
        lambda loss, z, y: only(per_token(z, y), place_mask(y.shape, 1, -1)).mean())),
    Bug("loss",
        "the one-hot target of the gradient is one position too late: that of the position before",
        in_loss(lambda loss, z, y: loss + one_hot(z, y)
                - one_hot(z, np.roll(y.reshape(-1), 1).reshape(y.shape)))),
    Bug("loss",
        "softmax's gradient is multiplied by p of the target: that is the gradient of −p, without "
        "the logarithm",
        in_loss(lambda loss, z, y: -mg.exp(-per_token(z, y)).mean())),
]


def loss_of(z: Tensor, y: np.ndarray) -> Tensor:
    """A function of the logits with the derivative (p − y)/(B·T) for each number."""
    p = softmax(z)
    hot = np.zeros(z.shape, z.dtype)
    np.put_along_axis(hot, y[..., None], 1.0, -1)
    return stop(p - hot) * z / y.size


# ── the head and the embeddings ──
def head(made: Callable[[Tensor, Tensor], Tensor]) -> Plant:
    return at_point("logits", lambda here, x: made(here["ln_f.out"], here.model.lm_head.weight))


def uses(here: Here, last: bool) -> np.ndarray:
    """1 where an id occurs for the last, or the first, time in the batch, else 0: [B, T, 1]."""
    flat = here.ids.reshape(-1)
    out = np.zeros(flat.size)
    at = np.unique(flat[::-1] if last else flat, return_index=True)[1]
    out[flat.size - 1 - at if last else at] = 1.0
    return out.reshape(*here.ids.shape, 1)


def rows_of(here: Here) -> Tensor:
    return mg.embedding(here.ids, here.model.wte.weight)


def of_positions(kept: Callable[[Here, Tensor], Any]) -> Plant:
    """Plant kept(here, x) for wpe's gradient.

    It stands at blocks.0.resid_pre, where both embeddings have been added.
    """
    def formula(here: Here, x: Tensor) -> Tensor:
        return here["embed"] + kept(here, mg.broadcast_to(here["pos_embed"], shape=x.shape))

    return lambda run, layers, what: at_point("resid_pre", formula)(run, [0], what)


def at_embed(made: Callable[[Here, Tensor], Tensor]) -> Plant:
    return at_point("embed", made)


def to_targets(run: Run, layers: list[int], what: str) -> Run:
    """The embedding's part of the table's gradient is added to the rows of the targets."""
    return at_embed(lambda here, x: stop(x)
                    + zeroed(mg.embedding(run.targets, here.model.wte.weight)))(run, layers, what)


def over_head(run: Run, layers: list[int], what: str) -> Run:
    """The head's part of the table's gradient is lost in the rows of the ids."""
    def logits(here: Here, x: Tensor) -> Tensor:
        w = here.model.lm_head.weight
        return here["ln_f.out"] @ only(w, ~np.isin(np.arange(len(w)), here.ids)[:, None]).mT

    return at_point("logits", logits)(run, layers, what)


TABLES = [
    Bug("wte.weight",
        "the tied weight's gradient lacks the head's part; it is the sum of both uses",
        head(lambda x, w: x @ stop(w).mT)),
    Bug("wte.weight",
        "the tied weight's gradient lacks the embedding's part; it is the sum of both uses",
        at_embed(lambda here, x: stop(x) + 0.0 * rows_of(here))),
    *(Bug("wte.weight",
          "rows of a token that is there twice are set, not added (scatter-add)",
          at_embed(lambda here, x, last=last: only(rows_of(here),  # type: ignore[misc]
                                                   uses(here, last))))
      for last in (True, False)),
    *(Bug("wte.weight",
          "the embedding's part of the tied weight's gradient is written over the head's "
          f"part{said}; it is added to it",
          every(over_head, at_embed(kept)))
      for said, kept in ((", and over earlier uses of the token",
                          lambda here, x: only(rows_of(here), uses(here, True))),
                         ("", lambda here, x: rows_of(here)))),
    Bug("wte.weight", "the embedding's part of the tied weight's gradient is added twice",
        at_embed(lambda here, x: 2.0 * rows_of(here))),
    Bug("wte.weight", "the head's part of the tied weight's gradient is added twice",
        head(lambda x, w: x @ (2.0 * w - stop(w)).mT)),
    *(Bug("wte.weight",
          f"wte's gradient has the {said} row of the batch alone in the embedding's part",
          at_embed(lambda here, x, row=row: only(rows_of(here),  # type: ignore[misc]
                                                 place_mask(x.shape, 0, row))))
      for row, said in ((0, "first"), (-1, "last"))),
    *(Bug("wte.weight",
          f"the head's part of the tied weight's gradient is of the {said} row of the batch "
          "alone",
          at_point("logits",
                   lambda here, x, row=row: here["ln_f.out"] @ stop(  # type: ignore[misc]
                       here.model.lm_head.weight).mT
                   + only(zeroed(stop(here["ln_f.out"]) @ here.model.lm_head.weight.mT),
                          place_mask(x.shape, 0, row))))
      for row, said in ((0, "first"), (-1, "last"))),
    Bug("wte.weight",
        "the embedding's part goes to the rows of the targets; it goes to those of the ids",
        to_targets),
    *(Bug("wpe.weight",
          f"wpe's gradient is of the {said} row of the batch alone; it is the "
          "sum over rows",
          of_positions(lambda here, x, row=row: only(x,  # type: ignore[misc]
                                                  place_mask(x.shape, 0, row))))
      for row, said in ((0, "first"), (-1, "last"))),
    Bug("wpe.weight", "wpe's gradient is the mean over rows; it is their sum",
        of_positions(lambda here, x: x / x.shape[0])),
    Bug("wpe.weight", "wpe's gradient is left out", of_positions(lambda here, x: stop(x))),
    Bug("wpe.weight", "wpe's gradient is added to one row too late",
        of_positions(lambda here, x: x
                  + zeroed(mg.embedding(np.minimum(np.arange(1, x.shape[1] + 1),
                                                   len(here.model.wpe.weight) - 1),
                                        here.model.wpe.weight))
                  - zeroed(x))),
    Bug("wpe.weight",
        "wpe's gradient is added to the rows of the ids; it is added to those of the positions",
        of_positions(lambda here, x: stop(x)
                  + zeroed(mg.embedding(np.minimum(here.ids, len(here.model.wpe.weight) - 1),
                                        here.model.wpe.weight)))),
    Bug("wte.weight",
        "the head's part of the tied weight's gradient is taken with what ln_f reads; it is with "
        "what ln_f made",
        at_point("logits",
                 lambda here, x: here["ln_f.out"] @ stop(here.model.lm_head.weight).mT + zeroed(
                     stop(here.seen[f"blocks.{here.model.config.n_layer - 1}.resid_post"])
                     @ here.model.lm_head.weight.mT))),
    Bug("ln_f.out", "the head hands back no gradient to ln_f", head(lambda x, w: stop(x) @ w.mT)),
]


# ── matrices ──
def of_matrix(part: str) -> list[Bug]:
    """Mistakes in the gradient of the weight, the bias or the input of y = x W + b."""
    weight, bias = f"{part}.weight", f"{part}.bias"

    def w_of(kept: Callable[[Here, Tensor], Any]) -> Plant:            # ∂W from other inputs than x
        return linear(part, lambda here, x, w, b: x @ stop(w) + zeroed(stop(kept(here, x)) @ w) + b)

    def b_of(kept: Callable[[Tensor], np.ndarray]) -> Plant:
        return linear(part,
                      lambda here, x, w, b: x @ w + only(
                          mg.broadcast_to(b, shape=(*x.shape[:-1], len(b))), kept(x)))

    def last_token(x: Tensor) -> np.ndarray:
        return place_mask(x.shape, 0, -1) * place_mask(x.shape, 1, -1)

    set_alone = "of the last token alone: it is set in the loop over tokens, and not added to"
    rows = ((0, 0, "of the first row of the batch alone"),
            (0, -1, "of the last row of the batch alone"), (1, -1, "of the last position alone"),
            (1, 0, "of the first position alone"))
    out = [
        *(Bug(weight,
              f"{part}'s weight has the gradient {said}; it is the sum over all positions of all "
              "rows",
              w_of(lambda here, x, axis=axis, i=i: x * place_mask(  # type: ignore[misc]
                       x.shape, axis, i).astype(x.dtype)))
          for axis, i, said in rows),
        *(Bug(bias,
              f"{part}'s bias has the gradient {said}; it is added at all positions of all rows, "
              "and its gradient is their sum",
              b_of(lambda x, axis=axis, i=i: place_mask(x.shape, axis, i)))  # type: ignore[misc]
          for axis, i, said in rows),
        Bug(weight, f"{part}'s weight has the gradient {set_alone}",
            w_of(lambda here, x: x * last_token(x).astype(x.dtype))),
        Bug(bias, f"{part}'s bias has the gradient {set_alone}", b_of(last_token)),
        Bug(weight, f"{part}'s weight lacks the last row of the batch in its gradient",
            w_of(lambda here, x: x * (1.0 - place_mask(x.shape, 0, -1)).astype(x.dtype))),
        Bug(weight, f"{part}'s weight gets no gradient", w_of(lambda here, x: x * 0.0)),
        Bug(bias, f"{part}'s bias gets no gradient",
            linear(part, lambda here, x, w, b: x @ w + stop(b))),
        Bug(weight, f"{part}'s weight has its gradient twice", w_of(lambda here, x: 2.0 * x)),
        Bug(bias, f"{part}'s bias has its gradient twice",
            linear(part, lambda here, x, w, b: x @ w + 2.0 * b)),
        Bug(weight,
            f"{part}'s weight has the mean over the tokens as its gradient; it is their sum",
            w_of(lambda here, x: x / (x.shape[0] * x.shape[1]))),
        Bug(weight,
            f"{part}'s weight has the mean over rows of the batch as its gradient; it is their sum",
            w_of(lambda here, x: x / x.shape[0])),
        Bug(bias, f"{part}'s bias has the mean over the tokens as its gradient; it is their sum",
            linear(part, lambda here, x, w, b: x @ w + b / (x.shape[0] * x.shape[1]))),
        Bug(bias,
            f"{part}'s bias has the mean over rows of the batch as its gradient; it is their sum",
            linear(part, lambda here, x, w, b: x @ w + b / x.shape[0])),
        Bug(BEFORE[part], f"{part} hands back no gradient to {SOURCES[part]}",
            linear(part, lambda here, x, w, b: stop(x) @ w + b)),
        Bug(BEFORE[part], f"{part} hands back g W; it is g Wᵀ",
            linear(part, lambda here, x, w, b: x @ stop(transposed(w)) + zeroed(stop(x) @ w) + b)),
        Bug(weight, f"{part}'s weight has its gradient transposed: it is xᵀ g, [in, out]",
            linear(part, lambda here, x, w, b: x @ stop(w) + zeroed(stop(x) @ transposed(w)) + b)),]
    raw = {"attn.c_attn": "resid_pre", "mlp.c_fc": "resid_mid", "mlp.c_proj": "mlp.pre"}.get(part)
    if raw:
        what = {"mlp.c_proj": "GELU's input; it is that of its output"}.get(
            part, f"the residual stream; it is that of {SOURCES[part]} of it")
        out.append(Bug(weight, f"{part}'s weight has the gradient with {what}",
                       w_of(lambda here, x: here[raw])))
    return out


def of_all() -> list[Bug]:
    """The same mistake in all four matrices of the blocks, which may share one function."""
    kinds = {part: {bug.says.replace(part, "", 1): bug for bug in of_matrix(part)}
             for part in MATRICES}
    first = kinds[MATRICES[-1]]
    return [Bug(bug.at, f"each matrix{rest}",
                every(*(kinds[part][rest].plant for part in MATRICES)))
            for rest, bug in first.items() if all(rest in own for own in kinds.values())]


BEFORE = {"attn.c_attn": "ln_1.out", "attn.c_proj": "attn.z", "mlp.c_fc": "ln_2.out",
          "mlp.c_proj": "mlp.act"}


# ── GELU ──
def slope(made: Callable[[Tensor, Tensor], Any]) -> Plant:
    """made(x, t): the derivative at x = pre, with t = tanh(√(2/π)(x + 0.044715 x³))."""
    def formula(here: Here, x: Tensor) -> Tensor:
        pre = here["mlp.pre"]
        t = mg.tanh(C * (pre + 0.044715 * (pre * pre * pre)))
        return pre * stop(made(pre, t))

    return at_point("mlp.act", formula)


C = math.sqrt(2.0 / math.pi)
SLOPES: tuple[tuple[str, Callable[[Tensor, Tensor], Any]], ...] = (
    ("the activation's derivative is left out", lambda x, t: x * 0.0 + 1.0),
    ("the activation's derivative is that of GELU by erf; GPT-2 has the one by tanh",
     lambda x, t: 0.5 * (
         1.0 + mg.erf(x * math.sqrt(0.5))) + x * mg.exp(-0.5 * (x * x)) / math.sqrt(2.0 * math.pi)),
    ("the activation's derivative is that of ReLU",
     lambda x, t: mg.where(x.array > 0.0, 1.0, x * 0.0)),
    ("the activation's derivative is that of SiLU",
     lambda x, t: (s := mg.sigmoid(x)) * (1.0 + x * (1.0 - s))),
    ("the activation's derivative is that of x·sigmoid(1.702 x)",
     lambda x, t: (s := mg.sigmoid(1.702 * x)) * (1.0 + 1.702 * x * (1.0 - s))),
    ("the activation's derivative is that of tanh", lambda x, t: 1.0 - mg.tanh(x) * mg.tanh(x)),
    ("GELU's derivative lacks its second term, x Φ′(x): it is a product",
     lambda x, t: 0.5 * (1.0 + t)),
    ("GELU's derivative lacks its first term, Φ(x): it is a product",
     lambda x, t: 0.5 * x * (1.0 - t * t) * C * (1.0 + 0.134145 * x * x)),
    ("GELU's derivative lacks the inner one, 1 + 3·0.044715 x²",
     lambda x, t: 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * C),
    ("GELU's derivative lacks the 3 of 3·0.044715 x²",
     lambda x, t: 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * C * (1.0 + 0.044715 * x * x)),
    ("GELU's derivative has √(2/π) left out",
     lambda x, t: 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * (1.0 + 0.134145 * x * x)),
    ("GELU's derivative has 1 − t instead of 1 − t²",
     lambda x, t: 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t) * C * (1.0 + 0.134145 * x * x)),
    ("GELU's derivative has 1 − u² instead of 1 − tanh² u",
     lambda x, t: 0.5 * (1.0 + t) + 0.5 * x * (
         1.0 - (u := C * (x + 0.044715 * (x * x * x))) * u) * C * (1.0 + 0.134145 * x * x)),
    ("GELU's derivative has 1 + t² instead of 1 − t²",
     lambda x, t: 0.5 * (1.0 + t) + 0.5 * x * (1.0 + t * t) * C * (1.0 + 0.134145 * x * x)),
    ("GELU's derivative lacks the factor x of its second term",
     lambda x, t: 0.5 * (1.0 + t) + 0.5 * (1.0 - t * t) * C * (1.0 + 0.134145 * x * x)),
    ("GELU's derivative lacks the ½ of its first term",
     lambda x, t: 1.0 + t + 0.5 * x * (1.0 - t * t) * C * (1.0 + 0.134145 * x * x)),
    ("GELU's derivative lacks the ½ of its second term",
     lambda x, t: 0.5 * (1.0 + t) + x * (1.0 - t * t) * C * (1.0 + 0.134145 * x * x)),
    ("GELU's derivative is taken at its output; it is taken at its input",
     lambda x, t: gelu_slope(tanh_gelu(x))),
    ("GELU's constant is 0.044751 in the derivative; it is 0.044715",
     lambda x, t: gelu_slope(x, 0.044751)),
    ("GELU's constant is 0.0447 in the derivative; it is 0.044715",
     lambda x, t: gelu_slope(x, 0.0447)),
    ("GELU's derivative lacks the parentheses around 1 + 3·0.044715 x²",
     lambda x, t: 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * C + 0.134145 * x * x),
    ("GELU's derivative lacks the parentheses around x + 0.044715 x³: √(2/π) is with x alone in "
     "the inner one",
     lambda x, t: 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * (C + 0.134145 * x * x)),
    ("GELU hands back no gradient", lambda x, t: x * 0.0),
)
GELU = [Bug("mlp.pre", says, slope(made)) for says, made in SLOPES]


def gelu_slope(x: Tensor, cubic: float = 0.044715) -> Tensor:
    t = mg.tanh(C * (x + cubic * (x * x * x)))
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * C * (1.0 + 3.0 * cubic * x * x)


# ── the residual stream ──
RESIDUAL = [
    Bug("mlp.out", "the MLP's branch gets no gradient; an addition hands its gradient on to both",
        at_point("resid_post", lambda here, x: here["resid_mid"] + stop(here["mlp.out"]))),
    Bug("resid_mid", "the gradient that goes past ln_2 is left out; it is the sum of both ways",
        at_point("resid_post", lambda here, x: stop(here["resid_mid"]) + here["mlp.out"])),
    Bug("resid_mid", "the gradient that goes past ln_2 is added twice",
        at_point("resid_post", lambda here, x: 2.0 * here["resid_mid"] + here["mlp.out"])),
    Bug("mlp.out", "the MLP's branch gets its gradient twice",
        at_point("resid_post", lambda here, x: here["resid_mid"] + 2.0 * here["mlp.out"])),
    Bug("attn.out",
        "attention's branch gets no gradient; an addition hands its gradient on to both",
        at_point("resid_mid", lambda here, x: here["resid_pre"] + stop(here["attn.out"]))),
    Bug("resid_pre", "the gradient that goes past ln_1 is left out; it is the sum of both ways",
        at_point("resid_mid", lambda here, x: stop(here["resid_pre"]) + here["attn.out"])),
    Bug("resid_pre", "the gradient that goes past ln_1 is added twice",
        at_point("resid_mid", lambda here, x: 2.0 * here["resid_pre"] + here["attn.out"])),
    Bug("attn.out", "attention's branch gets its gradient twice",
        at_point("resid_mid", lambda here, x: here["resid_pre"] + 2.0 * here["attn.out"])),
    Bug("resid_pre",
        "the gradient of a block's input is that of its output: what has come back through the "
        "block is lost",
        every(norms(norm(lambda x, n, r, w: x * 0.0, right_gain), ("ln_1",)),
              at_point("resid_mid", lambda here, x: stop(here["resid_pre"]) + here["attn.out"]),
              at_point("resid_post",
                       lambda here, x: here["resid_mid"]
                       + here["mlp.out"] + zeroed(here["resid_pre"])))),
    Bug("resid_mid",
        "no gradient goes past the blocks: both ways past ln_1 and ln_2 are left out; does "
        "LayerNorm's backward pass set it (=) where it is to add (+=)?",
        every(at_point("resid_post", lambda here, x: stop(here["resid_mid"]) + here["mlp.out"]),
              at_point("resid_mid", lambda here, x: stop(here["resid_pre"]) + here["attn.out"]))),
]
BACKWARD = [*LOSS, *TABLES, *NORMS, *of_all(),
            *(bug for part in MATRICES for bug in of_matrix(part)), *GELU, *ATTENTION, *RESIDUAL]
