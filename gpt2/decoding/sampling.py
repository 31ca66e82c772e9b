"""From logits to the next token: penalty and filters in transformers' order, then one draw per row.

All of it is NumPy on the host in float64, so every backend chooses the same tokens. A caller keeps
one generator, `np.random.Generator(np.random.PCG64(seed))`, and draws one uniform number for each
row and step.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import as_float, as_int
from ..errors import MissingError, UsageError

BROKEN = "logits are NaN or infinite; the weights hold NaN, or they overflow this dtype"
BLOCK = 256                             # tokens in a block; sums or maxima tell which blocks matter


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen. Raises UsageError, naming the flag, for a value out of range.

    temperature: logits are divided by it; 0 is greedy. top_k: keep the k highest logits (Fan et al.
    2018). top_p: keep the nucleus, the fewest tokens whose probabilities sum to at least p
    (Holtzman et al. 2019). min_p: keep the tokens with at least min_p times the highest probability
    (Nguyen et al. 2024). repetition_penalty: how much less likely the tokens become that are in
    the text already; 1: no less (Keskar et al. 2019). greedy: choose the highest logit, and the
    lowest id among equals. NumPy's numbers are taken as Python's.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    greedy: bool = False

    def __post_init__(self) -> None:
        bounds: list[tuple[str, Callable[[Any], Any], Callable[[Any], bool], str]] = [
            ("temperature", as_float, lambda x: 0.0 <= x < math.inf,
             "a finite number from 0 on (0 is greedy)"),
            ("top_k", as_int, lambda k: k is not None and k >= 1, "1 or more"),
            ("top_p", as_float, lambda p: 0.0 < p <= 1.0, "above 0 and at most 1"),
            ("min_p", as_float, lambda p: 0.0 <= p <= 1.0, "from 0 to 1"),
            ("repetition_penalty", as_float, lambda x: 0.0 < x < math.inf,
             "a finite number above 0"),
            ("greedy", lambda x: bool(x) if isinstance(x, bool | np.bool_) else None,
             lambda x: x is not None, "True or False"),
        ]
        for name, read, good, wanted in bounds:
            if (value := getattr(self, name)) is None and name in ("top_k", "top_p", "min_p"):
                continue
            if not good(number := read(value)):
                wanted = "a whole number" if name == "top_k" and number is None else wanted
                raise UsageError(f"--{name.replace('_', '-')} must be {wanted}, not {value}")
            object.__setattr__(self, name, number)

    @property
    def is_greedy(self) -> bool:
        """Whether the highest logit is chosen, and the lowest id among equals   (sampling.3)."""
        return self.greedy or self.temperature == 0.0


def process_logits(logits: np.ndarray, options: SamplingOptions,
                   previous: Sequence[Sequence[int]] = ()) -> np.ndarray:
    """Log-probabilities [B, V] float64 with which the next token is drawn; −inf for removed tokens.

    logits [B, V] floating; previous: the ids of each row so far, for the repetition penalty. The
    options are applied in this order:

    1. repetition penalty r: the logit x of an id in `previous` becomes x / r if x > 0, else x · r
    2. temperature
    3. top-k: every logit that is not lower than the k-th highest stays, so ties may keep more
    4. top-p: tokens are removed from the least likely up, while the removed probabilities sum to
       at most 1 − p; the most likely token always stays. So the token with which the nucleus
       reaches p stays. Among equals at the border the lower ids are removed.
    5. min-p

    Raises MissingError where a logit is NaN or +inf, or a row is all −inf.
    """
    out = _penalized(logits, options, previous)
    for row in out:                     # in place: new memory costs more time than the arithmetic
        ids, x = _kept(row, options)
        x -= np.log(np.exp(x).sum())
        if ids is not None:
            row[:] = -np.inf
            row[ids] = x
    return out


def sample(logprobs: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Draw ids [B] by inverse transform sampling from exp(logprobs) [B, V]   (sampling.4–5).

    uniforms [B]: random numbers in [0, 1). The result is the first id at which the cumulative sum
    exceeds the uniform number, so an id of probability 0 is never drawn. Gumbel-max draws from the
    same distribution (sampling.7–9), but needs V random numbers instead of one.
    """
    return np.array([_drawn(np.exp(x), u) for x, u in zip(logprobs, uniforms)], np.int64)


def choose(logits: np.ndarray, options: SamplingOptions, previous: Sequence[Sequence[int]],
           uniforms: np.ndarray) -> np.ndarray:
    """The next ids [B] for logits [B, V]: `sample` of `process_logits`, computed more directly."""
    if options.is_greedy:
        x = logits if options.repetition_penalty == 1.0 else _penalized(logits, options, previous)
        best = x.argmax(axis=-1)
        _checked(x[np.arange(len(x)), best, None])      # NaN counts as the highest
        return best
    chosen = np.empty(len(logits), np.int64)
    for n, row in enumerate(_penalized(logits, options, previous)):
        ids, x = _kept(row, options)
        drawn = _drawn(np.exp(x, out=x), uniforms[n])
        chosen[n] = drawn if ids is None else ids[drawn]
    return chosen


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities [..., V] float64 of the model itself. Errors as in `process_logits`."""
    x = _checked(logits.astype(np.float64))
    x -= x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def top_logprobs(logits: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The n (at most V) likeliest ids [B, n] and their log-probabilities [B, n] float64.

    The highest comes first, and the lower id among equals. logits [B, V]: the model's, before any
    option is applied. Raises UsageError for n < 1.
    """
    if n < 1:
        raise UsageError(f"--logprobs must be at least 1, not {n}")
    x = log_softmax(logits)
    ids = np.stack([_first(row, min(n, x.shape[-1])) for row in x])
    return ids, np.take_along_axis(x, ids, axis=-1)


