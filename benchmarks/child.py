"""python -m benchmarks.child: a process that runs one workload of one peer; it gets its orders as lines of JSON on stdin.

The first line is the task; the reply contains the answer. The order "warm" runs the workload until its time is steady; "go" runs one
round, and the reply contains its seconds. The process ends when its stdin ends, or when the runner ends.
"""
from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
import time
from typing import Any

ROUND = 0.1                                             # seconds that a round should last at least: work that is shorter is repeated


def pin(threads: int | None) -> None:
    """Use only this many cores; call it before a library counts the cores."""
    if threads and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def end_with(parent: int) -> None:
    """End this process and its child processes soon after the runner has ended, for it may have been killed."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(0, signal.SIGKILL)


def forget_peak() -> None:
    """Reset the peak memory that the system reports, if the system supports this."""
    gc.collect()
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass


def peak_memory() -> int:
    """The largest number of bytes that this process has used."""
    try:
        with open("/proc/self/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def once(work: Any, count: int = 1) -> float:
    """The seconds of one run: the mean over several runs in a row."""
    if work.clocked:
        return float(work.run())
    started = time.perf_counter()
    for _ in range(count):
        work.run()
    return (time.perf_counter() - started) / count


def warm(work: Any) -> int:
    """Run the workload until its time is steady; return the number of runs in a round."""
    once(work)
    if work.clocked:
        return 1
    count = 1
    while once(work, count) * count < ROUND:
        count *= 2
    return count


def serve(orders: Any, replies: Any) -> None:
    """Read orders until the input ends. After a failure the reply contains "error", and the process ends."""
    from .peers import build

    def reply(**message: Any) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    try:
        task = json.loads(orders.readline())
        pin(task["row"]["threads"] if "row" in task else None)
        work = build(task)
        reply(answer=work.answer(), about=work.about)
        count = 1
        for order in orders:
            if order.strip() == "warm":
                forget_peak()
                count = warm(work)
                reply(count=count)
            else:
                gc.collect()
                seconds = once(work, count)
                reply(seconds=seconds, peak=work.peak() if work.peak else peak_memory())
    except BrokenPipeError:
        pass
    except Exception as error:                          # a peer may raise anything; the runner goes on without it
        reply(error=" ".join(f"{type(error).__name__}: {error}".split())[:300])


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)                                       # what a library prints is not a reply
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    serve(sys.stdin, replies)


if __name__ == "__main__":
    main()
