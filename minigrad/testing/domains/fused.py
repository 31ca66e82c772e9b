"""The domains of `minigrad.fused`."""
from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ... import backend, fused, random
from ..laws.strategies import small_shapes as shapes
from .elementwise import SEAMS, erf
from .linalg import product
from .table import ANY, AXES, axis_of, constant, domain, one_of


def _softmax(x: Any, axis: int = -1) -> Any:
    e = np.exp(x)
    return e / np.sum(e, axis=axis, keepdims=True)


def _along(draw: Any, sizes: Any, rng: Any) -> Any:
    return {"axis": axis_of(draw, len(sizes[0]))}


domain("softmax", (AXES, "any", _along), _softmax, lambda t, x, axis: t.softmax(x, axis))
domain("softmax", (st.just([(0, 2)]),), _softmax, lambda t, x: t.softmax(x, -1), label="size-0")
domain("log_softmax", (AXES, "any", _along),
       lambda x, axis: np.log(_softmax(x, axis)), lambda t, x, axis: t.log_softmax(x, axis))
_WIDE_PI = np.longdouble(np.pi) + np.longdouble(1.2246467991473532e-16)


def _gelu(x: Any, bias: Any = 0.0, *, approximate: str) -> Any:
    x = x + bias
    if approximate == "tanh":
        cubic = x + np.longdouble("0.044715") * x ** 3
        return x * (1.0 + np.tanh(np.sqrt(2.0 / _WIDE_PI) * cubic)) / 2.0
    return x * (1.0 + erf(x / np.sqrt(np.longdouble(2.0)))) / 2.0


APPROXIMATE = one_of(approximate=["none", "tanh"])
domain("gelu", (ANY, "any", APPROXIMATE, [s * math.sqrt(2.0) for s in SEAMS]), _gelu,
       lambda t, x, approximate: t.nn.functional.gelu(x, approximate=approximate))


@st.composite
def _biased(draw: Any) -> Any:
    d = draw(st.integers(1, 4))
    return [(*draw(shapes(most=2)), d), (d,)]


domain("gelu", (_biased(), "any", APPROXIMATE), _gelu,
       lambda t, x, bias, approximate: t.nn.functional.gelu(x + bias, approximate=approximate),
       label="bias")


@st.composite
def _normed(draw: Any) -> Any:
    d = draw(st.integers(1, 3))
    return [(*draw(shapes(most=2)), d), (d,), (d,)]


def _layer_norm(x: Any, weight: Any, bias: Any, eps: float) -> Any:
    mean = np.sum(x, axis=-1, keepdims=True) / x.shape[-1]
    variance = np.sum((x - mean) ** 2, axis=-1, keepdims=True) / x.shape[-1]
    return (x - mean) / np.sqrt(variance + np.longdouble(eps)) * weight + bias


def _eps(draw: Any, sizes: Any, rng: Any) -> Any:
    """ε for LayerNorm; it is large for rows of one number.

    Their variance is 0, so the gradient has the factor 1/√ε, which would also multiply roundings.
    """
    return {"eps": draw(st.sampled_from([1e-5, 0.1]))} if sizes[0][-1] > 1 else {"eps": 0.1}


domain("layer_norm", (_normed(), ["spread", "any", "any"], _eps), _layer_norm,
       lambda t, x, w, b, eps: t.nn.functional.layer_norm(x, w.shape, w, b, eps))


def _add_layer_norm(x: Any, y: Any, weight: Any, bias: Any, eps: float) -> Any:
    y = x + y
    parts = y, _layer_norm(y, weight, bias, eps)
    return np.concatenate([part.reshape(-1) for part in parts])


# x + y may have nearly equal numbers in a row, so ε is large here as well
domain("add_layer_norm", (_normed().map(lambda s: [s[0], *s]), "any", one_of(eps=[0.1, 1.0])),
       _add_layer_norm,
       lambda t, x, y, w, b, eps: (x + y, t.nn.functional.layer_norm(x + y, w.shape, w, b, eps)),
       call=fused.add_layer_norm)


def _targets(draw: Any, sizes: Any, rng: Any) -> Any:
    targets = np.asarray(rng.integers(0, sizes[0][-1], sizes[0][:-1]))
    if targets.size > 1 and draw(st.booleans()):
        targets[rng.random(targets.shape) < 0.4] = -100
        targets.flat[-1] = -100                         # at least one target is ignored
        targets.flat[0] = 0                             # and at least one is not
    return {"targets": targets}


def _cross_entropy(x: Any, targets: Any) -> Any:
    rows, ids = np.log(_softmax(x)).reshape(-1, x.shape[-1]), targets.reshape(-1)
    kept = np.flatnonzero(ids != -100)
    return -np.sum(rows[kept, ids[kept]]) / len(kept)


def cross_entropy_in_torch(t: Any, x: Any, targets: Any) -> Any:
    return t.nn.functional.cross_entropy(x.reshape(-1, x.shape[-1]),
                                         constant(t, targets).reshape(-1))


domain("cross_entropy", (AXES, "any", _targets), _cross_entropy, cross_entropy_in_torch)
domain("cross_entropy", (shapes(least=2, side=2).map(lambda s: [s]), "any", _targets),
       _cross_entropy, cross_entropy_in_torch, label="several-rows")


@st.composite
def _classified(draw: Any) -> Any:
    d = draw(st.integers(1, 3))
    return [(*draw(shapes(most=2, side=1)), d), (draw(st.integers(1, 4)), d)]


def _classes(draw: Any, sizes: Any, rng: Any) -> Any:
    return _targets(draw, [(*sizes[0][:-1], sizes[1][0])], rng)


