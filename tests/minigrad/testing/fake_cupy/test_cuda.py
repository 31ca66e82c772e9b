"""The machine that runs CUDA kernels on a CPU refuses what CUDA does not promise to do, and says what and where; and does what it promises.

Each small kernel below is run once; what must be refused has the words of its refusal.
"""
from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minigrad.backend.cupy import source
from minigrad.testing.fake_cupy import cuda

pytestmark = pytest.mark.skipif(cuda.compiler() is None, reason="g++ is not installed: the kernels cannot be run on a CPU")
HEAD = source("kernels.cu").partition("// ── what is above is for all")[0]
ORDER = "nothing puts the two in order"
# The last of several blocks adds up what each left: right, and without one thing after the other.
LAST = """
    if (threadIdx.x) return;
    parts[blockIdx.x] = Real(blockIdx.x + 1);
    __threadfence();
    if (atomicAdd((unsigned long long*)count, 1ull) != gridDim.x - 1) return;
    __threadfence();
    Real sum = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) sum += *(const volatile Real*)(parts + i);
    y[0] = sum;
    count[0] = 0;"""
FENCE, SECOND = LAST.split("__threadfence();")[0] + "__threadfence();", "- 1) return;\n    __threadfence();"
# What lane 0 has seen, others know by __syncwarp alone
TOGETHER = """
    unsigned long long before = 0;
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = Real(blockIdx.x + 1);
        __threadfence();
        before = atomicAdd((unsigned long long*)count, 1ull);
        __threadfence();
    }
    before = __shfl_sync(ALL_LANES, before, 0);
    if (before != gridDim.x - 1) return;
    __syncwarp();
    Real sum = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) sum += *(const volatile Real*)(parts + i);
    y[threadIdx.x] = sum;"""
