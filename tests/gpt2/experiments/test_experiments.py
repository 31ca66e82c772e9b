"""python -m gpt2.experiments: each runs, its verdicts follow from its numbers, and its files say the same."""
from __future__ import annotations

import copy
import csv
import json
import math

import numpy as np
import pytest
from crowded import crowded
from long import slow_unless
from tiny_gpt2 import tiny_model, tiny_tokenizer

import minigrad as mg
from gpt2.errors import MissingError
from gpt2.experiments import (
    NAMES,
    ablate_query,
    attention_maps,
    device_timing,
    experiment,
    gelu_relu,
    lab,
    ladder,
    nano_sort,
    temperature,
    timing,
    weight_tying,
)
from gpt2.experiments.__main__ import perform
from gpt2.model import GPT2

SHORT = {                                               # what makes one quick enough for a test; the command runs them whole
    "weight-tying": {"STEPS": 12, "SEEDS": 2}, "gelu-relu": {"STEPS": 8, "SEEDS": 2}, "ladder": {"STEPS": 8, "SEEDS": 2},
    "nano-sort": {"MOST": 50}, "hessian": {"STEPS": 5, "LANCZOS": 10}, "device-timing": {"SIZES": (32, 64), "REPEATS": 2},
    "sampling": {"DRAWS": 20_000}, "ablate-query": {"ROWS": 2, "SEEDS": 2, "TOKENS": 16}, "temperature": {"ROWS": 4},
    "attention-maps": {"ROWS": 2}, "induction": {"ROWS": 2}, "attention-vs-pytorch": {"LENGTHS": (64, 128, 256), "REPEATS": 3},
    "embedding-linear": {"TOKENS": (16, 64)},
}
LONG = {"ablate-query", "device-timing", "weight-tying", "sampling", "gelu-relu", "nano-sort"}      # 5 seconds each, and more
ASKED = slow_unless(lambda name: name not in LONG, NAMES)


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


@pytest.mark.parametrize("name", ASKED)
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
    ("attention-vs-pytorch", 1, lambda f: f["growth"].update({"unfused": 1.0}), "contradicted"),
    ("attention-vs-pytorch", 2, lambda f: put(f["rows"][-1], **took(1.0, 0.1, "tiled "), **took(1.3, 0.1, "unfused ")), "confirmed"),
    ("attention-vs-pytorch", 2, lambda f: put(f["rows"][-1], **took(1.0, 0.2, "tiled "), **took(1.3, 0.2, "unfused ")), "inconclusive"),
    ("attention-vs-pytorch", 2, lambda f: put(f["rows"][-1], **took(2.0, 0.2, "tiled "), **took(1.3, 0.2, "unfused ")), "contradicted"),
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


@pytest.mark.parametrize("name, number, edit, becomes", slow_unless(lambda flip: flip[0] not in LONG, FLIPS),
                         ids=[f"{n}-{k}-{b}-{i}" for i, (n, k, _, b) in enumerate(FLIPS)])
def test_a_verdict_follows_from_its_numbers(ran, name, number, edit, becomes):
    """Other numbers, another verdict, and no other of the same experiment but by the same numbers."""
    found, _ = ran(name)
    edit(found)
    assert experiment(name).judge(found)[number].verdict == becomes


@pytest.mark.slow
def test_every_verdict_can_flip(ran):
    """Each verdict of each experiment has numbers in the list above that make it something else than what it is."""
    for name in NAMES:
        found, _ = ran(name)
        for number, now in enumerate(found["verdicts"]):
            assert any(f[:2] == (name, number) and f[3] != now["verdict"] for f in FLIPS), (name, number, now)


# ── pictures ──
@pytest.mark.parametrize("name", ASKED)
def test_nothing_in_a_picture_covers_something_else(ran, name):
    """No legend lies on what is drawn, no mark on its text, and no two names or ticks on each other."""
    assert crowded(experiment(name).draw(ran(name)[0])) == []


