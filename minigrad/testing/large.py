"""The NumPy kernels at real sizes, in float32, compared with definitions in float64.

The arrays of a case are so large that a kernel needs several blocks, tiles and chunks. A case
yields tuples (what, found, truth, n): a name, an array of float32, the same array computed by a
definition in float64, and n, the length of the longest sum in it.

Rounding errors behave statistically. If n terms are added one after the other, the error is about
u√(n/6) of the size of the sum (tolerance.13). k roundings of intermediate values, each at most u,
add about u√(k/3). No number of a row may be off by more than six times the two together:

    |found − truth| ≤ 6 √(n/6 + k/3) u · max |row|,     k = 60.

For sums of 768 terms this is 73 u, or 4e-6 of the row's largest number. k is 40 as in `tolerance`,
plus 20 for attention's scores, whose error exp multiplies by their size. There are three variants:

* n may be a pair (n, m), for a mean of m numbers. Their errors average out, so k/3m replaces k/3.
  NumPy adds them pairwise in blocks, which is as accurate as a plain sum of 32 terms.
* A row may be a difference of larger numbers. Then a fifth entry of the tuple has the size √Σt² of
  the terms t before they are subtracted, and replaces the row if it is larger.
* n = 0 means that nothing is summed. Each number is then judged by its own size, or by that in the
  fifth entry, and k is 20.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import minigrad as mg

from .. import random
from ..backend import cpu
from ..fused import dropout_op
from .laws.sizes import small_sizes

ROUNDINGS = 60
Lines = Iterator[tuple[Any, ...]]
Case = Callable[..., Lines]
CASES: dict[str, tuple[tuple[str, ...], Case]] = {}     # by name: the tested kernels, and the case


def case(*kernels: str, **variants: tuple[Any, ...]) -> Callable[[Case], Case]:
    """List a function as a case for these kernels, once for each variant label=arguments.

    Without variants it is listed once and called without arguments.
    """
    def keep(f: Case) -> Case:
        for label, arguments in (variants or {"": ()}).items():
            CASES[f"{f.__name__}{'-' if label else ''}{label}"] = kernels, partial(f, *arguments)
        return f

    return keep


def judge(name: str) -> float:
    """The largest share of its bound that a case uses. AssertionError above 1."""
    return max(share for _, share in shares(name))


def shares(name: str) -> Iterator[tuple[str, float]]:
    """The name of each array of a case, and the share of its bound that its error uses.

    AssertionError above 1, and for a wrong dtype or shape.
    """
    for what, found, truth, n, *sizes in CASES[name][1]():
        a, b = (np.atleast_1d(x.numpy() if isinstance(x, mg.Tensor) else x) for x in (found, truth))
        dtype = "float64" if name.endswith("float64") else "float32"
        shown = f"{a.dtype}{list(a.shape)}"
        assert a.dtype == dtype and a.shape == b.shape, f"{name}: {what} is {shown}"
        assert np.isfinite(a).all(), f"{name}: {what} is not finite"
        length, many = n if isinstance(n, tuple) else (n, 1 if n else 3)
        size = np.abs([b, *sizes]).max(axis=0, initial=2.0**-100)
        size = size.max(axis=-1, keepdims=True) if n else size
        deviation = math.sqrt(length / 6 + ROUNDINGS / 3 / many)
        error = np.abs(a - b)
        used = float((error / (3.0 * deviation * np.finfo(dtype).eps * size)).max())
        off = f"{used:.3g} times its bound, {error.max():.3g}"
        assert used <= 1.0, f"{name}: {what} is off by {off}"
        yield what, used


def _normal(seed: int, *shapes: tuple[int, ...]) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s).astype(np.float32) for s in shapes]


def _walk(f: Callable[..., Any], g: Any, *arrays: Any) -> tuple[Any, ...]:
    """The value of f, and its gradients with respect to all arrays for the cotangent g."""
    xs = [mg.Tensor(a).requires_grad_() for a in arrays]
    y = f(*xs)
    grads = mg.gradients(y, xs, g)
    return y.detach(), *grads


def _wide(*arrays: Any) -> list[Any]:
    return [a.astype(np.float64) for a in arrays]


# ── LayerNorm ──
@case("layer_norm", "layer_norm/joint", one_768=((1,), 768), one_1600=((1, 1), 1600),
      many_768=((3, 133), 768), many_1600=((190,), 1600))
def layer_norm(lead: tuple[int, ...], d: int) -> Lines:
    """Rows whose size falls from far above √ε to below it, so that ε matters in the last rows.

    If there is only one row, ε matters in it too.
    """
    x, w, b, g = _normal(1, (*lead, d), (d,), (d,), (*lead, d))
    rows = math.prod(lead)
    sizes = np.geomspace(3.0, 3e-3, rows) if rows > 1 else np.full(1, 6e-3)
    g += 3 * np.sign(w) * x                         # so that every term of ∂x is large enough
    x = ((x + 0.5) * sizes.reshape(*lead, 1)).astype(np.float32)
    y, dx, dw, db = _walk(lambda *t: mg.layer_norm(*t, eps=2e-5), g, x, w, b)
    x, w, b, g = _wide(x, w, b, g)
    apart = x - x.mean(-1, keepdims=True)
    rstd = 1.0 / np.sqrt((apart * apart).mean(-1, keepdims=True) + 2e-5)
    normal, u = apart * rstd, g * w
    over = tuple(range(len(lead)))
    along = (u * normal).mean(-1, keepdims=True)
    yield "value", y, normal * w + b, d
    yield "∂x", dx, rstd * (u - u.mean(-1, keepdims=True) - normal * along), d
    yield "∂weight", dw, (g * normal).sum(over), max(d, rows)
    yield "∂bias", db, g.sum(over), rows


# ── attention ──
def _softmax(scores: Any) -> Any:
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@case("attention", default=(None,), scale=(0.2,))
def attention_of_one_query(scale: float | None) -> Lines:
    """A step of decoding: one query and 700 keys."""
    q, k, v = _normal(2, (2, 3, 1, 64), (2, 3, 700, 64), (2, 3, 700, 48))
    y = mg.attention(q, k, v, causal=True, scale=scale)
    lse = cpu.kernels["attention"](cpu, q, k, v, scale=scale).extra["lse"]
    q, k, v = _wide(q, k, v)
    scores = q @ k.swapaxes(-1, -2) * (scale or 1 / 8)
    yield "value", y, _softmax(scores) @ v, 700
    yield "lse", lse, np.log(np.exp(scores).sum(-1, keepdims=True)), 700


@case("attention", "attention/joint", near=(200, None, 0.0, 0.0, (1, 2, 1)), far=(300, 0.1, 0.0),
      farther=(600, None, 0.0), dropped=(600, 0.1, 0.25), shifted=(200, None, 0.0, 100.0),
      heads=(200, None, 0.0, 0.0, (2, 7)))
def causal_attention(T: int, scale: float | None, p: float, shift: float = 0.0,
                     lead: tuple[int, ...] = (2,)) -> Lines:
    """Several tiles of keys and queries; `heads` needs several groups. The last ones are not full.

    shift: is added to all scores, so that their exponentials may overflow in float32. Each of the
    64 terms of a score is then rounded by up to u·shift, and the weights have the same relative
    error. The logarithm of their sum has the weighted error of the scores, even if it is near 0.
    """
    q, k, v, g = _normal(3, (*lead, T, 64), (*lead, T, 64), (*lead, T, 32), (*lead, T, 32))
    if shift:
        q[..., 0], k[..., 0] = 8.0, shift
    how = {"causal": True, "scale": scale, "p": p, "key": 7}
    y, dq, dk, dv = _walk(lambda q, k, v: mg.attention(q, k, v, **how), g, q, k, v)
    lse = cpu.kernels["attention"](cpu, q, k, v, **how).extra["lse"]
    q, k, v, g = _wide(q, k, v, g)
    s, keep = scale or 1 / 8, random.keep_mask(cpu, 7, (*lead, T, T), p) / (1.0 - p)
    scores = np.where(np.tri(T, dtype=bool), q @ k.swapaxes(-1, -2) * s, -np.inf)
    weights = _softmax(scores)
    dw = g @ v.swapaxes(-1, -2) * keep
    ds = weights * (dw - (weights * dw).sum(-1, keepdims=True)) * s
    n = T + 6 * shift**2 * 64 / 3
    yield "value", y, (weights * keep) @ v, n
    # squares of the terms of ds, which cancel if one key has all the weight
    terms = (weights * dw * s) ** 2
    yield "∂q", dq, ds @ k, n, np.sqrt(terms @ k**2)
    yield "∂k", dk, ds.swapaxes(-1, -2) @ q, n, np.sqrt(terms.swapaxes(-1, -2) @ q**2)
    yield "∂v", dv, (weights * keep).swapaxes(-1, -2) @ g, n
    log = np.log(np.exp(scores - shift).sum(-1, keepdims=True)) + shift
    terms = (weights * (q**2 @ k.swapaxes(-1, -2)**2)).sum(-1, keepdims=True) * s**2
    yield "lse", lse, log, n, np.abs(log) + np.sqrt(terms)


# ── losses ──
def _counted(seed: int, n: int, V: int) -> tuple[Any, Any, Any]:
    """Random targets, some of which are ignored; the weight of each in the mean; and its column."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, V, n)
    targets[rng.random(n) < 0.2] = -7
    targets[0], targets[-1] = 0, V - 1
    kept = targets != -7
    return targets, kept / kept.sum(), np.where(kept, targets, 0)


