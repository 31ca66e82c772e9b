"""Each decision of the engine is undone, and a test of the engine must notice it. By default one mutant runs; with -m slow all do."""
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


def test_every_mutant_fits_the_source():
    """Each old text occurs once where the table says, the new one compiles, and no name is used twice."""
    for _, module, qualname, old, new in MUTANTS:
        compile(mutated(file_of(module), qualname, old, new), module, "exec")
    assert len({name for name, *_ in MUTANTS}) == len(MUTANTS) and QUICK <= {name for name, *_ in MUTANTS}


def test_the_files_of_tests_exist():
    """If a file were missing, pytest would end with an error, which would count as a mutant that was noticed."""
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
