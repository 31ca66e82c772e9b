"""Modules: PyTorch's values and gradients, parameters counted once, names, state, training mode."""
from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from compare import close

import minigrad as mg
from minigrad import nn


def _params(module: Any) -> dict[str, Any]:
    return dict(module.named_parameters())


def _copied(ours: Any, theirs: Any) -> None:
    """PyTorch's module takes our parameters, by name."""
    with torch.no_grad():
        names = dict(theirs.named_parameters())
        assert names.keys() == _params(ours).keys()
        for name, p in ours.named_parameters():
            assert tuple(names[name].shape) == p.shape
            names[name].copy_(torch.tensor(p.numpy()))


MODULES = {
    "linear": (lambda: nn.Linear(5, 3, dtype="float64"), lambda: torch.nn.Linear(5, 3, dtype=torch.float64), (2, 4, 5)),
    "linear-no-bias": (lambda: nn.Linear(5, 3, bias=False, dtype="float64"),
                       lambda: torch.nn.Linear(5, 3, bias=False, dtype=torch.float64), (4, 5)),
    "layer_norm": (lambda: nn.LayerNorm(5, dtype="float64"), lambda: torch.nn.LayerNorm(5, dtype=torch.float64), (2, 4, 5)),
    "layer_norm-eps": (lambda: nn.LayerNorm(5, eps=0.1, dtype="float64"),
                       lambda: torch.nn.LayerNorm(5, eps=0.1, dtype=torch.float64), (4, 5)),
    "gelu": (nn.GELU, torch.nn.GELU, (3, 4)), "gelu-tanh": (lambda: nn.GELU("tanh"), lambda: torch.nn.GELU("tanh"), (3, 4)),
    "relu": (nn.ReLU, torch.nn.ReLU, (3, 4)), "tanh": (nn.Tanh, torch.nn.Tanh, (3, 4)),
    "sequential": (
        lambda: nn.Sequential(nn.Linear(4, 8, dtype="float64"), nn.GELU(), nn.LayerNorm(8, dtype="float64"),
                              nn.Linear(8, 2, dtype="float64")),
        lambda: torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2)).double(), (3, 4)),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_pytorchs(name: str):
    """Value and every gradient are PyTorch's, with parameters of the same names and shapes."""
    make, make_torch, shape = MODULES[name]
    ours, theirs = make(), make_torch()
    rng = np.random.default_rng(0)
    for p in ours.parameters():
        p.assign(rng.standard_normal(p.shape))
    _copied(ours, theirs)
    x = rng.standard_normal(shape)
    t, u = mg.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, z = ours(t), theirs(u)
    close(y, z)
    g = rng.standard_normal(y.shape)
    y.backward(g)
    z.backward(torch.tensor(g))
    close(t.grad, u.grad)
    for (key, p), q in zip(ours.named_parameters(), theirs.parameters()):
        close(p.grad, q.grad, what=key)


def test_embedding_is_pytorchs():
    """Rows at ids of any shape; the gradient of a row is the sum over its uses; unused rows get zero."""
    ours, theirs = nn.Embedding(7, 3, dtype="float64"), torch.nn.Embedding(7, 3, dtype=torch.float64)
    _copied(ours, theirs)
    ids = np.array([[0, 2, 2], [6, 2, 0]])
    y, z = ours(ids), theirs(torch.tensor(ids))
    close(y, z, terms=0)
    g = np.random.default_rng(0).standard_normal(y.shape)
    y.backward(g)
    z.backward(torch.tensor(g))
    close(ours.weight.grad, theirs.weight.grad, terms=4)
    close(ours(mg.tensor(ids)), z, terms=0)


