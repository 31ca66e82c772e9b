"""python -m gpt2.inspect: what it says of a model is what is there, and what is not there is said."""
from __future__ import annotations

import base64
import json
import math
import shutil

import numpy as np
import pytest
import torch
from data import test_data
from long import slow_unless
from safetensors.numpy import load_file, save_file
from tiny_gpt2 import tiny_config, tiny_model, tiny_tokenizer
from transformers import GPT2LMHeadModel

from gpt2.cli.command import run_command
from gpt2.config import PUBLISHED, GPT2Config, num_parameters, parameter_shapes
from gpt2.inspect import arch, attention, page, weights
from gpt2.inspect.__main__ import main
from gpt2.inspect.lens import lens
from gpt2.model import GPT2
from gpt2.weights.checkpoint import CONFIG_KEY, read_tensors
from gpt2.weights.locate import MODELS


@pytest.fixture
def run(capsys):
    """run(*flags): exit code, stdout and stderr."""

    def ended(*flags):
        with pytest.raises(SystemExit) as end:
            run_command(lambda: main([*map(str, flags)]), "gpt2.inspect")
        printed = capsys.readouterr()
        return end.value.code, printed.out, printed.err

    return ended


@pytest.fixture
def told(run):
    """told(*flags): the JSON document of a run that ends well."""

    def document(*flags):
        code, out, err = run(*flags, "--json")
        assert code == 0, err
        return json.loads(out, parse_constant=lambda c: pytest.fail(c))

    return document


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model of random weights, saved."""
    where = tmp_path_factory.mktemp("tiny")
    tiny_model(seed=3).save_pretrained(where, tokenizer=tiny_tokenizer())
    return where


# ── arch, params ──
PERCENT = {"gpt2": (22.75, 45.50), "gpt2-medium": (28.37, 56.74), "gpt2-large": (30.48, 60.96), "gpt2-xl": (31.56, 63.11)}
COUNTS = {"gpt2": (124_439_808, 38_400, 102_144), "gpt2-medium": (354_823_168, 100_352, 271_360),
          "gpt2-large": (774_030_080, 186_880, 508_160), "gpt2-xl": (1_557_611_200, 310_400, 846_400)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(told, run, name):
    """All, LayerNorm's, biases; the weights of attention and MLP in percent; no weights are needed for that."""
    found = told("params", "--model", name)
    kinds, total = found["kinds"], found["total"]
    assert (total, sum(kinds["LayerNorm"].values()), found["bias"]) == COUNTS[name]
    assert (round(100 * kinds["attention"]["weight"] / total, 2), round(100 * kinds["MLP"]["weight"] / total, 2)) == PERCENT[name]
    assert found["weight"] + found["bias"] == total == sum(sum(parts.values()) for parts in kinds.values())
    percent = found["percent"]
    assert (round(percent["attention"]["weight"], 2), round(percent["MLP"]["weight"], 2)) == PERCENT[name]
    assert sum(parts["together"] for parts in percent.values()) == pytest.approx(100)
    said = run("params", "--model", name)[1]
    cells = {line.split()[0]: line.split() for line in said.splitlines() if line.startswith(("attention", "MLP"))}
    assert f"{total:,}" in said and tuple(round(float(cells[kind][4]), 2) for kind in ("attention", "MLP")) == PERCENT[name]


def test_an_untied_head_is_a_kind():
    config = tiny_config(tie_word_embeddings=False)
    found = arch.counts(config)
    assert found["head"]["weight"] == config.vocab_size * 32 and sum(sum(p.values()) for p in found.values()) == num_parameters(config)


def test_the_architecture_adds_up(told):
    """Parameters, the KV cache, the FLOP of training; those of a pass by another way: 2 per weight and token, 4 T d per token and layer."""
    found = told("arch", "--model", "gpt2")
    assert found["parameters"] == 124_439_808 and found["kv_bytes_per_token"] == 73_728
    assert found["training_flop_per_token"] == 855_166_464 and found["untrained_loss"] == pytest.approx(10.82490511970208)
    matrices = sum(math.prod(s) for n, s in parameter_shapes(GPT2Config()).items() if len(s) == 2 and n != "wpe.weight")
    assert found["forward_flop"] == 1024 * (2 * matrices + 4 * 1024 * 768 * 12)
    other = told("arch", "--model", "gpt2", "--batch-size", 3, "--block-size", 10)
    assert other["forward_flop"] == 30 * (2 * matrices + 4 * 10 * 768 * 12)


