"""Products on CuPy: the calls of cuBLAS that `minigrad.backend.cupy.cublas` makes are right for every layout, on the fake CuPy's memory."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from device import HERE, counting, kernel_test, needs_compiler
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from minigrad.backend.cupy import cublas
from minigrad.backend.cupy import kernels as wrappers
from minigrad.testing import fake_cupy
from minigrad.testing.fake_cupy import cublas as blas
from minigrad.testing.laws.tolerance import bound, magnitude

CUPY = HERE.namespace
mg.backend.dtype("bfloat16")
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
sizes = st.integers(1, 9)
LAYOUTS = {                                             # how a matrix [..., r, c] may lie in memory
    "rows": lambda xp, x: xp.ascontiguousarray(x),
    "columns": lambda xp, x: xp.swapaxes(xp.ascontiguousarray(xp.swapaxes(x, -2, -1)), -2, -1),
    "part": lambda xp, x: xp.concatenate([x, x + x], axis=-1)[..., :x.shape[-1]],
    "every other": lambda xp, x: xp.repeat(x, 2, axis=-1)[..., ::2],
    "turned": lambda xp, x: xp.ascontiguousarray(x[..., ::-1])[..., ::-1],
    "one for all": lambda xp, x: xp.broadcast_to(x[..., :1, :], x.shape),
}


def _numbers(seed: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


layouts = st.sampled_from(sorted(LAYOUTS))


@kernel_test
@given(batch=st.lists(st.integers(1, 3), max_size=2), n=sizes, k=sizes, m=sizes, seed=st.integers(0, 99),
       dtype=st.sampled_from(["float32", "float64", "float16", "bfloat16"]), a=layouts, b=layouts,
       crossed=st.booleans(), add=st.booleans())
def test_products(batch: list[int], n: int, k: int, m: int, seed: int, dtype: str, a: str, b: str, crossed: bool, add: bool):
    """Every layout and dtype: within the bound of float32's sums (float64's for its own) and one rounding; or added to what is there."""
    x = LAYOUTS[a](CUPY, HERE.array(_numbers(seed, (*batch, n, k), dtype)))
    y = LAYOUTS[b](CUPY, HERE.array(_numbers(seed + 1, (*batch, k, m), dtype)))
    if crossed and len(batch) == 2:                     # leading axes the other way round, as heads before tokens
        x = CUPY.swapaxes(CUPY.ascontiguousarray(CUPY.swapaxes(x, 0, 1)), 0, 1)
    there = _numbers(seed + 2, (*batch, n, m), dtype)
    out = HERE.array(there) if add else None
    before = HERE.host(x), HERE.host(y)
    found = cublas.multiply(CUPY, x, y, out=out, add=add)
    assert found is not NotImplemented and (out is None or found is out)
    left, right = (array.astype(np.float64) for array in before)
    wanted = left @ right + (there.astype(np.float64) if add else 0.0)
    got = HERE.host(found)
    assert got.dtype == dtype and got.shape == wanted.shape
    computed = "float32" if dtype in UNIT else dtype
    once = UNIT.get(dtype, 0.0) * np.abs(wanted) + (2.0**-25 if dtype == "float16" else 0.0)
    scale = magnitude(left, right, there.astype(np.float64)) ** 2
    assert (np.abs(got.astype(np.float64) - wanted) <= bound(computed, k + 1, scale) + once).all()
    assert all(np.array_equal(p, HERE.host(q)) for p, q in zip(before, (x, y)))


@pytest.mark.parametrize("how", ["rows", "columns", "part"])
def test_nothing_is_copied(how: str):
    """Where rows or columns lie together, the result is all that is allocated."""
    for shape in ((5, 7), (3, 5, 7)):
        x = LAYOUTS[how](CUPY, HERE.array(_numbers(0, shape, "float32")))
        with counting() as counts:
            HERE.matmul(x, CUPY.swapaxes(x, -2, -1))
        assert counts.allocations == 1 and counts.syncs == counts.uploads == 0


@pytest.mark.parametrize("capability", [70, 75, 80])
def test_an_old_gpu_multiplies_float32(capability: int, monkeypatch: pytest.MonkeyPatch):
    """Before compute capability 8.0 cuBLAS is never given bfloat16, nor TF32; the results are the same to one rounding."""
    asked, multiply = set(), cublas.multiply

    def seen(cupy, a, b, *, tf32=False, **options):
        asked.add((str(a.dtype), tf32))
        return multiply(cupy, a, b, tf32=tf32, **options)

    monkeypatch.setattr(cublas, "multiply", seen)
    monkeypatch.setattr(type(HERE), "capability", lambda self: capability)
    monkeypatch.setattr(mg.backend.Backend, "tf32", True)
    x, y, there = (_numbers(seed, (5, 5), "bfloat16") for seed in range(3))
    left, right = x.astype(np.float64), y.astype(np.float64)
    a, b, out = (HERE.array(n) for n in (x, y, there))
    HERE.product(a, b, out=out, add=True)
    found = [HERE.matmul(a, b), HERE.product(a, b, dtype="float32"), out, HERE.matmul(a.astype("float32"), b.astype("float32"))]
    assert [str(f.dtype) for f in found] == ["bfloat16", "float32", "bfloat16", "float32"]
    for f, add in zip(found, (0.0, 0.0, there.astype(np.float64), 0.0)):
        wanted = left @ right + add
        # TF32 holds every number of bfloat16
        once = UNIT["bfloat16"] * np.abs(wanted) if f.dtype == "bfloat16" else 0.0
        assert (np.abs(HERE.host(f).astype(np.float64) - wanted) <= bound("float32", 6, magnitude(left, right) ** 2) + once).all()
    assert asked == ({("float32", False)} if capability < 80 else {("bfloat16", True), ("float32", True)})


def test_a_result_of_float32_from_16_bits():
    """A sum that 16 bits could not hold is there in float32."""
    x = HERE.array(np.full((1, 4096), 8.0, "float16"))
    assert HERE.host(cublas.multiply(CUPY, x, CUPY.swapaxes(x, 0, 1), dtype="float32")).item() == 4096 * 64.0
    assert HERE.host(HERE.matmul(x, CUPY.swapaxes(x, 0, 1))).item() == np.inf


@pytest.mark.parametrize(("a", "b"), [((2, 3), (3, 0)), ((2, 3, 4), (4, 5)), ((2, 3, 4), (1, 4, 5)), ((3,), (3,))])
def test_what_is_no_one_call(a: tuple[int, ...], b: tuple[int, ...]):
    """Nothing to multiply, leading axes that differ, vectors: CuPy's own product does them."""
    x, y = HERE.array(np.ones(a, "float32")), HERE.array(np.ones(b, "float32"))
    assert cublas.multiply(CUPY, x, y) is NotImplemented
    assert np.array_equal(HERE.host(HERE.matmul(x, y)), np.ones(a) @ np.ones(b))
    ints = HERE.array(np.ones((2, 2), "int64"))
    assert cublas.multiply(CUPY, ints, ints) is NotImplemented
    assert cublas.multiply(CUPY, HERE.array(np.ones((2, 2), "float32")), HERE.array(np.ones((2, 2)))) is NotImplemented


