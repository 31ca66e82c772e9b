"""Does text at temperature 0.1 repeat itself, and is text at temperature 10 incoherent?"""
from __future__ import annotations

import math
from typing import Any

import numpy as np

import minigrad as mg

from ..decoding.sampling import log_softmax
from ..inspect.statistics import entropy
from ..io.plots import COLOURS, legend_below, new_figure
from .lab import Lab, Verdict, verdict

EQUATION = ("p_i = exp(z_i/τ) / Σ_j exp(z_j/τ): "
            "τ → 0 takes the largest logit, τ → ∞ takes each token with the same probability")
TEMPERATURES, ROWS = (0.1, 1.0, 10.0), 16


def repetition(ids: list[int], n: int = 4) -> float:
    """The share of n-grams that occurred before."""
    grams = [tuple(ids[i:i + n]) for i in range(len(ids) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams)


def distinct(rows: list[list[int]], n: int) -> float:
    """The number of different n-grams over the number of all n-grams (Li et al. 2016)."""
    grams = [tuple(row[i:i + n]) for row in rows for i in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams)


def measure(lab: Lab) -> dict[str, Any]:
    model, tokenizer = lab.model, lab.tokenizer
    start = tokenizer.encode("\n")[-1:]
    tokens = min(120, model.config.n_positions - 1)
    rows = []
    for tau in TEMPERATURES:
        made = model.generate([start] * ROWS, max_new_tokens=tokens, temperature=tau,
                              seed=lab.seed, eos_token_id=None)
        texts = [row[1:] for row in made]
        with mg.no_grad():
            logits = model(np.array([start + row[:-1] for row in texts])).numpy()   # [n, T, V]
        logits = logits.astype(np.float64)[..., :tokenizer.n_vocab]
        logp = log_softmax(logits)                      # the model's own, at τ = 1
        taken = np.take_along_axis(logp, np.array(texts)[..., None], -1)            # [n, T, 1]
        rows.append({"τ": tau,
                     "4-grams repeated": float(np.mean([repetition(row) for row in texts])),
                     "distinct-1": distinct(texts, 1), "distinct-2": distinct(texts, 2),
                     "entropy, nats": float(entropy(np.exp(log_softmax(logits / tau))).mean()),
                     "log p of the text": float(taken.mean()),
                     "sample": tokenizer.decode(texts[0])[:70].replace("\n", " / ")})
    return {"rows": rows, "uniform": math.log(tokenizer.n_vocab)}


def judge(found: dict[str, Any]) -> list[Verdict]:
    """0.1 repeats if more than 10 %, and three times as many 4-grams as at 1, occurred before.

    1 is balanced if less than 10 % did, and the entropy is below 75 % of ln V. 10 is incoherent if
    the entropy is above 90 % of ln V, and the mean log p of its text is below −ln V.
    """
    low, one, high = found["rows"]
    uniform = found["uniform"]
    return [
        verdict(low["4-grams repeated"] > 3 * one["4-grams repeated"]
                and low["4-grams repeated"] > 0.1, "text at temperature 0.1 repeats itself",
                f"{low['4-grams repeated']:.1%} of 4-grams occurred before at 0.1, "
                f"{one['4-grams repeated']:.1%} at 1"),
        verdict(one["4-grams repeated"] < 0.1 and one["entropy, nats"] < 0.75 * uniform,
                "temperature 1 is balanced",
                f"{one['4-grams repeated']:.1%} of 4-grams occurred before; the entropy of the "
                f"next token is {one['entropy, nats']:.2f} nats, where ln V is {uniform:.2f}"),
        verdict(high["entropy, nats"] > 0.9 * uniform and high["log p of the text"] < -uniform,
                "text at temperature 10 is incoherent",
                f"the entropy of the next token is {high['entropy, nats']:.2f} nats, where ln V is "
                f"{uniform:.2f}; the mean log p of a token of its text is "
                f"{high['log p of the text']:.1f}"),
    ]


def draw(found: dict[str, Any]) -> Any:
    figure, axes = new_figure(9, 3.2, 1, 3)
    names = [f"{row['τ']:g}" for row in found["rows"]]
    keys = ("4-grams repeated", "distinct-2", "entropy, nats")
    titles = ("4-grams that were there before", "different pairs of tokens",
              "entropy of the next token, nats")
    for panel, key, title in zip(axes.flat, keys, titles):
        panel.bar(names, [row[key] for row in found["rows"]], color=COLOURS[:3])
        panel.set(title=title, xlabel="temperature")
        panel.title.set_fontsize(10)
    axes[0, 2].axhline(found["uniform"], color="black", linestyle="--", linewidth=1, label="ln V")
    legend_below(axes[0, 2])
    return figure
