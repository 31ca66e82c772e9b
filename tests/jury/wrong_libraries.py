"""Wrong functions in PyTorch and JAX, wrong functions of Tensors, and wrong new ops."""
from __future__ import annotations

import numpy as np

import minigrad as mg
from minigrad.op import REGISTRY, elementwise, op
from minigrad.testing import arrays, shapes

from .entry import Skipped, wrong
from .right_libraries import from_jax, from_torch, torch

ROWS = shapes(least=1, side=1)


def needs_torch():
    if torch is None:
        raise Skipped("PyTorch is not installed: pip install torch")


# ── PyTorch ──
@wrong()
def torch_function_with_a_wrong_backward(check):
    """The backward pass of a torch.autograd.Function uses its output instead of its input."""
    needs_torch()

    class Swish(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            y = x * torch.sigmoid(x)
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            s = torch.sigmoid(x)
            return g * (s + x * s * (1 - s))

    f, vjp = from_torch(Swish.apply)
    check(f, arrays(), vjp=vjp)


@wrong()
def torch_with_a_detached_statistic(check):
    """The maximum may be detached in a softmax, the sum may not."""
    def softmax(x):
        e = torch.exp(x - x.amax(-1, keepdim=True).detach())
        return e / e.sum(-1, keepdim=True).detach()

    needs_torch()
    f, vjp = from_torch(softmax)
    check(f, arrays(ROWS), vjp=vjp)


@wrong()
def torch_in_float(check):
    """`.float()` converts float64 arguments to float32; the result is cast back at the end."""
    f, vjp = from_torch(lambda x: torch.nn.functional.silu(x.float()).to(x.dtype))
    check(f, arrays(), vjp=vjp)


@wrong()
def torch_gelu_that_is_not_gpt2s(check):
    """torch.nn.functional.gelu is exact by default, but the definition is the tanh form."""
    f, vjp = from_torch(lambda x: torch.nn.functional.gelu(x))
    check(f, arrays(), vjp=vjp, definition=lambda x: mg.gelu(x, approximate="tanh"))


@wrong()
def torch_sharing_memory_with_the_argument(check):
    """torch.from_numpy shares memory, and add_ writes to it."""
    needs_torch()

    def shifted(x):
        return torch.from_numpy(x).add_(1.0).numpy()

    check(shifted, arrays((3, 4)), vjp=lambda g, x: g)


# ── JAX ──
@wrong()
def jax_without_x64(check):
    """JAX converts float64 arrays to float32 unless jax_enable_x64 is set."""
    f, vjp = from_jax(lambda jax, x: jax.numpy.tanh(x), compiled=True)
    check(f, arrays(), vjp=vjp)


@wrong()
def jax_custom_vjp_wrong(check):
    """The backward function of a jax.custom_vjp is that of an arctan; the value is a tanh."""
    def f(jax, x):
        clipped = jax.custom_vjp(lambda x: jax.numpy.tanh(x))
        clipped.defvjp(lambda x: (jax.numpy.tanh(x), x), lambda x, g: (g / (1 + x * x),))
        return clipped(x)

    value, vjp = from_jax(f, compiled=True)
    check(value, arrays((3, 4)), vjp=vjp, dtypes=["float32"])


# ── functions of our Tensors ──
@wrong()
def tensors_variance_as_a_constant(check):
    """The variance is cut off from the graph; the value is right."""
    def norm(x):
        d = x - mg.mean(x, axis=-1, keepdims=True)
        return d / mg.sqrt(mg.stop_gradient(mg.mean(d * d, axis=-1, keepdims=True)) + 1e-5)

    check(norm, arrays((3, 5)))


@wrong()
def tensors_softmax_of_the_wrong_axis(check):
    """A softmax composed of ops sums over the first axis."""
    def softmax(x):
        e = mg.exp(x - mg.stop_gradient(mg.max(x, axis=0, keepdims=True)))
        return e / mg.sum(e, axis=0, keepdims=True)

    check(softmax, arrays((4, 4)), definition=mg.softmax)


@wrong()
def tensors_through_numpy(check):
    """A part of the function goes through NumPy, where nothing is recorded."""
    check(lambda x: x * mg.tensor(np.tanh(x.numpy())), arrays((3, 4)))


@wrong()
def tensors_attention_without_scale(check):
    """A product, a softmax and a product without 1/√d, compared with the fused op."""
    def attention(q, k, v):
        return mg.softmax(q @ k.mT) @ v

    check(attention, *[arrays((2, 5, 4))] * 3,
          definition=lambda q, k, v: mg.attention(q, k, v, causal=False))


# ── ops of one's own ──
def anew(name):
    """Remove an op of this name, so that an entry can be run more than once."""
    REGISTRY.pop(name, None)


@wrong()
def op_with_a_missing_factor(check):
    """The rule of a softplus is the derivative of a sigmoid."""
    anew("jury_softplus")

    @elementwise(x=lambda g, x: g * mg.sigmoid(x) * (1.0 - mg.sigmoid(x)))
    def jury_softplus(xp, x):
        return xp.log1p(xp.exp(-xp.abs(x))) + xp.maximum(x, 0.0)

    check(jury_softplus, arrays())


@wrong()
def op_that_uses_numpy(check):
    """The kernel calls NumPy instead of the library xp, so it fails for arrays of a GPU."""
    anew("jury_sine")

    @elementwise(x=lambda g, x: g * jury_cosine(x))
    def jury_sine(xp, x):
        return np.sin(x)

    anew("jury_cosine")

    @elementwise(x=lambda g, x: -(g * jury_sine(x)))
    def jury_cosine(xp, x):
        return xp.cos(x)

    check(jury_sine, arrays())


@wrong()
def op_with_a_residual_misspelt(check):
    """The rule names a residual `outt`, which does not exist."""
    anew("jury_tanh")

    @elementwise(x=lambda g, outt: g * (1.0 - outt * outt))
    def jury_tanh(xp, x):
        return xp.tanh(x)

    check(jury_tanh, arrays())


@wrong()
def op_without_a_return(check):
    """The rule computes a gradient and does not return it."""
    anew("jury_square")

    def rule(g, x):
        g = g * x * 2.0

    @elementwise(x=rule)
    def jury_square(xp, x):
        return x * x

    check(jury_square, arrays())


@wrong()
def op_that_keeps_axes(check):
    """The rule of a sum returns the cotangent without broadcasting it."""
    anew("jury_rows")

    @op(x=lambda g: g)
    def jury_rows(xp, x):
        return xp.sum(x, axis=-1, keepdims=True)

    check(jury_rows, arrays((3, 4)))


@wrong()
def op_right_once(check):
    """The rule is right, but it computes on plain arrays, so its own derivative is lost."""
    anew("jury_cube")

    @elementwise(x=lambda g, x: g * (mg.stop_gradient(x) * x) * 3.0)
    def jury_cube(xp, x):
        return x * x * x

    check(jury_cube, arrays())
