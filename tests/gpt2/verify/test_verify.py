"""gpt2.verify on right ports, on names and files of all kinds, and on what is damaged."""
from __future__ import annotations

import json
import os
import shutil
import zipfile

import numpy as np
import ported as fixtures
import pytest
import torch
from long import slow_unless
from ported import judged, ported
from safetensors.numpy import load_file, save_file
from tiny_gpt2 import tiny_model

from gpt2.golden import __main__ as golden
from gpt2.io.records import unsealed
from gpt2.verify import __main__ as verify
from gpt2.verify import port

pytestmark = pytest.mark.rounding

made, run = fixtures.made, fixtures.run


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
    m = truth.array("blocks.1.resid_mid").astype(np.float32)
    mean = product(m, np.ones((m.shape[-1], 1), np.float32)) / np.float32(m.shape[-1])
    variance = product(np.square(m - mean), np.ones((m.shape[-1], 1), np.float32)) / np.float32(m.shape[-1])
    save_file({"blocks.1.ln_2.mean": mean, "blocks.1.ln_2.rstd": 1 / np.sqrt(variance + np.float32(1e-5)), "blocks.1.mlp.pre": pre,
               "blocks.1.mlp.out": product(act, w["h.1.mlp.c_proj.weight"]) + w["h.1.mlp.c_proj.bias"]}, tmp_path / "p.safetensors")
    code, found = judged(run, made, tmp_path / "p.safetensors")
    assert code == 0 and [c["units"] < 16 for c in found["compared"]] == [True] * 4


def test_float64_that_is_float32_inside_is_found(run, made, tmp_path):
    """Stored in float64, computed in float32: what claims to be float64 is held to it."""
    path = ported(made, edit=lambda arrays: arrays.update({k: a.astype(np.float64) for k, a in arrays.items()}))
    code, found = judged(run, made, path)
    assert code == 1 and any("float" in cause or "%" in cause for cause in found["causes"])


def test_a_name_that_nobody_knows_is_told(run, made, tmp_path):
    """A misspelt tensor is not compared, and not passed over in silence."""
    truth = golden.read_golden(made[3])
    some = {name: truth.array(name).astype(np.float32) for name in ("embed", "logits")}
    save_file({"embed": some["embed"], "logit": some["logits"] + 1.0}, tmp_path / "p.safetensors")
    code, out, _ = run(verify, "--golden", made[3], "--against", tmp_path / "p.safetensors")
    assert code == 0 and "1 tensors of the port have names that are not ours, and were not compared: logit; use --map to match them" in out


def test_what_16_bits_hide_is_told(run, made, tmp_path):
    """A port that stores float16 may agree, and what that cannot show is said."""
    truth = golden.read_golden(made[3])
    save_file({"logits": truth.array("logits").astype(np.float16), "embed": truth.array("embed").astype(np.float32)},
              tmp_path / "p.safetensors")
    code, out, _ = run(verify, "--golden", made[3], "--against", tmp_path / "p.safetensors")
    assert code == 0 and "cannot show a small mistake in what is stored in float16 (1 tensors), whose rounding is 8,192 times" in out


@pytest.mark.parametrize("off, sure", slow_unless(lambda row: row[1], [(1e-4, False), (None, True)]))
def test_few_numbers_are_no_proof(run, made, tmp_path, off, sure):
    """A loss that is nearly right may be many mistakes' by chance; a sum in the place of a mean is no chance."""
    truth = golden.read_golden(made[3])
    loss = truth.array("loss")
    wrong = loss * (20.0 if off is None else 1.0 + off)
    save_file({"loss": np.asarray(wrong, np.float32)}, tmp_path / "p.safetensors")
    code, found = judged(run, made, tmp_path / "p.safetensors")
    assert code == 1 and found["sure"] is sure, found["causes"]


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
    assert lines[-1].startswith("64 tensors compared, ") and "the port lacks " in lines[-1]
    assert len(run(verify, "--golden", made[3], "--against", made[0] / "port.safetensors", "--all")[1].splitlines()) > 47