BLOCKS = "Real* parts, Count* count, Real* y"
RIGHT: dict[str, tuple[str, str]] = {
    "last_block": (BLOCKS, LAST),
    "last_warp": (BLOCKS, TOGETHER),
    "by_block": ("Real* x", "SHARED(Real, r); r[t] = x[t]; __syncthreads(); x[t] = r[63 - t];"),
    "by_warp": ("Real* x", "SHARED(Real, r); r[t] = x[t]; __syncwarp(); x[t] = r[t ^ 1];"),
    "read_twice": ("Real* x", "Real v = x[0]; __syncthreads(); x[t] = v + x[t];"),
    "half_of_it_leaves": ("Real* x", "if (t < 32) return; __syncthreads(); x[t] = warp_sum(x[t]);"),
}
WRONG: dict[str, tuple[str, str, str]] = {
    # between the threads of a block
    "unwritten": ("Real* x", "SHARED(Real, r); r[t] = x[t]; x[t] = r[63 - t];",
                  r"reads shared memory \+ 252 bytes, which nobody has written"),
    "too_late": ("Real* x", "SHARED(Real, r); r[63 - t] = x[0]; __syncthreads(); x[0] = r[63 - t]; r[t] = 0;",
                 "writes x .*" + ORDER),
    "too_early": ("Real* x", "SHARED(Real, r); r[t] = x[t]; __syncthreads(); Real v = r[t ^ 1]; "
                  "r[t] = v;", ORDER),
    "read_by_one": ("Real* x, Real* y", "if (t == 0) y[0] = x[0]; else if (t == 63) x[0] = 1;",
                    "which thread 0 of block 0 reads; " + ORDER),
    "read_by_all": ("Real* x, Real* y", "if (t < 63) y[t] = x[0]; else x[0] = 1;",
                    "of block 0 reads, and others too; " + ORDER),
    "both_write": ("Real* x", "x[t / 2] = Real(t);", "writes x .*which thread 0 of block 0 writes; " + ORDER),
    "another": ("Real* x", "x[t] = 1; __syncwarp(); x[t] = x[t ^ 32];", ORDER),
    "a_shuffle": ("Real* x", "x[t] = 1; warp_sum(x[t]); x[t] = x[t ^ 1];", ORDER),
    "at_once": ("Real* x", "x[t] = x[0];", ORDER),
    # between blocks
    "all_blocks_write": ("Real* x", "if (t == 0) x[0] = 1;", "block . writes; " + ORDER),
    "no_fence": (BLOCKS, LAST.replace("__threadfence();", "", 1), ORDER),
    "no_second_fence": (BLOCKS, LAST.replace(SECOND, "- 1) return;"), ORDER),
    "fence_too_early": (BLOCKS, LAST.replace("__threadfence();", "", 1).replace("parts[", "__threadfence(); parts[", 1), ORDER),
    "plain_load": (BLOCKS, LAST.replace("const volatile Real*", "const Real*"), "by a plain load"),
    "no_atomic": (BLOCKS, LAST.replace("atomicAdd((unsigned long long*)count, 1ull)", "count[0]++"), ORDER),
    "only_a_shuffle": (BLOCKS, TOGETHER.replace("__syncwarp();", ""), ORDER),
    # places
    "beyond": ("const Real* x, Real* y", "y[t] = x[t + 1];", r"reads outside of all arrays .*start of x"),
    "before": ("Real* x", "x[Count(t) - 1] = 0;", "writes outside of all arrays"),
    "no_array": ("Real* x, const Real* y", "x[t] = y[0];", "reads outside of all arrays"),
    "constant": ("const Real* x", "const_cast<Real*>(x)[t] = 0;", "writes x"),
    "beyond_shared": ("Real* x", "SHARED(Real, r); r[t + 1] = x[t];", "writes shared memory . 256 bytes; the launch asked for 256"),
    "unaligned": ("Real* x", "x[4 * t] = load<4>(x + 1).v[0];", "null, or not a multiple"),
    "unaligned_word": ("Real* x", "*(long long*)(x + 1) = 0;", "null, or not a multiple"),
    "no_element": ("Real* x, Count i", "Real v[4] = {x[0], x[1], x[2], x[3]}; x[t] = v[i];", "an element that its array does not have"),
    # numbers
    "product": ("Real* x, Count i", "int n = int(i); x[t] = Real(n * n);", "multiplies two numbers whose product"),
    "sum": ("Real* x, Count i", "int n = int(i); x[t] = Real(n + 2147483647);", "adds two numbers whose sum"),
    "shift": ("Real* x, Count i", "x[t] = Real(1 << i);", "shifts by more bits"),
    "division": ("Real* x, Count i", "x[t] = Real(7 / (i - 70000));", "divides by 0"),
    # meetings
    "for_ever": ("Real* x", "if (t % 2) __syncthreads(); else __syncwarp();", "wait for each other for ever|other lanes"),
    "mask": ("Real* x", "x[t] = __shfl_xor_sync(0xffffu, x[t], 1);", "with the mask 0xffff, which leaves out its own lane"),
    "own_mask": ("Real* x", "x[t] = __shfl_xor_sync(~(1u << t % 32), 1.0f, 1);", "with the mask 0xfffffffe"),
    "two_masks": ("Real* x", "if (t == 31) return; x[t] = __shfl_xor_sync(t ? ALL_LANES : 0x7fffffffu, 1.0f, 1);",
                  "other lanes of its warp"),
    "who_has_left": ("Real* x", "if (t % 32 == 31) return; x[t] = __shfl_xor_sync(ALL_LANES, 1.0f, 1);",
                     "takes what lane 31 hands over, which takes no part"),
    "half_a_shuffle": ("Real* x", "if (t % 32 < 16) x[t] = __shfl_xor_sync(ALL_LANES, 1.0f, 1); __syncthreads();",
                       "for ever"),
    "two_things": ("Real* x", "if (t % 2) __syncwarp(); else x[t] = __shfl_xor_sync(ALL_LANES, 1.0f, 2);", "other lanes"),
    "trap": ("Real* x", "if (t == 40) __trap();", "thread 40 of block 0 comes to __trap"),
    # instructions
    "unknown": ("Real* x", 'float y; asm("sin.approx.f32 %0, %1;" : "=f"(y) : "f"(x[0]));', "sin.approx.f32, an instruction that"),
    "wrong_register": ("Real* x", 'float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "r"(1));', "with an operand of another type"),
    "only_read": ("Real* x", 'asm("ex2.approx.ftz.f32 %0, %1;" :: "f"(x[0]), "f"(x[1]));', "writes an operand that is only read"),
    "only_written": ("Real* x", 'float y, z; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y), "=f"(z));', "an operand that is only written"),
    "one_too_few": ("Real* x", 'unsigned y; asm("cvt.rn.f16x2.f32 %0, %1;" : "=r"(y) : "f"(x[0]));', "another number of arguments"),
    "not_there": ("Real* x", 'float y; asm("ex2.approx.ftz.f32 %0, %2;" : "=f"(y) : "f"(x[0]));', "an operand that is not there"),
    "no_end": ("Real* x", 'float y; asm("ex2.approx.ftz.f32 %0, %1" : "=f"(y) : "f"(x[0]));', "does not end"),
    "copy_of_8": ("Real* x", 'SHARED(Real, r); asm volatile("cp.async.cg.shared.global [%0], [%1], 8, %2;" '
                  ':: "r"(unsigned(__cvta_generic_to_shared(r))), "l"(x), "r"(8));', "cannot copy so many bytes"),
    "unaligned_copy": ("Real* x", 'SHARED(Real, r); asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" '
                       ':: "r"(unsigned(__cvta_generic_to_shared(r))), "l"(x + 1), "r"(16));', "copies 16 bytes from an address"),
    "read_too_soon": ("Real* x", 'SHARED(Real, r); if (t) return; asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" '
                      ':: "r"(unsigned(__cvta_generic_to_shared(r))), "l"(x), "r"(16)); x[0] = r[3];', "before cp.async.wait_all"),
    "no_wait": ("Real* x", 'SHARED(Real, r); if (t) return; asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" '
                ':: "r"(unsigned(__cvta_generic_to_shared(r))), "l"(x), "r"(16));', "returns before cp.async.wait_all"),
    "unaligned_row": ("Real* x", 'SHARED(Real, r); unsigned a, b, c, d; asm volatile('
                      '"ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(a), "=r"(b), "=r"(c), "=r"(d) '
                      ': "r"(unsigned(__cvta_generic_to_shared(r)) + 8));', "not a multiple of 16 bytes"),
    "beyond_what_there_is": ("Real* x", 'asm volatile("prefetch.global.L2 [%0];" :: "l"(x + 64));', "asks ahead for memory outside"),
}
KERNELS = {**RIGHT, **{name: case[:2] for name, case in WRONG.items()}}


