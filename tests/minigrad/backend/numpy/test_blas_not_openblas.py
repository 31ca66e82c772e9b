"""A NumPy whose BLAS is not OpenBLAS (Accelerate, MKL): no function of it is called by name, and the same numbers come out.

The library is hidden where minigrad looks for it, so that products, the model, training and generation take the ways that are left.
"""
from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from agreement import everything, in_pieces, lengths, logits, report, table
from hypothesis import given
from hypothesis import strategies as st
from tiny_gpt2 import TEXT, prepare_texts, tiny_config, tiny_model

from gpt2 import GPT2
from gpt2.train.__main__ import main
from minigrad import info
from minigrad.backend import cpu
from minigrad.backend.numpy import blas
from minigrad.backend.numpy.sizes import SIZES

U = float(np.finfo(np.float32).eps) / 2


@pytest.fixture(scope="module", autouse=True)
def hidden():
    """No OpenBLAS is found, in this module alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blas, "library", lambda: None)
        blas._sgemm.cache_clear()
        yield
    blas._sgemm.cache_clear()


def test_nothing_of_it_is_called():
    """What would be told to OpenBLAS is told to nobody, and what would be asked is not known."""
    assert blas.call("get_num_threads") is None and blas._sgemm() is None and not blas.sleep_after(20)
    with blas.one_thread():
        pass
    cpu.settle()
    assert "threads" in info.collect()["blas"] and info.machine()


@given(m=st.integers(1, 90), k=st.integers(1, 500), n=st.integers(1, 90), seed=st.integers(0, 99),
       dtype=st.sampled_from(["float32", "float16"]))
def test_a_product_is_numpys(m, k, n, seed, dtype):
    """Whatever the sizes, also into an array and added to one, each element is within k·u·Σ|terms| of the float64 product; of 16 bits,
    after one more rounding."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((m, k), np.float32).astype(dtype), rng.standard_normal((n, k), np.float32).astype(dtype).T
    exact = a.astype(np.float64) @ b.astype(np.float64)
    room = (k + 2) * U * (np.abs(a).astype(np.float64) @ np.abs(b)) + float(np.finfo(dtype).eps) * (np.abs(exact) + 1.0)
    found = blas.matmul(a, b)
    assert found.dtype == dtype and found.shape == (m, n) and (np.abs(found - exact) <= room).all()
    if dtype == "float32":
        into = np.empty((m, n), np.float32)
        assert blas.matmul(a, b, out=into) is into and (np.abs(into - exact) <= room).all()
        assert blas.matmul(a, b, out=into, add=True) is into and (np.abs(into - 2.0 * exact) <= 3.0 * room).all()


@pytest.mark.parametrize("explicit", [False, True])
def test_the_model_is_float64s(explicit):
    """Logits, loss and every gradient of products with more than a chunk of terms, large enough that OpenBLAS would have been called."""
    config = tiny_config(n_embd=256, n_head=4, initializer_range=0.1)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (3, 65))
    assert 3 * 64 * 256 * 256 > SIZES.worth and config.n_embd > SIZES.chunk
    plain = GPT2(config, seed=0, explicit=explicit).eval()
    exact = GPT2(config, dtype="float64", parameters={name: p.numpy().astype("float64") for name, p in plain.named_parameters()})
    found, wanted = (everything(model, ids[:, :-1], ids[:, 1:]) for model in (plain, exact))
    lines = report(found, {name: a.astype(np.float32) for name, a in wanted.items()}, config, 3, 64)
    assert max(line.units for line in lines) <= 1.0, table(lines, "without OpenBLAS")


def test_what_was_packed_and_laid_out_says_the_same():
    """Decoding, whose products have one row and whose weights are packed, gives the logits of the whole context."""
    model = tiny_model(n_embd=256, n_head=4)
    ids = np.random.default_rng(1).integers(0, model.config.vocab_size, (2, 20))
    whole, pieces = logits(model, ids), in_pieces(model, ids, [7, 1])
    room = 2.0 * math.sqrt(lengths(model.config, 2, 20)["logits"]) * U * np.abs(whole).max()
    assert np.abs(whole - pieces).max() <= room


def test_training_learns(tmp_path, capsys):
    """The command from beginning to end: the loss of a text that is seen again and again falls to half of what guessing gives."""
    prepare_texts([TEXT * 8], tmp_path / "data", "train:290")
    code = main(["--data", str(tmp_path / "data"), "--out-dir", str(tmp_path / "out"), "--backend", "numpy", "--n-layer", "1",
                 "--n-head", "2", "--n-embd", "64", "--block-size", "32", "--batch-size", "8", "--max-iters", "40", "--warmup-iters", "5",
                 "--learning-rate", "0.01", "--log-interval", "1"])
    assert code == 0 and capsys.readouterr().out.startswith("best: ")
    told = map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
    losses = [one["train_loss"] for one in told if "train_loss" in one]
    assert losses[-1] < math.log(290) / 2 < math.log(290) / 1.1 < losses[0]


def test_a_library_that_lacks_a_function_is_none(monkeypatch, tmp_path):
    """A file that is called like OpenBLAS and cannot be loaded, or has not its functions, is not taken for it, and nothing fails."""
    source = f"""
import numpy as np
np.__file__ = {str(tmp_path / "numpy" / "__init__.py")!r}
from minigrad.backend.numpy import blas
import minigrad as mg
print(blas.library(), (mg.tensor(np.ones((300, 300), np.float32)) @ mg.tensor(np.ones((300, 300), np.float32))).sum().item())
"""
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy.libs").mkdir()
    (tmp_path / "numpy.libs" / "libopenblas-0.so").write_bytes(b"no library")
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "None 27000000.0\n"), done.stderr
