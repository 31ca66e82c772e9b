"""python -m gpt2.generate: its flags, its streams, its exit codes."""
from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from data import ROOT
from safetensors.numpy import load_file, save_file
from tiny_gpt2 import CONTEXT, TEXT, scripted_model, tiny_model, tiny_tokenizer

from gpt2.bpe import train_bpe
from gpt2.cli import run_command
from gpt2.decode import steps
from gpt2.generate import main, parser
from gpt2.locate import MODELS
from gpt2.sampling import log_softmax
from minigrad import backend
from minigrad.errors import BackendUnavailable

SAYS = "Tap 🤗 on, tap 🤗🤗 off"
PRESS = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": ROOT}


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Directories by name: random weights, a scripted model that says SAYS and ends, and one that repeats SAYS."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = tiny_tokenizer()
    says = tokenizer.encode(SAYS)
    tiny_model(seed=1).save_pretrained(folder / "random", tokenizer=tokenizer)
    scripted_model([*says, tokenizer.eot]).save_pretrained(folder / "says", tokenizer=tokenizer)
    scripted_model(says, n_positions=len(says), eos_token_id=None).save_pretrained(folder / "forever", tokenizer=tokenizer)
    return folder


@pytest.fixture
def run(models, capsys):
    """Run the command in this process: run(model, *flags) gives exit code, stdout and stderr."""

    def call(model, *flags):
        where = models / model if (models / model).exists() else model
        with pytest.raises(SystemExit) as end:
            run_command(lambda: main(["--model", str(where), "--backend", "numpy", *map(str, flags)]), "gpt2.generate")
        printed = capsys.readouterr()
        return end.value.code, printed.out, printed.err

    return call


def document(ended):
    """The JSON document of a run that went well and said nothing else."""
    code, out, err = ended
    assert code in (0, 130) and err == "" and out.endswith("\n") and out.count("\n") == 1
    return json.loads(out)


def command(*flags):
    return [sys.executable, "-m", "gpt2.generate", "--backend", "numpy", *map(str, flags)]


