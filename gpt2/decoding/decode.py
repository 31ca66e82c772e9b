"""Generation: read the prompt into the KV cache, then choose and read one new token after another.

With prompt lookup, a pass reads the newest token and a few guesses at the tokens after it.
"""
from __future__ import annotations

import contextlib
import operator
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from reprlib import repr as brief
from typing import Any, Protocol

import numpy as np

import minigrad as mg
from minigrad.fused.packed_linear import FEW

from ..config import GPT2Config, as_int, ids_of
from ..errors import MissingError, UsageError
from .gpu_step import Choose, Stepper, chooser
from .kv_cache import KVCache
from .prompt_lookup import Lookup
from .sampling import BROKEN, SamplingOptions, choose, top_logprobs

OVERFLOW = ("error", "slide")
# How many tokens of prompts one pass reads: their activations take 10 MB, those of 8000 take 280.
GROUP = 1024
# From how many passes on another layout of the weights saves more time than it costs: of transposed
# weights for one row, and of weights in panels for a few rows.
LONG = 48
WORTH = 12


class LanguageModel(Protocol):
    """The part of a model that generation uses; GPT2 has all of it."""

    config: GPT2Config
    where: dict[str, Any]
    compute_dtype: str

    # returns logits [B, last, V]
    def __call__(self, ids: Any, *, cache: KVCache | None, last: int) -> mg.Tensor: ...

    def refuse_dropout(self, what: str) -> None: ...

    def lay_out(self) -> None: ...

    def packed(self) -> contextlib.AbstractContextManager[None]: ...


@dataclass
class Timing:
    """Seconds and counts of a generation.

    The time is that of the model and the sampler, without the time that the caller spends between
    two tokens. Only on a device that computes the next tokens meanwhile, the caller's time counts.

    prefill: seconds to the first token. decode: seconds for the `tokens` after it, sampling
    included. passes: passes through the model in that time. proposed: tokens that prompt lookup
    guessed. accepted: guesses that were right. kv_bytes: size of the KV cache.
    """

    prefill: float = 0.0
    decode: float = 0.0
    tokens: int = 0
    passes: int = 0
    proposed: int = 0
    accepted: int = 0
    kv_bytes: int = 0


@dataclass
class Step:
    """One new token for each row. top: each row's likeliest tokens with their log-probabilities."""

    ids: list[int]
    top: list[list[tuple[int, float]]] = field(default_factory=list)


