"""python -m gpt2.verify --model: what is computed for a published figure is what its source computes, and the verdict follows."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from data import test_data
from in_process import end_of
from safetensors.numpy import save_file
from tiny_gpt2 import CONTEXT, TEXT, scripted_model, tiny_config, tiny_model, tiny_tokenizer
from torch_port import Port
from transformers import GPT2LMHeadModel

from gpt2.data.tokenizer import load_tokenizer
from gpt2.model import GPT2
from gpt2.verify import __main__ as verify
from gpt2.verify import published
from gpt2.verify.published import FIGURES, Figure
from gpt2.weights.checkpoint import read_tensors


@pytest.fixture
def run(capsys):
    def ended(*flags):
        return end_of(lambda: verify.main([*map(str, flags)]), capsys, "gpt2.verify")

    return ended


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model, its folder, and transformers' on the same weights."""
    folder = tmp_path_factory.mktemp("published")
    model = tiny_model(seed=5, eos_token_id=None)
    model.save_pretrained(folder, tokenizer=tiny_tokenizer())
    return model, folder, GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager").eval()


# ── what is computed ──
def test_greedy_is_transformers(tiny):
    model, _, theirs = tiny
    with torch.no_grad():
        wanted = theirs.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=12, do_sample=False, pad_token_id=0)[0, 3:].tolist()
    assert published.greedy(model, [5, 6, 7], 12) == wanted


def test_a_batch_is_read_padded_and_alone(tiny, monkeypatch):
    """Both ways, and what differs between them is said."""
    model, tokenizer = tiny[0], tiny_tokenizer()
    prompts = {"Once upon": " a midnight", "Tap": "ping, as"}
    monkeypatch.setattr(published, "BATCH", prompts)
    alone = [tokenizer.decode(published.greedy(model, tokenizer.encode(p), len(tokenizer.encode(t)))) for p, t in prompts.items()]
    assert published.batch(model, tokenizer) == alone
    monkeypatch.setattr(published, "greedy", lambda *_: [5])
    assert all("(padded)" in text and "(alone)" in text for text in published.batch(model, tokenizer))


def test_nll_and_perplexity_are_pytorchs(tiny):
    """Means over tokens; perplexity over windows side by side, without the first token of each."""
    model, _, theirs = tiny
    ids = np.random.default_rng(0).integers(0, 300, 2 * CONTEXT + 30).tolist()

    def loss(part):
        with torch.no_grad():
            return theirs(torch.tensor([part]), labels=torch.tensor([part])).loss.item()

    assert published.nll(model, ids[:9]) == pytest.approx(loss(ids[:9]), abs=1e-5)
    parts = [ids[i:i + CONTEXT] for i in range(0, len(ids), CONTEXT)]
    wanted = sum(loss(part) * (len(part) - 1) for part in parts) / sum(len(part) - 1 for part in parts)
    assert published.perplexity(model, ids) == pytest.approx(np.exp(wanted), rel=1e-5)


def test_adamw_losses_are_a_ports(tiny):
    """The losses before each step; the model's own weights stay as they were."""
    model = tiny[0]
    before = {name: p.array.copy() for name, p in model.named_parameters()}
    ids = np.random.default_rng(1).integers(0, 300, 33).tolist()
    port = Port(before, model.config, dtype=torch.float64)
    wanted = port.run(np.array(ids[:-1]).reshape(4, 8), np.array(ids[1:]).reshape(4, 8), steps=4, adam=(1e-4, 0.9, 0.999, 1e-8, 0.01))
    assert published.adamw_losses(model, ids, 4, 4) == pytest.approx([float(wanted[f"step.{t}.loss"]) for t in range(1, 5)], abs=2e-5)
    assert all(np.array_equal(before[name], p.array) for name, p in model.named_parameters())


def test_the_stream_of_llmc():
    """<|endoftext|> before each passage, the empty line after it."""
    tokenizer = tiny_tokenizer()
    one, two = "Once upon", "a midnight"
    wanted = [tokenizer.eot, *tokenizer.encode(one + "\n\n"), tokenizer.eot, *tokenizer.encode(two + "\n\n")]
    assert published.first_ids(f"{one}\n\n{two}\n\n{TEXT}", tokenizer, len(wanted)) == wanted
    with pytest.raises(published.UsageError, match="ids; 1000 are needed"):
        published.first_ids(one, tokenizer, 1000)


