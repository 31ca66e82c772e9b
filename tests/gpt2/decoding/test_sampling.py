"""Laws of choosing the next token, judged against transformers' processors."""
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gpt2.decoding import sampling
from gpt2.decoding.sampling import SamplingOptions, choose, log_softmax, process_logits, sample, top_logprobs
from gpt2.errors import MissingError, UsageError

EPS = float(np.finfo(np.float64).eps)

# a coarse grid makes ties, which are where filters differ
values = st.floats(-30, 30, width=32) | st.integers(-3, 3).map(float)
rows = hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 12)), elements=values)
shares = st.sampled_from([1e-20, 0.1, 0.25, 0.3, 0.5, 0.75, 0.9, 1.0]) | st.floats(1e-6, 1.0)
options = st.builds(
    SamplingOptions,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 2.5]),
    top_k=st.none() | st.integers(1, 15),
    top_p=st.none() | shares,
    min_p=st.none() | shares | st.just(0.0),
    repetition_penalty=st.sampled_from([0.5, 1.0, 1.3]),
)


def transformers_scores(logits: np.ndarray, options: SamplingOptions, previous: list[list[int]]) -> np.ndarray:
    """Logits after transformers' processors in the order in which its generate applies them, in float64."""
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    steps = []
    if options.repetition_penalty != 1.0:
        steps.append(process.RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    if options.temperature != 1.0:
        steps.append(process.TemperatureLogitsWarper(options.temperature))
    if options.top_k is not None:
        steps.append(process.TopKLogitsWarper(options.top_k))
    if options.top_p is not None and options.top_p < 1.0:
        steps.append(process.TopPLogitsWarper(options.top_p))
    if options.min_p is not None:
        steps.append(process.MinPLogitsWarper(options.min_p))
    scores = torch.from_numpy(logits.astype(np.float64))
    for step in steps:
        scores = step(torch.tensor(previous), scores)
    return scores.numpy()


def at_a_border(logits: np.ndarray, options: SamplingOptions, previous: list[list[int]]) -> bool:
    """Whether a sum or ratio of probabilities is so near p that its rounding decides: V additions, a few eps each."""
    plain = SamplingOptions(options.temperature, options.top_k, repetition_penalty=options.repetition_penalty)
    p = np.exp(np.sort(process_logits(logits, plain, previous)))
    slack = 8 * logits.shape[1] * EPS
    near = False
    if options.top_p is not None:
        near |= bool((np.abs(p.cumsum(axis=-1) - (1.0 - options.top_p)) < slack).any())
    if options.min_p is not None:
        near |= bool((np.abs(p / p.max(axis=-1, keepdims=True) - options.min_p) < slack).any())
    return near


@given(rows, options, st.data())
def test_kept_tokens_are_those_of_transformers(logits: np.ndarray, options: SamplingOptions, data) -> None:
    """Penalty, temperature, top-k, top-p and min-p together keep transformers' tokens, with its probabilities."""
    ids = st.integers(0, logits.shape[1] - 1)
    length = data.draw(st.integers(1, 5))
    previous = data.draw(st.lists(st.lists(ids, min_size=length, max_size=length),
                                  min_size=len(logits), max_size=len(logits)))
    assume(not at_a_border(logits, options, previous))
    before = logits.copy()
    got = process_logits(logits, options, previous)
    scores = transformers_scores(logits, options, previous)
    assert got.dtype == np.float64 and (logits == before).all()
    assert ((got > -np.inf) == (scores > -np.inf)).all()
    # both are x − max − log Σ exp with at most V + 4 roundings, of numbers no larger than the largest logit
    size = 1.0 + np.abs(scores[np.isfinite(scores)]).max()
    wanted = log_softmax(scores)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=4 * (logits.shape[1] + 4) * EPS * size)


@given(rows, options, st.data())
def test_a_token_is_chosen_as_it_is_drawn(logits: np.ndarray, options: SamplingOptions, data) -> None:
    """choose is sample of process_logits, but for a draw so near a border that the sum's rounding decides."""
    previous = [[0]] * len(logits)
    uniforms = np.array(data.draw(st.lists(st.floats(0.0, 1.0, exclude_max=True), min_size=len(logits), max_size=len(logits))))
    logprobs = process_logits(logits, options, previous)
    borders = np.exp(logprobs).cumsum(axis=-1)
    assume((np.abs(borders - uniforms[:, None] * borders[:, -1:]) > 64 * EPS).all())
    assert choose(logits, options, previous, uniforms).tolist() == sample(logprobs, uniforms).tolist()


