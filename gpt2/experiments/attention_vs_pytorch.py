"""Is our attention equal to PyTorch's, and how do time and memory grow with the tokens?"""
from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import minigrad as mg
from minigrad.nn import unfused

from ..io.plots import COLOURS, legend_below, new_figure
from .lab import Lab, Verdict, inside, slope, verdict
from .timing import clock, quartiles, ratio, whiskers

EQUATION = ("softmax(Q Kᵀ/√d + M) V   (attention.1); "
            "unfused it stores T² weights, fused (tiled) it does not")
LENGTHS = (128, 256, 512, 1024)
H, D = 4, 32
REPEATS = 9
tiled, explicit = (partial(f, causal=True) for f in (mg.attention, unfused.attention))


def measure(lab: Lab) -> dict[str, Any]:
    rng = np.random.default_rng(lab.seed)
    try:
        import torch
    except ImportError:
        torch = None  # type: ignore[assignment]
    found: dict[str, Any] = {"torch": torch and torch.__version__}
    if torch is None:
        found["notes"] = ["PyTorch is not installed, so there is nothing to compare with: "
                          "pip install torch"]
    else:
        small = [rng.standard_normal((4, 1, 8, 10)).astype(np.float32) for _ in range(4)]
        ours = _ours(lab, small, "float32", tiled)
        truth = _ours(lab, small, "float64", explicit)
        q, k, v = (torch.tensor(a, requires_grad=True) for a in small[:3])
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        slopes = torch.autograd.grad(out, [q, k, v], torch.tensor(small[3]))
        theirs = [out.detach().numpy(), *(slope.numpy() for slope in slopes)]
        found["differences"] = {
            name: {"ours − theirs": float(np.abs(a - b).max()),
                   "ours − float64": float(np.abs(a - t).max()),
                   "theirs − float64": float(np.abs(b - t).max())}
            for name, a, b, t in zip(("out", "∂Q", "∂K", "∂V"), ours, theirs, truth)}
        for name, d in found["differences"].items():
            gaps = ", ".join(f"{what} {value:.1e}" for what, value in d.items())
            found.setdefault("notes", []).append(f"{name}: {gaps}")
    rows = []
    for t in LENGTHS:
        arrays = [rng.standard_normal((1, H, t, D)).astype(np.float32) for _ in range(3)]
        given = [lab.tensor(a) for a in arrays]
        row: dict[str, Any] = {"T": t}
        with mg.no_grad():
            for name, f in (("tiled", tiled), ("unfused", explicit)):
                call = partial(_called, f, given)
                row |= timed(name, call) | {f"{name} MB": _peak(call) / 1e6}
        if torch is not None:
            q, k, v = map(torch.tensor, arrays)
            theirs_at_t = partial(torch.nn.functional.scaled_dot_product_attention, q, k, v,
                                  is_causal=True)
            row |= timed("PyTorch", theirs_at_t)
        rows.append(row)
    growth = {name: slope(np.log(LENGTHS).tolist(), [math.log(row[f"{name} MB"]) for row in rows])
              for name in ("tiled", "unfused")}
    threads = f"; PyTorch on {torch.get_num_threads()} threads" if torch is not None else ""
    found["notes"].append(f"forward: medians and quartiles of {REPEATS} runs after one to warm up"
                          f"{threads}")
    return found | {"rows": rows, "growth": growth}


def _called(f: Any, given: list[mg.Tensor]) -> np.ndarray:
    return f(*given).numpy()


def _ours(lab: Lab, arrays: list[np.ndarray], dtype: str, f: Any) -> list[np.ndarray]:
    """f(q, k, v), and the gradients of ⟨g, f(q, k, v)⟩; arrays: q, k, v, g."""
    *given, g = (lab.tensor(a, dtype) for a in arrays)
    slopes = mg.grad(lambda q, k, v: mg.sum(f(q, k, v) * g), (0, 1, 2))(*given)
    return [f(*given).numpy(), *(s.numpy() for s in slopes)]


def timed(name: str, f: Callable[[], Any]) -> dict[str, float]:
    """The columns with the time of f; f returns an array on the host, so it has then finished."""
    ms, low, high = quartiles(clock(f, lambda: None, REPEATS)[0])
    return {f"{name} ms": ms, f"{name} 25 %": low, f"{name} 75 %": high}


def _peak(f: Callable[[], Any]) -> int:
    """The peak memory of f's NumPy arrays in bytes, without a GPU's."""
    tracemalloc.start()
    try:
        f()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def judge(found: dict[str, Any]) -> list[Verdict]:
    """Each difference is at most 32 eps of float32: numbers are about 1, sums have 8 or 10 terms.

    Memory is judged by its power of T. "Faster": at the largest T the quartiles do not overlap.
    """
    claim = "values and gradients are equal to PyTorch's"
    growth = found["growth"]
    if not found["torch"]:
        first = verdict(None, claim, "PyTorch is not installed")
    else:
        worst = max(d["ours − theirs"] for d in found["differences"].values())
        first = verdict(worst <= 32 * float(np.finfo(np.float32).eps), claim,
                        f"the largest difference is {worst:.1e} in float32")
    last = found["rows"][-1]
    keys = ("ms", "25 %", "75 %")
    times, low, high = ratio(*({key: last[f"{name} {key}"] for key in keys}
                               for name in ("unfused", "tiled")))
    return [first,
            verdict(growth["unfused"] > 1.5 and growth["tiled"] < 1.5,
                    "unfused attention needs memory that grows with T², fused attention does not",
                    f"memory grows with T^{growth['unfused']:.2f} if attention is unfused, "
                    f"with T^{growth['tiled']:.2f} if it is fused"),
            verdict(inside(low, high, 1.0),
                    f"at {last['T']:,} tokens fused attention is also faster than unfused",
                    f"unfused attention takes {times:.2f} times as long "
                    f"by the medians, {low:.2f} to {high:.2f} by the quartiles")]


def draw(found: dict[str, Any]) -> Any:
    figure, axes = new_figure(8, 3.4, 1, 2)
    t = [row["T"] for row in found["rows"]]
    for colour, name in zip(COLOURS, ("tiled", "unfused", "PyTorch")):
        for panel, unit in ((axes[0, 0], "ms"), (axes[0, 1], "MB")):
            if f"{name} {unit}" in found["rows"][0]:
                times = [[row[f"{name} {key}"] for key in ("ms", "25 %", "75 %")]
                         for row in found["rows"]]
                bars = whiskers(times) if unit == "ms" else None
                panel.errorbar(t, [row[f"{name} {unit}"] for row in found["rows"]], bars,
                               fmt="o-", capsize=3, color=colour, label=name)
    reference = found["rows"][0]["unfused MB"]
    axes[0, 1].loglog(t, [reference * (x / t[0]) ** 2 for x in t], "--", color="black",
                      linewidth=1, label="T²")
    axes[0, 0].set(title=f"time, {H} heads of {D}", xlabel="tokens T", ylabel="ms (quartiles)")
    axes[0, 1].set(title="memory at the peak", xlabel="tokens T", ylabel="MB")
    for panel in axes.flat:
        panel.set(xscale="log", yscale="log")
        panel.set_xticks(t, [str(x) for x in t])
        panel.minorticks_off()
        legend_below(panel)
    return figure
