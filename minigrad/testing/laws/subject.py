"""What the laws are tested on: a Subject is an op, a function, or another library's kernel."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ... import backend
from ...engine.tensor import Tensor
from ...op import REGISTRY, Op
from ...ops.shape import concat, reshape
from ...transforms import vjp
from ...widen import widened


class Broken(AssertionError):
    """A law does not hold. units: the error in units of its bound; infinite if it has no bound."""

    def __init__(self, message: str, units: float = float("inf")) -> None:
        super().__init__(message)
        self.units = units


class NotApplicable(Exception):
    """A law does not apply to this subject or to this example; the message is the reason."""


class NotSettled(NotApplicable):
    """A difference quotient is too inaccurate for a test.

    There is a kink nearby, or the function rounds more coarsely than its dtype.
    """


@dataclass(frozen=True)
class Subject:
    """A function of Tensors, or two functions of plain arrays: a value and its VJP.

    function: the function of Tensors; None if the subject is the pair value(*arrays) and
    pull(cotangent, *arrays), functions of plain arrays. oracle: an independent definition on NumPy
    arrays of the widest dtype, real or complex. torch: PyTorch's function, called as
    torch(torch_module, *tensors). torch_orders: the number of derivatives that are right in
    PyTorch. definition: the unfused definition. op: the op whose rules are inspected. wider:
    whether a function of plain arrays may be called with a wider float than that of the example.
    """

    name: str
    function: Callable[..., Any] | None
    oracle: Callable[..., Any] | None = None
    torch: Callable[..., Any] | None = None
    torch_orders: int = 2
    definition: Callable[..., Any] | None = None
    op: Op | None = None
    value: Callable[..., Any] | None = None
    pull: Callable[..., Any] | None = None
    wider: bool = True


def host(x: Any) -> np.ndarray:
    """A Tensor's or an array's numbers as a NumPy array."""
    array = x.array if isinstance(x, Tensor) else x
    if isinstance(array, np.ndarray | np.generic | float | int):
        return np.asarray(array)
    return np.asarray(backend.of(array).host(array))


def flat(y: Any) -> Tensor:
    """The output of a function as one Tensor; several outputs are flattened and concatenated.

    If the outputs have different dtypes, those of 16 bits become float32.
    """
    if isinstance(y, Tensor):
        return y
    if len({part.dtype for part in y}) > 1:
        y = [widened(part) for part in y]
    return concat([reshape(part, shape=(-1,)) for part in y], axis=0)


def derivative(f: Callable[..., Any]) -> Callable[..., Tensor]:
    """(x…, u) ↦ Jᵀu of f at x, all gradients in one axis: a function to test the laws on again."""
    def pulled(*args: Any, **settings: Any) -> Tensor:
        return flat(vjp(lambda *xs: flat(f(*xs, **settings)), *args[:-1])[1](args[-1]))

    return pulled


def plain(y: Any, dtype: Any, who: str) -> Any:
    """The result of a function of plain arrays as a NumPy array; Broken if it is not an array.

    Several results are flattened and concatenated. who: the function's name in the message.
    """
    if y is None:
        raise Broken(f"{who} returned None; is a return statement missing?")
    if type(y) in (int, float):                         # a Python number has no dtype of its own
        return np.asarray(y, dtype)
    if isinstance(y, tuple | list):
        parts = [plain(part, dtype, who).reshape(-1) for part in y]
        return np.concatenate(parts) if parts else np.zeros(0, dtype)
    array = np.asarray(y)
    if array.dtype == object:
        raise Broken(f"{who} returned a {type(y).__name__}, not an array")
    return array


def pulled(pull: Callable[..., Any], u: Any, arrays: Sequence[Any],
           settings: dict[str, Any]) -> list[Any]:
    """The gradients that another library's VJP returns; Broken if their number is wrong."""
    grads = pull(u, *arrays, **settings)
    many = grads if isinstance(grads, tuple | list) else [grads]
    if len(many) != len(arrays):
        raise Broken(f"the VJP returned {len(many)} gradients for {len(arrays)} arrays")
    return [plain(g, arrays[0].dtype, "the VJP") for g in many]


def subject_of(f: Any) -> Subject:
    """The Subject of an op, of an op's name or of a function; a Subject is returned as it is."""
    if isinstance(f, Subject):
        return f
    op = REGISTRY[f] if isinstance(f, str) else f
    if isinstance(op, Op):
        return Subject(op.name, op, definition=op.definition, op=op)
    return Subject(getattr(f, "__name__", type(f).__name__), f)
