"""Which tokens do heads attend to: the previous one, the first one, or all of them equally?"""
from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..inspect.attention import character, patterns
from ..io.plots import legend_below, new_figure
from .lab import Lab, Verdict, verdict

EQUATION = ("P = softmax(Q Kᵀ/√(d/h) + M)   (attention.2); "
            "a head that attends to all tokens equally has P_ts = 1/(t + 1) and entropy ln(t + 1)")
ROWS, OUTSTANDING = 8, 4


def measure(lab: Lab) -> dict[str, Any]:
    length = min(63, lab.model.config.n_positions - 1)
    texts = lab.blocks(ROWS, length)[:, :-1]
    heads: dict[tuple[int, ...], list[dict[str, float]]] = {}
    example = None
    for text in texts:
        found = patterns(lab.model, text.tolist())
        example = found if example is None else example
        for i, j in np.ndindex(found.shape[:2]):
            heads.setdefault((i, j), []).append(character(found[i, j]))
    alike = float(np.mean([math.log(t + 1) for t in range(1, length)]))
    rows: list[dict[str, Any]] = []
    for (i, j), every in heads.items():
        means = {key: float(np.mean([c[key] for c in every])) for key in every[0]}
        rows.append({"head": f"{i}.{j}", **means})
    first = float(np.mean([1 / (t + 1) for t in range(1, length)]))
    assert example is not None
    most = max(rows, key=lambda row: row["previous"])["head"]
    i, j = map(int, most.split("."))
    return {"rows": rows, "alike": alike, "first": first, "example": example[i, j].tolist(),
            "example of": most, "length": length}


def judge(found: dict[str, Any]) -> list[Verdict]:
    """A previous-token head has a mean weight above 0.4 on the previous token.

    The first token counts if its mean weight is twice that of equal attention. Entropy: below 90 %
    of that of equal attention, in every head; inconclusive if in some heads only.
    """
    best = max(found["rows"], key=lambda row: row["previous"])
    first = float(np.mean([row["first"] for row in found["rows"]]))
    choose = [row["entropy"] < 0.9 * found["alike"] for row in found["rows"]]
    entropy = float(np.mean([row["entropy"] for row in found["rows"]]))
    return [
        verdict(best["previous"] > 0.4, "there is a head that attends to the previous token",
                f"head {best['head']} has a mean weight of {best['previous']:.2f} on it"),
        verdict(first > 2 * found["first"], "heads put much weight on the first token",
                f"its mean weight is {first:.3f}; with equal weights on all tokens it would be "
                f"{found['first']:.3f}"),
        verdict(True if all(choose) else None if any(choose) else False,
                "heads select tokens: the entropy of their weights is below that of equal weights",
                f"the mean entropy is {entropy:.2f} nats, and {found['alike']:.2f} nats for equal "
                f"weights; it is below 90 % of that in {sum(choose)} of {len(choose)} heads"),
    ]


def draw(found: dict[str, Any]) -> Any:
    figure, axes = new_figure(10, 4.0, 1, 2)
    rows = found["rows"]
    layers = [int(row["head"].split(".")[0]) for row in rows]
    dots = axes[0, 0].scatter([row["previous"] for row in rows], [row["first"] for row in rows],
                              c=layers, cmap="viridis", s=24)
    figure.colorbar(dots, ax=axes[0, 0], shrink=0.8, label="layer", ticks=sorted(set(layers)))
    for row in outstanding(rows):
        axes[0, 0].annotate(row["head"], (row["previous"], row["first"]), fontsize=8,
                            xytext=(4, 4), textcoords="offset points")
    axes[0, 0].axhline(found["first"], color="black", linestyle="--", linewidth=1,
                       label="all tokens alike")
    axes[0, 0].margins(0.1)
    axes[0, 0].set(title="heads; the outstanding by layer.head",
                   xlabel="share on the token before", ylabel="share on the first token")
    legend_below(axes[0, 0])
    shown = axes[0, 1].imshow(found["example"], cmap="Blues", vmin=0.0)
    axes[0, 1].set(title=f"head {found['example of']} on a text", xlabel="key", ylabel="query")
    figure.colorbar(shown, ax=axes[0, 1], shrink=0.8, label="weight")
    return figure


def outstanding(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The heads with the most weight on the previous token, and on the first one.

    They are OUTSTANDING of each kind, without those whose labels would overlap another's.
    """
    wide = {key: max(max(row[key] for row in rows) - min(row[key] for row in rows), 1e-9)
            for key in ("previous", "first")}
    room = {"previous": 0.12, "first": 0.08}
    chosen: list[dict[str, Any]] = []
    for key in wide:
        for row in sorted(rows, key=lambda row: -row[key])[:OUTSTANDING]:
            if all(any(abs(row[k] - other[k]) > room[k] * wide[k] for k in room)
                   for other in chosen):
                chosen.append(row)
    return chosen
