"""Mistakes in the forward pass: batches, loaded weights, each layer, and the loss.

A mistake is a line of a table, see `planting.Bug`. The order is that of the computation.
"""
from __future__ import annotations

import math
from functools import partial

import numpy as np

import minigrad as mg
from minigrad import Tensor

from ..formula_parts import masked, softmax, transposed
from ..planting import (
    OUTPUTS,
    Bug,
    Here,
    at_point,
    every,
    linear,
    patterns,
    products,
    scale_of,
    scores,
)
from .formulas import (
    CONV1D,
    LAYOUTS,
    MATRICES,
    act,
    bare,
    bias_twice,
    first_rows,
    flipped,
    heads_alike,
    merged,
    offsets,
    other_layout,
    other_parts,
    read_as,
    scaled,
    shown,
    softmax_over,
    tanh_gelu,
    unsplit,
    used_for,
    varied,
    window,
    without_bias,
)
from .loading import BATCHES, LOADED
from .loss import ENDS, LOSSES, TARGETS
from .norms import EMBEDDINGS, NORMS, norm_of

UNSPLIT = "[B, T, d] is reshaped to [B, h, T, d/h] without the transpose of [B, T, h, d/h] after it"
UNTRANSPOSED = ("[B, h, T, d/h] is reshaped to [B, T, d] without the transpose to [B, T, h, d/h] "
                "before it")