@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": False, "n_inner": 40, "activation_function": "relu"}])
def test_the_shapes_are_those_of_a_pass(fields):
    """Each stage's shape is that of the point of the same step."""
    model = GPT2(tiny_config(**fields)).eval()
    found = model.trace(np.zeros((2, 7), np.int64))
    rows = {(s.module, s.computes): s.shape for s in arch.stages(model.config, 2, 7)}
    shapes = list(rows.values())
    names = ["embed", None, "blocks.0.ln_1.out", None, "blocks.0.attn.pattern", "blocks.0.attn.z", "blocks.0.attn.out", "blocks.0.ln_2.out",
             "blocks.0.mlp.act", "blocks.0.mlp.out", "ln_f.out", "logits"]
    for name, shape in zip(names, shapes, strict=True):
        assert name is None or found[name].shape == shape, name
    assert shapes[1] == found["pos_embed"].shape[-2:] and shapes[3][-1] == 3 * 32


# ── tensors ──
def test_what_is_odd_is_said(told, run, tmp_path):
    """NaN, infinity, constants, copies, a wrong shape, a foreign name, integers; mask buffers are no parameters."""
    model = tiny_model()
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    arrays = load_file(path)
    arrays["transformer.h.0.attn.c_attn.weight"][0, :3] = np.nan
    arrays["transformer.h.1.mlp.c_fc.weight"][1, 1] = np.inf
    arrays["transformer.h.1.attn.c_proj.weight"] = arrays["transformer.h.0.attn.c_proj.weight"].copy()
    arrays["transformer.ln_f.bias"] = np.zeros(31, np.float32)
    arrays["lm_head.weight"] = arrays["transformer.wte.weight"].copy()
    arrays["transformer.rotary.freqs"], arrays["step"] = np.ones(3, np.float32), np.arange(2)
    del arrays["transformer.h.1.ln_2.weight"], arrays["transformer.h.0.ln_2.weight"], arrays["transformer.h.1.mlp.c_proj.bias"]
    for i in range(2):
        arrays[f"transformer.h.{i}.attn.bias"] = np.tri(64, dtype=np.float32)[None, None]
    save_file(arrays, path)
    found = told("tensors", "--model", path)
    odd = {row["name"]: row["odd"] for row in found["tensors"]}
    assert odd["h.0.attn.c_attn.weight"] == ["3 × NaN"] and odd["h.1.mlp.c_fc.weight"] == ["1 × infinity"]
    assert odd["h.1.attn.c_proj.weight"] == ["equal to h.0.attn.c_proj.weight"] and odd["lm_head.weight"] == ["equal to wte.weight"]
    assert odd["ln_f.bias"] == ["all zero", "[32] by the configuration"] and odd["ln_f.weight"] == ["all 1"]
    assert odd["rotary.freqs"] == ["all 1", "no parameter of GPT-2"] and odd["step"] == ["no float", "no parameter of GPT-2"]
    assert odd["wte.weight"] == odd["h.0.mlp.c_fc.weight"] == []
    assert len(found["buffers"]) == 2 and found["missing"] == ["h.0.ln_2.weight", "h.1.ln_2.weight", "h.1.mlp.c_proj.bias"]
    said = run("tensors", "--model", path)[1]
    assert "and 2 mask buffers" in said
    assert "missing: 3 of 28 tensors: h.i.ln_2.weight of every layer, h.i.mlp.c_proj.bias of layer 1\n" in said
    row = next(row for row in found["tensors"] if row["name"] == "wpe.weight")
    array = model.wpe.weight.array
    assert row["mean"] == pytest.approx(float(array.mean()), abs=1e-6)
    assert row["norm"] == pytest.approx(float(np.linalg.norm(array)), rel=1e-5)


