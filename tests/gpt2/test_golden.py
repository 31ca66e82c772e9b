"""Ground truth for ports: what gpt2.golden writes is right, and gpt2.verify finds where a port differs, and why."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tiny_gpt2 import tiny_config, tiny_model, tiny_tokenizer
from torch_port import Port

from docs import pages
from gpt2 import golden, port, verify
from gpt2.cli import run_command
from gpt2.model import GPT2
from minigrad import random

IDS = [5, 17, 5, 99, 201, 7, 7, 42, 12, 250, 3, 3, 88, 9, 130, 61, 77, 4, 5, 17, 33]           # 2 rows of 10, and the last target
ADAM = (1e-2, 0.9, 0.999, 1e-8, 0.01)


@pytest.fixture
def run(capsys):
    """run(command, *flags): exit code, stdout and stderr of golden or verify."""

    def ended(command, *flags):
        with pytest.raises(SystemExit) as end:
            run_command(lambda: command.main([*map(str, flags)]), f"gpt2.{command.__name__.split('.')[-1]}")
        printed = capsys.readouterr()
        return end.value.code, printed.out, printed.err

    return ended


def some_model(**fields):
    """Three blocks, with biases and LayerNorm weights that matter, and norms small enough for ε to."""
    model = GPT2(tiny_config(n_layer=3, initializer_range=0.15, **fields), seed=4)
    for i, (name, p) in enumerate(model.named_parameters()):
        if p.ndim == 1:
            p.assign(p.array + random.normal(random.fold_in(6, i), p.shape, std=0.3).array)
        elif name == "wte.weight":                      # variances of about 1e-2: ε = 1e-5 is a thousandth of them
            p.assign(p.array * 0.5)
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A saved model, its weights, and its ground truth with gradients and three steps, at (folder, weights, config, golden folder)."""
    folder = tmp_path_factory.mktemp("golden")
    model = some_model()
    model.save_pretrained(folder / "model", tokenizer=tiny_tokenizer())
    golden.main(["--model", str(folder / "model"), "--ids", ",".join(map(str, IDS)), "--batch-size", "2", "--grad", "--steps", "3",
                 "--learning-rate", str(ADAM[0]), "--out", str(folder / "truth")])
    weights = {name: p.array.copy() for name, p in model.named_parameters()}
    return folder, weights, model.config, folder / "truth"


def ported(made, bug=None, only=None, dtype=torch.float32, steps=0, grad=False, edit=None, adam=ADAM):
    """What the PyTorch port computes, saved; edit changes the tensors before that."""
    folder, weights, config, _ = made
    ids = np.array(IDS)
    found = Port(weights, config, bug, only, dtype).run(ids[:-1].reshape(2, 10), ids[1:].reshape(2, 10), grad, steps, adam)
    arrays = {name: x.numpy().copy() for name, x in found.items()}
    if edit is not None:
        edit(arrays)
    path = folder / "port.safetensors"
    save_file(arrays, path)
    return path


def judged(run, made, path, *flags):
    """Exit code and document of a comparison."""
    code, out, err = run(verify, "--golden", made[3], "--against", path, "--json", *flags)
    assert err == "", err
    return code, json.loads(out)


# ── what golden writes ──
def test_the_truth_is_pytorchs(made):
    """Activations, loss, every gradient and three AdamW steps equal an independent port's in float64 to a thousandth of a unit."""
    truth = golden.read_golden(made[3])
    ids = np.array(IDS)
    theirs = Port(made[1], made[2], dtype=torch.float64).run(ids[:-1].reshape(2, 10), ids[1:].reshape(2, 10), True, 3, ADAM)
    assert set(theirs) == set(truth.entries)
    for name, entry in truth.entries.items():
        a, b = truth.array(name), theirs[name].numpy()
        # float64 rounds 5e8 times finer than float32; AdamW divides by gradients that are nearly 0
        assert np.abs(a - b.reshape(a.shape)).max() <= 1e-3 * entry.unit, name
        assert entry.norm == pytest.approx(np.linalg.norm(a), rel=1e-12) and list(a.shape) == entry.shape


def test_the_order_is_that_of_the_computation(made):
    names = list(golden.read_golden(made[3]).entries)
    at = {name: i for i, name in enumerate(names)}
    assert names[0] == "embed" and at["logits"] + 1 == at["loss"] and at["loss"] + 1 == at["logits.grad"]
    assert at["blocks.2.mlp.act.grad"] < at["blocks.2.mlp.pre.grad"] < at["blocks.1.resid_post.grad"] < at["embed.grad"]
    assert at["embed.grad"] + 1 == at["ln_f.weight.grad"]
    assert at["h.2.mlp.c_proj.weight.grad"] < at["h.2.ln_1.bias.grad"] < at["h.0.mlp.c_fc.weight.grad"] < at["wte.weight.grad"]
    assert at["wte.weight.grad"] < at["step.1.loss"] < at["step.1.wte.weight"] < at["step.2.loss"] and names[-1] == "step.3.wte.weight"


