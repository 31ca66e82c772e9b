"""Gradients that become their mean over processes, and errors of one among several."""
from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpi import mpiexec

import minigrad as mg
from minigrad import backend, distributed
from minigrad.distributed import DataParallel, MPIGroup, ProcessGroup, init_process_group
from minigrad.errors import BackendUnavailable, DeviceError, DistributedError, DTypeError, GraphError
from minigrad.testing.fake_cupy.fake import install


# ── the mean ──
class Thread(ProcessGroup):
    """A thread as a process of a group of threads; notes what is asked of it."""

    def __init__(self, rank, world_size, shared):
        self.rank = self.local_rank = rank
        self.world_size, self.shared, self.told, self.moments = world_size, shared, [], 0

    def all_gather_object(self, value):
        self.shared["slots"][self.rank] = value
        self.shared["barrier"].wait()
        found = list(self.shared["slots"])
        self.shared["barrier"].wait()
        return found

    def all_reduce(self, array):
        self.told.append(array.size)
        rows = self.all_gather_object(array.copy())

        def wait():
            array[...] = sum(rows[1:], rows[0])

        return wait

    def progress(self):
        self.moments += 1

    def abort(self, code):
        self.told.append(f"abort {code}")


def on_threads(n, work):
    """work(group) on n threads; the results, or errors, by rank."""
    shared = {"slots": [None] * n, "barrier": threading.Barrier(n, timeout=60)}

    def caught(rank):
        try:
            return work(Thread(rank, n, shared))
        except BaseException as error:
            return error

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(caught, range(n)))


@given(st.integers(1, 3), st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 200), st.booleans(), st.data())
def test_gradients_become_their_mean(world_size, sizes, bucket, twice, data):
    """For parameters and buckets of any size .grad is the mean over the processes, of one backward or of several added up, also where
    nothing used a parameter; all are parts of one buffer, and every process has the same bits."""
    used = data.draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    factors = [[mg.random.normal(mg.random.fold_in(r, i), (n,)).numpy() for i, n in enumerate(sizes)] for r in range(world_size)]

    def work(group):
        parameters = [mg.tensor(np.ones(n, np.float32), requires_grad=True) for n in sizes]
        parallel = DataParallel(parameters, group, bucket)

        def loss():
            terms = [(p * mg.tensor(f)).sum() for p, f, on in zip(parameters, factors[group.rank], used) if on]
            return mg.stack(terms).sum() if terms else None

        for _ in range(2):                              # the same buffer again
            for p in parameters:
                p.grad = None
            if twice and any(used):
                with parallel.no_sync():
                    loss().backward()
            if any(used):
                loss().backward()
            parallel.finish()
        return [None if p.grad is None else p.grad.array for p in parameters]

    results = on_threads(world_size, work)
    for i, on in enumerate(used):
        expected = (1 + twice) * np.mean([f[i] for f in factors], axis=0, dtype=np.float64) * on
        for grads in results:
            if world_size == 1 and not on:
                assert grads[i] is None
                continue
            np.testing.assert_array_equal(grads[i], results[0][i])
            np.testing.assert_allclose(grads[i], expected, rtol=0, atol=8 * np.finfo(np.float32).eps * max(1.0, np.abs(expected).max()))
    if world_size > 1:
        assert len({id(mg.backend.cpu.owner(g)) for g in results[0]}) == 1


def test_buckets_go_while_backward_goes_on():
    """The last weights' bucket is on its way before the first ones' gradients are there; no_sync keeps all of them back."""
    def work(group):
        weights = [mg.random.normal(i, (4, 4)).requires_grad_() for i in range(3)]
        parallel = DataParallel(weights, group, bucket=4 * 16)
        x, seen = mg.random.normal(5, (2, 4)), []
        weights[0].register_post_accumulate_grad_hook(lambda w: seen.append(len(group.told)))

        def forward():
            y = x
            for w in weights:
                y = mg.tanh(y @ w)
            return y.sum()

        with parallel.no_sync():
            forward().backward()
        forward().backward()
        moments = group.moments                         # one for each gradient at least, in which what is under way gets on
        parallel.finish()
        return seen, group.told, moments

    assert on_threads(2, work) == [([0, 3], [16, 16, 16], 3)] * 2


def test_a_second_backward_needs_no_sync():
    """What is on its way already is not summed up with what comes later: GraphError says what to do."""
    def work(group):
        p = mg.tensor([1.0], requires_grad=True)
        DataParallel([p], group)
        p.sum().backward()
        p.sum().backward()

    for error in on_threads(2, work):
        assert isinstance(error, GraphError) and "no_sync()" in str(error)


