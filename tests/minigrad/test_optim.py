"""Optimisers, clipping and schedules beside torch.optim in float64."""
from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from compare import close
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from minigrad import backend, optim
from minigrad.backend.numpy_kernels import BLOCK
from minigrad.tensor import Parameter

SHAPES = [(3, 4), (4,), (), (2, 0), (5, 3)]
STEPS = 20


def _pair(seed: int = 0) -> tuple[list[Any], list[Any]]:
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(rng.standard_normal(s)) for s in SHAPES]
    return [Parameter(a.copy()) for a in arrays], [torch.nn.Parameter(torch.tensor(a)) for a in arrays]


def _loss(lib: Any, params: Any, k: int) -> Any:
    """A loss that changes from step to step and leaves the last parameter out of every third."""
    w, b, s, e, r = params
    y = lib.tanh(r @ w + b) * s
    total = (y * y).sum() + e.sum() + ((w - 0.1 * k) ** 2).sum()
    return total + (r ** 3).sum() * 0.1


OPTIMISERS = {
    "sgd": ("SGD", {"lr": 0.05}), "sgd-decay": ("SGD", {"lr": 0.05, "weight_decay": 0.1}),
    "momentum": ("SGD", {"lr": 0.02, "momentum": 0.9}), "momentum-decay": ("SGD", {"lr": 0.02, "momentum": 0.8, "weight_decay": 0.05}),
    "adam": ("Adam", {"lr": 0.05}), "adam-decay": ("Adam", {"lr": 0.05, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1}),
    "adamw": ("AdamW", {"lr": 0.05}), "adamw-plain": ("AdamW", {"lr": 0.05, "weight_decay": 0.0, "betas": (0.9, 0.95)}),
}


@pytest.mark.parametrize("kernels", ["own", "numpy"])
@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_twenty_steps_are_pytorchs(name: str, groups: bool, kernels: str, monkeypatch: pytest.MonkeyPatch):
    """Twenty steps, in one group or in two with settings of their own, end where PyTorch's do: 20 steps of about 50 roundings."""
    if kernels == "own":
        monkeypatch.setattr(backend.cpu, "kernels", {})
    kind, how = OPTIMISERS[name]
    ours, theirs = _pair()
    split = lambda ps: [{"params": ps[:2], "lr": 0.01}, {"params": ps[2:], "weight_decay": 0.2}] if groups else ps  # noqa: E731
    a, b = getattr(optim, kind)(split(ours), **how), getattr(torch.optim, kind)(split(theirs), **how)
    for k in range(STEPS):
        for params, opt, lib in ((ours, a, mg), (theirs, b, torch)):
            opt.zero_grad()
            _loss(lib, params, k).backward()
            if k % 3 == 0:                              # a parameter without a gradient is left alone, its state too
                params[0].grad = None
            for group in opt.param_groups:              # and a schedule may change the groups between steps
                group["lr"] *= 0.97
            opt.step()
    for p, q in zip(ours, theirs):
        close(p, q, terms=50 * STEPS)


def test_adam_state_is_pytorchs():
    """exp_avg and exp_avg_sq, kept by the parameter's place, are those of torch.optim.AdamW."""
    ours, theirs = _pair(1)
    a, b = optim.AdamW(ours), torch.optim.AdamW(theirs)
    for k in range(3):
        for params, opt, lib in ((ours, a, mg), (theirs, b, torch)):
            opt.zero_grad()
            _loss(lib, params, k).backward()
            opt.step()
    for i, q in enumerate(theirs):
        for name in ("exp_avg", "exp_avg_sq"):
            close(a.state[i][name], b.state[q][name], terms=200)
        assert a.state[i]["step"] == 3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", ["C", "F", "strided"])
