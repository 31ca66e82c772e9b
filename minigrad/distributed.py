"""Several processes that train one model: a group of processes, and the mean of their gradients.

    from minigrad.distributed import DataParallel, init_process_group
    group = init_process_group("mpi")   # under: mpiexec -n 2 python …
    parallel = DataParallel(model.parameters(), group)
    loss.backward()                     # it already starts to send buckets of gradients
    parallel.finish()                   # now each parameter's .grad is the mean over the processes

The names are PyTorch's (torch.distributed; Li et al., "PyTorch Distributed: Experiences on
Accelerating Data Parallel Training", 2020).
"""
from __future__ import annotations

import atexit
import contextlib
import math
import os
import socket
import stat
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

from . import backend
from .engine.tensor import Tensor
from .errors import BackendUnavailable, DistributedError, DTypeError, GraphError

BUCKET = 25 << 20                       # bytes
GRACE = 2.0                             # seconds in which other processes may meet the same error
PASSING_ON = 0.3                        # seconds in which mpiexec prints what it has read
READ = 10.0                             # the most seconds to wait until mpiexec has read all output


class ProcessGroup:
    """The processes that train together; an instance of this class itself is a single process.

    rank: the number of this process, from 0. world_size: the number of processes. local_rank: the
    number of this process among those on its machine.
    """

    rank, world_size, local_rank = 0, 1, 0
    known: BaseException | None = None                  # an error that all processes have met

    def all_gather_object(self, value: Any) -> list[Any]:
        """The values of all processes, by rank. Every process must call it."""
        return [value]

    def all_reduce(self, array: Any) -> Callable[[], None]:
        """Start to sum an array over the processes, in place; return a function that waits for it.

        Do not use the array before you have called that function. In a ring of n processes, each
        sends 2 (n − 1)/n of the array's bytes in 2 (n − 1) messages   (parallel.5–6).
        """
        return lambda: None

    def progress(self) -> None:
        """Continue the sums that were started, if the library does not do so by itself."""

    def abort(self, code: int) -> None:
        """End every process of the group that can be reached."""

    # ── methods that call those above ──
    def mean(self, numbers: list[float]) -> list[float]:
        """Each number's mean over the processes, the same on all."""
        rows = self.all_gather_object(numbers)
        return [math.fsum(column) / self.world_size for column in zip(*rows)]

    def together(self, f: Callable[[], Any]) -> Any:
        """The result of f(), which every process calls; if it fails on one, all processes end.

        Process 0 raises its own error, or a DistributedError that says which process had one; all
        others end without a message, with the same exit code.
        """
        result = error = None
        try:
            result = f()
        except Exception as caught:
            error = caught
        said = self.all_gather_object(None if error is None else (str(error), _code(error)))
        first = next((rank for rank, found in enumerate(said) if found is not None), None)
        if first is None:
            return result
        told = DistributedError(f"rank {first}: {said[first][0]}", said[first][1])
        raise self.met_by_all(error if self.rank == 0 and error else told)

    def met_by_all(self, error: Exception) -> BaseException:
        """The exception to raise for an error that every process meets at the same point.

        Process 0 prints the message, and all others end without one. So it is printed exactly once,
        and no process has to wait for another.
        """
        if self.rank:
            return SystemExit(_code(error))
        self.known = error
        return error

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """An error inside the block ends all processes, after this one has printed its message.

        This is for an error that the other processes may not have. After an error that all have
        (`met_by_all`) each process ends by itself.
        """
        try:
            yield
        except BaseException as error:
            if self.world_size == 1 or isinstance(error, SystemExit) or error is self.known:
                raise
            code = _code(error)
            if self.rank:
                time.sleep(GRACE)                       # if all have the error, process 0 ends them
            atexit.register(self.abort, code)           # it runs before MPI waits for the others
            if self.rank and (hasattr(error, "exit_code")
                              or isinstance(error, (OSError, MemoryError))):
                raise DistributedError(f"rank {self.rank}: {error}", code) from None
            raise

    def same(self, parameters: Iterable[Tensor]) -> bool:
        """Whether these parameters have the same bits in every process."""
        checksum = 0
        for p in parameters:
            here = backend.of(p.array)
            checksum = zlib.crc32(here.host(here.ascontiguousarray(p.array)), checksum)
        return len(set(self.all_gather_object(checksum))) == 1

    def place(self, name: str) -> str:
        """The device of this process, if `name` is a backend; if it is a device, `name` itself.

        The processes of a machine share its GPUs evenly.
        """
        library = backend.get(name).backend
        if self.world_size == 1 or ":" in name:
            return name
        return str(backend.Device(library, self.local_rank % library.count()))

    def sharing(self, device: str) -> tuple[int, int]:
        """(i, n): n processes of this machine use this device, and this one is number i, from 0."""
        everybody = self.all_gather_object((socket.gethostname(), device))
        mine = everybody[self.rank]
        return everybody[:self.rank].count(mine), everybody.count(mine)


