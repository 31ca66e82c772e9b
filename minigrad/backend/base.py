"""The interface of every backend.

A kernel receives its backend as `xp` and uses it as the array library's namespace (`xp.exp`,
`xp.matmul`, …). A function that a library lacks or names differently is a method here. `kernels`
maps an op's name to a faster kernel for it, "name/argument" (or "name/joint") to a faster rule, and
"name/argument+" to a rule that adds the gradient to an array. Each computes the same as the op's
own text, and is tested against it. In a case that it does not support it returns NotImplemented;
then the op's own text runs.
"""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import DeviceError, MinigradError, ShapeError

# dtype.kind of floats; NumPy has no letter for ml_dtypes' bfloat16 and says V
FLOATS = "fV"


def half(dtype: Any) -> bool:
    """Whether this is a dtype of 16-bit floats, whose sums are computed in float32."""
    return dtype.itemsize == 2 and dtype.kind in FLOATS


class Saved:
    """The result of a kernel whose rules need by-products: the output, and the extras by name."""

    __slots__ = ("out", "extra")

    def __init__(self, out: Any, **extra: Any) -> None:
        self.out, self.extra = out, extra


def boost(dtype: Any, rows: int) -> float:
    """The factor of gradients that are saved before g is known.

    For 16-bit numbers it is the largest power of 2 up to the number of rows, because a probability
    divided by that number may be below float16's smallest number. A power of 2 rounds nothing.
    """
    return 2.0 ** (rows.bit_length() - 1) if dtype.itemsize < 4 and rows else 1.0


def by_key(table: Mapping[str, Mapping[str, Callable[..., Any]]]) -> dict[str, Callable[..., Any]]:
    """A table of faster kernels with the keys of `Backend.kernels`.

    table: for each op the kernel of its value ("value"), of its rules (the argument's name or
    "joint"), and of rules that add the gradient to an array (the same with "+" at the end).
    """
    return {op if what == "value" else f"{op}/{what}": kernel
            for op, kernels in table.items() for what, kernel in kernels.items()}


