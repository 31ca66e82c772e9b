"""Right normalisations, attentions and losses on plain NumPy arrays."""
from __future__ import annotations

import math

import numpy as np

import minigrad as mg
from minigrad.testing import arrays, shapes

from .entry import right
from .pieces import nll, nll_vjp, softmax

ROWS = shapes(least=1, side=1)
Q, K, V = (arrays((2, 3, 5, 4)) for _ in range(3))      # [batch, heads, positions, size of a head]


# ── normalisations ──
@right
def layer_norm_without_weights(check):
    """LayerNorm in two passes; eps is a setting."""
    def norm(x, eps):
        d = x - x.mean(-1, keepdims=True)
        return d / np.sqrt((d * d).mean(-1, keepdims=True) + eps)

    def norm_vjp(g, x, eps):
        d = x - x.mean(-1, keepdims=True)
        r = 1 / np.sqrt((d * d).mean(-1, keepdims=True) + eps)
        n = d * r
        return r * (g - g.mean(-1, keepdims=True) - n * (g * n).mean(-1, keepdims=True))

    check(norm, arrays(ROWS), vjp=norm_vjp, eps=1e-5)


@right
def layer_norm(check):
    """LayerNorm with weight and bias, compared with the definition."""
    def forward(x, w, b):
        mu = np.mean(x, axis=-1, keepdims=True)
        rstd = 1 / np.sqrt(np.var(x, axis=-1, keepdims=True) + 1e-5)
        return (x - mu) * rstd * w + b

    def backward(dy, x, w, b):
        mu = np.mean(x, axis=-1, keepdims=True)
        rstd = 1 / np.sqrt(np.var(x, axis=-1, keepdims=True) + 1e-5)
        xhat, n = (x - mu) * rstd, x.shape[-1]
        wdy = dy * w
        c1, c2 = (xhat * wdy).sum(-1, keepdims=True) / n, wdy.sum(-1, keepdims=True) / n
        rows = dy.reshape(-1, n)
        return (wdy - xhat * c1 - c2) * rstd, (dy * xhat).reshape(-1, n).sum(0), rows.sum(0)

    check(forward, arrays((4, 3, 16)), arrays((16,)), arrays((16,)), vjp=backward,
          definition=mg.layer_norm)


@right
def layer_norm_by_welford(check):
    """Mean and variance in one pass over the columns, by Welford's update."""
    def stats(x):
        mean, m2 = np.zeros(x.shape[:-1], x.dtype), np.zeros(x.shape[:-1], x.dtype)
        for j in range(x.shape[-1]):
            delta = x[..., j] - mean
            mean = mean + delta / (j + 1)
            m2 = m2 + delta * (x[..., j] - mean)
        return mean[..., None], 1 / np.sqrt(m2[..., None] / x.shape[-1] + 1e-5)

    def norm(x):
        mean, rstd = stats(x)
        return (x - mean) * rstd

    def norm_vjp(g, x):
        mean, rstd = stats(x)
        n = (x - mean) * rstd
        return rstd * (g - g.mean(-1, keepdims=True) - n * (g * n).mean(-1, keepdims=True))

    check(norm, arrays((6, 20)), vjp=norm_vjp)


@right
def rms_norm(check):
    """x/√(mean x² + eps)·w."""
    def forward(x, w, eps):
        return x / np.sqrt(np.mean(x ** 2, -1, keepdims=True) + eps) * w

    def backward(g, x, w, eps):
        r = 1 / np.sqrt(np.mean(x ** 2, -1, keepdims=True) + eps)
        gw = g * w
        dx = r * gw - x * r ** 3 * np.mean(gw * x, -1, keepdims=True)
        return dx, np.sum(g * x * r, axis=tuple(range(x.ndim - 1)))

    check(forward, arrays((3, 5, 8)), arrays((8,)), vjp=backward, eps=1e-6)