class Watched(io.StringIO):
    """A stdout that keeps what was there at each flush."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def flush(self):
        if self.getvalue() != "".join(self.seen):
            self.seen.append(self.getvalue()[len("".join(self.seen)):])


# ── text ──
def test_prompt_and_text_are_all_of_stdout(run):
    """stdout is the prompt, what the model says and a line end; stderr is empty."""
    assert run("says", "--prompt", "O") == (0, f"O{SAYS}\n", "")
    assert run("says") == (0, f"\n{SAYS}\n", "")
    assert run("says", "--max-new-tokens", 1) == (0, "\nT\n", "")


def test_text_comes_in_whole_characters(models, monkeypatch):
    """Text streams character by character as tokens complete them, the prompt with the first; an emoji comes in one piece."""
    tokenizer = tiny_tokenizer()
    whole = [tokenizer.decode([i]) for i in tokenizer.encode(SAYS)]
    pieces = [t for t in whole if "\ufffd" not in t]
    assert len(pieces) < len(whole)                     # an emoji is spread over tokens
    for flags, wanted in (((), len(pieces) + 3 + 1), (("--no-stream",), 1)):
        monkeypatch.setattr(sys, "stdout", Watched())
        assert main(["--model", str(models / "says"), "--backend", "numpy", "--prompt", "O", *flags]) == 0
        sys.stdout.flush()
        seen = sys.stdout.seen
        assert "".join(seen) == f"O{SAYS}\n" and len(seen) == wanted
        assert flags or [piece for piece in seen if "🤗" in piece] == ["🤗"] * 3


@pytest.mark.parametrize("seed", range(4))
def test_streamed_text_is_the_text(seed, run):
    """For one seed, streamed, not streamed and in JSON are one text, also where it is full of broken characters."""
    flags = ("--prompt", "Once upon", "--seed", seed, "--max-new-tokens", 40, "--stop", "e")
    streamed = run("random", *flags)
    assert streamed == run("random", *flags, "--no-stream")
    [sample] = document(run("random", *flags, "--json"))["samples"]
    assert streamed[1] == f"Once upon{sample['text']}\n"


@pytest.mark.parametrize(("stops", "text", "reason"), [
    ([], SAYS, "eos"),
    (["🤗"], "Tap ", "stop"),
    (["p 🤗 o"], "Ta", "stop"),                                 # over many tokens
    (["off", "on", "ap"], "T", "stop"),                         # the first in the text, not on the command line
    (["p 🤗 o", "🤗"], "Tap ", "stop"),                          # complete first
    (["off and on"], SAYS, "eos"),                              # held back to the end
    (["xyz"], SAYS, "eos"),
    (["T"], "", "stop"),
    ([SAYS], "", "stop"),
])
def test_stop_strings_end_the_text(stops, text, reason, run):
    """Text ends before the stop string that is complete first, and is whole where none comes."""
    flags = [flag for stop in stops for flag in ("--stop", stop)]
    assert run("says", "--prompt", "O", *flags) == (0, f"O{text}\n", "")
    [sample] = document(run("says", "--prompt", "O", *flags, "--json"))["samples"]
    assert (sample["text"], sample["finish_reason"]) == (text, reason)


def test_length_is_a_reason_to_end(run):
    """finish_reason is "length" after --max-new-tokens; a character cut there is U+FFFD."""
    ids = tiny_tokenizer().encode(SAYS)
    n = next(i for i in range(len(ids)) if tiny_tokenizer().decode(ids[:i]).endswith("\ufffd"))
    [sample] = document(run("says", "--max-new-tokens", n, "--json"))["samples"]
    assert (sample["tokens"], sample["finish_reason"], sample["text"]) == (ids[:n], "length", "Tap \ufffd")


# ── choice ──
def test_the_seed_makes_it_reproducible(run):
    """The same seed gives the same samples, another seed others; they differ among themselves."""
    one, again, other = (document(run("random", "--num-samples", 3, "--seed", seed, "--json"))["samples"] for seed in (5, 5, 6))
    assert one == again != other
    assert len({sample["text"] for sample in one}) == 3


def test_samples_are_printed_apart(run):
    """--num-samples prints whole texts, prompt included, with a line of --- between them."""
    flags = ("--prompt", "Once", "--num-samples", 3, "--max-new-tokens", 8)
    texts = [sample["text"] for sample in document(run("random", *flags, "--json"))["samples"]]
    assert run("random", *flags)[1] == "\n---\n".join("Once" + text for text in texts) + "\n"


@pytest.mark.parametrize("flags", [
    ["--temperature", "0"], ["--top-k", "1"], ["--top-p", "1e-9"], ["--min-p", "1"], ["--greedy", "--temperature", "5", "--seed", "3"],
])
def test_ways_to_be_greedy(flags, run):
    """--greedy is temperature 0, whatever the seed; so are the filters that leave one token."""
    assert run("random", *flags) == run("random", "--greedy")


@pytest.mark.parametrize("flags", [
    ["--temperature", "0.5"], ["--top-k", "3"], ["--top-p", "0.5"], ["--min-p", "0.5"], ["--repetition-penalty", "5"], ["--seed", "2"],
])
def test_every_option_has_an_effect(flags, run):
    """Each option of sampling changes the text."""
    assert run("random", *flags)[1] != run("random")[1]


def test_dtypes(run):
    """--dtype is honoured and reported; float64 and float32 agree on a greedy text."""
    texts, kv = {}, []
    for dtype in ("float64", "float32", "float16"):
        found = document(run("random", "--greedy", "--dtype", dtype, "--json", "--max-new-tokens", 10))
        assert found["dtype"] == dtype and found["backend"] == "numpy"
        texts[dtype] = found["samples"]
        kv.append(found["timing"]["kv_mb"])
    assert texts["float64"] == texts["float32"]
    assert np.allclose(kv, np.array([8, 4, 2]) * 2 * 2 * 32 * 11 / 1e6, rtol=1e-12)        # 2·L·d numbers a token


# ── reports ──
def test_json_ends_stdout(run):
    """--json prints one document: model, backend, dtype, prompt, samples and timing, and nothing streams."""
    found = document(run("says", "--prompt", "é\n", "--num-samples", 2, "--json"))
    assert set(found) == {"model", "backend", "dtype", "prompt", "samples", "timing"}
    assert (found["backend"], found["dtype"], found["prompt"]) == ("numpy", "float32", "é\n")
    ids = [*tiny_tokenizer().encode(SAYS), tiny_tokenizer().eot]
    text = tiny_tokenizer().decode(ids[2:-1])           # the prompt has three tokens, so the script begins at its third
    assert found["samples"] == [{"text": text, "tokens": ids[2:], "finish_reason": "eos"}] * 2
    assert set(found["timing"]) == {"load_seconds", "prompt_tokens", "prefill_seconds", "ms_per_token", "tokens_per_second",
                                    "weights_gb_per_second", "kv_mb"}
    assert found["timing"]["prompt_tokens"] == 3


@pytest.mark.parametrize("n", [1, 3, 1000])
def test_logprobs_in_json(n, run):
    """--logprobs N lists N tokens at each place, the likeliest first; all of them together have probability 1."""
    [sample] = document(run("random", "--greedy", "--logprobs", n, "--json", "--max-new-tokens", 6))["samples"]
    assert len(sample["logprobs"]) == len(sample["tokens"]) == 6
    for token, place in zip(sample["tokens"], sample["logprobs"]):
        values = [lp for _, lp in place]
        assert len(place) == min(n, 300) and place[0][0] == token and values == sorted(values, reverse=True)
        assert n < 300 or abs(np.exp(values).sum() - 1.0) < 300 * np.finfo(float).eps


def test_logprobs_in_text(run):
    """Without --json, log-probabilities go to stderr, a line a token, and stdout stays as it is."""
    code, out, err = run("says", "--logprobs", 2, "--max-new-tokens", 3)
    assert (code, out, "") == run("says", "--max-new-tokens", 3) and code == 0
    tokens = [re.escape(repr(tiny_tokenizer().decode([i]))) for i in tiny_tokenizer().encode(SAYS)[:3]]
    assert re.fullmatch("".join(rf"\[0\] {t}: {t} -?0\.000  '.*' -\d+\.\d{{3}}\n" for t in tokens), err)


def test_timing_is_on_stderr(run):
    """--timing adds one line to stderr, with all that was measured, and nothing to stdout."""
    code, out, err = run("says", "--timing")
    assert (code, out) == (0, f"\n{SAYS}\n")
    assert re.fullmatch(
        r"load \d+\.\d{3} s, prefill of 1 tokens \d+\.\d{3} s, \d+\.\d\d ms a token after it "
        r"\(\d+\.\d tokens/s, \d+\.\d GB/s of weights read\), KV cache \d+\.\d MB\n", err)
    assert "ms a token" not in run("says", "--timing", "--max-new-tokens", 1)[2]        # there was none after it


def test_the_default_length_fits(run):
    """Without --max-new-tokens a run that would leave the context ends with it; an end that was asked for is not moved."""
    for n in (1, CONTEXT - 1, CONTEXT):
        [sample] = document(run("random", "--prompt", "~" * n, "--json"))["samples"]
        assert (len(sample["tokens"]), sample["finish_reason"]) == (CONTEXT + 1 - n, "length")
    [sample] = document(run("random", "--prompt", "~", "--json", "--overflow", "slide"))["samples"]
    assert len(sample["tokens"]) == 100


def test_overflow(run):
    """A run that does not fit the context is refused with the number that fits, and slides when asked to."""
    code, out, err = run("random", "--prompt", "abc", "--max-new-tokens", 100)
    assert (code, out) == (2, "") and f"--max-new-tokens {CONTEXT - 2} or less, or --overflow slide" in err
    assert run("random", "--prompt", "abc", "--max-new-tokens", CONTEXT - 2)[0] == 0
    found = document(run("random", "--prompt", "abc", "--max-new-tokens", 100, "--overflow", "slide", "--json"))
    assert len(found["samples"][0]["tokens"]) == 100
    code, out, err = run("random", "--prompt", "x~" * CONTEXT)
    assert (code, out) == (2, "") and f"the prompt has {2 * CONTEXT} tokens and the context holds {CONTEXT}" in err
    assert run("random", "--prompt", "x~" * CONTEXT, "--overflow", "slide", "--max-new-tokens", 3)[0] == 0


def test_the_prompt_may_come_from_stdin(run, monkeypatch):
    """--prompt - reads all of stdin as UTF-8; what is no UTF-8, or nothing, is refused."""
    for given, code, out, err in [
        (b"O", 0, f"O{SAYS}\n", ""),
        (b"O\xff", 2, "", "gpt2.generate: stdin is not UTF-8 (byte 0xff at offset 1)\n"),
        (b"", 2, "", "gpt2.generate: the prompt is empty; give --prompt TEXT, or text on stdin with --prompt -\n"),
    ]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), encoding="ascii"))
        assert run("says", "--prompt", "-") == (code, out, err)


def test_help_names_every_flag(capsys):
    """--help names every flag and exits with 0."""
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0 and all(flag in out for action in parser()._actions for flag in action.option_strings)


# ── what a user can get wrong ──
@pytest.mark.parametrize(("flags", "message"), [
    (["--prompt", ""], "the prompt is empty"),
    (["--stop", ""], "--stop needs a text"),
    (["--temperature", "-1"], "--temperature must be a finite number from 0 on (0 is greedy), not -1.0"),
    (["--temperature", "nan"], "--temperature must be"),
    (["--temperature", "inf"], "--temperature must be"),
    (["--temperature", "hot"], "argument --temperature: invalid float value: 'hot'"),
    (["--top-p", "0"], "--top-p must be above 0 and at most 1, not 0.0"),
    (["--top-p", "1.01"], "--top-p must be"),
    (["--top-p", "nan"], "--top-p must be"),
    (["--top-k", "0"], "--top-k must be 1 or more, not 0"),
    (["--top-k", "-3"], "--top-k must be"),
    (["--min-p", "2"], "--min-p must be"),
    (["--repetition-penalty", "0"], "--repetition-penalty must be"),
    (["--seed", "-1"], "argument --seed: -1 is less than 0"),
    (["--seed", "x"], "argument --seed: 'x' is not a whole number"),
    (["--max-new-tokens", "0"], "argument --max-new-tokens: 0 is less than 1"),
    (["--num-samples", "0"], "argument --num-samples: 0 is less than 1"),
    (["--logprobs", "-1"], "argument --logprobs: -1 is less than 0"),
    (["--overflow", "wrap"], "argument --overflow: invalid choice: 'wrap'"),
    (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
    (["--backend", "jax"], "--backend: there is no backend 'jax'; choose auto, numpy, cupy or cupy:N"),
    (["--backend", "cupy:x"], "--backend: device 'cupy:x'"),
    (["--backend", "numpy:1"], "--backend: numpy:1 does not exist"),
    (["--model", "shakspeare"], "there is no model or directory 'shakspeare'; did you mean shakespeare? (models: shakespeare, gpt2,"),
    (["--temprature", "1"], "unrecognized arguments: --temprature 1"),
    (["--prompt", "a\udcff"], "argument --prompt: not UTF-8 (byte 0xff after 1 characters)"),
    (["--prompt", "O", "more"], "unrecognized arguments: more"),
])
def test_a_wrong_flag_is_one_line(flags, message, run, tmp_path, monkeypatch):
    """A flag that cannot be honoured ends with exit 2 and one line that names it; nothing is printed or written."""
    monkeypatch.chdir(tmp_path)
    code, out, err = run("random", *flags)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1 and "Traceback" not in err
    assert os.listdir(tmp_path) == []


def test_a_missing_backend_is_said_first(run, monkeypatch):
    """Without CuPy, --backend cupy exits with 4 before the model is even looked for, and never falls back."""

    def missing(name):
        raise BackendUnavailable("no CuPy here; pip install cupy-cuda12x")

    monkeypatch.setattr(backend, "get", missing)
    assert run("no-such-model", "--backend", "cupy") == (4, "", "gpt2.generate: no CuPy here; pip install cupy-cuda12x\n")
    monkeypatch.undo()
    try:
        backend.get("cupy")
    except BackendUnavailable:
        code, out, err = run("no-such-model", "--backend", "cupy")
        assert (code, out) == (4, "") and err.count("\n") == 1 and "cupy" in err.lower()


def change(folder, **changes):
    """Write tensors of a checkpoint anew; None leaves one out."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, value in changes.items():
        key = f"transformer.{name}"
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value(tensors[key])
    save_file(tensors, path)