def kept(logits: list[float], **options: object) -> list[int]:
    return np.flatnonzero(process_logits(np.array([logits]), SamplingOptions(**options))[0] > -np.inf).tolist()


LOGITS = np.log([0.1, 0.4, 0.2, 0.3]).tolist()


def test_what_is_kept_is_as_likely_as_it_was_beside_the_rest() -> None:
    """A filter takes tokens away and divides by what is left, and changes nothing else."""
    for options, wanted in ((SamplingOptions(top_k=3), [0.0, 4.0, 2.0, 3.0]), (SamplingOptions(top_p=0.6), [0.0, 4.0, 0.0, 3.0]),
                            (SamplingOptions(min_p=0.4), [0.0, 4.0, 2.0, 3.0]), (SamplingOptions(top_k=2), [0.0, 4.0, 0.0, 3.0])):
        got = np.exp(process_logits(np.array([LOGITS]), options))[0]
        np.testing.assert_allclose(got, np.array(wanted) / sum(wanted), rtol=0, atol=16 * EPS)


def test_filters_that_let_everything_pass() -> None:
    """top_p=1 and min_p=0 keep a token whose probability is too small for a float."""
    for options in (SamplingOptions(), SamplingOptions(top_p=1.0), SamplingOptions(min_p=0.0), SamplingOptions(top_k=2)):
        assert process_logits(np.array([[0.0, -800.0]]), options).tolist() == [[0.0, -800.0]]


def test_top_p_keeps_the_crossing_token() -> None:
    """The nucleus reaches p: the token with which the sum crosses p is in it; one token is always left."""
    assert kept(LOGITS, top_p=0.41) == [1, 3]
    assert kept(LOGITS, top_p=0.39) == [1]
    assert kept(LOGITS, top_p=0.71) == [1, 2, 3]
    assert kept(LOGITS, top_p=1e-300) == [1]
    assert kept(LOGITS, top_p=1.0) == [0, 1, 2, 3]
    for temperature in (1.0, 2.0):                      # a millionth on either side of each border
        likely = np.exp(np.sort(LOGITS)[::-1] / temperature)
        for n, border in enumerate(likely.cumsum()[:-1] / likely.sum(), 1):
            assert len(kept(LOGITS, top_p=border - 1e-6, temperature=temperature)) == n
            assert len(kept(LOGITS, top_p=border + 1e-6, temperature=temperature)) == n + 1


def test_a_sum_that_reaches_the_border_of_top_p_is_within_it() -> None:
    """Tokens go while their sum is at most 1 − p: of equals whose sums are exact, so that no rounding decides, as in transformers."""
    for n in (2, 4, 8, 512):                            # 512: more than one block
        logits = np.full((1, n), 0.5)
        for share in (0.25, 0.5, 0.75):
            options = SamplingOptions(top_p=share)
            left = np.flatnonzero(process_logits(logits, options)[0] > -np.inf)
            assert left.tolist() == list(range(n - max(1, math.ceil(share * n)), n))
            theirs = transformers_scores(logits, options, [[0]])[0]
            assert (theirs > -np.inf).sum() == len(left)               # their sort of equals leaves their order open


def test_ties() -> None:
    """top-k keeps all that equal the k-th highest; top-p drops the lower ids among equals at its border."""
    assert kept([1.0, 2.0, 1.0, 0.0], top_k=2) == [0, 1, 2]
    assert kept([0.0, 0.0, 0.0, 0.0], top_p=0.6) == [1, 2, 3]
    assert kept([0.0, 0.0, 0.0, 0.0], top_p=0.4) == [2, 3]
    assert kept([0.0, 0.0, 0.0, 0.0], top_p=1e-300) == [3]
    assert kept([0.0, 0.0, 0.0, 0.0], min_p=1.0) == [0, 1, 2, 3]
    assert top_logprobs(np.array([[1.0, 2.0, 1.0, 2.0, 1.0]]), 3)[0].tolist() == [[1, 3, 0]]


def test_k_beyond_the_vocabulary_keeps_all() -> None:
    """top_k may exceed V."""
    assert kept(LOGITS, top_k=4) == kept(LOGITS, top_k=5) == kept(LOGITS, top_k=10**9) == [0, 1, 2, 3]


