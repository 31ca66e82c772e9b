"""Text out of tokens: whole characters, stop strings, and why a sample ended."""
from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_gpt2 import CONTEXT, scripted_model, tiny_model, tiny_tokenizer

import gpt2.train.__main__ as training
from gpt2.data.tokenizer import Tokenizer
from gpt2.decoding.decode import Step
from gpt2.decoding.sampling import SamplingOptions
from gpt2.decoding.streaming import _Writer, continue_text
from gpt2.errors import UsageError

PIECES = [b"ab", b"ba", b"aab", b"abab", b"bb", "é".encode(), b"\xc3", b"a\xc3", b"\xf0\x9f", b"\xa9b", b"a", b"b"]


@functools.cache
def coarse_tokenizer():
    """The pieces above and the bytes, as tokens: many ways to spell few texts, some cut inside a character."""
    return Tokenizer.from_merged("coarse", [piece for piece in PIECES if len(piece) > 1])


def ids_of(pieces):
    ranks = coarse_tokenizer().encoding._mergeable_ranks
    return [ranks[piece] for piece in pieces]


def written(ids, stop, eos=None):
    """A finished writer, what it emitted at each token, and what at the end."""
    emitted: list[str] = []
    writer = _Writer(coarse_tokenizer(), stop, eos, emitted.append)
    each = []
    for token in ids:
        writer.push(Step([token]), 0)
        each.append("".join(emitted))
        emitted.clear()
    writer.finish("length")
    return writer, each, "".join(emitted)


def cut(text, stop):
    """The text before the stop string that is complete first, read character by character; the longest of them if several."""
    for end in range(1, len(text) + 1):
        ending = [len(s) for s in stop if text[:end].endswith(s)]
        if ending:
            return text[:end - max(ending)], "stop"
    return text, "length"


streams = st.lists(st.sampled_from(PIECES), max_size=12)
stops = st.lists(st.text("abé\ufffd", min_size=1, max_size=4), max_size=3)


@given(streams, stops)
@example([b"abab"], ["abab", "ba"])                     # "ba" is complete before "abab" is, though it starts later
@example([b"a", b"b", b"ab"], ["abab", "ba"])
@example([b"ab", b"a"], ["ba", "aba"])                  # both end at one character
@example([b"ab", b"a"], ["abab"])                       # held back to the end
@example([b"a\xc3"], ["a\ufffd"])                       # complete only when half a character is given up
def test_text_is_cut_at_the_first_stop_string(pieces, stop):
    """Whatever tokens spell it, what is emitted is the text before the stop string that is complete first; all of it without one."""
    whole = b"".join(pieces).decode(errors="replace")
    writer, each, rest = written(ids_of(pieces), stop)
    assert ("".join(each) + rest, writer.sample.finish_reason) == cut(whole, stop)
    assert writer.sample.text == "".join(each) + rest


@given(streams, stops)
def test_no_more_is_held_back_than_needed(pieces, stop):
    """After each token, what is whole and not emitted could still become a stop string, or is none."""
    ids, stream, text, out = ids_of(pieces), coarse_tokenizer().stream(), "", ""
    _, each, _ = written(ids, stop)
    for token, emitted in zip(ids, each):
        text, out = text + stream.push(token), out + emitted
        if cut(text, stop)[1] == "stop":
            break
        held = text.removeprefix(out)
        assert text.startswith(out) and (not held or any(s.startswith(held) and s != held for s in stop))


@given(streams, stops, st.integers(0, 12))
def test_nothing_follows_the_end(pieces, stop, at):
    """Tokens after the end-of-text token or after a stop string change nothing: neither text nor tokens nor the reason."""
    eos = coarse_tokenizer().eot
    ids = ids_of(pieces)
    ids.insert(min(at, len(ids)), eos)
    writer, _, _ = written(ids, stop, eos)
    n = ids.index(eos)
    text, reason = cut(b"".join(pieces[:n]).decode(errors="replace"), stop)
    assert (writer.sample.text, writer.sample.finish_reason) == (text, "stop" if reason == "stop" else "eos")
    stream, so_far, last = coarse_tokenizer().stream(), "", n
    for i, token in enumerate(ids[:n]):
        so_far += stream.push(token)
        if cut(so_far, stop)[1] == "stop":
            last = i                                    # the token that completes a stop string
            break
    assert writer.sample.tokens == ids[:last + 1]


class Interrupting:
    """A model that Ctrl-C meets in its n-th pass."""

    def __init__(self, model, n):
        self.model, self.config, self.where, self.packed, self.left = model, model.config, model.where, model.packed, n
        self.compute_dtype, self.refuse_dropout = model.compute_dtype, model.refuse_dropout

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return self.model(*args, **kwargs)


def test_control_c_returns_what_there_is():
    """Ctrl-C ends all samples as they are, finish_reason "interrupted"; what was held back is in the text."""
    tokenizer = tiny_tokenizer()
    says = tokenizer.encode("lore and more")
    model = Interrupting(scripted_model(says), 5)
    for sample in continue_text(model, tokenizer, "\n", max_new_tokens=20, num_samples=2, stop=[tokenizer.decode(says[3:6])]):
        assert sample.tokens == says[:4] and sample.finish_reason == "interrupted"
        assert sample.text == tokenizer.decode(says[:4])


