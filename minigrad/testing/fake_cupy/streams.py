"""Streams of a fake GPU, and the order of what is asked of them.

A device does what one stream is asked in its order, and nothing else is promised: what two streams
are asked may run side by side. So an access to memory whose last write was asked of another stream
must come after it, by one of CUDA's means: an event that one stream records and the other waits
for, a wait of the host, or the default stream, which waits for all streams and all for it, but for
those that are made non-blocking.
"""
from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from .device import count, refuse, state

# how much of what each stream was asked is known to have happened before something
Known = dict["Stream", int]


def merge(known: Known, more: Known) -> None:
    for stream, time in more.items():
        known[stream] = max(time, known.get(stream, 0))


class Stream:
    """cupy.cuda.Stream: its operations are numbered 1, 2, …"""

    blocking = weakref.WeakSet["Stream"]()

    def __init__(self, null: bool = False, *, non_blocking: bool = False) -> None:
        self.non_blocking, self.known = non_blocking, Known()
        if not non_blocking:
            self.blocking.add(self)

    def __enter__(self) -> Stream:
        state.thread.streams.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        state.thread.streams.pop()

    def asked(self) -> None:
        """One more operation: it comes after those before it, and after all the host waited for."""
        merge(self.known, host)
        if self is DEFAULT:
            for other in self.blocking:
                merge(self.known, other.known)
        elif not self.non_blocking:
            merge(self.known, DEFAULT.known)
        self.known[self] = self.known.get(self, 0) + 1

    def synchronize(self) -> None:
        count("syncs")
        self.asked()
        merge(host, self.known)

    def wait_event(self, event: Event) -> None:
        merge(self.known, event.known)

    def begin_capture(self) -> None:
        refuse("a capture")
        if self is DEFAULT:
            raise RuntimeError("the default stream cannot be captured")
        state.captured, state.captured_by = [], self

    def end_capture(self) -> Graph:
        assert state.captured is not None
        graph, state.captured, state.captured_by = Graph(state.captured), None, None
        return graph


DEFAULT = Stream()
host: Known = {}                                        # what the host has waited for


def current() -> Stream:
    """cupy.cuda.get_current_stream: that of the innermost `with stream` of this thread."""
    streams: list[Stream] = state.thread.streams
    return streams[-1] if streams else DEFAULT


class Event:
    """cupy.cuda.Event: all that a stream was asked before it."""

    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        self.known = Known()

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or current()
        stream.asked()
        self.known = dict(stream.known)

    def synchronize(self) -> None:
        count("syncs")
        merge(host, self.known)


class Graph:
    """cupy.cuda.Graph: launches with the arguments that they had when they were captured."""

    def __init__(self, launches: list[Callable[[], None]]) -> None:
        self.launches = launches

    def launch(self, stream: Stream | None = None) -> None:
        refuse("a graph")
        count("replays")
        with stream or current():
            for run in self.launches:
                run()


class Use:
    """Who wrote some memory last, and who has read it since, as numbers of streams' operations."""

    __slots__ = ("read", "written")

    def __init__(self) -> None:
        self.written, self.read = Known(), Known()


def used(use: Use, writes: bool, what: str) -> None:
    """The operation that the current stream was asked last reads, or writes, this memory.

    RuntimeError where another stream may be at it.
    """
    stream = current()
    for others, done in ((use.written, "writes"), (use.read if writes else {}, "reads")):
        if any(time > stream.known.get(other, 0) for other, time in [*others.items()]):
            raise RuntimeError(f"{what}: memory that another stream {done}, with no event between "
                               "the two and no wait of the host")
    now = {stream: stream.known[stream]}
    if writes:
        use.written, use.read = now, Known()
    else:
        use.read.update(now)


def reached_host(array: Any) -> None:
    """The host waits for the current stream, and reads the array."""
    stream = current()
    stream.asked()
    used(array.use, False, "the host")
    merge(host, stream.known)
