"""Arrays of more than 2³¹ numbers: the end of a large one is computed as a small one is, to the bit, by every kernel.

Their memory is asked for and hardly ever touched, so that the system need not have it; of a grid only some blocks are run. Where a kernel
counts in int what does not fit one, the machine says so, or the number is another, or lies outside of its array.
"""
from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda_cases import normal
from device import HERE, needs_compiler

import minigrad.backend.cupy.attention as cupy_attention
import minigrad.backend.cupy.decode as cupy_decode
import minigrad.backend.cupy.kernels as wrappers
import minigrad.backend.cupy.sample as cupy_sample
from minigrad.testing import fake_cupy

MANY = 2**31 + 1000
UNRESERVED = 0x4000                                     # Linux' MAP_NORESERVE
pytestmark = [needs_compiler, pytest.mark.skipif(sys.platform != "linux" or sys.maxsize < 2**40,
                                                 reason="memory that is asked for and not touched costs nothing on 64-bit Linux")]


def sparse(*shape: int, dtype: Any = "float32") -> np.ndarray:
    """Zeros that take memory where they are written."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | UNRESERVED)
    except OSError as error:
        pytest.skip(f"this system gives no {size >> 30} GiB of memory that is not touched ({error})")
    return np.frombuffer(memory, dtype, count=math.prod(shape)).reshape(shape)


def there(array: Any) -> Any:
    """The same memory as an array of the fake CuPy."""
    return fake_cupy.ndarray(array)


def host(array: Any) -> np.ndarray:
    return array._numbers                               # not copied


@pytest.fixture(autouse=True)
def _unreserved(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the wrappers allocate is sparse too."""
    monkeypatch.setattr(HERE, "empty", lambda shape, dtype: there(sparse(*shape, dtype=dtype)))
    monkeypatch.setattr(HERE, "empty_like", lambda x: there(sparse(*x.shape, dtype=x.dtype)))


