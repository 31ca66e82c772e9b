"""`python -m minigrad.info`: what it reports is true, and no machine makes it fail."""
from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from data import ROOT

from minigrad import backend, info
from minigrad.backend.numpy import blas
from minigrad.errors import BackendUnavailable


def command(*flags, **environment):
    free = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")}
    return subprocess.run([sys.executable, "-m", "minigrad.info", *flags], cwd=ROOT, env=free | environment,
                          capture_output=True, text=True, timeout=60, check=False)


def test_the_command_prints_one_json_document():
    """--json is one line of JSON with every section; without it the same facts are lines for people."""
    done = command("--json")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    document = json.loads(done.stdout)
    assert {"python", "packages", "blas", "cpu", "memory", "gpu", "missing", "warnings"} <= set(document)
    assert document["packages"]["numpy"] == importlib.metadata.version("numpy")
    people = command()
    assert (people.returncode, people.stderr) == (0, "")
    assert f"numpy {document['packages']['numpy']}" in people.stdout


def test_the_blas_is_the_one_numpy_calls():
    """Architecture and threads are those of the library that NumPy's matmul runs on."""
    threadpoolctl = pytest.importorskip("threadpoolctl", reason="to compare: pip install threadpoolctl")
    pools = [p for p in threadpoolctl.threadpool_info() if p["internal_api"] == "openblas"]
    pools = [p for p in pools if "numpy" in p["filepath"]]
    if not pools:
        pytest.skip("this NumPy does not carry its own BLAS; pip's does")
    found = info.collect()["blas"]
    assert (found["architecture"], found["threads"]) == (pools[0]["architecture"], pools[0]["num_threads"])


def test_the_blas_is_found_without_helpers(monkeypatch):
    """With pip's NumPy, architecture and threads need no threadpoolctl."""
    if blas.library() is None:
        pytest.skip("this NumPy does not carry OpenBLAS; pip's does")
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    found = info.collect()["blas"]
    assert found["architecture"] and found["threads"] >= 1 and found["name"]
    with blas.one_thread():
        assert info.collect()["blas"]["threads"] == 1


def test_forced_kernels_are_pointed_out():
    """OPENBLAS_CORETYPE and its like change speed, so they are shown and warned about, and only when set."""
    document = json.loads(command("--json", OPENBLAS_CORETYPE="Haswell").stdout)
    assert [w for w in document["warnings"] if "OPENBLAS_CORETYPE=Haswell" in w and "unset" in w]
    assert json.loads(command("--json").stdout)["warnings"] == []


def unavailable(name):
    raise BackendUnavailable("backend cupy: not here")


@pytest.mark.parametrize(("driver", "extra"), [(None, "cuda12"), ("535.1", "cuda12"), ("580.65", "cuda13")])
def test_what_is_missing_comes_with_its_command(driver, extra, monkeypatch):
    """Without CuPy the extra that suits the driver is named; without a driver that is said too."""
    monkeypatch.setattr(backend, "get", unavailable)
    monkeypatch.setattr(info, "_driver", lambda: driver)
    monkeypatch.setattr(info, "_version", lambda name: None)
    monkeypatch.setattr(info.cupy_errors, "packages", dict)
    document = info.collect()
    missing = {m["what"]: m for m in document["missing"]}
    assert missing["cupy"]["command"] == f"pip install '.[{extra}]'"
    assert ("NVIDIA driver" in missing) == (driver is None)
    assert missing["tiktoken"]["command"] == "pip install tiktoken"
    assert missing["mpi4py"]["command"] == "pip install '.[mpi]'"
    assert document["gpu"]["reason"] == "backend cupy: not here"
    assert "pip install tiktoken" in info.report(document)


