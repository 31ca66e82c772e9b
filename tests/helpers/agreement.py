"""Ours beside transformers': the same inputs through both, how far apart the results are, and how far apart they may be.

A sum of n terms that are rounded one after the other is off by about √n·u of its size, u = eps/2: the errors are a random walk
(Higham, Mary 2019). What one product of a chain is off by adds to the next as squares do, so a number that went through
sums of n₁, n₂, … terms is off by √(n₁ + n₂ + …)·u of its size, and two answers are twice that apart:

    |ours − theirs| ≤ 2·√N·u·S.

N  the lengths of all sums on the longest path to the number, and OPERATIONS for all else that a sublayer does to it.
S  the largest |element| of the tensor, which is several times the size of most of them, and pays for the word "about".
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

import minigrad as mg
from gpt2.decoding.kv_cache import KVCache
from gpt2.model import GPT2

transformers.utils.logging.disable_progress_bar()

OPERATIONS = 40                                         # of an activation, a LayerNorm or a softmax, besides their sums


def theirs(directory: Any, dtype: str = "float32") -> Any:
    """transformers' model from a directory, with nothing missing, left over or newly drawn; without dropout."""
    model, info = transformers.GPT2LMHeadModel.from_pretrained(directory, dtype=getattr(torch, dtype), output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def logits(model: Any, ids: Any) -> np.ndarray:
    """[B, T, V] of either model."""
    if isinstance(model, GPT2):
        with mg.no_grad():
            return model(ids).numpy()
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.numpy()


def loss(model: Any, ids: Any, targets: Any) -> Any:
    """Mean cross-entropy, a scalar that can be walked back from, of either model."""
    if isinstance(model, GPT2):
        return model.loss(ids, targets)
    return torch.nn.functional.cross_entropy(model(torch.tensor(ids)).logits.flatten(0, 1), torch.tensor(targets).flatten())


def in_pieces(model: GPT2, ids: Any, pieces: Sequence[int], pad: Sequence[int] | None = None) -> np.ndarray:
    """Logits of ids [B, T], read into a KV cache a piece at a time; the pieces are used again and again until all is read."""
    rows, tokens = ids.shape
    cache, out = KVCache(model.config, rows, tokens, dtype=model.where["dtype"], pad=pad), []
    while cache.length < tokens:
        n = pieces[len(out) % len(pieces)]
        with mg.no_grad():
            out.append(model(ids[:, cache.length:cache.length + n], cache=cache).numpy())
    return np.concatenate(out, axis=1)


def gradients(model: Any, ids: Any, targets: Any) -> dict[str, np.ndarray]:
    """∂loss/∂parameter by transformers' names without `transformer.`, of either model."""
    model.zero_grad()
    loss(model, ids, targets).backward()
    found = {name.removeprefix("transformer."): np.asarray(p.grad) for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def norm(x: np.ndarray) -> float:
    """‖x‖, summed in float64."""
    return float(np.sqrt(np.einsum("i,i->", x.ravel(), x.ravel(), dtype=np.float64)))


def worst(ours: dict[str, np.ndarray], wanted: dict[str, np.ndarray], noise: float = 0.0) -> tuple[float, str]:
    """The largest ‖ours − wanted‖ / ‖wanted‖ over the tensors, and whose it is. What is below `noise` is no difference."""
    assert ours.keys() == wanted.keys()

    def apart(name: str) -> float:
        a, b = ours[name], wanted[name]
        assert a.shape == b.shape and a.dtype == b.dtype, name
        difference = norm(a - b)
        return 0.0 if difference <= noise else difference / norm(b) if norm(b) else float("inf")

    return max((apart(name), name) for name in wanted)


# ── how far apart they may be ──
def lengths(config: Any, rows: int, tokens: int) -> dict[str, int]:
    """N for the logits, for the loss, and for the gradient of any parameter, of a pass over [rows, tokens]."""
    d = config.n_embd
    attention = d + d + d // config.n_head + 2 * tokens + d + OPERATIONS        # LayerNorm, c_attn, scores, softmax, values, c_proj
    mlp = d + d + (config.n_inner or 4 * d) + OPERATIONS                        # LayerNorm, c_fc, c_proj
    logits = config.n_layer * (attention + mlp) + d + d                         # ln_f, the head
    loss = logits + config.vocab_size + rows * tokens + OPERATIONS              # log Σ exp, and the mean
    # back: the head's sum is over the vocabulary, all others are those of the way there, and a parameter is used at each token
    return {"logits": logits, "loss": loss, "gradient": loss + logits + config.vocab_size + rows * tokens}


class Line(NamedTuple):
    """Of one tensor: max |ours − theirs|, S, and the first in units of its bound."""

    name: str
    apart: float
    scale: float
    units: float


def report(ours: Mapping[str, Any], wanted: Mapping[str, Any], config: Any, rows: int, tokens: int) -> list[Line]:
    """A line for each tensor: "logits", "loss", and gradients by parameter name, of a pass over [rows, tokens]."""
    assert ours.keys() == wanted.keys()
    sums, lines = lengths(config, rows, tokens), []
    for name, b in wanted.items():
        a = ours[name]
        assert a.shape == b.shape and a.dtype == b.dtype, name
        apart, scale = float(np.abs(a - b).max()), float(np.abs(b).max())
        bound = math.sqrt(sums.get(name, sums["gradient"])) * float(np.finfo(b.dtype).eps) * scale
        lines.append(Line(name, apart, scale, apart / bound if bound else 0.0 if apart == 0.0 else math.inf))
    return lines


def everything(model: Any, ids: Any, targets: Any) -> dict[str, np.ndarray]:
    """Logits, loss and every gradient of either model."""
    value = np.asarray(loss(model, ids, targets).detach())
    return {"logits": logits(model, ids), "loss": value, **gradients(model, ids, targets)}


def table(lines: list[Line], title: str) -> str:
    """The report as text, the farthest apart first."""
    wide = max(len(line.name) for line in lines)
    farthest = sorted(lines, key=lambda line: -line.units)
    rows = [f"{name:<{wide}}  {apart:9.2e}  {scale:9.2e}  {units:8.1e}" for name, apart, scale, units in farthest]
    return "\n".join([title, f"{'tensor':<{wide}}  {'max |Δ|':>9}  {'max |.|':>9}  of bound", *rows])
