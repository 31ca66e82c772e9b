"""minigrad: reverse-mode automatic differentiation over NumPy and CuPy arrays.

    import minigrad as mg
    x = mg.tensor([1.0, 2.0, 3.0], requires_grad=True)
    y = (x * x).sum()
    y.backward()                                        # x.grad is [2, 4, 6]
    mg.grad(lambda x: (x * x).sum())(x)                 # the same, as a function
"""
from . import backend, errors, fused, nn, optim, random
from .backend import get_float32_matmul_precision, set_float32_matmul_precision
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
    join_heads,
    permute,
    reshape,
    split,
    split_heads,
    stack,
    stop_gradient,
    transpose,
    tril,
    triu,
)
from .tensor import Parameter, Tensor, from_dlpack, is_grad_enabled, tensor
from .transforms import checkpoint, grad, gradients, hessian, hvp, jacobian, jvp, value_and_grad, vjp

__version__ = "0.1.0"

__all__ = [name for name in dir() if not name.startswith("_")]
