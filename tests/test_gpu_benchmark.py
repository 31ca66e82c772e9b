"""benchmarks.gpu on the fake CuPy, at toy sizes: its times mean nothing, but all of it runs; what fails is told and stops nothing."""
from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest
from data import ROOT

from benchmarks import gpu, gpu_bench, gpu_parts, gpu_report, gpu_tests, gpu_train
from benchmarks.gpu_bench import Setting
from gpt2.cli.command import run_command
from minigrad.testing import fake_cupy

fake_cupy.install()
FAST = ["device", "rates", "launch", "attention"]


def _part(name: str, **fields: Any) -> tuple[str, list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    return gpu.here(name, Setting("fake", True, **fields), rows.append), rows


@pytest.mark.slow
def test_all_that_is_quick(tmp_path, capsys):
    """The command: a JSON and a Markdown file named by date and device, a row for every measurement with its spread, exit code 0."""
    assert gpu.main(["--backend", "fake", "--size", "tiny", "--out", str(tmp_path), "--only", *FAST], gpu.here) == 0
    (path,) = tmp_path.glob("*-fake-gpu.json")
    found = json.loads(path.read_text())
    assert list(found["parts"]) == FAST and {p["status"] for p in found["parts"].values()} == {"done"}
    for name, part in found["parts"].items():
        assert part["rows"] and all({"what", "who", "unit"} <= row.keys() for row in part["rows"])
        for row in part["rows"]:
            assert name == "device" or row["low"] <= row["value"] <= row["high"]
            assert row.get("ratio", 1.0) > 0 and row.get("share", 1.0) > 0
    page = path.with_suffix(".md").read_text()
    assert "Toy sizes" in page and all(f"* {name}: done" in page for name in FAST) and "FAILED" not in page
    printed = capsys.readouterr()
    assert "── rates: done" in printed.out and str(path) in printed.err
    dtypes = {r["dtype"] for r in found["parts"]["rates"]["rows"] if r["what"].startswith("products of GPT-2")}
    assert dtypes == {"float32", "tf32", "float16", "bfloat16"}
    assert any("share" in r for r in found["parts"]["attention"]["rows"])       # of what an earlier part measured


@pytest.mark.slow
def test_answers_are_numpys_and_pytorchs(monkeypatch):
    """Logits, losses, every gradient, a step and greedy ids."""
    failed, rows = _part("answers")
    assert not failed and not [r for r in rows if "error" in r] and len(rows) == 6
    from minigrad.backend.cupy import kernels as cupy_kernels

    real = cupy_kernels.mean_of
    monkeypatch.setattr(cupy_kernels, "mean_of", lambda *a: real(*a) * 1.2)
    _, rows = _part("answers")
    assert any("WRONG" in r.get("error", "") for r in rows)


@pytest.mark.slow
def test_a_wrong_answer_is_told(monkeypatch):
    """An error in the loss is a row that says WRONG, or a step that is not timed."""
    from minigrad.backend.cupy import kernels as cupy_kernels

    real = cupy_kernels.mean_of
    monkeypatch.setattr(cupy_kernels, "mean_of", lambda *a: real(*a) * 1.2)
    monkeypatch.setattr(gpu_train, "PLAN", ((8, "float32"), (8, "bfloat16")))
    monkeypatch.setattr(gpu_train, "compiled", lambda *args: None)
    failed, rows = _part("train")
    assert not failed and sum("NOT TIMED" in r.get("error", "") for r in rows) == 2
    assert [r["who"] for r in rows if "value" in r] == ["torch eager", "torch eager"]
    monkeypatch.setattr(cupy_kernels, "mean_of", real)
    failed, rows = _part("train")
    assert not failed and [r["who"] for r in rows] == ["torch eager", "minigrad"] * 2


@pytest.mark.slow
def test_training_and_decoding(monkeypatch):
    """Steps in each precision beside PyTorch, and tokens a second; without PyTorch ours alone."""
    monkeypatch.setattr(gpu_train, "PLAN", ((8, "bfloat16"), (8, "tf32")))
    failed, rows = _part("train")
    assert not failed and [(r["who"], r["dtype"]) for r in rows if "value" in r] == [
        (who, dtype) for dtype in ("bfloat16", "tf32") for who in ("torch eager", "minigrad")] + [
        ("torch compile", "bfloat16"), ("torch compile", "tf32")]
    monkeypatch.setattr(gpu_train, "torch_device", lambda bench: (_ for _ in ()).throw(RuntimeError("no PyTorch")))
    failed, rows = _part("train")
    assert not failed and sum(r.get("who") == "minigrad" and "value" in r for r in rows) == 2
    assert all("no PyTorch" in r["error"] for r in rows if "error" in r)
    monkeypatch.setattr(gpu_parts.importlib.util, "find_spec", lambda name: None)
    failed, rows = _part("decode")
    assert not failed and len(rows) == 5 and all(r["unit"] == "tok/s" and r["value"] > 0 for r in rows)


def test_a_failing_row_and_a_failing_part_stop_nothing(tmp_path, monkeypatch):
    """A row that fails is told with its reason; so is a part; the others go on, and the exit code is 1."""
    def broken(bench: gpu_bench.Bench) -> None:
        bench.row("first", [1.0, 3.0, 2.0], unit="s")
        with bench.attempt("second", dtype="float32"):
            raise ValueError("no such\nthing")
        with bench.attempt("third"):
            bench.row("third", [1.0], unit="GB/s", work=2e9)
        raise OSError("all is lost")

    monkeypatch.setitem(gpu.PARTS, "rates", (broken, 1))
    assert gpu.main(["--backend", "fake", "--size", "tiny", "--out", str(tmp_path), "--only", "device", "rates", "launch"], gpu.here) == 1
    found = json.loads(next(tmp_path.glob("*.json")).read_text())
    part = found["parts"]["rates"]
    assert (part["status"], part["error"]) == ("failed", "OSError: all is lost") and found["parts"]["launch"]["status"] == "done"
    first, second, third = part["rows"]
    assert (first["value"], first["low"], first["high"]) == (2.0, 1.0, 3.0) and third["value"] == 2.0
    assert second == {"what": "second", "error": "ValueError: no such thing", "dtype": "float32"}
    assert "FAILED: ValueError: no such thing" in next(tmp_path.glob("*.md")).read_text()


def test_time_that_is_over_leaves_what_there_is(monkeypatch):
    """A part whose share is over stops before its next row."""
    failed, rows = _part("launch", seconds=-1.0)
    assert failed.startswith("its share of the time was over before") and rows == []


@pytest.mark.parametrize("body, status, error", [
    ("print('{\"what\": \"a\"}', flush=True); time.sleep(60)", "failed", "its share of the time was over"),
    ("print('{\"what\": \"a\"}', flush=True); sys.exit('dead for a reason')", "failed", "dead for a reason"),
    ("print('{\"what\": \"a\"}', flush=True); os.kill(os.getpid(), 9)", "failed", "killed"),
    ("print('{\"what\": \"a\"}\\n{\"end\": \"\"}', flush=True)", "done", "")])
def test_a_process_that_dies_leaves_its_rows(body, status, error, monkeypatch):
    """A part that hangs, exits or is killed is told in a line, with the rows it had; everything is written after each part."""
    monkeypatch.setattr(gpu, "command", lambda name: [sys.executable, "-c", f"import os, sys, time; {body}"])
    timer = gpu.threading.Timer
    monkeypatch.setattr(gpu.threading, "Timer", lambda seconds, f, args: timer(min(seconds, 1.0), f, args))
    written: list[str] = []
    found = gpu.measure(["rates", "launch"], Setting("fake", True), 0.1, lambda found: written.append(json.dumps(found)))
    for part in found["parts"].values():
        assert part["status"] == status and error in part["error"] and part["rows"] == [{"what": "a"}]
    assert len(written) == 2 and list(json.loads(written[0])["parts"]) == ["rates"]


def test_an_interrupted_run_is_written(tmp_path, monkeypatch):
    """Ctrl-C ends with 130; what there is has been written."""
    def stop(name: str, setting: Setting, emit: Any) -> str:
        emit({"what": "a"})
        raise KeyboardInterrupt

    assert gpu.main(["--backend", "fake", "--size", "tiny", "--out", str(tmp_path)], stop) == 130
    found = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert found["interrupted"] and found["parts"]["device"]["rows"] == [{"what": "a"}] and found["parts"]["device"]["status"] == "cut"


def test_a_part_in_a_process_of_its_own(tmp_path):
    """The command as it is run, with one part: rows arrive by its stdout."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu", "--backend", "fake", "--size", "tiny", "--out", str(tmp_path),
                           "--only", "launch"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "one of our kernels" in done.stdout, done.stderr


@pytest.mark.parametrize("argv, code, words", [
    (["--minutes", "0"], 2, "--minutes"), (["--backend", "numpy"], 2, "cupy or fake"), (["--only", "nothing"], 2, "invalid choice"),
    (["--backend", "fake", "--device", "7"], 2, "fake:7 does not exist"),
    (["--backend", "fake", "--out", "/proc/nowhere/x"], 2, "cannot be written")])
def test_a_wrong_flag_is_one_line(argv, code, words, capsys):
    """Exit code and one line on stderr."""
    with pytest.raises(SystemExit) as end:
        run_command(lambda: gpu.main(argv), "benchmarks.gpu")
    said = capsys.readouterr()
    assert end.value.code == code and words in said.err and said.err.count("\n") == 1 and not said.out


def test_a_page_can_be_read():
    """Numbers keep three digits or all before the point."""
    assert [gpu_report.number(v, "µs") for v in (0.126, 12.34, 1234.5)] == ["0.13 µs", "12.3 µs", "1,234 µs"]


@pytest.mark.slow
def test_the_tests_of_a_device(tmp_path):
    """The part that runs pytest, and the one that runs the laws where there is none."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu", "--backend", "fake", "--size", "tiny", "--out", str(tmp_path),
                           "--only", "tests", "start", "decode"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and re.search(r"minigrad  [1-9]\d* passed, 0 failed", done.stdout), done.stdout + done.stderr
    rows: list[dict[str, Any]] = []
    gpu_tests.laws(gpu_bench.Bench(Setting("fake", True), rows.append))
    assert "held" in rows[-1]["note"] and "broken" not in rows[-1]["note"]