@functools.cache
def machine() -> cuda.Module:
    text = HEAD + "".join(f"KERNEL {name}({given}) {{ int t = threadIdx.x; {body} }}\n" for name, (given, body) in KERNELS.items())
    return cuda.Module(text, ("-DSTORE=float", "-DREAL=float"))


def run(name: str, blocks: int = 1) -> list[Any]:
    """What a kernel leaves in its arguments: 64 floats each, and the number 70,000. Shared memory is 256 bytes."""
    threads = 32 if name in ("last_warp", "only_a_shuffle") else 64
    args: list[Any] = [70000 if not t.endswith("*") else np.zeros(1, np.int64) if "Count" in t else np.arange(64, dtype=np.float32)
                       for t in machine().types[name]]
    if name == "no_array":
        args[1] = None
    machine().get_function(name)((blocks,), (threads,), tuple(args), shared_mem=256)
    return args


def test_what_cuda_promises():
    """Barriers, syncwarp, and a last block that adds up what the others left, in whatever order they come."""
    for _ in range(5):
        for name in ("last_block", "last_warp"):
            parts, count, y = run(name, blocks=5)
            assert y[0] == 15.0 and parts[:5].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0] and (name == "last_warp" or count[0] == 0)
    assert run("by_block")[0].tolist() == list(range(63, -1, -1))
    assert run("by_warp")[0].tolist() == [i ^ 1 for i in range(64)]
    assert run("half_of_it_leaves")[0][32:].tolist() == [sum(range(32, 64))] * 32


@pytest.mark.parametrize("name", WRONG)
def test_what_it_does_not_promise_is_refused(name: str):
    """By one line that names the kernel, the thread, what it does, and the text of the line."""
    blocks = 3 if WRONG[name][0] == BLOCKS or name == "all_blocks_write" else 1
    with pytest.raises(RuntimeError, match=WRONG[name][2]) as caught:
        run(name, blocks)
    said = str(caught.value)
    assert said.startswith(f"{name}: ") and "\n" not in said


def test_the_line_is_told():
    with pytest.raises(RuntimeError, match=r"thread 0 of block 0 .*: KERNEL unwritten\(Real\* x\)"):
        run("unwritten")


def test_blocks_come_in_another_order_each_time():
    """So that what depends on it is seen to."""
    text = HEAD + "KERNEL order(Count* x, Count* n) { if (!threadIdx.x) x[blockIdx.x] = atomicAdd((unsigned long long*)n, 1ull); }\n"
    module, found = cuda.Module(text, ("-DSTORE=float", "-DREAL=float")), []
    for _ in range(5):
        x = np.zeros(20, np.int64)
        module.get_function("order")((20,), (32,), (x, np.zeros(1, np.int64)))
        found.append(x.tolist())
        assert sorted(found[-1]) == list(range(20))
    assert len(set(map(tuple, found))) == 5


