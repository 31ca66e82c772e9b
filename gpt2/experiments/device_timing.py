"""How long do initialisation, forward, backward and a step take, of what is possible, and what does a clock say that does not wait?"""
from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

import minigrad as mg

from ..config import GPT2Config
from ..figures import COLOURS, new_figure
from ..inspect.arch import stages
from ..model import GPT2
from .lab import Lab, Verdict, verdict

EQUATION = "floor = FLOP / (FLOP/s of a large product); [m, k] @ [k, n] is 2 m k n FLOP, and backward has two for each of forward's"
REPEATS = 5
SIZES = (32, 64, 128, 256, 512, 1024, 2048)
CLAIM = "20 s on a CPU against 0.03 s on a GPU is 4 orders of magnitude, for 5 passes of 8 × 1024 tokens of GPT-2 small"
A100 = 19.5e12                                          # FLOP/s of float32 on an A100, without tensor cores (its data sheet)


def measure(lab: Lab) -> dict[str, Any]:
    gpu = lab.device.startswith("cupy")
    config, batch, tokens = (GPT2Config(), 8,
                             1024) if gpu else (GPT2Config(n_embd=256, n_layer=4, n_head=4, vocab_size=8192, n_positions=256), 8, 256)
    here, _ = mg.backend.get(lab.device)
    peak = 2 * 2048**3 / _product(lab.device, 2048)[0]
    ids = np.random.default_rng(lab.seed).integers(0, config.vocab_size, (batch, tokens + 1))
    flop = sum(s.flop * s.times for s in stages(config, batch, tokens))
    made = {}

    def init() -> None:
        made["model"] = GPT2(config, backend=lab.device, seed=lab.seed)

    whole, bare = _times(init, here.synchronize)
    model = made["model"]
    optimizer = mg.optim.AdamW(list(model.parameters()), 1e-4)
    state: dict[str, Any] = {}

    def forward() -> None:
        state["loss"] = mg.cross_entropy(model(ids[:, :-1]), ids[:, 1:])     # model.loss would make the head's gradient along with it

    rows = [{"stage": "init", "ms": whole[0], "± ms": whole[1], "not waited for": bare, "FLOP": 0, "TFLOP/s": None, "share of peak": None}]
    for name, before, f, work in (("forward", None, forward, flop), ("backward", forward, lambda: state["loss"].backward(), 2 * flop),
                                  ("step", None, optimizer.step, 0)):
        whole, bare = _times(f, here.synchronize, before)
        rate = work / (whole[0] * 1e-3) if work else None
        rows.append({"stage": name, "ms": whole[0], "± ms": whole[1], "not waited for": bare, "FLOP": work,
                     "TFLOP/s": rate and rate / 1e12, "share of peak": rate and rate / peak})
    sweep = [{"n": n, **{f"{device} µs": 1e6 * _product(device, n)[0] for device in dict.fromkeys(["numpy", lab.device])}} for n in SIZES]
    faster = [row["n"] for row in sweep if gpu and row[f"{lab.device} µs"] < row["numpy µs"]]
    won = f"a GPU wins from {faster[0]} × {faster[0]} on" if faster else "none up to 2048" if gpu else "no GPU here"
    passes = 5 * sum(s.flop * s.times for s in stages(GPT2Config(), 8, 1024))
    return {"rows": rows, "sweep": sweep, "peak": peak, "crossover": faster[0] if faster else None, "gpu": gpu, "batch": batch,
            "tokens": tokens,
            "orders": float(np.log10(20 / 0.03)), "possible": passes / A100,
            "notes": [f"{batch} × {tokens} tokens, {model.num_parameters():,} parameters; large products run at {peak / 1e12:.3f} TFLOP/s",
                      f"crossover: {won}",
                      f"5 passes of 8 × 1024 tokens of GPT-2 small are {passes / 1e12:.2f} TFLOP: {passes / A100:.2f} s of an A100"]}


def _product(device: str, n: int) -> tuple[float, float]:
    """Median seconds, and their spread, of a product [n, n] @ [n, n]."""
    here, _ = mg.backend.get(device)
    a = mg.random.normal(mg.random.key(n), (n, n), device=device)
    median, spread = _times(lambda: mg.matmul(a, a), here.synchronize)[0]
    return median * 1e-3, spread * 1e-3


def _times(f: Callable[[], Any], wait: Callable[[], Any], before: Callable[[], Any] | None = None) -> tuple[tuple[float, float], float]:
    """Milliseconds of f with its end waited for, median and half the range, after one run to warm up; and the median not waited for."""
    took, left = [], []
    for i in range(REPEATS + 1):
        if before:
            before()
        wait()
        started = time.perf_counter()
        f()
        called = time.perf_counter()
        wait()
        if i:
            took.append(1e3 * (time.perf_counter() - started))
            left.append(1e3 * (called - started))
    return (float(np.median(took)), (max(took) - min(took)) / 2), float(np.median(left))


def judge(found: dict[str, Any]) -> list[Verdict]:
    """4 orders: log₁₀ of the ratio is 3.5 to 4.5; 0.03 s: the passes' FLOP fit into it. Backward: 1.5 to 3 forward passes."""
    ms = {row["stage"]: row["ms"] for row in found["rows"]}
    ratio = ms["backward"] / ms["forward"]
    unsynchronised = next(row for row in found["rows"] if row["stage"] == "forward")
    return [
        verdict(3.5 <= found["orders"] <= 4.5 and found["possible"] <= 0.03, CLAIM,
                f"{found['orders']:.1f} orders; the passes take an A100 {found['possible']:.2f} s at least: the clock did not wait"),
        verdict(1.5 <= ratio <= 3.0, "backward takes about twice as long as forward", f"{ratio:.2f} times"),
        verdict(None if not found["gpu"] else unsynchronised["not waited for"] < 0.5 * unsynchronised["ms"],
                "a clock that does not wait for the GPU shows a fraction of the time",
                "no GPU here: a CPU's calls return when they are done" if not found["gpu"] else
                f"forward {unsynchronised['not waited for']:.2f} of {unsynchronised['ms']:.2f} ms"),
    ]


def draw(found: dict[str, Any]) -> Any:
    figure, axes = new_figure(9, 3.4, 1, 2)
    names = [row["stage"] for row in found["rows"]]
    axes[0, 0].bar(names, [row["ms"] for row in found["rows"]], yerr=[row["± ms"] for row in found["rows"]], color=COLOURS[0],
                   label="waited for")
    axes[0, 0].plot(names, [row["not waited for"] for row in found["rows"]], "k_", markersize=30, label="not waited for")
    floors = [row["FLOP"] / found["peak"] * 1e3 if row["FLOP"] else np.nan for row in found["rows"]]
    axes[0, 0].plot(names, floors, "_", color=COLOURS[1], markersize=30, markeredgewidth=3, label="floor: FLOP at the product's rate")
    axes[0, 0].set(title=f"{found['batch']} × {found['tokens']} tokens", ylabel="ms")
    axes[0, 0].legend(fontsize=7)
    for colour, key in zip(COLOURS, [key for key in found["sweep"][0] if key != "n"]):
        axes[0, 1].loglog([row["n"] for row in found["sweep"]], [row[key] for row in found["sweep"]], "o-", color=colour,
                          label=key.removesuffix(" µs"))
    axes[0, 1].set(title="a product [n, n] @ [n, n]", xlabel="n", ylabel="µs")
    axes[0, 1].legend(fontsize=8)
    return figure
