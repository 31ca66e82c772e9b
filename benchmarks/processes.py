"""The processes of the runner: how they are started, asked and ended, and which of them fit into memory together."""
from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")       # a user sets neither of them
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
PATIENCE = 1800.0                                       # the longest wait for a reply, in seconds


class Dead(Exception):
    """A process has ended, or has failed, instead of answering; the message is one line."""


def environment(threads: int | None = None) -> dict[str, str]:
    """The environment of a process, as a user has it: nothing controls BLAS, all threads are used unless a number is given, and no peer
    uses the network."""
    env = {name: value for name, value in os.environ.items() if name not in (*UNSET, *THREADS)}
    if threads:
        env.update(dict.fromkeys(THREADS, str(threads)))
    paths = [str(ROOT), *filter(None, [env.get("PYTHONPATH")])]
    return {**env, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "JAX_PLATFORMS": "cpu"}


def reason(code: int, log: Any) -> str:
    """Why a process ended, in one line: the last line of its stderr, or its signal."""
    if code == -signal.SIGKILL:
        return "killed; was there memory enough?"
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    if fatal := [line for line in lines if line.startswith("Fatal Python error")]:
        # faulthandler's report has where Python was, the innermost line first
        current = itertools.dropwhile(lambda line: not line.startswith("Current thread"), lines)
        lines = [", ".join((fatal[-1], *[line.strip() for line in itertools.islice(current, 1, 2)]))]
    return f"ended with {how}" + (f": {' '.join(lines[-1].split())[:300]}" if lines else "")


def told(command: list[str], task: Mapping[str, Any], patience: float, silence: float = math.inf) -> Iterator[dict[str, Any]]:
    """What a process tells, a dict for each line of JSON on its stdout; the last is {"ended": why}, "" where it ended by itself.

    task: a line of JSON on its stdin. It is ended after `patience` seconds, and after `silence` seconds without a line; and nothing of its
    family is left when it has ended.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment(), cwd=ROOT,
                                   start_new_session=True, text=True)
        late: list[str] = []

        def end(why: str = "") -> None:
            late.append(why)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        def watch(seconds: float, why: str) -> threading.Timer:
            timer = threading.Timer(seconds, end, (why,))
            timer.daemon = True
            if seconds < math.inf:
                timer.start()
            return timer

        quiet = f"did not end in {silence:.0f} s, and was ended"
        whole, each = watch(patience, "its share of the time was over"), watch(silence, quiet)
        try:
            assert process.stdin and process.stdout
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(task) + "\n")
                process.stdin.close()
            for line in process.stdout:
                each.cancel()
                yield json.loads(line)
                each = watch(silence, quiet)
            code = process.wait()
        finally:
            whole.cancel()
            each.cancel()
            end()
            process.wait()
            process.stdout.close()
        yield {"ended": "" if code == 0 else late[0] if late[0] and code == -signal.SIGKILL else reason(code, log)}


class Child:
    """One peer's process, with its workload built. Dead if that fails; `close` ends it and all processes that it started."""

    def __init__(self, task: Mapping[str, Any], threads: int | None = None) -> None:
        self.log = tempfile.TemporaryFile()
        # a session of its own: Ctrl-C is for the runner, and the whole family can be ended at once
        self.process = subprocess.Popen([sys.executable, "-m", "benchmarks.child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=self.log, env=environment(threads), start_new_session=True, text=True)
        try:
            hello = self.ask(json.dumps(task))
            self.answer: dict[str, Any] = hello["answer"]
            self.about: str = hello["about"]
        except BaseException:
            self.close()
            raise

    def ask(self, order: str) -> dict[str, Any]:
        """Send an order; return the reply."""
        assert self.process.stdin and self.process.stdout
        watch = threading.Timer(PATIENCE, self.process.kill)
        watch.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.write(order + "\n")
                self.process.stdin.flush()
            line = self.process.stdout.readline()
        finally:
            watch.cancel()
        if not line:
            raise Dead(reason(self.process.wait(), self.log))
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise Dead(reply["error"])
        return reply

    def warm(self) -> None:
        self.ask("warm")

    def go(self) -> tuple[float, int]:
        """The seconds of a round, and the largest number of bytes in use since the warm-up."""
        reply = self.ask("go")
        return reply["seconds"], reply["peak"]

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            with contextlib.suppress(OSError):
                assert stream is not None
                stream.close()


class Starter:
    """A peer for a "start" row: each round is a new process that reads the weights and prints its first token."""

    def __init__(self, script: str, checkpoint: str, prompt: list[int], threads: int | None = None) -> None:
        self.command = [sys.executable, "-c", script, checkpoint, json.dumps(prompt)]
        self.env, self.about = environment(threads), "a script of a few lines, in a fresh process"
        self.process: subprocess.Popen[str] | None = None
        self.answer: dict[str, Any] = {"ids": [[self._run()[2]]]}

    def _run(self) -> tuple[float, int, int]:
        with tempfile.TemporaryFile() as log:
            started = time.perf_counter()
            self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, env=self.env,
                                            start_new_session=True, text=True)
            assert self.process.stdout
            try:
                line = self.process.stdout.readline()
                took = time.perf_counter() - started
                _, status, used = os.wait4(self.process.pid, 0)
                self.process.returncode = os.waitstatus_to_exitcode(status)
            finally:
                self.close()
            if not line.strip().isdigit() or self.process.returncode:
                raise Dead(reason(self.process.returncode, log))
        return took, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024), int(line)

    def warm(self) -> None:
        self._run()

    def go(self) -> tuple[float, int]:
        return self._run()[:2]

    def close(self) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def available_memory() -> float:
    """The bytes of memory that new processes can use; infinity if the system does not report it."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/meminfo", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable:"))
    return float("inf")


def fit(always: list[str], others: list[str], need: Mapping[str, float], room: float) -> tuple[list[list[str]], list[str]]:
    """Groups of processes that fit into `room` together, each with all of `always`; and the processes that fit into no group.

    If there are no others, or none of them fits, `always` is a group of its own. If `always` does not fit, there is no group.
    """
    base = sum(need[name] for name in always)
    if base > room:
        return [], [*always, *others]
    groups: list[list[str]] = []
    left: list[str] = []
    free: list[float] = []
    for name in others:
        place = next((i for i, f in enumerate(free) if need[name] <= f), None)
        if place is not None:
            groups[place].append(name)
            free[place] -= need[name]
        elif need[name] <= room - base:
            groups.append([*always, name])
            free.append(room - base - need[name])
        else:
            left.append(name)
    return groups or [list(always)], left
