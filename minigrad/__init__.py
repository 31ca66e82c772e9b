"""minigrad: reverse-mode automatic differentiation over NumPy and CuPy arrays.

    import minigrad as mg
    x = mg.tensor([1.0, 2.0, 3.0], requires_grad=True)
    y = (x * x).sum()
    y.backward()                                        # x.grad is [2, 4, 6]
    mg.grad(lambda x: (x * x).sum())(x)                 # the same, as a function
"""
import builtins as _builtins
from typing import TYPE_CHECKING as _TYPE_CHECKING

from . import backend, errors, fused, nn, optim, random
from .backend import get_float32_matmul_precision, set_float32_matmul_precision
from .creation import arange, eye, full, full_like, linspace, ones, ones_like, rand, randn, zeros, zeros_like
from .errors import BackendUnavailable, DeviceError, DTypeError, GraphError, MinigradError, OutOfMemoryError, ShapeError
from .fused import (
    add_layer_norm,
    attention,
    cross_entropy,
    dropout,
    gelu,
    layer_norm,
    linear_cross_entropy,
    log_softmax,
    packed_linear,
    softmax,
)
from .graph import enable_grad, no_grad
from .ops.elementwise import (
    abs,
    astype,
    clip,
    erf,
    exp,
    log,
    maximum,
    minimum,
    power,
    relu,
    sigmoid,
    sign,
    sqrt,
    tanh,
    where,
)
from .ops.index import embedding, gather, scatter_add, take
from .ops.linalg import addmm, einsum, linear, matmul
from .ops.reduce import logsumexp, max, mean, min, prod, sum, var
from .ops.shape import (
    broadcast_to,
    concat,
    flatten,
    join_heads,
    permute,
    reshape,
    split,
    split_heads,
    squeeze,
    stack,
    stop_gradient,
    transpose,
    tril,
    triu,
    unsqueeze,
)
from .tensor import Parameter, Tensor, from_dlpack, is_grad_enabled, tensor
from .transforms import checkpoint, grad, gradients, hessian, hvp, jacobian, jvp, value_and_grad, vjp

__version__ = "0.1.0"

float16, bfloat16, float32, float64, int32, int64 = "float16", "bfloat16", "float32", "float64", "int32", "int64"

# a star import shadows no builtin: abs, max, min and sum are minigrad.abs and so on
__all__ = [name for name in dir() if not name.startswith("_") and not hasattr(_builtins, name)]

if not _TYPE_CHECKING:

    def __getattr__(name):
        from . import hints

        if name.startswith("__"):
            raise AttributeError(f"module 'minigrad' has no attribute {name!r}")
        raise hints.unknown("minigrad", name, hints.MODULE, [*globals()])