QKV = [
    *(Bug("attn.q", f"all matrices of the blocks are read transposed; {CONV1D}",
          every(*(linear(part, made) for part in MATRICES)))
      for made in (lambda here, x, w, b: x @ transposed(w) + b,
                   lambda here, x, w, b: x @ w.mT.reshape(w.shape) + b)),
    Bug("attn.q", "the bias is added for each term of a matrix's sum; it is added once", every(*(
        linear(part, lambda here, x, w, b: x @ w + float(x.shape[-1]) * b) for part in MATRICES))),
    *(Bug(OUTPUTS[part][0], f"{part}'s bias is added for each term of its sum; it is added once",
          linear(part, lambda here, x, w, b: x @ w + float(x.shape[-1]) * b))
      for part in MATRICES),
    Bug("attn.q", "no bias is added in the blocks' matrices",
        every(*(linear(part, lambda here, x, w, b: x @ w) for part in MATRICES))),
    Bug("attn.q", "the biases of the blocks' matrices are added twice",
        every(*(bias_twice(part) for part in MATRICES))),
    Bug("attn.q",
        "heads are interleaved, [d/h, h] and not [h, d/h], where they are split and where they are "
        "put together",
        every(linear("attn.c_attn", partial(other_layout, order="pkh")),
              at_point("attn.out",
                       lambda here, x: merged(
                           here, mg.permute(here["attn.z"], axes=(0, 2, 3, 1)).reshape(x.shape))))),
    *flipped("attn.q", "attn.c_attn"),
    *offsets("attn.q", "attn.c_attn", 3),
    Bug("attn.q", UNSPLIT, every(*(at_point(f"attn.{part}", unsplit) for part in "qkv"))),
    Bug("attn.q", f"{UNSPLIT}, and z is put together without it, too", every(
        *(at_point(f"attn.{part}", unsplit) for part in "qkv"),
        at_point("attn.out", lambda here, x: merged(here, here["attn.z"].reshape(x.shape))))),
    Bug("attn.q", "c_attn's bias is not added", bare("attn.c_attn")),
    *(Bug(f"attn.{part}", f"{part.upper()}'s part of c_attn's bias is not added",
          linear("attn.c_attn", partial(without_bias, part=part)))
      for part in "qkv"),
    Bug("attn.q", "c_attn's bias is added twice", bias_twice("attn.c_attn")),
    Bug("attn.q", "c_attn reads the residual stream; it reads what ln_1 made of it", linear(
        "attn.c_attn", lambda here, x, w, b: here["resid_pre"] @ w + b)),
    *(Bug("attn.q",
          "the columns of c_attn are taken in another order: they are Q, K and V, each all heads "
          f"({said})",
          linear("attn.c_attn", partial(other_layout, order=order)))
      for order, said in LAYOUTS),
    *(Bug("attn.k" if order == "qvk" else "attn.q", f"{said} in c_attn's columns: they are Q, K, V",
          linear("attn.c_attn", partial(other_parts, order=order)))
      for order, said in (("kqv", "Q and K are swapped"), ("qvk", "K and V are swapped"),
                          ("vkq", "Q and V are swapped"), ("kvq", "K, V, Q are read"),
                          ("vqk", "V, Q, K are read"))),
]
PATTERNS = [
    *(Bug("attn.scores",
          "the columns of c_attn are taken in another order: they are Q, K and V, each all heads "
          f"({said})",
          read_as(order))
      for order, said in LAYOUTS),
    *(Bug("attn.scores", f"{said} in c_attn's columns: they are Q, K, V", used_for(order))
      for order, said in (("kqv", "Q and K are swapped"), ("qvk", "K and V are swapped"),
                          ("vkq", "Q and V are swapped"), ("kvq", "K, V, Q are read"),
                          ("vqk", "V, Q, K are read"))),
    Bug("attn.scores", "scores are not divided by √(d/h)", scaled(lambda here: 1.0)),
    Bug("attn.scores", "scores are divided by √d; they are divided by √(d/h), of one head",
        scaled(lambda here: here.model.config.n_embd ** -0.5)),
    Bug("attn.scores",
        "scores are divided by √h, of the number of heads; they are divided by √(d/h), of one "
        "head's width",
        scaled(lambda here: here.model.config.n_head ** -0.5)),
    Bug("attn.scores", "scores are divided by d/h; they are divided by its root",
        scaled(lambda here: scale_of(here) ** -2)),
    Bug("attn.scores", "scores are multiplied by √(d/h); they are divided by it", scaled(scale_of)),
    Bug("", "scores are divided by the number of the block, too (scale_attn_by_inverse_layer_idx)",
        scaled(lambda here: here.scale / (here.layer + 1))),
    Bug("attn.pattern", "there is no causal mask: queries see later keys",
        patterns(lambda here, s, seen: softmax(s))),
    Bug("attn.pattern",
        "the mask is applied after softmax, so rows do not add up to 1; put −∞ into the scores "
        "before it",
        patterns(lambda here, s, seen: mg.where(seen, softmax(s), 0.0))),
    Bug("attn.pattern", "masked scores are 0, which softmax gives a share; they must be −∞",
        patterns(lambda here, s, seen: softmax(mg.where(seen, s, 0.0)))),
    *(Bug(at, says, plant)
      for says, which in (
          ("the mask hides each query's own key; query t sees the keys 0 … t (tril with diagonal "
           "0)",
           lambda n: np.tri(n, k=-1, dtype=bool)),
          ("the mask lets each query see one key too many; query t sees the keys 0 … t",
           lambda n: np.tri(n, k=1, dtype=bool)),
          ("queries see the keys from their own on; query t sees the keys 0 … t",
           lambda n: np.tri(n, dtype=bool).T),
          ("the first key is skipped: the loop over keys starts at 0",
           lambda n: np.tri(n, dtype=bool) & (np.arange(n) > 0)),
          ("the last key is skipped: query T − 1 sees it",
           lambda n: np.tri(n, dtype=bool) & (np.arange(n) < n - 1)),
          *((f"queries see a window of the last {n} keys; query t sees all of 0 … t", window(n))
            for n in (1, 2, 3, 4, 5, 8, 16, 32, 64, 128)),)
      for at, plant in shown(which)),
    Bug("attn.pattern", "softmax runs over the queries; it runs over the keys, the last axis",
        patterns(lambda here, s, seen: softmax(masked(s, seen), axis=-2))),
    *(Bug("attn.pattern",
          f"softmax runs over the {said}{more}; it runs over the keys, the last axis",
          patterns(partial(softmax_over, axis=axis, low=low)))
      for axis, said in ((1, "heads"), (0, "rows of the batch"))
      for low, more in ((-1e10, ""), (None, ", and the mask is applied after it"))),
    Bug("attn.pattern", "the scores are not divided by their sum after exp: that is no softmax",
        patterns(lambda here, s, seen: mg.where(seen, mg.exp(s), 0.0))),
    Bug("attn.scores", "K is reshaped to [d/h, T]; it is transposed",
        scores(lambda here: mg.matmul(here["attn.q"],
                                      here["attn.k"].reshape(*here["attn.k"].shape[:2],
                                                             *here["attn.k"].shape[:1:-1]))
               * here.scale)),
    Bug("attn.scores", "Q is used instead of K in the scores",
        scores(lambda here: products(here["attn.q"], here["attn.q"]) * here.scale)),
    *(Bug("attn.scores",
          f"all rows of the batch use the first row's {part.upper()}: the index of the row is left "
          "out",
          first_rows(part))
      for part in "kq"),
    *(Bug("attn.scores", f"all heads use the {said} head's K", heads_alike("attn.k", head))
      for head, said in ((0, "first"), (-1, "last"))),
]
def headless(here: Here, x: Tensor, head: int) -> Tensor:
    """x [B, h, …] with 0 for one head."""
    return x * (np.arange(x.shape[1]) != head % x.shape[1])[:, None, None].astype(x.dtype)