def test_tensors_of_something_else(told, run, tmp_path):
    """A file that is no GPT-2 is shown all the same."""
    save_file({"a": np.ones((2, 3), np.float32)}, tmp_path / "x.safetensors")
    assert [row["name"] for row in told("tensors", "--model", tmp_path / "x.safetensors")["tensors"]] == ["a"]
    assert "what may be missing is not known" in run("tensors", "--model", tmp_path / "x.safetensors")[1]


def test_openais_own_tensors(told):
    """The part of the published weights: what is missing, and figures of wpe that NumPy computes too."""
    path = test_data("gpt2-124M-partial.safetensors")
    found = told("tensors", "--model", path)
    assert len(found["tensors"]) == 123 and found["numbers"] == 29_219_328 and len(found["missing"]) == 25
    wpe = load_file(path)["wpe.weight"].astype(np.float64)
    row = next(row for row in found["tensors"] if row["name"] == "wpe.weight")
    assert row["std"] == pytest.approx(wpe.std(), rel=1e-9) and row["max"] == wpe.max()


# ── weights ──
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


# ── attention ──
def test_characters_of_planted_patterns():
    """A head that looks at the first token, one at the token before, one at itself, one at all alike."""
    T = 6
    first, previous, itself, alike = np.zeros((T, T)), np.eye(T, k=-1), np.eye(T), np.tri(T) / np.arange(1, T + 1)[:, None]
    first[:, 0] = previous[0, 0] = 1.0
    told = [attention.character(p) for p in (first, previous, itself, alike)]
    assert [t["first"] for t in told] == [1.0, 0.2, 0.0, pytest.approx(np.mean([1 / n for n in range(2, 7)]))]
    assert [t["previous"] for t in told[:3]] == [0.2, 1.0, 0.0] and [t["itself"] for t in told[:3]] == [0.0, 0.0, 1.0]
    assert [t["distance"] for t in told] == [3.0, 1.0, 0.0, pytest.approx(np.mean([n / 2 for n in range(1, 6)]))]
    assert [t["entropy"] for t in told] == [0.0, 0.0, 0.0, pytest.approx(np.mean([math.log(n) for n in range(2, 7)]))]
    assert attention.character(np.ones((1, 1))) == {"entropy": 0.0, "distance": 0.0, "first": 1.0, "previous": 0.0, "itself": 1.0}


def test_patterns_are_transformers(told, folder, tmp_path):
    found = told("attention", "--model", folder, "--ids", "5,6,7,8,9", "--out", tmp_path / "heads.png")
    theirs = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        wanted = theirs(torch.tensor([[5, 6, 7, 8, 9]]), output_attentions=True).attentions
    for name, pattern in found["patterns"].items():
        i, j = map(int, name.split("."))
        np.testing.assert_allclose(pattern, wanted[i][0, j].numpy(), atol=1e-5)
    assert len(found["patterns"]) == 4 and (tmp_path / "heads.png").read_bytes()[:4] == b"\x89PNG"
    assert list(told("attention", "--model", folder, "--head", 1, "--layer", 0)["patterns"]) == ["0.1"]


@pytest.mark.parametrize("heads, tokens, named", slow_unless(lambda case: case[0] != 1200 and case[:2] != (144, 8), [
    (144, 8, True), (16, 20, True), (1, 30, True), (144, 60, False), (1200, 20, False)]))
def test_tokens_are_named_where_they_can_be_read(heads, tokens, named):
    """Of a short prompt on every map, and no two names touch; of a long one, or where there are too many maps for it, on none."""
    figure = attention.draw({f"{i // 12}.{i % 12}": np.tri(tokens) for i in range(heads)}, ["·everything"] * tokens)
    panels = [panel for panel in figure.axes if panel.get_visible() and panel.get_title()]
    assert len(panels) == heads
    texts = [[axis.get_ticklabels() for axis in (panel.xaxis, panel.yaxis)] for panel in panels]
    assert all(len(names) == (tokens if named else 0) for both in texts for names in both)
    assert max(figure.get_size_inches()) < (45 if named else 140)
    if named:
        figure.draw_without_rendering()
        for across, down in (texts[0], texts[-1]):
            boxes = [[name.get_window_extent() for name in names] for names in (across, down)]
            assert all(a.x1 <= b.x0 for a, b in zip(boxes[0], boxes[0][1:])) and all(a.y0 >= b.y1 for a, b in zip(boxes[1], boxes[1][1:]))
        if heads > 1:
            assert panels[0].get_window_extent().x1 < min(name.get_window_extent().x0 for name in texts[1][1])