# ── what modules start with ──
def test_initial_values_are_distributed_as_pytorchs():
    """Linear is uniform in ±1/√in, Embedding standard normal, LayerNorm 1 and 0; float32 unless told otherwise."""
    mg.random.manual_seed(0)
    linear, table, norm = nn.Linear(100, 300), nn.Embedding(300, 100), nn.LayerNorm(10)
    for p in (linear.weight, linear.bias):
        x = p.numpy().astype("float64") * 10.0
        assert p.dtype == "float32" and np.abs(x).max() <= 1.0 + 1e-6
        assert abs(x.mean()) <= 5.0 * math.sqrt(1 / 3 / x.size) and abs(x.var() - 1 / 3) <= 5.0 * math.sqrt(4 / 45 / x.size)
    x = table.weight.numpy().astype("float64")
    assert abs(x.mean()) <= 5.0 / math.sqrt(x.size) and abs(x.var() - 1.0) <= 5.0 * math.sqrt(2 / x.size)
    assert norm.weight.tolist() == [1.0] * 10 and norm.bias.tolist() == [0.0] * 10


def test_initial_values_follow_the_seed_or_the_key():
    """The same seed, or the same key, gives the same module; two modules in a row differ."""
    mg.random.manual_seed(3)
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    mg.random.manual_seed(3)
    c = nn.Linear(4, 4)
    assert a.weight.tolist() == c.weight.tolist() != b.weight.tolist()
    assert nn.Embedding(4, 4, key=5).weight.tolist() == nn.Embedding(4, 4, key=5).weight.tolist()
    assert nn.Linear(0, 2).weight.shape == (2, 0)


# ── names and counting ──
class _Tied(nn.Module):
    """A table that is the output layer too."""

    def __init__(self) -> None:
        self.wte = nn.Embedding(5, 3, dtype="float64")
        self.h = [nn.Linear(3, 3, dtype="float64"), nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 3, dtype="float64"))]
        self.head = nn.Linear(3, 5, bias=False, dtype="float64")
        self.head.weight = self.wte.weight

    def forward(self, ids: Any) -> Any:
        x = self.wte(ids)
        for block in self.h:
            x = block(x)
        return self.head(x)


def test_a_tied_parameter_is_one():
    """It is listed once, under its first name; its gradient is the sum over both uses; the optimiser changes it once."""
    model = _Tied().eval()
    names = [name for name, _ in model.named_parameters()]
    assert names == ["wte.weight", "h.0.weight", "h.0.bias", "h.1.1.weight", "h.1.1.bias"]
    assert sum(p.numel() for p in model.parameters()) == 15 + 2 * 12
    ids = np.array([0, 4])
    model(ids).sum().backward()
    both = model.wte.weight.grad.numpy()
    table, head = mg.tensor(model.wte.weight, requires_grad=True), mg.tensor(model.wte.weight, requires_grad=True)
    x: Any = mg.embedding(ids, table)
    for block in model.h:
        x = block(x)
    mg.linear(x, head).sum().backward()
    close(both, table.grad.numpy() + head.grad.numpy(), terms=10)
    before = model.wte.weight.numpy().copy()
    mg.optim.SGD(model.parameters(), lr=0.5).step()
    close(model.wte.weight, before - 0.5 * both, terms=2)
    assert model.head.weight is model.wte.weight


def test_modules_are_found_by_name():
    """named_modules gives every module once with its path; those in a list are numbered."""
    assert [name for name, _ in _Tied().named_modules()] == ["", "wte", "h.0", "h.1", "h.1.0", "h.1.1", "head"]


