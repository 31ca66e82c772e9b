"""python -m tests.jury: the table of the jury; what a process of its pool runs is in table.py, for this file cannot be imported there."""
from __future__ import annotations

import argparse
import fnmatch
import sys

from .table import ENTRIES, SEEDS, rows, shortened


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


if __name__ == "__main__":
    sys.exit(main())