# ── weights that are no numbers ──
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("command", ["attention", "logit-lens", "trace"])
def test_a_weight_that_is_no_number_is_one_warning(run, tmp_path, command, value):
    """It names the first tensor, and the result comes, with what cannot be known as NaN."""
    model = tiny_model(seed=3)
    for weight in (model.h[0].attn.c_attn.weight, model.h[1].mlp.c_fc.weight):
        weight.array[0, 0] = value
    model.save_pretrained(tmp_path, tokenizer=tiny_tokenizer())
    out = ["--out", tmp_path / {"trace": "t.html"}.get(command, "t.svg")]
    code, said, err = run(command, "--model", tmp_path, "--prompt", "Once upon", *out)
    assert code == 0 and "nan" in said and out[1].stat().st_size > 1000
    warning, wrote = err.splitlines()
    assert warning.startswith("gpt2.inspect: warning: ") and "NaN or infinity in 'h.0.attn.c_attn.weight'" in warning
    assert wrote.startswith("gpt2.inspect: wrote ")
    assert run(command, "--model", tmp_path, "--prompt", "Once upon", "--json", *out)[0] == 0


def test_numbers_that_overflow_are_one_warning(run, tmp_path):
    """It says in which dtype, and float64 holds them."""
    model = tiny_model(seed=3)
    model.h[1].mlp.c_fc.weight.array[0, 0] = 1e30
    model.save_pretrained(tmp_path, tokenizer=tiny_tokenizer())
    code, _, err = run("logit-lens", "--model", tmp_path)
    assert code == 0 and err.count("\n") == 1 and "overflow" in err
    assert "in float32, though every weight is finite; try --dtype float64" in err
    assert run("logit-lens", "--model", tmp_path, "--dtype", "float64")[::2] == (0, "")


@pytest.mark.parametrize("command", ["attention", "logit-lens", "trace"])
def test_a_part_of_a_model_is_one_line(run, tmp_path, command):
    """Where the whole is needed, the error alone is said, and not also what had been guessed till then."""
    part = {"wpe.weight": np.zeros((4, 768), np.float32), **{f"h.{i}.ln_1.weight": np.ones(768, np.float32) for i in range(12)}}
    save_file(part, tmp_path / "x.safetensors")
    code, out, err = run(command, "--model", tmp_path / "x.safetensors", "--ids", "1,2")
    assert (code, out, err.count("\n")) == (3, "", 1) and "has no tensor 'wte.weight'; is it a partial checkpoint?" in err


# ── logit lens ──
def test_the_lens_is_the_head_on_hidden_states(folder, told):
    """ln_f and the head on transformers' hidden states; the last is the model itself."""
    ids = [5, 6, 7, 8]
    theirs = GPT2LMHeadModel.from_pretrained(folder).eval()
    with torch.no_grad():
        out = theirs(torch.tensor([ids]), output_hidden_states=True)
        early = [torch.log_softmax(theirs.lm_head(theirs.transformer.ln_f(h[0])), -1).numpy() for h in out.hidden_states[:2]]
    found = lens(GPT2.from_pretrained(folder), ids)
    assert list(found) == ["embeddings", "block 0", "block 1"]
    for mine, wanted in zip(found.values(), [*early, torch.log_softmax(out.logits[0], -1).numpy()], strict=True):
        np.testing.assert_allclose(mine, wanted, atol=2e-4)
    rows = told("logit-lens", "--model", folder, "--ids", "5,6,7,8")["lens"]
    assert rows[-1]["kl"] == [0.0] * 4 and min(rows[0]["kl"]) > 0.0
    assert rows[1]["nll"] == [pytest.approx(-early[1][i, ids[i + 1]], abs=2e-4) for i in range(3)] + [None]
    assert rows[1]["ids"] == early[1].argmax(-1).tolist()


