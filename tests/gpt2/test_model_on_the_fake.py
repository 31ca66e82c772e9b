"""A small GPT-2 on the fake CuPy, or on a GPU (--backend cupy): NumPy's numbers, no wait but where it says so, and no float64."""
from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from device import DEVICE, HERE, counting
from tiny_gpt2 import tiny_config

import minigrad as mg
from gpt2.config import GPT2Config
from gpt2.decoding.kv_cache import KVCache
from gpt2.model import GPT2
from minigrad import backend
from minigrad.testing import fake_cupy

IDS = np.random.default_rng(0).integers(0, 200, (2, 9))
FORMS = pytest.mark.parametrize("explicit", [False, True], ids=["fused", "by-parts"])


def _models(explicit: bool, **fields: Any) -> tuple[GPT2, GPT2]:
    """The same weights on the fake CuPy and on NumPy."""
    made = [GPT2(tiny_config(**fields), backend=place, explicit=explicit, seed=1).eval() for place in (DEVICE, "numpy")]
    for a, b in zip(made[0].parameters(), made[1].parameters()):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    return made[0], made[1]


def _batch(model: GPT2) -> tuple[Any, Any]:
    """ids and targets where the model is, so that a pass uploads nothing."""
    there = backend.get(model.where["device"])
    return tuple(mg.Tensor(there.array(a)) for a in (IDS[:, :-1], IDS[:, 1:]))  # type: ignore[return-value]


def _quiet(counts: Any) -> None:
    assert counts.syncs == 0 and counts.uploads == 0, counts
    assert "float64" not in counts.dtypes, counts
    assert counts.allocations > 50                      # there was something to count


def _near(a: Any, b: Any) -> None:
    """Two float32 runs of one model: 2 blocks of 4 products over at most 128 numbers each, and as much again backward."""
    bound = 2 * 4 * 2 * 128 * float(np.finfo(np.float32).eps)
    a, b = np.asarray(a.numpy()), np.asarray(b.numpy())
    assert a.dtype == b.dtype == np.float32 and np.abs(a - b).max() <= bound * max(1.0, np.abs(b).max())


@pytest.mark.device
@FORMS
def test_forward_and_backward(explicit: bool):
    """Loss and gradients, with dropout: no wait, no upload, no float64, and NumPy's numbers."""
    model, same = _models(explicit, attn_pdrop=0.1, resid_pdrop=0.1, embd_pdrop=0.1)
    found = []
    for m in (model, same):
        batch = _batch(m)
        m.train()
        mg.random.manual_seed(3)
        with counting() as counts:
            loss = m.loss(*batch)
            loss.backward()
        found.append([loss, *(p.grad for p in m.parameters())])
        if m is model:
            _quiet(counts)
    for a, b in zip(*found):
        _near(a, b)


@pytest.mark.device
@FORMS
def test_hessian_vector_product(explicit: bool):
    """A Hessian-vector product of the loss: no wait, no upload, no float64, and NumPy's numbers."""
    found = []
    for m in _models(explicit):
        batch, parameters = _batch(m), list(m.parameters())
        vs = [mg.random.normal(mg.random.key(i), p.shape, device=m.where["device"]) for i, p in enumerate(parameters)]
        with counting() as counts:
            grads = mg.gradients(m.loss(*batch), parameters, create_graph=True)
            total = (grads[0] * vs[0]).sum()
            for g, v in zip(grads[1:], vs[1:]):
                total = total + (g * v).sum()
            found.append(mg.gradients(total, parameters))
        if len(found) == 1:
            _quiet(counts)
    for a, b in zip(*found):
        _near(a, b)


@pytest.mark.device
@FORMS
def test_recomputing_blocks_changes_no_bit(explicit: bool):
    """Loss and gradients with recompute=True are those without it."""
    found = []
    for recompute in (False, True):
        model = GPT2(tiny_config(), backend=DEVICE, explicit=explicit, recompute=recompute, seed=1).eval()
        loss = model.loss(*_batch(model))
        loss.backward()
        found.append([loss.numpy(), *(p.grad.numpy() for p in model.parameters())])
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.device
@FORMS
def test_a_training_step(explicit: bool):
    """Forward, backward, clipping and AdamW: the one wait is for the norm that clipping returns; uploaded is where the gradients lie."""
    found = []
    for m in _models(explicit):
        batch, parameters = _batch(m), list(m.parameters())
        optimizer = mg.optim.AdamW(mg.optim.decay_groups(parameters, 0.1), lr=1e-3)
        with counting() as counts:
            m.loss(*batch).backward()
            norm = mg.optim.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if not found:
            uploads = bool(HERE.kernels) * (3 + (norm > 1.0))
            assert (counts.syncs, counts.uploads) == (1, uploads) and "float64" not in counts.dtypes, counts
        found.append(parameters)
    for a, b in zip(*found):
        assert np.abs(a.numpy() - b.numpy()).max() <= 2.1e-3        # Adam's first step is ±lr, whatever the gradient


