"""Habits of other libraries: each line gives what its library gives, or an error; no other number, and never nothing."""
from __future__ import annotations

from typing import Any

import pytest
import torch
from habits.judge import NumPy, Peer, kept, verdict
from habits.open_rows import OPEN
from habits.row import Row
from habits.table import PARTS, markdown, rows

TABLE = list(rows())


@pytest.fixture(autouse=True)
def _one_thread():
    """PyTorch's work here is too small to share out."""
    torch.set_num_threads(1)


def case(part: str, peer: Peer, row: Row) -> Any:
    marks = [pytest.mark.xfail(strict=True, reason=OPEN[row.typed])] if row.typed in OPEN else []
    return pytest.param(peer, row, id=f"{part.split(':')[0]}: {row.typed}".encode("ascii", "replace").decode(), marks=marks)


@pytest.mark.parametrize(("peer", "row"), [case(*one) for one in TABLE])
def test_a_habit_gives_what_its_library_gives_or_an_error(peer: Peer, row: Row):
    """The row of the table tells the truth: the same, or an error that says so."""
    assert (found := kept(row, peer)) is None, f"{row.typed!r}: {row.ours} is expected, and this came: {found}"


def test_the_table_is_a_table():
    """Three hundred rows and more, each once in its part, each with one of two outcomes; what is open is a row."""
    assert len({row.typed for _, _, row in TABLE}) >= 320
    for _, lines in PARTS.values():
        typed = [line[0] for line in lines]
        assert len(set(typed)) == len(typed), [line for line in typed if typed.count(line) > 1]
    assert OPEN.keys() <= {row.typed for _, _, row in TABLE}
    for _, _, row in TABLE:
        assert row.ours == "same" or (row.ours.startswith("error: ") and len(row.ours) > 12), row


def test_the_table_can_be_read():
    """Each row is a line of Markdown with three cells."""
    lines = [line for line in markdown() if line.startswith("| `")]
    assert len(lines) == len(TABLE)
    for line in lines:
        assert line.replace("\\|", "").count("|") == 4 and "\n" not in line


@pytest.mark.parametrize(("typed", "theirs", "found"), [
    ("x * 2.0", "x * 3.0", "different: value"),
    ("x.astype(\"int64\")", "x.double()", "different: value"),
    ("x.astype(\"float64\")", "x * 1.0", "different: value"),
    ("(x * 2.0).detach()", "x * 2.0", "nothing: the graph is cut"),
    ("x * 2.0", "(x * 2.0).detach()", "different: the gradient"),
    ("x * y.detach()", "x * y", "different: the gradient"),
    ("w.detach() * w", "w * w", "different: the gradient"),
    ("None", "x.sum()", "nothing: value"),
    ("x.sum()", "None", "different: value"),
    ("[w, v]", "[w]", "different: value"),
    ("w * 1.0; None", "w.data.mul_(2.0); None", "nothing: w"),
    ("loss.backward(); None", "None", "different: w"),
    ("None", "loss.backward(); None", "nothing: w"),
    ("lin.train()", "lin.eval()", "different: value.training"),
    ("optim.SGD([wg], lr=0.1).step()", "optim.SGD([wg], lr=0.2).step()", "different: wg"),
    ("q = w * 2.0", "w * 2.0; None", "different"),
    ("x.sum()", "raise ValueError # raises", "accepted"),
    ("x.sum()", "raise ValueError", "row: the peer raises"),
    ("x.sum()", "x.sum() # raises", "row: the peer does not raise"),
    ("nobody", "x.sum()", "row"),
    ("x.sum(axis=7)", "x.sum()", "error: "),
])
def test_the_judge_sees_what_is_wrong(typed: str, theirs: str, found: str):
    """Rows that are wrong on purpose, in each of the ways there are."""
    assert verdict(Row(typed, theirs, "same"), Peer()).startswith(found)
    assert kept(Row(typed, theirs, "same"), Peer()) is not None
    assert kept(Row(typed, theirs, "error: of another kind"), Peer()) is not None


@pytest.mark.parametrize(("typed", "theirs", "found"), [
    ("x * 2.0", "x * 3.0", "different: value"),
    ("(x * 2.0).detach()", "x * 2.0", "nothing: the graph is cut"),
    ("w.detach() * w", "w * w", "different: the gradient"),
    ("n * 1", "n * 1.0", "different: value"),
    ("a * 1.0", "a[:] = 0.0; a * 1.0", "different"),
    ("None", "a[:] = 0.0", "nothing: a"),
])
def test_the_judge_sees_what_is_wrong_beside_numpy(typed: str, theirs: str, found: str):
    """The same where a difference quotient of NumPy's line has the gradient."""
    assert verdict(Row(typed, theirs, "same"), NumPy()).startswith(found)


def test_the_judge_sees_a_change_before_an_error():
    """A line that is refused has changed nothing."""
    row = Row("[wg.assign(-wg.detach()), wg.nonsense]", "raise ValueError # raises", "error: nonsense")
    assert verdict(row, Peer()).startswith("different: refused, but wg")
