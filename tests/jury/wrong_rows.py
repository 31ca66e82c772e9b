"""Wrong functions of rows: softmaxes, sums, variances and norms."""
from __future__ import annotations

import numpy as np

import minigrad as mg
from minigrad.testing import arrays, shapes

from .entry import wrong

ROWS = shapes(least=1, side=1)


# ── large and offset numbers ──
@wrong("tensorflow/tensorflow#10142")
def softmax_without_shift(check):
    """The exponential is taken without subtracting the maximum: inf/inf at large numbers."""
    def softmax(x):
        e = np.exp(x)
        return e / e.sum(-1, keepdims=True)

    def softmax_vjp(g, x):
        p = softmax(x)
        return p * (g - (g * p).sum(-1, keepdims=True))

    check(softmax, arrays(ROWS), vjp=softmax_vjp)


@wrong("dwavesystems/dwave-optimization#555")
def logsumexp_without_shift(check):
    """The value is inf from 89 on in float32, where it should be 89."""
    def lse(x):
        return np.log(np.exp(x).sum(-1))

    check(lse, arrays(ROWS), vjp=lambda g, x: g[..., None] * np.exp(x - lse(x)[..., None]),
          definition=lambda x: mg.logsumexp(x, axis=-1))


@wrong("tracel-ai/burn#5607")
def layer_norm_by_two_moments(check):
    """The variance is E[x²] − E[x]², which cancels where the mean is large."""
    def stats(x):
        mean = x.mean(-1, keepdims=True)
        var = np.maximum((x * x).mean(-1, keepdims=True) - mean * mean, 0)
        return x - mean, 1 / np.sqrt(var + 1e-5)

    def layer_norm(x):
        centred, rstd = stats(x)
        return centred * rstd

    def vjp(g, x):
        centred, rstd = stats(x)
        n = centred * rstd
        return rstd * (g - g.mean(-1, keepdims=True) - n * (g * n).mean(-1, keepdims=True))

    check(layer_norm, arrays(ROWS), vjp=vjp)


# ── tails ──
@wrong("halide/Halide#656")
def sum_without_the_tail(check):
    """Rows longer than 32 are summed in blocks of 32, and what is left over is forgotten."""
    def total(x):
        n = x.shape[-1]
        return x[..., :n if n < 32 else n - n % 32].sum(-1)

    check(total, arrays(ROWS), vjp=lambda g, x: np.repeat(g[..., None], x.shape[-1], -1))


@wrong()
def softmax_vjp_without_the_tail(check):
    """The dot product of the VJP drops the columns past a multiple of 8."""
    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def vjp(g, x):
        p, n = softmax(x), x.shape[-1]
        k = n if n < 8 else n - n % 8
        return p * (g - (g[..., :k] * p[..., :k]).sum(-1, keepdims=True))

    check(softmax, arrays((4, 100)), vjp=vjp, definition=mg.softmax, dtypes=["float32"])


@wrong()
def softmax_is_zeros(check):
    """A kernel that was never launched leaves zeros, in value and VJP."""
    def zeros(*a):
        return np.zeros_like(a[-1])

    check(zeros, arrays((8, 128)), vjp=zeros, definition=mg.softmax, dtypes=["float32"])


# ── axes and counts ──
@wrong("pytorch/pytorch#1813")
def softmax_vjp_over_everything(check):
    """The VJP sums over all numbers instead of each row's."""
    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def vjp(g, x):
        p = softmax(x)
        return p * (g - (g * p).sum())

    check(softmax, arrays(ROWS), vjp=vjp)


@wrong()
def mean_with_the_gradient_of_a_sum(check):
    """The gradient of a mean lacks its 1/n."""
    check(lambda x: x.mean(-1), arrays(ROWS),
          vjp=lambda g, x: np.broadcast_to(np.asarray(g)[..., None], x.shape))


@wrong("camlab-ethz/poseidon#6")
def variance_with_another_ddof(check):
    """The value divides by n, the gradient by n − 1."""
    def vjp(g, x):
        d = x - x.mean(-1, keepdims=True)
        return 2 * d * g[..., None] / max(x.shape[-1] - 1, 1)

    check(lambda x: x.var(-1), arrays(ROWS), vjp=vjp)
