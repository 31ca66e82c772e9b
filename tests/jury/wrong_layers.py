"""Wrong normalisations, attentions and losses."""
from __future__ import annotations

import math

import numpy as np

import minigrad as mg
from minigrad.testing import arrays

from .entry import wrong
from .pieces import softmax

Q, K, V = (arrays((2, 3, 5, 4)) for _ in range(3))      # [batch, heads, positions, size of a head]


def mt(x):
    return np.swapaxes(x, -1, -2)


# ── normalisations ──
def normalised(x, eps=1e-5):
    d = x - x.mean(-1, keepdims=True)
    r = 1 / np.sqrt((d * d).mean(-1, keepdims=True) + eps)
    return d * r, r


def layer_norm(x, w, b):
    return normalised(x)[0] * w + b


def layer_norm_vjp(g, x, w, b):
    n, r = normalised(x)
    gw = g * w
    dx = r * (gw - gw.mean(-1, keepdims=True) - n * (gw * n).mean(-1, keepdims=True))
    return dx, (g * n).sum(0), g.sum(0)


SIZES = arrays((6, 10)), arrays((10,)), arrays((10,))


@wrong("AlexeyAB/darknet#4605")
def layer_norm_without_the_mean_term(check):
    """The derivative of the mean is left out of dx."""
    def vjp(g, x, w, b):
        n, r = normalised(x)
        gw = g * w
        return r * (gw - n * (gw * n).mean(-1, keepdims=True)), *layer_norm_vjp(g, x, w, b)[1:]

    check(layer_norm, *SIZES, vjp=vjp)


@wrong("openxla/xla#8225")
def layer_norm_without_the_variance_term(check):
    """The derivative of the variance is left out of dx."""
    def vjp(g, x, w, b):
        gw = g * w
        return normalised(x)[1] * (gw - gw.mean(-1, keepdims=True)), *layer_norm_vjp(g, x, w, b)[1:]

    check(layer_norm, *SIZES, vjp=vjp)


@wrong()
def layer_norm_whose_dx_forgets_the_weight(check):
    """dx is the gradient of a LayerNorm without weights."""
    def vjp(g, x, w, b):
        return layer_norm_vjp(g, x, np.ones_like(w), b)

    check(layer_norm, *SIZES, vjp=vjp)


@wrong()
def layer_norm_with_a_mean_for_the_bias(check):
    """The gradient of the bias is a mean over rows."""
    def vjp(g, x, w, b):
        return *layer_norm_vjp(g, x, w, b)[:2], g.mean(0)

    check(layer_norm, *SIZES, vjp=vjp)


@wrong()
def layer_norm_whose_weight_sees_x(check):
    """The gradient of the weight is taken with x instead of the normalised x."""
    def vjp(g, x, w, b):
        dx, _, db = layer_norm_vjp(g, x, w, b)
        return dx, (g * x).sum(0), db

    check(layer_norm, *SIZES, vjp=vjp)


@wrong()
def layer_norm_without_the_last_rows(check):
    """The gradients of weight and bias add 4 rows at a time, and leave out the last 2 of 6 rows."""
    def vjp(g, x, w, b):
        n = len(x) // 4 * 4
        return layer_norm_vjp(g, x, w, b)[0], *layer_norm_vjp(g[:n], x[:n], w, b)[1:]

    check(layer_norm, *SIZES, vjp=vjp)


@wrong("131250208/TPlinker-joint-extraction#37")
def layer_norm_with_eps_outside(check):
    """1/(√var + eps) instead of 1/√(var + eps), with the derivative of this wrong value."""
    def parts(x):
        d = x - x.mean(-1, keepdims=True)
        s = np.sqrt((d * d).mean(-1, keepdims=True))
        return d, s, 1 / (s + 1e-5)

    def vjp(g, x, w, b):
        d, s, r = parts(x)
        gw = g * w
        dx = r * (gw - gw.mean(-1, keepdims=True))
        dx -= d * r * r / s * (gw * d).mean(-1, keepdims=True)
        return dx, (g * d * r).sum(0), g.sum(0)

    check(lambda x, w, b: parts(x)[0] * parts(x)[2] * w + b, *SIZES, vjp=vjp,
          definition=mg.layer_norm)


