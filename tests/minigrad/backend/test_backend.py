"""Backends: which there are, what is said of those that are not, and the pieces that a library lacks."""
from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
import types
from typing import Any

import numpy as np
import pytest
from compare import close
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from minigrad import backend
from minigrad.backend import Device, cpu
from minigrad.backend.base import Backend
from minigrad.backend.fallbacks import erf
from minigrad.backend.numpy import blas

EPS = float(np.finfo(np.float64).eps)


# ── which there are ──
def test_numpy_is_there():
    """"numpy" is the CPU; a memory-mapped array and NumPy's scalars belong to it; a list belongs to none."""
    assert backend.get("numpy") == backend.get("numpy:0") == Device(cpu) and str(Device(cpu)) == cpu.name == "numpy"
    class Mapped(np.ndarray):
        pass

    assert backend.of(np.ones(1)) is cpu and backend.of(np.float32(1.0)) is cpu
    assert backend.of(np.ones(1).view(Mapped)) is cpu
    with pytest.raises(TypeError, match=r"builtins\.list .*numpy"):
        backend.of([1.0])


@pytest.mark.parametrize("name, words", [
    ("nonsense", "choose auto, numpy, cupy or cupy:N"), ("numpy:3", "one device"), ("numpy:-1", "whole number"), ("cupy:x", "cupy:0"),
    ("torch", "torch")])
def test_what_does_not_exist_is_refused(name: str, words: str):
    """A DeviceError of one line that says what to write instead."""
    with pytest.raises(mg.DeviceError) as caught:
        backend.get(name)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def _cupy(error: Exception | None = None, count: int = 0) -> types.ModuleType:
    """A package called cupy as a machine without a usable GPU has it."""
    class CUDARuntimeError(RuntimeError):
        pass

    def devices() -> int:
        if error is not None:
            raise CUDARuntimeError(str(error))
        return count

    runtime = types.SimpleNamespace(getDeviceCount=devices, CUDARuntimeError=CUDARuntimeError)
    fake = types.ModuleType("cupy")
    fake.__spec__ = importlib.util.spec_from_loader("cupy", None)
    fake.cuda = types.SimpleNamespace(runtime=runtime)  # type: ignore[attr-defined]
    fake.ndarray = type("ndarray", (), {})              # type: ignore[attr-defined]
    return fake


@pytest.mark.parametrize("installed, words", [
    (None, ["not installed", "pip install", "cuda12", "cuda13", "numpy"]),
    (_cupy(RuntimeError("cudaErrorInsufficientDriver: driver too old")), ["driver too old", "NVIDIA driver", "numpy"]),
    (_cupy(count=0), ["no NVIDIA GPU", "numpy"]),
], ids=["no-package", "no-driver", "no-gpu"])
def test_cupy_without_a_gpu_says_what_is_missing(installed: Any, words: list[str], monkeypatch: pytest.MonkeyPatch):
    """BackendUnavailable of one line with the command that helps, exit code 4, never a fall-back; "auto" takes NumPy."""
    monkeypatch.setattr(backend, "_named", {"numpy": cpu})
    if installed is None:
        monkeypatch.delitem(sys.modules, "cupy", raising=False)
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "cupy" else find(name, *a))
    else:
        monkeypatch.setitem(sys.modules, "cupy", installed)
    for f in (lambda: backend.get("cupy"), lambda: backend.get("cupy:1"), lambda: mg.tensor([1.0], device="cupy")):
        with pytest.raises(mg.BackendUnavailable) as caught:
            f()
        assert caught.value.exit_code == 4 and "\n" not in str(caught.value)
        for word in words:
            assert word in str(caught.value), f"{word!r} is missing in {str(caught.value)!r}"
    assert backend.get("auto") == Device(cpu)


def test_devices_never_mix():
    """Arrays of two backends in one op are a DeviceError that names both places and .to()."""
    class Foreign(np.ndarray):
        pass

    class Elsewhere(Backend):
        name, namespace, array_types = "elsewhere", np, (Foreign,)

    made = Elsewhere()
    backend.known[Foreign] = made
    try:
        a, b = mg.Tensor(np.ones(2)), mg.Tensor(np.ones(2).view(Foreign))
        assert b.device == "elsewhere"
        with pytest.raises(mg.DeviceError) as caught:
            a * b
        assert str(caught.value) == 'mul: a is on numpy and b is on elsewhere; move one with .to("elsewhere")'
        with pytest.raises(mg.DeviceError, match="elsewhere"):
            np.asarray(b)
        x = mg.Tensor(np.ones(2)).requires_grad_()
        with pytest.raises(mg.DeviceError, match="elsewhere"):
            (x * x).backward(b)
    finally:
        del backend.known[Foreign]


def test_a_backend_answers_with_its_library():
    """What the face does not define comes from the library's namespace; dunder names do not."""
    assert cpu.exp is np.exp and repr(cpu) == "<backend numpy>"
    with pytest.raises(AttributeError):
        cpu.no_such_function  # noqa: B018
    with pytest.raises(AttributeError):
        cpu.__no_such__  # noqa: B018


# ── what a library lacks ──
# Cody's fractions are good to 6e-19. In |x| ≤ 0.46875 the value is x·P/Q: the last step of each Horner scheme (the
# others are damped by x² ≤ 0.22) and three operations, 5 half-eps. Beyond, it is 1 − c with c ≤ 0.51 and the value at least 0.49;
# c = exp·P/Q carries 3 + 3 + 3 half-eps (at x ≈ 0.5 each step of Horner is damped by one half), so 9·0.51/0.49 and the subtraction's 1.
ERF_BOUND = 5.5 * EPS


