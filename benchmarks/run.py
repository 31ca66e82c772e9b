"""python -m benchmarks.run: measure minigrad and gpt2 on this machine, and compare them with other libraries and with a measured floor.

Each peer runs in a process of its own on the same weights and batch, and the peers take turns. The answer of each is compared with ours
first; a peer with a wrong answer is not timed. The exit code is 0 if all went well, 1 if an answer was wrong or minigrad failed, 2 for
wrong flags, and 130 after Ctrl-C, when the results so far are printed. `python -m benchmarks.gpu` measures a GPU.
"""
from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt2.cli.command import Extend, Parser, at_least, comma_separated, run_command
from gpt2.errors import UsageError

from . import agreement, report
from .peers import FLOOR, PEERS, US, does, missing, peer, script
from .processes import Child, Dead, Starter, available_memory, environment, fit
from .report import Measured, Result
from .rows import NICKNAMES, SUITES, Row, config_of, memory_estimate, rows_of

SETTLE = 0.25                                           # seconds between turns, in which the threads of the last peer go to sleep
ROOM = 0.9                                              # the share of the available memory that is used
FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve", "sve2")
PACKAGES = ("numpy", "torch", "transformers", "jax", "ctranslate2", "mygrad", "autograd", "cupy")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# ── one row ──
class Bench:
    """A run: the folder of the checkpoints, the options for the peers, and the messages that were printed already."""

    def __init__(self, folder: str, rounds: int, peers: list[str] | None, options: dict[str, Any]) -> None:
        self.folder, self.rounds, self.peers, self.options = folder, rounds, peers, options
        self.told: set[str] = set()

    def once(self, line: str) -> None:
        """Print a message on stderr, but only the first time."""
        if line not in self.told:
            self.told.add(line)
            say(line)

    def checkpoint(self, size: str) -> str:
        """The directory with random weights of this size, drawn from seed 0; they are written when they are first needed."""
        path = Path(self.folder) / size
        if not path.exists():
            from gpt2 import GPT2

            GPT2(config_of(size), seed=0).save_pretrained(path)
        return str(path)

    def others(self, row: Row) -> list[str]:
        """The peers of a row that the flags allow and that can run."""
        names = [name for name in row.peers if name != US and does(name, row.kind)
                 and (self.peers is None or name in self.peers)]
        lacking = {name: line for name in names if (line := missing(name, self.options)) is not None}
        for line in lacking.values():
            self.once(line)
        return [name for name in names if name not in lacking]

    def start(self, name: str, row: Row) -> Child | Starter:
        """Start a peer's process; its workload is built and its answer computed. Dead if it fails."""
        task = {"builder": peer(name).builder, "row": row.to_dict(), **self.options}
        if row.model:
            task["checkpoint"] = self.checkpoint(row.size)
        if peer(name).prepare:
            Child({**task, "builder": peer(name).prepare}).close()
        if row.kind != "start":
            return Child(task, row.threads)
        ids, _ = agreement.batch_of(row, config_of(row.size))
        return Starter(script(name), task["checkpoint"], ids[0].tolist(), row.threads)

    def groups(self, row: Row, result: Result) -> list[list[str]]:
        """The groups of peers that run at the same time: all of them if memory allows, otherwise minigrad with some of them at a time."""
        always = [US, FLOOR] if does(FLOOR, row.kind) else [US]
        names, config = self.others(row), config_of(row.size)
        need = {name: memory_estimate(row, config, name) for name in (*always, *names)}
        groups, left = fit(always, names, need, ROOM * available_memory())
        if groups:
            left += [name for name in [FLOOR] if name in left]
        for name in left:
            if name != FLOOR:
                result.left_out[name] = f"needs about {need[name] / 1e9:.0f} GB beside {US}, of {available_memory() / 1e9:.0f} GB"
        return groups

    def run(self, row: Row, result: Result) -> None:
        """Measure a row; `result` is always up to date. All processes have ended when it returns or raises."""
        for group in self.groups(row, result):
            living: dict[str, Any] = {}
            try:
                self.build(group, row, result, living)
                if US in living:
                    self.time(row, result, living)
            finally:
                for child in living.values():
                    child.close()
            if US not in living:
                break

    def drop(self, name: str, row: Row, result: Result, living: dict[str, Any], why: object) -> None:
        say(f"{row.name}: {name}: left out: {why}")
        result.left_out[name] = str(why)
        if name in living:
            living.pop(name).close()

    def reference(self, row: Row, child: Child | Starter) -> dict[str, Any]:
        """minigrad's answer, with which the others are compared. A "start" row prints only an id; its margin is that of generating."""
        if row.kind != "start":
            return child.answer
        told = self.start(US, replace(row, kind="decode"))
        told.close()
        if agreement.complaints(child.answer, told.answer, row, config_of(row.size), ("ids",)):
            raise Dead(f"its first token is {child.answer['ids'][0][0]} in a fresh process, and {told.answer['ids'][0][0]} here")
        return {key: told.answer[key] for key in ("ids", "margins")}

    def build(self, group: list[str], row: Row, result: Result, living: dict[str, Any]) -> None:
        """Start and warm up the processes of a group, one after the other; those with a wrong answer are ended."""
        wanted: dict[str, Any] = {}
        config = config_of(row.size)
        for name in group:
            say(f"{row.name}: {name}: building")
            try:
                child = living[name] = self.start(name, row)
                if name == US:
                    wanted = self.reference(row, child)
                elif name != FLOOR:
                    wrong = agreement.complaints(child.answer, wanted, row, config, PEERS[name].tells)
                    if wrong:
                        result.wrong[name] = wrong
                        say(f"{row.name}: {name}: its answer is not ours, and is not timed: {wrong[0]}")
                        living.pop(name).close()
                        continue
                child.warm()
            except Dead as error:
                self.drop(name, row, result, living, error)
                if name == US:
                    return
                continue
            tells = PEERS[name].tells if name in PEERS else None
            result.measured.setdefault(name, Measured(about=child.about, same=tells != ()))

    def time(self, row: Row, result: Result, living: dict[str, Any]) -> None:
        """The rounds: in each of them every peer does its work once, and each round begins with another peer."""
        entries = {name: Measured(about=result.measured[name].about) if name in (US, FLOOR) else result.measured[name] for name in living}
        ours, floor = entries[US].seconds, entries[FLOOR].seconds if FLOOR in entries else []
        for name, entry in entries.items():
            entry.ours, entry.floor = ours, floor
            if not result.measured[name].seconds:       # with several groups the first is shown; each ratio is within one group
                result.measured[name] = entry
        for n in range(self.rounds):
            names = list(living)
            for name in names[n % len(names):] + names[:n % len(names)]:
                time.sleep(SETTLE if row.kind != "start" else 0.0)
                try:
                    seconds, peak = living[name].go()
                except Dead as error:
                    self.drop(name, row, result, living, error)
                    if name == US:
                        return
                else:
                    entries[name].seconds.append(seconds)
                    entries[name].peak = max(entries[name].peak, peak)


