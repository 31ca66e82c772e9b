"""Where arrays live: one Backend per array library, all with the same face (`backend.base`)."""
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
    """What `name` stands for as a dtype.

    "bfloat16" is none of NumPy's: DTypeError, with what to do, where ml_dtypes is missing.
    """
    if name == "bfloat16":
        try:
            from ml_dtypes import bfloat16
        except ImportError:
            raise DTypeError("dtype bfloat16 needs the package ml_dtypes; pip install ml_dtypes, "
                             "or use float16") from None
        known[bfloat16] = cpu                           # NumPy's reductions hand out its scalars
    return name


def is_dtype(value: Any) -> bool:
    """Whether a word, a type or a dtype names a kind of numbers, and not a device."""
    if isinstance(value, str):
        return value in _DTYPES
    return isinstance(value, type) or hasattr(value, "itemsize")


def of(array: Any) -> Backend:
    """The backend that `array` belongs to; TypeError for what is no array of a loaded backend."""
    backend = known.get(type(array))
    return backend if backend is not None else _of_subclass(array)


def _of_subclass(array: Any) -> Backend:
    """The same for an array of another class, such as numpy.memmap, which is known from then on."""
    kind = type(array)
    backend = next((b for b in _named.values() if isinstance(array, b.array_types)), None)
    if backend is None:
        raise TypeError(f"{kind.__module__}.{kind.__qualname__} is no array of a loaded "
                        f"backend ({', '.join(_named)})")
    known[kind] = backend
    return backend


def set_float32_matmul_precision(precision: str) -> None:
    """Say how products of float32 are rounded: "highest", the default, or "high".

    "highest": as float32 rounds. "high": a GPU may multiply in TF32, with 10 bits of mantissa.
    The name and the words are PyTorch's. ValueError for another word.
    """
    if precision not in ("highest", "high"):
        raise ValueError("set_float32_matmul_precision: choose \"highest\" or \"high\", "
                         f"not {precision!r}")
    Backend.tf32 = precision == "high"


def get_float32_matmul_precision() -> str:
    """What was set."""
    return "high" if Backend.tf32 else "highest"


def get(name: str) -> Device:
    """The device called `name`, which becomes the current one of this thread.

    name: "numpy", "cupy", "cupy:1", or "auto" (a usable GPU, else NumPy). BackendUnavailable says
    what is missing and how to get it; "cupy" never falls back to NumPy.
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


def loaded(name: str) -> Backend | None:
    """The backend of this name if it has been made, else None.

    NumPy's is made at once, CuPy's when it is first asked for.
    """
    return _named.get(name)


def _automatic() -> Device:
    """The first GPU that can be used, else NumPy; what stands in the way of a GPU is not said."""
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
    """An error of one of the loaded libraries as one of ours, met by `what`; None for any other."""
    if isinstance(error, MinigradError):
        return None
    found = (b.explained(error, what) for b in _named.values())
    return next((ours for ours in found if ours is not None), None)


def translate(error: BaseException, what: str) -> None:
    """Raise an error of one of the loaded libraries as one of ours; return for any other."""
    if (ours := explained(error, what)) is not None:
        raise ours from None


@contextlib.contextmanager
def explaining(what: str) -> Iterator[None]:
    """Errors of the libraries come out of the block as ours."""
    try:
        yield
    except Exception as error:
        translate(error, what)
        raise
