"""Do the sampling methods do what they promise: multinomial, Gumbel-max, top-k, top-p, min-p?"""
from __future__ import annotations

import math
from typing import Any

import numpy as np

import minigrad as mg

from ..decoding.sampling import SamplingOptions, process_logits, sample
from ..errors import UsageError
from ..inspect.statistics import entropy
from ..io.plots import COLOURS, legend_below, new_figure
from .lab import Lab, Verdict, verdict
from .temperature import distinct

EQUATION = ("inverse CDF: the first i with Σ_{j≤i} p_j > u, u uniform;  "
            "Gumbel-max: argmax_i (z_i − ln(−ln u_i)), u_i uniform;\n"
            "χ² = Σ (n_i − N p_i)²/(N p_i), for 3 kinds P(χ² > x) = exp(−x/2)")
WEIGHTS, DRAWS = (1.0, 2.0, 5.0), 400_000
METHODS: dict[str, dict[str, Any]] = {
    "multinomial": {}, "top-k 10": {"top_k": 10}, "top-p 0.9": {"top_p": 0.9},
    "min-p 0.1": {"min_p": 0.1}, "greedy": {"greedy": True},
}


def measure(lab: Lab) -> dict[str, Any]:
    p = np.array(WEIGHTS) / sum(WEIGHTS)
    rng = np.random.default_rng(lab.seed)
    log_p = np.repeat(np.log(p)[None], DRAWS, 0)                        # [DRAWS, 3]
    inverse = np.bincount(sample(log_p, rng.random(DRAWS)), minlength=3)
    noise = -np.log(-np.log(rng.random((DRAWS, 3))))                    # [DRAWS, 3]
    gumbel = np.bincount((np.log(p) + noise).argmax(-1), minlength=3)
    draws = {}
    for name, counts in (("inverse CDF", inverse), ("Gumbel-max", gumbel)):
        chi2 = float((np.square(counts - DRAWS * p) / (DRAWS * p)).sum())
        draws[name] = {"counts": counts.tolist(), "chi2": chi2}
    for one in draws.values():
        one["p"] = math.exp(-one["chi2"] / 2)
    model, tokenizer = lab.model, lab.tokenizer
    small = tokenizer.n_vocab < 50_000
    start = tokenizer.encode("\nROMEO:\n") if small else tokenizer.encode("The dog")
    with mg.no_grad():
        logits = model([start], last=1).numpy()[0].astype(np.float64)[:, :tokenizer.n_vocab]
    whole = process_logits(logits, SamplingOptions())[0]
    rows = []
    for name, options in METHODS.items():
        kept = process_logits(logits, SamplingOptions(**options))[0]
        alive = np.isfinite(kept)
        made = model.generate([start] * 8, max_new_tokens=48, seed=lab.seed, eos_token_id=None,
                              **options)
        texts = [row[len(start):] for row in made]
        rows.append({"method": name, "tokens kept": int(alive.sum()),
                     "their mass": float(np.exp(whole[alive]).sum()),
                     "entropy, nats": float(entropy(np.exp(kept))) + 0.0,       # 0, not −0
                     "distinct-2 of 8 texts": distinct(texts, 2)})
    refused = {}
    impossible = (("--temperature", {"temperature": -1.0}), ("--top-k", {"top_k": 0}),
                  ("--top-p", {"top_p": 1.5}), ("--min-p", {"min_p": 2.0}))
    for said, options in impossible:
        try:
            SamplingOptions(**options)
        except UsageError as error:
            refused[said] = str(error)
    order = np.sort(np.exp(whole))[::-1]
    ranks = np.unique(np.geomspace(1, len(order), 100).round().astype(int))
    notes = []
    for name, d in draws.items():
        shares = ", ".join(f"{100 * c / DRAWS:.2f} %" for c in d["counts"])
        notes.append(f"{name}: {shares} of {DRAWS:,}; χ² {d['chi2']:.2f}, P {d['p']:.2f}")
    return {
        "rows": rows, "draws": draws, "wanted": p.tolist(), "refused": refused,
        "ranks": ranks.tolist(), "sorted": order[ranks - 1].tolist(),
        "nucleus": int((order.cumsum() < 0.9).sum()) + 1,
        "min_p": int((order >= 0.1 * order[0]).sum()), "notes": notes + list(refused.values()),
    }


