"""The face every backend answers to.

A kernel receives its backend as `xp` and uses it as the array library's namespace (`xp.exp`,
`xp.matmul`, …). What a library lacks or names differently is a method here. `kernels` maps an op's
name to a faster kernel for it, "name/argument" (or "name/joint") to a faster rule, and
"name/argument+" to one that adds the gradient into an array. All mean exactly what the op's own
text says, and the tests hold them to it; to a case that they are not for they say NotImplemented,
and the op's own text is run.
"""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import DeviceError, MinigradError

# dtype.kind of floats; NumPy has no letter for ml_dtypes' bfloat16 and says V
FLOATS = "fV"


def half(dtype: Any) -> bool:
    """Whether these are floats of 16 bits, whose sums are made in float32."""
    return dtype.itemsize == 2 and dtype.kind in FLOATS


class Saved:
    """What a kernel returns when its rules need by-products: the output, and extras by name."""

    __slots__ = ("out", "extra")

    def __init__(self, out: Any, **extra: Any) -> None:
        self.out, self.extra = out, extra


def boost(dtype: Any, rows: int) -> float:
    """What gradients are multiplied with while they wait for g.

    For numbers of 16 bits it is the power of 2 next to the count of rows, because a probability
    over so many rows is less than float16's least number. A power of 2 changes no other bit.
    """
    return 2.0 ** (rows.bit_length() - 1) if dtype.itemsize < 4 and rows else 1.0


def by_key(table: Mapping[str, Mapping[str, Callable[..., Any]]]) -> dict[str, Callable[..., Any]]:
    """A table of faster kernels, by the keys of `Backend.kernels`.

    Of each op it has the kernel of its value, of rules by their argument or "joint", and of those
    that add the gradient into an array, with a "+" after that.
    """
    return {op if what == "value" else f"{op}/{what}": kernel
            for op, kernels in table.items() for what, kernel in kernels.items()}