def test_a_gpu_is_described(monkeypatch):
    """A device's name, capability and memory come from CuPy's runtime, and a kernel is run on each. (Against a stand-in for CuPy.)"""
    runtime = SimpleNamespace(
        runtimeGetVersion=lambda: 12090, getDeviceCount=lambda: 2, memGetInfo=lambda: (3 * 2**30, 4 * 2**30),
        getDeviceProperties=lambda n: {"name": f"GPU {n}".encode(), "major": 9, "minor": n})
    cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime, nvrtc=SimpleNamespace(getVersion=lambda: (12, 9))))

    def arange(n):
        if number[-1] == 1:
            raise OSError("no space")

    number = []
    here = SimpleNamespace(namespace=cupy, arange=arange, host=lambda array: array, use=number.append)
    monkeypatch.setattr(backend, "get", lambda name: backend.Device(here, int(name.partition(":")[2] or 0)))
    monkeypatch.setattr(info.cupy_errors, "packages", lambda: {"cupy-cuda12x": "14.2.0"})
    document = info.collect()
    assert document["gpu"]["cuda"] == document["gpu"]["nvrtc"] == "12.9" and document["gpu"]["reason"] is None
    assert document["packages"]["cupy"] == "14.2.0 (cupy-cuda12x)"
    devices = [(d["name"], d["capability"], d["runs"]) for d in document["gpu"]["devices"]]
    assert devices == [("GPU 0", "9.0", "yes"), ("GPU 1", "9.1", "no space")]
    assert not [m for m in document["missing"] if m["what"] in ("cupy", "NVIDIA driver")]
    assert "name GPU 0, capability 9.0, total 4.0 GiB, available 3.0 GiB, runs yes; name GPU 1, " in info.report(document)
    json.dumps(document, allow_nan=False)


def test_a_place_in_one_line(monkeypatch):
    """What a report needs to know of a GPU, or of a CPU: the device, all versions, and the commit of a clone."""
    runtime = SimpleNamespace(
        runtimeGetVersion=lambda: 12090, driverGetVersion=lambda: 13010,
        getDeviceProperties=lambda n: {"name": f"GPU {n}".encode(), "major": 9, "minor": 0})
    cuda = SimpleNamespace(runtime=runtime, nvrtc=SimpleNamespace(getVersion=lambda: (12, 9)))
    here = SimpleNamespace(namespace=SimpleNamespace(cuda=cuda), name="cupy", devices=True)
    monkeypatch.setattr(backend, "get", lambda name: backend.Device(here, 1))
    monkeypatch.setattr(info, "_driver", lambda: "590.1")
    monkeypatch.setattr(info.cupy_errors, "packages", lambda: {"cupy-cuda12x": "14.2.0"})
    said = info.about("cupy:1")
    assert said.startswith("cupy:1: GPU 1, compute capability 9.0, driver 590.1 for CUDA 13.1, CUDA runtime 12.9, NVRTC 12.9, CuPy 14.2.0 "
                           "(cupy-cuda12x), NumPy ") and re.search(r"; minigrad [\d.]+ \((commit \w+(-dirty)?|no clone)\), Python", said)
    monkeypatch.undo()
    assert info.about("numpy").startswith("numpy, ") and info.machine() in info.about("numpy")
    monkeypatch.setenv("PATH", "")
    assert "(no clone)" in info.about("numpy")


@pytest.mark.parametrize(("folder", "wrong"), [("new/cache", False), (".", False), ("file", True), ("file/cache", True)])
def test_a_cache_that_cannot_be_written_is_a_warning(folder, wrong, tmp_path, monkeypatch):
    """The folder of CuPy's kernels, or the one in which it will be made; without CuPy nobody asks."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / folder))
    for installed in ({"cupy-cuda12x": "14.2.0"}, {}):
        monkeypatch.setattr(info.cupy_errors, "packages", lambda installed=installed: installed)
        found = info.collect()["warnings"]
        assert bool(found) == (wrong and bool(installed)) and all("set CUPY_CACHE_DIR" in line for line in found)


@pytest.mark.parametrize("section", ["_packages", "_blas", "_environment", "_cpu", "_memory", "_gpu"])
def test_one_broken_section_hides_nothing_else(section, monkeypatch, capsys):
    """A section that raises is reported as its error, and the command still ends with 0."""

    def broken():
        raise RuntimeError("a library\nfell over")

    broken.__name__ = section
    monkeypatch.setattr(info, section, broken)
    assert info.main([]) == 0
    printed = capsys.readouterr()
    assert "error RuntimeError: a library fell over" in printed.out and printed.err == ""
    assert info.collect()["python"] in printed.out


def test_the_driver_is_asked_carefully(tmp_path, monkeypatch):
    """The driver is what nvidia-smi prints; None where that fails, is no version, or is not there."""
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    assert info._driver() is None
    for script, version in (("echo 570.86.15; echo 570.86.15", "570.86.15"), ("true", None),
                            ("echo No devices were found", None), ("echo 570.1; exit 9", None)):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        assert info._driver() == version, script


def test_the_reader_may_leave_early():
    """`| head` is no error."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "minigrad.info"], cwd=ROOT, stdout=write,
                          stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")
