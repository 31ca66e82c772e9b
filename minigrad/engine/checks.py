"""Checks of an op's arguments: settings by their names, arrays on one device and of one dtype."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import axes, backend
from ..backend.base import FLOATS, Backend
from ..hints import PYTORCHS
from . import refusals
from .declaration import SCALARS

Args = tuple[Any, ...]
_INTEGER = frozenset((int, type(None)))


def bound(op: Any, args: Args, settings: dict[str, Any]) -> tuple[Args, dict[str, Any]]:
    """The arguments in order, and all settings; axes, shapes and counts become Python ints."""
    if len(args) > op.most or not settings.keys() <= op.settings.keys():
        args, settings = _by_name(op, args, settings)
    every = {**op.settings, **settings}
    for name in op.whole if settings else ():           # without any the kernel says what it lacks
        if type(every[name]) not in _INTEGER:
            every[name] = _whole(op, name, every[name])
    return args, every


def placed(op: Any, arrays: Sequence[Any], nodes: Sequence[Any]) -> tuple[Backend, Any]:
    """The one backend of the arrays, and the one dtype of those that can have a gradient.

    TypeError for a value that is not an array; DeviceError for two devices, DTypeError for two
    dtypes.
    """
    given = [(i, a) for i, a in enumerate(arrays) if type(a) not in SCALARS]
    try:
        devices = {backend.of(a).device(a) for _, a in given}
    except TypeError:
        raise refusals.no_array(op, arrays) from None
    dtypes = {a.dtype for i, a in given if i in op.typed and a.dtype.kind != "b"}
    if len(devices) != 1 or len(dtypes) > 1:
        raise refusals.mixed(op, arrays, nodes)
    here = backend.of(given[0][1]).at(given[0][1])      # what is made next is made there
    return here, dtypes.pop() if dtypes else None


# ── seldom ──
def of_integers(op: Any, args: Any, settings: dict[str, Any], out: Any) -> None:
    """Raise DTypeError if a differentiable op computed floats from integers."""
    if out.dtype.kind in FLOATS and op.differentiable and "dtype" not in settings:
        raise refusals.float_of_integers(op, args, out.dtype)


def _by_name(op: Any, args: Args, settings: dict[str, Any]) -> tuple[Args, dict[str, Any]]:
    """Arguments and settings, also by position or PyTorch's name; TypeError for another name."""
    if len(args) > op.most:
        more = dict(zip(op.placed, args[op.most:]))
        if len(args) - op.most <= len(op.placed) and not more.keys() & settings.keys():
            args, settings = args[:op.most], {**more, **settings}
    ours = {k: PYTORCHS[k] for k in settings.keys() - op.settings.keys()
            if PYTORCHS.get(k) in op.placed}
    settings = {k if ours.get(k, k) in settings else ours[k]: v for k, v in settings.items()}
    if settings.keys() <= op.settings.keys():
        return args, settings
    try:
        given = op.signature.bind(*args, **settings)
    except TypeError as error:
        raise refusals.no_name(op, settings, error) from None
    given.apply_defaults()
    return tuple(given.arguments[a] for a in op.args), {k: given.arguments[k] for k in op.settings}


def _whole(op: Any, name: str, value: Any) -> Any:
    """A setting that consists of whole numbers, of any type and in any sequence, as ints."""
    if type(value) is tuple and value and _INTEGER.issuperset(map(type, value)):
        return value
    return axes.whole(value, f"{op.shown}: {name}", some=name in op.some)
