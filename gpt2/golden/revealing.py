"""Random weights on which the mistakes of a port show, and what a ground truth cannot show."""
from __future__ import annotations

import math

import numpy as np

from minigrad import random

from ..config import GPT2Config, parameter_shapes
from ..model import GPT2


def telling_weights(config: GPT2Config, seed: int) -> dict[str, np.ndarray]:
    """Random parameters in float32, by name, that hide no mistake behind a 0 or a 1.

    GPT-2's own initialisation has biases of 0, gains of 1 and matrices with a deviation of 0.02. A
    port without biases agrees with it, scores are so near to 0 that their scale does not matter,
    and all activation functions are nearly linear. Here biases have a deviation of 0.3, gains of
    0.3 around 1, and matrices keep activations at a deviation of about 1 (1.5 before GELU).
    Embeddings stay small, so that LayerNorm's ε is a visible part of their variance.
    """
    drawn = {}
    for i, (name, shape) in enumerate(parameter_shapes(config).items()):
        end = name.split(".")[-2]
        if len(shape) == 1:
            std = 0.3
        elif end in ("wte", "wpe", "lm_head"):
            std = min(0.1, 2.0 / math.sqrt(shape[1])) * (0.5 if end == "wpe" else 1.0)
        else:
            std = {"c_fc": 1.5, "c_attn": 1.2}.get(end, 1.0) / math.sqrt(shape[0])
        a = random.normal(random.fold_in(random.key(seed), i), shape, std=std).numpy()
        drawn[name] = (a + (len(shape) == 1 and name.endswith("weight"))).astype(np.float32)
    return drawn


def unseen(model: GPT2, ids: np.ndarray, grad: bool, steps: int = 0) -> list[str]:
    """Mistakes that a ground truth of this model and these ids [B, T] cannot show, one per line."""
    own = {name: p.numpy() for name, p in model.named_parameters()}
    kinds: dict[str, list[np.ndarray]] = {}
    for name, a in own.items():
        if a.ndim == 1:
            kinds.setdefault(name.split(".", 2)[2] if name.startswith("h.") else name, []).append(a)
    out = []
    for kind, arrays in kinds.items():
        neutral = 0 if kind.endswith("bias") else 1
        if all((a == neutral).all() for a in arrays):
            out.append(f"{kind} left out: it is {neutral} everywhere")
    rows, tokens = ids.shape
    if model.config.n_layer == 1:
        out.append("blocks that are mixed up: there is one block")
    if model.config.n_head == 1:
        out.append("heads that are mixed up, and √d instead of √(d/h): there is one head")
    if tokens == 1:
        out.append("the mask and the scale of attention: rows have one token each")
    if rows == 1:
        out.append("rows of a batch that are mixed up: there is one row (--batch-size)")
    if ids.max() < 256 < model.config.vocab_size:
        out.append("ids that are stored in 8 bits: all are below 256")
    if grad and np.unique(ids).size == ids.size:
        out.append("gradients of wte's rows that overwrite each other: no id occurs twice")
    if steps == 1:
        out.append("what AdamW's moments keep from step to step: there is one step (--steps 2)")
    return out