# ── what cuBLAS may do ──
def _factors(dtype: str, n: int = 6) -> tuple[Any, Any]:
    return HERE.array(_numbers(0, (n, n), dtype)), HERE.array(_numbers(1, (n, n), dtype))


@pytest.mark.parametrize("capability", ["70", "75", "80", "90"])
def test_float32_is_multiplied_in_float32(capability: str, monkeypatch: pytest.MonkeyPatch):
    """On every GPU; algorithm 99 multiplies in float16 on the older ones, and the compute type FAST_16F everywhere."""
    monkeypatch.setattr(fake_cupy.Device, "compute_capability", capability)
    a, b = _factors("float32")
    wanted = HERE.host(a) @ HERE.host(b)

    def off(name: str, value: int) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(cublas, name, value)
            return bool(np.abs(HERE.host(HERE.matmul(a, b)) - wanted).max() > 1e-4)

    assert not off("_ALGORITHM", -1) and off("_ALGORITHM", 99) == (capability < "80")
    assert off("_FLOAT32", 74) and off("_FLOAT32", 75) and off("_FLOAT32", 77) and not off("_FLOAT32", 69)


@pytest.mark.parametrize("dtype", sorted(UNIT))
def test_sums_of_16_bits_are_whole(dtype: str, monkeypatch: pytest.MonkeyPatch):
    """The mode forbids parts rounded to 16 bits, of which two make a sum of 0 here; the handle's own mode is set again, also after an
    error."""
    one = {"float16": 2049.0, "bfloat16": 257.0}[dtype]    # which is rounded to an even number
    row = np.array([[one - 1.0, 1.0, 1.0 - one, -1.0]]).astype(dtype)
    a, b = HERE.array(row), HERE.array(np.ones((4, 1), dtype))
    for mode in (0, 3):
        blas.setMathMode(blas.handle(), mode)
        assert HERE.host(HERE.matmul(a, HERE.array(np.array([[1.0], [1.0], [1.0], [0.0]]).astype(dtype)))).item() == 1.0
        assert blas.getMathMode(blas.handle()) == mode
        with pytest.raises(blas.CUBLASError), monkeypatch.context() as patch:
            patch.setattr(cublas, "_FLOAT32", 70)
            HERE.matmul(a, b)
        assert blas.getMathMode(blas.handle()) == mode
    blas.setMathMode(blas.handle(), 0)
    with monkeypatch.context() as patch:
        patch.setattr(cublas, "_WHOLE_SUMS", 0)
        assert HERE.host(HERE.matmul(a, HERE.array(np.array([[1.0], [1.0], [1.0], [0.0]]).astype(dtype)))).item() == 0.0


