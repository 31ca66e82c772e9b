"""CuPy: arrays on an NVIDIA GPU. Loaded only when asked for; this file is the one place that imports cupy."""
from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

from ..errors import BackendUnavailable, DeviceError
from . import cublas, cupy_attention  # noqa: F401  the latter adds its kernels to KERNELS
from .base import Backend
from .cupy_kernels import KERNELS, add_rows, fits
from .special import flat_places, running_sums

_TYPES = {"float32": ("float", "float"), "float64": ("double", "double"), "float16": ("Half", "float"), "bfloat16": ("Bfloat", "float")}
_INSTALL = "pip install 'cupy-cuda12x[ctk]' (CUDA 12; the extra [cuda12]) or 'cupy-cuda13x[ctk]' (CUDA 13; [cuda13])"


def source() -> str:
    """The text of all kernels, which is compiled as one."""
    return "\n".join((Path(__file__).parent / name).read_text(encoding="utf-8") for name in ("kernels.cu", "attention.cu"))


def load() -> Backend:
    """The CuPy backend. BackendUnavailable, with what to do, where CuPy, its driver or a GPU is missing."""
    if importlib.util.find_spec("cupy") is None:
        raise BackendUnavailable(f"backend cupy: the package cupy is not installed; {_INSTALL}, or use --backend numpy")
    try:
        import cupy
    except ImportError as error:
        reason = str(error).strip().splitlines()[0]
        raise BackendUnavailable(f"backend cupy: cupy cannot be imported ({reason}); {_INSTALL}, or use --backend numpy") from None
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise BackendUnavailable(f"backend cupy: no usable NVIDIA GPU ({error}); install the NVIDIA driver, "
                                 "or use --backend numpy") from None
    if count == 0:
        raise BackendUnavailable("backend cupy: there is no NVIDIA GPU; use --backend numpy")
    return CupyBackend(cupy)


class CupyBackend(Backend):
    """Arrays of one CUDA device each; the device travels with the array."""

    name = "cupy"
    devices = True

    def __init__(self, cupy: Any) -> None:
        self.namespace = cupy
        self.array_types = (cupy.ndarray,)
        # a rule is not told the backend, and these need it
        self.kernels = {name: functools.partial(f, self) if "/" in name else f for name, f in KERNELS.items()}
        self._modules: dict[str, Any] = {}
        self._compiled: dict[tuple[str, Any], Any] = {}

    def launch(self, name: str, dtype: Any, blocks: tuple[int, ...], threads: tuple[int, ...], *args: Any, shared: int = 0) -> None:
        """Run the kernel `name` of kernels.cu or attention.cu, compiled for floats of dtype, as so many blocks of so many threads.

        args: arrays (contiguous where they are not Strided), int and float, as the kernel declares them. shared: bytes of memory that the
        threads of a block share.
        """
        run = self._compiled.get((name, dtype))
        if run is None:
            stored, computed = _TYPES[str(dtype)]
            if stored not in self._modules:
                self._modules[stored] = self.namespace.RawModule(code=source(), options=(f"-DSTORE={stored}", f"-DREAL={computed}"))
            run = self._compiled[name, dtype] = self._modules[stored].get_function(name)
        run(blocks, threads, args, shared_mem=shared)

    def capability(self) -> int:
        """The compute capability of the current device: 80 for 8.0."""
        return int(self.namespace.cuda.Device().compute_capability)

    def device(self, array: Any) -> str:
        return f"{self.name}:{array.device.id}"

    def label(self, number: int) -> str:
        return f"{self.name}:{number}"

    def check_device(self, number: int) -> None:
        count = self.namespace.cuda.runtime.getDeviceCount()
        if number >= count:
            raise DeviceError(f"{self.name}:{number} does not exist; this machine has {count} GPU(s), numbered from 0")

    def array(self, value: Any, dtype: Any = None, device: int | None = None) -> Any:
        value, number = self._travelling(value, device)
        with self.namespace.cuda.Device(number):
            return self.namespace.array(value, dtype=dtype)

    def adopt(self, value: Any, dtype: Any = None, device: int | None = None) -> Any:
        value, number = self._travelling(value, device)
        with self.namespace.cuda.Device(number):
            return self.namespace.asarray(value, dtype=dtype)

    def _travelling(self, value: Any, device: int | None) -> tuple[Any, int]:
        """`value`, in one piece if it must go to another device, and the number of the device it goes to."""
        if not isinstance(value, self.namespace.ndarray):
            return value, device or 0
        here = value.device.id
        if device in (None, here):
            return value, here
        with self.namespace.cuda.Device(here):
            return self.namespace.ascontiguousarray(value), device or 0

    def host(self, array: Any) -> Any:
        return self.namespace.asnumpy(array)

    def owns(self, array: Any) -> bool:
        return array.base is None

    def synchronize(self) -> None:
        self.namespace.cuda.get_current_stream().synchronize()

    def erf(self, x: Any) -> Any:
        from cupyx.scipy.special import erf

        return erf(x)

    def matmul(self, a: Any, b: Any) -> Any:
        out = self.product(a, b)
        return self.namespace.matmul(a, b) if out is NotImplemented else out

    def product(self, a: Any, b: Any, **options: Any) -> Any:
        """a @ b by one call of cuBLAS, with the options of `cublas.multiply`; NotImplemented where there is none."""
        return cublas.multiply(self.namespace, a, b, tf32=self.tf32, **options)

    def add_at_rows(self, rows: int, index: Any, values: Any) -> Any:
        if not fits(values) or not self.kernels or rows == 0:
            return super().add_at_rows(rows, index, values)
        out = self.zeros((rows, values.shape[1]), dtype=values.dtype)
        add_rows(self, out, index, values)
        return out

    def add_at(self, array: Any, index: Any, values: Any) -> None:
        # CuPy's own adds in any order, and the last bit may differ from run to run: so what is added to one place is summed up first
        cp, parts = self.namespace, index if isinstance(index, tuple) else (index,)
        if len(parts) == array.ndim and all(hasattr(i, "dtype") and i.dtype.kind in "iu" for i in parts):
            places = flat_places(cp, tuple(map(cp.asarray, parts)), array.shape)
        else:
            places = cp.arange(array.size).reshape(array.shape)[index]
        values = cp.broadcast_to(values, places.shape)
        if values.size == 0:
            return
        places, sums = running_sums(cp, places.reshape(-1), values.reshape(-1, 1))
        last = cp.concatenate([places[1:] != places[:-1], cp.ones(1, dtype=bool)])
        flat = array.reshape(-1)
        cp.add.at(flat, places, cp.where(last, sums[:, 0], 0))      # and nothing, wherever a sum is not whole yet
        if not array.flags.c_contiguous:                # then flat is a copy
            array[...] = flat.reshape(array.shape)