@wrong()
def layer_norm_that_ignores_eps(check):
    """The setting `eps` is not used."""
    check(lambda x, w, b, eps: layer_norm(x, w, b), *SIZES, eps=1e-3, definition=mg.layer_norm,
          vjp=lambda g, x, w, b, eps: layer_norm_vjp(g, x, w, b))


@wrong("torchcvnn/torchcvnn#32")
def layer_norm_without_eps(check):
    """eps is forgotten: a constant row is 0/0."""
    def norm(x):
        d = x - x.mean(-1, keepdims=True)
        return d / np.sqrt((d * d).mean(-1, keepdims=True))

    def vjp(g, x):
        n = norm(x)
        r = 1 / x.std(-1, keepdims=True)
        return r * (g - g.mean(-1, keepdims=True) - n * (g * n).mean(-1, keepdims=True))

    def definition(x):
        ones = mg.tensor(np.ones(x.shape[-1], x.dtype))
        return mg.layer_norm(x, ones, ones * 0.0)

    check(norm, arrays((4, 6), kind="ties"), vjp=vjp, definition=definition)


@wrong()
def layer_norm_with_ddof_1(check):
    """The variance is divided by n − 1 instead of n, in value and gradient."""
    def parts(x):
        d, n = x - x.mean(-1, keepdims=True), x.shape[-1]
        return d, 1 / np.sqrt((d * d).sum(-1, keepdims=True) / (n - 1) + 1e-5), n

    def vjp(g, x, w, b):
        d, r, n = parts(x)
        gw = g * w
        dx = r * (gw - gw.mean(-1, keepdims=True))
        dx -= d * r ** 3 * (gw * d).sum(-1, keepdims=True) / (n - 1)
        return dx, (g * d * r).sum(0), g.sum(0)

    check(lambda x, w, b: parts(x)[0] * parts(x)[1] * w + b, *SIZES, vjp=vjp,
          definition=mg.layer_norm)


@wrong("BVLC/caffe#3878")
def batch_norm_with_constant_statistics(check):
    """The backward pass treats mean and variance of the batch as constants."""
    check(lambda x: (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), arrays((8, 3)),
          vjp=lambda g, x: g / np.sqrt(x.var(0) + 1e-5))


@wrong()
def rms_norm_with_its_derivative_halved(check):
    """The second term of dx is divided by 2."""
    def forward(x):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)

    def vjp(g, x):
        r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
        return r * g - x * r ** 3 * (g * x).mean(-1, keepdims=True) / 2

    check(forward, arrays((3, 8)), vjp=vjp)


@wrong()
def rms_norm_without_eps(check):
    """A row of zeros is 0/0."""
    def forward(x):
        return x / np.sqrt((x * x).mean(-1, keepdims=True))

    def vjp(g, x):
        r = 1 / np.sqrt((x * x).mean(-1, keepdims=True))
        return r * g - x * r ** 3 * (g * x).mean(-1, keepdims=True)

    check(forward, arrays((6, 2), kind="counts"), vjp=vjp,
          definition=lambda x: x / mg.sqrt(mg.mean(x * x, axis=-1, keepdims=True) + 1e-6))


@wrong()
def group_norm_of_every_other_channel(check):
    """Consecutive channels are put into different groups; they must be in the same one."""
    def grouped(x):
        return x.reshape(len(x), -1, 2, x.shape[-1]).swapaxes(1, 2)

    def norm(x):
        z = grouped(x)
        n = normalised(z.reshape(len(x), 2, -1))[0].reshape(z.shape)
        return n.swapaxes(1, 2).reshape(x.shape)

    def vjp(g, x):
        z, u = grouped(x).reshape(len(x), 2, -1), grouped(g).reshape(len(x), 2, -1)
        n, r = normalised(z)
        d = r * (u - u.mean(-1, keepdims=True) - n * (u * n).mean(-1, keepdims=True))
        return d.reshape(len(x), 2, -1, x.shape[-1]).swapaxes(1, 2).reshape(x.shape)

    def definition(x):
        z = mg.reshape(x, shape=(2, 2, -1))
        d = z - mg.mean(z, axis=-1, keepdims=True)
        return mg.reshape(d / mg.sqrt(mg.mean(d * d, axis=-1, keepdims=True) + 1e-5), shape=x.shape)

    check(norm, arrays((2, 4, 3)), vjp=vjp, definition=definition)


