"""The five functions of one decoding step of a transformer, for a few rows of one token each.

They work on plain arrays. Each writes its results into arrays that were allocated before, and reads
the progress of the decoding from an array, `state`. So the same calls are right for every step, and
a GPU can capture them once and then replay them (`Backend.captured`). The definitions in this file
run on every backend; if a backend has a kernel of the same name, the kernel is run instead. Nothing
is recorded, and there are no gradients.

In the shapes B is the number of rows, d the width, h the number of heads, e the size of a head, and
S the number of slots in the KV cache: each slot holds the key and the value of one token. What one
function passes to the next has the dtype of `x`, which is float32 if the weights have 16 bits
(`stream_dtype`). Weights are [out, in], and the numbers of a row are contiguous.
"""
from __future__ import annotations

import math
from typing import Any

from minigrad.backend import of

ROWS = 8                                                # the most rows that the kernels support
HEAD = 256                                              # the largest head that they support
PARTS = 32                                              # the most parts of a row's keys
KERNELS = ("step_embed", "step_linear", "step_qkv", "step_attention", "step_greedy")
ACTIVATIONS = {
    None: lambda xp, v: v,
    "gelu_new": lambda xp, v:                                                            # (gelu.2)
        0.5 * v * (1.0 + xp.tanh(math.sqrt(2.0 / math.pi) * (v + 0.044715 * v * v * v))),
    "gelu": lambda xp, v: 0.5 * v * (1.0 + xp.erf(v * math.sqrt(0.5))),                  # (gelu.1)
    "relu": lambda xp, v: xp.where(v < 0, v * 0, v),
}


def stream_dtype(dtype: str) -> str:
    """The dtype of the computation if the weights have `dtype`: at least float32."""
    return dtype if dtype in ("float32", "float64") else "float32"


def embed(ids: Any, state: Any, pad: Any, wte: Any, wpe: Any, x: Any) -> None:
    """Start a step: x [B, d] ← wte[token] + wpe[slot − pad]; the step uses the next slot.

    ids [1 + R, B]: row 0 has the tokens to read; it is copied to row 1 + (step mod R). state [2]:
    the number of used slots, which is this step's slot, and the number of the step; both are
    increased by 1. pad [B]: the number of slots at the left of each row that hold no token. A
    negative token is read as 0.
    """
    of(x).run("step_embed", _embed, ids, state, pad, wte, wpe, x)


def _embed(xp: Any, ids: Any, state: Any, pad: Any, wte: Any, wpe: Any, x: Any) -> None:
    (slot, made), tokens, pads = (xp.host(a).tolist() for a in (state, ids[0, :], pad))
    for row in range(x.shape[0]):
        word, where = wte[max(0, tokens[row]), :], wpe[slot - pads[row], :]
        x[row, :] = word.astype(x.dtype) + where.astype(x.dtype)
    ids[1 + made % (ids.shape[0] - 1), :] = ids[0, :]
    state[0], state[1] = slot + 1, made + 1


def linear(x: Any, weight: Any, bias: Any, out: Any, *, norm: tuple[Any, Any] | None = None,
           eps: float = 1e-5, act: str | None = None, add: bool = False) -> None:
    """out [B, m] ← act(LN(x) Wᵀ + bias); with add=True it is added to out.

    x [B, k], weight [m, k], bias [m] or None. norm: weight and bias [k] of the LayerNorm; None
    leaves the LayerNorm out. eps: that of the LayerNorm. act: a name of ACTIVATIONS.
    """
    of(x).run("step_linear", _linear, x, weight, bias, out, norm=norm, eps=eps, act=act, add=add)


def _normed(xp: Any, x: Any, norm: tuple[Any, Any] | None, eps: float) -> Any:
    """(x − μ) rstd ⊙ weight + bias   (layer_norm.1)"""
    if norm is None:
        return x
    gain, shift = (a.astype(x.dtype) for a in norm)
    x = x - xp.mean(x, axis=1, keepdims=True)
    return x / xp.sqrt(xp.mean(x * x, axis=1, keepdims=True) + eps) * gain + shift