def test_a_group_of_one_does_nothing():
    """Its gradients are where backward left them, and no hook is there."""
    p = mg.tensor([1.0, 2.0], requires_grad=True)
    parallel = DataParallel([p], ProcessGroup())
    (p * p).sum().backward()
    grad = p.grad
    parallel.finish()
    assert p.grad is grad and not p.node.hooks


def test_what_groups_know():
    """Means, whether all have the same bits, and who shares a device."""
    def work(group):
        parameters = [mg.tensor(np.array([1.0, -0.0 if group.rank else 0.0]))]
        return group.mean([float(group.rank), 2.0]), group.same(parameters[:0]), group.same(parameters), group.sharing(
            "a" if group.rank < 2 else "b"), group.place("numpy")

    found = on_threads(3, work)
    assert [row[:3] for row in found] == [([1.0, 2.0], True, False)] * 3
    assert [row[3] for row in found] == [(0, 2), (1, 2), (0, 1)] and {row[4] for row in found} == {"numpy"}


# ── errors ──
def fails(ranks, error):
    def f(group):
        return group.together(lambda: group.rank if group.rank not in ranks else (_ for _ in ()).throw(error))
    return f


def test_together():
    """Where all can, each has its own result. Where one cannot none goes on: process 0 says who, the others end with its exit code."""
    assert on_threads(3, fails((), None)) == [0, 1, 2]
    error = BackendUnavailable("no GPU")
    first, *others = on_threads(3, fails((0, 1, 2), error))
    assert first is error and [(type(e), e.code) for e in others] == [(SystemExit, 4)] * 2
    first, *others = on_threads(3, fails((2,), error))
    assert isinstance(first, DistributedError) and (str(first), first.exit_code) == ("rank 2: no GPU", 4)
    assert [(type(e), e.code) for e in others] == [(SystemExit, 4)] * 2


def test_an_error_that_the_others_know_nothing_of(monkeypatch):
    """It says which process had it, and all are ended when this one has come to its end."""
    ends = []
    monkeypatch.setattr(distributed.atexit, "register", lambda f, code: ends.append((f.__self__.rank, code)))
    monkeypatch.setattr(distributed, "GRACE", 0.0)

    def work(error):
        def f(group):
            with group.watched():
                raise error
        return f

    found = on_threads(2, work(BackendUnavailable("no GPU")))
    assert [str(e) for e in found] == ["no GPU", "rank 1: no GPU"] and found[1].exit_code == 4 and sorted(ends) == [(0, 4), (1, 4)]
    ends.clear()
    assert [str(e) for e in on_threads(2, work(OSError("disk")))] == ["disk", "rank 1: disk"] and sorted(ends) == [(0, 1), (1, 1)]
    ends.clear()
    found = on_threads(2, work(ZeroDivisionError("a bug")))
    assert all(isinstance(e, ZeroDivisionError) for e in found) and len(ends) == 2
    ends.clear()
    assert [type(e) for e in on_threads(2, work(KeyboardInterrupt()))] == [KeyboardInterrupt] * 2 and {c for _, c in ends} == {130}
    ends.clear()
    first, other = on_threads(2, lambda group: work(group.met_by_all(BackendUnavailable("no GPU")))(group))
    assert isinstance(first, BackendUnavailable) and (type(other), other.code) == (SystemExit, 4) and not ends    # each by itself
    on_threads(2, work(SystemExit(3)))
    on_threads(1, work(OSError("disk")))
    assert not ends


def test_what_was_written_last_is_waited_for():
    """until_read comes back once the other end of a pipe has read all, does not wait for what is no pipe, and not for ever."""
    out, into = os.pipe()
    try:
        os.write(into, b"the last words")
        reader = threading.Timer(0.5, os.read, (out, 99))
        begun = time.monotonic()
        reader.start()
        distributed.until_read(into, seconds=30)
        assert 0.4 < time.monotonic() - begun
        reader.join()
        os.write(into, b"nobody reads this")
        distributed.until_read(into, seconds=0.05)
        with open(os.devnull, "w") as file:
            distributed.until_read(file.fileno(), 12345, seconds=30)
    finally:
        os.close(out)
        os.close(into)


def test_kinds_of_groups(monkeypatch):
    """Without mpi4py, or without an MPI, an error says how to get them; a word that is no kind is refused."""
    assert init_process_group("none").world_size == 1
    with pytest.raises(ValueError, match="choose none, mpi or nccl, not 'gloo'"):
        init_process_group("gloo")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    for kind in ("mpi", "nccl"):
        with pytest.raises(BackendUnavailable, match=f"{kind} needs mpi4py and an MPI .*; pip install mpi4py mpich"):
            init_process_group(kind)


