"""Long runs: memory and open files stay as they are, over thousands of steps of training and of decoding."""
from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_gpt2 import tiny_model

import minigrad as mg
from gpt2.decoding.decode import steps

STATM = Path("/proc/self/statm")
pytestmark = pytest.mark.skipif(not STATM.exists(), reason="this system does not tell a process's memory in /proc")
LENGTHS = [600, pytest.param(20_000, marks=pytest.mark.slow)]


def used() -> tuple[int, int]:
    """Resident bytes, and open files."""
    gc.collect()
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))


def stays_flat(n: int, step: Callable[[int], None]) -> None:
    """The second half of n steps needs no more memory than the first half had, up to 2 MB, which the allocator may keep."""
    for i in range(n // 2):
        step(i)
    memory, files = used()
    for i in range(n // 2):
        step(n // 2 + i)
    after, still = used()
    assert after - memory < 2e6 and still == files, (after - memory, still - files)


@pytest.mark.parametrize("n", LENGTHS)
def test_training(n: int):
    """AdamW, dropout, clipping, hooks and a trace now and then."""
    model = tiny_model(n_layer=1, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1).train()
    optimizer = mg.optim.AdamW(model.parameters(), lr=1e-3)
    ids = np.random.default_rng(0).integers(0, 300, (2, 9))

    def step(i: int) -> None:
        optimizer.zero_grad()
        if i % 10:
            loss = model.loss(ids[:, :-1], ids[:, 1:])
        else:
            with model.hooks({"*": lambda x, name: None}, {"*.out": lambda g, name: None}):
                loss = model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        mg.optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    stays_flat(n, step)


@pytest.mark.parametrize("n", LENGTHS)
def test_decoding(n: int):
    """A context that slides, a generation after another, and one that is given up half way."""
    model = tiny_model(n_layer=1)

    def step(i: int) -> None:
        run = steps(model, [[1, 2, 3], [4, 5]], max_new_tokens=4, seed=i, overflow="slide")
        for k, _ in enumerate(run):
            if k == 2 and i % 2:
                break
        run.close()

    stays_flat(n // 4, step)
