"""Right functions in PyTorch and JAX, with the VJPs of these, and of our Tensors."""
from __future__ import annotations

import numpy as np

import minigrad as mg
from minigrad.testing import arrays, broadcastable, shapes

from .entry import Skipped, right

try:
    import torch
except ImportError:
    torch = None                                        # type: ignore[assignment]

ROWS = shapes(least=1, side=1)


# ── PyTorch ──
def from_torch(function):
    """The value and VJP of a function of torch Tensors on NumPy arrays, through copies."""
    if torch is None:
        raise Skipped("PyTorch is not installed: pip install torch")

    def given(a):
        return torch.from_numpy(np.array(a))            # a copy: PyTorch has no negative strides

    def value(*xs, **settings):
        with torch.no_grad():
            return function(*map(given, xs), **settings).numpy()

    def vjp(g, *xs, **settings):
        ts = [given(x).requires_grad_() for x in xs]
        grads = torch.autograd.grad(function(*ts, **settings), ts, given(g))
        return tuple(d.numpy() for d in grads)

    return value, vjp


@right
def torch_gelu(check):
    """torch.nn.functional.gelu."""
    f, vjp = from_torch(lambda x: torch.nn.functional.gelu(x, approximate="tanh"))
    check(f, arrays(), vjp=vjp)


@right
def torch_softmax(check):
    """torch.softmax along an axis that is a setting."""
    f, vjp = from_torch(torch.softmax if torch else None)
    check(f, arrays((3, 4, 5)), vjp=vjp, dim=1)


@right
def torch_layer_norm(check):
    """torch.nn.functional.layer_norm, compared with the definition."""
    f, vjp = from_torch(lambda x, w, b: torch.nn.functional.layer_norm(x, w.shape, w, b))
    check(f, arrays((4, 10)), arrays((10,)), arrays((10,)), vjp=vjp, definition=mg.layer_norm)


@right
def torch_attention(check):
    """scaled_dot_product_attention, causal."""
    f, vjp = from_torch(lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=True))
    check(f, *[arrays((2, 2, 6, 4))] * 3, vjp=vjp)


@right
def torch_cross_entropy(check):
    """torch.nn.functional.cross_entropy with fixed targets."""
    f, vjp = from_torch(lambda x: torch.nn.functional.cross_entropy(x, torch.tensor([1, 0, 3, 3])))
    check(f, arrays((4, 6)), vjp=vjp)


@right
def torch_conv1d(check):
    """torch.nn.functional.conv1d with a bias."""
    f, vjp = from_torch(lambda x, w, b: torch.nn.functional.conv1d(x, w, b, padding=1))
    check(f, arrays((2, 3, 7)), arrays((4, 3, 3)), arrays((4,)), vjp=vjp)


