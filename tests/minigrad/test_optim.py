"""Optimisers and schedules beside torch.optim in float64."""
from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from compare import close

import minigrad as mg
from minigrad import backend, optim
from minigrad.backend.numpy.sizes import SIZES
from minigrad.engine.making import Parameter

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
    """exp_avg and exp_avg_sq, kept by the parameter, are those of torch.optim.AdamW."""
    ours, theirs = _pair(1)
    a, b = optim.AdamW(ours), torch.optim.AdamW(theirs)
    for k in range(3):
        for params, opt, lib in ((ours, a, mg), (theirs, b, torch)):
            opt.zero_grad()
            _loss(lib, params, k).backward()
            opt.step()
    for i, q in enumerate(theirs):
        for name in ("exp_avg", "exp_avg_sq"):
            close(a.state[ours[i]][name], b.state[q][name], terms=200)
        assert a.state[ours[i]]["step"] == 3


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


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_a_step_of_adamw_over_several_blocks(threads: int, dtype: str, monkeypatch: pytest.MonkeyPatch):
    """Every number of a seventh step is PyTorch's of float64: by the definition (no threads), by the kernel on one thread and on three.

    √v lies on both sides of ε and a step decays by 5 %, so that where ε, a correction and the decay stand shows. A step is at most
    U = (lr/c₁)(β₁|m| + (1−β₁)|g|)/(√(v/c₂) + ε). m is off by 3 roundings, √(v/c₂) + ε by 5, U by 12 with those of lr/c₁ and of the
    division, and p by 3 of its own; PyTorch's are as many in float64, and twice that pays for its other order.
    """
    monkeypatch.setattr(SIZES, "threads", threads)
    if not threads:
        monkeypatch.setattr(backend.cpu, "kernels", {})
    rng = np.random.default_rng(0)
    n, lr, (beta1, beta2), eps = 4 * SIZES.block + 5, 0.1, (0.9, 0.99), 1e-4
    scale = 10.0 ** rng.uniform(-8.0, 0.0, n)
    a, g, m, v = (x.astype(dtype) for x in (rng.standard_normal(n), scale * rng.standard_normal(n), scale * rng.standard_normal(n),
                                            scale * scale * rng.random(n)))
    p, q = Parameter(a.copy()), torch.nn.Parameter(torch.tensor(a, dtype=torch.float64))
    ours, theirs = (lib.AdamW([x], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=0.5) for lib, x in ((optim, p), (torch.optim, q)))
    ours.state[p] = {"step": 6, "exp_avg": m.copy(), "exp_avg_sq": v.copy()}
    theirs.state[q] = {"step": torch.tensor(6.0), "exp_avg": torch.tensor(m, dtype=torch.float64),
                       "exp_avg_sq": torch.tensor(v, dtype=torch.float64)}
    p.grad, q.grad = mg.Tensor(g.copy()), torch.tensor(g, dtype=torch.float64)
    ours.step()
    theirs.step()
    first = beta1 * np.abs(m) + (1.0 - beta1) * np.abs(g)
    second = theirs.state[q]["exp_avg_sq"].numpy()
    step = lr / (1.0 - beta1**7) * first / (np.sqrt(second / (1.0 - beta2**7)) + eps)
    unit = 0.5 * float(np.finfo(dtype).eps) + float(np.finfo("float64").eps)
    mine, peer = ours.state[p], theirs.state[q]
    for found, wanted, roundings in ((p.numpy(), q.detach(), 12 * step + 3 * np.abs(a)), (mine["exp_avg"], peer["exp_avg"], 3 * first),
                                     (mine["exp_avg_sq"], peer["exp_avg_sq"], 4 * second)):
        assert found.dtype == dtype and (np.abs(found - wanted.numpy()) <= 1.001 * unit * roundings).all()
    np.testing.assert_array_equal(p.grad.numpy(), g)


def test_steps_are_counted():
    """From 0 on, one for each step that was taken."""
    p = mg.Parameter([1.0, 2.0])
    optimizer = mg.optim.AdamW([p])
    assert optimizer.steps == 0
    for n in range(1, 4):
        p.grad = mg.tensor([0.1, 0.2])
        optimizer.step()
        assert optimizer.steps == n


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