# ── attention ──
def attend(q, k, v, scale=None, keep=None):
    """The value and the weights of softmax(scale·q kᵀ) v; keep: what a query may see."""
    s = q @ mt(k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    p = softmax(s if keep is None else np.where(keep, s, -np.inf))
    return p @ v, p


def attend_vjp(g, q, k, v, p, scale=None):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    dp = g @ mt(v)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * scale
    return ds @ k, mt(ds) @ q, mt(p) @ g


def triangle(q, k, shift=0):
    return np.tril(np.ones((q.shape[-2], k.shape[-2]), bool), shift)


def causal(q, k, v):
    return mg.attention(q, k, v, causal=True)


def open_to_all(q, k, v):
    return mg.attention(q, k, v, causal=False)


@wrong("tenstorrent/tt-metal#41215")
def causal_attention_sees_one_more(check):
    """The triangle has one diagonal too many."""
    check(lambda q, k, v: attend(q, k, v, keep=triangle(q, k, 1))[0], Q, K, V, definition=causal,
          vjp=lambda g, q, k, v: attend_vjp(g, q, k, v, attend(q, k, v, keep=triangle(q, k, 1))[1]))


@wrong()
def causal_attention_not_of_itself(check):
    """The triangle has one diagonal too few; the first query sees nothing and gets zeros."""
    def weights(q, k, v):
        p = attend(q, k, v, keep=triangle(q, k, -1) | (np.arange(k.shape[-2]) == 0))[1]
        return np.where(triangle(q, k, -1), p, 0)

    check(lambda q, k, v: weights(q, k, v) @ v, Q, K, V, definition=causal,
          vjp=lambda g, q, k, v: attend_vjp(g, q, k, v, weights(q, k, v)))


@wrong("flashinfer-ai/flashinfer#348")
def causal_attention_from_the_first_key(check):
    """With fewer queries than keys, the triangle starts at the first key."""
    check(lambda q, k, v: attend(q, k, v, keep=triangle(q, k))[0],
          arrays((3, 4)), arrays((5, 4)), arrays((5, 4)), definition=causal,
          vjp=lambda g, q, k, v: attend_vjp(g, q, k, v, attend(q, k, v, keep=triangle(q, k))[1]))


@wrong("facebookresearch/xformers#103")
def causal_attention_masked_forward_alone(check):
    """The backward pass forgets the mask."""
    check(lambda q, k, v: attend(q, k, v, keep=triangle(q, k))[0], Q, K, V,
          vjp=lambda g, q, k, v: attend_vjp(g, q, k, v, attend(q, k, v)[1]))


@wrong()
def causal_attention_masked_afterwards(check):
    """The mask is applied after the softmax, so that the weights do not add up to 1."""
    def weights(q, k, v):
        return attend(q, k, v)[1] * triangle(q, k)

    def vjp(g, q, k, v):
        p, full = weights(q, k, v), attend(q, k, v)[1]
        dp = (g @ mt(v)) * triangle(q, k)
        ds = full * (dp - (dp * full).sum(-1, keepdims=True)) * q.shape[-1] ** -0.5
        return ds @ k, mt(ds) @ q, mt(p) @ g

    check(lambda q, k, v: weights(q, k, v) @ v, Q, K, V, vjp=vjp, definition=causal)


@wrong()
def causal_attention_with_minus_ten(check):
    """The mask adds −10 instead of −inf, so masked keys still have small weights."""
    def weights(q, k, v):
        return softmax(q @ mt(k) / 2 + np.where(triangle(q, k), 0, -10).astype(q.dtype))

    check(lambda q, k, v: weights(q, k, v) @ v, Q, K, V, definition=causal,
          vjp=lambda g, q, k, v: attend_vjp(g, q, k, v, weights(q, k, v)))


@wrong("lucidrains/vit-pytorch#65")
def attention_scaled_by_1_over_d(check):
    """Scores are divided by d instead of √d."""
    check(lambda q, k, v: attend(q, k, v, 1 / q.shape[-1])[0], Q, K, V, definition=open_to_all,
          vjp=lambda g, q, k, v: attend_vjp(g, q, k, v, attend(q, k, v, 1 / q.shape[-1])[1],
                                            1 / q.shape[-1]))


@wrong("lucidrains/denoising-diffusion-pytorch#314")
def attention_that_ignores_its_scale(check):
    """The setting `scale` is not used."""
    check(lambda q, k, v, scale: attend(q, k, v)[0], Q, K, V, scale=0.3,
          vjp=lambda g, q, k, v, scale: attend_vjp(g, q, k, v, attend(q, k, v)[1]),
          definition=lambda q, k, v, scale: mg.attention(q, k, v, causal=False, scale=scale))


@wrong()
def attention_with_dk_unscaled(check):
    """The gradient of the keys lacks the scale."""
    def vjp(g, q, k, v):
        dq, dk, dv = attend_vjp(g, q, k, v, attend(q, k, v)[1])
        return dq, dk * math.sqrt(q.shape[-1]), dv

    check(lambda q, k, v: attend(q, k, v)[0], Q, K, V, vjp=vjp)


@wrong()
def attention_with_dq_and_dk_swapped(check):
    """The gradients of queries and keys are returned in the wrong order."""
    def vjp(g, q, k, v):
        dq, dk, dv = attend_vjp(g, q, k, v, attend(q, k, v)[1])
        return dk, dq, dv

    check(lambda q, k, v: attend(q, k, v)[0], Q, K, V, vjp=vjp)


@wrong()
def attention_with_dv_not_transposed(check):
    """dv is p g instead of pᵀ g; for as many keys as queries the shapes are the same."""
    def vjp(g, q, k, v):
        p = attend(q, k, v)[1]
        return *attend_vjp(g, q, k, v, p)[:2], p @ g

    check(lambda q, k, v: attend(q, k, v)[0], Q, K, V, vjp=vjp)


@wrong()
def attention_without_shift(check):
    """The maximum is not subtracted from the scores before the exponential."""
    def weights(q, k):
        e = np.exp(q @ mt(k) / math.sqrt(q.shape[-1]))
        return e / e.sum(-1, keepdims=True)

    check(lambda q, k, v: weights(q, k) @ v, Q, K, V,
          vjp=lambda g, q, k, v: attend_vjp(g, q, k, v, weights(q, k)))


@wrong()
def attention_of_whole_tiles(check):
    """Keys are read in tiles of 4, and a last tile that is not full is left out, also backward."""
    def tiles(k):
        return k[:len(k) // 4 * 4]

    def vjp(g, q, k, v):
        dq, dk, dv = attend_vjp(g, q, tiles(k), tiles(v), attend(q, tiles(k), tiles(v))[1])
        rest = ((0, len(k) - len(dk)), (0, 0))
        return dq, np.pad(dk, rest), np.pad(dv, rest)

    check(lambda q, k, v: attend(q, tiles(k), tiles(v))[0],
          arrays((6, 4)), arrays((11, 4)), arrays((11, 4)), vjp=vjp, definition=open_to_all)


@wrong()
def attention_that_does_not_rescale(check):
    """Tiles with a running maximum, but earlier sums are not rescaled when the maximum grows."""
    def forward(q, k, v):
        m, total, out = -np.inf, 0, 0
        for j in range(0, len(k), 4):
            s = q @ k[j:j + 4].T * q.shape[-1] ** -0.5
            m = np.maximum(m, s.max(1, keepdims=True))
            p = np.exp(s - m)
            total, out = total + p.sum(1, keepdims=True), out + p @ v[j:j + 4]
        return out / total

    check(forward, arrays((6, 4)), arrays((12, 4)), arrays((12, 4)),
          vjp=lambda g, q, k, v: attend_vjp(g, q, k, v, attend(q, k, v)[1]))
