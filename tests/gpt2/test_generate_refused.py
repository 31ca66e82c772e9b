"""python -m gpt2.generate where it cannot do what is asked: one line, the exit code of its kind, and no text."""
from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_gpt2 import CONTEXT, SAYS, TEXT

from gpt2.data.train_bpe import train_bpe
from minigrad import backend
from minigrad.errors import BackendUnavailable
from minigrad.testing import fake_cupy


@pytest.mark.parametrize(("flags", "message"), [
    (["--ids", ""], "the prompt is empty"),
    (["--stop", ""], "--stop must not be an empty text"),
    (["--temperature", "-1"], "--temperature must be a finite number from 0 on (0 is greedy), not -1.0"),
    (["--temperature", "nan"], "--temperature must be"),
    (["--temperature", "inf"], "--temperature must be"),
    (["--temperature", "hot"], "argument --temperature: invalid float value: 'hot'"),
    (["--top-p", "0"], "--top-p must be above 0 and at most 1, not 0.0"),
    (["--top-p", "1.01"], "--top-p must be"),
    (["--top-p", "nan"], "--top-p must be"),
    (["--top-k", "0"], "--top-k must be 1 or more, not 0"),
    (["--top-k", "-3"], "--top-k must be"),
    (["--min-p", "2"], "--min-p must be"),
    (["--repetition-penalty", "0"], "--repetition-penalty must be"),
    (["--seed", "-1"], "argument --seed: -1 is less than 0"),
    (["--seed", "x"], "argument --seed: 'x' is not a whole number"),
    (["--max-new-tokens", "0"], "argument --max-new-tokens: 0 is less than 1"),
    (["--num-samples", "0"], "argument --num-samples: 0 is less than 1"),
    (["--logprobs", "-1"], "argument --logprobs: -1 is less than 0"),
    (["--lookup", "-1"], "argument --lookup: -1 is less than 0"),
    (["--lookup", "2", "--num-samples", "3"], "--lookup works for one sample only, and --num-samples is 3; leave out one of the two"),
    (["--overflow", "wrap"], "argument --overflow: invalid choice: 'wrap'"),
    (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
    (["--backend", "jax"], "--backend: there is no backend 'jax'; choose auto, numpy, cupy or cupy:N"),
    (["--backend", "cupy:x"], "--backend: device 'cupy:x'"),
    (["--backend", "numpy:1"], "--backend: numpy:1 does not exist"),
    (["--device", "1"], "--device 1 is the number of a GPU, and --backend is numpy; leave out one of the two"),
    (["--backend", "cupy:0", "--device", "1"], "and --backend is cupy:0; leave out one of the two"),
    (["--device", "-1"], "argument --device: -1 is less than 0"),
    (["--model", "shakspeare"], "there is no model or directory 'shakspeare'; did you mean shakespeare? (models: shakespeare, gpt2,"),
    (["--temprature", "1"], "unrecognized arguments: --temprature 1"),
    (["--prompt", "a\udcff"], "argument --prompt: not UTF-8 (byte 0xff after 1 characters)"),
    (["--prompt", "O", "more"], "unrecognized arguments: more"),
])
def test_a_wrong_flag_is_one_line(flags, message, run, tmp_path, monkeypatch):
    """A flag that cannot be honoured ends with exit 2 and one line that names it; nothing is printed or written."""
    monkeypatch.chdir(tmp_path)
    code, out, err = run("random", *flags)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1 and "Traceback" not in err
    assert os.listdir(tmp_path) == []


def test_a_missing_backend_is_said_first(run, monkeypatch):
    """Without CuPy, --backend cupy exits with 4 before the model is even looked for, and never falls back."""

    def missing(name):
        raise BackendUnavailable("no CuPy here; pip install cupy-cuda12x")

    monkeypatch.setattr(backend, "get", missing)
    assert run("no-such-model", "--backend", "cupy") == (4, "", "gpt2.generate: no CuPy here; pip install cupy-cuda12x\n")
    monkeypatch.undo()
    try:
        backend.get("cupy")
    except BackendUnavailable:
        code, out, err = run("no-such-model", "--backend", "cupy")
        assert (code, out) == (4, "") and err.count("\n") == 1 and "cupy" in err.lower()


def test_a_device_is_a_flag(run):
    """--device N is NAME:N, and the text the same; a device that is not there ends with exit 2, and --device alone never falls back."""
    fake_cupy.install()
    flags = ["--max-new-tokens", "3", "--json"]
    code, out, _ = run("random", *flags, "--backend", "fake", "--device", "1")
    assert code == 0 and json.loads(out)["backend"] == "fake:1"
    assert json.loads(out)["samples"] == json.loads(run("random", *flags)[1])["samples"]
    code, out, err = run("random", "--backend", "fake", "--device", "2")
    assert (code, out) == (2, "") and err == "gpt2.generate: --device: fake:2 does not exist; this machine has 2 GPUs, numbered from 0\n"
    try:
        backend.get("cupy")
    except BackendUnavailable:
        assert run("random", "--backend", "auto", "--device", "0")[:2] == (4, "")


@pytest.mark.parametrize("n", [0, 5, 40, 100])
def test_no_memory_is_one_line(run, n):
    """A device that is out of memory ends a run with exit 1 and one line that says what to lower, whenever it happens."""
    fake_cupy.install()
    with fake_cupy.short_of_memory(n):
        code, _, err = run("random", "--backend", "fake", "--max-new-tokens", "3", "--no-stream")
    assert code == 1 and err.count("\n") == 1 and "out of memory on fake:0" in err and "lower the batch" in err


def change(folder, **changes):
    """Write tensors of a checkpoint anew; None leaves one out."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, value in changes.items():
        key = f"transformer.{name}"
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value(tensors[key])
    save_file(tensors, path)


def nan_at(*place):
    def put(array):
        array = array.copy()
        array[place] = np.nan
        return array

    return put


def no_config(folder):
    (folder / "config.json").unlink()


def config(**fields):
    def edit(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return edit


def cut_short(name, n):
    def edit(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[:n])

    return edit


def without(*names):
    def edit(folder):
        for name in names:
            (folder / name).unlink()

    return edit


def other_tokenizer(folder):
    train_bpe(TEXT * 2, 330).save(folder)


@pytest.mark.parametrize(("edit", "message"), [
    (without("model.safetensors"), "holds no model.safetensors"),
    (without("config.json", "model.safetensors", "vocab.json", "merges.txt"), "holds no model.safetensors"),
    (cut_short("model.safetensors", 5000), "is it truncated?"),
    (cut_short("model.safetensors", 0), "is it truncated?"),
    (cut_short("config.json", 20), "config.json is not JSON"),
    (lambda d: (d / "model.safetensors").write_bytes(b"\x80\x04 this is no safetensors file"), "is not a complete safetensors file"),
    (lambda d: save_file({f"conv{i}.weight": np.zeros(3, np.float32) for i in range(5)}, d / "model.safetensors"),
     "is not a GPT-2 checkpoint"),
    (lambda d: change(d, **{"h.1.mlp.c_proj.weight": None}), "has no tensor 'h.1.mlp.c_proj.weight'"),
    (lambda d: change(d, **{"h.0.mlp.c_fc.weight": lambda a: np.ascontiguousarray(a.T)}), "'h.0.mlp.c_fc.weight' is [128, 32]"),
    (lambda d: change(d, **{"wpe.weight": lambda a: a[:-1].copy()}), "'wpe.weight' is [63, 32]"),
    (config(n_layer=3), "has no tensor 'h.2."),
    (config(n_embd=64), "is [300, 32], but [300, 64] by"),
    (without("vocab.json"), "no tokenizer in"),
    (cut_short("vocab.json", 100), "vocab.json is not JSON"),
    (cut_short("merges.txt", 100), "are the merges cut short?"),
    (other_tokenizer, "the tokenizer has 330 tokens and the model 300; they do not belong together"),
    (lambda d: (shutil.rmtree(d), d.write_text("some text")), "is not a complete safetensors file"),
])
def test_unusable_weights_are_one_line(edit, message, run, models, tmp_path):
    """Weights, configuration or vocabulary that are missing, damaged or do not agree end with exit 3 and one line."""
    shutil.copytree(models / "random", tmp_path / "model")
    edit(tmp_path / "model")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(tmp_path / "model")
    assert (code, out) == (3, "") and message in err and err.count("\n") == 1, err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("fields", [{"n_head": 5}, {"activation_function": "swish"}, {"n_embd": -1}])
def test_a_configuration_that_cannot_be_honoured(fields, run, models, tmp_path):
    """A field that has no meaning here is named, with the file it stands in: the weights are foreign, or damaged."""
    shutil.copytree(models / "random", tmp_path / "model")
    config(**fields)(tmp_path / "model")
    code, out, err = run(tmp_path / "model")
    assert (code, out) == (3, "") and "config.json: " in err and next(iter(fields)) in err and err.count("\n") == 1


@pytest.mark.parametrize("flags", [[], ["--greedy"], ["--json"], ["--logprobs", "2"], ["--no-stream"]])
def test_nan_in_a_weight_that_counts(flags, run, models, tmp_path):
    """A NaN is warned of in one line when weights are read; when it reaches the logits the run ends with exit 3 and no text."""
    shutil.copytree(models / "random", tmp_path / "model")
    change(tmp_path / "model", **{"h.1.mlp.c_fc.weight": nan_at(3, 4)})
    code, out, err = run(tmp_path / "model", *flags)
    warning, error = err.splitlines()
    assert (code, out) == (3, "") and "'h.1.mlp.c_fc.weight'" in warning and "NaN" in warning and "NaN" in error
    assert warning.startswith("gpt2.generate: warning: ") and error.startswith("gpt2.generate: logits")


def test_nan_in_a_weight_that_does_not_count(run, models, tmp_path):
    """A NaN at a place that is never read is warned of, and the text comes."""
    shutil.copytree(models / "says", tmp_path / "model")
    change(tmp_path / "model", **{"wpe.weight": nan_at(CONTEXT - 1)})
    code, out, err = run(tmp_path / "model")
    assert (code, out) == (0, f"\n{SAYS}\n") and err.count("\n") == 1 and "'wpe.weight'" in err