W = lambda **how: Parameter(np.ones(2), **how)  # noqa: E731
USED = iter([W()])
list(USED)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
@pytest.mark.parametrize("make, error, words", {
    "one Tensor": (W, TypeError, "the parameters are a Parameter; pass a list of Tensors"),
    "a model": (lambda: mg.nn.Linear(1, 1), TypeError, "a Linear; pass a list of Tensors, such as list(model.parameters())"),
    "a method": (lambda: mg.nn.Linear(1, 1).parameters, TypeError, "the parameters are a method"),
    "a dict": (lambda: dict(mg.nn.Linear(1, 1).named_parameters()), TypeError, "the parameters are a dict"),
    "a set": (lambda: {W()}, TypeError, "the parameters are a set"),
    "a string": (lambda: "weight", TypeError, "the parameters are a str"),
    "a number": (lambda: 3, TypeError, "the parameters are a int"),
    "an array": (lambda: np.ones((2, 2)), TypeError, "parameter 0 is a ndarray"),
    "arrays": (lambda: [W(), np.ones(2)], TypeError, "parameter 1 is a ndarray"),
    "nothing": (list, mg.GraphError, "there are no parameters to optimise"),
    "a generator that was read": (lambda: USED, mg.GraphError, "it can be read only once"),
    "a result": (lambda: [W(), W() * 2.0], mg.GraphError, "parameter 1, <mul #"),
    "a constant": (lambda: [mg.tensor([1.0])], mg.GraphError, "parameter 0, float32[1], requires no gradient"),
    "a group and a Tensor": (lambda: [{"params": [W()]}, W()], TypeError, "a group is a dict"),
    "a Tensor and a group": (lambda: [W(), {"params": [W()]}], TypeError, "a group is a dict"),
    "a group without params": (lambda: [{"lr": 0.1}], TypeError, "not a dict of ['lr']"),
    "a group of strings": (lambda: [{"params": ["w"]}], TypeError, "parameter 0 is a str"),
    "a pair of Tensors": (lambda: [(W(), W())], TypeError, "parameter 0 is a tuple"),
    "a name, a Tensor and more": (lambda: [("w", W(), 1)], TypeError, "parameter 0 is a tuple"),
    "a group with an unknown setting": (lambda: [{"params": [W()], "rate": 0.1}], TypeError, "no setting rate; the settings are lr"),
    "a group with a setting out of range": (lambda: [{"params": [W()], "lr": -1.0}], ValueError, "lr must be a finite number, at least 0"),
}.values())
def test_what_is_no_parameter_is_refused(make: Any, error: Any, words: str, kind: str):
    """In one line that names the optimiser. PyTorch refuses these too, but for unknown settings and constants,
    which do nothing there."""
    with pytest.raises(error) as caught:
        getattr(optim, kind)(make(), lr=0.1)
    assert str(caught.value).startswith(kind) and words in str(caught.value) and "\n" not in str(caught.value)


BAD = {"lr": [(-1.0, ValueError), (math.nan, ValueError), (math.inf, ValueError), ("0.1", TypeError), (None, TypeError),
              (mg.tensor(0.1), TypeError)],
       "weight_decay": [(-0.1, ValueError), ("0", TypeError)], "momentum": [(-0.9, ValueError), (math.nan, ValueError)],
       "eps": [(-1e-8, ValueError), ("1e-8", TypeError)],
       "betas": [((0.9, 1.0), ValueError), ((-0.1, 0.9), ValueError), ((math.nan, 0.9), ValueError), (("0.9", 0.99), TypeError),
                 (0.9, TypeError), ((0.9,), TypeError), ("99", TypeError)]}


@pytest.mark.parametrize("name, value, error", [(name, *bad) for name, some in BAD.items() for bad in some])
def test_settings_have_their_ranges(name: str, value: Any, error: type[Exception]):
    """Given to the optimiser, to a group, or set between two steps: one line with the setting's name, and no parameter was changed."""
    kind, good = (optim.SGD if name == "momentum" else optim.AdamW), {"lr": 0.1}
    p = W()
    opt = kind([p], **good)
    p.grad = mg.Tensor(np.ones(2))
    opt.param_groups[0][name] = value
    for f in (lambda: kind([W()], **{name: value}), lambda: kind([{"params": [W()], name: value}]), opt.step):
        with pytest.raises(error, match=rf"{kind.__name__}: {name}") as caught:
            f()
        assert "\n" not in str(caught.value)
    assert p.tolist() == [1.0, 1.0]


def test_settings_are_refused_in_whole_sentences():
    """With what was given, and with the range of this setting alone."""
    for value, f in (("SGD: lr must be a finite number, at least 0, not -1.0", lambda: optim.SGD([W()], lr=-1.0)),
                     ("AdamW: betas[1] must be a finite number, at least 0 and below 1, not 1.0",
                      lambda: optim.AdamW([W()], betas=(0.9, 1.0))),
                     ("AdamW: betas is 0.9; pass two numbers, such as (0.9, 0.999)", lambda: optim.AdamW([W()], betas=0.9))):
        with pytest.raises((TypeError, ValueError)) as caught:
            f()
        assert str(caught.value) == value


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_defaults_are_pytorchs(kind: str):
    """Every setting has the value that it has in torch.optim when it is left out."""
    theirs = getattr(torch.optim, kind)([torch.nn.Parameter(torch.ones(1))]).defaults
    ours = getattr(optim, kind)([W()]).param_groups[0]
    assert {name: theirs[name] for name in ours if name != "params"} == {n: v for n, v in ours.items() if n != "params"}


