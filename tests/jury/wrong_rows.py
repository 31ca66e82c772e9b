"""Wrong functions of rows: softmaxes, sums, variances, extremes and running sums."""
from __future__ import annotations

import numpy as np

import minigrad as mg
from minigrad.testing import arrays, shapes

from .entry import wrong
from .pieces import over_rows, softmax, softmax_vjp, to_the_largest

ROWS = shapes(least=1, side=1)


# ── large, spread and offset numbers ──
@wrong("tensorflow/tensorflow#10142")
def softmax_without_shift(check):
    """The maximum is not subtracted before the exponential: large numbers give inf/inf."""
    def naive(x):
        e = np.exp(x)
        return e / e.sum(-1, keepdims=True)

    def vjp(g, x):
        p = naive(x)
        return p * (g - (g * p).sum(-1, keepdims=True))

    check(naive, arrays(ROWS), vjp=vjp)


@wrong("FluxML/NNlib.jl#43")
def softmax_shifted_by_a_maximum_with_zero(check):
    """max(0, largest) is subtracted, so a row of very negative numbers is 0/0."""
    def shifted(x):
        e = np.exp(x - np.maximum(x.max(-1, keepdims=True), 0))
        return e / e.sum(-1, keepdims=True)

    def vjp(g, x):
        p = shifted(x)
        return p * (g - (g * p).sum(-1, keepdims=True))

    check(shifted, arrays(ROWS), vjp=vjp)


@wrong()
def softmax_shifted_by_the_largest_of_all(check):
    """The maximum is that of the whole array, so a row far below it is 0/0."""
    def shifted(x):
        e = np.exp(x - x.max())
        return e / e.sum(-1, keepdims=True)

    check(shifted, arrays((4, 6)), vjp=softmax_vjp, definition=mg.softmax)


@wrong()
def log_softmax_of_a_softmax(check):
    """log(softmax(x)) is −inf where softmax(x) is 0 in floating point."""
    check(lambda x: np.log(softmax(x)), arrays(ROWS), definition=mg.log_softmax,
          vjp=lambda g, x: g - softmax(x) * g.sum(-1, keepdims=True))


@wrong("dwavesystems/dwave-optimization#555")
def logsumexp_without_shift(check):
    """The value is inf from 89 on in float32, where it should be 89."""
    def lse(x):
        return np.log(np.exp(x).sum(-1))

    check(lse, arrays(ROWS), vjp=lambda g, x: g[..., None] * np.exp(x - lse(x)[..., None]),
          definition=lambda x: mg.logsumexp(x, axis=-1))


@wrong("rmcgibbo/logsumexp#2")
def logsumexp_of_masked_rows(check):
    """A row of −inf alone gives NaN, where it should give −inf."""
    def lse(x):
        m = x.max(-1, keepdims=True)
        return np.log(np.exp(x - m).sum(-1)) + m[..., 0]

    masked = arrays((5, 3)).map(lambda x: np.where(x < 0.3, -np.inf, x))
    check(lse, masked, vjp=lambda g, x: over_rows(g, x) * softmax(x),
          definition=lambda x: mg.logsumexp(x, axis=-1))


@wrong("microsoft/onnxruntime#28463")
def variance_by_two_moments(check):
    """E[x²] − E[x]², which cancels where the mean is large."""
    def var(x):
        return (x * x).mean(-1) - x.mean(-1) ** 2

    check(var, arrays(ROWS),
          vjp=lambda g, x: over_rows(g, x) * 2 * (x - x.mean(-1, keepdims=True)) / x.shape[-1])


@wrong("tracel-ai/burn#5607")
def layer_norm_by_two_moments(check):
    """The variance is E[x²] − E[x]², and 0 if this is negative."""
    def stats(x):
        mean = x.mean(-1, keepdims=True)
        var = np.maximum((x * x).mean(-1, keepdims=True) - mean * mean, 0)
        return x - mean, 1 / np.sqrt(var + 1e-5)

    def vjp(g, x):
        centred, rstd = stats(x)
        n = centred * rstd
        return rstd * (g - g.mean(-1, keepdims=True) - n * (g * n).mean(-1, keepdims=True))

    check(lambda x: stats(x)[0] * stats(x)[1], arrays(ROWS), vjp=vjp)


@wrong("tenstorrent/tt-metal#45968")
def batch_norm_by_two_moments(check):
    """The variance over the batch is E[x²] − E[x]², compared with a definition."""
    def stats(x):
        mean = x.mean(0)
        return mean, 1 / np.sqrt(np.maximum(np.square(x).mean(0) - mean ** 2, 0) + 1e-5)

    def vjp(g, x):
        mean, r = stats(x)
        n = (x - mean) * r
        return r * (g - g.mean(0) - n * (g * n).mean(0))

    def definition(x):
        d = x - mg.mean(x, axis=0)
        return d / mg.sqrt(mg.mean(d * d, axis=0) + 1e-5)

    check(lambda x: (x - stats(x)[0]) * stats(x)[1], arrays((8, 4)), vjp=vjp, definition=definition)


