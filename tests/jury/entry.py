"""An entry of the jury, and the two decorators that list entries."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from minigrad.testing import LawsBroken, Report
from minigrad.testing import check as judge

ENTRIES: dict[str, Entry] = {}


class Skipped(Exception):
    """An entry cannot be run here; the message is the reason."""


class Entry(NamedTuple):
    """A function that `check` must judge.

    kind: "right" or "wrong". note: one sentence about what it computes, or about its mistake. seen:
    a public report of such a mistake, as owner/repository#number, or "". call: takes `check`, and
    calls it as the author of the function would.
    """

    name: str
    kind: str
    note: str
    seen: str
    call: Callable[[Callable[..., Report]], Any]

    def run(self, **options: Any) -> Report:
        """The report on this entry, even if a law is broken. options: more settings of `check`.

        Skipped if a library is missing. Any other exception means that `check` itself failed.
        """
        reports = []

        def check(*args: Any, **given: Any) -> Report:
            try:
                reports.append(judge(*args, **given, **options))
            except LawsBroken as broken:
                reports.append(broken.report)
            return reports[-1]

        self.call(check)
        (report,) = reports                             # each entry calls `check` once
        return report


def _listed(kind: str, seen: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(call: Callable[..., Any]) -> Callable[..., Any]:
        if call.__name__ in ENTRIES:
            raise ValueError(f"an entry called {call.__name__!r} exists already")
        note = " ".join((call.__doc__ or "").split())
        ENTRIES[call.__name__] = Entry(call.__name__, kind, note, seen, call)
        return call

    return add


def right(call: Callable[..., Any]) -> Callable[..., Any]:
    """List a right function under its name; its docstring says what it computes."""
    return _listed("right", "")(call)


def wrong(seen: str = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """List a wrong function; its docstring says what is wrong. seen: see Entry."""
    return _listed("wrong", seen)
