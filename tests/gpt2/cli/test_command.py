"""How commands end: exit codes, one line for what a user can cause, and only the result on stdout."""
from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import warnings

import pytest
from data import ROOT
from in_process import end_of

from gpt2.cli.command import Parser, at_least, emit_json, read_stdin, run_command, text
from gpt2.cli.tables import table
from gpt2.errors import GPT2Error, MissingError, UsageError
from minigrad.errors import BackendUnavailable, MinigradError, ShapeError

HEAD = "import sys\nfrom gpt2.cli.command import run_command, emit_json, read_stdin, Parser\n"


def process(body, **kwargs):
    """Run a command with this body of main() as a process of its own, stdout buffered as it usually is."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    source = f"{HEAD}def main():\n{lines}run_command(main, 'gpt2.test')\n"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"} | kwargs.pop("env", {})
    kwargs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **kwargs}
    return subprocess.run([sys.executable, "-c", source], env=env, cwd=ROOT, timeout=60, **kwargs)


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(("error", "code", "line"), [
    (UsageError("top-p must lie in (0, 1]; 2.0 does not"), 2, "top-p must lie in (0, 1]; 2.0 does not"),
    (MissingError("no weights"), 3, "no weights"),
    (GPT2Error("no"), 1, "no"),
    (BackendUnavailable("no GPU"), 4, "no GPU"),
    (ShapeError("a is [2], b is [3]"), 1, "a is [2], b is [3]"),
    (MinigradError("in two\n  lines"), 1, "in two lines"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (PermissionError(errno.EACCES, "Permission denied", "/out/model"), 1, "/out/model: Permission denied"),
    (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
    (OSError("a library's own\nwords"), 1, "a library's own words"),
    (OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"), 1, "a: b: Invalid cross-device link"),
    (MemoryError("Unable to allocate 9 GiB"), 1,
     "out of memory (Unable to allocate 9 GiB); use a smaller model, batch or context"),
    (MemoryError(), 1, "out of memory; use a smaller model, batch or context"),
])
def test_what_a_user_can_cause_ends_in_one_line(error, code, line, capsys):
    """An error a user can cause prints `prog: message` on stderr alone and exits with its code."""
    assert end_of(raising(error), capsys) == (code, "", f"gpt2.test: {line}\n")


@pytest.mark.parametrize("code", [None, 0, 5])
def test_a_command_ends_with_what_main_returns(code, capsys):
    """Without an error the exit code is main()'s own, and stderr is empty."""
    assert end_of(lambda: code, capsys) == (code, "", "")


def test_a_bug_keeps_its_traceback(capsys):
    """An exception that no user can cause is not dressed up."""
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0, "gpt2.test")
    done = process("1 // 0")
    assert done.returncode == 1 and b"Traceback" in done.stderr


def test_an_error_names_the_module_it_happened_in():
    """`where` ends the message of a minigrad error."""
    error = ShapeError("matmul: 768 ≠ 512")
    assert str(error) == "matmul: 768 ≠ 512" and error.modules == []
    error.where = "blocks.3.mlp.c_fc"
    assert str(error) == "matmul: 768 ≠ 512; in blocks.3.mlp.c_fc"
    assert isinstance(error, ValueError) and isinstance(error, MinigradError)


def test_a_warning_is_one_line(capsys):
    """A warning is `prog: warning: message`, without file, line number or source, and the run goes on."""

    def main():
        warnings.warn("h.0.ln_1.weight\nholds NaN", stacklevel=1)
        print("text")
        return 0

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        before = warnings.showwarning
        ended = end_of(main, capsys)
        assert warnings.showwarning is before
    assert ended == (0, "text\n", "gpt2.test: warning: h.0.ln_1.weight holds NaN\n")


def test_the_reader_may_leave_early():
    """When the reader of stdout goes, as head does, the command ends as `yes | head` would: 141, no word."""
    read, write = os.pipe()
    os.close(read)
    try:
        for body in ("print('x' * 100)", "for i in range(10**6): print(i, flush=True)",
                     "Parser(prog='gpt2.test').parse_args(['--help'])"):
            done = process(body, stdout=write)
            assert (done.returncode, done.stderr) == (141, b""), body
    finally:
        os.close(write)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which Linux has")
def test_a_full_disk_is_one_line():
    """Output that cannot be written is an error with one line, even when it only shows at the last flush."""
    for flush in (True, False):
        with open("/dev/full", "w") as full:
            done = process(f"print('x', flush={flush})", stdout=full)
        assert (done.returncode, done.stderr.decode()) == (1, "gpt2.test: No space left on device\n")


