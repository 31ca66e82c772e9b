"""Generated text: whole characters as they come, stop strings, and why each sample ended."""
from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..config import ids_of
from .decode import LanguageModel, Step, Timing, steps
from .sampling import SamplingOptions

if TYPE_CHECKING:
    from ..data.tokenizer import Tokenizer


@dataclass
class Sample:
    """One continuation. finish_reason: "length", "stop" (a stop string), "eos" or "interrupted".

    text: without the prompt, the stop string and the end-of-text token. tokens: all tokens that
    were drawn, also those of the stop string and the end-of-text token.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    finish_reason: str = "length"
    logprobs: list[list[tuple[int, float]]] = field(default_factory=list)


class _Writer:
    """Turns one row's tokens into text; text that may begin a stop string is held back."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], eos: Any,
                 emit: Callable[[str], None]) -> None:
        self.sample, self.stream, self.stop, self.emit = Sample(), tokenizer.stream(), stop, emit
        self.ends = ids_of(eos)
        self.held, self.done = "", False

    def push(self, step: Step, row: int) -> None:
        if self.done:
            return
        token = step.ids[row]
        if step.top:
            self.sample.logprobs.append(step.top[row])
        self.sample.tokens.append(token)
        if token in self.ends:
            self.finish("eos")
            return
        self.write(self.stream.push(token))

    def write(self, piece: str) -> None:
        text = self.held + piece
        # The end and the start of the stop string that ends first, as if the characters came one by
        # one; of several that end at the same character, the longest.
        found = min(((at + len(s), at) for s in self.stop if (at := text.find(s)) >= 0),
                    default=None)
        if found:
            self.held, self.done, self.sample.finish_reason = "", True, "stop"
            self.out(text[:found[1]])
            return
        # how many characters at the end may begin a stop string
        keep = max((n for s in self.stop for n in range(1, len(s)) if text.endswith(s[:n])),
                   default=0)
        # `held` is set before `out` is called, which Ctrl-C may interrupt
        ready, self.held = text[:len(text) - keep], text[len(text) - keep:]
        self.out(ready)

    def out(self, text: str) -> None:
        if text:
            self.sample.text += text
            self.emit(text)

    def finish(self, reason: str) -> None:
        if not self.done:
            self.write(self.stream.flush())
        if not self.done:
            ready, self.held, self.done, self.sample.finish_reason = self.held, "", True, reason
            self.out(ready)


def continue_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    *,
    max_new_tokens: int,
    num_samples: int = 1,
    options: SamplingOptions | None = None,
    seed: int = 0,
    stop: Sequence[str] = (),
    overflow: str = "error",
    lookup: int = 0,
    logprobs: int = 0,
    timing: Timing | None = None,
    emit: Callable[[int, str], None] = lambda row, text: None,
) -> list[Sample]:
    """`num_samples` continuations of a prompt, generated as one batch.

    emit(row, text) is called with whole characters as they come. prompt: a text without special
    tokens, or ids; if the ids end inside a character, the samples begin with that character. A row
    ends at one of the model's end-of-text tokens, at the first complete `stop` string (of several
    that end at the same character, the longest), or after max_new_tokens. Ids that the tokenizer
    does not have are never drawn. On Ctrl-C the text so far is returned with finish_reason
    "interrupted".
    """
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    writers = [_Writer(tokenizer, stop, model.config.eos_token_id, functools.partial(emit, row))
               for row in range(num_samples)]
    for writer in writers if not isinstance(prompt, str) else []:
        for token in ids:
            writer.stream.push(token)
    reason: Any = "length"
    try:
        for step in steps(
            model,
            [ids] * num_samples,
            max_new_tokens=max_new_tokens,
            options=options,
            seed=seed,
            overflow=overflow,
            lookup=lookup,
            logprobs=logprobs,
            vocab=min(tokenizer.n_vocab, model.config.vocab_size),
            timing=timing,
        ):
            for row, writer in enumerate(writers):
                writer.push(step, row)
            if all(writer.done for writer in writers):
                break
    except KeyboardInterrupt:
        reason = "interrupted"
    for writer in writers:
        writer.finish(reason)
    return [writer.sample for writer in writers]
