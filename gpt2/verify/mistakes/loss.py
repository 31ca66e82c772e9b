"""Mistakes at the end of a port: the last LayerNorm, the head, the targets and the loss."""
from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

import minigrad as mg
from minigrad import Tensor

from ..formula_parts import layer_norm, softmax, stop
from ..planting import Bug, Here, Plant, Run, at_point, in_loss, last_norm_of


# ── ln_f and the head ──
def last_norm(here: Here) -> Tensor:
    """The input of ln_f."""
    return here.seen[f"blocks.{here.model.config.n_layer - 1}.resid_post"]


def head(made: Callable[[Tensor, Tensor], Tensor]) -> Plant:
    """Plant logits made(ln_f's result, the head's matrix [V, d])."""
    return at_point("logits", lambda here, x: made(here["ln_f.out"], here.model.lm_head.weight))


def read_as_transposed(x: Tensor, w: Tensor, multiple: int) -> Tensor:
    """x W with the memory of W [V, d] read as [d, V], where V was filled up to a multiple."""
    more = -len(w) % multiple
    w = mg.concat([w, Tensor(np.zeros((more, w.shape[1]), w.dtype))], axis=0) if more else w
    return (x @ w.reshape(w.shape[::-1]))[..., :w.shape[0] - more]


def like_last(here: Here, x: Tensor, kind: str) -> Tensor:
    """ln_f with the weight and bias of a LayerNorm of the last block."""
    own = getattr(here.model.h[-1], kind)
    return layer_norm(last_norm(here), own.weight, own.bias, here.model.config.layer_norm_epsilon)


ENDS = [
    Bug("ln_f.out", "the last LayerNorm, ln_f, is not applied before the head",
        at_point("ln_f.out", lambda here, x: last_norm(here) * 1.0)),
    Bug("ln_f.out", "ln_f has no weight and no bias",
        at_point("ln_f.out",
                 lambda here, x: layer_norm(last_norm(here), here.model.ln_f.weight * 0.0 + 1.0,
                                            here.model.ln_f.bias * 0.0,
                                            here.model.config.layer_norm_epsilon))),
    Bug("ln_f.mean", "ln_f reads what the first block gives; it reads what the last one gives",
        last_norm_of(lambda n: "blocks.0.resid_post")),
    Bug("ln_f.out", "ln_f is applied twice", at_point("ln_f.out", lambda here, x: layer_norm(
        x, here.model.ln_f.weight, here.model.ln_f.bias, here.model.config.layer_norm_epsilon))),
    *(Bug("ln_f.out", f"ln_f has {kind}'s weight and bias of the last block",
          at_point("ln_f.out", partial(like_last, kind=kind)))
      for kind in ("ln_1", "ln_2")),
    *(Bug("logits",
          "the head's matrix is read transposed: logits are x Wᵀ with W [V, d], the token "
          "embedding's table",
          head(partial(read_as_transposed, multiple=multiple)))
      for multiple in (1, 64, 128)),
    Bug("logits", "logits are divided by √d", head(lambda x, w: x @ w.mT * (w.shape[1] ** -0.5))),
    Bug("logits", "softmax is applied to the logits, or they are log-probabilities",
        head(lambda x, w: softmax(x @ w.mT))),
    Bug("logits", "logits are log-probabilities; they are the scores before softmax",
        head(lambda x, w: ((z := x @ w.mT) - mg.logsumexp(z, axis=-1, keepdims=True)))),
]
# ── the loss ──
def per_token(logits: Tensor, targets: np.ndarray) -> Tensor:
    """−log softmax of each target [B, T]."""
    top = stop(logits.max(axis=-1, keepdims=True))
    lse = mg.log(mg.exp(logits - top).sum(axis=-1)) + top[..., 0]
    return lse - mg.gather(logits, targets[..., None], axis=-1)[..., 0]


def padded_to(multiple: int) -> Callable[[Tensor, Tensor, np.ndarray], Tensor]:
    """The loss with more logits, all 0, up to a multiple."""
    def loss(right: Tensor, logits: Tensor, targets: np.ndarray) -> Tensor:
        more = -logits.shape[-1] % multiple
        return per_token(mg.concat([logits,
                                    Tensor(np.zeros((*logits.shape[:-1], more), logits.dtype))],
                                   axis=-1),
                         targets).mean()

    return loss


def without(which: int, loss: Tensor, z: Tensor, y: np.ndarray) -> Tensor:
    """The loss without the targets that are this id."""
    kept = (y != which % z.shape[-1]).astype(z.dtype)
    return (per_token(z, y) * kept).sum() / max(float(kept.sum()), 1.0)


def smoothed(loss: Tensor, z: Tensor, y: np.ndarray, share: float) -> Tensor:
    """The loss with this share of each target spread over all ids."""
    spread = (mg.logsumexp(z, axis=-1) - z.mean(axis=-1)).mean()
    return per_token(z, y).mean() * (1.0 - share) + spread * share


