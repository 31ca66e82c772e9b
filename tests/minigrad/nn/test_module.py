"""Modules and parameters in lists and dicts have PyTorch's names; copies stand alone; what has no name is refused."""
from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from minigrad import nn

NAMES = st.sampled_from(["a", "b", "w", "h", "0"])
COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


class Net(nn.Module):
    """A module of any attributes."""

    def __init__(self, **attributes: Any) -> None:
        for name, value in attributes.items():
            setattr(self, name, value)


class Twin(torch.nn.Module):
    """PyTorch's, and what stands there for a list or dict of modules and parameters."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)


# a drawn module: ("parameter", n) and ("linear", n) are the same object wherever n is; ("net" | "dict", {name: …}), ("list" | "tuple", […])
LEAVES = st.tuples(st.sampled_from(["parameter", "linear"]), st.integers(0, 3))
TREES = st.recursive(LEAVES, lambda inner: st.one_of(
    st.tuples(st.sampled_from(["net", "dict"]), st.dictionaries(NAMES, inner, max_size=4)),
    st.tuples(st.sampled_from(["list", "tuple"]), st.lists(inner, max_size=4))), max_leaves=12)
ROOTS = st.tuples(st.just("net"), st.dictionaries(NAMES, TREES, min_size=1, max_size=4))


def _ours(tree: Any, made: dict[Any, Any]) -> Any:
    kind, content = tree
    if kind in ("parameter", "linear"):
        if tree not in made:
            made[tree] = nn.Linear(2, 2, dtype="float64") if kind == "linear" else mg.Parameter(np.full((content,), 0.5))
        return made[tree]
    if kind in ("net", "dict"):
        inner = {name: _ours(t, made) for name, t in content.items()}
        return Net(**inner) if kind == "net" else inner
    items = [_ours(t, made) for t in content]
    return items if kind == "list" else tuple(items)


def _theirs(tree: Any, made: dict[Any, Any], containers: set[int]) -> Any:
    kind, content = tree
    if kind in ("parameter", "linear"):
        if tree not in made:
            made[tree] = torch.nn.Linear(2, 2, dtype=torch.float64) if kind == "linear" else \
                torch.nn.Parameter(torch.zeros(content, dtype=torch.float64))
        return made[tree]
    inner = {str(k): _theirs(t, made, containers) for k, t in (content.items() if kind in ("net", "dict") else enumerate(content))}
    kinds = {t[0] == "parameter" for t in (content.values() if kind in ("net", "dict") else content)}
    if kind == "net" or len(kinds) == 2:                # PyTorch has no container of both
        out: Any = Twin(**inner)
    elif kind == "dict":
        out = (torch.nn.ParameterDict if kinds == {True} else torch.nn.ModuleDict)(OrderedDict(inner))     # it sorts a plain dict
    else:
        out = (torch.nn.ParameterList if kinds == {True} else torch.nn.ModuleList)(inner.values())
    if kind != "net":
        containers.add(id(out))
    return out


def _filled(model: nn.Module, start: float = 0.0) -> nn.Module:
    """The n-th parameter gets the numbers start + n + 0.01 i."""
    for n, p in enumerate(model.parameters()):
        p.assign(start + n + 0.01 * np.arange(p.numel()).reshape(p.shape))
    return model


def _values(model: nn.Module) -> list[tuple[str, Any]]:
    return [(name, p.tolist()) for name, p in model.named_parameters()]


@given(tree=ROOTS)
def test_names_and_states_are_pytorchs(tree: Any):
    """named_parameters, named_modules and state_dict of any nesting, with parameters and modules used twice, are those of a module
    of ModuleList, ModuleDict, ParameterList and ParameterDict, in its order; either loads the other's state."""
    containers: set[int] = set()
    ours, theirs = _ours(tree, {}), _theirs(tree, {}, containers)
    _filled(ours)
    named = list(theirs.named_parameters())
    assert [(name, p.shape) for name, p in ours.named_parameters()] == [(name, tuple(q.shape)) for name, q in named]
    assert [name for name, _ in ours.named_modules()] == [name for name, m in theirs.named_modules() if id(m) not in containers]
    assert list(ours.modules()) == [m for _, m in ours.named_modules()] and list(ours.children()) == [m for _, m in ours.named_children()]
    state = ours.state_dict()
    assert list(state) == [name for name, _ in named]
    theirs.load_state_dict({name: torch.tensor(a) for name, a in state.items()}, strict=False)
    full = theirs.state_dict()                          # PyTorch lists what is tied under each of its names
    assert all(np.array_equal(full[name], a) for name, a in state.items())
    again = _ours(tree, {})
    again.load_state_dict({name: full[name] for name in state})
    assert _values(again) == _values(ours)


