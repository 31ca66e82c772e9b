"""Models that are copied and pickled: the same numbers, parameters of their own, tied where they were, and no hooks."""
from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
from data import ROOT
from tiny_gpt2 import tiny_config, tiny_model

import minigrad as mg
from gpt2.decoding.kv_cache import KVCache
from gpt2.model import GPT2

IDS, TARGETS = np.array([[7, 31, 4, 250]]), np.array([[31, 4, 250, 9]])
WAYS = {"deepcopy": copy.deepcopy, **{f"pickle {n}": lambda model, n=n: pickle.loads(pickle.dumps(model, n))
                                      for n in range(2, pickle.HIGHEST_PROTOCOL + 1)}}
MODELS = {
    "tied": {}, "untied": {"tie_word_embeddings": False}, "gelu": {"activation_function": "gelu"}, "relu": {"activation_function": "relu"},
}


def trained(model, steps=3):
    """The losses of a few steps of AdamW, dropout drawn from a seed."""
    mg.random.manual_seed(5)
    model.train()
    optimizer = mg.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.loss(IDS, TARGETS)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def weights(model):
    return {name: np.array(p.array) for name, p in model.named_parameters()}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_a_copy_computes_the_same(fields, way):
    """The same logits and text, to the bit, with arrays of its own; a tied head stays the embedding, an untied one stays apart."""
    model = tiny_model(seed=1, **fields)
    twin = way(model)
    assert np.array_equal(twin(IDS).numpy(), model(IDS).numpy())
    assert twin.generate(IDS, 8, seed=1) == model.generate(IDS, 8, seed=1)
    assert (twin.lm_head.weight is twin.wte.weight) == (model.lm_head.weight is model.wte.weight) == ("tie_word_embeddings" not in fields)
    assert twin.config == model.config and twin.F is model.F and twin.h[0].mlp.act is model.h[0].mlp.act
    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in model.named_parameters()]
    for (_, a), (_, b) in zip(twin.named_parameters(), model.named_parameters()):
        assert type(a) is mg.Parameter and a.requires_grad and not np.shares_memory(a.array, b.array)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("how", [{"explicit": True}, {"dtype": "float64"}, {"compute_dtype": "bfloat16"}, {"recompute": True}], ids=str)
def test_a_copy_is_made_as_the_model_was(how, way):
    """The unfused definitions, dtypes and recomputation go along; so do dropout's training mode and what is frozen."""
    model = GPT2(tiny_config(), seed=1, **how)
    model.wpe.weight.requires_grad_(False)
    model.train()
    twin = way(model)
    assert (twin.F, twin.where, twin.compute_dtype, twin.recompute) == (model.F, model.where, model.compute_dtype, model.recompute)
    assert twin.training and twin.h[1].drop.training and not twin.wpe.weight.requires_grad and twin.wte.weight.requires_grad
    assert trained(twin) == trained(model)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_copy_trains_by_itself(way):
    """Training one leaves the other as it was, and both take the same steps, one after the other."""
    model = tiny_model(seed=1)
    twin, before = way(model), weights(model)
    losses = trained(twin)
    assert all(np.array_equal(before[name], array) for name, array in weights(model).items())
    assert not np.array_equal(before["wte.weight"], weights(twin)["wte.weight"])
    assert all(p.grad is None for p in model.parameters())
    assert trained(model) == losses
    assert all(np.array_equal(a, b) for a, b in zip(weights(model).values(), weights(twin).values()))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_hooks_and_panels_are_not_copied(way):
    """A copy made inside hooks() or packed() has neither; the model keeps its own until the block ends."""
    model, met = tiny_model(seed=1), []
    with model.hooks({"*": lambda x, name: met.append(name)}), model.packed():
        twin = way(model)
        assert not twin.hooked and model.hooked
        assert twin.panels is None and twin.h[0].attn.c_attn.F is twin.F is mg.nn.functional
        twin(IDS)
        assert met == []
        model(IDS)
        assert met
    with twin.hooks({"logits": lambda x, name: x * 0.0}):
        assert not twin(IDS).numpy().any()
    assert np.array_equal(twin(IDS).numpy(), model(IDS).numpy())


def test_copies_of_models_that_decode():
    """Weights laid out for decoding, and mapped ones of a file, are copied as the numbers that they are."""
    model = GPT2.from_pretrained("shakespeare")
    model.lay_out()
    for way in WAYS.values():
        twin = way(model)
        assert twin.path == model.path and np.array_equal(twin(IDS).numpy(), model(IDS).numpy())
        assert trained(twin, 1)


def test_a_cache_is_copied_with_its_tokens():
    """A KV cache that is copied goes on by itself from the tokens that were read."""
    model = tiny_model(seed=1)
    cache = KVCache(model.config, 1, 8)
    with mg.no_grad():
        model(IDS[:, :3], cache=cache)
        twin = copy.deepcopy(cache)
        ours, theirs = (model(IDS[:, 3:], cache=c).numpy() for c in (cache, twin))
    assert np.array_equal(ours, theirs) and not np.shares_memory(cache.keys, twin.keys) and twin.xp is cache.xp


def test_a_model_and_its_copy_in_one_graph():
    """A student learns from its copy: both get their own gradients from one backward pass, though the parameters began as one."""
    model = tiny_model(seed=1)
    twin = copy.deepcopy(model)
    (model.loss(IDS, TARGETS) + 2.0 * twin.loss(IDS, TARGETS)).backward()
    for a, b in zip(model.parameters(), twin.parameters()):
        assert np.array_equal(2.0 * a.grad.numpy(), b.grad.numpy())    # a factor of 2 rounds nothing


def test_a_model_pickled_in_another_process(tmp_path):
    """Loaded elsewhere, where other things were made before or nothing was, it has the same gradients."""
    code = ("import pickle, sys, numpy as np; [__import__('minigrad').tensor(1.0, requires_grad=True) for _ in range(500)]; "
            "sys.path[:0] = ['tests/helpers']; from tiny_gpt2 import tiny_model; m = tiny_model(seed=1); "
            "pickle.dump(m, open(sys.argv[1], 'wb'))")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.pkl")], cwd=ROOT, check=True)
    load = ("import pickle, sys, numpy as np; m = pickle.load(open(sys.argv[1], 'rb')); "
            f"m.loss({IDS.tolist()}, {TARGETS.tolist()}).backward(); "
            "np.savez(sys.argv[2], **{n: p.grad.numpy() for n, p in m.named_parameters()})")
    subprocess.run([sys.executable, "-c", load, str(tmp_path / "m.pkl"), str(tmp_path / "g.npz")], cwd=ROOT, check=True)
    model = tiny_model(seed=1)
    model.loss(IDS, TARGETS).backward()
    found = np.load(tmp_path / "g.npz")
    for name, p in model.named_parameters():
        assert np.array_equal(found[name], p.grad.numpy()), name