def across_rows(here: Here, x: Tensor) -> Tensor:
    """Attention of all rows of the batch as one."""
    # [h, B, T, d/h]
    q, k, v = (mg.permute(here[f"attn.{part}"], axes=(1, 0, 2, 3)) for part in "qkv")
    # [h, B·T, d/h]
    q, k, v = (a.reshape(a.shape[0], -1, a.shape[-1]) for a in (q, k, v))
    seen = np.tri(q.shape[1], dtype=bool)
    z = mg.matmul(mg.where(seen, softmax(masked(products(q, k) * here.scale, seen)), 0.0), v)
    return mg.permute(z.reshape(x.shape[1], x.shape[0], *x.shape[2:]), axes=(1, 0, 2, 3))


ADDED = [
    Bug("attn.z",
        "the attention weights are multiplied transposed: z is P V, with P [queries, keys]",
        at_point("attn.z", lambda here, x: mg.matmul(here["attn.pattern"].mT, here["attn.v"]))),
    *(Bug("attn.z", f"all heads use the {said} head's V", heads_alike("attn.v", head))
      for head, said in ((0, "first"), (-1, "last"))),
    Bug("attn.z", "all rows of the batch use the first row's V: the index of the row is left out",
        first_rows("v")),
    Bug("attn.z", UNTRANSPOSED, at_point("attn.z", lambda here, x: mg.split_heads(
        x.reshape(x.shape[0], x.shape[2], -1), heads=x.shape[1])[0])),
    *(
        Bug("attn.z", f"{part} is used instead of V",
            at_point("attn.z",
                     lambda here, x, part=part: mg.matmul(  # type: ignore[misc]
                         here["attn.pattern"], here[f"attn.{part.lower()}"])))
        for part in "KQ"),
    *(Bug(points[0], f"the {said} head is left out: its z stays 0",
          every(*(at_point(point, partial(headless, head=i)) for point in points)))
      for i, said in ((0, "first"), (-1, "last"))
      for points in (("attn.z",), ("attn.pattern", "attn.z"),
                     ("attn.scores", "attn.pattern", "attn.z"))),
    Bug("attn.z",
        "queries see the rows of the batch before their own: the batch is one long row to "
        "attention",
        at_point("attn.z", across_rows)),
    Bug("attn.z", "the first key's V is left out: the loop over keys starts at 0",
        at_point("attn.z",
                 lambda here, x: mg.matmul(here["attn.pattern"]
                                           * (np.arange(x.shape[-2]) > 0).astype(x.dtype),
                                           here["attn.v"]))),
    Bug("attn.z", "each query's own V is left out: the loop over keys ends at t",
        at_point("attn.z",
                 lambda here, x: mg.matmul(mg.where(np.tri(x.shape[-2], k=-1, dtype=bool),
                                                    here["attn.pattern"], 0.0),
                                           here["attn.v"]))),
    Bug("attn.z", "V is not weighted: z is the mean of the values",
        at_point("attn.z", lambda here, x: mg.matmul(
            (np.tri(x.shape[-2]) / np.arange(1.0, x.shape[-2] + 1)[:, None]).astype(x.dtype),
            here["attn.v"]))),
    Bug("attn.out", UNTRANSPOSED,
        at_point("attn.out", lambda here, x: merged(here, here["attn.z"].reshape(x.shape)))),
    Bug("attn.out", "heads are put together in reverse order",
        at_point("attn.out", lambda here, x: merged(here, mg.join_heads(here["attn.z"][:, ::-1])))),
    Bug("attn.out",
        "heads are put together number by number: [B, T, d/h, h] and not [B, T, h, d/h]",
        at_point("attn.out",
                 lambda here, x: merged(
                     here, mg.permute(here["attn.z"], axes=(0, 2, 3, 1)).reshape(x.shape)))),
    *flipped("attn.out", "attn.c_proj", ", which no shape shows"),
    Bug("attn.out", "attention's output goes on without c_proj",
        linear("attn.c_proj", lambda here, x, w, b: x * 1.0)),
    Bug("attn.out", "attn.c_proj's bias is not added", bare("attn.c_proj")),
    Bug("attn.out", "attn.c_proj's bias is added twice", bias_twice("attn.c_proj")),
    Bug("attn.out", "attn.c_proj has mlp.c_proj's bias",
        linear("attn.c_proj", lambda here, x, w, b: x @ w + here.block.mlp.c_proj.bias)),
    Bug("resid_mid", "attention's output replaces the residual stream; it is added to it",
        at_point("resid_mid", lambda here, x: here["attn.out"] * 1.0)),
    Bug("resid_mid", "attention's output is not added",
        at_point("resid_mid", lambda here, x: here["resid_pre"] * 1.0)),
    Bug("resid_mid", "attention's output is added twice",
        at_point("resid_mid", lambda here, x: here["resid_pre"] + 2.0 * here["attn.out"])),
    Bug("resid_mid",
        "attention's output is added to what ln_1 made; it is added to the stream before it "
        "(pre-norm)",
        at_point("resid_mid", lambda here, x: here["ln_1.out"] + here["attn.out"])),
]
MLPS = [
    Bug("mlp.pre", "mlp.c_fc's bias is added after GELU; it is added before",
        every(bare("mlp.c_fc"), at_point("mlp.act", lambda here, x: x + here.block.mlp.c_fc.bias))),
    Bug("ln_2.mean",
        "ln_2 is applied to the block's input; it is applied after attention was added",
        norm_of("ln_2.out", "resid_pre", "ln_2")),
    Bug("ln_2.mean", "ln_2 is applied to what attention added alone",
        norm_of("ln_2.out", "attn.out", "ln_2")),
    *(Bug(at,
          "the MLP reads what ln_1 made; it has a LayerNorm of its own, ln_2, after attention was "
          "added",
          plant)
      for at, plant in (("ln_2.out", at_point("ln_2.out", lambda here, x: here["ln_1.out"] * 1.0)),
                        ("ln_2.mean", norm_of("ln_2.out", "resid_pre", "ln_1")))),
    Bug("ln_2.out", "ln_2 has ln_1's weight and bias", norm_of("ln_2.out", "resid_mid", "ln_1")),
    Bug("ln_2.out", "the MLP reads the residual stream; it reads what ln_2 made of it",
        at_point("ln_2.out", lambda here, x: here["resid_mid"] * 1.0)),
    *flipped("mlp.pre", "mlp.c_fc"),
    *offsets("mlp.pre", "mlp.c_fc", 4),
    Bug("mlp.pre", "mlp.c_fc gives the first d of its 4 d numbers alone, and the others stay 0",
        at_point("mlp.pre",
                 lambda here, x: x * (
                     np.arange(x.shape[-1]) < here.model.config.n_embd).astype(x.dtype))),
    Bug("mlp.pre", "mlp.c_fc's bias is not added", bare("mlp.c_fc")),
    Bug("mlp.pre", "mlp.c_fc's bias is added twice", bias_twice("mlp.c_fc")),
    Bug("mlp.pre", "the MLP reads the residual stream; it reads what ln_2 made of it",
        linear("mlp.c_fc", lambda here, x, w, b: here["resid_mid"] @ w + b)),
    Bug("mlp.act", "GELU is the exact one, by erf (PyTorch's default); GPT-2 has the one by tanh",
        act(lambda x: 0.5 * x * (1.0 + mg.erf(x * math.sqrt(0.5))))),
    Bug("mlp.act", "GELU is the one by tanh; this model's activation is another", act(tanh_gelu)),
    Bug("mlp.act", "the activation is ReLU", act(mg.relu)),
    Bug("mlp.act", "the activation is tanh", act(mg.tanh)),
    Bug("mlp.act", "GELU is approximated by x·sigmoid(1.702 x); GPT-2 has the one by tanh",
        act(lambda x: x * mg.sigmoid(1.702 * x))),
    Bug("mlp.act", "the activation is SiLU, x·sigmoid(x)", act(lambda x: x * mg.sigmoid(x))),
    Bug("mlp.act", "there is no activation between the two matrices of the MLP",
        act(lambda x: x * 1.0)),
    Bug("mlp.act", "GELU's tanh lacks the term 0.044715 x³", varied(partial(tanh_gelu, cubic=0.0))),
    *(Bug("mlp.act", f"GELU's constant is {value}; it is 0.044715",
          varied(partial(tanh_gelu, cubic=value)))
      for value in (0.044751, 0.0447, 0.04471, 0.045, 0.44715, 0.0044715, 0.047715, 0.044175,
                    0.04715, 0.0445)),
    Bug("mlp.act", "GELU's tanh lacks the factor √(2/π)", varied(partial(tanh_gelu, root=1.0))),
    *(Bug("mlp.act", f"GELU's factor is {said}; it is √(2/π)",
          varied(partial(tanh_gelu, root=value)))
      for value, said in ((2.0 / math.pi, "2/π"), (math.sqrt(math.pi / 2.0), "√(π/2)"),
                          (math.sqrt(2.0), "√2"), (math.sqrt(2.0) / math.pi, "√2/π"),
                          (0.79788, "0.79788"), (0.8, "0.8"), (0.7978, "0.7978"), (0.798, "0.798"),
                          (1.0 / math.sqrt(2.0), "1/√2"))),
    Bug("mlp.act", "GELU's term has x² instead of x³",
        act(lambda x: 0.5 * x * (1.0 + mg.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x))))),
    Bug("mlp.act", "GELU's tanh has √(2/π) times x alone; it is √(2/π) (x + 0.044715 x³)", varied(
        lambda x: 0.5 * x * (1.0 + mg.tanh(math.sqrt(2 / math.pi) * x + 0.044715 * (x * x * x))))),
    Bug("mlp.act", "GELU's tanh has √(2/π) times the cube alone; it is √(2/π) (x + 0.044715 x³)",
        varied(lambda x: 0.5 * x * (
                   1.0 + mg.tanh(x + math.sqrt(2 / math.pi) * 0.044715 * (x * x * x))))),
    Bug("mlp.act", "GELU's cube is of 0.044715 x; it is 0.044715 x³", varied(
        lambda x: 0.5 * x * (1.0 + mg.tanh(math.sqrt(2 / math.pi) * (x + (0.044715 * x) ** 3))))),
    Bug("mlp.act", "GELU lacks the 1 of 1 + tanh", act(lambda x: tanh_gelu(x) - 0.5 * x)),
    Bug("mlp.act", "GELU has ½ before x alone: it is ½ x (1 + tanh), not ½ x + tanh", act(
        lambda x: 0.5 * x + mg.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))),
    Bug("mlp.act", "GELU lacks its factor of ½", act(lambda x: 2.0 * tanh_gelu(x))),
    Bug("mlp.act", "GELU is Φ(x) alone; it is x Φ(x)", act(
        lambda x: 0.5 * (1.0 + mg.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))))),
    Bug("mlp.act",
        "GELU is applied to the first d of the 4 d numbers of each position alone, and the others "
        "stay 0",
        at_point("mlp.act",
                 lambda here, x: x * (
                     np.arange(x.shape[-1]) < here.model.config.n_embd).astype(x.dtype))),
    Bug("mlp.act",
        "GELU is applied to the first quarter of the tokens alone, and the others stay 0",
        at_point("mlp.act",
                 lambda here, x: x * (np.arange(here.ids.size) < here.ids.size / 4).reshape(
                     *here.ids.shape, 1).astype(x.dtype))),
    Bug("mlp.act", "GELU is applied twice", act(lambda x: tanh_gelu(tanh_gelu(x)))),
    *flipped("mlp.out", "mlp.c_proj"),
    Bug("mlp.out", "mlp.c_proj's sum is over the first d of the 4 d numbers of the MLP alone",
        linear("mlp.c_proj",
               lambda here, x, w, b: (
                   x * (np.arange(x.shape[-1]) < w.shape[-1]).astype(x.dtype)) @ w + b)),
    Bug("mlp.out", "mlp.c_proj's bias is not added", bare("mlp.c_proj")),
    Bug("mlp.out", "mlp.c_proj's bias is added twice", bias_twice("mlp.c_proj")),
    Bug("mlp.out", "mlp.c_proj has attn.c_proj's bias",
        linear("mlp.c_proj", lambda here, x, w, b: x @ w + here.block.attn.c_proj.bias)),
    Bug("resid_post", "the MLP's output replaces the residual stream; it is added to it",
        at_point("resid_post", lambda here, x: here["mlp.out"] * 1.0)),
    Bug("resid_post", "the MLP's output is not added",
        at_point("resid_post", lambda here, x: here["resid_mid"] * 1.0)),
    Bug("resid_post", "the MLP's output is added twice",
        at_point("resid_post", lambda here, x: here["resid_mid"] + 2.0 * here["mlp.out"])),
    Bug("resid_post",
        "the MLP's output is added to what ln_2 made; it is added to the stream before it "
        "(pre-norm)",
        at_point("resid_post", lambda here, x: here["ln_2.out"] + here["mlp.out"])),
    Bug("resid_mid",
        "both outputs are added to what LayerNorm made of the stream; they are added to the stream "
        "itself (pre-norm)",
        every(at_point("resid_mid", lambda here, x: here["ln_1.out"] + here["attn.out"]),
              at_point("resid_post", lambda here, x: here["ln_2.out"] + here["mlp.out"]))),
    Bug("resid_post", "the MLP's output is added to the block's input: attention's part is lost",
        at_point("resid_post", lambda here, x: here["resid_pre"] + here["mlp.out"])),
]


FORWARD = [*BATCHES, *LOADED, *EMBEDDINGS, *NORMS, *QKV, *PATTERNS, *ADDED, *MLPS, *ENDS, *LOSSES,
           *TARGETS]

