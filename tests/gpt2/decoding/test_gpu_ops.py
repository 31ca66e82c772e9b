"""decode.cu, run on a CPU: over odd shapes each kernel of a decoding step means what its definition in gpt2/decoding/gpu_ops.py says."""
from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_cases import UNORDERED, agree, placed
from device import HERE, counting, kernel_test, needs_compiler
from hypothesis import example, given
from hypothesis import strategies as st
from long import slow_unless

import minigrad as mg
import minigrad.backend.cupy.decode as wrappers
from gpt2.decoding import gpu_ops as decode
from minigrad import backend
from minigrad.backend.cupy import compiler_options, source
from minigrad.testing.fake_cupy import cuda
from minigrad.testing.laws.tolerance import bound, magnitude

SOURCE = source("decode.cu")
mg.backend.dtype("bfloat16")
pytestmark = needs_compiler

stored = st.sampled_from(["float32", "float64", "float16", "bfloat16"])   # 16 bits in memory, float32 to compute with
rows = st.integers(1, 8)
width = st.integers(1, 70) | st.sampled_from([96, 128, 256, 264])
seeds = st.integers(0, 99)
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}


def each(**given: Any) -> Any:
    """An example for each combination: a kernel has a text of its own for one row, two, four and eight, and for aligned weights."""
    names = [name for name, value in given.items() if isinstance(value, list)]

    def add(f: Any) -> Any:
        for values in itertools.product(*(given[name] for name in names)):
            f = example(**{**given, **dict(zip(names, values))})(f)
        return f

    return add


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def _stored(a: np.ndarray, dtype: str) -> np.ndarray:
    return a.astype(dtype)


def _agree(f: Any, dtype: str, given: list[Any], written: list[int], length: int, size: float, seed: int, **settings: Any) -> None:
    """What f writes into given[i], i of `written`, is by one launch on the fake CuPy what its definition writes in float64.

    An array of `dtype` is a weight, or the cache; of the stream's dtype, something computed. One of 16 bits is rounded once. Bit i
    of the seed says whether array i begins at an odd place.
    """
    there = [placed(a, seed >> i & 1) if isinstance(a, np.ndarray) else tuple(placed(b, seed >> i & 1) for b in a)
             if isinstance(a, tuple) else a for i, a in enumerate(given)]
    truth = [wide_copy(a) for a in given]
    with counting() as counts:
        f(*there, **settings)
    assert sum(counts.launches.values()) == 1 and (counts.syncs, counts.uploads, counts.allocations) == (0, 0, 0)
    f(*truth, **settings)
    for i in written:
        found, wanted = HERE.host(there[i]), truth[i]
        assert found.dtype == given[i].dtype
        if found.dtype.kind == "i":
            np.testing.assert_array_equal(found, wanted)
            continue
        once = UNIT.get(str(found.dtype), 0.0) * np.abs(wanted) + (2.0**-25 if found.dtype == "float16" else 0.0)
        agree(found, wanted, bound(decode.stream_dtype(dtype), length, size) + once, f"argument {i}")


def wide_copy(a: Any) -> Any:
    """The same numbers in float64; integers and everything else as they are."""
    if isinstance(a, tuple):
        return tuple(map(wide_copy, a))
    return a.astype(a.dtype if a.dtype.kind == "i" else np.float64) if isinstance(a, np.ndarray) else a


