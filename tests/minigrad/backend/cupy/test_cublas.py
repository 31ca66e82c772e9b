"""Products on CuPy: the calls of cuBLAS that `minigrad.backend.cupy.cublas` makes are right for every layout, on the fake CuPy's memory."""
from __future__ import annotations

import numpy as np
import pytest
from device import HERE, counting, kernel_test
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from minigrad.backend.cupy import cublas
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
