"""attention.cu, run on a CPU thread by thread: value and gradients over odd shapes, layouts and all kinds of number.

How far numbers of 16 bits may be off, to first order: u is the relative error of rounding once, t the absolute one of float16's least
numbers, and all that is not named here is done in float32, within the laws' bound. For out the weights are rounded before they are
multiplied with v: each relative to a sum of at least 1, so Δout ≤ Σ_j (u P_ij + t) |v_j|, and out is rounded once more. ∂v has the
weights rounded alike: Σ_i (u P_ij + t) |g_i|. D = rowsum(g ⊙ out) takes out as it is stored: ΔD_i ≤ |g_i| · Δout_i; and
∂S = P ⊙ (g Vᵀ − D) is rounded before its products: Δ∂S ≤ P ΔD + u (|∂S| + P ΔD) + t, which reaches ∂q as s Δ∂S |k| and ∂k as s Δ∂Sᵀ |q|.
"""
from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from cuda_cases import FLOAT, LEAST, UNIT, UNORDERED, agree, close, normal, stored
from device import DEVICE, HERE, counting, kernel_test, needs_compiler
from hypothesis import example, given
from hypothesis import strategies as st
from long import slow_unless

import minigrad as mg
from minigrad.backend.cupy import attention as cupy_attention
from minigrad.backend.cupy import source
from minigrad.op import REGISTRY
from minigrad.ops.shape import join_heads, split_heads
from minigrad.testing.fake_cupy import cuda
from minigrad.testing.laws.tolerance import bound, magnitude

pytestmark = needs_compiler

batches = st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 3)])
lengths = st.integers(1, 20) | st.sampled_from([31, 32, 33, 63, 64, 65, 130])          # around the tiles
widths = st.integers(1, 20) | st.sampled_from([24, 33, 40, 63, 64])
layouts = st.sampled_from(["plain", "heads", "island", "shifted", "ragged", "columns"])


def laid(x: np.ndarray, how: str) -> Any:
    """x [B, h, T, d] on the fake CuPy: contiguous; a part of a product as split_heads cuts it; some of the numbers of a larger array; with
    its numbers not side by side. Whatever is around it is NaN."""
    B, h, T, d = x.shape
    if how == "heads":
        whole = np.full((B, T, 3, h, d), np.nan, x.dtype)
        whole[:, :, 1] = x.swapaxes(1, 2)
        return HERE.swapaxes(HERE.array(whole)[:, :, 1], 1, 2)
    if how in ("island", "shifted"):                    # rows that do not begin on 16 bytes: some of them, or all
        whole = np.full((B, h, T + 2, d + (3 if how == "island" else 8)), np.nan, x.dtype)
        whole[:, :, 1:-1, 2:d + 2] = x
        return HERE.array(whole)[:, :, 1:-1, 2:d + 2]
    if how == "ragged":                                 # the first row begins on 16 bytes, and the next one does not
        whole = np.full((B, h, T, d + 1), np.nan, x.dtype)
        whole[..., :d] = x
        return HERE.array(whole)[..., :d]
    if how == "columns":
        return HERE.swapaxes(HERE.array(np.ascontiguousarray(x.swapaxes(2, 3))), 2, 3)
    return HERE.array(x)


def seen(queries: int, keys: int, causal: bool) -> np.ndarray:
    return np.tri(queries, keys, keys - queries, dtype=bool) if causal else np.ones((queries, keys), dtype=bool)