def test_every_tensor_has_its_equation(made):
    entries = golden.read_golden(made[3]).entries
    assert all(e.equation for e in entries.values())
    wanted = {"blocks.1.attn.pattern": "attention.2", "blocks.1.attn.q.grad": "attention.6", "blocks.0.mlp.pre.grad": "gelu.4",
              "h.1.ln_2.bias.grad": "layer_norm.7", "h.1.attn.c_attn.weight.grad": "linear.4", "wpe.weight.grad": "embedding.3",
              "logits.grad": "cross_entropy.3", "blocks.0.attn.z.grad": "linear.4", "blocks.2.resid_post.grad": "layer_norm.5",
              "blocks.1.resid_post.grad": "block.6", "h.0.mlp.c_fc.bias.grad": "linear.3", "wte.weight.grad": "tying.2",
              "step.2.ln_f.bias": "adamw.4"}
    assert {name: entries[name].equation for name in wanted} == wanted
    known = pages.labels_of_pages()
    assert {label for e in entries.values() for label in e.equation.split(", ")} <= known.keys()


def test_float32_is_what_the_model_computes(run, made, tmp_path):
    """--dtype float32 stores the kernels' own run; without --grad and --steps there are activations and the loss."""
    assert run(golden, "--model", made[0] / "model", "--ids", "1,2,3,4", "--dtype", "float32", "--out", tmp_path / "g")[0] == 0
    truth = golden.read_golden(tmp_path / "g")
    model = GPT2.from_pretrained(made[0] / "model")
    found = model.trace([[1, 2, 3]], [[2, 3, 4]])
    assert list(truth.entries) == list(found)
    for name, a in found.items():
        np.testing.assert_array_equal(truth.array(name), a.astype(np.float64))
    assert load_file(tmp_path / "g" / golden.TENSORS)["logits"].dtype == np.float32


def test_units_are_float32s_own_error(made):
    """A unit is what float32 is off by; a number that is exact in float32 is given half an eps of it."""
    truth = golden.read_golden(made[3])
    model = GPT2.from_pretrained(made[0] / "model")
    ids = np.array(IDS)[:-1].reshape(2, 10)
    logits = model.trace(ids)["logits"].astype(np.float64)
    assert truth.entries["logits"].unit == np.abs(logits - truth.array("logits")).max()
    assert truth.entries["embed"].unit == 2.0**-24 * np.abs(truth.array("embed")).max()


def test_random_weights_are_written_along(run, tmp_path):
    """Truth of random weights holds them, as a model that loads; the same seed gives the same numbers."""
    flags = ("--random-weights", 3, "--ids", "1,2,3")
    for name in ("a", "b"):
        assert run(golden, *flags, "--out", tmp_path / name)[0] == 0
    a, b = (load_file(tmp_path / name / golden.TENSORS) for name in ("a", "b"))
    assert all(np.array_equal(a[k], b[k]) for k in a)
    model = GPT2.from_pretrained(tmp_path / "a" / "model", dtype="float64", explicit=True)
    np.testing.assert_array_equal(model.trace([[1, 2]])["logits"], a["logits"])
    code, out, _ = run(verify, "--golden", tmp_path / "a", "--against", tmp_path / "b")
    assert code == 0 and out == f"{len(a)} tensors compared, {len(a)} agree\n"


def test_a_folder_is_replaced_whole_or_not_at_all(run, made, tmp_path, monkeypatch):
    """Another truth replaces one; what is something else is left alone; a failure leaves the old one."""
    flags = ("--model", made[0] / "model", "--ids", "1,2,3")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    code, _, err = run(golden, *flags, "--out", tmp_path / "mine")
    assert code == 2 and "not from an earlier run (it has no manifest.json)" in err and list((tmp_path / "mine").iterdir())
    assert run(golden, *flags, "--out", tmp_path / "g")[0] == 0
    before = (tmp_path / "g" / golden.TENSORS).read_bytes()

    def full(path, *pieces):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("gpt2.files.write_new", full)
        code, _, err = run(golden, *flags, "--grad", "--out", tmp_path / "g")
    assert code == 2 and "No space left" in err and (tmp_path / "g" / golden.TENSORS).read_bytes() == before
    rename = Path.rename

    def stuck(self, target):
        if self.name.endswith(".tmp"):
            raise OSError(13, "Permission denied", str(self))
        return rename(self, target)

    with monkeypatch.context() as patch:                # when the old one has stepped aside already
        patch.setattr(Path, "rename", stuck)
        assert run(golden, *flags, "--grad", "--out", tmp_path / "g")[0] == 2
    assert (tmp_path / "g" / golden.TENSORS).read_bytes() == before
    assert run(golden, *flags, "--grad", "--out", tmp_path / "g")[0] == 0
    assert "logits.grad" in golden.read_golden(tmp_path / "g").entries and sorted(p.name for p in tmp_path.iterdir()) == ["g", "mine"]


