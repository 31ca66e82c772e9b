"""Training that is stopped, killed or out of disk, and taken up again: the same bits as if nothing had happened."""
from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from data import ROOT
from safetensors.numpy import load_file, save_file
from tiny_gpt2 import TEXT, prepare_texts, tiny_model

import gpt2.train.__main__ as training
import minigrad as mg
from gpt2.data.shards import load_data
from gpt2.data.tokenizer import load_tokenizer
from gpt2.io.outputs import MARK
from gpt2.model import GPT2
from gpt2.train import checkpoints as snapshot
from gpt2.train import trainer
from tests.gpt2.train.test_train import SMALL, held

FLAGS = ["--max-iters", "14", "--eval-interval", "5", "--log-interval", "3", "--save-every", "4", "--dropout", "0.1",
         "--attn-dropout", "0.1", "--save-dtype", "float32", "--gradient-accumulation-steps", "2"]
TIMES = {"ms", "tokens_per_second", "share_of_peak"}


def fresh(data, *flags):
    return ["--data", str(data), *SMALL, *FLAGS, *map(str, flags)]


@pytest.fixture
def stopping(monkeypatch):
    """A signal comes in the middle of the given step."""
    real = trainer.batch

    def at(step, number=signal.SIGTERM):
        calls = []

        def batch(*args):
            calls.append(1)
            if len(calls) == step:
                os.kill(os.getpid(), number)
            return real(*args)

        monkeypatch.setattr(trainer, "batch", batch)

    return at


def told(out):
    """The lines of metrics.jsonl without times."""
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in (out / "metrics.jsonl").read_text().splitlines()]


def state(folder):
    """All that decides the steps after a checkpoint-N besides its tensors: random numbers, AdamW's steps, the scaler, losses to be told."""
    return {name: value for name, value in json.loads((folder / "training.json").read_text())["state"].items() if name != "seconds"}


def same(a, b):
    """Two runs left the same: every bit of weights and moments, what was told, and the record but for times and places."""
    assert held(a) == held(b)
    for step in held(a)[1]:
        assert state(a / f"checkpoint-{step}") == state(b / f"checkpoint-{step}"), step
        for name in ("model.safetensors", "optimizer.safetensors", "config.json", "vocab.json", "merges.txt"):
            assert (a / f"checkpoint-{step}" / name).read_bytes() == (b / f"checkpoint-{step}" / name).read_bytes(), (step, name)
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    assert told(a) == told(b)
    records = [json.loads((out / "training.json").read_text()) for out in (a, b)]
    for record in records:
        del record["minutes"], record["settings"]["init_from"]
    assert records[0] == records[1]


# ── the same bits ──
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow), "float16"])
@pytest.mark.parametrize("stops", [
    [(1, signal.SIGTERM)], [(4, signal.SIGINT), (3, signal.SIGTERM)],
    pytest.param([(5, signal.SIGTERM), (1, signal.SIGINT)], marks=pytest.mark.slow)])
def test_stopped_and_resumed(dtype, stops, run, data, stopping, tmp_path):
    """SIGINT and SIGTERM end a run after the step, with a checkpoint and 128 + their number; what follows is the run without a stop."""
    assert run(tmp_path / "whole", *fresh(data, "--dtype", dtype))[0] == 0
    flags, done = fresh(data, "--dtype", dtype), 0
    for step, number in stops:
        stopping(step, number)
        code, out, err = run(tmp_path / "parts", *flags)
        done += step
        assert (code, out) == (128 + number, "")
        assert err.endswith(f"stopped by {number.name} after step {done}; continue from checkpoint-{done} with --init-from resume "
                            f"--out-dir {tmp_path / 'parts'}\n")
        flags = ["--init-from", "resume"]
    stopping(-1)
    assert run(tmp_path / "parts", *flags)[0] == 0
    for extra in {f"checkpoint-{n}" for n in held(tmp_path / "parts")[1]} - {f"checkpoint-{n}" for n in held(tmp_path / "whole")[1]}:
        shutil.rmtree(tmp_path / "parts" / extra)       # where it was stopped
    same(tmp_path / "whole", tmp_path / "parts")


def test_all_of_the_state_is_taken_over(data):
    """A trainer that another one's state is restored in has that state, the scaler's factor and count among it, and AdamW's moments."""
    made = load_data(data)
    args = training.parser().parse_args([*SMALL, "--dtype", "float16"])
    first, second = (trainer.Trainer(tiny_model(seed=seed, vocab_size=made.meta["vocab_size"]), made.train, args) for seed in (1, 2))
    for _ in range(3):
        first.step()
    first.scaler.factor, first.scaler.good = 512.0, 7   # as after an overflow, and some steps
    mg.random.set_state((12345, 6))
    state, moments = first.state(), first.moments()
    assert state["scaler"] == {"factor": 512.0, "good": 7} and state["random"] == [12345, 6] and set(state["adamw_steps"].values()) == {3}
    mg.random.manual_seed(0)
    second.restore(first.done, state, moments)
    assert second.done == 3 and second.state() == state and len(moments) == 2 * len(second.trained)
    for name, a in second.moments().items():
        np.testing.assert_array_equal(a, moments[name])


