"""The table of the jury: what `check` says of each function, by which law, and in what time."""
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

os.environ.setdefault("OMP_NUM_THREADS", "1")           # the work here is too small to share out
sys.path.insert(0, str(Path(__file__).parents[2]))      # the packages of this clone

from .collection import ENTRIES
from .entry import Entry, Skipped

SEEDS = {"right": 20, "wrong": 5}
FINE = {"right": "passes", "wrong": "falls"}


class Row(NamedTuple):
    """What became of an entry over its seeds. bad: for some seed the verdict is not its kind's."""

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
    """An example in a few characters: its numbers, or its shapes where they are many; settings."""
    if example is None:
        return "no example"
    arrays = [f"{a.tolist() if a.size <= 3 else list(a.shape)}{'' if how == 'C' else f' {how}'}"
              for a, how in zip(example.arrays, example.lies)]
    settings = [f"{k}={shortened(repr(v), 20)}" for k, v in example.settings.items()]
    return "; ".join(arrays + settings)


def once(entry: Entry, options: dict[str, Any]) -> tuple[str, str]:
    """The verdict on one run (passes, falls, skipped or crashed), and what is to be said of it."""
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
    """The row of an entry: the first seed with the wrong verdict, or the last one."""
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
    """The rows of the entries, in order, by `jobs` processes."""
    tasks = [(e.name, SEEDS[e.kind] if seeds is None else seeds, examples) for e in entries]
    if jobs == 1:
        yield from map(judged, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(judged, tasks)


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.jury", description=__doc__,
                                     allow_abbrev=False)
    parser.add_argument("--seeds", type=int, metavar="N",
                        help="how often each is judged (20 for right ones, 5 for wrong ones)")
    parser.add_argument("--examples", type=int, metavar="N",
                        help="examples of each law, instead of check's own number")
    parser.add_argument("--only", metavar="PATTERN", default="*", help="names, such as 'softmax*'")
    which = parser.add_mutually_exclusive_group()
    for kind in SEEDS:
        which.add_argument(f"--{kind}", action="store_const", const=kind, dest="kind",
                           help=f"the {kind} ones alone")
    parser.add_argument("--jobs", type=int, metavar="N", default=1, help="processes (1)")
    flags = parser.parse_args(given)
    if flags.jobs < 1 or (flags.seeds or 1) < 1 or (flags.examples or 1) < 1:
        parser.error("--jobs, --seeds and --examples are at least 1")
    chosen = [e for e in ENTRIES.values()
              if flags.kind in (None, e.kind) and fnmatch.fnmatch(e.name, flags.only)]
    if not chosen:
        parser.error(f"--only {flags.only}: no entry has such a name")
    bad, count, skipped = {"right": 0, "wrong": 0}, {"right": 0, "wrong": 0}, 0
    for entry, row in zip(chosen, rows(chosen, flags.seeds, flags.examples, flags.jobs)):
        bad[entry.kind] += row.bad
        count[entry.kind] += row.verdict != "skipped"
        skipped += row.verdict == "skipped"
        print(f"{'!' if row.bad else ' '} {entry.kind} {row.name:<41} {row.verdict:<7} "
              f"{row.seconds:5.1f} s  {shortened(row.shown, 150)}", flush=True)
        if row.bad and entry.kind == "wrong":
            print(f"    {entry.note}", flush=True)
    print(f"{count['right']} right: {bad['right']} accused; "
          f"{count['wrong']} wrong: {bad['wrong']} missed{f'; {skipped} skipped' * bool(skipped)}")
    return int(any(bad.values()))
