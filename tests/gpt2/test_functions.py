"""What F can be: functions with casts, with panels, with hooks; and what a copy of a module has instead."""
from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from tiny_gpt2 import tiny_model

import minigrad as mg
from gpt2.functions import HookedFunctions, Packed, casting
from gpt2.model import GPT2
from minigrad import nn

IDS = np.array([[7, 31, 4, 250], [3, 1, 8, 9]])
MIXED = casting("minigrad.nn.functional")


def test_casts_are_of_parameters_alone():
    """A parameter becomes the dtype of what it is used with, wherever it stands; other values, and calls without a Tensor, are left."""
    x, weight, bias = mg.ones((2, 3), dtype="float16"), mg.Parameter(np.ones((3, 2), np.float32)), mg.Parameter(np.ones(2, np.float32))
    assert MIXED.addmm(bias, x, weight).dtype == MIXED.matmul(x, weight).dtype == np.float16
    with pytest.raises(mg.DTypeError):
        MIXED.matmul(x, mg.tensor(weight.numpy()))
    assert MIXED.embedding(np.array([1]), weight).dtype == np.float32
    assert MIXED.matmul(weight, weight.detach().T).dtype == np.float32
    assert MIXED.linear(x, mg.Parameter(np.ones((2, 3), np.float16))).dtype == np.float16


def test_a_cast_passes_its_gradient_to_the_parameter():
    x, weight = mg.ones((2, 3), dtype="float16"), mg.Parameter(np.ones((3, 2), np.float32))
    MIXED.matmul(x, weight).sum().backward()
    assert weight.grad.dtype == np.float32 and (weight.grad.numpy() == 2).all()


@pytest.mark.parametrize("rows, packed", [(2, True), (32, True), (33, False)])
def test_products_of_a_few_rows_use_panels(rows: int, packed: bool):
    """addmm, matmul and linear, of the parameter whose panels there are and of no other."""
    rng = np.random.default_rng(0)
    weight, other = (mg.Parameter(rng.standard_normal((40, 24))) for _ in range(2))
    bias, x = mg.Parameter(rng.standard_normal(24)), mg.tensor(rng.standard_normal((rows, 40)))
    panels = mg.Tensor(mg.backend.cpu.pack(weight.array))
    F, asked = Packed(nn.functional, {id(weight): panels}), []
    with pytest.MonkeyPatch.context() as patch:
        real = mg.packed_linear
        patch.setattr(mg, "packed_linear", lambda *a, **k: asked.append(1) or real(*a, **k))
        for made, wanted in ((F.addmm(bias, x, weight), x.numpy() @ weight.numpy() + bias.numpy()),
                             (F.matmul(x, weight), x.numpy() @ weight.numpy()),
                             (F.addmm(bias, x, other), x.numpy() @ other.numpy() + bias.numpy())):
            np.testing.assert_allclose(made.numpy(), wanted, rtol=1e-12, atol=1e-12)
        head = mg.Parameter(weight.numpy().T.copy())
        made = Packed(nn.functional, {id(head): panels}).linear(x, head)
        np.testing.assert_allclose(made.numpy(), x.numpy() @ weight.numpy(), rtol=1e-12, atol=1e-12)
    assert len(asked) == (3 if packed else 0)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("how", [{}, {"explicit": True}, {"compute_dtype": "float16"}, {"explicit": True, "compute_dtype": "float16"}],
                         ids=str)
def test_a_copy_of_a_module_has_what_is_under_panels_and_hooks(how, way):
    """A block that is copied alone, inside packed() and hooks(), computes as the block of a plain model."""
    model = GPT2(tiny_model().config, **how)
    plain = model.h[0].attn.F
    with model.hooks({"*": lambda x, name: x * 0.0}), model.packed():
        assert isinstance(model.h[0].attn.F, HookedFunctions)
        block = way(model.h[0])
    assert block.F is block.attn.F is block.ln_2.F is plain


def test_panels_and_hooks_that_end_in_another_order():
    """Each ends as its own block does: hooks outlive panels, and panels outlive hooks."""
    model = tiny_model()
    for first in (0, 1):
        blocks = [model.packed(), model.hooks({"blocks.0.mlp.act": lambda x, name: None})]
        for block in blocks:
            block.__enter__()
        blocks[first].__exit__(None, None, None)
        assert model.hooked == (first == 0) and (model.panels is None) == (first == 0)
        assert isinstance(model.h[0].mlp.F, HookedFunctions) == (first == 0)
        assert isinstance(model.h[0].mlp.c_proj.F, Packed) == (first == 1)
        blocks[1 - first].__exit__(None, None, None)
        assert all(module.F is nn.functional for module in model.modules())


def test_mixed_precision_has_no_panels():
    """Panels have the parameters' dtype; a pass of 16 bits multiplies with the cast weights."""
    model = GPT2(tiny_model().config, seed=1, compute_dtype="float16").eval()
    before = model(IDS).numpy()
    with model.packed():
        np.testing.assert_array_equal(model(IDS).numpy(), before)