def test_control_c_while_emitting_repeats_nothing():
    """Ctrl-C that comes while text is on its way out neither loses nor repeats any of the text."""
    tokenizer = tiny_tokenizer()
    says = tokenizer.encode("lore and more")
    for at in range(1, len(says) + 1):
        out: list[str] = []

        def emit(row, text, out=out, at=at):
            out.append(text)
            if len(out) == at:
                raise KeyboardInterrupt

        [sample] = continue_text(scripted_model(says), tokenizer, "\n", max_new_tokens=len(says), emit=emit)
        assert "".join(out) == sample.text == tokenizer.decode(says[:at])


def test_every_sample_has_its_own_end():
    """With several samples each ends by itself; one that ended stays as it is while others go on."""
    tokenizer, model = tiny_tokenizer(), tiny_model()
    free = continue_text(model, tokenizer, "Once", max_new_tokens=30, num_samples=4, seed=3)
    assert len({tuple(sample.tokens) for sample in free}) == 4
    stop = tokenizer.decode([free[2].tokens[7]])
    for one, all_of_it in zip(continue_text(model, tokenizer, "Once", max_new_tokens=30, num_samples=4, seed=3, stop=[stop]), free):
        assert (one.text, one.finish_reason) == cut(all_of_it.text, [stop])
        assert one.tokens == all_of_it.tokens[:len(one.tokens)]


def test_generation_ends_when_every_sample_has():
    """No pass of the model is spent on samples that have ended."""
    tokenizer = tiny_tokenizer()
    says = [*tokenizer.encode("lore"), tokenizer.eot, *tokenizer.encode("more")]
    model = Interrupting(scripted_model(says), 1000)
    [sample] = continue_text(model, tokenizer, "\n", max_new_tokens=30)
    assert (sample.text, sample.finish_reason, sample.tokens) == ("lore", "eos", says[:says.index(tokenizer.eot) + 1])
    assert 1000 - model.left == len(sample.tokens)


def test_an_end_that_the_model_does_not_know_is_text():
    """eos_token_id is the model's: without one, <|endoftext|> is a token like any other."""
    tokenizer = tiny_tokenizer()
    says = [*tokenizer.encode("lore"), tokenizer.eot, *tokenizer.encode("more")]
    [sample] = continue_text(scripted_model(says, eos_token_id=None), tokenizer, "\n", max_new_tokens=len(says))
    assert (sample.text, sample.finish_reason) == ("lore<|endoftext|>more", "length")


def test_rows_of_padding_are_never_drawn():
    """Ids that the embedding has and the tokenizer has not are no tokens, however high their logits are."""
    tokenizer = tiny_tokenizer()
    says = [tokenizer.n_vocab + 3, 5, tokenizer.n_vocab]
    model = scripted_model(says, vocab_size=tokenizer.n_vocab + 8)
    assert model.generate([7], 3, greedy=True)[0][1:] == says
    for options in (SamplingOptions(greedy=True), SamplingOptions(temperature=5.0), SamplingOptions(top_k=1)):
        [sample] = continue_text(model, tokenizer, "\n", max_new_tokens=3, options=options, logprobs=2)
        assert max(sample.tokens) < tokenizer.n_vocab and sample.tokens[1] == 5
        assert all(token < tokenizer.n_vocab for place in sample.logprobs for token, _ in place)


def test_a_prompt_with_a_special_token_is_given_as_ids():
    """A text that holds <|endoftext|> could be meant in two ways, so that it is refused; the ids of either are taken."""
    tokenizer, model = tiny_tokenizer(), tiny_model(seed=1, eos_token_id=None)
    with pytest.raises(UsageError, match=r"the text holds <\|endoftext\|> at character 3; pass allow_special=True"):
        continue_text(model, tokenizer, "abc<|endoftext|>", max_new_tokens=1)
    made = [continue_text(model, tokenizer, tokenizer.encode("abc<|endoftext|>", allow_special=which), max_new_tokens=8)[0].tokens
            for which in (True, False)]
    assert made[0] != made[1]


@pytest.mark.parametrize("first", ["<|endoftext|>", "🤗", "O"])
def test_the_sample_of_a_training_run_starts_from_a_token(first):
    """The first token of the validation text is read as the token that it is, also <|endoftext|> and a part of a character."""
    tokenizer, model = tiny_tokenizer(), tiny_model(seed=1, eos_token_id=None)
    ids = np.array(tokenizer.encode(first, allow_special=True), np.uint16)
    [wanted] = continue_text(model, tokenizer, [int(ids[0])], max_new_tokens=CONTEXT - 1, seed=3)
    found = training.sample(model, SimpleNamespace(tokenizer=tokenizer, val=ids), 3)
    assert found == ("" if first == "🤗" else first) + wanted.text


def test_an_empty_prompt_is_refused():
    """There is nothing to continue after no token at all."""
    with pytest.raises(UsageError, match="the prompt is empty"):
        continue_text(tiny_model(), tiny_tokenizer(), "", max_new_tokens=1)