class FirstBlock(cuda.Host):
    """Runs that one alone."""

    def only(self, blocks: int) -> list[int]:
        return [0]


def test_sizes_that_not_every_gpu_can_start():
    """Blocks along y and z, and threads for which a compiler may have too few registers."""
    text = HEAD + "".join(f"KERNEL {bounds}{name}(Real* x) {{ }}\n" for name, bounds in (
        ("simple", ""), ("bound", "__launch_bounds__(512, 2) "), ("given", "__launch_bounds__(MOST) ")))
    module = cuda.Module(text, ("-DSTORE=float", "-DREAL=float", "-DMOST=64"), FirstBlock())
    x = np.zeros(1, np.float32)

    def start(name: str, grid: tuple[int, ...], block: tuple[int, ...], shared: int = 0) -> None:
        module.get_function(name)(grid, block, (x,), shared_mem=shared)

    for grid, block in (((2**31 - 1,), (256,)), ((1, 65535, 65535), (1,)), ((1,), (4, 1, 64))):
        start("simple", grid, block)
    for grid, block in (((2**31,), (1,)), ((1, 65536), (1,)), ((1, 1, 65536), (1,)), ((0,), (1,)), ((1,), (0,)), ((1,), (1, 1, 65))):
        with pytest.raises(ValueError, match="invalid configuration"):
            start("simple", grid, block)
    start("bound", (1,), (512,))
    start("given", (1,), (64,))
    with pytest.raises(RuntimeError, match=r"257 threads where the compiler may take 255 registers .* say KERNEL __launch_bounds__\(257\)"):
        start("simple", (1,), (257,))
    for name, most in (("bound", 512), ("given", 64)):
        with pytest.raises(RuntimeError, match=f"{most + 1} threads where __launch_bounds__ says {most}"):
            start(name, (1,), (most + 1,))
    for block, shared in (((1025,), 0), ((1,), 48 * 1024 + 1)):
        with pytest.raises(RuntimeError, match="more threads or shared memory"):
            start("simple", (1,), block, shared)


def test_arguments_that_cuda_would_take_in_silence():
    """Of another number, kind, dtype or layout."""
    module = cuda.Module(source("kernels.cu"), ("-DSTORE=float", "-DREAL=float"))
    gelu, x = module.get_function("gelu"), np.ones(4, np.float32)
    with pytest.raises(TypeError, match="2 arguments given; it takes 5"):
        gelu((1,), (32,), (x, x))
    for bad in (4.0, True, None):
        with pytest.raises(TypeError, match="where Count is wanted"):
            gelu((1,), (32,), (x, None, x, bad, 1))
    with pytest.raises(TypeError, match="an array of float64 where const Store"):
        gelu((1,), (32,), (x.astype(float), None, x, 4, 1))
    with pytest.raises(ValueError, match="not contiguous"):
        gelu((1,), (32,), (np.ones(8, np.float32)[::2], None, x, 4, 1))
    with pytest.raises(RuntimeError, match="g\\+\\+ cannot compile"):
        cuda.Module("KERNEL nonsense(Real* x) { y; }", ("-DSTORE=float", "-DREAL=float"))


# ── instructions ──
def executed(statement: str, x: np.ndarray, dtype: Any, shared: int = 0) -> np.ndarray:
    """What `statement` makes of x[i], as y, in each of 32 threads."""
    c = {"float32": "float", "uint32": "unsigned", "uint16": "unsigned short"}[np.dtype(dtype).name]
    text = HEAD + f"""KERNEL one(Real* x, Count* out) {{
        int i = threadIdx.x;
        {c} y = 0;
        {statement}
        Count all = 0;
        for (int k = 0; k < int(sizeof(y)); ++k) all |= Count(reinterpret_cast<unsigned char*>(&y)[k]) << 8 * k;
        out[i] = all;
    }}"""
    out = np.zeros(32, np.int64)
    module = cuda.Module(text, ("-DSTORE=float", "-DREAL=float"))
    module.get_function("one")((1,), (32,), (x, out), shared_mem=shared)
    return out.astype(f"uint{8 * np.dtype(dtype).itemsize}").view(dtype)