def test_bad_input_is_one_line(run, made, tmp_path):
    truth, good = made[3], ported(made)
    (tmp_path / "bad.toml").write_text("x = [1]")
    (tmp_path / "stars.toml").write_text('"blocks.*.attn.q" = "q"')
    (tmp_path / "broken.toml").write_text("x = ")
    (tmp_path / "deep.toml").write_text("x = " + "[\n" * 60_000)
    (tmp_path / "axes.toml").write_text('embed = { name = "e", transpose = ["0", "1", "2"] }')
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
            (["--against", tmp_path / "embed.npy"], 3, "'embed': int32 is not compared; only float64, float32"),
            (["--against", tmp_path / "cut.safetensors"], 3, "is not a complete safetensors file"),
            (["--against", good, "--golden", tmp_path / "none"], 3, "is no folder of gpt2.golden"),
            (["--against", good, "--golden", tmp_path / "damaged"], 3, "manifest.json: format is missing"),
            (["--against", good, "--map", tmp_path / "bad.toml"], 2, "'x' must be a name"),
            (["--against", good, "--map", tmp_path / "stars.toml"], 2, "must have one * each, or none"),
            (["--against", good, "--map", tmp_path / "broken.toml"], 2, "is not TOML"),
            (["--against", good, "--map", tmp_path / "no.toml"], 3, "cannot be read"),
            (["--against", good, "--map", tmp_path / "deep.toml"], 2, "is nested too deeply"),
            (["--against", good, "--map", tmp_path / "axes.toml"], 2, "transpose must list the axes 0 … n − 1, each once"),
            (["--against", good, "--slow"], 2, "--data and --slow go with --model only"),
            (["--against", good, "--model", "gpt2"], 2, "not allowed with"),
            ([], 2, "one of the arguments --against --model is required")):
        given = flags if "--golden" in flags or not flags else [*flags, "--golden", truth]
        ended, out, err = run(verify, *given)
        assert (ended, out, err.count("\n")) == (code, "", 1) and says in err, (flags, err)


def test_damaged_numpy_files_are_one_line(run, made, tmp_path):
    """Cut short, changed, no archive at all, or with something that is no array of floats: exit code 3, whatever NumPy raises."""
    arrays = load_file(ported(made))
    good = tmp_path / "good.npz"
    np.savez(good, embed=arrays["embed"], logits=arrays["logits"])
    whole = good.read_bytes()
    flipped = bytearray(whole)
    flipped[300] ^= 0xFF                                # in the numbers of the first: its checksum is wrong
    for i, (data, says) in enumerate(((whole[:-30], "is no whole .npz file"), (whole[:200], "is no whole .npz file"),
                                      (b"PK\x03\x04 and no more", "is no whole .npz file"), (b"", "is no whole .npz file"),
                                      (b"text", "is no whole .npz file"), (bytes(flipped), "'embed': Bad CRC-32"))):
        (tmp_path / f"{i}.npz").write_bytes(data)
        code, out, err = run(verify, "--golden", made[3], "--against", tmp_path / f"{i}.npz")
        assert (code, out, err.count("\n")) == (3, "", 1) and says in err, (i, err)
    np.savez(tmp_path / "objects.npz", embed=np.array([{}, 1], dtype=object))
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("embed", "no array")
    np.save(tmp_path / "array.npy", arrays["embed"])
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    (tmp_path / "archive.npy").write_bytes(whole)
    (tmp_path / "embed.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4' ")
    save_file({"embed": np.zeros((2, 10, 32), np.int64)}, tmp_path / "ids.safetensors")
    save_file({"ids": np.zeros(3, np.uint8)}, tmp_path / "other.safetensors")
    for name, says in (("objects.npz", "Object arrays cannot be loaded"), ("text.npz", "'embed' is no array"),
                       ("array.npz", "is no .npz file, though it is called so"), ("archive.npy", "is no .npy file, though it is called so"),
                       ("embed.npy", "is no whole .npy file"), ("ids.safetensors", "'embed': int64 is not compared; only float64"),
                       ("other.safetensors", "it has 'ids' and 0 more")):
        code, out, err = run(verify, "--golden", made[3], "--against", tmp_path / name)
        assert (code, out, err.count("\n")) == (3, "", 1) and says in err, (name, err)


