"""Sums and products of the CPU round no more than their derivations say, and mean what NumPy's mean."""
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad.backend.numpy import blas
from minigrad.backend.numpy.kernels import column_sums
from minigrad.backend.numpy.sizes import SIZES

pytestmark = pytest.mark.rounding

needs_openblas = pytest.mark.skipif(blas.library() is None, reason="NumPy uses another BLAS than OpenBLAS; get one with: pip install numpy")
U = float(np.finfo(np.float32).eps) / 2


def off(found, truth):
    """RMS of the error over RMS of the truth."""
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def layouts(x):
    """The same matrix in every layout that BLAS takes, and in some that it does not."""
    wide = np.zeros((x.shape[0], x.shape[1] + 3), x.dtype)
    wide[:, :-3] = x
    fields = np.zeros(x.shape, [("before", np.int8), ("x", x.dtype)])
    fields["x"] = x
    yield from (np.ascontiguousarray(x), np.asfortranarray(x), wide[:, :-3], np.ascontiguousarray(x[::-1])[::-1],
                np.repeat(x, 2, axis=1)[:, ::2], fields["x"])


@given(st.integers(1, 700), st.integers(0, 100))
def test_a_product_is_numpys_in_every_layout(k, seed):
    """Whatever the layout, and whatever k leaves over for the last chunk, each element is within k·u·Σ|terms| of the float64 product."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((60, k), np.float32), rng.standard_normal((k, 90), np.float32)
    exact, room = a.astype(np.float64) @ b, (k + 2) * U * (np.abs(a).astype(np.float64) @ np.abs(b))
    for left in layouts(a):
        for right in layouts(b):
            out = blas.matmul(left, right)
            assert out.dtype == np.float32 and out.shape == (60, 90) and (np.abs(out - exact) <= room).all()
            for into in layouts(np.zeros((60, 90), np.float32)):
                assert blas.matmul(left, right, out=into) is into and (np.abs(into - exact) <= room).all()
                into[...] = 2.0
                assert blas.matmul(left, right, out=into, add=True) is into
                assert (np.abs(into - exact - 2.0) <= room + 2.0 * (k + 2) * U).all()


@needs_openblas
@pytest.mark.parametrize("k", [256, 768, 3072])
def test_a_product_rounds_as_sums_of_a_chunk(k):
    """The error is that of sums of c = SIZES.chunk terms and of k/c parts, u√(c/6 + k/6c), and less than that of k terms one by one.

    NumPy's own product is no measure: BLAS adds in an order of its kernels, and some begin another partial sum as often as we do.
    A chunk is k/2 terms at most, so the second ratio is √(1/2 + 1/c) = 0.71 where BLAS adds the terms of a chunk one after the other,
    the worst that it can do, and less where it does not.
    """
    rng = np.random.default_rng(k)
    a, b = rng.standard_normal((128, k), np.float32), rng.standard_normal((k, 256), np.float32)
    exact, one_by_one = a.astype(np.float64) @ b, np.zeros((128, 256), np.float32)
    for i in range(k):
        one_by_one += a[:, i, None] * b[i]
    error = off(blas.matmul(a, b), exact)
    assert error <= U * math.sqrt(SIZES.chunk / 6 + k / SIZES.chunk / 6) and error < 0.95 * off(one_by_one, exact)


def test_what_is_not_finite_stays_so():
    """NaN and infinity spread to the elements they are terms of, and to no others; new memory is not read."""
    a, b = np.ones((64, 800), np.float32), np.ones((800, 64), np.float32)
    a[3, 700], a[5, 1] = np.nan, np.inf
    out = blas.matmul(a, b)
    assert np.isnan(out[3]).all() and np.isposinf(out[5]).all() and (np.delete(out, [3, 5], axis=0) == 800).all()


@given(st.integers(0, 1000), st.integers(1, 40), st.sampled_from(["float32", "float64", "int64"]))
def test_column_sums_are_the_sums_of_the_columns(rows, width, dtype):
    """For any number of rows, none included, and in any layout, each sum is within n·u·Σ|terms| of the exact one."""
    x = (100 * np.random.default_rng(rows).standard_normal((rows, width))).astype(dtype)
    exact = np.sum(x, axis=0, dtype=np.longdouble)
    for y in layouts(x):
        out = column_sums(y)
        unit = float(np.finfo(dtype).eps) if x.dtype.kind == "f" else 0.0
        assert out.dtype == x.dtype and out.shape == (width,)
        assert (np.abs(out - exact) <= rows * unit * np.abs(x).sum(axis=0, dtype=np.longdouble)).all()


def test_column_sums_round_less_than_numpys():
    """NumPy adds row after row, u√(n/6); the sums of 4096 rows are three times as exact: in parts of 128, √(128/n + 1/128) = 0.20 of it
    where BLAS adds the rows of a part one after the other, the worst that it can do."""
    x = np.random.default_rng(0).standard_normal((4096, 256), np.float32)
    exact = x.astype(np.float64).sum(axis=0)
    assert off(column_sums(x), exact) < off(x.sum(axis=0), exact) / 3
