"""Streams of the fake GPU: what nothing puts in order is an error; events, waits and the default stream put it in order, as in CUDA."""
from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest

from minigrad.backend.cupy import Captured
from minigrad.op import REGISTRY
from minigrad.testing import fake_cupy
from minigrad.testing.fake_cupy import cuda

HERE = fake_cupy.install()
cp = HERE.namespace
BESIDE = "memory that another stream (reads|writes), with no event between the two and no wait of the host"


def own(**how: Any) -> Any:
    return cp.cuda.Stream(**{"non_blocking": True, **how})


def numbers() -> Any:
    return HERE.array(np.arange(4.0, dtype=np.float32))


ACCESSES = {                                            # what a stream may be asked to do with x
    "function": lambda x: cp.exp(x), "operator": lambda x: x + 1.0, "copy": lambda x: x.copy(), "index": lambda x: x[cp.array([0])],
    "part": lambda x: x[1:] * 2.0, "host": HERE.host, "number": lambda x: float(x[0]), "list": lambda x: x.tolist(),
    "product": lambda x: HERE.matmul(x.reshape(2, 2), x.reshape(2, 2)), "get": lambda x: x.get(), "array": lambda x: cp.array(x),
    "kernel": lambda x: REGISTRY["add"](x, x) if HERE.kernels else x + x, "out": lambda x: cp.exp(cp.ones(4, dtype="float32"), out=x),
}


@pytest.mark.parametrize("how", ACCESSES)
def test_memory_that_another_stream_writes(how: str):
    """Is used by nobody else until something orders the two."""
    with own():
        x = numbers()
    with pytest.raises(RuntimeError, match=BESIDE):
        ACCESSES[how](x)
    with own() as stream:
        x = numbers()
        done = cp.cuda.Event()
        done.record()
    cp.cuda.get_current_stream().wait_event(done)
    ACCESSES[how](x)
    with own() as stream:
        x = numbers()
    stream.synchronize()
    ACCESSES[how](x)


WRITES = {"assignment": lambda x: x.__setitem__(0, 7.0), "in place": lambda x: x.__iadd__(1.0), "fill": lambda x: x.fill(3.0),
          "at": lambda x: cp.add.at(x, cp.array([0]), cp.array([1.0], dtype="float32")), "out": lambda x: cp.exp(x, out=x)}


@pytest.mark.parametrize("how", WRITES)
def test_memory_that_another_stream_reads(how: str):
    """May be read beside it, but is not written."""
    x, stream = numbers(), own()
    ready = cp.cuda.Event()
    ready.record()
    with stream:
        stream.wait_event(ready)
        y = x + 1.0
    assert HERE.host(x * 2.0).tolist() == [0.0, 2.0, 4.0, 6.0]
    with pytest.raises(RuntimeError, match=BESIDE):
        WRITES[how](x)
    x, stream = numbers(), own()
    ready.record()
    with stream:
        stream.wait_event(ready)
        y = x + 1.0
        HERE.host(y)
    WRITES[how](x)


def test_an_event_tells_what_was_asked_before_it():
    """And nothing of what came later; it is waited for by the stream that is told to, or by the host."""
    with own() as stream:
        x, done = numbers(), cp.cuda.Event(disable_timing=True)
        done.record(stream)
        y = numbers()
    with own() as other:
        other.wait_event(done)
        x + 1.0
        with pytest.raises(RuntimeError, match=BESIDE):
            y + 1.0
    with pytest.raises(RuntimeError, match=BESIDE):
        x + 1.0
    done.synchronize()
    x + 1.0
    with pytest.raises(RuntimeError, match=BESIDE):
        y + 1.0


def test_the_default_stream_waits_for_all_but_those_that_do_not_block():
    """And they for it."""
    with own(non_blocking=False):
        x = numbers()
    x[0] = 5.0
    with own(non_blocking=False):
        assert float(x[0]) == 5.0
    x += 1.0
    with own(), pytest.raises(RuntimeError, match=BESIDE):
        x + 1.0


def test_a_thread_has_its_own_current_stream():
    x, seen = numbers(), []
    with own():
        thread = threading.Thread(target=lambda: seen.append(float((x + 1.0)[0])))
        thread.start()
        thread.join()
    assert seen == [1.0]


def test_views_and_empty_memory_are_no_affair_of_a_stream():
    with own():
        x = numbers()
        room = cp.empty(4, dtype="float32")
    assert x[1:].reshape(3, 1).T.shape == (1, 3) and x.dtype == "float32" and x[None].base is x
    room[:] = 1.0
    assert HERE.host(room).tolist() == [1.0] * 4


@pytest.mark.skipif(cuda.compiler() is None, reason="g++ is not installed: the kernels cannot be run on a CPU")
def test_a_captured_step_runs_where_its_arrays_are_used():
    """Its first call and its replays are asked of the current stream, whatever it is; only the capture has a stream of its own."""
    x, y = numbers(), numbers()
    step = Captured(cp.cuda, lambda: HERE.launch("add", np.dtype("float32"), (1,), (32,), x, x, y, 4))
    for _ in range(3):
        y[:] = 0.0
        step()
        assert HERE.host(y).tolist() == [0.0, 2.0, 4.0, 6.0]
    with own() as stream:
        x, y = numbers(), numbers()
        step = Captured(cp.cuda, lambda: HERE.launch("add", np.dtype("float32"), (1,), (32,), x, x, y, 4))
        for _ in range(3):
            step()
        assert HERE.host(y).tolist() == [0.0, 2.0, 4.0, 6.0]
    assert stream.known[stream] >= 4
    gc.collect()


@pytest.mark.skipif(cuda.compiler() is None, reason="g++ is not installed: the kernels cannot be run on a CPU")
def test_what_a_capture_cannot_be():
    """One of the default stream, nor of what another stream is asked."""
    with pytest.raises(RuntimeError, match="default stream cannot be captured"):
        cp.cuda.get_current_stream().begin_capture()
    x, stream = numbers(), own()
    stream.begin_capture()
    with pytest.raises(RuntimeError, match="another stream than the one that is captured"):
        HERE.launch("add", np.dtype("float32"), (1,), (32,), x, x, x, 4)
    assert stream.end_capture().launches == []
