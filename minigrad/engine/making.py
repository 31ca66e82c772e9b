"""Functions that make Tensors of numbers, lists, arrays, and other libraries' arrays."""
from __future__ import annotations

from typing import Any

from .. import backend
from ..backend.base import FLOATS
from ..errors import DTypeError, GraphError
from .graph import state
from .tensor import Tensor


class Parameter(Tensor):
    """A leaf that a Module finds among its attributes and an optimiser changes.

    value: a Tensor, whose memory is shared, or any value that `tensor` accepts, which is copied.
    """

    __slots__ = ()

    def __init__(self, value: Any, requires_grad: bool = True) -> None:
        super().__init__(value.array if isinstance(value, Tensor) else tensor(value).array)
        self.requires_grad_(requires_grad)


def tensor(value: Any, *, dtype: Any = None, device: str | None = None,
           requires_grad: bool = False) -> Tensor:
    """A Tensor with a copy of `value`.

    value: numbers, nested lists, an array, a Tensor, or any object that supports DLPack. dtype: an
    array keeps its own by default; Python floats become float32, Python ints int64. device:
    "numpy", "cupy" or "cupy:N"; an array stays on its own by default, anything else goes to
    "numpy". GraphError for a list that holds Tensors which require gradients: the gradients would
    be lost.
    """
    dtype = backend.dtype(dtype)
    if isinstance(value, list | tuple) and _holds_gradients(value):
        raise GraphError("tensor: a list of Tensors that require gradients would lose them; use "
                         "mg.stack([...]), or detach() them first")
    if isinstance(value, Tensor):
        value = value.array
    foreign = not hasattr(value, "dtype")
    if device is None:
        try:
            there = backend.of(value).device(value)
        except TypeError:
            there = backend.Device(backend.cpu)
    else:
        there = backend.get(device)
    known = (*there.backend.array_types, *backend.cpu.array_types)
    if hasattr(value, "__dlpack__") and not isinstance(value, known):
        value, foreign = _from_dlpack(value), False
    if not isinstance(value, there.backend.array_types) and not foreign:
        value = backend.of(value).host(value)
    if foreign:                                         # numbers first become an array on the CPU
        value = backend.cpu.array(value, dtype=dtype)
        if dtype is None and value.dtype == "float64":
            value = value.astype("float32")
    array = there.array(value, dtype=dtype)
    if array.dtype.kind not in "iub" + FLOATS:
        raise DTypeError(f"tensor: numbers are needed, but the dtype is {array.dtype}")
    out = Tensor(array)
    return out.requires_grad_() if requires_grad else out


def _holds_gradients(values: Any) -> bool:
    """Whether a list holds a Tensor that requires a gradient, at any depth."""
    if set(map(type, values)) <= {int, float, bool}:
        return False
    return any(v.node is not None if isinstance(v, Tensor)
               else isinstance(v, list | tuple) and _holds_gradients(v) for v in values)


def _from_dlpack(value: Any) -> Any:
    kind, _ = value.__dlpack_device__()
    library = backend.cpu if int(kind) == 1 else backend.get("cupy").backend
    return library.namespace.from_dlpack(value)


def from_dlpack(value: Any) -> Tensor:
    """A constant Tensor that shares the memory of any object that supports DLPack."""
    return Tensor(_from_dlpack(value))


def asarray(value: Any) -> Any:
    """The array of a Tensor; an array as it is; numbers and lists as `tensor` converts them."""
    if isinstance(value, Tensor):
        return value.array
    if hasattr(value, "dtype"):
        return backend.of(value).adopt(value)
    return tensor(value).array


def is_grad_enabled() -> bool:
    """Whether operations are being recorded in this thread."""
    return state.recording
