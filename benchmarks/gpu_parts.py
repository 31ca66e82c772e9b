"""The parts of `benchmarks.gpu`: the machine, the time of a launch, products and copies, decoding, attention, and the start."""
from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from . import agreement, peer_minigrad
from .gpu_bench import SIZES, UNITS, Bench, line_of, near, torch_clock, torch_device, wall
from .processes import ROOT, environment, reason
from .rows import Row, decode_bytes

PACKAGES = ("cupy-cuda12x", "cupy-cuda13x", "cupy", "numpy", "ml_dtypes", "torch", "transformers", "pytest", "hypothesis", "safetensors")
ASKED = ("name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "power.limit", "temperature.gpu", "pstate",
         "persistence_mode", "compute_mode", "mig.mode.current")
EMPTY = """
#ifdef ON_CPU
#include "cuda_on_cpu.h"
#endif
#define KERNEL extern "C" __global__ void
typedef long long Count;
KERNEL nothing(Count n) {}
"""


def device(bench: Bench) -> None:
    """The GPU, its driver and clocks, the versions of CUDA and of the packages, and the date."""
    cuda, found = bench.here.namespace.cuda, {}
    for name in ("driverGetVersion", "runtimeGetVersion"):
        number = getattr(cuda.runtime, name)()
        found[name.removesuffix("GetVersion")] = f"{number // 1000}.{number % 1000 // 10}"
    free, total = cuda.runtime.memGetInfo()
    bench.row("date", note=datetime.datetime.now().astimezone().isoformat(timespec="seconds"))
    bench.row("backend", note=f"{bench.there}, compute capability {cuda.Device(bench.there.number).compute_capability}, "
                              f"{free / 1e9:.1f} GB free of {total / 1e9:.1f} GB")
    bench.row("CUDA", note=f"driver {found['driver']}, runtime {found['runtime']}")
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    bench.row("packages", note=", ".join(f"{name} {version}" for name, version in versions.items()))
    bench.row("nvidia-smi", note=_clocks(bench.there.number))
    try:
        torch, _ = torch_device(bench)
        bench.row("torch", note=f"{torch.__version__}, CUDA {torch.version.cuda}")
    except (ImportError, RuntimeError) as error:        # PyTorch need not be installed
        bench.row("torch", note=f"not measured beside it: {line_of(error)}")


def _clocks(number: int) -> str:
    """What nvidia-smi reports about clocks and limits, or why it reports nothing."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    place = seen[number] if number < len(seen) and seen[number] else str(number)
    try:
        done = subprocess.run(["nvidia-smi", f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader", f"--id={place}"],
                              capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        return line_of(error)
    if done.returncode:
        return " ".join((done.stderr or done.stdout).split())[:300]
    return ", ".join(f"{a} {b.strip()}" for a, b in zip(ASKED, done.stdout.split(",")))


def launch(bench: Bench) -> None:
    """The host's time to launch one small piece of work, so that the device is not the bottleneck; and that of a captured graph."""
    here, mg = bench.here, bench.mg
    x = bench.array(64, seed=1)
    t = mg.Tensor(x)
    leaf = mg.Parameter(mg.Tensor(bench.array(64, seed=2)))
    out = here.empty_like(x)
    module = here.namespace.RawModule(code=EMPTY, options=("-DSTORE=float", "-DREAL=float"))
    nothing = module.get_function("nothing")
    works = {
        "an empty kernel of CuPy's": lambda: nothing((1,), (32,), (0,)),
        "one of our kernels (gelu of 64 numbers)": lambda: here.launch("gelu", x.dtype, (1,), (256,), x, None, out, 64, 1),
        "an operator of CuPy's (x + x)": lambda: x + x,
        "an op without a graph (mg.gelu)": lambda: mg.gelu(t, approximate="tanh"),
        "an op that is recorded (mg.gelu)": lambda: mg.gelu(leaf, approximate="tanh"),
        "an op and its step back": lambda: mg.gradients(mg.gelu(leaf, approximate="tanh"), [leaf], t),
    }
    count = 1000 if not bench.tiny else 3
    for what, run in works.items():
        with bench.attempt(what):
            wall(run, count, here.synchronize)
            bench.row(what, [wall(run, count, here.synchronize) for _ in range(7 if not bench.tiny else 2)])
    if hasattr(type(here), "captured"):
        with bench.attempt("a captured graph of 10 kernels"):
            replay = here.captured(lambda: [here.launch("gelu", x.dtype, (1,), (256,), x, None, out, 64, 1) for _ in range(10)])
            bench.row("a captured graph of 10 kernels", bench.times(replay))


