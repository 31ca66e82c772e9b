"""The array libraries: one Backend for each, all with the same interface (`backend.base`)."""
from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

from ..errors import BackendUnavailable, DeviceError, DTypeError, MinigradError
from .base import Backend, Device
from .numpy import NumpyBackend

_DTYPES = frozenset(("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64",
                     "uint8", "uint16", "uint32", "uint64", "bool"))
cpu = NumpyBackend()
_named: dict[str, Backend] = {"numpy": cpu}
known: dict[type, Backend] = {}                         # by the type of an array


def register(backend: Backend) -> Backend:
    """Make `backend` known by its name and by the types of its arrays."""
    _named[backend.name] = backend
    for kind in (*backend.array_types, *backend.scalar_types):
        known[kind] = backend
    return backend


register(cpu)


def dtype(name: Any) -> Any:
    """`name` as a dtype.

    "bfloat16" is not a dtype of NumPy: DTypeError, with a remedy, if ml_dtypes is missing.
    """
    if name == "bfloat16":
        try:
            from ml_dtypes import bfloat16
        except ImportError:
            raise DTypeError("dtype bfloat16 needs the package ml_dtypes; pip install ml_dtypes, "
                             "or use float16") from None
        known[bfloat16] = cpu                           # NumPy's reductions return its scalars
    return name


def is_dtype(value: Any) -> bool:
    """Whether a string, a type or a dtype names a dtype, and not a device."""
    if isinstance(value, str):
        return value in _DTYPES
    return isinstance(value, type) or hasattr(value, "itemsize")


def of(array: Any) -> Backend:
    """The backend of `array`; TypeError if it is not an array of a loaded backend."""
    backend = known.get(type(array))
    return backend if backend is not None else _of_subclass(array)


def _of_subclass(array: Any) -> Backend:
    """`of` for an array of a subclass, such as numpy.memmap; its type joins `known`."""
    kind = type(array)
    backend = next((b for b in _named.values() if isinstance(array, b.array_types)), None)
    if backend is None:
        raise TypeError(f"{kind.__module__}.{kind.__qualname__} is not an array of a loaded "
                        f"backend ({', '.join(_named)})")
    known[kind] = backend
    return backend


def set_float32_matmul_precision(precision: str) -> None:
    """Set the precision of products of float32: "highest", the default, or "high".

    "highest": they are computed in float32. "high": a GPU may multiply in TF32, with 10 bits of
    mantissa. The names are PyTorch's. ValueError for another precision.
    """
    if precision not in ("highest", "high"):
        raise ValueError("set_float32_matmul_precision: choose \"highest\" or \"high\", "
                         f"not {precision!r}")
    Backend.tf32 = precision == "high"


def get_float32_matmul_precision() -> str:
    """The precision of products of float32: "highest" or "high"."""
    return "high" if Backend.tf32 else "highest"


def get(name: str) -> Device:
    """The device called `name`, which becomes the current one of this thread.

    name: "numpy", "cupy", "cupy:1", or "auto" (a usable GPU, else NumPy). BackendUnavailable says
    what is missing and how to install it; "cupy" never falls back to NumPy.
    """
    library, _, number = name.partition(":")
    if number and not number.isdigit():
        raise DeviceError(f"device {name!r}: the number after the colon is not a whole number; "
                          "write cupy:0")
    if library == "auto":
        return _automatic()
    if library == "cupy" and "cupy" not in _named:
        from .cupy import load

        register(load())
    if library not in _named:
        raise DeviceError(f"there is no backend {name!r}; choose auto, numpy, cupy or cupy:N")
    return Device(_named[library], int(number or 0)).use()


def alive(name: str) -> bool:
    """Whether a device still computes: after an illegal access a process cannot use a GPU again."""
    try:
        there = get(name)
        there.backend.host(there.array([1.0]))
    except Exception:
        return False
    return True


def loaded(name: str) -> Backend | None:
    """The backend of this name if it is loaded, else None.

    NumPy's is always loaded, CuPy's when it is first used.
    """
    return _named.get(name)


def _automatic() -> Device:
    """The first GPU that can be used, else NumPy, without an error that says why."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return get("cupy:0")
        except BackendUnavailable:
            gpus = _named.get("cupy", cpu)
        for number in range(1, gpus.count()):
            try:
                return get(f"cupy:{number}")
            except BackendUnavailable:
                continue
    return Device(cpu)


def explained(error: BaseException, what: str = "") -> MinigradError | None:
    """A loaded library's error, raised in `what`, as one of minigrad's; None for any other."""
    if isinstance(error, MinigradError):
        return None
    found = (b.explained(error, what) for b in _named.values())
    return next((ours for ours in found if ours is not None), None)


def translate(error: BaseException, what: str) -> None:
    """Raise minigrad's error for an error of a loaded library; return for any other error."""
    if (ours := explained(error, what)) is not None:
        raise ours from None


@contextlib.contextmanager
def explaining(what: str) -> Iterator[None]:
    """The libraries' errors inside the block are raised as minigrad's errors."""
    try:
        yield
    except Exception as error:
        translate(error, what)
        raise
