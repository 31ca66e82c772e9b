"""The engine's error messages; each function makes the error after a check has failed."""
from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import backend, hints
from ..backend.base import FLOATS, Backend
from ..errors import DeviceError, DTypeError, GraphError, MinigradError, ShapeError
from .declaration import SCALARS

if TYPE_CHECKING:
    from .graph import Node


# ── arguments ──
def no_name(op: Any, settings: dict[str, Any], error: TypeError) -> TypeError:
    """An error for a setting with a name that the op does not have."""
    theirs = hints.foreign(settings, op.signature.parameters)
    instead = [f"; for {name}= {hints.remedy(hints.SETTINGS[name])}" for name in theirs]
    return TypeError(f"{op.shown}: {error}; it takes {op.signature}{''.join(instead)}")


def no_array(op: Any, arrays: Sequence[Any]) -> TypeError:
    """An error for the first argument that is neither an array nor a number."""
    for i, a in enumerate(arrays):
        if type(a) not in SCALARS:
            try:
                backend.of(a)
            except TypeError:
                return TypeError(f"{op.shown}: {arg(op, i)} is a {type(a).__name__}; "
                                 "pass a Tensor, an array or a number")
    raise AssertionError("all are arrays")


def mixed(op: Any, arrays: Sequence[Any], nodes: Sequence[Node | None]) -> Exception:
    """An error for arguments without an array, on two devices, or of two dtypes."""
    places = [(arg(op, i), backend.of(a).device(a))
              for i, a in enumerate(arrays) if type(a) not in SCALARS]
    if not places:
        return TypeError(f"{op.shown}: no argument is a Tensor or an array; "
                         "make one with minigrad.tensor")
    for name, place in places:
        if place != places[0][1]:
            return DeviceError(f"{op.shown}: {places[0][0]} is on {places[0][1]} and {name} is on "
                               f"{place}; move one with .to(\"{place}\")")
    return _two_dtypes(op, arrays, nodes)


def _two_dtypes(op: Any, arrays: Sequence[Any], nodes: Sequence[Node | None]) -> DTypeError:
    """An error that says what to cast: integers to floats, and data to the parameters' dtype."""
    first, *others = [(arg(op, i), a.dtype, nodes[i] is not None) for i, a in enumerate(arrays)
                      if i in op.typed and type(a) not in SCALARS and a.dtype.kind != "b"]
    (name, a, trained), (other, b, trained_too) = first, next(o for o in others if o[1] != first[1])
    to, which = b if b.kind in FLOATS and a.kind not in FLOATS else a, "one"
    if trained is not trained_too:
        which, to = (other, a) if trained else (name, b)
    return DTypeError(f"{op.shown}: {name} is {a} and {other} is {b}; dtypes never mix silently, "
                      f"cast {which} with .astype(\"{to}\")")


# ── results ──
def float_of_integers(op: Any, arrays: Sequence[Any], dtype: Any) -> DTypeError:
    """An error for a differentiable op that computed floats from integers."""
    return DTypeError(f"{op.shown}: {described(op, arrays)} would become {dtype}; cast first, "
                      "as in x.astype(\"float32\")")


def translate(op: Any, here: Backend, arrays: Sequence[Any], settings: dict[str, Any],
              error: Exception) -> None:
    """Raise minigrad's error for a kernel's exception; return if the exception needs no change."""
    fits = op.variadic or op.required <= len(arrays) <= len(op.args)
    lacks = [name for name, value in settings.items() if value is inspect.Parameter.empty]
    if lacks and fits:
        raise TypeError(f"{op.shown} is called without {' and '.join(lacks)}; "
                        f"it takes {op.signature}") from error
    if isinstance(error, MinigradError):
        return
    if not isinstance(error, ValueError | TypeError | IndexError):
        if (ours := here.explained(error, f"{op.shown}: {described(op, arrays)}")) is not None:
            raise ours from None
        return
    if not fits:
        raise TypeError(f"{op.shown}: {len(arrays)} arguments given; "
                        f"it takes {op.signature}") from error
    said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    given = ", ".join([f"{k}={v!r}" for k, v in settings.items()])
    given = f"; {given}" if given else ""
    kind = ShapeError if not isinstance(error, TypeError) else DTypeError
    raise kind(f"{op.shown}: {described(op, arrays)}{given}: {said}") from error


# ── rules ──
def no_residual(op: Any, name: str) -> TypeError:
    """An error for a rule that names a residual which nothing saves."""
    return TypeError(f"{op.shown}: a rule names {name!r}, which is no argument of the kernel "
                     f"({', '.join(op.args)}), no setting, not out, and nothing that the kernel "
                     "saves")


def changed(node: Node) -> GraphError:
    """An error for a saved value that was changed between the forward and the backward pass."""
    return GraphError(f"{node}: a value that its gradient needs was changed after it was used; "
                      "run forward again")


def used_up(node: Node) -> GraphError:
    """An error for a second backward pass through a node whose residuals are freed."""
    return GraphError(f"a backward pass has gone through {node} already, and its residuals are "
                      "gone; pass retain_graph=True to the first one")


def no_scalar(y: Any) -> ShapeError:
    """An error for a backward pass from a non-scalar without a cotangent."""
    return ShapeError(f"backward of {y.dtype}{list(y.shape)} needs a gradient argument; or reduce "
                      "to a scalar first")


def no_result(op: Any, rule: Any) -> TypeError:
    return TypeError(f"{op.shown}: its rule {rule.key} returned None; is a return missing?")


def wrong_gradient(op: Any, i: int, gradient: Any, parent: Node) -> Exception:
    """An error for a rule whose result does not have the argument's shape and dtype."""
    kind = ShapeError if gradient.shape != parent.shape else DTypeError
    return kind(f"{op.shown}: ∂{op.shown}/∂{arg(op, i)} is {gradient.dtype}{list(gradient.shape)} "
                f"but {arg(op, i)} is {parent.dtype}{list(parent.shape)}; the rule is wrong")


# ── words ──
def arg(op: Any, i: int) -> str:
    """The name of argument i."""
    if op.variadic:
        return f"{op.args[0]}[{i}]"
    return op.args[i] if i < len(op.args) else f"argument {i + 1}"


def described(op: Any, arrays: Sequence[Any]) -> str:
    """The arguments with their names, dtypes and shapes."""
    shown = [f"{a.dtype}{list(a.shape)}" if hasattr(a, "dtype") else repr(a) for a in arrays]
    return ", ".join([f"{arg(op, i)} is {a}" for i, a in enumerate(shown)
                      if i < len(op.args) or op.variadic])