class MPIGroup(ProcessGroup):
    """The processes that mpiexec started.

    Arrays of a GPU are copied to the host, unless the MPI can read a GPU's memory (`direct`).
    """

    def __init__(self, MPI: Any, direct: bool = False) -> None:
        self.MPI, self.comm, self.direct = MPI, MPI.COMM_WORLD, direct
        self.rank, self.world_size = self.comm.Get_rank(), self.comm.Get_size()
        self.local_rank = self.comm.Split_type(MPI.COMM_TYPE_SHARED).Get_rank()
        self.under_way: list[Any] = []

    def all_gather_object(self, value: Any) -> list[Any]:
        return list(self.comm.allgather(value))

    def all_reduce(self, array: Any) -> Callable[[], None]:
        here = backend.of(array)
        here.at(array)
        if array.dtype.kind == "V":                     # ml_dtypes' bfloat16
            raise DTypeError(f"all_reduce: MPI cannot sum {array.dtype}; keep parameters in "
                             "float32 and compute in 16 bits, or choose nccl")
        if self.direct:
            here.synchronize()                          # MPI would not wait for the device
        buffer = array if self.direct else here.host(array)         # for NumPy the array itself
        request = self.comm.Iallreduce(self.MPI.IN_PLACE, buffer, op=self.MPI.SUM)
        self.under_way.append(request)

        def wait() -> None:
            request.Wait()
            self.under_way.remove(request)
            if buffer is not array:
                array[...] = here.device(array).adopt(buffer)

        return wait

    def progress(self) -> None:
        for request in self.under_way:                  # without a thread of its own, MPI works
            request.Test()                              # only while one of its functions runs

    def abort(self, code: int) -> None:
        until_read(1, 2)                                # output that mpiexec has not read and
        time.sleep(PASSING_ON)                          # printed by then would be lost
        self.comm.Abort(code)


class NCCLGroup(MPIGroup):
    """The processes that mpiexec started; their GPUs compute the sums (NCCL).

    name: a backend or a device.
    """

    def __init__(self, MPI: Any, name: str) -> None:
        super().__init__(MPI)
        self.between = self.together(lambda: backend.get(self.place(name)).backend.communicator())
        unique = self.comm.bcast(self.between.unique_id() if self.rank == 0 else None)
        self.together(lambda: self.between.connect(self.rank, self.world_size, unique))

    def all_reduce(self, array: Any) -> Callable[[], None]:
        backend.of(array).at(array)
        wait: Callable[[], None] = self.between.all_reduce(array)
        return wait


def init_process_group(kind: str = "none", name: str = "numpy") -> ProcessGroup:
    """The group of this process.

    kind: "none" (this process alone), "mpi", or "nccl" for GPUs. name: the backend, or a device of
    it. BackendUnavailable if mpi4py, an MPI or NCCL is missing; DeviceError for NCCL without GPUs;
    ValueError for another kind.
    """
    if kind == "none":
        return ProcessGroup()
    if kind not in ("mpi", "nccl"):
        raise ValueError(f"init_process_group: choose none, mpi or nccl, not {kind!r}")
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:        # RuntimeError: mpi4py finds no MPI
        raise BackendUnavailable(f"{kind} needs mpi4py and an MPI ({error}); "
                                 "pip install mpi4py mpich") from None
    return MPIGroup(MPI, aware()) if kind == "mpi" else NCCLGroup(MPI, name)


def aware() -> bool:
    """Whether the environment says that the MPI can read the memory of GPUs.

    The variables are MPICH's and Open MPI's.
    """
    return (os.environ.get("MPICH_GPU_SUPPORT_ENABLED") == "1"
            or os.environ.get("OMPI_MCA_opal_cuda_support", "").lower() in ("1", "true"))


