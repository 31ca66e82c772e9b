"""From a prompt to more tokens: prefill, then one token at a time through the KV cache."""
from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

import minigrad as mg

from .cache import KVCache
from .errors import UsageError
from .pretrained import rows_of
from .sampling import SamplingOptions, choose, top_logprobs

if TYPE_CHECKING:
    from .pretrained import PretrainedModel

OVERFLOW = ("error", "slide")


@dataclass
class Timing:
    """Seconds to the first token and of the tokens after it, drawing included; how many those are; bytes of the KV cache."""

    prefill: float = 0.0
    decode: float = 0.0
    passes: int = 0
    kv_bytes: int = 0


@dataclass
class Step:
    """One new token for each row, and the most likely tokens of each row with their log-probabilities when asked for."""

    ids: list[int]
    top: list[list[tuple[int, float]]] = field(default_factory=list)


class _Reader:
    """Feeds tokens to the model and returns the logits that follow the last one, [B, V] on the host.

    Rows of different lengths are padded at the left. When the context is full, the later half of it is read again from
    position 0: positions are absolute, so keys of old positions cannot be kept.
    """

    def __init__(self, model: PretrainedModel, rows: Sequence[Sequence[int]], room: int, use_cache: bool, timing: Timing) -> None:
        self.model, self.timing, self.use_cache = model, timing, use_cache
        width = max(map(len, rows))
        self.pad = [width - len(row) for row in rows]
        self.tokens = [[0] * pad + list(row) for pad, row in zip(self.pad, rows)]
        self.limit = model.config.n_positions
        self.room = min(room, self.limit)
        self.cache: KVCache | None = None

    def prefill(self) -> Any:
        """Read all tokens, or the last of them when they fill the context."""
        width = len(self.tokens[0])
        if width > self.limit:
            drop = width - max(1, self.limit // 2)
            self.tokens = [row[drop:] for row in self.tokens]
            self.pad = [max(0, pad - drop) for pad in self.pad]
        self.cache = None                               # before the next is made: memory for one, not for two
        if self.use_cache or any(self.pad):
            self.cache = KVCache(self.model.config, len(self.tokens), self.room if self.use_cache else len(self.tokens[0]),
                                 device=self.model.where["device"], dtype=self.model.where["dtype"], pad=self.pad)
            self.timing.kv_bytes = max(self.timing.kv_bytes, self.cache.nbytes)
        return self.model(self.tokens, cache=self.cache, last=True)

    def read(self, ids: Sequence[int] | None) -> Any:
        """The logits after `ids`, one more token for each row; None: after the prompt."""
        if ids is not None:
            for row, token in zip(self.tokens, ids):
                row.append(token)
        with mg.no_grad():
            if ids is None or not self.use_cache or self.cache is None or self.cache.length >= self.cache.size:
                self.room = self.limit if ids is not None else self.room
                logits = self.prefill()
            else:
                logits = self.model([[token] for token in ids], cache=self.cache, last=True)
        return logits.numpy()[:, -1]


def steps(
    model: PretrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    options: SamplingOptions | None = None,
    seed: int = 0,
    overflow: str = "error",
    use_cache: bool = True,
    logprobs: int = 0,
    vocab: int | None = None,
    timing: Timing | None = None,
) -> Iterator[Step]:
    """Yield `max_new_tokens` steps of one token for each prompt; the caller may stop at any time.

    prompts: rows of ids, at least one token each. overflow: "error" refuses what does not fit the context, "slide" reads
    the later half of the context again whenever it is full. vocab: ids from here on do not exist, as in an embedding that
    is padded. UsageError for bad values.
    """
    options = options or SamplingOptions()
    if overflow not in OVERFLOW:
        raise UsageError(f"overflow must be error or slide, not {overflow!r}")
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    if seed < 0:
        raise UsageError(f"the seed must be 0 or more, not {seed}")
    if not prompts or not all(len(row) for row in prompts):
        raise UsageError("the prompt is empty; at least one token is needed")
    longest, limit = max(map(len, prompts)), model.config.n_positions
    if overflow == "error" and longest > limit:
        raise UsageError(f"the prompt has {longest} tokens and the context holds {limit}; shorten it, or use --overflow slide")
    if overflow == "error" and longest + max_new_tokens - 1 > limit:
        raise UsageError(f"{longest} tokens of prompt and {max_new_tokens} new ones do not fit the context of {limit}; "
                         f"use --max-new-tokens {limit - longest + 1} or less, or --overflow slide")
    timing = timing or Timing()
    reader = _Reader(model, prompts, longest + max_new_tokens, use_cache, timing)
    draw, seen = np.random.Generator(np.random.PCG64(seed)), [list(row) for row in prompts]
    ids: list[int] | None = None
    for n in range(max_new_tokens):
        started = time.perf_counter()
        logits = reader.read(ids)[:, :vocab]
        top = [list(zip(i.tolist(), lp.tolist())) for i, lp in zip(*top_logprobs(logits, logprobs))] if logprobs else []
        ids = choose(logits, options, seen, draw.random(len(prompts))).tolist()
        for row, token in zip(seen, ids):
            row.append(token)
        if n == 0:
            timing.prefill += time.perf_counter() - started
        else:
            timing.decode += time.perf_counter() - started
            timing.passes += 1
        yield Step(ids, top)


def generate(
    model: PretrainedModel,
    ids: Any,
    *,
    max_new_tokens: int = 20,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    greedy: bool = False,
    seed: int = 0,
    eos_token_id: int | str | None = "config",
    overflow: str = "error",
    use_cache: bool = True,
) -> list[list[int]]:
    """Rows of ids with up to max_new_tokens more each; a row ends after its first eos_token_id.

    ids: [B, T], one row, or rows of different lengths. Greedy, or sampled with one draw a row and token from `seed`.
    eos_token_id: the configuration's unless given; None: no token ends a row.
    """
    rows = rows_of(ids)
    options = SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
                              greedy=greedy)
    eos = model.config.eos_token_id if eos_token_id == "config" else eos_token_id
    done = [False] * len(rows)
    out = [list(row) for row in rows]
    for step in steps(model, rows, max_new_tokens=max_new_tokens, options=options, seed=seed, overflow=overflow, use_cache=use_cache):
        for i, token in enumerate(step.ids):
            if not done[i]:
                out[i].append(token)
                done[i] = token == eos
        if all(done):
            break
    return out
