"""The fake CuPy has CuPy's manners, and the engine keeps to them."""
from __future__ import annotations

import ast
import importlib.util
import inspect
import operator
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad as mg
from minigrad import backend
from minigrad.backend import Device
from minigrad.backend.cupy import CupyBackend
from minigrad.testing import fake_cupy
from minigrad.testing.domains import DOMAINS
from minigrad.testing.fake_cupy.names import LACKED, MODULE, NDARRAY, UFUNC
from minigrad.testing.laws.run import Run
from minigrad.testing.laws.subject import flat

HERE = fake_cupy.install()
cp = HERE.namespace


def _t(x: Any, **options: Any) -> mg.Tensor:
    return mg.tensor(np.asarray(x, np.float32), device="fake", **options)


# ── its manners ──
@pytest.mark.parametrize("f", [
    np.asarray, np.exp, lambda x: x + np.ones(2), lambda x: np.ones(2) + x, lambda x: cp.add(x, np.ones(2)), lambda x: cp.exp(np.ones(2)),
    lambda x: cp.concatenate([x, np.ones(2)]), lambda x: x.__iadd__(np.ones(2)), lambda x: x == np.ones(2)],
    ids=["asarray", "ufunc", "add", "radd", "add-function", "exp", "concatenate", "iadd", "eq"])
def test_it_refuses_numpy(f: Any):
    """No implicit conversion to NumPy, and no mixing with its arrays, as in CuPy: a TypeError."""
    with pytest.raises(TypeError):
        f(cp.ones(2))


def test_it_has_only_names_that_cupy_has():
    """A function or attribute that NumPy has and CuPy has not is an AttributeError."""
    for name in ("errstate", "longdouble", "no_such_function"):
        with pytest.raises(AttributeError, match=name):
            getattr(cp, name)
    with pytest.raises(AttributeError, match="setflags"):
        cp.ones(2).setflags(write=False)
    for f in (lambda x: cp.exp(x, where=x > 0), lambda x: cp.max(x, initial=0.0), lambda x: x.sum(where=x > 0),
              lambda x: cp.var(x, correction=1)):
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            f(cp.ones(2))


def _asked() -> dict[tuple[str, tuple[str, ...]], str]:
    """The functions of an array library that minigrad calls as xp.NAME(…), with the arguments that it names, and one place of each.

    What the backend defines itself is left out.
    """
    found = {}
    for path in Path(mg.__file__).parent.rglob("*.py"):
        if "testing" in path.parts or path.match("backend/numpy/*"):
            continue
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and (m := re.fullmatch(r"(?:xp|cp|self\.namespace)\.([\w.]+)", ast.unparse(call.func))):
                name = m[1]
                if not hasattr(CupyBackend, name):
                    found[name, tuple(sorted(k.arg for k in call.keywords if k.arg))] = f"{path.name}:{call.lineno}"
    return found


def test_only_what_cupy_has_is_asked_for():
    """In all of minigrad, in lines too that no test runs: the functions of CuPy, with the arguments that these have."""
    asked = _asked()
    for (name, words), place in asked.items():
        first = name.partition(".")[0]
        assert first in MODULE, place
        if first == name and isinstance(getattr(np, name, None), np.ufunc):
            assert set(words) <= UFUNC, place
        assert not LACKED.get(name, frozenset()) & set(words), place
    assert len(asked) > 60 and {("sum", ("axis", "keepdims")), ("cuda.Device", ()), ("add.at", ())} <= asked.keys()


def test_the_names_are_cupys():
    """The committed lists are those of the installed CuPy, and so are the functions and arguments that minigrad uses."""
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("cupy is not installed; pip install cupy-cuda12x (it imports without a GPU) to compare the lists of names")
    import cupy

    assert {n for n in dir(cupy) if not n.startswith("_")} >= MODULE
    assert {n for n in dir(cupy.ndarray) if not n.startswith("_")} >= NDARRAY
    for name, words in LACKED.items():
        assert words <= inspect.signature(getattr(np, name)).parameters.keys() - inspect.signature(getattr(cupy, name)).parameters.keys()
    with pytest.raises(TypeError, match="Wrong arguments"):
        cupy.add(1, 2, where=True)
    for (name, words), place in _asked().items():
        try:
            known = inspect.signature(operator.attrgetter(name)(cupy)).parameters
        except (ValueError, ImportError):               # compiled; or a library is missing: test_fake_cuda.py calls them
            continue
        assert set(words) <= known.keys() or "kwargs" in known, place


