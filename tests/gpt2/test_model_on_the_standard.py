"""A small GPT-2 on the array API standard alone, on a device without float64."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny_gpt2 import tiny_config, tiny_model

import minigrad as mg
from gpt2.model import GPT2
from minigrad.testing import array_api_strict as strict

pytest.importorskip("array_api_strict", reason="array-api-strict is not installed; pip install array-api-strict")

strict.install("no_float64")
IDS = np.random.default_rng(0).integers(0, 200, (2, 9))


def _models() -> tuple[GPT2, GPT2]:
    """NumPy's, and one with the same weights on the standard."""
    model = tiny_model()
    return model, GPT2(tiny_config(), backend="strict-no_float64", parameters=model.state_dict())


# Two float32 runs of one model: 2 blocks of 4 products over at most 128 numbers each, and as much again backward.
BOUND = 2 * 4 * 2 * 128 * float(np.finfo(np.float32).eps)


def _near(a: Any, b: Any) -> None:
    a, b = a.numpy(), b.numpy()
    assert a.dtype == b.dtype == np.float32 and np.abs(a - b).max() <= BOUND * max(1.0, np.abs(b).max())


def test_a_training_step():
    """Loss, gradients, clipping and AdamW need nothing but the standard, and give NumPy's numbers."""
    found, clipped, after = [], [], []
    for m in _models():
        parameters = list(m.parameters())
        loss = m.loss(IDS[:, :-1], IDS[:, 1:])
        loss.backward()
        grads = [mg.tensor(p.grad) for p in parameters]
        found.append([loss, *grads, mg.tensor(mg.optim.clip_grad_norm_(parameters, 1.0))])
        clipped.append([p.grad.numpy() for p in parameters])
        mg.optim.AdamW(mg.optim.decay_groups(parameters, 0.1), lr=1e-3).step()
        after.append([p.numpy() for p in parameters])
    for a, b in zip(*found):
        _near(b, a)
    for g, p, q in zip(clipped[0], *after):             # Adam's first step is lr·g/(|g| + 1e-8): lr, where g is more than noise
        sure = np.abs(g) > BOUND
        assert sure.any() and np.abs(p - q).max() <= 2.1e-3
        assert np.abs(p - q)[sure].max() <= 1e-3 * 1e-8 / BOUND + np.finfo(np.float32).eps * max(1.0, np.abs(p).max())


def test_generation():
    """Greedy decoding of rows of different lengths, with a cache, says what NumPy says."""
    ours, theirs = _models()
    rows = [[5, 6, 7], [8]]
    assert ours.generate(rows, 6, greedy=True, eos_token_id=None) == theirs.generate(rows, 6, greedy=True, eos_token_id=None)
