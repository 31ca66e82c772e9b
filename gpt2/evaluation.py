"""How well a model predicts a text: the negative log-likelihood of its tokens, in windows with a stride."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import minigrad as mg

from .errors import UsageError

IGNORE = -100


def windows(n: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, first) over n tokens: tokens start … stop − 1 are read, and those from `first` on are counted.

    Every token but the very first is counted once, with at least window − stride tokens before it where there are any.
    """
    counted = 1
    for start in range(0, max(1, n - 1), stride):
        stop = min(start + window + 1, n)
        if stop > counted:
            yield start, stop, counted
            counted = stop
        if stop == n:
            return


def total_nll(model: Any, ids: Any, *, stride: int | None = None, batch_size: int = 16) -> tuple[float, int]:
    """Σ −log p(token | tokens before it in its window) in nats, and the number of tokens counted (all but the first).

    ids [N] integer. stride: how far windows of the model's context move on, at most a context; half of one by default.
    UsageError for a stride outside 1 … context.
    """
    window = model.config.n_positions
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= stride <= window:
        raise UsageError(f"the stride must be from 1 to the context of {window}, not {stride}")
    spans = list(windows(len(ids), window, stride))
    total, count = 0.0, 0
    with mg.no_grad():
        for at in range(0, len(spans), batch_size):
            part = spans[at:at + batch_size]
            inputs = np.zeros((len(part), max(stop - start for start, stop, _ in part) - 1), np.int64)
            targets = np.full_like(inputs, IGNORE)
            for row, (start, stop, first) in enumerate(part):
                inputs[row, :stop - start - 1] = ids[start:stop - 1]
                targets[row, first - start - 1:stop - start - 1] = ids[first:stop]
            n = int((targets != IGNORE).sum())
            total += float(model.loss(inputs, targets, ignore_index=IGNORE)) * n
            count += n
    return total, count