def truth(g: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool, s: float, dtype: str) -> tuple[list[Any], list[Any]]:
    """out, lse, ∂q, ∂k and ∂v in float64, and how far 16 bits may be off."""
    def turned(x: np.ndarray) -> np.ndarray:
        return x.swapaxes(-1, -2)

    def rounded(x: np.ndarray, off: np.ndarray) -> np.ndarray:
        return off + u * (np.abs(x) + off) + t

    scores = np.where(seen(q.shape[-2], k.shape[-2], causal), s * (q @ turned(k)), -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    lse = top + np.log(np.exp(scores - top).sum(axis=-1, keepdims=True))
    P = np.exp(scores - lse)
    out = P @ v
    dS = P * (g @ turned(v) - (g * out).sum(axis=-1, keepdims=True))
    dq, dk, dv = s * dS @ k, s * turned(dS) @ q, turned(P) @ g

    u, t = UNIT.get(dtype, 0.0), LEAST.get(dtype, 0.0)
    off = rounded(out, (u * P + t) @ np.abs(v))
    along = P * (np.abs(g) * off).sum(axis=-1, keepdims=True)
    ds = along + u * (np.abs(dS) + along) + t
    offs = [off, np.zeros_like(lse), rounded(dq, s * ds @ np.abs(k)), rounded(dk, s * turned(ds) @ np.abs(q)),
            rounded(dv, turned(u * P + t) @ np.abs(g))]
    return [out, lse, dq, dk, dv], offs


def forth_and_back(g: Any, q: Any, k: Any, v: Any, causal: bool, scale: float | None) -> list[Any]:
    """What the kernels make of arrays of the fake CuPy: out, lse, ∂q, ∂k, ∂v."""
    saved = HERE.kernels["attention"](HERE, q, k, v, causal=causal, scale=scale)
    out, lse = saved.out, saved.extra["lse"]
    grads = HERE.kernels["attention/joint"](g, q, k, v, None, out, lse, causal, scale, 0.0, 0)
    return [out, lse, *grads[:3]]


def check(arrays: list[np.ndarray], how: list[str], causal: bool, scale: float | None, dtype: str) -> None:
    arrays = [a.astype(dtype) for a in arrays]
    g, q, k, v = (a.astype(np.float64) for a in arrays)
    wanted, offs = truth(g, q, k, v, causal, 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale, dtype)
    given = [laid(a, h) for a, h in zip(arrays, how)]
    with counting() as counts:
        found = forth_and_back(*given, causal, scale)
    assert counts.syncs == counts.uploads == 0 and sum(counts.launches.values()) == 4
    copies = [a.shape[-1] > 1 and a.strides[-1] != a.dtype.itemsize for a in given]
    assert counts.allocations == 6 + sum(copies) + sum(copies[1:])      # out, lse, D and three gradients; nothing is copied without need
    real = "float32" if dtype in UNIT else dtype
    about = bound(real, max(q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1]), magnitude(*wanted, g, q, k, v) ** 2)
    for a, b, off, name in zip(map(HERE.host, found), wanted, offs, ("out", "lse", "dq", "dk", "dv")):
        assert a.dtype == (real if name == "lse" else dtype) and a.shape == b.shape
        agree(a, b, about + off, name)
    again = forth_and_back(*given, causal, scale)
    assert [HERE.host(a).tobytes() for a in again] == [HERE.host(a).tobytes() for a in found]


@kernel_test
@given(batch=batches, T=lengths, extra=st.integers(0, 70), d=widths, e=widths, causal=st.booleans(), dtype=stored, seed=st.integers(0, 99),
       how=st.lists(layouts, min_size=4, max_size=4), scale=st.sampled_from([None, 0.3, 2.0]))
@example(batch=(1, 2), T=130, extra=0, d=64, e=64, causal=True, dtype="bfloat16", seed=0, how=["heads"] * 4, scale=None)
@example(batch=(1, 2), T=70, extra=0, d=64, e=64, causal=True, dtype="float32", seed=0, how=["heads"] * 4, scale=None)
@example(batch=(1, 1), T=70, extra=3, d=128, e=72, causal=True, dtype="float16", seed=0, how=["heads"] * 4, scale=None)
@example(batch=(1, 1), T=40, extra=9, d=80, e=128, causal=True, dtype="float32", seed=0, how=["plain"] * 4, scale=None)
@example(batch=(1, 1), T=20, extra=9, d=128, e=100, causal=True, dtype="float64", seed=0, how=["island"] * 4, scale=None)
@example(batch=(1, 1), T=9, extra=9, d=8, e=16, causal=True, dtype="bfloat16", seed=0, how=["shifted"] * 4, scale=None)
@example(batch=(1, 1), T=33, extra=0, d=64, e=64, causal=True, dtype="bfloat16", seed=0, how=["ragged"] * 4, scale=None)
@example(batch=(1, 1), T=9, extra=2, d=16, e=16, causal=True, dtype="float32", seed=0, how=["ragged"] * 4, scale=None)
@example(batch=(2, 2), T=1, extra=69, d=64, e=64, causal=True, dtype="bfloat16", seed=0, how=["heads"] * 4, scale=None)
def test_value_and_gradients(batch: tuple[int, int], T: int, extra: int, d: int, e: int, causal: bool, dtype: str, seed: int,
                             how: list[str], scale: float | None):
    """Each within its bound, wherever the arrays lie, without copies of what has its numbers side by side; equal calls give equal bits."""
    if T + extra > 80 and batch != (1, 2):
        batch = (1, 1)
    shapes = [(T, e), (T, d), (T + extra, d), (T + extra, e)]
    check([normal(seed + i, *batch, *shape) for i, shape in enumerate(shapes)], how, causal, scale, dtype)


