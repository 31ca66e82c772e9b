"""How many parameters does each part of GPT-2 have, in its four sizes?"""
from __future__ import annotations

from typing import Any

import numpy as np

from ..config import PUBLISHED, GPT2Config
from ..inspect.arch import KINDS, counts
from ..io.plots import COLOURS, legend_below, new_figure
from .lab import Lab, Verdict, verdict

EQUATION = ("N = V d + T d + L (12 d² + 13 d) + 2 d, with the head tied; "
            "of these LayerNorm has (2 L + 1) 2 d")
CLAIM = "LayerNorm is under 0.01 % of the parameters"


def measure(lab: Lab) -> dict[str, Any]:
    rows = []
    for name in PUBLISHED:
        kinds = counts(GPT2Config.from_name(name))
        total = sum(sum(parts.values()) for parts in kinds.values())
        rows.append({"model": name, "parameters": total,
                     **{kind: sum(parts.values()) for kind, parts in kinds.items()},
                     "weights": sum(parts["weight"] for parts in kinds.values()),
                     "biases": sum(parts["bias"] for parts in kinds.values()),
                     "LayerNorm %": 100 * sum(kinds["LayerNorm"].values()) / total})
    return {"rows": rows}


def judge(found: dict[str, Any]) -> list[Verdict]:
    """Confirmed if LayerNorm's share is under 0.01 % in every size, contradicted if in none."""
    shares = [row["LayerNorm %"] for row in found["rows"]]
    below = [share < 0.01 for share in shares]
    return [verdict(True if all(below) else None if any(below) else False, CLAIM,
                    ", ".join(f"{share:.3f} %" for share in shares) + " in the four sizes")]


def draw(found: dict[str, Any]) -> Any:
    figure, axes = new_figure(11, 3.8, 1, 3)
    rows = found["rows"]
    bottom = np.zeros(len(rows))
    for colour, kind in zip(COLOURS, [kind for kind in KINDS if kind in rows[0]]):
        share = np.array([100 * row[kind] / row["parameters"] for row in rows])
        axes[0, 0].bar(range(len(rows)), share, bottom=bottom, color=colour, label=kind)
        bottom += share
    for i, row in enumerate(rows):
        axes[0, 0].text(i, 101, f"{row['parameters'] / 1e6:,.0f} M", ha="center", fontsize=8)
    axes[0, 0].set_ylim(0, 112)
    axes[0, 0].set_ylabel("share of the parameters, %")
    axes[0, 0].set_title("By kind: matrices are nearly all of it", fontsize=10)
    for i, (what, digits) in enumerate((("weights", 3), ("biases", 1))):
        bars = axes[0, 1].bar(np.arange(len(rows)) + 0.4 * i - 0.2, [row[what] for row in rows],
                              0.4, color=COLOURS[i], label=what)
        shares = [f"{100 * row[what] / row['parameters']:.{digits}g} %" for row in rows]
        axes[0, 1].bar_label(bars, shares, fontsize=6)
    axes[0, 1].set(yscale="log", ylim=(1e4, 1e10))
    axes[0, 1].set_ylabel("parameters")
    axes[0, 1].set_title("By weight and bias: biases are under a thousandth", fontsize=10)
    axes[0, 2].bar(range(len(rows)), [row["LayerNorm %"] for row in rows], color=COLOURS[4],
                   label="LayerNorm")
    axes[0, 2].axhline(0.01, color="black", linestyle="--", linewidth=1,
                       label="claimed: under 0.01 %")
    axes[0, 2].set_ylabel("share of LayerNorm, %")
    axes[0, 2].set_title("LayerNorm is little, but more than claimed", fontsize=10)
    for panel in axes.flat:
        names = [row["model"].removeprefix("gpt2-") for row in rows]
        panel.set_xticks(range(len(rows)), names, fontsize=8)
        legend_below(panel)
    return figure