# ── right ports ──
@pytest.mark.parametrize("dtype, steps", [(torch.float32, 3), (torch.float64, 3)])
def test_a_right_port_agrees(run, made, dtype, steps):
    """PyTorch in float32 is within the bound everywhere, and in float64 within that of float64."""
    code, found = judged(run, made, ported(made, dtype=dtype, steps=steps, grad=True))
    assert code == 0 and found["first"] is None and found["missing"] == []
    assert len(found["compared"]) == len(golden.read_golden(made[3]).entries)


def test_a_slow_port_agrees(run, made, tmp_path):
    """One that adds number by number in float32, the worst order there is, is within the bound."""
    truth = golden.read_golden(made[3])
    w = made[1]

    def product(x, weight):
        out = np.zeros((*x.shape[:-1], weight.shape[1]), np.float32)
        for i in range(x.shape[-1]):
            out += x[..., i:i + 1] * weight[i]
        return out

    x = truth.array("blocks.1.ln_2.out").astype(np.float32)
    pre = product(x, w["h.1.mlp.c_fc.weight"]) + w["h.1.mlp.c_fc.bias"]
    act = truth.array("blocks.1.mlp.act").astype(np.float32)
    save_file({"blocks.1.mlp.pre": pre, "blocks.1.mlp.out": product(act, w["h.1.mlp.c_proj.weight"]) + w["h.1.mlp.c_proj.bias"]},
              tmp_path / "p.safetensors")
    code, found = judged(run, made, tmp_path / "p.safetensors")
    assert code == 0 and [c["units"] < 16 for c in found["compared"]] == [True, True]


def test_float64_that_is_float32_inside_is_found(run, made, tmp_path):
    """Stored in float64, computed in float32: what claims to be float64 is held to it."""
    path = ported(made, edit=lambda arrays: arrays.update({k: a.astype(np.float64) for k, a in arrays.items()}))
    code, found = judged(run, made, path)
    assert code == 1 and any("float" in cause or "%" in cause for cause in found["causes"])


# ── wrong ports ──
FORWARD = [
    ("positions from 1", "pos_embed", "start at row 1"), ("no positions", "pos_embed", "not added"),
    ("times sqrt d", "embed", "multiplied by √d"),
    ("eps outside", "blocks.0.ln_1.out", "inside the root"), ("no eps", "blocks.0.ln_1.out", "left out of LayerNorm"),
    ("eps 1e-6", "blocks.0.ln_1.out", "1e-6"), ("eps 1e-12", "blocks.0.ln_1.out", "BERT's, 1e-12"),
    ("sample variance", "blocks.0.ln_1.out", "n − 1"), ("no norm weight", "blocks.0.ln_1.out", "weight is not applied"),
    ("no norm bias", "blocks.0.ln_1.out", "bias is not added"), ("rmsnorm", "blocks.0.ln_1.out", "RMSNorm"),
    ("norm over places", "blocks.0.ln_1.out", "over the places"),
    ("attn.c_attn transposed", "blocks.0.attn.q", "c_attn's weight is read transposed"),
    ("no attn.c_attn bias", "blocks.0.attn.q", "c_attn's bias"),
    ("heads of q, k, v", "blocks.0.attn.q", "not each head's Q, K, V"),
    ("heads inside", "blocks.0.attn.q", "not number by number through the heads"),
    ("q and k swapped", "blocks.0.attn.q", "Q and K are swapped"), ("k and v swapped", "blocks.0.attn.k", "K and V are swapped"),
    ("q and v swapped", "blocks.0.attn.q", "Q and V are swapped"), ("k, v, q", "blocks.0.attn.q", "K, V, Q are read"),
    ("v, q, k", "blocks.0.attn.q", "V, Q, K are read"),
    ("no scale", "blocks.0.attn.pattern", "not divided by √(d/h)"), ("scale d", "blocks.0.attn.pattern", "divided by √d;"),
    ("scale h", "blocks.0.attn.pattern", "divided by √h"),
    ("scale d_head", "blocks.0.attn.pattern", "divided by d/h"), ("scale times", "blocks.0.attn.pattern", "multiplied by √(d/h)"),
    ("no mask", "blocks.0.attn.pattern", "no causal mask"), ("mask after softmax", "blocks.0.attn.pattern", "after softmax"),
    ("mask by zeros", "blocks.0.attn.pattern", "masked scores are 0"),
    ("mask hides itself", "blocks.0.attn.pattern", "hides each query's own key"),
    ("mask shows next", "blocks.0.attn.pattern", "one key too many"), ("mask upside down", "blocks.0.attn.pattern", "from their own on"),
    ("softmax over queries", "blocks.0.attn.pattern", "over the queries"),
    ("pattern transposed", "blocks.0.attn.z", "multiplied transposed"), ("no transpose", "blocks.0.attn.out", "without the transpose"),
    ("attn.c_proj transposed", "blocks.0.attn.out", "attn.c_proj's weight is read transposed"),
    ("no attn.c_proj bias", "blocks.0.attn.out", "attn.c_proj's bias"), ("no c_proj", "blocks.0.attn.out", "without c_proj"),
    ("no residual 1", "blocks.0.resid_mid", "replaces the residual stream"), ("post-norm 1", "blocks.0.resid_mid", "what ln_1 made"),
    ("ln_2 too early", "blocks.0.ln_2.out", "ln_2 is applied to the block's input"),
    ("mlp after ln_1", "blocks.0.ln_2.out", "reads what ln_1 made"), ("ln_1 in ln_2", "blocks.0.ln_2.out", "ln_2 has ln_1's weight"),
    ("ln_2 in ln_1", "blocks.0.ln_1.out", "ln_1 has ln_2's weight"),
    ("mlp.c_fc transposed", "blocks.0.mlp.pre", "mlp.c_fc's weight is read transposed"),
    ("no mlp.c_fc bias", "blocks.0.mlp.pre", "mlp.c_fc's bias"),
    ("erf", "blocks.0.mlp.act", "by erf"), ("relu", "blocks.0.mlp.act", "is ReLU"), ("quick", "blocks.0.mlp.act", "1.702"),
    ("silu", "blocks.0.mlp.act", "SiLU"), ("identity", "blocks.0.mlp.act", "no activation"),
    ("no cube", "blocks.0.mlp.act", "lacks the term 0.044715 x³"),
    ("no root", "blocks.0.mlp.act", "lacks the factor √(2/π)"),
    ("mlp.c_proj transposed", "blocks.0.mlp.out", "mlp.c_proj's weight is read transposed"),
    ("no mlp.c_proj bias", "blocks.0.mlp.out", "mlp.c_proj's bias"),
    ("no residual 2", "blocks.0.resid_post", "replaces the residual stream"),
    ("post-norm 2", "blocks.0.resid_post", "what ln_2 made"), ("parallel", "blocks.0.resid_post", "attention's part is lost"),
    ("no ln_f", "ln_f.out", "ln_f, is not applied"),
    ("sum", "loss", "sum over the tokens"), ("rows", "loss", "mean over rows of sums"), ("bits", "loss", "in bits"),
    ("perplexity", "loss", "perplexity"), ("not shifted", "loss", "not shifted"), ("last", "loss", "last place alone"),
    ("sign", "loss", "wrong sign"),
]