@kernel_test
@given(slope=st.sampled_from([-3.0, -0.5, 0.5, 3.0]), T=st.sampled_from([33, 70]), dtype=stored)
def test_scores_that_rise_or_fall(slope: float, T: int, dtype: str):
    """Where later keys, or earlier ones, have all the weight, and the scores would overflow if they were not shifted."""
    g, q, k, v = (normal(i, 1, 1, T, 5) for i in range(4))
    q[..., 0], k[..., 0] = 8.0, slope * np.arange(T)
    check([g, q, k / 8.0, v], ["plain"] * 4, True, 1.0, dtype)


def test_a_tile_of_scores_that_overflow():
    """Keys whose scores are −∞ have no weight, also where a whole tile has no other."""
    g, q, k, v = (normal(i, 1, 1, 50, 8).astype(np.float32) for i in range(4))
    q[..., 0], k[..., 0], k[..., :40, 0] = 1e30, 0.0, -1e30
    whole = forth_and_back(*map(HERE.array, (g, q, k, v)), False, None)
    rest = forth_and_back(*map(HERE.array, (g, q, np.ascontiguousarray(k[..., 40:, :]), np.ascontiguousarray(v[..., 40:, :]))), False, None)
    for a, b in zip(map(HERE.host, whole[:2]), map(HERE.host, rest[:2])):
        assert np.abs(a - b).max() <= bound("float32", 50, magnitude(g, q[..., 1:], k[..., 1:], v) ** 2)


@kernel_test
@given(B=st.integers(1, 2), T=lengths, h=st.integers(1, 3), d=st.sampled_from([1, 5, 8, 64]), dtype=st.sampled_from(["float32", "float64"]))
def test_from_a_product_to_joined_heads(B: int, T: int, h: int, d: int, dtype: str):
    """As the model has it, with its derivative, against the definition; joining the heads copies nothing."""
    def run(f: Any, device: str, kind: str) -> list[np.ndarray]:
        x = mg.tensor(normal(T, B, T, 3 * h * d).astype(dtype).astype(kind), device=device, requires_grad=True)
        y = f(*split_heads(x, heads=h, parts=3))
        with counting() as counts:
            joined = join_heads(y)
        assert counts.allocations == 0
        joined.backward(mg.tensor(normal(T + 1, B, T, h * d).astype(dtype).astype(kind), device=device))
        return [joined.numpy(), x.grad.numpy()]

    wanted = run(lambda q, k, v: REGISTRY["attention"].definition(q, k, v, causal=True), "numpy", "float64")
    close(run(lambda q, k, v: mg.attention(q, k, v, causal=True), DEVICE, dtype), wanted, dtype, max(T, d), magnitude(*wanted) ** 2)


@pytest.mark.parametrize(("dtype", "T", "cut"), [("float32", 70, 64), ("bfloat16", 130, 128), ("float64", 40, 32)])
def test_what_no_query_of_a_block_sees_is_not_read(dtype: str, T: int, cut: int):
    """NaN among later keys, and among earlier queries, changes nothing."""
    g, q, k, v = (normal(i, 1, 1, T, 64).astype(dtype) for i in range(4))

    def poisoned(x: np.ndarray, here: slice) -> Any:
        x = x.copy()
        x[..., here, :] = np.nan
        return HERE.array(x)

    late, early = slice(cut, T), slice(0, cut)
    clean = [HERE.host(a) for a in forth_and_back(*map(HERE.array, (g, q, k, v)), True, None)]
    out, lse, dq, *_ = forth_and_back(HERE.array(g), HERE.array(q), poisoned(k, late), poisoned(v, late), True, None)
    *_, dk, dv = forth_and_back(poisoned(g, early), poisoned(q, early), HERE.array(k), HERE.array(v), True, None)
    for a, b, here in zip(map(HERE.host, (out, lse, dq, dk, dv)), clean, [early] * 3 + [late] * 2):
        assert a[..., here, :].tobytes() == b[..., here, :].tobytes()