# ── diff ──
def test_the_worst_comes_first(told, run, tmp_path):
    """By relative size of the difference; transposed, missing and NaN are said."""
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    model = tiny_model(n_inner=48)
    arrays, told_by = {name: p.array.copy() for name, p in model.named_parameters()}, {CONFIG_KEY: json.dumps(model.config.to_dict())}
    save_file(arrays, a, told_by)
    arrays["h.0.mlp.c_fc.weight"] *= 1.01
    arrays["wpe.weight"][3, 4] += 5.0
    arrays["h.1.attn.c_proj.weight"] = arrays["h.1.attn.c_proj.weight"].T.copy()
    arrays["h.1.mlp.c_fc.weight"] = arrays["h.1.mlp.c_fc.weight"].T.copy()
    arrays["h.1.attn.c_attn.weight"][0, 0] = np.nan
    del arrays["ln_f.bias"]
    save_file(arrays, b, told_by)
    found = told("diff", a, b)
    rows = found["tensors"]
    names = [row["name"] for row in rows]
    assert set(names[:2]) == {"h.1.mlp.c_fc.weight", "h.1.attn.c_attn.weight"}
    assert names[2:5] == ["h.1.attn.c_proj.weight", "wpe.weight", "h.0.mlp.c_fc.weight"]
    by_name = {row["name"]: row for row in rows}
    assert by_name["h.0.mlp.c_fc.weight"]["relative"] == pytest.approx(0.01, rel=1e-3)
    assert by_name["h.0.mlp.c_fc.weight"]["cosine"] == pytest.approx(1.0)
    assert by_name["wpe.weight"]["at"] == [3, 4] and by_name["wpe.weight"]["max"] == pytest.approx(5.0)
    assert by_name["h.1.mlp.c_fc.weight"]["note"] == "[48, 32] in B, the transpose"
    assert by_name["h.1.attn.c_proj.weight"]["note"] == "the transpose" and found["only"] == {"A": ["ln_f.bias"], "B": []}
    assert found["equal"] == len(rows) - 5
    said = run("diff", a, b)[1]
    assert "in A alone: 1: ln_f.bias" in said and "B, missing: 1 of 28 tensors: ln_f.bias" in said
    assert run("diff", a, a)[1].startswith("no difference\n")
    assert by_name["h.1.attn.c_attn.weight"]["relative"] == by_name["h.1.attn.c_attn.weight"]["max"] == "inf"
    assert by_name["h.1.attn.c_attn.weight"]["cosine"] == "nan"
    limited = run("diff", a, b, "--limit", 1)[1].splitlines()
    assert limited[2] == "" and f"{len(rows)} tensors in both, {len(rows) - 5} of them equal" in limited[3]


def test_what_is_equal_to_the_bit_is_no_difference(told, run, tmp_path):
    """NaN and infinity too, and a scalar; a number beside them that differs is measured as it is without them."""
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    arrays = {"odd": np.array([np.nan, np.inf, -np.inf, 3.0, 4.0], np.float32), "scalar": np.array(2.0, np.float32),
              "empty": np.zeros((0, 3), np.float32), "all NaN": np.full(3, np.nan, np.float32)}
    save_file(arrays, a)
    assert run("diff", a, a)[0] == 0 and run("diff", a, a)[1].startswith("no difference\n")
    assert told("diff", a, a)["equal"] == 4
    save_file({**arrays, "odd": np.array([np.nan, np.inf, -np.inf, 3.0, 4.5], np.float32), "scalar": np.array(3.0, np.float32)}, b)
    rows = {row["name"]: row for row in told("diff", a, b)["tensors"]}
    assert (rows["odd"]["relative"], rows["odd"]["max"], rows["odd"]["at"]) == (pytest.approx(0.1), 0.5, [4])
    assert (rows["scalar"]["relative"], rows["scalar"]["max"], rows["scalar"]["at"]) == (0.5, 1.0, [])
    save_file({**arrays, "odd": np.array([np.nan, -np.inf, -np.inf, 3.0, 4.0], np.float32)}, b)
    found = told("diff", a, b)
    assert found["equal"] == 3 and found["tensors"][0]["name"] == "odd"
    assert (found["tensors"][0]["relative"], found["tensors"][0]["at"]) == ("inf", [1])


