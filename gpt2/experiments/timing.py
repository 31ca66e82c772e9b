"""Measured times: runs after a warm-up run, their quartiles, and the range of a ratio of times."""
from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np


def clock(f: Callable[[], Any], wait: Callable[[], Any], repeats: int,
          before: Callable[[], Any] | None = None) -> tuple[list[float], list[float]]:
    """Milliseconds of each run of f, after one to warm up: until it ended, and until it returned.

    On a GPU f may return before its work ends; wait() waits for the end. `before` is called before
    each run, and is not timed.
    """
    took, left = [], []
    for i in range(repeats + 1):
        if before:
            before()
        wait()
        started = time.perf_counter()
        f()
        called = time.perf_counter()
        wait()
        if i:
            took.append(1e3 * (time.perf_counter() - started))
            left.append(1e3 * (called - started))
    return took, left


def quartiles(took: list[float]) -> tuple[float, float, float]:
    """The median, and the lower and the upper quartile."""
    low, middle, high = np.quantile(took, (0.25, 0.5, 0.75)).tolist()
    return middle, low, high


def ratio(over: dict[str, float], under: dict[str, float]) -> tuple[float, float, float]:
    """How many times longer, by the medians; and the least and the most that the quartiles allow.

    Both rows have "ms", "25 %" and "75 %".
    """
    return over["ms"] / under["ms"], over["25 %"] / under["75 %"], over["75 %"] / under["25 %"]


def whiskers(times: list[Any]) -> np.ndarray:
    """The distances of the quartiles from the medians, below and above, as error bars need them.

    times: (median, lower quartile, upper quartile).
    """
    middle, low, high = np.array(times).T
    return np.stack([middle - low, high - middle])