class _Reader:
    """Passes the tokens to the model that it has not read yet.

    Rows of different lengths are padded at the left. When the context is full, its later half is
    read again from position 0: positions are absolute, so the keys of old positions cannot be
    used any longer   (cache.6).
    """

    def __init__(self, model: LanguageModel, rows: Sequence[Sequence[int]], room: int,
                 use_cache: bool, lookup: int, timing: Timing) -> None:
        self.model, self.timing, self.use_cache = model, timing, use_cache
        width = max(map(len, rows))
        self.pad = [width - len(row) for row in rows]
        self.tokens = [[0] * pad + list(row) for pad, row in zip(self.pad, rows)]
        self.room = min(room, model.config.n_positions)
        self.cache: KVCache | None = None
        # True if the backend has kernels for a step of one token for each row; the stepper runs it
        self.steps = use_cache and not lookup and Stepper.fits(model, len(rows))
        self.stepper: Stepper | None = None

    @property
    def free(self) -> int:
        """How many more tokens fit the context."""
        return self.room - len(self.tokens[0])

    @property
    def newest(self) -> list[int]:
        """The last token of each row, which is not read yet."""
        return [row[-1] for row in self.tokens]

    def step(self, choose: Choose | None = None) -> Stepper:
        """The stepper that reads all tokens from here on; the first call makes it."""
        if self.stepper is None:
            assert self.cache is not None
            self.stepper = Stepper(self.model, self.cache, choose)
        return self.stepper

    def push(self, ids: Sequence[int]) -> None:
        """Append one token to each row."""
        for row, token in zip(self.tokens, ids):
            row.append(token)

    def read(self, proposal: Sequence[int] = ()) -> np.ndarray:
        """Logits [B, 1 + k, V] after the tokens so far and after each of k proposed tokens."""
        if self.free < 0:
            self._slide()
        known = 0
        if self.cache is not None:
            known = len(self.tokens[0]) - 1
            self.cache.rewind(known)                    # forget proposals that were not accepted
        rows, last = [[*row[known:], *proposal] for row in self.tokens], 1 + len(proposal)
        if known and self.steps:
            return self.step().read(self.newest)[:, None]
        with mg.no_grad():
            return (self.model(rows, cache=self.cache, last=last).numpy() if known
                    else self._read_all(rows, last))

    def _read_all(self, rows: list[list[int]], last: int) -> np.ndarray:
        """Read whole rows, as many in a pass as GROUP allows; equal rows are read only once."""
        width, cache = len(rows[0]), None
        if self.use_cache or any(self.pad):
            cache = KVCache(self.model.config, len(rows), self.room if self.use_cache else width,
                            pad=self.pad, device=self.model.where["device"],
                            dtype=self.model.compute_dtype)
            self.timing.kv_bytes = max(self.timing.kv_bytes, cache.nbytes)
        same = not any(self.pad) and all(row == rows[0] for row in rows)
        each, read, logits = max(1, GROUP // width), rows[:1] if same else rows, []
        for i in range(0, len(read), each):
            part = None if cache is None else cache.rows(i, min(i + each, len(read)))
            logits.append(self.model(read[i:i + each], cache=part, last=last).numpy())
        if cache is not None:
            cache.advance(width)
            if same:
                cache.repeat()
        self.cache = cache if self.use_cache else None
        return np.concatenate(logits * len(rows) if same else logits)

    def _slide(self) -> None:
        """Drop the earlier half of the context."""
        drop = len(self.tokens[0]) - max(1, self.room // 2)
        self.tokens = [row[drop:] for row in self.tokens]
        self.pad = [max(0, pad - drop) for pad in self.pad]
        self.cache = self.stepper = None        # freed before the next cache is allocated


def _layout(model: LanguageModel, rows: int, passes: int
            ) -> contextlib.AbstractContextManager[None]:
    """Lay the weights out anew for `passes` passes over `rows` rows, if that saves time in all."""
    if rows == 1 and passes >= LONG:
        model.lay_out()
    return model.packed() if 1 < rows <= FEW and passes >= WORTH else contextlib.nullcontext()


def _ahead(reader: _Reader, n: int, options: SamplingOptions, vocab: int | None,
           draw: np.random.Generator, seen: list[list[int]]) -> Iterator[list[int]]:
    """The next n tokens for each row, chosen on the model's device.

    The device computes the next token without waiting until the host has read this one.
    """
    started, rows, timing = time.perf_counter(), len(seen), reader.timing
    # row 0 is not used: the token that the first step reads is chosen already
    uniforms = np.concatenate([np.zeros((1, rows)), draw.random((n, rows))])
    vocab = vocab or reader.model.config.vocab_size
    step = reader.step(chooser(reader.model, options, vocab, uniforms, seen))
    for batch in step.tokens(reader.newest, n):
        started, before = time.perf_counter(), started
        timing.decode += started - before
        for ids in batch:
            if min(ids) < 0:
                raise MissingError(BROKEN)
            reader.push(ids)
            for row, token in zip(seen, ids):
                row.append(token)
            timing.tokens += 1
            timing.passes += 1
            yield ids


def steps(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    options: SamplingOptions | None = None,
    seed: int = 0,
    overflow: str = "error",
    use_cache: bool = True,
    lookup: int = 0,
    logprobs: int = 0,
    vocab: int | None = None,
    timing: Timing | None = None,
) -> Iterator[Step]:
    """Yield `max_new_tokens` steps of one token for each prompt; the caller may stop at any time.

    prompts: rows of ids, at least one token each. overflow: with "error", a prompt and new tokens
    that do not fit the context raise an error; with "slide", the later half of the context is read
    again whenever the context is full. vocab: ids from this number on are never chosen; an
    embedding may be padded with them. UsageError for bad values, and for a model with active
    dropout.

    lookup: read up to so many guessed tokens in a pass, for one prompt only. The guesses are the
    tokens that followed the same tokens earlier. A guess is accepted if the model chooses that
    token there, with the random number of its own position (sampling.17). So the ids are those of
    lookup=0, greedy and sampled, unless two logits (or a random number and a border) are equal up
    to rounding: one product of several rows sums in another order than several products of one row.
    """
    model.refuse_dropout("generate")
    options = options or SamplingOptions()
    max_new_tokens = _whole("max_new_tokens", max_new_tokens)
    seed = _whole("the seed", seed)
    lookup = _whole("lookup", lookup)
    logprobs = _whole("logprobs", logprobs)
    if overflow not in OVERFLOW:
        raise UsageError(f"overflow must be error or slide, not {overflow!r}")
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    if seed < 0:
        raise UsageError(f"the seed must be 0 or more, not {seed}")
    if not prompts or not all(len(row) for row in prompts):
        raise UsageError("the prompt is empty; at least one token is needed")
    if lookup < 0:
        raise UsageError(f"lookup must be 0 or more, not {lookup}")
    if lookup and len(prompts) > 1:
        raise UsageError(f"lookup works for one row only, and there are {len(prompts)} rows; "
                         "leave out --lookup, or generate one row at a time")
    longest, limit = max(map(len, prompts)), model.config.n_positions
    if overflow == "error" and longest > limit:
        raise UsageError(f"the prompt has {longest} tokens and the context holds {limit}; "
                         "shorten the prompt, or use --overflow slide")
    if overflow == "error" and longest + max_new_tokens - 1 > limit:
        raise UsageError(f"{longest} tokens of prompt and {max_new_tokens} new ones do not fit "
                         f"the context of {limit}; use --max-new-tokens {limit - longest + 1} "
                         "or less, or --overflow slide")
    timing = timing or Timing()
    reader = _Reader(model, prompts, longest + max_new_tokens, use_cache, lookup, timing)
    draw = np.random.Generator(np.random.PCG64(seed))
    seen = [list(row) for row in prompts]
    guesses = Lookup(prompts[0]) if lookup else None
    proposal: list[int] = []
    made = 0
    with contextlib.ExitStack() as laid_out:
        while made < max_new_tokens:
            started = time.perf_counter()
            if made == 1 and use_cache:
                laid_out.enter_context(_layout(model, len(prompts) + lookup, max_new_tokens - 1))
            if made and reader.steps and not logprobs and reader.free >= 0:
                n = min(max_new_tokens - made, reader.free + 1)
                for ids in _ahead(reader, n, options, vocab, draw, seen):
                    made += 1
                    yield Step(ids)
                continue
            if guesses is not None and made:            # the first pass reads only the prompt
                proposal = guesses.propose(min(lookup, max_new_tokens - made - 1, reader.free))
                timing.proposed += len(proposal)
            logits = reader.read(proposal)[:, :, :vocab]
            timing.passes += made > 0
            for index, guess in enumerate([*proposal, None]):
                here = logits[:, index]
                top = _likeliest(here, logprobs) if logprobs else []
                ids = choose(here, options, seen, draw.random(len(prompts))).tolist()
                for row, token in zip(seen, ids):
                    row.append(token)
                reader.push(ids)
                if guesses is not None:
                    guesses.push(ids[0])
                accepted = ids[0] == guess
                timing.accepted += accepted
                if made == 0:
                    timing.prefill += time.perf_counter() - started
                else:
                    timing.decode += time.perf_counter() - started
                    timing.tokens += 1
                made += 1
                yield Step(ids, top)
                if not accepted:
                    break
                started = time.perf_counter()


def logits_of(model: LanguageModel, prompt: Sequence[int], new: Sequence[Sequence[int]], *,
              passes: int = 1, lookup: int = 0) -> np.ndarray:
    """Logits [B, n, V] before each of the new tokens [B, n] of one prompt, read as in `steps`.

    passes: after the first one, of the whole generation, for which the weights are laid out.
    """
    reader = _Reader(model, [prompt] * len(new), len(prompt) + len(new[0]), True, lookup, Timing())
    logits = [reader.read()[:, -1]]
    with _layout(model, len(new) + lookup, passes):
        for ids in list(zip(*new))[:-1]:
            reader.push(ids)
            logits.append(reader.read()[:, -1])
    return np.stack(logits, axis=1)


def _likeliest(logits: np.ndarray, n: int) -> list[list[tuple[int, float]]]:
    """The n likeliest ids of each row of logits [B, V], with their log-probabilities."""
    return [list(zip(ids.tolist(), logprobs.tolist()))
            for ids, logprobs in zip(*top_logprobs(logits, n))]


def generate(
    model: LanguageModel,
    ids: Any,
    *,
    max_new_tokens: int = 20,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    greedy: bool | None = None,
    seed: int | None = None,
    eos_token_id: int | Sequence[int] | str | None = "config",
    overflow: str = "error",
    use_cache: bool = True,
    lookup: int = 0,
) -> list[list[int]]:
    """The rows of ids with up to max_new_tokens new tokens each; a row ends after an eos_token_id.

    ids: [B, T], one row, or rows of different lengths. greedy=True chooses the most likely token.
    greedy=False, temperature (1.0), top_k, top_p, min_p or seed (0) samples, with one random
    number for each row and token. One of these must be given, because the defaults of other
    libraries differ: transformers is greedy, nanoGPT samples.

    eos_token_id: an id, or several, any of which ends a row; without it, the configuration's; with
    None, no token ends a row. NumPy's numbers are taken as Python's. Other options as in `steps`.
    UsageError for an eos_token_id outside the vocabulary, which no row could reach.
    """
    rows = rows_of(ids)
    options = SamplingOptions(temperature=1.0 if temperature is None else temperature,
                              top_k=top_k, top_p=top_p, min_p=min_p,
                              repetition_penalty=repetition_penalty,
                              greedy=False if greedy is None else greedy)
    given = not (isinstance(eos_token_id, str) and eos_token_id == "config")
    ends = ids_of(eos_token_id) if given else model.config.ends
    if given and (beyond := [i for i in sorted(ends) if not 0 <= i < model.config.vocab_size]):
        raise UsageError(f"eos_token_id {beyond[0]} is outside the vocabulary "
                         f"0 … {model.config.vocab_size - 1}")
    if all(one is None for one in (greedy, temperature, top_k, top_p, min_p, seed)):
        raise UsageError("generate: pass greedy=True to choose the likeliest token each time "
                         "(transformers' default), or temperature=1.0, top_k=, top_p=, min_p= or "
                         "seed= to sample (nanoGPT's default)")
    done = [False] * len(rows)
    out = [list(row) for row in rows]
    for step in steps(model, rows, max_new_tokens=max_new_tokens, options=options,
                      seed=0 if seed is None else seed, overflow=overflow,
                      use_cache=use_cache, lookup=lookup):
        for i, token in enumerate(step.ids):
            if not done[i]:
                out[i].append(token)
                done[i] = token in ends
        if all(done):
            break
    return out


def _whole(name: str, value: Any) -> int:
    if (number := as_int(value)) is None:
        raise UsageError(f"{name} must be a whole number, not {brief(value)}")
    return number


def rows_of(ids: Any) -> list[list[int]]:
    """ids as a list of rows of ints.

    ids: an array, a Tensor, one row, or rows of different lengths. UsageError for all else.
    """
    try:
        ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        rows = ids if ids and hasattr(ids[0], "__iter__") else [ids]
        return [list(map(operator.index, row)) for row in rows]
    except TypeError:
        raise UsageError(f"ids must be integers, in one row or in several; these are {brief(ids)}"
                         ) from None