@pytest.mark.parametrize("bug, first, says", FORWARD, ids=lambda v: v if isinstance(v, str) else None)
def test_a_planted_bug_is_found_and_named(run, made, bug, first, says):
    """By the first tensor that is wrong, and by what causes it, as the one thing that is said or the first."""
    code, found = judged(run, made, ported(made, bug))
    assert code == 1 and found["first"] == first, (found["first"], found["causes"])
    # in float32 an ε of 1e-12 is none
    assert found["causes"] and says in found["causes"][bug == "eps 1e-12"], found["causes"]


@pytest.mark.parametrize("bug, end, says", [(b, f, s) for b, f, s in FORWARD if f.startswith("blocks.0.")][::3],
                         ids=lambda v: v if isinstance(v, str) else None)
@pytest.mark.parametrize("only", [(2,), (1, 2)])
def test_a_bug_of_some_blocks_is_found_there(run, made, bug, end, says, only):
    """In one block, or from one on: the first of them is named. In float64, for ε is below float32's bound where variances are 1."""
    code, found = judged(run, made, ported(made, bug, only, torch.float64))
    assert code == 1 and found["first"] == end.replace("blocks.0", f"blocks.{only[0]}")
    assert says in found["causes"][0], found["causes"]


@pytest.mark.parametrize("bug, says", [(bug, says) for bug, first, says in FORWARD
                                       if first.startswith(("blocks.0.", "pos", "ln_f"))])
def test_the_logits_alone_are_enough(run, made, bug, says):
    """A port that has nothing but logits is told the same."""
    def bare(arrays):
        for name in [name for name in arrays if name != "logits"]:
            del arrays[name]

    code, found = judged(run, made, ported(made, bug, edit=bare))
    assert code == 1 and found["first"] == "logits" and len(found["missing"]) > 50
    assert any(says in cause for cause in found["causes"]), found["causes"]


def grads(change):
    """Planted in a right port's gradients: change(tensors) -> {name: array}."""
    def edit(arrays):
        arrays.update({name: np.ascontiguousarray(a) for name, a in change(arrays).items()})

    return edit


def tied(arrays, part):
    rows = np.zeros_like(arrays["wte.weight.grad"])
    ids = np.array(IDS[:-1]).reshape(2, 10)
    if part == "set":
        rows[ids] = arrays["embed.grad"]
        added = np.zeros_like(rows)
        np.add.at(added, ids, arrays["embed.grad"])
        return {"wte.weight.grad": arrays["wte.weight.grad"] - added + rows}
    np.add.at(rows, ids, arrays["embed.grad"])
    return {"wte.weight.grad": rows if part == "embed" else arrays["wte.weight.grad"] - rows}


