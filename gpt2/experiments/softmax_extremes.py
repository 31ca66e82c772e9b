"""What does softmax do with large numbers, with temperatures, and with its own results?"""
from __future__ import annotations

import math
from typing import Any

import numpy as np

import minigrad as mg

from ..io.plots import COLOURS, legend_below, new_figure
from .lab import Lab, Verdict, slope, verdict

EQUATION = ("softmax(x)_i = exp(x_i − m) / Σ_j exp(x_j − m)   (softmax.1);  "
            "∂p_i/∂τ = −p_i (x_i − ⟨p, x⟩)/τ² for p = softmax(x/τ);\n"
            "near the uniform vector softmax is 1/n + (x − mean)/n, "
            "so each softmax of a softmax divides deviations by n")
N = 20
# published elsewhere: log std of a vector of 20 numbers, over a range of 1, after 1 to 4 softmaxes
PUBLISHED = (-4.197361, -7.190418, -10.186008, -13.181734)


def measure(lab: Lab) -> dict[str, Any]:
    x = np.linspace(-5.0, 15.0, 35)
    slopes = []
    for tau in (1.0, 2.0, 10.0):
        t = lab.tensor(tau, "float64")
        p = mg.softmax(lab.tensor(x, "float64") / t).numpy()
        auto = mg.jacobian(lambda t: mg.softmax(lab.tensor(x, "float64") / t))(t).numpy()
        closed = -p * (x - p @ x) / tau**2
        entropy = -float((p * np.log(p)).sum())
        slopes.append({"τ": tau, "largest p": float(p.max()), "entropy": entropy,
                       "difference": float(np.abs(auto - closed).max()),
                       "scale": float(np.abs(closed).max()), "p": p.tolist()})
    y, stds = np.linspace(-5.0, 15.0, N) / 20.0, []
    for _ in PUBLISHED:
        y = mg.softmax(lab.tensor(y, "float64")).numpy()
        stds.append(math.log(y.std()))
    big = np.array([1000.0, 1001.0, 1002.0])
    with np.errstate(over="ignore", invalid="ignore"):
        naive = np.exp(big) / np.exp(big).sum()
    shifted = mg.softmax(lab.tensor(big, "float64")).numpy()
    wanted = np.exp([-2.0, -1.0, 0.0]) / np.exp([-2.0, -1.0, 0.0]).sum()
    grid = []
    for r in (1.0, 5.0, 20.0, 100.0):
        for tau in (0.1, 1.0, 10.0):
            p = mg.softmax(lab.tensor(np.linspace(0, r, N) / tau, "float64")).numpy()
            grid.append({"range": r, "τ": tau, "largest p": float(p.max())})
    return {
        "rows": [{"times softmax": i + 1, "log std": v, "change": v - stds[i - 1] if i else None}
                 for i, v in enumerate(stds)],
        "slopes": slopes, "grid": grid, "x": x.tolist(),
        "slope": slope(range(1, len(stds)), stds[1:]),
        "naive_finite": bool(np.isfinite(naive).all()),
        "shifted_error": float(np.abs(shifted - wanted).max()),
        "notes": [f"τ = {s['τ']:g}: largest p {s['largest p']:.4f}, entropy {s['entropy']:.3f} "
                  f"nats; dp/dτ off by {s['difference']:.1e}" for s in slopes]
        + [f"softmax of [1000, 1001, 1002] without the shift: {naive.tolist()}, "
           f"with it: {shifted.round(4).tolist()}"],
    }


def judge(found: dict[str, Any]) -> list[Verdict]:
    """The slope is −ln 20 within 1 %, and the published numbers agree to their last digit.

    dp/dτ is equal within 100 eps of its largest number. Without the shift the result is not
    finite; with it, it is right within 4 eps.
    """
    eps = float(np.finfo(np.float64).eps)
    logs = [row["log std"] for row in found["rows"]]
    worst = max(s["difference"] / s["scale"] for s in found["slopes"])
    return [
        verdict(abs(found["slope"] / -math.log(N) - 1.0) < 0.01,
                "repeated softmax flattens: log std falls by ln n each time",
                f"the slope is {found['slope']:.4f}, −ln {N} = {-math.log(N):.4f}"),
        verdict(bool(np.allclose(logs, PUBLISHED, rtol=0, atol=5e-7)),
                "after 1 to 4 softmaxes log std is −4.197361, −7.190418, −10.186008, −13.181734",
                "measured: " + ", ".join(f"{v:.6f}" for v in logs)),
        verdict(worst < 100 * eps, "the derivative by τ from autograd is the closed form",
                f"the relative difference is {worst:.1e}"),
        verdict(not found["naive_finite"] and found["shifted_error"] <= 4 * eps,
                "without the shift softmax overflows; with it the result is exact",
                f"without the shift the result is {'' if found['naive_finite'] else 'not '}finite; "
                f"with it the error is {found['shifted_error']:.1e}"),
    ]


def draw(found: dict[str, Any]) -> Any:
    figure, axes = new_figure(10, 3.6, 1, 3)
    for colour, s in zip(COLOURS, found["slopes"]):
        axes[0, 0].semilogy(found["x"], s["p"], color=colour, label=f"τ = {s['τ']:g}")
    axes[0, 0].set(title="softmax(x/τ)", xlabel="x", ylabel="probability")
    steps = [row["times softmax"] for row in found["rows"]]
    axes[0, 1].plot(steps, [row["log std"] for row in found["rows"]], "o-", color=COLOURS[0],
                    label="measured")
    first = found["rows"][1]["log std"]
    expected = [first - math.log(N) * i for i in range(len(steps) - 1)]
    axes[0, 1].plot(steps[1:], expected, "--", color="black", label=f"slope −ln {N}")
    axes[0, 1].set(title="softmax of softmax of …", xlabel="times", ylabel="log std")
    for colour, tau in zip(COLOURS, (0.1, 1.0, 10.0)):
        own = [g for g in found["grid"] if g["τ"] == tau]
        axes[0, 2].semilogx([g["range"] for g in own], [g["largest p"] for g in own], "o-",
                            color=colour, label=f"τ = {tau:g}")
    axes[0, 2].set(title=f"largest of {N} probabilities", xlabel="range of x",
                   ylabel="probability", ylim=(0, 1.05))
    for panel in axes.flat:
        legend_below(panel, 3)
    return figure
