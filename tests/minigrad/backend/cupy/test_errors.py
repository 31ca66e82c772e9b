"""What a newcomer's machine lacks, or has broken: each is one line with what, where and what to do, and none is a traceback.

The texts are those of CuPy 14.2 and of CUDA 12.9's runtime, which were made to complain by a driver library that answers with each error.
"""
from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from data import ROOT

import minigrad as mg
from minigrad import backend, info
from minigrad.backend import Device, cpu, cupy
from minigrad.backend.cupy import errors as cupy_errors
from minigrad.testing import fake_cupy
from minigrad.testing.fake_cupy import fake

HERE = fake_cupy.install()


def _error(name: str, said: str, base: type = RuntimeError) -> Exception:
    return type(name, (base,), {"__module__": "cupy"})(said)    # type: ignore[no-any-return]


def _runtime(said: str) -> Exception:
    return _error("CUDARuntimeError", said)


def _raising(error: Exception) -> Callable[..., Any]:
    def f(*args: Any) -> Any:
        raise error

    return f


def _fake(error: Exception | None = None, *, count: int = 1, capability: str = "90", driver: int = 12090, runtime: int = 12090,
          library: Exception | None = None, nvrtc: Exception | None = None, archs: list[int] | None = None, context: Any = None,
          **more: Any) -> types.ModuleType:
    """A package called cupy on a machine where something is wrong."""
    def devices() -> int:
        if error is not None:
            raise error
        return count

    class Device(fake_cupy.Device):
        compute_capability = property(lambda self: capability if self.id == 0 else "90")  # type: ignore[assignment]

        def use(self) -> Any:
            return self

    class Cuda:
        @property
        def cublas(self) -> Any:
            if library is not None:
                raise library
            return types.SimpleNamespace()

    Cuda.runtime = types.SimpleNamespace(               # type: ignore[attr-defined]
        getDeviceCount=devices, driverGetVersion=lambda: driver, runtimeGetVersion=lambda: runtime, memGetInfo=context or (lambda: (1, 2)),
        getDevice=lambda: 0, is_hip=more.pop("is_hip", False), getDeviceProperties=lambda n: {"name": b"GPU", "major": 9, "minor": 0})
    version = _raising(nvrtc) if nvrtc else lambda: divmod(runtime // 10, 100)
    Cuda.nvrtc = types.SimpleNamespace(getVersion=version, getSupportedArchs=lambda: archs or [50, 90])     # type: ignore[attr-defined]
    Cuda.Device = Device                                # type: ignore[attr-defined]
    made = types.ModuleType("cupy")
    made.__spec__ = types.SimpleNamespace(name="cupy")  # type: ignore[assignment]
    for name, value in ({"cuda": Cuda(), "ndarray": type("ndarray", (), {}), "__version__": "14.2.0"} | more).items():
        setattr(made, name, value)
    return made


def _leftover() -> types.ModuleType:
    """What is imported where only a folder cupy is left: a package without a file and without a part."""
    made = types.ModuleType("cupy")
    made.__spec__ = types.SimpleNamespace(name="cupy")  # type: ignore[assignment]
    made.__path__ = ["/lib/site-packages/cupy"]
    return made


OLD = "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version"
NO_CUBLAS = 'Failure finding "libcublasLt.so.13 or libcublasLt.so.12": No such file: libcublasLt.so.13 or libcublasLt.so.12\n'
NO_NVRTC = 'Failure finding "libnvrtc.so.13 or libnvrtc.so.12": No such file: libnvrtc.so.13 or libnvrtc.so.12\n'
GET_12 = "pip install -U 'cupy-cuda12x[ctk]'"
BROKEN = {
    "no-driver": (_fake(_runtime(OLD), driver=0), ["no NVIDIA driver", "nvidia-smi", "docker run --gpus all"]),
    "old-driver": (_fake(_runtime(OLD), driver=11040), ["for CUDA 11.4", "CuPy for CUDA 12;", "update the driver to 525 or later ("]),
    "driver-for-12": (_fake(_runtime(OLD), driver=12040, runtime=13000),
                      ["for CUDA 12.4", "CuPy for CUDA 13", "to 580 or later, or pip uninstall -y cupy-cuda13x, then pip install "
                       "'cupy-cuda12x[ctk]'"]),
    "parts-of-a-driver": (_fake(_runtime("cudaErrorSystemDriverMismatch: system has unsupported display driver / cuda driver combination")),
                          ["different versions", "restart the machine"]),
    "compat": (_fake(_runtime("cudaErrorCompatNotSupportedOnDevice: forward compatibility was attempted on non supported HW")),
               ["cuda-compat", "LD_LIBRARY_PATH"]),
    "stub": (_fake(_runtime("cudaErrorStubLibrary: CUDA driver is a stub library")), ["folder stubs out of LD_LIBRARY_PATH"]),
    "unknown": (_fake(_runtime("cudaErrorUnknown: unknown error")), ["does not start (cudaErrorUnknown: unknown error)", "Restart"]),
    "not-ready": (_fake(_runtime("cudaErrorSystemNotReady: system not yet initialized")), ["does not start", "nvidia-smi"]),
    "container": (_fake(_runtime("cudaErrorOperatingSystem: OS call failed or operation not supported on this OS")), ["--gpus all"]),
    "forked": (_fake(_runtime("cudaErrorInitializationError: initialization error")), ["\"spawn\"", "nvidia-smi"]),
    "no-device": (_fake(_runtime("cudaErrorNoDevice: no CUDA-capable device is detected")), ["no NVIDIA GPU here; use --backend numpy"]),
    "no-count": (_fake(count=0), ["no NVIDIA GPU"]),
    "no-cublas": (_fake(library=ImportError(NO_CUBLAS)), ["CUDA's library libcublasLt", GET_12]),
    "no-nvrtc": (_fake(nvrtc=_error("DynamicLibNotFoundError", NO_NVRTC)), ["CUDA's library libnvrtc", GET_12]),
    "no-nvrtc-of-13": (_fake(nvrtc=RuntimeError("CuPy failed to load libnvrtc.so.12: OSError: libnvrtc.so.12: cannot open shared object "
                                                "file: No such file or directory")), ["CUDA's library libnvrtc", GET_12]),
    "too-old": (_fake(capability="61"), ["cupy:0 has compute capability 6.1", "the kernels need 7.0", "--device"]),
    "too-old-for-13": (_fake(capability="70", runtime=13000, archs=[75, 80, 90]),
                       ["capability 7.0, and this CUDA needs 7.5", "pip install 'cupy-cuda12x[ctk]'", "--device"]),
    "far-too-old-for-13": (_fake(capability="61", runtime=13000, archs=[75, 80, 90]), ["the kernels need 7.0"]),
    "taken": (_fake(context=_raising(_runtime("cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy or unavailable"))),
              ["cupy:0", "another process"]),
    "full": (_fake(context=_raising(_runtime("cudaErrorMemoryAllocation: out of memory"))),
             ["cupy:0 has no memory left to start with", "nvidia-smi shows which", "--device"]),
    "full-driver": (_fake(_error("CUDADriverError", "CUDA_ERROR_OUT_OF_MEMORY: out of memory")), ["no memory left to start with"]),
    "leftover": (_leftover(), ["in /lib/site-packages/cupy has no part cuda", "remove that folder", GET_12]),
    "old-cupy": (_fake(__version__="13.6.0"), ["CuPy 13.6.0 is too old, 14 is", GET_12]),
    "amd": (_fake(is_hip=True), ["ROCm"]),
    "anything": (_fake(_error("SystemFault", "in two\nlines", Exception)), ["in two"]),
}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """installed(*names): these are the packages of CuPy that pip knows, and no GPU has been looked at."""
    def names(*given: str) -> None:
        def version(name: str) -> str:
            if name not in given:
                raise importlib.metadata.PackageNotFoundError(name)
            return "14.2.0"

        monkeypatch.setattr(cupy_errors.importlib.metadata, "version", version)

    monkeypatch.setattr(backend, "_named", {"numpy": cpu})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    names("cupy-cuda12x")
    return names


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_said_in_one_line(case: str, installed: Any, monkeypatch: pytest.MonkeyPatch):
    """Exit code 4, one line with what is wrong and what to do; "cupy" never falls back, and "auto" takes NumPy without a word."""
    package, words = BROKEN[case]
    if case == "driver-for-12":
        installed("cupy-cuda13x")
    monkeypatch.setitem(sys.modules, "cupy", package)
    with pytest.raises(mg.BackendUnavailable) as caught:
        backend.get("cupy")
    said = str(caught.value)
    assert caught.value.exit_code == 4 and "\n" not in said and "use --backend numpy" in said
    assert all(word in said for word in words), said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backend.get("auto") == Device(cpu)
    assert info.collect()["gpu"]["reason"] == said      # `python -m minigrad.info` says the same


@pytest.mark.parametrize("hidden", ["", "7", "GPU-nonsense"])
def test_gpus_may_be_hidden(hidden: str, installed: Any, monkeypatch: pytest.MonkeyPatch):
    """CUDA sees no GPU where CUDA_VISIBLE_DEVICES is empty, or names none that there is."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    for package in (BROKEN["no-device"][0], BROKEN["no-count"][0]):
        monkeypatch.setitem(sys.modules, "cupy", package)
        with pytest.raises(mg.BackendUnavailable, match=f"CUDA_VISIBLE_DEVICES='{hidden}' leaves no GPU to be seen; unset it"):
            backend.get("cupy")


def test_auto_takes_the_first_gpu_that_can_be_used(installed: Any, monkeypatch: pytest.MonkeyPatch):
    """A GPU too old for the kernels is passed over; by its name it is refused."""
    monkeypatch.setitem(sys.modules, "cupy", _fake(capability="52", count=2))
    assert str(backend.get("auto")) == "cupy:1" and backend.get("cupy:1").number == 1
    with pytest.raises(mg.BackendUnavailable, match=r"cupy:0 has compute capability 5\.2"):
        backend.get("cupy")
    with pytest.raises(mg.DeviceError, match="cupy:2 does not exist; this machine has 2 GPUs"):
        backend.get("cupy:2")


# ── a package that is not whole, and packages beside each other ──
@pytest.mark.parametrize("names, remedy", [
    ((), "pip install 'cupy-cuda12x[ctk]' (CUDA 12"), (("cupy-cuda12x",), "pip install -U 'cupy-cuda12x[ctk]'"),
    (("cupy-cuda13x",), "pip install -U 'cupy-cuda13x[ctk]'"),
    (("cupy-cuda11x",), "pip uninstall -y cupy-cuda11x, then pip install 'cupy-cuda12x[ctk]' (CUDA 12"),
    (("cupy",), "pip uninstall -y cupy, then pip install"),
    (("cupy-cuda12x", "cupy-cuda13x"), "pip uninstall -y cupy-cuda12x cupy-cuda13x, then pip install")])
def test_the_remedy_is_for_the_packages_that_are_here(names: tuple[str, ...], remedy: str, installed: Any, monkeypatch: pytest.MonkeyPatch):
    """Another package is not put over one that is there."""
    installed(*names)
    for package in (_fake(library=ImportError(NO_CUBLAS)), _fake(__version__="13.6.0"), _leftover()):
        monkeypatch.setitem(sys.modules, "cupy", package)
        with pytest.raises(mg.BackendUnavailable) as caught:
            cupy.load()
        assert remedy in str(caught.value)


def _importing(monkeypatch: pytest.MonkeyPatch, do: Callable[[], types.ModuleType]) -> None:
    """`import cupy` gives what `do` returns, or raises what it raises."""
    loader = types.SimpleNamespace(create_module=lambda spec: do(), exec_module=lambda module: None)
    spec = importlib.util.spec_from_loader("cupy", loader)      # type: ignore[arg-type]
    finder = types.SimpleNamespace(find_spec=lambda name, *_: spec if name == "cupy" else None)
    monkeypatch.setattr("sys.meta_path", [finder, *sys.meta_path])
    monkeypatch.setitem(sys.modules, "cupy", None)      # so that what the import puts there goes again
    monkeypatch.delitem(sys.modules, "cupy")


@pytest.mark.parametrize("cause, words", [
    (ImportError("libcublas.so.12: cannot open shared object file: No such file"), ["CUDA's library libcublas", GET_12]),
    (ImportError("numpy.core.multiarray failed to import"), ["cannot be imported (numpy.core", GET_12]),
    (AttributeError("module 'numpy' has no attribute 'AxisError'"), ["cannot be imported (module 'numpy'", GET_12]),
    (PermissionError(13, "Permission denied", "/home/me/.cupy"), ["cache of compiled kernels, /c/k, cannot be used (Permission denied)",
                                                                  "set CUPY_CACHE_DIR"]),
    (FileExistsError(17, "File exists", "/c/k"), ["/c/k, cannot be used (File exists)"])])
def test_an_import_that_fails_says_why(cause: Exception, words: list[str], installed: Any, monkeypatch: pytest.MonkeyPatch):
    """Of CuPy's page the reason is told: a library that is missing, a cache that cannot be made, or whatever it was."""
    monkeypatch.setenv("CUPY_CACHE_DIR", "/c/k")
    error: Exception = cause
    if isinstance(cause, ImportError):
        error = ImportError(f"\n{'=' * 64}\nFailed to import CuPy.\n\nOriginal error:\n  {cause}\n{'=' * 64}\n")
        error.__cause__ = cause
    _importing(monkeypatch, _raising(error))
    with pytest.raises(mg.BackendUnavailable) as caught:
        cupy.load()
    said = str(caught.value)
    assert all(word in said for word in words) and "\n" not in said and "====" not in said, said


def test_two_packages_are_a_warning_of_one_line(installed: Any, monkeypatch: pytest.MonkeyPatch):
    """In place of CuPy's page about it; other warnings of an import stay as they are."""
    page = f"\n{'-' * 80}\n\n  CuPy may not function correctly because multiple CuPy packages are installed\n  in your environment:\n"

    def imported() -> types.ModuleType:
        warnings.warn(page, stacklevel=1)
        warnings.warn("something else", stacklevel=1)
        return _fake(count=0)

    installed("cupy-cuda12x", "cupy-cuda13x")
    _importing(monkeypatch, imported)
    with warnings.catch_warnings(record=True) as met, pytest.raises(mg.BackendUnavailable):
        warnings.simplefilter("always")
        cupy.load()
    first, second = (str(one.message) for one in met)
    assert first == ("cupy-cuda12x and cupy-cuda13x are installed together, and overwrite each other's files; pip uninstall -y "
                     f"cupy-cuda12x cupy-cuda13x, then {cupy_errors.INSTALL}") and second == "something else"
    [warning] = [w for w in info.collect()["warnings"] if "cupy" in w]
    assert warning == first


# ── while it runs ──
@pytest.mark.parametrize("error, kind, words", [
    (_error("OutOfMemoryError", "Out of memory allocating 12,000,000,512 bytes (allocated so far: 70,000,000,000 bytes).", MemoryError),
     mg.OutOfMemoryError, ["layer_norm: out of memory on cupy:1: 12.00 GB asked for"]),
    (_runtime("cudaErrorMemoryAllocation: out of memory"), mg.OutOfMemoryError, ["out of memory on cupy:1"]),
    (_error("CUBLASError", "CUBLAS_STATUS_ALLOC_FAILED"), mg.OutOfMemoryError, ["lower the batch"]),
    (_error("CUBLASError", "CUBLAS_STATUS_NOT_SUPPORTED"), mg.DeviceError, ["layer_norm: cupy:1: CUBLAS_STATUS_NOT_SUPPORTED"]),
    (_error("CUBLASError", "CUBLAS_STATUS_NOT_INITIALIZED"), mg.BackendUnavailable, ["cupy:1 cannot be used", "its memory?"]),
    (_error("CUDADriverError", "CUDA_ERROR_NO_BINARY_FOR_GPU: no kernel image"), mg.BackendUnavailable, ["no code for this GPU"]),
    (_error("CompileException", "nvrtc: error: invalid value for --gpu-architecture (-arch)\n", Exception), mg.BackendUnavailable,
     ["no code for this GPU", "CUDA 12.9"]),
    (_error("CUDADriverError", "CUDA_ERROR_UNSUPPORTED_PTX_VERSION: PTX"), mg.BackendUnavailable, ["update the driver", "==12.9.*'"]),
    (_error("CUDADriverError", "CUDA_ERROR_INVALID_IMAGE: device kernel image is invalid"), mg.BackendUnavailable, ["an older NVRTC"]),
    (_runtime("cudaErrorIllegalAddress: an illegal memory access was encountered"), mg.DeviceError, ["CUDA_LAUNCH_BLOCKING=1"]),
    (_runtime("cudaErrorInvalidDevice: invalid device ordinal"), mg.DeviceError, ["nvidia-smi -L"]),
    (_runtime("cudaErrorUnknown: unknown error"), mg.DeviceError, ["layer_norm: cupy:1: cudaErrorUnknown: unknown error"]),
    (_error("CompileException", "/tmp/a.cu(3): note\n/tmp/a.cu(7): error: x is undefined\n", Exception), mg.DeviceError, ["(7): error: x"]),
    (_error("CompileException", "nvrtc: error: failed to open libnvrtc-builtins.so.12.9.\n  Make sure that libnvrtc-builtins.so.12.9 is "
            "installed correctly.", Exception), mg.BackendUnavailable, ["library libnvrtc-builtins is not installed", "[ctk]"]),
    (ImportError(NO_CUBLAS), mg.BackendUnavailable, ["libcublasLt", "[ctk]"]),
    (ImportError("no module called nonsense"), None, []), (ValueError("cudaErrorMemory"), None, []), (OSError("a disk"), None, []),
    (RuntimeError("libcublas is a word"), None, []),
])
def test_every_complaint_has_its_line(error: Exception, kind: Any, words: list[str]):
    """What, where and what to do, as an error of ours; what is not CuPy's is left alone."""
    ours = cupy_errors.explained(fake._namespace(), error, "layer_norm", "cupy:1")
    assert type(ours) is (kind or type(None))
    if kind:
        assert "\n" not in str(ours) and all(word in str(ours) for word in words), str(ours)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied", "/c/k/tmp52h6"), OSError(28, "No space left on device"),
                                   OSError(30, "Read-only file system", "/c/k/tmp52h6"), OSError(122, "Disk quota exceeded")])