# ── tails and blocks ──
@wrong("halide/Halide#656")
def sum_without_the_tail(check):
    """Rows longer than 32 are summed in blocks of 32, and the remaining numbers are left out."""
    def total(x):
        n = x.shape[-1]
        return x[..., :n if n < 32 else n - n % 32].sum(-1)

    check(total, arrays(ROWS), vjp=over_rows)


@wrong()
def mean_of_whole_blocks(check):
    """Value and gradient of a mean leave out the columns past a multiple of 64, consistently."""
    def kept(x):
        n = x.shape[-1]
        return n if n < 64 else n - n % 64

    def vjp(g, x):
        d = over_rows(g, x) / x.shape[-1]
        d[..., kept(x):] = 0
        return d

    check(lambda x: x[..., :kept(x)].sum(-1) / x.shape[-1], arrays(ROWS), vjp=vjp,
          definition=lambda x: mg.mean(x, axis=-1))


@wrong()
def softmax_vjp_without_the_tail(check):
    """The dot product of the VJP drops the columns past a multiple of 8."""
    def vjp(g, x):
        p, n = softmax(x), x.shape[-1]
        k = n if n < 8 else n - n % 8
        return p * (g - (g[..., :k] * p[..., :k]).sum(-1, keepdims=True))

    check(softmax, arrays((4, 100)), vjp=vjp, definition=mg.softmax, dtypes=["float32"])


@wrong()
def softmax_of_eight_rows_at_a_time(check):
    """From 8 rows on, the rows past a multiple of 8 are not changed."""
    def blocks(x):
        rows = np.array(x, order="C").reshape(-1, x.shape[-1])
        n = len(rows) if len(rows) < 8 else len(rows) // 8 * 8
        rows[:n] = softmax(rows[:n])
        return rows.reshape(x.shape)

    check(blocks, arrays(ROWS), vjp=softmax_vjp)


@wrong()
def logsumexp_of_128_columns(check):
    """Columns past the first 128 are not read; the gradient is right."""
    def lse(x):
        m = x[..., :128].max(-1, keepdims=True)
        return np.log(np.exp(x[..., :128] - m).sum(-1)) + m[..., 0]

    check(lse, arrays(ROWS), vjp=lambda g, x: over_rows(g, x) * softmax(x))


@wrong()
def cumsum_with_one_carry(check):
    """Blocks of 64 add the sum of the previous block instead of the sums of all previous blocks."""
    def forward(x):
        out = np.zeros_like(x)
        for s in range(0, x.shape[-1], 64):
            carry = x[..., max(s - 64, 0):s].sum(-1, keepdims=True)
            out[..., s:s + 64] = np.cumsum(x[..., s:s + 64], -1) + carry
        return out

    check(forward, arrays(shapes(least=1)),
          vjp=lambda g, x: np.cumsum(g[..., ::-1], axis=-1)[..., ::-1])


