"""A counter-based generator: the same bits for the same key on every backend.

It has no state: the caller stores the keys.

A key is an int of 64 bits. Element i of the stream of a key is mix(key + (i + 1)·γ) with the
finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
2014): any part of it can be drawn alone.
"""
from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

from . import backend
from .axes import index, whole
from .backend.splitmix64 import GAMMA, MASK, MIX1, MIX2, raw_bits
from .backend.splitmix64 import keep_mask as keep_mask
from .backend.splitmix64 import keep_mask_span as keep_mask_span
from .engine.tensor import Tensor
from .errors import ShapeError
from .locks import lock

_BLOCK = 1 << 16


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * MIX1) & MASK
    z = ((z ^ (z >> 27)) * MIX2) & MASK
    return z ^ (z >> 31)


def _key(value: Any) -> int:
    number = index(value, "a key")
    if not 0 <= number <= MASK:
        raise ShapeError(f"a key lies in 0 … 2⁶⁴ − 1, and {number} does not; random.key(seed) "
                         "makes a key of any integer")
    return number


def key(seed: int) -> int:
    """The key of a seed (any integer)."""
    return _mix((index(seed, "the seed") + GAMMA) & MASK)


def fold_in(key: int, number: int) -> int:
    """A new key for each number, for example for layers, steps or workers."""
    return _mix(_key(key) ^ _mix(((index(number, "fold_in: number") + 1) * GAMMA) & MASK))


def split(key: int, n: int = 2) -> tuple[int, ...]:
    """n keys with different streams."""
    return tuple(fold_in(key, i) for i in range(index(n, "split: n")))


def _fill(key: int, shape: Any, dtype: str, device: str, draw: Callable[[Any, Any], Any]) -> Tensor:
    """An array of draw(xp, bits).

    It is computed in blocks that stay in the cache, because the intermediate float64 needs much
    memory.
    """
    key, given = _key(key), whole(shape, "the shape of random numbers")
    sizes = (given,) if isinstance(given, int) else given
    there = backend.get(device)
    with backend.explaining(f"random numbers {list(sizes)}"):
        out = there.empty(math.prod(sizes), dtype=dtype)
        for start in range(0, len(out), _BLOCK):
            stop = min(start + _BLOCK, len(out))
            out[start:stop] = draw(there.backend, raw_bits(there.backend, key, stop - start, start))
        return Tensor(there.backend.reshape(out, sizes))


def uniform(key: int, shape: Any = (), *, low: float = 0.0, high: float = 1.0,
            dtype: str = "float32", device: str = "numpy") -> Tensor:
    """Uniform numbers in [low, high), computed from 53 bits in float64 and rounded to dtype."""
    if not low <= high:
        raise ShapeError(f"uniform: low {low} is above high {high}")

    def draw(xp: Any, z: Any) -> Any:
        return low + (high - low) * ((z >> xp.uint64(11)).astype("float64") * 2.0**-53)

    return _fill(key, shape, dtype, device, draw)


def normal(key: int, shape: Any = (), *, std: float = 1.0, dtype: str = "float32",
           device: str = "numpy") -> Tensor:
    """Normal numbers with mean 0, computed in float64 and then rounded to dtype.

    The formula is Box and Muller's (1958): √(−2 ln u) cos 2πv.
    """

    def draw(xp: Any, z: Any) -> Any:
        u = ((z >> xp.uint64(32)).astype("float64") + 1.0) * 2.0**-32  # in (0, 1]: log u is finite
        v = (z & xp.uint64(0xFFFFFFFF)).astype("float64") * 2.0**-32
        return xp.sqrt(-2.0 * xp.log(u)) * xp.cos(2.0 * math.pi * v) * std

    return _fill(key, shape, dtype, device, draw)


def randint(key: int, shape: Any, low: int, high: int, *, device: str = "numpy") -> Tensor:
    """Uniform integers (int64) in low … high − 1. ShapeError if there is no such integer."""
    low, high = index(low, "randint: low"), index(high, "randint: high")
    if low >= high:
        raise ShapeError(f"randint: no integer lies in {low} … {high} − 1; high must be above low")
    unit = uniform(key, shape, dtype="float64", device=device).array
    here = backend.of(unit)
    return Tensor((here.floor(unit * float(high - low)) + low).astype("int64"))


def permutation(key: int, n: int) -> Any:
    """0 … n − 1 in random order, as a NumPy array: the order of n numbers of the stream."""
    return raw_bits(backend.cpu, _key(key), index(n, "permutation: n")).argsort(kind="stable")


class _Stream:
    """A stream of keys: the key that it starts from, and how many keys it has returned."""

    def __init__(self, state: tuple[int, int]) -> None:
        self.key, self.count = state

    def next(self) -> int:
        with _drawing:                                  # two threads never get the same key
            self.count += 1
            return fold_in(self.key, self.count)

    @property
    def state(self) -> tuple[int, int]:
        return self.key, self.count

    def go_to(self, state: tuple[int, int]) -> None:
        with _drawing:
            self.key, self.count = state


class _Replayed(threading.local):
    """The stream that this thread draws from inside `replaying`, else None."""

    stream: _Stream | None = None


_drawing = lock()
_default = _Stream((key(0), 0))                         # of all threads: for modules like Dropout
_replayed = _Replayed()


def _stream() -> _Stream:
    return _replayed.stream or _default


def manual_seed(seed: int) -> None:
    """Start the default stream again, from this seed, for all threads, as in PyTorch.

    Threads that draw at the same time get keys in an order that depends on the system; a thread
    that needs keys of its own passes them: `dropout(x, key=…)`, or draws inside `replaying`.
    """
    _stream().go_to((key(seed), 0))


def next_key() -> int:
    """The next key of the default stream."""
    return _stream().next()


def get_state() -> tuple[int, int]:
    """The state of the default stream, for `set_state`."""
    return _stream().state


def set_state(state: tuple[int, int]) -> None:
    """Continue from a state that `get_state` returned."""
    _stream().go_to((int(state[0]), int(state[1])))


@contextlib.contextmanager
def replaying(state: tuple[int, int]) -> Iterator[None]:
    """Inside the block this thread draws from a stream of its own, which starts from `state`."""
    was, _replayed.stream = _replayed.stream, _Stream((int(state[0]), int(state[1])))
    try:
        yield
    finally:
        _replayed.stream = was
