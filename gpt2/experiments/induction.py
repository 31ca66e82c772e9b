"""Does the model continue a sequence that it has seen before: are there induction heads?"""
from __future__ import annotations

from typing import Any

import numpy as np

from ..decoding.sampling import log_softmax
from ..inspect.attention import patterns
from ..io.plots import COLOURS, legend_below, new_figure
from .lab import Lab, Verdict, verdict

EQUATION = ("on r_1 … r_n r_1 … r_n of random tokens an induction head attends from the second "
            "r_i to the token after the first r_i:\n"
            "its score is the mean of P_{n+i, i+1} over i   (Olsson et al. 2022)")
ROWS = 6


def measure(lab: Lab) -> dict[str, Any]:
    model = lab.model
    n = min(50, model.config.n_positions // 2)
    rng = np.random.default_rng(lab.seed)
    scores, losses = [], []
    for _ in range(ROWS):
        once = rng.integers(0, lab.tokenizer.n_plain - 1, n)
        ids = np.concatenate([once, once])
        found = patterns(model, ids.tolist())                           # [L, h, 2n, 2n]
        scores.append(np.stack([found[:, :, n + i, i + 1] for i in range(n - 1)]).mean(0))
        if lab.device == "numpy":
            logits = model.trace([ids], only="logits")["logits"][0]     # [2n, V]
        else:
            logits = model([ids]).numpy()[0]                            # [2n, V]
        logp = log_softmax(logits.astype(np.float64))
        losses.append(-logp[np.arange(2 * n - 1), ids[1:]])
    score, loss = np.mean(scores, 0), np.mean(losses, 0)
    first, second = loss[1:n - 1], loss[n:]             # without the border between the two
    halves = [float(np.mean(a[n:]) - np.mean(a[1:n - 1])) for a in losses]
    return {"rows": [{"head": f"{i}.{j}", "induction score": float(score[i, j])}
                     for i, j in np.ndindex(score.shape)],
            "loss": loss.tolist(), "n": n, "first": float(first.mean()),
            "second": float(second.mean()), "differences": halves, "alike": 1 / (1.5 * n)}


def judge(found: dict[str, Any]) -> list[Verdict]:
    """An induction head has a score above 0.3.

    The loss on the repetition must be 10 %, and three standard errors, below the first loss.
    """
    best = max(found["rows"], key=lambda row: row["induction score"])
    drop = np.array(found["differences"])
    error = float(drop.std(ddof=1) / np.sqrt(drop.size))
    learns = drop.mean() < -0.1 * found["first"] and drop.mean() < -3 * error
    return [
        verdict(best["induction score"] > 0.3, "there is an induction head",
                f"the best head is {best['head']}: its mean weight on the token that came next the "
                f"first time is {best['induction score']:.3f}; with equal weights on all tokens it "
                f"would be {found['alike']:.3f}"),
        verdict(None if abs(drop.mean()) < 3 * error and not learns else learns,
                "a repeated sequence is predicted far better than a new one",
                f"the loss is {found['first']:.2f} nats the first time and {found['second']:.2f} "
                f"nats the second; the standard error of the difference is {error:.2f}"),
    ]


def draw(found: dict[str, Any]) -> Any:
    figure, axes = new_figure(9, 3.4, 1, 2)
    loss, n = found["loss"], found["n"]
    axes[0, 0].plot(range(1, len(loss) + 1), loss, color=COLOURS[0], linewidth=1)
    axes[0, 0].axvline(n, color="black", linestyle="--", linewidth=1,
                       label="from here on a repetition")
    axes[0, 0].set(title="random tokens, twice", xlabel="place", ylabel="loss, nats")
    legend_below(axes[0, 0])
    names = [row["head"] for row in found["rows"]]
    axes[0, 1].bar(range(len(names)), [row["induction score"] for row in found["rows"]],
                   color=COLOURS[1])
    axes[0, 1].axhline(found["alike"], color="black", linestyle="--", linewidth=1,
                       label="all alike")
    axes[0, 1].set_xticks(range(len(names)), names if len(names) <= 24 else [""] * len(names),
                          fontsize=7, rotation=90)
    axes[0, 1].set(title="weight on what came after it the first time", xlabel="head",
                   ylabel="induction score")
    legend_below(axes[0, 1])
    return figure
