"""CuPy: arrays on an NVIDIA GPU.

It is loaded only when asked for. Only this file imports cupy; `nccl` imports cupy's NCCL.
"""
from __future__ import annotations

import contextlib
import functools
import importlib.util
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...errors import BackendUnavailable, DeviceError, MinigradError
from ..base import Backend, Device, half
from ..fallbacks import flat_places, running_sums
from . import cublas
from .attention import TENSOR_CORES
from .errors import (
    ELSE,
    INSTALL,
    explained,
    free_and_total,
    no_gpu,
    not_imported,
    oldest,
    packages,
    several,
    too_old,
    unfit,
    unusable,
)
from .kernels import LOGITS, add_rows, fits
from .table import KERNELS

_TYPES = {"float32": ("float", "float"), "float64": ("double", "double"),
          "float16": ("Half", "float"), "bfloat16": ("Bfloat", "float")}
SLOW = 0.5                                              # seconds of compiling that need a word


def source(file: str) -> str:
    """The text of a file of kernels, after what kernels.cu has for all of them."""
    here = Path(__file__).parent / "cuda"
    text = (here / "kernels.cu").read_text(encoding="utf-8")
    if file == "kernels.cu":
        return text
    for_all = text.partition("// ── what is above is for all")[0]
    return for_all + (here / file).read_text(encoding="utf-8")


def compiler_options(dtype: str, constants: tuple[tuple[str, int], ...] = ()) -> tuple[str, ...]:
    """What NVRTC is told for floats of dtype; CuPy adds the architecture and more of its own."""
    defined = (*zip(("STORE", "REAL"), _TYPES[dtype]), *constants)
    return tuple(f"-D{name}={value}" for name, value in defined)


