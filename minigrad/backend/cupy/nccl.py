"""Sums over GPUs of several processes, by NCCL through CuPy."""
from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from ...errors import BackendUnavailable, DTypeError

# the constants of cupy.cuda.nccl, by dtype
_TYPES = {"float32": "NCCL_FLOAT32", "float64": "NCCL_FLOAT64", "float16": "NCCL_FLOAT16",
          "bfloat16": "NCCL_BFLOAT16"}
_INSTALL = "pip install nvidia-nccl-cu12 (nvidia-nccl-cu13 for CUDA 13), or choose mpi"


class Communicator:
    """This process's end. BackendUnavailable where NCCL is missing.

    All processes call `connect`, and then `all_reduce` in one order.
    """

    def __init__(self, cupy: Any) -> None:
        self.cuda = cupy.cuda
        try:
            self.nccl: Any = importlib.import_module("cupy.cuda.nccl")
        except ImportError as error:
            raise BackendUnavailable(f"NCCL cannot be loaded ({error}); {_INSTALL}") from None
        if not getattr(self.nccl, "available", True):
            raise BackendUnavailable(f"NCCL is not installed; {_INSTALL}")

    def unique_id(self) -> Any:
        """What process 0 makes, and all connect with."""
        return self.nccl.get_unique_id()

    def connect(self, rank: int, world_size: int, unique_id: Any) -> None:
        """Meet the others, each with the current device as its own.

        BackendUnavailable with what NCCL says.
        """
        try:
            self.communicator = self.nccl.NcclCommunicator(world_size, unique_id, rank)
        except self.nccl.NcclError as error:
            raise BackendUnavailable(f"NCCL: {error}; "
                                     "each process needs a GPU of its own") from None
        self.stream = self.cuda.Stream(non_blocking=True)

    def all_reduce(self, array: Any) -> Callable[[], None]:
        """Sum in place, after what the current stream has yet to do, and beside what comes later.

        The result, when it is called, lets that stream wait. DTypeError for a dtype that NCCL does
        not sum, or not this CuPy's.
        """
        kind = getattr(self.nccl, _TYPES.get(str(array.dtype), ""), None)
        if kind is None:
            raise DTypeError(f"all_reduce: this CuPy's NCCL cannot sum {array.dtype}; cast to "
                             "float32 first")
        ready, done = self.cuda.Event(disable_timing=True), self.cuda.Event(disable_timing=True)
        ready.record()
        self.stream.wait_event(ready)
        self.communicator.allReduce(array.data.ptr, array.data.ptr, array.size,
                                    kind, self.nccl.NCCL_SUM, self.stream.ptr)
        done.record(self.stream)
        return lambda: self.cuda.get_current_stream().wait_event(done)
