"""The two commands that try other machines: tests.kernel_sets forces what it says, tests.smoke installs what setup.py admits."""
from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from data import ROOT

from tests import kernel_sets, smoke
from tests.kernel_sets import SETS, Found

OWN = {"2.4": frozenset({"X86_V3", "X86_V4", "AVX512_ICL", "AVX512_SPR"}),
       "2.0": frozenset({"SSSE3", "SSE41", "POPCNT", "SSE42", "AVX", "F16C", "FMA3", "AVX2", "AVX512F", "AVX512CD", "AVX512_SKX",
                         "AVX512_CLX", "AVX512_CNL", "AVX512_ICL"})}
OFF = {("2.4", "Prescott"): OWN["2.4"], ("2.0", "Prescott"): OWN["2.0"], ("2.4", "Haswell"): {"X86_V4", "AVX512_ICL", "AVX512_SPR"},
       ("2.0", "Haswell"): {"AVX512F", "AVX512CD", "AVX512_SKX", "AVX512_CLX", "AVX512_CNL", "AVX512_ICL"},
       ("2.0", "Nehalem"): OWN["2.0"] - {"SSSE3", "SSE41", "POPCNT", "SSE42"}, ("2.4", "SkylakeX"): {"AVX512_ICL", "AVX512_SPR"},
       ("2.0", "Sandybridge"): OWN["2.0"] - {"SSSE3", "SSE41", "POPCNT", "SSE42", "AVX"}}


def named(name):
    return next(kernels for kernels in SETS if kernels.blas == name)


# ── kernel sets ──
@pytest.mark.parametrize(("numpy", "name"), OFF, ids=str)
def test_what_a_processor_lacks_is_switched_off(monkeypatch, numpy, name):
    """By the names of that NumPy, and of what is there alone; what was forced outside is forgotten."""
    monkeypatch.setenv("NPY_DISABLE_CPU_FEATURES", "AVX2")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Zen")
    found = kernel_sets.environment_of(named(name), Found("SkylakeX", OWN[numpy]))
    assert set(found["NPY_DISABLE_CPU_FEATURES"].split()) == OFF[numpy, name] and found["OPENBLAS_CORETYPE"] == name
    assert "NPY_DISABLE_CPU_FEATURES" not in kernel_sets.environment_of(named("Haswell"), Found("Haswell", frozenset({"X86_V3"})))


def test_a_set_that_runs_is_the_one_asked_for():
    """One set at least is in use where it is asked for: by OpenBLAS's own word, and NumPy's."""
    own = kernel_sets.probe(kernel_sets.plain())
    assert isinstance(own, Found)
    reasons = {kernels.blas: kernel_sets.why_not(kernels, own) for kernels in SETS}
    if all(reasons.values()):
        pytest.skip(f"no other kernels can be run here: {reasons['Prescott']}")
    for kernels in SETS:
        if reasons[kernels.blas] is None:
            found = kernel_sets.probe(kernel_sets.environment_of(kernels, own))
            assert isinstance(found, Found) and found.blas in kernels.found and found.simd <= kernels.simd


@pytest.mark.parametrize(("own", "found", "reason"), [
    (None, None, "is not OpenBLAS"),
    ("SkylakeX", Found("Haswell", frozenset()), "uses Haswell's kernels although Prescott's were requested"),
    ("SkylakeX", Found("Katmai", frozenset({"X86_V3"})), "still uses X86_V3"),
    ("SkylakeX", "NumPy does not run with it: no", "does not run"), ("SkylakeX", Found("Katmai", frozenset()), None)], ids=str)
def test_a_set_that_cannot_be_run_has_a_reason(monkeypatch, own, found, reason):
    monkeypatch.setattr(kernel_sets, "probe", lambda environment: found)
    said = kernel_sets.why_not(named("Prescott"), Found(own, frozenset()))
    assert said is None if reason is None else reason in said


def test_what_does_not_start_is_a_reason():
    """A feature that NumPy does not know, on which it warns; a process that a kernel ends."""
    said = kernel_sets.probe({**kernel_sets.plain(), "NPY_DISABLE_CPU_FEATURES": "NO_SUCH"})
    assert isinstance(said, str) and re.match(r"NumPy does not run with it: \w+(Error|Warning)", said)


def test_a_kernel_that_ends_its_process_is_a_reason(monkeypatch):
    monkeypatch.setattr(kernel_sets, "PROBE", "import os; os.kill(os.getpid(), 4)")
    assert kernel_sets.probe(kernel_sets.plain()) == "NumPy does not run with it: exit code -4"


@pytest.mark.parametrize(("flags", "ran", "code"), [
    ([], ["Prescott", "Haswell", "Sandybridge", "SkylakeX"], 1), (["--others", "2"], ["Prescott", "Haswell"], 0),
    (["Prescott", "SkylakeX"], ["Prescott", "SkylakeX"], 1), (["Nehalem"], [], 3), (["Prescott", "--all"], ["Prescott"], 0),
    (["--others", "9"], ["Prescott", "Haswell", "Sandybridge"], 0)], ids=str)
