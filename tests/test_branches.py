"""tests.branches: every decision of a backend is taken both ways by the laws, or is excused."""
from __future__ import annotations

import ast
import shutil
import subprocess
import sys

import pytest

from tests import branches, cuda_branches
from tests.branches import EXCUSED, MODULES, ROOT, Notes, excuse


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> dict[str, None]:
    """All possible outcomes of the present source."""
    monkeypatch.setattr(branches, "wanted", {})
    for module in (m for modules in MODULES.values() for m in modules):
        Notes(module).visit(ast.parse(branches.file_of(module).read_text("utf-8")))
    return branches.wanted


def test_what_is_excused_exists(outcomes: dict[str, None]):
    """Each entry of EXCUSED names existing outcomes and has a reason; the optimizer's are the only kernels excused as a whole."""
    assert EXCUSED.keys() == {excuse(o) for o in outcomes if excuse(o)}
    assert all(EXCUSED.values())
    kernels = {o.removesuffix(": called") for o in outcomes if o.endswith(": called") and excuse(o) is not None}
    on_numpy = ("numpy.kernels.", "numpy.attention.", "numpy.linear_cross_entropy.", "numpy.packed_linear.")
    assert {k for k in kernels if k.startswith(on_numpy)} == {
        "numpy.kernels.adamw_update", "numpy.kernels.adamw_update.work", "numpy.kernels._forget_pool"}      # and what is no kernel
    assert {k for k in kernels if k.startswith(("cupy.kernels.", "cupy.attention."))} == {
        f"cupy.kernels.{k}" for k in ("over_arrays", "sums_of_squares", "scale", "adamw_update")}


def test_notes_are_of_both_outcomes(monkeypatch: pytest.MonkeyPatch):
    """A source with all of them records conditions and their parts, loops, min and max, and calls."""
    monkeypatch.setattr(branches, "wanted", {})
    monkeypatch.setattr(branches, "seen", set())
    text = "def f(n, k):\n    for i in range(min(n, 3)):\n        if i and not k:\n            return i\n    return n or k\n"
    scope = {name: getattr(branches, name) for name in ("_note_truth", "_note_rounds", "_note_pick")}
    exec(compile(ast.fix_missing_locations(Notes("m").visit(ast.parse(text))), "m", "exec"), {**scope, "_note": branches.seen.add}, scope)
    loop = "m.f: for i in range(min(n, 3))"
    every = {"m.f: called", f"{loop}: one round", f"{loop}: several rounds", "m.f: min(n, 3): the first", "m.f: min(n, 3): the second",
             *(f"m.f: {name}: {truth}" for name in ("i", "k", "n") for truth in ("true", "false"))}
    assert branches.wanted.keys() == every and branches.seen == set()
    assert scope["f"](1, 5) == 1
    assert branches.seen == {"m.f: called", f"{loop}: one round", "m.f: min(n, 3): the first", "m.f: i: false", "m.f: n: true"}
    assert scope["f"](4, 0) == 1 and scope["f"](4, 5) == 4 and scope["f"](0, 5) == 5
    assert branches.seen == {*every, f"{loop}: no round"}


@pytest.mark.slow
@pytest.mark.parametrize("backend", MODULES)
def test_the_laws_go_through_every_branch(backend: str):
    """The command ends with 0: no outcome is missed, no entry of EXCUSED is reached, and no law is broken."""
    done = subprocess.run([sys.executable, "-m", "tests.branches", "--backend", backend], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_lines_of_cuda_that_are_excused_exist():
    """Each line is in its file."""
    lines = {f"{name}: {line.strip()}" for name in cuda_branches.SOURCES
             for line in (cuda_branches.FOLDER / name).read_text("utf-8").splitlines()}
    assert cuda_branches.EXCUSED.keys() <= lines and all(cuda_branches.EXCUSED.values())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcov") is None, reason="gcov is not installed: it comes with gcc")
def test_the_kernels_take_every_branch():
    """The command ends with 0: no branch is missed, and no line of EXCUSED has all of its branches taken."""
    done = subprocess.run([sys.executable, "-m", "tests.cuda_branches"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
