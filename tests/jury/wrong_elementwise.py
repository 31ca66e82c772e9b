"""Wrong elementwise functions: derivatives, constants, ranges, blocks, dtypes and shapes."""
from __future__ import annotations

import math

import numpy as np
from scipy import special

import minigrad as mg
from minigrad.testing import arrays, broadcastable

from .entry import wrong


# ── nothing, or something else ──
@wrong()
def zeros_for_everything(check):
    """The value and the gradient are zeros, whatever the argument."""
    def zeros(*a):
        return np.zeros_like(a[-1])

    check(zeros, arrays(), vjp=zeros, definition=mg.tanh)


@wrong()
def identity_for_tanh(check):
    """The kernel was never launched: the output is the input, and the gradient the cotangent."""
    check(lambda x: x.copy(), arrays(), vjp=lambda g, x: g.copy(), definition=mg.tanh)


@wrong("NVIDIA/warp#1861")
def zero_gradient(check):
    """The VJP returns zeros."""
    check(np.exp, arrays(), vjp=lambda g, x: np.zeros_like(x))


@wrong()
def straight_through(check):
    """The VJP of a tanh is the identity."""
    check(np.tanh, arrays(), vjp=lambda g, x: g)


@wrong("tenstorrent/tt-metal#6533")
def derivative_without_the_cotangent(check):
    """The gradient is the derivative itself; the cotangent is not used."""
    check(np.sin, arrays(), vjp=lambda g, x: np.cos(x))


# ── derivatives ──
@wrong()
def gelu_exact_with_the_other_derivative(check):
    """The value is the exact GELU, the derivative that of its tanh form."""
    c = math.sqrt(2 / math.pi)

    def gelu(x):
        return 0.5 * x * (1 + special.erf(x / math.sqrt(2)))

    def vjp(g, x):
        t = np.tanh(c * (x + 0.044715 * x ** 3))
        return g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 0.134145 * x * x))

    check(gelu, arrays(), vjp=vjp)


@wrong()
def gelu_tanh_without_the_cube(check):
    """The derivative of the inner polynomial is replaced by a constant."""
    c = math.sqrt(2 / math.pi)

    def vjp(g, x):
        t = np.tanh(c * (x + 0.044715 * x ** 3))
        return g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c)

    check(lambda x: 0.5 * x * (1 + np.tanh(c * (x + 0.044715 * x ** 3))), arrays(), vjp=vjp)


@wrong()
def silu_with_half_its_derivative(check):
    """The product rule stops after its first term."""
    check(lambda x: x / (1 + np.exp(-x)), arrays(), vjp=lambda g, x: g / (1 + np.exp(-x)))


@wrong("iamtrask/Grokking-Deep-Learning#13")
def relu_passes_zeros(check):
    """The derivative is 1 where the output is at least 0, which it always is."""
    def relu(x):
        return np.maximum(x, 0)

    check(relu, arrays(avoid=[0.0]), vjp=lambda g, x: g * (relu(x) >= 0))


@wrong("BVLC/caffe#2413")
def leaky_relu_by_its_output(check):
    """The side of the kink is taken from the output, which a negative slope makes positive."""
    def leaky(x, slope):
        return np.where(x > 0, x, slope * x)

    check(leaky, arrays(avoid=[0.0]), slope=-0.2,
          vjp=lambda g, x, slope: np.where(leaky(x, slope) > 0, g, slope * g))


@wrong()
def cosine_without_minus(check):
    """d cos(x)/dx = −sin(x) lacks its sign."""
    check(np.cos, arrays(), vjp=lambda g, x: g * np.sin(x))


@wrong()
def square_without_its_two(check):
    """The gradient of x² is half of the right one."""
    check(lambda x: x * x, arrays(), vjp=lambda g, x: g * x)


@wrong()
def sqrt_without_its_half(check):
    """The gradient of √x is twice the right one."""
    check(np.sqrt, arrays(kind="positive"), vjp=lambda g, x: g / np.sqrt(x))


@wrong()
def tanh_of_tanh(check):
    """The derivative is computed at the output instead of the argument: 1 − tanh²(tanh(x))."""
    check(np.tanh, arrays(), vjp=lambda g, x: g * (1 - np.tanh(np.tanh(x)) ** 2))