# ── state ──
def test_the_state_goes_round():
    """load_state_dict(state_dict()) of another module reproduces it, in values, and shares no memory."""
    a, b = _Tied().eval(), _Tied().eval()
    ids = np.array([[1, 2, 3]])
    assert a(ids).tolist() != b(ids).tolist()
    b.load_state_dict(a.state_dict())
    assert a(ids).tolist() == b(ids).tolist()
    assert not any(np.shares_memory(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
    b.load_state_dict({k: mg.tensor(v.astype("float32")) for k, v in a.state_dict().items()})
    assert all(p.dtype == "float64" for p in b.parameters())
    assert b.head.weight is b.wte.weight


def test_a_state_that_does_not_fit_changes_nothing():
    """Missing and unexpected names and wrong shapes are a ShapeError that names them; no parameter was touched."""
    model = _Tied()
    before = {k: v.copy() for k, v in model.state_dict().items()}
    zeros = {k: np.zeros_like(v) for k, v in before.items()}
    for state, words in [
        ({k: v for k, v in zeros.items() if k != "h.0.bias"}, "h.0.bias"), ({**zeros, "extra": np.ones(1)}, "extra"),
        ({**zeros, "h.1.1.bias": np.ones(4)}, "h.1.1.bias is [4]"),
    ]:
        with pytest.raises(mg.ShapeError) as caught:
            model.load_state_dict(state)
        assert words in str(caught.value) and "\n" not in str(caught.value)
    for k, v in model.state_dict().items():
        np.testing.assert_array_equal(v, before[k])


def test_loading_counts_as_a_change():
    """A graph recorded before load_state_dict refuses to be walked back."""
    layer = nn.Linear(2, 2)
    y = layer(mg.tensor([[1.0, 2.0]], requires_grad=True)).sum()
    layer.load_state_dict({k: v + 1.0 for k, v in layer.state_dict().items()})
    with pytest.raises(mg.GraphError, match="changed"):
        y.backward()


def test_moving_to_the_same_device_keeps_the_values():
    """to("numpy") of a module on NumPy keeps its numbers and its ties."""
    model = _Tied()
    before = {k: v.copy() for k, v in model.state_dict().items()}
    assert model.to("numpy") is model and model.head.weight is model.wte.weight
    for k, v in model.state_dict().items():
        np.testing.assert_array_equal(v, before[k])


# ── training and not ──
def test_dropout_drops_in_training_alone():
    """train(): each element is zero or x/(1 − p); eval(): the very same Tensor. The mode reaches all below."""
    model = _Tied()
    drop = next(model.h[1].children())
    x = mg.tensor(np.ones(1000), requires_grad=True)
    y = drop(x).numpy()
    assert set(y.tolist()) == {0.0, 2.0} and abs((y == 0.0).mean() - 0.5) <= 5.0 * 0.5 / math.sqrt(1000)
    assert not model.eval().training and not drop.training and drop(x) is x
    assert model.train().training and drop.training
    for p in (-0.1, 1.0):
        with pytest.raises(ValueError):
            nn.Dropout(p)


def test_dropout_passes_its_mask_to_the_gradient():
    """The gradient is the mask that the value shows."""
    mg.random.manual_seed(1)
    x = mg.tensor(np.ones(50), requires_grad=True)
    y = nn.Dropout(0.3)(x)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.numpy())


def test_zero_grad_forgets():
    """After zero_grad no parameter has a gradient; a frozen one never had."""
    model = _Tied()
    model.h[0].weight.requires_grad_(False)
    model(np.array([1])).sum().backward()
    assert model.wte.weight.grad is not None and model.h[0].weight.grad is None
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_a_module_without_forward_says_so():
    """The error names the class."""
    with pytest.raises(NotImplementedError, match="Module has no forward"):
        nn.Module()(1)


@pytest.mark.parametrize("f, cast", {
    "data of float64": (lambda: nn.Linear(2, 3)(np.ones((4, 2))), 'x with .astype("float32")'),
    "integers": (lambda: nn.LayerNorm(2)(np.ones((4, 2), int)), 'x with .astype("float32")'),
    "the trained one first": (lambda: nn.Linear(2, 2).weight * np.ones(2), 'b with .astype("float32")'),
    "the trained one last": (lambda: np.ones(2) * nn.Linear(2, 2).weight, 'a with .astype("float32")'),
    "a list": (lambda: mg.concat([np.ones(2), mg.Parameter(np.ones(2, "float32"))]), 'xs[0] with .astype("float32")'),
    "both are data": (lambda: mg.tensor([1.0]) + np.ones(1), 'one with .astype("float32")'),
    "both are trained": (lambda: nn.Linear(2, 2)(mg.tensor(np.ones((1, 2)), requires_grad=True)), 'one with .astype("float64")'),
}.values())
def test_data_is_cast_to_what_is_trained(f: Any, cast: str):
    """Where two dtypes meet and one argument requires a gradient, the line says to cast the other."""
    with pytest.raises(mg.DTypeError) as caught:
        f()
    assert f"cast {cast}" in str(caught.value)


def test_loading_and_freezing_by_pytorchs_lines():
    """An earlier state_dict sees what is loaded, as in PyTorch, and p.requires_grad = False freezes p."""
    for module, zeros in ((nn.Linear(2, 1), np.zeros), (torch.nn.Linear(2, 1), torch.zeros)):
        before = module.state_dict()
        module.load_state_dict({"weight": zeros((1, 2)), "bias": zeros((1,))})
        assert before["weight"].tolist() == [[0.0, 0.0]]
        for p in module.parameters():
            p.requires_grad = False
        assert not any(p.requires_grad for p in module.parameters())


def test_half_a_gradient():
    """p.grad *= 0.5, p.grad = None and freezing, as people type them for PyTorch, do what they do there."""
    ours, theirs = nn.Linear(2, 1), torch.nn.Linear(2, 1)
    ours.load_state_dict(theirs.state_dict())
    for m, x in ((ours, mg.tensor([[1.0, 2.0]])), (theirs, torch.tensor([[1.0, 2.0]]))):
        m(x).sum().backward()
        for p in m.parameters():
            p.grad *= 0.5
    for p, q in zip(ours.parameters(), theirs.parameters()):
        assert p.grad.tolist() == q.grad.tolist()
    ours.weight.grad = None
    assert ours.weight.grad is None
    ours.zero_grad()
    for p in ours.parameters():
        p.requires_grad_(False)
    assert not ours(mg.tensor([[1.0, 2.0]])).requires_grad


def test_a_module_shows_its_sizes():
    """Its settings, the sizes of its own parameters, and what is in it, a line each."""
    net = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5), nn.ModuleList([nn.LayerNorm(3)]))
    assert repr(net) == """Sequential(
  (0): Linear(weight=float32[3, 2], bias=float32[3])
  (1): Dropout(p=0.5)
  (2): ModuleList(
    (0): LayerNorm(weight=float32[3], bias=float32[3], eps=1e-05)
  )
)"""