def _erf_error(x: Any) -> float:
    ours, exact = erf(cpu, x), np.array([math.erf(v) for v in x])
    assert ours.dtype == x.dtype
    size = np.maximum(np.abs(exact), 2.0**-1000)        # below, numbers are too small for relative rounding
    return float((np.abs(ours - exact) / size).max())


def test_erf_is_right_to_a_few_units_in_the_last_place():
    """Over [−7, 7], through both seams, and down to the smallest numbers the relative error is at most 5.5 eps."""
    seams = np.concatenate([s * (1.0 + np.arange(-50, 51) * EPS) for s in (0.46875, 4.0, 6.0)])
    for x in (np.linspace(-7.0, 7.0, 50_001), seams, -seams, np.logspace(-300, 0, 3001)):
        assert _erf_error(x) <= ERF_BOUND


def test_erf_at_the_ends():
    """erf(±∞) = ±1, erf(0) = 0, erf(NaN) = NaN, erf of the smallest number is not zero; and no warning is given."""
    with np.errstate(all="raise", under="ignore"):
        y = erf(cpu, np.array([np.inf, -np.inf, 0.0, np.nan, 1e308, -30.0, 1e-310]))
    assert y[:3].tolist() == [1.0, -1.0, 0.0] and np.isnan(y[3]) and y[4:6].tolist() == [1.0, -1.0] and y[6] > 0.0
    assert erf(cpu, np.zeros((2, 0))).shape == (2, 0) and float(erf(cpu, np.array(0.5))) > 0.0


def test_erf_in_float32_stays_float32():
    """In float32 the same bound holds in float32's eps."""
    x = np.linspace(-7.0, 7.0, 20_001).astype("float32")
    y = erf(cpu, x)
    exact = np.array([math.erf(float(v)) for v in x])
    assert y.dtype == np.float32
    assert (np.abs(y - exact) <= 5.5 * float(np.finfo("float32").eps) * np.abs(exact)).all()


@given(seed=st.integers(0, 999), n=st.integers(0, 40), rows=st.integers(1, 6), d=st.integers(0, 3))
def test_rows_are_added_in_order(seed: int, n: int, rows: int, d: int):
    """add_at_rows is np.add.at row by row, bit for bit the sum in the order of the index; rows not named are zero."""
    rng = np.random.default_rng(seed)
    index, values = rng.integers(0, rows, n), rng.standard_normal((n, d))
    expected = np.zeros((rows, d))
    np.add.at(expected, index, values)
    close(cpu.add_at_rows(rows, index, values), expected, terms=n + 1, scale=10.0)
    again = cpu.add_at_rows(rows, index, values)
    np.testing.assert_array_equal(again, cpu.add_at_rows(rows, index.astype(np.int32), values))


def test_indices_are_checked():
    """check_index passes 0 … size − 1 and nothing else; the message shows the first offender and the range."""
    cpu.check_index(np.array([0, 4]), 5, "ids")
    cpu.check_index(np.zeros(0), 5, "ids")
    for bad, words in [([0, 5, 7], "0 … 4; 5 does"), ([-1], "-1"), ([0.0], "integers")]:
        with pytest.raises(mg.ShapeError) as caught:
            cpu.check_index(np.array(bad), 5, "ids")
        assert words in str(caught.value)


def test_blas_is_held_to_one_thread_and_let_go():
    """Inside one_thread BLAS uses one thread; afterwards, also after an error, as many as before."""
    before = blas.call("get_num_threads")
    if before is None:
        pytest.skip("NumPy brings no OpenBLAS here; install NumPy's own wheel to run this")
    with pytest.raises(KeyError), blas.one_thread():
        assert blas.call("get_num_threads") == 1
        raise KeyError
    assert blas.call("get_num_threads") == before


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(["float32", "float64", "float16"]))
def test_a_layout_is_the_same_matrix(rows: int, columns: int, dtype: str):
    """lay_out gives the same numbers, with the longer axis the inner one in memory; laid out once, it is left alone."""
    x = np.arange(rows * columns).reshape(rows, columns).astype(dtype)
    y = cpu.lay_out(x)
    np.testing.assert_array_equal(y, x)
    assert (y.flags.f_contiguous if rows > columns else y is x) and cpu.lay_out(y) is y
    assert np.shares_memory(x, y) == (rows <= columns or columns == 1)
    ids = np.array([0, rows - 1, 0])
    np.testing.assert_array_equal(cpu.take(y, ids), x[ids])


SETTLE = """
import os, sys
import numpy as np
from minigrad.backend.numpy import blas
from minigrad.backend import cpu
a = np.random.default_rng(0).standard_normal((300, 300))
before, threads = a @ a, blas.call("get_num_threads")
cpu.settle()
found = blas.library()
same = bool((a @ a == before).all()) and blas.call("get_num_threads") == threads
print(same, os.environ.get("OPENBLAS_THREAD_TIMEOUT"), found and found[0].openblas_thread_timeout())
"""


@pytest.mark.parametrize("own, left, used", [(None, "None", "20"), ("24", "24", "24")])
def test_a_settled_process_computes_the_same(own: str | None, left: str, used: str):
    """After settle() idle BLAS threads sleep sooner, unless the environment says when; products and the environment are as before."""
    if blas.library() is None:
        pytest.skip("NumPy brings no OpenBLAS here; install NumPy's own wheel to run this")
    env = {name: value for name, value in os.environ.items() if name != "OPENBLAS_THREAD_TIMEOUT"}
    done = subprocess.run([sys.executable, "-c", SETTLE], capture_output=True, text=True, check=True,
                          env={**env, **({"OPENBLAS_THREAD_TIMEOUT": own} if own else {})})
    assert done.stdout.split() == ["True", left, used]
