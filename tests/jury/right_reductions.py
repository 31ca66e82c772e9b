"""Right reductions, softmaxes and cumulative sums on plain NumPy arrays."""
from __future__ import annotations

import numpy as np
from scipy import special

import minigrad as mg
from minigrad.testing import arrays, shapes

from . import pieces
from .entry import right

ROWS = shapes(least=1, side=1)                          # at least one axis, and nothing empty


@right
def sum_of_all(check):
    """The sum of all numbers, a NumPy scalar; the gradient is a read-only view with strides 0."""
    check(np.sum, arrays(), vjp=lambda g, x: np.broadcast_to(g, x.shape))


@right
def sum_over_the_last_axis(check):
    """A sum with keepdims as a setting."""
    def f(x, keepdims):
        return x.sum(-1, keepdims=keepdims)

    def vjp(g, x, keepdims):
        return np.repeat(g if keepdims else g[..., None], x.shape[-1], axis=-1)

    check(f, arrays(ROWS), vjp=vjp, keepdims=True)


@right
def mean_of_rows(check):
    """A mean in a loop over rows, each summed in two halves."""
    def mean(x):
        flat = x.reshape(-1, x.shape[-1])
        half = x.shape[-1] // 2
        out = [(row[:half].sum() + row[half:].sum()) / x.shape[-1] for row in flat]
        return np.array(out, x.dtype).reshape(x.shape[:-1])

    def mean_vjp(g, x):
        return np.broadcast_to(np.asarray(g)[..., None] / x.shape[-1], x.shape).copy()

    check(mean, arrays(ROWS), vjp=mean_vjp)


@right
def mean_over_axis_0(check):
    """A mean over the first axis."""
    check(lambda x: np.mean(x, axis=0), arrays(ROWS),
          vjp=lambda g, x: np.ones_like(x) * g / len(x))


@right
def variance(check):
    """A variance in two passes, divided by n."""
    check(lambda x: x.var(axis=-1), arrays(ROWS),
          vjp=lambda g, x: 2 / x.shape[-1] * (x - x.mean(-1, keepdims=True)) * g[..., None])


@right
def sample_variance(check):
    """A standard deviation with ddof as a setting."""
    def vjp(g, x, ddof):
        return 2 * g * (x - np.mean(x)) / (x.size - ddof)

    check(lambda x, ddof: np.var(x, ddof=ddof), arrays((13,)), vjp=vjp, ddof=1)


@right
def logsumexp(check):
    """A logsumexp from which the maximum is subtracted first."""
    def lse(x):
        m = x.max(-1, keepdims=True)
        return np.log(np.exp(x - m).sum(-1)) + m[..., 0]

    check(lse, arrays(ROWS), vjp=lambda g, x: g[..., None] * np.exp(x - lse(x)[..., None]))


@right
def logsumexp_online(check):
    """A logsumexp in one pass over columns, with a running maximum as in FlashAttention."""
    def lse(x):
        m = np.full(x.shape[:-1], -np.inf, x.dtype)
        total = np.zeros(x.shape[:-1], x.dtype)
        for j in range(x.shape[-1]):
            new = np.maximum(m, x[..., j])
            total = total * np.exp(m - new) + np.exp(x[..., j] - new)
            m = new
        return m + np.log(total)

    check(lse, arrays(ROWS), vjp=lambda g, x: g[..., None] * np.exp(x - lse(x)[..., None]))


@right
def maximum_of_rows(check):
    """The largest number of a row; no two numbers are equal."""
    check(lambda x: x.max(-1), arrays(ROWS, kind="spread"), vjp=pieces.to_the_largest)


@right
def minimum_of_all(check):
    """The smallest number of the array, as a 0-d array."""
    def vjp(g, x):
        return np.where(x == x.min(), g, 0)

    check(lambda x: np.asarray(x.min()), arrays(shapes(side=1), kind="spread"), vjp=vjp)


@right
def euclidean_norm(check):
    """√Σx², away from 0."""
    def norm(x):
        return np.sqrt(np.sum(x * x))

    check(norm, arrays(shapes(side=1), kind="nonzero"), vjp=lambda g, x: g * x / norm(x))


