"""python -m gpt2.generate: its flags, its streams, its exit codes."""
from __future__ import annotations

import io
import json
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from data import ROOT
from tiny_gpt2 import CONTEXT, SAYS, tiny_tokenizer

from gpt2.decoding.decode import steps
from gpt2.decoding.sampling import log_softmax
from gpt2.generate import main, parser
from gpt2.weights.locate import MODELS

PRESS = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": ROOT}


def document(run):
    """The JSON document of a run that went well and said nothing else."""
    code, out, err = run
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
    for dtype in ("float64", "float32", "float16", "bfloat16"):
        found = document(run("random", "--greedy", "--dtype", dtype, "--json", "--max-new-tokens", 10))
        assert found["dtype"] == dtype and found["backend"] == "numpy"
        texts[dtype] = found["samples"]
        kv.append(found["timing"]["kv_mb"])
    assert texts["float64"] == texts["float32"]
    assert np.allclose(kv, np.array([8, 4, 2, 2]) * 2 * 2 * 32 * 11 / 1e6, rtol=1e-12)        # 2·L·d numbers a token


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
                                    "weights_gb_per_second", "kv_mb", "passes", "tokens_per_pass", "proposed", "accepted"}
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


@pytest.mark.parametrize("flags", [["--greedy"], ["--temperature", "0.3"], ["--stop", "🤗 on"]])
def test_lookup_saves_passes_and_nothing_else(flags, run):
    """--lookup N gives the same samples and the same text in fewer passes, and --timing and --json say how many."""
    flags = ["--prompt", "O", "--overflow", "slide", *flags]
    plain, guessed = (document(run("forever", *flags, "--lookup", n, "--json")) for n in (0, 6))
    assert guessed["samples"] == plain["samples"]
    before, after = plain["timing"], guessed["timing"]
    assert (before["proposed"], before["accepted"], before["tokens_per_pass"]) == (0, 0, 1.0)
    assert after["accepted"] <= after["proposed"] and after["passes"] <= before["passes"]
    streamed, (code, out, err) = run("forever", *flags), run("forever", *flags, "--lookup", 6, "--timing")
    assert (code, out, "") == streamed
    if "--stop" not in flags:
        assert after["passes"] < 50 and after["tokens_per_pass"] == 99 / after["passes"]
        assert f", {99 / after['passes']:.2f} tokens a pass, {after['accepted']} of {after['proposed']} guesses right, KV cache" in err


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

    monkeypatch.setattr("gpt2.decoding.streaming.steps", interrupted)
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
