"""Kernels that are programs: one in C, one in JavaScript, each right and wrong; and what is said of programs that misbehave."""
from __future__ import annotations

import math
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from data import ROOT

from docs import pages
from minigrad.testing import LawsBroken, __main__, arrays, check
from minigrad.testing.domains import DOMAINS
from minigrad.testing.program import Program

EXAMPLES, ANSWERS = ROOT / "docs" / "examples", ROOT / "tests" / "helpers" / "answers.py"
PAGE = ROOT / "docs" / "any-language.md"
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="cc is not installed; get a C compiler, as in apt-get install gcc")
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed; get Node.js, as in apt-get install nodejs")


def answering(mode):
    """The command of answers.py in a mode, without site-packages, which it starts faster without."""
    return shlex.join([sys.executable, "-S", "-E", str(ANSWERS), mode])


@pytest.fixture
def run(monkeypatch, capsys):
    """The command in this process: its exit code, and what it wrote."""
    def command(*argv):
        monkeypatch.setattr("sys.argv", ["minigrad.testing", *map(str, argv)])
        try:
            code = __main__.main()
        except SystemExit as ended:
            code = ended.code
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return command


def broken(out):
    return {line.split()[0] for line in out.splitlines() if " broken " in line and line.startswith("  ")}


# ── the examples ──
def compiled(folder, old="", new=""):
    """docs/examples/softmax.c as a program, with one line of it changed."""
    source = (EXAMPLES / "softmax.c").read_text("utf-8")
    assert old in source
    (folder / "softmax.c").write_text(source.replace(old, new) if old else source, "utf-8")
    subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-o", "softmax", "softmax.c", "-lm"], cwd=folder, check=True)
    return folder / "softmax"


@needs_cc
@pytest.mark.parametrize(("old", "new", "laws"), [
    ("", "", set()), ("g[i * step] - along", "g[i * step]", {"adjoint", "parts"}),
    pytest.param("y[i * step] /= total", "y[i * step] /= total + 1e-3f", {"value", "parts"}, marks=pytest.mark.slow)],
    ids=["right", "wrong", "epsilon"])
def test_a_kernel_in_c(old, new, laws, run, tmp_path):
    """The example holds; a gradient without its sum, and a value with an epsilon, are found by the laws that are about them."""
    code, out, _ = run("--exec", compiled(tmp_path, old, new), "--op", "softmax", "--dtype", "float32", "--examples", 10)
    assert (code, laws <= broken(out)) == (1 if laws else 0, True) and bool(broken(out)) == bool(laws), out


@needs_node
@pytest.mark.parametrize(("old", "new", "laws"), [
    ("", "", set()), ("C * (1 + 3 * 0.044715 * x * x)", "C * (1 + 0.044715 * x * x)", {"adjoint", "parts"})], ids=["right", "wrong"])
def test_a_kernel_in_javascript(old, new, laws, run, tmp_path):
    """The example holds, and says which GELU it leaves out; a factor that its gradient forgets is found."""
    source = (EXAMPLES / "gelu.js").read_text("utf-8")
    assert old in source
    (tmp_path / "gelu.js").write_text(source.replace(old, new) if old else source, "utf-8")
    code, out, _ = run("--exec", f"node {tmp_path / 'gelu.js'}", "--op", "gelu", "--dtype", "float64", "--examples", 8)
    assert (code, laws <= broken(out)) == (1 if laws else 0, True) and bool(broken(out)) == bool(laws), out
    assert laws or ("gelu-bias: all laws hold" in out and re.search(r"the program skipped \d+ questions: there is no erf", out))


@pytest.mark.parametrize("op", ["cross_entropy", "attention", *(
    pytest.param(op, marks=pytest.mark.slow) for op in ("layer_norm", "matmul", "add_layer_norm", "concat"))])
