"""Right kernels for float16, bfloat16 or float32 only: they compute in float32 and round once."""
from __future__ import annotations

import numpy as np

import minigrad as mg
from minigrad.testing import arrays, shapes

from .entry import right
from .pieces import wide

ROWS = shapes(least=1, side=1)


@right
def half_tanh(check):
    """tanh of float16, computed in float32 and returned in float16."""
    def f(x):
        return np.tanh(x.astype(np.float32)).astype(x.dtype)

    def vjp(g, x):
        g, t = g.astype(np.float32), np.tanh(x.astype(np.float32))
        return (g * (1 - t * t)).astype(x.dtype)

    check(f, arrays(), vjp=vjp, dtypes=["float16"])


@right
def half_softmax(check):
    """A softmax in float16 and bfloat16, compared with the definition."""
    def probabilities(x):
        (t,) = wide(x)
        e = np.exp(t - t.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def vjp(g, x):
        p, (u,) = probabilities(x), wide(g)
        return (p * (u - (u * p).sum(-1, keepdims=True))).astype(x.dtype)

    check(lambda x: probabilities(x).astype(x.dtype), arrays(ROWS), vjp=vjp, definition=mg.softmax,
          dtypes=["float16", "bfloat16"])


@right
def half_mean(check):
    """A mean in float16 that adds up in float32."""
    def mean(x):
        return x.mean(-1, dtype=np.float32).astype(x.dtype)

    def vjp(g, x):
        (u,) = wide(g)
        return np.repeat((u / x.shape[-1]).astype(x.dtype)[..., None], x.shape[-1], -1)

    check(mean, arrays(ROWS), vjp=vjp, dtypes=["float16"])


@right
def half_matmul(check):
    """A product in bfloat16 with float32 sums."""
    def f(a, b):
        x, y = wide(a, b)
        return (x @ y).astype(a.dtype)

    def vjp(g, a, b):
        u, x, y = wide(g, a, b)
        return (u @ y.T).astype(a.dtype), (x.T @ u).astype(b.dtype)

    check(f, arrays((4, 6)), arrays((6, 3)), vjp=vjp, dtypes=["bfloat16"])


@right
def half_rms_norm(check):
    """x/√(mean x² + eps) in bfloat16, with statistics in float32."""
    def f(x):
        (t,) = wide(x)
        return (t / np.sqrt((t * t).mean(-1, keepdims=True) + 1e-5)).astype(x.dtype)

    def vjp(g, x):
        u, t = wide(g, x)
        r = 1 / np.sqrt((t * t).mean(-1, keepdims=True) + 1e-5)
        return (r * u - t * r ** 3 * (u * t).mean(-1, keepdims=True)).astype(x.dtype)

    check(f, arrays((5, 8)), vjp=vjp, dtypes=["bfloat16"])


@right
def half_gelu(check):
    """GELU's tanh form in float16."""
    c = float(np.sqrt(2 / np.pi))

    def f(x):
        (t,) = wide(x)
        return (0.5 * t * (1 + np.tanh(c * (t + 0.044715 * t ** 3)))).astype(x.dtype)

    def vjp(g, x):
        u, t = wide(g, x)
        h = np.tanh(c * (t + 0.044715 * t ** 3))
        d = 0.5 * (1 + h) + 0.5 * t * (1 - h * h) * c * (1 + 0.134145 * t * t)
        return (u * d).astype(x.dtype)

    check(f, arrays(), vjp=vjp, dtypes=["float16"])


@right
def single_sigmoid(check):
    """A kernel that converts all arrays to float32, as a binding to C does."""
    def f(x):
        x = np.ascontiguousarray(x, np.float32).reshape(x.shape)
        return 1 / (1 + np.exp(-x))

    def vjp(g, x):
        y = f(x)
        return np.asarray(g, np.float32) * y * (1 - y)

    check(f, arrays(), vjp=vjp, dtypes=["float32"])


@right
def single_only(check):
    """A kernel that refuses anything but float32."""
    def needs(x):
        if x.dtype != np.float32:
            raise TypeError(f"float32 is needed, not {x.dtype}")
        return x

    check(lambda x: np.log1p(np.exp(-np.abs(needs(x)))) + np.maximum(x, 0), arrays((6, 7)),
          vjp=lambda g, x: needs(g) / (1 + np.exp(-needs(x))), dtypes=["float32"])


@right
def single_layer_norm(check):
    """A float32 kernel with sums in float64, compared with the definition."""
    def parts(x):
        d = x - x.mean(-1, keepdims=True, dtype=np.float64)
        return d, 1 / np.sqrt((d * d).mean(-1, keepdims=True) + 1e-5)

    def forward(x, w, b):
        d, r = parts(x)
        return (d * r * w + b).astype(np.float32)

    def backward(g, x, w, b):
        d, r = parts(x)
        n, gw = d * r, g * w
        dx = r * (gw - gw.mean(-1, keepdims=True) - n * (gw * n).mean(-1, keepdims=True))
        return dx.astype(np.float32), (g * n).sum(0).astype(np.float32), g.sum(0)

    check(forward, arrays((16, 24)), arrays((24,)), arrays((24,)), vjp=backward,
          definition=mg.layer_norm, dtypes=["float32"])


@right
def single_matmul(check):
    """A product in float32 in Fortran order, as from a BLAS."""
    def f(a, b):
        return np.asfortranarray(a @ b)

    check(f, arrays((8, 40)), arrays((40, 6)), dtypes=["float32"],
          vjp=lambda g, a, b: (np.asfortranarray(g @ b.T), np.asfortranarray(a.T @ g)))
