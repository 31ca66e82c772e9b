"""What happens to gradients before a step: clipping, beside torch.nn.utils, and loss scaling."""
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from compare import close
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from minigrad import optim
from minigrad.engine.making import Parameter


# ── clipping ──
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-3, 1.0, 1e3]), max_norm=st.sampled_from([0.5, 1.0, 10.0]))
def test_clipping_is_pytorchs(dtype: str, seed: int, scale: float, max_norm: float):
    """The norm returned and the gradients left are those of torch.nn.utils.clip_grad_norm_."""
    rng = np.random.default_rng(seed)
    ours, theirs = [], []
    for shape in [(3, 4), (4,), (), (2, 0), (5, 3)]:
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
    """Up to the bound no bit changes; a bound of 0 leaves nothing; without gradients the norm is 0; a NaN is returned as NaN."""
    p = Parameter(np.zeros(2))
    assert optim.clip_grad_norm_([p], 1.0) == 0.0
    p.grad = mg.Tensor(np.array([0.3, 0.4]))
    for bound in (1.0, 0.5):
        assert optim.clip_grad_norm_([p], bound, error_if_nonfinite=True) == 0.5 and p.grad.tolist() == [0.3, 0.4]
    assert optim.clip_grad_norm_([p], 0.0) == 0.5 and p.grad.tolist() == [0.0, 0.0]
    p.grad = mg.Tensor(np.array([np.nan, 0.4]))
    assert math.isnan(optim.clip_grad_norm_([p], 1.0))


def test_clipping_survives_huge_gradients():
    """Squares beyond the largest float32 do not spoil the norm; where one is infinite or NaN all gradients are what PyTorch leaves."""
    p, q = Parameter(np.zeros(2, "float32")), Parameter(np.zeros((), "float32"))
    p.grad, q.grad = mg.Tensor(np.array([3e30, 0.0], "float32")), mg.Tensor(np.array(4e30, "float32"))
    close(np.asarray(optim.clip_grad_norm_([p, q], 1.0), "float32"), np.asarray(5e30, "float32"), terms=10)
    close(p.grad, np.array([0.6, 0.0], "float32"), terms=10)
    close(q.grad, np.array(0.8, "float32"), terms=10)
    for bad in (-np.inf, np.nan):
        p.grad, q.grad = mg.Tensor(np.array([bad, 1.0], "float32")), None
        theirs = torch.nn.Parameter(torch.zeros(2))
        theirs.grad = torch.tensor([bad, 1.0])
        np.testing.assert_equal(optim.clip_grad_norm_([p, q], 1.0), float(torch.nn.utils.clip_grad_norm_(theirs, 1.0)))
        np.testing.assert_array_equal(p.grad.numpy(), theirs.grad.numpy())
    p.grad, q.grad = mg.Tensor(np.array([-np.inf, 1.0], "float32")), mg.Tensor(np.array(np.nan, "float32"))
    assert math.isnan(optim.clip_grad_norm_([p, q], 1.0)) and math.isnan(optim.clip_grad_norm_([q, p], 1.0))


@pytest.mark.parametrize("numbers", [[1e200, 2e200], [1.3e154, 1.3e154], [3e153] * 40, [np.inf, 1.0], [np.nan, 1e200], [1e-200, 1e300]])
def test_clipping_where_squares_or_their_sum_overflow(numbers: list[float]):
    """Each number is a parameter, beside an empty one; NumPy is told to raise, and there is nothing for it to raise."""
    ours = [Parameter(np.zeros(1)) for _ in numbers] + [Parameter(np.zeros((2, 0)))]
    for p, g in zip(ours, numbers):
        p.grad = mg.Tensor(np.array([g]))
    ours[-1].grad = mg.Tensor(np.zeros((2, 0)))
    with np.errstate(over="raise", invalid="raise"):
        norm = optim.clip_grad_norm_(ours, 1.0)
    wanted = math.hypot(*numbers) if not np.isnan(numbers).any() else math.nan
    close(np.asarray(norm), np.asarray(wanted), terms=10, scale=0.0)
    if math.isfinite(wanted):
        close(np.concatenate([p.grad.numpy().ravel() for p in ours]), np.array(numbers) / wanted, terms=20)


