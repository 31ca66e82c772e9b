"""The array API standard as a backend: what minigrad needs beyond the standard fails here.

Needs array-api-strict, whose arrays live on a device of their own, which is not the host, and know
what the standard says and nothing else. Names that NumPy and CuPy spell otherwise are translated,
and missing arguments of creation are filled in; no meaning is added.
"""
from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import backend
from ..backend.base import Backend
from ..backend.fallbacks import flat_places

CREATION = ("arange", "empty", "eye", "full", "ones", "zeros")
# What needs more than the standard, in all or some of its examples. All else runs on it alone.
_BITS = "random bits need typed scalars, and a view of 64 bits as two of 32"
OUTSIDE = {
    "power": "its derivative by a multiplies two bools",
    "getitem": "an index array must come alone or with others for every axis, "
               "and the derivative is unslice",
    "astype": "there is no float16",
    "unslice": "assignment through None or a slice and an array, or to a mask",
    "einsum_op": "there is no einsum", "einsum": "there is no einsum",
    "dropout_op": _BITS, "dropout": _BITS, "attention": f"with dropout: {_BITS}",
}


class Array:
    """An array of the standard under the names of NumPy's methods.

    Each StrictBackend has a subclass of its own.
    """

    __slots__ = ("held", "__weakref__")
    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]
    here: StrictBackend

    def __init__(self, held: Any) -> None:
        self.held = held

    @property
    def dtype(self) -> Any:
        return np.dtype(str(self.held.dtype).rpartition(".")[2])

    shape = property(lambda self: self.held.shape)
    ndim = property(lambda self: self.held.ndim)
    size = property(lambda self: self.held.size)
    nbytes = property(lambda self: self.size * self.dtype.itemsize)

    def astype(self, dtype: Any) -> Any:
        return self.here.namespace.astype(self, dtype=dtype)

    def reshape(self, *shape: Any) -> Any:
        return self.here.reshape(self, shape[0] if isinstance(shape[0], tuple) else shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        return self.here.wrap(self.held[_full(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.held[_full(key)] = unwrap(value)

    def __repr__(self) -> str:
        return repr(self.held)


def _full(key: Any) -> Any:
    """An index that names every axis, as the standard demands: the rest of them by an ellipsis."""
    parts = key if isinstance(key, tuple) else (key,)
    whole = any(p is Ellipsis or isinstance(p, Array) for p in parts)
    return tuple(map(unwrap, parts)) + (() if whole else (Ellipsis,))


def unwrap(x: Any) -> Any:
    """The standard's arrays in the place of ours."""
    if isinstance(x, tuple | list):
        return type(x)(map(unwrap, x))
    return x.held if isinstance(x, Array) else x


def _operators() -> None:
    def binary(f: Callable[..., Any]) -> Any:
        return lambda self, other: self.here.wrap(f(self.held, unwrap(other)))

    def unary(f: Callable[..., Any]) -> Any:
        return lambda self: self.here.wrap(f(self.held))

    def into(f: Callable[..., Any]) -> Any:
        def change(self: Any, other: Any) -> Any:
            self.held = f(self.held, unwrap(other))
            return self

        return change

    for name in ("add", "sub", "mul", "truediv", "pow", "matmul", "and", "or"):
        f = getattr(operator, f"__{name}__")
        setattr(Array, f"__{name}__", binary(f))
        setattr(Array, f"__r{name}__", binary(lambda a, b, f=f: f(b, a)))
        setattr(Array, f"__i{name}__", into(getattr(operator, f"__i{name}__")))
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(Array, f"__{name}__", binary(getattr(operator, name)))
    for name in ("neg", "abs", "invert"):
        setattr(Array, f"__{name}__", unary(getattr(operator, name)))


_operators()


class Namespace:
    """The standard's functions on our arrays, also those that NumPy spells otherwise."""

    def __init__(self, here: StrictBackend) -> None:
        self._here, self.dtype = here, np.dtype

    def __getattr__(self, name: str) -> Any:
        here = self._here
        value = getattr(here.standard, name)
        if not callable(value) or isinstance(value, type):
            return value

        def function(*args: Any, **options: Any) -> Any:
            out = options.pop("out", None)
            if "dtype" in options:
                options["dtype"] = here.kind(options["dtype"])
            if name in CREATION:
                options["device"] = here.place
            made = here.wrap(value(*unwrap(args), **{k: unwrap(v) for k, v in options.items()}))
            if out is not None:
                out[...] = made
            return made if out is None else out

        setattr(self, name, function)
        return function

    def finfo(self, dtype: Any) -> Any:
        return self._here.standard.finfo(self._here.kind(dtype))

    def astype(self, x: Any, dtype: Any) -> Any:
        return self._here.wrap(self._here.standard.astype(x.held, self._here.kind(dtype)))

    def concatenate(self, xs: Any, axis: int = 0) -> Any:
        return self.concat(xs, axis=axis)

    def transpose(self, x: Any, axes: Any = None) -> Any:
        order = range(x.ndim)[::-1] if axes is None else (a % x.ndim for a in axes)
        return self.permute_dims(x, tuple(order))

    def swapaxes(self, x: Any, a: int, b: int) -> Any:
        order = list(range(x.ndim))
        order[a], order[b] = order[b], order[a]
        return self.permute_dims(x, tuple(order))

    def split(self, x: Any, ends: Any, axis: int = 0) -> Any:
        lead = (slice(None),) * (axis % x.ndim)
        return [x[(*lead, slice(a, b))] for a, b in zip([0, *ends], [*ends, x.shape[axis]])]

    def tri(self, n: int, m: int, k: int = 0, dtype: Any = float) -> Any:
        return self.tril(self.ones((n, m), dtype=dtype), k)

    def tril(self, x: Any, k: int = 0) -> Any:
        return self._here.wrap(self._here.standard.tril(x.held, k=k))

    def triu(self, x: Any, k: int = 0) -> Any:
        return self._here.wrap(self._here.standard.triu(x.held, k=k))

    def take(self, x: Any, ids: Any, axis: int) -> Any:
        picked = self._here.standard.take(x.held, ids.reshape(-1).held, axis=axis)
        return self._here.wrap(picked).reshape((*x.shape[:axis], *ids.shape, *x.shape[axis + 1:]))

    def take_along_axis(self, x: Any, index: Any, axis: int) -> Any:
        return self._here.wrap(self._here.standard.take_along_axis(x.held, index.held, axis=axis))

    def argsort(self, x: Any, axis: int = -1, kind: str = "stable") -> Any:
        stable = kind == "stable"
        return self._here.wrap(self._here.standard.argsort(x.held, axis=axis, stable=stable))

    def cumsum(self, x: Any, axis: int) -> Any:
        return self._here.wrap(self._here.standard.cumulative_sum(x.held, axis=axis))

    def reshape(self, x: Any, shape: Any) -> Any:
        shape = shape if isinstance(shape, tuple) else (shape,)
        return self._here.wrap(self._here.standard.reshape(x.held, shape))

    def var(self, x: Any, axis: Any = None, ddof: float = 0, keepdims: bool = False) -> Any:
        var = self._here.standard.var
        return self._here.wrap(var(x.held, axis=axis, correction=ddof, keepdims=keepdims))


class StrictBackend(Backend):
    """Arrays of array-api-strict on one of its devices; "strict-device1" is that on its device1."""

    def __init__(self, device: str) -> None:
        import array_api_strict

        self.standard, self.name = array_api_strict, f"strict-{device}"
        self.place = array_api_strict.Device(device)
        self.namespace = Namespace(self)
        self.kept: Any = type("Array", (Array,), {"here": self, "__slots__": ()})
        self.array_types = (self.kept,)

    def wrap(self, x: Any) -> Any:
        """A result of the standard as ours."""
        if isinstance(x, tuple | list):
            return type(x)(map(self.wrap, x))
        return self.kept(x) if hasattr(x, "__array_namespace__") else x

    def kind(self, dtype: Any) -> Any:
        """A dtype in the standard's own words."""
        return dtype if dtype is None else getattr(self.standard, np.dtype(dtype).name)

    def array(self, value: Any, dtype: Any = None, number: int | None = None) -> Any:
        if isinstance(value, self.kept):
            copy = self.standard.asarray(value.held, copy=True)
            other = dtype is not None
            return self.kept(self.standard.astype(copy, self.kind(dtype)) if other else copy)
        return self.kept(self.standard.asarray(np.array(value, dtype=dtype), device=self.place))

    def adopt(self, value: Any, dtype: Any = None, number: int | None = None) -> Any:
        as_is = isinstance(value, self.kept) and dtype in (None, value.dtype)
        return value if as_is else self.array(value, dtype)

    def host(self, array: Any) -> Any:
        return np.array(array.held.to_device(self.standard.Device()))

    def add_at(self, array: Any, index: Any, values: Any) -> None:
        # there is no assignment to many places at once: the sums of all places are worked out, and
        # added as a whole
        index = index if isinstance(index, tuple) else (index,)
        whole = all(isinstance(i, Array) and i.dtype.kind in "iu" for i in index)
        if len(index) < array.ndim or not whole:
            raise TypeError("the standard adds to no elements but those that an array of integers "
                            "for each axis names")
        places = flat_places(self, index, array.shape)
        values = self.broadcast_to(values, places.shape)
        sums = self.add_at_rows(array.size, places.reshape(-1), values.reshape(values.size, 1))
        array += sums.reshape(array.shape)


_strict = functools.cache(StrictBackend)


def install(device: str = "device1") -> StrictBackend:
    """Make array-api-strict's `device` known as a backend; the same one when called again.

    ImportError where it is not installed.
    """
    backend.register(_strict(device))
    return _strict(device)
