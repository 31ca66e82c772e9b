"""How much do the two GELUs and ReLU differ, as functions and in what a model learns?"""
from __future__ import annotations

import math
from typing import Any

import numpy as np

import minigrad as mg

from ..io.plots import COLOURS, legend_below, new_figure
from ..model import GPT2
from .lab import Lab, Verdict, held_out, inside, small_config, spread, train, verdict

EQUATION = ("gelu(x) = x Φ(x)   (gelu.1);  "
            "½x(1 + tanh(√(2/π)(x + 0.044715 x³)))   (gelu.2);  "
            "gelu′ = Φ + x φ   (gelu.3), "
            "½(1 + t) + ½x(1 − t²)√(2/π)(1 + 0.134145 x²)   (gelu.4)")
STEPS, SEEDS = 80, 3
T95 = {2: 12.706, 3: 4.303}                             # Student's t, 95 %, by the number of pairs


def measure(lab: Lab) -> dict[str, Any]:
    x = np.linspace(-6.0, 6.0, 120_001)

    def of(kind: str) -> tuple[np.ndarray, np.ndarray]:
        f = mg.relu if kind == "relu" else lambda t: mg.gelu(t, approximate=kind)
        t = lab.tensor(x, "float64")
        return f(t).numpy(), mg.grad(lambda t: mg.sum(f(t)))(t).numpy()

    (tanh, tanh_slope), (erf, erf_slope), (relu, relu_slope) = of("tanh"), of("none"), of("relu")
    phi = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    cdf = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])
    t = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    closed = {"tanh": (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * math.sqrt(2 / math.pi)
                       * (1 + 0.134145 * x * x)),
              "erf": cdf + x * phi, "relu": (x > 0).astype(float)}
    autograd = {"tanh": tanh_slope, "erf": erf_slope, "relu": relu_slope}
    slopes = {name: float(np.abs(a - closed[name]).max()) for name, a in autograd.items()}
    gap, low = np.abs(tanh - erf), int(tanh.argmin())
    ids, rows = lab.apart(32, 64)
    trained = []
    for name in ("gelu_new", "gelu", "relu"):
        losses = []
        for seed in range(SEEDS):
            config = small_config(lab.model.config.vocab_size, activation_function=name)
            model = GPT2(config, backend=lab.device, seed=seed)
            train(model, model.loss, ids, steps=STEPS, rows=8, block=64, seed=seed)
            losses.append(held_out(model.loss, rows))
        said = {"gelu_new": "GELU by tanh", "gelu": "GELU by erf", "relu": "ReLU"}[name]
        trained.append({"activation": said, "loss after training": float(np.mean(losses)),
                        "± (seeds)": float(np.std(losses, ddof=1)), "each": losses})
    some = slice(None, None, 600)
    return {
        "rows": [{k: v for k, v in row.items() if k != "each"} for row in trained],
        "losses": {row["activation"]: row["each"] for row in trained},
        "gap": float(gap.max()), "gap_at": float(abs(x[gap.argmax()])),
        "minimum": float(tanh[low]), "minimum_at": float(x[low]), "slopes": slopes,
        "curves": {"x": x[some].tolist(), "GELU by tanh": tanh[some].tolist(),
                   "ReLU": relu[some].tolist(), "gap": (tanh - erf)[some].tolist()},
        "notes": [f"tanh − erf: {gap.max():.6e} at most, at ±{abs(x[gap.argmax()]):.4f}",
                  f"GELU by tanh is least at {x[low]:.4f}: {tanh[low]:.8f}"],
    }


def judge(found: dict[str, Any]) -> list[Verdict]:
    """The published numbers agree to their digits (the grid is 1e-4), and derivatives to 1e-12.

    Training is compared in pairs by seed. "The same": within 0.01 nats, by two standard errors.
    "Better": at 95 % of Student's t.
    """
    losses = {name: np.array(v) for name, v in found["losses"].items()}
    (other, other_error), (gain, gain_error) = (
        spread(losses[name] - losses["GELU by tanh"]) for name in ("GELU by erf", "ReLU"))
    pairs, error = len(losses["ReLU"]), max(found["slopes"].values())
    return [
        verdict(abs(found["gap"] - 4.732355e-4) < 1e-9 and abs(found["gap_at"] - 2.69894) < 1e-4,
                "the two GELUs differ by at most 4.732355e-4, at ±2.69894",
                f"the largest difference is {found['gap']:.6e}, at ±{found['gap_at']:.4f}"),
        verdict(abs(found["minimum"] + 0.17004075) < 1e-8
                and abs(found["minimum_at"] + 0.75246) < 1e-4,
                "the minimum of GELU by tanh is −0.17004075, at −0.75246",
                f"the minimum is {found['minimum']:.8f}, at {found['minimum_at']:.4f}"),
        verdict(error < 1e-12, "derivatives from autograd equal the closed forms",
                f"the largest difference is {error:.1e}"),
        verdict(inside(other - 2 * other_error, other + 2 * other_error, -0.01, 0.01),
                "a model learns the same with either GELU",
                f"GELU by erf changes the held-out loss by {other:+.4f} ± {other_error:.4f} nats"),
        verdict(None if abs(gain) < T95[pairs] * gain_error else gain > 0,
                "a model learns better with GELU than with ReLU",
                f"ReLU changes the held-out loss by {gain:+.4f} ± {gain_error:.4f} nats, "
                f"{pairs} pairs of seeds"),
    ]


def draw(found: dict[str, Any]) -> Any:
    figure, axes = new_figure(10, 3.4, 1, 3)
    curves = found["curves"]
    for colour, name in zip(COLOURS, ("GELU by tanh", "ReLU")):
        axes[0, 0].plot(curves["x"], curves[name], color=colour, label=name)
    axes[0, 0].set(title="activations", xlabel="x", xlim=(-4, 3), ylim=(-0.5, 3))
    legend_below(axes[0, 0])
    axes[0, 1].plot(curves["x"], curves["gap"], color=COLOURS[2])
    axes[0, 1].set(title="GELU by tanh − GELU by erf", xlabel="x")
    axes[0, 1].ticklabel_format(axis="y", scilimits=(-2, 2))
    for i, losses in enumerate(found["losses"].values()):
        axes[0, 2].plot([i] * len(losses), losses, "o", color=COLOURS[i])
    axes[0, 2].set_xticks(range(3), list(found["losses"]), fontsize=7)
    axes[0, 2].set(title=f"loss after {STEPS} steps, a dot a seed", ylabel="nats")
    axes[0, 2].margins(x=0.3)
    return figure