def test_tf32_is_only_where_it_is_asked_for():
    """Whatever mode somebody else has left in CuPy's handle."""
    a, b = _factors("float32")
    plain = HERE.host(HERE.matmul(a, b))
    blas.setMathMode(blas.handle(), 3)
    assert np.array_equal(HERE.host(HERE.matmul(a, b)), plain)
    blas.setMathMode(blas.handle(), 0)
    mg.set_float32_matmul_precision("high")
    try:
        assert not np.array_equal(HERE.host(HERE.matmul(a, b)), plain)
    finally:
        mg.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(("compute", "algorithm", "kinds", "words"), [
    (68, 42, (0, 0, 0), "algorithm 42"), (68, 116, (0, 0, 0), "algorithm"), (66, -1, (0, 0, 0), "compute type 66"),
    (0, -1, (0, 0, 0), "compute type 0"),
    (68, -1, (1, 1, 1), "compute type 68"), (70, -1, (0, 0, 0), "compute type 70"), (68, -1, (2, 14, 2), "factors of 2 and 14"),
    (68, -1, (0, 0, 2), "a result of 2"), (77, -1, (2, 2, 2), "compute type 77"), (64, -1, (2, 2, 0), "compute type 64")])
def test_cublas_refuses_what_it_does_not_have(compute: int, algorithm: int, kinds: tuple[int, int, int], words: str):
    """Compute types, algorithms, and dtypes that do not go with them; modes that there are not."""
    with pytest.raises(blas.CUBLASError, match=words):
        blas.gemmEx(blas.handle(), 0, 0, 1, 1, 1, 0, 0, kinds[0], 1, 0, kinds[1], 1, 0, 0, kinds[2], 1, compute, algorithm)
    for mode in (4, 32, -1):
        with pytest.raises(blas.CUBLASError, match="math mode"):
            blas.setMathMode(blas.handle(), mode)


def test_each_device_has_its_handle():
    """A handle of another device is refused, and one of its own has its own mode."""
    first = blas.handle()
    with fake_cupy.Device(1):
        assert blas.handle() != first
        with pytest.raises(blas.CUBLASError, match="another device"):
            blas.gemmEx(first, 0, 0, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1, 68, -1)
        x = mg.tensor(_numbers(0, (3, 3), "float32"), device="fake:1")
    np.testing.assert_allclose((x @ x).numpy(), x.numpy() @ x.numpy(), rtol=1e-5)


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "float64", *sorted(UNIT)])
@pytest.mark.parametrize("vocab", [1003, 1000, 64])
def test_the_classifier_s_products_are_whole_pieces(dtype: str, vocab: int, monkeypatch: pytest.MonkeyPatch):
    """What cuBLAS asks for tensor cores at their best: sides, steps and addresses are multiples of 16 bytes, whatever the vocabulary is."""
    calls, size, rows = [], np.dtype(dtype).itemsize, 40
    real = blas.gemmEx

    def noted(handle: int, turn_a: int, turn_b: int, m: int, n: int, k: int, alpha: int, a: int, a_kind: int, lda: int, b: int, b_kind: int,
              ldb: int, beta: int, c: int, c_kind: int, ldc: int, *how: int) -> None:
        wide = 2 if c_kind in (2, 14) else 8 if c_kind == 1 else 4
        sides = [(k if turn_a else m) * size, (n if turn_b else k) * size, m * wide, lda * size, ldb * size, ldc * wide]
        calls.append([*sides, a, b, c])
        real(handle, turn_a, turn_b, m, n, k, alpha, a, a_kind, lda, b, b_kind, ldb, beta, c, c_kind, ldc, *how)

    monkeypatch.setattr(blas, "gemmEx", noted)
    monkeypatch.setattr(wrappers, "LOGITS", rows // 2 * -(-vocab // 64) * 64 * size)       # in two blocks
    x, w = (mg.tensor(_numbers(0, (n, 16), dtype), device="fake", requires_grad=True) for n in (rows, vocab))
    mg.linear_cross_entropy(x, w, mg.tensor(np.arange(rows), device="fake")).backward()
    assert len(calls) == 6 and all(n % 16 == 0 for call in calls for n in call)
