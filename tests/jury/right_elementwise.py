"""Right elementwise functions on plain NumPy arrays, each with its VJP."""
from __future__ import annotations

import functools
import math

import numpy as np
from scipy import special

from minigrad.testing import arrays, broadcastable

from .entry import right


@right
def tanh(check):
    """NumPy's tanh as it is."""
    check(np.tanh, arrays(), vjp=lambda g, x: g * (1 - np.tanh(x) ** 2))


@right
def twice(check):
    """2 x, the simplest function."""
    check(lambda x: 2 * x, arrays(), vjp=lambda g, x: 2 * g)


@right
def exp(check):
    """NumPy's exp as it is; it overflows where e^x does."""
    check(np.exp, arrays(), vjp=lambda g, x: g * np.exp(x))


@right
def log_of_positive(check):
    """NumPy's log on positive numbers."""
    check(np.log, arrays(kind="positive"), vjp=lambda g, x: g / x)


@right
def sqrt_of_positive(check):
    """The root, with the VJP from its value."""
    check(np.sqrt, arrays(kind="positive"), vjp=lambda g, x: g / (2 * np.sqrt(x)))


@right
def sine_of_five_x(check):
    """sin(5x), whose slope changes too fast for a coarse difference quotient."""
    check(lambda x: np.sin(5 * x), arrays(), vjp=lambda g, x: 5 * np.cos(5 * x) * g)


@right
def gaussian(check):
    """exp(−x²)."""
    check(lambda x: np.exp(-x * x), arrays(), vjp=lambda g, x: -2 * x * np.exp(-x * x) * g)


@right
def witch_of_agnesi(check):
    """x/(1 + x²), whose derivative changes sign."""
    def f(x):
        return x / (1 + x ** 2)

    def df(g, x):
        return g * (1 - x ** 2) / (1 + x ** 2) ** 2

    check(f, arrays(), vjp=df)


@right
def sigmoid(check):
    """The textbook form; for very negative x it is 1/inf, which is 0 and right."""
    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def sigmoid_vjp(g, x):
        s = sigmoid(x)
        return g * s * (1 - s)

    check(sigmoid, arrays(), vjp=sigmoid_vjp)


@right
def sigmoid_by_sign(check):
    """The stable form: the exponential of a negative number in either branch."""
    def sigmoid(x):
        e = np.exp(-np.abs(x))
        return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(x.dtype)

    def backward(dy, x):
        y = sigmoid(x)
        dy = dy * y
        dy *= 1 - y
        return dy

    check(sigmoid, arrays(), vjp=backward)


@right
def silu(check):
    """x·σ(x), elementwise over a flat copy in blocks of 64 numbers with a tail."""
    def blocks(out, *ins, f):
        n = out.size
        for start in range(0, n, 64):
            stop = min(start + 64, n)
            out[start:stop] = f(*[a[start:stop] for a in ins])

    def silu(x):
        flat = np.array(x, order="C").reshape(-1)
        y = np.empty_like(flat)
        blocks(y, flat, f=lambda t: t / (1 + np.exp(-t)))
        return y.reshape(x.shape)

    def dsilu(g, t):
        s = 1 / (1 + np.exp(-t))
        return g * (s + t * s * (1 - s))

    def silu_vjp(g, x):
        dx = np.empty(x.size, x.dtype)
        blocks(dx, np.array(g, order="C").reshape(-1), np.array(x, order="C").reshape(-1), f=dsilu)
        return dx.reshape(x.shape)

    check(silu, arrays(), vjp=silu_vjp)


@right
def softplus_naive(check):
    """log(1 + e^x) as it stands in the textbook."""
    check(lambda x: np.log(1 + np.exp(x)), arrays(), vjp=lambda g, x: g / (1 + np.exp(-x)))


@right
def softplus(check):
    """log(1 + e^x) in its stable form."""
    def f(x):
        return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))

    check(f, arrays(), vjp=lambda g, x: g / (1 + np.exp(-x)))


