"""What does LayerNorm do with numbers that explode or vanish, and what does its ε do?"""
from __future__ import annotations

import math
from typing import Any

import numpy as np

import minigrad as mg

from ..io.plots import COLOURS, legend_below, new_figure
from .lab import Lab, Verdict, verdict

EQUATION = ("y = (x − μ)/√(σ² + ε), σ² over n and not n − 1   (layer_norm.1);\n"
            "∂x = (ĝ − mean(ĝ) − x̂ mean(ĝ ⊙ x̂))/√(σ² + ε)   (layer_norm.5)")
D, PRODUCTS, EPS = 64, 20, 1e-5


def measure(lab: Lab) -> dict[str, Any]:
    rng = np.random.default_rng(lab.seed)
    x = rng.standard_normal((256, D))
    one, zero = lab.tensor(np.ones(D), "float64"), lab.tensor(np.zeros(D), "float64")

    def norm(a: Any) -> Any:
        return mg.layer_norm(lab.tensor(a, "float64"), one, zero, eps=EPS).numpy()

    y = norm(3.0 * x + 7.0)
    variance = (3.0 * x).var(-1)
    rows = []
    for gain in (1.5, 0.6):
        plain, kept = x.copy(), x.copy()
        for i in range(1, PRODUCTS + 1):
            w = rng.standard_normal((D, D)) * gain / math.sqrt(D)
            plain, kept = plain @ w, norm(kept @ w)
            rows.append({"gain": gain, "products": i, "std": float(plain.std()),
                         "std with LayerNorm": float(kept.std()), "gain^i": gain**i})
    scales = []
    for s in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        row = s * x
        expected = float(row.std(-1).mean() / math.sqrt(row.var(-1).mean() + EPS))
        scales.append({"std of x": s, "std of y": float(norm(row).std()), "σ/√(σ² + ε)": expected})
    g = rng.standard_normal(x.shape)

    def weighted(t: mg.Tensor) -> mg.Tensor:
        return mg.sum(mg.fused.layer_norm(t, one, zero, eps=EPS) * lab.tensor(g, "float64"))

    auto = mg.grad(weighted)(lab.tensor(x, "float64")).numpy()
    sigma = np.sqrt(x.var(-1, keepdims=True) + EPS)
    hat = (x - x.mean(-1, keepdims=True)) / sigma
    mean_g, mean_gx = g.mean(-1, keepdims=True), (g * hat).mean(-1, keepdims=True)
    closed = (g - mean_g - hat * mean_gx) / sigma
    return {
        "rows": rows, "eps": scales, "mean": float(np.abs(y.mean(-1)).max()),
        "std": float(np.abs(y.std(-1) - np.sqrt(variance / (variance + EPS))).max()),
        "sample": float(np.abs(y.std(-1, ddof=1) - 1.0).max()),
        "backward": float(np.abs(auto - closed).max()), "scale": float(np.abs(closed).max()),
        "notes": [f"x of std {s['std of x']:g} comes out with {s['std of y']:.4f}" for s in scales],
    }


def judge(found: dict[str, Any]) -> list[Verdict]:
    """Means are 0, and population deviations right, to 1e-12.

    After 20 products the deviation is far from 1 without LayerNorm, and within 2 % of 1 with it.
    Rows smaller than √ε come out smaller than 1, as derived.
    """
    last = {row["gain"]: row for row in found["rows"] if row["products"] == PRODUCTS}
    bent = max(abs(s["std of y"] / s["σ/√(σ² + ε)"] - 1.0) for s in found["eps"])
    return [
        verdict(found["mean"] < 1e-12 and found["std"] < 1e-12 and found["sample"] > 1e-3,
                "each row has mean 0 and population standard deviation 1, but for ε",
                f"the mean is off by {found['mean']:.1e}, the population standard deviation by "
                f"{found['std']:.1e}; the sample's standard deviation is off by "
                f"{found['sample']:.1e}"),
        verdict(last[1.5]["std"] > 100 and last[0.6]["std"] < 1e-3
                and all(abs(row["std with LayerNorm"] - 1.0) < 0.02 for row in last.values()),
                f"{PRODUCTS} matrix products make numbers explode or vanish, and LayerNorm keeps "
                "their standard deviation at 1",
                f"the standard deviation is {last[1.5]['std']:.3g} for a gain of 1.5, "
                f"{last[0.6]['std']:.2g} for 0.6; with LayerNorm it is "
                f"{last[1.5]['std with LayerNorm']:.4f} and {last[0.6]['std with LayerNorm']:.4f}"),
        verdict(bent < 0.05 and found["eps"][0]["std of y"] < 0.1,
                "if σ is below √ε = 0.003, ε makes the row's result small",
                f"a row of standard deviation 1e-4 comes out with "
                f"{found['eps'][0]['std of y']:.3f}"),
        verdict(found["backward"] <= 1e-13 * found["scale"] * D,
                "the derivative subtracts both means",
                f"autograd differs from the formula by {found['backward']:.1e}"),
    ]


def draw(found: dict[str, Any]) -> Any:
    figure, axes = new_figure(8, 3.4, 1, 2)
    for colour, gain in zip(COLOURS, (1.5, 0.6)):
        own = [row for row in found["rows"] if row["gain"] == gain]
        products = [r["products"] for r in own]
        axes[0, 0].semilogy(products, [r["std"] for r in own], "o-", color=colour, markersize=3,
                            label=f"gain {gain}")
        axes[0, 0].semilogy(products, [r["std with LayerNorm"] for r in own], "--", color=colour,
                            label=f"gain {gain}, LayerNorm")
    axes[0, 0].set(title="products of random matrices", xlabel="products",
                   ylabel="standard deviation")
    axes[0, 1].loglog([s["std of x"] for s in found["eps"]], [s["std of y"] for s in found["eps"]],
                      "o", color=COLOURS[2], label="measured")
    line = np.logspace(-4, 0, 50)
    axes[0, 1].loglog(line, line / np.sqrt(line**2 + EPS), color="black", linewidth=1,
                      label="σ/√(σ² + ε)")
    axes[0, 1].set(title="what ε = 1e-5 does to small rows", xlabel="std of x", ylabel="std of y")
    for panel in axes.flat:
        legend_below(panel)
    return figure
