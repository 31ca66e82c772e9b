"""Every decision of the engine is undone, and a test of the engine notices. One by default; all of them with -m slow."""
from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from engine import GROUPS, file_of, files_of, killer, mutated
from engine_mutants import MUTANTS

QUICK = {"the heap takes the oldest node"}


def _mutants(slow: bool) -> list[object]:
    return [pytest.param(i, id=name) for i, (name, *_) in enumerate(MUTANTS) if (name in QUICK) != slow]


def test_every_mutant_is_a_change_of_the_text_that_is():
    """Each old text stands once where the table says, the new one compiles, and names are not used twice."""
    for _, module, qualname, old, new in MUTANTS:
        compile(mutated(file_of(module), qualname, old, new), module, "exec")
    assert len({name for name, *_ in MUTANTS}) == len(MUTANTS) and QUICK <= {name for name, *_ in MUTANTS}


def test_the_tests_that_judge_exist():
    """pytest ends with an error where a file is missing, which would pass for a mutant that was noticed."""
    assert [path for names in GROUPS for path in files_of(names) if not Path(path).is_file()] == []


@pytest.mark.parametrize("number", _mutants(slow=False))
def test_a_mutant_of_the_engine_is_killed(number: int):
    """The tests of the engine fail with it."""
    assert killer(number) is not None


@pytest.mark.slow
@pytest.mark.parametrize("number", _mutants(slow=True))
def test_every_mutant_of_the_engine_is_killed(number: int):
    """The tests of the engine fail with it."""
    assert killer(number) is not None