def test_heads_of_a_large_model_are_told_apart():
    """Of 144 heads the outstanding ones are labelled, and no label is on another."""
    rng = np.random.default_rng(0)
    heads = [{"head": f"{i}.{j}", "previous": float(p), "first": float(f), "entropy": 1.0}
             for (i, j), p, f in zip(np.ndindex(12, 12), rng.random(144) ** 4, rng.random(144) ** 2)]
    figure = attention_maps.draw({"rows": heads, "first": 0.06, "example": [[1.0]], "example of": "0.0"})
    labelled = {text.get_text() for text in figure.axes[0].texts}
    assert {max(heads, key=lambda row: row[key])["head"] for key in ("previous", "first")} <= labelled and len(labelled) <= 8
    assert crowded(figure) == []
    model = {"layers": 12, "clean": 3.0, "entropy": 1.0, "uniform": 10.8}
    ablated = [{"what": what, "part": "Q", "by": "noise", "Δ loss": 0.1, "±": 0.01, "KL": 0.1, "± KL": 0.01, "entropy of attention": 1.0,
                "± entropy": 0.1, "layers": n} for what, n in [*((f"head {i}.{j}", 1) for i, j in np.ndindex(12, 12)),
                                                               *((f"layers 0 … {n - 1}", n) for n in range(1, 13)),
                                                               *((f"layer {i}", 1) for i in range(12))]]
    greedy = [{"layers": n, "repeated": 0.5, "±": 0.1} for n in range(13)]
    whole = [row | {"part": part} for part in ("Q", "K", "V", "bias") for row in ablated if part == "Q" or "head" not in row["what"]]
    whole += [row | {"by": how} for how in ("zero", "permuted") for row in ablated if row["what"].startswith("layers ")]
    assert crowded(ablate_query.draw(model | {"rows": whole, "greedy": greedy})) == []


def test_marks_of_methods_that_keep_as_many_are_told_apart(ran):
    """On flat logits top-p and min-p keep nearly all, as multinomial does: each has a line of its own, as long as it keeps."""
    found, _ = ran("sampling")
    put(found["rows"], **{"tokens kept": 1000})
    put(found, ranks=[1, 32, 1024], sorted=[1 / 1024] * 3)
    figure = experiment("sampling").draw(found)
    lines = [line for line in figure.axes[1].lines if ": " in line.get_label()]
    assert len({float(line.get_ydata()[0]) for line in lines}) == len(lines) == 5
    assert {float(line.get_xdata()[-1]) for line in lines} == {1000.0} and crowded(figure) == []


def test_parameters_are_drawn_by_weight_and_bias(ran):
    found, _ = ran("parameter-counts")
    panel = experiment("parameter-counts").draw(found).axes[1]
    bars = {bars.get_label(): [bar.get_height() for bar in bars] for bars in panel.containers}
    assert bars == {what: [row[what] for row in found["rows"]] for what in ("weights", "biases")}


# ── what is measured ──
@pytest.mark.slow
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


@pytest.mark.parametrize("module", [weight_tying, gelu_relu])
def test_what_is_held_out_is_not_trained_on(monkeypatch, module):
    """The text that losses are measured on is no part of the one that batches are drawn from; too short a text is said."""
    bench, seen = lab.Lab(), []
    monkeypatch.setattr(module, "STEPS", 1)
    monkeypatch.setattr(module, "SEEDS", 1)
    bench.text_ids = np.arange(700) % 1024              # every token at one place
    monkeypatch.setattr(module, "train", lambda *args, **how: seen.append(args[2]) or lab.Trained([5.0], 0.0))
    monkeypatch.setattr(module, "held_out", lambda loss, rows: seen.append(rows) or 5.0)
    module.measure(bench)
    assert len(seen) == 6 and not np.intersect1d(seen[0], seen[1]).size and len(seen[0]) > 65
    bench.text_ids = np.arange(129)
    with pytest.raises(MissingError, match="129 tokens; 130 are needed"):
        module.measure(bench)


def test_repetition_and_distinct():
    assert temperature.repetition([1, 2, 3, 4, 5, 6, 7, 8]) == 0.0
    assert temperature.repetition([1, 2, 3, 4] * 3) == pytest.approx(1 - 4 / 9)
    assert temperature.distinct([[1, 2, 1, 2]], 1) == 0.5 and temperature.distinct([[1, 2], [1, 2]], 2) == 0.5


