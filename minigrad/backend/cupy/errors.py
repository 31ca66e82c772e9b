"""What CuPy and CUDA complain of, as minigrad's errors: one line with what, where, what to do."""
from __future__ import annotations

import importlib.metadata
import os
import re
from types import TracebackType
from typing import Any

from ...errors import BackendUnavailable, DeviceError, MinigradError, OutOfMemoryError

# compute capability: Volta, the first whose threads of a warp go their own ways
OLDEST = (7, 0)
OLDEST_CUPY = 14
INSTALL = ("pip install 'cupy-cuda12x[ctk]' (CUDA 12; the extra [cuda12]) "
           "or 'cupy-cuda13x[ctk]' (CUDA 13; [cuda13])")
ELSE = "or use --backend numpy"
# the packages that hold a folder cupy; those from 11x down are no longer made
PACKAGES = ("cupy-cuda12x", "cupy-cuda13x", "cupy-cuda14x", "cupy", "cupy-cuda11x", "cupy-cuda110",
            "cupy-cuda111", "cupy-cuda102", "cupy-rocm-7-0", "cupy-rocm-7-1", "amd-cupy")
# NVIDIA's release notes: the oldest driver for each CUDA
DRIVERS = {12: 525, 13: 580}
_THEIRS = {"CUDARuntimeError", "CUDADriverError", "CUBLASError", "NVRTCError", "CompileException",
           "DynamicLibNotFoundError"}
_DRIVER_OLD = ("cudaErrorInsufficientDriver", "cudaErrorCallRequiresNewerDriver")
_NO_MEMORY = ("cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED")
_NOT_STARTED = ("cudaErrorUnknown", "cudaErrorOperatingSystem", "cudaErrorNotPermitted",
                "cudaErrorSystemNotReady", "cudaErrorStartupFailure", "cudaErrorSymbolNotFound")
# words of an error, the error of ours, and what it says
_COMPLAINTS: tuple[tuple[tuple[str, ...], type[MinigradError], str], ...] = (
    (("cudaErrorStubLibrary",), BackendUnavailable,
     "{at}: a stub is found in place of the NVIDIA driver ({said}); take the folder stubs out of "
     "LD_LIBRARY_PATH, {else_}"),
    (("SystemDriverMismatch", "SYSTEM_DRIVER_MISMATCH"), BackendUnavailable,
     "{at}: the parts of the NVIDIA driver have different versions, as after an update ({said}); "
     "restart the machine, {else_}"),
    (("CompatNotSupported", "COMPAT_NOT_SUPPORTED"), BackendUnavailable,
     "{at}: the package cuda-compat, which takes the place of the driver's library, does not work "
     "with this GPU ({said}); take its folder compat out of LD_LIBRARY_PATH, or update the "
     "driver, {else_}"),
    (("cudaErrorNoKernelImageForDevice", "CUDA_ERROR_NO_BINARY_FOR_GPU",
      "NVRTC_ERROR_INVALID_OPTION", "CUBLAS_STATUS_ARCH_MISMATCH",
      "invalid value for --gpu-architecture"), BackendUnavailable,
     "{at}: this CuPy with CUDA {runtime} and NVRTC {nvrtc} has no code for this GPU ({said}); an "
     "old GPU needs 'cupy-cuda12x[ctk]' and no NVRTC of CUDA 13 (pip uninstall nvidia-cuda-nvrtc), "
     "a new one the newest CuPy; {else_}"),
    (("UNSUPPORTED_PTX_VERSION", "UnsupportedPtxVersion", "INVALID_PTX", "InvalidPtx",
      "INVALID_IMAGE", "InvalidKernelImage"), BackendUnavailable,
     "{at}: the driver, for CUDA {driver}, does not understand what NVRTC {nvrtc} makes ({said}); "
     "update the driver, or install an older NVRTC: pip install "
     "'cuda-toolkit[nvrtc]=={driver}.*'"),
    (("DevicesUnavailable", "DEVICE_UNAVAILABLE", "CUBLAS_STATUS_NOT_INITIALIZED"),
     BackendUnavailable,
     "{at} cannot be used ({said}); does another process hold it or its memory? nvidia-smi shows; "
     "choose another with --device, {else_}"),
    (("cudaErrorInitializationError", "CUDA_ERROR_NOT_INITIALIZED"), BackendUnavailable,
     "{at} cannot be used ({said}); does nvidia-smi work? A process that was forked after CUDA was "
     "used cannot use it: start it with multiprocessing's \"spawn\", {else_}"),
    (("InvalidDevice", "INVALID_DEVICE"), DeviceError,
     "{at} does not exist ({said}); nvidia-smi -L lists the GPUs, numbered from 0"),
    (("cudaErrorIllegalAddress", "CUDA_ERROR_ILLEGAL_ADDRESS", "cudaErrorLaunchFailure",
      "CUDA_ERROR_LAUNCH_FAILED", "cudaErrorAssert", "cudaErrorMisalignedAddress",
      "cudaErrorHardwareStackError", "cudaErrorIllegalInstruction", "cudaErrorECCUncorrectable"),
     DeviceError,
     "{at} failed ({said}), and this process cannot use it any more; is an index outside its "
     "table? CUDA_LAUNCH_BLOCKING=1 shows where"),
)


