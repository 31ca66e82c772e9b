"""Verdicts of the experiments on the numbers that their pages show: no claim beyond them, layer by layer and head by head."""
from __future__ import annotations

import json

import pytest
from data import ROOT

from gpt2.experiments import experiment


def stored(name):
    """What an experiment found when its page was made."""
    return json.loads((ROOT / "docs" / "experiments" / f"{name}.json").read_text("utf-8"))


def put(rows, **numbers):
    for row in rows:
        row.update(numbers)


def layer_of(found, part, depth, std):
    put([s for s in found["distributions"]["qkv"]["samples"] if (s["group"], s["depth"]) == (part, depth)], std=std)


@pytest.mark.parametrize(("stds", "becomes", "said"), [
    ([0.01] * 4, "confirmed", "V is the narrowest in every layer"),
    ([9.0] * 4, "contradicted", "V is the narrowest in no layer, the widest in every layer"),
    ([0.01, 9.0, 9.0, 9.0], "inconclusive", "V is the narrowest in layer 0, the widest in layers 1 … 3"),
    ([9.0, 0.01, 9.0, 0.01], "inconclusive", "V is the narrowest in layers 1, 3, the widest in layers 0, 2"),
])
def test_what_is_said_of_v_is_said_of_its_layers(stds, becomes, said):
    """That V is narrower is confirmed where it is so in each layer; else the layers are named in which it is, and in which not at all."""
    found = stored("weight-histograms")
    for depth, std in enumerate(stds):
        layer_of(found, "V", depth, std)
    last = experiment("weight-histograms").judge(found)[2]
    assert last.verdict == becomes and last.because.endswith(said)
    if becomes == "confirmed":
        found["distributions"]["qkv"]["comparisons"]["KS Q, K in h.2"] = 0.2
        last = experiment("weight-histograms").judge(found)[2]
        assert last.verdict == "inconclusive" and last.because.endswith("KS(Q, K) is 0.05 or more in layer 2")


def test_v_of_gpt2_is_not_narrower_in_every_layer():
    """OpenAI's V is the widest of the three in layers 9 to 11, whatever all layers together say."""
    last = experiment("weight-histograms").judge(stored("weight-histograms-gpt2"))[2]
    assert last.verdict != "confirmed" and "V is the narrowest in layers 0 … 7, the widest in layers 9 … 11" in last.because


def test_verdicts_claim_no_more_than_their_tables_show():
    """What is so of some heads or layers alone is not confirmed of all, nor is a mean without regard to its error."""
    found = stored("attention-maps")
    for entropies, becomes in (([0.1] * 16, "confirmed"), ([0.1] * 15 + [found["alike"]], "inconclusive"),
                               ([found["alike"]] * 16, "contradicted")):
        for row, entropy in zip(found["rows"], entropies):
            row["entropy"] = entropy
        assert experiment("attention-maps").judge(found)[2].verdict == becomes
    found = stored("ablate-query")
    put([r for r in found["rows"] if (r["what"], r["part"], r["by"]) == ("layer 1", "V", "noise")], **{"Δ loss": 0.0, "±": 0.0001})
    answer = experiment("ablate-query").judge(found)[5]
    assert answer.verdict == "inconclusive" and "V changes it more than Q in 3 of 4 layers" in answer.because
    found = stored("gelu-relu")
    for spread, becomes in ((0.001, "confirmed"), (0.5, "inconclusive")):
        found["losses"]["GELU by erf"] = [x + spread * (-1) ** i for i, x in enumerate(found["losses"]["GELU by tanh"])]
        assert experiment("gelu-relu").judge(found)[3].verdict == becomes
    assert "at 1,024 tokens" in experiment("attention-vs-pytorch").judge(stored("attention-vs-pytorch"))[2].claim