@pytest.mark.device
def test_generation_waits_for_its_tokens():
    """Greedy decoding waits for the prompt and for batches of 1, 2 and 2 tokens, says what NumPy says, and computes nothing in float64."""
    model, same = _models(False, initializer_range=0.3)
    prompt = [5, 6, 7]
    with counting() as counts:
        said = model.generate(prompt, 6, greedy=True, eos_token_id=None)
    assert said == same.generate(prompt, 6, greedy=True, eos_token_id=None)
    assert counts.syncs == 4 and "float64" not in counts.dtypes, counts


@pytest.mark.device
def test_rows_of_different_lengths_wait_for_their_tokens():
    """Padding and its mask are made where the model is: uploads of it, of the prompt, and of where the steps after it begin."""
    model, same = _models(False, initializer_range=0.3)
    rows = [[5, 6, 7], [8], [9, 10]]
    with counting() as counts:
        said = model.generate(rows, 6, greedy=True, eos_token_id=None)
    assert said == same.generate(rows, 6, greedy=True, eos_token_id=None)
    assert (counts.syncs, counts.uploads) == (4, 5) and "float64" not in counts.dtypes, counts


@pytest.mark.device
@FORMS
def test_a_mask_costs_no_wait(explicit: bool):
    """Attention under a mask, with a row that sees nothing, and the Hessian-vector product of it: no wait, no upload, no float64."""
    from minigrad import fused
    from minigrad.nn import unfused

    rng, found = np.random.default_rng(0), []
    attend = functools.partial((unfused if explicit else fused).attention, causal=True)
    numbers = rng.standard_normal((4, 2, 3, 5, 4)).astype(np.float32)
    seen = np.arange(5) >= np.array([0, 2])[:, None, None, None]
    for place in (HERE, backend.cpu):
        (*qkv, v), mask = [mg.Tensor(place.array(a)) for a in numbers], mg.Tensor(place.array(seen))
        with counting() as counts:
            out = [attend(*qkv, mask), *mg.hvp(lambda *t, mask=mask: (attend(*t, mask, p=0.2, key=7) ** 2).sum(), qkv, [v, v, v])]
        if place is HERE:
            _quiet(counts)
        found.append(out)
    for a, b in zip(*found):
        _near(a, b)


def test_a_device_is_named_once():
    """Models on both devices train and generate in turn, whichever device is current; to the bit alike, and each on its own."""
    config, said = tiny_config(initializer_range=0.3), []
    models = [GPT2(config, backend=f"fake:{n}", seed=1).eval() for n in (0, 1)]
    optimizers = [mg.optim.AdamW(m.parameters(), lr=1e-3) for m in models]
    losses = [m.loss(IDS[:, :-1], IDS[:, 1:]) for m in models]
    for n in (1, 0):
        losses[n].backward()
    for m, optimizer in zip(models, optimizers):
        mg.optim.clip_grad_norm_(m.parameters(), 1.0)
        optimizer.step()
    for n, m in enumerate(models):
        fake_cupy.Device(1 - n).use()
        said.append(m.generate([[5, 6], [7]], 3, greedy=True, eos_token_id=None))
        assert {losses[n].device, *(t.device for p in m.parameters() for t in (p, p.grad))} == {f"fake:{n}"}
    assert said[0] == said[1]
    for a, b in zip(models[0].parameters(), models[1].parameters()):
        assert a.numpy().tobytes() == b.numpy().tobytes()
    with pytest.raises(mg.DeviceError, match="weight is on fake:0 and ids is on fake:1"):
        models[0](mg.tensor(IDS, device="fake:1"))


def test_a_cache_lies_on_its_device():
    """Keys, values and padding, whichever device is the current one."""
    fake_cupy.install()
    mg.tensor(0.0, device="fake:0")
    cache = KVCache(GPT2Config(vocab_size=30, n_positions=8, n_embd=8, n_layer=1, n_head=2), 2, 8, pad=[1, 0], device="fake:1")
    mg.tensor(0.0, device="fake:0")
    assert [str(mg.backend.of(a).device(a)) for a in (cache.keys, cache.values, cache.pad)] == ["fake:1"] * 3
