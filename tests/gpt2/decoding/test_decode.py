"""From a prompt to more tokens: with and without the cache, alone and in a batch, and over the end of the context."""
from __future__ import annotations

import functools
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_gpt2 import CONTEXT, tiny_config, tiny_model

import minigrad as mg
from gpt2.decoding import decode
from gpt2.decoding.decode import Timing, steps
from gpt2.decoding.kv_cache import KVCache
from gpt2.decoding.sampling import SamplingOptions, choose, log_softmax, top_logprobs
from gpt2.errors import MissingError, UsageError
from gpt2.functions import Packed
from gpt2.model import GPT2
from minigrad.fused.packed_linear import FEW


@functools.cache
def model(**fields):
    return tiny_model(seed=1, **fields)


@functools.cache
def exact(**fields):
    """The same in float64, where no two logits are equal up to rounding."""
    return GPT2(tiny_config(initializer_range=0.3, **fields), seed=1, dtype="float64").eval()


def prompt(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, n).tolist()


def naive(model, ids, n, overflow_keeps=None):
    """n greedy tokens, each from a pass over all tokens before it; past the context, over its later half and what followed."""
    ids, context = list(ids), list(ids)
    limit = model.config.n_positions
    for _ in range(n):
        if len(context) > limit:
            context = context[-max(1, limit // 2):]
        token = int(model([context]).numpy()[0, -1].argmax())
        ids.append(token)
        context.append(token)
    return ids


@pytest.mark.parametrize("options", [{"greedy": True}, {"seed": 5}, {"seed": 5, "temperature": 2.0, "repetition_penalty": 1.3}])
def test_the_cache_changes_nothing(options):
    """With the cache and without it the same tokens come, greedy and sampled."""
    ids = prompt(5)
    assert model().generate(ids, 40, use_cache=True, **options) == model().generate(ids, 40, use_cache=False, **options)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.booleans())
def test_a_row_of_a_ragged_batch_equals_its_single_run(lengths, use_cache):
    """Rows of any lengths, continued together, are what each is continued alone."""
    rows = [prompt(n, seed=i) for i, n in enumerate(lengths)]
    together = model().generate(rows, 8, greedy=True, use_cache=use_cache)
    assert together == [model().generate(row, 8, greedy=True)[0] for row in rows]


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(("context", "length", "n"), [
    (8, 3, 30), (8, 8, 10), (8, 9, 10), (8, 40, 10), (7, 3, 30), (2, 1, 9), (1, 1, 5), (1, 3, 5),
])
def test_sliding_reads_the_later_half_again(context, length, n, use_cache):
    """With "slide", a full context is read again from its later half on, from position 0, as often as needed."""
    small = model(n_positions=context)
    ids = prompt(length)
    assert small.generate(ids, n, greedy=True, overflow="slide", use_cache=use_cache) == [naive(small, ids, n)]


def test_a_ragged_batch_slides_as_one():
    """When the longest row fills the context, every row keeps what it has in the later half of the places."""
    small = model(n_positions=8)
    rows = [prompt(1, seed=1), prompt(4, seed=2), prompt(7, seed=3)]
    ids, kept = [list(row) for row in rows], [list(row) for row in rows]
    width = 7
    for _ in range(12):
        if width > 8:
            first = width - 4                           # places are counted from the left of the longest row
            kept = [row[max(0, first - (width - len(row))):] for row in kept]
            width = 4
        for i, row in enumerate(kept):
            token = int(small([row]).numpy()[0, -1].argmax())
            row.append(token)
            ids[i].append(token)
        width += 1
    for use_cache in (True, False):
        assert small.generate(rows, 12, greedy=True, overflow="slide", use_cache=use_cache, eos_token_id=None) == ids


class Watched:
    """A model that notes the rows and tokens of each pass."""

    def __init__(self, model):
        self.model, self.config, self.where, self.compute_dtype, self.read = model, model.config, model.where, model.compute_dtype, []
        self.refuse_dropout = model.refuse_dropout

    def __call__(self, ids, **options):
        self.read.append((len(ids), len(ids[0])))
        return self.model(ids, **options)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(1, 60), st.booleans(), st.sampled_from(["error", "slide"]))