# ── the machine ──
def context(args: argparse.Namespace, rows: list[Row]) -> dict[str, Any]:
    """The date, the machine, versions and the measured rates, in the environment of the peers' processes."""
    done = subprocess.run([sys.executable, "-m", "minigrad.info", "--json"], env=environment(), capture_output=True, text=True, check=True)
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        cpuinfo = ""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.M)
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    rates: dict[str, Any] = {}
    if any(row.model for row in rows):
        child = Child({"builder": "benchmarks.floor:rates", "size": args.size or "gpt2"})
        child.close()
        rates = child.answer
    return {"date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"), "suites": args.suite, "size": args.size,
            "rounds": args.rounds, "machine": json.loads(done.stdout), "flags": [f for f in FLAGS if found and f in found[1].split()],
            "versions": versions, "rates": rates}


def file_for(path: Path, found: dict[str, Any]) -> Path:
    """The path itself; if it is a directory, DATE-MACHINE-SUITES.json in it."""
    if not path.is_dir():
        return path
    cpu = found["machine"]["cpu"]
    machine = re.sub(r"[^a-z0-9]+", "-", f"{cpu['model']} {cpu['usable']} cores".lower()).strip("-")
    return path / f"{found['date'][:10]}-{machine}-{'-'.join(found['suites'])}.json"


