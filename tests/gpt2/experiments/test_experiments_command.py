"""python -m gpt2.experiments: its flags, its exit codes, and what fails."""
from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from in_process import end_of
from safetensors.numpy import load_file, save_file
from tiny_gpt2 import tiny_model

import minigrad as mg
from gpt2.errors import MissingError
from gpt2.experiments import (
    NAMES,
    experiment,
)
from gpt2.experiments.__main__ import main
from gpt2.io.outputs import MARK


@pytest.fixture
def run(capsys):
    def ended(*flags):
        return end_of(lambda: main([*map(str, flags)]), capsys, "gpt2.experiments")

    return ended


def test_the_command(run, tmp_path):
    code, out, _ = run("parameter-counts", "causal-averaging", "--out", tmp_path)
    assert code == 0 and out.count("VERDICT: ") == 2
    assert "VERDICT: contradicted — LayerNorm is under 0.01 % of the parameters (0.031 %" in out
    wanted = {f"{n}.{s}" for n in ("parameter-counts", "causal-averaging") for s in ("png", "csv", "json")}
    assert {p.name for p in tmp_path.iterdir()} == {*wanted, MARK}
    code, out, _ = run("parameter-counts", "--out", tmp_path, "--json")
    assert code == 0 and json.loads(out)["experiment"] == "parameter-counts"
    code, out, _ = run("--list")
    assert code == 0 and [line.split()[0] for line in out.splitlines()[1:]] == list(NAMES)


def test_one_that_fails_does_not_end_the_rest(run, tmp_path, monkeypatch):
    """Each is a line, the others are printed and written, and the exit code is that of the first; Ctrl-C ends all."""
    names = ["layer-norm", "parameter-counts", "fused-qkv", "device-errors", "induction", "ladder"]

    def failing(error):
        def measure(_):
            raise error
        return measure

    for name, error in (("layer-norm", ImportError("No module named 'x'")), ("fused-qkv", MissingError("no\nweights")),
                        ("induction", MemoryError()), ("ladder", mg.errors.ShapeError("shapes"))):
        monkeypatch.setattr(experiment(name), "measure", failing(error))
    code, out, err = run(*names, "--out", tmp_path)
    assert code == 1 and out.count("VERDICT: ") == 2 and "\n\n\n" not in out and not out.endswith("\n\n")
    lines = err.splitlines()
    assert lines[0] == "gpt2.experiments: layer-norm: No module named 'x'" and lines[2] == "gpt2.experiments: fused-qkv: no weights"
    assert lines[4:] == ["gpt2.experiments: induction: MemoryError", "gpt2.experiments: ladder: shapes"] and len(lines) == 6
    assert sorted({p.stem for p in tmp_path.iterdir() if p.name != MARK}) == ["device-errors", "parameter-counts"]
    code, out, _ = run(*names[1:], "--out", tmp_path, "--json")
    assert code == 3 and [d["experiment"] for d in json.loads(out)] == ["parameter-counts", "device-errors"]
    assert run("ladder", "--out", tmp_path, "--json") == (mg.errors.ShapeError.exit_code, "", "gpt2.experiments: ladder: shapes\n")
    monkeypatch.setattr(experiment("fused-qkv"), "measure", failing(KeyboardInterrupt()))
    code, out, err = run(*names, "--out", tmp_path)
    assert code == 130 and out.count("VERDICT: ") == 1 and err.splitlines()[-1] == "gpt2.experiments: interrupted"


def test_a_part_of_a_model_is_enough_for_those_that_need_none(run, tmp_path, monkeypatch):
    """all, with other names beside it; those that run the model say in a line each what is missing."""
    part = {"wpe.weight": np.zeros((4, 768), np.float32), **{f"h.{i}.ln_1.weight": np.ones(768, np.float32) for i in range(12)}}
    save_file(part, tmp_path / "x.safetensors")
    monkeypatch.setattr("gpt2.experiments.__main__.NAMES", ("parameter-counts", "causal-averaging", "device-errors", "induction"))
    code, out, err = run("device-errors", "all", "--model", tmp_path / "x.safetensors", "--out", tmp_path / "out")
    assert code == 3 and sorted({p.stem for p in (tmp_path / "out").iterdir() if p.name != MARK}) == ["device-errors", "parameter-counts"]
    assert out.index("parameter-counts: ") < out.index("device-errors: ")
    lines = err.splitlines()
    assert len(lines) == 4 and all("has no tensor 'wte.weight'" in line for line in (lines[1], lines[3])), err


WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("hypothesis", "torch", "scipy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from gpt2.experiments import NAMES, experiment
for name in NAMES:
    assert experiment(name).measure
from gpt2.cli.command import run_command
from gpt2.experiments.__main__ import main
experiment("attention-vs-pytorch").LENGTHS = (64, 128, 256)
run_command(lambda: main(["device-errors", "attention-vs-pytorch", "--json", "--backend", "numpy", "--out", sys.argv[1]]), "x")
"""


def test_nothing_but_the_packages_own_needs_is_needed(tmp_path):
    """Where hypothesis, PyTorch and SciPy are not installed every experiment is there, and a comparison with PyTorch is inconclusive."""
    done = subprocess.run([sys.executable, "-c", WITHOUT, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors, attention = json.loads(done.stdout)
    assert [v["verdict"] for v in errors["verdicts"]] == ["confirmed"]
    assert attention["torch"] is None and attention["verdicts"][0]["verdict"] == "inconclusive"


@pytest.mark.parametrize("flags, code, says", [
    (["wieght-tying"], 2, "there is no experiment 'wieght-tying'; similar names: weight-tying"),
    (["all", "temprature"], 2, "there is no experiment 'temprature'; similar names: temperature"),
    (["xyz"], 2, "there is no experiment 'xyz'; --list shows what there is"),
    ([], 2, "name an experiment, or all"),
    (["ladder", "--model", "gpt9"], 2, "there is no model or directory 'gpt9'"),
    (["ladder", "--model", "no/where"], 3, "there is no model or directory 'no/where'"),
    (["ladder", "--data", "/nonexistent"], 3, "--data /nonexistent cannot be read"),
    (["parameter-counts", "--out", "/dev/null/x"], 2, "cannot write"),
    (["ladder", "--which", "qkv"], 2, "--which is for weight-histograms only, not for ladder"),
    (["weight-histograms", "--which", "biases"], 2, "invalid choice: 'biases'"),
    (["ladder", "--backend", "tpu"], 2, "there is no backend 'tpu'"),
])
def test_bad_input_is_one_line(run, flags, code, says):
    ended, out, err = run(*flags)
    assert (ended, out, err.count("\n")) == (code, "", 1) and says in err, err


def test_weights_of_one_kind(run, tmp_path):
    """--which measures, judges and draws what it names alone; with its bins."""
    verdicts = {}
    for which, bins in (("embeddings", np.linspace(-0.6, 0.6, 71)), ("layers", np.linspace(-1, 1, 171)), ("qkv", np.linspace(-1, 1, 151))):
        code, out, err = run("weight-histograms", "--which", which, "--out", tmp_path, "--json")
        found = json.loads(out)
        assert code == 0 and list(found["distributions"]) == found["which"] == [which], err
        assert found["distributions"][which]["bins"] == bins.tolist()
        verdicts[which] = [v["claim"] for v in found["verdicts"]]
    code, out, _ = run("weight-histograms", "device-errors", "--which", "all", "--out", tmp_path, "--json")
    assert code == 0 and [v["claim"] for v in json.loads(out)[0]["verdicts"]] == [claim for (claim,) in verdicts.values()]


def test_outlier_dimensions_are_noted(run, tmp_path):
    """Columns that stand out of a table by a planted factor."""
    model = tiny_model()
    model.wte.weight.assign(np.ones(model.wte.weight.shape, np.float32))
    model.wte.weight.array[:, 5] = -4.0
    model.save_pretrained(tmp_path / "m")
    code, out, _ = run("weight-histograms", "--which", "embeddings", "--model", tmp_path / "m", "--out", tmp_path)
    assert code == 0
    assert "\nwte.weight: outlier dimensions, root mean square more than 3 times the median column's: 5 (4×)\n" in out
    written = json.loads((tmp_path / "weight-histograms.json").read_text("utf-8"))["distributions"]["embeddings"]["samples"]
    assert [row["outliers"] for row in written] == [[{"dimension": 5, "ratio": 4.0}], []]


@pytest.mark.parametrize("name", ["wte.weight", "h.0.attn.c_proj.weight", "h.1.attn.c_attn.weight"])
def test_weights_without_a_finite_number(run, tmp_path, name):
    """They are said, drawn around and not judged."""
    model = tiny_model()
    dict(model.named_parameters())[name].array[...] = np.nan
    model.save_pretrained(tmp_path / "m")
    code, out, err = run("weight-histograms", "--model", tmp_path / "m", "--out", tmp_path)
    assert code == 0 and f"{name} has no finite number: " in out and "Traceback" not in err
    assert "VERDICT: inconclusive" in out and "has no finite number)" in out


def test_a_transposed_c_attn_is_not_judged(run, tmp_path):
    """Broken weights are no missing ones."""
    model = tiny_model(n_embd=48)
    model.save_pretrained(tmp_path)
    arrays = load_file(tmp_path / "model.safetensors")
    (key,) = (key for key in arrays if key.endswith("h.0.attn.c_attn.weight"))
    arrays[key] = np.ascontiguousarray(arrays[key].T)
    save_file(arrays, tmp_path / "model.safetensors")
    code, out, err = run("weight-histograms", "--model", tmp_path, "--out", tmp_path / "out")
    assert (code, out, err.count("\n")) == (3, "", 1) and not (tmp_path / "out").exists()
    assert "'h.0.attn.c_attn.weight' is [144, 48], and [48, 144] is expected, stored [in, out]; is it transposed?" in err