def _of_linear(x: Any, weight: Any, targets: Any) -> Any:
    return _cross_entropy(np.sum(x[..., None, :] * weight, axis=-1), targets)


domain("linear_cross_entropy", (_classified(), "any", _classes), _of_linear,
       lambda t, x, weight, targets: cross_entropy_in_torch(t, x @ weight.mT, targets))


@st.composite
def _side_by_side(draw: Any) -> Any:
    heads, parts = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    lead, T, d = draw(shapes(most=2)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    return [(*lead, T, parts * heads * d)]


def _cuts(draw: Any, sizes: Any, rng: Any) -> Any:
    width = sizes[0][-1]
    parts = draw(st.sampled_from([n for n in (1, 2, 3) if width % n == 0]))
    heads = draw(st.sampled_from([n for n in (1, 2, 3) if width // parts % n == 0]))
    return {"parts": parts, "heads": heads}


def _split_heads(x: Any, parts: int, heads: int) -> Any:
    width = x.shape[-1] // parts
    d = width // heads
    cut = [[x[..., p * width + h * d:p * width + (h + 1) * d] for h in range(heads)]
           for p in range(parts)]
    return np.concatenate([np.stack(part, axis=-3).reshape(-1) for part in cut])


def _join_heads(*xs: Any) -> Any:
    return np.concatenate([x[..., h, :, :] for x in xs for h in range(x.shape[-3])], axis=-1)


def _split_heads_in_torch(t: Any, x: Any, parts: int, heads: int) -> Any:
    return tuple(part.unflatten(-1, (heads, -1)).transpose(-3, -2) for part in x.chunk(parts, -1))


domain("split_heads", (_side_by_side(), "any", _cuts), _split_heads, _split_heads_in_torch)
EQUAL = shapes(least=3, most=4, side=1).flatmap(
    lambda s: st.integers(1, 3).map(lambda n: [s] * n))
domain("join_heads", (EQUAL,), _join_heads,
       lambda t, *xs: t.cat([x.transpose(-3, -2).flatten(-2) for x in xs], -1))


def _attention(q: Any, k: Any, v: Any, mask: Any, causal: bool, scale: Any, p: float,
               key: int) -> Any:
    """The causal diagonal ends at the last key; a query that sees no key gets zeros."""
    n, m = q.shape[-2], k.shape[-2]
    scale = 1.0 / np.sqrt(np.longdouble(q.shape[-1])) if scale is None else np.longdouble(scale)
    scores = product(q, np.swapaxes(k, -1, -2)) * scale
    seen = np.arange(m) <= np.arange(n)[:, None] + (m - n) if causal else np.ones((n, m), bool)
    seen = seen if mask is None else seen & mask
    e = np.where(seen, np.exp(scores), 0.0)
    total = np.sum(e, axis=-1, keepdims=True)
    weights = e / np.where(total == 0.0, 1.0, total)
    if p > 0.0:
        weights = _dropped(weights, p, key)
    return product(weights, v)


def attention_in_torch(t: Any, q: Any, k: Any, v: Any, mask: Any = None, causal: bool = True,
                       scale: float | None = None, p: float = 0.0, key: int = 0) -> Any:
    """Attention in PyTorch from its definition; rows without keys give zeros."""
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    seen = t.ones(scores.shape[-2:], dtype=t.bool)
    if causal:
        seen = seen.tril(k.shape[-2] - q.shape[-2])
    if mask is not None:
        seen = seen & constant(t, mask)
    seen = seen.broadcast_to(scores.shape)
    scores = scores.masked_fill(~seen, t.finfo(scores.dtype).min)
    weights = t.softmax(scores, -1).masked_fill(~seen, 0.0)
    if p > 0.0:
        weights = _dropped_in_torch(t, weights, p, key)
    return weights @ v


@st.composite
def _heads(draw: Any) -> Any:
    lead, tq, tk, d, e = draw(shapes(most=2)), *[draw(st.integers(1, 3)) for _ in range(4)]
    return [(*lead, tq, d), (*lead, tk, d), (*lead, tk, e)]


def _attended(draw: Any, sizes: Any, rng: Any) -> Any:
    mask = rng.random((sizes[0][-2], sizes[1][-2])) < 0.6 if draw(st.booleans()) else None
    return {"mask": mask, "causal": draw(st.booleans()),
            "scale": draw(st.sampled_from([None, 0.7])), "p": draw(st.sampled_from([0.0, 0.3])),
            "key": draw(st.integers(0, 2**64 - 1))}


def _dropped(x: Any, p: float, key: int) -> Any:
    return x * random.keep_mask(backend.cpu, key, tuple(x.shape), p) / (1.0 - np.longdouble(p))


domain("attention", (_heads(), "any", _attended), _attention, attention_in_torch)


def _plain(draw: Any, sizes: Any, rng: Any) -> Any:
    return {"mask": None, "causal": True, "scale": None, "p": 0.0, "key": 0}


# no heads at all, which `_heads` seldom draws for queries that could be cut into tiles
domain("attention", (st.just([(0, 2, 2), (0, 2, 2), (0, 2, 3)]), "any", _plain),
       _attention, attention_in_torch, label="empty")


def _drops(draw: Any, sizes: Any, rng: Any) -> Any:
    return {"p": draw(st.sampled_from([0.1, 0.5])), "key": draw(st.integers(0, 2**64 - 1))}


def _dropped_in_torch(t: Any, x: Any, p: float, key: int) -> Any:
    return x * constant(t, random.keep_mask(backend.cpu, key, tuple(x.shape), p)) / (1.0 - p)


domain("dropout_op", (ANY, "any", _drops), _dropped, _dropped_in_torch)