def test_numbers_of_16_bits_in_pairs():
    """The first number of the instruction is the upper half."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.random.default_rng(0).standard_normal(64).astype(np.float32) * np.logspace(-9, 4, 64).astype(np.float32)
    for name, dtype in (("f16", np.float16), ("bf16", ml_dtypes.bfloat16)):
        found = executed(f'asm volatile("cvt.rn.{name}x2.f32 %0, %1, %2;" : "=r"(y) : "f"(x[i]), "f"(x[i + 32]));', x, np.uint32)
        upper, lower = (part.astype(dtype).view(np.uint16).astype(np.uint32) for part in (x[:32], x[32:]))
        assert found.tolist() == (upper << 16 | lower).tolist()


def test_powers_and_logarithms():
    """To base 2; results and arguments that are too small for a normal number are 0."""
    x = np.linspace(-150.0, 130.0, 32, dtype=np.float32)
    with np.errstate(over="ignore"):
        wanted = np.exp2(x)
    wanted[np.abs(wanted) < np.finfo(np.float32).tiny] = 0.0
    np.testing.assert_allclose(executed('asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x[i]));', x, np.float32), wanted, rtol=2.0**-22)
    x = np.logspace(-37, 37, 32, dtype=np.float32)
    np.testing.assert_allclose(executed('asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x[i]));', x, np.float32), np.log2(x), rtol=1e-6)


@pytest.mark.parametrize(("cache", "size", "there"), [("cg", 16, 16), ("cg", 16, 4), ("cg", 16, 0), ("ca", 8, 4), ("ca", 4, 4)])
def test_copies(cache: str, size: int, there: int):
    """So many bytes, of which those that are not there are 0, are there after a wait."""
    x = np.arange(1, 129, dtype=np.float32)
    words = 'asm volatile("{}" :: "r"(unsigned(__cvta_generic_to_shared(r + 4 * i))), "l"(x + 4 * i), "r"({}));'
    text = f"cp.async.{cache}.shared.global [%0], [%1], {size}, %2;"
    found = [executed("SHARED(Real, r); r[4 * i + 1] = r[4 * i + 3] = 7; " + words.format(text, there)
                      + f'asm volatile("cp.async.wait_all;" ::: "memory"); y = r[4 * i + {k}];', x, np.float32, 512) for k in (0, 1, 3)]
    for k, y in zip((0, 1, 3), found):
        assert y.tolist() == (x.reshape(32, 4)[:, k] if 4 * k < there else np.full(32, 0.0 if 4 * k < size else 7.0)).tolist()


def test_asm_becomes_a_call():
    """With its text, its operands and lines in their places, whatever commas and colons they hold."""
    before = 'x;\nasm volatile("a.b {%0, %1}, [%2]," " 16;"\n : "=r"(r[0]), "+f"(f(a, b))\n : "l"(c ? p : ::q)); y;'
    after = cuda.translated(before)
    assert after.count("\n") == before.count("\n") and '"a.b {%0, %1}, [%2]," " 16;", o_, 3' in after
    for piece in ('Operand{"=r", sizeof(r[0]), 0}', 'operand("+f", f(a, b))', 'operand("l", c ? p : ::q)', "take(o_[1], f(a, b));"):
        assert piece in after
    assert cuda.translated("int asm_ = 1; // asm alone") == "int asm_ = 1; // asm alone"
    assert '"c.d;", o_, 0)' in cuda.translated('asm volatile("c.d;" ::: "memory");')


def test_every_asm_of_the_sources_is_executed_by_its_text():
    """None has another way for a CPU."""
    for file in ("kernels.cu", "attention.cu", "decode.cu", "choose.cu"):
        text = source(file)
        assert not re.search(r"#\s*if(n?def)?\b(?!.*__CUDA_ARCH__)", text) or file == "decode.cu", file


# ── what is compiled ──
def test_compiled_kernels_of_somebody_else_are_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder that others can write to, or a link to one, is refused; one's own works."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    compiled: Callable[..., Any] = cuda.library.__wrapped__
    place = tmp_path / f"minigrad-kernels-{os.getuid()}"
    place.mkdir(mode=0o700)
    place.chmod(0o777)
    with pytest.raises(RuntimeError, match="only you can write to"):
        compiled("KERNEL nothing(int n) { }", ())
    place.rmdir()
    (tmp_path / "other").mkdir(mode=0o700)
    place.symlink_to(tmp_path / "other")
    with pytest.raises(RuntimeError, match="only you can write to"):
        compiled("KERNEL nothing(int n) { }", ())
    place.unlink()
    with pytest.raises(RuntimeError, match="cannot compile"):           # it gets as far as the compiler
        compiled("no C++", ())
    assert place.stat().st_mode & 0o777 == 0o700
