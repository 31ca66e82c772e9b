"""A command that is killed (SIGKILL) before one of its file operations, or whose disk is full from there on."""
from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

NEW = {"open", "os.rename", "os.mkdir", "os.truncate", "os.link", "os.symlink", "os.fsync"}          # need room on the disk
WRITES = {*NEW, "os.remove", "os.rmdir"}


def is_write(event: str, args: tuple[Any, ...]) -> bool:
    """Whether an audit event of Python is an operation that changes the file system."""
    if event == "open":
        flags = args[2]
        return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in WRITES


def forked(work: Callable[[], Any], before: Callable[[int, str], None]) -> int:
    """The exit status of a forked child that does the work; before(n, event) is called before its file operation n."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 70                                           # pytest must not go on in the child, whatever happens
    try:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        done = 0

        def hook(event: str, args: tuple[Any, ...]) -> None:
            nonlocal done
            if is_write(event, args):
                n, done = done, done + 1
                before(n, event)

        sync = os.fsync

        def synced(handle: int) -> None:                # Python has no event for it
            hook("os.fsync", ())
            sync(handle)

        sys.addaudithook(hook)
        os.fsync = synced
        code = int(work() or 0)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        code = 71
    finally:
        os._exit(code)


def kills(work: Callable[[], Any], first: int = 0, step: int = 1) -> Iterator[int]:
    """Kill the work before its file operation `first`, then a new one `step` operations later, until one ends by itself.

    Each number is yielded after its kill. RuntimeError if the work itself fails.
    """
    n = first
    while True:
        code = forked(work, lambda i, _, n=n: os.kill(os.getpid(), signal.SIGKILL) if i == n else None)
        if code == 0:
            return
        if code != -signal.SIGKILL:
            raise RuntimeError(f"the work ended with {code} before its file operation {n}")
        yield n
        n += step


def full_disks(work: Callable[[], Any]) -> Iterator[tuple[int, int]]:
    """As `kills`, but from operation n on nothing new can be written (ENOSPC): n, and the exit code."""
    def full(i: int, event: str, n: int) -> None:
        if i >= n and event in NEW:
            raise OSError(errno.ENOSPC, "No space left on device")

    n = 0
    while True:
        code = forked(work, lambda i, event, n=n: full(i, event, n))
        if code == 0:
            return
        yield n, code
        n += 1


def tree(folder: Path) -> dict[str, bytes]:
    """The files of a folder, by relative name; empty for one that is not there."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
