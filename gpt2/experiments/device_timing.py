"""How long do initialisation, forward, backward and a step take, compared with what is possible?

And what does a clock show that does not wait for the GPU?
"""
from __future__ import annotations

from typing import Any

import numpy as np

import minigrad as mg

from ..config import GPT2Config
from ..inspect.arch import stages
from ..io.plots import COLOURS, legend_below, new_figure
from ..model import GPT2
from .lab import Lab, Verdict, inside, verdict
from .timing import clock, quartiles, ratio, whiskers

EQUATION = ("floor = FLOP / (FLOP/s of a large product); [m, k] @ [k, n] is 2 m k n FLOP, "
            "and backward has two for each of forward's")
REPEATS = 5
SIZES = (32, 64, 128, 256, 512, 1024, 2048)
CLAIM = ("20 s on a CPU against 0.03 s on a GPU is 4 orders of magnitude, "
         "for 5 passes of 8 × 1024 tokens of GPT-2 small")
A100 = 19.5e12          # an A100's FLOP/s in float32, without tensor cores, by its data sheet


def measure(lab: Lab) -> dict[str, Any]:
    gpu = lab.device.startswith("cupy")
    small = GPT2Config(n_embd=256, n_layer=4, n_head=4, vocab_size=8192, n_positions=256)
    config = GPT2Config() if gpu else small
    batch, tokens = 8, config.n_positions
    here = mg.backend.get(lab.device).backend
    peak = 2 * 2048**3 / (1e-6 * _product(lab.device, 2048)[0])
    ids = np.random.default_rng(lab.seed).integers(0, config.vocab_size, (batch, tokens + 1))
    flop = sum(s.flop * s.times for s in stages(config, batch, tokens))
    made = {}

    def init() -> None:
        made["model"] = GPT2(config, backend=lab.device, seed=lab.seed).eval()

    timed = {"init": clock(init, here.synchronize, REPEATS)}
    model = made["model"]
    optimizer = mg.optim.AdamW(list(model.parameters()), 1e-4)
    state: dict[str, Any] = {}

    def forward() -> None:              # model.loss would also compute the head's gradient
        state["loss"] = mg.cross_entropy(model(ids[:, :-1]), ids[:, 1:])

    timed["forward"] = clock(forward, here.synchronize, REPEATS)
    timed["backward"] = clock(lambda: state["loss"].backward(), here.synchronize, REPEATS, forward)
    timed["step"] = clock(optimizer.step, here.synchronize, REPEATS)
    work, rows = {"forward": flop, "backward": 2 * flop}, []
    for name, (took, left) in timed.items():
        ms, low, high = quartiles(took)
        rate = work[name] / (ms * 1e-3) if name in work else None
        rows.append({"stage": name, "batch": batch, "tokens": tokens, "ms": ms, "25 %": low,
                     "75 %": high, "not waited for": quartiles(left)[0],
                     "FLOP": work.get(name, 0), "TFLOP/s": rate and rate / 1e12,
                     "share of peak": rate and rate / peak})
    devices = tuple(dict.fromkeys(["numpy", lab.device]))
    sweep = [{"n": n, "µs": {device: _product(device, n) for device in devices}} for n in SIZES]
    won = wins(sweep, lab.device) if gpu else None
    passes = 5 * sum(s.flop * s.times for s in stages(GPT2Config(), 8, 1024))
    if not gpu:
        crossover = "no GPU here"
    else:
        crossover = f"a GPU wins from {won} × {won} on" if won else f"none up to {SIZES[-1]}"
    smaller = ": a smaller model than GPT-2, whose 8 × 1024 tokens take minutes on a CPU"
    return {"rows": rows, "sweep": sweep, "peak": peak, "crossover": won, "gpu": gpu,
            "batch": batch, "tokens": tokens,
            "orders": float(np.log10(20 / 0.03)), "possible": passes / A100,
            "notes": [f"{batch} × {tokens} tokens, the model's whole context"
                      + ("" if gpu else smaller)
                      + f"; {model.num_parameters():,} parameters in float32",
                      f"medians and quartiles of {REPEATS} runs after one to warm up; "
                      f"large products run at {peak / 1e12:.3f} TFLOP/s",
                      f"crossover: {crossover}",
                      f"5 passes of 8 × 1024 tokens of GPT-2 small are {passes / 1e12:.2f} TFLOP: "
                      f"{passes / A100:.2f} s of an A100"]}