@wrong()
def maximum_without_the_tail(check):
    """Rows of 32 numbers and more are read 16 at a time, and the remaining numbers are not read."""
    def kept(x):
        n = x.shape[-1]
        return x[..., :n if n < 32 else n // 16 * 16]

    def vjp(g, x):
        return np.where(x == kept(x).max(-1, keepdims=True), g[..., None], 0)

    check(lambda x: kept(x).max(-1), arrays(ROWS, kind="spread"), vjp=vjp,
          definition=lambda x: mg.max(x, axis=-1))


@wrong()
def layer_norm_gradient_of_some_columns(check):
    """The means in the backward pass are over the first 96 columns only."""
    def parts(x):
        d = x - x.mean(-1, keepdims=True)
        r = 1 / np.sqrt((d * d).mean(-1, keepdims=True) + 1e-5)
        return d * r, r

    def vjp(g, x):
        n, r = parts(x)
        c1 = g[..., :96].mean(-1, keepdims=True)
        return r * (g - c1 - n * (g * n)[..., :96].mean(-1, keepdims=True))

    check(lambda x: parts(x)[0], arrays(ROWS), vjp=vjp)


@wrong()
def softmax_is_zeros(check):
    """A kernel that was never launched leaves zeros, in value and VJP."""
    def zeros(*a):
        return np.zeros_like(a[-1])

    check(zeros, arrays((8, 128)), vjp=zeros, definition=mg.softmax, dtypes=["float32"])


# ── axes ──
@wrong()
def softmax_vjp_over_everything(check):
    """The VJP sums over all numbers instead of over each row."""
    def vjp(g, x):
        p = softmax(x)
        return p * (g - (g * p).sum())

    check(softmax, arrays(ROWS), vjp=vjp)


@wrong("pytorch/pytorch#1813")
def softmax_vjp_without_keepdims(check):
    """For a square array, sums without keepdims broadcast over the wrong axis without an error."""
    def vjp(g, x):
        p = softmax(x)
        return p * (g - (g * p).sum(-1))

    check(softmax, arrays((6, 6)), vjp=vjp)


@wrong()
def softmax_over_axis_0_for_the_last(check):
    """Value and VJP consistently use the first axis."""
    check(lambda x: softmax(x.T).T, arrays((5, 5)), vjp=lambda g, x: softmax_vjp(g.T, x.T).T,
          definition=mg.softmax)


@wrong()
def softmax_that_ignores_its_axis(check):
    """The setting `axis` is accepted but not used."""
    check(lambda x, axis: softmax(x), arrays((3, 4)), vjp=lambda g, x, axis: softmax_vjp(g, x),
          axis=0, definition=mg.softmax)


@wrong()
def sum_that_squeezes(check):
    """The gradient lacks the axes of length 1."""
    check(lambda x: x.sum(), arrays((1, 5)),
          vjp=lambda g, x: np.full(x.shape, g, x.dtype).squeeze())


@wrong("NVIDIA/warp#1552")
def argmax_of_everything(check):
    """The gradient of each row's maximum goes to the largest number of the whole array."""
    def vjp(g, x):
        return np.where(x == x.max(), g[..., None], 0)

    check(lambda x: x.max(-1), arrays(ROWS, kind="spread"), vjp=vjp)


@wrong()
def minimum_with_argmax(check):
    """The gradient of a minimum goes to the maximum."""
    check(lambda x: x.min(-1), arrays(ROWS, kind="spread"), vjp=to_the_largest)


# ── counts ──
@wrong()
def mean_with_the_gradient_of_a_sum(check):
    """The gradient of a mean lacks its 1/n."""
    check(lambda x: x.mean(-1), arrays(ROWS), vjp=over_rows)


@wrong()
def sum_with_the_gradient_of_a_mean(check):
    """The gradient of a sum is divided by n."""
    check(np.sum, arrays(), vjp=lambda g, x: np.full(x.shape, g / max(x.size, 1), x.dtype))


@wrong()
def variance_with_another_ddof(check):
    """The value divides by n, the gradient by n − 1."""
    def vjp(g, x):
        return over_rows(g, x) * 2 * (x - x.mean(-1, keepdims=True)) / max(x.shape[-1] - 1, 1)

    check(lambda x: x.var(-1), arrays(ROWS), vjp=vjp)


@wrong()
def variance_that_ignores_ddof(check):
    """The setting `ddof` is not used in the value, nor in the gradient."""
    def vjp(g, x, ddof):
        return 2 * g * (x - x.mean()) / x.size

    check(lambda x, ddof: np.var(x), arrays((9,)), vjp=vjp, ddof=1, definition=mg.var)


@wrong()
def norm_without_its_division(check):
    """The gradient of √Σx² is x."""
    check(lambda x: np.sqrt((x * x).sum()), arrays((7,)), vjp=lambda g, x: g * x)


@wrong("apache/mxnet#17864")
def product_by_division(check):
    """The gradient of a product is the product divided by each number, which is NaN at 0."""
    def vjp(g, x):
        return (g * x.prod(-1))[..., None] / x

    check(lambda x: x.prod(-1), arrays((4, 3), kind="counts"), vjp=vjp)


@wrong()
def log_softmax_without_its_sum(check):
    """The VJP is that of x alone; the gradient of −logsumexp(x) is missing."""
    def f(x):
        z = x - x.max(-1, keepdims=True)
        return z - np.log(np.exp(z).sum(-1, keepdims=True))

    check(f, arrays(ROWS), vjp=lambda g, x: g)


@wrong()
def cumsum_whose_gradient_runs_forwards(check):
    """The gradient of a running sum is a running sum in the same direction."""
    check(lambda x: x.cumsum(-1), arrays(shapes(least=1)), vjp=lambda g, x: g.cumsum(-1))


# ── the smallest sizes ──
@wrong()
def sum_of_nothing_is_nan(check):
    """The sum is the mean times n, so the sum of no numbers is NaN instead of 0."""
    check(lambda x: (x.mean() * x.size).astype(x.dtype), arrays(), definition=mg.sum,
          vjp=lambda g, x: np.full(x.shape, g, x.dtype))


@wrong()
def layer_norm_of_one_column(check):
    """A row of one number is returned unchanged, but its result should be 0."""
    def norm(x):
        d = x - x.mean(-1, keepdims=True)
        return x if x.shape[-1] == 1 else d / np.sqrt((d * d).mean(-1, keepdims=True) + 1e-5)

    def vjp(g, x):
        if x.shape[-1] == 1:
            return g
        d = x - x.mean(-1, keepdims=True)
        r = 1 / np.sqrt((d * d).mean(-1, keepdims=True) + 1e-5)
        return r * (g - g.mean(-1, keepdims=True) - d * r * (g * d * r).mean(-1, keepdims=True))

    def definition(x):
        ones = mg.tensor(np.ones(x.shape[-1], x.dtype))
        return mg.layer_norm(x, ones, ones * 0.0)

    check(norm, arrays(ROWS), vjp=vjp, definition=definition)


@wrong()
def softmax_of_one_row(check):
    """An array of one row loses its first axis, in value and gradient."""
    def squeezed(y):
        return y[0] if len(y) == 1 else y

    check(lambda x: squeezed(softmax(x)), arrays(shapes(least=2, most=2, side=1)),
          vjp=lambda g, x: squeezed(softmax_vjp(g.reshape(x.shape), x)))
