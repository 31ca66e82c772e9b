"""What threads need: locks that a forked child can take, and a name for each thread."""
from __future__ import annotations

import os
import threading


def lock() -> threading.Lock:
    """A lock that is free in a forked child.

    Another thread may hold it while the process is forked; the child does not have that thread, and
    would wait for ever. (To take all locks before a fork is no way out: the thread that holds one
    may wait for a lock of a library that the fork holds.)
    """
    made = threading.Lock()
    if hasattr(os, "register_at_fork"):                 # Windows has no fork
        # as the locks of Python's own libraries are made anew
        os.register_at_fork(after_in_child=made._at_fork_reinit)  # type: ignore[attr-defined]
    return made


class _Own(threading.local):
    """An object for each thread."""

    def __init__(self) -> None:
        self.token = object()


_own = _Own()


def this_thread() -> object:
    """The token of this thread; unlike `threading.get_ident()`, no later thread gets it again."""
    return _own.token
