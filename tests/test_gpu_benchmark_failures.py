"""benchmarks.gpu where something fails: no test and no part ends another, and an issue can be made of the report."""
from __future__ import annotations

import contextlib
import re
import sys
from typing import Any

import pytest
import yaml
from data import ROOT

from benchmarks import gpu, gpu_bench, gpu_report, gpu_tests
from benchmarks.gpu_bench import Setting
from minigrad.testing import fake_cupy

fake_cupy.install()


def _part(name: str, **fields: Any) -> tuple[str, list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    return gpu.here(name, Setting("fake", True, **fields), rows.append), rows


PLANTED = """
import os, signal, time
from minigrad.testing import fake_cupy

HERE, dead = fake_cupy.install(), []
real, host = HERE.kernels["gelu"], HERE.host
error = type("CUDARuntimeError", (RuntimeError,), {})("cudaErrorIllegalAddress: an illegal memory access was encountered")

def gelu(*args, **settings):
    test = os.environ.get("PYTEST_CURRENT_TEST", "")
    if dead or "test_gelu " in test:
        dead.append(test)
        raise error
    if "[float64]" in test:
        raise MemoryError("planted")
    if "[float16]" in test:
        time.sleep(600)
    if "[bfloat16]" in test:
        os.kill(os.getpid(), signal.SIGSEGV)
    out = real(*args, **settings)
    if "with_a_bias" in test and out.size > 5:
        out[...] = out * out.dtype.type(1.01)
    return out

def asked(array):
    if dead:
        raise error
    return host(array)

HERE.kernels["gelu"], HERE.host = gelu, asked
"""


@pytest.mark.slow
def test_a_kernel_that_is_wrong_in_any_way_ends_no_other_test(tmp_path, monkeypatch):
    """One raises, one hangs, one kills the process, one kills the device, one gives wrong numbers: each is told, and the sixth passes."""
    (tmp_path / "sitecustomize.py").write_text(PLANTED)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setattr(gpu_tests, "SILENCE", 30.0)
    rows: list[dict[str, Any]] = []
    gpu_tests.tests(gpu_bench.Bench(Setting("fake", True), rows.append))
    assert rows[-1]["note"] == "1 passed, 5 failed, 0 skipped, of 6"
    told = {row["error"].partition(": ")[0].rpartition("::")[2]: row for row in rows[:-1]}
    wanted = {"test_gelu_far_out[float64]": "MemoryError: planted", "test_gelu_far_out[float16]": "did not end in 30 s, and was ended",
              "test_gelu_far_out[bfloat16]": "ended with signal 11: Fatal Python error: Segmentation fault, File \"",
              "test_gelu": "cudaErrorIllegalAddress", "test_gelu_with_a_bias": "AssertionError: value float32[1, 6] at [0, 0]: "}
    assert told.keys() == wanted.keys() and all(words in told[name]["error"] for name, words in wanted.items()), told
    assert told["test_gelu_with_a_bias"]["example"] == "test_gelu_with_a_bias(n=1, d=6, dtype='float32', seed=0)"
    assert "; the device died; the command prints each example" in told["test_gelu"]["error"] and told["test_gelu"]["example"] == ""
    for name, row in told.items():
        loud = "-s --hypothesis-verbosity=verbose " * ("each example" in row["error"])
        assert row["repeat"] == f'pytest --backend fake {loud}"tests/minigrad/backend/cupy/test_kernels.py::{name}"'


def _process(*lines: str) -> list[str]:
    return [sys.executable, "-c", "import os, sys, time\n" + "\n".join(lines)]


def test_tests_go_on_in_another_process(monkeypatch):
    """After one that kills its process, after one that hangs, and after the device died; what was tested is not tested again."""
    say = 'say = lambda **line: print(__import__("json").dumps(line), flush=True)'
    seen = iter([
        _process(say, 'say(wanted=5)', 'say(start="a")', 'say(test="a", outcome="passed")', 'say(start="b")', 'os.kill(os.getpid(), 9)'),
        _process(say, 'say(start="c")', 'time.sleep(600)'),
        _process(say, 'say(start="d")', 'say(died=True)', 'say(test="d", outcome="failed", reason="why", example="d(1)")', 'say(code=2)'),
        _process('task = __import__("json").loads(sys.stdin.readline())', say, 'say(wanted=len(task["done"]) + 1)', 'say(start="e")',
                 'say(test="e", outcome="skipped")', 'say(code=0)')])
    monkeypatch.setattr(gpu_tests, "command", lambda: next(seen))
    monkeypatch.setattr(gpu_tests, "SILENCE", 5.0)
    rows: list[dict[str, Any]] = []
    gpu_tests.tests(gpu_bench.Bench(Setting("fake", True), rows.append))
    more = "; the command prints each example before it is tried"
    assert [row["error"] for row in rows[:-1]] == [
        f"b: killed; was there memory enough?{more}", f"c: did not end in 5 s, and was ended{more}", "d: why"]
    assert rows[2]["example"] == "d(1)" and rows[-1]["note"] == "1 passed, 3 failed, 1 skipped, of 5"


@pytest.mark.parametrize("lines, seconds, wrong, note", [
    (["sys.exit('no tests here')"], 60.0, "pytest ended with exit code 1: no tests here", None),
    (["print('{\"code\": 4}')"], 60.0, "pytest ended with 4; 0 passed", "0 passed, 0 failed, 0 skipped, of 0"),
    (["print('{\"wanted\": 2}')", "print('{\"test\": \"a\", \"outcome\": \"passed\"}')", "print('{\"start\": \"b\"}', flush=True)",
      "time.sleep(600)"], 4.0, "", "1 passed, 0 failed, 0 skipped, of 2: cut in b, its share of the time was over")])
def test_tests_that_cannot_be_run(lines, seconds, wrong, note, monkeypatch):
    """Why is told; and where the time was over, in the middle of which test."""
    monkeypatch.setattr(gpu_tests, "command", lambda: _process(*lines))
    rows: list[dict[str, Any]] = []
    bench = gpu_bench.Bench(Setting("fake", True, seconds), rows.append)
    with pytest.raises(RuntimeError, match=wrong) if wrong else contextlib.nullcontext():
        gpu_tests.tests(bench)
    assert [row["note"] for row in rows] == ([note] if note else [])


def test_what_an_assertion_says():
    """Its lines without comments and explanations, and the example as a call."""
    report = '''tests/a.py:1: in f
E   AssertionError: value float32[6] at [1]: 0.12, not 0.11
E   Failing test case: test_gelu(
E       # The test always failed when commented parts were varied together.
E       n=6,
E       dtype='float32',  # or any other generated value
E   )
E   Explanation:
E       These lines were always run'''
    assert gpu_tests.said(report) == ("AssertionError: value float32[6] at [1]: 0.12, not 0.11", "test_gelu(n=6, dtype='float32')")
    assert gpu_tests.said(report.replace("Failing test case", "Falsifying example"))[1] == "test_gelu(n=6, dtype='float32')"
    assert gpu_tests.said("a\nINTERNALERROR") == ("INTERNALERROR", "")


def test_all_tests_of_a_device_are_found():
    """In the files that are read for them; reading all others would take half a minute."""
    named = set(gpu_tests.only(gpu_bench.Bench(Setting("fake"), print)))
    asked = re.compile(r"^@(pytest\.mark\.device|kernel_test)|marks=pytest\.mark\.device|pytestmark.*device", re.MULTILINE)
    marked = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py") if asked.search(path.read_text("utf-8"))}
    assert marked <= named and 10 < len(marked) <= len(named) < 20


def test_a_device_that_dies_ends_its_part(monkeypatch):
    """The row in which it died is told, and none after it; the next part has a process of its own."""
    def part(bench: gpu_bench.Bench) -> None:
        for what in ("first", "second", "third"):
            with bench.attempt(what):
                if what == "second":
                    monkeypatch.setattr(bench.here, "host", lambda array: 1 / 0)
                    raise ValueError("cudaErrorIllegalAddress")
                bench.row(what, [1.0], unit="s")

    monkeypatch.setitem(gpu.PARTS, "rates", (part, 1))
    failed, rows = _part("rates")
    assert failed == "the device died in second, and the rest of this part with it"
    assert [row["what"] for row in rows] == ["first", "second"] and rows[1]["error"] == "ValueError: cudaErrorIllegalAddress"


def test_a_part_that_is_killed_tells_where_it_was(monkeypatch):
    """The row that it was at work on."""
    begun = "print('{\"begin\": \"decode gpt2 float32\"}', flush=True)"
    monkeypatch.setattr(gpu, "command", lambda name: _process(begun, "os.kill(os.getpid(), 11)"))
    assert gpu.apart("decode", Setting("fake", True), print) == "ended with signal 11, in decode gpt2 float32"


# ── the report ──
def _found(**parts: Any) -> dict[str, Any]:
    return {"date": "2026-01-01T00", "backend": "cupy:0", "command": "python -m benchmarks.gpu --backend cupy:0", "minutes": 1,
            "size": "full", "interrupted": True, "about": "cupy:0: H200", "info": "python 3", "parts": parts}


def test_an_issue_can_be_made_of_the_report():
    """Its headings are the questions of the form of a bug, in order; each failure has its example and a command; and it is not too long."""
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text("utf-8"))
    asked = [field["attributes"]["label"] for field in form["body"] if field["type"] == "textarea"]
    rows = [{"what": "failed", "error": "t::a: off", "example": "a(n=1)", "repeat": 'pytest --backend cupy "t::a"'},
            {"what": "x", "dtype": "float32", "error": "<a>|"}, {"what": "y", "value": 1.0, "unit": "s", "low": 1.0, "high": 1.0}]
    part = {"status": "failed", "seconds": 1.0, "error": "a|b", "rows": rows}
    page = gpu_report.markdown(_found(p=part))
    assert re.findall(r"^### (.*)$", page, re.MULTILINE) == [*asked, "All rows"]
    assert page.startswith("# GPU, 2026-01-01: 3 failures\n") and "cupy:0: H200" in page and "interrupted" in page
    assert "1. p: FAILED: a\\|b\n\n   ~~~bash\n   python -m benchmarks.gpu --backend cupy:0 --only p\n   ~~~\n" in page
    assert '2. p: FAILED: t::a: off\n\n   ~~~text\n   a(n=1)\n   ~~~\n\n   ~~~bash\n   pytest --backend cupy "t::a"\n   ~~~\n' in page
    assert "3. p, x, float32: FAILED: &lt;a>\\|" in page and "| y |  |  | 1.00 s |" in page
    many = gpu_report.markdown(_found(**{f"p{i}": part | {"rows": [rows[0] | {"example": "b" * 900}, *[rows[2]] * 90]} for i in range(90)}))
    assert len(many) <= 65_536 and "more, in the file of the same name that ends in .json" in many and "### All rows" in many
    assert gpu_report.markdown(_found(p=part | {"error": "", "rows": []})).startswith("# GPU, 2026-01-01: nothing failed\n")