@right
def group_norm(check):
    """[batch, channels, positions] in groups of channels, with weight and bias by channel."""
    def parts(x, groups):
        z = x.reshape(x.shape[0], groups, -1)
        d = z - z.mean(-1, keepdims=True)
        return d, 1 / np.sqrt(np.square(d).mean(-1, keepdims=True) + 1e-5)

    def forward(x, w, b, groups):
        d, r = parts(x, groups)
        return (d * r).reshape(x.shape) * w[:, None] + b[:, None]

    def backward(g, x, w, b, groups):
        d, r = parts(x, groups)
        n = d * r
        gw = (g * w[:, None]).reshape(n.shape)
        dx = r * (gw - gw.mean(-1, keepdims=True) - n * (gw * n).mean(-1, keepdims=True))
        return dx.reshape(x.shape), (g * n.reshape(x.shape)).sum((0, 2)), g.sum((0, 2))

    check(forward, arrays((2, 6, 5)), arrays((6,)), arrays((6,)), vjp=backward, groups=3)


@right
def batch_norm(check):
    """Batch normalisation in training: each column is normalised over the batch."""
    def norm(x):
        return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)

    def norm_vjp(g, x):
        m, r = len(x), 1 / np.sqrt(x.var(0) + 1e-5)
        n = (x - x.mean(0)) * r
        return r / m * (m * g - g.sum(0) - n * (g * n).sum(0))

    check(norm, arrays((12, 5)), vjp=norm_vjp)


@right
def l2_normalise(check):
    """Rows divided by their length, for rows away from 0."""
    def f(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def vjp(g, x):
        length = np.linalg.norm(x, axis=-1, keepdims=True)
        y = x / length
        return (g - y * np.sum(g * y, -1, keepdims=True)) / length

    check(f, arrays(ROWS, kind="nonzero"), vjp=vjp)


# ── attention ──
def attention_vjp(g, q, k, v, p, scale):
    """The gradients of softmax(scale·q kᵀ) v, given the weights p."""
    dp = g @ v.swapaxes(-1, -2)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * scale
    return ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ g


@right
def attention(check):
    """softmax(q kᵀ/√d) v."""
    def weights(q, k):
        return softmax(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]))

    def forward(q, k, v):
        return weights(q, k) @ v

    def backward(g, q, k, v):
        return attention_vjp(g, q, k, v, weights(q, k), 1 / math.sqrt(q.shape[-1]))

    check(forward, Q, K, V, vjp=backward)


@right
def causal_attention(check):
    """Causal attention with a scale as a setting, compared with the definition."""
    def weights(q, k, scale):
        s = np.matmul(q, np.swapaxes(k, -1, -2)) * scale
        t = s.shape[-1]
        return softmax(np.where(np.tril(np.ones((t, t), bool)), s, -np.inf))

    def forward(q, k, v, scale):
        return np.matmul(weights(q, k, scale), v)

    def backward(g, q, k, v, scale):
        return attention_vjp(g, q, k, v, weights(q, k, scale), scale)

    check(forward, Q, K, V, vjp=backward, scale=0.3,
          definition=lambda q, k, v, scale: mg.attention(q, k, v, causal=True, scale=scale))


@right
def attention_in_tiles(check):
    """Keys in tiles of 3 with a running maximum and sum; backward from the log-sum-exp."""
    def run(q, k, v):
        scale = q.shape[-1] ** -0.5
        m = np.full((len(q), 1), -np.inf, q.dtype)
        total, out = np.zeros((len(q), 1), q.dtype), np.zeros((len(q), v.shape[1]), q.dtype)
        for j in range(0, len(k), 3):
            s = q @ k[j:j + 3].T * scale
            new = np.maximum(m, s.max(1, keepdims=True))
            p, old = np.exp(s - new), np.exp(m - new)
            total = total * old + p.sum(1, keepdims=True)
            out = out * old + p @ v[j:j + 3]
            m = new
        return out / total, m + np.log(total)

    def backward(g, q, k, v):
        out, lse = run(q, k, v)
        scale = q.shape[-1] ** -0.5
        inner = (g * out).sum(1, keepdims=True)
        dq, dk, dv = (np.zeros(a.shape, a.dtype) for a in (q, k, v))
        for j in range(0, len(k), 3):
            kj, vj = k[j:j + 3], v[j:j + 3]
            p = np.exp(q @ kj.T * scale - lse)
            ds = p * (g @ vj.T - inner) * scale
            dq += ds @ kj
            dk[j:j + 3] = ds.T @ q
            dv[j:j + 3] = p.T @ g
        return dq, dk, dv

    check(lambda q, k, v: run(q, k, v)[0], arrays((6, 4)), arrays((11, 4)), arrays((11, 5)),
          vjp=backward)