@case("linear_cross_entropy", "linear_cross_entropy/x", "linear_cross_entropy/weight",
      plain=(0.0,), shifted=(100.0,))
def linear_cross_entropy(shift: float) -> Lines:
    """The classifier on four blocks of rows, of which the last is not full, each in several parts.

    shift: is added to all logits.
    """
    n, V, d = 350, 2000, 64
    x, w = _normal(4, (n, d), (V, d))
    targets, share, ids = _counted(4, n, V)
    w *= np.float32(0.1)
    x += 8 * w[ids]                                     # a loss of about 3 instead of log V
    if shift:
        x[:, 0], w[:, 0] = shift, 1.0
    more = 6 * shift**2 * d / 3                         # as in causal_attention
    with small_sizes(logits=100 * V * 4):               # 100 rows at a time; for GPT-2 it is 667
        loss, dx, dw = _walk(lambda x, w: mg.linear_cross_entropy(x, w, targets, ignore_index=-7),
                             np.float32(1.5), x, w)
    x, w = _wide(x, w)
    p = _softmax(x @ w.T)
    truth = -(share * np.log(p[np.arange(n), ids])).sum()
    yield "loss", loss, truth, (32 + more, np.count_nonzero(share))
    whole = p * 1.5 * share[:, None]
    p[np.arange(n), ids] -= 1.0
    p *= 1.5 * share[:, None]
    counts = share > 0
    yield "∂x", dx[counts], (p @ w)[counts], V + more, np.sqrt(whole**2 @ w**2)[counts]
    yield "∂x of ignored targets", dx[~counts], np.zeros(dx[~counts].shape), V
    yield "∂weight", dw, p.T @ x, n + more, np.sqrt((whole**2).T @ x**2)