@right
def torch_function_of_its_own(check):
    """A torch.autograd.Function whose backward pass is written by hand."""
    if torch is None:
        raise Skipped("PyTorch is not installed: pip install torch")

    class Swish(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * torch.sigmoid(x)

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            s = torch.sigmoid(x)
            return g * (s + x * s * (1 - s))

    f, vjp = from_torch(Swish.apply)
    check(f, arrays(), vjp=vjp)


@right
def torch_by_dlpack(check):
    """logsumexp of arrays that are passed and returned by DLPack."""
    if torch is None:
        raise Skipped("PyTorch is not installed: pip install torch")

    def f(x):
        return np.from_dlpack(torch.logsumexp(torch.from_dlpack(x.copy()), -1))

    def vjp(g, x):
        t = torch.from_dlpack(x.copy()).requires_grad_()
        torch.logsumexp(t, -1).backward(torch.from_dlpack(np.array(g)))
        return np.from_dlpack(t.grad)

    check(f, arrays(ROWS), vjp=vjp)


@right
def torch_without_a_copy(check):
    """torch.from_numpy without a copy, which refuses negative strides with an error."""
    if torch is None:
        raise Skipped("PyTorch is not installed: pip install torch")

    def vjp(g, x):
        t = torch.from_numpy(x).requires_grad_()
        torch.erf(t).backward(torch.from_numpy(np.asarray(g)))
        return t.grad.numpy()

    check(lambda x: torch.erf(torch.from_numpy(x)).numpy(), arrays((5, 6)), vjp=vjp)


# ── JAX ──
def from_jax(function, compiled=False):
    """The value and VJP of a function of JAX arrays on NumPy arrays."""
    try:
        import jax
    except ImportError:
        raise Skipped("JAX is not installed: pip install jax") from None

    def f(*xs):
        return function(jax, *xs)

    def pulled(g, *xs):
        return jax.vjp(f, *xs)[1](g)

    run, pull = (jax.jit(f), jax.jit(pulled)) if compiled else (f, pulled)
    return lambda *xs: np.asarray(run(*xs)), lambda g, *xs: [np.asarray(d) for d in pull(g, *xs)]


@right
def jax_tanh(check):
    """jax.numpy.tanh in float32."""
    f, vjp = from_jax(lambda jax, x: jax.numpy.tanh(x), compiled=True)
    check(f, arrays(), vjp=vjp, dtypes=["float32"])


@right
def jax_softmax(check):
    """jax.nn.softmax in float32, compared with the definition."""
    f, vjp = from_jax(lambda jax, x: jax.nn.softmax(x, axis=-1), compiled=True)
    check(f, arrays((8, 40)), vjp=vjp, definition=mg.softmax, dtypes=["float32"])


@right
def jax_rms_norm(check):
    """Written in jax.numpy, compiled."""
    def norm(jax, x, w):
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * w

    f, vjp = from_jax(norm, compiled=True)
    check(f, arrays((4, 12)), arrays((12,)), vjp=vjp, dtypes=["float32"])


@right
def jax_attention(check):
    """jax.nn.dot_product_attention in float32, compiled."""
    def attention(jax, q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True)

    f, vjp = from_jax(attention, compiled=True)
    check(f, *[arrays((1, 5, 2, 4))] * 3, vjp=vjp, dtypes=["float32"])


# ── functions of our Tensors, which need no VJP ──
@right
def tensors_swish(check):
    """x·σ(x), composed of ops."""
    check(lambda x: x * mg.sigmoid(x), arrays())


@right
def tensors_softmax_unfused(check):
    """A softmax composed of ops, in which the maximum is a constant."""
    def softmax(x):
        e = mg.exp(x - mg.stop_gradient(mg.max(x, axis=-1, keepdims=True)))
        return e / mg.sum(e, axis=-1, keepdims=True)

    check(softmax, arrays(ROWS), definition=mg.softmax)


@right
def tensors_mlp(check):
    """Two layers and a loss."""
    def loss(x, w, v):
        return mg.mean((mg.tanh(x @ w) @ v) ** 2)

    check(loss, arrays((4, 3)), arrays((3, 5)), arrays((5, 2)))


@right
def tensors_of_two_outputs(check):
    """A sum and a product, returned as a tuple."""
    check(lambda x, y: (x + y, x * y), broadcastable(2))


@right
def tensors_rms_norm(check):
    """x/√(mean x² + eps), where eps is a setting."""
    def rms_norm(x, eps):
        return x / mg.sqrt(mg.mean(x * x, axis=-1, keepdims=True) + eps)

    check(rms_norm, arrays(ROWS), eps=1e-6)


@right
def tensors_attention_held_to_parts(check):
    """The fused attention, compared with a product, a softmax and a product."""
    def unfused(q, k, v):
        return mg.softmax(q @ k.mT * q.shape[-1] ** -0.5) @ v

    check(lambda q, k, v: mg.attention(q, k, v, causal=False), *[arrays((2, 4, 3))] * 3,
          definition=unfused)


@right
def tensors_silu_op(check):
    """A new op, declared as on the page about adding an op."""
    from minigrad.op import REGISTRY, elementwise

    REGISTRY.pop("jury_silu", None)

    @elementwise(x=lambda g, x: g * (mg.sigmoid(x) * (1.0 + x * (1.0 - mg.sigmoid(x)))))
    def jury_silu(xp, x):
        """x·σ(x)."""
        return x / (1.0 + xp.exp(-x))

    check(jury_silu, arrays(), definition=lambda x: x * mg.sigmoid(x))
