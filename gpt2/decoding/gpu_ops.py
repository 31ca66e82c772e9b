"""What one step of decoding a transformer is made of, for a few rows of one token each.

These are five functions on bare arrays. Each writes into arrays that were allocated before, and
reads where the step is from `state`, an array: so the same calls are right for every step, and a
GPU can be handed them once and repeat them (`Backend.captured`). Each has its definition here,
which any backend can run; where a backend has a kernel of that name, the kernel is run instead.
Nothing is recorded, and there are no gradients.

B rows, d width, h heads of e numbers, S places of the cache. What travels from one function to the
next is kept in the dtype of `x`: float32 where weights have 16 bits (`stream_dtype`). Weights are
[out, in] with each row in one piece.
"""
from __future__ import annotations

import math
from typing import Any

from minigrad.backend import of

ROWS = 8                                                # at most, for the kernels
HEAD = 256                                              # numbers of a head at most, for the kernels
PARTS = 32                                              # that a row's keys are cut into at most
KERNELS = ("step_embed", "step_linear", "step_qkv", "step_attention", "step_greedy")
ACTIVATIONS = {
    None: lambda xp, v: v,
    "gelu_new": lambda xp, v:                                                            # (gelu.2)
        0.5 * v * (1.0 + xp.tanh(math.sqrt(2.0 / math.pi) * (v + 0.044715 * v * v * v))),
    "gelu": lambda xp, v: 0.5 * v * (1.0 + xp.erf(v * math.sqrt(0.5))),                  # (gelu.1)
    "relu": lambda xp, v: xp.where(v < 0, v * 0, v),
}


def stream_dtype(dtype: str) -> str:
    """What is computed with, where weights are of `dtype`."""
    return dtype if dtype in ("float32", "float64") else "float32"


def embed(ids: Any, state: Any, pad: Any, wte: Any, wpe: Any, x: Any) -> None:
    """x [B, d] ← wte[token] + wpe[place − pad], and one more place is taken.

    ids [1 + R, B]: its first row are the tokens to be read, and is kept in row 1 + made mod R of
    it. state [2]: places taken, and tokens made; both are one more afterwards. pad [B]: places at
    the left of a row that hold nothing. A negative token is read as 0.
    """
    of(x).run("step_embed", _embed, ids, state, pad, wte, wpe, x)


def _embed(xp: Any, ids: Any, state: Any, pad: Any, wte: Any, wpe: Any, x: Any) -> None:
    (place, made), tokens, pads = (xp.host(a).tolist() for a in (state, ids[0, :], pad))
    for row in range(x.shape[0]):
        word, where = wte[max(0, tokens[row]), :], wpe[place - pads[row], :]
        x[row, :] = word.astype(x.dtype) + where.astype(x.dtype)
    ids[1 + made % (ids.shape[0] - 1), :] = ids[0, :]
    state[0], state[1] = place + 1, made + 1


def linear(x: Any, weight: Any, bias: Any, out: Any, *, norm: tuple[Any, Any] | None = None,
           eps: float = 1e-5, act: str | None = None, add: bool = False) -> None:
    """out [B, m] ← act(LN(x) Wᵀ + bias), or that added to what is there.

    x [B, k], weight [m, k], bias [m] or None; norm: weight and bias [k] of the LayerNorm, None for
    x itself. act: a name of ACTIVATIONS.
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
    """q, k, v ← LN(x) Wᵀ + bias for W [3 d, d]; q is [B, d], and k and v go into the cache.

    They are written at the last place taken of keys and values [B, h, S, e].
    """
    of(x).run("step_qkv", _qkv, x, norm, weight, bias, q, keys, values, state, eps=eps)


def _qkv(xp: Any, x: Any, norm: Any, weight: Any, bias: Any, q: Any, keys: Any, values: Any,
         state: Any, *, eps: float) -> None:
    y = xp.matmul(_normed(xp, x, norm, eps), xp.swapaxes(weight.astype(x.dtype), 0, 1))
    y = y + bias.astype(x.dtype)
    rows, heads, _, e = keys.shape
    place, y = int(xp.host(state)[0]) - 1, y.reshape(rows, 3, heads, e)
    q[:, :] = y[:, 0, :, :].reshape(rows, heads * e)
    keys[:, :, place, :] = y[:, 1, :, :].astype(keys.dtype)
    values[:, :, place, :] = y[:, 2, :, :].astype(values.dtype)


def attention(q: Any, keys: Any, values: Any, state: Any, pad: Any, out: Any, parts: Any,
              arrived: Any, *, scale: float, soon: tuple[Any, ...] = ()) -> None:
    """out [B, d] ← softmax(scale q Kᵀ) V in each head, over the places pad … state[0] − 1.

    keys and values are [B, h, S, e]. parts [B, h, PARTS, e + 2] and arrived [B, h], int64 and 0:
    room for kernels that cut the keys into parts. soon: up to two matrices that are read after
    this, which a kernel may ask memory for, as it has little else to ask for.
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
    """ids [B] ← the place of the highest of the first `vocab` of logits [B, V].

    Among equals it is the lowest place; it is −1 where the highest is not finite.
    """
    of(logits).run("step_greedy", _greedy, logits, ids, vocab=vocab)


def _greedy(xp: Any, logits: Any, ids: Any, *, vocab: int) -> None:
    logits = logits[:, :vocab]
    top = xp.max(logits, axis=1)                        # NaN where there is one
    ids[:] = xp.where(xp.isfinite(top), xp.argmax(logits, axis=1), -1)