def nan_at(*place):
    def put(array):
        array = array.copy()
        array[place] = np.nan
        return array

    return put


def no_config(folder):
    (folder / "config.json").unlink()


def config(**fields):
    def edit(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return edit


def cut_short(name, n):
    def edit(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[:n])

    return edit


def without(*names):
    def edit(folder):
        for name in names:
            (folder / name).unlink()

    return edit


def other_tokenizer(folder):
    train_bpe(TEXT * 2, 330).save(folder)


@pytest.mark.parametrize(("edit", "message"), [
    (without("model.safetensors"), "holds no model.safetensors"),
    (without("config.json", "model.safetensors", "vocab.json", "merges.txt"), "holds no model.safetensors"),
    (cut_short("model.safetensors", 5000), "is it truncated?"),
    (cut_short("model.safetensors", 0), "is it truncated?"),
    (cut_short("config.json", 20), "config.json is not JSON"),
    (lambda d: (d / "model.safetensors").write_bytes(b"\x80\x04 this is no safetensors file"), "is not a whole safetensors file"),
    (lambda d: save_file({f"conv{i}.weight": np.zeros(3, np.float32) for i in range(5)}, d / "model.safetensors"), "is no GPT-2"),
    (lambda d: change(d, **{"h.1.mlp.c_proj.weight": None}), "has no tensor 'h.1.mlp.c_proj.weight'"),
    (lambda d: change(d, **{"h.0.mlp.c_fc.weight": lambda a: np.ascontiguousarray(a.T)}), "'h.0.mlp.c_fc.weight' is [128, 32]"),
    (lambda d: change(d, **{"wpe.weight": lambda a: a[:-1].copy()}), "'wpe.weight' is [63, 32]"),
    (config(n_layer=3), "has no tensor 'h.2."),
    (config(n_embd=64), "is [300, 32], but [300, 64] by"),
    (without("vocab.json"), "no tokenizer in"),
    (cut_short("vocab.json", 100), "cannot be read"),
    (cut_short("merges.txt", 100), "are the merges cut short?"),
    (other_tokenizer, "the tokenizer has 330 tokens and the model 300; they do not belong together"),
    (lambda d: (shutil.rmtree(d), d.write_text("some text")), "is not a whole safetensors file"),
])
def test_unusable_weights_are_one_line(edit, message, run, models, tmp_path):
    """Weights, configuration or vocabulary that are missing, damaged or do not agree end with exit 3 and one line."""
    shutil.copytree(models / "random", tmp_path / "model")
    edit(tmp_path / "model")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(tmp_path / "model")
    assert (code, out) == (3, "") and message in err and err.count("\n") == 1, err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("fields", [{"n_head": 5}, {"activation_function": "swish"}, {"n_embd": -1}])
def test_a_configuration_that_cannot_be_honoured(fields, run, models, tmp_path):
    """A field that has no meaning here is named, with the file it stands in."""
    shutil.copytree(models / "random", tmp_path / "model")
    config(**fields)(tmp_path / "model")
    code, out, err = run(tmp_path / "model")
    assert (code, out) == (2, "") and "config.json: " in err and next(iter(fields)) in err and err.count("\n") == 1


@pytest.mark.parametrize("flags", [[], ["--greedy"], ["--json"], ["--logprobs", "2"], ["--no-stream"]])
def test_nan_in_a_weight_that_counts(flags, run, models, tmp_path):
    """A NaN is warned of in one line when weights are read; when it reaches the logits the run ends with exit 3 and no text."""
    shutil.copytree(models / "random", tmp_path / "model")
    change(tmp_path / "model", **{"h.1.mlp.c_fc.weight": nan_at(3, 4)})
    code, out, err = run(tmp_path / "model", *flags)
    warning, error = err.splitlines()
    assert (code, out) == (3, "") and "'h.1.mlp.c_fc.weight'" in warning and "NaN" in warning and "NaN" in error
    assert warning.startswith("gpt2.generate: warning: ") and error.startswith("gpt2.generate: logits")


def test_nan_in_a_weight_that_does_not_count(run, models, tmp_path):
    """A NaN at a place that is never read is warned of, and the text comes."""
    shutil.copytree(models / "says", tmp_path / "model")
    change(tmp_path / "model", **{"wpe.weight": nan_at(CONTEXT - 1)})
    code, out, err = run(tmp_path / "model")
    assert (code, out) == (0, f"\n{SAYS}\n") and err.count("\n") == 1 and "'wpe.weight'" in err


# ── where a model may lie ──
def test_a_weights_file_is_a_model(run, models, tmp_path, monkeypatch):
    """A .safetensors file is taken with the vocabulary beside it; without one, that is said."""
    expected = run("says")
    assert run(models / "says" / "model.safetensors") == expected
    shutil.copy(models / "says" / "model.safetensors", tmp_path)
    code, out, err = run(tmp_path / "model.safetensors")
    assert (code, out) == (3, "") and f"no tokenizer in {tmp_path}" in err and err.count("\n") == 1


def test_dot_slash_means_the_directory(run, models, tmp_path, monkeypatch):
    """--model ./gpt2 is the directory of that name here, and not OpenAI's model."""
    monkeypatch.chdir(tmp_path)
    for name in ("gpt2", "shakespeare"):
        shutil.copytree(models / "says", tmp_path / name)
        assert run(f"./{name}") == (0, f"\n{SAYS}\n", "")


@pytest.mark.skipif(not (MODELS / "shakespeare").is_dir(), reason="gpt2/models/shakespeare is not in this checkout")
def test_the_shipped_model_writes(capsys):
    """Without any flag the command prints text of the model that ships with the package, the same each time."""
    texts = set()
    for _ in range(2):
        assert main(["--backend", "numpy"]) == 0
        printed = capsys.readouterr()
        texts.add(printed.out)
        assert printed.err == "" and "\ufffd" not in printed.out
    [text] = texts
    words = re.findall(r"[a-z]+", text.lower())
    assert len(words) > 20 and {"the", "and", "to", "i", "you", "of", "my"} & set(words)


# ── as a process ──
def test_control_c_prints_what_there_is(models):
    """SIGINT ends the text where it is, with a line end and exit code 130, and no word about it."""
    flags = ("--model", models / "forever", "--max-new-tokens", 10**7, "--overflow", "slide", "--prompt", "O")
    with subprocess.Popen(command(*flags), preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler), **PRESS) as running:
        out = running.stdout.read(200)
        running.send_signal(signal.SIGINT)
        out += running.stdout.read()
        assert (running.wait(60), running.stderr.read()) == (130, b"")
    assert out.decode().startswith(f"O{SAYS}") and out.endswith(b"\n")


