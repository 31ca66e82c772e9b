"""python -m minigrad.testing on a device that is slow, hangs or dies: a run has a limit, and what it found can be copied into a report."""
from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from minigrad.testing import __main__, fake_cupy
from minigrad.testing.domains import DOMAINS

HERE = fake_cupy.install()


def _run_of(*argv: str, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> tuple[int, str]:
    """The exit code of the command, and what it prints below the table."""
    patch.setattr("sys.argv", ["", "--device", "fake", "--examples", "2", *argv])
    code = __main__.main()
    return code, capsys.readouterr().out.split("✓ held", 1)[1]


def test_a_run_has_a_limit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """No op is begun after its time; what was left out is named, and below it what was tested, where, and how to see a failure again."""
    code, out = _run_of("--op", "tanh", "--op", "mul", "--op", "exp", "--minutes", "1e-9", capsys=capsys, patch=monkeypatch)
    assert code == 0 and "not tested: mul, exp: the time was over" in out and "1 ops and 0 composed functions" in out
    assert re.search(r"^fake:0, \d+ cores of .*; minigrad [\d.]+ \((commit|no clone).*\), Python", out, re.MULTILINE)
    tanh = next(d for d in DOMAINS if d.label == "tanh")
    monkeypatch.setattr(tanh.subject.op, "kernel", lambda xp, x: xp.tanh(x) * 1.01)
    code, out = _run_of("--op", "tanh", "--op", "mul", "--minutes", "9", capsys=capsys, patch=monkeypatch)
    assert code == 1 and "not tested" not in out
    assert out.count("broken; again with: python -m minigrad.testing --device fake --op tanh --examples 2\n") == 1


def test_an_interrupted_run_tells_what_there_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C ends with 130."""
    judged = __main__.judged

    def pressed(domain: Any, *more: Any) -> Any:
        if domain.label != "tanh":
            raise KeyboardInterrupt
        return judged(domain, *more)

    monkeypatch.setattr(__main__, "judged", pressed)
    code, out = _run_of("--op", "tanh", "--op", "mul", capsys=capsys, patch=monkeypatch)
    assert code == 130 and "not tested: mul: interrupted" in out and "1 ops" in out


def test_an_op_that_hangs_is_named():
    """By a thread, after the time and some patience; the process ends with 1, and what there is has been printed."""
    hangs = """if True:
        import sys, time
        from minigrad.testing import __main__ as command
        judged, command.PATIENCE = command.judged, 1.0
        command.judged = lambda d, *more: judged(d, *more) if d.label == "tanh" else time.sleep(600)
        sys.argv = ["", "--device", "numpy", "--examples", "1", "--op", "tanh", "--op", "mul", "--op", "exp", "--minutes", "0.1"]
        command.main()"""
    done = subprocess.run([sys.executable, "-c", hangs], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and "not tested: mul, exp: mul did not end, so the process was ended" in done.stdout, done.stderr
    assert re.search(r"^tanh  +✓✓", done.stdout, re.MULTILINE)


def test_a_device_that_dies_is_told_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """The example on which it died is kept, though every other one fails now; and no further op is tested."""
    tanh, dead = next(d for d in DOMAINS if d.label == "tanh"), list[tuple[int, ...]]()
    real, host = tanh.subject.op.kernel, HERE.host
    error = type("CUDARuntimeError", (RuntimeError,), {})("cudaErrorIllegalAddress: an illegal memory access was encountered")

    def kernel(xp: Any, x: Any) -> Any:
        if xp is HERE and not dead and (host(x) > 1.5).any():
            dead.append(x.shape)
        if dead and xp is HERE:
            raise error
        return real(xp, x)

    def asked(array: Any) -> Any:
        if dead:
            raise error
        return host(array)

    monkeypatch.setattr(tanh.subject.op, "kernel", kernel)
    monkeypatch.setattr(HERE, "host", asked)
    code, out = _run_of("--op", "exp", "--op", "tanh", "--op", "mul", "--examples", "10", capsys=capsys, patch=monkeypatch)
    assert code == 1 and "not tested: mul: fake died in tanh, and this process cannot use it any more" in out
    first, = re.findall(r"^tanh on fake: .*\n.*", out, re.MULTILINE)
    assert "cannot use it any more; is an index outside its table?" in first and len(dead) == 1
    assert str(list(dead[0])) in first
