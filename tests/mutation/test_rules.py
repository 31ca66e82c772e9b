"""Each rule is broken on purpose, and a law must notice it. By default a sample runs; with -m slow all do."""
from __future__ import annotations

import pytest

from minigrad.op import REGISTRY
from minigrad.testing.mutate import EQUIVALENT, killer, mutants

DIFFERENTIABLE = [name for name, op in REGISTRY.items() if op.differentiable]


def _survivors(name: str, every: int) -> list[str]:
    return [str(m) for i, m in enumerate(mutants(REGISTRY[name])) if i % every == 0 and str(m) not in EQUIVALENT and killer(m) is None]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_a_sample_of_the_mutants_is_killed(name: str):
    """The first mutant of each op, and every tenth after it, is noticed."""
    assert _survivors(name, 10) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_every_mutant_is_killed(name: str):
    """No mutant of any rule survives the laws."""
    assert _survivors(name, 1) == []


@pytest.mark.slow
def test_what_is_called_equivalent_exists_and_survives():
    """Each entry of EQUIVALENT names a mutant that exists, and no law notices it."""
    known = {str(m): m for name in DIFFERENTIABLE for m in mutants(REGISTRY[name])}
    assert EQUIVALENT.keys() <= known.keys()
    for name in EQUIVALENT:
        assert killer(known[name], examples=5) is None


def test_a_mutant_leaves_no_trace():
    """Outside its block the op has its own rules, kernels and plans again."""
    for op in REGISTRY.values():
        before = (dict(op.rules), op.joint, op.kernel, op.elementwise)
        for mutant in list(mutants(op))[:3]:
            with mutant.install():
                pass
        assert (dict(op.rules), op.joint, op.kernel, op.elementwise) == before
