"""kernels.cu, compiled by g++ and run on a CPU thread by thread: over odd shapes its kernels mean what the ops' definitions say."""
from __future__ import annotations

import functools
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cuda_cases import FLOAT, UNIT, UNORDERED, agree, both, close, normal, placed, stored
from device import DEVICE, HERE, counting, kernel_test, needs_compiler
from hypothesis import example, given
from hypothesis import strategies as st

import minigrad as mg
import minigrad.backend.cupy.kernels as wrappers
from minigrad.backend.cupy import source
from minigrad.backend.cupy.table import KERNELS
from minigrad.backend.splitmix64 import keep_mask
from minigrad.op import REGISTRY
from minigrad.testing import nvrtc
from minigrad.testing.fake_cupy import cuda
from minigrad.testing.laws.tolerance import bound, magnitude

SOURCE = source("kernels.cu")
pytestmark = needs_compiler

rows = st.integers(1, 40)
width = st.integers(1, 70) | st.sampled_from([255, 256, 257, 300, 768])   # around a warp, a block, and GPT-2's
dtypes = st.sampled_from(["float32", "float64"])


@kernel_test
@given(n=rows, d=width, dtype=stored, seed=st.integers(0, 99))
@example(n=600, d=33, dtype="float32", seed=0)          # more rows than there are parts of the sums over rows
@example(n=1, d=64, dtype="float32", seed=0)            # x alone begins at an odd place
@example(n=2, d=64, dtype="float32", seed=0)            # the weight alone
@example(n=4, d=64, dtype="float32", seed=0)            # the bias alone
def test_layer_norm(n: int, d: int, dtype: str, seed: int):
    """Value and the gradients of x, weight and bias, a launch each for value, ∂x and the sums."""
    x, w, b = normal(seed, n, d), normal(seed + 1, d), normal(seed + 2, d)
    x *= 1.0 + np.abs(x).max()
    found, wanted, counts = both(mg.layer_norm, REGISTRY["layer_norm"].definition, dtype, x, w, b)
    # x̂ and its derivative grow with 1/σ where a row is of one number
    close(found, wanted, dtype, max(n, d), magnitude(*wanted, x))
    assert counts.launches == {"layer_norm": 1, "layer_norm_dx": 1, "layer_norm_sums": 1}


@kernel_test
@given(n=rows, d=width, dtype=stored, seed=st.integers(0, 99), share=st.sampled_from([1.0, 0.0, -0.5]))
@example(n=2, d=64, dtype="float32", seed=0, share=1.0)  # y alone begins at an odd place
def test_layer_norm_of_a_sum(n: int, d: int, dtype: str, seed: int, share: float):
    """One launch for the sum and its norm, to the bit what two ops give; one on the way back, which adds the stream's gradient."""
    x, w, b = normal(seed, n, d), normal(seed + 1, d), normal(seed + 2, d)
    x *= 1.0 + np.abs(x).max()
    x = x.astype(dtype).astype(np.float64)
    y = share * x                                       # so that numbers of 16 bits hold the sum exactly
    parts = mg.fused.add_layer_norm_unfused
    found, wanted, counts = both(lambda *xs: mg.concat(mg.add_layer_norm(*xs)), lambda *xs: mg.concat(parts(*xs)), dtype, x, y, w, b)
    close(found, wanted, dtype, max(n, d), magnitude(*wanted, x))
    assert counts.launches == {"layer_norm": 1, "layer_norm_dx": 1, "layer_norm_sums": 1}
    there = [mg.tensor(a.astype(dtype), device=DEVICE) for a in (x, normal(seed + 3, n, d), w, b)]
    s, normal_of_s = mg.add_layer_norm(*there)
    assert np.array_equal(s.numpy(), (there[0] + there[1]).numpy())
    assert np.array_equal(normal_of_s.numpy(), mg.layer_norm(s, there[2], there[3]).numpy())
    mean, rstd = (HERE.full((n, 1), number, dtype=wrappers.real(s.dtype)) for number in (0.0, 1.0))
    g, wants = there[1].array, (True,) * 3
    odd, even = (wrappers.layer_norm_joint_into(HERE, placed(x.astype(dtype), shift), g, s.array, there[2].array, mean, rstd, wants)[0]
                 for shift in (1, 0))
    np.testing.assert_allclose(HERE.host(odd).astype(float), HERE.host(even).astype(float), rtol=4 * UNIT.get(dtype, 2.0**-20),
                               atol=bound("float32" if dtype in UNIT else dtype, d, magnitude(*wanted, x)))


