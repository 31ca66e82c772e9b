"""What an op refuses, and in which words. Each check is a few comparisons; what is said when one of
them fails is put together in a function of its own."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import axes, backend, hints
from ..backend.base import FLOATS, Backend
from ..errors import DeviceError, DTypeError, GraphError, MinigradError, ShapeError
from .graph import Node

SCALARS = frozenset((float, int, bool, type(None)))
PYTORCHS = {"dim": "axis", "keepdim": "keepdims", "dims": "axes"}     # PyTorch's names of settings
Args = tuple[Any, ...]
_INTEGER = frozenset((int, type(None)))


# ── arguments ──
def bound(op: Any, args: Args, settings: dict[str, Any]) -> tuple[Args, dict[str, Any]]:
    """The arguments in their order, and all settings; TypeError for a name that the op has not.

    An argument given by name takes its place, a setting given by its place its name, and axes,
    shapes and counts become Python ints.
    """
    if len(args) > op.most:
        more = dict(zip(op.placed, args[op.most:]))
        if len(args) - op.most <= len(op.placed) and not more.keys() & settings.keys():
            args, settings = args[:op.most], {**more, **settings}
    if not settings:
        return args, op.settings
    if not settings.keys() <= op.settings.keys():
        args, settings = _renamed(op, args, settings)
    settings = {**op.settings, **settings}
    for name in op.whole:
        value = settings[name]
        several = type(value) is tuple and value and _INTEGER.issuperset(map(type, value))
        if not several and type(value) not in _INTEGER:
            settings[name] = axes.whole(value, f"{op.shown}: {name}", some=name in op.some)
    return args, settings


def _renamed(op: Any, args: Args, settings: dict[str, Any]) -> tuple[Args, dict[str, Any]]:
    """Settings by PyTorch's names, and arguments by their own; TypeError for any other name."""
    ours = {k: PYTORCHS[k] for k in settings if PYTORCHS.get(k) in op.placed}
    settings = {k if ours.get(k, k) in settings else ours[k]: v for k, v in settings.items()}
    if settings.keys() <= op.settings.keys():
        return args, settings
    try:
        given = op.signature.bind(*args, **settings)
    except TypeError as error:
        theirs = hints.foreign(settings, op.signature.parameters)
        instead = [f"; for {name}= {hints.typed(name)}" for name in theirs]
        raise TypeError(f"{op.shown}: {error}; it takes {op.signature}{''.join(instead)}") from None
    given.apply_defaults()
    return tuple(given.arguments[a] for a in op.args), {k: given.arguments[k] for k in op.settings}


def placed(op: Any, arrays: Sequence[Any], nodes: Sequence[Node | None]) -> tuple[Backend, Any]:
    """The one backend of the arrays, and the one dtype of those that can have a gradient.

    TypeError for what is no array, DeviceError and DTypeError where they are of two kinds.
    """
    given = [a for a in arrays if type(a) not in SCALARS]
    try:
        places = {device_of(a) for a in given}
    except TypeError:
        raise _no_array(op, arrays) from None
    dtypes = {a.dtype for _, a in _typed(op, arrays)}
    if len(places) != 1 or len(dtypes) > 1:
        raise _mixed(op, arrays, nodes)
    here = backend.of(given[0])
    here.at(given[0])                                   # what is made next is made there
    return here, dtypes.pop() if dtypes else None


def _typed(op: Any, arrays: Sequence[Any]) -> list[tuple[int, Any]]:
    """The arrays that share one dtype, with their places: those with gradients, but for bool."""
    return [(i, a) for i, a in enumerate(arrays)
            if i in op.typed and type(a) not in SCALARS and a.dtype.kind != "b"]


def device_of(array: Any) -> backend.Device:
    """The device of an array; TypeError for what is none."""
    return backend.of(array).device(array)


def _no_array(op: Any, arrays: Sequence[Any]) -> TypeError:
    """The first argument that is neither an array nor a number."""
    for i, a in enumerate(arrays):
        if type(a) not in SCALARS:
            try:
                backend.of(a)
            except TypeError:
                return TypeError(f"{op.shown}: {arg(op, i)} is a {type(a).__name__}; "
                                 "give a Tensor, an array or a number")
    raise AssertionError("all are arrays")


