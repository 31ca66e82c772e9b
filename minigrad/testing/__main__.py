"""python -m minigrad.testing: test every law on every op, and print a table of the verdicts.

Each op is tested in float32 and float64, on each device. With --exec PROGRAM the laws are tested on
another program instead, which may be written in any language.
"""
from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
import threading
import time
from collections import Counter
from typing import Any

from .. import backend, info
from ..errors import DeviceError, MinigradError
from ..op import REGISTRY
from . import foreign
from .domains import DOMAINS, Domain, lines_of
from .laws.check import Verdict, examine_all
from .laws.laws import LAWS

DTYPES = ("float64", "float32")
OVER = "the time was over"
PATIENCE = 60.0                         # seconds beside the time that was given
MARKS = {"held": "✓", "broken": "✗", "not applicable": "·"}


def judged(domain: Domain, dtype: str, device: str, examples: int) -> dict[str, Verdict]:
    """The verdict of each law on one line of the table of domains."""
    kinks = "these examples lie on kinks; they are for laws that take no derivative"
    said = {law: Verdict(law, dtype, message=kinks) for law in LAWS}
    asked = [law for law in LAWS if domain.asks(law)]
    verdicts = examine_all(asked, domain.subject, domain.examples, dtype, device, examples=examples)
    return said | {v.law: v for v in verdicts}


def together(verdicts: list[Verdict]) -> str:
    """The mark of a cell: broken if one verdict is, not applicable if all are, otherwise held."""
    kinds = {v.status for v in verdicts}
    return MARKS["broken" if "broken" in kinds else "held" if "held" in kinds else "not applicable"]


Found = dict[tuple[str, str, str, str], list[Verdict]]


def product(names: list[str], devices: list[str], examples: int, found: Found, progress: Any = None,
            seconds: float = math.inf) -> str:
    """Put all verdicts into `found`, by (op, law, dtype, device), op after op.

    Return why ops are left out, or "": the time is over, or a device has died.
    """
    until, died = time.monotonic() + seconds, ""
    for i, name in enumerate(names):
        if progress:
            left = f"; {until - time.monotonic():.0f} s left" if seconds < math.inf else ""
            print(f"{i + 1}/{len(names)} {name}{left}", file=progress, flush=True)
        made: Found = {(name, law, dtype, device): []
                       for device in devices for dtype in DTYPES for law in LAWS}
        for device in devices:
            for dtype, line in itertools.product(DTYPES, lines_of(name)):
                verdicts = judged(line, dtype, device, examples) if not died else {
                    law: Verdict(law, dtype, message=died) for law in LAWS}
                for law in LAWS:
                    made[name, law, dtype, device].append(verdicts[law])
                broken = any(v.status == "broken" for v in verdicts.values())
                if broken and not backend.alive(device):
                    died = f"{device} died in {name}, and this process cannot use it any more"
        found |= made
        if died or (time.monotonic() > until and name != names[-1]):
            return died or OVER
    return ""


def table(found: Found, devices: list[str]) -> str:
    """A table of ops (rows) and laws (columns), with a mark for each dtype and device in a cell."""
    width = max((len(name) for name, *_ in found), default=0)
    combos = [(dtype, device) for device in devices for dtype in DTYPES]
    each = ", ".join(f"{device} {dtype}" for dtype, device in combos)
    lines = [f"in each cell: {each};  ✓ held  ✗ broken  · does not apply to this op", ""]
    columns = {law: max(len(law[:14]), len(combos)) for law in LAWS}
    lines += [" " * width + "  " + " ".join(f"{law[:14]:<{n}}" for law, n in columns.items())]
    for name in dict.fromkeys(name for name, *_ in found):
        cells = ["".join(together(found[(name, law, *combo)]) for combo in combos) for law in LAWS]
        padded = " ".join(f"{cell:<{n}}" for cell, n in zip(cells, columns.values()))
        lines.append(f"{name:<{width}}  {padded}")
    return "\n".join(lines)


def _broken(found: Found) -> list[str]:
    """The broken verdicts, each with the smallest example that was found."""
    return [f"\n{name} on {device}: {v}" for (name, _, _, device), many in found.items()
            for v in many if v.status == "broken"]


