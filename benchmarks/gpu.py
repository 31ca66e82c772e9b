"""python -m benchmarks.gpu: test and measure minigrad on this GPU in ten minutes, and compare it with PyTorch if that is installed.

Each part runs in a process of its own, for its share of the time. If one part fails, hangs or is killed, this is reported, and the other
parts still run. Results are written after every part; DATE-DEVICE-gpu.md is a report that can be pasted into an issue. The exit code is 0
if all went well, 1 if a part failed or an answer was wrong, 2 for wrong flags, 4 if there is no GPU, and 130 after Ctrl-C.
"""
from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpt2.cli.command import Extend, Parser, backend_of, run_command
from gpt2.errors import UsageError
from minigrad.info import about

from . import gpu_parts, gpu_tests, gpu_train, report
from .child import end_with
from .gpu_bench import Bench, DeviceDied, Part, Setting, TimeIsUp, line_of
from .gpu_report import markdown, text
from .processes import ROOT, environment, told

# each part with its share of the time, in the order of the run
PARTS: dict[str, tuple[Part, int]] = {
    "device": (gpu_parts.device, 2), "rates": (gpu_parts.rates, 8), "launch": (gpu_parts.launch, 4), "answers": (gpu_train.answers, 8),
    "train": (gpu_train.train, 26), "decode": (gpu_parts.decode, 16), "attention": (gpu_parts.attention, 6), "start": (gpu_parts.start, 6),
    "tests": (gpu_tests.tests, 30)}
RESULTS = ROOT / "benchmarks" / "results"
Found = dict[str, Any]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# ── one part ──
def here(name: str, setting: Setting, emit: Callable[[Found], Any], begin: Callable[[str], Any] = lambda what: None) -> str:
    """Run a part in this process; return its error, or nothing."""
    try:
        PARTS[name][0](Bench(setting, emit, begin))
    except TimeIsUp as error:
        return f"its share of the time was over {error}"
    except DeviceDied as error:
        return str(error)
    except Exception as error:
        return line_of(error)
    return ""


