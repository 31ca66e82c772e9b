"""The token chosen on the device is the host's: every option alone and together, ties, and logits that are not numbers."""
from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from cuda_cases import UNORDERED
from device import HERE, counting, kernel_test, needs_compiler
from hypothesis import example, given, settings
from hypothesis import strategies as st
from long import slow_unless

from gpt2.decoding.gpu_sampling import Chooser
from gpt2.decoding.sampling import SamplingOptions, choose, process_logits
from minigrad import backend
from minigrad.backend import Device
from minigrad.backend.cupy import sample as cupy_choose
from minigrad.backend.cupy import source
from minigrad.testing import fake_cupy
from minigrad.testing.fake_cupy import cuda

SOURCE = source("choose.cu")
pytestmark = needs_compiler
SHAPES = {                                              # logits of one row
    "normal": lambda rng, n: rng.standard_normal(n) * 3.0,
    "few values": lambda rng, n: rng.integers(-2, 3, n) * 1.5,
    "all equal": lambda rng, n: np.full(n, 0.7),
    "far apart": lambda rng, n: rng.standard_normal(n) * 10.0 ** rng.integers(-3, 30),
    "some forbidden": lambda rng, n: np.where(rng.random(n) < 0.5, -np.inf, rng.standard_normal(n)),
    "signed zeros": lambda rng, n: np.where(rng.random(n) < 0.5, -0.0, 0.0),
}
options = st.builds(
    SamplingOptions, temperature=st.sampled_from([0.0, 1e-40, 0.3, 1.0, 2.5]), top_k=st.none() | st.integers(1, 60),
    top_p=st.none() | st.floats(0.01, 1.0), min_p=st.none() | st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3, 0.7]))


def _logits(kind: str, rng: Any, rows: int, n: int, dtype: str) -> np.ndarray:
    x = np.stack([SHAPES[kind](rng, n) for _ in range(rows)]).astype(dtype)
    x[:, 0] = np.where(np.isfinite(x).any(axis=1), x[:, 0], 0.0)       # one at least may be drawn
    return x


def _near_a_border(x: np.ndarray, chosen: SamplingOptions, before: list[int], uniform: float, dtype: str, ids: tuple[int, int]) -> bool:
    """Whether rounding decides between these two ids: the draw, or what a filter compares, is as near to its border as rounding is large.

    Weights are rounded in the logits' dtype: their exponent is off by u|x − max|/T and exp by a unit or two, so by 40 u of at most
    exp(−37) = u/10 of the whole.
    """
    u = float(np.finfo(dtype).eps)
    plain = SamplingOptions(temperature=chosen.temperature, top_k=chosen.top_k, repetition_penalty=chosen.repetition_penalty)
    p = np.exp(process_logits(x[None], plain, [before])[0])
    kept = np.exp(process_logits(x[None], chosen, [before])[0])
    sums = kept.cumsum()
    if np.abs(sums - uniform * sums[-1]).min() <= 64 * u:
        return True
    ordered = np.sort(p)[::-1].cumsum()
    at_p = chosen.top_p is not None and np.abs(ordered - chosen.top_p).min() <= 64 * u
    at_min = bool(chosen.min_p) and np.abs(p / p.max() - chosen.min_p).min() <= 64 * u
    return bool(at_p or at_min)