def _checked(logits: np.ndarray) -> np.ndarray:
    """logits [..., V]. MissingError if one of them is NaN or +inf, or if a row is all −inf."""
    # the maximum of a row is NaN if any number of it is, so checking the maximum is enough
    highest = logits.max(axis=-1)
    if not np.isfinite(highest).all():
        raise MissingError(BROKEN)
    return logits


def _penalized(logits: np.ndarray, options: SamplingOptions,
               previous: Sequence[Sequence[int]]) -> np.ndarray:
    """A float64 copy of logits [B, V] with the repetition penalty, checked   (sampling.15)."""
    x = logits.astype(np.float64)
    penalty = options.repetition_penalty
    if penalty != 1.0:
        for row, seen in zip(x, previous):
            at = np.array(seen, np.intp)
            old = row[at]
            row[at] = np.where(old < 0, old * penalty, old / penalty)
    return _checked(x)


def _kept(x: np.ndarray, options: SamplingOptions) -> tuple[np.ndarray | None, np.ndarray]:
    """The ids that may be drawn (None: all), and the logarithms of their weights, the highest 0.

    x [V]: the logits, which are overwritten. Min-p compares weights with the highest
    (sampling.14).
    """
    if options.is_greedy:
        return np.array([x.argmax()]), np.zeros(1)
    ids = None
    if options.top_k is not None and options.top_k < len(x):
        ids = _highest(x, options.top_k)
        x = x[ids]
    # filters come before the division by the temperature, which keeps the order   (sampling.2)
    if options.top_p is not None and options.top_p < 1.0:
        _keep_nucleus(x, options.top_p, options.temperature)
    _shift(x, options.temperature)
    if options.min_p:
        x[np.exp(x) < options.min_p] = -np.inf
    return ids, x


def _drawn(weights: np.ndarray, uniform: float) -> int:
    """The first index at which the cumulative sum of weights [V] exceeds uniform · their total.

    uniform ∈ [0, 1). The sums of blocks tell which block contains the index, so only the numbers of
    that block are added one after the other   (sampling.6).
    """
    starts = np.arange(0, len(weights), BLOCK)
    sums = np.add.reduceat(weights, starts).cumsum()
    # even (1 − 2⁻⁵³) · total rounds to less than the total, so one block always exceeds it
    wanted = uniform * sums[-1]
    block = int(sums.searchsorted(wanted, "right"))
    within = weights[block * BLOCK:(block + 1) * BLOCK].cumsum()
    rest = wanted - sums[block - 1] if block else wanted
    # the sum of the block in another order may round below `rest`: then its last index is meant
    rest = min(rest, np.nextafter(within[-1], 0.0))
    return block * BLOCK + int(within.searchsorted(rest, "right"))


def _shift(x: np.ndarray, temperature: float) -> None:
    """x ← (x − max x) / temperature, in this order: x / temperature may overflow   (sampling.1)"""
    x -= x.max()
    if temperature != 1.0:
        with np.errstate(over="ignore"):                # −inf is the right result of an overflow
            x /= temperature


def _weights(x: np.ndarray, temperature: float) -> np.ndarray:
    """exp((x − max x) / temperature) of x [V]; the highest is 1   (sampling.1)."""
    weights = x.copy()
    _shift(weights, temperature)
    return np.exp(weights, out=weights)


def _keep_nucleus(x: np.ndarray, p: float, temperature: float) -> None:
    """Set all logits in x [V] to −inf but those of the nucleus   (sampling.11–13).

    The nucleus is the fewest tokens whose probabilities sum to at least p.
    """
    weights = _weights(x, temperature)
    whole = weights.sum()
    spare = (1.0 - p) * whole
    # tokens of at most spare / V each sum to at most spare, so all of them are removed, but never
    # the highest; only the few others need to be sorted, which takes most of the time
    rising = np.sort(x[(weights > spare / len(x)) | (weights == 1.0)])
    sums = _weights(rising, temperature).cumsum()
    gone = min(int(sums.searchsorted(spare - (whole - sums[-1]), "right")), len(rising) - 1)
    border = rising[gone]
    ties = np.flatnonzero(x == border)
    x[x < border] = -np.inf
    x[ties[:gone - int(rising.searchsorted(border, "left"))]] = -np.inf


def _highest(x: np.ndarray, k: int) -> np.ndarray:
    """Ids, rising, of all numbers in x [V] from the k-th highest number up   (sampling.10)."""
    ids = np.arange(len(x))
    peaks = np.maximum.reduceat(x, ids[::BLOCK])
    # k numbers, the k highest peaks, reach the k-th highest peak, so no lower number is needed
    if k <= len(peaks):
        ids = np.flatnonzero(x >= np.partition(peaks, -k)[-k])
    few = x[ids]
    return ids[few >= np.partition(few, -k)[-k]]


def _first(x: np.ndarray, n: int) -> np.ndarray:
    """Ids of the n highest of x [V], the highest first, the lower id first among equals."""
    ids = _highest(x, n)
    return ids[np.argsort(-x[ids], kind="stable")[:n]]