def test_the_order_of_the_filters() -> None:
    """Temperature comes before top-p, top-k before top-p, top-p before min-p: each renormalises what it is given."""
    assert kept(LOGITS, top_p=0.6) == [1, 3]
    assert kept(LOGITS, top_p=0.6, temperature=100.0) == [1, 2, 3]       # nearly uniform
    assert kept(LOGITS, top_p=0.55, top_k=2) == [1]                      # 0.4 of 0.7 alone passes 0.55
    assert kept(LOGITS, repetition_penalty=1.0) == [0, 1, 2, 3]


def test_the_repetition_penalty_counts_a_token_once() -> None:
    """Seen tokens: positive logits are divided, negative ones multiplied, however often they were seen."""
    got = process_logits(np.array([[2.0, -2.0, 1.0, 0.5]]), SamplingOptions(repetition_penalty=2.0), [[0, 1, 0, 0, 3]])
    np.testing.assert_allclose(got, log_softmax(np.array([[1.0, -4.0, 1.0, 0.25]])), rtol=0, atol=8 * EPS)


@given(rows)
def test_greedy(logits: np.ndarray) -> None:
    """greedy and temperature 0 take the highest logit, the lowest id among equals, whatever is drawn."""
    best = np.array([int(np.flatnonzero(row == row.max())[0]) for row in logits])
    for options in (SamplingOptions(greedy=True), SamplingOptions(temperature=0.0), SamplingOptions(temperature=0, top_p=0.5)):
        for uniform in (0.0, 0.5, 1.0 - EPS / 2):
            draws = np.full(len(logits), uniform)
            assert (choose(logits, options, [[]] * len(logits), draws) == best).all()
            assert (sample(process_logits(logits, options), draws) == best).all()


@pytest.mark.parametrize("options", [SamplingOptions(0.5, 1, 0.9, 0.1, 1.3), SamplingOptions(greedy=True),
                                     SamplingOptions(greedy=True, repetition_penalty=1.3)])
def test_logits_are_left_as_they_are(options: SamplingOptions) -> None:
    """No function changes the array that it is given, float64 or not."""
    logits = np.array([[1.0, -2.0, 3.0]])
    process_logits(logits, options, [[0, 1]])
    choose(logits, options, [[0, 1]], np.zeros(1))
    top_logprobs(logits, 2)
    log_softmax(logits)
    assert logits.tolist() == [[1.0, -2.0, 3.0]]


def test_greedy_knows_the_penalty() -> None:
    """Greedy choice follows the repetition penalty."""
    options = SamplingOptions(greedy=True, repetition_penalty=1.5)
    assert choose(np.array([[1.0, 1.2]], np.float32), options, [[1]], np.zeros(1)).tolist() == [0]


def test_a_tiny_temperature_is_greedy() -> None:
    """No temperature above 0 overflows: the smallest leaves the highest logit."""
    for dtype in (np.float16, np.float32, np.float64):
        for top_p in (None, 0.9):
            with np.errstate(over="raise"):
                got = process_logits(np.array([[100.0, 101.0, -3.0]], dtype), SamplingOptions(5e-324, top_p=top_p))
            assert got.tolist() == [[-math.inf, 0.0, -math.inf]]
    assert kept([1.0, 1.0, 0.0], temperature=5e-324, top_p=0.9) == [0, 1]


# ── drawing ──

@given(rows, st.lists(st.integers(0, 11)))
def test_sampling_inverts_the_cumulative_sums(logits: np.ndarray, removed: list[int]) -> None:
    """Over an even grid of n numbers each token comes n·p times, give or take the two ends; removed ones never."""
    logits = logits[:1].astype(np.float64)
    logits[:, [i for i in removed if i < logits.shape[1] and i != logits.argmax()]] = -np.inf
    logprobs = process_logits(logits, SamplingOptions())
    n = 500
    grid = (np.arange(n) + 0.5) / n
    ids = sample(np.repeat(logprobs, n, axis=0), grid)
    counts = np.bincount(ids, minlength=logits.shape[1])
    assert (np.abs(counts - n * np.exp(logprobs[0])) <= 1.0 + n * 16 * EPS).all()
    assert (np.diff(ids) >= 0).all()
    assert (counts[np.isneginf(logprobs[0])] == 0).all()


@pytest.mark.parametrize("uniform", [0.0, 5e-324, 1.0 - EPS / 2])
@pytest.mark.parametrize("size", [*range(1, 60), 50257])             # some sum to more than 1, some to less
def test_the_ends_of_the_interval(uniform: float, size: int) -> None:
    """0 and the number just below 1 draw a token of positive probability, the first and the last one."""
    logprobs = np.full((1, size + 4), -np.inf)
    logprobs[0, 2:-2] = -math.log(size)
    assert sample(logprobs, np.array([uniform])).tolist() == [2 if uniform < 0.5 else size + 1]


