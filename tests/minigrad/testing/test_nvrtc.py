"""Every CUDA source compiled by NVRTC as CuPy has it compiled, for every GPU: no error, and no kernel takes more than it should."""
from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
from data import ROOT

from minigrad.backend.cupy import source
from minigrad.backend.cupy.errors import explained
from minigrad.errors import BackendUnavailable
from minigrad.testing import nvrtc
from minigrad.testing.fake_cupy import cuda, limits

FILES = ("kernels.cu", "attention.cu", "decode.cu", "choose.cu")
QUICK = [("kernels.cu", 12, 90), ("choose.cu", 12, 80)]
LARGEST = 400 << 10                                     # bytes of machine code of one text; what a user waits for grows with them
# Spills that stay, by dtype, constants and kernel: on which GPUs, at most how many bytes, and why.
SPILLS = {
    "float64 ROWS=1 step_linear": ((100, 120), 24, "decoding in float64 is for tests"),
    "float64 ROWS=1 step_qkv": ((100, 120), 40, "decoding in float64 is for tests"),
    "bfloat16 ROWS=8 step_linear": ((120,), 24, "three registers, by CUDA 12.9 alone"),
    "bfloat16 ROWS=8 step_qkv": ((120,), 24, "three registers, by CUDA 12.9 alone"),
    "float64 step_choose": ((100, 120), 40, "sampling in float64 is for tests; it has 64 registers, as a block has 1024 threads"),
}


def needs(major: int):
    return pytest.mark.skipif(nvrtc.place(major) is None,
                              reason=f"NVRTC of CUDA {major} is not installed: pip install -e '.[gpu-test]'")


EACH = [pytest.param(file, major, architecture, id=f"{file}-{major}-sm_{architecture}",
                     marks=[needs(major), *([] if (file, major, architecture) in QUICK else [pytest.mark.kernels, pytest.mark.slow])])
        for file in FILES for architecture, majors in nvrtc.ARCHITECTURES.items() for major in majors]


@pytest.mark.parametrize(("file", "major", "architecture"), EACH)
def test_every_source_compiles(file: str, major: int, architecture: int):
    """For every dtype and constant that the backend has it compiled for: without an error, in a size that nobody waits for, with no spill
    that SPILLS has no reason for, and with no more registers and static shared memory than figures.json says."""
    for module in nvrtc.modules():
        if module.file != file:
            continue
        made = nvrtc.compiled(module.source, nvrtc.options(module.options, architecture), major)
        assert made.kernels.keys() == cuda.parameters(module.source).keys()
        assert len(made.code) <= LARGEST, f"{module}: {len(made.code)} bytes"
        for name, taken in made.kernels.items():
            words = " ".join([module.dtype, *(f"{n}={value}" for n, value in module.constants if n == "ROWS"), name])
            where, most, _ = SPILLS.get(words, ((), 0, ""))
            assert taken.spilled <= (most if architecture in where else 0), f"{module} for sm_{architecture}, {name}: {taken}"
            registers, shared = limits.figures()[" ".join(module.options)][name]
            if nvrtc.version(major) == limits.written_by():
                assert taken.registers <= registers and taken.shared <= shared, (
                    f"{module}, {name}: {taken}; python -m benchmarks.gpu_figures writes figures.json anew")
            most_threads = cuda.launch_bounds(module.source, module.options).get(name, cuda.UNBOUNDED)
            assert limits.refusal(module.options, name, most_threads, 0) is None
            # the threads that a kernel is compiled for can be started
            assert -(-most_threads // 128) <= limits.warps_at_a_time(taken.registers) and taken.shared <= limits.SHARED


def test_the_figures_are_of_these_kernels():
    """figures.json has each text that the backend can ask for, and in it each kernel."""
    wanted: dict[str, set[str]] = {}
    for module in nvrtc.modules():
        wanted.setdefault(" ".join(module.options), set()).update(cuda.parameters(source(module.file)))
    found = {options: set(kernels) for options, kernels in limits.figures().items()}
    assert found == wanted, "python -m benchmarks.gpu_figures writes figures.json anew"


@needs(12)
def test_what_does_not_compile_is_an_error():
    """NVRTC's own words are the error's."""
    with pytest.raises(nvrtc.CompilerError, match="identifier \"y\" is undefined"):
        nvrtc.compiled("__global__ void f(int* x) { x[0] = y; }", nvrtc.options((), 90), 12)


@needs(13)
def test_an_old_gpu_needs_an_old_compiler():
    """NVRTC of CUDA 13 refuses compute capability 7.0, and a user reads which compiler it was and what to do."""
    with pytest.raises(nvrtc.CompilerError) as caught:
        nvrtc.compiled(source("choose.cu"), nvrtc.options(("-DSTORE=float", "-DREAL=float"), 70), 13)
    told = type("CompileException", (Exception,), {})(str(caught.value))
    ours = explained(SimpleNamespace(cuda=SimpleNamespace(nvrtc=SimpleNamespace(getVersion=lambda: (13, 5)))), told, place="cupy:0")
    assert isinstance(ours, BackendUnavailable)
    assert "cupy:0: this CuPy with CUDA ? and NVRTC 13.5 has no code for this GPU" in str(ours) and "cupy-cuda12x" in str(ours)


@needs(12)
def test_what_a_kernel_takes_is_read():
    """Registers, static shared memory and spills are those of the kernel."""
    text = ("extern \"C\" __global__ void __launch_bounds__(1024, 2) f(const float* x, float* y, int n) {\n"
            "    __shared__ float room[300];\n    float v[64], w[64];\n"
            "    for (int i = 0; i < 64; ++i) v[i] = x[threadIdx.x + i * n], w[i] = x[threadIdx.x * i];\n"
            "    room[threadIdx.x % 300] = v[0];\n    __syncthreads();\n"
            "    for (int k = 0; k < n; ++k) for (int i = 0; i < 64; ++i) v[i] = v[i] * w[(i + 1) % 64] + room[i];\n"
            "    for (int i = 0; i < 64; ++i) y[threadIdx.x * 64 + i] = v[i];\n}")
    taken = nvrtc.compiled(text, nvrtc.options((), 90), 12).kernels["f"]
    assert (taken.registers, taken.shared) == (32, 1200) and taken.spilled > 100


def test_the_command_says_what_is_missing():
    """Without the wheel it is one line, and the install command is in it."""
    code = ("import sys; from minigrad.testing import nvrtc; nvrtc.place = lambda major: None; from benchmarks import gpu_figures; "
            "sys.exit(gpu_figures.main())")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "pip install nvidia-cuda-nvrtc-cu12" in done.stderr.splitlines()[-1]
