"""Results of --random-weights say that the weights are random, and of which seed, wherever they name the model."""
from __future__ import annotations

import argparse
import json
import re

import pytest
from in_process import end_of
from safetensors import safe_open
from tiny_gpt2 import TEXT

from gpt2 import generate
from gpt2.evaluate import __main__ as evaluate
from gpt2.golden import __main__ as golden
from gpt2.inspect import __main__ as inspect
from gpt2.verify import __main__ as verify

NAME = "shakespeare with random weights (seed 3)"
RANDOM = ["--model", "shakespeare", "--random-weights", "3", "--backend", "numpy"]
COMMANDS = {                                            # every command with the flag, and what it needs besides
    "generate": (generate, ["--max-new-tokens", "2"]),
    "evaluate": (evaluate, ["--task", "loss", "--data", "poem.txt"]),
    "evaluate items": (evaluate, ["--task", "lambada", "--data", "items.jsonl"]),
    "golden": (golden, ["--ids", "1,2,3", "--out", "truth"]),
    "inspect attention": (inspect, ["attention", "--ids", "1,2,3"]),
    "inspect logit-lens": (inspect, ["logit-lens", "--ids", "1,2,3"]),
    "inspect trace": (inspect, ["trace", "--ids", "1,2,3", "--out", "trace.html"]),
}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "poem.txt").write_text(TEXT)
    (tmp_path / "items.jsonl").write_text(json.dumps({"text": "Tapping at my chamber door"}) + "\n")

    def ended(command, *flags):
        module, needs = COMMANDS[command]
        code, out, err = end_of(lambda: module.main([*needs, *flags]), capsys, "gpt2")
        assert code == 0, err
        return out
    return ended


def test_these_are_all_commands_with_the_flag():
    """Each parser that takes --random-weights is in the table above."""
    def taking(parser, name):
        for action in parser._actions:
            if action.dest == "random_weights":
                yield name
            if isinstance(action, argparse._SubParsersAction):
                for inner, one in action.choices.items():
                    yield from taking(one, f"{name} {inner}")
    modules = {"generate": generate, "evaluate": evaluate, "golden": golden, "inspect": inspect, "verify": verify}
    found = {name for called, module in modules.items() for name in taking(module.parser(), called)}
    assert found == COMMANDS.keys() - {"evaluate items"}


@pytest.mark.parametrize("command", COMMANDS)
def test_results_say_that_weights_are_random(command, run):
    """The JSON document names them and holds the seed; text, where it names the model, too; real weights are called as before."""
    found = json.loads(run(command, *RANDOM, "--json"))
    assert (found["model"], found["random_weights"]) == (NAME, 3)
    out = run(command, *RANDOM)
    assert re.sub(re.escape(NAME), "", out).count("shakespeare") == 0
    assert NAME in out or command == "generate"         # whose output is the text alone
    real = json.loads(run(command, "--model", "shakespeare", "--backend", "numpy", "--json"))
    assert real["model"] == "shakespeare" and real.get("random_weights") is None
    assert "random" not in run(command, "--model", "shakespeare", "--backend", "numpy")


def test_files_say_it_too(run, tmp_path):
    """The page of a trace, in its title and its head; the manifest of golden, and the weights beside it."""
    run("inspect trace", *RANDOM)
    page = (tmp_path / "trace.html").read_text("utf-8")
    assert page.count(NAME) == 2 and '"model":"shakespeare"' not in page and '"what":"shakespeare:' not in page
    run("golden", *RANDOM)
    manifest = json.loads((tmp_path / "truth" / "manifest.json").read_text())
    assert (manifest["model"], manifest["random_weights"]) == (NAME, 3)
    with safe_open(tmp_path / "truth" / "model" / "model.safetensors", "np") as weights:
        assert weights.metadata()["random_weights"] == "3"
    (tmp_path / "truth" / "model").rename(tmp_path / "elsewhere")
    assert verify.truth_of(golden.read_golden(tmp_path / "truth")) is None             # and not the weights that ship