blocks = st.sampled_from([1, 2, 3, 5, 256])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30).filter(any), st.floats(0, 1, exclude_max=True), blocks)
def test_blocks_do_not_change_what_is_drawn(weights: list[int], uniform: float, block: int) -> None:
    """With weights whose sums are exact, the draw is the first id whose cumulative sum exceeds it, however many are summed at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "BLOCK", block)
        drawn = sampling._drawn(np.array(weights, float), uniform)
    assert drawn == int(np.flatnonzero(np.cumsum(weights) > uniform * sum(weights))[0])


@pytest.mark.parametrize("block", [1, 2, 3, 5, 256])
def test_draws_on_either_side_of_each_border(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """1e-7 below a cumulative sum draws the id that it ends with, 1e-7 above it the next one of some weight."""
    monkeypatch.setattr(sampling, "BLOCK", block)
    weights = np.array([1.0, 0.0, 2.0, 3.0, 1.0, 0.0, 0.0, 1.0, 4.0, 2.0])
    some = np.flatnonzero(weights)
    for n, border in enumerate(weights.cumsum()[some[:-1]] / weights.sum()):
        assert sampling._drawn(weights, border - 1e-7) == some[n] and sampling._drawn(weights, border + 1e-7) == some[n + 1]


def test_rounding_draws_nothing_of_probability_0() -> None:
    """Where a block added up in another order is less than its sum, a draw between the two is the block's last id, and not the next."""
    between = 0
    for seed in range(100):
        weights = np.concatenate([np.random.default_rng(seed).random(256) * 1e-9, [0.0, 1.0]])
        sums = np.add.reduceat(weights, [0, 256]).cumsum()
        uniform = np.nextafter(sums[0] / sums[1], 0.0)
        between += weights[:256].cumsum()[-1] <= uniform * sums[1] < sums[0]
        assert weights[sampling._drawn(weights, uniform)] > 0.0
    assert between > 0


@given(rows, options, st.integers(1, 12), blocks)
def test_blocks_do_not_change_what_is_kept(logits: np.ndarray, options: SamplingOptions, n: int, block: int) -> None:
    """top-k and the lists of --logprobs hold the same ids, ties among them, however many logits are looked at together."""
    previous = [[0]] * len(logits)
    wanted = process_logits(logits, options, previous).tolist(), top_logprobs(logits, n)[0].tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "BLOCK", block)
        assert (process_logits(logits, options, previous).tolist(), top_logprobs(logits, n)[0].tolist()) == wanted


def test_draws_follow_the_distribution() -> None:
    """χ² of 20,000 draws with the seeded generator over 10 tokens: below the 1 − 1e-6 quantile for 9 degrees, 46.1."""
    generator = np.random.Generator(np.random.PCG64(0))
    logits = np.linspace(-2.0, 2.0, 10)[None]
    n = 20_000
    ids = sample(np.repeat(process_logits(logits, SamplingOptions()), n, axis=0), generator.random(n))
    expected = n * np.exp(log_softmax(logits)[0])
    chi2 = float(((np.bincount(ids, minlength=10) - expected) ** 2 / expected).sum())
    assert chi2 < 46.1


def test_a_row_does_not_depend_on_the_others() -> None:
    """Each row of a batch is chosen as it would be alone with its own number and its own past."""
    generator = np.random.Generator(np.random.PCG64(1))
    logits = generator.standard_normal((5, 40)).astype(np.float32)
    uniforms, previous = generator.random(5), [[1, 2], [], [3], [39], [0]]
    options = SamplingOptions(0.8, 20, 0.9, 0.01, 1.2)
    alone = [choose(logits[i:i + 1], options, previous[i:i + 1], uniforms[i:i + 1])[0] for i in range(5)]
    assert choose(logits, options, previous, uniforms).tolist() == alone


# ── log-probabilities ──

@given(rows, st.integers(1, 15))
def test_top_logprobs(logits: np.ndarray, n: int) -> None:
    """The n highest log-softmax values in order, the lower id first among equals; at most V of them."""
    ids, logprobs = top_logprobs(logits, n)
    full = log_softmax(logits)
    wanted = np.argsort(-full, axis=-1, kind="stable")[:, :n]
    assert ids.tolist() == wanted.tolist()
    assert (logprobs == np.take_along_axis(full, wanted, axis=-1)).all()