def test_one_tensor_is_clipped():
    """clip_grad_norm_(w, …) clips w, as in PyTorch; so do a generator and named parameters."""
    for give in (lambda p: p, lambda p: (x for x in [p]), lambda p: [("w", p)], lambda p: {"w": p}.values()):
        p, q = Parameter(np.zeros(1)), torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        p.grad, q.grad = mg.Tensor(np.array([100.0])), torch.tensor([100.0], dtype=torch.float64)
        assert optim.clip_grad_norm_(give(p), 1.0) == float(torch.nn.utils.clip_grad_norm_(q, 1.0)) == 100.0
        close(p.grad, q.grad)


def test_clipping_refuses_what_it_has_no_meaning_for():
    """One line each, and the gradient is as it was."""
    p = Parameter(np.ones(2))
    p.grad = mg.Tensor(np.array([3.0, np.inf]))
    for f, error, words in [
        (lambda: optim.clip_grad_norm_([p], -1.0), ValueError, "max_norm must be a number, at least 0, not -1.0"),
        (lambda: optim.clip_grad_norm_([p], math.nan), ValueError, "not nan"),
        (lambda: optim.clip_grad_norm_([p], "1"), TypeError, "max_norm is '1', a str"),
        (lambda: optim.clip_grad_norm_([p], 1.0, norm_type=1.0), ValueError, "norm_type 1.0 is not supported"),
        (lambda: optim.clip_grad_norm_([p], 1.0, "inf"), ValueError, "norm_type 'inf' is not supported"),
        (lambda: optim.clip_grad_norm_([p], 1.0, error_if_nonfinite=True), mg.GraphError, "the norm of the gradients is inf"),
        (lambda: optim.clip_grad_norm_(mg.nn.Linear(1, 1), 1.0), TypeError, "the parameters are a Linear"),
        (lambda: optim.clip_grad_norm_([{"params": [p]}], 1.0), TypeError, "parameter 0 is a dict"),
        (lambda: optim.clip_grad_norm_(iter([]), 1.0), mg.GraphError, "can be read only once"),
        (lambda: optim.decay_groups(p, 0.1), TypeError, "the parameters are a Parameter"),
    ]:
        with pytest.raises(error) as caught:
            f()
        assert words in str(caught.value) and "\n" not in str(caught.value) and p.grad.tolist() == [3.0, np.inf]
    assert optim.clip_grad_norm_([p], 1.0, norm_type=2, error_if_nonfinite=False) == math.inf and optim.clip_grad_norm_([], 1.0) == 0.0


# ── loss scaling ──
def test_gradients_of_every_group_are_unscaled():
    """unscale_ divides the gradients of all groups by the factor, those of matrices and of vectors, and leaves the others alone."""
    ps, other = [Parameter(np.ones(s)) for s in ((2, 2), (3,), (), (3, 1))], Parameter(np.ones(2))
    opt, scaler = optim.AdamW(optim.decay_groups(ps, 0.1)), optim.GradScaler(8.0)
    opt.add_param_group({"params": [third := Parameter(np.ones(1)), Parameter(np.ones(1))]})           # the last has no gradient
    loss = mg.tensor(0.0, dtype="float64")
    for i, p in enumerate([*ps, third, other]):
        loss = loss + (p * (i + 1.0)).sum()
    scaler.scale(loss).backward()
    scaler.unscale_(opt)
    for i, p in enumerate([*ps, third]):
        np.testing.assert_array_equal(p.grad.numpy(), np.full(p.shape, i + 1.0))
    np.testing.assert_array_equal(other.grad.numpy(), np.full(2, 8.0 * 6.0))


def test_gradients_are_unscaled_once():
    """step() unscales what was not, as PyTorch's scaler does; a second unscale_ before it is refused."""
    p = Parameter(np.array([1.0]))
    opt, scaler = optim.SGD([p], lr=1.0), optim.GradScaler(8.0)
    for explicit in (True, False):
        opt.zero_grad()
        scaler.scale((p * 0.25).sum()).backward()
        if explicit:
            scaler.unscale_(opt)
            with pytest.raises(mg.GraphError, match="are already unscaled"):
                scaler.unscale_(opt)
        assert scaler.step(opt, 0.25) and p.grad.tolist() == [0.25]
    assert p.tolist() == [0.5]