def test_prompts_may_be_read_in_groups(lengths, group, use_cache, overflow):
    """However few tokens are read in a pass, rows go on as if all were read in one; a pass reads more only of a single row."""
    rows, watched = [prompt(n, seed=i) for i, n in enumerate(lengths)], Watched(exact(n_positions=24))
    options = {"max_new_tokens": 5 if overflow == "error" else 12, "options": SamplingOptions(greedy=True)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "GROUP", group)
        found = list(steps(watched, rows, use_cache=use_cache, overflow=overflow, **options))
    assert [step.ids for step in found] == [step.ids for step in steps(exact(n_positions=24), rows, overflow=overflow, **options)]
    assert all(n * tokens <= group or n == 1 or (use_cache and tokens == 1) for n, tokens in watched.read)


@pytest.mark.parametrize("use_cache", [True, False])
def test_samples_of_one_prompt_read_it_once(use_cache):
    """Rows that are all the same are read as one, and yet go on each in its own way, as they do when each is read."""
    rows, watched = [prompt(5)] * 3, Watched(exact())
    found = [step.ids for step in steps(watched, rows, max_new_tokens=12, seed=4, use_cache=use_cache)]
    assert watched.read[0] == (1, 5) and watched.read[1] == ((3, 1) if use_cache else (3, 6))
    draws = np.random.Generator(np.random.PCG64(4))
    for n, ids in enumerate(found):
        so_far = [row + [step[i] for step in found[:n]] for i, row in enumerate(rows)]
        assert choose(exact()(so_far).numpy()[:, -1], SamplingOptions(), so_far, draws.random(3)).tolist() == ids


def test_rows_of_a_cache():
    """Each has its padding, and one without any needs no mask; what the first row has read all rows have after `repeat`, to the bit."""
    for pad in (None, [0, 0, 0]):
        cache = KVCache(tiny_config(), 3, 4, pad=pad)
        assert cache.padded == [0, 0, 0] and cache.pad is None and cache.layout(3, 2)[1] is None
        assert cache.rows(0, 2).padded == [0, 0] and cache.rows(0, 2).pad is None
    padded = KVCache(tiny_config(), 3, 4, pad=[2, 0, 1])
    alone = [padded.rows(i, i + 1) for i in range(3)]
    assert [(row.padded, row.pad is None) for row in alone] == [([2], False), ([0], True), ([1], False)]
    assert padded.rows(1, 3).pad.tolist() == [[0], [1]]
    cache.keys[:], cache.values[:] = np.random.default_rng(0).standard_normal((2, *cache.keys.shape))
    before = cache.keys.copy(), cache.values.copy()
    cache.advance(2)
    cache.repeat()
    for stored, was in zip((cache.keys, cache.values), before):
        assert (stored[..., :2, :] == was[:, :1, :, :2]).all() and (stored[..., 2:, :] == was[..., 2:, :]).all()


def test_padding_does_not_make_rows_the_same():
    """A row of one token is not the row that has what stands for padding before that token."""
    rows = [[5], [0, 5]]
    assert model().generate(rows, 8, greedy=True) == [model().generate(row, 8, greedy=True)[0] for row in rows]


def test_the_context_can_be_filled_to_the_last_place():
    """With "error", a prompt and new tokens fit if the last new token, which is not read, is the only one outside; one more does not."""
    for length in (1, CONTEXT - 3, CONTEXT):
        fits = CONTEXT - length + 1
        assert len(model().generate(prompt(length), fits, greedy=True)[0]) == CONTEXT + 1
        with pytest.raises(UsageError, match=f"do not fit the context of {CONTEXT}; use --max-new-tokens {fits} or less, or --overflow"):
            model().generate(prompt(length), fits + 1, greedy=True)
    with pytest.raises(UsageError, match=f"the prompt has {CONTEXT + 1} tokens and the context holds {CONTEXT}; .* --overflow slide"):
        model().generate(prompt(CONTEXT + 1), 1, greedy=True)


def test_the_cache_is_no_larger_than_the_run():
    """The KV cache takes 2·L·d numbers for each token of prompt and continuation, and no more than for a full context."""
    each = 2 * 2 * 32 * 4
    for length, n, room in ((3, 5, 8), (CONTEXT - 1, 2, CONTEXT)):
        timing = Timing()
        list(steps(model(), [prompt(length)], max_new_tokens=n, timing=timing))
        assert timing.kv_bytes == each * room
        assert timing.passes == timing.tokens == n - 1 and timing.prefill > 0 and timing.decode > 0
        assert timing.proposed == timing.accepted == 0