def test_reductions_give_arrays_of_no_axes():
    """sum and indexing give ndarrays, never NumPy's scalars; views know whom they are views of."""
    x = cp.arange(6.0).reshape(2, 3)
    for y in (x.sum(), cp.sum(x), x[0, 0], cp.max(x)):
        assert type(y) is fake_cupy.ndarray and y.shape == ()
    assert x[0].base is not None and cp.ones(2).base is None and x.T.base is x[1].base


@pytest.mark.parametrize("f, syncs", [
    (lambda x: x.item(), 1), (lambda x: bool(x), 1), (lambda x: float(x), 1), (lambda x: int(x), 1), (lambda x: x.get(), 1),
    (lambda x: cp.asnumpy(x), 1), (lambda x: x.tolist(), 1), (lambda x: x.reshape(1).nonzero(), 1), (lambda x: x[x > 0], 1),
    (lambda x: x.__setitem__(x > 0, 0.0), 1), (lambda x: cp.bincount(x.reshape(1).astype(int)), 1),
    (lambda x: x.reshape(1)[cp.zeros(1, int)], 0), (lambda x: x + x, 0), (lambda x: cp.where(x > 0, x, 0.0), 0),
    (lambda x: cp.where(x.reshape(1) > 0), 1), (lambda x: cp.exp(x, out=x), 0)])
def test_waits_are_counted(f: Any, syncs: int):
    """Whatever must know a number or a size on the host waits for the device once."""
    x = cp.ones(())
    with fake_cupy.counting() as counts:
        f(x)
    assert counts.syncs == syncs


def test_allocations_and_uploads_are_counted():
    """New arrays count with bytes and dtype; views, in-place operators and out= do not."""
    x = cp.ones((4, 2), dtype="float32")
    with fake_cupy.counting() as counts:
        y = x.reshape(8)[::2].T
        y += 1.0
        cp.add(x, x, out=x)
    assert counts.allocations == 0
    with fake_cupy.counting() as counts:
        cp.array(np.ones(3))
        x + x
    assert (counts.uploads, counts.allocations, counts.bytes) == (1, 2, 24 + 32) and counts.dtypes == {"float64": 1, "float32": 1}


def test_devices_do_not_mix():
    """An array can be computed with on its own device alone; `.to` moves it, and a third device does not exist."""
    a, b = mg.tensor([1.0], device="fake:0"), mg.tensor([1.0], device="fake:1")
    assert (a.device, b.device) == ("fake:0", "fake:1")
    with pytest.raises(mg.DeviceError, match=r'move one with \.to\("fake:1"\)'):
        a + b
    with cp.cuda.Device(1):
        assert (b + a.to("fake:1")).device == "fake:1"
    with cp.cuda.Device(1):
        strided = mg.tensor(np.arange(6.0).reshape(2, 3), device="fake:1")[:, ::2]
    assert strided.to("fake:0").device == "fake:0" and strided.to("fake:0").numpy().tolist() == [[0.0, 2.0], [3.0, 5.0]]
    with pytest.raises(mg.DeviceError, match="fake:2 does not exist"):
        mg.tensor([1.0], device="fake:2")


def test_an_index_out_of_range_wraps():
    """Nothing says so: the element picked, or added to, is the one at the index modulo the length, as in CuPy."""
    x, far = cp.arange(6.0).reshape(2, 3), cp.array([4, -4])
    assert HERE.host(x[:, far]).tolist() == HERE.host(cp.take(x, far, axis=1)).tolist() == [[1.0, 2.0], [4.0, 5.0]]
    assert HERE.host(cp.take_along_axis(x, far[:, None], 1)).tolist() == [[1.0], [5.0]]
    cp.add.at(x, (cp.array([3]), cp.array([3])), 10.0)
    x[cp.array([2]), cp.array([5])] = 7.0
    assert HERE.host(x).tolist() == [[0.0, 1.0, 7.0], [13.0, 4.0, 5.0]]