def _mixed(op: Any, arrays: Sequence[Any], nodes: Sequence[Node | None]) -> Exception:
    """There is no array, or there are two devices, or two dtypes."""
    places = [(arg(op, i), device_of(a)) for i, a in enumerate(arrays) if type(a) not in SCALARS]
    if not places:
        return TypeError(f"{op.shown}: no argument is a Tensor or an array; "
                         "make one with minigrad.tensor")
    for name, place in places:
        if place != places[0][1]:
            return DeviceError(f"{op.shown}: {places[0][0]} is on {places[0][1]} and {name} is on "
                               f"{place}; move one with .to(\"{place}\")")
    return _two_dtypes(op, arrays, nodes)


def _two_dtypes(op: Any, arrays: Sequence[Any], nodes: Sequence[Node | None]) -> DTypeError:
    """What to cast: towards the float of the two; and data to what is trained, not the reverse."""
    first, *others = [(arg(op, i), a.dtype, nodes[i] is not None) for i, a in _typed(op, arrays)]
    (name, a, trained), (other, b, trained_too) = first, next(o for o in others if o[1] != first[1])
    to, which = b if b.kind in FLOATS and a.kind not in FLOATS else a, "one"
    if trained is not trained_too:
        which, to = (other, a) if trained else (name, b)
    return DTypeError(f"{op.shown}: {name} is {a} and {other} is {b}; dtypes never mix silently, "
                      f"cast {which} with .astype(\"{to}\")")


# ── results ──
def float_of_integers(op: Any, arrays: Sequence[Any], dtype: Any) -> DTypeError:
    """Floats were made of integers that could have had a gradient."""
    return DTypeError(f"{op.shown}: {described(op, arrays)} would become {dtype}; cast first, "
                      "as in x.astype(\"float32\")")


def translate(op: Any, here: Backend, arrays: Sequence[Any], settings: dict[str, Any],
              error: Exception) -> None:
    """Raise an error out of a kernel in our words; return for one that says it best itself."""
    if isinstance(error, MinigradError):
        return
    if not isinstance(error, ValueError | TypeError | IndexError):
        if (ours := here.explained(error, f"{op.shown}: {described(op, arrays)}")) is not None:
            raise ours from None
        return
    if not op.variadic and not op.required <= len(arrays) <= len(op.args):
        raise TypeError(f"{op.shown}: {len(arrays)} arguments given; "
                        f"it takes {op.signature}") from error
    said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    given = ", ".join([f"{k}={v!r}" for k, v in settings.items()])
    given = f"; {given}" if given else ""
    kind = ShapeError if not isinstance(error, TypeError) else DTypeError
    raise kind(f"{op.shown}: {described(op, arrays)}{given}: {said}") from error


# ── rules ──
def no_residual(op: Any, plan: Any, extra: Any) -> TypeError:
    """A rule names what nobody saves."""
    name = next(at for kind, at in plan.sources if kind == "extra" and at not in (extra or ()))
    return TypeError(f"{op.shown}: a rule names {name!r}, which is no argument of the kernel "
                     f"({', '.join(op.args)}), no setting, not out, and nothing that the kernel "
                     "saves")


def changed(node: Node) -> GraphError:
    """A saved value was written between the forward and the backward pass."""
    return GraphError(f"{node}: a value that its gradient needs was changed after it was used; "
                      "run forward again")


def no_result(op: Any, rule: Any) -> TypeError:
    return TypeError(f"{op.shown}: its rule {rule.key} returned None; is a return missing?")


def wrong_gradient(op: Any, i: int, gradient: Any, parent: Node) -> Exception:
    """A rule's result is not of its argument's shape and dtype."""
    kind = ShapeError if gradient.shape != parent.shape else DTypeError
    return kind(f"{op.shown}: ∂{op.shown}/∂{arg(op, i)} is {gradient.dtype}{list(gradient.shape)} "
                f"but {arg(op, i)} is {parent.dtype}{list(parent.shape)}; the rule is wrong")


# ── words ──
def arg(op: Any, i: int) -> str:
    """What the argument number i is called."""
    if op.variadic:
        return f"{op.args[0]}[{i}]"
    return op.args[i] if i < len(op.args) else f"argument {i + 1}"


def described(op: Any, arrays: Sequence[Any]) -> str:
    """The arguments with their names, dtypes and shapes."""
    shown = [f"{a.dtype}{list(a.shape)}" if hasattr(a, "dtype") else repr(a) for a in arrays]
    return ", ".join([f"{arg(op, i)} is {a}" for i, a in enumerate(shown)
                      if i < len(op.args) or op.variadic])
