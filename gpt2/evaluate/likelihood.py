"""The likelihood of a text: −log p of each token, predicted from those before it in a window."""
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

CHUNK = 1 << 16                         # how many tokens are decoded to text at a time


class Span(NamedTuple):
    """Ids [n] that the model reads; those from index `first` (1 … n − 1) on are counted."""

    ids: Any
    first: int


class Score(NamedTuple):
    """The result for the counted tokens of a span.

    nll: Σ −log p in nats. tokens: their number. greedy: whether each was the most likely token.
    """

    nll: float
    tokens: int
    greedy: bool


def windows(n: int, window: int, stride: int, counted: int = 1) -> Iterator[tuple[int, int, int]]:
    """Windows (start, stop, first) over n tokens.

    Tokens start … stop − 1 are read, and those from `first` on are counted. Every token from
    `counted` on is counted once, and is predicted from at least window − stride tokens, if so many
    are before it.
    """
    for start in range(0, max(1, n - 1), stride):
        stop = min(start + window + 1, n)
        if stop > counted:
            yield start, stop, counted
            counted = stop
        if stop == n:
            return


def extent(model: Any, window: int | None = None, stride: int | None = None) -> tuple[int, int]:
    """The window and the stride, checked; by default the model's context, and half a window.

    UsageError for values that are not possible.
    """
    context = model.config.n_positions
    window = context if window is None else window
    if as_int(window) is None or (stride is not None and as_int(stride) is None):
        raise UsageError("the window and the stride must be whole numbers, "
                         f"not {window} and {stride}")
    if not 1 <= window <= context:
        raise UsageError(f"the window must be from 1 to the context of {context}, not {window}")
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= stride <= window:
        raise UsageError(f"the stride must be from 1 to the window of {window}, not {stride}")
    return window, stride


def scores(model: Any, spans: Iterable[Span], batch_size: int = 16) -> Iterator[Score]:
    """The score of each span, in order; the model reads batch_size spans at a time.

    Shorter spans are padded on the right, where causal attention does not read. A span has at most
    context + 1 ids. UsageError for a model with active dropout.
    """
    model.refuse_dropout("evaluation")
    rest = iter(spans)
    while batch := list(islice(rest, batch_size)):
        inputs = np.zeros((len(batch), max(len(span.ids) for span in batch) - 1), np.int64)
        for row, span in enumerate(batch):
            inputs[row, :len(span.ids) - 1] = span.ids[:-1]
        with mg.no_grad():
            states = model.states(inputs)                               # [B, T] -> [B, T, d]
            found = [_score(model, states[row, span.first - 1:len(span.ids) - 1],
                            np.asarray(span.ids[span.first:], np.int64))
                     for row, span in enumerate(batch)]
        for span, (nll, hit) in zip(batch, found):
            tokens = len(span.ids) - span.first
            yield Score(float(nll) * tokens, tokens, bool(hit))


def _score(model: Any, x: Any, targets: np.ndarray) -> tuple[Any, Any]:             # [n, d], [n]
    """On the device: the mean of −log p, and whether every target is the most likely token."""
    logits, ids = model.lm_head(x), model.integers(targets, "targets")       # [n, V], [n]
    here = mg.backend.of(ids)
    return model.F.cross_entropy(logits, ids), here.all(here.argmax(logits.array, axis=-1) == ids)


def total_nll(model: Any, ids: Any, *, window: int | None = None, stride: int | None = None,
              batch_size: int = 16, part: int = 0, parts: int = 1) -> tuple[float, int]:
    """Σ −log p(token | tokens before it in its window) in nats, and the number of counted tokens.

    All tokens of ids [N] but the first are counted. window, stride: as in `extent`. parts: only
    every parts-th window is read, from number `part` on, so that processes can share the windows.
    UsageError for windows that are not possible.
    """
    spans = islice(text_spans(ids, *extent(model, window, stride)), part, None, parts)
    found = list(scores(model, spans, batch_size))
    return sum(score.nll for score in found), sum(score.tokens for score in found)


def text_spans(ids: Any, window: int, stride: int) -> Iterator[Span]:
    """The windows over a text, ids [N]: all tokens but the first are counted once."""
    return (Span(ids[start:stop], first - start)
            for start, stop, first in windows(len(ids), window, stride))


def continuation_spans(context: Sequence[int], continuation: Sequence[int], window: int,
                       stride: int) -> list[Span]:
    """The spans that count a continuation after its context, which has at least one id.

    A context that does not fit the window with the continuation loses tokens on the left. A
    continuation longer than a window is split into several windows, as a text is.
    """
    ids = [*context, *continuation]
    cut = min(max(0, len(ids) - window - 1), len(context) - 1)
    ids, counted = ids[cut:], len(context) - cut
    return [Span(ids[start:stop], first - start)
            for start, stop, first in windows(len(ids), window, stride, counted)]


def text_counts(ids: Any, tokenizer: Tokenizer) -> tuple[int, int, int]:
    """The numbers of UTF-8 bytes, characters and words in the text of ids [N].

    Words are separated by white space and by <|endoftext|>, which is not part of the text.
    """
    size, characters, found, inside = 0, 0, 0, False
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    ids = np.asarray(ids)
    ends = [*(np.flatnonzero(ids == tokenizer.eot) if tokenizer.eot is not None else ()), len(ids)]
    start = 0
    for end in ends:
        for at in range(start, end, CHUNK):
            data = tokenizer.decode_bytes(ids[at:min(end, at + CHUNK)].tolist())
            text = decoder.decode(data)
            size, characters = size + len(data), characters + len(text)
            if text:
                found += len(text.split()) - (inside and not text[0].isspace())
                inside = not text[-1].isspace()
        start, inside = end + 1, False
    return size, characters + len(decoder.decode(b"", final=True)), found


def exp(x: float) -> float | None:
    """eˣ, or None if it is larger than every float."""
    return math.exp(x) if x < 709.0 else None