# ── trace ──
def decoded(text, shape):
    return np.frombuffer(base64.b64decode(text), "<f4").reshape(shape)


def data_of(path):
    text = path.read_text("utf-8")
    return json.loads(text.split('id="data">')[1].split("</script>")[0])


@pytest.mark.parametrize("values", [1_500_000, 4000])
def test_values_on_the_page_are_the_trace(run, folder, tmp_path, values):
    """Every point of the model is there, whole or thinned, to the bit; statistics are those of the whole."""
    code, _, err = run("trace", "--model", folder, "--ids", "5,6,7,8,9", "--out", tmp_path / "t.html", "--values", values)
    assert code == 0, err
    model, found = GPT2.from_pretrained(folder), data_of(tmp_path / "t.html")
    wanted = model.trace([[5, 6, 7, 8, 9]])
    assert [t["name"] for t in found["tensors"]] == list(model.points())
    for t in found["tensors"]:
        whole = wanted[t["name"]].reshape(t["shape"])
        np.testing.assert_array_equal(decoded(t["data"], t["kept"]), whole[tuple(slice(None, None, s) for s in t["steps"])])
        assert t["max"] == whole.max() and t["norm"] == pytest.approx(np.linalg.norm(whole), rel=1e-5)
    kept = sum(math.prod(t["kept"]) for t in found["tensors"])
    assert kept <= values and (values < 10_000) == any(s > 1 for t in found["tensors"] for s in t["steps"])
    logits = wanted["logits"][0]
    np.testing.assert_array_equal(decoded(found["logits"]["data"], logits.shape), logits)
    assert found["best"] == np.argsort(-logits, -1, kind="stable")[:, :20].tolist()
    np.testing.assert_allclose(found["norms"][found["norm_names"].index("blocks.1.resid_post")],
                               np.linalg.norm(wanted["blocks.1.resid_post"][0], axis=-1), rtol=1e-6)


def test_the_page_takes_any_text_and_needs_no_network(run, tmp_path):
    """A token that would end the script does not; no address is in it."""
    assert run("trace", "--prompt", "</script><b>&'\"", "--out", tmp_path / "t.html")[0] == 0
    text = (tmp_path / "t.html").read_text("utf-8")
    assert text.count("</script>") == 2 and "http" not in text.replace("http-equiv", "")
    assert "".join(data_of(tmp_path / "t.html")["tokens"]) == "</script><b>&'\""


def test_no_text_ends_the_script():
    """Whatever a model is called."""
    text = page.html({"what": "</script><!--"}).decode()
    assert text.count("</script>") == 2 and "<!--" not in text
    assert json.loads(text.split('id="data">')[1].split("</script>")[0])["what"] == "</script><!--"


def test_thinning():
    assert page.sampling_steps((4, 100, 100), 10_000) == [1, 2, 2] and page.sampling_steps((3, 5), 15) == [1, 1]
    assert page.limit_for([10, 100, 1000], 210) == 100 and page.limit_for([10, 100, 1000], 120) == 55 and page.limit_for([5], 9) == 5