@right
def gelu_exact(check):
    """x·Φ(x) with SciPy's erf."""
    def gelu(x):
        return 0.5 * x * (1 + special.erf(x / math.sqrt(2)))

    def dgelu(g, x):
        cdf = 0.5 * (1 + special.erf(x / math.sqrt(2)))
        pdf = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        return g * (cdf + x * pdf)

    check(gelu, arrays(), vjp=dgelu)


@right
def gelu_one_by_one(check):
    """GELU, computed number by number in Python, with math.erf."""
    def gelu(x):
        y = np.zeros(x.shape, x.dtype)
        for i in np.ndindex(x.shape):
            y[i] = x[i] * 0.5 * (1 + math.erf(float(x[i]) / math.sqrt(2)))
        return y

    def dgelu(g, x):
        d = np.zeros(x.shape, x.dtype)
        for i in np.ndindex(x.shape):
            t = float(x[i])
            cdf = 0.5 * (1 + math.erf(t / math.sqrt(2)))
            d[i] = g[i] * (cdf + t * math.exp(-t * t / 2) / math.sqrt(2 * math.pi))
        return d

    check(gelu, arrays((3, 5)), vjp=dgelu)


@right
def gelu_tanh(check):
    """GPT-2's GELU."""
    c = math.sqrt(2 / math.pi)

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(c * (x + 0.044715 * x ** 3)))

    def gelu_vjp(g, x):
        t = np.tanh(c * (x + 0.044715 * x ** 3))
        return g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x))

    check(gelu, arrays(), vjp=gelu_vjp)


@right
def mish(check):
    """x·tanh(softplus(x))."""
    def mish(x):
        return x * np.tanh(np.logaddexp(x, 0))

    def mish_vjp(g, x):
        t = np.tanh(np.logaddexp(x, 0))
        return g * (t + x * (1 - t ** 2) / (1 + np.exp(-x)))

    check(mish, arrays(), vjp=mish_vjp)


@right
def relu(check):
    """max(x, 0), away from its kink."""
    check(lambda x: np.maximum(x, 0), arrays(avoid=[0.0]), vjp=lambda g, x: g * (x > 0))


@right
def relu_of_a_fixed_shape(check):
    """max(x, 0) on one shape, as an author with only one test case would check it."""
    check(lambda x: np.where(x > 0, x, 0), arrays((4, 8), avoid=[0.0]),
          vjp=lambda g, x: np.where(x > 0, g, 0))


@right
def leaky_relu(check):
    """Leaky relu, whose slope is a setting."""
    def leaky(x, slope):
        return np.where(x > 0, x, slope * x).astype(x.dtype)

    def leaky_vjp(g, x, slope):
        return np.where(x > 0, g, slope * g).astype(x.dtype)

    check(leaky, arrays(avoid=[0.0]), vjp=leaky_vjp, slope=0.1)


@right
def elu(check):
    """α(e^x − 1) below 0, with expm1."""
    def elu(x, alpha):
        return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))

    def elu_vjp(g, x, alpha):
        return g * np.where(x > 0, 1, alpha * np.exp(np.minimum(x, 0)))

    check(elu, arrays(avoid=[0.0]), vjp=elu_vjp, alpha=0.7)


@right
def hardtanh(check):
    """Clipping to [−1, 1], away from both kinks."""
    check(lambda x: np.clip(x, -1, 1), arrays(avoid=[-1.0, 1.0]),
          vjp=lambda g, x: g * (np.abs(x) < 1))


@right
def hardswish(check):
    """x·relu6(x + 3)/6."""
    def f(x):
        return x * np.clip(x + 3, 0, 6) / 6

    def df(g, x):
        inner = (2 * x + 3) / 6
        return g * np.where(x <= -3, 0, np.where(x >= 3, 1, inner))

    check(f, arrays(avoid=[-3.0, 3.0]), vjp=df)


@right
def absolute_value(check):
    """|x|, away from 0."""
    check(np.abs, arrays(kind="nonzero"), vjp=lambda g, x: g * np.sign(x))


@right
def softsign(check):
    """x/(1 + |x|), which has only one derivative at 0; it uses a scratch buffer."""
    def softsign(x):
        scratch = np.abs(x)
        scratch = np.add(scratch, 1, out=scratch if scratch.ndim else None)
        return np.divide(x, scratch)

    check(softsign, arrays(avoid=[0.0]), vjp=lambda g, x: g / (1 + np.abs(x)) ** 2)


