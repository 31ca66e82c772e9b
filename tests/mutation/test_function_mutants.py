"""Optimizers, random numbers, dropout and decoding are broken on purpose, and a test must notice it. -m slow runs all mutants."""
from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from engine import ROOT
from equivalent import EQUIVALENT
from functions import JUDGES, function_of, functions, mutants

from minigrad.testing.mutate_text import decisions, own_pieces, settings, spots

QUICK = [r"splitmix64.least_kept: 33 for 32 in 2 \*\* 32", r"keep_mask_span: halves\[", r"splitmix64.raw_bits: without z \*= u\(MIX2\)"]


def _run(*flags: str) -> str:
    done = subprocess.run([sys.executable, "tests/mutation/functions.py", *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


def test_a_mutant_of_a_function_is_killed():
    """Three mutants of the generator of random bits; the tests run with each of them in a fork of one process."""
    assert _run("--target", "minigrad.backend.splitmix64", "-k", "|".join(QUICK)) == "3 mutants: 3 killed, 0 equivalent, 0 survived"


@pytest.mark.slow
@pytest.mark.parametrize("target", JUDGES)
def test_every_mutant_is_killed(target: str):
    """Only the mutants that are not mistakes survive the tests of their module, and all of these survive."""
    assert _run("--target", target).endswith(", 0 survived")


def test_what_is_called_equivalent_exists():
    """Each entry of EQUIVALENT has a reason and names a mutant that exists; no two mutants have the same name."""
    names = [str(m) for target in JUDGES for m in mutants(target)]
    assert len(set(names)) == len(names) and EQUIVALENT.keys() <= set(names) and all(EQUIVALENT.values())


def test_every_function_is_found():
    """function_of finds the function of each name, with or without decorators."""
    for target in JUDGES:
        for name, tree in functions(target).items():
            f = function_of((target.partition(":")[0], name))
            assert (f.__name__, f.__code__.co_firstlineno) in {(tree.name, n) for n in range(tree.lineno - 3, tree.lineno + 1)}


TEXT = '''
def f(a, b=0.5, *, n: int = 3):
    """Text 1."""
    if a < b and not n:
        raise ValueError(f"{a + 1}")
    x, y = a, b
    x += y * 2.0
    z = [i for i in range(n) if i][1:n]
    return max(x, y) - 1e-5
'''


def test_changes_are_of_each_kind():
    """On a text with all of them: limits, conditions, counts, signs, numbers, statements, settings and values change; messages do not."""
    (tree,) = ast.parse(TEXT).body
    assert isinstance(tree, ast.FunctionDef)
    found = [what for piece in own_pieces(tree) for what, _ in decisions(piece)]
    assert found == [
        "without a < b in a < b and (not n)", "without not n in a < b and (not n)", "a <= b for a < b", "n for not n",
        "without raise ValueError(f'{a + 1}')", "swapped: x, y = (a, b)", "without x += y * 2.0", "y / 2.0 for y * 2.0",
        "y for y * 2.0", "2.0002 for 2.0", "without the condition of for i in range(n) if i", "range(n - 1) for range(n)",
        "1:n - 1 for 1:n", "2 for 1", "max(x, y) + 1e-05 for max(x, y) - 1e-05", "max(x, y) for max(x, y) - 1e-05",
        "x for max(x, y)", "y for max(x, y)", "0.0001 for 1e-05"]
    assert [what for what, _, _ in settings(tree)] == ["b ignored", "b=0.50005 by default", "n ignored", "n=4 by default"]
    assert [ast.unparse(v) for v in spots(tree)] == ["a", "b", "y * 2.0", "[i for i in range(n) if i][1:n]", "max(x, y) - 1e-05"]