def test_sums_at_one_place_come_in_any_order():
    """A ufunc's `at` is no sum to build on: its last bits change from run to run."""
    values, index = cp.array(np.random.default_rng(0).standard_normal(1000).astype(np.float32)), cp.zeros(1000, dtype=int)

    def total() -> bytes:
        out = cp.zeros(1, dtype="float32")
        cp.add.at(out, index, values)
        return HERE.host(out).tobytes()

    assert len({total() for _ in range(20)}) > 1


def test_a_copy_goes_between_devices():
    """CuPy's array and asarray bring an array of another device to the current one, if it is contiguous; the backend's leave it there
    unless they are told to which device it is to go."""
    with cp.cuda.Device(1):
        x = cp.ones((2, 3))
    assert (cp.asarray(x).device.id, cp.array(x).device.id) == (0, 0)
    assert HERE.adopt(x) is x and Device(HERE, 1).adopt(x) is x
    assert (HERE.array(x).device.id, Device(HERE).adopt(x).device.id) == (1, 0)
    with pytest.raises(NotImplementedError, match="non-contiguous"), cp.cuda.Device(1):
        part = x[:, ::2]
        with cp.cuda.Device(0):
            cp.array(part)


# ── the engine on it ──
@given(seed=st.integers(0, 999), n=st.integers(0, 40), rows=st.integers(1, 6), d=st.integers(0, 3))
def test_rows_are_added(seed: int, n: int, rows: int, d: int):
    """add_at_rows is np.add.at row by row, to the rounding of log₂ n additions in the dtype of the values; no wait, no float64."""
    rng = np.random.default_rng(seed)
    index, values = rng.integers(0, rows, n), rng.standard_normal((n, d)).astype(np.float32)
    expected = np.zeros((rows, d))
    np.add.at(expected, index, values.astype(np.float64))
    i, v = HERE.array(index), HERE.array(values)
    with fake_cupy.counting() as counts:
        found = HERE.add_at_rows(rows, i, v)
    assert counts.syncs == 0 and "float64" not in counts.dtypes and found.dtype == np.float32
    # a sum of up to n numbers in a tree of depth log₂ n: that many roundings of numbers up to Σ|v|
    bound = (np.log2(n + 1) + 1) * np.finfo(np.float32).eps / 2 * np.abs(values).sum(initial=0.0)
    assert (np.abs(HERE.host(found) - expected) <= bound).all()
    assert HERE.host(HERE.add_at_rows(rows, i, v)).tobytes() == HERE.host(found).tobytes()


@given(seed=st.integers(0, 999), n=st.integers(0, 40), order=st.sampled_from("CF"),
       kind=st.sampled_from(["whole", "rows", "mixed", "host", "mask"]))
def test_elements_are_added(seed: int, n: int, kind: str, order: Any):
    """add_at is np.add.at in the dtype of the values, to the rounding of log₂ n additions; the same bits each time, no hidden wait."""
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(-3, 3, n), rng.integers(-4, 4, n)
    index: Any = {"whole": (rows, columns), "rows": rows, "mixed": (slice(None, None, -1), columns), "host": (rows, columns),
                  "mask": rng.random((3, 4)) < 0.5}[kind]
    start = rng.standard_normal((3, 4)).astype(np.float32)
    values = rng.standard_normal(start[index].shape).astype(np.float32)
    expected, found = start.astype(np.float64), []
    np.add.at(expected, index, values.astype(np.float64))
    for _ in range(2):
        array, v = HERE.array(np.asarray(start, order=order)), HERE.array(values)
        i = index if kind == "host" else tuple(p if isinstance(p, slice) else HERE.array(p) for p in index) if isinstance(
            index, tuple) else HERE.array(index)
        with fake_cupy.counting() as counts:
            HERE.add_at(array, i, v)
        assert counts.syncs == (kind == "mask" and values.size > 0) and "float64" not in counts.dtypes
        found.append(HERE.host(array))
    bound = (np.log2(n + 1) + 2) * np.finfo(np.float32).eps / 2 * (np.abs(values).sum(initial=0.0) + np.abs(start).max())
    assert np.abs(found[0] - expected).max() <= bound and found[0].tobytes() == found[1].tobytes()