@pytest.mark.parametrize("change, says", [
    (lambda m: m.update(config={}), "config.vocab_size is missing"),
    (lambda m: m["config"].pop("n_head"), "config.n_head is missing"),
    (lambda m: m["config"].update(n_layer=10**39), "config n_layer must be 10,000 at most"),
    (lambda m: m.pop("adamw"), "manifest.json: adamw is missing"),
    (lambda m: m.update(adamw={}), "manifest.json: adamw.lr is missing"),
    (lambda m: m["adamw"].update(lr=float("nan")), "adamw.lr must be a finite number, not nan"),
    (lambda m: m.update(format="other"), 'format must be "gpt2-golden", not \'other\''),
    (lambda m: m.update(ids=[1, 2]), "ids[0] must be a list, not 1"),
    (lambda m: m.update(ids=[]), "ids and targets must be rows of one length"),
    (lambda m: m["ids"][0].append(1), "ids and targets must be rows of one length"),
    (lambda m: m["ids"][0].__setitem__(0, True), "ids[0][0] must be an integer"),
    (lambda m: m["targets"][0].__setitem__(0, 2**40), "an id is outside the vocabulary 0 … "),
    (lambda m: m.update(targets=None), "there is a loss, but there are no targets"),
    (lambda m: m["tensors"][3].update(unit=None), "tensors[3].unit must be a finite number, not None"),
    (lambda m: m["tensors"][3].update(unit=-1.0), "tensors[3].unit must be a finite number from 0.0 on, not -1.0"),
    (lambda m: m["tensors"][3].update(name="\ud800"), "tensors[3].name must be a text"),
    (lambda m: m["tensors"][3].update(shape=[7]), "in tensors.safetensors, and float64[7] in manifest.json"),
    (lambda m: m["tensors"][3].update(shape=[-7]), "tensors[3].shape[0] must be an integer from 0 to"),
    (lambda m: m["tensors"].append(m["tensors"][3]), "a tensor is named twice"),
    (lambda m: m["tensors"].pop(7), "manifest.json lacks blocks.0.attn.k"),
    (lambda m: m.update(tensors=3), "tensors must be a list, not 3"),
    (lambda m: m.update(crc32="00000000"), "does not have the checksum that its field crc32 names"),
], ids=range(22))
def test_a_damaged_manifest_is_one_line(run, made, tmp_path, change, says):
    shutil.copytree(made[3], tmp_path / "truth")
    manifest = unsealed(json.loads((tmp_path / "truth" / golden.MANIFEST).read_text()))
    change(manifest)
    (tmp_path / "truth" / golden.MANIFEST).write_text(json.dumps(manifest))
    code, out, err = run(verify, "--golden", tmp_path / "truth", "--against", ported(made, "erf", grad=True, steps=1))
    assert (code, out, err.count("\n")) == (3, "", 1) and says in err, err


@pytest.mark.parametrize("name", [golden.TENSORS, f"{golden.MODEL}/model.safetensors", golden.MANIFEST])
def test_a_damaged_truth_accuses_no_port(run, made, tmp_path, name):
    """One bit of a tensor, of the weights, or of the manifest: the file is named, whether the port is right or wrong."""
    shutil.copytree(made[3], tmp_path / "truth")
    content = bytearray((tmp_path / "truth" / name).read_bytes())
    content[-400] ^= 4
    (tmp_path / "truth" / name).write_bytes(content)
    for bug in (None, "erf"):
        code, out, err = run(verify, "--golden", tmp_path / "truth", "--against", ported(made, bug, grad=True, steps=3))
        if name.startswith(golden.MODEL) and code == 0:
            continue                                    # a right port needs no weights
        assert (code, out, err.count("\n")) == (3, "", 1) and str(tmp_path / "truth" / name) in err, err


