"""benchmarks.accuracy: its measure, its verdicts, its parties, and what it prints."""
from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import accuracy
from benchmarks.accuracy import Line, Ratio
from gpt2.config import GPT2Config
from gpt2.model import GPT2

pytestmark = pytest.mark.rounding

TINY = {"vocab_size": 19, "n_positions": 8, "n_embd": 12, "n_layer": 2, "n_head": 3, "bos_token_id": None, "eos_token_id": None,
        "initializer_range": 0.2}
ODD = [{}, {"activation_function": "relu", "tie_word_embeddings": False, "n_inner": 7, "n_head": 1},
       {"activation_function": "gelu", "scale_attn_weights": False}, {"scale_attn_by_inverse_layer_idx": True, "layer_norm_epsilon": 1e-3}]
INSTALLED = [pytest.param(name, marks=pytest.mark.skipif(
    name == "jax" and importlib.util.find_spec("jax") is None, reason="JAX is not installed; install it with: pip install jax"))
    for name in accuracy.PARTIES]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A model of two layers, as a directory."""
    path = tmp_path_factory.mktemp("model")
    config = GPT2Config(**TINY)
    GPT2(config, parameters=accuracy.random_weights(config)).save_pretrained(path)
    return path


def run(capsys, *args):
    """Exit code, stdout's lines and stderr's of a run on two batches of [2, 6]."""
    code = accuracy.main(["--rows", "2", "--length", "6", "--repeats", "2", *map(str, args)])
    out = capsys.readouterr()
    return code, out.out.splitlines(), out.err.splitlines()


# ── the measure ──
@given(st.floats(1e-9, 1e-1), st.integers(0, 100))
def test_the_error_is_relative_to_the_truths_size(by, seed):
    """What is off by a part of the truth's norm in any direction has that part as its error; the truth has none."""
    rng = np.random.default_rng(seed)
    truth, direction = rng.standard_normal((2, 3, 50))
    off = truth + by * direction * np.linalg.norm(truth) / np.linalg.norm(direction)
    # the difference of numbers next to each other is exact; what was rounded when `off` was made is not
    assert abs(accuracy.error(off, truth) - by) <= 4 * np.finfo(np.float64).eps
    assert accuracy.error(truth, truth) == accuracy.error(0 * truth, 0 * truth) == 0.0


def test_an_error_is_never_hidden():
    """NaN and infinity have an infinite error; another shape, or a tensor on one side only, is refused."""
    truth = np.ones((2, 3))
    for bad in (np.nan, np.inf):
        assert accuracy.error(np.where(np.eye(2, 3) > 0, bad, truth), truth) == math.inf
    with pytest.raises(ValueError, match=r"\[3\], but that of the truth is \[2, 3\]"):
        accuracy.error(np.ones(3), truth)
    with pytest.raises(ValueError, match=r"only one side has \['b'\]"):
        accuracy.errors({"a": truth}, {"a": truth, "b": truth})


def test_the_ratio_and_its_verdict():
    """The ratio is that of means; two standard errors decide; with one repetition there is none, and the ratio alone decides."""
    assert accuracy.ratio([2.0, 4.0], [1.0, 2.0]) == Ratio(2.0, 0.0)
    assert accuracy.ratio([2.0, 4.0], [2.0, 2.0]).value == 1.5 and accuracy.ratio([2.0, 4.0], [2.0, 2.0]).spread == pytest.approx(0.5)
    assert math.isnan(accuracy.ratio([2.0], [1.0]).spread)
    verdicts = [Ratio(1.5, 0.5), Ratio(1.5, 0.2), Ratio(0.5, 0.2), Ratio(0.5, 0.25), Ratio(1.1, math.nan), Ratio(0.9, math.nan)]
    assert [r.verdict for r in verdicts] == ["level", "more", "less", "level", "more", "less"]


def test_a_line_for_each_kind():
    """Layers are one line, the root mean square of their errors; what is in no layer keeps its own."""
    lines = [Line(f"h.{i}.ln_1.bias", {"minigrad": [e], "torch eager": [1.0]}) for i, e in enumerate([3.0, 4.0])]
    lines.append(Line("ln_f.bias", {"minigrad": [0.5], "torch eager": [1.0]}))
    found = accuracy.by_kind(lines)
    assert [(line.name, line.errors["minigrad"][0]) for line in found] == [("h.*.ln_1.bias", math.sqrt(12.5)), ("ln_f.bias", 0.5)]
    assert accuracy.summary(found) == "minigrad beside torch eager: less error on 1 lines, level on 0, more on 1: h.*.ln_1.bias"


# ── the parties ──
@pytest.mark.parametrize("fields", ODD)
@pytest.mark.parametrize("name", INSTALLED)
def test_every_party_computes_the_same_model(name, fields):
    """Each gives every tensor of the truth, to the rounding of its dtype, whatever the switches of the configuration."""
    config = GPT2Config(**{**TINY, **fields})
    weights = accuracy.random_weights(config)
    ids, targets = np.random.default_rng(0).integers(0, config.vocab_size, (2, 2, 8))
    truth = accuracy.minigrad_pass(config, {k: v.astype(np.float64) for k, v in weights.items()})(ids, targets)
    found = accuracy.PARTIES[name](config, weights)(ids, targets)
    assert all(a.dtype == np.float32 for a in found.values())
    # 2 layers, forth and back, of seven sums of up to 48 terms each: the worst that rounding could do
    assert max(accuracy.errors(found, truth).values()) <= 2 * 2 * 7 * 48 * np.finfo(np.float32).eps
    again = accuracy.PARTIES[name](config, weights)(ids, targets)
    assert all(np.array_equal(found[k], again[k]) for k in found)


