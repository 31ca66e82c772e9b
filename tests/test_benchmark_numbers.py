"""The numbers of benchmarks.run: the floor's arithmetic, ratios and targets, and the files and pictures they go into."""
from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import floor, report, rows, run
from benchmarks.peers import FLOOR, PEERS, US
from benchmarks.report import Measured, Result
from benchmarks.rows import Row
from gpt2 import GPT2Config
from gpt2.config import training_flop_per_token


# ── the floor's arithmetic ──
def test_the_products_of_a_training_step_are_counted():
    """Of 124M at T = 1024: 855,166,464 FLOP a token by the custom; less 6 for each bias and LayerNorm parameter, products alone."""
    config = GPT2Config.from_name("gpt2")
    row = rows.train(1, 1024)
    assert training_flop_per_token(config, 1024) == 855_166_464
    assert rows.product_flop(row, config, whole=True) / 1024 == 855_166_464 - 6 * (38_400 + 102_144 - 19_200)
    # the 102,144 biases count those of LayerNorm (19,200), and so do its 38,400 parameters


def test_what_is_masked_is_not_counted():
    """A causal row of T queries sees T(T + 1)/2 pairs, and each costs 4 d in a layer."""
    config, row = rows.config_of("tiny"), rows.forward(3, 10)
    extra = rows.product_flop(row, config, whole=True) - rows.product_flop(row, config)
    assert extra == 4 * config.n_layer * config.n_embd * 3 * (10 * 10 - 55)


@pytest.mark.parametrize("train", [False, True])
def test_the_products_that_are_timed_are_those_that_are_counted(train):
    """The floor's calls do 2·m·k·n FLOP each, together the count of the products with weights; each result is the product."""
    config, seen = rows.config_of("tiny"), 0
    real, flop = np.matmul, 0

    def counted(a, b, out):
        nonlocal flop
        assert a.shape[1] == b.shape[0] and out.shape == (a.shape[0], b.shape[1])
        flop = 2 * a.shape[0] * a.shape[1] * b.shape[1]
        return real(a, b, out=out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "matmul", counted)
        for times, call in floor.products(config, 7, train):
            call()
            seen += times * flop
    assert seen == rows.linear_flop(config, 7) * (3 if train else 1)


def test_the_bytes_of_a_token():
    """A pass reads 494,613,504 bytes of 124M, and 73,728 for each place before the new one (its keys and values)."""
    config = GPT2Config.from_name("gpt2")
    one, two = (rows.decode_bytes(replace(rows.decode(1, n), tokens=10), config) for n in (1, 2))
    assert one == 4 * 123_653_376 and two - one == one + 11 * 73_728


def test_the_customary_sizes_are_there():
    """Every row is of a size that has a configuration and a nickname; no two rows of a run share a name."""
    for suite in rows.SUITES:
        made = rows.rows_of([suite])
        assert {row.size for row in made} <= set(rows.NICKNAMES) and len({row.name for row in made}) == len(rows.SUITES[suite]())
        assert all(name in PEERS for row in made for name in (*row.peers, *row.ratio, *row.memory))
        assert all(Row.from_dict(json.loads(json.dumps(row.to_dict()))) == row for row in made)
    assert len(rows.rows_of(["cpu", "ops"])) == len(rows.rows_of(["cpu"])) + len(rows.rows_of(["ops"])) - 1


# ── what is read ──
def entry_of(result):
    return report.document([result], {})["rows"][0]


def a_result():
    row = replace(rows.train(4, 256), memory={"torch": 0.5}, ratio={"torch": 2.0, "jax": 3.0}, seconds=2.0, share=0.8)
    ours, floor_ = [2.0, 1.0, 3.0], [1.5, 1.0, 2.5]
    return Result(row, {US: Measured(ours, ours, floor_, 3_000_000_000, "us"), FLOOR: Measured(floor_, ours, floor_),
                        "torch": Measured([5.0, 6.0, 4.0], ours, floor_, 5_000_000_000, "them"),
                        "jax": Measured([5.0], ours, floor_, 1, "others")}, {"llm.c": "why"}, {})


def test_ratios_are_of_medians_in_the_same_rounds():
    """A peer that left early is compared with minigrad's rounds up to there; the share is the floor's median over the median."""
    cells = {c["peer"]: c for c in entry_of(a_result())["peers"]}
    assert list(cells) == [US, "torch", "jax"] and cells[US]["ratio"] is None
    assert cells["torch"]["ratio"] == 5.0 / 2.0 and cells["jax"]["ratio"] == 5.0 / 2.0
    assert cells[US]["share"] == 1.5 / 2.0 and (cells["torch"]["low"], cells["torch"]["high"]) == (4.0, 6.0)


def test_targets_are_judged():
    """At least for ratios and shares, at most for memory and seconds; equal is met."""
    found = {t["what"]: (t["found"], t["met"]) for t in entry_of(a_result())["targets"]}
    assert found == {f"torch / {US}": (2.5, True), f"jax / {US}": (2.5, False), "share of floor": (0.75, False),
                     f"peak of {US} / torch": (0.6, False), "seconds": (2.0, True)}
    assert report.targets(Result(rows.CHAIN)) == []


def test_the_document_survives(tmp_path):
    """What is read back from the JSON file gives the same text and page; both files are whole, and nothing lies beside them."""
    machine = {"python": "3", "platform": "p", "cpu": {"model": "A CPU", "usable": 2}, "memory": {"total": None},
               "blas": {"name": "b", "version": "1", "architecture": "x", "threads": 2}}
    rates = {"size": "gpt2", "sgemm 256": 1e9, "sgemm 1024": 1e9, "gemv": 1e9, "copy": 1e9}
    found = report.document([a_result()], {"date": "2000-01-02T00:00:00", "suites": ["cpu"], "rounds": 3, "machine": machine, "flags": [],
                                           "versions": {"numpy": "2"}, "rates": rates})
    path = run.file_for(tmp_path, found)
    report.save(path, found)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2000-01-02-a-cpu-2-cores-cpu.json", "2000-01-02-a-cpu-2-cores-cpu.md"]
    again = json.loads(path.read_text())
    assert again == found and report.text(again["rows"][0]) == report.text(found["rows"][0])
    page = path.with_suffix(".md").read_text()
    assert page == report.markdown(again) and "| train step B4 T256 | minigrad | 2000 ms |" in page and "NOT MET" in page


def test_a_file_is_never_half_written(tmp_path, monkeypatch):
    """Where writing fails the old file stays, and nothing lies beside it."""
    path = tmp_path / "x.json"
    report.write(path, "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        report.write(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_pictures_are_drawn(tmp_path):
    """One of ratios, one for each kind that was scaled; of nothing, none."""
    from benchmarks.plots import draw

    scaled = [Result(row, {US: Measured([1.0], [1.0], peak=10)}) for row in rows.rows_of(["scaling"]) if row.kind == "train"]
    machine = {"python": "3", "platform": "p", "cpu": {"model": "A CPU", "usable": 2}, "memory": {"total": 1},
               "blas": {"name": "b", "version": "1", "architecture": "x", "threads": 2}}
    context = {"date": "d", "suites": ["cpu"], "rounds": 1, "machine": machine, "flags": [], "versions": {}, "rates": {}}
    made = list(draw(report.document([a_result(), *scaled], context), tmp_path))
    assert [p.name for p in made] == ["cpu-ratios.png", "scaling-train.png"] and all(p.read_bytes()[:4] == b"\x89PNG" for p in made)
    assert list(draw(report.document([], context), tmp_path)) == []
