"""Threads: each records for itself, and numbers its nodes among all."""
from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

import minigrad as mg
from minigrad.engine.graph import state


def _leaf(x: Any) -> mg.Tensor:
    return mg.Tensor(np.asarray(x, np.float64)).requires_grad_()


def test_threads_record_for_themselves():
    """Graphs made at once in several threads are as those made one after the other."""
    w = _leaf(np.linspace(-1.0, 1.0, 16).reshape(4, 4))
    barrier = threading.Barrier(4)

    def work(i: int) -> Any:
        barrier.wait()
        results = []
        for k in range(20):
            if (i + k) % 2:
                with mg.no_grad():
                    assert not (w * 2.0).requires_grad
            x = mg.Tensor(np.full((3, 4), float(i + k)))
            results.append(mg.gradients((x @ w).tanh().sum() + (w * w).sum(), [w])[0].numpy())
        return results

    with ThreadPoolExecutor(4) as pool:
        together = [job.result() for job in [pool.submit(work, i) for i in range(4)]]
    barrier = threading.Barrier(1)
    for i in range(4):
        for a, b in zip(together[i], work(i)):
            np.testing.assert_array_equal(a, b)
    assert state.recording and state.depth == 0


def test_no_grad_in_one_thread_says_nothing_to_another():
    """While a thread stands inside no_grad, this one records."""
    inside, done = threading.Event(), threading.Event()

    def work() -> None:
        with mg.no_grad():
            inside.set()
            done.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(10)
    recorded = (_leaf(1.0) * 2.0).requires_grad
    done.set()
    thread.join()
    assert recorded


def test_nodes_are_numbered_at_birth():
    """A node's parents have smaller numbers, also when several threads number at once."""
    def work(_: int) -> list[int]:
        y, ids = _leaf(1.0), []
        for _ in range(500):
            parent, y = y.node, y * 1.0
            assert y.node.id > parent.id
            ids.append(y.node.id)
        return ids

    with ThreadPoolExecutor(4) as pool:
        ids = [i for part in pool.map(work, range(4)) for i in part]
    assert len(set(ids)) == len(ids)


def test_a_gradient_being_taken_in_one_thread_says_nothing_to_another():
    """While a thread stands inside a function that is being differentiated, grad here returns a constant."""
    inside, done = threading.Event(), threading.Event()

    def f(x: Any) -> Any:
        inside.set()
        done.wait(10)
        return x * x

    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(lambda: mg.grad(f)(mg.tensor(3.0)))
        assert inside.wait(10)
        here = mg.grad(lambda x: x * x)(mg.tensor(2.0))
        done.set()
        assert not here.requires_grad and here.item() == 4.0 and job.result().item() == 6.0


def test_an_error_in_one_threads_block_says_nothing_to_another():
    """A thread that leaves no_grad by an error records again; others, inside blocks of their own, stay as they are."""
    left, done = threading.Event(), threading.Event()

    def work() -> bool:
        try:
            with mg.no_grad():
                raise KeyError
        except KeyError:
            pass
        left.set()
        done.wait(10)
        return mg.is_grad_enabled()

    with ThreadPoolExecutor(1) as pool:
        with mg.no_grad():
            job = pool.submit(work)
            assert left.wait(10) and not mg.is_grad_enabled()
        done.set()
        assert job.result() and mg.is_grad_enabled()