@pytest.mark.parametrize("flags", [["--json"], ["--no-stream"], []])
def test_control_c_in_every_form(flags, run, monkeypatch):
    """What there is after Ctrl-C is printed as it would have been at the end: the document too, which says "interrupted"."""

    def interrupted(*args, **options):
        for n, step in enumerate(steps(*args, **options)):
            if n == 4:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr("gpt2.text.steps", interrupted)
    ids = tiny_tokenizer().encode(SAYS)
    so_far = tiny_tokenizer().decode(ids[:4])
    code, out, err = run("says", "--prompt", "O", *flags)
    assert (code, err) == (130, "")
    if flags == ["--json"]:
        assert json.loads(out)["samples"] == [{"text": so_far, "tokens": ids[:4], "finish_reason": "interrupted"}]
    else:
        assert out == f"O{so_far}\n"


def test_the_reader_may_leave(models):
    """`| head -c 10` ends the run without a word."""
    flags = ("--model", models / "forever", "--max-new-tokens", 10**7, "--overflow", "slide", "--prompt", "O")
    with subprocess.Popen(command(*flags), **PRESS) as running:
        assert running.stdout.read(10) == "OTap 🤗 ".encode()
        running.stdout.close()
        assert (running.wait(60), running.stderr.read()) == (141, b"")