def judge(found: dict[str, Any]) -> list[Verdict]:
    """χ²: contradicted below P = 1e-4, inconclusive below 0.01.

    Each method must keep as many tokens as it promises. Each of four impossible values must raise
    an error.
    """
    def drawn(name: str, claim: str) -> Verdict:
        p = found["draws"][name]["p"]
        return verdict(False if p < 1e-4 else None if p < 0.01 else True, claim,
                       f"χ² is {found['draws'][name]['chi2']:.2f}, P = {p:.3f}")

    rows = {row["method"]: row for row in found["rows"]}
    wanted = {"top-k 10": 10, "top-p 0.9": found["nucleus"], "min-p 0.1": found["min_p"],
              "greedy": 1}
    kept = (all(rows[name]["tokens kept"] == count for name, count in wanted.items())
            and rows["top-p 0.9"]["their mass"] >= 0.9)
    most = max(row["entropy, nats"] for row in found["rows"])
    narrower = rows["multinomial"]["entropy, nats"] >= most
    return [
        drawn("inverse CDF", "weights 1, 2, 5 are drawn in 12.5, 25 and 62.5 % of cases"),
        drawn("Gumbel-max", "Gumbel-max draws from the same distribution"),
        verdict(kept and narrower,
                "top-k keeps k tokens, top-p the fewest with mass p, min-p those with at least p "
                "times the largest probability, greedy one",
                "tokens that are kept, and their probability: "
                + ", ".join(f"{name} {row['tokens kept']} with {row['their mass']:.2f}"
                            for name, row in rows.items())),
        verdict(len(found["refused"]) == 4, "impossible values raise an error that names the flag",
                f"{len(found['refused'])} of 4 do"),
    ]


def draw(found: dict[str, Any]) -> Any:
    figure, axes = new_figure(11, 3.8, 1, 3)
    at = np.arange(3)
    for i, (name, d) in enumerate(found["draws"].items()):
        axes[0, 0].bar(at + 0.3 * i, [100 * c / DRAWS for c in d["counts"]], 0.3,
                       color=COLOURS[i], label=name)
    axes[0, 0].hlines([100 * p for p in found["wanted"]], at - 0.2, at + 0.5, color="black",
                      label="wanted")
    axes[0, 0].set_xticks(at + 0.15, [f"weight {w:g}" for w in WEIGHTS])
    axes[0, 0].set(title="drawn, %")
    legend_below(axes[0, 0], 3)
    axes[0, 1].loglog(found["ranks"], found["sorted"], color="black", label="the model's")
    lowest = min(p for p in found["sorted"] if p > 0.0)
    for i, row in enumerate(found["rows"]):             # one line each: their numbers may be equal
        axes[0, 1].plot([1, row["tokens kept"]], [lowest / 4.0 ** (i + 1)] * 2, "o-", markersize=4,
                        markevery=[1], color=COLOURS[i],
                        label=f"{row['method']}: {row['tokens kept']:,}")
    axes[0, 1].set(title="ranks kept of one distribution", xlabel="rank", ylabel="probability")
    axes[0, 1].set_yticks([tick for tick in axes[0, 1].get_yticks() if lowest <= tick <= 1.0])
    axes[0, 1].minorticks_off()
    legend_below(axes[0, 1], 3)
    axes[0, 2].barh([row["method"] for row in found["rows"]],
                    [row["distinct-2 of 8 texts"] for row in found["rows"]], color=COLOURS[:5])
    axes[0, 2].invert_yaxis()
    axes[0, 2].set(title="different pairs in 8 texts, share", xlim=(0, 1))
    return figure
