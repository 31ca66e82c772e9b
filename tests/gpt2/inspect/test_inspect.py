"""python -m gpt2.inspect: what it says of a model is what is there, and what is not there is said."""
from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from data import test_data
from long import slow_unless
from safetensors.numpy import load_file, save_file
from tiny_gpt2 import tiny_config, tiny_model, tiny_tokenizer
from transformers import GPT2LMHeadModel

from gpt2.config import PUBLISHED, GPT2Config, num_parameters, parameter_shapes
from gpt2.inspect import arch, attention
from gpt2.inspect.lens import lens
from gpt2.model import GPT2
from gpt2.weights.checkpoint import CONFIG_KEY
from gpt2.weights.locate import MODELS

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
    assert odd["rotary.freqs"] == ["all 1", "not a parameter of GPT-2"] and odd["step"] == ["not floats", "not a parameter of GPT-2"]
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
    assert "it is not known whether tensors are missing" in run("tensors", "--model", tmp_path / "x.safetensors")[1]


def test_openais_own_tensors(told):
    """The part of the published weights: what is missing, and figures of wpe that NumPy computes too."""
    path = test_data("gpt2-124M-partial.safetensors")
    found = told("tensors", "--model", path)
    assert len(found["tensors"]) == 123 and found["numbers"] == 29_219_328 and len(found["missing"]) == 25
    wpe = load_file(path)["wpe.weight"].astype(np.float64)
    row = next(row for row in found["tensors"] if row["name"] == "wpe.weight")
    assert row["std"] == pytest.approx(wpe.std(), rel=1e-9) and row["max"] == wpe.max()


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
    assert "only in A: 1: ln_f.bias" in said and "B, missing: 1 of 28 tensors: ln_f.bias" in said
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
    (["attention", "--layer", "4"], 2, "--layer 4 does not exist; the model has 0 … 3"),
    (["attention", "--head", "9"], 2, "--head 9 does not exist; the model has 0 … 3"),
    (["attention", "--out", "x.gif"], 2, "'x.gif' is not the name of a picture; it must end in .png, .svg or .pdf"),
    (["trace", "--out", "x.png"], 2, "'x.png' is not the name of a page; end it in .html"),
    (["attention", "--ids", "1,x"], 2, "'1,x' is not a list of ids; write ids as 15496,11,314"),
    (["attention", "--ids", "5000"], 2, "id 5000 is outside the vocabulary 0 … 1023"),
    (["logit-lens", "--prompt", ""], 2, "the prompt is empty; give at least one token"),
    (["logit-lens", "--prompt", "x " * 400], 2, "and the model's context is 128"),
    (["logit-lens", "--prompt", "x", "--ids", "1"], 2, "not allowed with argument"),
    (["weigths"], 2, "invalid choice: 'weigths'"),
    ([], 2, "the following arguments are required: COMMAND"),
    (["tensors", "--model", "/etc/passwd"], 3, "is not a complete safetensors file"),
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
                        (["weights", "--model", tmp_path / "y.safetensors"], "has no weights with GPT-2's names"),
                        (["params", "--model", tmp_path / "y.safetensors"], "has no configuration"),
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