@pytest.mark.parametrize("how", COPIES)
@given(tree=ROOTS)
def test_a_copy_of_a_module_stands_alone(how: str, tree: Any):
    """A copy has the same names, values, modes and ties, and no memory of the original."""
    model = _filled(_ours(tree, {})).eval()
    made = COPIES[how](model)
    assert _values(made) == _values(model) and not any(m.training for m in made.modules())
    assert [name for name, _ in made.named_modules()] == [name for name, _ in model.named_modules()]
    mine, before = set(map(id, model.parameters())), _values(model)
    assert not any(id(p) in mine for p in made.parameters())
    _filled(made, start=100.0)
    made.train()
    assert _values(model) == before and not any(m.training for m in model.modules())


@given(tree=ROOTS)
def test_mode_and_gradients_reach_everything(tree: Any):
    """train(), eval(), zero_grad() and to() change what lies in a list in a dict as well."""
    model = _filled(_ours(tree, {}))
    for mode in (False, True):
        model.train(mode)
        assert all(m.training is mode for m in model.modules())
    values = _values(model)
    for p in model.parameters():
        p.grad = mg.Tensor(np.full(p.shape, np.inf))
    model.zero_grad(set_to_none=False)
    assert all(p.grad.tolist() == np.zeros(p.shape).tolist() for p in model.parameters())
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    assert model.to("numpy") is model and _values(model) == values


def test_what_lies_in_containers_is_trained():
    """A step over parameters() changes those in a list, a dict and a list of lists."""
    a, b = nn.Linear(2, 2, dtype="float64"), nn.Linear(2, 2, dtype="float64")
    model = Net(scales=[mg.Parameter(np.ones(2))], experts={"a": a}, blocks=[[b]])
    assert [name for name, _ in model.named_parameters()] == \
        ["scales.0", "experts.a.weight", "experts.a.bias", "blocks.0.0.weight", "blocks.0.0.bias"]
    before = [p.numpy().copy() for p in model.parameters()]
    model.blocks[0][0](model.experts["a"](mg.tensor(np.ones((3, 2))) * model.scales[0])).sum().backward()
    mg.optim.SGD(model.parameters(), lr=0.1).step()
    assert not any(np.array_equal(a, p.numpy()) for a, p in zip(before, model.parameters()))


def test_an_error_inside_a_container_says_where():
    """The module's name in the message goes through lists and dicts."""
    model = Net(experts={"a": [nn.Linear(2, 3)]})
    model.forward = lambda x: model.experts["a"][0](x)  # type: ignore[method-assign]
    with pytest.raises(mg.ShapeError, match=r"; in experts\.a\.0$"):
        model(mg.tensor([[1.0, 2.0, 3.0]]))


def test_modules_in_a_circle_are_found_once():
    """A module that knows its parent, and a list that holds itself, come to an end."""
    child, ring = Net(w=mg.Parameter(np.ones(1))), [nn.ReLU()]
    ring.append(ring)  # type: ignore[arg-type]
    model = Net(child=child, ring=ring)
    child.parent = model
    assert [name for name, _ in model.named_modules()] == ["", "child", "ring.0"]
    assert [name for name, _ in model.named_parameters()] == ["child.w"]