SAYS = """<script>
const problems = [];
window.addEventListener("error", e => problems.push(e.message));
window.addEventListener("securitypolicyviolation", e => problems.push(e.violatedDirective));
console.error = console.warn = (...a) => problems.push(a.join(" "));
</script>"""
TURNS = """<script>
const cells = () => [...document.querySelectorAll("#next tr")].slice(1).map(r => [...r.children].slice(1, 4).map(c => c.textContent));
const said = { before: cells() };
const slider = document.getElementById("temperature");
slider.value = "0.3"; slider.dispatchEvent(new Event("input"));
said.after = cells(); said.tau = document.getElementById("tau").textContent;
document.querySelectorAll("#tokens button")[1].click();
said.second = cells();
document.getElementById("layer").selectedIndex = 1; document.getElementById("layer").dispatchEvent(new Event("change"));
document.querySelectorAll("#heads button")[1].click();
const large = document.getElementById("pattern"), box = large.getBoundingClientRect();
large.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + 1.5 * box.width / 5, clientY: box.top + 3.5 * box.height / 5 }));
said.cell = document.getElementById("pattern-said").textContent;
said.rows = document.querySelectorAll("#tensors tr.pick").length;
document.querySelectorAll("#tensors tr.pick").forEach((_, i) => document.querySelectorAll("#tensors tr.pick")[i].click());
said.last = document.getElementById("tensor-name").textContent;
said.wide = document.documentElement.scrollWidth <= window.innerWidth;
said.problems = problems;
document.body.innerHTML = ""; document.body.textContent = "SAID" + JSON.stringify(said) + "DIAS";
</script>"""


@pytest.mark.parametrize("width", [1280, 500])
def test_the_page_in_a_browser(run, folder, tmp_path, width):
    """No console errors; the slider changes the table to softmax(logits/T); places, blocks, heads and every tensor can be chosen."""
    import subprocess

    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here; the page's script is not run")
    run("trace", "--model", folder, "--ids", "5,6,7,8,9", "--out", tmp_path / "t.html")
    text = (tmp_path / "t.html").read_text("utf-8")
    (tmp_path / "watched.html").write_text(text.replace("<style>", SAYS + "<style>").replace("</body>", TURNS + "</body>"), "utf-8")
    done = subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                           "--disable-background-networking", "--disable-component-update", "--disable-sync", f"--window-size={width},1500",
                           f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom",
                           (tmp_path / "watched.html").as_uri()], capture_output=True, timeout=120)
    import html as entities

    out = entities.unescape(done.stdout.decode())
    said = json.loads(out[out.index("SAID{") + 4:out.rindex("}DIAS") + 1])
    assert said["problems"] == [] and said["tau"] == "2.00" and said["wide"]
    found = GPT2.from_pretrained(folder).trace([[5, 6, 7, 8, 9]])
    logits, known = found["logits"][0].astype(np.float64), tiny_tokenizer().n_vocab

    def table(place, tau):
        row = logits[place, :known]
        p = np.exp(row / tau)
        return [[str(i), f"{row[i]:.4f}", f"{p[i] / p.sum():.6f}"] for i in np.argsort(-row, kind="stable")[:20]]

    assert said["before"] == table(4, 1.0)
    for mine, wanted in ((said["after"], table(4, 10 ** 0.3)), (said["second"], table(1, 10 ** 0.3))):
        assert [row[:2] for row in mine] == [row[:2] for row in wanted]
        # the page's float64 may round a sixth digit otherwise
        np.testing.assert_allclose([float(row[2]) for row in mine], [float(row[2]) for row in wanted], rtol=0, atol=1.01e-6)
    assert said["cell"].startswith("head 1: from “") and said["cell"].endswith(f": {found['blocks.1.attn.pattern'][0, 1, 3, 1]:.4g}")
    assert said["rows"] == len(found) and said["last"].startswith("logits [5,300]")


# ── all of them ──
COMMANDS = ["arch", "params", "tensors", "weights", "attention", "logit-lens"]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_runs_on_the_model_that_ships(run, told, command):
    code, out, err = run(command)
    assert code == 0 and err == "" and len(out.splitlines()) > 4
    assert told(command)["command"] == command


@pytest.mark.parametrize("command", ["attention", "logit-lens"])
def test_random_weights_need_nothing(told, command):
    """The shipped model's architecture with weights from a seed; other seeds say other things."""
    key = "heads" if command == "attention" else "lens"
    one, two, again = (told(command, "--random-weights", seed, "--ids", "1,2,3")[key] for seed in (1, 2, 1))
    assert one == again != two


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("command", ["attention", "logit-lens", "trace"])
def test_a_model_of_16_bits_is_looked_into(run, tmp_path, command, dtype):
    more = ["--out", tmp_path / "t.html"] if command == "trace" else []
    code, out, err = run(command, "--dtype", dtype, "--ids", "1,2,3", *more)
    assert code == 0 and "Traceback" not in err and len(out.splitlines()) > 4


