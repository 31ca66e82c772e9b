"""NumPy's functions on Tensors: np.exp(x), np.concatenate([x, y]) and np.linalg.norm(x).

Each is recorded, or refused with an error that names it. When a Tensor is passed to a function of
NumPy, NumPy calls a method of the Tensor instead (NEP 13 for ufuncs, NEP 18 for all others).
Without these methods it would compute on the Tensor's array and return an array without a graph, so
the gradient would be lost silently. Here

* a function for which there is an op calls the op, with NumPy's arguments (`OPERATORS`, `UFUNCS`,
  `numpy_functions`);
* a function that returns integers or bools, or whose derivative is zero everywhere, is computed on
  the arrays (`CONSTANT`);
* every other function is computed on the arrays if no argument requires a gradient, and raises
  GraphError if one does.
"""
from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from ..engine.tensor import Tensor
from ..errors import DeviceError, GraphError
from . import elementwise as e
from .numpy_functions import FUNCTIONS, NONE, bare
from .shape import identity

# NumPy computes an operator whose left operand is an array by a ufunc. This table calls the
# Tensor's own method instead, so array + x is computed as x + array is.
OPERATORS: dict[Any, tuple[str, str]] = {
    np.add: ("__add__", "__radd__"), np.subtract: ("__sub__", "__rsub__"),
    np.multiply: ("__mul__", "__rmul__"), np.divide: ("__truediv__", "__rtruediv__"),
    np.power: ("__pow__", "__rpow__"), np.matmul: ("__matmul__", "__rmatmul__"),
    np.equal: ("__eq__", "__eq__"), np.not_equal: ("__ne__", "__ne__"),
    np.less: ("__lt__", "__gt__"), np.less_equal: ("__le__", "__ge__"),
    np.greater: ("__gt__", "__lt__"), np.greater_equal: ("__ge__", "__le__"),
}
NO_OPERATORS = {np.floor_divide: "//", np.remainder: "%", np.divmod: "divmod",
                np.bitwise_and: "&", np.bitwise_or: "|", np.bitwise_xor: "^",
                np.left_shift: "<<", np.right_shift: ">>", np.invert: "~"}
UFUNCS: dict[Any, Callable[..., Any]] = {
    np.negative: e.neg, np.absolute: e.abs, np.fabs: e.abs, np.exp: e.exp, np.log: e.log,
    np.sqrt: e.sqrt, np.sin: e.sin, np.cos: e.cos, np.expm1: e.expm1, np.log1p: e.log1p,
    np.tanh: e.tanh, np.sign: e.sign, np.maximum: e.maximum, np.minimum: e.minimum,
    np.positive: identity, np.square: lambda x: x * x, np.reciprocal: lambda x: 1.0 / x,
}
CONSTANT = frozenset("""
    all allclose any argmax argmin argpartition argsort argwhere array2string array_equal
    array_equiv array_repr array_str can_cast common_type count_nonzero diag_indices_from digitize
    einsum_path empty_like flatnonzero isclose iscomplex iscomplexobj isfinite isin isinf isnan
    isnat isneginf isposinf isreal isrealobj lexsort logical_and logical_not logical_or logical_xor
    may_share_memory min_scalar_type nanargmax nanargmin ndim nonzero ones_like result_type save
    savetxt savez savez_compressed searchsorted shape shares_memory signbit size tril_indices_from
    triu_indices_from zeros_like""".split())
# NumPy's arguments that no op has
REFUSED = ("dtype", "out", "initial", "where", "order", "copy", "subok", "casting", "mode", "mean")
INSTEAD = {                                             # what to write for a refused function
    "append": "np.concatenate", "array_split": "np.split with the indices to cut at",
    "average": "x.mean(axis=…), or (w * x).sum() / w.sum()",
    "copy": "x itself, because no op changes it",
    "cosh": "(mg.exp(x) + mg.exp(-x)) / 2", "cov": "mg.einsum",
    "diagonal": "x[range(n), range(n)]", "diff": "x[1:] - x[:-1]",
    "exp2": "mg.exp(x * math.log(2))",
    "fliplr": "x[:, ::-1]", "flipud": "x[::-1]", "float_power": "x ** b", "fmax": "mg.maximum",
    "fmin": "mg.minimum",
    "hsplit": "np.split(x, …, axis=1)", "hypot": "mg.sqrt(x * x + y * y)", "kron": "mg.einsum",
    "log10": "mg.log(x) / math.log(10)", "log2": "mg.log(x) / math.log(2)",
    "logaddexp": "mg.logsumexp",
    "matrix_power": "@", "matvec": "mg.matmul", "multi_dot": "@",
    "nan_to_num": "mg.where(np.isnan(x), 0.0, x)",
    "ptp": "x.max() - x.min()", "put": "mg.scatter_add", "repeat": "mg.take",
    "rollaxis": "np.moveaxis",
    "sinh": "(mg.exp(x) - mg.exp(-x)) / 2",
    "tensordot": "mg.einsum", "tile": "mg.concat", "trace": "x[range(n), range(n)].sum()",
    "unstack": "tuple(x)",
    "vecdot": "(x * y).sum(axis=-1)", "vecmat": "mg.matmul", "vsplit": "np.split(x, …, axis=0)",
}