@pytest.mark.parametrize("lead", [(), (3,), (1, 2, 2), (2, 1, 2, 2)])
def test_any_number_of_leading_axes(lead: tuple[int, ...]):
    """[T, d] alone, and heads in as many axes as one likes."""
    g, q, k, v = (normal(i, *lead, 9, 4).astype(np.float64) for i in range(4))
    wanted, _ = truth(g, q, k, v, True, 0.5, "float64")
    found = forth_and_back(*(HERE.array(a) for a in (g, q, k, v)), True, None)
    for a, b in zip(map(HERE.host, found), wanted):
        assert a.shape == b.shape and np.abs(a - b).max() <= bound("float64", 9, magnitude(*wanted, g, q, k, v) ** 2)


def test_what_it_is_not_for_goes_another_way(monkeypatch: pytest.MonkeyPatch):
    """Padding, dropout, queries without keys, wide heads, a scale that is not positive, and 16 bits without tensor cores."""
    def launches(*, T: int = 4, S: int = 4, d: int = 4, e: int = 4, dtype: str = "float32", **settings: Any) -> int:
        q, k, v = (HERE.array(normal(0, 1, *shape).astype(dtype)) for shape in ((T, d), (S, d), (S, e)))
        with counting() as counts:
            HERE.run("attention", lambda *_, **__: None, q, k, v, **settings)
        return sum(counts.launches.values())

    assert launches() == launches(S=6) == launches(T=6, causal=False) == launches(dtype="bfloat16") == 1
    assert launches(d=128) == launches(e=128) == 1 and launches(d=129) == launches(e=129) == 0
    assert launches(T=6) == launches(p=0.5) == launches(scale=-1.0) == launches(scale=0.0) == 0
    assert launches(mask=HERE.array(np.ones((1, 4, 4), dtype=bool))) == 0
    monkeypatch.setattr(HERE, "capability", lambda: 75)
    assert launches(dtype="bfloat16") == launches(dtype="float16") == 0 and launches() == 1


# ── what makes a thread wait ──
WAITS = r"__syncthreads\(\);|__syncwarp\(\);|copied\(\);(?!\s*\})"
SOURCE = re.sub(r"^KERNEL \w+_128\(.*?^}\n", "", source("attention.cu"), flags=re.DOTALL | re.MULTILINE)  # half of it compiles sooner
START = SOURCE.index("struct Rows")
PLACES = [m.span() for m in re.finditer(WAITS, SOURCE[START:])]


def answers(text: str, options: tuple[str, str], dtype: str) -> list[np.ndarray]:
    """What the kernels compute, with more than two tiles of everything, by this source."""
    module = cuda.Module(text, options)
    T, d, real = 200 if dtype == "float16" else 70, 64, "float32"
    g, q, k, v = (normal(i, T, d).astype(dtype) for i in range(4))
    out, dq, dk, dv = (np.zeros((T, d), dtype) for _ in range(4))
    lse, room, steps = np.zeros(T, real), -(-T // 64) * 64, (0, 0, d)
    stats = np.zeros((room, 2), real)

    def launch(name: str, tiles: int, *args: Any) -> None:
        rows, threads, _ = cupy_attention.dealt(q.dtype, d, tiles)
        module.get_function(name)((-(-T // rows),), (threads,), args, shared_mem=cupy_attention.SHARED)

    launch("flash_attention_64", 2, q, k, v, out, lse, *steps * 3, 1, T, T, d, d, 1, 0.125)
    module.get_function("attention_statistics")((room // 32,), (256,), (g, out, lse, stats, *steps * 2, 1, T, d, room, room))
    launch("flash_attention_dq_64", 1, g, q, k, v, stats, dq, *steps * 4, 1, T, T, room, d, d, 1, 0.125)
    launch("flash_attention_dk_dv_64", 1, g, q, k, v, stats, dk, dv, *steps * 4, 1, T, T, room, d, d, 1, 0.125)
    return [out, lse, dq, dk, dv]


@pytest.mark.parametrize("place", slow_unless(lambda i: i == 0, range(len(PLACES))))
def test_a_missing_wait_is_refused(place: int):
    """With all places where threads wait for each other, or for memory, the kernels run; without any one of them they do not."""
    start, end = (START + i for i in PLACES[place])
    kinds = [(("-DSTORE=Half", "-DREAL=float"), "float16"), (FLOAT, "float32")]
    refused = 0
    for options, dtype in kinds:
        assert all(np.isfinite(a).all() for a in answers(SOURCE, options, dtype))
        try:
            answers(SOURCE[:start] + SOURCE[end:], options, dtype)
        except RuntimeError as error:
            refused += re.search(UNORDERED, str(error)) is not None
    assert refused, f"the kernels run without {SOURCE[start:end]} in {SOURCE[start - 200:end]}"
