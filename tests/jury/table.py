"""The table of the jury: the verdict of `check` on each function, the broken law, and the time.

It is not in __main__.py, because the processes of the pool cannot import that module.
"""
from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")           # the arrays are too small for more threads
sys.path.insert(0, str(Path(__file__).parents[2]))      # the packages of this repository

from .collection import ENTRIES
from .entry import Entry, Skipped

SEEDS = {"right": 20, "wrong": 5}
FINE = {"right": "passes", "wrong": "falls"}


class Row(NamedTuple):
    """The result of an entry over all seeds. bad: for some seed the verdict is wrong."""

    name: str
    verdict: str
    bad: bool
    shown: str
    seconds: float


def shortened(text: str, width: int) -> str:
    """One line of at most `width` characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[:width - 1] + "…"


def outlined(example: Any) -> str:
    """An example in a few characters: its numbers, or its shapes if it is large, and settings."""
    if example is None:
        return "no example"
    arrays = [f"{a.tolist() if a.size <= 3 else list(a.shape)}{'' if how == 'C' else f' {how}'}"
              for a, how in zip(example.arrays, example.lies)]
    settings = [f"{k}={shortened(repr(v), 20)}" for k, v in example.settings.items()]
    return "; ".join(arrays + settings)


def once(entry: Entry, options: dict[str, Any]) -> tuple[str, str]:
    """The verdict on one run (passes, falls, skipped or crashed), and a text about it."""
    try:
        report = entry.run(**options)
    except Skipped as reason:
        return "skipped", str(reason)
    except Exception as error:
        return "crashed", f"{type(error).__name__}: {error}"
    if report.ok:
        used = max((v.units for v in report.verdicts if v.status == "held"), default=0.0)
        return "passes", f"at most {used:.2g} of a bound"
    if not report.broken:
        return "falls", "no law applied"
    v = report.broken[0]
    units = f" ({v.units:.2g} units)" if v.units < float("inf") else ""
    return "falls", f"{v.law} {v.dtype}{units} on {outlined(v.example)}: {v.message}"


def judged(task: tuple[str, int, int | None]) -> Row:
    """The row of an entry: for the first seed with a wrong verdict, or else for the last seed."""
    name, seeds, examples = task
    entry, started = ENTRIES[name], time.perf_counter()
    options: dict[str, Any] = {} if examples is None else {"examples": examples}
    for seed in range(seeds):
        verdict, shown = once(entry, {**options, "seed": seed})
        if verdict == "skipped":
            break
        if verdict != FINE[entry.kind]:
            shown = f"seed {seed}: {shown}"
            break
    seconds = (time.perf_counter() - started) / (seed + 1)
    return Row(name, verdict, verdict not in (FINE[entry.kind], "skipped"), shown, seconds)


def rows(entries: Iterable[Entry], seeds: int | None, examples: int | None,
         jobs: int = 1) -> Iterator[Row]:
    """The rows of the entries, in order, computed by `jobs` processes."""
    tasks = [(e.name, SEEDS[e.kind] if seeds is None else seeds, examples) for e in entries]
    if jobs == 1:
        yield from map(judged, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(judged, tasks)
