"""Reading a checkpoint: where tensors are maps of the file, and how much memory it takes."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data import ROOT
from tiny_weights import TINY, assert_same, save, weights

from gpt2.config import GPT2Config, parameter_shapes
from gpt2.weights.checkpoint import read_checkpoint, write_checkpoint


def test_tensors_in_the_wanted_dtype_are_maps_that_never_touch_the_file(tmp_path):
    """Writable, yet the file keeps its bytes; two tensors do not overlap."""
    write_checkpoint(tmp_path, TINY, weights())
    before = (tmp_path / "model.safetensors").read_bytes()
    read = read_checkpoint(tmp_path).parameters
    for array in read.values():
        base = array
        while isinstance(base, np.ndarray) and base.base is not None and not isinstance(base, np.memmap):
            base = base.base
        assert isinstance(base, np.memmap) and type(array) is np.ndarray and array.flags.writeable and array.flags.aligned
        array[...] = 7.0
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert_same(read_checkpoint(tmp_path).parameters, weights())


def test_a_tensor_at_an_odd_offset_is_read_all_the_same(tmp_path):
    """Other writers do not pad their header to eight bytes."""
    save(tmp_path, weights())
    data = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    (tmp_path / "model.safetensors").write_bytes((length + 3).to_bytes(8, "little") + data[8:8 + length] + b"   " + data[8 + length:])
    read = read_checkpoint(tmp_path).parameters
    assert all(array.flags.aligned for array in read.values())
    assert_same(read, weights())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc, which Linux has")
@pytest.mark.parametrize(
    ("stored", "wanted"), [("float32", "float32"), ("float16", "float32"), ("float32", "float64"), ("bfloat16", "float32")]
)
def test_loading_peaks_at_no_more_than_a_third_above_its_bytes(tmp_path, stored, wanted):
    """Resident memory of a fresh process grows by at most 1.3 times the bytes of the parameters."""
    config = GPT2Config(vocab_size=10_000, n_positions=64, n_embd=768, n_layer=1)
    write_checkpoint(tmp_path, config, {n: np.full(s, 0.5, np.float32) for n, s in parameter_shapes(config).items()}, dtype=stored)
    code = """if True:
        import sys, safetensors
        from gpt2.weights.checkpoint import read_checkpoint
        def memory(key): return 1024 * next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key))
        before = memory("VmRSS")
        found = read_checkpoint(sys.argv[1], dtype=sys.argv[2])
        print((memory("VmHWM") - before) / found.nbytes)
    """
    command = [sys.executable, "-c", code, str(tmp_path), wanted]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert 0.9 < float(result.stdout) < 1.3