def name_of(f: Any) -> str:
    """The function's name as people write it, such as np.linalg.norm."""
    return f"{getattr(f, '__module__', 'numpy').replace('numpy', 'np')}.{f.__name__}"


def tensors(x: Any) -> list[Tensor]:
    """The Tensors among the arguments, including those in lists, tuples and dicts."""
    if isinstance(x, Tensor):
        return [x]
    parts = x.values() if isinstance(x, dict) else x if isinstance(x, list | tuple) else ()
    return [t for part in parts for t in tensors(part)]


def on_arrays(f: Any, args: Any, options: Any, how: str = "", method: str = "__call__") -> Any:
    """Compute f, or a method of the ufunc f, on the arrays of the Tensors.

    GraphError if a gradient would be lost. how: what in the call prevents the use of an op, for the
    message; "" if there is no op at all.
    """
    given = tensors([args, options])
    if f.__name__ not in CONSTANT and any(t.node is not None for t in given):
        instead = ("" if how else f"; use {INSTEAD[f.__name__]}" if f.__name__ in INSTEAD else
                   "; there is no op for it")
        raise GraphError(f"{name_of(f)}{how} would lose the gradient of a Tensor{instead}; if you "
                         "need no gradient, pass x.detach().numpy()")
    if away := [t.device for t in given if t.device != "numpy"]:
        raise DeviceError(f"{name_of(f)} of a Tensor on {away[0]}: there is no op for it; pass "
                          "x.numpy(), which copies it to the host")
    return getattr(f, method)(*bare(args), **bare(options))


def array_ufunc(self: Tensor, ufunc: Any, method: str, *args: Any, **options: Any) -> Any:
    """Compute a ufunc of NumPy whose arguments hold a Tensor.

    GraphError if a gradient would be lost; TypeError for out=, and for an operator that Tensors do
    not have.
    """
    if "out" in options:
        raise TypeError(f"{name_of(ufunc)}: a Tensor cannot be written into an array in place "
                        "(out=, a += x); write a = a + x, or use x.detach().numpy()")
    if ufunc in NO_OPERATORS:
        raise TypeError(f"{name_of(ufunc)}: Tensors have no operator {NO_OPERATORS[ufunc]}; "
                        "x.detach().numpy() has it, without a gradient")
    if method != "__call__":
        return on_arrays(ufunc, args, options, f".{method}", method)
    if options:
        return on_arrays(ufunc, args, options, f" with {next(iter(options))}=")
    if ufunc in OPERATORS:
        a, b = args
        forward, reflected = OPERATORS[ufunc]
        return getattr(a, forward)(b) if isinstance(a, Tensor) else getattr(b, reflected)(a)
    return UFUNCS[ufunc](*args) if ufunc in UFUNCS else on_arrays(ufunc, args, options)


def array_function(self: Tensor, f: Any, types: Any, args: Any, options: Any) -> Any:
    """Compute another function of NumPy whose arguments hold a Tensor.

    GraphError if the function, or one of its arguments, would lose a gradient.
    """
    if f not in FUNCTIONS:
        return on_arrays(f, args, options)
    ours, signature = FUNCTIONS[f]
    try:
        bound = signature.bind(*args, **{k: v for k, v in options.items() if v is not NONE})
    except TypeError:       # NumPy alone has these arguments, or they are wrong and it says so
        return on_arrays(f, args, options, ": these arguments")
    for name, value in bound.arguments.items():
        default = signature.parameters[name].default
        if (name in REFUSED and value is not NONE and value is not default
                and default is not inspect.Parameter.empty):
            return on_arrays(f, args, options, f" with {name}=")
    variadic = "operands" in bound.arguments            # np.einsum's
    made = ours(*bound.args, **bound.kwargs) if variadic else ours(**bound.arguments)
    return on_arrays(f, args, options, ": these arguments") if made is NotImplemented else made


def attach() -> None:
    """Give Tensor the methods that NumPy calls when a Tensor is passed to one of its functions."""
    Tensor.__array_ufunc__ = array_ufunc                # type: ignore[attr-defined]
    Tensor.__array_function__ = array_function          # type: ignore[attr-defined]