def test_the_largest_cache_of_a_run_is_told():
    """Without a cache that is kept, one is made for each pass over padded rows; the last ones are smaller when the context has slid."""
    timing = Timing()
    list(steps(model(), [prompt(CONTEXT - 1), prompt(2)], max_new_tokens=4, overflow="slide", use_cache=False, timing=timing))
    assert timing.kv_bytes == 2 * 2 * 2 * 32 * 4 * CONTEXT


def test_what_a_run_measures_is_no_more_than_it_took():
    """Prefill and decoding together, without what the caller does between two tokens."""
    timing, started = Timing(), time.perf_counter()
    for _ in steps(model(), [prompt(3)], max_new_tokens=6, timing=timing):
        time.sleep(0.01)
    assert 0.0 < timing.prefill and 0.0 < timing.decode and timing.prefill + timing.decode < time.perf_counter() - started - 0.05


def test_no_prompt_and_dropout_are_refused():
    """Before anything is computed, with the reason."""
    for prompts in ([], [[]], [prompt(3), []]):
        with pytest.raises(UsageError, match="the prompt is empty"):
            next(steps(model(), prompts, max_new_tokens=1))
    with pytest.raises(UsageError, match="training mode"):
        next(steps(tiny_model().train(), [prompt(3)], max_new_tokens=1))


def test_the_seed_decides():
    """Same seed, same tokens; other seeds, others; the caller may stop at any time without an effect on what came before."""
    runs = [model().generate(prompt(4), 20, seed=seed)[0] for seed in (0, 0, 1, 2**40)]
    assert runs[0] == runs[1] and len({tuple(run) for run in runs}) == 3
    assert model().generate(prompt(4), 7, seed=0)[0] == runs[0][:11]


def test_all_that_was_there_is_penalised():
    """The repetition penalty counts prompt and continuation: when it is huge, no token comes twice."""
    [row] = model().generate(prompt(4), CONTEXT - 4, greedy=True, repetition_penalty=1e9, eos_token_id=None)
    assert len(set(row)) == CONTEXT
    assert len(set(naive(model(), prompt(4), CONTEXT - 4))) < CONTEXT


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3}, {"lookup": 2, "use_cache": True}, {"temperature": None}], ids=str)
def test_greedy_or_sampled_has_to_be_said(options):
    """transformers' default is greedy and nanoGPT's samples, so that a call that says neither is refused, in words that can be typed."""
    with pytest.raises(UsageError, match=r"^generate: pass greedy=True .*transformers.*, or temperature=1\.0, top_k=.*nanoGPT") as error:
        model().generate(prompt(4), 7, **options)
    assert "\n" not in str(error.value)
    assert model().generate(prompt(4), 7, greedy=True, **options)


def test_any_argument_of_sampling_means_sampling():
    """Each of them alone says it, with the others' values as they were: temperature 1, seed 0, no filter."""
    [wanted] = {tuple(model().generate(prompt(4), 20, **options)[0]) for options in (
        {"temperature": 1.0}, {"seed": 0}, {"greedy": False}, {"top_k": model().config.vocab_size}, {"top_p": 1.0}, {"min_p": 0.0})}
    assert list(wanted[4:]) == [step.ids[0] for step in steps(model(), [prompt(4)], max_new_tokens=20, seed=0)]
    assert list(wanted) != model().generate(prompt(4), 20, greedy=True)[0]


def test_rows_of_one_prompt_differ():
    """Each row is drawn with numbers of its own."""
    assert len({tuple(row) for row in model().generate([prompt(4)] * 5, 20, seed=0)}) == 5


def test_temperature_zero_is_greedy():
    """temperature=0, greedy=True, top_k=1 and a tiny top_p all give the likeliest token every time."""
    expected = [naive(model(), prompt(4), 20)]
    for options in ({"temperature": 0.0}, {"greedy": True}, {"greedy": True, "temperature": 3.0}, {"top_k": 1}, {"top_p": 1e-9},
                    {"min_p": 1.0}):
        assert model().generate(prompt(4), 20, seed=9, **options) == expected, options


def test_a_row_ends_after_its_end_token():
    """generate(eos_token_id=) keeps a row up to its first end token, and goes on with the others."""
    rows = model().generate([prompt(4)] * 3, 20, seed=0)
    eos = rows[1][9]
    ended = model().generate([prompt(4)] * 3, 20, seed=0, eos_token_id=eos)
    for whole, row in zip(rows, ended):
        n = whole.index(eos, 4) + 1 if eos in whole[4:] else len(whole)
        assert row == whole[:n]
    assert len(ended[1]) <= 10


