"""Tensors made of a size, as NumPy and PyTorch make them; and what an unknown name says."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from minigrad import hints

LINES = ["zeros(2, 3)", "zeros((2, 3))", "zeros(0)", "ones(3)", "ones([2, 1])", "full((2,), 7.0)", "full((2, 2), 7)", "full((), True)",
         "arange(5)", "arange(2, 9, 3)", "arange(0, 1, 0.25)", "arange(3.0)", "arange(5, 0, -2)", "linspace(0, 1, 5)", "linspace(2, 3, 1)",
         "eye(3)", "eye(2, 4)", "zeros_like(x)", "ones_like(n)", "full_like(x, 2.5)"]


@pytest.mark.parametrize("line", LINES)
def test_they_are_pytorchs(line: str):
    """Numbers, shape and dtype; constants on the CPU."""
    ours = eval(f"mg.{line}", {"mg": mg, "x": mg.tensor([[1.0, 2.0]]), "n": mg.tensor([1, 2])})
    theirs = eval(f"torch.{line}", {"torch": torch, "x": torch.tensor([[1.0, 2.0]]), "n": torch.tensor([1, 2])})
    assert ours.dtype == str(theirs.dtype).removeprefix("torch.") and not ours.requires_grad and ours.device == "numpy"
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


@given(sizes=st.lists(st.integers(0, 4), max_size=4), dtype=st.sampled_from(["float16", "float32", "float64"]))
def test_every_size(sizes: list[int], dtype: str):
    """Given one by one or as a sequence; with a gradient where it is asked for."""
    for f in (mg.zeros, mg.ones, mg.rand, mg.randn):
        for made in (f(*sizes, dtype=dtype), f(tuple(sizes), dtype=dtype, requires_grad=True)):
            assert made.shape == tuple(sizes) and made.dtype == dtype


def test_random_numbers_come_from_the_default_stream():
    """manual_seed starts it anew; two draws differ."""
    mg.random.manual_seed(3)
    a, b = mg.randn(4), mg.randn(4)
    mg.random.manual_seed(3)
    assert (mg.randn(4).numpy() == a.numpy()).all() and (a.numpy() != b.numpy()).all()
    assert ((u := mg.rand(1000).numpy()) >= 0.0).all() and (u < 1.0).all()


@pytest.mark.parametrize("call, says", [
    (lambda: mg.zeros(-1), "zeros: a size is negative: [-1]"), (lambda: mg.ones(1.5), "ones: the size must be an integer"),
    (lambda: mg.zeros(2, "float64"), "zeros: the size must be an integer"),
    (lambda: mg.full("3", 1.0), "full: the size must be an integer"),
])
def test_what_is_no_size(call: Any, says: str):
    with pytest.raises(mg.ShapeError) as error:
        call()
    assert says in str(error.value)


# ── Tensor's small habits ──
def test_one_number_in_a_format_and_as_an_index():
    """f"{loss:.3f}", a list's index, and what is neither."""
    assert f"{mg.tensor(1.23456):.3f}" == "1.235" and f"{mg.tensor([1])}" == str(mg.tensor([1]))
    assert [10, 20][mg.tensor([1])[0]] == 20 and list(range(mg.tensor(3))) == [0, 1, 2]
    with pytest.raises(TypeError, match="only one integer can be an index; this is float32"):
        [10, 20][mg.tensor(1.0)]
    with pytest.raises(mg.ShapeError, match="one element"):
        f"{mg.tensor([1.0, 2.0]):.3f}"
    with pytest.raises(TypeError, match=r"does not support item assignment; write x = mg\.where"):
        mg.tensor([1.0])[0] = 2.0


@pytest.mark.parametrize("name, dtype", [("float", "float32"), ("double", "float64"), ("half", "float16"), ("long", "int64"),
                                         ("int", "int32"), ("bool", "bool")])
def test_casts_by_name(name: str, dtype: str):
    """x.float() and the like are astype, through which gradients go; x.to(dtype) is, too."""
    x = mg.tensor([0.0, 1.5], dtype="float64", requires_grad=True)
    assert getattr(x, name)().dtype == x.to(dtype).dtype == x.to(np.dtype(dtype)).dtype == dtype
    assert x.float().requires_grad and x.to(mg.float32).dtype == "float32" and x.cpu() is x


@pytest.mark.parametrize("table, known", [(hints.TENSOR, mg.Tensor), (hints.MODULE, mg)], ids=["Tensor", "minigrad"])
def test_a_name_of_others_is_answered(table: Any, known: Any):
    """The error says what to write. No hint is for a name that exists."""
    for name, line in table.items():
        assert name not in dir(known), name
        with pytest.raises(AttributeError) as error:
            getattr(mg.tensor([1.0]) if known is mg.Tensor else mg, name)
        assert str(error.value).endswith(f"has no attribute {name!r}; {hints.remedy(line)}")


def test_a_misspelt_name_has_near_ones():
    with pytest.raises(AttributeError, match="Tensor has no attribute 'reqires_grad'; similar names: requires_grad"):
        _ = mg.tensor([1.0]).reqires_grad
    with pytest.raises(AttributeError, match="minigrad has no attribute 'sofmax'; similar names: softmax"):
        _ = mg.sofmax
    assert not hasattr(mg.tensor([1.0]), "__cuda_array_interface__") and not hasattr(mg, "__path_of__")


def test_a_star_import_shadows_no_builtin():
    space: dict[str, Any] = {}
    exec("from minigrad import *", space)
    import builtins

    assert space["tensor"] is mg.tensor and not [name for name in space if hasattr(builtins, name) and name != "__builtins__"
                                                 and not name.startswith("__")]
