"""Guessing ahead by lookup: what is proposed, and that nothing but the number of passes changes."""
from __future__ import annotations

import functools
from itertools import islice

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_gpt2 import CONTEXT, scripted_model, tiny_config, tiny_model, tiny_tokenizer

from gpt2.decoding.decode import Timing, steps
from gpt2.decoding.kv_cache import KVCache
from gpt2.decoding.prompt_lookup import LONGEST, Lookup
from gpt2.decoding.sampling import SamplingOptions
from gpt2.decoding.streaming import continue_text
from gpt2.errors import UsageError
from gpt2.model import GPT2
from minigrad import no_grad

EOT = tiny_tokenizer().eot
GREEDY = SamplingOptions(greedy=True)


@functools.cache
def exact(context=CONTEXT):
    """Random weights in float64, where no two logits are equal up to rounding."""
    return GPT2(tiny_config(initializer_range=0.3, n_positions=context), seed=1, dtype="float64").eval()


@functools.cache
def script(*says):
    """A model that says `says` over and over, wherever it is."""
    return scripted_model((says * CONTEXT)[:CONTEXT])


def run(model, prompt, n, **options):
    """The ids of n steps, and what they cost."""
    timing = Timing()
    found = list(steps(model, [prompt], max_new_tokens=n, timing=timing, **{"options": GREEDY, **options}))
    return [step.ids[0] for step in found], timing


# a few tokens, said again and again: runs that were there before
repetitive = st.builds(lambda unit, times, rest: (unit * times + rest)[:40],
                       st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(1, 12), st.lists(st.integers(0, 5), max_size=3))