def _linear(xp: Any, x: Any, weight: Any, bias: Any, out: Any, *, norm: Any, eps: float,
            act: str | None, add: bool) -> None:
    y = xp.matmul(_normed(xp, x, norm, eps), xp.swapaxes(weight.astype(x.dtype), 0, 1))
    if bias is not None:
        y = y + bias.astype(x.dtype)
    y = ACTIVATIONS[act](xp, y)
    out[:, :] = out + y if add else y


def qkv(x: Any, norm: tuple[Any, Any], weight: Any, bias: Any, q: Any, keys: Any, values: Any,
        state: Any, *, eps: float = 1e-5) -> None:
    """q, k, v ← LN(x) Wᵀ + bias for W [3 d, d]; q is [B, d], and k and v are put into the cache.

    They are written to the last used slot, state[0] − 1, of keys and values [B, h, S, e].
    """
    of(x).run("step_qkv", _qkv, x, norm, weight, bias, q, keys, values, state, eps=eps)


def _qkv(xp: Any, x: Any, norm: Any, weight: Any, bias: Any, q: Any, keys: Any, values: Any,
         state: Any, *, eps: float) -> None:
    y = xp.matmul(_normed(xp, x, norm, eps), xp.swapaxes(weight.astype(x.dtype), 0, 1))
    y = y + bias.astype(x.dtype)
    rows, heads, _, e = keys.shape
    slot, y = int(xp.host(state)[0]) - 1, y.reshape(rows, 3, heads, e)
    q[:, :] = y[:, 0, :, :].reshape(rows, heads * e)
    keys[:, :, slot, :] = y[:, 1, :, :].astype(keys.dtype)
    values[:, :, slot, :] = y[:, 2, :, :].astype(values.dtype)


def attention(q: Any, keys: Any, values: Any, state: Any, pad: Any, out: Any, parts: Any,
              arrived: Any, *, scale: float, soon: tuple[Any, ...] = ()) -> None:
    """out [B, d] ← softmax(scale q Kᵀ) V in each head, over the slots pad … state[0] − 1.

    keys and values are [B, h, S, e]. parts [B, h, PARTS, e + 2] and arrived [B, h] (int64, all 0)
    are memory for kernels that divide the keys into parts. soon: up to two matrices that the next
    functions read; a kernel may prefetch them, because it needs little of the memory's bandwidth
    itself.
    """
    of(q).run("step_attention", _attention, q, keys, values, state, pad, out, parts, arrived,
              scale=scale, soon=soon)


def _attention(xp: Any, q: Any, keys: Any, values: Any, state: Any, pad: Any, out: Any, parts: Any,
               arrived: Any, *, scale: float, soon: Any) -> None:
    heads, e = keys.shape[1], keys.shape[3]
    end = int(xp.host(state)[0])
    for row, start in enumerate(xp.host(pad).tolist()):
        seen = slice(start, end)
        k, v = (a[row, :, seen, :].astype(q.dtype) for a in (keys, values))     # [h, n, e]
        scores = xp.matmul(k, q[row, :].reshape(heads, e, 1)) * scale           # [h, n, 1]
        p = xp.exp(scores - xp.max(scores, axis=1, keepdims=True))
        out[row, :] = (xp.sum(p * v, axis=1) / xp.sum(p, axis=1)).reshape(heads * e)


def greedy(logits: Any, ids: Any, *, vocab: int) -> None:
    """ids [B] ← the index of the largest of the first `vocab` logits in each row of logits [B, V].

    Among equal logits it is the lowest index. It is −1 if the largest logit is not finite.
    """
    of(logits).run("step_greedy", _greedy, logits, ids, vocab=vocab)


def _greedy(xp: Any, logits: Any, ids: Any, *, vocab: int) -> None:
    logits = logits[:, :vocab]
    top = xp.max(logits, axis=1)                        # NaN if the row has one
    ids[:] = xp.where(xp.isfinite(top), xp.argmax(logits, axis=1), -1)