@pytest.mark.parametrize("norm", [1.0, math.inf])
def test_two_optimisers_share_a_scaler(norm: float):
    """Both have their gradients divided by the factor that their loss had; one that overflowed halves it for both."""
    p, q = Parameter(np.array([1.0])), Parameter(np.array([1.0]))
    a, b, scaler = optim.SGD([p], lr=1.0), optim.SGD([q], lr=1.0), optim.GradScaler(8.0, growth_interval=1)
    scaler.scale((p * q * 0.25).sum()).backward()
    scaler.step(a, norm)
    scaler.step(b, 1.0)
    assert q.tolist() == [0.75] and scaler.factor == 8.0
    scaler.update()
    assert scaler.factor == (16.0 if norm == 1.0 else 4.0)


def test_a_scalers_defaults_and_factors():
    """The defaults are PyTorch's; factors and interval are those that are given, and after each doubling the count starts anew."""
    scaler, theirs = optim.GradScaler(), torch.amp.GradScaler("cpu")
    assert (scaler.factor, scaler.growth_factor, scaler.backoff_factor, scaler.growth_interval) == (
        theirs.get_scale(), theirs.get_growth_factor(), theirs.get_backoff_factor(), theirs.get_growth_interval())
    p = Parameter(np.array([1.0]))
    opt, scaler = optim.SGD([p], lr=1.0), optim.GradScaler(8.0, growth_factor=3.0, backoff_factor=0.25, growth_interval=2)
    factors = []
    for norm in (1.0, 1.0, 1.0, 1.0, 1.0, math.inf, 1.0, 1.0):
        scaler.step(opt, norm)
        scaler.update()
        factors.append(scaler.factor)
    assert factors == [8.0, 24.0, 24.0, 72.0, 72.0, 18.0, 18.0, 54.0]


@pytest.mark.parametrize("overflows", [False, True])
def test_a_scaler_sees_an_overflow_by_itself(overflows: bool):
    """PyTorch's three lines, scale, step and update: the same steps and factors as PyTorch's."""
    p, q = Parameter(np.array([1.0, 2.0], np.float32)), torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    ours, theirs = optim.GradScaler(8.0), torch.amp.GradScaler("cpu", init_scale=8.0)
    a, b = optim.SGD([p], lr=0.5), torch.optim.SGD([q], lr=0.5)
    for factor in (1.0, 3e38 if overflows else 2.0, 1.0):
        for x, opt, scaler in ((p, a, ours), (q, b, theirs)):
            opt.zero_grad()
            with np.errstate(over="ignore"):
                scaler.scale((x * factor).sum()).backward()
            scaler.step(opt)
            scaler.update()
    assert p.tolist() == q.tolist() and ours.factor == theirs.get_scale() == (4.0 if overflows else 8.0)


def test_gradients_that_were_scaled_elsewhere():
    """Where no loss went through `scale`, the factor that is now is what gradients are divided by."""
    p = Parameter(np.array([1.0]))
    p.grad = mg.tensor([4.0], dtype="float64")
    optim.GradScaler(8.0).unscale_(optim.SGD([p]))
    assert p.grad.tolist() == [0.5]


def test_gradients_are_divided_by_the_factor_of_their_loss():
    """Also where `update` has changed the factor since."""
    p, scaler = Parameter(np.array([3.0])), optim.GradScaler(8.0, growth_interval=1)
    optimizer = optim.SGD([p], lr=0.1)
    scaler.scale((p * p).sum()).backward()
    scaler.update()
    assert scaler.factor == 16.0
    scaler.unscale_(optimizer)
    assert p.grad.tolist() == [6.0]


def test_a_scaler_that_is_not_enabled_steps_without_a_norm(monkeypatch: pytest.MonkeyPatch):
    """It asks for none, which would be a wait for the device, and steps whatever the gradients are."""
    p, scaler = Parameter(np.array([3.0])), optim.GradScaler(enabled=False)
    optimizer = optim.SGD([p], lr=0.1)
    monkeypatch.setattr(optim, "clip_grad_norm_", None)
    scaler.scale((p * math.inf).sum()).backward()
    assert scaler.step(optimizer) is True and p.tolist() == [-math.inf]