class Backend:
    """One array library. Attributes not found here are looked up in `namespace`."""

    name: str
    namespace: Any
    array_types: tuple[type, ...]
    devices = False                                     # whether there may be several
    # whether products of float32 may round what they multiply, where that is faster
    tf32 = False
    # what the library hands out where an array of no axes is meant
    scalar_types: tuple[type, ...] = ()
    kernels: dict[str, Callable[..., Any]] = {}
    # whether `kernels` take floats of 16 bits; else they are given float32
    takes_half = False
    # ops whose text is run on floats of 16 bits: their sums are float32's here
    half_ops: frozenset[str] = frozenset()
    # bytes of logits that `linear_cross_entropy` has at a time
    logits = 1 << 30

    def run(self, name: str, plain: Callable[..., Any], *args: Any, **settings: Any) -> Any:
        """What `plain` computes, by the kernel of this name if there is one for this case."""
        kernel = self.kernels.get(name)
        out = NotImplemented if kernel is None else kernel(self, *args, **settings)
        return plain(self, *args, **settings) if out is NotImplemented else out

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self.namespace, name)
        setattr(self, name, value)                      # the next look-up does not come here
        return value

    def device(self, array: Any) -> Device:
        """The device that holds `array`."""
        return Device(self)

    def count(self) -> int:
        """How many devices there are."""
        return 1

    def use(self, number: int) -> None:
        """Make this the device on which this thread makes arrays from here on, if none is named.

        DeviceError unless there is one of this number, BackendUnavailable where it cannot be used.
        """
        if number != 0:
            raise DeviceError(f"{self.name}:{number} does not exist; {self.name} has one device")

    def at(self, array: Any) -> Backend:
        """This backend; from here on this thread computes on the device that holds `array`."""
        return self

    def explained(self, error: BaseException, what: str = "") -> MinigradError | None:
        """An error of the library as one of ours, met by `what`.

        None for one that has nothing to do with the library, or that says it best itself.
        """
        return None

    def array(self, value: Any, dtype: Any = None, number: int | None = None) -> Any:
        """A new array that holds a copy of `value`.

        value: an array of this library or of NumPy, or nested lists. number: the device's; without
        one an array stays on the device it is on, and all else comes to device 0.
        """
        return self.namespace.array(value, dtype=dtype, copy=True)

    def adopt(self, value: Any, dtype: Any = None, number: int | None = None) -> Any:
        """`value` as an array of this library, copied only where that cannot be avoided."""
        return self.namespace.asarray(value, dtype=dtype)

    def host(self, array: Any) -> Any:
        """`array` as a numpy.ndarray; a copy where the device's memory is not the host's."""
        raise NotImplementedError

    def owns(self, array: Any) -> bool:
        """Whether `array` holds its own memory, so that a sum may be written over it."""
        return False

    def owner(self, array: Any) -> Any:
        """The array whose memory `array` looks into; `array` itself where that is its own."""
        while isinstance(array.base, self.array_types):
            array = array.base
        return array

    def free_memory(self) -> int:
        """Bytes of the current device's memory that new arrays may take."""
        raise NotImplementedError

    def synchronize(self) -> None:
        """Wait until all work handed to the device is done."""

    def settle(self, part: int = 0, parts: int = 1) -> None:
        """Prepare the process for a loop of equal steps; call it while nothing is being computed.

        Memory that is freed is kept for what is allocated next, and threads that have nothing to do
        leave their cores to others sooner. Where `parts` processes that do the same share the
        device, this is the one of number `part`, and takes its part of the cores.
        """

    def communicator(self) -> Any:
        """What sums arrays over several devices of this kind (`cupy.nccl.Communicator`).

        DeviceError where there is nothing of the kind.
        """
        raise DeviceError(f"NCCL sums on GPUs, and {self.name} has none; choose mpi")

    def captured(self, f: Callable[[], None]) -> Callable[[], None]:
        """`f`, which is called again and again, in the form in which that costs the least.

        On a GPU f is called once as it is and once to be captured as a graph, and from then on its
        launches are repeated and none of its Python is run: so what changes from call to call must
        lie in arrays, and f must neither wait for the device nor upload.
        """
        return f

    def lay_out(self, matrix: Any) -> Any:
        """The same matrix [in, out] in the layout that a product of a single row reads fastest.

        It is `matrix` itself where that lies so already.
        """
        return matrix

    def pack(self, matrix: Any) -> Any:
        """A copy of a matrix as the panels that `packed_linear` takes.

        None where a few rows are not multiplied with it faster.
        """
        return None

    def errstate(self, **kinds: str) -> contextlib.AbstractContextManager[Any]:
        """Inside the block the library keeps quiet about numbers that are not finite.

        It is as `numpy.errstate` has it. A GPU never warns.
        """
        return contextlib.nullcontext()

    def erf(self, x: Any) -> Any:
        """The error function, elementwise, to a few units in the last place of float64."""
        from .fallbacks import erf

        return erf(self, x)

    def add_at_rows(self, rows: int, index: Any, values: Any) -> Any:
        """An array [rows, d] whose row r is the sum of values[k] over all k with index[k] = r.

        index is [n] of integers in 0 … rows−1, values [n, d]. Deterministic.
        """
        from .fallbacks import add_at_rows

        return add_at_rows(self, rows, index, values)

    def add_at(self, array: Any, index: Any, values: Any) -> None:
        """array[index] += values, in place, with a sum where an index repeats."""
        raise NotImplementedError

    def check_index(self, index: Any, size: int, what: str) -> None:
        """ShapeError unless 0 ≤ index < size everywhere.

        A GPU does not check: it would have to wait for the answer.
        """

    def __repr__(self) -> str:
        return f"<backend {self.name}>"


@dataclass(frozen=True, slots=True)
class Device:
    """The device of this number in a backend. `str` is its name, as `.to()` takes it: "cupy:1".

    Arrays are made on it by its methods, which make it the current device of this thread.
    """

    backend: Backend
    number: int = 0

    def __str__(self) -> str:
        return self.backend.name + f":{self.number}" * self.backend.devices

    def use(self) -> Device:
        """The device itself, which is this thread's current one from here on (`Backend.use`)."""
        self.backend.use(self.number)
        return self

    def array(self, value: Any, dtype: Any = None) -> Any:
        """A new array with a copy of `value`: an array of the backend or of NumPy, or lists."""
        return self.backend.array(value, dtype, self.number)

    def adopt(self, value: Any, dtype: Any = None) -> Any:
        """`value` as an array on this device, copied only where that cannot be avoided."""
        return self.backend.adopt(value, dtype, self.number)

    def empty(self, shape: Any, dtype: Any) -> Any:
        return self.use().backend.empty(shape, dtype=dtype)

    def zeros(self, shape: Any, dtype: Any) -> Any:
        return self.use().backend.zeros(shape, dtype=dtype)

    def ones(self, shape: Any, dtype: Any) -> Any:
        return self.use().backend.ones(shape, dtype=dtype)

    def arange(self, n: int) -> Any:
        return self.use().backend.arange(n)