@wrong("tenstorrent/tt-metal#13774")
def subtract_without_minus(check):
    """The gradient of the second argument of x − y has the wrong sign."""
    check(np.subtract, arrays((3, 4)), arrays((3, 4)), vjp=lambda g, x, y: (g, g.copy()))


@wrong()
def divide_with_arguments_swapped(check):
    """The two gradients of a quotient are returned in the wrong order."""
    check(np.divide, arrays((4,), kind="nonzero"), arrays((4,), kind="nonzero"),
          vjp=lambda g, x, y: (-g * x / y ** 2, g / y))


@wrong("chelsea0x3b/dfdx#111")
def maximum_pays_ties_twice(check):
    """Where two numbers are equal, both get the whole cotangent instead of a half each."""
    check(np.maximum, arrays((4, 5), kind="ties"), arrays((4, 5), kind="ties"),
          definition=mg.maximum,
          vjp=lambda g, x, y: (g * (x >= y), g * (y >= x)))


# ── VJPs that are not linear ──
@wrong()
def gradient_clipped_at_one(check):
    """The cotangent is clipped to [−1, 1] before it is used."""
    check(np.sin, arrays(), vjp=lambda g, x: np.clip(g, -1, 1) * np.cos(x))


@wrong()
def gradient_clipped_at_a_hundred(check):
    """The gradient is clipped to [−100, 100], which shows only with large cotangents."""
    check(np.arctan, arrays(), vjp=lambda g, x: np.clip(g / (1 + x * x), -100, 100))


@wrong()
def sign_of_the_cotangent(check):
    """Only the sign of the cotangent is used."""
    check(np.tanh, arrays(), vjp=lambda g, x: np.sign(g) * (1 - np.tanh(x) ** 2))


@wrong()
def gradient_of_length_one(check):
    """The gradient is divided by its norm where that is above 1."""
    def vjp(g, x):
        d = g * np.exp(x)
        return d / max(1.0, float(np.linalg.norm(d)))

    check(np.exp, arrays((3, 4)), vjp=vjp)


# ── constants ──
def gelu_with(check, c, k):
    """GELU by tanh with other constants, in value and derivative alike."""
    def vjp(g, x):
        t = np.tanh(c * (x + k * x ** 3))
        return g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * k * x * x))

    check(lambda x: 0.5 * x * (1 + np.tanh(c * (x + k * x ** 3))), arrays(), vjp=vjp,
          definition=lambda x: mg.gelu(x, approximate="tanh"))


@wrong()
def gelu_with_digits_swapped(check):
    """0.044751 instead of 0.044715, in value and derivative alike."""
    gelu_with(check, math.sqrt(2 / math.pi), 0.044751)


@wrong()
def gelu_with_three_digits(check):
    """√(2/π) is 0.798."""
    gelu_with(check, 0.798, 0.044715)


@wrong()
def a_thousandth_too_large(check):
    """Value and gradient are 1.001 times too large."""
    check(lambda x: np.tanh(x) * 1.001, arrays(), definition=mg.tanh,
          vjp=lambda g, x: g * (1 - np.tanh(x) ** 2) * 1.001)


@wrong()
def a_ten_thousandth_too_large(check):
    """A float32 sigmoid and its gradient are 1.0001 times too large."""
    def f(x):
        return 1.0001 / (1 + np.exp(-x))

    check(f, arrays(), vjp=lambda g, x: 1.0001 * g / (2 + np.exp(x) + np.exp(-x)),
          definition=mg.sigmoid, dtypes=["float32"])


@wrong()
def a_hundred_thousandth_too_large(check):
    """Only the gradient is wrong: it is 1 + 1e-5 times too large."""
    check(np.sin, arrays(), vjp=lambda g, x: g * np.cos(x) * (1 + 1e-5))


@wrong()
def a_little_is_added(check):
    """1e-5 is added to the value, which does not change the derivative."""
    check(lambda x: np.tanh(x) + 1e-5, arrays(), vjp=lambda g, x: g * (1 - np.tanh(x) ** 2),
          definition=mg.tanh)