def test_parameters_of_any_layout_are_changed(layout: str, dtype: str):
    """A step changes the parameter's own memory, also where that is not contiguous, and keeps its dtype."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((6, 8)).astype(dtype)
    g = rng.standard_normal((6, 8)).astype(dtype)
    for kind in (optim.SGD, optim.Adam, optim.AdamW):
        laid = {"C": a.copy(), "F": a.copy(order="F"), "strided": np.concatenate([a, a], axis=1)[:, :8]}[layout]
        p, q = Parameter(laid), Parameter(a.copy())
        array = p.array
        for param in (p, q):
            opt = kind([param], lr=0.1)
            for _ in range(2):
                param.grad = mg.Tensor(g)
                opt.step()
        assert p.array is array and p.dtype == dtype and not np.array_equal(p.numpy(), a)
        close(p, q.numpy(), terms=4)


def test_adamw_over_several_blocks_and_threads(monkeypatch: pytest.MonkeyPatch):
    """The NumPy kernel over more than four blocks, on one thread and three, is the formula."""
    rng = np.random.default_rng(0)
    n = 6 * BLOCK + 5
    settings = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "correct1": 0.2, "correct2": 0.03}
    start = [rng.standard_normal(n), rng.standard_normal(n), rng.standard_normal(n), rng.random(n)]
    expected = [a.copy() for a in start]
    optim.adamw_update(backend.cpu, *([a] for a in expected), **settings)
    for threads in (1, 3):
        monkeypatch.setattr("minigrad.backend.numpy_kernels.cores", lambda n=threads: n)
        found = [a.copy() for a in start]
        backend.cpu.kernels["adamw_update"](backend.cpu, *([a] for a in found), **settings)
        np.testing.assert_array_equal(found[1], start[1])
        for a, b in zip(found, expected):
            close(a, b, terms=20)


def test_a_step_counts_as_a_change():
    """step() bumps the version: a graph from before it refuses to be walked back."""
    p = Parameter(np.ones(2))
    loss = (p * p).sum()
    (p * 1.0).sum().backward()
    optim.AdamW([p]).step()
    with pytest.raises(mg.GraphError, match="changed"):
        loss.backward()


def test_zero_grad_forgets_the_gradients():
    """After zero_grad no parameter has one, and a step then changes nothing."""
    ours, _ = _pair()
    opt = optim.AdamW(ours)
    _loss(mg, ours, 0).backward()
    opt.zero_grad()
    assert all(p.grad is None for p in ours)
    before = [p.numpy().copy() for p in ours]
    opt.step()
    for p, b in zip(ours, before):
        np.testing.assert_array_equal(p.numpy(), b)


def test_parameters_are_given_once():
    """No parameters, or one twice, in a group or over groups, is refused in one line that names the optimiser."""
    p, q = Parameter(np.ones(1)), Parameter(np.ones(1))
    for given_, words in [([], "no parameters"), ([p, p], "twice"), ([{"params": [p]}, {"params": [q, p]}], "twice")]:
        with pytest.raises(mg.GraphError) as caught:
            optim.SGD(given_)
        assert "SGD" in str(caught.value) and words in str(caught.value)


def test_decay_groups_part_matrices_from_the_rest():
    """Parameters of two axes or more decay, the others do not, and each is in one group."""
    ours, _ = _pair()
    decay, plain = optim.decay_groups(iter(ours), 0.1)
    assert [p.ndim for p in decay["params"]] == [2, 2, 2] and [p.ndim for p in plain["params"]] == [1, 0]
    assert decay["weight_decay"] == 0.1 and plain["weight_decay"] == 0.0


# ── clipping ──
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-3, 1.0, 1e3]), max_norm=st.sampled_from([0.5, 1.0, 10.0]))
def test_clipping_is_pytorchs(dtype: str, seed: int, scale: float, max_norm: float):
    """The norm returned and the gradients left are those of torch.nn.utils.clip_grad_norm_."""
    rng = np.random.default_rng(seed)
    ours, theirs = [], []
    for shape in SHAPES:
        g = np.asarray(scale * rng.standard_normal(shape), dtype)
        p, q = Parameter(np.zeros(shape, dtype)), torch.nn.Parameter(torch.zeros(shape, dtype=getattr(torch, dtype)))
        p.grad, q.grad = mg.Tensor(g.copy()), torch.tensor(g)
        ours.append(p)
        theirs.append(q)
    ours.append(Parameter(np.zeros(2, dtype)))          # no gradient: does not count
    norm = optim.clip_grad_norm_(ours, max_norm)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    close(np.asarray(norm, dtype), expected, terms=40, scale=0.0)
    for p, q in zip(ours, theirs):
        close(p.grad, q.grad, terms=60, scale=0.0 if q.grad.numel() else 1.0)
    after = math.sqrt(sum(float((p.grad.numpy().astype("float64") ** 2).sum()) for p in ours if p.grad is not None))
    assert after <= max(max_norm, 0.0) * (1.0 + 60 * float(np.finfo(dtype).eps)) or norm <= max_norm


def test_clipping_leaves_small_gradients_alone():
    """Below the bound no bit changes; without gradients the norm is 0; a NaN is returned as NaN."""
    p = Parameter(np.zeros(2))
    assert optim.clip_grad_norm_([p], 1.0) == 0.0
    p.grad = mg.Tensor(np.array([0.3, 0.4]))
    assert optim.clip_grad_norm_([p], 1.0) == 0.5 and p.grad.tolist() == [0.3, 0.4]
    p.grad = mg.Tensor(np.array([np.nan, 0.4]))
    assert math.isnan(optim.clip_grad_norm_([p], 1.0))


def test_clipping_survives_huge_gradients():
    """Squares beyond the largest float32 do not spoil the norm; infinite gradients have an infinite norm and stay."""
    p, q = Parameter(np.zeros(2, "float32")), Parameter(np.zeros((), "float32"))
    p.grad, q.grad = mg.Tensor(np.array([3e30, 0.0], "float32")), mg.Tensor(np.array(4e30, "float32"))
    close(np.asarray(optim.clip_grad_norm_([p, q], 1.0), "float32"), np.asarray(5e30, "float32"), terms=10)
    close(p.grad, np.array([0.6, 0.0], "float32"), terms=10)
    close(q.grad, np.array(0.8, "float32"), terms=10)
    p.grad = mg.Tensor(np.array([-np.inf, 1.0], "float32"))
    assert optim.clip_grad_norm_([p, q], 1.0) == math.inf and p.grad.tolist() == [-np.inf, 1.0]
    p.grad, q.grad = mg.Tensor(np.array([-np.inf, 1.0], "float32")), mg.Tensor(np.array(np.nan, "float32"))
    assert math.isnan(optim.clip_grad_norm_([p, q], 1.0)) and math.isnan(optim.clip_grad_norm_([q, p], 1.0))


# ── the schedule ──
def test_warmup_and_cosine():
    """From max/(w + 1) up to max at the end of the warm-up, half-way in the middle, min from total on, and monotone between."""
    def lr(step: int, **how: Any) -> float:
        return optim.warmup_cosine(step, **{"max_lr": 1.0, "min_lr": 0.1, "warmup_steps": 10, "total_steps": 110, **how})

    assert lr(0) == 1 / 11 and lr(9) == 10 / 11 and lr(10) == 1.0
    assert abs(lr(60) - 0.55) < 1e-15 and lr(110) == lr(10**6) == 0.1
    values = [lr(k) for k in range(112)]
    assert (np.diff(values[:11]) > 0.0).all() and (np.diff(values[10:111]) < 0.0).all()
    for k in range(10, 110):
        assert abs(lr(k) - (0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi * (k - 10) / 100)))) < 1e-15
    assert lr(0, warmup_steps=0) == 1.0 and lr(5, warmup_steps=5, total_steps=5) == 0.1


def test_training_lowers_the_loss():
    """A small network learns exclusive-or: AdamW brings its loss below a hundredth."""
    mg.random.manual_seed(0)
    net = mg.nn.Sequential(mg.nn.Linear(2, 8), mg.nn.Tanh(), mg.nn.Linear(8, 2))
    x, y = mg.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), np.array([0, 1, 1, 0])
    opt = optim.AdamW(net.parameters(), lr=0.05, weight_decay=0.0)
    for _ in range(200):
        opt.zero_grad()
        loss = mg.cross_entropy(net(x), y)
        loss.backward()
        opt.step()
    assert loss.item() < 0.01