@pytest.mark.device
def test_layer_norm_of_a_sum_is_recorded_as_two_ops():
    """The same graph either way; constants stay constants; what does not fit goes, and is refused, as the ops have it."""
    x, y, w = (mg.tensor(normal(i, *shape), device=DEVICE, requires_grad=i != 1) for i, shape in enumerate([(3, 8), (3, 8), (8,)]))
    s, z = mg.add_layer_norm(x, y, w, w)
    assert (s.node.op, z.node.op) == (REGISTRY["add"], mg.layer_norm) and s.node.parents == (x.node, None)
    assert z.node.parents == (s.node, w.node, w.node)
    assert not any(t.requires_grad for t in mg.add_layer_norm(x.detach(), y, w.detach(), w.detach()))
    with mg.no_grad():
        assert not any(t.requires_grad for t in mg.add_layer_norm(x, y, w, w))
    with counting() as counts:
        row, _ = mg.add_layer_norm(x, y[0], w, w)       # y is broadcast
    np.testing.assert_array_equal(row.numpy(), x.numpy() + y.numpy()[0])
    assert counts.launches == {"layer_norm": 1}
    for bad in ((x, y, w[:5], w), (x, y, w, w[:5]), (x, y, w[:5], w[:5]), (x[0, 0], y[0, 0], w[0], w[0])):
        with pytest.raises(mg.ShapeError, match="layer_norm: x"):
            mg.add_layer_norm(*bad)
    with pytest.raises(mg.DTypeError, match="add: a is float64 and b is float32"):
        mg.add_layer_norm(x, y.astype("float32"), w, w)
    # a checkpoint knows what it read
    out = mg.checkpoint(lambda t: mg.add_layer_norm(t, y, w, w)[1])(x)
    w.assign(w.array * 2.0)
    with pytest.raises(mg.GraphError, match="was changed"):
        out.sum().backward()
    # one array in all places: what was sent to it is counted once
    grads = []
    for device in (DEVICE, "numpy"):
        v = mg.tensor(normal(5, 8), device=device, requires_grad=True)
        (mg.layer_norm(v, v, v) + v).sum().backward()
        grads.append(v.grad.numpy())
    np.testing.assert_allclose(*grads, rtol=1e-12)


@kernel_test
@given(n=rows | st.just(600), d=width, dtype=stored, seed=st.integers(0, 99))
def test_sums_over_rows(n: int, d: int, dtype: str, seed: int):
    """What a bias's gradient is made of: one launch, and one sum of the parts."""
    x = normal(seed, n, d).astype(dtype)
    with counting() as counts:
        found = REGISTRY["sum_to"](HERE.array(x), shape=(d,))
    close([HERE.host(found)], [x.astype(np.float64).sum(axis=0)], dtype, n, magnitude(x.astype(np.float64)))
    assert counts.launches == {"column_sums": 1}


