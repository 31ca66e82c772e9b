"""From a prompt to more tokens: read it in pieces, then one token at a time, or a few guessed ones, through the KV cache."""
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
GROUP = 1024                                            # tokens of prompts read in one pass: 10 MB of activations, and not 280 for 8000
LONG = 48                                               # passes over one row after which weights laid out anew have paid for it
WORTH = 12                                              # passes over a few rows after which weights in panels have


class LanguageModel(Protocol):
    """What generation needs of a model; GPT2 has it."""

    config: GPT2Config
    where: dict[str, Any]
    compute_dtype: str

    def __call__(self, ids: Any, *, cache: KVCache | None, last: int) -> mg.Tensor: ...             # logits [B, last, V]

    def refuse_dropout(self, what: str) -> None: ...

    def lay_out(self, on: bool = True) -> None: ...

    def packed(self) -> contextlib.AbstractContextManager[None]: ...


@dataclass
class Timing:
    """What a run cost; the time of whoever takes the steps does not count, but where a device goes on computing meanwhile.

    prefill: seconds to the first token. decode: seconds of the `tokens` after it, drawing included, in `passes` through
    the model. proposed, accepted: tokens that lookup guessed, and those of them that came. kv_bytes: of the KV cache.
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
    """One new token for each row, and the most likely tokens of each row with their log-probabilities when asked for."""

    ids: list[int]
    top: list[list[tuple[int, float]]] = field(default_factory=list)


class _Reader:
    """Feeds the model what it has not read yet.

    Rows of different lengths are padded at the left. When the context is full, the later half of it is read again from
    position 0: positions are absolute, so keys of old positions cannot be kept   (cache.6).
    """

    def __init__(self, model: LanguageModel, rows: Sequence[Sequence[int]], room: int, use_cache: bool, lookup: int,
                 timing: Timing) -> None:
        self.model, self.timing, self.use_cache = model, timing, use_cache
        width = max(map(len, rows))
        self.pad = [width - len(row) for row in rows]
        self.tokens = [[0] * pad + list(row) for pad, row in zip(self.pad, rows)]
        self.room = min(room, model.config.n_positions)
        self.cache: KVCache | None = None
        self.stepper: Stepper | None = None             # reads one token for each row from here on, where there are kernels for it
        self.steps = use_cache and not lookup and Stepper.fits(model, len(rows))

    @property
    def free(self) -> int:
        """Places of the context that are left after the tokens so far."""
        return self.room - len(self.tokens[0])

    @property
    def newest(self) -> list[int]:
        """The last token of each row, which is not read yet."""
        return [row[-1] for row in self.tokens]

    def step(self, choose: Choose | None = None) -> Stepper:
        """The step of the model from here on."""
        if self.stepper is None:
            assert self.cache is not None
            self.stepper = Stepper(self.model, self.cache, choose)
        return self.stepper

    def push(self, ids: Sequence[int]) -> None:
        """One more token for each row."""
        for row, token in zip(self.tokens, ids):
            row.append(token)

    def read(self, proposal: Sequence[int] = ()) -> np.ndarray:
        """The logits [B, 1 + k, V] that follow the tokens so far, and those that follow each of k proposed tokens of one row."""
        if self.free < 0:
            self._slide()
        known = 0
        if self.cache is not None:
            known = len(self.tokens[0]) - 1
            self.cache.rewind(known)                    # proposals that were not accepted
        rows, last = [[*row[known:], *proposal] for row in self.tokens], 1 + len(proposal)
        if known and self.steps:
            return self.step().read(self.newest)[:, None]
        with mg.no_grad():
            return self.model(rows, cache=self.cache, last=last).numpy() if known else self._read_all(rows, last)

    def _read_all(self, rows: list[list[int]], last: int) -> np.ndarray:
        """Read whole rows, as many in a pass as GROUP allows, and only once where all are the same."""
        width, cache = len(rows[0]), None
        if self.use_cache or any(self.pad):
            cache = KVCache(self.model.config, len(rows), self.room if self.use_cache else width, pad=self.pad,
                            device=self.model.where["device"], dtype=self.model.compute_dtype)
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
        drop = len(self.tokens[0]) - max(1, self.room // 2)
        self.tokens = [row[drop:] for row in self.tokens]
        self.pad = [max(0, pad - drop) for pad in self.pad]
        self.cache = self.stepper = None                # before the next is made: memory for one, not for two


def _layout(model: LanguageModel, rows: int, passes: int) -> contextlib.AbstractContextManager[None]:
    """The weights in the layout that so many passes over so many rows read fastest, where they are enough for it to pay."""
    if rows == 1 and passes >= LONG:
        model.lay_out()
    return model.packed() if 1 < rows <= FEW and passes >= WORTH else contextlib.nullcontext()


def _ahead(reader: _Reader, n: int, options: SamplingOptions, vocab: int | None, draw: np.random.Generator,
           seen: list[list[int]]) -> Iterator[list[int]]:
    """The next n tokens for each row, chosen where the model is: nobody waits for one before the next is computed."""
    started, rows, timing = time.perf_counter(), len(seen), reader.timing
    uniforms = np.concatenate([np.zeros((1, rows)), draw.random((n, rows))])           # draw 0 was that of the token to be read
    step = reader.step(chooser(reader.model, options, vocab or reader.model.config.vocab_size, uniforms, seen))
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

    prompts: rows of ids, at least one token each. overflow: "error" refuses what does not fit the context, "slide" reads
    the later half of the context again whenever it is full. vocab: ids from here on do not exist, as in an embedding that
    is padded. UsageError for bad values, and for a model whose dropout would draw.

    lookup: read up to so many tokens ahead, those that followed the same tokens before, for one prompt only. A guess is kept
    where it is what the model chooses there, with that token's own draw (sampling.17); so the ids are those of lookup=0, greedy and
    sampled, unless two logits (or a draw and a border) are equal up to rounding: one product of several rows adds up in another order
    than several products of one row.
    """
    model.refuse_dropout("generate")
    options = options or SamplingOptions()
    max_new_tokens, seed, lookup, logprobs = (
        _whole(name, value) for name, value in (("max_new_tokens", max_new_tokens), ("the seed", seed), ("lookup", lookup),
                                                ("logprobs", logprobs)))
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
        raise UsageError(f"lookup guesses for one row, and these are {len(prompts)}; leave out --lookup, or ask for one row at a time")
    longest, limit = max(map(len, prompts)), model.config.n_positions
    if overflow == "error" and longest > limit:
        raise UsageError(f"the prompt has {longest} tokens and the context holds {limit}; shorten it, or use --overflow slide")
    if overflow == "error" and longest + max_new_tokens - 1 > limit:
        raise UsageError(f"{longest} tokens of prompt and {max_new_tokens} new ones do not fit the context of {limit}; "
                         f"use --max-new-tokens {limit - longest + 1} or less, or --overflow slide")
    timing = timing or Timing()
    reader = _Reader(model, prompts, longest + max_new_tokens, use_cache, lookup, timing)
    draw, seen = np.random.Generator(np.random.PCG64(seed)), [list(row) for row in prompts]
    guesses = Lookup(prompts[0]) if lookup else None
    proposal: list[int] = []
    made = 0
    with contextlib.ExitStack() as laid_out:
        while made < max_new_tokens:
            started = time.perf_counter()
            if made == 1 and use_cache:
                laid_out.enter_context(_layout(model, len(prompts) + lookup, max_new_tokens - 1))
            if made and reader.steps and not logprobs and reader.free >= 0:
                for ids in _ahead(reader, min(max_new_tokens - made, reader.free + 1), options, vocab, draw, seen):
                    made += 1
                    yield Step(ids)
                continue
            if guesses is not None and made:                # the first pass reads the prompt and nothing else
                proposal = guesses.propose(min(lookup, max_new_tokens - made - 1, reader.free))
                timing.proposed += len(proposal)
            logits = reader.read(proposal)[:, :, :vocab]
            timing.passes += made > 0
            for place, guess in enumerate([*proposal, None]):
                here = logits[:, place]
                top = [list(zip(i.tolist(), lp.tolist())) for i, lp in zip(*top_logprobs(here, logprobs))] if logprobs else []
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
    """Rows of ids with up to max_new_tokens more each; a row ends after the first eos_token_id in it.

    ids: [B, T], one row, or rows of different lengths. Which of the two is meant has to be said, for transformers' default is the first and
    nanoGPT's the second: greedy=True, or sampled, with one draw a row and token from `seed` (0), where greedy=False, temperature (1.0),
    top_k, top_p, min_p or seed is given.
    eos_token_id: an id, or several, any of which ends a row; the configuration's unless given; None: no token does. NumPy's numbers are
    taken as Python's. Other options as in `steps`. UsageError for an id outside the vocabulary: no row would ever end.
    """
    rows = rows_of(ids)
    options = SamplingOptions(temperature=1.0 if temperature is None else temperature, top_k=top_k, top_p=top_p, min_p=min_p,
                              repetition_penalty=repetition_penalty, greedy=False if greedy is None else greedy)
    given = not (isinstance(eos_token_id, str) and eos_token_id == "config")
    ends = ids_of(eos_token_id) if given else model.config.ends
    if given and (beyond := [i for i in sorted(ends) if not 0 <= i < model.config.vocab_size]):
        raise UsageError(f"eos_token_id {beyond[0]} is outside the vocabulary 0 … {model.config.vocab_size - 1}")
    if all(one is None for one in (greedy, temperature, top_k, top_p, min_p, seed)):
        raise UsageError("generate: say greedy=True for the likeliest token each time (transformers' default), or temperature=1.0, top_k=, "
                         "top_p=, min_p= or seed= for tokens drawn at random (nanoGPT's)")
    done = [False] * len(rows)
    out = [list(row) for row in rows]
    for step in steps(model, rows, max_new_tokens=max_new_tokens, options=options, seed=0 if seed is None else seed, overflow=overflow,
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
    """ids as a list of rows of ints: from an array, a Tensor, a row, or rows of different lengths. UsageError for all else."""
    try:
        ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        return [list(map(operator.index, row)) for row in (ids if ids and hasattr(ids[0], "__iter__") else [ids])]
    except TypeError:
        raise UsageError(f"ids must be integers, in one row or in several; these are {brief(ids)}") from None