def norm_back(a, means, weights):
    """∂x of ln_2 in block 1 with some of its two means left out, in place of the right one."""
    x, g = (a[f"blocks.1.{n}"].astype(np.float64) for n in ("resid_mid", "ln_2.out.grad"))
    c = x - x.mean(-1, keepdims=True)
    rstd = 1 / np.sqrt((c * c).mean(-1, keepdims=True) + 1e-5)
    n, h = c * rstd, g * weights["h.1.ln_2.weight"]
    part = h - ("a" in means) * h.mean(-1, keepdims=True) - ("b" in means) * n * (h * n).mean(-1, keepdims=True)
    return {"blocks.1.resid_mid.grad": (a["blocks.1.resid_post.grad"] + rstd * part).astype(np.float32)}


def softmaxed(a):
    e = np.exp(a["logits"] - a["logits"].max(-1, keepdims=True))
    return {"logits.grad": e / e.sum(-1, keepdims=True) / 20}


def scores_back(a, which):
    k, p, v, gz = (a[f"blocks.1.attn.{n}"] for n in ("k", "pattern", "v", "z.grad"))
    dp = gz @ v.swapaxes(-1, -2)
    ds = {"plain": p * (dp - (p * dp).sum(-1, keepdims=True)) * 4.0, "no row sum": p * dp, "identity": dp}[which]
    return {"blocks.1.attn.q.grad": ds @ k / 4.0}


BACKWARD = [
    ("tied, embedding only", lambda a, w: tied(a, "embed"), "wte.weight.grad", "lacks the head's part"),
    ("tied, head only", lambda a, w: tied(a, "head"), "wte.weight.grad", "lacks the embedding's part"),
    ("rows set", lambda a, w: tied(a, "set"), "wte.weight.grad", "are set, not added"),
    ("summed", lambda a, w: {n: 20 * x for n, x in a.items() if n.endswith(".grad")}, "logits.grad", "the number of tokens times"),
    ("twice", lambda a, w: {"h.1.mlp.c_fc.weight.grad": 2 * a["h.1.mlp.c_fc.weight.grad"]}, "h.1.mlp.c_fc.weight.grad", "added twice"),
    ("sign", lambda a, w: {"blocks.1.mlp.out.grad": -a["blocks.1.mlp.out.grad"]}, "blocks.1.mlp.out.grad", "wrong sign"),
    ("weight transposed", lambda a, w: {"h.2.attn.c_proj.weight.grad": a["h.2.attn.c_proj.weight.grad"].T}, "h.2.attn.c_proj.weight.grad",
     "axes are in another order"),
    ("no one-hot", lambda a, w: softmaxed(a), "logits.grad", "softmax alone"),
    ("no gelu derivative", lambda a, w: {"blocks.2.mlp.pre.grad": a["blocks.2.mlp.act.grad"]}, "blocks.2.mlp.pre.grad",
     "derivative is left out"),
    ("relu derivative", lambda a, w: {"blocks.2.mlp.pre.grad": a["blocks.2.mlp.act.grad"] * (a["blocks.2.mlp.pre"] > 0)},
     "blocks.2.mlp.pre.grad", "that of ReLU"),
    ("no scale back", lambda a, w: scores_back(a, "plain"), "blocks.1.attn.q.grad", "scale 1/√(d/h) is left out"),
    ("no row sum", lambda a, w: scores_back(a, "no row sum"), "blocks.1.attn.q.grad", "lacks −⟨p, g⟩"),
    ("no softmax back", lambda a, w: scores_back(a, "identity"), "blocks.1.attn.q.grad", "softmax's derivative is left out"),
    ("skip only", lambda a, w: {"blocks.1.resid_mid.grad": a["blocks.1.resid_post.grad"]}, "blocks.1.resid_mid.grad",
     "through ln_2 is left out"),
    ("no skip", lambda a, w: {"blocks.1.resid_pre.grad": a["blocks.1.resid_pre.grad"] - a["blocks.1.resid_mid.grad"],
                              "blocks.0.resid_post.grad": a["blocks.0.resid_post.grad"] - a["blocks.1.resid_mid.grad"]},
     "blocks.1.resid_pre.grad", "past ln_1 is left out"),
    ("no means", lambda a, w: norm_back(a, "", w), "blocks.1.resid_mid.grad", "lacks its two means"),
    ("no second mean", lambda a, w: norm_back(a, "a", w), "blocks.1.resid_mid.grad", "lacks −x̂ mean(ĝ ⊙ x̂)"),
    ("no first mean", lambda a, w: norm_back(a, "b", w), "blocks.1.resid_mid.grad", "lacks −mean(ĝ)"),
    ("last row", lambda a, w: {"h.2.mlp.c_fc.bias.grad": a["blocks.2.mlp.pre.grad"][1].sum(0)}, "h.2.mlp.c_fc.bias.grad",
     "row 1 of the batch alone"),
    ("first row", lambda a, w: {"ln_f.bias.grad": a["ln_f.out.grad"][0].sum(0)}, "ln_f.bias.grad", "row 0 of the batch alone"),
    ("last place", lambda a, w: {"h.0.ln_1.bias.grad": a["blocks.0.ln_1.out.grad"][:, -1].sum(0)}, "h.0.ln_1.bias.grad",
     "the last place alone"),
    ("last row of q, k, v", lambda a, w: {"h.1.attn.c_attn.bias.grad": np.concatenate(
        [a[f"blocks.1.attn.{p}.grad"][1].transpose(1, 0, 2).reshape(10, 32) for p in "qkv"], -1).sum(0)}, "h.1.attn.c_attn.bias.grad",
     "row 1 of the batch alone"),
]


