"""python -m gpt2.inspect weights: distributions, outlier dimensions, and weights of other shapes."""
from __future__ import annotations

import math

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_gpt2 import tiny_model

from gpt2.inspect import weights
from gpt2.weights.checkpoint import read_tensors


def planted(folder, stds):
    """A checkpoint whose Q, K and V and whose MLP have these deviations: stds[part][layer]."""
    model = tiny_model(n_layer=len(stds["Q"]), n_embd=64)
    rng = np.random.default_rng(0)
    for i, block in enumerate(model.h):
        block.attn.c_attn.weight.assign(np.concatenate([stds[p][i] * rng.standard_normal((64, 64)) for p in "QKV"], 1).astype(np.float32))
        block.mlp.c_fc.weight.assign((stds["fc"][i] * rng.standard_normal((64, 256))).astype(np.float32))
    model.save_pretrained(folder)
    return folder


def test_planted_distributions_are_found(told, tmp_path):
    """Deviations that grow with depth have rank correlation 1; Q and K alike, V half as wide."""
    up, down = [0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]
    alike = {"Q": [0.4] * 4, "K": [0.4] * 4, "V": [0.2] * 4, "fc": up}
    found = told("weights", "--model", planted(tmp_path, alike), "--out", tmp_path / "a.svg")
    layers, qkv = (next(d for d in found["distributions"] if d["which"] == w) for w in ("layers", "qkv"))
    assert layers["comparisons"]["Spearman of depth and std, mlp.c_fc"] == 1.0
    by_name = {row["name"]: row for row in qkv["samples"]}
    assert by_name["Q of all layers"]["std"] == pytest.approx(0.4, rel=0.02) and by_name["h.2 V"]["std"] == pytest.approx(0.2, rel=0.05)
    # of two normals with deviations s and 2s: the largest difference of their distribution functions is 0.1607
    assert qkv["comparisons"]["KS Q, V in all layers"] == pytest.approx(0.161, abs=0.015)
    assert qkv["comparisons"]["KS Q, K in all layers"] < 0.02
    assert sum(by_name["h.0 Q"]["histogram"]) + by_name["h.0 Q"]["outside"] == pytest.approx(1.0)
    assert (tmp_path / "a.svg").read_bytes().startswith(b"<?xml")
    found = told("weights", "--model", planted(tmp_path, {"Q": up, "K": down, "V": up, "fc": down}))
    layers, qkv = (next(d for d in found["distributions"] if d["which"] == w) for w in ("layers", "qkv"))
    assert layers["comparisons"]["Spearman of depth and std, mlp.c_fc"] == -1.0
    assert qkv["comparisons"]["Spearman of depth and std, K"] == -1.0 and qkv["comparisons"]["Spearman of depth and std, V"] == 1.0


def test_each_third_of_c_attn_is_its_own(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    found = {s.name: s.values() for s in weights.samples(read_tensors(tmp_path), "qkv")}
    for at, part in enumerate("QKV"):
        np.testing.assert_array_equal(found[f"h.1 {part}"], model.h[1].attn.c_attn.weight.array[:, 32 * at:32 * (at + 1)])
    assert found["V of all layers"].shape == (64, 32)


def broken(folder, name, edit, **fields):
    """A tiny model's file with one tensor edited."""
    tiny_model(**fields).save_pretrained(folder)
    arrays = load_file(folder / "model.safetensors")
    (key,) = (key for key in arrays if key.endswith(name))
    arrays[key] = np.ascontiguousarray(edit(arrays[key]))
    save_file(arrays, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name, edit, says", [
    ("h.1.attn.c_attn.weight", np.transpose, "is [144, 48], and [48, 144] is expected, stored [in, out]; is it transposed?"),
    ("h.0.attn.c_attn.weight", np.ravel, "is [6912], and [48, 144] is expected, stored [in, out]; is it transposed?"),
    ("wte.weight", np.ravel, "is [14400], and a table of rows [n, d] is expected; is it flattened?"),
])
def test_shapes_that_are_not_gpt2s_are_said(run, tmp_path, name, edit, says):
    """Also [3d, d] where 3 divides d and a split along the wrong axis would come out: a width of 48 is such a one."""
    code, out, err = run("weights", "--model", broken(tmp_path, name, edit, n_embd=48))
    assert (code, out, err.count("\n")) == (3, "", 1) and f"'{name}' {says}" in err, err


@pytest.mark.parametrize("name", ["wte.weight", "wpe.weight", "h.0.attn.c_attn.weight", "h.1.mlp.c_fc.weight"])
def test_weights_that_are_not_finite(run, told, tmp_path, name):
    """A tensor without a finite number has no quantiles, and one with some is measured by those; both are said, and drawn."""
    where = broken(tmp_path, name, lambda a: np.full_like(a, np.nan))
    code, out, err = run("weights", "--model", where, "--out", tmp_path / "w.png")
    count = math.prod(read_tensors(where).stored[name].shape)
    assert code == 0 and f"{name} has no finite number: {count:,} × NaN, 0 × infinity\n" in out, err
    row = next(row for one in told("weights", "--model", where)["distributions"] for row in one["samples"] if row["name"] == name)
    assert row["nan"] == count and row["quantiles"] == [None] * 5 and row["std"] is None

    def some(a):
        a[0, :3] = np.nan, np.inf, -np.inf
        return a

    kept = broken(tmp_path, name, some)
    assert f"{name}: 3 of {count:,} numbers are NaN or infinite, and are left out\n" in run("weights", "--model", kept)[1]
    found = told("weights", "--model", kept)["distributions"]
    one, row = next((one, row) for one in found for row in one["samples"] if row["name"] == name)
    array = read_tensors(kept)(name)
    finite = array[np.isfinite(array)]
    assert row["quantiles"] == pytest.approx(np.quantile(finite, [0.01, 0.25, 0.5, 0.75, 0.99]).tolist())
    assert sum(row["histogram"]) == pytest.approx(np.mean(np.abs(finite) <= one["bins"][-1]))


def test_the_title_says_what_is_there(tmp_path):
    """Of a part of a checkpoint, too."""
    def titles(*names):
        path, table = tmp_path / "x.safetensors", np.random.default_rng(0).standard_normal((8, 768)).astype(np.float32)
        save_file(dict.fromkeys(names, table), path)
        with pytest.warns(UserWarning, match="config.json is not there"):
            found = weights.distributions(read_tensors(path), "embeddings")
        return [panel.get_title() for panel in weights.draw([found]).axes]

    assert titles("wpe.weight") == ["position embeddings"] and titles("wte.weight") == ["token embeddings"]
    assert titles("wte.weight", "wpe.weight") == ["token and position embeddings"]


def test_outlier_dimensions(run, told, tmp_path):
    """Columns of an embedding that stand out, with their ratios; a line names the first of them."""
    def widen(a):
        a[:] = 1.0
        a[:, 20:30] = np.arange(4, 14)
        return a

    where = broken(tmp_path, "wpe.weight", widen)
    embeddings = told("weights", "--model", where)["distributions"][0]["samples"]
    assert embeddings[1]["outliers"] == [{"dimension": 29 - i, "ratio": 13.0 - i} for i in range(10)] and embeddings[0]["outliers"] == []
    said = run("weights", "--model", where)[1]
    assert "wpe.weight: outlier dimensions, root mean square more than 3 times the median column's: 29 (13×), 28 (12×), " in said
    assert "22 (6×) and 2 more\n" in said
    assert "wte.weight: outlier dimensions, root mean square more than 3 times the median column's: none\n" in said