def test_a_sequential_is_a_sequence():
    """One module may stand twice in it; its length, places and order are those of the arguments."""
    a, b = nn.Linear(2, 2), nn.ReLU()
    net = nn.Sequential(a, b, a)
    assert len(net) == 3 and [*net] == [a, b, a] and net[-1] is a and not nn.Sequential()
    with pytest.raises(IndexError):
        net[3]
    x = mg.tensor([[1.0, -2.0]])
    assert net(x).tolist() == a(b(a(x))).tolist()
    with pytest.raises(NotImplementedError, match="a ModuleList has no forward"):
        nn.ModuleList([a])(x)
    assert [name for name, _ in nn.ModuleList([a, b]).named_parameters()] == ["0.weight", "0.bias"]


@pytest.mark.parametrize("line, says", [
    ("nn.Softmax", "minigrad.nn has no attribute 'Softmax'; write mg.softmax"), ("nn.Liner", "similar names: Linear"),
    ("mg.optim.RMSprop", "minigrad.optim has no attribute 'RMSprop'; write"),
    ("nn.Linear(1, 1).half()", "Linear has no attribute 'half'; write"),
    ("nn.Linear(1, 1).wieght", "similar names: weight"), ("mg.concat([x], dim=0)", "concat: there is no dim=; write axis="),
    ("mg.relu(x, inplace=True)", "for inplace= leave it out"), ("nn.LayerNorm(3, elementwise_affine=False)", "LayerNorm: there is no"),
    ("nn.Linear(1, 1)(x, attn_mask=None)", "Linear: there is no attn_mask="),
])
def test_names_of_other_libraries_are_answered(line: str, says: str):
    """The error says what to write, in one line."""
    with pytest.raises((AttributeError, TypeError)) as caught:
        eval(line, {"mg": mg, "nn": nn, "x": mg.tensor([1.0])})
    assert says in str(caught.value) and "\n" not in str(caught.value)