@pytest.mark.parametrize("bug, change, first, says", BACKWARD, ids=lambda v: v if isinstance(v, str) else "")
def test_a_wrong_gradient_is_found_and_named(run, made, bug, change, first, says):
    code, found = judged(run, made, ported(made, grad=True, edit=grads(lambda a: change(a, made[1]))))
    assert code == 1 and found["first"] == first, (found["first"], found["causes"])
    assert found["causes"] and says in found["causes"][0], found["causes"]


OPTIMIZER = [("no decay", 1, "left out"), ("coupled", 1, "added to the gradient"), ("no correction", 1, "bias correction"),
             ("t stays 1", 2, "does not grow"), ("eps inside", 1, "ε is inside the root"), ("matrices", 1, "only matrices decay"),
             ("moments kept not", 2, "start from zero"), ("summed", 2, "not zeroed"), ("clipped", 1, "clipped"),
             ("sgd", 1, "gradient descent"),
             ("plus", 1, "wrong sign")]


@pytest.mark.parametrize("bug, step, says", OPTIMIZER, ids=lambda v: v if isinstance(v, str) else None)
def test_a_wrong_step_is_found_and_named(run, made, bug, step, says):
    code, found = judged(run, made, ported(made, bug, steps=3, dtype=torch.float64))
    assert code == 1 and found["first"].startswith(f"step.{step}."), (found["first"], found["causes"])
    assert any(says in cause for cause in found["causes"]), (found["first"], found["causes"])


@pytest.mark.parametrize("settings, step, says", [
    ({"lr": 0.1}, 1, "the learning rate is 0.1, 10 times as much; here it is 0.01"),
    ({"lr": 0.0137}, 1, "the learning rate is 0.0137, 1.37 times as much"),
    ({"beta1": 0.95}, 2, "β₁ is 0.95"), ({"beta1": 0.8}, 2, "β₁ is 0.8"), ({"beta2": 0.99}, 2, "β₂ is 0.99"),
    ({"beta2": 0.95}, 2, "β₂ is 0.95"), ({"eps": 1e-5}, 1, "ε is 1e-05"), ({"eps": 1e-3}, 1, "ε is 0.001"),
    ({"weight_decay": 0.1}, 1, "weight decay is 0.1, 10 times as much"), ({"weight_decay": 0.3}, 1, "weight decay is 0.3, 30 times as much"),
], ids=str)
def test_another_setting_of_adamw_is_named(run, made, settings, step, says):
    adam = golden.Adam(*ADAM)._replace(**settings)
    code, found = judged(run, made, ported(made, steps=3, adam=adam))
    assert code == 1 and found["first"].startswith(f"step.{step}."), (found["first"], found["causes"])
    assert any(says in cause for cause in found["causes"]), (found["first"], found["causes"])
    assert not any("rounding" in cause for cause in found["causes"])


def test_a_setting_of_adamw_is_named_from_a_later_step(run, made):
    """Of a port that has the last step's tensors alone, or the losses alone."""
    def last(arrays):
        for name in [name for name in arrays if not name.startswith("step.3.")]:
            del arrays[name]

    def losses(arrays):
        for name in [name for name in arrays if not name.endswith(".loss")]:
            del arrays[name]

    adam = golden.Adam(*ADAM)._replace(lr=0.02)
    for edit, first in ((last, "step.3.loss"), (losses, "step.2.loss")):
        code, found = judged(run, made, ported(made, steps=3, adam=adam, edit=edit))
        assert code == 1 and found["first"] == first
        assert any("the learning rate is 0.02, 2 times as much" in cause for cause in found["causes"]), found["causes"]