def test_each_set_has_its_line_and_its_log(monkeypatch, capsys, tmp_path, flags, ran, code):
    """Nehalem is skipped here and SkylakeX, which is this machine's own, fails; one failure fails the run, and none that runs is 3."""
    asked = []

    def run(kernels, own, arguments, log):
        asked.append((kernels.blas, "-m" in arguments))
        assert arguments[-2:] == ["-k", "porting"] and log == tmp_path / f"{kernels.blas}.log"
        return int(kernels.blas == "SkylakeX"), "7 passed in 1.0s"

    monkeypatch.setattr(kernel_sets, "run", run)
    monkeypatch.setattr(kernel_sets, "probe", lambda environment: Found("SkylakeX", frozenset()))
    monkeypatch.setattr(kernel_sets, "why_not", lambda kernels, own: "no such kernels" if kernels.blas == "Nehalem" else None)
    assert kernel_sets.main([*flags, "--logs", str(tmp_path), "--", "-k", "porting"]) == code
    assert asked == [(name, "--all" not in flags) for name in ran]
    out = capsys.readouterr().out
    assert all(re.search(rf"^{name} +{'FAILED' if name == 'SkylakeX' else 'passed'}: 7 passed", out, re.M) for name in ran)
    assert ("skipped: no such kernels" in out) == (flags in ([], ["Nehalem"], ["--others", "9"]))


def test_pytest_runs_under_the_set(tmp_path):
    """In a process of its own; its output is in the log, failures on the screen too."""
    own = kernel_sets.probe(kernel_sets.plain())
    test = tmp_path / "test_it.py"
    test.write_text("import os\ndef test_it():\n    assert os.environ['OPENBLAS_CORETYPE'] == 'Haswell'\n")
    for name, code, said in (("Haswell", 0, "1 passed"), ("Prescott", 1, "1 failed")):
        found, last = kernel_sets.run(named(name), own, ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", str(test)], tmp_path / name)
        assert (found, said in last) == (code, True) and said in (tmp_path / name).read_text()
    test.write_text("import os, pytest\n@pytest.mark.rounding\ndef test_it():\n    assert os.environ['HYPOTHESIS_PROFILE'] == 'few'\n"
                    "def test_other():\n    assert 0\n")
    given = ["-q", "-m", kernel_sets.MARKED, "-p", "no:cacheprovider", "-c", "/dev/null", str(test)]
    assert kernel_sets.run(named("Haswell"), own, given, tmp_path / "marked")[0] == 0


def test_a_set_that_there_is_not_is_one_line():
    done = subprocess.run([sys.executable, "-m", "tests.kernel_sets", "Pentium"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("tests.kernel_sets: there is no set 'Pentium'; the sets are Prescott, Haswell, Sandybridge, Nehalem, SkylakeX\n")


# ── smoke ──
def test_every_dependency_has_a_least_version():
    """What the smoke command pins is every requirement of setup.py, and NumPy's is 2.0."""
    least = smoke.least()
    assert "numpy==2.0" in least and {line.partition("==")[0] for line in least} >= {"tiktoken", "matplotlib", "safetensors", "tqdm"}


def test_a_python_that_is_not_there_is_skipped(monkeypatch, capsys):
    monkeypatch.setattr(smoke, "python_of", lambda version: None)
    monkeypatch.setattr(smoke, "packed", lambda folder, python: Path("none.whl"))
    assert smoke.main(["--python", "3.14", "--only", "oldest"]) == 3
    assert "skipped  there is no Python 3.14; pyenv install 3.14" in capsys.readouterr().out
    monkeypatch.setattr(smoke, "row", lambda version, end, *rest: 1 / 0 if end == "none" else "numpy 2.0.0")
    assert smoke.main(["--python", "3.14"]) == 0 and capsys.readouterr().out.count("passed   numpy 2.0.0") == 2


def test_one_that_fails_fails_the_run(monkeypatch, capsys):
    def row(version, end, *rest):
        assert end == "newest", "AttributeError: no such function"
        return "numpy 9.0"

    monkeypatch.setattr(smoke, "row", row)
    monkeypatch.setattr(smoke, "packed", lambda folder, python: Path("none.whl"))
    assert smoke.main(["--python", "3.11"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"oldest  FAILED   AttributeError: no such function", out) and "newest  passed   numpy 9.0" in out


def test_the_python_that_runs_is_found():
    assert smoke.python_of(f"{sys.version_info.major}.{sys.version_info.minor}") == sys.executable and smoke.python_of("3.99") is None


def test_what_the_smoke_program_asks_is_so_here(tmp_path):
    """The program itself runs on this machine's own versions; so a failure elsewhere is of the versions."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", smoke.PROGRAM], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
