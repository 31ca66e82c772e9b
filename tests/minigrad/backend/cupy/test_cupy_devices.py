"""Several devices: arrays are made where they are meant to be, and memory that runs out is one line of ours wherever it does."""
from __future__ import annotations

import threading
import time
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad as mg
from minigrad import backend
from minigrad.backend import Device, cupy
from minigrad.testing import fake_cupy
from minigrad.testing.domains import DOMAINS
from minigrad.testing.fake_cupy import fake
from minigrad.testing.fake_cupy.device import state
from minigrad.testing.laws.run import Run
from minigrad.testing.laws.subject import flat

HERE = fake_cupy.install()


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


def test_a_slow_compilation_is_told(monkeypatch: pytest.MonkeyPatch):
    """While kernels are compiled for long, whoever listens is told once what of; a kernel that is there is not told."""
    here, said, wait = fake.FakeCupyBackend(), list[str](), [0.3]
    here.said = said.append
    module = types.SimpleNamespace(get_function=lambda name: time.sleep(wait.pop()) or (lambda *args, **shared: None))
    monkeypatch.setattr(here.namespace, "RawModule", lambda code, options: module)
    monkeypatch.setattr(cupy, "SLOW", 0.05)
    for _ in range(2):
        here.launch("gelu", np.dtype("float32"), (1,), (1,))
    assert said == ["compiling CUDA kernels (kernels.cu, float32); later starts find them in CuPy's cache"] and not wait
    wait.append(0.0)
    here.launch("step_embed", np.dtype("float32"), (1,), (1,), file="decode.cu", constants=(("ROWS", 1), ("CHUNK", 4)))
    time.sleep(0.1)
    assert len(said) == 1


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
