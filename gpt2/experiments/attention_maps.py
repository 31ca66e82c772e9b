"""Where do heads look: at the token before, at the first one, at all alike?"""
from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..inspect.attention import character, patterns
from ..io.plots import legend_below, new_figure
from .lab import Lab, Verdict, verdict

EQUATION = "P = softmax(Q Kᵀ/√(d/h) + M)   (attention.2); a head that looks at all alike has P_ts = 1/(t + 1) and entropy ln(t + 1)"
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
    rows: list[dict[str, Any]] = [{"head": f"{i}.{j}", **{key: float(np.mean([c[key] for c in every])) for key in every[0]}}
                                  for (i, j), every in heads.items()]
    first = float(np.mean([1 / (t + 1) for t in range(1, length)]))
    assert example is not None
    most = max(rows, key=lambda row: row["previous"])["head"]
    i, j = map(int, most.split("."))
    return {"rows": rows, "alike": alike, "first": first, "example": example[i, j].tolist(), "example of": most, "length": length}


def judge(found: dict[str, Any]) -> list[Verdict]:
    """A previous-token head gives the token before more than 0.4. The first token: twice the share that it has with all alike.

    Entropy: below 90 % of it with all alike in every head; inconclusive where that is so of some heads alone.
    """
    best = max(found["rows"], key=lambda row: row["previous"])
    first = float(np.mean([row["first"] for row in found["rows"]]))
    choose = [row["entropy"] < 0.9 * found["alike"] for row in found["rows"]]
    entropy = float(np.mean([row["entropy"] for row in found["rows"]]))
    return [
        verdict(best["previous"] > 0.4, "there is a head that looks at the token before",
                f"head {best['head']} gives it {best['previous']:.2f}"),
        verdict(first > 2 * found["first"], "heads rest on the first token",
                f"it gets {first:.3f} of the weight on average; {found['first']:.3f} were all alike"),
        verdict(True if all(choose) else None if any(choose) else False,
                "heads choose: their entropy is below that of looking at all alike",
                f"{entropy:.2f} of {found['alike']:.2f} nats on average; below 90 % of it in {sum(choose)} of {len(choose)} heads"),
    ]


def draw(found: dict[str, Any]) -> Any:
    figure, axes = new_figure(10, 4.0, 1, 2)
    rows = found["rows"]
    layers = [int(row["head"].split(".")[0]) for row in rows]
    dots = axes[0, 0].scatter([row["previous"] for row in rows], [row["first"] for row in rows], c=layers, cmap="viridis", s=24)
    figure.colorbar(dots, ax=axes[0, 0], shrink=0.8, label="layer", ticks=sorted(set(layers)))
    for row in outstanding(rows):
        axes[0, 0].annotate(row["head"], (row["previous"], row["first"]), fontsize=8, xytext=(4, 4), textcoords="offset points")
    axes[0, 0].axhline(found["first"], color="black", linestyle="--", linewidth=1, label="all tokens alike")
    axes[0, 0].margins(0.1)
    axes[0, 0].set(title="heads; the outstanding by layer.head", xlabel="share on the token before", ylabel="share on the first token")
    legend_below(axes[0, 0])
    shown = axes[0, 1].imshow(found["example"], cmap="Blues", vmin=0.0)
    axes[0, 1].set(title=f"head {found['example of']} on a text", xlabel="key", ylabel="query")
    figure.colorbar(shown, ax=axes[0, 1], shrink=0.8, label="weight")
    return figure


def outstanding(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The heads that look most at the token before, and at the first one, OUTSTANDING of each; none too near to another to be labelled."""
    wide = {key: max(max(row[key] for row in rows) - min(row[key] for row in rows), 1e-9) for key in ("previous", "first")}
    chosen: list[dict[str, Any]] = []
    for key in wide:
        for row in sorted(rows, key=lambda row: -row[key])[:OUTSTANDING]:
            if all(any(abs(row[k] - other[k]) > room * wide[k] for k, room in (("previous", 0.12), ("first", 0.08))) for other in chosen):
                chosen.append(row)
    return chosen
