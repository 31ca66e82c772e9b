"""Show what minigrad finds on this machine, and what is missing: `python -m minigrad.info`."""
from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import warnings
from typing import Any

import numpy as np

from . import backend
from .backend.cupy import errors as cupy_errors
from .backend.numpy import blas
from .errors import MinigradError

_REQUIRED = ("numpy", "tiktoken", "matplotlib", "safetensors", "huggingface_hub", "tqdm")
_OPTIONAL = {"mpi4py": "mpi", "torch": "test", "transformers": "test", "hypothesis": "test",
             "pytest": "test"}
_FORCING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_CUDA = ("CUDA_VISIBLE_DEVICES", "CUPY_CACHE_DIR", "CUPY_CACHE_IN_MEMORY", "CUDA_PATH",
         "LD_LIBRARY_PATH")


def collect() -> dict[str, Any]:
    """All that is printed, as plain data; sizes are in bytes, and None means unknown.

    It never raises. python, platform: str. packages: {name: version | None}.
    blas: {name, version, architecture, threads}. environment: variables that steer BLAS and CUDA.
    cpu: {model, cores, usable}. memory: {total, available}.
    gpu: {driver, cuda, nvrtc, cache, devices, reason}. missing: [{what, why, command}].
    warnings: [str].
    """
    info: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for section in (_packages, _blas, _environment, _cpu, _memory, _gpu):
        name = section.__name__.lstrip("_")
        try:
            info[name] = section()
        except Exception as error:                      # one broken part must not hide the rest
            info[name] = {"error": f"{type(error).__name__}: {_line(error)}"}
    info["missing"] = _missing(info)
    info["warnings"] = [
        f"{name}={info['environment'][name]} overrides OpenBLAS's own choice for this CPU; "
        "unset it"
        for name in _FORCING if name in info["environment"]
    ] + _about_cupy()
    return info


def machine() -> str:
    """This machine in one line: cores, CPU, NumPy and its BLAS."""
    cpu, library = _cpu(), _blas()
    parts = [library[key] for key in ("name", "version", "architecture")]
    kind = " ".join(str(part) for part in parts if part)
    return f"{cpu['usable']} cores of {cpu['model']}, NumPy {np.__version__}, {kind}"


def about(device: str) -> str:
    """A device and the software that computes on it, in one line, to be copied into a report."""
    from . import __version__

    here = backend.get(device)
    cuda: Any = getattr(here.backend.namespace, "cuda", None)
    place = f"{here}, {machine()}"
    if hasattr(getattr(cuda, "runtime", None), "getDeviceProperties"):
        gpu = cuda.runtime.getDeviceProperties(here.number)
        driver, runtime = (_cuda(f()) for f in (cuda.runtime.driverGetVersion,
                                                cuda.runtime.runtimeGetVersion))
        nvrtc = ".".join(map(str, cuda.nvrtc.getVersion()))
        place = (f"{here}: {gpu['name'].decode()}, compute capability "
                 f"{gpu['major']}.{gpu['minor']}, driver {_driver()} for CUDA {driver}, CUDA "
                 f"runtime {runtime}, NVRTC {nvrtc}, CuPy {_packages()['cupy']}, "
                 f"NumPy {np.__version__}")
    return (f"{place}; minigrad {__version__} ({_commit()}), Python {platform.python_version()} on "
            f"{platform.platform()}")


def _commit() -> str:
    """The commit of a clone, with "-dirty" if files differ from it; otherwise "no clone"."""
    here = os.path.dirname(os.path.abspath(__file__))
    git = ["git", "-C", here, "describe", "--always", "--dirty", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if os.path.exists(os.path.join(here, os.pardir, ".git")):     # or it is another clone
            done = subprocess.run(git, capture_output=True, text=True, timeout=20, check=True)
            return f"commit {done.stdout.strip()}"
    return "no clone"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> dict[str, str | None]:
    from . import __version__

    versions: dict[str, str | None] = {"minigrad": __version__}
    versions.update((name, _version(name)) for name in (*_REQUIRED, *_OPTIONAL))
    found = cupy_errors.packages()
    versions["cupy"] = ", ".join(f"{v} ({name})" for name, v in found.items()) or None
    return versions


def _about_cupy() -> list[str]:
    """What is wrong with CuPy's packages and the folder of its cache, if it is installed."""
    found = cupy_errors.packages()
    wrong = [cupy_errors.several(found)] if len(found) > 1 else []
    there = cupy_errors.cache_folder()
    while not os.path.exists(there):                    # CuPy makes the folder
        there = os.path.dirname(there) or os.curdir
    if found and not (os.path.isdir(there) and os.access(there, os.W_OK)):
        wrong.append(cupy_errors.unwritable(PermissionError(13, f"no writing in {there}")))
    return wrong


def _blas() -> dict[str, Any]:
    config: Any = np.show_config(mode="dicts")
    built = config.get("Build Dependencies", {}).get("blas", {})
    found: dict[str, Any] = {"name": built.get("name"), "version": built.get("version"),
                             "architecture": None, "threads": None}
    if blas.library() is not None:
        name = blas.call("get_corename", restype=ctypes.c_char_p)
        found |= {"architecture": name.decode(), "threads": blas.call("get_num_threads")}
    elif importlib.util.find_spec("threadpoolctl"):     # knows MKL, BLIS and a system's OpenBLAS
        import threadpoolctl

        for pool in threadpoolctl.threadpool_info():
            if pool["user_api"] == "blas":
                found |= {"architecture": pool.get("architecture"), "threads": pool["num_threads"]}
                found["version"] = pool.get("version") or found["version"]
    return found


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in (*_FORCING, *_THREADS, *_CUDA)
            if name in os.environ}


