"""The devices of a fake GPU: their memory, and counts of what was done to them."""
from __future__ import annotations

import contextlib
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

DEVICES, MEMORY = 2, 8 << 30                            # bytes of each device


class Counts:
    """What was done to the device.

    syncs (the host waited), uploads, allocations with their bytes, and dtypes allocated; launches
    of each kernel of ours, and replays of graphs.
    """

    def __init__(self) -> None:
        self.syncs = self.uploads = self.allocations = self.bytes = self.replays = 0
        self.dtypes: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()

    def __repr__(self) -> str:
        return (f"{self.syncs} syncs, {self.uploads} uploads, {self.allocations} allocations of "
                f"{self.bytes} bytes ({dict(self.dtypes)})")


class Thread(threading.local):
    """The current device of a thread, and those of the blocks around it; and its streams."""

    def __init__(self) -> None:
        self.devices, self.streams = [0], list[Any]()


class State:
    """What there is one of: counters, memory, and the graph in the making.

    left: allocations that there is still memory for. captured: the launches of a graph in the
    making, on the stream captured_by. private: whether memory comes from a pool that a graph
    keeps. disorder: the order in which the threads of a GPU come. lent: arrays by their address,
    if somebody asked for it. only: which blocks of a grid are run, of so many; () for all.
    """

    def __init__(self) -> None:
        self.counters: list[Counts] = []
        self.thread, self.left = Thread(), list[int]()
        self.captured: list[Callable[[], None]] | None = None
        self.captured_by: Any = None
        self.private, self.disorder = False, np.random.default_rng()
        self.lent = weakref.WeakValueDictionary[int, Any]()
        self.only: Callable[[int], Sequence[int]] = lambda blocks: ()


state = State()


@contextlib.contextmanager
def counting() -> Iterator[Counts]:
    """What happens inside the block is counted in the Counts that it gives."""
    counts = Counts()
    state.counters.append(counts)
    try:
        yield counts
    finally:
        state.counters.remove(counts)


def count(what: str) -> None:
    if what in ("syncs", "uploads"):
        refuse(f"{what} (a wait for the device, or a copy from the host)")
    for counts in state.counters:
        setattr(counts, what, getattr(counts, what) + 1)


class CUDARuntimeError(RuntimeError):
    """cupy.cuda.runtime.CUDARuntimeError."""


class OutOfMemoryError(MemoryError):
    """cupy.cuda.memory.OutOfMemoryError."""


@contextlib.contextmanager
def short_of_memory(allocations: int) -> Iterator[None]:
    """Inside the block there is memory for so many allocations, and for none after them."""
    state.left.append(allocations)
    try:
        yield
    finally:
        state.left.pop()


@contextlib.contextmanager
def only_blocks(only: Callable[[int], Sequence[int]]) -> Iterator[None]:
    """Inside the block the kernels of ours run only these blocks of their grid, of so many.

    So a launch on more memory than there is, most of it never touched, takes no time.
    """
    before, state.only = state.only, only
    try:
        yield
    finally:
        state.only = before


def refuse(what: str) -> None:
    if state.captured is not None:
        raise RuntimeError(f"{what} while a stream is captured")


@contextlib.contextmanager
def using_allocator(malloc: Any) -> Iterator[None]:
    state.private = True
    try:
        yield
    finally:
        state.private = False


class Device:
    """cupy.cuda.Device: arrays are made on the device whose block one is in."""

    attributes = {"MultiProcessorCount": 1}      # fewer blocks are less to run

    def __init__(self, number: int = 0) -> None:
        self.id = number

    def __enter__(self) -> Device:
        state.thread.devices.append(self.id)
        return self

    def __exit__(self, *error: object) -> None:
        state.thread.devices.pop()

    def use(self) -> Device:
        if self.id >= DEVICES:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        state.thread.devices[-1] = self.id
        return self

    @property
    def compute_capability(self) -> str:
        return "90"