@right
def attention_of_one_query(check):
    """A step of decoding: one query, and keys and values of the past."""
    def forward(q, k, v):
        p = softmax(k @ q / math.sqrt(len(q)))
        return p @ v

    def backward(g, q, k, v):
        p = softmax(k @ q / math.sqrt(len(q)))
        dp = v @ g
        ds = p * (dp - p @ dp) / math.sqrt(len(q))
        return ds @ k, np.outer(ds, q), np.outer(p, g)

    check(forward, arrays((8,)), arrays((9, 8)), arrays((9, 6)), vjp=backward)


# ── losses ──
@right
def cross_entropy(check):
    """The mean over rows, with integer targets as a setting."""
    targets = np.array([1, 0, 4, 4, 2, 3])

    check(nll, arrays((6, 5)), vjp=nll_vjp, targets=targets, definition=mg.cross_entropy)


@right
def cross_entropy_with_smoothing(check):
    """Cross-entropy with soft targets, numbers from 0 to 1, as in label smoothing."""
    def forward(x, smoothing):
        n = x.shape[-1]
        target = np.full(n, smoothing / n, x.dtype)
        target[0] += 1 - smoothing
        m = x.max(-1)
        lse = np.log(np.exp(x - m[..., None]).sum(-1)) + m
        return (lse - x @ target).sum()

    def backward(g, x, smoothing):
        d = softmax(x) - smoothing / x.shape[-1]
        d[..., 0] -= 1 - smoothing
        return g * d

    check(forward, arrays((3, 7)), vjp=backward, smoothing=0.1)


@right
def mean_squared_error(check):
    """The mean squared error of two arrays of one shape."""
    def vjp(g, x, y):
        d = 2 * g * (x - y) / x.size
        return d, -d

    check(lambda x, y: np.mean((x - y) ** 2), arrays((4, 6)), arrays((4, 6)), vjp=vjp)


@right
def binary_cross_entropy_with_logits(check):
    """max(x, 0) − x·t + log(1 + e^−|x|), the mean; both arguments have gradients."""
    def forward(x, t):
        return np.mean(np.maximum(x, 0) - x * t + np.log1p(np.exp(-np.abs(x))))

    def backward(g, x, t):
        return g * (1 / (1 + np.exp(-x)) - t) / x.size, -g * x / x.size

    check(forward, arrays((5, 4)), arrays((5, 4)), vjp=backward)


@right
def huber(check):
    """Huber loss: quadratic near 0, linear beyond δ; no example lies where the two meet."""
    def forward(x, delta):
        a = np.abs(x)
        return np.where(a <= delta, x * x / 2, delta * (a - delta / 2)).sum()

    check(forward, arrays(shapes(), avoid=[-1.0, 1.0]), delta=1.0,
          vjp=lambda g, x, delta: g * np.clip(x, -delta, delta))


@right
def kl_divergence(check):
    """KL(softmax(a) ‖ softmax(b)) of two rows of logits."""
    def logs(x):
        z = x - x.max()
        return z - np.log(np.exp(z).sum())

    def forward(a, b):
        la, lb = logs(a), logs(b)
        return np.dot(np.exp(la), la - lb)

    def backward(g, a, b):
        la, lb = logs(a), logs(b)
        p, q = np.exp(la), np.exp(lb)
        return g * p * (la - lb - p @ (la - lb)), g * (q - p)

    check(forward, arrays((9,)), arrays((9,)), vjp=backward)


@right
def cosine_similarity(check):
    """The cosine similarity of the rows of two arrays, away from 0."""
    def forward(x, y):
        return (x * y).sum(-1) / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1))

    def one(g, x, y):
        nx, ny = np.linalg.norm(x, axis=-1), np.linalg.norm(y, axis=-1)
        c = (x * y).sum(-1) / (nx * ny)
        return (g / nx)[..., None] * (y / ny[..., None] - c[..., None] * x / nx[..., None])

    check(forward, arrays((3, 6), kind="nonzero"), arrays((3, 6), kind="nonzero"),
          vjp=lambda g, x, y: (one(g, x, y), one(g, y, x)))
