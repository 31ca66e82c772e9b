"""The methods of a Tensor: each documented, with examples that run, and typed so that mypy refuses what would not run."""
from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from data import ROOT

import minigrad as mg
from minigrad.ops.methods import Methods

HERE = Path(__file__).parent
NAMES = [name for name in vars(Methods) if not name.startswith("_")]


@pytest.mark.parametrize("name", NAMES)
def test_a_method_has_a_docstring_whose_examples_run(name: str):
    """With x as the module has it."""
    found = doctest.DocTestFinder().find(vars(Methods)[name], name, globs={"mg": mg, "x": mg.tensor([[1.0, 2.0], [3.0, 4.0]])})
    assert inspect.getdoc(getattr(mg.Tensor, name))
    for test in found:
        assert doctest.DocTestRunner().run(test).failed == 0


def test_what_help_shows():
    """A method is the Tensor's own, with its arguments."""
    f: Any = mg.Tensor.sum
    assert f.__qualname__ == "Tensor.sum" and list(inspect.signature(f).parameters)[:3] == ["self", "axis", "keepdims"]


def _checked(file: str) -> list[int]:
    """The lines of a file in which mypy finds something."""
    root = ROOT
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--follow-imports", "silent", str(HERE / "typed" / file)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert run.returncode in (0, 1), run.stderr
    return sorted({int(line.split(":")[1]) for line in run.stdout.splitlines() if f"{file}:" in line and "error" in line})


def test_mypy_accepts_right_uses():
    """`mypy --strict` finds nothing in a file of uses that run."""
    pytest.importorskip("mypy")
    assert _checked("right.py") == []
    exec(compile((HERE / "typed" / "right.py").read_text(encoding="utf-8"), "right.py", "exec"), {"__name__": "right"})


def test_mypy_refuses_wrong_uses():
    """It finds each of the wrong ones."""
    pytest.importorskip("mypy")
    lines = (HERE / "typed" / "wrong.py").read_text(encoding="utf-8").splitlines()
    wrong = [i for i, line in enumerate(lines, 1) if "# wrong" in line]
    assert len(wrong) >= 40 and set(wrong) <= set(_checked("wrong.py"))