# ── refusals ──
LEAF = lambda: mg.tensor([1.0, 2.0], requires_grad=True)  # noqa: E731


@pytest.mark.parametrize("f, words", {
    "a set": (lambda: list(Net(layers={nn.ReLU()}).parameters()), ["Net.layers is a set", "use a list or a dict"]),
    "a deque": (lambda: Net(layers=deque([mg.Parameter(np.ones(1))])).state_dict(), ["Net.layers is a deque"]),
    "views": (lambda: list(Net(layers={"a": nn.ReLU()}.values()).named_modules()), ["Net.layers is a dict_values"]),
    "a set below": (lambda: list(Net(a=[Net(b={nn.ReLU()})]).named_modules()), ["Net.a.0.b is a set"]),
    "a leaf in the place of a parameter": (lambda: setattr(nn.Linear(2, 2), "bias", LEAF()),
                                           ["Linear.bias is a Parameter", "mg.nn.Parameter(value)", ".bias.assign(value)"]),
    "a constant there": (lambda: setattr(nn.Linear(2, 2), "bias", mg.tensor([1.0, 2.0])), ["replaced by a Tensor"]),
    "an array there": (lambda: setattr(nn.Linear(2, 2), "bias", np.ones(2)), ["replaced by a ndarray"]),
    "a leaf": (lambda: Net(w=LEAF()), ["Net.w would not be among the parameters", "mg.nn.Parameter(value)"]),
    "a leaf as the bias of a layer without": (lambda: setattr(nn.Linear(2, 2, bias=False), "bias", LEAF()), ["Linear.bias would not"]),
    "a leaf in a list": (lambda: list(Net(ws=[[LEAF()]]).parameters()), ["Net.ws.0.0 would not"]),
    "a class in Sequential": (lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU), ["argument 1 is the class ReLU", "ReLU()"]),
    "a function in Sequential": (lambda: nn.Sequential(mg.relu), ["argument 0 is a FastOp"]),
    "a list in Sequential": (lambda: nn.Sequential([nn.ReLU()]), ["argument 0 is a list", "Sequential(*modules)"]),
    "a dict in Sequential": (lambda: nn.Sequential(OrderedDict(a=nn.ReLU())), ["argument 0 is a OrderedDict"]),
    "a list in a state": (lambda: nn.Linear(1, 1, bias=False).load_state_dict({"weight": [[1.0]]}), ["weight is a list"]),
    "a mode in words": (lambda: nn.ReLU().train("False"), ["mode is 'False'"]),  # type: ignore[arg-type]
    "a module as a state": (lambda: nn.Linear(1, 1).load_state_dict(nn.Linear(1, 1)), ["the argument is a Linear"]),
}.values())
def test_what_would_be_passed_over_is_refused(f: Callable[[], Any], words: list[str]):
    """What PyTorch refuses, or would silently leave out of training, is a TypeError of one line that says what to type."""
    with pytest.raises(TypeError) as caught:
        f()
    assert all(w in str(caught.value) for w in words) and "\n" not in str(caught.value)


def test_parameters_of_one_name_are_refused():
    """Keys 0 and "0", or a key with a dot, cannot hide one parameter behind another."""
    for h in ({0: nn.Linear(1, 1), "0": nn.Linear(1, 1)}, {"0": [mg.Parameter(np.ones(1))], "0.0": mg.Parameter(np.ones(1))}):
        with pytest.raises(ValueError, match=r"two parameters would be called 'h\.0\.(weight|0)'"):
            list(Net(h=h).parameters())


def test_a_parameter_gives_way_to_a_parameter_or_to_none():
    """As in PyTorch; the new one is listed, and what is no leaf may be kept anywhere."""
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(mg.tensor([[1.0, 0.0], [0.0, 1.0]]))
    layer.bias = None
    assert _values(layer) == [("weight", [[1.0, 0.0], [0.0, 1.0]])] and layer(mg.tensor([[3.0, 4.0]])).tolist() == [[3.0, 4.0]]
    layer.bias = mg.Parameter(np.ones(2, "float32"))
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    layer.seen, layer.mask = layer(mg.tensor([[3.0, 4.0]])), mg.tensor([1.0, 0.0])
    assert len(list(layer.parameters())) == 2