def test_an_optimiser_waits_for_nothing():
    """AdamW, Adam and SGD change parameters without a wait, AdamW and Adam upload where they lie; clipping waits once, for the norm that it
    returns, and twice more where the square overflows."""
    for kind, options in ((mg.optim.AdamW, {}), (mg.optim.Adam, {"weight_decay": 0.1}), (mg.optim.SGD, {"momentum": 0.9})):
        params = [_t(np.ones((3, 2)), requires_grad=True), _t(np.ones(4), requires_grad=True)]
        optimizer = kind(params, lr=0.1, **options)
        for p in params:
            (p * p).sum().backward()
        with fake_cupy.counting() as counts:
            optimizer.step()
            optimizer.step()
        tables = 2 * (kind is not mg.optim.SGD) * bool(HERE.kernels)
        assert (counts.syncs, counts.uploads, counts.dtypes["int64"], counts.dtypes["float64"]) == (0, tables, tables, 0)
    with fake_cupy.counting() as counts:
        assert mg.optim.clip_grad_norm_(params, 1.0) == pytest.approx(np.sqrt(10.0 * 4.0), rel=1e-6)
    assert counts.syncs == 1
    for p in params:
        p.grad = mg.Tensor(HERE.ones_like(p.array) * 1e30)
    with np.errstate(over="ignore"), fake_cupy.counting() as counts:
        assert mg.optim.clip_grad_norm_(params, 1.0) == pytest.approx(np.sqrt(10.0) * 1e30, rel=1e-6)
    assert counts.syncs == 3


# What waits, and for what. Everything else waits for nothing.
WAITS = {"getitem": "a mask must be counted", "unslice": "a mask must be counted", "to_op": "it moves to the host"}


@pytest.mark.parametrize("name", list(dict.fromkeys(d.subject.name for d in DOMAINS)))
@settings(max_examples=max(5, settings.default.max_examples // 5))
@given(data=st.data())
def test_no_op_waits(name: str, data: Any):
    """Value, gradients and gradients of gradients of an op: no wait, no upload, and no float64 unless a setting asks for it."""
    domain = data.draw(st.sampled_from([d for d in DOMAINS if d.subject.name == name]))
    example = data.draw(domain.examples)
    run = Run(domain.subject, example, "float32", "fake")
    xs = run.leaves()
    with np.errstate(all="ignore"), fake_cupy.counting() as counts:
        y = flat(domain.subject.function(*xs, **run.settings))
        if y.requires_grad:
            seed = mg.Tensor(HERE.ones_like(y.array))
            first = [g for g in mg.gradients(y, xs, seed, create_graph=True) if g.requires_grad]
            for g in first:
                mg.gradients(g, xs, mg.Tensor(HERE.ones_like(g.array)), retain_graph=True)
    assert name in WAITS or counts.syncs == counts.uploads == 0, counts
    assert "float64" not in counts.dtypes or example.settings.get("dtype") == "float64", counts


def test_random_numbers_are_numpys():
    """The same key gives the same mask, bit for bit, and the same numbers to a rounding."""
    key = mg.random.key(3)
    for draw in (mg.random.uniform, mg.random.normal):
        np.testing.assert_array_equal(draw(key, (3, 5), device="fake").numpy(), draw(key, (3, 5)).numpy())
    mask = mg.random.keep_mask(HERE, key, (4, 7), 0.3)
    np.testing.assert_array_equal(HERE.host(mask), mg.random.keep_mask(backend.cpu, key, (4, 7), 0.3))
