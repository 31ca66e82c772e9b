"""Mixed precision: weights of float32, a residual stream of 16 bits, float32 sums and losses; on NumPy, and on the fake CuPy."""
from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from device import DEVICE, HERE, counting
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad as mg
from gpt2.config import GPT2Config
from gpt2.errors import UsageError
from gpt2.model import GPT2

mg.backend.dtype("bfloat16")
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
CONFIG = GPT2Config(vocab_size=83, n_positions=16, n_layer=2, n_head=2, n_embd=24, embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0)
# what lies between a weight and the loss, there and back: in a block 2 LayerNorms, 4 products with a bias, attention's 3, GELU, 2 sums
ROUNDINGS = 2 * CONFIG.n_layer * 14 + 8


def _batch(seed: int, rows: int = 3) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(seed).integers(0, CONFIG.vocab_size, (rows, 13))
    return ids[:, :-1], ids[:, 1:]


def _gradients(backend: str, compute: str | None, seed: int, scale: float = 1.0) -> tuple[float, dict[str, np.ndarray]]:
    model = GPT2(CONFIG, backend=backend, compute_dtype=compute, seed=seed).eval()
    loss = model.loss(*_batch(seed))
    assert loss.dtype == "float32"                      # not of the stream's dtype
    (loss * scale).backward()
    grads = {name: p.grad.numpy() for name, p in model.named_parameters()}
    assert all(g.dtype == "float32" for g in grads.values())
    return loss.item(), grads


@pytest.mark.device
@settings(max_examples=12)
@given(seed=st.integers(0, 999), backend=st.sampled_from(["numpy", DEVICE]), compute=st.sampled_from(sorted(UNIT)),
       scale=st.sampled_from([1.0, 1024.0]))
def test_loss_and_gradients_are_those_of_float32(seed: int, backend: str, compute: str, scale: float):
    """Each tensor's error, as a share of its norm, is that of so many roundings to 16 bits."""
    loss, grads = _gradients(backend, compute, seed, scale)
    wanted, exact = _gradients(backend, None, seed)
    assert abs(loss - wanted) <= ROUNDINGS * UNIT[compute] * wanted / 10.0
    for name, g in grads.items():
        error = np.linalg.norm(g / scale - exact[name])
        assert error <= ROUNDINGS * UNIT[compute] * np.linalg.norm(exact[name]) + 1e-6, name


@pytest.mark.device
@pytest.mark.parametrize("compute", [None, *sorted(UNIT)])
def test_a_training_step_waits_once(compute: str | None):
    """Ids, targets and where the gradients lie go there, one list of numbers comes back, and nothing is float64."""
    model = GPT2(CONFIG, backend=DEVICE, compute_dtype=compute, seed=1)
    model.train()
    optimizer, scaler = mg.optim.AdamW(model.parameters()), mg.optim.GradScaler(enabled=compute == "float16")
    for _ in range(3):
        with counting() as counts:
            scaler.scale(model.loss(*_batch(1))).backward()
            scaler.unscale_(optimizer)
            norm = mg.optim.clip_grad_norm_(model.parameters(), 1.0)
            assert scaler.step(optimizer, norm)
            optimizer.zero_grad()
        uploads = 2 + bool(HERE.kernels) * ((compute == "float16") + 1 + (norm > 1.0) + 1)     # unscaling, the norm, clipping, AdamW
        assert (counts.syncs, counts.uploads) == (1, uploads) and "float64" not in counts.dtypes


def test_the_scale_follows_the_gradients():
    """Halved by an overflow, without a step; doubled after so many steps without one; out of the way when it is not enabled."""
    p = mg.Parameter(mg.tensor([1.0, 2.0]))
    optimizer = mg.optim.SGD([p], lr=1.0)
    scaler = mg.optim.GradScaler(8.0, growth_interval=2)
    assert scaler.scale(mg.tensor(3.0)).item() == 24.0
    p.grad = mg.tensor([np.inf, 0.0])
    assert not scaler.step(optimizer, math.inf) and p.tolist() == [1.0, 2.0]
    scaler.update()
    assert scaler.factor == 4.0
    for factor in (4.0, 8.0):
        scaler.scale(mg.tensor(1.0))
        p.grad = mg.tensor([4.0, 0.0])
        scaler.unscale_(optimizer)
        assert p.grad.tolist() == [1.0, 0.0]
        assert scaler.step(optimizer, 1.0)
        scaler.update()
        assert scaler.factor == factor
    assert p.tolist() == [-1.0, 2.0]
    off = mg.optim.GradScaler(enabled=False)
    loss = mg.tensor(3.0)
    assert off.scale(loss) is loss and off.factor == 1.0
    p.grad = mg.tensor([np.nan, 0.0])
    off.unscale_(optimizer)
    assert off.step(optimizer, math.nan) and off.factor == 1.0 and math.isnan(p.tolist()[0])