# ── state ──
def test_a_state_from_anywhere_is_cast():
    """Another float, integers, Tensors and PyTorch's tensors are copied and rounded to the parameter's dtype, as PyTorch does."""
    third = np.array([[1.0 / 3.0]])
    for value in (third, mg.tensor(third), torch.tensor(third), np.float64(third), third.astype("float32")):
        layer, theirs = nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
        layer.load_state_dict({"weight": value})
        theirs.load_state_dict({"weight": torch.tensor(np.asarray(value))})
        assert layer.weight.dtype == "float32" and layer.weight.tolist() == theirs.weight.tolist()
    layer.load_state_dict({"weight": np.array([[7]])})
    assert layer.weight.dtype == "float32" and layer.weight.tolist() == [[7.0]]


def test_a_state_follows_a_step():
    """It shares memory with the module, as in PyTorch: copy it to keep it."""
    layer, theirs = nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    layer.load_state_dict({"weight": theirs.weight.detach()})
    states = layer.state_dict(), theirs.state_dict()
    for x, opt in ((layer, mg.optim.SGD(layer.parameters(), lr=1.0)), (theirs, torch.optim.SGD(theirs.parameters(), lr=1.0))):
        x.weight.sum().backward()
        opt.step()
    assert states[0]["weight"].tolist() == states[1]["weight"].tolist() == layer.weight.tolist()


# ── copies ──
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("make", [nn.GELU, lambda: nn.GELU("tanh"), nn.ReLU, nn.Tanh, lambda: nn.Dropout(0.25), lambda: nn.Embedding(4, 3),
                                  lambda: nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Dropout(0.5), nn.Tanh())])
def test_every_module_can_be_copied(make: Callable[[], nn.Module], how: str):
    """The copy computes the same bits, and its gradient comes to its own parameters."""
    model = make()
    made = COPIES[how](model)
    x = np.array([1, 0, 3]) if isinstance(model, nn.Embedding) else mg.tensor([[0.5, -1.0, 2.0, 0.0]], requires_grad=True)
    outs = []
    for m in (model, made):
        mg.random.manual_seed(0)
        outs.append(m(x))
    assert outs[0].tolist() == outs[1].tolist()
    outs[1].sum().backward()
    assert all(p.grad is None for p in model.parameters()) and all(p.grad is not None for p in made.parameters())


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_keeps_the_python_modules_it_uses(how: str):
    """self.F = mg.fused is no obstacle."""
    made = COPIES[how](Net(F=mg.fused, w=mg.Parameter(np.ones(2))))
    assert made.F is mg.fused and made.w.tolist() == [1.0, 1.0] and made.training


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_an_optimiser_copied_with_its_model_trains_the_copy(kind: str, how: str):
    """In the midst of training both go on to the same bits, each with its own parameters and moments."""
    model = _filled(Net(layers=[nn.Linear(2, 2, dtype="float64")], w=mg.Parameter(np.ones(2))))
    optimizer = getattr(mg.optim, kind)(model.parameters(), lr=0.1, **({"momentum": 0.9} if kind == "SGD" else {}))

    def step(model: Any, optimizer: Any) -> list[Any]:
        optimizer.zero_grad()
        (model.layers[0](mg.tensor(np.ones((1, 2)))) * model.w).sum().backward()
        optimizer.step()
        return _values(model)

    step(model, optimizer)
    before = _values(model)
    made = COPIES[how]((model, optimizer))
    theirs = [step(*made) for _ in range(3)]
    assert _values(model) == before != theirs[0]
    assert [step(model, optimizer) for _ in range(3)] == theirs
