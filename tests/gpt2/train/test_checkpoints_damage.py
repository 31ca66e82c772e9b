"""Checkpoints that are damaged: each is refused in one line, with exit code 3, before anything is changed."""
from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gpt2.io.records import sealed, unsealed
from tests.gpt2.train.test_checkpoints import fresh

RECORD, MOMENTS, WEIGHTS = "training.json", "optimizer.safetensors", "model.safetensors"
RESUME = ("--init-from", "resume", "--max-iters", 16)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run of 14 steps, made once."""
    import gpt2.train.__main__ as training

    out = tmp_path_factory.mktemp("run") / "out"
    training.main(["--out-dir", str(out), *fresh(data)])
    return out


@pytest.fixture
def out(whole, tmp_path):
    """A copy of the run."""
    shutil.copytree(whole, tmp_path / "out")
    return tmp_path / "out"


def edited(change, seal=True):
    """The record with a change; with `seal` its checksum is right, without it has none, as one of an older version."""
    def spoil(path):
        record = unsealed(json.loads(path.read_bytes()))
        change(record)
        path.write_bytes(sealed(record) if seal else json.dumps(record).encode())
    return spoil


def at(*place, value):
    """A change that puts a value at a place of the record."""
    def change(record):
        for key in place[:-1]:
            record = record[key]
        record[place[-1]] = value
    return edited(change, seal=False)


def tensors(change):
    """The tensors of a file with a change, written by another program: without checksums."""
    def spoil(path):
        found = load_file(path)
        change(found)
        save_file(found, path)
    return spoil


def flipped(place, bit=1):
    """One bit of a file flipped; place: counted from the end."""
    def spoil(path):
        content = bytearray(path.read_bytes())
        content[-place] ^= bit
        path.write_bytes(content)
    return spoil


def refused(run, out, name, spoil, reason):
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    last = out / "checkpoint-14"
    spoil(last / name)
    spoiled = {**before, last / name: (last / name).read_bytes()}
    code, text, err = run(out, *RESUME)
    assert (code, text) == (3, "") and reason in err and err.count("\n") == 1, err
    assert str(last) in err and "remove it to resume from the one before it" in err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == spoiled


@pytest.mark.parametrize(("spoil", "reason"), [
    (at("settings", "beta1", value=""), "settings: beta1: '' is not a number"),
    (at("settings", "beta1", value=1.5), "settings: --beta1 must be from 0 on and below 1, not 1.5"),
    (at("settings", "learning_rate", value=float("nan")), "settings: learning_rate cannot be nan"),
    (at("settings", "block_size", value="x"), "settings: block_size: 'x' is not a whole number"),
    (at("settings", "batch_size", value=True), "settings: batch_size cannot be True"),
    (at("settings", "batch_size", value="4"), "settings: batch_size cannot be '4'"),
    (at("settings", "batch_size", value=10**39), "settings: batch_size: 1000"),
    (at("settings", "batch_size", value=None), "settings: batch_size cannot be None"),
    (at("settings", "eval_iters", value="\ud800"), "settings: eval_iters: "),
    (at("settings", "data", value="\ud800"), "settings: data: "),
    (at("settings", "freeze", value=1), "settings: freeze must be a list, not 1"),
    (at("settings", "keep", value=float("nan")), "settings: keep: 'nan' is not a whole number"),
    (at("settings", "dtype", value="int8"), "settings: dtype is 'int8'; choose from"),
    (at("settings", value=[]), "training.json: settings must be an object, not []"),
    (at("step", value=13), "its training.json is of step 13"),
    (at("step", value=True), "step must be an integer"),
    (at("history", value=1), "history must be a list, not 1"),
    (at("history", 0, "step", value=-1), "history[0].step must be an integer from 0"),
    (at("history", 0, "nats_per_char", value=float("inf")), "history[0].nats_per_char must be a finite number, not inf"),
    (at("best", "validation", value=7), "best.validation must be an object, not 7"),
    (at("best", value=False), "best must be an object or null, not False"),
    (at("data", "val", "characters", value=0.5), "data.val.characters must be an integer"),
    (at("data", value=None), "data must be an object, not None"),
    (at("state", "adamw_steps", "wte.weight", value=3), "AdamW's steps in its training.json are not the same number for all"),
    (at("state", "adamw_steps", "wte.weight", value=-1), "state.adamw_steps.wte.weight must be an integer from 0"),
    (at("state", "adamw_steps", "wte.weight", value=float("inf")), "state.adamw_steps.wte.weight must be an integer"),
    (at("state", "adamw_steps", "wte.weight", value=10**39), "state.adamw_steps.wte.weight must be an integer"),
    (at("state", "adamw_steps", value={}), "state.adamw_steps must be an object of size 1 to"),
    (at("state", "adamw_steps", value={"x": 14}), "does not hold the moments of the parameters that training.json names"),
    (at("state", "random", value=[1, 2, 3]), "state.random must be a list of size 2 to 2"),
    (at("state", "random", value=[1, 2.5]), "state.random[1] must be an integer"),
    (at("state", "scaler", "factor", value=0), "state.scaler.factor must be a finite number from 1e-300 on"),
    (at("state", "dtype", value="float16"), 'state.dtype must be "float32" or "float64"'),
    (at("state", "dtype", value="float64"), "is F32"),
    (at("state", "pending", value=["x"]), "state.pending[0] must be a finite number"),
    (at("state", "seconds", value=-1.0), "state.seconds must be a finite number from 0.0 on"),
    (lambda p: p.write_bytes(p.read_bytes().replace(b'"step": 14', b'"step": 14, "step": 14', 1)), "has the key 'step' twice"),
    (lambda p: p.write_bytes(p.read_bytes().replace(b'"wte.weight": 14', b'"wte.weight": 13')), "does not have the checksum"),
    (lambda p: p.write_bytes(p.read_bytes().replace(b'"batch_size": 4', b'"batch_size": 3')), "does not have the checksum"),
    (lambda p: p.write_bytes(b"[" * 100_000), RECORD),
    (lambda p: p.write_bytes(b"\0" * 1000), "is not JSON"),
])
def test_a_damaged_record(run, out, spoil, reason):
    """Every field has a type and a range, with and without a checksum of the whole."""
    refused(run, out, RECORD, spoil, reason)


@pytest.mark.parametrize(("name", "spoil", "reason"), [
    (MOMENTS, flipped(1), "optimizer.safetensors is damaged: 'exp_avg"),
    (MOMENTS, flipped(3000, 64), "optimizer.safetensors is damaged: 'exp_avg"),
    (WEIGHTS, flipped(1), "model.safetensors is damaged: 'transformer."),
    (MOMENTS, tensors(lambda t: t.update({"exp_avg_sq.wte.weight": t["exp_avg_sq.wte.weight"].astype(np.int32)})),
     "'exp_avg_sq.wte.weight' is I32[300, 16], and its parameter [300, 16] in float32"),
    (MOMENTS, tensors(lambda t: t.update({"exp_avg.wte.weight": t["exp_avg.wte.weight"].T.copy()})),
     "'exp_avg.wte.weight' is F32[16, 300], and its parameter [300, 16]"),
    (MOMENTS, tensors(lambda t: t.pop("exp_avg.wte.weight")), "does not hold the moments of the parameters"),
    (MOMENTS, tensors(lambda t: t.update({"exp_avg.x": t["exp_avg.wte.weight"]})), "does not hold the moments of the parameters"),
    ("config.json", lambda p: p.write_bytes(p.read_bytes().replace(b'"n_head": 2', b'"n_head": 4')), "has n_head=4, and "),
    ("config.json", lambda p: p.write_bytes(b"[]"), "config.json must be an object"),
])
def test_damaged_tensors(run, out, name, spoil, reason):
    """A bit of a weight or a moment, another shape or dtype, and a configuration that contradicts its copy."""
    refused(run, out, name, spoil, reason)


def test_a_checkpoint_of_an_older_version(run, whole, out, data, tmp_path):
    """Without checksums in any of its files it is resumed from, and the next steps are the same."""
    last = out / "checkpoint-14"
    for name in (MOMENTS, WEIGHTS):
        save_file(load_file(last / name), last / name, {"format": "pt"})
    (last / RECORD).write_text(json.dumps(unsealed(json.loads((last / RECORD).read_bytes()))))
    shutil.copytree(whole, tmp_path / "other")
    assert run(out, *RESUME)[0] == 0 and run(tmp_path / "other", *RESUME)[0] == 0
    for name in (MOMENTS, WEIGHTS):
        a, b = (load_file(folder / "checkpoint-16" / name) for folder in (out, tmp_path / "other"))
        assert a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)