def test_ops_with_constants_settings_and_several_arrays(op, run):
    """Every kind of op goes through the protocol and back: our own, as a program, holds."""
    code, out, err = run("--exec", shlex.join([sys.executable, str(ANSWERS), "op", op]), "--op", op, "--examples", 2)
    assert code == 0, out + err
    dtypes = ("float64", "float32")
    assert all(re.search(rf"{law} +{dtype} +held", out) for law in ("adjoint", "kind", "repeat", "linear") for dtype in dtypes)


def test_numbers_of_16_bits(run):
    program = shlex.join([sys.executable, str(ANSWERS), "op", "tanh"])
    pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed; pip install ml_dtypes")
    code, out, _ = run("--exec", program, "--op", "tanh", "--dtype", "float16", "--dtype", "bfloat16", "--examples", 5)
    assert code == 0 and "bfloat16 held" in out


# ── programs that misbehave ──
@pytest.mark.parametrize(("mode", "code", "said"), [
    ("right", 0, "neg: all laws hold"),
    ("once", 0, "neg: all laws hold"),
    ("sign", 1, "adjoint         float32  broken"),
    ("skips", 1, "the program skipped every example"),
    ("error-later", 1, "value: the program says: no memory"),
    ("dies", 3, "the program ended with exit code 7 before the end of its answer; the last line of its stderr: 'out of luck'"),
    ("dies-later", 1, "the program ended with exit code 7 before the end of its answer"),
    ("crashes-later", 1, "was ended by SIGSEGV"),
    ("short-later", 1, "the program ended with exit code 0 before the end of its answer"),
    ("hangs", 3, "no answer within 0.5 s (--timeout)"),
    ("hangs-later", 1, "no answer within 0.5 s (--timeout)"),
    ("no-flush", 3, "fflush(stdout) in C"),
    ("closes-later", 1, "the program closed its output"),
    ("chatters", 3, "it wrote 'computing'; a line must begin with array, end, error or skip"),
    ("binary-later", 1, "a line must begin with array, end, error or skip"),
    ("endless-later", 1, "it wrote 'y'; a line must begin"),
    ("shape", 1, "the array value is float32[1], not float32[]"),
    ("huge-later", 1, "the array value is float32[1000000000000000]"),
    ("dtype", 1, "the array value is float64[], not float32[]"),
    ("no-dtype-later", 1, "the dtype of value is 'complex64'"),
    ("name-later", 1, "it answered with an array 'y'; the question asks for value"),
    ("empty-later", 1, "its answer has no array value"),
    ("twice-later", 1, "it answered with the array value twice"),
    ("line-later", 1, "it wrote 'array x float32 2 3'; the line of an array is"),
])
def test_what_is_said_of_a_program(mode, code, said, run):
    """One line for one cause, never a traceback, and no wait beyond the timeout: 1 if it has ever answered, 3 if never."""
    started = time.perf_counter()
    timeout = 0.5 if "--timeout" in said or mode == "no-flush" else 60        # a busy machine is no silent program
    found, out, err = run("--exec", answering(mode), "--op", "neg", "--dtype", "float32", "--examples", 2, "--timeout", timeout)
    assert (found, said in (err if code == 3 else out)) == (code, True), out + err
    assert out.count(" broken  ") == (code == 1 and mode != "skips") + (mode == "sign")      # with "sign" two laws say so
    if code == 3:
        assert len(err.strip().splitlines()) == 1 and out == ""
    assert time.perf_counter() - started < 20


def test_a_program_that_fails_on_the_second_line_of_an_op_was_run(run):
    """It has answered for gelu; that it dies for gelu-bias is a broken law."""
    program = shlex.join([sys.executable, "-S", "-E", str(ANSWERS), "no-bias"])
    code, out, err = run("--exec", program, "--op", "gelu", "--examples", 2, "--no-vjp", "--dtype", "float64")
    assert (code, err) == (1, "") and "gelu-bias: 1 of 1" in out, out + err