# ── names, shapes, files ──
def test_a_map_of_names(run, made, tmp_path):
    """A port's own names, and axes in another order; what is not named keeps our name."""
    def renamed(arrays):
        for i in range(3):
            arrays[f"layer{i}/query"] = np.ascontiguousarray(arrays.pop(f"blocks.{i}.attn.q").transpose(0, 2, 1, 3))
            arrays[f"layer{i}/attention"] = arrays.pop(f"blocks.{i}.attn.out")
        arrays["out"] = arrays.pop("logits")

    (tmp_path / "names.toml").write_text('"blocks.*.attn.q" = { name = "layer*/query", transpose = [0, 2, 1, 3] }\n'
                                         '"blocks.*.attn.out" = "layer*/attention"\n"logits" = "out"\n')
    path = ported(made, edit=renamed)
    code, found = judged(run, made, path, "--map", tmp_path / "names.toml")
    assert code == 0 and not any(name.endswith(("attn.q", "attn.out", "logits")) for name in found["missing"])
    code, found = judged(run, made, path)
    assert code == 0 and {"blocks.0.attn.q", "blocks.2.attn.out", "logits"} <= set(found["missing"])


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_numpy_files(run, made, tmp_path, kind):
    arrays = load_file(ported(made))
    some = {name: arrays[name] for name in ("embed", "blocks.0.attn.q", "logits")}
    if kind == "npz":
        np.savez(tmp_path / "port.npz", **some)
    else:
        for name, a in some.items():
            np.save(tmp_path / f"{name}.npy", a)
    code, found = judged(run, made, tmp_path / "port.npz" if kind == "npz" else tmp_path)
    assert code == 0 and [c["name"] for c in found["compared"]] == list(some)


def test_what_is_said_of_a_port(run, made):
    """The table has the wrong tensors, then the first, what agreed before it, the cause, and how many there were."""
    code, out, err = run(verify, "--golden", made[3], "--against", ported(made, "erf"))
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert lines[1].startswith("blocks.0.mlp.act") and lines[1].endswith("wrong")
    assert any(line.startswith("the first to differ: blocks.0.mlp.act (gelu.2) by ") and "up to blocks.0.mlp.pre" in line for line in lines)
    assert "likely: GELU is the exact one, by erf (PyTorch's default); GPT-2 has the one by tanh" in lines
    assert lines[-1].startswith("47 tensors compared, ") and "the port lacks " in lines[-1]
    assert len(run(verify, "--golden", made[3], "--against", made[0] / "port.safetensors", "--all")[1].splitlines()) > 47


def spoil(name, value):
    return lambda arrays: arrays.update({name: value(arrays[name])})


@pytest.mark.parametrize("edit, says", [
    (spoil("blocks.1.mlp.pre", lambda a: np.where(a == a[1, 2, 3], np.nan, a).astype(np.float32)),
     "has 1 × NaN or infinity, the first at [1, 2, 3]"),
    (spoil("blocks.1.attn.q", lambda a: a[:, :, :5]), "is [2, 2, 5, 16]; [2, 2, 10, 16] is wanted"),
    (spoil("h.2.mlp.c_fc.bias.grad", lambda a: np.stack([a, a])), "is [2, 128], not summed over the batch; [128] is wanted"),
    (spoil("logits", lambda a: np.ascontiguousarray(a.T)), "is [300, 10, 2], the transpose; [2, 10, 300] is wanted"),
    (spoil("blocks.2.resid_post", lambda a: np.zeros_like(a)), "it is all zero"),
    (spoil("blocks.1.mlp.act", lambda a: a * 1.2345), "it is 1.2345 times what it should be"),
    (spoil("blocks.1.attn.k", lambda a: np.ascontiguousarray(np.roll(a, 1, 2))), "it is shifted by one place, later"),
    (spoil("blocks.1.resid_mid", lambda a: a + np.eye(10, dtype=np.float32)[4][:, None]), "only place 4 of 10 is wrong"),
    (spoil("blocks.1.resid_mid", lambda a: a.astype(np.float16).astype(np.float32)), "right but for float16's rounding"),
    (spoil("blocks.1.resid_mid", lambda a: (a.view(np.uint32) + 0x8000 & 0xFFFF0000).view(np.float32)), "right but for bfloat16's rounding"),
    (spoil("blocks.1.resid_mid", lambda a: a * (1 + 1e-4 * np.sin(np.arange(32, dtype=np.float32)))), "is off by 0.00"),
    (spoil("blocks.2.resid_mid", lambda a: np.float32(3) * np.sin(np.arange(a.size, dtype=np.float32)).reshape(a.shape)),
     "% in the mean square, its correlation with ours "),
    (spoil("loss", lambda a: a + np.float32(1.5)), "with no pattern that is known here"),
], ids=range(13))
def test_what_a_wrong_tensor_looks_like(run, made, edit, says):
    code, out, _ = run(verify, "--golden", made[3], "--against", ported(made, edit=edit, grad=True))
    assert code == 1 and says in out, out
    assert ("rounding" in says) == ("rounding" in out), out


