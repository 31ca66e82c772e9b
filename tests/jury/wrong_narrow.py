"""Wrong kernels for float16, bfloat16 and float32: intermediate values are rounded too much."""
from __future__ import annotations

import numpy as np

import minigrad as mg
from minigrad.testing import arrays, shapes

from .entry import wrong
from .pieces import over_rows, wide

ROWS = shapes(least=1, side=1)


@wrong("tinygrad/tinygrad#3005")
def half_sum_in_half(check):
    """A sum in float16 is rounded to float16 after each number."""
    def total(x):
        s = np.zeros(x.shape[:-1], x.dtype)
        for j in range(x.shape[-1]):
            s = s + x[..., j]
        return s

    check(total, arrays((3, 300)), vjp=over_rows, dtypes=["float16"],
          definition=lambda x: mg.sum(x, axis=-1))


@wrong("numpy/numpy#8217")
def half_mean_that_overflows(check):
    """The sum of a mean is stored in float16, so it may be inf although the mean is finite."""
    def mean(x):
        total = x.sum(-1, dtype=np.float32).astype(x.dtype)
        return (total / np.float32(x.shape[-1])).astype(x.dtype)

    check(mean, arrays(ROWS), dtypes=["float16"], definition=lambda x: mg.mean(x, axis=-1),
          vjp=lambda g, x: over_rows((g.astype(np.float32) / x.shape[-1]).astype(x.dtype), x))


@wrong()
def half_layer_norm_in_half(check):
    """Mean and variance are rounded to float16 before they are used."""
    def parts(x):
        d = x - x.mean(-1, keepdims=True)
        return d, (1 / np.sqrt((d * d).mean(-1, keepdims=True) + np.float16(1e-5))).astype(x.dtype)

    def vjp(g, x):
        u, t = wide(g, x)
        d = t - t.mean(-1, keepdims=True)
        r = 1 / np.sqrt((d * d).mean(-1, keepdims=True) + 1e-5)
        n = d * r
        inner = (u * n).mean(-1, keepdims=True)
        return (r * (u - u.mean(-1, keepdims=True) - n * inner)).astype(x.dtype)

    def definition(x):
        ones = mg.tensor(np.ones(x.shape[-1], x.dtype))
        return mg.layer_norm(x, ones, ones * 0.0)

    check(lambda x: parts(x)[0] * parts(x)[1], arrays((4, 64)), vjp=vjp, definition=definition,
          dtypes=["float16"])


@wrong()
def half_softmax_in_half(check):
    """Exponentials and their sum are rounded to float16 before they are used."""
    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / np.add.accumulate(e, axis=-1)[..., -1:]

    def vjp(g, x):
        p = softmax(x)
        return p * (g - (g * p).sum(-1, keepdims=True))

    check(softmax, arrays((4, 100)), vjp=vjp, definition=mg.softmax, dtypes=["float16"])


@wrong()
def half_norm_that_overflows(check):
    """Squares are rounded to float16, so the norm of numbers above 255 is inf."""
    def norm(x):
        return np.sqrt((x * x).sum(-1, dtype=np.float32)).astype(x.dtype)

    def vjp(g, x):
        u, t = wide(g, x)
        return (u[..., None] * t / np.sqrt((t * t).sum(-1, keepdims=True))).astype(x.dtype)

    check(norm, arrays(ROWS, kind="nonzero"), vjp=vjp, dtypes=["float16"],
          oracle=lambda x: np.sqrt((x * x).sum(-1)))


@wrong()
def half_gelu_with_a_cube_in_half(check):
    """x³ is rounded to float16 before it is used, and so is the tanh."""
    def f(x):
        inner = np.float16(0.7979) * (x + np.float16(0.044715) * x * x * x)
        return np.float16(0.5) * x * (np.float16(1) + np.tanh(inner))

    def vjp(g, x):
        u, t = wide(g, x)
        c = np.float32(np.sqrt(2 / np.pi))
        h = np.tanh(c * (t + 0.044715 * t ** 3))
        d = 0.5 * (1 + h) + 0.5 * t * (1 - h * h) * c * (1 + 0.134145 * t * t)
        return (u * d).astype(x.dtype)

    check(f, arrays(), vjp=vjp, dtypes=["float16"],
          definition=lambda x: mg.gelu(x, approximate="tanh"))


