"""Hooks of several blocks and threads: each block takes away its own, each thread meets its own, and the rest is as without them."""
from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_gpt2 import tiny_model

import minigrad as mg
from gpt2.model import GPT2
from minigrad import nn

MODEL = tiny_model(seed=2)
IDS = [np.random.default_rng(i).integers(0, 300, (1, 6)) for i in range(8)]
POINT = "blocks.0.mlp.act"


def logits(ids: np.ndarray = IDS[0]) -> np.ndarray:
    with mg.no_grad():
        return MODEL(ids).numpy()


@given(st.permutations(range(4)), st.permutations(range(4)), st.data())
def test_blocks_that_end_in_any_order(begin: list[int], end: list[int], data: st.DataObject):
    """After each step the hooks of the open blocks are called, in the order in which the blocks began; at the end there are none."""
    plain, met, is_open = logits(), list[int](), list[int]()
    blocks = [MODEL.hooks({POINT: lambda x, name, n=n: met.append(n)}) for n in range(4)]
    begin, end = list(begin), list(end)
    while begin or is_open:
        ready = [n for n in end if n in is_open]
        if begin and (not ready or data.draw(st.booleans())):
            n = begin.pop()
            blocks[n].__enter__()
            is_open.append(n)
        else:
            blocks[ready[0]].__exit__(None, None, None)
            is_open.remove(ready[0])
        met.clear()
        np.testing.assert_array_equal(logits(), plain)
        assert met == is_open
    assert not MODEL.hooked and all(module.F is nn.functional for module in MODEL.modules())


def together(n: int, work: Any) -> list[Any]:
    """work(i) in n threads at once."""
    meet = threading.Barrier(n)

    def one(i: int) -> Any:
        meet.wait()
        return work(i)

    with ThreadPoolExecutor(n) as threads:
        return list(threads.map(one, range(n)))


def test_traces_of_several_threads():
    """Each sees its own pass alone: values, loss and gradients are those of a trace by itself."""
    alone = [MODEL.trace(ids, ids, gradients=True) for ids in IDS]
    for _ in range(5):
        for wanted, found in zip(alone, together(8, lambda i: MODEL.trace(IDS[i], IDS[i], gradients=True)), strict=True):
            assert wanted.keys() == found.keys()
            for name, value in wanted.items():
                np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert not MODEL.hooked


def test_a_thread_without_hooks_computes_as_ever():
    """While others replace values, read them, and come and go, its logits, loss and gradients are the same to the bit."""
    def passes() -> list[np.ndarray]:
        loss = MODEL.loss(IDS[0], IDS[0])
        return [logits(), loss.numpy(), *(g.numpy() for g in mg.gradients(loss, list(MODEL.parameters())))]

    plain = passes()
    zeroed = {}
    for point in MODEL.points():
        with MODEL.hooks({point: lambda x, name: x * 0.0}):
            zeroed[point] = logits()

    def work(i: int) -> int:
        done = 0
        if i % 2:
            for point in itertools.islice(itertools.cycle(MODEL.points()), 5 * i, 5 * i + 20):
                with MODEL.hooks({point: lambda x, name: x * 0.0}):
                    np.testing.assert_array_equal(logits(), zeroed[point], err_msg=point)
                    done += 1
            return done
        for _ in range(20):
            for a, b in zip(passes(), plain, strict=True):
                np.testing.assert_array_equal(a, b)
            done += 1
        return done

    assert together(6, work) == [20] * 6
    assert not MODEL.hooked


def test_panels_of_several_threads():
    """The panels stay until the last thread that uses them ends its block."""
    model = tiny_model(seed=2)
    inside, leave = threading.Barrier(2), threading.Event()

    def other() -> None:
        with model.packed():
            inside.wait()
            leave.wait(20)

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait()
    with model.packed():
        panels = model.panels
    assert panels is model.panels is not None
    leave.set()
    thread.join()
    assert model.panels is None and model.F is nn.functional


@pytest.mark.parametrize("rows", [1, 3])
def test_generation_in_several_threads(rows: int):
    """Sampling with seeds gives each thread what it gets alone."""
    model = GPT2(MODEL.config, parameters=MODEL.state_dict())
    prompts = [[ids[0].tolist()] * rows for ids in IDS[:4]]
    alone = [model.generate(prompt, 20, seed=i, temperature=1.0) for i, prompt in enumerate(prompts)]
    assert together(4, lambda i: model.generate(prompts[i], 20, seed=i, temperature=1.0)) == alone