def test_bad_input_is_one_line(run, made, tmp_path):
    truth, good = made[3], ported(made)
    (tmp_path / "bad.toml").write_text("x = [1]")
    (tmp_path / "stars.toml").write_text('"blocks.*.attn.q" = "q"')
    (tmp_path / "broken.toml").write_text("x = ")
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.txt").write_text("x")
    save_file({"quite": np.zeros(3, np.float32), "other": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    np.save(tmp_path / "embed.npy", np.zeros((2, 10, 32), np.int32))
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:100])
    shutil.copytree(truth, tmp_path / "damaged")
    (tmp_path / "damaged" / golden.MANIFEST).write_text("{}")
    for flags, code, says in (
            (["--against", tmp_path / "nothing"], 3, "does not exist"),
            (["--against", tmp_path / "empty"], 3, "holds no tensors"),
            (["--against", tmp_path / "x.txt"], 3, "must end in .safetensors, .npz or .npy"),
            (["--against", tmp_path / "other.safetensors"], 3, "has none of the"),
            (["--against", tmp_path / "embed.npy"], 3, "'embed' is int32; only float64, float32"),
            (["--against", tmp_path / "cut.safetensors"], 3, "is not a whole safetensors file"),
            (["--against", good, "--golden", tmp_path / "none"], 3, "is no folder of gpt2.golden"),
            (["--against", good, "--golden", tmp_path / "damaged"], 3, "is no folder of gpt2.golden"),
            (["--against", good, "--map", tmp_path / "bad.toml"], 2, "'x' must be a name"),
            (["--against", good, "--map", tmp_path / "stars.toml"], 2, "must have one * each, or none"),
            (["--against", good, "--map", tmp_path / "broken.toml"], 2, "is not TOML"),
            (["--against", good, "--map", tmp_path / "no.toml"], 3, "cannot be read"),
            (["--against", good, "--slow"], 2, "--data and --slow go with --model"),
            (["--against", good, "--model", "gpt2"], 2, "not allowed with"),
            ([], 2, "one of the arguments --against --model is required")):
        given = flags if "--golden" in flags or not flags else [*flags, "--golden", truth]
        ended, out, err = run(verify, *given)
        assert (ended, out, err.count("\n")) == (code, "", 1) and says in err, (flags, err)
    for flags, says in ((["--ids", "1", "--grad"], "one id has none after it"), (["--ids", "1,2,3,4", "--batch-size", "2"], "leave out 1"),
                        (["--dtype", "float16"], "float64 or float32"), (["--ids", "1,2,3,4,5000"], "outside the vocabulary"),
                        (["--ids", " ".join(["1"] * 130)], "the prompt has 130 tokens"), (["--steps", "-1"], "less than 0")):
        ended, out, err = run(golden, *flags, "--out", tmp_path / "out")
        assert (ended, out, err.count("\n")) == (2, "", 1) and says in err and not (tmp_path / "out").exists(), (flags, err)


def test_without_the_weights_pictures_are_left(run, made, tmp_path):
    """Where the model is gone nothing can be planted, and that is said."""
    shutil.copytree(made[3], tmp_path / "truth")
    manifest = json.loads((tmp_path / "truth" / golden.MANIFEST).read_text())
    (tmp_path / "truth" / golden.MANIFEST).write_text(json.dumps(manifest | {"model": str(tmp_path / "gone")}))
    code, out, err = run(verify, "--golden", tmp_path / "truth", "--against", ported(made, "erf"))
    assert code == 1 and "the weights are not here, so bugs could not be planted" in out and err == ""


def test_distance_is_the_larger_of_two():
    """A small error everywhere counts as well as one large number."""
    entry = port.Entry("x", "", [4], "float64", 1.0, unit=1e-6, unit_rms=1e-8)
    zero = np.zeros(4)
    assert port.distance(entry, zero, zero + 1e-7, "float32") == pytest.approx(10.0)
    assert port.distance(entry, zero, np.array([3e-6, 0, 0, 0]), "float32") == pytest.approx(150.0)
    assert port.distance(entry, zero, zero + 1e-7, "bfloat16") == pytest.approx(10.0 / 2**16)
    assert port.distance(entry, zero, zero + 1e-15, "float64") == pytest.approx(1e-7 * 2**29)


def test_tiny_models_of_other_kinds(run, tmp_path):
    """An untied head, another activation, one layer: written, read, and equal to itself."""
    tiny_model(n_layer=1, tie_word_embeddings=False, activation_function="relu", n_inner=40).save_pretrained(tmp_path / "m")
    flags = ("--model", tmp_path / "m", "--ids", "1,2,3", "--grad", "--steps", 1)
    assert run(golden, *flags, "--out", tmp_path / "g")[0] == 0
    assert run(golden, *flags, "--dtype", "float32", "--out", tmp_path / "h")[0] == 0
    code, out, err = run(verify, "--golden", tmp_path / "g", "--against", tmp_path / "h")
    assert code == 0, out + err
    assert "lm_head.weight.grad" in golden.read_golden(tmp_path / "g").entries
