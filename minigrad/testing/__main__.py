"""python -m minigrad.testing: test every law on every op, and print a table of the verdicts.

Each op is tested in float32 and float64, on each device. With --exec PROGRAM the laws are tested on
another program instead, which may be written in any language.
"""
from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from .. import backend
from ..errors import DeviceError, MinigradError
from ..op import REGISTRY
from . import foreign
from .domains import DOMAINS, Domain, lines_of
from .laws.check import Verdict, examine_all
from .laws.laws import LAWS

DTYPES = ("float64", "float32")
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


def product(names: list[str], devices: list[str], examples: int,
            progress: Any = sys.stderr) -> Found:
    """All verdicts, by (op, law, dtype, device)."""
    found: Found = {}
    for i, name in enumerate(names):
        started = time.perf_counter()
        lines = lines_of(name)
        for device in devices:
            for dtype in DTYPES:
                verdicts = [judged(d, dtype, device, examples) for d in lines]
                for law in LAWS:
                    found[name, law, dtype, device] = [v[law] for v in verdicts]
        if progress:
            seconds = time.perf_counter() - started
            print(f"{i + 1}/{len(names)} {name}: {seconds:.1f} s", file=progress, flush=True)
    return found


def table(found: Found, names: list[str], devices: list[str]) -> str:
    """A table of ops (rows) and laws (columns), with a mark for each dtype and device in a cell."""
    width = max(map(len, names))
    combos = [(dtype, device) for device in devices for dtype in DTYPES]
    each = ", ".join(f"{device} {dtype}" for dtype, device in combos)
    lines = [f"in each cell: {each};  ✓ held  ✗ broken  · does not apply to this op", ""]
    columns = {law: max(len(law[:14]), len(combos)) for law in LAWS}
    lines += [" " * width + "  " + " ".join(f"{law[:14]:<{n}}" for law, n in columns.items())]
    for name in names:
        cells = ["".join(together(found[(name, law, *combo)]) for combo in combos) for law in LAWS]
        padded = " ".join(f"{cell:<{n}}" for cell, n in zip(cells, columns.values()))
        lines.append(f"{name:<{width}}  {padded}")
    return "\n".join(lines)


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m minigrad.testing", description=__doc__)
    p.add_argument("--examples", type=int,
                   help="number for each op, law, dtype and device (default 10; 100 with --exec)")
    known = list(dict.fromkeys(d.subject.name for d in DOMAINS))
    p.add_argument("--op", action="append", choices=known, metavar="NAME",
                   help="test only this op (repeatable)")
    p.add_argument("--device", action="append", metavar="NAME",
                   help="numpy, cupy, or fake (a fake CuPy on a CPU); "
                        "default numpy and fake")
    foreign.flags(p)
    args = p.parse_args()
    if args.examples is not None and args.examples < 1:
        p.error(f"--examples must be at least 1, not {args.examples}")
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
    names = args.op or known
    found = product(names, devices, args.examples or 10)
    print(table(found, names, devices))
    broken = [(key, v) for key, many in found.items() for v in many if v.status == "broken"]
    for (name, _, _, device), v in broken:
        print(f"\n{name} on {device}: {v}")
    verdicts = [v for many in found.values() for v in many]
    silent: dict[str, int] = {}
    for v in verdicts:
        if v.status == "not applicable":
            silent[v.message] = silent.get(v.message, 0) + 1
    ops = len(set(names) & REGISTRY.keys())
    held = [v.units for v in verdicts if v.status == "held"]
    print(f"\n{ops} ops and {len(set(names)) - ops} composed functions, {len(verdicts)} verdicts "
          f"on {sum(v.examples for v in verdicts)} examples: {len(held)} held, {len(broken)} "
          f"broken; at most {max(held, default=0.0):.2g} of a bound was used")
    for reason, n in sorted(silent.items(), key=lambda item: -item[1]):
        print(f"  not applicable, {n} times: {reason}")
    return 1 if broken else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MinigradError as error:
        print(f"minigrad.testing: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
