"""Mistakes in the embeddings and the LayerNorms, forward; a part of `forward`'s table."""
from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

import minigrad as mg
from minigrad import Tensor

from ..formula_parts import layer_norm, mean, of_norm, root_mean_square
from ..planting import Bug, Here, Plant, at_point, every, norms, statistics


def positions(first: int) -> Callable[[Here, Tensor], Tensor]:
    def made(here: Here, x: Tensor) -> Tensor:
        table = here.model.wpe.weight
        return mg.embedding(np.minimum(np.arange(first, first + x.shape[-2]), len(table) - 1),
                            table)

    return made


def norm_of(at: str, point: str, weights: str) -> Plant:
    """Plant, at `at`, the LayerNorm with these weights of the tensor at `point`.

    Its mean and rstd are planted too.
    """
    def made(here: Here, x: Tensor, kind: str) -> Tensor:
        return of_norm(kind, here[point], getattr(here.block, weights),
                       here.model.config.layer_norm_epsilon)

    return every(*(at_point(at.replace("out", kind), partial(made, kind=kind))
                   for kind in ("mean", "rstd", "out")))


def annotated(c: Tensor, eps: float, value: float) -> Tensor:
    """1/(σ + ε), with the variance over n − 1."""
    return 1.0 / (mg.sqrt((c * c).sum(axis=-1, keepdims=True) / (c.shape[-1] - 1)) + value)


def epsilon(value: float) -> Plant:
    return statistics(mean, lambda c, eps: 1.0 / root_mean_square(c, value))