def _cpu() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        models = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
        model = next(models, model)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"model": model, "cores": os.cpu_count(), "usable": usable}


def _memory() -> dict[str, int | None]:
    found: dict[str, int | None] = {"total": None, "available": None}
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        found["total"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError), open("/proc/meminfo", encoding="utf-8") as lines:
        available = (int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:"))
        found["available"] = next(available)
    return found


def _gpu() -> dict[str, Any]:
    """The GPUs, and the versions of their software.

    driver: the driver's version, from nvidia-smi. cuda, nvrtc: the versions of CuPy's CUDA runtime
    and of the compiler. cache: the folder of compiled kernels. reason: why there are no devices, or
    why the first cannot be used. A device has a name, its compute capability, memory, and `runs`:
    "yes" if a kernel was compiled and ran on it, otherwise what is wrong.
    """
    found: dict[str, Any] = {"driver": _driver(), "cuda": None, "nvrtc": None, "cache": None,
                             "devices": [], "reason": None}
    try:
        with warnings.catch_warnings():                 # `_about_cupy` has what CuPy warns of
            warnings.simplefilter("ignore")
            gpus = backend.get("cupy").backend
    except MinigradError as error:
        found["reason"] = _line(error)
        if (loaded := backend.loaded("cupy")) is None:
            return found
        gpus = loaded
    cuda = gpus.namespace.cuda
    found["cuda"] = _cuda(cuda.runtime.runtimeGetVersion())
    found["nvrtc"] = ".".join(map(str, cuda.nvrtc.getVersion()))
    found["cache"] = cupy_errors.cache_folder()
    for number in range(cuda.runtime.getDeviceCount()):
        device = cuda.runtime.getDeviceProperties(number)
        capability = f"{device['major']}.{device['minor']}"
        found["devices"].append({"name": device["name"].decode(), "capability": capability,
                                 **_state(number, cuda)})
    return found


def _cuda(version: int) -> str:
    """A version of CUDA as people write it: 12.9 for 12090."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _state(number: int, cuda: Any) -> dict[str, Any]:
    """The memory of a GPU, and whether a kernel runs on it, or what is wrong."""
    try:
        there = backend.get(f"cupy:{number}")
        free, total = cuda.runtime.memGetInfo()
        there.backend.host(there.arange(3))             # which CuPy computes by a kernel
    except Exception as error:
        return {"runs": _line(backend.explained(error) or error)}
    return {"total": total, "available": free, "runs": "yes"}


def _driver() -> str | None:
    """The version of the NVIDIA driver, or None if there is none that works."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        if version := re.match(r"\d[\d.]*", done.stdout):
            return version.group()
    return None


def _missing(info: dict[str, Any]) -> list[dict[str, str | None]]:
    """What is missing: its name, why it matters, and the command that installs it, or None."""
    packages, gpu = info["packages"], info["gpu"]
    wanted = [(name, "gpt2 needs it", name) for name in _REQUIRED]
    wanted += [(name, f"extra [{extra}]", f"'.[{extra}]'") for name, extra in _OPTIONAL.items()]
    missing: list[dict[str, str | None]] = [
        {"what": name, "why": why, "command": f"pip install {target}"}
        for name, why, target in wanted if packages.get(name, "") is None
    ]
    if gpu.get("reason") is None:                       # a GPU works, or `gpu` has an error
        return missing
    if (driver := gpu["driver"]) is None:
        missing.append({"what": "NVIDIA driver", "command": None,
                        "why": "nvidia-smi is not found or finds no GPU; without a GPU use "
                               "--backend numpy"})
    if packages.get("cupy") is None:
        # NVIDIA's CUDA 13 release notes: it needs a driver of at least 580
        extra = "cuda13" if driver and int(driver.split(".")[0]) >= 580 else "cuda12"
        missing.append({"what": "cupy", "why": "--backend cupy",
                        "command": f"pip install '.[{extra}]'"})
    return missing


def report(info: dict[str, Any]) -> str:
    """The result of `collect` as text, with one fact on each line."""
    rows = [("python", f"{info['python']} on {info['platform']}")]
    for name, section in info.items():
        if isinstance(section, dict):
            rows += [(name, f"{k} {_show(k, value)}") for k, value in section.items()
                     if value is not None]
    for m in info["missing"]:
        command = f": {m['command']}" if m["command"] else ""
        rows.append(("missing", f"{m['what']} ({m['why']}){command}"))
    rows += [("warning", warning) for warning in info["warnings"]]
    return "\n".join(f"{name:<12} {text}" for name, text in rows)


def _show(key: str, value: Any) -> str:
    if key in ("total", "available"):
        return f"{value / 2**30:.1f} GiB"
    if key == "devices":
        devices = [", ".join(f"{k} {_show(k, v)}" for k, v in device.items()) for device in value]
        return "; ".join(devices) or "none"
    return str(value)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="minigrad.info", description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead")
    flags = parser.parse_args(argv)
    info = collect()
    try:
        print(json.dumps(info) if flags.json else report(info), flush=True)
    except BrokenPipeError:                             # the reader has closed the pipe, as | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
