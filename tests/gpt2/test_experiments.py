"""python -m gpt2.experiments: each runs, its verdicts follow from its numbers, and its files say the same."""
from __future__ import annotations

import copy
import csv
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_gpt2 import tiny_model, tiny_tokenizer

import minigrad as mg
from gpt2.cli import run_command
from gpt2.errors import MissingError
from gpt2.experiments import NAMES, ablate_query, experiment, hessian, lab, nano_sort, temperature, weight_tying
from gpt2.experiments.__main__ import main, perform
from gpt2.model import GPT2

SHORT = {                                               # what makes one quick enough for a test; the command runs them whole
    "weight-tying": {"STEPS": 12, "SEEDS": 2}, "gelu-relu": {"STEPS": 8, "SEEDS": 2}, "ladder": {"STEPS": 8, "SEEDS": 2}, "nano-sort": {"MOST": 50},
    "hessian": {"STEPS": 5, "LANCZOS": 10}, "device-timing": {"SIZES": (32, 64), "REPEATS": 2}, "sampling": {"DRAWS": 20_000},
    "ablate-query": {"ROWS": 2, "SEEDS": 2, "TOKENS": 16}, "temperature": {"ROWS": 4}, "attention-maps": {"ROWS": 2}, "induction": {"ROWS": 2},
    "attention-vs-pytorch": {"LENGTHS": (64, 128, 256), "REPEATS": 3}, "embedding-linear": {"TOKENS": (16, 64)},
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """ran(name): the document of an experiment, run once, and the folder of its files."""
    out, done, bench = tmp_path_factory.mktemp("experiments"), {}, lab.Lab()

    def document(name):
        if name not in done:
            with pytest.MonkeyPatch.context() as patch:
                for constant, value in SHORT.get(name, {}).items():
                    patch.setattr(experiment(name), constant, value)
                done[name] = perform(name, bench, out)
        return copy.deepcopy(done[name]), out

    return document


@pytest.fixture
def run(capsys):
    def ended(*flags):
        with pytest.raises(SystemExit) as end:
            run_command(lambda: main([*map(str, flags)]), "gpt2.experiments")
        printed = capsys.readouterr()
        return end.value.code, printed.out, printed.err

    return ended


@pytest.mark.parametrize("name", NAMES)
def test_each_runs(ran, name):
    """Its table, verdicts, and three files that hold the same; a picture of some size; strict JSON."""
    found, out = ran(name)
    assert found["rows"] and found["equation"] and found["about"].endswith("?")
    assert all(v["verdict"] in ("confirmed", "contradicted", "inconclusive") and v["claim"] and v["because"] for v in found["verdicts"])
    with open(out / f"{name}.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found["rows"]) and set(rows[0]) == {key for row in found["rows"] for key in row}
    written = json.loads((out / f"{name}.json").read_text("utf-8"), parse_constant=lambda c: pytest.fail(c))
    assert written["verdicts"] == found["verdicts"] and written["rows"] == json.loads(json.dumps(found["rows"]))
    assert len((out / f"{name}.png").read_bytes()) > 10_000
    judged = [v._asdict() for v in experiment(name).judge(written)]
    assert judged == written["verdicts"], "verdicts follow from what is written"


def test_every_file_is_in_the_registry():
    """A file that judges is an experiment, and is listed."""
    from pathlib import Path

    folder = Path(experiment(NAMES[0]).__file__).parent
    files = {p.stem.replace("_", "-") for p in folder.glob("*.py") if "def judge(" in p.read_text("utf-8")}
    assert files == set(NAMES)


# ── verdicts that must flip ──
def rows(found, **wanted):
    return [row for row in found["rows"] if all(row[key] == value for key, value in wanted.items())]


def put(where, **values):
    for row in where if isinstance(where, list) else [where]:
        row.update(values)


def took(ms, spread, name=""):
    """A time with its quartiles as far away as said."""
    return {f"{name}ms": ms, f"{name}25 %": ms - spread, f"{name}75 %": ms + spread}


# (experiment, number of its verdict, what is done to the numbers, what it must then be)
FLIPS = [
    ("parameter-counts", 0, lambda f: put(f["rows"], **{"LayerNorm %": 0.009}), "confirmed"),
    ("parameter-counts", 0, lambda f: put(f["rows"][0], **{"LayerNorm %": 0.009}), "inconclusive"),
    ("parameter-counts", 0, lambda f: put(f["rows"], **{"LayerNorm %": 0.03}), "contradicted"),
    ("weight-histograms", 0, lambda f: put(f["distributions"]["embeddings"]["samples"], quantiles=[-1, -0.5, 0, 0.5, 1]), "contradicted"),
    ("weight-histograms", 0, lambda f: f["distributions"]["embeddings"]["samples"].pop(), "inconclusive"),
    ("weight-histograms", 1, lambda f: f["distributions"]["layers"].update(comparisons={"Spearman of depth and std, a": 0.9}), "confirmed"),
    ("weight-histograms", 1, lambda f: f["distributions"]["layers"].update(comparisons={"Spearman of depth and std, a": -0.9}),
     "contradicted"),
    ("weight-histograms", 1, lambda f: f["distributions"].pop("layers"), "inconclusive"),
    *(("weight-histograms", i, lambda f, which=which: put(f["distributions"][which]["samples"][-1], nan=9, inf=0, count=9), "inconclusive")
      for i, which in enumerate(("embeddings", "layers", "qkv"))),
    ("weight-histograms", 2, lambda f: f["distributions"]["qkv"]["comparisons"].update({"KS Q, K in all layers": 0.2}), "contradicted"),
    ("weight-histograms", 2, lambda f: put([s for s in f["distributions"]["qkv"]["samples"] if s["name"] == "V of all layers"], std=9.0),
     "contradicted"),
    ("embedding-linear", 0, lambda f: f.update(value=1e-3), "contradicted"),
    ("embedding-linear", 0, lambda f: f.update(scatter=1e-3), "contradicted"),
    ("embedding-linear", 1, lambda f: put(f["rows"], **{"times longer": 0.5}), "contradicted"),
    ("embedding-linear", 1, lambda f: put(f["rows"][0], **{"times longer": 0.5}), "inconclusive"),
    ("embedding-linear", 2, lambda f: f["std"].update(Linear=0.1), "contradicted"),
    ("embedding-linear", 2, lambda f: f["largest"].update(Linear=0.13), "contradicted"),
    ("weight-tying", 0, lambda f: f.update(sum=1e-6), "contradicted"),
    ("weight-tying", 0, lambda f: f["parts"].update({"lm_head.weight": 0.0}), "contradicted"),
    ("weight-tying", 1, lambda f: put(rows(f, head="shared"), entries=rows(f, head="tied")[0]["entries"]), "contradicted"),
    ("weight-tying", 1, lambda f: put(rows(f, head="shared"), **{"first step off, AdamW": 1e-9}), "contradicted"),
    ("weight-tying", 1, lambda f: f.update(unsummed=1e-9), "contradicted"),
    ("weight-tying", 1, lambda f: put(rows(f, head="shared"), **{"one memory": False}), "inconclusive"),
    *(("weight-tying", number, lambda f, head=head, losses=losses: f["held"].update({"tied": [5.0, 5.1], head: losses}), becomes)
      for number, head in ((2, "shared"), (3, "copied"))
      for losses, becomes in (([5.5, 5.6], "confirmed"), ([4.5, 4.6], "contradicted"), ([5.5, 5.0], "inconclusive"))),
    *(("weight-tying", number, lambda f, head=head: (f["held"].update({"tied": [5.0, 5.1], head: [5.5, 5.6]}),
                                                     put(rows(f, head=head), **{"first step off, AdamW": 1e-9})), "contradicted")
      for number, head in ((2, "shared"), (3, "copied"))),
    ("weight-tying", 4, lambda f: f["saved"].update(gpt2=1), "contradicted"),
    ("layer-norm", 0, lambda f: f.update(mean=1e-3), "contradicted"),
    ("layer-norm", 0, lambda f: f.update(sample=0.0), "contradicted"),
    ("layer-norm", 1, lambda f: put(f["rows"], **{"std with LayerNorm": 2.0}), "contradicted"),
    ("layer-norm", 1, lambda f: put(f["rows"], std=1.0), "contradicted"),
    ("layer-norm", 2, lambda f: put(f["eps"], **{"std of y": 1.0}), "contradicted"),
    ("layer-norm", 3, lambda f: f.update(backward=1e-6), "contradicted"),
    ("fused-qkv", 0, lambda f: put(f["rows"][1], **{"∂W, float64": 1e-9}), "contradicted"),
    ("fused-qkv", 1, lambda f: (put(f["rows"], **took(1.0, 0.2)), put(rows(f, way="a loop over heads"), **took(1.3, 0.2))), "inconclusive"),
    ("fused-qkv", 1, lambda f: (put(f["rows"], **took(1.0, 0.1)), put(rows(f, way="a loop over heads"), **took(1.3, 0.1))), "confirmed"),
    ("fused-qkv", 1, lambda f: (put(f["rows"], **took(2.0, 0.1)), put(rows(f, way="a loop over heads"), **took(1.0, 0.1))), "contradicted"),
    ("causal-averaging", 0, lambda f: f.update(later=1e-9), "contradicted"),
    ("causal-averaging", 0, lambda f: f.update(difference=1e-9), "contradicted"),
    ("causal-averaging", 0, lambda f: f.update(earlier=0.0), "contradicted"),
    ("softmax-extremes", 0, lambda f: f.update(slope=-2.0), "contradicted"),
    ("softmax-extremes", 1, lambda f: put(f["rows"][2], **{"log std": -10.0}), "contradicted"),
    ("softmax-extremes", 2, lambda f: put(f["slopes"], difference=1.0), "contradicted"),
    ("softmax-extremes", 3, lambda f: f.update(naive_finite=True), "contradicted"),
    ("softmax-extremes", 3, lambda f: f.update(shifted_error=1e-3), "contradicted"),
    ("attention-vs-pytorch", 0, lambda f: f["differences"]["∂K"].update({"ours − theirs": 1e-3}), "contradicted"),
    ("attention-vs-pytorch", 0, lambda f: f.update(torch=None), "inconclusive"),
    ("attention-vs-pytorch", 1, lambda f: f["growth"].update(tiled=2.0), "contradicted"),
    ("attention-vs-pytorch", 1, lambda f: f["growth"].update({"by parts": 1.0}), "contradicted"),
    ("attention-vs-pytorch", 2, lambda f: put(f["rows"][-1], **took(1.0, 0.1, "tiled "), **took(1.3, 0.1, "by parts ")), "confirmed"),
    ("attention-vs-pytorch", 2, lambda f: put(f["rows"][-1], **took(1.0, 0.2, "tiled "), **took(1.3, 0.2, "by parts ")), "inconclusive"),
    ("attention-vs-pytorch", 2, lambda f: put(f["rows"][-1], **took(2.0, 0.2, "tiled "), **took(1.3, 0.2, "by parts ")), "contradicted"),
    ("gelu-relu", 0, lambda f: f.update(gap=4.8e-4), "contradicted"),
    ("gelu-relu", 1, lambda f: f.update(minimum=-0.17), "contradicted"),
    ("gelu-relu", 2, lambda f: f["slopes"].update(erf=1e-6), "contradicted"),
    ("gelu-relu", 3, lambda f: f["losses"].update({"GELU by erf": [x + 0.5 for x in f["losses"]["GELU by tanh"]]}), "contradicted"),
    ("gelu-relu", 4, lambda f: f["losses"].update(ReLU=[x + 0.5 + 0.001 * i for i, x in enumerate(f["losses"]["GELU by tanh"])]),
     "confirmed"),
    ("gelu-relu", 4, lambda f: f["losses"].update(ReLU=[x - 0.5 + 0.001 * i for i, x in enumerate(f["losses"]["GELU by tanh"])]),
     "contradicted"),
    ("gelu-relu", 4, lambda f: f["losses"].update(ReLU=[x + (-1) ** i for i, x in enumerate(f["losses"]["GELU by tanh"])]), "inconclusive"),
    ("temperature", 0, lambda f: put(f["rows"][0], **{"4-grams repeated": 0.01}), "contradicted"),
    ("temperature", 1, lambda f: put(f["rows"][1], **{"4-grams repeated": 0.5}), "contradicted"),
    ("temperature", 2, lambda f: put(f["rows"][2], **{"entropy, nats": 1.0}), "contradicted"),
    ("temperature", 2, lambda f: put(f["rows"][2], **{"log p of the text": -1.0}), "contradicted"),
    ("sampling", 0, lambda f: f["draws"]["inverse CDF"].update(p=1e-5), "contradicted"),
    ("sampling", 0, lambda f: f["draws"]["inverse CDF"].update(p=1e-3), "inconclusive"),
    ("sampling", 1, lambda f: f["draws"]["Gumbel-max"].update(p=1e-5), "contradicted"),
    ("sampling", 2, lambda f: put(rows(f, method="top-k 10"), **{"tokens kept": 11}), "contradicted"),
    ("sampling", 2, lambda f: put(rows(f, method="min-p 0.1"), **{"entropy, nats": 99.0}), "contradicted"),
    ("sampling", 3, lambda f: f["refused"].popitem(), "contradicted"),
    ("device-timing", 0, lambda f: f.update(orders=4.0, possible=0.01), "confirmed"),
    ("device-timing", 0, lambda f: f.update(orders=4.0, possible=0.5), "contradicted"),
    ("device-timing", 1, lambda f: (put(rows(f, stage="forward"), **took(1.0, 0.1)), put(rows(f, stage="backward"), **took(2.0, 0.1))),
     "confirmed"),
    ("device-timing", 1, lambda f: (put(rows(f, stage="forward"), **took(1.0, 0.1)), put(rows(f, stage="backward"), **took(2.0, 0.8))),
     "inconclusive"),
    ("device-timing", 1, lambda f: (put(rows(f, stage="forward"), **took(1.0, 0.1)), put(rows(f, stage="backward"), **took(9.0, 0.1))),
     "contradicted"),
    ("device-timing", 2, lambda f: (f.update(gpu=True), put(f["rows"], **took(9.0, 1.0), **{"not waited for": 1.0})), "confirmed"),
    ("device-timing", 2, lambda f: (f.update(gpu=True), put(f["rows"], **took(9.0, 1.0), **{"not waited for": 4.6})), "inconclusive"),
    ("device-timing", 2, lambda f: (f.update(gpu=True), put(f["rows"], **took(9.0, 1.0), **{"not waited for": 9.0})), "contradicted"),
    ("device-errors", 0, lambda f: put(f["rows"][0], **{"names it": False}), "contradicted"),
    ("device-errors", 0, lambda f: put(f["rows"][1], raises="nothing"), "contradicted"),
    ("device-errors", 0, lambda f: f.update(moved=1.0), "contradicted"),
    ("attention-maps", 0, lambda f: put(f["rows"], previous=0.1), "contradicted"),
    ("attention-maps", 1, lambda f: put(f["rows"], first=0.9), "confirmed"),
    ("attention-maps", 2, lambda f: put(f["rows"], entropy=99.0), "contradicted"),
    ("induction", 0, lambda f: put(f["rows"][0], **{"induction score": 0.9}), "confirmed"),
    ("induction", 1, lambda f: f.update(first=5.0, differences=[-3.0, -3.1]), "confirmed"),
    ("induction", 1, lambda f: f.update(first=5.0, differences=[3.0, 3.1]), "contradicted"),
    ("induction", 1, lambda f: f.update(first=5.0, differences=[3.0, -3.1]), "inconclusive"),
    ("ablate-query", 0, lambda f: put(rows(f, what="layers 0 … 0"), **{"Δ loss": 0.0, "±": 0.01}), "confirmed"),
    ("ablate-query", 0, lambda f: put(rows(f, what="layers 0 … 0"), **{"Δ loss": 0.11, "±": 0.1}), "inconclusive"),
    ("ablate-query", 0, lambda f: put(rows(f, what="layers 0 … 0"), **{"Δ loss": 0.5, "±": 0.1}), "contradicted"),
    ("ablate-query", 1, lambda f: put(rows(f, what="layers 0 … 1"), **{"Δ loss": 0.5, "±": 0.1}), "confirmed"),
    ("ablate-query", 1, lambda f: put(rows(f, what="layers 0 … 1"), **{"Δ loss": 0.2, "±": 0.1}), "inconclusive"),
    ("ablate-query", 1, lambda f: put(rows(f, what="layers 0 … 1"), **{"Δ loss": 9.0, "±": 0.1}), "contradicted"),
    ("ablate-query", 2, lambda f: (put(f["greedy"], repeated=0.1), put(f["greedy"][3], repeated=0.8, **{"±": 0.1})), "confirmed"),
    ("ablate-query", 2, lambda f: (put(f["greedy"], repeated=0.1), put(f["greedy"][3], repeated=0.6, **{"±": 0.1})), "inconclusive"),
    ("ablate-query", 2, lambda f: put(f["greedy"], repeated=0.8), "inconclusive"),
    ("ablate-query", 2, lambda f: put(f["greedy"], repeated=0.1, **{"±": 0.1}), "contradicted"),
    ("ablate-query", 3, lambda f: (f.update(clean=3.0), put(rows(f, what="layers 0 … 3"), **{"Δ loss": 4.0, "±": 0.1})), "confirmed"),
    ("ablate-query", 3, lambda f: (f.update(clean=3.0), put(rows(f, what="layers 0 … 3"), **{"Δ loss": 3.2, "±": 0.1})), "inconclusive"),
    ("ablate-query", 3, lambda f: put(rows(f, what="layers 0 … 3"), **{"Δ loss": 0.5, "±": 0.1}), "contradicted"),
    ("ablate-query", 4, lambda f: put(rows(f, what="layers 0 … 3"), **{"Δ loss": 0.5, "±": 0.1}), "confirmed"),
    ("ablate-query", 4, lambda f: put(rows(f, what="layers 0 … 3"), **{"Δ loss": 0.0}), "contradicted"),
    ("ablate-query", 5, lambda f: put(rows(f, part="V"), **{"Δ loss": -9.0, "±": 0.1}), "contradicted"),
    ("ablate-query", 5, lambda f: put(rows(f, part="V"), **{"±": 9.0}), "inconclusive"),
    ("ablate-query", 6, lambda f: f.update(restored=0.1), "contradicted"),
    ("ladder", 0, lambda f: put(f["rows"][3], untrained=5.0), "contradicted"),
    ("ladder", 1, lambda f: put(f["rows"], trained=5.0, **{"±": 0.01}), "contradicted"),
    ("ladder", 1, lambda f: put(f["rows"], trained=5.0, **{"±": 0.1}), "inconclusive"),
    ("ladder", 1, lambda f: (put(f["rows"], trained=5.0, **{"±": 0.1}), put(f["rows"][-1], trained=4.0)), "confirmed"),
    ("ladder", 2, lambda f: put(f["rows"], change=-0.1, **{"± change": 0.01}), "confirmed"),
    ("ladder", 2, lambda f: (put(f["rows"], change=-0.1, **{"± change": 0.01}), put(f["rows"][4], **{"± change": 0.1})), "inconclusive"),
    ("ladder", 2, lambda f: (put(f["rows"], change=-0.1, **{"± change": 0.01}), put(f["rows"][4], change=0.1)), "contradicted"),
    ("nano-sort", 0, lambda f: put(f["rows"][-1], sorted=729), "confirmed"),
    ("nano-sort", 0, lambda f: put(f["rows"][-1], sorted=728), "contradicted"),
    ("nano-sort", 1, lambda f: f.update(example=[2, 1, 0, 1, 1, 2, 0, 1, 1, 2, 2, 1]), "contradicted"),
    ("nano-sort", 2, lambda f: f.update(parameters=85_296), "confirmed"),
    ("hessian", 0, lambda f: put(f["rows"][0], **{"second difference": 99.0}), "contradicted"),
    ("hessian", 0, lambda f: f["curves"]["trained"].update(symmetric=1.0), "contradicted"),
    ("hessian", 1, lambda f: [c.update({"random curvature": 99.0}) for c in f["curves"].values()], "contradicted"),
    ("hessian", 1,
     lambda f: (put(f["rows"], eigenvalue=9.0), [c.update({"random curvature": v}) for c, v in zip(f["curves"].values(), (9, 1e-4))]),
     "inconclusive"),
]


@pytest.mark.parametrize("name, number, edit, becomes", FLIPS, ids=[f"{n}-{k}-{b}-{i}" for i, (n, k, _, b) in enumerate(FLIPS)])
def test_a_verdict_follows_from_its_numbers(ran, name, number, edit, becomes):
    """Other numbers, another verdict, and no other of the same experiment but by the same numbers."""
    found, _ = ran(name)
    edit(found)
    assert experiment(name).judge(found)[number].verdict == becomes


def test_every_verdict_can_flip(ran):
    """Each verdict of each experiment has numbers in the list above that make it something else than what it is."""
    for name in NAMES:
        found, _ = ran(name)
        for number, now in enumerate(found["verdicts"]):
            assert any(f[:2] == (name, number) and f[3] != now["verdict"] for f in FLIPS), (name, number, now)


# ── what is measured ──
def test_known_figures(ran):
    """The numbers of the sources that the experiments are about."""
    assert [v["verdict"] for v in ran("parameter-counts")[0]["verdicts"]] == ["contradicted"]
    assert [round(row["LayerNorm %"], 3) for row in ran("parameter-counts")[0]["rows"]] == [0.031, 0.028, 0.024, 0.020]
    logs = [row["log std"] for row in ran("softmax-extremes")[0]["rows"]]
    assert logs == pytest.approx([-4.197361, -7.190418, -10.186008, -13.181734], abs=5e-7)
    gelu = ran("gelu-relu")[0]
    assert (gelu["gap"], gelu["gap_at"], gelu["minimum"]) == pytest.approx((4.732355e-4, 2.69894, -0.17004075), rel=2e-5)
    timing = ran("device-timing")[0]["verdicts"][0]
    assert timing["verdict"] == "contradicted" and timing["because"].startswith("2.8 orders")
    assert ran("nano-sort")[0]["parameters"] - ran("nano-sort")[0]["without"] == 85_296


def test_two_entries_write_to_one_memory():
    """Parameter(embedding.weight): the second entry's AdamW step starts from what the first has written, with moments of its own."""
    bench = lab.Lab()
    rows = bench.blocks(2, 64)
    model = weight_tying.model_with("shared", bench, 3, "float64")
    assert np.shares_memory(model.wte.weight.array, model.lm_head.weight.array) and model.wte.weight is not model.lm_head.weight
    groups = weight_tying.groups(model)
    entries = [id(p) for group in groups for p in group["params"]]
    assert len(entries) == len(set(entries)) == len(list(model.parameters())) and entries[-1] == id(model.lm_head.weight)
    lr, decay, before = 1e-3, lab.DECAY, model.wte.weight.numpy().copy()
    optimizer = mg.optim.AdamW(groups, lr, lab.BETAS)
    found = weight_tying.first_step(model, optimizer, rows)
    wanted = before.copy()
    for p in (model.wte.weight, model.lm_head.weight):  # on the first step m/(1 − β₁) = g and v/(1 − β₂) = g²
        g = p.grad.numpy()
        wanted = (1 - lr * decay) * wanted - lr * g / (np.abs(g) + 1e-8)
    np.testing.assert_allclose(found[0], wanted - before, rtol=0, atol=1e-14)
    assert np.array_equal(found[0], found[1]) and len(optimizer.state) == len(entries)


@pytest.mark.parametrize("head, entries, memory", [("tied", 0, True), ("shared", 1, True), ("copied", 1, False)])
def test_what_a_head_shares(ran, head, entries, memory):
    """Entries of the optimiser, memory, parameters: one with its own has the table's 1024 × 64 more."""
    found, _ = ran("weight-tying")
    (row,), (tied,) = rows(found, head=head), rows(found, head="tied")
    assert row["entries"] - tied["entries"] == entries and row["one memory"] == memory and (row["apart"] == 0.0) == memory
    assert row["parameters"] - tied["parameters"] == 65_536 * entries
    # in float64; what is plain descent on one memory adds both gradients up
    assert (row["first step off, SGD"] < 1e-13) == memory and (row["first step off, AdamW"] == 0.0) == (head == "tied")


def test_what_is_held_out_is_not_trained_on(monkeypatch):
    """The text that losses are measured on is no part of the one that batches are drawn from; too short a text is said."""
    bench, seen = lab.Lab(), []
    monkeypatch.setattr(weight_tying, "STEPS", 1)
    monkeypatch.setattr(weight_tying, "SEEDS", 1)
    bench.text_ids = np.arange(700) % 1024              # every token at one place
    monkeypatch.setattr(weight_tying, "train", lambda *args, **how: seen.append(args[2]) or lab.Trained([5.0], 0.0))
    monkeypatch.setattr(weight_tying, "held_out", lambda loss, rows: seen.append(rows) or 5.0)
    weight_tying.measure(bench)
    assert len(seen) == 6 and not np.intersect1d(seen[0], seen[1]).size and len(seen[0]) > 65
    bench.text_ids = np.arange(129)
    with pytest.raises(MissingError, match="129 tokens, and 130 are wanted"):
        weight_tying.measure(bench)


def test_repetition_and_distinct():
    assert temperature.repetition([1, 2, 3, 4, 5, 6, 7, 8]) == 0.0
    assert temperature.repetition([1, 2, 3, 4] * 3) == pytest.approx(1 - 4 / 9)
    assert temperature.distinct([[1, 2, 1, 2]], 1) == 0.5 and temperature.distinct([[1, 2], [1, 2]], 2) == 0.5


@pytest.mark.parametrize("how", ["noise", "zero", "permuted"])
def test_an_ablation_replaces_what_it_says_and_restores_it(how):
    """One part's columns, of the layers and the head that are named; noise has the same mean and deviation; an error restores too."""
    model = tiny_model(n_embd=64, n_head=4)
    before = [b.attn.c_attn.weight.numpy().copy() for b in model.h]
    with ablate_query.replaced(model, "K", [1], how, 3):
        now = [b.attn.c_attn.weight.numpy().copy() for b in model.h]
        k, old = now[1][:, 64:128], before[1][:, 64:128]
        assert np.array_equal(now[0], before[0]) and not np.array_equal(k, old)
        assert np.array_equal(np.delete(now[1], np.s_[64:128], 1), np.delete(before[1], np.s_[64:128], 1))
        if how == "noise":
            assert k.mean() == pytest.approx(old.mean(), abs=0.02) and k.std() == pytest.approx(old.std(), rel=0.05)
        elif how == "permuted":
            assert np.array_equal(np.sort(k, axis=None), np.sort(old, axis=None))
        else:
            assert not k.any()
    with pytest.raises(KeyError), ablate_query.replaced(model, "Q", [0, 1], how, 3, head=2):
        changed = model.h[0].attn.c_attn.weight.numpy() != before[0]
        assert changed[:, 32:48].any() and not np.delete(changed, np.s_[32:48], 1).any()
        raise KeyError
    assert all(np.array_equal(b.attn.c_attn.weight.numpy(), w) for b, w in zip(model.h, before))


def test_the_bias_is_ablated_too():
    model = tiny_model()
    bias = model.h[1].attn.c_attn.bias
    bias.assign(np.arange(96, dtype=np.float32))
    with ablate_query.replaced(model, "bias", [1], "zero", 0):
        assert not bias.numpy().any()
    with ablate_query.replaced(model, "bias", [1], "permuted", 0):
        assert sorted(bias.numpy()) == list(range(96)) != bias.numpy().tolist()
    assert bias.numpy().tolist() == list(range(96))


def test_lanczos_finds_the_outer_eigenvalues():
    """Of a matrix that is known, to the bound that comes with them; of a small one all."""
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.standard_normal((60, 60)))
    wanted = np.concatenate([np.linspace(-1, 1, 57), [10.0, 7.0, -8.0]])
    matrix = (q * wanted) @ q.T
    values, vectors, errors = hessian.lanczos(lambda v: matrix @ v, 60, 20, 1)
    for value in (10.0, 7.0, -8.0):
        k = int(np.abs(values - value).argmin())
        assert values[k] == pytest.approx(value, abs=errors[k] + 1e-10)
        np.testing.assert_allclose(matrix @ vectors[:, k], value * vectors[:, k], atol=1e-4)
    all_of_it, _, _ = hessian.lanczos(lambda v: matrix[:9, :9] @ v, 9, 30, 1)
    np.testing.assert_allclose(all_of_it, np.linalg.eigvalsh(matrix[:9, :9]), atol=1e-9)


def test_the_hessians_product_is_the_hessians():
    """Against the whole matrix, by differences of gradients, on a model of a few numbers."""
    model = GPT2(lab.small_config(5, n_embd=4, n_layer=1, n_head=1, n_positions=4), dtype="float64", seed=3)
    x, y = np.array([[0, 1, 2, 3]]), np.array([[1, 2, 3, 4]])
    product, gradient, params = hessian.products(model, x, y)
    rng = np.random.default_rng(0)
    v = rng.standard_normal(gradient.size)
    v /= np.linalg.norm(v)
    found = product(v)
    at = [p.numpy().copy() for p in params]

    def slopes(h):
        for p, own, part in zip(params, at, hessian._split(v, params)):
            p.assign(own + h * part.array)
        return hessian._flat(mg.gradients(model.loss(x, y), params))

    np.testing.assert_allclose(found, (slopes(1e-5) - slopes(-1e-5)) / 2e-5, atol=1e-7)


def test_sorting_is_judged_rightly():
    """A model that copies is not one that sorts; targets start with the first sorted digit."""
    x, y = nano_sort.pairs(np.array([[2, 1, 0, 1, 1, 2]]))
    assert x.tolist() == [[2, 1, 0, 1, 1, 2, 0, 1, 1, 1, 2]] and y.tolist() == [[-100] * 5 + [0, 1, 1, 1, 2, 2]]

    class Copies:
        def __call__(self, ids, last):
            return mg.tensor(np.eye(3)[np.asarray(ids)[:, -6]][:, None])

    digits = np.array([[0, 0, 1, 1, 2, 2], [2, 1, 0, 0, 0, 0]])
    assert nano_sort.sorts(Copies(), digits).tolist() == [True, False]


def test_a_text_of_ones_own(tmp_path):
    """--data is read with the model's tokenizer; what is too short or no text is said."""
    tiny_model().save_pretrained(tmp_path / "m", tokenizer=tiny_tokenizer())
    (tmp_path / "t.txt").write_text("Once upon a midnight dreary")
    bench = lab.Lab(str(tmp_path / "m"), data=tmp_path / "t.txt")
    assert bench.text_ids.tolist() == tiny_tokenizer().encode("Once upon a midnight dreary")
    with pytest.raises(MissingError, match="tokens, and 65 are wanted"):
        bench.blocks(4, 64)
    with pytest.raises(MissingError, match="cannot be read"):
        _ = lab.Lab(data=tmp_path / "no.txt").text_ids


def test_training_lowers_the_loss():
    ids = np.tile(np.arange(10), 60)
    model = GPT2(lab.small_config(10), seed=0)
    made = lab.train(model, model.loss, ids, steps=40, rows=4, block=16)
    assert made.losses[0] == pytest.approx(math.log(10), abs=0.3) and made.losses[-1] < 0.5 and made.seconds > 0
    assert lab.held_out(model.loss, np.tile(np.arange(10), 8)[:68].reshape(4, 17)) < 1.0
    assert lab.slope([1, 2, 3], [2, 4, 6]) == pytest.approx(2.0) and lab.spread([1.0, 3.0]) == (2.0, 1.0)


# ── the command ──
def test_the_command(run, tmp_path):
    code, out, _ = run("parameter-counts", "causal-averaging", "--out", tmp_path)
    assert code == 0 and out.count("VERDICT: ") == 2
    assert "VERDICT: contradicted — LayerNorm is under 0.01 % of the parameters (0.031 %" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{n}.{s}" for n in ("parameter-counts", "causal-averaging")
                                                                for s in ("png", "csv", "json"))
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
    assert sorted({p.stem for p in tmp_path.iterdir()}) == ["device-errors", "parameter-counts"]
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
    assert code == 3 and sorted({p.stem for p in (tmp_path / "out").iterdir()}) == ["device-errors", "parameter-counts"]
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
from gpt2.cli import run_command
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
    (["wieght-tying"], 2, "there is no experiment 'wieght-tying'; near to it: weight-tying"),
    (["all", "temprature"], 2, "there is no experiment 'temprature'; near to it: temperature"),
    (["xyz"], 2, "there is no experiment 'xyz'; --list shows what there is"),
    ([], 2, "name an experiment, or all"),
    (["ladder", "--model", "gpt9"], 2, "there is no model or directory 'gpt9'"),
    (["ladder", "--model", "no/where"], 3, "there is no model or directory 'no/where'"),
    (["ladder", "--data", "/nonexistent"], 3, "--data /nonexistent cannot be read"),
    (["parameter-counts", "--out", "/dev/null/x"], 2, "cannot write"),
    (["ladder", "--which", "qkv"], 2, "--which is of weight-histograms alone, and not of ladder"),
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