LOSSES = [
    Bug("loss", "the loss is the sum over the tokens; it is their mean",
        in_loss(lambda loss, z, y: per_token(z, y).sum())),
    Bug("loss", "the loss is the mean over rows of sums; it is the mean over all tokens",
        in_loss(lambda loss, z, y: per_token(z, y).sum(axis=-1).mean())),
    Bug("loss", "the loss is the sum of the rows' means; it is the mean over all tokens",
        in_loss(lambda loss, z, y: per_token(z, y).mean(axis=-1).sum())),
    Bug("loss", "the loss is in bits; it is in nats",
        in_loss(lambda loss, z, y: per_token(z, y).mean() / math.log(2))),
    Bug("loss", "softmax is applied before the loss, which applies it: it is to be given logits",
        in_loss(lambda loss, z, y: per_token(softmax(z), y).mean())),
    Bug("loss", "logits [B, T, V] are reshaped to [B, V, T] for the loss; they are transposed",
        in_loss(lambda loss, z, y: per_token(z.reshape(z.shape[0], z.shape[2], z.shape[1]).mT,
                                             y).mean())),
    *(Bug("loss", f"labels are smoothed by {share}; the target has all of it",
          in_loss(partial(smoothed, share=share)))
      for share in (0.1, 0.05)),
    Bug("loss", "that is the perplexity, exp(loss)",
        in_loss(lambda loss, z, y: mg.exp(per_token(z, y).mean()))),
    Bug("loss", "the loss is that of the last position alone",
        in_loss(lambda loss, z, y: per_token(z, y)[:, -1].mean())),
    Bug("loss", "the loss is that of the first row of the batch alone",
        in_loss(lambda loss, z, y: per_token(z, y)[0].mean())),
    Bug("loss", "the loss is that of the last row of the batch alone",
        in_loss(lambda loss, z, y: per_token(z, y)[-1].mean())),
    Bug("loss", "the last position of each row is left out of the loss; it has a target, too",
        in_loss(lambda loss, z, y: per_token(z, y)[:, :-1].mean() if y.shape[1] > 1
                else loss * 2.0)),
    Bug("loss", "the first position of each row is left out of the loss",
        in_loss(lambda loss, z, y: per_token(z, y)[:, 1:].mean() if y.shape[1] > 1
                else loss * 2.0)),
    Bug("loss", "the loss is divided by T − 1; it is divided by the number of tokens",
        in_loss(lambda loss, z, y: per_token(z, y).mean() * (
                    y.shape[1] / max(y.shape[1] - 1, 0.5)))),
    Bug("loss",
        "the targets are shifted twice: by whoever cuts the batch, and again in the loss "
        "(transformers shifts labels itself)",
        in_loss(lambda loss, z, y: per_token(z[:, :-1], y[:, 1:]).mean() if y.shape[1] > 1
                else loss * 2.0)),
    *(Bug("loss", f"targets that are {said} are ignored, as padding is; every id is a token",
          in_loss(partial(without, which)))
      for which, said in ((0, "0"), (-1, "the last id of the vocabulary"))),
    Bug("loss", "the target's logit is added; it is taken away",
        in_loss(lambda loss, z, y: (per_token(z, y)
                                    + 2.0 * mg.gather(z, y[..., None], axis=-1)[..., 0]).mean())),
    Bug("loss", "the target's logit is left out: the loss is log Σ exp alone", in_loss(
        lambda loss, z, y: (per_token(z, y) + mg.gather(z, y[..., None], axis=-1)[..., 0]).mean())),
    Bug("loss", "the loss has the wrong sign", in_loss(lambda loss, z, y: -per_token(z, y).mean())),
    *(Bug("loss",
          f"softmax runs over the padded vocabulary, up to a multiple of {n}; only the first V are "
          "tokens",
          in_loss(padded_to(n)))
      for n in (128, 64)),
    Bug("loss",
        "softmax lacks −max in one of its two places, or log Σ exp its logarithm: the loss is "
        "minus the logit",
        in_loss(lambda loss, z, y: -mg.gather(z, y[..., None], axis=-1).mean())),
    Bug("loss", "the loss is 1 − p of the target, with no logarithm",
        in_loss(lambda loss, z, y: (1.0 - mg.exp(-per_token(z, y))).mean())),
    Bug("loss", "the loss is −p of the target, with no logarithm",
        in_loss(lambda loss, z, y: -mg.exp(-per_token(z, y)).mean())),
]


def in_targets(edit: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Plant:
    """Plant other targets: edit(ids, targets)."""
    def plant(run: Run, layers: list[int], what: str) -> Run:
        assert run.targets is not None
        return run._replace(targets=np.ascontiguousarray(edit(run.ids, run.targets)))

    return plant


def rolled(ids: np.ndarray, y: np.ndarray, by: int) -> np.ndarray:
    return np.roll(y, by, 0)


TARGETS = [
    Bug("loss",
        "the targets are not shifted: each position must predict the next token, not its own",
        in_targets(lambda ids, y: ids)),
    Bug("loss",
        "the targets are shifted by two positions; each position must predict the next token",
        in_targets(lambda ids, y: np.concatenate([y.reshape(-1)[1:],
                                                  y.reshape(-1)[-1:]]).reshape(y.shape))),
    Bug("loss",
        "the last target of each row is the row's own first id (np.roll); it is the id that comes "
        "after the row",
        in_targets(lambda ids, y: np.concatenate([ids[:, 1:], ids[:, :1]], axis=1))),
    Bug("loss", "each row of the batch has the first row's targets",
        in_targets(lambda ids, y: np.broadcast_to(y[0], y.shape))),
    *(Bug("loss", f"each row of the batch has the targets of the row {said} it",
          in_targets(partial(rolled, by=by)))
      for by, said in ((1, "before"), (-1, "after"))),
    Bug("loss", "the rows of the targets are in reverse order", in_targets(lambda ids, y: y[::-1])),
    Bug("loss", "targets are read as [T, B]; they are [B, T]",
        in_targets(lambda ids, y: y.reshape(y.shape[::-1]).T)),
    Bug("loss", "targets are stored in 8 bits", in_targets(lambda ids, y: y & 0xFF)),
]