@right
def log_sigmoid(check):
    """−log(1 + e^−x) without overflow."""
    check(lambda x: -np.logaddexp(0, -x), arrays(), vjp=lambda g, x: g / (1 + np.exp(x)))


@right
def reciprocal(check):
    """1/x, away from its pole."""
    check(lambda x: 1 / x, arrays(kind="nonzero"), vjp=lambda g, x: -g / (x * x))


@right
def square_into_a_buffer(check):
    """x², written to an array that it allocates itself."""
    def square(x):
        out = np.empty(x.shape, x.dtype)
        np.multiply(x, x, out=out)
        return out

    def square_vjp(g, x):
        out = np.empty(x.shape, x.dtype)
        np.multiply(g, x, out=out)
        np.multiply(out, 2, out=out)
        return out

    check(square, arrays(), vjp=square_vjp)


@right
def identity(check):
    """The value is the argument itself, and the gradient the cotangent itself."""
    check(lambda x: x, arrays(), vjp=lambda g, x: g)


@right
def add(check):
    """x + y with broadcasting undone."""
    def unbroadcast(g, shape):
        while g.ndim > len(shape):
            g = g.sum(axis=0)
        for axis, size in enumerate(shape):
            if size == 1 and g.shape[axis] != 1:
                g = g.sum(axis=axis, keepdims=True)
        return g

    check(np.add, broadcastable(2),
          vjp=lambda g, x, y: (unbroadcast(g, x.shape), unbroadcast(g, y.shape)))


@right
def multiply(check):
    """x·y with broadcasting undone in one sum over all axes."""
    def reduce_to(g, shape):
        lead = g.ndim - len(shape)
        axes = tuple(range(lead)) + tuple(lead + i for i, n in enumerate(shape) if n == 1)
        return g.sum(axes).reshape(shape)

    check(lambda x, y: x * y, broadcastable(2),
          vjp=lambda g, x, y: [reduce_to(g * y, x.shape), reduce_to(g * x, y.shape)])


@right
def divide(check):
    """x/y of one shape, as two outputs of a tuple."""
    check(lambda x, y: x / y, arrays((5, 3)), arrays((5, 3), kind="nonzero"),
          vjp=lambda g, x, y: (g / y, -g * x / y ** 2))


@right
def hypotenuse(check):
    """√(x² + y²) of broadcast arguments away from 0."""
    def back(g, shape):
        axes = tuple(i for i in range(g.ndim) if i < g.ndim - len(shape)
                     or shape[i - g.ndim + len(shape)] == 1)
        return np.sum(g, axis=axes).reshape(shape)

    def vjp(g, x, y):
        r = np.hypot(x, y)
        return back(g * x / r, x.shape), back(g * y / r, y.shape)

    check(np.hypot, broadcastable(2, "nonzero"), vjp=vjp)


@right
def relu_of_minus_infinity(check):
    """Scores that are masked with −inf; their gradient is 0."""
    masked = arrays((4, 6), avoid=[0.0]).map(lambda x: np.where(x < -1, -np.inf, x))
    check(lambda x: np.maximum(x, 0), masked, vjp=lambda g, x: np.where(x > 0, g, 0))


@right
def polynomial_as_an_object(check):
    """An object with a method for the value and one for the gradient, by Horner's rule."""
    class Polynomial:
        def __init__(self, *coefficients):
            self.coefficients = coefficients

        def __call__(self, x):
            y = 0 * x
            for c in self.coefficients:
                y = y * x + c
            return y

        def backward(self, g, x):
            y, d = 0 * x, 0 * x
            for c in self.coefficients:
                d = d * x + y
                y = y * x + c
            return g * d

    p = Polynomial(0.5, -1.0, 2.0, 3.0)
    check(p, arrays(), vjp=p.backward)


@right
def power_by_partial(check):
    """functools.partial, and a setting by name."""
    def power(n, x, *, scale):
        return scale * x ** n

    check(functools.partial(power, 3), arrays(), scale=0.25,
          vjp=lambda g, x, scale: 3 * scale * g * x ** 2)