def rates(bench: Bench) -> None:
    """The rates of products at our shapes in each precision, and of reading and writing memory; they are the floors of other parts."""
    here, config = bench.here, bench.config("gpt2")
    positions = 8192 if not bench.tiny else 32
    d, n, V = config.n_embd, config.n_inner or 4 * config.n_embd, config.vocab_size
    plan = [(config.n_layer, d, 3 * d), (config.n_layer, d, d), (config.n_layer, d, n), (config.n_layer, n, d), (1, d, V)]
    for dtype in UNITS:
        label = f"products of GPT-2, {positions} positions"
        with bench.attempt(label, dtype=dtype), bench.precision(dtype):
            flop = seconds = theirs = 0.0
            for times, k, m in plan:
                a, b = bench.array(positions, k, dtype=dtype), bench.array(k, m, dtype=dtype, seed=1)
                took = bench.row(f"product [{positions}, {k}] @ [{k}, {m}]", bench.times(lambda a=a, b=b: here.matmul(a, b)),
                                 unit="TFLOP/s", work=2.0 * positions * k * m, dtype=dtype)
                flop, seconds = flop + times * 2.0 * positions * k * m, seconds + times * (took or 0.0)
                theirs += times * _torch_product(bench, dtype, positions, k, m)
            bench.row(label, [seconds], unit="TFLOP/s", work=flop, dtype=dtype, ratio=theirs / seconds if theirs else None)
            if theirs:
                bench.row(label, [theirs], who="torch", unit="TFLOP/s", work=flop, dtype=dtype)
    heads, T, size = (96, 1024, 64) if not bench.tiny else (4, 16, 8)
    for dtype in UNITS:
        label = f"products of {heads} heads [{T}, {size}] @ [{size}, {T}]"
        with bench.attempt(label, dtype=dtype), bench.precision(dtype):
            q, k = bench.array(heads, T, size, dtype=dtype), bench.array(heads, size, T, dtype=dtype, seed=1)
            bench.row(label, bench.times(lambda q=q, k=k: here.matmul(q, k)), unit="TFLOP/s", work=2.0 * heads * T * T * size, dtype=dtype)
    with bench.attempt("copy"):
        a = here.zeros(1 << 28 if not bench.tiny else 1 << 10, dtype="float32")
        b = here.empty_like(a)

        def copy() -> None:
            b[...] = a

        bench.row("copy", bench.times(copy), unit="GB/s", work=2.0 * a.nbytes, note="read and written")
    with bench.attempt("reading a matrix (x Wᵀ, one row)"):
        w, x = bench.array(V, d), bench.array(1, d)
        bench.row("reading a matrix (x Wᵀ, one row)", bench.times(lambda: here.matmul(x, w.T)), unit="GB/s", work=float(w.nbytes))


def _torch_product(bench: Bench, dtype: str, n: int, k: int, m: int) -> float:
    """The seconds of PyTorch's product; 0 if PyTorch is not installed."""
    try:
        torch, device = torch_device(bench)
    except (ImportError, RuntimeError):
        return 0.0
    kind = getattr(torch, "float32" if dtype == "tf32" else dtype)
    with bench.precision(dtype):
        a, b = torch.randn(n, k, device=device).to(kind), torch.randn(k, m, device=device).to(kind)
        seconds = bench.times(lambda: torch.matmul(a, b), torch_clock(bench))
    took = bench.row(f"product [{n}, {k}] @ [{k}, {m}]", seconds, who="torch", unit="TFLOP/s", work=2.0 * n * k * m, dtype=dtype)
    return took or 0.0


# ── decoding ──
def decode(bench: Bench) -> None:
    """Tokens per second after the first token, for one row, greedy: 124M and 1.5B in float32 and 16 bits, compared with transformers."""
    for size, new in (("gpt2", 128), ("gpt2-xl", 64)):
        for dtype in ("float32", "float16", "bfloat16"):
            if size == "gpt2-xl" and dtype == "bfloat16":
                continue
            what = f"decode {size}, {new} tokens"
            with bench.attempt(what, dtype=dtype):
                _decode(bench, what, size, dtype, new if not bench.tiny else 6)


