"""The counter-based generator: known answers, any part alone, the same bits for the same key, and its statistics."""
from __future__ import annotations

import math
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from minigrad import random
from minigrad.backend import cpu
from minigrad.backend.splitmix64 import least_kept
from minigrad.errors import ShapeError

KEYS = st.integers(0, 2**64 - 1)
N = 200_000
EPS = float(np.finfo(np.float64).eps)
SIGMAS = 5.0                                            # a fair generator fails a test at 5σ once in 1.7 million keys


def test_splitmix64_has_its_known_answers():
    """The stream of state 1234567 is that of the published generator."""
    assert random.raw_bits(cpu, 1234567, 5).tolist() == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63, 2**64 - 1, 2**70])
def test_keys_are_made_by_the_published_generator(seed: int):
    """key(s) is the first number of SplitMix64 at state s, and fold_in(k, n) that of k and number n of state 0, mixed."""
    def mix(z: int) -> int:                             # what the generator makes of its next state
        return int(random.raw_bits(cpu, (z - 0x9E3779B97F4A7C15) % 2**64, 1)[0])

    assert random.key(0) == 0xE220A8397B1DCDAF
    key = random.key(seed)
    assert key == random.raw_bits(cpu, seed % 2**64, 1)[0]
    for n in (0, 1, 2, 10**6):
        assert random.fold_in(key, n) == mix(key ^ int(random.raw_bits(cpu, 0, 1, n)[0]))
    assert random.split(key) == (random.fold_in(key, 0), random.fold_in(key, 1))
    random.manual_seed(seed)
    assert [random.next_key() for _ in range(3)] == [random.fold_in(key, n) for n in (1, 2, 3)]


@given(key=KEYS, start=st.integers(0, 10_000), n=st.integers(0, 200))
def test_any_part_of_the_stream_can_be_drawn_alone(key: int, start: int, n: int):
    """Elements start … start + n − 1 are that slice of the whole, whatever the key."""
    np.testing.assert_array_equal(random.raw_bits(cpu, key, n, start), random.raw_bits(cpu, key, start + n)[start:])


@given(key=KEYS, start=st.integers(0, 300), n=st.integers(0, 300), p=st.floats(0.0, 1.0))
def test_spans_of_a_mask_are_slices_of_the_whole(key: int, start: int, n: int, p: float):
    """keep_mask_span equals the slice of the mask, from even and odd places alike; keep_mask is the mask in a shape."""
    whole = random.keep_mask_span(cpu, key, 0, start + n + 1, p)
    np.testing.assert_array_equal(random.keep_mask_span(cpu, key, start, start + n, p), whole[start:start + n])
    np.testing.assert_array_equal(random.keep_mask(cpu, key, (1, start + n + 1), p)[0], whole)
    assert whole.dtype == bool


def test_mask_elements_are_the_halves_of_the_bits():
    """Two elements from each 64 bits, the low half first, kept where the half is at least p·2³²."""
    bits = [int(z) for z in random.raw_bits(cpu, 99, 4)]
    halves = [h for z in bits for h in (z & 0xFFFFFFFF, z >> 32)]
    assert random.keep_mask_span(cpu, 99, 0, 8, 0.37).tolist() == [h >= round(0.37 * 2**32) for h in halves]


def test_the_border_of_a_mask():
    """What draws p · 2³² itself is kept, so that p = 0 drops nothing; p next to 1 keeps what draws 2³² − 1."""
    assert [least_kept(p) for p in (0.0, 2.0**-32, 0.37, 0.5, 1.0 - 2.0**-32, 1.0 - 2.0**-34, 1.0)] == [
        0, 1, round(0.37 * 2**32), 2**31, 2**32 - 1, 2**32 - 1, 2**32 - 1]
    halves = [h for z in map(int, random.raw_bits(cpu, 99, 4)) for h in (z & 0xFFFFFFFF, z >> 32)]
    for i, h in enumerate(halves):
        assert random.keep_mask_span(cpu, 99, i, i + 1, h / 2**32).tolist() == [True]
        assert random.keep_mask_span(cpu, 99, i, i + 1, (h + 1) / 2**32).tolist() == [False]


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_a_mask_keeps_its_share(p: float):
    """The share of false is p within 5 standard deviations √(p(1−p)/n), in the whole and in each half of the pairs."""
    mask = random.keep_mask(cpu, random.key(3), (N,), p)
    for part in (mask, mask[::2], mask[1::2]):
        assert abs((~part).mean() - p) <= SIGMAS * math.sqrt(p * (1.0 - p) / len(part))
    # neighbours are independent: both are dropped p² of the time
    both = ~mask[::2] & ~mask[1::2]
    assert abs(both.mean() - p * p) <= SIGMAS * math.sqrt(p * p * (1.0 - p * p) / len(both))


