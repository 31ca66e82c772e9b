"""What is put to the laws: a Subject is an op, a function, or somebody else's value and VJP."""
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
    """A law does not hold. units: the error in units of its bound, where there is one."""

    def __init__(self, message: str, units: float = float("inf")) -> None:
        super().__init__(message)
        self.units = units


class NotApplicable(Exception):
    """A law says nothing about this subject, or about this example; the message is the reason."""


class NotSettled(NotApplicable):
    """A difference quotient tells nothing here.

    There is a kink nearby, or the function rounds more coarsely than its dtype.
    """


@dataclass(frozen=True)
class Subject:
    """A function of Tensors, or what somebody else has in its place.

    That is, where `function` is None, the pair value(*arrays) and pull(cotangent, *arrays).
    oracle: an independent definition on NumPy arrays of the widest dtype, real or complex.
    torch: PyTorch's, as f(torch, *tensors), and the number of derivatives in which it is right.
    definition: unfused. op: whose rules are looked at. wider: whether somebody else's function may
    be asked in a wider float than that of the example.
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
    """The outputs of a function as one Tensor: as it is, or one after the other in one axis.

    They are in float32 where only some have 16 bits.
    """
    if isinstance(y, Tensor):
        return y
    if len({part.dtype for part in y}) > 1:
        y = [widened(part) for part in y]
    return concat([reshape(part, shape=(-1,)) for part in y], axis=0)


def derivative(f: Callable[..., Any]) -> Callable[..., Tensor]:
    """(x…, u) ↦ Jᵀu of f at x, all gradients in one axis: a function to put to the laws again."""
    def pulled(*args: Any, **settings: Any) -> Tensor:
        return flat(vjp(lambda *xs: flat(f(*xs, **settings)), *args[:-1])[1](args[-1]))

    return pulled


def plain(y: Any, dtype: Any, who: str) -> Any:
    """What somebody else's function returned, as a NumPy array; Broken where it is none."""
    if y is None:
        raise Broken(f"{who} returned None; is a return missing?")
    if type(y) in (int, float):                         # a number of Python has no dtype of its own
        return np.asarray(y, dtype)
    if isinstance(y, tuple | list):
        parts = [plain(part, dtype, who).reshape(-1) for part in y]
        return np.concatenate(parts) if parts else np.zeros(0, dtype)
    array = np.asarray(y)
    if array.dtype == object:
        raise Broken(f"{who} returned a {type(y).__name__}, no array")
    return array


def pulled(pull: Callable[..., Any], u: Any, arrays: Sequence[Any],
           settings: dict[str, Any]) -> list[Any]:
    grads = pull(u, *arrays, **settings)
    many = grads if isinstance(grads, tuple | list) else [grads]
    if len(many) != len(arrays):
        raise Broken(f"the VJP returned {len(many)} gradients for {len(arrays)} arrays")
    return [plain(g, arrays[0].dtype, "the VJP") for g in many]


def subject_of(f: Any) -> Subject:
    """The Subject of an op, its name, or a function of Tensors; a Subject is its own."""
    if isinstance(f, Subject):
        return f
    op = REGISTRY[f] if isinstance(f, str) else f
    if isinstance(op, Op):
        return Subject(op.name, op, definition=op.definition, op=op)
    return Subject(getattr(f, "__name__", type(f).__name__), f)