def test_the_configuration_says_which_token_ends_a_row():
    """Without eos_token_id it is the configuration's; None lets a row go on to the full number of tokens."""
    free = model().generate(prompt(4), 20, seed=0, eos_token_id=None)[0]
    eos = free[9]
    ending = model(eos_token_id=eos)
    assert ending.generate(prompt(4), 20, seed=0) == [free[:free.index(eos, 4) + 1]]
    assert ending.generate(prompt(4), 20, seed=0, eos_token_id=None) == [free]


def test_rows_may_be_given_in_many_forms():
    """One row, rows, an array and a Tensor are all taken."""
    import minigrad as mg

    ids = prompt(4)
    for form in ([ids], np.array([ids]), np.array(ids), mg.tensor([ids]), (ids,), iter([ids])):
        assert model().generate(form, 3, greedy=True) == model().generate(ids, 3, greedy=True)


def test_logprobs_are_the_models_own():
    """The log-probabilities of a step are those of the model's logits, before temperature and filters."""
    options = SamplingOptions(temperature=0.3, top_k=2)
    ids = prompt(4)
    for step in steps(model(), [ids], max_new_tokens=5, options=options, logprobs=3):
        logits = model()([ids]).numpy()[:, -1]
        wanted_ids, wanted = top_logprobs(logits, 3)
        got_ids, got = zip(*step.top[0])
        assert list(got_ids) == wanted_ids[0].tolist()
        # a pass with the cache adds up in another order than a pass without: n = 4·32 terms of float32, over 2 layers
        np.testing.assert_allclose(got, wanted[0], rtol=0, atol=2 * 128 * np.finfo(np.float32).eps * np.abs(logits).max())
        ids = ids + step.ids
    assert np.isclose(np.exp(log_softmax(logits)).sum(), 1.0)


def test_a_vocabulary_may_be_smaller_than_the_embedding():
    """Ids from `vocab` on are neither drawn nor listed, and the others share all of the probability."""
    for step in steps(model(), [prompt(4)] * 8, max_new_tokens=20, options=SamplingOptions(temperature=50.0), vocab=50, logprobs=60):
        assert max(step.ids) < 50
        assert all(len(row) == 50 and abs(sum(np.exp(lp) for _, lp in row) - 1.0) < 50 * np.finfo(float).eps for row in step.top)