def summary(found: Found, names: list[str], examples: int, left_out: str,
            seconds: float) -> list[str]:
    """What was tested and what came out, to be copied into a report.

    left_out: why not all ops were tested, or "".
    """
    verdicts = [v for many in found.values() for v in many]
    tested = {name for name, *_ in found}
    ops = len(tested & REGISTRY.keys())
    held = [v.units for v in verdicts if v.status == "held"]
    broken = {(name, device): None for (name, _, _, device), many in found.items()
              if any(v.status == "broken" for v in many)}
    count = sum(v.status == "broken" for v in verdicts)
    lines = [f"{ops} ops and {len(tested) - ops} composed functions, {len(verdicts)} verdicts "
             f"on {sum(v.examples for v in verdicts)} examples: {len(held)} held, {count} "
             f"broken; at most {max(held, default=0.0):.2g} of a bound was used; {seconds:.0f} s"]
    if left_out:
        rest = [name for name in names if name not in tested]
        lines.append(f"not tested: {', '.join(rest) or 'nothing'}: {left_out}")
    lines += [f"broken; again with: python -m minigrad.testing --device {device} --op {name} "
              f"--examples {examples}" for name, device in broken]
    silent = Counter(v.message for v in verdicts if v.status == "not applicable")
    return lines + [f"  not applicable, {n} times: {reason}" for reason, n in silent.most_common()]


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m minigrad.testing", description=__doc__)
    p.add_argument("--examples", type=int,
                   help="number for each op, law, dtype and device (default 10; 100 with --exec)")
    known = list(dict.fromkeys(d.subject.name for d in DOMAINS))
    p.add_argument("--minutes", type=float, metavar="N",
                   help="test no further op after N minutes, and end one that hangs")
    p.add_argument("--op", action="append", choices=known, metavar="NAME",
                   help="test only this op (repeatable)")
    p.add_argument("--device", action="append", metavar="NAME",
                   help="numpy, cupy, or fake (a fake CuPy on a CPU); "
                        "default numpy and fake")
    foreign.flags(p)
    args = p.parse_args()
    if args.examples is not None and args.examples < 1:
        p.error(f"--examples must be at least 1, not {args.examples}")
    if args.minutes is not None and not 0.0 < args.minutes < 1e5:
        p.error(f"--minutes must be above 0, not {args.minutes}")
    if args.exec is not None or args.describe:
        return foreign.main(p, args)
    of_programs = ("definition", "array", "set", "dtype", "no_vjp", "timeout")
    if alone := [name for name in of_programs if getattr(args, name)]:
        p.error(f"--{alone[0].replace('_', '-')} needs --exec, with a program to test, "
                "or --describe")
    devices = args.device or ["numpy", "fake"]
    if "fake" in devices:
        from .fake_cupy.fake import install

        install()
    try:
        for device in devices:
            backend.get(device)                     # an error for a missing device comes first
    except DeviceError as error:
        p.error(f"--device: {error}")
    names, found, examples = args.op or known, Found(), args.examples or 10
    places, started = [info.about(device) for device in devices], time.monotonic()

    def report(left_out: str) -> int:
        print(table(found, devices), *_broken(found), sep="\n")
        print("", *places, *summary(found, names, examples, left_out,
                                   time.monotonic() - started), sep="\n", flush=True)
        return 1 if _broken(found) or left_out not in ("", OVER) else 0

    def hung() -> None:                     # in a thread of its own
        name = next(name for name in names if name not in {name for name, *_ in found})
        report(f"{name} did not end, so the process was ended")
        os._exit(1)

    limit = math.inf if args.minutes is None else 60.0 * args.minutes
    watch = threading.Timer(min(1.25 * limit + PATIENCE, threading.TIMEOUT_MAX), hung)
    watch.daemon = True
    watch.start()
    try:
        left_out = product(names, devices, examples, found, sys.stderr, limit)
    except KeyboardInterrupt:
        report("interrupted")
        return 130
    finally:
        watch.cancel()
    return report(left_out)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MinigradError as error:
        print(f"minigrad.testing: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
