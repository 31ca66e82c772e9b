"""python -m tests.jury: test `check` with right and wrong functions, and print a table.

The exit code is 1 if `check` rejects a right function or accepts a wrong one.
"""
from __future__ import annotations

import argparse
import fnmatch
import sys

from .table import ENTRIES, SEEDS, rows, shortened


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.jury", description=__doc__,
                                     allow_abbrev=False)
    parser.add_argument("--seeds", type=int, metavar="N",
                        help="how often each function is tested (20 if right, 5 if wrong)")
    parser.add_argument("--examples", type=int, metavar="N",
                        help="examples for each law (default: those of `check`)")
    parser.add_argument("--only", metavar="PATTERN", default="*",
                        help="only functions with such a name, as in 'softmax*'")
    which = parser.add_mutually_exclusive_group()
    for kind in SEEDS:
        which.add_argument(f"--{kind}", action="store_const", const=kind, dest="kind",
                           help=f"only the {kind} functions")
    parser.add_argument("--jobs", type=int, metavar="N", default=1,
                        help="the number of processes (default 1)")
    flags = parser.parse_args(given)
    if flags.jobs < 1 or (flags.seeds or 1) < 1 or (flags.examples or 1) < 1:
        parser.error("--jobs, --seeds and --examples must be at least 1")
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
    print(f"right functions: {count['right']}, rejected: {bad['right']}; "
          f"wrong functions: {count['wrong']}, accepted: {bad['wrong']}"
          f"{f'; skipped: {skipped}' * bool(skipped)}")
    return int(any(bad.values()))


if __name__ == "__main__":
    sys.exit(main())
