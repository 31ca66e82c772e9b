"""detect_anomaly and detect_writes in threads: each checks its own thread, and nothing is left behind in whatever order blocks end."""
from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import minigrad as mg
from minigrad.debug import Checkpoint, Node, Op, detect_anomaly, detect_writes
from minigrad.engine.fast import FastOp

METHODS = ((Op, "_record"), (Op, "_send"), (Op, "pullback"), (Node, "__init__"), (Checkpoint, "pullback"))
OWN = [vars(owner)[name] for owner, name in METHODS]


def as_before() -> bool:
    return [vars(owner)[name] for owner, name in METHODS] == OWN and "__call__" in vars(FastOp)



def infinite() -> None:
    (1.0 / mg.tensor([0.0], requires_grad=True)).sum().backward()


def written() -> None:
    array = np.ones(3, np.float32)
    y = mg.Tensor(array) * mg.tensor([1.0, 2.0, 3.0], requires_grad=True)
    array[0] = 5.0
    y.sum().backward()


@pytest.mark.parametrize("block, fault", [(detect_anomaly, infinite), (detect_writes, written)])
def test_blocks_that_end_in_another_order(block: Callable[[], Any], fault: Callable[[], None]):
    """The one that is left still looks; after the last, nothing does."""
    for last in (0, 1):
        blocks = [block(), block()]
        for one in blocks:
            one.__enter__()
        blocks[1 - last].__exit__(None, None, None)
        with pytest.raises(mg.GraphError):
            fault()
        blocks[last].__exit__(None, None, None)
        assert as_before()
        fault()


@pytest.mark.parametrize("block, fault", [(detect_anomaly, infinite), (detect_writes, written)])
def test_a_block_looks_at_its_own_thread(block: Callable[[], Any], fault: Callable[[], None]):
    """Another thread that does the same raises nothing, and what it raises is not raised here."""
    inside, done = threading.Event(), threading.Event()
    found: list[Any] = []

    def other() -> None:
        inside.wait(20)
        try:
            for _ in range(50):
                fault()
            found.append("nothing")
        except mg.GraphError as error:
            found.append(error)
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with block():
        inside.set()
        done.wait(20)
        with pytest.raises(mg.GraphError):
            fault()
    thread.join()
    assert found == ["nothing"] and as_before()


def test_many_threads_that_come_and_go():
    """Each finds its own fault in each of its blocks, and none outside."""
    wrong: list[str] = []
    pairs = ((detect_anomaly, infinite), (detect_writes, written))

    def work(i: int) -> None:
        block, fault = pairs[i % 2]
        for _ in range(25):
            with block():
                try:
                    fault()
                    wrong.append("not found")
                except mg.GraphError:
                    pass
            try:
                fault()
            except mg.GraphError as error:
                wrong.append(str(error))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and as_before()