@pytest.mark.parametrize(("rows", "options", "message"), [
    ([[1, 2]], {"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
    ([[1, 2]], {"overflow": "wrap"}, "overflow must be error or slide, not 'wrap'"),
    ([[1, 2]], {"seed": -1}, "the seed must be 0 or more, not -1"),
    ([[1, 2]], {"temperature": -0.5}, "--temperature must be"),
    ([[1, 2]], {"temperature": float("nan")}, "--temperature must be"),
    ([[1, 2]], {"temperature": float("inf")}, "--temperature must be"),
    ([[1, 2]], {"top_p": 0.0}, "--top-p must be"),
    ([[1, 2]], {"top_p": 1.5}, "--top-p must be"),
    ([[1, 2]], {"top_k": 0}, "--top-k must be"),
    ([], {}, "the prompt is empty"),
    ([[]], {}, "the prompt is empty"),
    ([[1], []], {}, "the prompt is empty"),
    ([[1, 300]], {}, "id 300 is outside the vocabulary 0 … 299"),
    ([[-1, 2]], {}, "id -1 is outside the vocabulary 0 … 299"),
])
def test_bad_values_are_refused(rows, options, message):
    """A value that cannot be honoured raises UsageError, which names it, before a token is drawn."""
    with pytest.raises(UsageError, match=message) as error:
        model().generate(rows, **{"max_new_tokens": 3, "greedy": True, **options})
    assert "\n" not in str(error.value) and isinstance(error.value, ValueError)


@pytest.mark.parametrize("options", [{"greedy": True}, {"temperature": 1.0}])
def test_nan_is_never_sampled(options):
    """Logits of NaN end the run; no token is made up from them."""
    broken = tiny_model(seed=1)
    weight = broken.wte.weight.numpy().copy()
    weight[7, 3] = np.nan
    broken.wte.weight.assign(weight)
    with pytest.raises(MissingError, match="NaN"):
        broken.generate([1, 2], 3, **options)


def test_no_gradient_is_recorded():
    """Decoding keeps no graph: parameters that want gradients cost nothing."""
    asked = []

    class Watched:
        config, where, compute_dtype = tiny_config(), {"device": "numpy", "dtype": "float32"}, "float32"
        refuse_dropout = model().refuse_dropout

        def __call__(self, *args, **kwargs):
            logits = model()(*args, **kwargs)
            asked.append(logits.requires_grad)
            return logits

    list(steps(Watched(), [[1, 2]], max_new_tokens=3))
    assert asked == [False] * 3 and next(iter(model().parameters())).requires_grad


@pytest.mark.parametrize("n, options, laid", [(decode.LONG, {}, False), (decode.LONG + 1, {}, True),
                                              (decode.LONG + 1, {"use_cache": False}, False), (decode.LONG + 1, {"lookup": 3}, False)])
def test_a_long_run_over_one_row_lays_its_weights_out(n, options, laid):
    """One row, enough tokens and a cache: tall matrices are laid out after the first token; the ids are those without."""
    config = tiny_config(initializer_range=0.3, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)         # with dropout train() is refused
    one, other = (GPT2(config, seed=1, dtype="float64").eval() for _ in range(2))
    other.lay_out = lambda on=True: None
    for first, second in zip(steps(one, [prompt(4)], max_new_tokens=n, **options), steps(other, [prompt(4)], max_new_tokens=n, **options)):
        assert first.ids == second.ids
    assert one.wte.weight.array.flags.c_contiguous != laid
    one.train()
    assert len(list(steps(one, [prompt(4)], max_new_tokens=n))) == n
    assert one.wte.weight.array.flags.c_contiguous


PACKED = decode.WORTH


@pytest.mark.parametrize("rows, passes, options, packed", [
    (2, PACKED, {}, True), (2, PACKED - 1, {}, False), (FEW, PACKED, {}, True), (FEW + 1, PACKED, {}, False),
    (1, PACKED, {}, False), (1, PACKED, {"lookup": 1}, True), (1, PACKED, {"lookup": FEW}, False),
    (3, PACKED, {"use_cache": False}, False),
])
def test_a_run_over_a_few_rows_packs_its_weights(rows, passes, options, packed, monkeypatch):
    """Two to FEW rows, or guesses, and passes enough: products with panels after the first token, the same ids, and no panels after it."""
    asked, kernel = [], mg.backend.cpu.kernels["packed_linear"]
    monkeypatch.setitem(mg.backend.cpu.kernels, "packed_linear", lambda xp, x, *a, **k: asked.append(x.shape) or kernel(xp, x, *a, **k))
    model = GPT2(tiny_config(initializer_range=0.3), seed=1, dtype="float64").eval()
    prompts = [prompt(4, seed=i)[i % 2:] for i in range(rows)]         # some of them shorter
    run = steps(model, prompts, max_new_tokens=passes + 1, **options)
    first = next(run)
    assert not asked
    ids = [first.ids, *(step.ids for step in run)]
    monkeypatch.setattr(decode, "WORTH", 10**9)
    assert ids == [step.ids for step in steps(model, prompts, max_new_tokens=passes + 1, **options)]
    assert bool(asked) == packed and model.panels is None and model.h[0].attn.c_attn.F is mg.nn.functional
    if packed and not options:
        products = 4 * model.config.n_layer + 1
        assert asked == asked[:products] * passes and asked[0] == (rows, 1, model.config.n_embd)


def test_panels_go_when_a_run_is_given_up():
    """A run that its caller ends early leaves no panels behind; during it, a long row is multiplied with the weights themselves."""
    model = GPT2(tiny_config(), seed=1, dtype="float64").eval()
    module, ids = model.h[0].attn.c_attn, [prompt(6, seed=i) for i in range(6)]
    plain = module.F
    before = model(ids).numpy()
    run = steps(model, ids, max_new_tokens=decode.WORTH + 1)
    next(run), next(run)
    few, more = (mg.Tensor(np.ones((n, 1, 32))) for n in (FEW, FEW + 1))
    assert isinstance(module.F, Packed) and module.F.of(few, module.weight) is not None and module.F.of(more, module.weight) is None
    assert (model(ids).numpy() == before).all()         # 36 rows
    run.close()
    assert model.panels is None and module.F is plain
    with pytest.raises(KeyError), model.packed():
        assert isinstance(model.F, Packed) and id(model.lm_head.weight) in model.F.panels
        raise KeyError
    assert model.panels is None and model.F is plain