BAD = [
    (["arch", "--model", "gpt3"], 2, "there is no model or directory 'gpt3'; did you mean gpt2?"),
    (["arch", "--block-size", "1000"], 2, "--block-size 1000 is more than the context of 128"),
    (["attention", "--layer", "4"], 2, "--layer 4 is not there; the model's are 0 … 3"),
    (["attention", "--head", "9"], 2, "--head 9 is not there; the model's are 0 … 3"),
    (["attention", "--out", "x.gif"], 2, "'x.gif' is no name of a picture; end it in .png, .svg or .pdf"),
    (["trace", "--out", "x.png"], 2, "'x.png' is no name of a page; end it in .html"),
    (["attention", "--ids", "1,x"], 2, "'1,x' are no ids; write them as 15496,11,314"),
    (["attention", "--ids", "5000"], 2, "id 5000 is outside the vocabulary 0 … 1023"),
    (["logit-lens", "--prompt", ""], 2, "the prompt is empty; give it a token at least"),
    (["logit-lens", "--prompt", "x " * 400], 2, "and the model's context is 128"),
    (["logit-lens", "--prompt", "x", "--ids", "1"], 2, "not allowed with argument"),
    (["weigths"], 2, "invalid choice: 'weigths'"),
    ([], 2, "the following arguments are required: COMMAND"),
    (["tensors", "--model", "/etc/passwd"], 3, "is not a whole safetensors file"),
    (["diff", "shakespeare", "nothing"], 2, "there is no model or directory 'nothing'"),
    (["diff", "shakespeare", "no/thing"], 3, "there is no model or directory 'no/thing'"),
    (["diff", "shakespeare", "shakespeare", "--limit", "0"], 2, "argument --limit: 0 is less than 1"),
    (["diff", "shakespeare", "shakespeare", "--limit", "-3"], 2, "argument --limit: -3 is less than 1"),
    (["attention", "--out", "/dev/null/x.png"], 2, "cannot write"),
]


@pytest.mark.parametrize("flags, code, says", BAD, ids=lambda v: " ".join(v)[:30] if isinstance(v, list) else None)
def test_bad_input_is_one_line(run, flags, code, says):
    ended, out, err = run(*flags)
    assert (ended, out, err.count("\n")) == (code, "", 1) and says in err, err


def test_without_weights_of_these_names(run, tmp_path):
    save_file({"wpe.weight": np.zeros((4, 768), np.float32)}, tmp_path / "x.safetensors")
    save_file({"other": np.zeros(3, np.float32)}, tmp_path / "y.safetensors")
    for flags, says in ((["weights", "--model", tmp_path / "x.safetensors", "--which", "qkv"], "has no tensors for 'qkv'"),
                        (["weights", "--model", tmp_path / "y.safetensors"], "has no weights of GPT-2's names"),
                        (["params", "--model", tmp_path / "y.safetensors"], "does not tell its configuration"),
                        (["diff", tmp_path / "x.safetensors", tmp_path / "y.safetensors"], "have no tensor of the same name")):
        code, out, err = run(*flags)
        assert (code, out) == (3, "") and says in err.splitlines()[-1], err


def test_the_equations_of_points():
    """Every point has a label, the activation's own."""
    model = GPT2.from_pretrained(MODELS / "shakespeare")
    assert list(model.equations()) == list(model.points()) and model.equations()["blocks.3.mlp.act"] == "gelu.2"
    assert tiny_model(activation_function="gelu").equations()["blocks.0.mlp.act"] == "gelu.1"


def test_labels_of_tokens():
    tokenizer = tiny_tokenizer()
    emoji = tokenizer.encode("🤗")
    assert [tokenizer.label(i) for i in emoji] == ["<0xF0>", "<0x9F>", "<0xA4>", "<0x97>"]
    assert [tokenizer.label(tokenizer.encode(c)[0]) for c in (" ", "\n", "\t", "\x00", "a")] == ["·", "⏎", "⇥", "<U+0000>", "a"]