how = st.builds(
    SamplingOptions,
    temperature=st.sampled_from([0.2, 1.0]),
    top_k=st.sampled_from([None, 3]),
    top_p=st.sampled_from([None, 0.8]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    greedy=st.booleans(),
)


# ── what is proposed ──
@given(st.lists(st.integers(0, 3), max_size=30), st.integers(0, 8))
@example([1, 2, 3, 9, 7, 2, 3, 8, 1, 2, 3], 2)          # the run of three was followed by 9, that of two by 8 since
@example([0, 1, 2, 3, 9, 7, 2, 3, 8, 1, 2, 3], 2)       # the same, and the run of three does not begin the text
def test_a_proposal_is_what_followed_last_time(tokens, n):
    """It copies from behind the latest earlier place with the longest common run of up to three tokens, itself included."""
    wanted = []
    for length in range(LONGEST, 0, -1):
        ends = [i for i in range(length, len(tokens)) if tokens[i - length:i] == tokens[len(tokens) - length:]]
        if ends:
            text = list(tokens)
            for i in range(n):
                text.append(text[ends[-1] + i])
            wanted = text[len(tokens):]
            break
    assert Lookup(tokens).propose(n) == wanted


@given(st.lists(st.integers(0, 99), min_size=1, max_size=5, unique=True), st.integers(0, 20))
def test_a_copy_may_run_into_itself(unit, n):
    """What was said twice is guessed to be said again and again, for as long as wanted."""
    assert Lookup(unit * 2).propose(n) == (unit * n)[:n]


def test_the_longest_run_decides():
    """Its last place, though a shorter run was seen later and went on otherwise."""
    assert LONGEST == 3 and Lookup([1, 2, 3, 50, 9, 2, 3, 60, 8, 1, 2, 3]).propose(1) == [50]
    assert Lookup([1, 2, 3, 50, 9, 2, 3, 60, 8, 7, 2, 3]).propose(1) == [60]


def test_what_was_never_seen_is_not_guessed():
    """A token that is new, or no token at all, proposes nothing; fewer than no tokens are none."""
    assert Lookup([]).propose(3) == Lookup([1, 2, 3]).propose(3) == Lookup([1, 1]).propose(-2) == []


# ── nothing changes but the number of passes ──
@given(repetitive, st.integers(1, 9), how, st.integers(1, 24), st.booleans())
def test_lookup_changes_no_token(prompt, lookup, options, n, use_cache):
    """Greedy and sampled, with penalty and filters, with the cache and without: the ids of a run are those without lookup."""
    plain, cost = run(exact(), prompt, n, options=options, seed=3)
    found, spent = run(exact(), prompt, n, options=options, seed=3, lookup=lookup, use_cache=use_cache)
    assert found == plain and len(found) == n
    assert spent.tokens == spent.passes + spent.accepted == n - 1 == cost.passes
    assert spent.accepted <= spent.proposed <= lookup * spent.passes


@pytest.mark.parametrize("options", [GREEDY, SamplingOptions(0.5), SamplingOptions(greedy=True, repetition_penalty=1.1),
                                     SamplingOptions(top_k=4, repetition_penalty=1.05), SamplingOptions(top_p=0.3)])
def test_guesses_come_true(options):
    """The same with what the model itself likes to repeat as prompt; several guesses are right, and as many passes saved."""
    saved = 0
    for seed in range(4):
        prompt, _ = run(exact(), [seed], CONTEXT - 25, options=options, seed=seed)
        plain, _ = run(exact(), prompt * 2, 25, options=options, seed=seed, overflow="slide")
        found, spent = run(exact(), prompt * 2, 25, options=options, seed=seed, overflow="slide", lookup=4)
        assert found == plain and spent.passes == 24 - spent.accepted
        saved += spent.accepted
    assert saved >= 3


@pytest.mark.parametrize("seed", range(6))
def test_float32_agrees_where_no_two_logits_tie(seed):
    """In float32 the greedy ids are the same as long as the best logit is farther from the next than rounding can move it."""
    model, prompt = tiny_model(seed=1), [seed, 7, seed, 7, seed]
    plain, _ = run(model, prompt, 40)
    found, spent = run(model, prompt, 40, lookup=5)
    logits = model([prompt + plain[:-1]]).numpy()[0, len(prompt) - 1:]
    second, best = np.sort(logits, axis=-1)[:, -2:].T
    # n = 4·32 terms of float32 in each sum, over 2 layers, and either of the two may move
    bound = 2 * 2 * 128 * np.finfo(np.float32).eps * np.abs(logits).max()
    clear = int(np.argmin([*(best - second > bound), False]))
    assert found[:clear] == plain[:clear] and clear >= 10 and spent.proposed > 0


@given(st.integers(2, 12), repetitive, st.integers(1, 9), st.booleans(), st.booleans())
def test_a_run_of_guesses_may_meet_the_end_of_the_context(context, prompt, lookup, greedy, use_cache):
    """With "slide", the context is read again after the same token as without lookup, and the ids are the same."""
    options = SamplingOptions(0.5, greedy=greedy)
    plain, _ = run(exact(context), prompt, 30, options=options, overflow="slide")
    assert run(exact(context), prompt, 30, options=options, overflow="slide", lookup=lookup, use_cache=use_cache)[0] == plain


@pytest.mark.parametrize("lookup", [1, 3, 8, 100])
@pytest.mark.parametrize("n", range(1, 14))
def test_guesses_that_are_all_right(n, lookup):
    """A model that says one token only makes n of them in 1 + ⌈(n − 1) / (lookup + 1)⌉ passes, and never one too many."""
    found, spent = run(script(5), [5], n, lookup=lookup)
    assert found == [5] * n
    assert spent.passes == -(-(n - 1) // (lookup + 1)) and spent.accepted == spent.proposed == n - 1 - spent.passes


def test_the_context_can_be_filled_by_guesses():
    """The last run of guesses ends with the context: every place is used, and none beyond."""
    for length in (1, CONTEXT - 3, CONTEXT):
        n = CONTEXT - length + 1
        found, spent = run(script(5), [5] * length, n, lookup=7)
        assert found == [5] * n and spent.passes == -(-(n - 1) // 8)


def test_guesses_that_are_all_wrong():
    """Where a token is never followed by the same one twice, guesses are made, none is kept, and a pass makes one token."""
    says = [token for i in range(20) for token in (7, 20 + i)]
    found, spent = run(script(*says), [7], 40, lookup=4)
    assert found == says and spent.proposed > 0 and (spent.accepted, spent.passes) == (0, 39)


def test_an_end_token_may_be_guessed():
    """A row ends after its first end token, also within a run of right guesses; what was read beyond it is not given out."""
    unit = (5, 6, EOT, 7)
    model = script(*unit)
    prompt = [*unit, *unit, 5]                          # the script goes on from place 8, which says 5 again
    free = model.generate(prompt, 12, greedy=True, eos_token_id=None)
    assert free == model.generate(prompt, 12, greedy=True, eos_token_id=None, lookup=8) == [prompt + list(unit * 3)]
    assert model.generate(prompt, 12, greedy=True, lookup=8) == [[*prompt, 5, 6, EOT]]
    [sample] = continue_text(model, tiny_tokenizer(), tiny_tokenizer().decode([5]), max_new_tokens=12, options=GREEDY, lookup=8)
    assert (sample.tokens, sample.finish_reason) == ([5, 6, EOT], "eos")


def test_steps_come_one_by_one():
    """Every token is a step of its own; a caller who stops within a run has what came before, and counts have been made for that."""
    timing = Timing()
    found = steps(script(5), [[5]], max_new_tokens=20, options=GREEDY, lookup=8, timing=timing)
    assert [step.ids for step in islice(found, 4)] == [[5]] * 4
    assert (timing.tokens, timing.passes, timing.accepted) == (3, 1, 3)


def test_logprobs_are_those_without_lookup():
    """The listed tokens of every step are the same, with log-probabilities apart by rounding alone."""
    prompt = [1, 2, 1, 2, 1, 2]
    plain, guessed = (list(steps(exact(), [prompt], max_new_tokens=20, options=GREEDY, logprobs=4, lookup=lookup)) for lookup in (0, 5))
    size = np.abs(exact()([prompt]).numpy()).max()
    for a, b in zip(plain, guessed):
        assert [i for i, _ in a.top[0]] == [i for i, _ in b.top[0]]
        # n = 4·32 terms of float64 in each sum, over 2 layers; logits of other places may be twice as large as the prompt's
        np.testing.assert_allclose([lp for _, lp in a.top[0]], [lp for _, lp in b.top[0]], rtol=0,
                                   atol=2 * 2 * 128 * np.finfo(np.float64).eps * size)


def test_a_cache_that_was_rewound_has_forgotten():
    """What is read after a rewind finds the cache as if what was rewound had never been read; a longer length forgets nothing."""
    model = exact()
    caches = [KVCache(model.config, 1, 20, **model.where) for _ in range(2)]
    with no_grad():
        for cache in caches:
            model([[1, 2, 3]], cache=cache)
        model([[4, 5, 6, 7]], cache=caches[0])
        caches[0].rewind(3)
        caches[0].rewind(9)
        assert caches[0].length == 3
        assert (model([[8, 9]], cache=caches[0]).numpy() == model([[8, 9]], cache=caches[1]).numpy()).all()


@pytest.mark.parametrize(("rows", "lookup", "message"), [
    ([[1]], -1, "lookup must be 0 or more, not -1"),
    ([[1], [2]], 3, "lookup works for one row only, and there are 2 rows; leave out --lookup, or generate one row at a time"),
])
def test_what_cannot_be_looked_up_is_refused(rows, lookup, message):
    """A negative number and several rows raise UsageError, which says so in one line."""
    with pytest.raises(UsageError, match=f"^{message}$"):
        exact().generate(rows, 3, greedy=True, lookup=lookup)
