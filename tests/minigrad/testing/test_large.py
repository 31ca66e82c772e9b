"""The NumPy kernels at the sizes that they are made for, against definitions in float64."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minigrad.backend import cpu
from minigrad.testing import mutate
from minigrad.testing.large import CASES, judge

pytestmark = pytest.mark.rounding
KERNELS = sorted({key for kernels, _ in CASES.values() for key in kernels})
RESULTS = [(key, i) for key in KERNELS for i in range(3 if key.endswith("/joint") else 1)]


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_is_its_definition(name: str):
    """Over several blocks, tiles and chunks, every value and gradient is float64's within six deviations of rounding."""
    assert 0.0 < judge(name) <= 1.0


def test_every_kernel_is_judged():
    """Each kernel of the backend is in a case and is run by it."""
    assert set(KERNELS) == cpu.kernels.keys()


@pytest.mark.parametrize("name", CASES)
def test_the_kernels_of_a_case_are_run_by_it(name: str, monkeypatch: pytest.MonkeyPatch):
    """The kernels that it names, and none of them leaves all of it to the op's own text."""
    answered: set[str] = set()

    def watched(key: str, kernel: Any) -> Any:
        def run(*args: Any, **settings: Any) -> Any:
            out = kernel(*args, **settings)
            if out is not NotImplemented:
                answered.add(key)
            return out
        return run

    kernels = CASES[name][0]
    monkeypatch.setattr(cpu, "kernels", {**cpu.kernels, **{key: watched(key, cpu.kernels[key]) for key in kernels}})
    judge(name)
    assert answered == set(kernels)


def _spoiled(key: str, change: Any, which: int) -> Any:
    """The kernel of this name with its result (of several: one; of a sum that it adds into: that) changed."""
    kernel = mutate._spoiled(cpu.kernels[key], lambda o: o if o is None or o is NotImplemented else change(o), which)

    def run(*args: Any, **settings: Any) -> Any:
        out = kernel(*args, **settings)
        if key == "adamw_update":
            args[1][1][...] = change(args[1][1])
        elif out is None:
            args[0][...] = change(args[0])
        return out

    return run


@pytest.mark.parametrize("change", [lambda y: y * np.float32(1.0001), lambda y: y + np.float32(1e-5) * np.abs(y).max()], ids=["×", "+"])
@pytest.mark.parametrize("key, which", [r for r in RESULTS if r != ("gelu/joint", 2)])
def test_the_bounds_are_tight(key: str, which: int, change: Any, monkeypatch: pytest.MonkeyPatch):
    """A result that is 1e-4 too large, or off by 1e-5 of its largest number, is noticed in the first case that has the kernel."""
    monkeypatch.setattr(cpu, "kernels", {**cpu.kernels, key: _spoiled(key, change, which)})
    name = next(name for name, (kernels, _) in CASES.items() if key in kernels)
    with pytest.raises(AssertionError, match="times its bound"):
        judge(name)