def test_what_may_be_a_parameter():
    """A Tensor that requires a gradient, and a group without parameters beside one that has some, as in PyTorch."""
    t = mg.tensor([1.0], requires_grad=True)
    opt = optim.SGD([{"params": []}, {"params": [t]}], lr=0.5)
    t.grad = mg.tensor([1.0])
    opt.step()
    assert t.tolist() == [0.5]


def test_without_decay_nothing_is_made_of_the_parameter():
    """0 · ∞ would be NaN: an infinite number that does not decay stays infinite, as in PyTorch."""
    for kind in ("SGD", "Adam", "AdamW"):
        p, q = Parameter(np.array([np.inf, 1.0])), torch.nn.Parameter(torch.tensor([math.inf, 1.0], dtype=torch.float64))
        p.grad, q.grad = mg.Tensor(np.ones(2)), torch.ones(2, dtype=torch.float64)
        for lib, x in ((optim, p), (torch.optim, q)):
            getattr(lib, kind)([x], lr=0.1, weight_decay=0.0).step()
        assert p.tolist()[0] == q.tolist()[0] == math.inf
        close(p.numpy()[1:], q[1:], terms=20)


def test_an_optimiser_of_ones_own_says_how_to_update():
    """One that does not is refused when it steps."""
    p = W()
    p.grad = mg.Tensor(np.ones(2))
    with pytest.raises(NotImplementedError):
        optim.Optimizer([p], {}).step()


def test_a_setting_from_numpy_is_a_number():
    """np.float64 rates, as a schedule computes them, change no bit of what float32 parameters become."""
    ends = []
    for number in (float, np.float64, lambda x: np.asarray(x)[()]):
        p = Parameter(np.full(3, 1.0 / 3.0, "float32"))
        opt = optim.SGD([p], lr=number(0.1), momentum=number(0.9), weight_decay=number(0.01))
        for _ in range(3):
            opt.param_groups[0]["lr"] = number(0.3)
            p.grad = mg.Tensor(np.full(3, 0.7, "float32"))
            opt.step()
        assert opt.state[p]["momentum"].dtype == "float32"
        ends.append(p.tolist())
    assert ends[0] == ends[1] == ends[2]


def test_named_parameters_and_single_groups_are_taken():
    """The pairs of named_parameters(), and one Tensor as a group's params, are optimised as in PyTorch; so is a frozen parameter, later."""
    ours, theirs = mg.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    for p, q in zip(ours.parameters(), theirs.parameters()):
        p.assign(q.detach().numpy().copy())
    ours.bias.requires_grad_(False)
    theirs.bias.requires_grad_(False)
    made = [(lib.SGD(m.named_parameters(), lr=0.5), lib.SGD([{"params": m.weight}, {"params": [m.bias], "lr": 0.25}], lr=0.125))
            for lib, m in ((optim, ours), (torch.optim, theirs))]
    for i in (0, 1):
        for m, x, opts in ((ours, mg.tensor([[1.0, 2.0]]), made[0]), (theirs, torch.tensor([[1.0, 2.0]]), made[1])):
            m(x).sum().backward()
            opts[i].step()
            m.bias.requires_grad_(True)
    for p, q in zip(ours.parameters(), theirs.parameters()):
        close(p, q, terms=20)


def test_groups_may_be_added_and_exchanged():
    """State belongs to the parameter, wherever it stands: add_param_group and an exchanged list go on as in PyTorch."""
    ends = []
    for lib, make in ((optim, lambda i: Parameter(np.full(2, float(i)))),
                      (torch.optim, lambda i: torch.nn.Parameter(torch.full((2,), float(i), dtype=torch.float64)))):
        ps = [make(i) for i in range(3)]
        opt = lib.SGD(ps[:2], lr=0.1, momentum=0.9)
        for k in range(4):
            for i, p in enumerate(ps):
                p.grad = (mg.Tensor if lib is optim else torch.tensor)(np.full(2, 1.0 + i))
            opt.step()
            if k == 1:
                opt.param_groups[0]["params"].reverse()
                opt.add_param_group({"params": ps[2], "lr": 0.2})
        ends.append(ps)
    for p, q in zip(*ends):
        close(p, q, terms=40)
    with pytest.raises(mg.GraphError, match="twice"):
        optim.SGD(ends[0][:1]).add_param_group({"params": ends[0][:1]})