def test_every_bit_is_fair():
    """Each of the 64 bits is one half of the time, and flips from one element to the next half of the time."""
    z = random.raw_bits(cpu, random.key(7), N)
    for bits in (z, z[1:] ^ z[:-1]):
        share = np.unpackbits(bits.view(np.uint8)).reshape(len(bits), 64).mean(axis=0)
        assert np.abs(share - 0.5).max() <= 6.0 * 0.5 / math.sqrt(len(bits))       # the worst of 64: 6σ


def _kolmogorov(sample: Any, distribution: Any) -> float:
    """√n · sup |F_n − F|; above 2.5 with probability 2 exp(−2·2.5²) = 7e-6."""
    x = np.sort(sample)
    f = distribution(x)
    n = len(x)
    return math.sqrt(n) * max(np.abs(np.arange(1, n + 1) / n - f).max(), np.abs(f - np.arange(n) / n).max())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_uniform_is_uniform(dtype: str):
    """uniform follows its distribution (Kolmogorov), stays in its interval, and has the dtype and shape asked for."""
    t = random.uniform(random.key(1), (N // 2, 2), low=-1.0, high=3.0, dtype=dtype)
    assert t.dtype == dtype and t.shape == (N // 2, 2) and not t.requires_grad
    x = t.numpy().reshape(-1).astype("float64")
    assert x.min() >= -1.0 and x.max() <= 3.0 and (dtype == "float32" or x.max() < 3.0)
    assert _kolmogorov(x, lambda v: (v + 1.0) / 4.0) < 2.5
    assert np.abs(np.corrcoef(x[:-1], x[1:])[0, 1]) <= SIGMAS / math.sqrt(N)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normal_is_normal(dtype: str):
    """normal follows its distribution (Kolmogorov), with the first four moments within 5 of their standard deviations."""
    x = random.normal(random.key(2), (N,), std=2.0, dtype=dtype).numpy().astype("float64") / 2.0
    assert np.isfinite(x).all()
    erf = np.vectorize(math.erf)
    assert _kolmogorov(x, lambda v: 0.5 * (1.0 + erf(v / math.sqrt(2.0)))) < 2.5
    for power, mean, variance in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)]:
        assert abs((x**power).mean() - mean) <= SIGMAS * math.sqrt(variance / N)
    assert np.abs(np.corrcoef(x[:-1], x[1:])[0, 1]) <= SIGMAS / math.sqrt(N)


@pytest.mark.parametrize("how", [{"std": 0.02}, {}], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normal_is_box_and_muller_of_its_bits(dtype: str, how: dict[str, float]):
    """Each number is std·√(−2 ln u) cos 2πv of its own 64 bits, u from the high half and v from the low one, over more than one block.

    A standard deviation that is wrong by a thousandth would show in 20 million draws, and shows here in each of them. The 10 roundings
    of float64 are of the number itself, and of 2πv, by whose 3 the cosine is off by 3·2π of them times the radius.
    """
    n, std, key = random._BLOCK + 3, how.get("std", 1.0), random.key(6)
    found = random.normal(key, (n,), dtype=dtype, **how).numpy()
    bits = random.raw_bits(cpu, key, n)
    high, low = ((bits >> np.uint64(32)).astype(np.int64) + 1) / 2**32, (bits % np.uint64(2**32)).astype(np.int64) / 2**32
    radius = std * np.sqrt(-2.0 * np.log(high))
    room = (10.0 + 3.0 * 2.0 * math.pi) * EPS * radius + (0.5 * float(np.finfo(dtype).eps) * radius if dtype == "float32" else 0.0)
    assert found.dtype == dtype and (np.abs(found - radius * np.cos(2.0 * math.pi * low)) <= room).all()


def test_randint_is_uniform_over_its_range():
    """randint takes each of low … high − 1 equally often, as int64; in a wide range it is 53 bits of the stream, scaled."""
    x = random.randint(random.key(5), (N,), -3, 4)
    counts = np.bincount(x.numpy() + 3, minlength=7)
    assert x.dtype == "int64" and len(counts) == 7
    assert np.abs(counts / N - 1 / 7).max() <= SIGMAS * math.sqrt(1 / 7 * 6 / 7 / N)
    wide = [((int(z) >> 11) << 40) // 2**53 - 9 for z in random.raw_bits(cpu, 6, 50)]
    assert random.randint(6, 50, -9, 2**40 - 9).tolist() == wide


def test_a_permutation_is_one():
    """permutation holds each of 0 … n − 1 once; over many keys every element stands first equally often."""
    assert sorted(random.permutation(random.key(1), 100).tolist()) == list(range(100))
    first = np.bincount([random.permutation(random.fold_in(8, i), 5)[0] for i in range(5000)], minlength=5)
    assert np.abs(first / 5000 - 0.2).max() <= SIGMAS * math.sqrt(0.2 * 0.8 / 5000)


@given(key=KEYS)
def test_the_same_key_gives_the_same_bits(key: int):
    """All draws are functions of the key; a draw of more elements starts with the draw of fewer."""
    for draw in (lambda n: random.uniform(key, n), lambda n: random.normal(key, n, dtype="float64"),
                 lambda n: random.randint(key, n, 0, 10)):
        np.testing.assert_array_equal(draw(20).numpy(), draw(20).numpy())
        np.testing.assert_array_equal(draw(20).numpy()[:7], draw(7).numpy())


def test_blocks_do_not_show():
    """An array of several blocks is the one stream."""
    n = random._BLOCK + 3
    big = random.uniform(11, n, dtype="float64").numpy()
    np.testing.assert_array_equal(big, (random.raw_bits(cpu, 11, n) >> np.uint64(11)).astype("float64") * 2.0**-53)


def test_folded_keys_are_unrelated():
    """fold_in of many keys and numbers gives distinct keys, whose streams are uncorrelated with each other and the parent's."""
    parent = random.key(0)
    children = [random.fold_in(parent, i) for i in range(2000)]
    nested = [random.fold_in(c, i) for c in children[:40] for i in range(50)]
    assert len({parent, *children, *nested}) == 1 + len(children) + len(nested)
    assert random.split(parent, 3) == tuple(children[:3])
    n = 20_000
    streams = [random.normal(k, n, dtype="float64").numpy() for k in (parent, *children[:4], *nested[:3], random.key(1), random.key(-1))]
    correlation = np.corrcoef(streams) - np.eye(len(streams))
    assert np.abs(correlation).max() <= SIGMAS / math.sqrt(n)
    # and no stream is another one shifted, as those of neighbouring counters would be
    heads = [set(random.raw_bits(cpu, k, 2000).tolist()) for k in (parent, *children[:20])]
    assert all(a.isdisjoint(b) for i, a in enumerate(heads) for b in heads[:i])


def test_keys_of_neighbouring_seeds_are_far_apart():
    """key(seed) mixes: half of the bits differ between neighbouring seeds, within 5σ over 1000 pairs."""
    flips = [bin(random.key(s) ^ random.key(s + 1)).count("1") for s in range(1000)]
    assert abs(np.mean(flips) - 32.0) <= SIGMAS * 4.0 / math.sqrt(1000)
    assert all(0 <= random.key(s) < 2**64 for s in (-1, 0, 2**70))


@pytest.mark.parametrize("kind", [np.int64, np.uint64, np.int8, np.array])
def test_numbers_of_numpy_are_taken_as_pythons(kind):
    """Seeds, keys, numbers and bounds of any kind of integer give what the int gives; NumPy's overflowed, or lost bits of a key."""
    assert random.key(kind(3)) == random.key(3)
    assert type(random.key(kind(3))) is int
    random.manual_seed(kind(3))
    assert random.get_state() == (random.key(3), 0)
    big = np.uint64(2**64 - 5)                          # of a key, only this type holds every value
    for key in (7, kind(7), np.array(7), big):
        plain = int(key)
        assert random.fold_in(key, kind(5)) == random.fold_in(plain, 5)
        assert random.split(key, kind(3)) == random.split(plain, 3)
        assert random.permutation(key, kind(9)).tolist() == random.permutation(plain, 9).tolist()
        for draw in (random.normal, random.uniform, lambda key, n: random.randint(key, n, kind(3), kind(100))):
            assert np.array_equal(draw(key, kind(9)).numpy(), draw(plain, 9).numpy())
        x = mg.tensor(np.ones(20), dtype="float32")
        assert np.array_equal(mg.dropout(x, p=0.5, key=key).numpy(), mg.dropout(x, p=0.5, key=plain).numpy())
    low, high = np.int8(-100), np.int8(100)             # 200 does not fit an int8
    assert np.array_equal(random.randint(7, 99, low, high).numpy(), random.randint(7, 99, -100, 100).numpy())


@pytest.mark.parametrize("wrong", [3.0, "3", None, np.float64(3.0), (1, 2)], ids=repr)
def test_what_is_no_integer_is_refused(wrong):
    """Seeds, keys, numbers and bounds: a float would be cut off, and a tuple is no key."""
    x = mg.tensor(np.ones(2), dtype="float32")
    for call in (random.key, random.manual_seed, lambda n: random.fold_in(n, 0), lambda n: random.fold_in(0, n),
                 lambda n: random.split(n), lambda n: random.split(0, n), lambda n: random.normal(n, 2), lambda n: random.uniform(n, 2),
                 lambda n: random.randint(n, 2, 0, 2), lambda n: random.randint(0, 2, n, 9), lambda n: random.randint(0, 2, 0, n),
                 lambda n: random.permutation(n, 2), lambda n: random.permutation(0, n)):
        with pytest.raises(ShapeError, match="must be an integer"):
            call(wrong)
    if wrong is not None:                               # for dropout the next key of the default stream
        with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
            mg.dropout(x, p=0.5, key=wrong)


def test_keys_and_bounds_out_of_range_are_refused():
    """A key is 64 bits, all of them: a seed that is none becomes one by key(seed). randint has an integer to draw."""
    assert all(random.normal(k, 2).shape == (2,) for k in (0, 2**64 - 1))
    for key in (-1, 2**64, 2**70):
        for call in (lambda k: random.normal(k, 2), lambda k: random.fold_in(k, 1), lambda k: random.permutation(k, 2)):
            with pytest.raises(ShapeError, match=r"a key lies in .*random\.key\(seed\)"):
                call(key)
    for low, high in ((3, 3), (3, 1)):
        with pytest.raises(ShapeError, match="high must be above low"):
            random.randint(0, 2, low, high)


def test_the_default_stream():
    """manual_seed starts it anew; each next_key is another; state saves, restores and replays it."""
    random.manual_seed(4)
    first = [random.next_key() for _ in range(5)]
    saved = random.get_state()
    more = [random.next_key() for _ in range(3)]
    assert len(set(first + more)) == 8
    random.set_state(saved)
    assert [random.next_key() for _ in range(3)] == more
    before = random.get_state()
    with pytest.raises(KeyError), random.replaying(saved):
        assert random.next_key() == more[0]
        raise KeyError
    after = random.get_state()
    assert after == before
    random.manual_seed(4)
    assert [random.next_key() for _ in range(5)] == first and after != saved



class Slow(random._Stream):
    """A stream in which it is another thread's turn whenever the count is read."""

    @property
    def count(self) -> int:
        time.sleep(0)
        return self.read

    @count.setter
    def count(self, n: int) -> None:
        self.read = n


def test_threads_share_the_default_stream(monkeypatch: pytest.MonkeyPatch):
    """A thread goes on where another stopped, sees its seed, and no key is drawn twice; inside `replaying` it draws by itself."""
    random.manual_seed(4)
    alone = [random.next_key() for _ in range(8 * 200)]
    random.manual_seed(4)
    seen: list[int] = []
    meet = threading.Barrier(8)

    def work() -> None:
        meet.wait()
        seen.extend([random.next_key() for _ in range(200)])

    threads = [threading.Thread(target=work) for _ in range(8)]
    monkeypatch.setattr(random, "_default", Slow((random.key(4), 0)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == sorted(alone) and random.get_state() == (random.key(4), 8 * 200)

    own: list[int] = []

    def replay() -> None:
        with random.replaying((random.key(4), 0)):
            own.extend(random.next_key() for _ in range(3))
            random.manual_seed(9)
            own.append(random.next_key())

    before = random.get_state()
    thread = threading.Thread(target=replay)
    thread.start()
    thread.join()
    assert own == [*alone[:3], random.fold_in(random.key(9), 1)] and random.get_state() == before


def test_dropout_without_a_key_draws_from_the_default_stream():
    """Two calls drop differently, and the same after the same seed."""
    x = mg.tensor(np.ones(100))
    random.manual_seed(9)
    a, b = mg.dropout(x), mg.dropout(x)
    random.manual_seed(9)
    assert mg.dropout(x).tolist() == a.tolist() != b.tolist()
    assert mg.dropout(x, key=5).tolist() == mg.dropout(x, key=5).tolist()


def test_dropout_divides_by_the_share_that_it_keeps():
    """By one half unless another is given, as a function and as a module; p = 0 is a module too, and drops nothing."""
    x = mg.tensor(np.ones(100), dtype="float64")
    for y, kept in ((mg.dropout(x, key=3), 2.0), (mg.nn.Dropout()(x), 2.0), (mg.nn.Dropout(0.75)(x), 4.0), (mg.nn.Dropout(0.0)(x), 1.0)):
        assert set(y.tolist()) == ({0.0, kept} if kept != 1.0 else {1.0})


def test_an_empty_interval_is_refused():
    """low above high is a ShapeError of one line; an interval of one number is that number."""
    assert random.uniform(0, 3, low=1.5, high=1.5).tolist() == [1.5] * 3
    with pytest.raises(mg.ShapeError, match="low 1"):
        random.uniform(0, 3, low=1.0, high=0.0)