@case("cross_entropy", "cross_entropy/logits")
def cross_entropy() -> Lines:
    """Logits of 350 rows in blocks of 65."""
    n, V = 350, 2000
    (z,) = _normal(5, (n, V))
    targets, share, ids = _counted(5, n, V)
    z[np.arange(n), ids] += 5.0
    loss, dz = _walk(lambda z: mg.cross_entropy(z, targets, ignore_index=-7), np.float32(1.5), z)
    p = _softmax(z.astype(np.float64))
    truth = -(share * np.log(p[np.arange(n), ids])).sum()
    yield "loss", loss, truth, (32, np.count_nonzero(share))
    p[np.arange(n), ids] -= 1.0
    yield "∂logits", dz, p * 1.5 * share[:, None], V


# ── elementwise ──
def _gelu(x: Any) -> tuple[Any, Any]:
    c, a = math.sqrt(2.0 / math.pi), 0.044715
    t = np.tanh(c * (x + a * x**3))
    slope = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * c * (1.0 + 3.0 * a * x * x)
    return 0.5 * x * (1.0 + t), slope


@case("gelu", "gelu/joint", bias=(True,), no_bias=(False,))
def gelu(biased: bool) -> Lines:
    """100 rows of GPT-2's inner width, in blocks of 42; the bias changes every number."""
    x, b, g = _normal(6, (100, 3072), (3072,), (100, 3072))
    x[0, :6] = -1e12, -200.0, -12.0, 12.0, 200.0, 1e12
    y, dx, *db = _walk(lambda *t: mg.gelu(*t, approximate="tanh"), g, x, *[b] * biased)
    x, b, g = _wide(x, b, g)
    value, slope = _gelu(x + b if biased else x)
    # for x < 0 the value is x times a small difference of larger numbers
    yield "value", y, value, 0, x + b if biased else x
    yield "∂x", dx, g * slope, 0, g
    for found in db:
        yield "∂bias", found, (g * slope).sum(0), 100


@case("dropout_op")
def dropout() -> Lines:
    """Three blocks, the last not full; the last draw of 64 bits gives only one number."""
    x, g = _normal(7, (299, 1001), (299, 1001))
    y, dx = _walk(lambda x: dropout_op(x, p=0.3, key=11), g, x)
    factor = random.keep_mask(cpu, 11, x.shape, 0.3) / 0.7
    yield "value", y, x * factor, 0
    yield "∂x", dx, g * factor, 0