def test_only_what_is_needed_is_imported(models):
    """A run from start to end imports no plotting, downloading, progress-bar or network library, and no other framework."""
    source = ("import os, sys\nfrom gpt2.generate import main\n"
              f"main(['--model', {str(models / 'says')!r}, '--backend', 'numpy'])\n"
              "spent = os.times()\nprint(spent.user + spent.system, *sys.modules, file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", source], **PRESS, timeout=120)
    assert done.returncode == 0 and done.stdout.decode() == f"\n{SAYS}\n"
    spent, *names = done.stderr.decode().split()
    heavy = {"matplotlib", "huggingface_hub", "tqdm", "torch", "transformers", "requests", "urllib3", "tokenizers", "cupy", "scipy"}
    assert not heavy & set(names)
    # CPU time, so that a busy machine counts for nothing; measured 0.25 s
    assert float(spent) < 2.0


def test_a_bare_process_agrees(models):
    """As a process, errors are one line with the exit code of their kind."""
    for flags, code in ((["--model", models / "says", "--top-p", "2"], 2), (["--model", models], 3)):
        done = subprocess.run(command(*flags), **PRESS, timeout=120)
        assert (done.returncode, done.stdout) == (code, b"") and done.stderr.count(b"\n") == 1 and b"Traceback" not in done.stderr


def test_the_first_logprob_is_the_models(run, models):
    """What --logprobs says about the first token is what the model says."""
    from gpt2.model import GPT2

    [sample] = document(run("random", "--prompt", "Once", "--logprobs", 300, "--temperature", 3, "--json"))["samples"]
    logits = GPT2.from_pretrained(models / "random")([tiny_tokenizer().encode("Once")]).numpy()[:, -1]
    found = dict(map(tuple, sample["logprobs"][0]))
    wanted = log_softmax(logits)[0]
    # the same pass, with a cache: 32 terms of float32 in each of a few sums one after another
    assert max(abs(found[i] - wanted[i]) for i in found) < 128 * np.finfo(np.float32).eps * np.abs(logits).max()
