"""minigrad: reverse-mode automatic differentiation over NumPy and CuPy arrays.

    import minigrad as mg
    x = mg.tensor([1.0, 2.0, 3.0], requires_grad=True)
    y = (x * x).sum()
    y.backward()                                        # x.grad is [2, 4, 6]
    mg.grad(lambda x: (x * x).sum())(x)                 # the same, as a function
"""
import typing as _typing

from . import backend, errors, fused, nn, optim, random
from . import hints as _hints
from . import moved as _moved
from .backend import get_float32_matmul_precision, set_float32_matmul_precision
from .creation import (
    arange,
    eye,
    full,
    full_like,
    linspace,
    ones,
    ones_like,
    rand,
    randn,
    zeros,
    zeros_like,
)
from .engine.graph import enable_grad, no_grad
from .engine.making import Parameter, from_dlpack, is_grad_enabled, tensor
from .engine.tensor import Tensor
from .errors import (
    BackendUnavailable,
    DeviceError,
    DTypeError,
    GraphError,
    MinigradError,
    OutOfMemoryError,
    ShapeError,
)
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
from .ops.elementwise import (
    abs as abs,
)
from .ops.elementwise import (
    astype,
    clip,
    cos,
    erf,
    exp,
    expm1,
    log,
    log1p,
    maximum,
    minimum,
    power,
    relu,
    sigmoid,
    sign,
    sin,
    sqrt,
    tanh,
    where,
)
from .ops.index import argsort, embedding, flip, gather, pad, scatter_add, sort, take, topk
from .ops.linalg import addmm, einsum, linear, matmul
from .ops.reduce import argmax, argmin, cumsum, logsumexp, mean, norm, prod, std, var
from .ops.reduce import max as max
from .ops.reduce import min as min
from .ops.reduce import sum as sum
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
from .transforms import (
    checkpoint,
    grad,
    gradients,
    hessian,
    hvp,
    jacobian,
    jvp,
    value_and_grad,
    vjp,
)

__version__ = "0.1.0"

float16, bfloat16, float32, float64 = "float16", "bfloat16", "float32", "float64"
int32, int64 = "int32", "int64"

# abs, max, min and sum are left out: a star import would replace the builtins by them. They can be
# used as minigrad.abs and so on.
__all__ = [
    "BackendUnavailable", "DTypeError", "DeviceError", "GraphError", "MinigradError",
    "OutOfMemoryError", "Parameter", "ShapeError", "Tensor", "add_layer_norm", "addmm", "arange",
    "argmax", "argmin", "argsort", "astype", "attention", "backend", "bfloat16", "broadcast_to",
    "checkpoint", "clip", "concat", "cos", "cross_entropy", "cumsum", "dropout", "einsum",
    "embedding", "enable_grad", "erf", "errors", "exp", "expm1", "eye", "flatten", "flip",
    "float16", "float32", "float64", "from_dlpack", "full", "full_like", "fused", "gather", "gelu",
    "get_float32_matmul_precision", "grad", "gradients", "hessian", "hvp", "int32", "int64",
    "is_grad_enabled", "jacobian", "join_heads", "jvp", "layer_norm", "linear",
    "linear_cross_entropy", "linspace", "log", "log1p", "log_softmax", "logsumexp", "matmul",
    "maximum", "mean", "minimum", "nn", "no_grad", "norm", "ones", "ones_like", "ops", "optim",
    "packed_linear", "pad", "permute", "power", "prod", "rand", "randn", "random", "relu",
    "reshape", "scatter_add", "set_float32_matmul_precision", "sigmoid", "sign", "sin", "softmax",
    "sort", "split", "split_heads", "sqrt", "squeeze", "stack", "std", "stop_gradient", "take",
    "tanh", "tensor", "topk", "transpose", "tril", "triu", "unsqueeze", "value_and_grad", "var",
    "vjp", "where", "zeros", "zeros_like",
]

_moved.install()
if not _typing.TYPE_CHECKING:
    __getattr__ = _hints.missing("minigrad", _hints.MODULE, lambda: [*globals()])