def test_control_c_keeps_what_was_printed():
    """Ctrl-C exits with 130 after what there is on stdout, with one line on stderr."""
    body = "import os, signal\nprint('so far', end='')\nos.kill(os.getpid(), signal.SIGINT)\nsignal.pause()"
    done = process(body, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    assert (done.returncode, done.stdout, done.stderr) == (130, b"so far", b"gpt2.test: interrupted\n")


def test_streams_may_be_closed_or_narrow():
    """A closed stderr sends nothing to stdout; a closed stdout is no error; an ASCII stdout ends no run."""
    done = process("raise OSError('lost')", preexec_fn=lambda: os.close(2), stderr=None)
    assert (done.returncode, done.stdout) == (1, b"")
    assert process("print('lost')", preexec_fn=lambda: os.close(1), stdout=None).returncode == 0
    done = process("print('\\u00e9')", env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\\xe9\n", b"")


def parser():
    p = Parser(prog="gpt2.test")
    p.add_argument("--num-samples", type=at_least(1))
    p.add_argument("--prompt", type=text)
    p.add_argument("--choice", choices=["a", "b"])
    return p


@pytest.mark.parametrize(("flags", "message"), [
    (["--nonsense"], "unrecognized arguments: --nonsense"),
    (["--num", "3"], "unrecognized arguments: --num 3"),
    (["--num-samples", "0"], "argument --num-samples: 0 is less than 1"),
    (["--num-samples", "-3"], "argument --num-samples: -3 is less than 1"),
    (["--num-samples", "1.5"], "argument --num-samples: '1.5' is not a whole number"),
    (["--prompt", "ab\udcff"], "argument --prompt: not UTF-8 (byte 0xff after 2 characters)"),
    (["--prompt"], "argument --prompt: expected one argument"),
])
def test_a_usage_error_is_one_line(flags, message, capsys):
    """A wrong flag exits with 2 and one line; abbreviations are wrong flags."""
    ended = end_of(lambda: parser().parse_args(flags), capsys)
    assert ended == (2, "", f"gpt2.test: {message}; see --help\n")


def test_good_flags_pass():
    """What the types accept comes out as it went in."""
    flags = parser().parse_args(["--num-samples", "1", "--prompt", "ünï 🤗", "--choice", "a"])
    assert (flags.num_samples, flags.prompt, flags.choice) == (1, "ünï 🤗", "a")


def test_stdin_is_read_as_it_is(monkeypatch):
    """read_stdin gives the bytes of stdin decoded as UTF-8, whatever the locale, with their line ends."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("é\r\n🤗\n".encode()), encoding="ascii"))
    assert read_stdin() == "é\r\n🤗\n"


def test_a_byte_order_mark_on_stdin_is_left_out(monkeypatch):
    """Windows' shells put one before a text; it is no part of a prompt, and a warning says so."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeffé".encode())))
    with pytest.warns(UserWarning, match="stdin begins with a byte-order mark, which is left out"):
        assert read_stdin() == "é"


def test_stdin_that_is_no_text_is_refused(monkeypatch):
    """read_stdin names the first byte that is not UTF-8; a closed stdin is refused too."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"abc\xffd")))
    with pytest.raises(UsageError, match=r"^stdin is not UTF-8 \(byte 0xff at offset 3\)$"):
        read_stdin()
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="stdin is closed"):
        read_stdin()


def test_json_is_strict_and_one_line(capsys):
    """emit_json prints one ASCII line that any parser reads back; a NaN is refused and prints nothing."""
    document = {"text": "line\nline é 🤗", "n": [1, 2.5, None]}
    emit_json(document)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and out.isascii() and json.loads(out) == document
    with pytest.raises(ValueError):
        emit_json({"loss": float("nan")})
    assert capsys.readouterr().out == ""


def test_what_would_steer_a_terminal_is_written_out(capsys):
    """An error, and a cell of a table, with what a foreign file may hold: escape sequences, a bell, half a character."""
    def main():
        raise MissingError("tensor 'a\x1b]0;title\x07\x1b[2J\ud800\u202e' is not there")

    assert end_of(main, capsys) == (3, "", "gpt2.test: tensor 'a\\x1b]0;title\\x07\\x1b[2J\\ud800\\u202e' is not there\n")
    assert list(table(("name",), [("a\x1b[31mb\n",), ("naïve · ⏎",)])) == ["name", "a\\x1b[31mb\\n", "naïve · ⏎"]


def test_a_closed_stdout():
    """With >&- nobody reads: nothing is printed, and nothing fails."""
    command = f"exec {sys.executable} -m gpt2.generate --max-new-tokens 2 >&-"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "") and "Traceback" not in done.stderr


def test_without_docstrings():
    """python -OO removes them; the commands that show them still run."""
    done = subprocess.run([sys.executable, "-OO", "-m", "gpt2.experiments", "--list"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "nano-sort" in done.stdout and done.stderr == ""


@pytest.mark.parametrize("argv, ours", [(["-m"], True), (["a.py"], False)])
def test_ctrl_c_while_a_command_is_imported(argv: list[str], ours: bool):
    """python -m gpt2.NAME ends without a traceback; a program that imports gpt2 keeps its own handler, and run_command sets Python's."""
    # a process in the background ignores SIGINT, and so do its children
    code = ("import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv = {argv}; import gpt2; "
            "print(signal.getsignal(signal.SIGINT) is signal.SIG_DFL); "
            "from gpt2.cli.command import run_command; "
            "run_command(lambda: print(signal.getsignal(signal.SIGINT) is signal.default_int_handler), 'x')")
    done = subprocess.run([sys.executable, "-c", code.format(argv=argv)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == [str(ours), "True"]