def at_ends(f: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """f, of whose grids the first block and the last two are run."""
    with fake_cupy.only_blocks(lambda blocks: sorted({0, max(0, blocks - 2), blocks - 1})):
        return f(*args, **options)


def small(f: Callable[..., Any], *arrays: Any, **options: Any) -> Any:
    return f(*(there(np.ascontiguousarray(a)) if isinstance(a, np.ndarray) else a for a in arrays), **options)


# ── a thread for each number ──
ELEMENTWISE: dict[str, tuple[int, str, Callable[..., Any]]] = {
    "add": (2, "float32", lambda a, b: wrappers.add(HERE, a, b)),
    "narrow": (1, "float32", lambda a: wrappers.astype(HERE, a, dtype="float16")),
    "widen": (1, "float16", lambda a: wrappers.astype(HERE, a, dtype="float32")),
    "gelu": (1, "float32", lambda a: wrappers.gelu(HERE, a)),
    "gelu_dx": (2, "float32", lambda g, a: wrappers.gelu_joint(HERE, g, a, None, "tanh")[0]),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_each_number_is_its_own(name: str):
    n, dtype, f = ELEMENTWISE[name]
    arrays = [sparse(MANY, dtype=dtype) for _ in range(n)]
    for i, a in enumerate(arrays):
        a[:400], a[-400:] = normal(i, 400), normal(i + 9, 400)
    found = host(at_ends(f, *map(there, arrays)))
    for part in (slice(400), slice(-400, None)):
        assert found[part].tobytes() == host(small(f, *(a[part] for a in arrays))).tobytes()


def test_a_bias_for_each_row(monkeypatch: pytest.MonkeyPatch):
    """The bias's own gradient is a sum over the rows, which is judged below."""
    monkeypatch.setattr(wrappers, "column_sums", lambda *_: None)
    d = 8
    x, g, bias = sparse(MANY // d, d), sparse(MANY // d, d), normal(0, d).astype(np.float32)
    for i, a in enumerate((x, g)):
        a[:50], a[-50:] = normal(i, 50, d), normal(i + 9, 50, d)
    found = [host(at_ends(wrappers.gelu, HERE, there(x), there(bias))),
             host(at_ends(lambda: wrappers.gelu_joint(HERE, there(g), there(x), there(bias), "tanh"))[0])]
    for part in (slice(50), slice(-50, None)):
        assert found[0][part].tobytes() == host(small(lambda a: wrappers.gelu(HERE, a, there(bias)), x[part])).tobytes()
        wanted = host(small(lambda h, a: wrappers.gelu_joint(HERE, h, a, there(bias), "tanh"), g[part], x[part])[0])
        assert found[1][part].tobytes() == wanted.tobytes()


def test_dropout_at_the_end_of_its_stream():
    """Number i has the draw i of the key, wherever it lies."""
    x, key, golden = sparse(MANY), 12345, 0x9E3779B97F4A7C15
    x[-400:] = normal(0, 400)
    found = host(at_ends(wrappers.dropout_op, HERE, there(x), p=0.4, key=key))[-400:]
    later = (key + (MANY - 400) // 2 * golden) % 2**64
    wanted = host(small(lambda a: wrappers.dropout_op(HERE, a, p=0.4, key=later), x[-400:]))
    assert found.tobytes() == wanted.tobytes() and 100 < np.count_nonzero(found) < 300


# ── rows ──
ROWS, D = 2**21 + 611, 1024


def rows_of(seed: int) -> np.ndarray:
    x = sparse(ROWS, D)
    x[:8], x[-3:] = normal(seed, 8, D), normal(seed + 1, 3, D)
    return x


def test_layer_norm():
    x, more, g, w, b = rows_of(0), rows_of(2), rows_of(4), *(normal(i, D).astype(np.float32) for i in (6, 7))

    def forth(x: Any, more: Any) -> list[np.ndarray]:
        both, saved = wrappers.normalized(HERE, x, more, there(w), there(b), 1e-5)
        return [host(both), host(saved.out), *(host(saved.extra[n]) for n in ("mean_", "rstd"))]

    def back(g: Any, x: Any, mean: Any, rstd: Any) -> np.ndarray:
        return host(wrappers.layer_norm_joint_into(HERE, x, g, x, there(w), mean, rstd, (True,) * 3)[0])

    found = at_ends(forth, there(x), there(more))
    dx = at_ends(back, there(g), *map(there, (found[0], *found[2:])))
    for part in (slice(8), slice(-3, None)):
        wanted = small(forth, x[part], more[part])
        assert [a[part].tobytes() for a in found] == [a.tobytes() for a in wanted]
        assert dx[part].tobytes() == small(back, g[part], wanted[0], *wanted[2:]).tobytes()


def test_sums_over_rows():
    """The last columns of the last part, which has every 512th eight rows."""
    grid, last = wrappers.column_blocks(ROWS, D), slice(D - 32, None)
    mean, rstd, here = sparse(ROWS), sparse(ROWS), [r for r in range(ROWS - 2000, ROWS) if r // 8 % grid[1] == grid[1] - 1]
    x, g = sparse(ROWS, D), sparse(ROWS, D)
    assert len(here) >= 24 and here[-1] * D > 2**31
    for a in (x, g):
        a[here] = np.random.default_rng(len(here)).integers(-8, 8, (len(here), D))          # so that sums are exact
    mean[here], rstd[here] = 1.0, 2.0
    sums, columns = sparse(grid[1], 2, D), sparse(grid[1], D)
    at_ends(HERE.launch, "layer_norm_sums", x.dtype, grid, (32, 8), *map(there, (g, x, mean, rstd, sums)), ROWS, D, shared=2048)
    at_ends(HERE.launch, "column_sums", x.dtype, grid, (32, 8), there(x), there(columns), ROWS, D, shared=1024)
    assert columns[-1, last].tolist() == x[here][:, last].sum(axis=0).tolist()
    assert sums[-1, 0, last].tolist() == (g[here] * (x[here] - 1.0) * 2.0)[:, last].sum(axis=0).tolist()
    assert sums[-1, 1, last].tolist() == g[here][:, last].sum(axis=0).tolist()


def test_more_rows_than_a_grid_has_blocks_along_y():
    """65,535 at most: more rows than eight of each are summed up in parts."""
    x = np.ones((8 * 65535 + 9, 1), np.float32)
    assert HERE.host(wrappers.column_sums(HERE, HERE.array(x), 1)).tolist() == [len(x)]
    zeros = HERE.zeros(len(x), dtype="float32")
    sums = wrappers.layer_norm_joint(HERE, HERE.array(x), HERE.array(x), HERE.array(x[0]), zeros, zeros, (False, True, True))[1:]
    assert [HERE.host(a).tolist() for a in sums] == [[0.0], [len(x)]]


def test_cross_entropy():
    rows, V, n = 45_000, 50_304, 50
    logits, ids = sparse(rows, V), np.zeros(rows, np.int64)
    logits[-1, :n], ids[-1] = 3.0 * normal(0, n), 7
    lse, nll = (host(a) for a in at_ends(wrappers.lse_and_nll, HERE, there(logits), there(ids), n))
    one = [host(a) for a in small(lambda x, i: wrappers.lse_and_nll(HERE, x, i, n), logits[-1:, :n], ids[-1:])]
    assert [lse[-1], nll[-1]] == [one[0][0], one[1][0]] and nll[-1] > 0.0
    g, scale, out = np.array(1.5, np.float32), np.full(rows, 0.5, np.float32), sparse(rows, V)
    at_ends(wrappers.to_gradient, HERE, *map(there, (g, logits, ids, lse, scale, out)), n)
    alone = sparse(1, n)
    small(lambda *a: wrappers.to_gradient(HERE, *a, there(alone), n), g, logits[-1:, :n], ids[-1:], lse[-1:], scale[-1:])
    assert out[-1, :n].tobytes() == alone[0].tobytes() and np.count_nonzero(alone) == n


def test_the_token_table():
    """Rows beyond 2³¹ numbers of the table, and of what is added to them."""
    table, values = sparse(ROWS, D), sparse(ROWS, D)
    ids = np.array([5, ROWS - 1, 5, ROWS - 2, ROWS - 1])
    table[ids], values[:5] = 1.0, normal(0, 5, D)
    wanted = table[ids].copy()
    for i, row in enumerate(ids):
        wanted[[k for k, r in enumerate(ids) if r == row]] += values[i]
    wrappers.add_rows(HERE, there(table), there(ids), there(values[:5]))
    np.testing.assert_allclose(table[ids], wanted, rtol=1e-6, atol=1e-6)
    order = np.array([0, ROWS - 1])
    values[-1] = normal(1, D)
    HERE.launch("add_rows", table.dtype, (2,), (256,), *map(there, (table, np.array([7, 9]), order, values)), 2, D)
    assert table[9].tobytes() == values[-1].tobytes()


def test_the_optimizer():
    """The last blocks of parameters, and their sum of squares."""
    arrays = [sparse(MANY) for _ in range(4)]
    for i, a in enumerate(arrays):
        a[-400:] = np.abs(normal(i, 400))
    p, g, m, v = ([there(a)] for a in arrays)
    ends = [[there(a[-400:].copy())] for a in arrays]
    how = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "correct1": 0.5, "correct2": 0.5}
    sums = host(at_ends(wrappers.sums_of_squares, HERE, g))
    assert math.isclose(sums[-1], host(small(lambda: wrappers.sums_of_squares(HERE, ends[1])))[0], rel_tol=1e-6) and sums[-1] > 100.0
    at_ends(wrappers.adamw_update, HERE, p, g, m, v, **how)
    wrappers.adamw_update(HERE, *ends, **how)
    at_ends(wrappers.scale, HERE, g, 0.5)
    wrappers.scale(HERE, ends[1], 0.5)
    assert [a[-400:].tobytes() for a in arrays] == [host(a[0]).tobytes() for a in ends]


# ── attention ──
def forth_and_back(g: Any, q: Any, k: Any, v: Any) -> list[np.ndarray]:
    saved = cupy_attention.attention(HERE, q, k, v)
    out, lse = saved.out, saved.extra["lse"]
    return [host(a) for a in (out, lse, *cupy_attention.attention_joint(HERE, g, q, k, v, None, out, lse, True, None, 0.0, 0)[:3])]


@pytest.mark.parametrize("axis", ["batch", "head", "row"])
@pytest.mark.parametrize(("dtype", "odd"), [("float32", 0), ("float32", 1), ("bfloat16", 0)])
def test_attention_over_rows_that_are_far_apart(axis: str, dtype: str, odd: int):
    """Steps of more than 2³¹ numbers from one batch, head or row to the next, in pieces of 16 bytes and number by number."""
    B, h, T, d = 2, 2, 3, 8
    arrays = [normal(i, B, h, T, d).astype(dtype) for i in range(4)]

    def laid(a: np.ndarray, far: int) -> Any:
        steps = {"batch": (far, 64, 16), "head": (64, far, 16), "row": (64, 16, far)}[axis]
        whole = sparse(sum((n - 1) * s for n, s in zip((B, h, T), steps)) + d, dtype=dtype)
        view = np.lib.stride_tricks.as_strided(whole, (B, h, T, d), [n * a.itemsize for n in (*steps, 1)])
        view[...] = a
        return there(view)

    found, wanted = (forth_and_back(*(laid(a, far + odd) for a in arrays)) for far in (2**31 + 64, 256))
    assert [a.tobytes() for a in found] == [a.tobytes() for a in wanted]


def test_attention_over_many_batches():
    """Results of more than 2³¹ numbers."""
    T, d, B = 16, 64, 2**31 // (16 * 64) + 2
    alone = [normal(i, 1, 1, T, d).astype(np.float32) for i in range(4)]
    found = at_ends(forth_and_back, *(there(np.broadcast_to(a, (B, 1, T, d))) for a in alone))
    for a, b in zip(found, small(forth_and_back, *alone)):
        assert a[-1:].tobytes() == a[:1].tobytes() == b.tobytes()


# ── a step of decoding ──
def test_a_step_with_large_tables():
    """A token, and a position, whose rows lie beyond 2³¹ numbers."""
    table, x, ids = sparse(ROWS, D), sparse(1, D), np.array([[ROWS - 1], [0]])
    table[-1], table[-2] = normal(0, D), normal(1, D)
    for first, second in ((ids, 3), (np.array([[3], [0]]), ROWS - 2)):
        cupy_decode.step_embed(HERE, *map(there, (first.copy(), np.array([second, 0]), np.array([0]), table, table, x)))
        assert x[0].tobytes() == (table[first[0, 0]] + table[second]).tobytes()


@pytest.mark.parametrize(("rows", "k"), [(1, D), (3, D), (1, D - 1)])
def test_a_product_with_a_large_matrix(rows: int, k: int, monkeypatch: pytest.MonkeyPatch):
    """The rows of its last block, read in pieces of 16 bytes and number by number."""
    outs = 2**31 // k + 9
    weight, x, out = sparse(outs, k), normal(0, rows, k).astype(np.float32), sparse(rows, outs)
    weight[-4:] = normal(1, 4, k)
    monkeypatch.setattr(HERE, "processors", outs)       # a row for each block
    cupy_decode.cut.cache_clear()
    how: dict[str, Any] = {"norm": None, "eps": 1e-5, "act": None, "add": False}
    at_ends(cupy_decode.step_linear, HERE, there(x), there(weight), None, there(out), **how)
    np.testing.assert_allclose(out[:, -1], x @ weight[-1], rtol=1e-4, atol=1e-4)
    cupy_decode.cut.cache_clear()


def test_a_large_cache():
    """Keys and values are written, and read, beyond 2³¹ numbers."""
    heads, e, d = 2, 64, 128
    size = 2**31 // e + 50
    keys, values = (sparse(1, heads, size, e) for _ in range(2))
    x, weight, bias, norm = normal(0, 1, d).astype(np.float32), normal(1, 3 * d, d).astype(np.float32), np.zeros(3 * d, np.float32), 1.0
    gain, shift = (np.full(d, v, np.float32) for v in (norm, 0.0))
    q, state = sparse(1, d), np.array([size, 0])
    cupy_decode.step_qkv(HERE, there(x), (there(gain), there(shift)), there(weight), there(bias), there(q), there(keys), there(values),
                         there(state), eps=1e-5)
    y = (x - x.mean()) / np.sqrt(x.var() + 1e-5) @ weight.T
    for cache, part in ((keys, y[:, d:2 * d]), (values, y[:, 2 * d:])):
        np.testing.assert_allclose(cache[0, :, -1, :].ravel(), part[0], rtol=1e-3, atol=1e-3)
        cache[0, :, -40:-1] = normal(int(cache is keys), heads, 39, e)
    found, few = sparse(1, d), [np.ascontiguousarray(a[:, :, -40:]) for a in (keys, values)]
    for out, k, v, end in ((found, keys, values, size), (alone := sparse(1, d), *few, 40)):
        parts, arrived = sparse(1, heads, 1, e + 2), np.zeros((1, heads), np.int64)
        cupy_decode.step_attention(HERE, *map(there, (q, k, v, np.array([end, 0]), np.array([end - 40]), out, parts, arrived)),
                                   scale=0.1, soon=())
    assert found.tobytes() == alone.tobytes() and found.any()


def test_a_choice_among_logits_that_are_far_apart():
    """Rows of logits, and of what was seen, beyond 2³¹ numbers."""
    V, n = 2**31 + 64, 50
    logits = sparse(3, V)
    logits[:, :n] = 3.0 * normal(0, 3, n)
    ids, few = np.zeros(3, np.int64), np.zeros(3, np.int64)
    cupy_sample.step_greedy(HERE, there(logits), there(ids), vocab=n)
    assert ids.tolist() == logits[:, :n].argmax(axis=1).tolist()
    draws = np.random.default_rng(0).random((1, 3))
    for x, chosen in ((logits, ids), (np.ascontiguousarray(logits[:, :n]), few)):
        seen, weights = np.zeros((3, n), np.int64), sparse(3, n)
        cupy_sample.step_choose(HERE, *map(there, (x, draws, np.array([0]), seen, weights, chosen)), vocab=n, temperature=1.0, top_k=n,
                                top_p=1.0, min_p=0.0, penalty=1.3)
        assert seen.sum() == 3
    assert ids.tolist() == few.tolist()