def test_a_closure_is_called_first():
    """step(closure) computes the loss and its gradients, also inside no_grad(), steps, and returns the loss, as in PyTorch."""
    p, q = Parameter(np.ones(2)), torch.nn.Parameter(torch.ones(2, dtype=torch.float64))

    def closure(x: Any, opt: Any) -> Any:
        opt.zero_grad()
        loss = (x * x * x).sum()
        loss.backward()
        return loss

    for lib, x in ((mg, p), (torch, q)):
        opt = lib.optim.SGD([x], lr=0.1)
        with lib.no_grad():
            assert opt.step(lambda x=x, opt=opt: closure(x, opt)).item() == 2.0
        assert opt.step() is None
    close(p, q, terms=20)


def test_zero_grad_can_set_zeros():
    """With set_to_none=False a gradient that is there becomes zero, so that momentum and decay go on; PyTorch's argument."""
    p, q = Parameter(np.ones(2)), torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    for lib, x in ((mg, p), (torch, q)):
        opt = lib.optim.SGD([x], lr=0.1, momentum=0.9, weight_decay=0.1)
        opt.zero_grad(set_to_none=False)
        assert x.grad is None
        (x * np.inf if lib is mg else x * torch.inf).sum().backward()
        opt.zero_grad(set_to_none=False)
        assert x.grad.tolist() == [0.0, 0.0]
        for _ in range(3):
            opt.step()
        opt.zero_grad(set_to_none=True)
        assert x.grad is None
    close(p, q, terms=20)


def test_decay_groups_part_matrices_from_the_rest():
    """Parameters of two axes or more decay, the others do not, and each is in one group."""
    ours, _ = _pair()
    decay, plain = optim.decay_groups(iter(ours), 0.1)
    assert [p.ndim for p in decay["params"]] == [2, 2, 2] and [p.ndim for p in plain["params"]] == [1, 0]
    assert decay["weight_decay"] == 0.1 and plain["weight_decay"] == 0.0


@pytest.mark.parametrize("kind, how", [("SGD", {"momentum": 0.9}), ("Adam", {}), ("AdamW", {})])
def test_an_optimiser_goes_on_from_its_state(kind: str, how: dict[str, Any]):
    """state_dict has PyTorch's keys; after load_state_dict another optimiser of equal parameters takes the same steps, to the bit."""
    def made() -> tuple[list[Parameter], Any]:
        ps = [Parameter(np.array([1.0, -2.0])), Parameter(np.array([[0.5]]))]
        return ps, getattr(optim, kind)([{"params": ps[:1]}, {"params": ps[1:], "lr": 0.3}], lr=0.1, **how)

    def step(ps: list[Parameter], opt: Any) -> None:
        opt.zero_grad()
        sum(((p - 1.0) ** 2).sum() for p in ps).backward()
        opt.step()

    ps, opt = made()
    step(ps, opt)
    kept = copy.deepcopy(opt.state_dict())
    theirs = getattr(torch.optim, kind)([torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(1))], **how)
    assert kept.keys() == theirs.state_dict().keys() and [g["params"] for g in kept["param_groups"]] == [[0], [1]]
    others, fresh = made()
    for p, q in zip(ps, others):
        q.assign(p.numpy().copy())                      # not its array, which both would change
    fresh.param_groups[0]["lr"] = 7.0
    fresh.load_state_dict(kept)
    assert fresh.param_groups[0]["lr"] == 0.1
    step(ps, opt)
    step(others, fresh)
    assert [p.tolist() for p in ps] == [q.tolist() for q in others]
    assert kept["state"][0]["step"] == 1                # its arrays are its own
    with pytest.raises(ValueError, match="the groups have"):
        getattr(optim, kind)(others).load_state_dict(kept)
    before = copy.deepcopy(fresh.state_dict())
    for at in range(2):                                 # a refused state changes no group, not even its own
        wrong = copy.deepcopy(kept)
        wrong["state"] = {}
        wrong["param_groups"][0]["lr"] = 9.0
        wrong["param_groups"][at]["lr"] = -1.0
        with pytest.raises(ValueError, match=r"lr must be .*, not -1\.0"):
            fresh.load_state_dict(wrong)
        assert fresh.state_dict()["param_groups"] == before["param_groups"]
        assert fresh.state_dict()["state"].keys() == before["state"].keys()


def test_an_optimiser_shows_its_groups():
    """The settings and how many numbers each group has."""
    a, b = Parameter(np.ones((2, 3))), Parameter(np.ones(4))
    assert repr(optim.SGD([a], lr=0.1)) == "SGD(1 Tensors of 6 numbers, lr=0.1, momentum=0.0, weight_decay=0.0)"
    assert "1 Tensors of 4 numbers, lr=0.2" in repr(optim.SGD([{"params": [a]}, {"params": [b], "lr": 0.2}]))


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