@pytest.mark.parametrize("module", ["cupy.cuda.compiler", "cupy.cuda._compiler_cache"])
def test_a_cache_that_cannot_be_written(error: OSError, module: str, monkeypatch: pytest.MonkeyPatch):
    """The folder and CUPY_CACHE_DIR are named, with a file's name in the error and without; other modules' errors are left alone."""
    monkeypatch.setenv("CUPY_CACHE_DIR", "/c/k")

    def met(name: str) -> Any:
        scope = {"__name__": name, "error": error}
        exec("def save(): raise type(error)(*error.args)", scope)
        try:
            scope["save"]()                             # type: ignore[operator]
        except OSError as caught:
            return cupy_errors.explained(None, caught, "gelu", "cupy:0")

    ours = met(module)
    assert isinstance(ours, mg.DeviceError) and met("gpt2.data.shards") is None
    assert str(ours) == (f"gelu: cupy:0: CuPy's cache of compiled kernels, /c/k, cannot be used ({error.strerror}); "
                         "set CUPY_CACHE_DIR to a folder that you can write to")


@pytest.mark.parametrize("command", [["gpt2.generate", "--backend", "cupy"], ["gpt2.inspect", "trace", "--backend", "cupy"],
                                     ["minigrad.testing", "--device", "cupy"], ["benchmarks.gpu"]])
def test_a_command_ends_with_the_line(command: list[str], tmp_path: Any):
    """Exit code 4, and nothing else on any stream, with a package cupy that finds no driver."""
    (tmp_path / "cupy.py").write_text(f"""
import types
class CUDARuntimeError(RuntimeError): pass
def count(): raise CUDARuntimeError({OLD!r})
runtime = types.SimpleNamespace(getDeviceCount=count, driverGetVersion=lambda: 0, runtimeGetVersion=lambda: 12090)
cuda = types.SimpleNamespace(runtime=runtime)
""")
    env = {**__import__("os").environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT, env=env, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (4, "", 1), done.stderr
    assert "there is no NVIDIA driver here" in done.stderr
    done = subprocess.run([sys.executable, "-m", "minigrad.info", "--json"], capture_output=True, text=True, cwd=ROOT, env=env, check=False)
    assert done.returncode == 0 and "there is no NVIDIA driver here" in json.loads(done.stdout)["gpu"]["reason"]