def test_a_script_and_all_that_it_started_ends(run, tmp_path):
    """A shell script whose child holds the pipes is ended with it, when time is up and at the end."""
    script = tmp_path / "kernel.sh"
    script.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\n{answering('hangs')}\n")
    script.chmod(0o755)
    assert run("--exec", script, "--op", "neg", "--timeout", 0.5)[0] == 3
    group = int((tmp_path / "pid").read_text())

    def left() -> list[str]:
        states = subprocess.run(["ps", "-o", "stat=", "-g", str(group)], capture_output=True, text=True).stdout.split()
        return [state for state in states if not state.startswith("Z")]

    until = time.perf_counter() + 10
    while left() and time.perf_counter() < until:       # a signal that was sent is not yet one that arrived
        time.sleep(0.05)
    assert left() == []


@pytest.mark.parametrize(("argv", "code", "said"), [
    (["--exec", "./no_such", "--op", "neg"], 3, "there is no program ./no_such"),
    (["--exec", str(ANSWERS), "--op", "neg"], 3, "chmod +x"),
    (["--exec", "", "--op", "neg"], 3, "the command is empty"),
    (["--exec", "'", "--op", "neg"], 3, "No closing quotation"),
    (["--exec", "x"], 2, "take one --op"),
    (["--exec", "x", "--op", "neg", "--op", "exp"], 2, "take one --op"),
    (["--exec", "x", "--op", "neg", "--definition", "minigrad:neg"], 2, "take one --op"),
    (["--exec", "x", "--op", "neg", "--op", "exp", "--definition", "minigrad:neg"], 2, "take one --op"),
    (["--exec", "x", "--op", "neg", "--device", "numpy"], 2, "decides for itself"),
    (["--exec", "x", "--op", "neg", "--array", "3"], 2, "--array goes with --definition"),
    (["--exec", "x", "--op", "neg", "--timeout", "0"], 2, "--timeout"),
    (["--exec", "x", "--op", "getitem"], 2, "it is not a number, a text, a list or an array"),
    (["--exec", "x", "--op", "cross_entropy", "--dtype", "float16"], 2, "is then float32"),
    (["--exec", "x", "--op", "softmax", "--set", "axes=1"], 2, "the settings of softmax are axis"),
    (["--exec", "x", "--op", "softmax", "--set", "axis"], 2, "NAME=JSON"),
    (["--exec", "x", "--op", "gelu", "--set", "approximate=tanh"], 2, 'approximate="tanh"'),
    (["--exec", "x", "--definition", "minigrad.softmax"], 2, "MODULE:FUNCTION"),
    (["--exec", "x", "--definition", "nomodule:softmax"], 2, "No module named 'nomodule'"),
    (["--exec", "x", "--definition", "minigrad:soft"], 2, "no attribute 'soft'"),
    (["--exec", "x", "--definition", "minigrad:softmax"], 2, "give the shape of each argument with --array"),
    (["--exec", "x", "--definition", "minigrad:softmax", "--array", "4;8"], 2, "write a shape such as 4,8"),
    (["--exec", "x", "--definition", "minigrad:softmax", "--array", "4,8:odd"], 2, "the kinds are"),
    (["--exec", "x", "--definition", "minigrad:softmax", "--array", "4", "--array", "4"], 2, "(--array gives 2"),
    (["--exec", "x", "--definition", "minigrad:softmax", "--array", "4,8", "--set", "axis=5"], 2, "the definition fails"),
    (["--op", "neg", "--timeout", "3"], 2, "--timeout needs --exec"),
])
def test_wrong_flags(argv, code, said, run):
    """2 for what is wrong with the flags, 3 for a program that is none; one line each."""
    found, out, err = run(*argv)
    assert (found, out) == (code, "") and said in err.splitlines()[-1], err


