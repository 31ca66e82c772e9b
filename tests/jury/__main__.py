"""The table of the jury: what `check` says of each function, by which law, on which example, and in what time."""
from __future__ import annotations

import argparse
import fnmatch
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))     # the packages of this clone, wherever it is called from

from .collection import ENTRIES
from .entry import SEEDED, Entry, Skipped

SEEDS = {"right": 20, "wrong": 5}


class Row(NamedTuple):
    """What became of an entry over its seeds. bad: the jury's verdict is not the entry's kind for some seed."""

    name: str
    verdict: str
    bad: bool
    shown: str
    seconds: float
    units: float


def shortened(text: str, width: int) -> str:
    """One line of at most `width` characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[:width - 1] + "…"


def outlined(example: Any) -> str:
    """An example in a few characters: the numbers where there are at most three, else the shape; how it lies in memory; settings."""
    if example is None:
        return "no example"
    lies = example.layouts or ("C",) * len(example.arrays)
    found = [(str(a.tolist()) if a.size <= 3 else f"{list(a.shape)}") + ("" if how == "C" else f" {how}")
             for a, how in zip(example.arrays, lies)]
    return "; ".join(found + [f"{k}={shortened(repr(v), 20)}" for k, v in example.settings.items()])


def once(entry: Entry, options: dict[str, Any]) -> tuple[str, str, float]:
    """The verdict on one run (passes, falls, skipped or crashed), what caught it, and the largest share of a bound."""
    try:
        report = entry.run(**options)
    except Skipped as reason:
        return "skipped", str(reason), 0.0
    except Exception as error:
        return "crashed", f"{type(error).__name__}: {error}", 0.0
    if report.ok:
        return "passes", "", max((v.units for v in report.verdicts if v.status == "held"), default=0.0)
    if not report.broken:
        return "falls", "no law applied", 0.0
    v = report.broken[0]
    units = f" ({v.units:.2g} units)" if v.units < float("inf") else ""
    return "falls", f"{v.law} {v.dtype}{units} on {outlined(v.example)}: {v.message}", v.units


def judged(task: tuple[str, int, int | None]) -> Row:
    """The row of an entry: the first seed with the wrong verdict, or the last one."""
    name, seeds, examples = task
    entry = ENTRIES[name]
    options: dict[str, Any] = {} if examples is None else {"examples": examples}
    started, fine = time.perf_counter(), "passes" if entry.kind == "right" else "falls"
    for seed in range(seeds if SEEDED else 1):
        verdict, shown, units = once(entry, {**options, "seed": seed} if SEEDED else options)
        if verdict != fine:
            shown = f"seed {seed}: {shown}" if SEEDED and verdict != "skipped" else shown
            break
    seconds = (time.perf_counter() - started) / (seed + 1)
    return Row(name, verdict, verdict not in (fine, "skipped"), shown, seconds, units)


def rows(entries: Iterable[Entry], seeds: int | None, examples: int | None, jobs: int) -> Iterator[Row]:
    """The rows of the entries, in order, by `jobs` processes."""
    tasks = [(e.name, SEEDS[e.kind] if seeds is None else seeds, examples) for e in entries]
    if jobs == 1:
        yield from map(judged, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(judged, tasks)


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.jury", description=__doc__, allow_abbrev=False)
    parser.add_argument("--seeds", type=int, metavar="N", help="how often each is judged (20 for right ones, 5 for wrong ones)")
    parser.add_argument("--examples", type=int, metavar="N", help="examples of each law, instead of check's own number")
    parser.add_argument("--only", metavar="PATTERN", default="*", help="names to judge, such as 'softmax*'")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--right", action="store_const", const="right", dest="kind", help="the right ones alone")
    which.add_argument("--wrong", action="store_const", const="wrong", dest="kind", help="the wrong ones alone")
    parser.add_argument("--jobs", type=int, metavar="N", default=1, help="processes (1)")
    flags = parser.parse_args(given)
    if flags.jobs < 1 or (flags.seeds is not None and flags.seeds < 1):
        parser.error("--jobs and --seeds are at least 1")
    chosen = [e for e in ENTRIES.values() if flags.kind in (None, e.kind) and fnmatch.fnmatch(e.name, flags.only)]
    if not chosen:
        parser.error(f"--only {flags.only}: no entry has such a name")
    if not SEEDED:
        print("check takes no seed: each is judged once")
    bad = {"right": 0, "wrong": 0}
    for entry, row in zip(chosen, rows(chosen, flags.seeds, flags.examples, flags.jobs)):
        bad[entry.kind] += row.bad
        shown = row.shown or f"at most {row.units:.2g} of a bound"
        print(f"{'!' if row.bad else ' '} {entry.kind} {row.name:<38} {row.verdict:<7} {row.seconds:5.1f} s  "
              f"{shortened(shown, 150)}", flush=True)
        if row.bad and entry.kind == "wrong":
            print(f"    {entry.note}", flush=True)
    count = {kind: sum(e.kind == kind for e in chosen) for kind in SEEDS}
    print(f"{count['right']} right: {bad['right']} accused; {count['wrong']} wrong: {bad['wrong']} missed")
    return int(any(bad.values()))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
