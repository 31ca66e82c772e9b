"""Each NumPy kernel is broken on purpose, and a law or a definition must notice it. By default a sample runs; with -m slow all do."""
from __future__ import annotations

from typing import Any

import pytest

from minigrad import backend
from minigrad.backend.numpy import kernels as numpy_kernels
from minigrad.testing.mutate_kernels import EQUIVALENT, JUDGES, excuse, functions, kernels_with, killer, mutants

FUNCTIONS = [pytest.param(f, id=f.__name__) for f in functions()]


def _survivors(function: Any, dtype: str, every: int) -> list[str]:
    chosen = [(f"{m} [{dtype}]", m) for i, m in enumerate(mutants(function)) if i % every == min(every // 2, 7)]
    return [name for name, m in chosen if not excuse(name) and killer(m, dtype) is None]


@pytest.mark.parametrize("function", [p for p in FUNCTIONS if p.values[0] in backend.cpu.kernels.values()])
def test_one_mutant_is_killed(function: Any):
    """One mutant of each kernel is noticed in float32; if possible, it is one that multiplies by 1.0001."""
    known = [m for m in mutants(function) if not excuse(f"{m} [float32]")]
    chosen = [m for m in known if "times 1.0001" in m.what] or known
    assert killer(chosen[len(chosen) // 2], "float32") is not None


@pytest.mark.slow
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_sample_of_the_mutants_is_killed(function: Any):
    """Every 40th mutant of each function is noticed in float32, and every 60th in float64."""
    assert _survivors(function, "float32", 40) == [] and _survivors(function, "float64", 60) == []


@pytest.mark.slow
@pytest.mark.parametrize("dtype", JUDGES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_mutant_is_killed(function: Any, dtype: str):
    """In each dtype only the mutants that are not mistakes survive."""
    assert _survivors(function, dtype, 1) == []


@pytest.mark.slow
def test_what_is_called_equivalent_survives():
    """Each mutant in EQUIVALENT survives in a dtype that its entry is for."""
    known = {f"{m} [{dtype}]": (m, dtype) for p in FUNCTIONS for m in mutants(p.values[0]) for dtype in JUDGES}
    for name in EQUIVALENT:
        meant = [(m, dtype) for whole, (m, dtype) in known.items() if excuse(whole) and name in (whole, str(m))]
        assert any(killer(m, dtype, examples=5) is None for m, dtype in meant), name


def test_what_is_called_equivalent_exists():
    """Each entry of EQUIVALENT names a mutant that exists, for one dtype or for both."""
    known = {str(m) for p in FUNCTIONS for m in mutants(p.values[0])}
    assert {name.partition(" [float")[0] for name in EQUIVALENT} <= known


def test_every_kernel_has_mutants():
    """All kernels are mutated, and shared functions are tested through the kernels that call them."""
    assert {key for p in FUNCTIONS for key in kernels_with(p.values[0])} == backend.cpu.kernels.keys()
    assert kernels_with(numpy_kernels.column_sums) == ["sum_to", "gelu/joint", "layer_norm/joint"]


def test_a_mutant_leaves_no_trace():
    """Outside its block the backend has its own functions again."""
    before = (dict(backend.cpu.kernels), dict(vars(numpy_kernels)))
    for p in FUNCTIONS:
        for mutant in list(mutants(p.values[0]))[:2]:
            with mutant.install():
                pass
    assert (backend.cpu.kernels, vars(numpy_kernels)) == before