@kernel_test
@given(n=st.integers(1, 700), dtype=stored, seed=st.integers(0, 99))
def test_sums(n: int, dtype: str, seed: int):
    """a + b of one shape, in one launch, rounded once."""
    a, b = normal(seed, n).astype(dtype), normal(seed + 1, n).astype(dtype)
    with counting() as counts:
        found = HERE.host(REGISTRY["add"](placed(a, seed % 2), placed(b, seed // 2 % 2)))
    assert np.array_equal(found, (a.astype(np.float64) + b.astype(np.float64)).astype(dtype)) and counts.launches == {"add": 1}


@kernel_test
@pytest.mark.parametrize("dtype", sorted(UNIT))
def test_every_number_of_16_bits(dtype: str):
    """All of them become the very float32; and float32 the nearest of them, ties to even, as NumPy's and ml_dtypes' casts have it."""
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    for few in (every[:1027], every[1:], every):        # also from an odd place on, and up to one
        with counting() as counts:
            wide = HERE.host(REGISTRY["astype"](placed(few, len(few) % 2), dtype="float32"))
        assert np.array_equal(wide, few.astype("float32"), equal_nan=True) and counts.launches == {"widen": 1}
    rng = np.random.default_rng(0)
    some = wide[np.isfinite(wide)]
    ties = (some[:-1].astype(np.float64) + some[1:].astype(np.float64)) / 2.0
    ties = ties[np.isfinite(ties.astype("float32"))].astype("float32")
    bits = rng.integers(0, 1 << 32, 100_000, dtype=np.uint32).view("float32")
    for x in (wide, ties, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf)), bits, bits[1:]):
        with np.errstate(over="ignore", invalid="ignore"), counting() as counts:
            found, wanted = HERE.host(REGISTRY["astype"](placed(x, len(x) % 2), dtype=dtype)), x.astype(dtype)
        numbers = ~np.isnan(x)
        assert np.array_equal(found.view(np.uint16)[numbers], wanted.view(np.uint16)[numbers]) and counts.launches == {"narrow": 1}
        assert np.isnan(found[~numbers].astype("float32")).all()


GELUS = [functools.partial(f, approximate="tanh") for f in (mg.gelu, REGISTRY["gelu"].definition)]


@kernel_test
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_gelu_far_out(dtype: str):
    """Where x² or x³ is no number any more, it is x or 0, with a slope of 1 or 0."""
    x = np.array([2e4, -2e4, 6e4, -6e4, *([1e30, -1e30] if dtype != "float16" else [])]).astype(dtype)
    found, _, _ = both(GELUS[0], lambda x: x * 1.0, dtype, x)
    weights = np.cos(np.arange(len(x))).astype(dtype)
    assert found[0].tolist() == np.maximum(x, np.zeros_like(x)).tolist()
    assert found[1].tolist() == np.where(x > 0, weights, 0 * weights).tolist()


@kernel_test
@given(n=st.integers(1, 700), dtype=stored, seed=st.integers(0, 99))
def test_gelu(n: int, dtype: str, seed: int):
    """Value and gradient, a launch each; far out it is 0 or x."""
    x = normal(seed, n) * 4.0
    found, wanted, counts = both(*GELUS, dtype, x)
    close(found, wanted, dtype, 1, magnitude(x))
    assert counts.launches == {"gelu": 1, "gelu_dx": 1}


@kernel_test
@given(n=rows, d=width, dtype=stored, seed=st.integers(0, 99))
def test_gelu_with_a_bias(n: int, d: int, dtype: str, seed: int):
    """The same of x + bias, without an array of it, and the bias's gradient."""
    x, b = normal(seed, n, d) * 2.0, normal(seed + 1, d)
    found, wanted, counts = both(*GELUS, dtype, x, b)
    # what is summed up over the rows was rounded to 16 bits first
    close(found[:2], wanted[:2], dtype, 1, magnitude(x, b))
    apart = UNIT.get(dtype, 0.0) * np.abs(wanted[1]).sum(axis=0) + n * (2.0**-25 if dtype == "float16" else 0.0)
    computed = "float32" if dtype in UNIT else dtype
    once = UNIT.get(dtype, 0.0) * (np.abs(wanted[2]) + apart)
    agree(found[2], wanted[2], bound(computed, n, magnitude(x, b)) + apart + once, "gradient 1")
    assert counts.launches == {"gelu": 1, "gelu_dx": 1, "column_sums": 1}


@kernel_test
@given(n=st.integers(1, 700), p=st.floats(0.0, 0.99), key=st.integers(0, 2**64 - 1), dtype=stored)
def test_dropout(n: int, p: float, key: int, dtype: str):
    """The very elements that NumPy drops, and the others to one rounding; one launch."""
    x = (1.0 + np.arange(n) % 7).astype(dtype)
    with counting() as counts:
        found = HERE.host(REGISTRY["dropout_op"](HERE.array(x), p=p, key=key))
    kept = keep_mask(np, key, x.shape, p)
    assert np.array_equal(found != 0, kept) and counts.launches == {"dropout_op": 1}
    close([found], [np.where(kept, x.astype(np.float64) / (1.0 - p), 0.0)], dtype, 1, 7.0 / (1.0 - p))


@kernel_test
@given(n=rows, v=width | st.just(1000), dtype=stored, seed=st.integers(0, 99), drop=st.booleans())
def test_cross_entropy(n: int, v: int, dtype: str, seed: int, drop: bool):
    """Value and gradient; rows that do not count have a gradient of nothing but zeros."""
    targets = np.random.default_rng(seed).integers(0, v, n)
    if drop:
        targets[1:][::3] = -100
    there = mg.tensor(targets, device=DEVICE)
    found, wanted, counts = both(lambda x: mg.cross_entropy(x, there), lambda x: REGISTRY["cross_entropy"].definition(x, targets), dtype,
                                  normal(seed, n, v) * 5.0)
    close(found, wanted, dtype, max(n, v), 1.0)
    assert counts.launches == {"cross_entropy": 1, "cross_entropy_dlogits": 1}
    assert not found[1][targets == -100].any()


@kernel_test
@given(n=rows, d=st.integers(1, 40), v=width, dtype=dtypes, seed=st.integers(0, 99), blocks=st.integers(1, 4))
def test_linear_cross_entropy(n: int, d: int, v: int, dtype: str, seed: int, blocks: int):
    """The classifier and its loss, with the logits in one block or in several."""
    targets = np.random.default_rng(seed).integers(0, v, n)
    targets[1:][::4] = -100
    there = mg.tensor(targets, device=DEVICE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wrappers, "LOGITS", -(-n // blocks) * v * np.dtype(dtype).itemsize)
        found, wanted, _ = both(lambda x, w: mg.linear_cross_entropy(x, w, there),
                                 lambda x, w: REGISTRY["linear_cross_entropy"].definition(x, w, targets), dtype,
                                 normal(seed, n, d), normal(seed + 1, v, d))
    close(found, wanted, dtype, max(n, d, v), magnitude(*wanted))


@kernel_test
@given(n=st.integers(1, 300), d=width, v=st.integers(1, 50), dtype=dtypes, seed=st.integers(0, 99))
def test_rows_are_added(n: int, d: int, v: int, dtype: str, seed: int):
    """The token table's gradient, alone and into a sum that is there: the same bits each time, and right to rounding."""
    rng = np.random.default_rng(seed)
    ids, there = rng.integers(0, v, n), rng.standard_normal((v, d)).astype(dtype)
    values = rng.standard_normal((n, d)).astype(dtype)
    wanted = there.astype(np.float64)
    np.add.at(wanted, ids, values.astype(np.float64))
    results = []
    for _ in range(2):
        sum = HERE.array(there)
        with counting() as counts:
            wrappers.add_rows(HERE, sum, HERE.array(ids), HERE.array(values))
        results.append(HERE.host(sum))
        assert counts.launches == {"add_rows": 1} and counts.syncs == 0
    assert results[0].tobytes() == results[1].tobytes()
    agree(results[0], wanted, bound(dtype, int(np.bincount(ids).max()) + 1, magnitude(there, values)))


sizes = st.lists(st.integers(1, 300), min_size=1, max_size=5)
each = st.sampled_from([16, 64, 1 << 15])               # so that an array has several blocks, or several arrays one each


def of_sizes(seed: int, sizes: list[int], dtype: str) -> list[np.ndarray]:
    return [normal(seed + i, n).astype(dtype) for i, n in enumerate(sizes)]


@kernel_test
@given(sizes=sizes, each=each, dtype=stored, seed=st.integers(0, 99))
def test_the_norm_of_the_gradients(sizes: list[int], each: int, dtype: str, seed: int):
    """One launch for all arrays, wherever they begin, and one wait; where they are scaled down, one more launch."""
    arrays = of_sizes(seed, sizes, dtype)
    parameters = [mg.Parameter(mg.Tensor(placed(a, seed % 2))) for a in arrays]
    assert all(p.array.data.ptr % 16 == seed % 2 * a.itemsize for p, a in zip(parameters, arrays))
    for p in parameters:
        p.grad = mg.Tensor(p.array)
    wanted = math.sqrt(sum(float(np.square(a.astype(np.float64)).sum()) for a in arrays))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wrappers, "EACH", each)
        for most in (math.inf, wanted / 2.0):
            with counting() as counts:
                found = mg.optim.clip_grad_norm_(parameters, most)
            assert counts.launches == {"sums_of_squares": 1, **({"scale": 1} if most < wanted else {})} and counts.syncs == 1
            assert abs(found - wanted) <= bound("float32" if dtype in UNIT else dtype, 16, 1.0) * wanted
    close([p.numpy() for p in parameters], [a.astype(np.float64) * (wanted / 2.0) / (wanted + 1e-6) for a in arrays], dtype, 32,
          magnitude(*arrays))


@kernel_test
@given(sizes=sizes, each=each, dtype=dtypes, seed=st.integers(0, 99), decay=st.sampled_from([0.0, 0.1]), shift=st.booleans())
def test_adamw(sizes: list[int], each: int, dtype: str, seed: int, decay: float, shift: bool):
    """Three steps of AdamW are NumPy's, to rounding; one launch for all parameters, wherever in a line of memory their gradients begin."""
    start, gradients = of_sizes(seed, sizes, dtype), [of_sizes(seed + 7 * k, sizes, dtype) for k in range(1, 4)]
    ends = []
    for device, kind in ((DEVICE, dtype), ("numpy", "float64")):
        ps = [mg.Parameter(mg.tensor(a.astype(kind), device=device)) for a in start]
        optimizer = mg.optim.AdamW(ps, lr=0.01, weight_decay=decay)
        with pytest.MonkeyPatch.context() as patch, counting() as counts:
            patch.setattr(wrappers, "EACH", each)
            for gs in gradients:
                for p, g in zip(ps, gs):
                    p.grad = mg.Tensor(placed(g, int(shift)) if device == DEVICE else g.astype(kind))
                optimizer.step()
        assert counts.launches == ({"adamw_update": 3} if device == DEVICE else {}) and counts.syncs == 0
        ends.append([p.numpy() for p in ps])
    for a, b in zip(*ends):
        assert np.abs(a - b).max() <= bound(dtype, 3, magnitude(*start))


@pytest.mark.device
def test_a_step_over_parameters_of_several_kinds():
    """Another dtype, and a parameter that had no gradient before, take a launch of their own and the step that is theirs."""
    start = [normal(i, 5).astype(kind) for i, kind in enumerate(("float32", "float64", "float32"))]
    ends = []
    for device in (DEVICE, "numpy"):
        ps = [mg.Parameter(mg.tensor(a, device=device)) for a in start]
        optimizer = mg.optim.AdamW(ps, lr=0.01)
        with counting() as counts:
            for given in (ps[:2], ps):
                for p in given:
                    p.grad = mg.Tensor(p.array)
                optimizer.step()
        assert counts.launches == ({"adamw_update": 2 + 3} if device == DEVICE else {})
        assert [optimizer.state[p]["step"] for p in ps] == [2, 2, 1]
        ends.append([p.numpy() for p in ps])
    for a, b in zip(*ends):
        assert np.abs(a - b).max() <= bound(str(a.dtype), 3, 3.0)


# ── the kernels and their harness ──
def test_every_kernel_is_called():
    """Each kernel of the file has a wrapper that launches it, and each wrapper is for something there is."""
    text = Path(wrappers.__file__).read_text(encoding="utf-8")
    launched = {name for call in re.findall(r"(?:launch\(|over_arrays\(xp, )([^,]*),", text) for name in re.findall(r'"(\w+)"', call)}
    assert launched == cuda.parameters(SOURCE).keys() and launched
    for name in KERNELS:
        op, _, argument = name.partition("/")
        rules = REGISTRY[op].rules if op in REGISTRY else {}
        assert op in ("adamw_update", "scale", "sums_of_squares") or not argument or argument.removesuffix("+") in (*rules, "joint")


BARRIERS = [m.start() for m in re.finditer(r"__syncthreads\(\);", SOURCE)]


def _run(text: str) -> None:
    """All the kernels that have a barrier, of this source."""
    module = cuda.Module(text, FLOAT)
    rng, n, d = np.random.default_rng(0), 40, 300
    g, lse, nll = rng.standard_normal((2, n, d)).astype(np.float32), *(np.zeros(n, np.float32) for _ in range(2))
    logits, targets, sums = g[1] * 3.0, rng.integers(0, d, n), np.zeros((2, 2, d), np.float32)
    mean, rstd = logits.mean(axis=1), 1.0 / logits.std(axis=1)
    module.get_function("cross_entropy")((n,), (256,), (logits, targets, lse, nll, d, d), shared_mem=256)
    module.get_function("layer_norm_sums")((-(-d // 32), 2), (32, 8), (g[0], logits, mean, rstd, sums, n, d), shared_mem=2048)
    columns = np.zeros((2, d), np.float32)
    module.get_function("column_sums")((-(-d // 32), 2), (32, 8), (logits, columns, n, d), shared_mem=1024)


@pytest.mark.parametrize("place", range(len(BARRIERS)))
def test_a_missing_barrier_is_refused(place: int):
    """With all of its barriers a kernel runs, and without any one of them it does not."""
    at = BARRIERS[place]
    _run(SOURCE)
    with pytest.raises(RuntimeError, match=UNORDERED):
        _run(SOURCE[:at] + SOURCE[at + len("__syncthreads();"):])


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("module", [
    pytest.param(module, id=str(module), marks=[] if str(module) in ("kernels.cu bfloat16", "choose.cu float32") else pytest.mark.slow)
    for module in nvrtc.modules()])
def test_nvcc_compiles_it_without_spills(module: nvrtc.Module, tmp_path: Path):
    """NVIDIA's compiler takes the file, and no kernel needs more registers than there are; test_nvrtc.py asks the same of NVRTC."""
    path, targets = tmp_path / "all.cu", [f"-gencode=arch=compute_{n},code=sm_{n}" for n in (80, 90)]
    path.write_text(module.source, encoding="utf-8")
    ran = subprocess.run(["nvcc", "-fatbin", *targets, *module.options, "-Xptxas", "-v", str(path), "-o", str(tmp_path / "out.fatbin")],
                         capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", ran.stderr)
    assert len(spills) == 2 * len(cuda.parameters(module.source)) and set(spills) == {("0", "0")}, ran.stderr
