"""Wrong elementwise functions: layout, writes, buffers, caches, dtypes, and derivatives that are another function's."""
from __future__ import annotations

import math

import numpy as np
from scipy import special

import minigrad as mg
from minigrad.testing import arrays, broadcastable

from .entry import wrong


# ── memory that is read as if it lay in C order ──
@wrong("vllm-project/vllm#3324")
def tanh_of_the_buffer(check):
    """The value reads the memory in the order in which it lies, and calls that C order."""
    def tanh(x):
        return np.tanh(np.frombuffer(x.tobytes(order="A"), x.dtype).reshape(x.shape))

    check(tanh, arrays(), vjp=lambda g, x: g * (1 - tanh(x) ** 2))


@wrong("NVIDIA/TransformerEngine#1017")
def silu_raveled(check):
    """Both passes work on ravel(order="K"), and put the result back in C order."""
    def flat(x):
        return x.ravel(order="K")

    def silu(x):
        t = flat(x)
        return (t / (1 + np.exp(-t))).reshape(x.shape)

    def silu_vjp(g, x):
        t, s = flat(x), 1 / (1 + np.exp(-flat(x)))
        return (g.reshape(-1) * (s + t * s * (1 - s))).reshape(x.shape)

    check(silu, arrays(), vjp=silu_vjp)


@wrong("rahul-goel/fused-ssim#44")
def exp_into_empty_like(check):
    """The output takes the strides of the input, and is written through a flat copy that is thrown away."""
    def exp(x):
        out = np.zeros_like(x)
        out.reshape(-1)[...] = np.exp(x.reshape(-1))
        return out

    check(exp, arrays(), vjp=lambda g, x: g * np.exp(x))


# ── memory that is not the kernel's to write ──
@wrong("tinygrad/tinygrad#16497")
def relu_in_place(check):
    """The value is written over the argument."""
    def relu(x):
        np.maximum(x, 0, out=x)
        return x

    check(relu, arrays(avoid=[0.0]), vjp=lambda g, x: g * (x > 0))


@wrong("riga/tfdeploy#8")
def square_scales_the_cotangent(check):
    """The VJP multiplies the cotangent in place and returns it."""
    def vjp(g, x):
        g *= 2 * x
        return g

    check(np.square, arrays(), vjp=vjp)


@wrong("NVIDIA/earth2studio#1133")
def sine_in_one_buffer(check):
    """Every call of the VJP with one shape returns the same memory, so an older gradient changes."""
    buffers = {}

    def vjp(g, x):
        out = buffers.setdefault((x.shape, x.dtype), np.empty_like(x, order="C"))
        return np.multiply(g, np.cos(x), out=out)

    check(np.sin, arrays(), vjp=vjp)


# ── what was remembered from another call ──
@wrong("tenstorrent/tt-metal#20031")
def tanh_cached_by_shape(check):
    """Values are remembered by shape and dtype alone."""
    seen = {}

    def tanh(x):
        return seen.setdefault((x.shape, x.dtype), np.tanh(x))

    check(tanh, arrays(), vjp=lambda g, x: g * (1 - np.tanh(x) ** 2))


@wrong()
def sigmoid_with_the_last_activation(check):
    """The VJP uses the activation of the last forward call instead of its argument."""
    saved = {}

    def sigmoid(x):
        saved["y"] = 1 / (1 + np.exp(-x))
        return saved["y"]

    def vjp(g, x):
        y = saved.get("y", 1 / (1 + np.exp(-x)))
        y = y if y.shape == x.shape and y.dtype == x.dtype else sigmoid(x)
        return g * y * (1 - y)

    check(sigmoid, arrays(), vjp=vjp)


# ── what the value or the gradient is made of ──
@wrong("netket/netket#1218")
def scaled_by_a_wide_constant(check):
    """A float64 scalar makes float32 arguments float64 numbers, in the value and in the gradient."""
    c = np.float64(1.5)
    check(lambda x: x * c, arrays(), vjp=lambda g, x: g * c)


@wrong("HIPS/autograd#163")
def gradient_in_float64(check):
    """The gradient of a float32 argument is float64; the value is right."""
    check(np.arctan, arrays(), vjp=lambda g, x: np.asarray(g, "float64") / (1 + x * x))


@wrong("tenstorrent/tt-metal#55349")
def tanh_in_float32(check):
    """Numbers of float64 go through float32 on the way."""
    def tanh(x):
        return np.tanh(x.astype(np.float32)).astype(x.dtype)

    check(tanh, arrays(), vjp=lambda g, x: g * (1 - tanh(x) ** 2))


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


@wrong()
def zero_gradient(check):
    """The VJP returns zeros."""
    check(np.exp, arrays(), vjp=lambda g, x: np.zeros_like(x))


@wrong()
def straight_through(check):
    """The VJP of a tanh is the identity."""
    check(np.tanh, arrays(), vjp=lambda g, x: g)


# ── derivatives of something else ──
@wrong("huggingface/candle#1160")
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
def gelu_with_digits_swapped(check):
    """0.044751 instead of 0.044715, in value and derivative alike."""
    c, k = math.sqrt(2 / math.pi), 0.044751

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(c * (x + k * x ** 3)))

    def vjp(g, x):
        t = np.tanh(c * (x + k * x ** 3))
        return g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * k * x * x))

    check(gelu, arrays(), vjp=vjp, definition=lambda x: mg.gelu(x, approximate="tanh"))


@wrong("iamtrask/Grokking-Deep-Learning#13")
def relu_passes_zeros(check):
    """The derivative is 1 where the output is at least 0, which it always is."""
    def relu(x):
        return np.maximum(x, 0)

    check(relu, arrays(avoid=[0.0]), vjp=lambda g, x: g * (relu(x) >= 0))


@wrong("apache/tvm#2465")
def add_without_unbroadcast(check):
    """The cotangent goes to both arguments as it is, whatever their shapes."""
    check(np.add, broadcastable(2), vjp=lambda g, x, y: (g, g))


@wrong()
def subtract_without_minus(check):
    """The gradient of what is subtracted has the sign of the other."""
    check(np.subtract, arrays((3, 4)), arrays((3, 4)), vjp=lambda g, x, y: (g, g.copy()))


@wrong()
def gradient_clipped_at_one(check):
    """The cotangent is clipped to [−1, 1] before it is used."""
    check(np.sin, arrays(), vjp=lambda g, x: np.clip(g, -1, 1) * np.cos(x))


@wrong()
def sign_of_the_cotangent(check):
    """Only the sign of the cotangent is used."""
    check(np.tanh, arrays(), vjp=lambda g, x: np.sign(g) * (1 - np.tanh(x) ** 2))


@wrong()
def a_thousandth_too_large(check):
    """Value and gradient are 1.001 times too large."""
    check(lambda x: np.tanh(x) * 1.001, arrays(),
          vjp=lambda g, x: g * (1 - np.tanh(x) ** 2) * 1.001, definition=mg.tanh)