@pytest.mark.slow
def test_an_ablation_has_error_bars_and_every_part(ran):
    """KL and entropy too; Q, K and V layer by layer, of the first n and head by head; more than one seed unless it is zero."""
    found, _ = ran("ablate-query")
    layers = found["layers"]
    heads = len(rows(found, part="Q", layers=1, by="noise")) - layers - 1
    for part in "QKV":
        own = [row["what"] for row in rows(found, part=part, by="noise")]
        assert own == [*(f"layer {i}" for i in range(layers)), *(f"layers 0 … {n}" for n in range(layers)),
                       *(f"head {i}.{j}" for i in range(layers) for j in range(heads // layers))]
    for how in ("zero", "permuted"):
        assert len([row for row in rows(found, part="Q", by=how) if row["what"].startswith("layers ")]) == layers
    for row in found["rows"]:
        assert all((row[key] is None) == (row["by"] == "zero") for key in ("±", "± KL", "± entropy"))


def test_a_time_is_timed_after_a_warm_up(monkeypatch):
    """Medians and quartiles of the runs but the first; a ratio's range; what a limit within the spread makes of it."""
    calls, now = [], iter(np.cumsum([0, 9, *[0, 1, 1] * 2, 0, 3, 1, 0, 4, 0]) * 1e-3)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(now)))
    run, left = timing.clock(lambda: calls.append("f"), lambda: None, 4, lambda: calls.append("before"))
    assert calls == ["before", "f"] * 5 and run == pytest.approx([2, 2, 4, 4]) and left == pytest.approx([1, 1, 3, 4])
    assert timing.quartiles([1.0, 2.0, 3.0, 4.0, 100.0]) == (3.0, 2.0, 4.0)
    assert timing.ratio(took(4.0, 1.0), took(2.0, 0.5)) == pytest.approx((2.0, 1.2, 5 / 1.5))
    assert [lab.inside(*ends, 1.5, 3.0) for ends in ((1.6, 2.9), (1.4, 2.0), (2.9, 3.1), (1.0, 1.4), (3.1, 9.0))] == [
        True, None, None, False, False]


def test_a_gpu_wins_from_where_it_always_does():
    """Faster by chance at a small size, or within the spread, is not from there on."""
    host, device = ((10.0, 9.0, 11.0),) * 5, ((5.0, 4.0, 6.0), (12.0, 9.0, 14.0), (9.5, 8.5, 10.5), (5.0, 4.0, 6.0), (5.0, 4.0, 6.0))
    sweep = [{"n": n, "µs": {"numpy": a, "cupy:0": b}} for n, a, b in zip((32, 64, 128, 256, 512), host, device)]
    assert device_timing.wins(sweep, "cupy:0") == 256 and device_timing.wins(sweep[:3], "cupy:0") is None


def test_rungs_of_the_ladder(ran):
    """Embeddings with a head of their own; tied from the second rung on; a change is that of the same seeds."""
    config = lab.small_config(50)
    loose, tied = (ladder.Rung(config, rung, backend="numpy", seed=0) for rung in (0, 1))
    assert loose.num_parameters() == 2 * 50 * 64 and loose.lm_head.weight is not loose.wte.weight and tied.lm_head.weight is tied.wte.weight
    found, _ = ran("ladder")
    assert [row["change"] for row in found["rows"][1:]] == pytest.approx(np.diff([row["trained"] for row in found["rows"]]))
    assert all(row["±"] > 0 for row in found["rows"]) and found["rows"][0]["change"] is None


def test_greedy_has_no_entropy(ran):
    """And none is 0, without a sign."""
    value, = (row["entropy, nats"] for row in ran("sampling")[0]["rows"] if row["method"] == "greedy")
    assert value == 0.0 and math.copysign(1.0, value) == 1.0


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
    with pytest.raises(MissingError, match="tokens; 65 are needed"):
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
