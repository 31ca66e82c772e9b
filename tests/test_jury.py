"""The jury tests `check`: it must accept right functions of other people, and reject wrong ones."""
from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jury.__main__ import main
from jury.collection import ENTRIES
from jury.entry import Entry, Skipped
from jury.table import SEEDS, judged

RIGHT = [e for e in ENTRIES.values() if e.kind == "right"]
WRONG = [e for e in ENTRIES.values() if e.kind == "wrong"]
NAMED = {"ids": lambda e: e.name}


def verdict(entry: Entry, **options: int) -> None:
    """Fail unless `check` accepts a right entry, or rejects a wrong one."""
    try:
        report = entry.run(**options)
    except Skipped as reason:
        pytest.skip(str(reason))
    fine = report.ok is (entry.kind == "right")
    assert fine, f"{entry.name} is {entry.kind}: {entry.note}\n{report}"
    assert entry.kind == "right" or report.broken, "check rejects it, but no law is broken"


@pytest.mark.parametrize("entry", RIGHT[::12], **NAMED)
def test_a_right_function_passes(entry: Entry):
    """Every twelfth right function holds on a few examples of each law."""
    verdict(entry, examples=3)


@pytest.mark.parametrize("entry", WRONG[::56], **NAMED)
def test_a_wrong_function_falls(entry: Entry):
    """Every 56th wrong function breaks a law, which is named with an example."""
    verdict(entry, examples=100)


@pytest.mark.parametrize(("name", "seed"), [("layer_norm_without_weights", 19), ("half_softmax_in_half", 1)])
def test_a_few_probes_that_are_alike(name: str, seed: int):
    """Four probes may all meet one of two roundings, and call a right function wrong; sixteen do not, nor do they let a wrong one pass."""
    verdict(ENTRIES[name], seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES.values(), **NAMED)
def test_the_jury(entry: Entry):
    """Every function, for every seed, as check asks by itself, in 10 seconds each time."""
    row = judged((entry.name, SEEDS[entry.kind], None))
    if row.verdict == "skipped":
        pytest.skip(row.shown)
    assert not row.bad, f"{entry.name} is {entry.kind} and {row.verdict}: {entry.note}\n{row.shown}"
    assert row.seconds < 10.0


def test_the_collection_is_one():
    """Enough functions of both kinds, each with a description; `seen` names a public report."""
    assert len(RIGHT) >= 70 and len(WRONG) >= 110
    for entry in ENTRIES.values():
        assert entry.note.endswith(".") and len(entry.note) >= 4, entry.name
        assert re.fullmatch(r"([\w.-]+/[\w.-]+#\d+)?", entry.seen), entry
        assert list(inspect.signature(entry.call).parameters) == ["check"], entry.name


def test_the_table_shows_what_is_wrong_with_the_judge(capsys, monkeypatch):
    """A right function that is rejected and a wrong one that is accepted are marked and set the exit code."""
    swapped = {"twice": ENTRIES["tanh"]._replace(name="twice", kind="wrong", note="It is right."),
               "zero_gradient": ENTRIES["zero_gradient"]._replace(kind="right")}
    for module in ("table", "__main__"):
        monkeypatch.setattr(f"jury.{module}.ENTRIES", ENTRIES | swapped)
    assert main(["--only", "zero_gradient", "--seeds", "1", "--examples", "3"]) == 1
    out = capsys.readouterr().out
    assert "! right zero_gradient" in out and "falls" in out and "adjoint float64" in out
    assert out.endswith("right functions: 1, rejected: 1; wrong functions: 0, accepted: 0\n")
    assert main(["--only", "twice", "--seeds", "1", "--examples", "3"]) == 1
    out = capsys.readouterr().out
    assert "! wrong twice" in out and "It is right." in out
    assert out.endswith("right functions: 0, rejected: 0; wrong functions: 1, accepted: 1\n")


def test_a_name_that_nobody_has(capsys):
    """--only with no entry of that name is refused in one line."""
    with pytest.raises(SystemExit):
        main(["--only", "no_such_function"])
    assert "no entry has such a name" in capsys.readouterr().err


def test_the_command_as_it_is_typed():
    """With two processes, which import what they run."""
    found = subprocess.run([sys.executable, "-m", "tests.jury", "--jobs", "2", "--only", "tanh", "--seeds", "1", "--examples", "3"],
                           cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert found.stdout.endswith("right functions: 1, rejected: 0; wrong functions: 0, accepted: 0\n")