@kernel_test
@settings(max_examples=max(5, settings.default.max_examples // 5))      # half a second each on a CPU
@given(kind=st.sampled_from(sorted(SHAPES)), rows=st.integers(1, 3), n=st.integers(1, 90) | st.integers(900, 1100) | st.just(3000),
       spare=st.integers(0, 9), steps=st.integers(1, 3), chosen=options, dtype=st.sampled_from(["float32", "float64"]),
       seed=st.integers(0, 9999))
@example(kind="all equal", rows=1, n=1100, spare=0, steps=2, chosen=SamplingOptions(top_p=0.5), dtype="float32", seed=0)
@example(kind="all equal", rows=1, n=70, spare=0, steps=2, chosen=SamplingOptions(top_p=1e-300), dtype="float32", seed=0)
@example(kind="few values", rows=2, n=1100, spare=3, steps=3, chosen=SamplingOptions(top_k=7, top_p=0.9), dtype="float32", seed=1)
@example(kind="signed zeros", rows=3, n=40, spare=0, steps=3, chosen=SamplingOptions(top_k=3), dtype="float32", seed=2)
@example(kind="normal", rows=1, n=40, spare=0, steps=3, chosen=SamplingOptions(temperature=0.0, repetition_penalty=1.3), dtype="float32",
         seed=1)
@example(kind="normal", rows=2, n=90, spare=0, steps=3, chosen=SamplingOptions(min_p=0.2), dtype="float32", seed=1)
def test_it_is_the_host_s(kind: str, rows: int, n: int, spare: int, steps: int, chosen: SamplingOptions, dtype: str, seed: int):
    """The ids of `choose`, step after step with a repetition penalty, unless rounding decides; one launch a step and nothing else."""
    rng = np.random.default_rng(seed)
    uniforms, seen = rng.random((steps, rows)), [rng.integers(0, n, rng.integers(0, 5)).tolist() for _ in range(rows)]
    if seed % 4 == 0:
        uniforms[0] = 0.0                               # the first that may be drawn
    mine = Chooser(Device(HERE), chosen, rows, n, uniforms, seen, dtype=dtype)
    ids = HERE.array(np.full(rows, -7))
    for step in range(steps):
        x = _logits(kind, rng, rows, n, dtype)
        there = HERE.array(np.concatenate([x, np.full((rows, spare), 1e30, dtype)], axis=1))
        number = HERE.array(np.array([step]))
        with counting() as counts:
            mine(there, ids, number)
        assert counts.launches == {"step_choose": 1} and (counts.syncs, counts.uploads, counts.allocations) == (0, 0, 0)
        found, wanted = HERE.host(ids).tolist(), choose(x, chosen, seen, uniforms[step]).tolist()
        for row, (a, b) in enumerate(zip(found, wanted)):
            assert a == b or _near_a_border(x[row], chosen, seen[row], uniforms[step, row], dtype, (a, b)), (a, b)
            seen[row].append(a)
        if mine.seen is not None:
            assert [np.flatnonzero(row).tolist() for row in HERE.host(mine.seen)] == [sorted(set(row)) for row in seen]


@kernel_test
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_reaches_a_border_is_within_it(dtype: str):
    """Of equal logits, whose sums are exact so that no rounding decides, a draw takes the host's id; of 0, the first that may be drawn."""
    x, uniforms = np.full((1, 1024), 0.5, dtype), np.array([[0.0], [0.6]])
    for chosen in (SamplingOptions(top_p=0.75), SamplingOptions(min_p=1.0)):
        mine, ids = Chooser(Device(HERE), chosen, 1, 1024, uniforms, [[]], dtype=dtype), HERE.array(np.zeros(1, np.int64))
        for step in (0, 1):
            mine(HERE.array(x), ids, HERE.array(np.array([step])))
            assert HERE.host(ids).tolist() == choose(x, chosen, [[]], uniforms[step]).tolist(), (chosen, step)


@kernel_test
def test_the_highest_draw_is_the_last_id():
    """However the sums are rounded: 1 − 2⁻⁵³ of the whole lies within the last id of some weight."""
    n, rows = 700, 24
    x = np.random.default_rng(0).standard_normal((rows, n)).astype(np.float32)
    x[:, -3:] = -np.inf
    draws, ids = np.full((1, rows), 1.0 - 2.0**-53), HERE.array(np.zeros(rows, np.int64))
    mine = Chooser(Device(HERE), SamplingOptions(), rows, n, draws, [[]] * rows)
    mine(HERE.array(x), ids, HERE.array(np.array([0])))
    assert HERE.host(ids).tolist() == [n - 4] * rows


@given(kind=st.sampled_from(sorted(SHAPES)), n=st.integers(1, 50), chosen=options, seed=st.integers(0, 999))
def test_its_definition_is_the_host_s(kind: str, n: int, chosen: SamplingOptions, seed: int):
    """On a backend without the kernel."""
    rng = np.random.default_rng(seed)
    x, uniforms, seen = _logits(kind, rng, 2, n, "float32"), rng.random((1, 2)), [[0], []]
    ids = np.zeros(2, np.int64)
    Chooser(Device(backend.cpu), chosen, 2, n, uniforms, seen)(x, ids, np.array([0]))
    assert ids.tolist() == choose(x, chosen, seen, uniforms[0]).tolist()


@kernel_test
@pytest.mark.parametrize("here", [HERE, backend.cpu], ids=["device", "definition"])
def test_draws_beside_borders_and_what_was_seen(here: Any):
    """A draw a millionth on either side of a border; a token of 6 in a million; seen tokens, also id 0, are not said again."""
    def chosen(x: list[float], options: SamplingOptions, draws: list[float], seen: list[int], vocab: int = 0) -> tuple[list[int], Any]:
        ids, vocab = here.array(np.zeros(1, np.int64)), vocab or len(x)
        mine, found = Chooser(Device(here), options, 1, vocab, np.array(draws)[:, None], [seen], dtype="float64"), []
        for step in range(len(draws)):
            mine(here.array(np.array([x])), ids, here.array(np.array([step])))
            found.append(int(here.host(ids)[0]))
        return found, None if mine.seen is None else here.host(mine.seen).tolist()

    assert chosen(np.log([0.6, 0.4]).tolist(), SamplingOptions(), [0.6 - 1e-6, 0.6 + 1e-6], []) == ([0, 1], None)
    assert chosen([0.0, -12.0], SamplingOptions(), [1.0 - 1e-7], []) == ([1], None)
    for few in (SamplingOptions(top_k=1), SamplingOptions(min_p=0.7), SamplingOptions(top_p=0.5), SamplingOptions(temperature=1e-3)):
        assert chosen(np.log([0.6, 0.4]).tolist(), few, [0.99], []) == ([0], None)
    once = SamplingOptions(greedy=True, repetition_penalty=1e9)
    assert chosen([4.0, 3.0, 2.0, 1.0], once, [0.5] * 3, [1, 3, 4]) == ([0, 2, 0], [[1, 1, 1, 1]])
    assert chosen([np.nan, 1.0], once, [0.5], []) == ([-1], [[0, 0]])


def test_it_chooses_where_the_logits_are():
    """All that it keeps is on the device that it is told, whatever the current one is."""
    fake_cupy.install().use(0)
    mine = Chooser(Device(fake_cupy.install(), 1), SamplingOptions(repetition_penalty=1.3), 2, 9, np.zeros((1, 2)), [[1], [2]])
    assert {a.device.id for a in (mine.uniforms, mine.weights, mine.seen)} == {1}
    fake_cupy.install().use(0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("greedy", [True, False])
def test_logits_that_are_not_numbers(bad: float, greedy: bool):
    """Their row has no token, the others have theirs."""
    x = np.zeros((3, 40), np.float32)
    x[1, 30], x[2, :] = bad, -np.inf
    for here in (HERE, backend.cpu):
        ids, step = here.array(np.zeros(3, np.int64)), here.array(np.array([0]))
        Chooser(Device(here), SamplingOptions(greedy=greedy), 3, 40, np.zeros((1, 3)), [[]] * 3)(here.array(x), ids, step)
        assert here.host(ids).tolist() == [0, -1, -1]


def test_equal_calls_give_equal_ids_and_draws_follow_the_weights():
    """Evenly spread draws choose each token as often as its probability says, to one draw."""
    x = np.log(np.array([[0.1, 0.2, 0.3, 0.4]], np.float32))
    uniforms = (np.arange(200)[:, None] + 0.5) / 200
    mine, ids = Chooser(Device(HERE), SamplingOptions(), 1, 4, uniforms, [[]]), HERE.array(np.zeros(1, np.int64))
    twice = []
    for _ in range(2):
        found = []
        for step in range(200):
            mine(HERE.array(x), ids, HERE.array(np.array([step])))
            found.append(int(HERE.host(ids)[0]))
        twice.append(found)
    assert twice[0] == twice[1] and np.abs(np.bincount(twice[0]) - [20, 40, 60, 80]).max() <= 1


BARRIERS = [m.start() for m in re.finditer(r"__syncthreads\(\);", SOURCE) if m.start() > SOURCE.index("// The next token on the device")]


def _run(text: str) -> None:
    """The kernels of this source, with each filter."""
    module = cuda.Module(text, ("-DSTORE=float", "-DREAL=float"))
    rng, n = np.random.default_rng(0), 700
    x = (rng.standard_normal((24, n)) * 2.0).astype(np.float32)
    for k, p in ((n, 1.0), (20, 1.0), (n, 0.7)):
        ids, weights = np.zeros(24, np.int64), np.zeros((24, n), np.float32)
        draws, step = rng.random((1, 24)), np.zeros(1, np.int64)
        module.get_function("step_choose")((24,), (256,), (x, draws, step, None, weights, ids, n, n, k, 2, 1.0, p, 0.0, 1.0),
                                           shared_mem=8 * (96 + 11))
    best = np.zeros(1, np.int64)
    module.get_function("step_greedy")((1,), (64,), (-np.arange(300, dtype=np.float32)[::-1].copy(), best, 300, 300), shared_mem=32 * 12)


@pytest.mark.parametrize("place", slow_unless(lambda i: i == 0, range(len(BARRIERS))))
def test_a_missing_barrier_is_refused(place: int):
    """With all of its barriers a kernel runs, and without any one of them it does not."""
    at = BARRIERS[place]
    _run(SOURCE)
    with pytest.raises(RuntimeError, match=UNORDERED):
        _run(SOURCE[:at] + SOURCE[at + len("__syncthreads();"):])


def test_a_vocabulary_whose_sums_would_not_fit(monkeypatch: pytest.MonkeyPatch):
    """They are taken over more tokens each."""
    rng, n = np.random.default_rng(0), 1000
    x, uniforms = (rng.standard_normal((1, n)) * 2.0).astype(np.float32), rng.random((20, 1))
    monkeypatch.setattr(cupy_choose, "SUMS", 7)
    for chosen in (SamplingOptions(), SamplingOptions(top_p=0.8)):
        mine, ids = Chooser(Device(HERE), chosen, 1, n, uniforms, [[]]), HERE.array(np.zeros(1, np.int64))
        for step in range(20):
            mine(HERE.array(x), ids, HERE.array(np.array([step])))
            assert HERE.host(ids).tolist() == choose(x, chosen, [[]], uniforms[step]).tolist()