def test_a_dtype_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch):
    """One line that says how to get it."""
    import sys

    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(UsageError, match="dtype bfloat16 needs the package ml_dtypes; pip install ml_dtypes, or use float16"):
        GPT2(CONFIG, compute_dtype="bfloat16")


def _exact(model: GPT2, **given: Any) -> GPT2:
    """The model in float64, with the same weights."""
    weights = {name: p.numpy().astype(np.float64) for name, p in model.named_parameters()}
    return GPT2(model.config, dtype="float64", parameters=weights, **given)


@pytest.mark.device
@pytest.mark.parametrize("upcast", [False, True])
@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("dtype", sorted(UNIT))
@pytest.mark.parametrize("backend", ["numpy", DEVICE])
@pytest.mark.parametrize("large", [{"initializer_range": 8.0}, {"initializer_range": 1.5, "activation_function": "gelu"}])
def test_large_weights_in_16_bits(large: dict[str, Any], backend: str, dtype: str, explicit: bool, upcast: bool):
    """Scores of 10⁵ before they are scaled, LayerNorm of large differences, x³ in GELU, on both forms.

    They are as exact as roundings of what is stored allow; reorder_and_upcast_attn, which asks transformers for this much, changes nothing.
    """
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=64, n_layer=1, n_head=1, reorder_and_upcast_attn=upcast, **large)
    ids = np.random.default_rng(0).integers(0, 50, (2, 16))
    model = GPT2(config, backend=backend, dtype=dtype, explicit=explicit).eval()
    found, truth = model(ids).numpy().astype(np.float64), _exact(model)(ids).numpy()
    assert np.linalg.norm(found - truth) <= 14 * UNIT[dtype] * np.linalg.norm(truth)         # a block's roundings, of which most are small


@pytest.mark.parametrize("dtype", sorted(UNIT))
@pytest.mark.parametrize("explicit", [False, True])
def test_a_trace_in_16_bits(explicit: bool, dtype: str):
    """Every point and every gradient of it, pattern and pre-activation included, is float64's but for the roundings on its way."""
    model = GPT2(CONFIG, dtype=dtype, explicit=explicit, seed=2).eval()
    ids, targets = _batch(0)
    found, truth = (m.trace(ids, targets, gradients=True) for m in (model, _exact(model, explicit=explicit)))
    for name, wanted in truth.items():
        assert np.linalg.norm(found[name].astype(np.float64) - wanted) <= ROUNDINGS * UNIT[dtype] * np.linalg.norm(wanted) + 1e-5, name


@pytest.mark.parametrize("dtype", sorted(UNIT))
@pytest.mark.parametrize("explicit", [False, True])
def test_gradients_of_gradients_in_16_bits(explicit: bool, dtype: str):
    """The norm of the gradient, differentiated: through attention, whose definition is run again, and everything else."""
    def slopes(model: GPT2) -> list[np.ndarray]:
        ps = list(model.parameters())
        grads = mg.gradients(model.loss(*_batch(1)) * 64.0, ps, create_graph=True)
        total = sum(((g * g).sum() for g in grads[1:]), (grads[0] * grads[0]).sum())
        return [g.numpy().astype(np.float64) for g in mg.gradients(total, ps)]

    model = GPT2(CONFIG, dtype=dtype, explicit=explicit, seed=3).eval()
    found, truth = slopes(model), slopes(_exact(model))
    error = math.sqrt(sum(float(np.sum((f - t) ** 2)) for f, t in zip(found, truth)))
    assert error <= 2 * ROUNDINGS * UNIT[dtype] * math.sqrt(sum(float(np.sum(t * t)) for t in truth))