@pytest.mark.parametrize("name, value, direct", [("MPICH_GPU_SUPPORT_ENABLED", "1", True), ("OMPI_MCA_opal_cuda_support", "true", True),
                                                 ("MPICH_GPU_SUPPORT_ENABLED", "0", False)])
def test_an_mpi_that_takes_memory_of_gpus(monkeypatch, name, value, direct):
    """The variables of MPICH and Open MPI decide."""
    for known in ("MPICH_GPU_SUPPORT_ENABLED", "OMPI_MCA_opal_cuda_support"):
        monkeypatch.delenv(known, raising=False)
    assert not distributed.aware()
    monkeypatch.setenv(name, value)
    assert distributed.aware() is direct


# ── MPI and NCCL ──
class FakeMPI:
    """One process whose sums are twice what it gives."""

    IN_PLACE, SUM, COMM_TYPE_SHARED = object(), "sum", "shared"

    def __init__(self):
        self.COMM_WORLD, self.given, self.tests = self, [], 0

    def Get_rank(self):
        return 0

    def Get_size(self):
        return 2

    def Split_type(self, kind):
        return self

    def Iallreduce(self, place, buffer, op):
        assert place is self.IN_PLACE and op == "sum"
        self.given.append(buffer)
        return types.SimpleNamespace(Wait=lambda: buffer.__imul__(2.0), Test=lambda: setattr(self, "tests", self.tests + 1))


def test_arrays_of_a_gpu_go_through_the_host():
    """The device's array is summed as a host's copy and comes back; an MPI that takes it as it is gets the array itself."""
    fake = install()
    array = fake.array(np.arange(4.0, dtype=np.float32))
    MPI = FakeMPI()
    wait = distributed.MPIGroup(MPI).all_reduce(array)
    assert type(MPI.given[0]) is np.ndarray
    wait()
    np.testing.assert_array_equal(fake.host(array), [0.0, 2.0, 4.0, 6.0])
    waits, fake.synchronize = [], lambda: waits.append(len(MPI.given))
    try:
        distributed.MPIGroup(MPI, direct=True).all_reduce(array)
    finally:
        del fake.synchronize
    assert MPI.given[1] is array and waits == [1]       # the device is waited for before MPI reads its memory
    numbers = np.ones(3)
    group = distributed.MPIGroup(MPI)
    wait = group.all_reduce(numbers)
    group.progress()
    assert MPI.given[2] is numbers and MPI.tests == 1
    wait()
    group.progress()
    assert MPI.tests == 1 and (numbers == 2.0).all()


PROCESSES = """
import sys
import numpy as np
import minigrad as mg
from minigrad.distributed import DataParallel, init_process_group
group = init_process_group("mpi")
r, n = group.rank, group.world_size
assert n == 2 and group.local_rank == r and group.all_gather_object(r * "x") == ["", "x"]
parameters = [mg.tensor(np.ones(k, np.float32), requires_grad=True) for k in (1000, 3, 70000)]
parallel = DataParallel(parameters, group, bucket=4000)
for step in range(3):
    for p in parameters:
        p.grad = None
    mg.stack([(p * float((r + 1) * 10**i)).sum() for i, p in enumerate(parameters)]).sum().backward()
    parallel.finish()
    for i, p in enumerate(parameters):
        assert (p.grad.numpy() == 1.5 * 10**i).all(), (step, i, p.grad)
assert group.same(parameters) and not group.same([mg.tensor([float(r)])])
try:
    group.together(lambda: 1 // (1 - r))
except BaseException as error:
    said = group.all_gather_object(f"{type(error).__name__} {error}")
    if r == 0:
        print(*said, sep="\\n")
"""