@wrong("tenstorrent/tt-metal#19882")
def half_tanh_cut_off(check):
    """float32 is converted to bfloat16 by dropping its lower bits, which rounds towards 0."""
    def cut(t, like):
        bits = np.asarray(t, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
        return bits.view(np.float32).astype(like.dtype)

    def vjp(g, x):
        u, t = wide(g, x)
        return cut(u * (1 - np.tanh(t) ** 2), x)

    check(lambda x: cut(np.tanh(x.astype(np.float32)), x), arrays(), vjp=vjp, definition=mg.tanh,
          dtypes=["bfloat16"])


@wrong()
def half_square_through_float16(check):
    """bfloat16 numbers are converted to float16 in between, whose largest number is 65,504."""
    def f(x):
        t = x.astype(np.float16)
        return (t * t).astype(x.dtype)

    def vjp(g, x):
        u, t = wide(g, x)
        return (2 * u * t).astype(x.dtype)

    check(f, arrays(), vjp=vjp, dtypes=["bfloat16"], oracle=lambda x: x * x)


@wrong()
def half_gradient_in_float32(check):
    """The gradient of a float16 argument is float32."""
    def vjp(g, x):
        u, t = wide(g, x)
        return u * np.cos(t)

    check(lambda x: np.sin(x.astype(np.float32)).astype(x.dtype), arrays(), vjp=vjp,
          dtypes=["float16"])


@wrong()
def half_matmul_in_half(check):
    """Each product and each partial sum of a float16 matmul is rounded to float16."""
    def product(a, b):
        out = np.zeros((a.shape[0], b.shape[1]), a.dtype)
        for k in range(a.shape[1]):
            out = out + a[:, k, None] * b[k]
        return out

    check(product, arrays((3, 128)), arrays((128, 2)), dtypes=["float16"], definition=mg.matmul,
          vjp=lambda g, a, b: (product(g, b.T), product(a.T, g)))


@wrong()
def half_log_softmax_rounded_twice(check):
    """The log-sum-exp is rounded to float16 before it is subtracted."""
    def lse(t):
        m = t.max(-1, keepdims=True)
        return np.log(np.exp(t - m).sum(-1, keepdims=True)) + m

    def f(x):
        (t,) = wide(x)
        return x - lse(t).astype(x.dtype)

    def vjp(g, x):
        u, t = wide(g, x)
        return (u - np.exp(t - lse(t)) * u.sum(-1, keepdims=True)).astype(x.dtype)

    check(f, arrays(ROWS), vjp=vjp, definition=mg.log_softmax, dtypes=["float16"])


@wrong()
def single_sum_in_half(check):
    """A float32 sum adds up in float16."""
    def total(x):
        return x.astype(np.float16).sum(-1).astype(x.dtype)

    check(total, arrays((4, 20)), vjp=over_rows, dtypes=["float32"],
          definition=lambda x: mg.sum(x, axis=-1))


@wrong()
def single_softmax_with_exp_in_half(check):
    """A float32 softmax computes its exponentials in float16."""
    def softmax(x):
        e = np.exp((x - x.max(-1, keepdims=True)).astype(np.float16)).astype(x.dtype)
        return e / e.sum(-1, keepdims=True)

    def vjp(g, x):
        p = softmax(x)
        return p * (g - (g * p).sum(-1, keepdims=True))

    check(softmax, arrays((8, 32)), vjp=vjp, definition=mg.softmax, dtypes=["float32"])


@wrong()
def single_matmul_in_bfloat16(check):
    """A float32 product keeps 8 bits of each number, as some tensor cores do."""
    def cut(x):
        return (np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)

    check(lambda a, b: cut(a) @ cut(b), arrays((8, 16)), arrays((16, 4)), dtypes=["float32"],
          vjp=lambda g, a, b: (cut(g) @ cut(b).T, cut(a).T @ cut(g)), definition=mg.matmul)


@wrong()
def single_layer_norm_with_a_rough_root(check):
    """1/√x by one step of Newton's method from a guess from x's bits, with an error of 2e-3."""
    def rsqrt(v):
        y = (np.int32(0x5F3759DF) - (v.view(np.int32) >> 1)).view(np.float32)
        return y * (np.float32(1.5) - np.float32(0.5) * v * y * y)

    def parts(x):
        d = x - x.mean(-1, keepdims=True)
        return d, rsqrt((d * d).mean(-1, keepdims=True) + np.float32(1e-5))

    def vjp(g, x, w, b):
        d, r = parts(x)
        n, gw = d * r, g * w
        dx = r * (gw - gw.mean(-1, keepdims=True) - n * (gw * n).mean(-1, keepdims=True))
        return dx, (g * n).sum(0), g.sum(0)

    check(lambda x, w, b: parts(x)[0] * parts(x)[1] * w + b, arrays((5, 12)), arrays((12,)),
          arrays((12,)), vjp=vjp, definition=mg.layer_norm, dtypes=["float32"])


@wrong()
def double_softmax_in_float32(check):
    """A float64 softmax computes its sum in float32."""
    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True, dtype=np.float32).astype(x.dtype)

    def vjp(g, x):
        p = softmax(x)
        return p * (g - (g * p).sum(-1, keepdims=True))

    check(softmax, arrays(ROWS), vjp=vjp, definition=mg.softmax)