def _norm(seed: int, d: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    return _stored(1.0 + 0.1 * _normal(seed, d), dtype), _stored(0.1 * _normal(seed + 1, d), dtype)


@kernel_test
@given(B=rows, d=width, V=st.integers(1, 40), dtype=stored, ring=st.integers(1, 5), made=st.integers(0, 12), seed=seeds)
def test_embed(B: int, d: int, V: int, dtype: str, ring: int, made: int, seed: int):
    """Tokens and places of rows that are padded; the tokens are kept, and the state moves on."""
    rng = np.random.default_rng(seed)
    ids, pad, place = rng.integers(-1, V, (1 + ring, B)), rng.integers(0, 4, B), int(rng.integers(4, 9))
    given = [ids, np.array([place, made]), pad, _stored(_normal(seed, V, d), dtype), _stored(_normal(seed + 1, 9, d), dtype),
             np.zeros((B, d), decode.stream_dtype(dtype))]
    _agree(decode.embed, dtype, given, [0, 1, 5], 1, 8.0, seed)


@kernel_test
@given(B=rows, k=width, m=width, dtype=stored, normed=st.booleans(), biased=st.booleans(), add=st.booleans(),
       act=st.sampled_from([None, "gelu_new", "gelu", "relu"]), panels=st.booleans(), seed=seeds)
@example(B=1, k=520, m=50, dtype="bfloat16", normed=True, biased=True, add=True, act="gelu_new", panels=True, seed=0)
@example(B=1, k=1037, m=3, dtype="float16", normed=True, biased=False, add=False, act=None, panels=False, seed=0)
@example(B=2, k=768, m=1100, dtype="float32", normed=False, biased=False, add=True, act=None, panels=False, seed=0)
@each(B=[1, 2, 3, 8], seed=[0, 2], k=64, m=9, dtype="float32", normed=True, biased=True, add=False, act="gelu_new", panels=True)
def test_linear(B: int, k: int, m: int, dtype: str, normed: bool, biased: bool, add: bool, act: str | None, panels: bool, seed: int):
    """Every row, width and end of a product, with x in shared memory whole or a panel at a time."""
    weight, bias = _stored(_normal(seed, m, k) / np.sqrt(k), dtype), _stored(_normal(seed + 1, m), dtype)
    stream = decode.stream_dtype(dtype)
    x, out = _normal(seed + 2, B, k).astype(stream), _normal(seed + 3, B, m).astype(stream)
    x[:, 0] += 3.0
    if normed and k < 4:                                # x̂ of two equal numbers is noise over √eps
        normed = False
    with pytest.MonkeyPatch.context() as patch:
        if panels:
            patch.setattr(wrappers, "PANEL", 1)
        patch.setattr(HERE, "processors", 1 + seed % 4)
        wrappers.cut.cache_clear()
        wanted = np.abs(weight.astype(np.float64)).sum(axis=1).max() * (3.0 + np.abs(x).max())
        _agree(lambda *given: decode.linear(*given[:4], norm=given[4], act=act, add=add), dtype,
               [x, weight, bias if biased else None, out, _norm(seed, k, dtype) if normed else None], [3], k,
               magnitude(x, out) + wanted, seed)
    wrappers.cut.cache_clear()


@kernel_test
@given(B=rows, h=st.integers(1, 5), e=st.integers(1, 20), S=st.integers(1, 6), place=st.integers(0, 5), dtype=stored, seed=seeds)
@each(B=[1, 2, 3, 8], seed=[0, 4], h=2, e=4, S=4, place=2, dtype="float32")
def test_qkv(B: int, h: int, e: int, S: int, place: int, dtype: str, seed: int):
    """q, and k and v at the last place taken of the cache; all else stays as it was."""
    d, stream = max(2, h) * e * 2, decode.stream_dtype(dtype)
    heads, place = max(2, h) * 2, min(place, S - 1)
    weight = _stored(_normal(seed, 3 * d, d) / np.sqrt(d), dtype)
    given = [_normal(seed + 1, B, d).astype(stream), _norm(seed, d, dtype), weight, _stored(_normal(seed + 2, 3 * d), dtype),
             np.zeros((B, d), stream), *(_stored(_normal(seed + i, B, heads, S, e), dtype) for i in (3, 4)), np.array([place + 1, 0])]
    _agree(decode.qkv, dtype, given, [4, 5, 6, 7], d, 4.0 * np.abs(weight.astype(np.float64)).sum(axis=1).max(), seed)


@kernel_test
@given(B=rows, h=st.integers(1, 4), e=st.integers(1, 40) | st.sampled_from([64, 128, 200, 255, 256]), S=st.integers(1, 150),
       dtype=stored, least=st.sampled_from([1, 7, 64]), seed=seeds)
@example(B=1, h=1, e=64, S=600, dtype="float32", least=64, seed=3)
@example(B=1, h=1, e=200, S=20, dtype="float64", least=64, seed=0)
@each(seed=[0, 2, 4], B=2, h=2, e=16, S=20, dtype="float32", least=7)
def test_attention(B: int, h: int, e: int, S: int, dtype: str, least: int, seed: int):
    """Rows that see from one key to all, in one part or in several; the room for parts is left as it was found."""
    rng, stream = np.random.default_rng(seed), decode.stream_dtype(dtype)
    end = int(rng.integers(1, S + 1))
    q, k, v = 2.0 * _normal(seed, B, h * e).astype(stream), _normal(seed + 1, B, h, S, e), _normal(seed + 2, B, h, S, e)
    k[:, :, end:] = v[:, :, end:] = np.nan              # what is not there yet
    pad = rng.integers(0, end, B)
    for row, n in enumerate(pad):
        k[row, :, :n] = v[row, :, :n] = np.nan
    parts = np.full((B, h, decode.PARTS, e + 2), np.nan, stream)
    given = [q, _stored(k, dtype), _stored(v, dtype), np.array([end, 0]), pad, np.zeros((B, h * e), stream), parts,
             np.zeros((B, h), np.int64)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wrappers, "LEAST", least)
        patch.setattr(HERE, "processors", 1 + seed % 20)
        scores = float(np.nanmax(np.abs(q)) * np.nanmax(np.abs(k)) * np.sqrt(e))
        _agree(decode.attention, dtype, given, [5, 7], e + end, (1.0 + scores) * float(np.nanmax(np.abs(v))), seed,
               scale=1.0 / np.sqrt(e))


@kernel_test
@given(B=rows, V=width | st.just(3000), less=st.integers(0, 3), dtype=st.sampled_from(["float32", "float64"]), seed=seeds,
       odd=st.sampled_from([None, np.nan, np.inf, -np.inf]))
def test_greedy(B: int, V: int, less: int, dtype: str, seed: int, odd: float | None):
    """The lowest place among equals, of the ids that there are; −1 where a number says that the model is broken."""
    logits = np.round(_normal(seed, B, V) * 2.0).astype(dtype)          # many equals
    if odd is not None:
        logits[:, ::7] = odd
    _agree(decode.greedy, dtype, [logits, np.zeros(B, np.int64)], [1], 1, 1.0, seed, vocab=max(1, V - less))


def test_the_definitions_on_the_standard():
    """They ask for nothing beyond the array API."""
    pytest.importorskip("array_api_strict")
    from minigrad.testing import array_api_strict as strict

    here = strict.install()
    B, h, e, S, V = 2, 2, 3, 5, 11
    d = h * e

    def run(place: Any) -> list[np.ndarray]:
        numbers = np.random.default_rng(1)

        def array(*shape: int) -> Any:
            return place.array(numbers.standard_normal(shape).astype(np.float32))

        ids, state, pad = (place.array(np.array(a)) for a in ([[3, 4], [0, 0], [0, 0]], [3, 0], [0, 1]))
        x, q, keys, values, y, logits = array(B, d), array(B, d), array(B, h, S, e), array(B, h, S, e), array(B, d), array(B, V)
        norm = array(d), array(d)
        decode.embed(ids, state, pad, array(V, d), array(S, d), x)
        decode.qkv(x, norm, array(3 * d, d), array(3 * d), q, keys, values, state)
        decode.attention(q, keys, values, state, pad, y, None, None, scale=0.5)
        for act in decode.ACTIVATIONS:
            decode.linear(y, array(d, d), array(d), x, act=act, add=True)
        decode.linear(x, array(V, d), None, logits, norm=norm)
        decode.greedy(logits, ids[0, :], vocab=V - 1)
        return [place.host(a) for a in (x, keys, values, logits, state)]

    for a, b in zip(run(here), run(backend.cpu)):
        assert np.abs(a - b).max() <= bound("float32", 64, magnitude(b))


# ── the kernels and their harness ──
def test_every_kernel_is_called():
    """Each kernel of the file has a wrapper that launches it, and each wrapper has a definition."""
    launched = set(re.findall(r'"(step_\w+)",', Path(wrappers.__file__).read_text(encoding="utf-8")))
    assert launched == cuda.parameters(SOURCE).keys()
    assert set(decode.KERNELS) == {name for name in HERE.kernels if name.startswith("step_")} - {"step_choose"}


BARRIERS = [m.start() for m in re.finditer(r"__syncthreads\(\);", SOURCE) if m.start() > SOURCE.index("// One step of decoding")]


def _run(text: str) -> None:
    """The kernels of this source, x in two panels or more."""
    options = compiler_options("float32", (("ROWS", 1), ("CHUNK", 4)))
    module, f = cuda.Module(text, options), np.float32
    d, m, rng = 300, 40, np.random.default_rng(0)
    ids, state, pad, x = np.array([[1], [0]]), np.array([5, 0]), np.array([2]), np.zeros((1, d), f)
    wte, wpe, weight, gain, shift = (rng.standard_normal(s).astype(f) for s in ((3, d), (9, d), (m, d), d, d))
    module.get_function("step_embed")((1,), (512,), (ids, state, pad, wte, wpe, x, 1, d, 1))
    out = np.zeros((1, m), f)
    module.get_function("step_linear")((2,), (512,), (x, gain, shift, weight, None, out, 1, d, m, 1, 1, 0, 0, 1e-5), shared_mem=8192)
    keys, values, y = (rng.standard_normal(s).astype(f) for s in ((1, 1, 9, 64), (1, 1, 9, 64), (1, 64)))
    found, parts, arrived = np.zeros((1, 64), f), np.zeros((1, 1, 1, 66), f), np.zeros(1, np.int64)
    module.get_function("step_attention")((1, 1, 1), (256,), (y, keys, values, state, pad, found, parts, arrived, None, None, 64, 9, 64,
                                                                      0, 0, 1.0),
                                          shared_mem=8 * 66 * 4)


@pytest.mark.parametrize("place", slow_unless(lambda i: i == 0, range(len(BARRIERS))))
def test_a_missing_barrier_is_refused(place: int):
    """With all of its barriers a kernel runs, and without any one of them it does not."""
    at = BARRIERS[place]
    _run(SOURCE)
    with pytest.raises(RuntimeError, match=UNORDERED):
        _run(SOURCE[:at] + SOURCE[at + len("__syncthreads();"):])


def test_definitions_of_rows_that_are_large_or_broken():
    """On NumPy, scores whose exponentials no float holds leave the value of the highest, in each head.

    A row without a number is that row's alone; ε is the one that is given.
    """
    q, keys = np.array([[1e3], [1e3]]), np.array([[[[1.0], [3.0], [2.0]]], [[[5.0], [3.0], [2.0]]]])
    values, out = np.array([[[[7.0], [8.0], [9.0]]]] * 2), np.zeros((2, 1))
    decode.attention(q, keys, values, np.array([3, 0]), np.array([0, 1]), out, None, None, scale=1.0)
    assert out.tolist() == [[8.0], [8.0]]
    two = np.zeros((1, 2))                              # two heads, whose scores are 0 and 1000
    keys, values = np.ones((1, 2, 3, 1)), np.arange(6.0).reshape(1, 2, 3, 1)
    decode.attention(np.array([[0.0, 1e3]]), keys, values, np.array([3, 0]), np.array([0]), two, None, None, scale=1.0)
    assert two.tolist() == [[1.0, 4.0]]
    normed = np.zeros((1, 2))
    decode.linear(np.array([[1.0, -1.0]]), np.eye(2), None, normed, norm=(np.ones(2), np.zeros(2)), eps=3.0)
    assert normed.tolist() == [[0.5, -0.5]]
    logits, ids = np.array([[0.0, 2.0, 1.0, 9.0], [np.nan, 0.0, 0.0, 9.0], [-np.inf] * 3 + [9.0]]), np.zeros(3, np.int64)
    decode.greedy(logits, ids, vocab=3)
    assert ids.tolist() == [1, -1, -1]