def parser() -> Parser:
    p = Parser(prog="python -m benchmarks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--suite", nargs="+", action=Extend, choices=list(SUITES), default=["cpu", "ops"],
                   help="the suites to run (default: cpu and ops)")
    p.add_argument("--row", nargs="+", action=Extend, metavar="NAME", help="only rows whose names begin with NAME")
    p.add_argument("--peers", type=comma_separated, action=Extend, metavar="A,B",
                   help=f"only these peers, of {', '.join(name for name in PEERS if name != US)}; none: only minigrad")
    p.add_argument("--rounds", type=at_least(1), default=7, metavar="N")
    p.add_argument("--size", choices=list(NICKNAMES), help="use this model in all rows; tiny is for a quick test")
    p.add_argument("--llmc", metavar="DIR", help="a checkout of llm.c with train_gpt2 built")
    p.add_argument("--json", metavar="PATH", help="write the results to this file, and a page in Markdown beside it; or a folder")
    p.add_argument("--plot", metavar="DIR", help="write plots of the results to this folder")
    p.add_argument("--list", action="store_true", help="print the rows, their peers and targets, and measure nothing")
    return p


def listing(rows: list[Row]) -> str:
    """The text of --list: the rows with their peers and targets."""
    out = []
    for row in rows:
        wanted = [f"{name} ≥ {value:g}×" for name, value in row.ratio.items()]
        wanted += [f"share of floor ≥ {row.share:.0%}"] if row.share else []
        wanted += [f"peak ≤ {value:g}× {name}'s" for name, value in row.memory.items()]
        wanted += [f"≤ {report.time_of(row.seconds)}"] if row.seconds else []
        out.append(f"{row.name}: {', '.join(row.peers)}" + (f"; targets: {', '.join(wanted)}" if wanted else ""))
    return "\n".join(out)


def wanted_rows(args: argparse.Namespace, stop: Callable[[str], Any]) -> list[Row]:
    """The rows that the flags name; `stop` is called with a message for a name that does not exist."""
    rows = rows_of(args.suite, args.size)
    for name in args.row or []:
        if not any(row.name.startswith(name) for row in rows):
            stop(f"argument --row: no row of {' and '.join(args.suite)} begins with {name!r}; --list shows them")
    return [row for row in rows if not args.row or row.name.startswith(tuple(args.row))]


def main(argv: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    rows = wanted_rows(args, p.error)
    peers = None if args.peers is None else [name for name in args.peers if name != "none"]
    for name in peers or []:
        if name not in PEERS:
            p.error(f"argument --peers: there is no peer {name!r}; the peers are {', '.join(PEERS)}")
    if args.list:
        print(listing(rows))
        return 0
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise UsageError(f"--json {args.json}: this directory does not exist")
    results: list[Result] = []
    code, found = 0, {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)           # ends like Ctrl-C: all processes are ended first
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        try:
            found = context(args, rows)
            print("\n".join(report.context_lines(found)), flush=True)
            bench = Bench(folder, args.rounds, peers, {"llmc": args.llmc} if args.llmc else {})
            for row in rows:
                results.append(Result(row))
                bench.run(row, results[-1])
                print(report.text(report.document(results[-1:], {})["rows"][0]), flush=True)
        except KeyboardInterrupt:
            code = 130
            say("benchmarks.run: interrupted; what there is:")
            if results:
                print(report.text(report.document(results[-1:], {})["rows"][0]), flush=True)
        except Dead as error:                           # the machine's rates could not be measured
            say(f"benchmarks.run: {US} failed: {error}")
            code = 1
    if not code and any(result.wrong or US in result.left_out for result in results):
        code = 1
    if found:
        whole = report.document(results, {**found, "interrupted": code == 130})
        if args.json:
            path = file_for(Path(args.json), found)
            report.save(path, whole)
            say(f"written: {path} and {path.with_suffix('.md')}")
        if args.plot:
            from .plots import draw

            for made in draw(whole, Path(args.plot)):
                say(f"written: {made}")
    return code


if __name__ == "__main__":
    run_command(main, "benchmarks.run")