def command(name: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu", "--part", name]


def apart(name: str, setting: Setting, emit: Callable[[Found], Any]) -> str:
    """Run a part in a process of its own, which is killed some time after its time limit; return its error, or nothing."""
    failed, at = "", ""
    with contextlib.closing(told(command(name), asdict(setting), setting.seconds * 1.25 + 5.0)) as lines:
        for line in lines:
            if "end" in line:
                return str(line["end"])
            if "ended" in line:
                failed = (line["ended"] or "it ended without a word") + (f", in {at}" if at else "")
            elif "begin" in line:
                at = line["begin"]
            else:
                emit(line)
    return failed


def serve(name: str) -> int:
    """The process of one part: it reads a Setting as a line of JSON from stdin, and writes rows and its end to stdout."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)                                       # so that output of a library is not read as a row
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()

    def reply(told: Found) -> None:
        replies.write(json.dumps(told) + "\n")
        replies.flush()

    reply({"end": here(name, Setting(**json.loads(sys.stdin.readline())), reply, lambda what: reply({"begin": what}))})
    return 0


# ── all of them ──
def info() -> str:
    """What `python -m minigrad.info` prints, or why it prints nothing."""
    try:
        command = [sys.executable, "-m", "minigrad.info"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(), cwd=ROOT)
    except subprocess.TimeoutExpired:
        return "it did not end in 60 s"
    return done.stdout or done.stderr


def measure(names: list[str], setting: Setting, minutes: float, write: Callable[[Found], Any],
            do: Callable[[str, Setting, Callable[[Found], Any]], str] = apart) -> Found:
    """Run the parts, each for its share of the remaining time; after each part `write` gets all results so far."""
    found: Found = {"date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"), "backend": setting.backend,
                    "command": f"python -m benchmarks.gpu --backend {setting.backend}" + " --size tiny" * setting.tiny, "minutes": minutes,
                    "size": "tiny" if setting.tiny else "full", "about": about(setting.backend), "info": info(), "parts": {},
                    "interrupted": False}
    until = time.monotonic() + 60.0 * minutes
    for i, name in enumerate(names):
        left = max(until - time.monotonic(), 1.0)
        mine = Setting(setting.backend, setting.tiny, left * PARTS[name][1] / sum(PARTS[n][1] for n in names[i:]),
                       [row for part in found["parts"].values() for row in part["rows"]])
        say(f"{name}: up to {mine.seconds:.0f} s")
        part: Found = {"status": "cut", "error": "", "seconds": 0.0, "rows": []}
        found["parts"][name] = part
        started = time.monotonic()
        try:
            part["error"] = do(name, mine, part["rows"].append)
            part["status"] = "failed" if part["error"] or any("error" in row for row in part["rows"]) else "done"
        except KeyboardInterrupt:
            found["interrupted"] = True
        part["seconds"] = time.monotonic() - started
        write(found)
        print("\n".join(text(name, part)), flush=True)
        if found["interrupted"]:
            break
    return found


def file_for(folder: Path, backend: str) -> Path:
    """The name of the results' file, DATE-DEVICE-gpu.json."""
    import minigrad as mg

    gpu = mg.backend.get(backend)
    properties = getattr(gpu.backend.namespace.cuda.runtime, "getDeviceProperties", lambda n: {"name": backend.partition(":")[0].encode()})
    device = re.sub(r"[^a-z0-9]+", "-", properties(gpu.number)["name"].decode().lower()).strip("-")
    return folder / f"{datetime.date.today().isoformat()}-{device}-gpu.json"


def parser() -> Parser:
    p = Parser(prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--minutes", type=float, default=10.0, metavar="N", help="minutes for all parts together (default: 10)")
    p.add_argument("--out", default=str(RESULTS), metavar="DIR", help="folder for DATE-DEVICE-gpu.json and .md (benchmarks/results)")
    p.add_argument("--only", nargs="+", action=Extend, choices=list(PARTS), metavar="PART", help=f"only these of {', '.join(PARTS)}")
    p.add_argument("--backend", default="cupy", metavar="NAME", help="cupy, or fake: a fake CuPy on a CPU, to test that this command runs")
    p.add_argument("--device", type=int, metavar="N", help="the number of the GPU")
    p.add_argument("--size", choices=["full", "tiny"], default="full", help="tiny: toy sizes, which take seconds; their times mean nothing")
    p.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)          # a process of one part
    return p


def main(argv: list[str] | None = None, do: Callable[..., str] = apart) -> int:
    args = parser().parse_args(argv)
    if args.part:
        return serve(args.part)
    if not 0.0 < args.minutes < 1e4:
        raise UsageError(f"--minutes must be above 0, not {args.minutes}")
    if args.backend.partition(":")[0] == "fake":
        from minigrad.testing import fake_cupy

        fake_cupy.install()
    elif args.backend.partition(":")[0] != "cupy":
        raise UsageError(f"--backend must be cupy or fake, not {args.backend}")
    backend = backend_of(args)                          # one line and exit code 4 if there is no GPU
    folder = Path(args.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = file_for(folder, backend)
        report.write(path, "{}\n")                      # test this now, not after ten minutes
    except OSError as error:
        raise UsageError(f"--out {args.out} cannot be written: {error.strerror}") from None

    def write(found: Found) -> None:
        report.write(path, json.dumps(found, indent=1, allow_nan=False) + "\n")
        report.write(path.with_suffix(".md"), markdown(found))

    signal.signal(signal.SIGTERM, signal.default_int_handler)           # ends like Ctrl-C: the results so far are written
    names = [name for name in PARTS if not args.only or name in args.only]
    found = measure(names, Setting(backend, args.size == "tiny"), args.minutes, write, do)
    say(f"written: {path} and {path.with_suffix('.md')}")
    if found["interrupted"]:
        return 130
    return 1 if any(part["status"] != "done" for part in found["parts"].values()) else 0


if __name__ == "__main__":
    run_command(main, "benchmarks.gpu")