def wins(sweep: list[dict[str, Any]], device: str) -> int | None:
    """The size from which on the device is faster than NumPy, or None.

    Faster: at every size its upper quartile is below NumPy's lower one.
    """
    faster = [row["µs"][device][2] < row["µs"]["numpy"][1] for row in sweep]
    return next((row["n"] for i, row in enumerate(sweep) if all(faster[i:])), None)


def _product(device: str, n: int) -> tuple[float, float, float]:
    """The time of a product [n, n] @ [n, n] in microseconds: median and quartiles."""
    here = mg.backend.get(device).backend
    a = mg.random.normal(mg.random.key(n), (n, n), device=device)
    ms, low, high = quartiles(clock(lambda: mg.matmul(a, a), here.synchronize, REPEATS)[0])
    return 1e3 * ms, 1e3 * low, 1e3 * high


def judge(found: dict[str, Any]) -> list[Verdict]:
    """4 orders: log₁₀ of the ratio is 3.5 to 4.5. 0.03 s: it is enough for the FLOP of the passes.

    Backward must take 1.5 to 3 forward passes. A clock that does not wait must show less than half
    of the time. If the quartiles of the times include a limit, the verdict is inconclusive.
    """
    rows = {row["stage"]: row for row in found["rows"]}
    times, low, high = ratio(rows["backward"], rows["forward"])
    forward = rows["forward"]
    bare = forward["not waited for"]
    part = inside(bare / forward["75 %"], bare / forward["25 %"], 0.0, 0.5)
    return [
        verdict(3.5 <= found["orders"] <= 4.5 and found["possible"] <= 0.03, CLAIM,
                f"it is {found['orders']:.1f} orders; an A100 needs at least "
                f"{found['possible']:.2f} s for the passes, so the clock did not wait for the GPU"),
        verdict(inside(low, high, 1.5, 3.0), "backward takes about twice as long as forward",
                f"it takes {times:.2f} times as long, {low:.2f} to {high:.2f} by the quartiles"),
        verdict(part if found["gpu"] else None,
                "a clock that does not wait for the GPU shows a fraction of the time",
                "there is no GPU here, and a CPU's calls return when they are done"
                if not found["gpu"] else
                f"forward takes {forward['ms']:.2f} ms (quartiles {forward['25 %']:.2f} to "
                f"{forward['75 %']:.2f}), and the call returns after {bare:.2f} ms"),
    ]


def draw(found: dict[str, Any]) -> Any:
    figure, axes = new_figure(9, 3.8, 1, 2)
    rows, at = found["rows"], np.arange(len(found["rows"]))
    bars = whiskers([(row["ms"], row["25 %"], row["75 %"]) for row in rows])
    axes[0, 0].bar(at, [row["ms"] for row in rows], yerr=bars, color=COLOURS[5], capsize=4,
                   label="waited for (quartiles)")
    axes[0, 0].hlines([row["not waited for"] for row in rows], at - 0.3, at + 0.3, color="black",
                      label="not waited for")
    floors = [(i, row["FLOP"] / found["peak"] * 1e3) for i, row in enumerate(rows) if row["FLOP"]]
    axes[0, 0].hlines([ms for _, ms in floors], [i - 0.3 for i, _ in floors],
                      [i + 0.3 for i, _ in floors], color=COLOURS[1], linewidth=3,
                      label="floor: FLOP at the product's rate")
    axes[0, 0].set_xticks(at, [row["stage"] for row in rows])
    axes[0, 0].set(title=f"{found['batch']} × {found['tokens']} tokens", ylabel="ms")
    sizes = [row["n"] for row in found["sweep"]]
    for colour, device in zip(COLOURS, found["sweep"][0]["µs"]):
        times = [row["µs"][device] for row in found["sweep"]]
        axes[0, 1].errorbar(sizes, [t[0] for t in times], whiskers(times), fmt="o-", color=colour,
                            capsize=3, label=device)
    if found["crossover"]:
        axes[0, 1].axvline(found["crossover"], color="black", linestyle="--", linewidth=1,
                           label="the GPU wins from here on")
    axes[0, 1].set(title="a product [n, n] @ [n, n]", xlabel="n", ylabel="µs",
                   xscale="log", yscale="log")
    axes[0, 1].set_xticks(sizes, [str(n) for n in sizes])
    axes[0, 1].minorticks_off()
    legend_below(axes[0, 0], 3)
    legend_below(axes[0, 1], 3)
    return figure