def test_the_text_of_wikitext(tmp_path):
    """Rows joined by empty lines, as transformers' page does it with rows that keep their line ends."""
    (tmp_path / "w").write_text(" = A = \n \n text \n")
    assert published.wikitext(tmp_path / "w") == " = A = \n\n\n\n\n text \n"


def test_the_tokens_of_wikitext(monkeypatch):
    """As many as transformers' page has: 287,644."""
    path = test_data("wikitext2-test.raw")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(test_data("tiktoken_cache")))
    assert len(load_tokenizer("gpt2").encode(published.wikitext(path))) == 287_644


# ── what is said ──
@pytest.mark.parametrize("figure", FIGURES, ids=lambda f: f.what)
def test_a_verdict_follows_from_what_was_found(figure):
    """What was published holds; what is off by more than is allowed does not."""
    assert published.judged(figure, figure.expected).verdict == "holds"
    if figure.within:
        near, far = (np.array(figure.expected) + np.sign(i) * i * i * figure.within for i in (0.9, -1.1))
        assert published.judged(figure, near.tolist()).verdict == "holds" and published.judged(figure, far.tolist()).verdict == "FAILED"
    else:
        assert published.judged(figure, [*figure.expected[:-1], figure.expected[0]]).verdict == "FAILED"


def test_why_a_figure_is_skipped(tmp_path):
    steps, wiki = (next(f for f in FIGURES if f.needs == name) for name in ("tinyshakespeare.txt", "wikitext2-test.raw"))
    assert "name its folder with --data" in published.lacking(steps, None, False)
    assert published.lacking(steps, tmp_path, False) == f"{tmp_path} has no tinyshakespeare.txt"
    (tmp_path / "wikitext2-test.raw").write_text("x")
    assert "add --slow" in published.lacking(wiki, tmp_path, False) and published.lacking(wiki, tmp_path, True) == ""


def test_the_table(run, tiny, monkeypatch, tmp_path):
    """What holds, what does not and what is skipped, each with its reason; exit code 1 where one does not."""
    model, folder, _ = tiny
    monkeypatch.setattr(published, "GPT2Config", lambda: tiny_config())
    right = Figure("right", "a source", published.greedy(model, [1, 2], 3), 0, lambda m, t, d: published.greedy(m, [1, 2], 3))
    wrong = Figure("wrong", "a source", 1.0, 0.1, lambda m, t, d: published.nll(m, [1, 2, 3]))
    absent = Figure("absent", "a source", 2.0, 0.1, lambda m, t, d: pytest.fail("it is not there"), "nothing.txt")
    monkeypatch.setattr(published, "FIGURES", [right, wrong, absent])
    code, out, err = run("--model", folder)
    assert (code, err) == (1, "")
    said = {line.split("  ")[0]: line for line in out.splitlines()}
    assert said["right"].endswith("holds") and said["wrong"].endswith("FAILED") and "name its folder" in said["absent"]
    assert said["tensors"].endswith("FAILED") and said["sha256 of model.safetensors"].endswith("skipped")
    assert "transformers no longer writes them" in said["mask buffers"]
    assert out.splitlines()[-1] == "1 hold, 3 do not, 3 skipped"
    code, out, _ = run("--model", folder, "--json")
    found = {f["what"]: f["verdict"] for f in json.loads(out)["figures"]}
    assert code == 1 and found["right"] == "holds" and found["absent"] == "skipped"


