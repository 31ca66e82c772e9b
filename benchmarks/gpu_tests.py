"""The part `tests` of `benchmarks.gpu`: the tests of the device in a process of their own, so that none of them can end the others.

After a test that hangs, that kills its process, or that leaves a device which cannot be used any more, another process goes on with the
rest. `python -m benchmarks.gpu_tests` is such a process: a line of JSON on stdin says what to test, lines on stdout tell what happens.
"""
from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

from .child import end_with
from .gpu_bench import Bench
from .processes import ROOT, told

SILENCE = 90.0                                          # seconds that a test may take: NVRTC alone may need most of them
SHOWN = 20                                              # failures that are told one by one
MARKED = re.compile(r"mark\.device|kernel_test")
NAMED = re.compile(r"(?:Failing test case|Falsifying example): *(.*)", re.DOTALL)


def tests(bench: Bench) -> None:
    """pytest --backend: the laws of every op, kernels against NumPy, GPT-2, a training step; the laws alone where pytest is missing."""
    missing = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if "hypothesis" in missing:
        raise RuntimeError(f"{' and '.join(missing)} not installed: pip install pytest hypothesis (and torch, for the law that asks it)")
    if missing or not (ROOT / "tests").is_dir():
        return laws(bench)
    counts, done, wanted, going, code, at = Counter[str](), list[str](), 0, True, None, ""

    def ended(test: str, outcome: str, reason: str = "", example: str = "", abrupt: bool = False) -> None:
        done.append(test)
        counts[outcome] += 1
        if outcome == "failed" and counts[outcome] <= SHOWN:
            loud = "-s --hypothesis-verbosity=verbose " * abrupt
            bench.row("failed", error=f"{test}: {reason}" + "; the command prints each example before it is tried" * abrupt,
                      example=example, repeat=f'pytest --backend {bench.setting.backend} {loud}"{test}"')

    while going:                                        # each time but the last a test has ended the process
        at, code, died, why = "", None, False, ""
        task = {"backend": bench.setting.backend, "done": done, "tests": only(bench)}
        with contextlib.closing(told(command(), task, max(bench.left(), 1.0), SILENCE)) as lines:
            for line in lines:
                if "test" in line:
                    ended(**line)
                    at = ""
                else:
                    wanted = line.get("wanted", wanted)
                    at, code, died, why = line.get("start", at), line.get("code", code), line.get("died", died), line.get("ended", why)
        going = died or code is None
        if code is None and bench.left() <= 1.0:        # the time was over, and the process ended for it
            break
        if code is None and not at:
            raise RuntimeError(f"pytest {why}")
        if code is None:
            ended(at, "failed", why, abrupt=True)
    tally = ", ".join(f"{counts[name]} {name}" for name in ("passed", "failed", "skipped")) + f", of {wanted}"
    bench.row("pytest", note=tally + (f": cut{f' in {at}' if at else ''}, its share of the time was over" if len(done) < wanted else ""))
    if code not in (None, 0, 1, 5) or not counts["passed"]:
        raise RuntimeError(f"pytest ended with {code}; {tally}")


def command() -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu_tests"]


def only(bench: Bench) -> list[str]:
    """What pytest is told to run: the files with tests of a device, for reading all others takes half a minute."""
    if bench.tiny:
        return ["tests/minigrad/backend/cupy/test_kernels.py", "-k", "test_gelu"]
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if MARKED.search(file.read_text("utf-8"))]


# ── the process ──
class Teller:
    """A plug-in of pytest: tells each test and how it ended, and stops when the device has died."""

    def __init__(self, backend: str, done: list[str], reply: Any) -> None:
        self.backend, self.done, self.reply = backend, set(done), reply
        self.session: Any = None

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Not in the order of the files: a run that is cut has seen something of each."""
        items[:] = [item for item in items if item.nodeid not in self.done]
        random.Random(0).shuffle(items)

    def pytest_collection_finish(self, session: Any) -> None:
        self.session = session
        self.reply(wanted=len(self.done) + len(session.items))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.reply(start=nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        reason, example = said(str(report.longrepr)) if report.failed else ("", "")
        if report.failed:
            import minigrad as mg

            if not mg.backend.alive(self.backend):
                self.session.shouldstop = "the device died"
                self.reply(died=True)
                # after it Hypothesis has met failures alone, whatever the example
                self.reply(test=report.nodeid, outcome="failed", reason=f"{reason}; the device died", abrupt=True)
                return
        self.reply(test=report.nodeid, outcome=report.outcome, reason=reason, example=example)


def said(report: str) -> tuple[str, str]:
    """What an assertion of pytest's says, in a line, and the smallest example that Hypothesis found, in another."""
    lines = [line[2:].split("  # ")[0].strip() for line in report.splitlines() if line.startswith("E ")]
    text = "\n".join(line for line in lines if line and not line.startswith("# ")).partition("Explanation:")[0]
    text = text or (report.splitlines() or [""])[-1]
    found = NAMED.search(text)
    reason, example = (text[:found.start()], found[1]) if found else (text, "")
    call = re.sub(r",? \)$", ")", re.sub(r"\( ", "(", " ".join(example.split())))
    return " ".join(reason.split())[:500], call[:1000]


def main() -> None:
    """Run pytest as the line on stdin says."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)                                       # what pytest prints is no reply
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()

    def reply(**line: Any) -> None:
        replies.write(json.dumps(line) + "\n")
        replies.flush()

    import pytest

    task = json.loads(sys.stdin.readline())
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "--tb=short", "--backend", task["backend"]]
    reply(code=int(pytest.main([*options, *task["tests"]], plugins=[Teller(task["backend"], task["done"], reply)])))


# ── without pytest ──
def laws(bench: Bench) -> None:
    """The laws, op by op, as `python -m minigrad.testing` asks them, until the time is up."""
    from minigrad.testing.__main__ import Found, product
    from minigrad.testing.domains import DOMAINS

    names = list(dict.fromkeys(d.subject.name for d in DOMAINS))
    counts, asked, there = Counter[str](), 0, bench.setting.backend

    def broken(found: Found) -> Iterator[tuple[str, Any]]:
        for (name, *_), verdicts in found.items():
            for v in verdicts:
                counts[v.status] += 1
                if v.status == "broken":
                    yield name, v

    for name in names[:2] if bench.tiny else names:
        if bench.left() < 0:
            break
        asked, found = asked + 1, Found()
        bench.begin(name)
        died = product([name], [there], 2 if bench.tiny else 5, found)
        for op, v in broken(found):
            bench.row("broken", error=f"{op}: {v.law}, {v.dtype}: {' '.join(v.message.split())}"[:500], example=repr(v.example)[:1000],
                      repeat=f"python -m minigrad.testing --device {there} --op {op}")
        if died:
            bench.row("laws", error=died)
            break
    bench.row("laws", note=f"{asked} of {len(names)} ops and functions: {', '.join(f'{n} {status}' for status, n in counts.items())}; "
                           "without pytest nothing else was tested")


if __name__ == "__main__":
    main()
