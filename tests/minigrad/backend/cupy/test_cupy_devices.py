"""Several devices, and what goes wrong on one: arrays are made where they are meant to be, and every failure is one line of ours."""
from __future__ import annotations

import threading
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad as mg
from minigrad import backend
from minigrad.backend import Device, cpu, cupy
from minigrad.backend.cupy import errors as cupy_errors
from minigrad.testing import fake_cupy
from minigrad.testing.domains import DOMAINS
from minigrad.testing.fake_cupy import fake
from minigrad.testing.fake_cupy.device import state
from minigrad.testing.laws.run import Run
from minigrad.testing.laws.subject import flat

HERE = fake_cupy.install()
GB = 10**9


def _other(device: str) -> None:
    """Make the device that `device` is not the current one, as somebody else's code may."""
    fake_cupy.Device(1 - int(device[-1])).use()


# ── devices ──
@pytest.mark.parametrize("name", list(dict.fromkeys(d.subject.name for d in DOMAINS)))
@settings(max_examples=max(2, settings.default.max_examples // 10))
@given(data=st.data())
def test_an_op_stays_on_its_device(name: str, data: Any):
    """Value, gradients and gradients of gradients are on the device of the arguments, whichever is current."""
    domain = data.draw(st.sampled_from([d for d in DOMAINS if d.subject.name == name]))
    device = data.draw(st.sampled_from(["fake:0", "fake:1"]))
    run = Run(domain.subject, data.draw(domain.examples), "float32", device)
    xs = run.leaves()
    with np.errstate(all="ignore"):
        _other(device)
        y = flat(domain.subject.function(*xs, **run.settings))
        if name != "to_op":
            assert y.device == device
        if y.requires_grad:
            seed = mg.tensor(np.ones(y.shape, y.dtype), device=y.device)
            _other(device)
            first = [g for g in mg.gradients(y, xs, seed, create_graph=True) if g.requires_grad]
            for g in first:
                one = mg.Tensor(backend.get(device).array(np.ones(g.shape, g.dtype)))
                _other(device)
                second = mg.gradients(g, xs, one, retain_graph=True)
                assert {t.device for t in (g, *second)} <= {device}


@pytest.mark.parametrize("device", ["fake:0", "fake:1"])
def test_a_device_makes_arrays_on_it(device: str):
    """Whichever is current, and it is the current one afterwards. An array of another device is brought to it, in pieces too."""
    there, elsewhere = backend.get(device), Device(HERE, 1 - int(device[-1]))
    assert str(there) == device and there == Device(HERE, int(device[-1])) != elsewhere
    away, half = elsewhere.arange(6)[::2], {"dtype": "float16"}
    made: list[tuple[Callable[[], Any], Any, list[int] | None]] = [
        (lambda: there.array([1, 2], **half), "float16", [1, 2]), (lambda: there.array(away), "int64", [0, 2, 4]),
        (lambda: there.adopt(np.ones(2, np.float32), **half), "float16", [1, 1]), (lambda: there.adopt(np.ones(2)), "float64", [1, 1]),
        (lambda: there.adopt(away), "int64", [0, 2, 4]),
        (lambda: there.empty((2,), dtype="int32"), "int32", None), (lambda: there.zeros((2,), dtype="float32"), "float32", [0, 0]),
        (lambda: there.ones((2,), dtype="float32"), "float32", [1, 1]), (lambda: there.arange(3), "int64", [0, 1, 2])]
    for make, dtype, numbers in made:
        elsewhere.use()
        array = make()
        assert HERE.device(array) == there and state.thread.devices[-1] == there.number and array.dtype == dtype
        assert numbers is None or HERE.host(array).tolist() == numbers


@pytest.mark.parametrize("device", ["fake:0", "fake:1"])
def test_what_several_ops_share_stays_on_its_device(device: str):
    """add_layer_norm as its ops, whichever device is current; arrays of two devices are refused as `add` and `layer_norm` refuse them."""
    x, w = (mg.tensor(np.arange(1.0, 9.0).reshape(shape), device=device, requires_grad=True) for shape in ((1, 8), (8,)))
    elsewhere = [mg.tensor(t.numpy(), device=f"fake:{1 - int(device[-1])}") for t in (x, w)]
    _other(device)
    s, y = mg.add_layer_norm(x, x, w, w)
    (s + y).sum().backward()
    assert {t.device for t in (s, y, x.grad, w.grad)} == {device}
    with pytest.raises(mg.DeviceError, match=f"add: a is on {device} and b is on {elsewhere[0].device}"):
        mg.add_layer_norm(x, elsewhere[0], w, w)
    with pytest.raises(mg.DeviceError, match=f"layer_norm: x is on {device} and weight is on {elsewhere[0].device}"):
        mg.add_layer_norm(x, x, elsewhere[1], w)


@given(seed=st.integers(0, 99), kind=st.sampled_from(["SGD", "Adam", "AdamW"]))
@settings(max_examples=5)
def test_two_devices_in_turn(seed: int, kind: str):
    """Two trainings in one thread, one on each device, a line of this and a line of that: the same bits as alone."""
    def lines(device: str, out: list[Any]) -> Any:
        p = mg.Parameter(mg.random.normal(mg.random.key(seed), (3, 4), device=device))
        x = mg.tensor(np.arange(8.0, dtype=np.float32).reshape(2, 4), device=device)
        optimizer = getattr(mg.optim, kind)([p], lr=0.1, **({"momentum": 0.9} if kind == "SGD" else {}))
        scaler = mg.optim.GradScaler(4.0)
        for _ in range(2):
            yield
            loss = mg.tanh(mg.linear(x, p)).sum() + (p * p).mean()
            yield
            scaler.scale(loss).backward()
            yield
            (p * p).sum().backward()                    # into a gradient that is there
            yield
            scaler.unscale_(optimizer)
            yield
            norm = mg.optim.clip_grad_norm_([p], 1.0)
            yield
            scaler.step(optimizer, norm)
            scaler.update()
            yield
            assert {loss.device, p.device, p.grad.device} == {device}
            optimizer.zero_grad()
        out.append(p.numpy().tobytes())

    alone: list[Any] = []
    both: list[Any] = []
    list(lines("fake:0", alone))
    for _ in zip(lines("fake:0", both), lines("fake:1", both), strict=True):
        pass
    assert both == alone * 2


def test_gradients_are_scaled_where_they_are(monkeypatch: pytest.MonkeyPatch):
    """Where they lie is told by addresses, which mean something on their own device alone."""
    launch, places = HERE.launch, []
    monkeypatch.setattr(HERE, "launch", lambda name, *args, **how: (places.append(state.thread.devices[-1]), launch(name, *args, **how)))
    p = mg.Parameter(mg.tensor([1.0, 2.0], device="fake:1"))
    p.grad = mg.tensor([3.0, 4.0], device="fake:1")
    for f in (lambda: mg.optim.clip_grad_norm_([p], 1.0), lambda: mg.optim.GradScaler(2.0).unscale_(mg.optim.SGD([p]))):
        _other("fake:1")
        f()
    assert set(places) == ({1} if HERE.kernels else set())


@pytest.mark.parametrize("device", ["fake:0", "fake:1"])
def test_random_numbers_are_drawn_where_they_are_wanted(device: str):
    """Whatever the current device is; they are NumPy's."""
    for draw in (mg.random.uniform, mg.random.normal, lambda key, n, **where: mg.random.randint(key, n, 0, 9, **where)):
        _other(device)
        x = draw(5, 7, device=device)
        assert x.device == device and x.numpy().tobytes() == draw(5, 7).numpy().tobytes()


def test_transforms_find_their_device():
    """jvp, jacobian and hessian of a tensor that is not on the current device, and the zeros of what was not computed with."""
    x, far = mg.tensor([0.5, -1.0, 2.0], device="fake:1"), mg.tensor([1.0, 2.0], device="fake:0")
    for f in (lambda: mg.jvp(mg.tanh, [x], [x])[1], lambda: mg.jacobian(mg.tanh)(x), lambda: mg.hessian(lambda x: mg.tanh(x).sum())(x),
              lambda: mg.grad(lambda a, b: b.sum(), 0)(x, far), lambda: mg.jacobian(lambda x: (mg.tanh(x), far * far)[0])(x)):
        y = f()
        _other("fake:1")
        assert f().numpy().tobytes() == y.numpy().tobytes() and y.device == "fake:1"


def test_one_graph_over_two_devices():
    """`.to` in the middle of a graph: each part of the walk back runs where its values are."""
    def f(x: mg.Tensor, y: mg.Tensor, there: str) -> mg.Tensor:
        part = mg.split(x * 1.0, sections=2, axis=-1)[1]                  # the other part's gradient is made of zeros
        twice = y * 2.0                                 # what the walk meets just before it makes them
        return (mg.tanh(mg.exp(x).to(there) * twice) + (x * x).to(there)).sum() + part.to(there).sum()

    for shown in ("fake:1", "numpy"):
        x = mg.tensor([0.5, -1.0], device="fake:0", requires_grad=True)
        y = mg.tensor([2.0, 3.0], device=shown, requires_grad=True)
        loss = f(x, y, shown)
        a, b = mg.tensor([0.5, -1.0], requires_grad=True), mg.tensor([2.0, 3.0], requires_grad=True)
        same = f(a, b, "numpy")
        for _ in range(2):
            fake_cupy.Device(0).use()
            loss.backward(retain_graph=True)
            same.backward(retain_graph=True)
        assert (x.grad.device, y.grad.device) == ("fake:0", shown)
        assert x.grad.numpy().tobytes() == a.grad.numpy().tobytes() and y.grad.numpy().tobytes() == b.grad.numpy().tobytes()


def test_a_thread_has_a_device_of_its_own():
    """What one thread names or computes on is not the current device of another, and its ops find theirs all the same."""
    x, found = mg.tensor([1.0, 2.0], device="fake:1"), []
    thread = threading.Thread(target=lambda: found.extend([state.thread.devices[-1], (x * x).device, state.thread.devices[-1]]))
    thread.start()
    thread.join()
    assert found == [0, "fake:1", 1]


def test_mixed_devices_are_named():
    """Both arguments and both devices are in the message, and the way to put it right."""
    a, b = mg.tensor([[1.0]], device="fake:0"), mg.tensor([[1.0]], device="fake:1")
    for f, words in ((lambda: mg.matmul(a, b), "matmul: a is on fake:0 and b is on fake:1"),
                     (lambda: mg.concat([a, b]), r"xs\[0\] is on fake:0 and xs\[1\] is on fake:1"),
                     (lambda: mg.matmul(b, mg.tensor([[1.0]])), "a is on fake:1 and b is on numpy")):
        with pytest.raises(mg.DeviceError, match=words):
            f()


# ── memory ──
def test_no_memory_is_said_wherever_it_runs_out():
    """At any allocation of a training step the error is ours, in one line, with what was asked for, what is free, and what to lower."""
    def step() -> None:
        p = mg.Parameter(mg.random.normal(mg.random.key(0), (6, 5), device="fake"))
        x = mg.tensor(np.ones((2, 5), np.float32), device="fake")
        optimizer = mg.optim.AdamW([p], lr=0.1)
        mg.softmax(mg.linear(x, p)).log().sum().backward()
        optimizer.step()

    with fake_cupy.counting() as counts:
        step()
    seen = set()
    for n in range(counts.allocations):
        with pytest.raises(mg.OutOfMemoryError) as caught, fake_cupy.short_of_memory(n):
            step()
        said = str(caught.value)
        assert "out of memory on fake:0: " in said and " asked for, 4.29 GB free of 8.59 GB" in said and "\n" not in said
        assert "batch" in said and "--recompute" in said and isinstance(caught.value, MemoryError)
        seen.add(said.partition(":")[0])
    assert {"linear", "softmax", "AdamW.step"} <= seen and any(s.startswith("backward of") for s in seen), seen


# ── what CuPy says ──
def _error(name: str, said: str, base: type = RuntimeError) -> Exception:
    return type(name, (base,), {"__module__": "cupy"})(said)    # type: ignore[no-any-return]


def _fake(error: Exception | None = None, *, count: int = 1, capability: str = "90", driver: int = 12090, library: Exception | None = None,
          context: Any = None) -> types.ModuleType:
    """A package called cupy on a machine where something is wrong."""
    def devices() -> int:
        if error is not None:
            raise error
        return count

    class Device(fake_cupy.Device):
        compute_capability = property(lambda self: capability if self.id == 0 else "90")  # type: ignore[assignment]

        def use(self) -> Any:
            return self

    class Cuda:
        runtime = types.SimpleNamespace(getDeviceCount=devices, driverGetVersion=lambda: driver, runtimeGetVersion=lambda: 12090,
                                        memGetInfo=context or (lambda: (1, 2)), getDevice=lambda: 0)
        nvrtc = types.SimpleNamespace(getVersion=lambda: (12, 9))

        @property
        def cublas(self) -> Any:
            if library is not None:
                raise library
            return types.SimpleNamespace()

    Cuda.Device = Device                                # type: ignore[attr-defined]
    fake = types.ModuleType("cupy")
    fake.__spec__ = types.SimpleNamespace(name="cupy")  # type: ignore[assignment]
    fake.cuda, fake.ndarray = Cuda(), type("ndarray", (), {})       # type: ignore[attr-defined]
    return fake


def _raising(error: Exception) -> Callable[[], Any]:
    def f() -> Any:
        raise error

    return f


OLD = "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version"
NO_CUBLAS = 'Failure finding "libcublasLt.so.13 or libcublasLt.so.12": No such file: libcublasLt.so.13\n'
BROKEN = {
    "no-driver": (_fake(_error("CUDARuntimeError", OLD), driver=0), ["no NVIDIA driver", "nvidia-smi"]),
    "old-driver": (_fake(_error("CUDARuntimeError", OLD), driver=11040), ["CUDA 11.4", "CUDA 12.9", "update the driver"]),
    "no-device": (_fake(_error("CUDARuntimeError", "cudaErrorNoDevice: no CUDA-capable device is detected")), ["no NVIDIA GPU"]),
    "hidden": (_fake(count=0), ["no NVIDIA GPU"]),
    "no-cublas": (_fake(library=ImportError(NO_CUBLAS)), ["libcublas", "pip install 'cupy-cuda12x[ctk]'"]),
    "no-nvrtc": (_fake(library=_error("DynamicLibNotFoundError", 'Failure finding "libnvrtc.so.12": no')), ["libnvrtc", "[ctk]"]),
    "too-old": (_fake(capability="61"), ["6.1", "7.0", "--device"]),
    "taken": (_fake(context=_raising(_error("CUDARuntimeError", "cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy"))),
              ["cupy:0", "another process"]),
    "anything": (_fake(_error("SystemFault", "in two\nlines", Exception)), ["in two"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_said_in_one_line(case: str, monkeypatch: pytest.MonkeyPatch):
    """Exit code 4, one line with what is wrong and what to do; "cupy" never falls back, and "auto" takes NumPy without a word."""
    fake, words = BROKEN[case]
    monkeypatch.setattr(backend, "_named", {"numpy": cpu})
    monkeypatch.setitem(__import__("sys").modules, "cupy", fake)
    with pytest.raises(mg.BackendUnavailable) as caught:
        backend.get("cupy")
    said = str(caught.value)
    assert caught.value.exit_code == 4 and "\n" not in said and "numpy" in said
    assert all(word in said for word in words), said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backend.get("auto") == Device(cpu)


def test_auto_takes_the_first_gpu_that_can_be_used(monkeypatch: pytest.MonkeyPatch):
    """A GPU too old for the kernels is passed over; by its name it is refused."""
    monkeypatch.setattr(backend, "_named", {"numpy": cpu})
    monkeypatch.setitem(__import__("sys").modules, "cupy", _fake(capability="52", count=2))
    assert str(backend.get("auto")) == "cupy:1" and backend.get("cupy:1").number == 1
    with pytest.raises(mg.BackendUnavailable, match=r"cupy:0 has compute capability 5\.2"):
        backend.get("cupy")
    with pytest.raises(mg.DeviceError, match="cupy:2 does not exist; this machine has 2 GPUs"):
        backend.get("cupy:2")


def test_an_import_that_fails_says_why(monkeypatch: pytest.MonkeyPatch):
    """Of CuPy's page the reason is told: a library that is missing, or whatever it was."""
    for cause, words in ((ImportError("libcublas.so.12: cannot open shared object file: No such file"), "CUDA's library libcublas"),
                         (ImportError("numpy.core.multiarray failed to import"), "cannot be imported (numpy.core")):
        error = ImportError(f"\n{'=' * 64}\nFailed to import CuPy.\n\nOriginal error:\n  {cause}\n{'=' * 64}\n")
        error.__cause__ = cause

        class Finder:
            def find_spec(self, name: str, *_: Any, error: Exception = error) -> Any:
                if name == "cupy":
                    raise error

        monkeypatch.setattr(cupy.importlib.util, "find_spec", lambda name: object())
        monkeypatch.setattr("sys.meta_path", [Finder()])
        monkeypatch.delitem(__import__("sys").modules, "cupy", raising=False)
        with pytest.raises(mg.BackendUnavailable) as caught:
            cupy.load()
        assert words in str(caught.value) and "\n" not in str(caught.value) and "====" not in str(caught.value)


@pytest.mark.parametrize("error, kind, words", [
    (_error("OutOfMemoryError", "Out of memory allocating 12,000,000,512 bytes (allocated so far: 70,000,000,000 bytes).", MemoryError),
     mg.OutOfMemoryError, ["layer_norm: out of memory on cupy:1: 12.00 GB asked for"]),
    (_error("CUDARuntimeError", "cudaErrorMemoryAllocation: out of memory"), mg.OutOfMemoryError, ["out of memory on cupy:1"]),
    (_error("CUBLASError", "CUBLAS_STATUS_ALLOC_FAILED"), mg.OutOfMemoryError, ["lower the batch"]),
    (_error("CUBLASError", "CUBLAS_STATUS_NOT_SUPPORTED"), mg.DeviceError, ["CUBLAS_STATUS_NOT_SUPPORTED"]),
    (_error("CUDADriverError", "CUDA_ERROR_NO_BINARY_FOR_GPU: no kernel image"), mg.BackendUnavailable, ["no code for this GPU"]),
    (_error("CUDADriverError", "CUDA_ERROR_UNSUPPORTED_PTX_VERSION: PTX"), mg.BackendUnavailable, ["update the driver", "12.9"]),
    (_error("CUDARuntimeError", "cudaErrorIllegalAddress: an illegal memory access was encountered"), mg.DeviceError, ["CUDA_LAUNCH"]),
    (_error("CUDARuntimeError", "cudaErrorInvalidDevice: invalid device ordinal"), mg.DeviceError, ["nvidia-smi -L"]),
    (_error("CompileException", "/tmp/a.cu(3): note\n/tmp/a.cu(7): error: x is undefined\n", Exception), mg.DeviceError, ["(7): error: x"]),
    (ImportError(NO_CUBLAS), mg.BackendUnavailable, ["libcublasLt", "[ctk]"]),
    (ImportError("no module called nonsense"), None, []), (ValueError("cudaErrorMemory"), None, []), (OSError("a disk"), None, []),
])
def test_every_complaint_has_its_line(error: Exception, kind: Any, words: list[str]):
    """What, where and what to do, as an error of ours; what is not CuPy's is left alone."""
    ours = cupy_errors.explained(fake._namespace(), error, "layer_norm", "cupy:1")
    assert type(ours) is (kind or type(None))
    if kind:
        assert "\n" not in str(ours) and all(word in str(ours) for word in words), str(ours)


@pytest.mark.parametrize("source", ["host", "fake:0", "fake:1"])
def test_the_state_of_an_optimiser_comes_to_the_device_of_its_parameter(source: str):
    """Wherever its arrays come from, and whichever device is the current one."""
    here = fake_cupy.install()
    p = mg.nn.Parameter(mg.tensor([1.0, 2.0], device="fake:1"))
    optimizer = mg.optim.Adam([p], lr=0.1)
    (p * p).sum().backward()
    optimizer.step()
    kept = optimizer.state_dict()
    moved = (lambda a: here.host(a)) if source == "host" else mg.backend.get(source).array
    kept["state"][0] = {name: moved(a) if hasattr(a, "shape") else a for name, a in kept["state"][0].items()}
    for current in ("fake:0", "fake:1"):
        fresh = mg.optim.Adam([p], lr=0.1)
        mg.backend.get(current)
        fresh.load_state_dict(kept)
        arrays = [a for a in fresh.state[p].values() if hasattr(a, "shape")]
        assert len(arrays) == 2 and {str(here.device(a)) for a in arrays} == {"fake:1"}
        fresh.step()