@wrong("tenstorrent/tt-metal#55349")
def tanh_by_a_fraction(check):
    """tanh is approximated to two digits by a rational function; the derivative is exact."""
    def tanh(x):
        return np.clip(x * (27 + x * x) / (27 + 9 * x * x), -1, 1)

    check(tanh, arrays(), vjp=lambda g, x: g * (1 - np.tanh(x) ** 2))


@wrong("ybubnov/metalchat#153")
def tanh_from_a_table(check):
    """Value and derivative are interpolated in a table of 4,097 numbers between −8 and 8."""
    at = np.linspace(-8, 8, 4097)

    def lookup(x, table):
        return np.interp(x, at, table).astype(x.dtype)

    check(lambda x: lookup(x, np.tanh(at)), arrays(), definition=mg.tanh,
          vjp=lambda g, x: g * lookup(x, 1 - np.tanh(at) ** 2))


@wrong()
def exp_by_a_rounded_logarithm(check):
    """e^x is 2^(1.442695 x): seven digits of log₂ e, in float64 too."""
    def exp(x):
        return np.exp2(x * 1.442695)

    check(exp, arrays(), vjp=lambda g, x: g * exp(x), definition=mg.exp)


@wrong()
def gelu_by_a_polynomial_of_erf(check):
    """erf by Abramowitz and Stegun 7.1.26, with an error of 1.5e-7, too large for float64."""
    def erf(x):
        t = 1 / (1 + 0.3275911 * np.abs(x))
        poly = (1.061405429 * t - 1.453152027) * t + 1.421413741
        poly = ((poly * t - 0.284496736) * t + 0.254829592) * t
        return np.sign(x) * (1 - poly * np.exp(-x * x))

    def cdf(x):
        return 0.5 * (1 + erf(x / math.sqrt(2)))

    check(lambda x: x * cdf(x), arrays(), definition=lambda x: mg.gelu(x, approximate="none"),
          vjp=lambda g, x: g * (cdf(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)))


# ── ranges ──
@wrong()
def exp_clipped_at_ten(check):
    """The argument is clipped to at most 10 against overflow."""
    def exp(x):
        return np.exp(np.minimum(x, 10))

    check(exp, arrays(), vjp=lambda g, x: g * exp(x), definition=mg.exp)


@wrong()
def softplus_switches_too_early(check):
    """From 8 on, softplus(x) is x, which is 3e-4 too small there; the derivative is exact."""
    def f(x):
        return np.where(x > 8, x, np.log1p(np.exp(np.minimum(x, 8))))

    check(f, arrays(), vjp=lambda g, x: g / (1 + np.exp(-x)))


@wrong()
def sigmoid_that_overflows(check):
    """e^x/(1 + e^x) is inf/inf for large x."""
    def sigmoid(x):
        return np.exp(x) / (1 + np.exp(x))

    check(sigmoid, arrays(), vjp=lambda g, x: g * sigmoid(x) * (1 - sigmoid(x)))


@wrong()
def log_of_a_sigmoid(check):
    """log(σ(x)) is −inf where σ(x) is 0 in floating point."""
    check(lambda x: np.log(1 / (1 + np.exp(-x))), arrays(), vjp=lambda g, x: g / (1 + np.exp(x)),
          definition=lambda x: mg.minimum(x, 0.0) - mg.log(1.0 + mg.exp(-mg.abs(x))))


@wrong()
def relu6_without_its_upper_end(check):
    """The derivative of min(max(x, 0), 6) stays 1 above 6."""
    check(lambda x: np.clip(x, 0, 6), arrays(avoid=[0.0, 6.0]), vjp=lambda g, x: g * (x > 0))


@wrong()
def relu_by_a_product(check):
    """x·(x > 0) is NaN at −inf, where a masked score is."""
    masked = arrays((4, 6), avoid=[0.0]).map(lambda x: np.where(x < -1, -np.inf, x))
    check(lambda x: x * (x > 0), masked, vjp=lambda g, x: g * (x > 0), definition=mg.relu)


# ── blocks and tails ──
@wrong()
def exp_of_the_first_block(check):
    """Only the first 1,024 numbers are computed; the rest is zeros."""
    def exp(x):
        out = np.zeros(x.size, x.dtype)
        out[:1024] = np.exp(x.reshape(-1)[:1024])
        return out.reshape(x.shape)

    check(exp, arrays(), vjp=lambda g, x: g * np.exp(x))


