"""Tables of derivatives, and the operators they give to Tensor."""
from __future__ import annotations

from numbers import Integral
from typing import Any

from .. import backend
from ..tensor import Tensor
from . import elementwise, index, linalg, numpy_protocol, reduce, shape


def _index(key: Any) -> Any:
    """An index with its Tensors replaced by their arrays. IndexError where NumPy and PyTorch put the axes in different orders."""
    if not isinstance(key, tuple):
        return key.array if isinstance(key, Tensor) else key
    plain = tuple(k.array if isinstance(k, Tensor) else k for k in key)
    kinds = ["integer" if isinstance(k, Integral) else "slice" if k is None or k is ... or isinstance(k, slice) else "array" for k in plain]
    # arrays that a slice parts put their axes first; NumPy counts an integer among them, and PyTorch takes it away before
    if "array" in kinds and "slice" in kinds[:kinds.index("array")] and _parted(kinds, "array", "integer") and not _parted(kinds, "array"):
        raise IndexError("x[i, :, k] with an integer and an array apart has its axes in another order in NumPy than in PyTorch; "
                         "write x[i][:, k] for PyTorch's")
    return plain


def _parted(kinds: list[str], *some: str) -> bool:
    """Whether a slice stands between the first and the last of these kinds of indices."""
    at = [i for i, kind in enumerate(kinds) if kind in some]
    return "slice" in kinds[at[0]:at[-1]]


def _axes(axes: tuple[Any, ...]) -> Any:
    """Sizes or axes given one by one or as one sequence."""
    return axes[0] if len(axes) == 1 and getattr(axes[0], "__len__", None) and getattr(axes[0], "ndim", 1) else axes


def _attach() -> None:
    """Give Tensor its operators and methods. Tensor itself knows of no op, so that ops can know Tensor."""
    e, r, s = elementwise, reduce, shape
    binary: dict[str, Any] = {"add": e.add, "sub": e.sub, "mul": e.mul, "truediv": e.div, "pow": e.power, "matmul": linalg.matmul}
    for name, f in binary.items():
        setattr(Tensor, f"__{name}__", lambda a, b, f=f.__call__: f(a, b))
        setattr(Tensor, f"__r{name}__", lambda a, b, f=f.__call__: f(b, a))
    for name, symbol in {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "pow": "**"}.items():
        setattr(Tensor, f"__i{name}__", lambda a, b, f=binary[name], symbol=symbol: a._become(symbol, f(a, b)))
    for name, f in {"eq": e.equal, "ne": e.not_equal, "lt": e.less, "le": e.less_equal, "gt": e.greater, "ge": e.greater_equal}.items():
        # beside None: NotImplemented, so that Python compares identities, as it does for PyTorch
        setattr(Tensor, f"__{name}__", lambda a, b, f=f: NotImplemented if b is None else f(a, b))
    for name, f in {
        "exp": e.exp,
        "log": e.log,
        "sqrt": e.sqrt,
        "tanh": e.tanh,
        "erf": e.erf,
        "sigmoid": e.sigmoid,
        "relu": e.relu,
        "abs": e.abs,
        "type_as": e.type_as,
        "clip": e.clip,
        "sum": r.sum,
        "mean": r.mean,
        "var": r.var,
        "max": r.max,
        "min": r.min,
        "logsumexp": r.logsumexp,
        "prod": r.prod,
        "split": s.split,
        "tril": s.tril,
        "triu": s.triu,
        "take": index.take,
        "gather": index.gather,
        "scatter_add": index.scatter_add,
    }.items():
        setattr(Tensor, name, lambda self, *a, f=f, **k: f(self, *a, **k))
    methods: dict[str, Any] = {
        "__neg__": lambda self: e.neg(self),
        "__abs__": lambda self: e.abs(self),
        "__getitem__": lambda self, key: index.getitem(self, index=_index(key)),
        "to": lambda self, other: e.astype(self, dtype=other) if backend.is_dtype(other) else s.to(self, other),
        "astype": lambda self, dtype: e.astype(self, dtype=dtype),
        "reshape": lambda self, *sizes: s.reshape(self, shape=_axes(sizes)),
        "transpose": lambda self, axis0=None, axis1=None: s.transpose(self, axis0=axis0, axis1=axis1),
        "permute": lambda self, *axes: s.permute(self, axes=_axes(axes)),
        "view": lambda self, *sizes: s.reshape(self, shape=_axes(sizes)),
        "flatten": lambda self, start_dim=0, end_dim=-1: s.flatten(self, start_dim, end_dim),
        "squeeze": lambda self, dim=None: s.squeeze(self, dim),
        "unsqueeze": lambda self, dim: s.unsqueeze(self, dim),
        "dim": lambda self: self.ndim,
        "cpu": lambda self: s.to(self, "numpy"),
        "cuda": lambda self, device=0: s.to(self, device if isinstance(device, str) else f"cupy:{device}"),
        **{name: lambda self, dtype=dtype: e.astype(self, dtype=dtype) for name, dtype in (
            ("float", "float32"), ("double", "float64"), ("half", "float16"), ("bfloat16", "bfloat16"), ("long", "int64"), ("int", "int32"),
            ("bool", "bool"))},
        "T": property(lambda self: s.transpose(self)),
        "mT": property(lambda self: s.matrix_transpose(self)),
    }
    for name, method in methods.items():
        setattr(Tensor, name, method)


_attach()
numpy_protocol.attach()
