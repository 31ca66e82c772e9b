"""Is our attention PyTorch's, and how do time and memory grow with the number of tokens?"""
from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import minigrad as mg
from minigrad.fused import by_parts

from ..io.plots import COLOURS, legend_below, new_figure
from .lab import Lab, Verdict, inside, slope, verdict
from .timing import clock, quartiles, ratio, whiskers

EQUATION = "softmax(Q Kᵀ/√d + M) V   (attention.1); by parts it stores T² weights, in tiles it does not"
LENGTHS = (128, 256, 512, 1024)
H, D = 4, 32
REPEATS = 9
tiled, explicit = (partial(f, causal=True) for f in (mg.attention, by_parts.attention))


def measure(lab: Lab) -> dict[str, Any]:
    rng = np.random.default_rng(lab.seed)
    try:
        import torch
    except ImportError:
        torch = None  # type: ignore[assignment]
    found: dict[str, Any] = {"torch": torch and torch.__version__}
    if torch is None:
        found["notes"] = ["PyTorch is not installed, so there is nothing to compare with: pip install torch"]
    else:
        small = [rng.standard_normal((4, 1, 8, 10)).astype(np.float32) for _ in range(4)]          # B 4, T 8, E 10
        ours, truth = _ours(lab, small, "float32", tiled), _ours(lab, small, "float64", explicit)
        q, k, v = (torch.tensor(a, requires_grad=True) for a in small[:3])
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        slopes = torch.autograd.grad(out, [q, k, v], torch.tensor(small[3]))
        theirs = [out.detach().numpy(), *(slope.numpy() for slope in slopes)]
        found["differences"] = {name: {"ours − theirs": float(np.abs(a - b).max()), "ours − float64": float(np.abs(a - t).max()),
                                       "theirs − float64": float(np.abs(b - t).max())}
                                for name, a, b, t in zip(("out", "∂Q", "∂K", "∂V"), ours, theirs, truth)}
        found["notes"] = [f"{name}: " + ", ".join(f"{what} {value:.1e}" for what, value in d.items())
                          for name, d in found["differences"].items()]
    rows = []
    for t in LENGTHS:
        arrays = [rng.standard_normal((1, H, t, D)).astype(np.float32) for _ in range(3)]
        given = [lab.tensor(a) for a in arrays]
        row: dict[str, Any] = {"T": t}
        with mg.no_grad():
            for name, f in (("tiled", tiled), ("by parts", explicit)):
                call = partial(_called, f, given)
                row |= timed(name, call) | {f"{name} MB": _peak(call) / 1e6}
        if torch is not None:
            q, k, v = map(torch.tensor, arrays)
            row |= timed("PyTorch", partial(torch.nn.functional.scaled_dot_product_attention, q, k, v, is_causal=True))
        rows.append(row)
    growth = {name: slope(np.log(LENGTHS).tolist(), [math.log(row[f"{name} MB"]) for row in rows]) for name in ("tiled", "by parts")}
    threads = f"; PyTorch on {torch.get_num_threads()} threads" if torch is not None else ""
    found["notes"].append(f"forward: medians and quartiles of {REPEATS} runs after one to warm up{threads}")
    return found | {"rows": rows, "growth": growth}


def _called(f: Any, given: list[mg.Tensor]) -> np.ndarray:
    return f(*given).numpy()


def _ours(lab: Lab, arrays: list[np.ndarray], dtype: str, f: Any) -> list[np.ndarray]:
    """f of q, k and v, and the gradients of ⟨g, f⟩; arrays: q, k, v, g."""
    *given, g = (lab.tensor(a, dtype) for a in arrays)
    slopes = mg.grad(lambda q, k, v: mg.sum(f(q, k, v) * g), (0, 1, 2))(*given)
    return [f(*given).numpy(), *(s.numpy() for s in slopes)]


def timed(name: str, f: Callable[[], Any]) -> dict[str, float]:
    """The columns of how long f takes; what it returns is on the host, so nothing is left to wait for."""
    ms, low, high = quartiles(clock(f, lambda: None, REPEATS)[0])
    return {f"{name} ms": ms, f"{name} 25 %": low, f"{name} 75 %": high}


def _peak(f: Callable[[], Any]) -> int:
    """Bytes of NumPy's arrays at the peak of f; those of a GPU are not seen."""
    tracemalloc.start()
    try:
        f()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def judge(found: dict[str, Any]) -> list[Verdict]:
    """Every difference at most 32 eps of float32 (numbers of about 1, sums of 8 and 10 terms); memory by its power of T.

    Faster: the quartiles of the times at the largest T do not meet.
    """
    claim = "value and gradients are PyTorch's"
    growth = found["growth"]
    if not found["torch"]:
        first = verdict(None, claim, "PyTorch is not installed")
    else:
        worst = max(d["ours − theirs"] for d in found["differences"].values())
        first = verdict(worst <= 32 * float(np.finfo(np.float32).eps), claim, f"largest difference {worst:.1e} in float32")
    last = found["rows"][-1]
    times, low, high = ratio(*({key: last[f"{name} {key}"] for key in ("ms", "25 %", "75 %")} for name in ("by parts", "tiled")))
    return [first, verdict(growth["by parts"] > 1.5 and growth["tiled"] < 1.5, "by parts memory grows with T², in tiles it does not",
                           f"by parts T^{growth['by parts']:.2f}, in tiles T^{growth['tiled']:.2f}"),
            verdict(inside(low, high, 1.0), f"at {last['T']:,} tokens attention in tiles is faster than by parts, too",
                    f"by parts takes {times:.2f} times as long, {low:.2f} to {high:.2f} by the quartiles")]


def draw(found: dict[str, Any]) -> Any:
    figure, axes = new_figure(8, 3.4, 1, 2)
    t = [row["T"] for row in found["rows"]]
    for colour, name in zip(COLOURS, ("tiled", "by parts", "PyTorch")):
        for panel, unit in ((axes[0, 0], "ms"), (axes[0, 1], "MB")):
            if f"{name} {unit}" in found["rows"][0]:
                times = [[row[f"{name} {key}"] for key in ("ms", "25 %", "75 %")] for row in found["rows"]]
                bars = whiskers(times) if unit == "ms" else None
                panel.errorbar(t, [row[f"{name} {unit}"] for row in found["rows"]], bars, fmt="o-", capsize=3, color=colour, label=name)
    reference = found["rows"][0]["by parts MB"]
    axes[0, 1].loglog(t, [reference * (x / t[0]) ** 2 for x in t], "--", color="black", linewidth=1, label="T²")
    axes[0, 0].set(title=f"time, {H} heads of {D}", xlabel="tokens T", ylabel="ms (quartiles)")
    axes[0, 1].set(title="memory at the peak", xlabel="tokens T", ylabel="MB")
    for panel in axes.flat:
        panel.set(xscale="log", yscale="log")
        panel.set_xticks(t, [str(x) for x in t])
        panel.minorticks_off()
        legend_below(panel)
    return figure