def killed(argv, after, out):
    """Start the command and kill it so many seconds after its first new checkpoint is there; whether it ended by itself before."""
    there = snapshot.snapshots(out)
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as running:
        until = time.monotonic() + 60
        while running.poll() is None and snapshot.snapshots(out) == there and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(after)
        running.kill()
        errors = running.stderr.read()
    assert running.returncode in (0, -signal.SIGKILL), errors
    assert "Traceback" not in errors
    return running.returncode == 0


@pytest.mark.parametrize("kills", [1, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_any_moment(kills, data, tmp_path):
    """kill -9 at random moments, saving included: every checkpoint that is there is whole, and the end is the same to the bit."""
    base = [sys.executable, "-m", "gpt2.train", "--out-dir"]
    more = ["--max-iters", str(60 * kills), "--eval-interval", "7", "--save-every", "2", "--eval-iters", "1"]
    flags = [*fresh(data), *more]
    assert subprocess.run([*base, str(tmp_path / "whole"), *flags], cwd=ROOT, capture_output=True).returncode == 0
    out, rng, seen = tmp_path / "parts", random.Random(kills), 0
    while seen < kills:
        if killed([*base, str(out), *flags], rng.uniform(0.0, 0.2), out):
            break
        seen += 1
        for path in snapshot.snapshots(out):
            snapshot.load(path)
        flags = ["--init-from", "resume"] if snapshot.snapshots(out) else flags
    done = subprocess.run([*base, str(out), *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 or "the checkpoint is of step" in done.stderr, done.stderr
    assert seen >= 0.75 * kills
    same(tmp_path / "whole", out)
    assert [path.name for path in out.rglob(".*")] == [MARK]


# ── no room ──
def test_a_full_disk_leaves_the_last_checkpoint(data, tmp_path):
    """Where a checkpoint cannot be written the run ends in one line that names the one before it, which goes on to the same bits."""
    whole, out, base = tmp_path / "whole", tmp_path / "parts", [sys.executable, "-m", "gpt2.train", "--out-dir"]
    assert subprocess.run([*base, str(whole), *fresh(data)], cwd=ROOT, capture_output=True).returncode == 0
    weights = (whole / "checkpoint-12" / "model.safetensors").stat().st_size
    moments = (whole / "checkpoint-12" / "optimizer.safetensors").stat().st_size
    assert moments > weights + 4096                     # so a limit between them lets the weights through, and not the moments

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (weights + 2048, weights + 2048))

    done = subprocess.run([*base, str(out), *fresh(data)], cwd=ROOT, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == (f"gpt2.train: {out / 'checkpoint-4'} cannot be written: File too large; "
                                            "checkpoint-0 is complete; continue from it with --init-from resume")
    assert held(out)[1] == [0] and [path.name for path in out.rglob(".*")] == [MARK]
    assert subprocess.run([*base, str(out), "--init-from", "resume"], cwd=ROOT, capture_output=True).returncode == 0
    same(whole, out)


# ── what cannot be taken up again ──
def test_what_a_resumed_run_refuses(run, data, tmp_path):
    """Nothing to resume, damage, other data, another dtype or shape, and a run that is over: one line each, and nothing is changed."""
    out = tmp_path / "out"
    code, _, err = run(out, "--init-from", "resume")
    assert code == 2 and f"--out-dir {out} holds no checkpoint-N to resume from" in err
    assert run(out, *fresh(data))[0] == 0
    last, resume = out / "checkpoint-14", ("--init-from", "resume")
    other = tmp_path / "other"
    prepare_texts([TEXT * 7], other, str(data))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for flags, wanted, message in [
        ((), 2, "the checkpoint is of step 14, and --max-iters is 14; raise --max-iters"),
        (("--max-iters", 20, "--data", other), 2, f"{other} is not the data that {last} was trained on; to train on other data give"),
        (("--max-iters", 20, "--dtype", "float64"), 2, f"--dtype float64 needs float64 weights, and {last} holds float32"),
        (("--max-iters", 20, "--n-layer", 3), 2, f"--n-layer 3 does not fit {last}, which has 1; leave out --n-layer"),
        (("--max-iters", 20, "--block-size", 17), 2, f"--block-size 17 does not fit {last}, which has 16"),
    ]:
        code, text, err = run(out, *resume, *flags)
        assert (code, text) == (wanted, "") and message in err and err.count("\n") == 1, err
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for name, spoil in [
        ("training.json", lambda p: p.write_text("{}")),
        ("training.json", lambda p: p.write_bytes(before[p][:50])),
        ("optimizer.safetensors", lambda p: p.write_bytes(before[p][:-9])),
        ("optimizer.safetensors", lambda p: p.unlink()),
        ("optimizer.safetensors", lambda p: save_file({}, p)),
        ("model.safetensors", lambda p: p.write_bytes(before[p][:999])),
    ]:
        spoil(last / name)
        code, text, err = run(out, *resume, "--max-iters", 20)
        assert (code, text) == (3, "") and str(last) in err and err.count("\n") == 1, (name, err)
        (last / name).write_bytes(before[last / name])


def test_more_steps_than_planned(run, data, tmp_path):
    """A run that is over goes on with a higher --max-iters; settings that are not named are those of the run."""
    out = tmp_path / "out"
    assert run(out, *fresh(data))[0] == 0
    code, _, err = run(out, "--init-from", "resume", "--max-iters", 16)
    assert code == 0 and [line["step"] for line in told(out) if "train_loss" in line][-2:] == [15, 16]
    shown = dict(line.split(" = ") for line in err.splitlines() if " = " in line)
    assert shown["max_iters"].split() == ["16", "#", "command", "line"] and shown["n_embd"].split() == ["16", "#", "checkpoint"]
    assert held(out)[1] == [14, 16]                     # the settings of the newest are those of the run, and no older one's
    assert "the checkpoint is of step 16, and --max-iters is 16; raise --max-iters" in run(out, "--init-from", "resume")[2]


# ── from a model that is there ──
def test_fine_tuning(run, data, tmp_path):
    """--init-from DIR starts from its weights and leaves it as it is; frozen parameters keep every bit, and AdamW knows nothing of them."""
    assert run(tmp_path / "first", *fresh(data))[0] == 0
    source = tmp_path / "first" / "checkpoint-14"
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    code, _, err = run(tmp_path / "second", "--init-from", source, "--data", data, "--max-iters", 3, "--save-every", 3, "--batch-size", 4,
                       "--freeze", "wte.*", "h.0.attn.*", "--backend", "numpy")
    assert code == 0 and {path.name: path.read_bytes() for path in source.iterdir()} == before
    old, start, end = (load_file(folder / "model.safetensors") for folder in
                       (source, tmp_path / "second" / "checkpoint-0", tmp_path / "second" / "checkpoint-3"))
    assert all(np.array_equal(old[name], start[name]) for name in old)
    stay = {name for name in old if name.startswith(("transformer.wte", "transformer.h.0.attn"))}
    assert {name for name in old if np.array_equal(old[name], end[name])} == stay
    moments = load_file(tmp_path / "second" / "checkpoint-3" / "optimizer.safetensors")
    trained = sum(w.size for name, w in old.items() if name not in stay)
    assert sum(m.size for m in moments.values()) == 2 * trained and f"{trained:,} of them trained" in err
    assert GPT2.from_pretrained(tmp_path / "second").config.n_positions == 16


def test_what_fine_tuning_refuses(run, data, tmp_path):
    """A model that is not there, one with another vocabulary, shapes that contradict it, and patterns that freeze nothing or all."""
    assert run(tmp_path / "first", *fresh(data))[0] == 0
    other = tmp_path / "other"
    prepare_texts([TEXT * 8], other, "train:310")
    twin = tmp_path / "twin"
    prepare_texts([TEXT[::-1] * 8], twin, "train:300")
    assert load_tokenizer(twin).sha256 != load_tokenizer(data).sha256
    ours = ("--init-from", tmp_path / "first", "--max-iters", 1, "--backend", "numpy")
    for flags, wanted, message in [
        (("--init-from", tmp_path / "nowhere", "--data", data), 3, "there is no model or directory"),
        ((*ours, "--data", other), 2, "has another one"),
        ((*ours, "--data", twin), 2, "has another one"),
        ((*ours, "--data", data, "--n-embd", 32), 2, "--n-embd 32 does not fit"),
        ((*ours, "--data", data, "--freeze", "h.7.*"), 2, "--freeze 'h.7.*' matches no parameter; they are called wte.weight"),
        ((*ours, "--data", data, "--freeze", "*"), 2, "--freeze leaves nothing to train"),
    ]:
        code, text, err = run(tmp_path / "out", *flags)
        assert (code, text) == (wanted, "") and message in err and err.count("\n") == 1, err
        assert not (tmp_path / "out").exists()
