"""Does one product with c_attn compute the same as three matrices, and as a loop over heads?"""
from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import minigrad as mg

from ..io.plots import COLOURS, legend_below, new_figure
from .lab import Lab, Verdict, inside, verdict
from .timing import clock, quartiles, ratio, whiskers

EQUATION = ("x [W_Q W_K W_V] = [x W_Q, x W_K, x W_V]; "
            "head j of Q is its columns j·d/h … (j + 1)·d/h − 1   (attention.8)")
T, D, H = 256, 256, 8
REPEATS = 21


def ways() -> dict[str, Callable[[mg.Tensor, mg.Tensor], mg.Tensor]]:
    """Four ways to compute causal attention [1, T, d] of x [1, T, d] with weights [d, 3d]."""
    k = D // H
    scale = 1.0 / math.sqrt(k)

    def fused(x: mg.Tensor, w: mg.Tensor) -> mg.Tensor:
        q, k_, v = mg.split_heads(mg.matmul(x, w), heads=H, parts=3)            # 3 × [1, h, T, d/h]
        return mg.join_heads(mg.attention(q, k_, v, causal=True, scale=scale))  # [1, T, d]

    def three(x: mg.Tensor, w: mg.Tensor) -> mg.Tensor:
        q, k_, v = (mg.split_heads(mg.matmul(x, part), heads=H, parts=1)[0]
                    for part in mg.split(w, sections=3, axis=-1))               # 3 × [1, h, T, d/h]
        return mg.join_heads(mg.attention(q, k_, v, causal=True, scale=scale))  # [1, T, d]

    def loop(x: mg.Tensor, w: mg.Tensor) -> mg.Tensor:
        out = []
        for j in range(H):
            q, k_, v = (mg.matmul(x, w[:, D * part + k * j:D * part + k * (j + 1)])
                        for part in range(3))                                   # 3 × [1, T, d/h]
            out.append(single(q, k_, v))
        return mg.concat(out, axis=-1)                                          # [1, T, d]

    def single(q: mg.Tensor, k_: mg.Tensor, v: mg.Tensor) -> mg.Tensor:
        scores = mg.matmul(q, k_.mT) * scale                                    # [1, T, T]
        seen = mg.Tensor(mg.backend.of(q.array).adopt(np.tri(q.shape[1], dtype=bool)))  # [T, T]
        masked = mg.where(seen, scores, float(np.finfo(np.float32).min))        # [1, T, T]
        return mg.matmul(mg.softmax(masked), v)                                 # [1, T, d/h]

    return {"fused c_attn": fused, "three matrices": three, "a loop over heads": loop}


def measure(lab: Lab) -> dict[str, Any]:
    rng = np.random.default_rng(lab.seed)
    x = rng.standard_normal((1, T, D))
    w = rng.standard_normal((D, 3 * D)) / math.sqrt(D)
    g = rng.standard_normal((1, T, D))
    here = mg.backend.get(lab.device).backend
    rows, first = [], None
    for name, f in ways().items():
        made = []
        for dtype in ("float64", "float32"):
            a, b = lab.tensor(x, dtype), lab.tensor(w, dtype)
            upstream = lab.tensor(g, dtype)
            dx, dw = mg.grad(lambda a, b, f=f, c=upstream: mg.sum(f(a, b) * c), (0, 1))(a, b)
            made.append((f(a, b).numpy(), dx.numpy(), dw.numpy()))
        first = first or made
        a, b = lab.tensor(x), lab.tensor(w)
        with mg.no_grad():
            ms, low, high = quartiles(clock(partial(f, a, b), here.synchronize, REPEATS)[0])
        errors = {f"{what}, {dtype}": float(np.abs(made[i][j] - first[i][j]).max()
                                            / np.abs(first[i][j]).max())
                  for i, dtype in enumerate(("float64", "float32"))
                  for j, what in enumerate(("value", "∂x", "∂W"))}
        products = {"fused c_attn": 1, "three matrices": 3}.get(name, 3 * H)
        rows.append({"way": name, "products": products, "ms": ms, "25 %": low, "75 %": high,
                     **errors})
    return {"rows": rows, "T": T, "d": D, "heads": H,
            "notes": [f"forward: medians and quartiles of {REPEATS} runs after one to warm up"]}


def judge(found: dict[str, Any]) -> list[Verdict]:
    """Values and gradients are equal, relative to their largest number, within d·eps.

    "Faster": the quartiles of the two times do not overlap.
    """
    rows = {row["way"]: row for row in found["rows"]}
    worst = {dtype: max(row[f"{what}, {dtype}"]
                        for row in found["rows"] for what in ("value", "∂x", "∂W"))
             for dtype in ("float64", "float32")}
    same = all(worst[dtype] <= found["d"] * float(np.finfo(dtype).eps) for dtype in worst)
    one, loop = rows["fused c_attn"], rows["a loop over heads"]
    times, low, high = ratio(loop, one)
    return [
        verdict(same,
                "one product, three matrices and a loop over heads compute the same values "
                "and gradients",
                f"the largest relative difference is {worst['float64']:.1e} in float64, "
                f"{worst['float32']:.1e} in float32"),
        verdict(inside(low, high, 1.0), "one product is faster than a loop over heads",
                f"one product takes {one['ms']:.2f} ms, three matrices "
                f"{rows['three matrices']['ms']:.2f} ms, the loop {loop['ms']:.2f} ms: the loop "
                f"takes {times:.2f} times as long, {low:.2f} to {high:.2f} by the quartiles"),
    ]


def draw(found: dict[str, Any]) -> Any:
    figure, axes = new_figure(9, 3.6, 1, 2)
    names = [row["way"] for row in found["rows"]]
    times = [(row["ms"], row["25 %"], row["75 %"]) for row in found["rows"]]
    axes[0, 0].barh(names, [row["ms"] for row in found["rows"]], color=COLOURS[:3], capsize=4,
                    xerr=whiskers(times))
    axes[0, 0].set(title=f"T = {found['T']}, d = {found['d']}, {found['heads']} heads",
                   xlabel="forward, ms (quartiles)")
    axes[0, 0].invert_yaxis()
    at = np.arange(3)
    for i, (row, colour) in enumerate(zip(found["rows"], COLOURS)):
        errors = [max(row[f"{what}, float32"], 1e-9) for what in ("value", "∂x", "∂W")]
        axes[0, 1].bar(at + 0.27 * i, errors, 0.27, color=colour, label=row["way"])
    axes[0, 1].axhline(float(np.finfo(np.float32).eps), color="black", linestyle="--", linewidth=1,
                       label="eps of float32")
    axes[0, 1].set_yscale("log")
    axes[0, 1].set_xticks(at + 0.27, ["value", "∂x", "∂W"])
    axes[0, 1].set(title="difference from the fused one", ylabel="relative")
    legend_below(axes[0, 1])
    return figure