def test_a_truth_of_an_older_version(run, made, tmp_path):
    """Without checksums it is read as before."""
    shutil.copytree(made[3], tmp_path / "truth")
    manifest = unsealed(json.loads((tmp_path / "truth" / golden.MANIFEST).read_text()))
    for one in manifest["tensors"]:
        del one["crc32"]
    (tmp_path / "truth" / golden.MANIFEST).write_text(json.dumps(manifest))
    assert run(verify, "--golden", tmp_path / "truth", "--against", ported(made, grad=True, steps=3))[0] == 0


def test_a_small_file_is_not_unpacked_to_a_large_one(run, made, tmp_path):
    """1 MB of zeros may unpack to gigabytes: no tensor is larger than the truth's largest, with the rows that fill up a vocabulary."""
    truth = golden.read_golden(made[3])
    np.savez_compressed(tmp_path / "a.npz", embed=np.zeros(10**8, np.float32), logits=truth.array("logits"))
    assert (tmp_path / "a.npz").stat().st_size < 10**6
    np.save(tmp_path / "embed.npy", np.zeros(10**7))
    for name in ("a.npz", "embed.npy"):
        code, out, err = run(verify, "--golden", made[3], "--against", tmp_path / name)
        assert (code, out) == (3, "") and f"{name}: 'embed' is larger than any tensor of the truth; leave it out" in err
    widest = truth.entries["wte.weight.grad"].shape
    np.savez(tmp_path / "b.npz", **{"wte.weight.grad": np.pad(truth.array("wte.weight.grad"), ((0, 127), (0, 0)))})
    assert truth.array("wte.weight.grad").size == max(map(port._padded, truth.entries.values())) - 128 * widest[1]
    assert run(verify, "--golden", made[3], "--against", tmp_path / "b.npz")[0] == 0


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.safetensors", "a.bin"])
def test_a_pipe_is_no_port(run, made, tmp_path, name):
    """It is refused, and not waited for."""
    os.mkfifo(tmp_path / name)
    code, out, err = run(verify, "--golden", made[3], "--against", tmp_path / name)
    assert (code, out) == (3, "") and err.endswith(f": {tmp_path / name} is not a regular file\n") and err.count("\n") == 1


def test_a_map_that_matches_nothing_is_refused(run, made, tmp_path):
    """A pattern on our side that is no tensor's name would have no effect: it is named, with names near to it."""
    for ours, says in (("block.*.attn.q", "'block.*.attn.q' matches no tensor of the golden file; similar names: blocks.0.attn.q"),
                       ("zzz", "'zzz' matches no tensor of the golden file; there are embed … step.3.wte.weight")):
        star = "*" * ("*" in ours)
        (tmp_path / "names.toml").write_text(f'"{ours}" = "q{star}"\n')
        code, out, err = run(verify, "--golden", made[3], "--against", ported(made), "--map", tmp_path / "names.toml")
        assert (code, out, err.count("\n")) == (2, "", 1) and says in err, err


def test_without_the_weights_pictures_are_left(run, made, tmp_path):
    """Where the model is gone nothing can be planted, and that is said."""
    shutil.copytree(made[3], tmp_path / "truth")
    manifest = unsealed(json.loads((tmp_path / "truth" / golden.MANIFEST).read_text()))
    (tmp_path / "truth" / golden.MANIFEST).write_text(json.dumps(manifest | {"model": str(tmp_path / "gone")}))
    shutil.rmtree(tmp_path / "truth" / golden.MODEL)
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