def explained(cupy: Any, error: BaseException, what: str = "",
              place: str = "cupy") -> MinigradError | None:
    """The error of ours that stands for one of CuPy's; None for one that is not CuPy's.

    It was met by `what` on the device `place`.
    """
    names, said = {kind.__name__ for kind in type(error).__mro__}, first_line(error)
    at = f"{what}: {place}" if what else place
    if "OutOfMemoryError" in names or any(word in said for word in _NO_MEMORY):
        return OutOfMemoryError((f"{what}: " if what else "") + _no_memory(cupy, said, place))
    if library := _missing_library(error, names, said):
        return BackendUnavailable(f"backend cupy: CUDA's library {library} is not installed; "
                                  f"{_one_package()}, {ELSE}")
    if isinstance(error, OSError) and _in_cache(error.__traceback__):
        return DeviceError(f"{at}: {unwritable(error)}")
    if not names & _THEIRS:
        return None
    if any(word in said for word in _DRIVER_OLD):
        return BackendUnavailable(f"backend cupy: {_driver(cupy)} ({said}), {ELSE}")
    if "NoDevice" in said or "NO_DEVICE" in said:
        return BackendUnavailable(f"backend cupy: {no_gpu()}")
    for words, kind, text in _COMPLAINTS:
        if any(word in said for word in words):
            versions = {name: _version(_ask(cupy, f"{name}GetVersion"))
                        for name in ("runtime", "driver")} | {"nvrtc": _nvrtc(cupy)}
            return kind(text.format(at=at, said=said, else_=ELSE, **versions))
    if "CompileException" in names:
        return DeviceError(f"{at}: a kernel does not compile: {_complaint(str(error))}; "
                           f"say so, with the GPU and python -m minigrad.info, {ELSE}")
    return DeviceError(f"{at}: {said}")


def unusable(cupy: Any, error: BaseException, place: str = "backend cupy") -> BackendUnavailable:
    """As `explained`, for whatever keeps the backend from being used at all."""
    said, ours = first_line(error), explained(cupy, error, place=place)
    if isinstance(ours, BackendUnavailable):
        return ours
    if isinstance(ours, OutOfMemoryError):
        return BackendUnavailable(f"{place} has no memory left to start with ({said}); another "
                                  "process holds it, nvidia-smi shows which; choose another GPU "
                                  f"with --device, {ELSE}")
    if any(word in said for word in _NOT_STARTED):
        return BackendUnavailable(f"{place}: the NVIDIA driver does not start ({said}); does "
                                  "nvidia-smi work? Restart the machine, or in a container pass "
                                  f"the GPU in (docker run --gpus all), {ELSE}")
    return BackendUnavailable(f"{ours or f'{place}: {said}'}; {ELSE}")


