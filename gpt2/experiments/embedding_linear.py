"""Is an embedding a linear map of one-hot vectors, and how much time does the lookup save?"""
from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

import minigrad as mg

from ..io.plots import COLOURS, legend_below, new_figure
from .lab import Lab, Verdict, verdict

EQUATION = ("onehot(i) W = W_i   (embedding.1);  "
            "∂L/∂W_r = Σ_{k: i_k = r} ∂L/∂y_k, a scatter-add   (embedding.3)")
V, D = 5000, 70
TOKENS = (16, 64, 256, 1024)


def measure(lab: Lab) -> dict[str, Any]:
    rng = np.random.default_rng(lab.seed)
    table = rng.standard_normal((V, D))
    ids = rng.integers(0, V, 64)
    ids[1] = ids[0]                                     # one token occurs twice
    g = rng.standard_normal((64, D))
    onehot = np.eye(V)[ids]

    def both(weight: mg.Tensor) -> tuple[mg.Tensor, mg.Tensor]:
        return mg.embedding(ids, weight), mg.matmul(lab.tensor(onehot, "float64"), weight)

    w = lab.tensor(table, "float64")
    values = [y.numpy() for y in both(w)]
    slopes = [mg.grad(lambda w, i=i: mg.sum(both(w)[i] * lab.tensor(g, "float64")))(w).numpy()
              for i in range(2)]
    scattered = np.zeros_like(table)
    np.add.at(scattered, ids, g)
    rows = []
    for n in TOKENS:
        some, hot = rng.integers(0, V, n), None
        hot = np.zeros((n, V), np.float32)
        hot[np.arange(n), some] = 1.0
        w32, h32 = lab.tensor(table), lab.tensor(hot)
        seconds = {}
        for name, f in (("lookup", lambda some=some, w32=w32: mg.embedding(some, w32)),
                        ("product", lambda h32=h32, w32=w32: mg.matmul(h32, w32))):
            f().numpy()
            took = []
            for _ in range(5):
                started = time.perf_counter()
                f().numpy()
                took.append(time.perf_counter() - started)
            seconds[name] = float(np.median(took))
        rows.append({"tokens": n, "lookup µs": 1e6 * seconds["lookup"],
                     "product µs": 1e6 * seconds["product"],
                     "times longer": seconds["product"] / seconds["lookup"],
                     "FLOP of the product": 2 * n * V * D, "one-hot bytes": 4 * n * V})
    bound = 1.0 / math.sqrt(D)
    layers = {"Embedding": mg.nn.Embedding(V, D, key=1).weight.numpy(),
              "Linear": mg.nn.Linear(D, V, key=1).weight.numpy()}
    return {
        "rows": rows, "value": float(np.abs(values[0] - values[1]).max()),
        "gradient": float(np.abs(slopes[0] - slopes[1]).max()),
        "scatter": float(np.abs(slopes[0] - scattered).max()),
        "scale": float(np.abs(scattered).max()),
        "std": {name: float(a.std()) for name, a in layers.items()},
        "largest": {name: float(np.abs(a).max()) for name, a in layers.items()},
        "bound": bound,
        "histograms": {name: np.histogram(a, np.linspace(-3, 3, 121), density=True)[0].tolist()
                       for name, a in layers.items()},
    }


def judge(found: dict[str, Any]) -> list[Verdict]:
    """Values are equal to the bit, and gradients within 4 eps of the largest.

    The product takes longer for every number of tokens. The deviations are right within 1 %.
    """
    eps = float(np.finfo(np.float64).eps)
    gap = max(found["gradient"], found["scatter"])
    same = found["value"] == 0.0 and gap <= 4 * eps * found["scale"]
    times = [row["times longer"] for row in found["rows"]]
    longer = [x > 1.0 for x in times]
    std = found["std"]
    drawn = (abs(std["Embedding"] - 1.0) < 0.01
             and abs(std["Linear"] / (found["bound"] / math.sqrt(3)) - 1.0) < 0.01
             and found["largest"]["Linear"] <= found["bound"])
    return [
        verdict(same, "a one-hot product is a row lookup, and its gradient is a scatter-add",
                f"values differ by {found['value']:g}, gradients by {found['gradient']:.1e}"),
        verdict(True if all(longer) else None if any(longer) else False, "the lookup is faster",
                f"the product takes {min(times):.0f} to {max(times):.0f} times as long"),
        verdict(drawn,
                "an Embedding starts with standard deviation 1, a Linear with that of U(±1/√d): "
                "bound .1195, std .0690",
                f"the standard deviations are {std['Embedding']:.4f} and {std['Linear']:.4f}; the "
                f"largest number in the Linear is {found['largest']['Linear']:.4f}"),
    ]


def draw(found: dict[str, Any]) -> Any:
    figure, axes = new_figure(8, 3.4, 1, 2)
    n = [row["tokens"] for row in found["rows"]]
    for colour, name in zip(COLOURS, ("lookup", "product")):
        axes[0, 0].loglog(n, [row[f"{name} µs"] for row in found["rows"]], "o-", color=colour,
                          label=name)
    axes[0, 0].set(title=f"one-hot @ W against W[ids], V = {V}, d = {D}",
                   xlabel="tokens", ylabel="µs")
    legend_below(axes[0, 0])
    centres = np.linspace(-3, 3, 121)[:-1] + 0.025
    for colour, (name, density) in zip(COLOURS, found["histograms"].items()):
        axes[0, 1].plot(centres, density, color=colour, drawstyle="steps-mid",
                        label=f"{name}, std {found['std'][name]:.3f}")
    axes[0, 1].set(title="what they start from", xlabel="weight", ylabel="density", xlim=(-3, 3))
    legend_below(axes[0, 1])
    return figure
