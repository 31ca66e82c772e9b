"""How well a model predicts text: negative log-likelihoods of tokens, each after the tokens before it in its window."""
from __future__ import annotations

import codecs
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg

from ..config import as_int
from ..data.tokenizer import Tokenizer
from ..errors import UsageError

CHUNK = 1 << 16                                         # tokens that are text at a time

class Span(NamedTuple):
    """Ids [n] that are read, of which those from place `first` (1 … n − 1) on are predicted and counted."""

    ids: Any
    first: int


class Score(NamedTuple):
    """Of the predicted tokens of a span: Σ −log p in nats, their number, and whether each was the most likely token."""

    nll: float
    tokens: int
    greedy: bool


def windows(n: int, window: int, stride: int, counted: int = 1) -> Iterator[tuple[int, int, int]]:
    """(start, stop, first) over n tokens: tokens start … stop − 1 are read, and those from `first` on are counted.

    Every token from `counted` on is counted once, with at least window − stride tokens before it where there are any.
    """
    for start in range(0, max(1, n - 1), stride):
        stop = min(start + window + 1, n)
        if stop > counted:
            yield start, stop, counted
            counted = stop
        if stop == n:
            return


def extent(model: Any, window: int | None = None, stride: int | None = None) -> tuple[int, int]:
    """The window and the stride that are meant: a model's context, and half a window, unless given. UsageError for what cannot be."""
    context = model.config.n_positions
    window = context if window is None else window
    if as_int(window) is None or (stride is not None and as_int(stride) is None):
        raise UsageError(f"the window and the stride must be whole numbers, not {window} and {stride}")
    if not 1 <= window <= context:
        raise UsageError(f"the window must be from 1 to the context of {context}, not {window}")
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= stride <= window:
        raise UsageError(f"the stride must be from 1 to the window of {window}, not {stride}")
    return window, stride


def scores(model: Any, spans: Iterable[Span], batch_size: int = 16) -> Iterator[Score]:
    """How well each span is predicted, in order; batch_size spans go through the model at a time.

    Shorter ones are filled up on the right, which causal attention does not see. A span of at most context + 1 ids.
    UsageError for a model whose dropout would draw.
    """
    model.refuse_dropout("evaluation")
    rest = iter(spans)
    while batch := list(islice(rest, batch_size)):
        inputs = np.zeros((len(batch), max(len(span.ids) for span in batch) - 1), np.int64)
        for row, span in enumerate(batch):
            inputs[row, :len(span.ids) - 1] = span.ids[:-1]
        with mg.no_grad():
            states = model.states(inputs)                                                  # [B, T] -> [B, T, d]
            found = [_score(model, states[row, span.first - 1:len(span.ids) - 1], np.asarray(span.ids[span.first:], np.int64))
                     for row, span in enumerate(batch)]
        yield from (Score(float(nll) * (len(span.ids) - span.first), len(span.ids) - span.first, bool(hit))
                    for span, (nll, hit) in zip(batch, found))


def _score(model: Any, x: Any, targets: np.ndarray) -> tuple[Any, Any]:                    # [n, d], [n]
    """On the device: the mean of −log p, and whether every target is the most likely token."""
    logits, ids = model.lm_head.scores(x), model.integers(targets, "targets")              # [n, d] -> [n, V]
    here = mg.backend.of(ids)
    return model.F.cross_entropy(logits, ids), here.all(here.argmax(logits.array, axis=-1) == ids)


def total_nll(model: Any, ids: Any, *, window: int | None = None, stride: int | None = None, batch_size: int = 16, part: int = 0,
              parts: int = 1) -> tuple[float, int]:
    """Σ −log p(token | tokens before it in its window) in nats, and the number of tokens counted (all but the first).

    ids [N] integer. window and stride: as `extent` has them. Of `parts` that share the windows out, this one counts those of number
    `part`. UsageError for windows that cannot be.
    """
    found = list(scores(model, islice(text_spans(ids, *extent(model, window, stride)), part, None, parts), batch_size))
    return sum(score.nll for score in found), sum(score.tokens for score in found)


def text_spans(ids: Any, window: int, stride: int) -> Iterator[Span]:
    """The windows over a text, ids [N]: all but its first token are counted once."""
    return (Span(ids[start:stop], first - start) for start, stop, first in windows(len(ids), window, stride))


def continuation_spans(context: Sequence[int], continuation: Sequence[int], window: int, stride: int) -> list[Span]:
    """The spans that count a continuation after its context, which has an id at least.

    A context that does not fit beside it is cut on the left; a continuation longer than a window takes several, as a text does.
    """
    ids = [*context, *continuation]
    cut = min(max(0, len(ids) - window - 1), len(context) - 1)
    ids, counted = ids[cut:], len(context) - cut
    return [Span(ids[start:stop], first - start) for start, stop, first in windows(len(ids), window, stride, counted)]


def text_counts(ids: Any, tokenizer: Tokenizer) -> tuple[int, int, int]:
    """UTF-8 bytes, characters and words (between white space) of the text of ids [N]; <|endoftext|> is none of it and parts words."""
    size, characters, found, inside = 0, 0, 0, False
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    ids = np.asarray(ids)
    ends = [*(np.flatnonzero(ids == tokenizer.eot) if tokenizer.eot is not None else ()), len(ids)]
    start = 0
    for end in ends:
        for at in range(start, end, CHUNK):
            data = tokenizer.decode_bytes(ids[at:min(end, at + (CHUNK))].tolist())
            text = decoder.decode(data)
            size, characters = size + len(data), characters + len(text)
            if text:
                found += len(text.split()) - (inside and not text[0].isspace())
                inside = not text[-1].isspace()
        start, inside = end + 1, False
    return size, characters + len(decoder.decode(b"", final=True)), found


def exp(x: float) -> float | None:
    """eˣ, and None where no float is as large."""
    return math.exp(x) if x < 709.0 else None
