"""What CuPy and CUDA complain of, as minigrad's errors: one line with what, where, what to do."""
from __future__ import annotations

import os
import re
from typing import Any

from ...errors import BackendUnavailable, DeviceError, MinigradError, OutOfMemoryError

# compute capability: Volta, the first whose threads of a warp go their own ways
OLDEST = (7, 0)
INSTALL = ("pip install 'cupy-cuda12x[ctk]' (CUDA 12; the extra [cuda12]) "
           "or 'cupy-cuda13x[ctk]' (CUDA 13; [cuda13])")
ELSE = "or use --backend numpy"
_THEIRS = {"CUDARuntimeError", "CUDADriverError", "CUBLASError", "NVRTCError", "CompileException",
           "DynamicLibNotFoundError"}
_DRIVER_OLD = ("cudaErrorInsufficientDriver", "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
               "cudaErrorSystemDriverMismatch", "cudaErrorCallRequiresNewerDriver",
               "cudaErrorCompatNotSupportedOnDevice")
_NO_MEMORY = ("cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED")
_OLD_GPU = ("cudaErrorNoKernelImageForDevice", "CUDA_ERROR_NO_BINARY_FOR_GPU",
            "NVRTC_ERROR_INVALID_OPTION", "CUBLAS_STATUS_ARCH_MISMATCH",
            "invalid value for --gpu-architecture")
_NEW_NVRTC = ("CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "cudaErrorUnsupportedPtxVersion",
              "CUDA_ERROR_INVALID_PTX", "cudaErrorInvalidPtx")
_TAKEN = ("cudaErrorDevicesUnavailable", "CUDA_ERROR_DEVICE_UNAVAILABLE",
          "cudaErrorInitializationError", "CUDA_ERROR_NOT_INITIALIZED",
          "CUBLAS_STATUS_NOT_INITIALIZED", "cudaErrorSystemNotReady", "cudaErrorStartupFailure")
_BROKEN = ("cudaErrorIllegalAddress", "CUDA_ERROR_ILLEGAL_ADDRESS", "cudaErrorLaunchFailure",
           "CUDA_ERROR_LAUNCH_FAILED", "cudaErrorAssert", "cudaErrorMisalignedAddress",
           "cudaErrorHardwareStackError", "cudaErrorIllegalInstruction",
           "cudaErrorECCUncorrectable")


def explained(cupy: Any, error: BaseException, what: str = "",
              place: str = "cupy") -> MinigradError | None:
    """The error of ours that stands for one of CuPy's; None for one that is not CuPy's.

    It was met by `what` on the device `place`.
    """
    names, said = {kind.__name__ for kind in type(error).__mro__}, first_line(error)
    head = f"{what}: " if what else ""
    if "OutOfMemoryError" in names or any(word in said for word in _NO_MEMORY):
        return OutOfMemoryError(head + _no_memory(cupy, said, place))
    missing = re.search(r"\blib(cublas|nvrtc|cudart|curand|cusolver|cusparse|cufft|nvJitLink)\w*",
                        said)
    if isinstance(error, ImportError | OSError) or "DynamicLibNotFoundError" in names:
        if not missing:
            return None
        return BackendUnavailable(f"backend cupy: CUDA's library {missing[0]} is not installed; "
                                  f"{libraries(cupy)}, {ELSE}")
    if not names & _THEIRS:
        return None
    if any(word in said for word in _DRIVER_OLD):
        return BackendUnavailable(f"backend cupy: {_driver(cupy)} ({said}), {ELSE}")
    if "NoDevice" in said or "NO_DEVICE" in said:
        return BackendUnavailable(f"backend cupy: {no_gpu()}")
    runtime = _version(_ask(cupy, "runtimeGetVersion"))
    driver = _version(_ask(cupy, "driverGetVersion"))
    if any(word in said for word in _OLD_GPU):
        return BackendUnavailable(f"{head}{place}: this CuPy and its CUDA {runtime} have no code "
                                  f"for this GPU ({said}); an old GPU needs 'cupy-cuda12x[ctk]', "
                                  f"a new one the newest CuPy; {ELSE}")
    if any(word in said for word in _NEW_NVRTC):
        return BackendUnavailable(f"{head}{place}: the driver, for CUDA {driver}, does not "
                                  f"understand what the compiler NVRTC makes ({said}); update the "
                                  "driver, or install an older NVRTC: "
                                  f"pip install 'cuda-toolkit[nvrtc]=={driver}.*'")
    if any(word in said for word in _TAKEN):
        return BackendUnavailable(f"{head}{place} cannot be used ({said}); does another process "
                                  "hold it or its memory? nvidia-smi shows; choose another with "
                                  f"--device, {ELSE}")
    if "InvalidDevice" in said or "INVALID_DEVICE" in said:
        return DeviceError(f"{head}{place} does not exist ({said}); nvidia-smi -L lists the GPUs, "
                           "numbered from 0")
    if "CompileException" in names:
        return DeviceError(f"{head}{place}: a kernel does not compile: {_complaint(str(error))}; "
                           f"say so, with the GPU and python -m minigrad.info, {ELSE}")
    if any(word in said for word in _BROKEN):
        return DeviceError(f"{head}{place} failed ({said}), and this process cannot use it any "
                           "more; is an index outside its table? CUDA_LAUNCH_BLOCKING=1 shows "
                           "where")
    return DeviceError(f"{head}{place}: {said}")


def unusable(cupy: Any, error: BaseException, place: str = "cupy") -> BackendUnavailable:
    """As `explained`, for whatever keeps the backend from being used at all."""
    ours = explained(cupy, error, place=place)
    if isinstance(ours, BackendUnavailable):
        return ours
    return BackendUnavailable(f"backend cupy: {ours or first_line(error)}; {ELSE}")


def first_line(error: BaseException) -> str:
    """What an error says in one line; of CuPy's page on a failed import, the reason."""
    if isinstance(error, ImportError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    return next((line for line in lines if line.strip("=-* ")), type(error).__name__)


def no_gpu() -> str:
    """There is no GPU; and what hides it, where something does."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    why = f"; CUDA_VISIBLE_DEVICES={hidden!r} hides what there may be" if hidden is not None else ""
    return f"there is no NVIDIA GPU here{why}; use --backend numpy"


def libraries(cupy: Any) -> str:
    """The command that gets CUDA's libraries for this CuPy."""
    major = _ask(cupy, "runtimeGetVersion") // 1000
    return f"pip install 'cupy-cuda{major}x[ctk]'" if major in (12, 13) else INSTALL


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
    has, wants = _ask(cupy, "driverGetVersion"), _ask(cupy, "runtimeGetVersion")
    if not has:
        return "there is no NVIDIA driver here; install it, nvidia-smi then shows the GPU"
    return (f"the NVIDIA driver is for CUDA {_version(has)}, and this CuPy for CUDA "
            f"{_version(wants)}; update the driver, or pip install "
            f"'cupy-cuda{min(has // 1000, 12)}x[ctk]'")


def _ask(cupy: Any, name: str) -> int:
    """A version, as CUDA's runtime has it; 0 where it does not tell."""
    try:
        return int(getattr(cupy.cuda.runtime, name)())
    except Exception:
        return 0


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}" if number else "?"


def _complaint(log: str) -> str:
    """The first error in a compiler's log."""
    lines = [" ".join(line.split()) for line in log.splitlines() if line.strip()]
    errors = (line for line in lines if "error" in line.lower())
    return next(errors, lines[0] if lines else "no reason given")[:300]