# ── products ──
@case("addmm", one=(1, 1536), two=(2, 1536), many=(70, 1536), small=(5, 100))
def addmm(n: int, m: int) -> Lines:
    """A product of one row, as in decoding, and of more rows, in chunks if it is large."""
    bias, x, w, g = _normal(8, (m,), (n, 768), (768, m), (n, m))
    bias *= 30                                      # as large as the product, so that errors show
    y, db, dx, dw = _walk(mg.addmm, g, bias, x, w)
    bias, x, w, g = _wide(bias, x, w, g)
    yield "value", y, x @ w + bias, 768
    yield "∂bias", db, g.sum(0), n
    yield "∂x", dx, g @ w.T, m
    yield "∂weight", dw, x.T @ g, n


@case("packed_linear", one=(1, True), few=(5, True), no_bias=(5, False))
def packed_linear(n: int, biased: bool) -> Lines:
    """Panels of four chunks, of which the last panel is not full."""
    bias, x, w = _normal(9, (1500,), (n, 768), (768, 1500))
    bias *= 30
    y = mg.packed_linear(x, cpu.pack(w), bias if biased else None, size=1500)
    bias, x, w = _wide(bias, x, w)
    yield "value", y, x @ w + (bias if biased else 0.0), 768


@case("sum_to", "broadcast_to")
def bias_of_many_rows() -> Lines:
    """A vector broadcast to 3003 rows, whose gradients are added in parts of 128, and to 20 rows.

    The kernel copies a result as small as 20 rows, and returns a view of a larger one.
    """
    b, g, h = _normal(10, (200,), (3003, 200), (20, 200))
    y, db = _walk(lambda b: mg.broadcast_to(b, shape=(3003, 200)), g, b)
    z, dc = _walk(lambda b: mg.broadcast_to(b, shape=(20, 200)), h, b)
    yield "value", y, np.tile(b, (3003, 1)), 0
    yield "∂b", db, g.astype(np.float64).sum(0), 3003
    yield "value in 20 rows", z, np.tile(b, (20, 1)), 0
    yield "∂b of 20 rows", dc, h.astype(np.float64).sum(0), 20


@case("embedding_op/weight+")
def tied_table() -> Lines:
    """Tied weights: the rows' gradients are added into the gradient of a product."""
    w, g = _normal(11, (300, 64), (1000, 300))
    ids = np.random.default_rng(11).integers(0, 250, 1000)
    y, dw = _walk(lambda w: mg.linear(mg.embedding(ids, w), w), g, w)
    w, g = _wide(w, g)
    truth = g.T @ w[ids]
    np.add.at(truth, ids, g @ w)
    yield "value", y, w[ids] @ w.T, 64
    yield "∂weight", dw, truth, 1000


# ── the optimizer ──
@case("adamw_update", decay=(0.1, "float32"), no_decay=(0.0, "float32"), float64=(0.1, "float64"))
def adamw(weight_decay: float, dtype: str) -> Lines:
    """Two parameters, one of which has three blocks, the last of them not full.

    ε is not small compared with the smaller gradients. The laws do not test this kernel, so it is
    tested here in float64 too, against the widest float.
    """
    sizes = np.geomspace(1e-3, 1.0, 300_001)
    arrays = [[a.astype(dtype) for a in (p, g * s, m * s, (v * s) ** 2)] for n in (5, 300_001)
              for s in [sizes[-n:]] for p, g, m, v in [_normal(12, (n,), (n,), (n,), (n,))]]
    wide = np.float64 if dtype == "float32" else np.longdouble
    before = [[a.astype(wide) for a in some] for some in arrays]
    lr, b1, b2, eps, c1, c2 = 0.1, 0.9, 0.95, 0.02, 0.3, 0.15
    kinds = [list(kind) for kind in zip(*arrays)]
    cpu.kernels["adamw_update"](cpu, *kinds, lr=lr, beta1=b1, beta2=b2, eps=eps,
                                weight_decay=weight_decay, correct1=c1, correct2=c2)
    for (p, g, m, v), (p0, g0, m0, v0) in zip(arrays, before):
        m1, v1 = b1 * m0 + (1.0 - b1) * g0, b2 * v0 + (1.0 - b2) * g0 * g0
        rate = lr / c1 / (np.sqrt(v1 / c2) + eps)
        terms = rate * (b1 * np.abs(m0) + (1.0 - b1) * np.abs(g0))
        yield "gradient", g, g0, 0
        yield "first moment", m, m1, 0, g0
        yield "second moment", v, v1, 0
        yield "parameter", p, p0 * (1.0 - lr * weight_decay) - rate * m1, 0, p0, terms
