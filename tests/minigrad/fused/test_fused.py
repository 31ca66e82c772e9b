"""Fused ops on sizes that go through several blocks and threads, and what they promise beyond their definitions."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from compare import close
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from minigrad import backend, fused, random
from minigrad.backend.numpy import packed_linear as panels_of
from minigrad.backend.numpy.sizes import SIZES
from minigrad.fused.packed_linear import unpack
from minigrad.op import REGISTRY
from minigrad.testing.domains.fused import attention_in_torch

FUSED = {name: o for name, o in REGISTRY.items() if o.definition is not None}
pytestmark = [pytest.mark.filterwarnings("ignore::RuntimeWarning"), pytest.mark.rounding]


@pytest.fixture(params=["own", "numpy"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run with every op's own kernel and rule, and with the NumPy backend's replacements."""
    if request.param == "own":
        monkeypatch.setattr(backend.cpu, "kernels", {})
    return request.param


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """As many processors as the NumPy backend's kernels believe to have."""
    monkeypatch.setattr(SIZES, "threads", request.param)
    return request.param


def _derivatives(f: Callable[..., Any], arrays: list[Any], g: Any, weights: list[Any]) -> tuple[Any, Any, Any]:
    """f's value, its VJP with g, and the VJP of ⟨VJP, weights⟩ in all inputs and in g."""
    xs = [mg.Tensor(a).requires_grad_() for a in arrays]
    y = f(*xs)
    first = mg.gradients(y, xs, g, retain_graph=True)
    seed = mg.Tensor(g).requires_grad_()
    live = mg.gradients(y, xs, seed, create_graph=True)
    total = mg.tensor(0.0, dtype="float64")
    for d, w in zip(live, weights):
        total = total + (d * mg.Tensor(w)).sum()
    return y, first, mg.gradients(total, [*xs, seed])


def _same(name: str, arrays: list[Any], static: dict[str, Any], constants: tuple[Any, ...] = (), *, terms: float, seed: int = 0) -> None:
    """The fused op and its definition agree to `terms` roundings in value, VJP and HVP; the inputs are as they were."""
    o, rng = FUSED[name], np.random.default_rng(seed)
    shape = o(*arrays, *constants, **static).shape
    g, weights = rng.standard_normal(shape), [rng.standard_normal(a.shape) for a in arrays]
    before = [a.copy() for a in (*arrays, g)]
    quick = _derivatives(lambda *xs: o(*xs, *constants, **static), arrays, g, weights)
    slow = _derivatives(lambda *xs: o.definition(*xs, *constants, **static), arrays, g, weights)
    close(quick[0], slow[0], terms=terms, what="value")
    for i, (a, b) in enumerate(zip(quick[1], slow[1])):
        close(a, b, terms=terms, what=f"VJP {i}")
    scale = max(float(np.abs(b.numpy()).max(initial=0.0)) for b in slow[1])
    for i, (a, b) in enumerate(zip(quick[2], slow[2])):
        close(a, b, terms=terms, scale=scale, what=f"HVP {i}")
    for a, b in zip((*arrays, g), before):
        np.testing.assert_array_equal(a, b, err_msg="an input or a cotangent was written to")


def test_these_ops_are_fused():
    """The ops that promise to equal a unfused definition; test_laws.py holds each to it on small inputs of every layout."""
    assert FUSED.keys() == {"addmm", "linear", "softmax", "log_softmax", "layer_norm", "gelu", "cross_entropy", "linear_cross_entropy",
                            "packed_linear", "attention"}


def test_replacement_kernels_are_named_after_ops():
    """Each name among a backend's kernels is an op, an argument's rule (a "+" adds into a sum), a joint rule, or adamw_update."""
    known = {"adamw_update"} | REGISTRY.keys()
    for name, o in REGISTRY.items():
        known |= {f"{name}/{a}{plus}" for a in o.rules for plus in ("", "+")} | ({f"{name}/joint"} if o.joint else set())
    assert backend.cpu.kernels.keys() <= known
    assert backend.cpu.kernels.keys() >= {"gelu", "gelu/joint", "layer_norm", "layer_norm/joint", "cross_entropy", "cross_entropy/logits",
                                          "dropout_op", "attention", "attention/joint", "adamw_update"}


# ── sizes that go through several blocks and several threads ──
ROWS, WIDTH = 6 * SIZES.block // 64 + 1, 64                   # six blocks and a rest: enough to be dealt to three threads


