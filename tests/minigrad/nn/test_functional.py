"""The functions that modules call: the same names fused and unfused, PyTorch's values, and modules that call what they are given."""
from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from compare import close

import minigrad as mg
from minigrad import fused, nn
from minigrad.nn import functional, unfused

RNG = np.random.default_rng(0)
X, Y, W, B, LONG = (RNG.standard_normal(shape) for shape in ((2, 3, 8), (2, 3, 8), (8, 4), (4,), (2, 3, 12)))
GAIN, SHIFT, TABLE = (RNG.standard_normal(shape) for shape in ((8,), (8,), (5, 8)))
IDS = np.array([[0, 4, 2], [1, 1, 3]])
# each function on an example
CALLS: dict[str, Any] = {
    "add_layer_norm": lambda F: F.add_layer_norm(X, Y, GAIN, SHIFT, eps=1e-5)[1],
    "addmm": lambda F: F.addmm(B, X, W),
    "attention": lambda F: F.attention(X, Y, X, causal=True),
    "cross_entropy": lambda F: F.cross_entropy(X, IDS),
    "dropout": lambda F: F.dropout(X, p=0.5, key=3),
    "embedding": lambda F: F.embedding(IDS, TABLE),
    "gelu": lambda F: F.gelu(X, GAIN, approximate="tanh"),
    "join_heads": lambda F: F.join_heads(X[None]),
    "layer_norm": lambda F: F.layer_norm(X, GAIN, SHIFT, eps=1e-5),
    "linear": lambda F: F.linear(X, W.T.copy(), B),
    "linear_cross_entropy": lambda F: F.linear_cross_entropy(X, TABLE, IDS),
    "log_softmax": lambda F: F.log_softmax(X),
    "matmul": lambda F: F.matmul(X, W),
    "relu": lambda F: F.relu(X, GAIN),
    "softmax": lambda F: F.softmax(X),
    "split_heads": lambda F: F.split_heads(LONG, heads=2, parts=3)[2],
    "tanh": lambda F: F.tanh(mg.tensor(X)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_function_is_its_unfused_form(name: str):
    """functional and unfused have the same functions, and each gives the same numbers up to rounding."""
    assert set(functional.__all__) == set(unfused.__all__) == set(CALLS)
    close(np.asarray(CALLS[name](functional)), np.asarray(CALLS[name](unfused)), terms=60)


def test_no_fused_op_is_left_in_unfused():
    """A function that exists twice is its definition in unfused."""
    for name in unfused.__all__:
        definition = getattr(getattr(functional, name), "definition", None)
        assert definition is None or getattr(unfused, name) is definition, name


def test_relu_with_a_bias_is_pytorchs():
    theirs = torch.nn.functional.relu(torch.tensor(X) + torch.tensor(GAIN))
    np.testing.assert_array_equal(np.asarray(functional.relu(X, GAIN)), theirs.numpy())
    np.testing.assert_array_equal(np.asarray(functional.relu(X)), np.maximum(X, 0))


def test_a_module_calls_the_functions_that_it_is_given():
    """F of a module, set in all modules of a model, is what its forward passes call; another model keeps its own."""
    net, other = (nn.Sequential(nn.Embedding(5, 8), nn.LayerNorm(8), nn.Linear(8, 3), nn.GELU("tanh"), nn.ReLU(), nn.Tanh(),
                                nn.Dropout(0.5)) for _ in range(2))
    asked: list[str] = []

    class Spy:
        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            return getattr(unfused, name)

    for module in net.modules():
        module.F = Spy()
    net(IDS)
    assert asked == ["embedding", "layer_norm", "linear", "gelu", "relu", "tanh", "dropout"]
    other(IDS)
    assert len(asked) == 7 and other[0].F is functional


@pytest.mark.parametrize("made", [lambda: nn.Linear(4, 3, init=False), lambda: nn.Linear(4, 3, bias=False, init=False),
                                  lambda: nn.Embedding(4, 3, init=False)])
def test_a_module_without_initial_values_draws_nothing(made: Any):
    """init=False: the shapes and names are there, the values are to be assigned, and the stream of random numbers is untouched."""
    mg.random.manual_seed(1)
    module = made()
    key = mg.random.next_key()
    mg.random.manual_seed(1)
    assert mg.random.next_key() == key
    weight = np.ones(module.weight.shape)
    assert weight.shape == ((3, 4) if isinstance(module, nn.Linear) else (4, 3))
    module.load_state_dict({name: np.ones(p.shape) for name, p in module.named_parameters()})
    assert all((p.numpy() == 1).all() for p in module.parameters())


def test_the_sum_that_is_normalised():
    """LayerNorm.of_sum gives x + y, and what the module makes of that sum."""
    norm = nn.LayerNorm(8, dtype="float64")
    x, y = mg.tensor(X), mg.tensor(Y)
    s, normal = norm.of_sum(x, y)
    np.testing.assert_array_equal(s.numpy(), X + Y)
    close(normal, norm(mg.tensor(X + Y)), terms=20)


def test_old_names_of_definitions_warn():
    """softmax_by_parts is softmax_unfused for one version, and fused.by_parts is nn.unfused; others are not found."""
    with pytest.warns(DeprecationWarning, match="softmax_by_parts is softmax_unfused now"):
        assert fused.softmax_by_parts is fused.softmax_unfused
    with pytest.raises(AttributeError, match="softmax_in_parts"):
        fused.softmax_in_parts  # noqa: B018
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from minigrad.fused import by_parts
    assert by_parts is unfused


def test_names_of_other_libraries():
    with pytest.raises(AttributeError, match=r"minigrad.nn.functional has no attribute 'mse_loss'; write \(\(x - y\)"):
        functional.mse_loss  # noqa: B018