def not_imported(error: BaseException) -> BackendUnavailable:
    """The error for a package cupy that is there and cannot be imported."""
    said = first_line(error)
    ours = explained(None, error)
    if isinstance(error, OSError):                      # of the cache: CuPy makes its folder first
        ours = BackendUnavailable(f"backend cupy: {unwritable(error)}")
    return ours if isinstance(ours, BackendUnavailable) else BackendUnavailable(
        f"backend cupy: cupy cannot be imported ({said}); {_one_package()}, {ELSE}")


def unfit(cupy: Any) -> str:
    """Why this package cupy cannot be the backend, and what to do; "" if it can."""
    if not hasattr(cupy, "cuda"):
        where = next(iter(getattr(cupy, "__path__", None) or [getattr(cupy, "__file__", "")]))
        return (f"the package cupy in {where} has no part cuda, as where one of two CuPy packages "
                f"was uninstalled; remove that folder, then {_one_package()}, {ELSE}")
    if getattr(cupy.cuda.runtime, "is_hip", False):
        return (f"this CuPy is for AMD's ROCm, and the kernels are for NVIDIA's CUDA; "
                f"{_one_package()}, {ELSE}")
    version = str(getattr(cupy, "__version__", OLDEST_CUPY))
    if int(version.partition(".")[0]) < OLDEST_CUPY:
        return (f"CuPy {version} is too old, {OLDEST_CUPY} is the oldest that can be used; "
                f"{_one_package()}, {ELSE}")
    return ""