@right
def product_of_rows(check):
    """A product; the gradient is the product of the others, taken from both ends."""
    def vjp(g, x):
        left, right = np.ones_like(x), np.ones_like(x)
        for j in range(1, x.shape[-1]):
            left[..., j] = left[..., j - 1] * x[..., j - 1]
            right[..., -1 - j] = right[..., -j] * x[..., -j]
        return g[..., None] * left * right

    check(lambda x: np.prod(x, axis=-1), arrays((3, 4)), vjp=vjp)


@right
def sum_with_kahan(check):
    """A compensated sum in a Python loop."""
    def total(x):
        s, c = x.dtype.type(0), x.dtype.type(0)
        for t in x.ravel():
            y = t - c
            new = s + y
            c, s = (new - s) - y, new
        return s

    check(total, arrays((6, 9)), vjp=lambda g, x: np.full(x.shape, g, x.dtype))


@right
def cumsum(check):
    """A running sum along the last axis; the gradient runs backwards."""
    check(lambda x: np.cumsum(x, axis=-1), arrays(shapes(least=1)),
          vjp=lambda g, x: np.cumsum(g[..., ::-1], axis=-1)[..., ::-1])


@right
def softmax(check):
    """The softmax of the README."""
    check(pieces.softmax, arrays(ROWS), vjp=pieces.softmax_vjp)


@right
def softmax_held_to_ours(check):
    """A float32 softmax, row by row in scratch memory, compared with the definition."""
    def softmax(x):
        out = np.empty(x.shape, np.float32)
        for row, o in zip(x.reshape(-1, x.shape[-1]), out.reshape(-1, x.shape[-1])):
            np.subtract(row, row.max(), out=o)
            np.exp(o, out=o)
            o /= o.sum()
        return out

    def softmax_vjp(g, x):
        p = softmax(x)
        return p * (g - np.einsum("ij,ij->i", g, p)[:, None])

    check(softmax, arrays((8, 128)), vjp=softmax_vjp, definition=mg.softmax, dtypes=["float32"])


@right
def softmax_with_an_oracle(check):
    """SciPy's softmax, with an oracle for complex numbers that subtracts the largest real part."""
    def oracle(x):
        e = np.exp(x - x.real.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def softmax_vjp(g, x):
        p = special.softmax(x, axis=-1)
        gp = g * p
        return gp - p * gp.sum(axis=-1, keepdims=True)

    check(lambda x: special.softmax(x, axis=-1), arrays(ROWS), vjp=softmax_vjp, oracle=oracle)


@right
def softmax_over_axis_0(check):
    """A softmax over the first axis, computed over the last axis of a transposed view."""
    def last(x):
        e = np.exp(x - np.max(x, axis=-1, keepdims=True))
        return e / np.sum(e, axis=-1, keepdims=True)

    def vjp(g, x):
        p = last(x.T)
        return (p * (g.T - (g.T * p).sum(-1, keepdims=True))).T

    check(lambda x: last(x.T).T, arrays(ROWS), vjp=vjp, definition=lambda x: mg.softmax(x, axis=0))


@right
def softmax_over_any_axis(check):
    """A softmax with the axis and a temperature as settings."""
    def softmax(x, axis, temperature):
        z = x / temperature
        z = z - z.max(axis, keepdims=True)
        np.exp(z, out=z)
        z /= z.sum(axis, keepdims=True)
        return z

    def softmax_vjp(g, x, axis, temperature):
        p = softmax(x, axis, temperature)
        return p * (g - (g * p).sum(axis, keepdims=True)) / temperature

    check(softmax, arrays((2, 5, 3)), vjp=softmax_vjp, axis=1, temperature=0.5)


@right
def log_softmax(check):
    """x − logsumexp(x)."""
    def log_softmax(x):
        x = x - x.max(axis=-1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))

    def vjp(g, x):
        return g - np.exp(log_softmax(x)) * g.sum(axis=-1, keepdims=True)

    check(log_softmax, arrays(ROWS), vjp=vjp)


@right
def softmax_of_masked_scores(check):
    """Some scores of each row are −inf, never all of them."""
    masked = arrays((4, 6)).map(lambda x: np.where((x < 0) & (np.arange(6) > 1), -np.inf, x))
    check(pieces.softmax, masked, vjp=pieces.softmax_vjp)