def test_mpiexec_is_found_beside_the_python_that_runs(monkeypatch, tmp_path):
    """An environment that is not activated is not on PATH; its mpiexec is still the one that its mpi4py belongs to."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed; pip install '.[mpi]'")
    for folder in ("here", "elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mpiexec").write_text("#!/bin/sh\n")
        (tmp_path / folder / "mpiexec").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "here" / "python"))
    assert mpiexec(2) == [str(tmp_path / "here" / "mpiexec"), "-n", "2"]
    (tmp_path / "here" / "mpiexec").unlink()
    assert mpiexec(2) == [str(tmp_path / "elsewhere" / "mpiexec"), "-n", "2"]
    (tmp_path / "elsewhere" / "mpiexec").unlink()
    with pytest.raises(pytest.skip.Exception, match="mpiexec is not there"):
        mpiexec(2)


def test_two_processes():
    """Under mpiexec two processes have the mean of their gradients, know whether they agree, and hear of each other's errors."""
    done = subprocess.run([*mpiexec(2), sys.executable, "-c", PROCESSES], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["DistributedError rank 1: integer division or modulo by zero", "SystemExit 1"]


def test_mpi_cannot_sum_bfloat16():
    """It has no such type: one line, with what to do."""
    group = object.__new__(MPIGroup)
    with pytest.raises(DTypeError, match="MPI cannot sum bfloat16; keep parameters in float32"):
        group.all_reduce(np.ones(3, backend.dtype("bfloat16")))


def nccl(monkeypatch, **attributes):
    """A cupy.cuda.nccl that is not one."""
    module = types.ModuleType("cupy.cuda.nccl")
    vars(module).update({"available": True, "NcclError": RuntimeError, "NCCL_SUM": 0, "NCCL_FLOAT16": 6, "NCCL_FLOAT32": 7,
                         "NCCL_FLOAT64": 8, "NCCL_BFLOAT16": 9, "get_unique_id": lambda: "unique", **attributes})
    monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", module)


def test_nccl_sums_beside_the_stream_that_computes(monkeypatch):
    """It sums in place on a stream of its own, after what the current stream has to do by then; waiting is the current stream's affair."""
    told = []

    class Event:
        def __init__(self, disable_timing):
            assert disable_timing

        def record(self, stream="current"):
            told.append(("record", stream if type(stream) is str else "own", id(self)))

    class Stream:
        ptr = 77

        def __init__(self, name):
            self.name = name

        def wait_event(self, event):
            told.append(("wait", self.name, id(event)))

    class Communicator:
        def __init__(self, world_size, unique, rank):
            told.append((world_size, unique, rank))

        def allReduce(self, *given):
            told.append(given)

    nccl(monkeypatch, NcclCommunicator=Communicator)
    fake = install()
    cuda = types.SimpleNamespace(**vars(fake.namespace.cuda))
    cuda.Event, cuda.Stream, cuda.get_current_stream = Event, lambda non_blocking: Stream("own"), lambda: Stream("current")
    monkeypatch.setattr(fake.namespace, "cuda", cuda)
    between = fake.communicator()
    between.connect(1, 2, between.unique_id())
    array = types.SimpleNamespace(data=types.SimpleNamespace(ptr=123), size=5, dtype=np.dtype("float64"))
    backend.dtype("bfloat16")
    for dtype, kind in (("float16", 6), ("float32", 7), ("bfloat16", 9)):
        between.all_reduce(types.SimpleNamespace(**{**vars(array), "dtype": np.dtype(dtype)}))
        assert told[-2][3] == kind
    for dtype in ("int64", "bool"):
        with pytest.raises(DTypeError, match=f"cannot sum {dtype}; cast to float32"):
            between.all_reduce(types.SimpleNamespace(**{**vars(array), "dtype": np.dtype(dtype)}))
    del told[1:]
    between.all_reduce(array)()
    world, ready, after, given, done, wait = told
    assert world == (2, "unique", 1) and given == (123, 123, 5, 8, 0, 77)
    assert ready[:2] == ("record", "current") and after == ("wait", "own", ready[2])
    assert done[:2] == ("record", "own") and wait == ("wait", "current", done[2]) and done[2] != ready[2]


def test_nccl_that_is_not_to_be_had(monkeypatch):
    """Each lack is one line: no GPUs, no NCCL, no GPU for this process."""
    with pytest.raises(DeviceError, match="NCCL works on GPUs, and numpy has none; choose mpi"):
        mg.backend.cpu.communicator()
    fake = install()
    monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", None)
    with pytest.raises(BackendUnavailable, match=r"NCCL cannot be loaded \(.*\); pip install nvidia-nccl-cu12"):
        fake.communicator()
    nccl(monkeypatch, available=False)
    with pytest.raises(BackendUnavailable, match="NCCL is not installed; pip install nvidia-nccl-cu12"):
        fake.communicator()

    def refused(*rest):
        raise RuntimeError("NCCL_ERROR_INVALID_USAGE: invalid usage")

    nccl(monkeypatch, NcclCommunicator=refused)
    with pytest.raises(BackendUnavailable, match=r"NCCL: NCCL_ERROR_INVALID_USAGE.*; each process needs a GPU of its own"):
        fake.communicator().connect(0, 2, "unique")
