"""Statistics against SciPy's, and what they say of cases that are known."""
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as theirs

from gpt2.cli.tables import number, plain, table
from gpt2.inspect import statistics as stats

NUMBERS = st.lists(st.integers(-4, 4).map(lambda n: n / 2) | st.floats(-1e3, 1e3, width=32), min_size=2, max_size=30)


@given(NUMBERS, NUMBERS)
def test_ks_is_scipys(a, b):
    """With ties within and between the samples, too."""
    wanted = theirs.ks_2samp(a, b, method="asymp").statistic
    assert stats.ks(np.array(a), np.array(b)) == pytest.approx(wanted, abs=1e-12)


@given(st.lists(st.tuples(st.integers(-3, 3), st.floats(-5, 5, width=16)), min_size=2, max_size=20))
def test_spearman_is_scipys(pairs):
    x, y = zip(*pairs)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(stats.spearman(x, y))
    else:
        assert stats.spearman(x, y) == pytest.approx(theirs.spearmanr(x, y).statistic, abs=1e-9)


@given(NUMBERS)
def test_moments_are_scipys(values):
    a = np.array(values, np.float32)
    found, wide = stats.summary(a, quantiles=True), a.astype(np.float64)
    assert found["count"] == a.size and found["nan"] == found["inf"] == 0
    # sums of n numbers up to m: n·eps of them
    scale = 1e-13 * np.abs(wide).max(initial=1.0)
    assert found["mean"] == pytest.approx(wide.mean(), abs=scale)
    assert found["norm"] == pytest.approx(np.linalg.norm(wide), rel=1e-13)
    assert (found["min"], found["max"]) == (wide.min(), wide.max())
    assert found["quantiles"] == pytest.approx(np.quantile(a, stats.QUANTILES))
    if wide.min() == wide.max():
        assert found["std"] == 0.0 and math.isnan(found["kurtosis"])
    elif wide.std() > 1e-6 * np.abs(wide).max():        # else the mean's rounding is what is left
        assert found["std"] == pytest.approx(wide.std(), rel=1e-6)
        assert found["kurtosis"] == pytest.approx(theirs.kurtosis(wide), rel=1e-5, abs=1e-5)


def test_what_is_not_finite_is_counted_and_left_out(monkeypatch):
    """Also across the pieces in which large arrays are read."""
    monkeypatch.setattr(stats, "_PIECE", 7)
    a = np.random.default_rng(0).standard_normal(100)
    broken = np.concatenate([a[:50], [np.nan, np.inf, -np.inf, np.nan], a[50:]])
    found, wanted = stats.summary(broken), stats.summary(a)
    assert (found["nan"], found["inf"], found["count"]) == (2, 2, 104)
    assert {k: found[k] for k in ("mean", "std", "kurtosis", "norm")} == {k: wanted[k] for k in ("mean", "std", "kurtosis", "norm")}
    assert wanted["std"] == pytest.approx(a.std()) and wanted["kurtosis"] == pytest.approx(theirs.kurtosis(a))
    nothing = stats.summary(np.array([np.nan, np.inf]))
    assert (nothing["nan"], nothing["inf"]) == (1, 1) and math.isnan(nothing["mean"])
    quantiles = stats.summary(np.array([np.nan, np.inf]), quantiles=True)["quantiles"]
    assert len(quantiles) == len(stats.QUANTILES) and all(map(math.isnan, quantiles))


def test_nothing_to_compare_is_nan():
    some, none = np.arange(3.0), np.empty(0)
    assert all(math.isnan(stats.ks(a, b)) for a, b in ((some, none), (none, some), (none, none)))
    assert math.isnan(stats.spearman([0, 1, 2], [1.0, math.nan, 3.0])) and math.isnan(stats.spearman([math.nan, 1.0], [0, 1]))


def test_columns_that_stand_out():
    """By the ratio of their root mean square to the median column's, above 3 and not at it; the largest first."""
    table = np.random.default_rng(0).choice([-1.0, 1.0], (50, 9)).astype(np.float32)
    table[:, 2], table[:, 7], table[:, 4] = 5 * table[:, 2], -3 * table[:, 7], 3.5 * table[:, 4]
    assert stats.outlier_columns(table) == [(2, 5.0), (4, 3.5)]
    table[0, 2] = np.nan                                # of which nothing can be said, and the others stay
    assert stats.outlier_columns(table) == [(4, 3.5)]
    assert stats.outlier_columns(np.eye(4)[:, :3] * [0, 0, 1]) == [(2, math.inf)]
    assert stats.outlier_columns(np.full((2, 3), np.nan)) == stats.outlier_columns(np.zeros((0, 3))) == []


def test_entropy():
    p = np.array([[0.25] * 4, [0.0, 0.0, 1.0, 0.0], [0.5, 0.0, 0.25, 0.25]])
    np.testing.assert_allclose(stats.entropy(p), [math.log(4), 0.0, 1.5 * math.log(2)], atol=1e-15)


def test_tables():
    """Columns line up; numbers have five digits and commas."""
    lines = list(table(("name", "n", "x"), [("a", 1234567, 0.5), ("longer", 3, None)]))
    assert lines == ["name            n       x", "a       1,234,567  0.5000", "longer          3"]
    assert [number(x) for x in (0.0, 1e-5, 123456.0, math.nan, -0.25, True)] == ["0", "1e-05", "1.235e+05", "nan", "-0.2500", "True"]
    assert plain({1: np.float32(2.0), "a": [math.nan, np.arange(2)], "b": (math.inf, "x", None)}) == \
        {"1": 2.0, "a": [None, [0, 1]], "b": [None, "x", None]}