def test_the_file_itself(tmp_path, monkeypatch):
    """The bytes are compared where the size is the published one."""
    tiny_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    monkeypatch.setattr(published, "SIZE", path.stat().st_size)
    assert published.of_file(read_tensors(tmp_path))[0].verdict == "FAILED"
    import hashlib

    monkeypatch.setattr(published, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    assert published.of_file(read_tensors(tmp_path))[0].verdict == "holds"


@pytest.mark.parametrize("count, verdict, found", [(12, "holds", "12"), (11, "FAILED", "11"), (0, "skipped", "")])
def test_the_mask_buffers(tmp_path, monkeypatch, count, verdict, found):
    """Twelve of them, h.N.attn.bias, beside 148 parameters; c_attn's bias is none of them. Newer files have none."""
    model = GPT2(tiny_config(n_layer=12)).eval()
    arrays = {name: p.array for name, p in model.named_parameters()}
    masks = {f"h.{i}.attn.bias": np.tri(4, dtype=np.float32)[None, None] for i in range(count)}
    save_file(arrays | masks, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))
    said = {one.what: one for one in published.of_file(read_tensors(tmp_path))}
    assert (said["tensors"].verdict, said["tensors"].found) == ("holds", "148")
    assert (said["mask buffers"].verdict, said["mask buffers"].found, said["mask buffers"].expected) == (verdict, found, "12")


def test_a_partial_checkpoint(run, tiny, monkeypatch, tmp_path):
    """What cannot be computed is skipped with its reason; where nothing is verified the exit code is that of missing weights."""
    monkeypatch.setattr(published, "GPT2Config", lambda: tiny_config())
    arrays = {name: p.array for name, p in tiny[0].named_parameters() if "mlp" not in name}
    save_file(arrays | {"h.0.attn.bias": np.zeros(4, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(tiny[0].config.to_dict()))
    code, out, err = run("--model", tmp_path)
    assert (code, err) == (3, "")
    assert out.splitlines()[-1] == f"0 hold, 0 do not, {len(FIGURES) + 4} skipped"
    assert out.count("the checkpoint is partial: 20 of 28 tensors, no 'h.0.mlp.c_fc.weight'") == len(FIGURES) + 3
    assert all(f["verdict"] == "skipped" and f["why"] for f in json.loads(run("--model", tmp_path, "--json")[1])["figures"])


def test_openais_partial_weights(run):
    code, out, err = run("--model", test_data("gpt2-124M-partial.safetensors"))
    assert code == 3 and err.count("\n") == 1 and "config.json is not there" in err
    assert "123 of 148 tensors, no 'wte.weight'" in out and out.splitlines()[-1] == f"0 hold, 0 do not, {len(FIGURES) + 4} skipped"


def test_damaged_data_skips_its_figure_alone(run, tiny, monkeypatch, tmp_path):
    """The others are computed; the reason is said."""
    monkeypatch.setattr(published, "GPT2Config", lambda: tiny_config())
    right = Figure("right", "a source", published.greedy(tiny[0], [1, 2], 3), 0, lambda m, t, d: published.greedy(m, [1, 2], 3))
    steps = next(f for f in FIGURES if f.needs == "tinyshakespeare.txt")
    monkeypatch.setattr(published, "FIGURES", [steps, right])
    for data, says in ((b"\xff\xfe", "is not UTF-8 (byte 0xff at offset 0)"), (b"short", "ids; 257 are needed")):
        (tmp_path / "tinyshakespeare.txt").write_bytes(data)
        _, out, err = run("--model", tiny[1], "--data", tmp_path)
        said = {line.split("  ")[0]: line for line in out.splitlines()}
        assert says in said[steps.what] and said["right"].endswith("holds") and err == ""


def test_other_models_are_refused(run):
    code, out, err = run("--model", "shakespeare")
    assert (code, out) == (2, "")
    assert "are for OpenAI's gpt2 (12 layers, width 768); shakespeare is another model (4 layers, width 256)" in err
    if not (Path.home() / ".cache").exists():
        return
    code, out, err = run("--model", "gpt2-xl")
    assert code in (2, 3) and out == "" and err.count("\n") == 1


def test_scripted_text_is_found(monkeypatch):
    """A model that says what it is told to says the published text."""
    tokenizer = tiny_tokenizer()
    model = scripted_model(tokenizer.encode("Tap on"), eos_token_id=None)
    assert published.greedy(model, [1], 3) == tokenizer.encode("Tap on")[:3]