@given(rows)
def test_log_softmax_is_normalised(logits: np.ndarray) -> None:
    """Σ exp(log_softmax) = 1, and differences of logits are kept."""
    got = log_softmax(logits)
    slack = 4 * (logits.shape[1] + 4) * EPS * 61
    np.testing.assert_allclose(np.exp(got).sum(axis=-1), 1.0, rtol=0, atol=slack)
    np.testing.assert_allclose(got - got[:, :1], logits.astype(np.float64) - logits[:, :1], rtol=0, atol=slack)


def test_log_softmax_of_any_shape_and_size() -> None:
    """Over the last of one axis or of three, row by row, of logits whose exponentials no float holds; a broken row is found anywhere."""
    for shape in ((2,), (1, 2), (3, 4, 2)):
        got = log_softmax(np.broadcast_to([1e4, 1e4], shape))
        np.testing.assert_allclose(got, np.full(shape, -math.log(2.0)), rtol=0, atol=4 * EPS)
    apart = log_softmax(np.array([[0.0, 0.0], [1e4, 1e4]]))
    np.testing.assert_allclose(apart, np.full((2, 2), -math.log(2.0)), rtol=0, atol=4 * EPS)
    broken = np.zeros((2, 3, 2))
    broken[1, 2] = -np.inf
    with pytest.raises(MissingError, match="NaN or infinite"):
        log_softmax(broken)


# ── what is refused ──

@pytest.mark.parametrize("bad", [
    {"temperature": -1.0}, {"temperature": math.nan}, {"temperature": math.inf}, {"top_k": 0}, {"top_k": -3}, {"top_k": 2.5},
    {"top_p": 0.0}, {"top_p": 1.01}, {"top_p": math.nan}, {"min_p": -0.1}, {"min_p": 1.1}, {"min_p": math.nan},
    {"repetition_penalty": 0.0}, {"repetition_penalty": -1.0}, {"repetition_penalty": math.inf},
])
def test_options_out_of_range_are_named(bad: dict) -> None:
    """A value out of range is a UsageError that names the flag and the value."""
    (name, value), = bad.items()
    with pytest.raises(UsageError, match=f"^--{name.replace('_', '-')} must be .*, not {value}$"):
        SamplingOptions(**bad)


def test_options_at_their_borders() -> None:
    """The ends of a range that belong to it are taken, those that do not are refused, and so is what is just beyond."""
    for good in ({"temperature": 0.0}, {"temperature": 1e-30}, {"top_k": 1}, {"top_p": 1e-30}, {"top_p": 1.0}, {"min_p": 0.0},
                 {"min_p": 1.0}, {"repetition_penalty": 1e-30}):
        SamplingOptions(**good)
    beyond = float(np.nextafter(1.0, 2.0))
    for bad, words in (({"top_p": beyond}, "above 0 and at most 1"), ({"min_p": beyond}, "from 0 to 1"), ({"top_k": 0}, "1 or more"),
                       ({"temperature": -1e-300}, "a finite number from 0 on (0 is greedy)"), ({"min_p": -1e-300}, "from 0 to 1"),
                       ({"top_k": 2.5}, "a whole number"), ({"temperature": "hot"}, "a finite number from 0 on (0 is greedy)"),
                       ({"temperature": None}, "a finite number from 0 on (0 is greedy)"), ({"greedy": 1}, "True or False")):
        (name, value), = bad.items()
        with pytest.raises(UsageError) as caught:
            SamplingOptions(**bad)
        assert str(caught.value) == f"--{name.replace('_', '-')} must be {words}, not {value}"


@pytest.mark.parametrize("broken", [[1.0, math.nan], [math.nan, math.nan], [math.inf, 0.0], [-math.inf, -math.inf]])
@pytest.mark.parametrize("options", [SamplingOptions(), SamplingOptions(greedy=True),
                                     SamplingOptions(top_k=1, repetition_penalty=1.1)])
def test_logits_that_are_no_numbers_are_refused(broken: list[float], options: SamplingOptions) -> None:
    """NaN, +inf or nothing but −inf in any row is one line about the weights, greedy or not."""
    logits = np.array([[0.0, 1.0], broken], np.float32)
    for call in (lambda: choose(logits, options, [[], []], np.zeros(2)), lambda: process_logits(logits, options),
                 lambda: top_logprobs(logits, 1)):
        with pytest.raises(MissingError, match="NaN or infinite"):
            call()


def test_logprobs_must_be_positive() -> None:
    """--logprobs 0 is a UsageError."""
    with pytest.raises(UsageError, match="--logprobs must be at least 1, not 0"):
        top_logprobs(np.zeros((1, 3)), 0)