EMBEDDINGS = [
    Bug("pos_embed", "position embeddings start at row 1; the first token has position 0",
        at_point("pos_embed", positions(1))),
    Bug("pos_embed", "the position embeddings are not added",
        at_point("pos_embed", lambda here, x: x * 0.0)),
    Bug("pos_embed", "every position has the position embedding of row 0",
        at_point("pos_embed", lambda here, x: x * 0.0 + x[:1])),
    Bug("pos_embed", "the position embeddings are in reverse order",
        at_point("pos_embed", lambda here, x: x[::-1])),
    Bug("pos_embed", "the position embeddings are added twice",
        at_point("pos_embed", lambda here, x: x * 2.0)),
    Bug("embed",
        "the token embedding is multiplied by √d, as in Vaswani et al. 2017; GPT-2 does not do "
        "that",
        at_point("embed", lambda here, x: x * math.sqrt(here.model.config.n_embd))),
    Bug("resid_pre", "wpe is indexed by the row of the batch; it is indexed by the position",
        lambda run, layers, what: at_point("resid_pre",
                                           lambda here, x: here["embed"] + mg.embedding(
                                               np.minimum(np.arange(len(x)),
                                                          len(here.model.wpe.weight) - 1),
                                               here.model.wpe.weight)[:, None])(run, [0], what)),
    Bug("resid_pre", "wpe is indexed by the id; it is indexed by the position",
        lambda run, layers, what: at_point("resid_pre",
                                           lambda here, x: here["embed"] + mg.embedding(
                                               np.minimum(here.ids, len(here.model.wpe.weight) - 1),
                                               here.model.wpe.weight))(run, [0], what)),
    Bug("resid_pre", "positions run on through the rows of the batch; each row starts at 0",
        lambda run, layers, what: at_point(
            "resid_pre",
            lambda here, x: here["embed"] + mg.embedding(
                np.minimum(np.arange(here.ids.size),
                           len(here.model.wpe.weight) - 1).reshape(here.ids.shape),
                here.model.wpe.weight))(run, [0], what)),
]
NORMS = [
    Bug("ln_1.rstd", "ε is added to the deviation; it belongs inside the root: (x − μ)/√(σ² + ε)",
        statistics(mean, lambda c, eps: 1.0 / (root_mean_square(c, 0.0) + eps))),
    Bug("ln_1.rstd", "ε is left out of LayerNorm", epsilon(0.0)),
    *(Bug("ln_1.rstd", f"LayerNorm's ε is {said}; GPT-2's is 1e-5", epsilon(value))
      for value, said in ((1e-12, "BERT's, 1e-12"), (1e-8, "1e-8"), (1e-6, "1e-6"), (1e-4, "1e-4"),
                          (1e-3, "1e-3"), (1e-2, "1e-2"))),
    Bug("ln_1.rstd", "LayerNorm's ε is 1e-5, and this model has another", epsilon(1e-5)),
    *(Bug("ln_1.rstd",
          f"LayerNorm divides by the deviation over n − 1, to which ε = {eps:g} is added "
          "(The Annotated Transformer); GPT-2's is over n, and ε inside the root",
          statistics(mean, partial(annotated, value=eps)))
      for eps in (1e-6, 1e-5, 1e-8)),
    Bug("ln_1.rstd",
        "LayerNorm divides by the deviation, to which ε = 1e-6 is added; 1e-5 belongs inside the "
        "root",
        statistics(mean, lambda c, eps: 1.0 / (root_mean_square(c, 0.0) + 1e-6))),
    *(Bug(at,
          f"LayerNorm's mean and variance run over {said}; they run over the d "
          "numbers of each position",
          statistics(partial(mean, axis=axes),
                     lambda c, eps, axes=axes: 1.0 / root_mean_square(  # type: ignore[misc]
                         c, eps, axes)))
      for at, said, axes in (("ln_1.mean", "the positions and the numbers of each row",
                              (-2, -1)),
                             ("ln_1.mean", "the whole batch", (0, 1, 2)),
                             ("ln_1.out", "the rows of the batch", (0,)),
                             ("ln_1.out", "the positions", (-2,)))),
    Bug("ln_1.rstd",
        "LayerNorm divides by n − 1; its variance is the population's, over n (unbiased=False)",
        statistics(mean,
                   lambda c, eps: 1.0 / mg.sqrt(
                       (c * c).sum(axis=-1, keepdims=True) / (c.shape[-1] - 1) + eps))),
    Bug("ln_1.rstd", "LayerNorm's variance is a sum, which is not divided by n",
        statistics(mean, lambda c, eps: 1.0 / mg.sqrt((c * c).sum(axis=-1, keepdims=True) + eps))),
    Bug("ln_1.rstd", "LayerNorm's variance is the mean of x²; it is that of (x − μ)²",
        statistics(mean, lambda x, eps: 1.0 / root_mean_square(x, eps), raw=True)),
    Bug("ln_1.rstd", "LayerNorm divides by the variance; it divides by its root",
        statistics(mean, lambda c, eps: 1.0 / (mean(c * c) + eps))),
    Bug("ln_1.rstd", "LayerNorm does not divide by the deviation",
        statistics(mean, lambda c, eps: c[..., :1] * 0.0 + 1.0)),
    Bug("ln_1.out", "LayerNorm's weight is not applied",
        statistics(mean, lambda c, eps: 1.0 / root_mean_square(c, eps), gain=False)),
    Bug("ln_1.out", "LayerNorm's bias is not added",
        statistics(mean, lambda c, eps: 1.0 / root_mean_square(c, eps), shift=False)),
    Bug("ln_1.out", "LayerNorm has neither weight nor bias",
        statistics(mean, lambda c, eps: 1.0 / root_mean_square(c, eps), gain=False, shift=False)),
    Bug("ln_1.out", "LayerNorm's weight and bias are swapped",
        norms(lambda x, w, b, eps: layer_norm(x, b, w, eps))),
    Bug("ln_1.out", "LayerNorm's bias is added twice",
        norms(lambda x, w, b, eps: layer_norm(x, w, b, eps) + b)),
    Bug("ln_1.out", "LayerNorm's weight is added to 1, as in other models; it is the factor itself",
        norms(lambda x, w, b, eps: layer_norm(x, w + 1.0, b, eps))),
    Bug("ln_1.mean", "the mean is not taken away: that is RMSNorm; GPT-2 has LayerNorm",
        statistics(lambda x: 0.0, lambda x, eps: 1.0 / root_mean_square(x, eps))),
    Bug("ln_1.out", "the mean is added to what is divided; it is taken away", norms(
        lambda x, w, b, eps: (x + mean(x)) / root_mean_square(x - mean(x), eps) * w + b)),
    Bug("ln_1.out",
        "the mean is taken away for the variance alone; it is taken from what is divided, too",
        norms(lambda x, w, b, eps: x / root_mean_square(x - mean(x), eps) * w + b)),
    *(Bug("ln_1.out", f"in the blocks, and not in ln_f, LayerNorm's {said}",
          norms(made, ("ln_1", "ln_2")))
      for said, made in (
          ("weight and bias are swapped", lambda x, w, b, eps: layer_norm(x, b, w, eps)),
          ("weight is not applied", lambda x, w, b, eps: layer_norm(x, w * 0.0 + 1.0, b, eps)),
          ("bias is not added", lambda x, w, b, eps: layer_norm(x, w, b * 0.0, eps)),
          ("weight and bias are not applied",
           lambda x, w, b, eps: layer_norm(x, w * 0.0 + 1.0, b * 0.0, eps)))),
    Bug("ln_1.out",
        "LayerNorm comes after each addition (post-norm, Vaswani et al. 2017); it comes before "
        "attention and MLP",
        every(at_point("ln_1.out", lambda here, x: here["resid_pre"] * 1.0),
              at_point("resid_mid",
                       lambda here, x: layer_norm(here["resid_pre"] + here["attn.out"],
                                                  here.block.ln_1.weight, here.block.ln_1.bias,
                                                  here.model.config.layer_norm_epsilon)),
              at_point("ln_2.out", lambda here, x: here["resid_mid"] * 1.0),
              at_point("resid_post",
                       lambda here, x: layer_norm(here["resid_mid"] + here["mlp.out"],
                                                  here.block.ln_2.weight, here.block.ln_2.bias,
                                                  here.model.config.layer_norm_epsilon)))),
    Bug("ln_1.out", "ln_1 has ln_2's weight and bias", norm_of("ln_1.out", "resid_pre", "ln_2")),
    Bug("ln_1.out", "ln_1 and ln_2 are swapped",
        every(norm_of("ln_1.out", "resid_pre", "ln_2"), norm_of("ln_2.out", "resid_mid", "ln_1"))),
]
