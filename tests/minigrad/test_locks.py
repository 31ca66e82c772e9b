"""A process that is forked in the middle of anything: the child computes, draws and differentiates as its parent does."""
from __future__ import annotations

import os
import subprocess
import sys

import pytest
from data import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

# uses everything that holds a lock or a thread: the pool of the kernels, .grad, the stream of keys, hooks, panels, the switch of the engine
WORK = """
import os, sys, threading, time
import numpy as np
sys.path[:0] = ["tests/helpers"]
import minigrad as mg
from minigrad.debug import detect_anomaly
from minigrad.engine.fast import explicit
from tiny_gpt2 import tiny_model

mg.backend.numpy.kernels.SIZES.threads = 2
x = mg.tensor(np.random.default_rng(0).standard_normal((512, 1024)), requires_grad=True)
model, ids = tiny_model(), np.array([[7, 31, 4]])

def everything():
    (mg.dropout(mg.gelu(x, approximate="tanh"), p=0.5)).sum().backward()
    with model.hooks({"*": lambda x, name: None}), model.packed(), mg.no_grad():
        model(ids)
    with explicit():
        (x[:2, :2] * 2.0).sum().backward()
    with detect_anomaly():
        (x[:2, :2] * 2.0).sum().backward()

everything()
"""
FORKS = WORK + """
busy, stop = [threading.Thread(target=lambda: [everything() for _ in iter(stop.is_set, True)]) for _ in range(2)], threading.Event()
for thread in busy:
    thread.start()
ended = []
for _ in range(15):
    child = os.fork()
    if child == 0:
        everything()
        os._exit(7)
    ended.append(child)
    time.sleep(0.01)
wanted = time.monotonic() + 60
codes = {}
while len(codes) < len(ended) and time.monotonic() < wanted:
    for child in ended:
        if child not in codes:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
    time.sleep(0.01)
for child in set(ended) - codes.keys():
    os.kill(child, 9)
stop.set()
for thread in busy:
    thread.join()
print(sorted(set(codes.values())), len(ended) - len(codes))
"""
POOL = WORK + """
import multiprocessing

def loss(n):
    y = mg.gelu(x * float(n), approximate="tanh").sum()
    return mg.gradients(y, [x])[0].numpy().sum(), y.item()

if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as workers:
        print(workers.map(loss, range(4)) == list(map(loss, range(4))))
"""


def ran(code: str) -> str:
    made = subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", code], cwd=ROOT, capture_output=True, text=True,
                          timeout=100)
    assert made.returncode == 0, made.stderr[-2000:]
    return made.stdout.strip()


def test_children_forked_while_threads_compute():
    """None of them waits for a thread that it does not have."""
    assert ran(FORKS) == "[7] 0"


def test_a_pool_of_forked_processes():
    """multiprocessing's fork, after the parent has used its own threads."""
    assert ran(POOL) == "True"