@wrong("ROCm/hipBLASLt#830")
def sigmoid_in_fours(check):
    """From 16 numbers on, four are computed at a time, and the remaining ones are left out."""
    def sigmoid(x):
        t = np.array(x, order="C").reshape(-1)
        n = t.size if t.size < 16 else t.size // 4 * 4
        out = np.zeros_like(t)
        out[:n] = 1 / (1 + np.exp(-t[:n]))
        return out.reshape(x.shape)

    check(sigmoid, arrays(), vjp=lambda g, x: g * sigmoid(x) * (1 - sigmoid(x)),
          definition=mg.sigmoid)


@wrong()
def gradient_of_the_first_256(check):
    """The backward kernel is launched with one block of 256 threads."""
    def vjp(g, x):
        d = (g * np.cos(x)).reshape(-1)
        d[256:] = 0
        return d.reshape(x.shape)

    check(np.sin, arrays(), vjp=vjp)


# ── dtypes ──
@wrong("netket/netket#1218")
def scaled_by_a_wide_constant(check):
    """A float64 scalar turns value and gradient of float32 arguments into float64."""
    c = np.sqrt(2.0)
    check(lambda x: x * c, arrays(), vjp=lambda g, x: g * c)


@wrong("HIPS/autograd#163")
def gradient_in_float64(check):
    """The gradient of a float32 argument is float64; the value is right."""
    check(np.arctan, arrays(), vjp=lambda g, x: np.asarray(g, "float64") / (1 + x * x))


@wrong()
def value_in_float64(check):
    """np.vectorize of a Python function gives float64 for float32; the gradient is cast back."""
    f = np.vectorize(math.sin, otypes=[float])
    check(lambda x: f(x), arrays((3, 4)), vjp=lambda g, x: (g * np.cos(x)).astype(x.dtype))


@wrong()
def tanh_in_float32(check):
    """float64 numbers are converted to float32 and back in between."""
    def tanh(x):
        return np.tanh(x.astype(np.float32)).astype(x.dtype)

    check(tanh, arrays(), vjp=lambda g, x: g * (1 - tanh(x) ** 2))


@wrong()
def derivative_in_float32(check):
    """The value is right in float64; the derivative is computed in float32 and cast back."""
    def vjp(g, x):
        t = x.astype(np.float32)
        return (g * np.cos(t)).astype(x.dtype)

    check(np.sin, arrays(), vjp=vjp)


# ── shapes ──
@wrong("apache/tvm#2465")
def add_without_unbroadcast(check):
    """Both arguments get the cotangent unchanged, also if their shapes differ."""
    check(np.add, broadcastable(2), vjp=lambda g, x, y: (g, g))


@wrong("HomericIntelligence/Odyssey#2080")
def multiply_keeps_axes_of_one(check):
    """Leading axes are summed, axes of length 1 are not."""
    def back(g, shape):
        return g.sum(axis=tuple(range(g.ndim - len(shape))))

    check(np.multiply, broadcastable(2),
          vjp=lambda g, x, y: (back(g * y, x.shape), back(g * x, y.shape)))


@wrong()
def add_with_means(check):
    """Broadcasting is undone by a mean."""
    check(lambda x, b: x + b, arrays((4, 3)), arrays((3,)), vjp=lambda g, x, b: (g, g.mean(0)))


@wrong("tenstorrent/tt-metal#40008")
def scale_with_one_number(check):
    """The gradient of an argument [4, 1] comes back as [4]."""
    check(np.multiply, arrays((4, 3)), arrays((4, 1)),
          vjp=lambda g, x, y: (g * y, (g * x).sum(1)))


@wrong()
def at_least_one_axis(check):
    """np.ascontiguousarray gives arrays without axes one axis, so the gradient has one too many."""
    check(np.tanh, arrays(), vjp=lambda g, x: np.ascontiguousarray(g * (1 - np.tanh(x) ** 2)))


@wrong()
def gradient_flat(check):
    """The gradient has all numbers in one axis."""
    check(np.exp, arrays((2, 3)), vjp=lambda g, x: (g * np.exp(x)).ravel())