def until_read(*pipes: int, seconds: float = READ) -> None:
    """Wait until everything written into these pipes has been read, for at most `seconds`.

    pipes: file descriptors. It does not wait for a descriptor that is not a pipe, or on a system
    that cannot report how much is unread.
    """
    try:
        import fcntl
        import termios
    except ImportError:                                 # Windows
        return
    until = time.monotonic() + seconds
    for pipe in pipes:
        with contextlib.suppress(OSError):
            while (stat.S_ISFIFO(os.fstat(pipe).st_mode)
                   and any(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
                   and time.monotonic() < until):
                time.sleep(0.01)


def _code(error: BaseException) -> int:
    """The exit code of a process that ends with this error."""
    return 130 if isinstance(error, KeyboardInterrupt) else int(getattr(error, "exit_code", 1))


class DataParallel:
    """Replaces the gradients of parameters by their mean over the processes of a group.

    The gradients are copied into one flat buffer, which is divided into buckets. Backward reaches
    the last parameters first, so the buckets begin with them. As soon as all gradients of a bucket
    have been computed, the group starts to sum it, while backward goes on. If each process has the
    same number of rows, the mean of the gradients is the gradient of the mean loss over all rows
    (parallel.1–2). Otherwise each process must first multiply its loss by its share (parallel.3).

    parameters: the same on every process, with the same values, and all of one dtype and device.
    bucket: the size of a bucket in bytes. In a group of one process nothing is done. GraphError if
    backward runs a second time before `finish`, unless it is inside `no_sync`.
    """

    def __init__(self, parameters: Iterable[Tensor], group: ProcessGroup,
                 bucket: int = BUCKET) -> None:
        self.group, self.waiting, self.on = group, list[Callable[[], None]](), True
        self.parameters = list(parameters)[::-1] if group.world_size > 1 else []
        if not self.parameters:
            return
        first = self.parameters[0].array
        here = backend.of(first)
        here.at(first)
        self.flat = here.empty_like(first, shape=(sum(p.numel() for p in self.parameters),))
        self.views: list[Any] = []                      # of the buffer, in the parameters' shapes
        self.buckets: list[list[int]] = [[]]            # the indices of the parameters in each
        start = size = 0
        for i, p in enumerate(self.parameters):
            self.views.append(here.reshape(self.flat[start:start + p.numel()], p.shape))
            if size and size + p.array.nbytes > bucket:
                self.buckets.append([])
                size = 0
            self.buckets[-1].append(i)
            start, size = start + p.numel(), size + p.array.nbytes
            p.register_post_accumulate_grad_hook(
                lambda p, i=i: self._arrived(i))        # type: ignore[misc]
        self.bucket_of = {i: k for k, some in enumerate(self.buckets) for i in some}
        ends = [0]
        for some in self.buckets:
            ends.append(ends[-1] + sum(self.parameters[i].numel() for i in some))
        self.spans = [self.flat[a:b] for a, b in pairwise(ends)]
        self._begin()

    def _begin(self) -> None:
        self.missing = [set(some) for some in self.buckets]     # gradients not yet computed
        self.waiting = []                               # a function for each bucket that was sent

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Inside the block gradients are only accumulated, not sent   (parallel.4).

        Use it for all batches of a step except the last.
        """
        was, self.on = self.on, False
        try:
            yield
        finally:
            self.on = was

    def _arrived(self, i: int) -> None:
        if not self.on:
            return
        if self.bucket_of[i] < len(self.waiting):
            raise GraphError("DataParallel: backward ran a second time before finish(), and its "
                             "gradients have already been sent; call all backward passes of a "
                             "step but the last inside no_sync()")
        grad = self.parameters[i].grad
        assert grad is not None
        self.views[i][...] = grad.array
        self.missing[self.bucket_of[i]].discard(i)
        self._send()

    def _send(self) -> None:
        """Start to sum complete buckets, in the same order on every process   (parallel.7)."""
        while len(self.waiting) < len(self.buckets) and not self.missing[len(self.waiting)]:
            self.waiting.append(self.group.all_reduce(self.spans[len(self.waiting)]))
        self.group.progress()

    def finish(self) -> None:
        """Wait for the sums; then .grad of each parameter is the mean, a view of the buffer.

        A parameter without a gradient counts as one whose gradient is 0.
        """
        if not self.parameters:
            return
        for some in self.missing:
            for i in some:
                grad = self.parameters[i].grad
                self.views[i][...] = 0.0 if grad is None else grad.array
            some.clear()
        self._send()
        for wait, span in zip(self.waiting, self.spans):
            wait()
            span *= 1.0 / self.group.world_size
        for p, view in zip(self.parameters, self.views):
            p.grad = Tensor(view)
        self._begin()