def packages() -> dict[str, str]:
    """The installed packages that hold a folder cupy, with their versions; there should be one."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def several(names: Any) -> str:
    """What is wrong with several CuPy packages beside each other, and what to do."""
    return (f"{' and '.join(names)} are installed together, and overwrite each other's files; "
            f"{_one_package()}")


def first_line(error: BaseException) -> str:
    """What an error says in one line; of CuPy's page on a failed import, the reason."""
    if isinstance(error, ImportError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    return next((line for line in lines if line.strip("=-* ")), type(error).__name__)


def no_gpu() -> str:
    """There is no GPU; and what hides it, where something does."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is None:
        return f"there is no NVIDIA GPU here; {ELSE.removeprefix('or ')}"
    return (f"CUDA_VISIBLE_DEVICES={hidden!r} leaves no GPU to be seen; unset it, or set it to "
            f"numbers that nvidia-smi -L lists, {ELSE}")


def oldest(cupy: Any) -> tuple[int, int]:
    """The lowest compute capability that the kernels need and that this NVRTC compiles for."""
    try:
        return max(OLDEST, divmod(min(cupy.cuda.nvrtc.getSupportedArchs()), 10))
    except Exception:                                   # an NVRTC that does not say
        return OLDEST


def too_old(place: str, has: tuple[int, int], wants: tuple[int, int]) -> str:
    """A GPU whose compute capability is below what is needed, and what to do."""
    said = f"{place} has compute capability {has[0]}.{has[1]}, and "
    if wants > OLDEST and has >= OLDEST:
        return (f"{said}this CUDA needs {wants[0]}.{wants[1]}; CUDA 12 goes further back: pip "
                f"uninstall -y {' '.join(packages()) or 'cupy'}, then pip install "
                f"'cupy-cuda12x[ctk]'; choose another GPU with --device, {ELSE}")
    return (f"{said}the kernels need {OLDEST[0]}.{OLDEST[1]}; choose another GPU with --device, "
            f"{ELSE}")


def cache_folder() -> str:
    """The folder in which CuPy stores the kernels that it has compiled."""
    return os.environ.get("CUPY_CACHE_DIR") or os.path.expanduser("~/.cupy/kernel_cache")


def unwritable(error: OSError) -> str:
    """CuPy's cache of kernels cannot be used, and what to do."""
    return (f"CuPy's cache of compiled kernels, {cache_folder()}, cannot be used "
            f"({error.strerror or first_line(error)}); set CUPY_CACHE_DIR to a folder that you "
            "can write to")


def _in_cache(trace: TracebackType | None) -> bool:
    """Whether an error was raised where CuPy compiles kernels and stores them."""
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__")
        if name in ("cupy.cuda.compiler", "cupy.cuda._compiler_cache"):
            return True
        trace = trace.tb_next
    return False


def _missing_library(error: BaseException, names: set[str], said: str) -> str:
    """The library of CUDA's that an error says is missing, or ""."""
    found = re.search(r"\blib(cublas|nvrtc|cudart|curand|cusolver|cusparse|cufft|nvJitLink)"
                      r"(-builtins|\w*)", said)
    absent = (isinstance(error, ImportError | OSError) or "DynamicLibNotFoundError" in names
              or "failed to load" in said or "failed to open" in said)
    return found[0] if found and absent else ""


def _one_package() -> str:
    """The command that gets one CuPy with CUDA's libraries, whatever there is now."""
    names = [*packages()]
    if len(names) == 1 and names[0] in PACKAGES[:3]:
        return f"pip install -U '{names[0]}[ctk]'"
    return (f"pip uninstall -y {' '.join(names)}, then " if names else "") + INSTALL


def _no_memory(cupy: Any, said: str, place: str) -> str:
    asked = re.search(r"allocating ([\d,]+) bytes", said)
    parts = [f"out of memory on {place}"]
    if asked:
        parts.append(f": {_gb(int(asked[1].replace(',', '')))} asked for")
    limit = re.search(r"limit set to: ([\d,]+) bytes", said)
    try:
        free, total = free_and_total(cupy)
        used = cupy.get_default_memory_pool().used_bytes()
        parts.append(f"{',' if asked else ':'} {_gb(free)} free of {_gb(total)}, "
                     f"{_gb(used)} in use by this process")
    except Exception:                                   # a device that has failed answers nothing
        pass
    if limit:
        parts.append(f", limit set to {_gb(int(limit[1].replace(',', '')))}")
    return "".join(parts) + ("; lower the batch or the block size, compute in 16 bits "
                             "(--dtype bfloat16), or train with --recompute")


def free_and_total(cupy: Any) -> tuple[int, int]:
    """Bytes of the current device that can be allocated, and bytes that it has.

    What CuPy's pool holds unused can be allocated, too.
    """
    free, total = cupy.cuda.runtime.memGetInfo()
    pool = cupy.get_default_memory_pool()
    return free + pool.total_bytes() - pool.used_bytes(), total


def _gb(size: int) -> str:
    if size >= 1e7:
        return f"{size / 1e9:.2f} GB"
    return f"{size / 1e6:.3g} MB" if size >= 1e5 else f"{size:,} bytes"


def _driver(cupy: Any) -> str:
    has, wants = _ask(cupy, "driverGetVersion"), _ask(cupy, "runtimeGetVersion") // 1000
    if not has:
        return ("there is no NVIDIA driver here; install it, and nvidia-smi shows the GPU; in a "
                "container, pass it in (docker run --gpus all)")
    older = has // 1000                                 # CuPy for the driver's own CUDA
    other = ("" if older not in DRIVERS or older >= wants else
             f", or pip uninstall -y {' '.join(packages()) or 'cupy'}, then "
             f"pip install 'cupy-cuda{older}x[ctk]'")
    return (f"the NVIDIA driver is for CUDA {_version(has)}, and this CuPy for CUDA {wants}; "
            f"update the driver to {DRIVERS.get(wants, 'the newest')} or later{other}")


def _ask(cupy: Any, name: str) -> int:
    """A version, as CUDA's runtime has it; 0 where it does not tell."""
    try:
        return int(getattr(cupy.cuda.runtime, name)())
    except Exception:
        return 0


def _nvrtc(cupy: Any) -> str:
    """The version of the compiler that CuPy has loaded, which may be another CUDA's."""
    try:
        return ".".join(map(str, cupy.cuda.nvrtc.getVersion()))
    except Exception:
        return "?"


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}" if number else "?"


def _complaint(log: str) -> str:
    """The first error in a compiler's log."""
    lines = [" ".join(line.split()) for line in log.splitlines() if line.strip()]
    errors = (line for line in lines if "error" in line.lower())
    return next(errors, lines[0] if lines else "no reason given")[:300]