class Backend:
    """One array library; an attribute that is not defined here is looked up in `namespace`."""

    name: str
    namespace: Any
    array_types: tuple[type, ...]
    devices = False                                     # whether there may be several
    # whether products of float32 may round their factors, if that is faster
    tf32 = False
    # the types that the library returns instead of an array without axes
    scalar_types: tuple[type, ...] = ()
    kernels: dict[str, Callable[..., Any]] = {}
    # whether `kernels` take floats of 16 bits; if not, they are called with float32
    takes_half = False
    # ops whose text runs on floats of 16 bits, because this backend sums them in float32
    half_ops: frozenset[str] = frozenset()
    # bytes of logits that `linear_cross_entropy` computes at a time
    logits = 1 << 30
    # is told in a line why the user waits, from any thread
    said: Callable[[str], None] | None = None

    def run(self, name: str, plain: Callable[..., Any], *args: Any, **settings: Any) -> Any:
        """The result of `plain`, or of the kernel of this name if it supports this case."""
        kernel = self.kernels.get(name)
        out = NotImplemented if kernel is None else kernel(self, *args, **settings)
        return plain(self, *args, **settings) if out is NotImplemented else out

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self.namespace, name)
        setattr(self, name, value)                      # the next look-up is an ordinary one
        return value

    def device(self, array: Any) -> Device:
        """The device that holds `array`."""
        return Device(self)

    def count(self) -> int:
        """The number of devices."""
        return 1

    def use(self, number: int) -> None:
        """Make this the current device of this thread, on which new arrays are made.

        DeviceError if there is no such device; BackendUnavailable if it cannot be used.
        """
        if number != 0:
            raise DeviceError(f"{self.name}:{number} does not exist; {self.name} has one device")

    def at(self, array: Any) -> Backend:
        """This backend; the device of `array` becomes the current one of this thread."""
        return self

    def explained(self, error: BaseException, what: str = "") -> MinigradError | None:
        """An error of the library, raised in `what`, as one of minigrad's errors.

        None for an error that is not the library's, or that needs no change.
        """
        return None

    def array(self, value: Any, dtype: Any = None, number: int | None = None) -> Any:
        """A new array that holds a copy of `value`.

        value: an array of this library or of NumPy, or nested lists. number: the device's number;
        by default an array stays on its device, and anything else goes to device 0.
        """
        return self.namespace.array(value, dtype=dtype, copy=True)

    def adopt(self, value: Any, dtype: Any = None, number: int | None = None) -> Any:
        """`value` as an array of this library, copied only if that cannot be avoided."""
        return self.namespace.asarray(value, dtype=dtype)

    def host(self, array: Any) -> Any:
        """`array` as a numpy.ndarray; a copy if the device's memory is not the host's."""
        raise NotImplementedError

    def owns(self, array: Any) -> bool:
        """Whether `array` owns its memory, so that a sum may be written over it."""
        return False

    def owner(self, array: Any) -> Any:
        """The array whose memory `array` uses; `array` itself if the memory is its own."""
        while isinstance(array.base, self.array_types):
            array = array.base
        return array

    def free_memory(self) -> int:
        """The bytes of the current device's memory that are free for new arrays."""
        raise NotImplementedError

    def synchronize(self) -> None:
        """Wait until the device has done all work that was started."""

    def settle(self, part: int = 0, parts: int = 1) -> None:
        """Prepare the process for a loop of equal steps; call it while nothing is being computed.

        Freed memory stays in the process for the next allocation, and idle threads go to sleep
        sooner. If `parts` equal processes share the device, this is number `part`, and it uses only
        its part of the cores.
        """

    def communicator(self) -> Any:
        """The object that sums arrays over several devices of this kind (`cupy.nccl.Communicator`).

        DeviceError if the backend has no such object.
        """
        raise DeviceError(f"NCCL works on GPUs, and {self.name} has none; choose mpi")

    def captured(self, f: Callable[[], None]) -> Callable[[], None]:
        """`f`, in a form that is faster if it is called many times.

        A GPU's backend calls f once as it is and once to capture its launches as a graph. After
        that only the launches are repeated, and f's Python does not run: so values that change from
        call to call must be in arrays, and f must neither wait for the device nor upload.
        """
        return f

    def lay_out(self, matrix: Any) -> Any:
        """The same matrix [in, out] in the layout that a product of a single row reads fastest.

        It is `matrix` itself if it already has this layout.
        """
        return matrix

    def pack(self, matrix: Any) -> Any:
        """A copy of a matrix as the panels that `packed_linear` takes.

        None if panels make a product of a few rows no faster.
        """
        return None

    def errstate(self, **kinds: str) -> contextlib.AbstractContextManager[Any]:
        """Inside the block the library does not warn of numbers that are not finite.

        The arguments are those of `numpy.errstate`. A GPU never warns.
        """
        return contextlib.nullcontext()

    def erf(self, x: Any) -> Any:
        """The error function, elementwise, to a few units in the last place of float64."""
        from .fallbacks import erf

        return erf(self, x)

    def add_at_rows(self, rows: int, index: Any, values: Any) -> Any:
        """An array [rows, d] whose row r is the sum of values[k] over all k with index[k] = r.

        index [n] holds integers in 0 … rows−1; values is [n, d]. The result is deterministic.
        """
        from .fallbacks import add_at_rows

        return add_at_rows(self, rows, index, values)

    def add_at(self, array: Any, index: Any, values: Any) -> None:
        """array[index] += values, in place; where an index repeats, all its values are added."""
        raise NotImplementedError

    def check_index(self, index: Any, size: int, what: str) -> None:
        """ShapeError unless `index` holds integers, and 0 ≤ index < size everywhere.

        A GPU's backend does not look at them, because the host would have to wait for the result.
        """
        if index.size and index.dtype.kind not in "iu":
            raise ShapeError(f"{what} must be integers; these are {index.dtype}")

    def __repr__(self) -> str:
        return f"<backend {self.name}>"


@dataclass(frozen=True, slots=True)
class Device:
    """The device of this number in a backend; str() is its name for `.to()`, such as "cupy:1".

    Its methods make arrays on it, and make it the current device of this thread.
    """

    backend: Backend
    number: int = 0

    def __str__(self) -> str:
        return self.backend.name + f":{self.number}" * self.backend.devices

    def use(self) -> Device:
        """The device itself, which becomes the current one of this thread (`Backend.use`)."""
        self.backend.use(self.number)
        return self

    def array(self, value: Any, dtype: Any = None) -> Any:
        """A new array with a copy of `value`: an array of the backend or of NumPy, or lists."""
        return self.backend.array(value, dtype, self.number)

    def adopt(self, value: Any, dtype: Any = None) -> Any:
        """`value` as an array on this device, copied only if that cannot be avoided."""
        return self.backend.adopt(value, dtype, self.number)

    def empty(self, shape: Any, dtype: Any) -> Any:
        return self.use().backend.empty(shape, dtype=dtype)

    def zeros(self, shape: Any, dtype: Any) -> Any:
        return self.use().backend.zeros(shape, dtype=dtype)

    def ones(self, shape: Any, dtype: Any) -> Any:
        return self.use().backend.ones(shape, dtype=dtype)

    def arange(self, n: int) -> Any:
        return self.use().backend.arange(n)