# ── definitions, and the same from Python ──
def test_a_definition_of_ones_own(run, tmp_path, monkeypatch):
    """A function of Tensors in a file here is the truth, on the shapes that --array says; a program that is none of it falls."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def minus(x, *, by=1.0):\n    return -x * by\n")
    flags = ["--exec", answering("right"), "--definition", "mine:minus", "--array", "2,3", "--dtype", "float32", "--examples", 5]
    code, out, _ = run(*flags)
    assert code == 0 and "minus: all laws hold" in out and re.search(r"parts +float32 +held", out)
    code, out, _ = run(*flags, "--set", "by=1.5")
    assert code == 1 and "parts" in broken(out)


def test_a_value_alone(run):
    """--no-vjp judges the value of a program whose gradient is wrong, or missing."""
    for of in (["--op", "neg"], ["--definition", "minigrad.ops.elementwise:neg", "--array", "any"]):
        code, out, _ = run("--exec", answering("sign"), *of, "--no-vjp", "--examples", 2)
        assert code == 0 and re.search(r"value +float64 +held", out) and "adjoint" not in out
    flags = ["--definition", "minigrad:tanh", "--array", "3", "--no-vjp", "--examples", 2, "--dtype", "float32"]
    assert run("--exec", answering("right"), *flags)[0] == 1


def test_check_takes_a_program():
    """The same in Python, with strategies of one's own."""
    def minus(x):
        return -x

    with Program(answering("right"), minus) as program:
        assert check(program.subject("minus"), arrays((2, 3)), examples=5).ok
        assert program.value(np.ones(2)).tolist() == [-1.0, -1.0]
    with Program(answering("sign"), minus) as program, pytest.raises(LawsBroken, match="adjoint"):
        check(program.subject("minus"), arrays((2, 3)), examples=5)


# ── the page ──
def test_examples_on_kinks_are_left_out(run):
    """There libraries differ, and each may be right."""
    code, out, _ = run("--describe", "--op", "relu")
    assert code == 0 and "relu:" in out and "relu-kink" not in out and any(d.label == "relu-kink" for d in DOMAINS)


@pytest.mark.slow
@pytest.mark.parametrize("op", dict.fromkeys(d.subject.name for d in DOMAINS))
def test_the_description_names_what_an_op_gets(op, run):
    """Inputs, settings and messages; an op that the protocol has no form for is refused in one line."""
    code, out, err = run("--describe", "--op", op)
    if op in ("getitem", "put", "unslice"):
        assert code == 2 and "the setting index" in err
    elif not any(d.smooth for d in DOMAINS if d.subject.name == op):
        assert code == 2 and "no derivatives to judge" in err
    else:
        assert code == 0 and out.startswith(op) and "  inputs " in out and "the answer:" in out


def test_the_page_shows_what_describe_prints(run):
    """Word for word, but for the sizes and settings of the example: that of the op's first line in the table."""
    def words(text):
        return [re.sub(r"(setting +\w+).*|( \d+)+$|\(\d+ ", r"\1", line) for line in text.splitlines()]

    code, out, _ = run("--describe", "--op", "layer_norm")
    shown = [words(b.text) for b in pages.blocks(PAGE, "text")]
    assert code == 0 and words(out.partition("\n\nlayer_norm-")[0]) in shown


def test_the_arrays_of_the_page_have_as_many_bytes_as_it_says():
    """A line of lengths, and the line below it, in float32."""
    found = re.findall(r"array \w+ float32 (\d+)((?: \d+)*)\n *\((\d+) bytes\)", PAGE.read_text("utf-8"))
    assert len(found) == 11
    for axes, lengths, size in found:
        shape = list(map(int, lengths.split()))
        assert (len(shape), 4 * math.prod(shape)) == (int(axes), int(size))


@pytest.mark.slow
@needs_cc
@needs_node
def test_the_commands_of_the_page_run(tmp_path):
    """In a folder with copies of the two programs, with fewer examples, and as a shell runs them."""
    for name in ("softmax.c", "gelu.js"):
        shutil.copy(EXAMPLES / name, tmp_path)
    found = [command for command, _ in pages.commands(PAGE) if "softmax" in command or "gelu" in command]
    assert len(found) >= 3
    shown = next(pages.blocks(PAGE, "text")).text
    from docs.check import environment, prints

    for command in found:
        command = command + " --examples 3" if "--exec" in command else command
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        if "./softmax --op softmax" in command and "float32" in command:
            assert prints(*(re.sub(r"\d+ examples.*", "", text) for text in (done.stdout, shown))), done.stdout