@contextlib.contextmanager
def said_if_slow(say: Callable[[str], None] | None, what: str) -> Iterator[None]:
    """say(what) from another thread, once the block has run for SLOW seconds."""
    timer = threading.Timer(SLOW, say or (lambda what: None), (what,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def load() -> Backend:
    """The CuPy backend.

    BackendUnavailable, with what to do, where CuPy, CUDA's libraries, the driver or a GPU is
    missing.
    """
    if importlib.util.find_spec("cupy") is None:
        raise BackendUnavailable("backend cupy: the package cupy is not installed; "
                                 f"{INSTALL}, {ELSE}")
    try:
        with warnings.catch_warnings(record=True) as met:
            import cupy
    except Exception as error:                          # a package in pieces raises whatever comes
        raise not_imported(error) from None
    for one in met:                                     # CuPy's own on this fills a page
        twice = "multiple CuPy packages" in str(one.message)
        warnings.warn(several(packages()) if twice else one.message, one.category, stacklevel=2)
    if trouble := unfit(cupy):
        raise BackendUnavailable(f"backend cupy: {trouble}")
    try:
        if cupy.cuda.runtime.getDeviceCount() == 0:
            raise BackendUnavailable(f"backend cupy: {no_gpu()}")
        # CuPy loads both when they are first used, which is in the middle of something
        cupy.cuda.nvrtc.getVersion()
        cupy.cuda.cublas  # noqa: B018
    except BackendUnavailable:
        raise
    except Exception as error:
        raise unusable(cupy, error) from None
    return CupyBackend(cupy)


class Captured:
    """f as a CUDA graph.

    The first call runs f, which compiles its kernels; the second captures it; all but the first
    launch the graph. A graph remembers addresses: what f allocates while it is captured comes from
    a memory pool of its own, which lives as long. It is captured on a stream of its own, for the
    default stream cannot be, and launched on the current one, so that it runs after what was asked
    for before it and before what is asked for after it.
    """

    def __init__(self, cuda: Any, f: Callable[[], None]) -> None:
        self.cuda, self.f, self.pool = cuda, f, cuda.MemoryPool()
        self.graph: Any = None
        self.ran = False

    def __call__(self) -> None:
        if not self.ran:
            self.f()
            self.ran = True
            return
        if self.graph is None:
            stream = self.cuda.Stream(non_blocking=True)
            with stream, self.cuda.using_allocator(self.pool.malloc):
                stream.begin_capture()
                try:
                    self.f()
                finally:
                    graph = stream.end_capture()
            self.graph = graph
        self.graph.launch()


class CupyBackend(Backend):
    """Arrays of one CUDA device each; the device travels with the array.

    CUDA computes on the device that is the current one of a thread. Here that is the device last
    named, or last computed on: `use` and `at` change it, an op does where its arrays are elsewhere,
    and nobody changes it back.
    """

    name = "cupy"
    devices = takes_half = True
    half_ops = frozenset(("matmul_op", "addmm", "linear"))
    logits = LOGITS

    def __init__(self, cupy: Any) -> None:
        self.namespace = cupy
        self.array_types = (cupy.ndarray,)
        # a rule is not told the backend, and these need it
        self.kernels = {name: functools.partial(f, self) if "/" in name else f
                        for name, f in KERNELS.items()}
        self._ready: set[int] = set()                   # devices that have been looked at
        self._modules: dict[tuple[str, tuple[str, ...]], Any] = {}
        self._compiled: dict[tuple[str, Any, tuple[tuple[str, int], ...]], Any] = {}

    def launch(self, name: str, dtype: Any, blocks: tuple[int, ...], threads: tuple[int, ...],
               *args: Any, shared: int = 0, file: str = "kernels.cu",
               constants: tuple[tuple[str, int], ...] = ()) -> None:
        """Run the kernel `name` of a file of kernels, compiled for floats of dtype.

        It runs as so many blocks of so many threads. args: arrays (contiguous where they are not
        Strided), int and float, as the kernel declares them. shared: bytes of memory that the
        threads of a block share. constants: what else the file is compiled for.
        """
        run = self._compiled.get((name, dtype, constants))
        if run is None:
            run = self._compile(name, str(dtype), file, constants)
            self._compiled[name, dtype, constants] = run
        run(blocks, threads, args, shared_mem=shared)

    def _compile(self, name: str, dtype: str, file: str,
                 constants: tuple[tuple[str, int], ...]) -> Any:
        """A kernel as CuPy calls it. NVRTC compiles all of its file, where CuPy has not kept it."""
        options = compiler_options(dtype, constants)
        if (file, options) not in self._modules:
            self._modules[file, options] = self.namespace.RawModule(code=source(file),
                                                                    options=options)
        what = f"compiling CUDA kernels ({file}, {dtype}); later starts find them in CuPy's cache"
        with said_if_slow(self.said, what):
            return self._modules[file, options].get_function(name)

    def capability(self) -> int:
        """The compute capability of the current device: 80 for 8.0."""
        return int(self.namespace.cuda.Device().compute_capability)

    def device(self, array: Any) -> Device:
        return Device(self, array.device.id)

    def count(self) -> int:
        return int(self.namespace.cuda.runtime.getDeviceCount())

    def use(self, number: int) -> None:
        device = self.namespace.cuda.Device(number)
        if number not in self._ready:
            self._look_at(device)
        device.use()

    def _look_at(self, device: Any) -> None:
        """DeviceError where there is no GPU of its number; BackendUnavailable if it is unusable."""
        count, place = self.count(), str(Device(self, device.id))
        if device.id >= count:
            raise DeviceError(f"{place} does not exist; this machine has {count} "
                              f"GPU{'s' * (count > 1)}, numbered from 0")
        try:
            has, wants = divmod(int(device.compute_capability), 10), oldest(self.namespace)
            if has < wants:
                raise BackendUnavailable(too_old(place, has, wants))
            with device:
                # this makes CUDA's context, where that can be had
                self.namespace.cuda.runtime.memGetInfo()
        except MinigradError:
            raise
        except Exception as error:
            raise unusable(self.namespace, error, place) from None
        self._ready.add(device.id)

    def at(self, array: Any) -> Backend:
        number = array.data.device_id
        if number != self.namespace.cuda.runtime.getDevice():
            self.namespace.cuda.Device(number).use()
        return self

    def explained(self, error: BaseException, what: str = "") -> MinigradError | None:
        try:
            number = self.namespace.cuda.runtime.getDevice()
        except Exception:                               # no driver
            number = 0
        return explained(self.namespace, error, what, str(Device(self, number)))

    def array(self, value: Any, dtype: Any = None, number: int | None = None) -> Any:
        return self._made(self.namespace.array, value, dtype, number)

    def adopt(self, value: Any, dtype: Any = None, number: int | None = None) -> Any:
        return self._made(self.namespace.asarray, value, dtype, number)

    def _made(self, make: Any, value: Any, dtype: Any, number: int | None) -> Any:
        """make(value) on a device: an array of ours stays on its own, all else comes to the first.

        number: of the one it comes to instead.
        """
        try:
            if isinstance(value, self.namespace.ndarray):
                here = value.data.device_id
                if number not in (None, here):          # it travels in one piece
                    self.use(here)
                    value = self.namespace.ascontiguousarray(value)
                    here = number
                self.use(here)
            else:
                self.use(number or 0)
            return make(value, dtype=dtype)
        except MinigradError:
            raise
        except Exception as error:
            if (ours := self.explained(error, "an array")) is None:
                raise
            raise ours from None

    def host(self, array: Any) -> Any:
        try:
            return self.namespace.asnumpy(array)
        except Exception as error:                      # an earlier error is often noticed here
            if (ours := self.explained(error)) is None:
                raise
            raise ours from None

    def owns(self, array: Any) -> bool:
        return array.base is None

    @functools.cached_property
    def processors(self) -> int:
        """How many multiprocessors the current device has."""
        return int(self.namespace.cuda.Device().attributes["MultiProcessorCount"])

    def communicator(self) -> Any:
        from .nccl import Communicator

        return Communicator(self.namespace)

    def captured(self, f: Callable[[], None]) -> Callable[[], None]:
        return Captured(self.namespace.cuda, f)

    def free_memory(self) -> int:
        return free_and_total(self.namespace)[0]

    def lay_out(self, matrix: Any) -> Any:
        # what one number of the result is made of lies in one piece
        return matrix if matrix.flags.f_contiguous else self.namespace.asfortranarray(matrix)

    def synchronize(self) -> None:
        self.namespace.cuda.get_current_stream().synchronize()

    def shares_memory(self, a: Any, b: Any) -> bool:
        # of arrays without axes CuPy compares the addresses of copies: they always share memory
        a, b = (x if x.ndim else x.reshape(1) for x in (a, b))
        return bool(self.namespace.shares_memory(a, b))

    # CuPy chooses from bfloat16 as float32, and does not sort it
    def tril(self, x: Any, k: int = 0) -> Any:
        return self._in_float32(self.namespace.tril, x, k).astype(x.dtype, copy=False)

    def triu(self, x: Any, k: int = 0) -> Any:
        return self._in_float32(self.namespace.triu, x, k).astype(x.dtype, copy=False)

    def argsort(self, x: Any, **how: Any) -> Any:
        return self._in_float32(self.namespace.argsort, x, **how)

    @staticmethod
    def _in_float32(f: Callable[..., Any], x: Any, *args: Any, **options: Any) -> Any:
        """f(x, …); where x is of bfloat16, f of the same numbers in float32."""
        return f(x.astype("float32") if x.dtype.kind == "V" else x, *args, **options)

    def erf(self, x: Any) -> Any:
        from cupyx.scipy.special import erf

        return erf(x)

    def matmul(self, a: Any, b: Any) -> Any:
        out = self.product(a, b)
        if out is NotImplemented and half(a.dtype):
            # cuBLAS has no one call for it, and CuPy adds up as it likes
            return self.namespace.matmul(a.astype("float32"), b.astype("float32")).astype(a.dtype)
        return self.namespace.matmul(a, b) if out is NotImplemented else out

    def product(self, a: Any, b: Any, **options: Any) -> Any:
        """a @ b by one call of cuBLAS; NotImplemented where there is none.

        options: those of `cublas.multiply`. A GPU before compute capability 8.0 has no bfloat16 and
        no TF32: there float32 is multiplied.
        """
        bfloat16 = a.dtype.char == "E"
        old = (self.tf32 or bfloat16) and self.capability() < TENSOR_CORES
        if old and bfloat16:
            return self._widened(a, b, **options)
        return cublas.multiply(self.namespace, a, b, tf32=self.tf32 and not old, **options)

    def _widened(self, a: Any, b: Any, *, out: Any = None, add: bool = False,
                 dtype: Any = None) -> Any:
        """`product` of bfloat16 that is multiplied as float32."""
        made = cublas.multiply(self.namespace, a.astype("float32"), b.astype("float32"))
        if made is NotImplemented:
            return made
        if out is None:
            return made.astype(dtype or a.dtype, copy=False)
        out[...] = (out + made if add else made).astype(out.dtype, copy=False)
        return out

    def add_at_rows(self, rows: int, index: Any, values: Any) -> Any:
        if not fits(values) or not self.kernels or rows == 0:
            return super().add_at_rows(rows, index, values)
        out = self.zeros((rows, values.shape[1]), dtype=values.dtype)
        add_rows(self, out, index, values)
        return out

    def add_at(self, array: Any, index: Any, values: Any) -> None:
        # CuPy's own adds in any order, and the last bit may differ from run to run: so what is
        # added to one place is summed up first
        cp, parts = self.namespace, index if isinstance(index, tuple) else (index,)
        if len(parts) == array.ndim and all(hasattr(i, "dtype") and i.dtype.kind in "iu"
                                            for i in parts):
            places = flat_places(cp, tuple(map(cp.asarray, parts)), array.shape)
        else:
            places = cp.arange(array.size).reshape(array.shape)[index]
        values = cp.broadcast_to(values, places.shape)
        if values.size == 0:
            return
        places, sums = running_sums(cp, places.reshape(-1), values.reshape(-1, 1))
        last = cp.concatenate([places[1:] != places[:-1], cp.ones(1, dtype=bool)])
        flat = array.reshape(-1)
        # and nothing is added wherever a sum is not whole yet
        cp.add.at(flat, places, cp.where(last, sums[:, 0], 0))
        if not array.flags.c_contiguous:                # then flat is a copy
            array[...] = flat.reshape(array.shape)
