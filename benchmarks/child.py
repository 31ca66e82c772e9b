"""A process that holds one workload of one peer: `python -m benchmarks.child`, told what to do by lines of JSON on stdin.

The first line is the task; the reply tells the answer. "warm" gets it going, "go" does one round and tells its seconds. It ends with
its stdin, and with the runner.
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
    """Keep to so many cores, before any library looks how many there are."""
    if threads and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def end_with(parent: int) -> None:
    """End, with all processes of the family, soon after the runner has: it may have been killed in the middle of our work."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(0, signal.SIGKILL)


def forget_peak() -> None:
    """Let the high-water mark of the memory start anew, where the system can."""
    gc.collect()
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass


def peak_memory() -> int:
    """Bytes of this process's memory at their highest."""
    try:
        with open("/proc/self/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def once(work: Any, count: int = 1) -> float:
    """Seconds of one run, as the mean of so many in a row."""
    if work.clocked:
        return float(work.run())
    started = time.perf_counter()
    for _ in range(count):
        work.run()
    return (time.perf_counter() - started) / count


def warm(work: Any) -> int:
    """Run until it is in its stride; how many runs make a round."""
    once(work)
    if work.clocked:
        return 1
    count = 1
    while once(work, count) * count < ROUND:
        count *= 2
    return count


def serve(orders: Any, replies: Any) -> None:
    """Read orders until they end. A failure is a reply with "error" and the end."""
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
    except Exception as error:                          # whatever a peer may raise; the runner goes on without it
        reply(error=" ".join(f"{type(error).__name__}: {error}".split())[:300])


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)                                       # what a library prints is not a reply
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    serve(sys.stdin, replies)


if __name__ == "__main__":
    main()