# ── the command ──
def test_what_is_printed(capsys, directory):
    """Context, truth, a line for each kind with a number for each party, a summary, and one JSON document at the end."""
    code, out, err = run(capsys, "--model", directory, "--peers", "torch", "--json")
    parties = ["minigrad", "unfused", "torch eager", "torch sdpa"]
    assert code == 0 and [line.startswith("batch ") for line in err] == [True, True]
    assert "B2 T6, 2 batches; numpy" in out[0] and out[1].startswith("truth: float64; PyTorch's is within ")
    assert all(name in out[2] for name in parties) and out[2].endswith("minigrad / torch eager")
    kinds = [line.split()[0] for line in out[3:-2]]
    assert kinds[:4] == ["logits", "loss", "wte.weight", "wpe.weight"] and len(kinds) == 4 + 12 + 2
    document = json.loads(out[-1])
    assert document["summary"] == out[-2] and document["truth"]["apart"] < document["truth"]["bound"] == 1e-10
    assert len(document["tensors"]) == 4 + 2 * 12 + 2
    assert all(list(e) == parties and all(len(x) == 2 for x in e.values()) for e in document["tensors"].values())


def test_all_is_a_line_for_each_tensor(capsys, directory):
    """--all prints each layer's tensors, and the summary is still that of kinds."""
    _, out, _ = run(capsys, "--model", directory, "--peers", "torch", "--all")
    assert [line.split()[0] for line in out[3:-1]].count("h.1.mlp.c_fc.bias") == 1 and len(out) == 3 + 30 + 1
    assert sum(map(int, [word.strip(",:") for word in out[-1].split() if word.strip(",:").isdigit()])) == 18


def test_worse_rounding_is_seen(capsys, directory, monkeypatch):
    """Our errors made ten times as large are "more" on every line, and each is named; the exit code stays 0."""

    def worse(config, weights):
        exact, plain = (accuracy.minigrad_pass(config, {k: v.astype(d) for k, v in weights.items()}) for d in ("float64", "float32"))

        def both(ids, targets):
            truth, found = exact(ids, targets), plain(ids, targets)
            return {k: truth[k] + 10.0 * (found[k] - truth[k]) for k in truth}

        return both

    monkeypatch.setitem(accuracy.PARTIES, "minigrad", worse)
    code, out, _ = run(capsys, "--model", directory, "--peers", "torch", "--repeats", "4")
    assert code == 0 and "less error on 0 lines" in out[-1] and "h.*.mlp.c_fc.bias" in out[-1] and "logits" in out[-1]


def test_a_false_truth_stops_the_run(capsys, directory, monkeypatch):
    """Where PyTorch's float64 is elsewhere, there is nothing to measure by: exit 1, with the tensor's name."""
    right = accuracy.torch_pass

    def wrong(config, weights, attention="eager"):
        def run(ids, targets):
            found = right(config, weights, attention)(ids, targets)
            return {**found, "wpe.weight": found["wpe.weight"] * (1.0 + 1e-9)}

        return run

    monkeypatch.setattr(accuracy, "torch_pass", wrong)
    code, out, _ = run(capsys, "--model", directory)
    assert code == 1 and len(out) == 2
    assert out[1] == "no truth to compare with: PyTorch's float64 is 1.0e-09 from ours at wpe.weight, more than 1e-10"


def test_a_missing_peer_is_one_line(capsys, directory, monkeypatch):
    """Without PyTorch and JAX there is a line for each on how to get it, the truth is said to be unchecked, and the rest is measured."""

    def missing(*_):
        raise ImportError("No module named 'torch'")

    monkeypatch.setattr(accuracy, "torch_pass", missing)
    for name in ("torch eager", "torch sdpa", "jax"):
        monkeypatch.setitem(accuracy.PARTIES, name, missing)
    code, out, err = run(capsys, "--model", directory)
    assert code == 0 and [line.partition(" is left out")[0] for line in err[:3]] == ["torch eager", "torch sdpa", "jax"]
    assert err[0].endswith("pip install torch transformers") and err[2].endswith("install it with: pip install jax")
    assert "not checked" in out[1] and out[-1] == "no torch eager to compare with" and len(out) == 3 + 18 + 1


@pytest.mark.parametrize(("args", "says"), [
    (["--peers", "tinygrad"], "--peers: 'tinygrad' is neither torch nor jax"), (["--repeats", "0"], "0 is less than 1"),
    (["--model", "no-such"], "there is no model or directory 'no-such'"), (["--model", "shakespeare", "--length", "9999"], "--length 9999"),
])
def test_bad_flags_are_one_line(args, says):
    """Exit 2, one line on stderr that says what is wrong, nothing on stdout."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.accuracy", *args], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("benchmarks.accuracy: ") or done.stderr.startswith("python -m benchmarks.accuracy: ")
    assert says in done.stderr