def _decode(bench: Bench, what: str, size: str, dtype: str, new: int) -> None:
    from gpt2 import GPT2

    config = bench.config(size)
    row = Row(what, "decode", (), size=size, batch=1, tokens=16, new=new)
    model = GPT2(config, backend=bench.setting.backend, dtype=dtype, seed=0).eval()
    ids, _ = agreement.batch_of(row, config)
    arrays = {name: bench.here.host(p.array) for name, p in model.named_parameters()}
    if size == "gpt2":                                  # the ids are those of NumPy in float32, up to a tie
        short = Row(what, "decode", (), size=size, batch=1, tokens=16, new=min(new, 8))
        wanted = peer_minigrad.work(GPT2(config, parameters={k: v.astype("float32") for k, v in arrays.items()}), short).answer()
        found = peer_minigrad.work(model, short).answer()
        if wrong := agreement.complaints(found, wanted, short, config, ("ids",), near(dtype, config, short)):
            raise RuntimeError(f"NOT TIMED, its ids are not NumPy's: {wrong[0]}")

    def ours(n: int) -> Any:
        return model.generate(ids.tolist(), max_new_tokens=n, greedy=True, eos_token_id=None)

    floor = decode_bytes(row, config, SIZES[dtype]) / new
    bandwidth = bench.best("copy")
    seconds = _each(bench, ours, new, bench.here.synchronize)
    middle = sorted(seconds)[len(seconds) // 2]
    share = floor / (bandwidth * 1e9) / middle if bandwidth else None
    peak = bench.here.namespace.get_default_memory_pool().total_bytes()
    fields: dict[str, Any] = {"dtype": dtype, "unit": "tok/s"}
    theirs = None
    if importlib.util.find_spec("transformers") is not None:
        with bench.attempt(what, who="transformers", dtype=dtype):
            del model
            bench.release()
            theirs = _transformers(bench, config, arrays, dtype, ids, new)
    bench.row(what, seconds, share=share, peak=peak, ratio=sorted(theirs)[len(theirs) // 2] / middle if theirs else None, **fields)
    if theirs:
        bench.row(what, theirs, who="transformers", **fields)


def _each(bench: Bench, generate: Any, new: int, wait: Any) -> list[float]:
    """The seconds of a token after the first, in each round: how much longer `new` tokens take than one."""
    generate(new)
    out = []
    for _ in range(3 if not bench.tiny else 1):
        whole = wall(lambda: generate(new), 1, wait)
        out.append(max(whole - wall(lambda: generate(1), 1, wait), 1e-9) / (new - 1))
        if bench.left() < 0:
            break
    return out


def _transformers(bench: Bench, config: Any, arrays: dict[str, Any], dtype: str, ids: Any, new: int) -> list[float]:
    torch, device = torch_device(bench)
    import transformers

    transformers.logging.set_verbosity_error()
    sizes = {name: getattr(config, name) for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
    theirs = transformers.GPT2Config(**sizes, attn_implementation="sdpa", bos_token_id=None, eos_token_id=None)
    with torch.device(device):
        model = transformers.GPT2LMHeadModel(theirs).to(getattr(torch, dtype)).eval()
    kind = getattr(torch, dtype)
    weights = {f"transformer.{name}": torch.from_numpy(array.astype("float32")).to(kind) for name, array in arrays.items()}
    model.load_state_dict({**weights, "lm_head.weight": weights["transformer.wte.weight"]}, strict=False)
    prompt = torch.from_numpy(ids.copy()).to(device)

    def generate(n: int) -> Any:
        return model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=n, min_new_tokens=n, do_sample=False,
                              eos_token_id=None, pad_token_id=0)

    return _each(bench, generate, new, torch.cuda.synchronize if device != "cpu" else lambda: None)


# ── attention ──
def attention(bench: Bench) -> None:
    """Causal attention, forward and with its backward pass, compared with scaled_dot_product_attention."""
    for B, T in ((8, 1024), (1, 4096)) if not bench.tiny else ((1, 16),):
        for dtype in ("bfloat16", "float32", "tf32"):
            with bench.attempt(f"attention B{B} h12 T{T} d64", dtype=dtype), bench.precision(dtype):
                _attention(bench, B, T, dtype)


def _attention(bench: Bench, B: int, T: int, dtype: str) -> None:
    mg, here = bench.mg, bench.here
    h, d = (12, 64) if not bench.tiny else (2, 8)
    arrays = [bench.array(B, h, T, d, dtype=dtype, seed=i) for i in range(4)]
    q, k, v = (mg.Parameter(a) for a in arrays[:3])
    seed = mg.Tensor(arrays[3])
    label, work = f"attention B{B} h{h} T{T} d{d}", 4.0 * B * h * d * T * (T + 1) / 2
    theirs: list[Any] = [None, None]
    wrong = False
    both: dict[str, Any] = {"dtype": dtype, "unit": "TFLOP/s"}
    with bench.attempt(label, who="torch", dtype=dtype):
        torch, device = torch_device(bench)
        kind = getattr(torch, "float32" if dtype == "tf32" else dtype)
        numbers = [torch.from_numpy(here.host(a).astype("float32")).to(device).to(kind) for a in arrays]
        a, b, c = (x.requires_grad_() for x in numbers[:3])
        attend = torch.nn.functional.scaled_dot_product_attention
        clock, both["who"] = torch_clock(bench), "torch"
        with torch.no_grad():
            one = bench.times(lambda: attend(a, b, c, is_causal=True), clock)
        two = bench.times(lambda: torch.autograd.grad(attend(a, b, c, is_causal=True), (a, b, c), numbers[3]), clock)
        theirs = [bench.row(f"{label}, forward", one, work=work, **both),
                  bench.row(f"{label}, forward and backward", two, work=3.5 * work, **both)]
        found = here.host(mg.attention(q, k, v, causal=True).array).astype("float32")
        wanted = attend(a, b, c, is_causal=True).detach().float().cpu().numpy()
        # sums over at most T keys and d numbers; probabilities and the result are rounded to the dtype
        room = 4.0 * (UNITS["float32"] * math.sqrt(2 * (T + d)) + 4 * UNITS[dtype]) * float(abs(wanted).max())
        if off := agreement.first_off(found, wanted, room):
            wrong = True
            raise RuntimeError(f"NOT TIMED, ours is not PyTorch's: {off}")
    if wrong:
        return
    both["who"] = "minigrad"
    with mg.no_grad():
        one = bench.times(lambda: mg.attention(q, k, v, causal=True))
    two = bench.times(lambda: mg.gradients(mg.attention(q, k, v, causal=True), [q, k, v], seed))
    for name, seconds, peer, flop in (("forward", one, theirs[0], work), ("forward and backward", two, theirs[1], 3.5 * work)):
        middle = sorted(seconds)[len(seconds) // 2]
        best = bench.best("products of GPT-2", dtype)
        bench.row(f"{label}, {name}", seconds, work=flop, share=flop / middle / best / 1e12 if best else None,
                  ratio=peer / middle if peer else None, **both)


# ── the start of a process ──
START = """
import sys
from gpt2 import GPT2, GPT2Config
import json
if sys.argv[1].startswith("fake"):
    from minigrad.testing import fake_cupy
    fake_cupy.install()
model = GPT2(GPT2Config(**json.loads(sys.argv[2])), backend=sys.argv[1]).eval()
print(model.generate([[1, 2, 3]], max_new_tokens=1, greedy=True, eos_token_id=None)[0][-1], flush=True)
"""


def start(bench: Bench) -> None:
    """The time from the start of a process to its first token, with random weights: without compiled kernels, and with cached ones."""
    config = bench.config("gpt2")
    fields = {name: getattr(config, name) for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
    with tempfile.TemporaryDirectory(prefix="benchmarks-gpu-") as folder:
        def once() -> float:
            env = {**environment(), "CUPY_CACHE_DIR": folder}
            with tempfile.TemporaryFile() as log:
                started = time.perf_counter()
                process = subprocess.Popen([sys.executable, "-c", START, bench.setting.backend, json.dumps(fields)], stdout=subprocess.PIPE,
                                           stderr=log, env=env, cwd=ROOT)
                assert process.stdout is not None
                said = process.stdout.readline()
                took = time.perf_counter() - started
                process.stdout.close()
                if process.wait() or not said.strip().isdigit():
                    raise RuntimeError(f"the process {reason(process.returncode, log)}")
            return took

        with bench.attempt("start to first token"):
            bench.row("start to first token, nothing compiled", [once()], unit="s")
            cached = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
            bench.row("start to first token, kernels in the cache", [once() for _ in range(3 if not bench.tiny else 1)], unit="s",
                      note=f"{cached / 1e6:.1f} MB of them")