def _rng(*shape: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


# Elementwise: a chain of at most 40 roundings.
def test_large_gelu(threads: int):
    """GELU over many blocks, on a strided input too, is its definition."""
    x = _rng(3 * SIZES.block + 3, 2)
    _same("gelu", [x], {"approximate": "tanh"}, terms=40 * 10)
    _same("gelu", [x[:9].T], {"approximate": "tanh"}, terms=40 * 10)


def test_large_layer_norm(threads: int):
    """LayerNorm over many blocks is its definition; the sums over rows take ROWS terms."""
    _same("layer_norm", [_rng(ROWS, WIDTH) + 3.0, _rng(WIDTH), _rng(WIDTH)], {}, terms=10 * ROWS)


def test_large_cross_entropy(threads: int):
    """Cross-entropy over many blocks, some rows ignored, is its definition."""
    rng = np.random.default_rng(2)
    targets = rng.integers(0, WIDTH, (ROWS // 3, 3))
    targets[rng.random(targets.shape) < 0.3] = -100
    _same("cross_entropy", [3.0 * _rng(ROWS // 3, 3, WIDTH)], {}, (targets,), terms=4 * WIDTH)


@pytest.mark.parametrize("wants", [(True, True), (True, False), (False, True)])
def test_large_linear_cross_entropy(threads: int, wants: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch):
    """The classifier over blocks of rows, some rows ignored, is its definition, whichever gradients are wanted."""
    V, n, d = 301, 83, 16
    monkeypatch.setattr(SIZES, "logits", 20 * V * 8)       # 20 rows at a time
    monkeypatch.setattr(SIZES, "block", 300)
    rng = np.random.default_rng(4)
    targets = rng.integers(0, V, n)
    targets[rng.random(n) < 0.3] = -7
    targets[-1], targets[0] = V - 1, 0
    x, weight = 3.0 * _rng(n, d), _rng(V, d, seed=2)
    definition = FUSED["linear_cross_entropy"].definition
    found = []
    for f in (mg.linear_cross_entropy, definition):
        ts = [mg.Tensor(a).requires_grad_(w) for a, w in zip((x, weight), wants)]
        loss = f(*ts, targets, ignore_index=-7)
        found.append([loss, *mg.gradients(loss, [t for t in ts if t.requires_grad], np.asarray(1.5))])
    for ours, theirs in zip(*found):
        close(ours, theirs, terms=4 * V)
    if all(wants):
        _same("linear_cross_entropy", [x, weight], {"ignore_index": -7}, (targets,), terms=4 * V)


def test_large_addmm():
    """A product added to its bias, float32 and in chunks, is x W + b within k + 2 roundings of Σ|terms|."""
    rng = np.random.default_rng(5)
    bias, x, weight = (rng.standard_normal(s, np.float32) for s in ((300,), (3, 50, 400), (400, 300)))
    exact = x.astype(np.float64) @ weight + bias
    room = 402 * 2.0**-24 * (np.abs(x).astype(np.float64) @ np.abs(weight) + np.abs(bias))
    out = mg.addmm(bias, x, weight)
    assert out.dtype == np.float32 and out.shape == (3, 50, 300) and (np.abs(out - exact) <= room).all()


@pytest.mark.parametrize("n, k, m", [(1, 768, 200), (5, 400, 129), (33, 771, 64), (40, 7, 1)])
def test_large_packed_linear(threads: int, n: int, k: int, m: int):
    """Panels made of a matrix of any size, multiplied with rows, are its product within k + 2 roundings of Σ|terms|."""
    rng = np.random.default_rng(6)
    x, weight, bias = (rng.standard_normal(s, np.float32) for s in ((n, k), (k, m), (m,)))
    exact = x.astype(np.float64) @ weight + bias
    room = (k + 2) * 2.0**-24 * (np.abs(x).astype(np.float64) @ np.abs(weight) + np.abs(bias))
    for matrix in (weight, np.asfortranarray(weight)):
        out = mg.packed_linear(x, backend.cpu.pack(matrix), bias, size=m)
        assert out.dtype == np.float32 and out.shape == (n, m) and (np.abs(out - exact) <= room).all()
    _same("packed_linear", [x.astype(np.float64), backend.cpu.pack(weight.astype(np.float64)), bias.astype(np.float64)], {"size": m},
          terms=4 * (n + k))


@given(st.integers(1, 900), st.integers(1, 300), st.sampled_from(["float32", "float64"]), st.booleans())
def test_panels_hold_the_matrix(k: int, m: int, dtype: str, flipped: bool):
    """unpack undoes pack; what fills the last panel up is 0; sums are cut where that goes evenly, after at most SIZES.chunk terms."""
    matrix = np.arange(k * m).reshape(k, m).astype(dtype)
    panels = backend.cpu.pack(np.asfortranarray(matrix) if flipped else matrix)
    P, q, c, w = panels.shape
    assert panels.dtype == dtype and q * c == k and P == -(-m // w) and (c <= SIZES.chunk or q == 1) and panels.flags.c_contiguous
    np.testing.assert_array_equal(unpack(panels, m), matrix)
    assert not unpack(panels, P * w)[:, m:].any()


def test_what_is_not_packed():
    """Half precision has no panels, and shapes that do not fit are refused."""
    assert backend.cpu.pack(np.ones((4, 4), np.float16)) is None and panels_of.terms(768) == 192 == panels_of.terms(3072)
    assert panels_of.terms(1600) == 160 and panels_of.terms(397) == 397
    panels = np.ones((2, 3, 4, 5))
    for x, size, bias, message in [(np.ones((2, 11)), 10, None, r"x \[2, 11\] and panels \[2, 3, 4, 5\]"),
                                   (np.ones((2, 12)), 11, None, "have 10 columns, not 11"), (np.ones((2, 12)), -1, None, "not -1"),
                                   (np.ones((2, 12)), 9, np.ones(10), r"bias must be float64\[9\], not \[10\]"),
                                   (np.asarray(1.0), 9, None, r"x \[\]")]:
        with pytest.raises(mg.ShapeError, match=message):
            mg.packed_linear(x, panels, bias, size=size)
    with pytest.raises(mg.ShapeError, match=r"panels \[3, 4\]"):
        mg.packed_linear(np.ones((2, 12)), np.ones((3, 4)), size=3)


@pytest.mark.parametrize("axis", [0, -1])
def test_large_softmax(kernels: str, axis: int):
    """softmax and log_softmax along either axis are their definitions."""
    _same("softmax", [3.0 * _rng(300, 200)], {"axis": axis}, terms=4 * 300)
    _same("log_softmax", [3.0 * _rng(300, 200)], {"axis": axis}, terms=4 * 300)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_dropout(threads: int, kernels: str, dtype: str):
    """Dropout over many blocks multiplies by its key's mask and 1/(1 − p).

    So does the kernel and so does the definition, to two roundings of each element, in value and in gradient.
    """
    x, g, p, key = _rng(2 * SIZES.block + 7, 3).astype(dtype), _rng(2 * SIZES.block + 7, 3, seed=5).astype(dtype), 0.3, 123456789
    factor = random.keep_mask(backend.cpu, key, x.shape, p) / (1.0 - p)
    t = mg.Tensor(x).requires_grad_()
    y = mg.dropout(t, p=p, key=key)
    for found, wanted in ((y.numpy(), x * factor), (mg.gradients(y, [t], g)[0].numpy(), g * factor)):
        assert found.dtype == dtype and (np.abs(found - wanted) <= 1.001 * float(np.finfo(dtype).eps) * np.abs(wanted)).all()


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch):
    """Every replacement gives the same bits on one, two and five threads."""
    rng = np.random.default_rng(3)
    x, w, b = (mg.Tensor(rng.standard_normal(s).astype("float32")).requires_grad_() for s in [(ROWS, WIDTH), WIDTH, WIDTH])
    q = mg.Tensor(rng.standard_normal((9, 130, 8)).astype("float32")).requires_grad_()
    targets = rng.integers(0, WIDTH, ROWS)
    panels = mg.Tensor(panels_of.pack(rng.standard_normal((WIDTH, 300), np.float32)))
    runs = []
    for n in (1, 2, 5):
        monkeypatch.setattr(SIZES, "threads", n)
        out = []
        for f, xs in [(lambda x: mg.gelu(x, approximate="tanh"), [x]),
                      (mg.layer_norm, [x, w, b]), (lambda x: mg.cross_entropy(x, targets), [x]),
                      (lambda x: mg.dropout(x, key=4), [x]), (lambda q: mg.attention(q, q, q, causal=True, p=0.1, key=5), [q]),
                      (lambda x: mg.packed_linear(x, panels, size=300), [x])]:
            y = f(*xs)
            out += [y, *mg.gradients(y, xs, np.ones(y.shape, "float32"))]
        runs.append([o.numpy() for o in out])
    for run in runs[1:]:
        for a, c in zip(runs[0], run):
            np.testing.assert_array_equal(a, c)


# ── attention ──
# Each sum is over at most T keys or d ≤ 16 numbers, a handful of times.
@pytest.mark.parametrize("T", [1, 5, 63, 64, 65, 127, 128, 129, 300])
@pytest.mark.parametrize("p, causal, masked", [(0.0, True, False), (0.25, True, False), (0.25, True, True), (0.0, False, True)])
def test_attention_equals_unfused(kernels: str, T: int, p: float, causal: bool, masked: bool):
    """Attention in tiles and whole equals its definition: causal or not, padded or not, with the same dropout."""
    q, k, v = (_rng(2, 1, T, d, seed=s) for s, d in [(1, 4), (2, 4), (3, 6)])
    mask = None
    if masked:                                          # one row of the batch is padded on the left
        mask = np.ones((2, 1, 1, T), bool)
        mask[1, ..., :T // 2] = False
    constants = (mask,) if masked else ()
    _same("attention", [q, k, v], {"causal": causal, "p": p, "key": 77}, constants, terms=20 * max(T, 16))


def test_attention_in_threads_equals_unfused(threads: int):
    """Heads dealt to several threads, strided q, k and v as a model makes them, give the definition's numbers."""
    qkv = _rng(2, 140, 3, 3, 4)                         # [B, T, 3, h, d] cut and transposed to [B, h, T, d]
    q, k, v = (np.swapaxes(qkv[:, :, i], 1, 2) for i in range(3))
    _same("attention", [q, k, v], {"causal": True, "p": 0.1, "key": 9, "scale": 0.3}, terms=20 * 140)


def test_attention_with_fewer_queries_than_keys_ends_at_the_last_key(kernels: str):
    """With a cache, the causal mask lets the last query see every key: the last rows of the whole are reproduced."""
    q, k, v = (_rng(2, 9, 4, seed=s) for s in (1, 2, 3))
    whole = mg.attention(q, k, v, causal=True)
    for n in (1, 4):
        close(mg.attention(q[:, -n:], k, v, causal=True), whole[:, -n:], terms=20 * 16)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_query_without_keys_gets_zeros(kernels: str, dtype: str):
    """Fully masked rows are zero in value and gradient, in every form and derivative, and nothing is NaN."""
    q, k, v = (mg.Tensor((30.0 * _rng(2, 3, 4, seed=s)).astype(dtype)).requires_grad_() for s in (1, 2, 3))
    mask = np.array([[[True, True, True]], [[False, False, False]]])
    for f in (mg.attention, fused.attention_unfused):
        y = f(q, k, v, mask, causal=True)
        assert (y.numpy()[1] == 0.0).all() and np.isfinite(y.numpy()).all()
        grads = mg.gradients(y, [q, k, v], np.ones(y.shape, dtype), create_graph=True)
        total = mg.tensor(0.0, dtype=dtype)
        for g in grads:
            assert (g.numpy()[1] == 0.0).all() and np.isfinite(g.numpy()).all()
            total = total + (g * g).sum()
        for g in mg.gradients(total, [q, k, v]):
            assert (g.numpy()[1] == 0.0).all() and np.isfinite(g.numpy()).all()


def test_masked_keys_do_not_matter(kernels: str):
    """What stands at masked keys changes no bit of the output, not even when it is huge, and gets no gradient."""
    q, k, v = (_rng(1, 4, 3, seed=s) for s in (1, 2, 3))
    mask = np.array([[[False, True, True, True]]])
    other_k, other_v = k.copy(), v.copy()
    other_k[0, 0], other_v[0, 0] = 1e200, -1e200
    np.testing.assert_array_equal(mg.attention(q, k, v, mask, causal=True), mg.attention(q, other_k, other_v, mask, causal=True))
    t = mg.Tensor(k).requires_grad_()
    y = mg.attention(q, t, v, mask, causal=True)
    assert (mg.gradients(y, [t], np.ones(y.shape))[0].numpy()[0, 0] == 0.0).all()


def test_the_future_does_not_matter():
    """Causal: changing key and value t changes no bit of the outputs before t, across tiles too."""
    T = 150
    q, k, v = (_rng(1, T, 4, seed=s) for s in (1, 2, 3))
    first = mg.attention(q, k, v, causal=True)
    for t in (1, 63, 64, 128, T - 1):
        k2, v2 = k.copy(), v.copy()
        k2[0, t], v2[0, t] = 5.0, -5.0
        second = mg.attention(q, k2, v2, causal=True)
        np.testing.assert_array_equal(first[0, :t], second[0, :t])
        assert not np.array_equal(first[0, t], second[0, t])


def test_attention_against_pytorch_with_dropout_and_padding():
    """Tiled attention with dropout, and whole attention with padding, are PyTorch's value and gradients."""
    T = 131
    arrays = [_rng(2, 2, T, 4, seed=s) for s in (1, 2, 3)]
    mask = np.random.default_rng(0).random((2, 1, 1, T)) < 0.8
    for static in ({"p": 0.2, "key": 5}, {"mask": mask}):
        ours, theirs = [mg.Tensor(a).requires_grad_() for a in arrays], [torch.tensor(a, requires_grad=True) for a in arrays]
        y, t = mg.attention(*ours, causal=True, **static), attention_in_torch(torch, *theirs, **static)
        close(y, t, terms=20 * T)
        g = _rng(*y.shape, seed=8)
        for a, b in zip(mg.gradients(y, ours, g), torch.autograd.grad(t, theirs, torch.tensor(g))):
            close(a, b, terms=20 * T)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_has_pytorchs_options(reduction: str, smoothing: float, weighted: bool):
    """Values and gradients are PyTorch's, also where rows do not count."""
    rng = np.random.default_rng(0)
    x, targets, w = rng.standard_normal((3, 4, 5)), rng.integers(0, 5, (3, 4)), rng.random(5)
    targets[0, :2] = -100
    ours, theirs = mg.tensor(x, dtype="float64", requires_grad=True), torch.tensor(x, requires_grad=True)
    loss = mg.cross_entropy(ours, targets, reduction=reduction, label_smoothing=smoothing, weight=w if weighted else None)
    wanted = torch.nn.functional.cross_entropy(theirs.reshape(-1, 5), torch.tensor(targets).reshape(-1), reduction=reduction,
                                               label_smoothing=smoothing, weight=torch.tensor(w) if weighted else None)
    g = rng.standard_normal(loss.shape)
    loss.backward(mg.tensor(g, dtype="float64"))
    wanted.backward(torch.tensor(g).reshape(wanted.shape))
    close(loss.numpy().reshape(-1), wanted.detach().numpy().reshape(-1), terms=60, scale=10.0)
    close(ours.grad, theirs.grad.numpy(), terms=60, scale=10.0)


def test_cross_entropy_refuses_other_options():
    """By name, with what there is."""
    for how, says in (({"reduction": "max"}, "must be mean, sum or none"), ({"label_smoothing": 2.0}, "must lie in")):
        with pytest.raises(ValueError, match=says):
            mg.cross_entropy(np.ones((2, 3)), np.array([0, 1]), **how)


# ── cross-entropy's corners ──
def test_cross_entropy_when_nothing_counts_is_nan(kernels: str):
    """The mean over no rows is NaN, fused or unfused."""
    targets = np.array([-100, -100])
    for f in (mg.cross_entropy, fused.cross_entropy_unfused):
        assert math.isnan(f(mg.Tensor(_rng(2, 3)), targets).item())


def test_ignored_rows_do_not_matter(kernels: str):
    """Rows with the ignored target change neither loss nor gradient, whatever stands in them."""
    x, targets = _rng(4, 5), np.array([1, -1, 3, -1])
    y = x.copy()
    y[1] = 1e30
    for ignored, kept in ((x, [0, 2]), (y, [0, 2])):
        t, few = mg.Tensor(ignored).requires_grad_(), mg.Tensor(ignored[kept]).requires_grad_()
        loss, short = mg.cross_entropy(t, targets, ignore_index=-1), mg.cross_entropy(few, targets[kept])
        close(loss, short, terms=10)
        close(mg.gradients(loss, [t])[0][kept], mg.gradients(short, [few])[0].numpy(), terms=10)
        assert (mg.gradients(mg.cross_entropy(t, targets, ignore_index=-1), [t])[0].numpy()[[1, 3]] == 0.0).all()


def test_untrained_loss_is_the_logarithm_of_the_vocabulary():
    """Equal logits over 50257 tokens cost ln 50257 = 10.82490511970208."""
    close(mg.cross_entropy(np.zeros((2, 50257)), np.array([0, 50256])), np.asarray(10.82490511970208), terms=40)


def test_gelu_has_the_published_values():
    """gelu_tanh(1) = 0.8411919906, gelu_erf(1) = 0.8413447461, and they differ by at most 4.732355e-4, at ±2.69894."""
    one = np.ones(())
    assert abs(mg.gelu(one, approximate="tanh") - 0.8411919906) < 5e-11 and abs(mg.gelu(one, approximate="none") - 0.8413447461) < 5e-11
    x = np.linspace(-6.0, 6.0, 240_001)
    gap = np.abs(mg.gelu(x, approximate="tanh") - mg.gelu(x, approximate="none"))
    assert abs(gap.max() - 4.732355e-4) < 5e-10 and abs(abs(x[gap.argmax()]) - 2.69894) < 5e-5


@pytest.mark.parametrize("f", [
    lambda x: mg.gelu(x, approximate="sigmoid"), lambda x: mg.dropout(x, p=1.0), lambda x: mg.dropout(x, p=-0.1)])
def test_settings_outside_their_range_are_refused(f: Any):
    """An unknown approximation, or p outside [0, 1), is a ValueError of one line."""
    with pytest.raises(ValueError) as caught:
        f(mg.Tensor(np.ones(2)))
    assert "\n" not in str(caught.value)


def test_dropout_that_drops_nothing_is_the_tensor_itself():
    """p = 0, or not training: the very Tensor, and no node."""
    x = mg.tensor([1.0], requires_grad=True)
    assert mg.dropout(x, p=0.0) is x and mg.dropout(x, p=0.9, training=False) is x


# ── float32 beside PyTorch's float32 ──
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "gelu", "layer_norm", "cross_entropy", "attention"])
def test_float32_errors_are_no_larger_than_pytorchs(name: str):
    """Against the float64 truth our root-mean-square error is at most twice PyTorch's, in value and gradient, plus one ulp."""
    rng = np.random.default_rng(4)
    shape = (4, 64, 512)
    arrays = {"layer_norm": [rng.standard_normal(shape) + 1.0, rng.standard_normal(512), rng.standard_normal(512)],
              "attention": [rng.standard_normal(shape) for _ in range(3)]}.get(name, [3.0 * rng.standard_normal(shape)])
    ids = rng.integers(0, 512, shape[:-1])
    F = torch.nn.functional
    ours = {"softmax": mg.softmax, "log_softmax": mg.log_softmax, "gelu": lambda x: mg.gelu(x, approximate="tanh"),
            "layer_norm": mg.layer_norm,
            "cross_entropy": lambda x: mg.cross_entropy(x, ids), "attention": lambda *x: mg.attention(*x, causal=True)}[name]
    theirs = {"softmax": lambda x: torch.softmax(x, -1), "log_softmax": lambda x: torch.log_softmax(x, -1),
              "gelu": lambda x: F.gelu(x, approximate="tanh"), "layer_norm": lambda x, w, b: F.layer_norm(x, (512,), w, b),
              "cross_entropy": lambda x: F.cross_entropy(x.reshape(-1, 512), torch.tensor(ids).reshape(-1)),
              "attention": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)}[name]
    arrays = [a.astype("float32") for a in arrays]
    g = None

    def run_ours(dtype: str) -> list[Any]:
        nonlocal g
        xs = [mg.Tensor(a.astype(dtype)).requires_grad_() for a in arrays]
        y = ours(*xs)
        g = rng.standard_normal(y.shape).astype("float32") if g is None else g
        return [r.numpy() for r in (y, *mg.gradients(y, xs, g.astype(dtype)))]

    def run_theirs() -> list[Any]:
        xs = [torch.tensor(a, requires_grad=True) for a in arrays]
        y = theirs(*xs)
        return [r.numpy(force=True) for r in (y, *torch.autograd.grad(y, xs, torch.tensor(g)))]

    truth = run_ours("float64")
    for i, (exact, a, b) in enumerate(zip(truth, run_ours("float32"), run_theirs())):
        def error(x: Any, exact: Any = exact) -> float:
            return float(np.sqrt(np.mean((x - exact) ** 2)))

        ulp = float(np.finfo("float32").eps) * float(np.sqrt(np.mean(exact**2)))
        assert error(a) <= 2.0 * error(b) + ulp, f"output {i}: ours {error(a):.3g}, PyTorch's {error(b):.3g}"
